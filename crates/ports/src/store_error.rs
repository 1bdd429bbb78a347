//! What can go wrong in a driven port.

/// A failure of a store.
///
/// The engine maps `Exists`, `Missing`, `Conflict` and `Full` to client errors, since it knows what they mean for the
/// operation; `Refused` passes through; `Unavailable` is logged and becomes "service unavailable".
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// An entry with this key exists already.
    #[error("the entry exists already")]
    Exists,
    /// There is no entry with this key.
    #[error("there is no such entry")]
    Missing,
    /// The entry's version is not the expected one.
    #[error("the entry has changed meanwhile")]
    Conflict,
    /// A bound of the store is reached (queue depth, modules per device).
    #[error("a bound of the store is reached")]
    Full,
    /// A mutation refused the change; the text and code are meant for the client.
    #[error(transparent)]
    Refused(#[from] holdfast_model::Error),
    /// The store cannot serve: disk failed or full, database damaged, connection lost. Nothing was changed.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
}

/// Result of a driven port.
pub type StoreResult<T> = Result<T, StoreError>;
