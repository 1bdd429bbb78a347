//! Preconditions on a version.

use holdfast_model::{Error, ErrorCode};

/// Which version of an identity, twin or certificate a change is meant for (`If-Match`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum IfMatch {
    /// Nothing said: `put_identity` creates, any other change is unconditional.
    #[default]
    Absent,
    /// Any version, but the entry must exist.
    Any,
    /// Just this version.
    Version(u64),
    /// A tag that this hub never gave out: matches nothing.
    Never,
}

impl IfMatch {
    /// # Errors
    /// `PreconditionFailed` when the entry has another version.
    pub(crate) fn check(self, version: u64) -> Result<(), Error> {
        match self {
            IfMatch::Absent | IfMatch::Any => Ok(()),
            IfMatch::Version(wanted) if wanted == version => Ok(()),
            IfMatch::Version(_) | IfMatch::Never => Err(precondition_failed()),
        }
    }
}

pub(crate) fn precondition_failed() -> Error {
    Error::new(
        ErrorCode::PreconditionFailed,
        "the entity tag does not match: the entry has changed meanwhile; read it again and repeat the change",
    )
}
