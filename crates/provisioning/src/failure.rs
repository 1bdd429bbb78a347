//! From store failures to what a client is told.

use holdfast_model::{Error, ErrorCode};
use holdfast_observe::Event as _;
use holdfast_ports::StoreError;

use crate::Provisioning;
use crate::events::Unavailable;

impl Provisioning {
    /// Maps a store's failure for which the operation has no meaning of its own. What the operator must know is logged
    /// here; the client learns only that it may try again.
    pub(crate) fn store_error(&self, operation: &'static str, error: StoreError) -> Error {
        let reason = match error {
            StoreError::Refused(error) => return error,
            StoreError::Conflict => return precondition_failed(),
            StoreError::Unavailable(reason) => reason,
            other => other.to_string(),
        };
        Unavailable {
            operation,
            reason: &reason,
        }
        .emit(&self.metrics);
        Error::new(
            ErrorCode::ServiceUnavailable,
            "the provisioning service cannot reach its storage; try again later",
        )
    }
}

/// Whether it may be tried again.
pub(crate) fn is_transient(error: &Error) -> bool {
    matches!(
        error.code,
        ErrorCode::ServiceUnavailable
            | ErrorCode::ServerError
            | ErrorCode::ThrottlingException
            | ErrorCode::GatewayTimeout
            | ErrorCode::GenericBadGateway
    )
}

pub(crate) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::ArgumentInvalid, message)
}

pub(crate) fn unauthorized() -> Error {
    Error::new(ErrorCode::IotHubUnauthorizedAccess, "Unauthorized")
}

pub(crate) fn precondition_failed() -> Error {
    Error::new(
        ErrorCode::PreconditionFailed,
        "the entity tag does not match: the entry has changed meanwhile; read it again and repeat the change",
    )
}
