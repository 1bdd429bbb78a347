//! From store failures to what a client is told.

use holdfast_model::{Error, ErrorCode, Identity};
use holdfast_observe::Event as _;
use holdfast_ports::StoreError;

use crate::Hub;
use crate::events::StoreFailed;
use crate::if_match::precondition_failed;

impl Hub {
    /// Maps a store's failure for which the operation has no meaning of its own. What the operator must know is
    /// logged here; the client learns only that it may try again.
    pub(crate) fn store_error(&self, operation: &'static str, error: StoreError) -> Error {
        match error {
            StoreError::Refused(error) => error,
            StoreError::Conflict => precondition_failed(),
            StoreError::Unavailable(reason) => {
                StoreFailed {
                    operation,
                    reason: &reason,
                }
                .emit(&self.metrics);
                Error::new(
                    ErrorCode::ServiceUnavailable,
                    "the hub cannot reach its storage; try again later",
                )
            }
            StoreError::Exists | StoreError::Missing | StoreError::Full => {
                StoreFailed {
                    operation,
                    reason: "the store gave an answer that the operation does not know",
                }
                .emit(&self.metrics);
                Error::new(ErrorCode::ServerError, "the hub failed; its log has the details")
            }
        }
    }
}

/// No such device or module.
pub(crate) fn not_found(identity: &Identity) -> Error {
    match identity.module_id() {
        None => Error::new(
            ErrorCode::DeviceNotFound,
            format!("there is no device {:?}", identity.device_id()),
        ),
        Some(module_id) => Error::new(
            ErrorCode::ModuleNotFound,
            format!(
                "there is no module {module_id:?} of device {:?}",
                identity.device_id()
            ),
        ),
    }
}

pub(crate) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::ArgumentInvalid, message)
}
