//! What can go wrong inside an operation on the database.

use holdfast_ports::StoreError;
use rusqlite::ErrorCode;
use rusqlite::ffi;

/// Why an operation failed, before it is told to the caller.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// The operation's own answer: missing, full, refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The database failed.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// A stored value is not what this program writes.
    #[error("stored {what} cannot be read: {problem}")]
    Content {
        /// Which value.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl From<holdfast_model::Error> for Fault {
    fn from(error: holdfast_model::Error) -> Self {
        Fault::Store(StoreError::Refused(error))
    }
}

impl Fault {
    /// A stored value that cannot be read.
    pub(super) fn content(what: &'static str, problem: impl ToString) -> Self {
        Fault::Content {
            what,
            problem: problem.to_string(),
        }
    }
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Store(error) => error,
            Fault::Sqlite(error) => StoreError::Unavailable(explain(&error)),
            content @ Fault::Content { .. } => StoreError::Unavailable(content.to_string()),
        }
    }
}

/// The error in words, with the remedy where there is one.
pub(super) fn explain(error: &rusqlite::Error) -> String {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => "the disk is full; free some space".into(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            format!("the state database is damaged ({error}); stop the hub and restore a backup")
        }
        _ => error.to_string(),
    }
}

/// Whether nothing may be written after this error until the process is started again. After a failed sync nobody
/// knows what is on the disk, and writing to a damaged file makes it worse; anything else is rolled back and may be
/// tried again.
pub(super) fn is_final(error: &rusqlite::Error) -> bool {
    let Some(failure) = error.sqlite_error() else {
        return false;
    };
    matches!(
        failure.extended_code,
        ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC
    ) || matches!(failure.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
}
