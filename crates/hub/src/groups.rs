//! Consumer groups of the built-in endpoint.

use holdfast_model::{Error, ErrorCode};
use holdfast_ports::StoreError;

use crate::Hub;
use crate::failure::invalid;

/// Longest name of a consumer group, characters (Event Hubs).
const NAME_LEN_MAX: usize = 50;

impl Hub {
    /// All consumer groups, `$Default` first.
    ///
    /// # Errors
    /// `ServiceUnavailable`.
    pub async fn consumer_groups(&self) -> Result<Vec<String>, Error> {
        self.stores
            .checkpoints
            .consumer_groups()
            .await
            .map_err(|error| self.store_error("list consumer groups", error))
    }

    /// Adds a consumer group.
    ///
    /// # Errors
    /// `ArgumentInvalid` for a bad name; `ResourceConflict` when it exists; `IotHubQuotaExceeded` at 20 groups.
    pub async fn create_consumer_group(&self, name: &str) -> Result<(), Error> {
        let fits = !name.is_empty()
            && name.len() <= NAME_LEN_MAX
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
            && name.as_bytes()[0].is_ascii_alphanumeric();
        if !fits {
            return Err(invalid(format!(
                "a consumer group's name must have 1 to {NAME_LEN_MAX} of the characters A-Z a-z 0-9 . _ - and start with a letter or digit"
            )));
        }
        self.stores
            .checkpoints
            .create_consumer_group(name)
            .await
            .map_err(|error| match error {
                StoreError::Exists => Error::new(
                    ErrorCode::ResourceConflict,
                    format!("the consumer group {name:?} exists already"),
                ),
                StoreError::Full => Error::new(
                    ErrorCode::IotHubQuotaExceeded,
                    "no more consumer groups can be added",
                ),
                other => self.store_error("create consumer group", other),
            })
    }

    /// Deletes a consumer group with its reading positions.
    ///
    /// # Errors
    /// `ResourceNotFound`; `$Default` cannot be deleted.
    pub async fn delete_consumer_group(&self, name: &str) -> Result<(), Error> {
        self.stores
            .checkpoints
            .delete_consumer_group(name)
            .await
            .map_err(|error| match error {
                StoreError::Missing => Error::new(
                    ErrorCode::ResourceNotFound,
                    format!("there is no consumer group {name:?} that could be deleted"),
                ),
                other => self.store_error("delete consumer group", other),
            })
    }
}
