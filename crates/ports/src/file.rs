//! File uploads: what devices ask, what services are told, where both are kept, and where the blobs go.

use holdfast_model::c2d::{LockToken, Settlement};
use holdfast_model::file::{FileNotification, FileNotificationDelivery, Upload, UploadedBlob};
use holdfast_model::{Error, Identity, Timestamp};

use crate::{BoxFuture, StoreResult};

/// Most notifications kept. Nobody is obliged to fetch them, so the oldest make room.
pub const FILE_NOTIFICATIONS_MAX: usize = 100_000;
/// Ended uploads remembered of one device, so that a late notification of one is told that it is late. Older ones are
/// unknown.
pub const EXPIRED_UPLOADS_MAX: usize = 10;

/// Where a device shall put its blob (rest.md section 15.4, step 1).
#[derive(Clone, PartialEq, Eq)]
pub struct UploadGrant {
    /// Names the upload when its end is told.
    pub correlation_id: String,
    /// Host of the storage account, with its port unless that is 443.
    pub host_name: String,
    /// Container; behind the account's name where the host does not name it.
    pub container_name: String,
    /// Name of the blob, beginning with the device id and a slash.
    pub blob_name: String,
    /// Query with the signature, beginning with `?`. A secret.
    pub sas_token: String,
}

impl std::fmt::Debug for UploadGrant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UploadGrant")
            .field("correlation_id", &self.correlation_id)
            .field("blob_name", &self.blob_name)
            .finish_non_exhaustive()
    }
}

/// How a device says that its upload ended (rest.md section 15.4, step 3).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UploadResult {
    /// Names the upload.
    pub correlation_id: String,
    /// Whether the blob is there.
    pub is_success: bool,
    /// Status code of the device's own choice.
    pub status_code: i64,
    /// Text of the device's own choice.
    pub status_description: String,
}

/// What protocol heads ask about files on behalf of devices.
pub trait FileGateway: Send + Sync + 'static {
    /// Begins an upload, durably. `host` is the name by which the device reached the hub.
    ///
    /// # Errors
    /// `DefaultStorageEndpointNotConfigured`; `ArgumentInvalid` for a name that no blob can have, and for a module;
    /// `DeviceMaximumActiveFileUploadLimitExceeded`; `DeviceNotFound`; `ServiceUnavailable`.
    fn begin_upload<'a>(
        &'a self,
        identity: &'a Identity,
        blob_name: &'a str,
        host: Option<&'a str>,
    ) -> BoxFuture<'a, Result<UploadGrant, Error>>;

    /// Ends an upload, durably; its signature is void from then on, if the storage knows how to do that. A success is
    /// told to services.
    ///
    /// # Errors
    /// `InvalidFileUploadCorrelationId` for an upload that is unknown, of another device, or ended before;
    /// `ExpiredFileUploadCorrelationId`; `InvalidStorageEndpointOrBlob` when there is no blob, and then the upload goes
    /// on; `ServiceUnavailable`.
    fn end_upload<'a>(
        &'a self,
        identity: &'a Identity,
        result: UploadResult,
    ) -> BoxFuture<'a, Result<(), Error>>;
}

/// What protocol heads ask about files on behalf of services.
pub trait FileNotifications: Send + Sync + 'static {
    /// Locks the oldest notification that nobody holds.
    ///
    /// # Errors
    /// `ServiceUnavailable`.
    fn receive_notification(&self) -> BoxFuture<'_, Result<Option<FileNotificationDelivery>, Error>>;

    /// Settles a notification: `Complete` and `Reject` remove it, `Abandon` counts and gives it back until it was
    /// abandoned too often, `Release` gives it back.
    ///
    /// # Errors
    /// `DeviceMessageLockLost`.
    fn settle_notification(
        &self,
        lock: LockToken,
        settlement: Settlement,
    ) -> BoxFuture<'_, Result<(), Error>>;
}

/// Store of uploads under way and of notifications.
pub trait FileStore: Send + Sync + 'static {
    /// Adds an upload. Ended ones of the device beyond [`EXPIRED_UPLOADS_MAX`] are forgotten.
    ///
    /// # Errors
    /// `Missing` when the device does not exist; `Full` when it has `active_max` that have not ended at `now`.
    fn add_upload(&self, upload: Upload, active_max: usize, now: Timestamp)
    -> BoxFuture<'_, StoreResult<()>>;

    /// An upload of a device, also one that has expired.
    fn upload<'a>(
        &'a self,
        device: &'a Identity,
        correlation_id: &'a str,
    ) -> BoxFuture<'a, StoreResult<Option<Upload>>>;

    /// Removes an upload and adds the notification of it, both or nothing.
    ///
    /// # Errors
    /// `Missing` when there is no such upload.
    fn end_upload<'a>(
        &'a self,
        device: &'a Identity,
        correlation_id: &'a str,
        notification: Option<FileNotification>,
    ) -> BoxFuture<'a, StoreResult<()>>;

    /// Locks the oldest notification that nobody holds until `lock_until`; expired ones are dropped on the way, and locks
    /// that have ended are void.
    fn lock_file_notification(
        &self,
        now: Timestamp,
        lock_until: Timestamp,
    ) -> BoxFuture<'_, StoreResult<Option<FileNotificationDelivery>>>;

    /// Settles a locked notification; one abandoned `delivery_count_max` times is dropped.
    ///
    /// # Errors
    /// `Missing` when the token is unknown or its lock has ended and it was locked anew.
    fn settle_file_notification(
        &self,
        lock: LockToken,
        settlement: Settlement,
        delivery_count_max: u32,
    ) -> BoxFuture<'_, StoreResult<()>>;

    /// Drops notifications that expired before `now`, and uploads that ended before `uploads_before`; returns how many
    /// notifications there were.
    fn expire_files(&self, now: Timestamp, uploads_before: Timestamp) -> BoxFuture<'_, StoreResult<u64>>;
}

/// A signed place for one blob.
#[derive(Clone, PartialEq, Eq)]
pub struct SignedBlob {
    /// As [`UploadGrant::host_name`].
    pub host_name: String,
    /// As [`UploadGrant::container_name`].
    pub container_name: String,
    /// As [`UploadGrant::sas_token`].
    pub sas_token: String,
}

/// Why a storage account did not answer as wanted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StorageError {
    /// It refuses: wrong key, no such container.
    #[error("the storage account refuses: {0}")]
    Refused(String),
    /// It cannot be reached or has failed; later it may work.
    #[error("the storage account cannot be reached: {0}")]
    Unavailable(String),
}

/// The storage account that uploads go to.
pub trait UploadStorage: Send + Sync + 'static {
    /// Signs a place for a blob. Pure. `id` names the signature, for [`UploadStorage::finish`].
    fn sign(&self, blob: &str, id: &str, expires_at: Timestamp, host: Option<&str>) -> SignedBlob;

    /// Looks at a blob and ends the signature `id`, durably and at one moment, where the storage can do that. `None` when
    /// there is no such blob, and the signature stays.
    ///
    /// # Errors
    /// [`StorageError`].
    fn finish<'a>(
        &'a self,
        blob: &'a str,
        id: &'a str,
        expires_at: Timestamp,
    ) -> BoxFuture<'a, Result<Option<UploadedBlob>, StorageError>>;

    /// Ends the signature `id` whether there is a blob or not, where the storage can do that.
    ///
    /// # Errors
    /// [`StorageError`].
    fn revoke<'a>(&'a self, id: &'a str, expires_at: Timestamp) -> BoxFuture<'a, Result<(), StorageError>>;
}
