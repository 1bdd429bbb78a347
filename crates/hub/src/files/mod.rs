//! File uploads: a device asks for a place, puts its blob there, and tells how that went; services hear of it.
//!
//! The hub never sees a blob. It hands out a signature for one blob of one storage account and remembers that it did. When
//! the device says that it is done, the blob is looked at and the signature ended at one moment, and then one transaction
//! removes the upload and adds the notification. A crash between the two leaves an upload whose device was not answered;
//! told again, it ends the same way, and nothing is told twice.

pub mod events;
mod name;

use std::sync::Arc;
use std::time::Duration;

use holdfast_model::c2d::{LockToken, Settlement};
use holdfast_model::file::{FileNotification, FileNotificationDelivery, Upload, UploadedBlob};
use holdfast_model::{Error, ErrorCode, Identity, Timestamp, limits};
use holdfast_ports::clock::Clock;
use holdfast_ports::file::{
    FileGateway, FileNotifications, FileStore, StorageError, UploadGrant, UploadResult, UploadStorage,
};
use holdfast_ports::{BoxFuture, StoreError};

use crate::failure::{invalid, not_found};
use events::{Metrics, UploadEnd};

/// How long an upload is remembered beyond its end, so that a late device is told that it is late.
const REMEMBERED: Duration = Duration::from_secs(24 * 3_600);

/// Settings of [`Files`]. The default has the figures of IoT Hub.
#[derive(Clone, Debug)]
pub struct FilesConfig {
    /// Life of an upload and of its signature. Default: 1 hour.
    pub upload_ttl: Duration,
    /// Most uploads of a device under way. Default: 10.
    pub uploads_max: usize,
    /// Whether services are told of uploads. Default: yes.
    pub notify: bool,
    /// Life of a notification. Default: 1 hour.
    pub notification_ttl: Duration,
    /// How long a notification handed out stays locked. Default: 60 seconds.
    pub notification_lock: Duration,
    /// Abandons after which a notification is dropped. Default: 100.
    pub delivery_count_max: u32,
}

impl Default for FilesConfig {
    fn default() -> Self {
        FilesConfig {
            upload_ttl: Duration::from_secs(limits::UPLOAD_TTL_DEFAULT_SECONDS),
            uploads_max: limits::UPLOADS_PER_DEVICE_MAX,
            notify: true,
            notification_ttl: Duration::from_secs(limits::FILE_NOTIFICATION_TTL_SECONDS.0),
            notification_lock: Duration::from_secs(limits::FILE_NOTIFICATION_LOCK_SECONDS.1),
            delivery_count_max: limits::FILE_NOTIFICATION_DELIVERY_COUNT_MAX,
        }
    }
}

/// The driven ports of [`Files`].
#[derive(Clone)]
pub struct FileDrivers {
    /// Uploads and notifications.
    pub store: Arc<dyn FileStore>,
    /// Where blobs go; `None` when files cannot be uploaded.
    pub storage: Option<Arc<dyn UploadStorage>>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// The engine of file uploads. Shared by `Arc`; the composition root calls [`Files::tick`] now and then.
pub struct Files {
    config: FilesConfig,
    drivers: FileDrivers,
    metrics: Metrics,
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Files")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Files {
    /// An engine; nothing runs by itself.
    #[must_use]
    pub fn new(config: FilesConfig, drivers: FileDrivers, metrics: Metrics) -> Arc<Self> {
        Arc::new(Files {
            config,
            drivers,
            metrics,
        })
    }

    /// Drops what has expired. Failures are logged and made good by a later call.
    pub async fn tick(&self) {
        let now = self.drivers.clock.now();
        match self.drivers.store.expire_files(now, now.minus(REMEMBERED)).await {
            Ok(dropped) => self.metrics.notifications_expired.add(dropped),
            Err(error) => drop(self.store_failed("expire file uploads", error)),
        }
    }

    fn storage(&self) -> Result<&Arc<dyn UploadStorage>, Error> {
        self.drivers.storage.as_ref().ok_or_else(|| {
            Error::new(
                ErrorCode::DefaultStorageEndpointNotConfigured,
                "the hub has no storage for file upload; an operator can turn it on (files.enabled)",
            )
        })
    }

    async fn begin(
        &self,
        device: &Identity,
        blob_name: &str,
        host: Option<&str>,
    ) -> Result<UploadGrant, Error> {
        if device.is_module() {
            return Err(invalid("files are uploaded by devices, not by modules"));
        }
        let storage = self.storage()?;
        let blob_name = name::of_blob(device, blob_name)?;
        let now = self.drivers.clock.now();
        let upload = Upload {
            correlation_id: uuid::Uuid::new_v4().to_string(),
            device: device.clone(),
            blob_name,
            begun_at: now,
            expires_at: whole_seconds(now.plus(self.config.upload_ttl)),
        };
        let added = self
            .drivers
            .store
            .add_upload(upload.clone(), self.config.uploads_max, now);
        added.await.map_err(|error| match error {
            StoreError::Missing => not_found(device),
            StoreError::Full => {
                self.metrics.refused.inc();
                Error::new(
                    ErrorCode::DeviceMaximumActiveFileUploadLimitExceeded,
                    format!(
                        "{} file uploads of {device} are under way; tell how one of them ended before another is begun",
                        self.config.uploads_max
                    ),
                )
            }
            other => self.store_failed("begin file upload", other),
        })?;
        let signed = storage.sign(&upload.blob_name, &upload.correlation_id, upload.expires_at, host);
        self.metrics.begun.inc();
        Ok(UploadGrant {
            correlation_id: upload.correlation_id,
            host_name: signed.host_name,
            container_name: signed.container_name,
            blob_name: upload.blob_name,
            sas_token: signed.sas_token,
        })
    }

    async fn end(&self, device: &Identity, result: UploadResult) -> Result<(), Error> {
        let storage = self.storage()?;
        let (store, now) = (&self.drivers.store, self.drivers.clock.now());
        let id = &result.correlation_id;
        let found = store.upload(device, id).await;
        let found = found.map_err(|error| self.store_failed("read file upload", error))?;
        let Some(upload) = found else {
            return Err(self.unknown(id));
        };
        if upload.expires_at <= now {
            self.metrics.ended.of(UploadEnd::Expired).inc();
            return Err(Error::new(
                ErrorCode::ExpiredFileUploadCorrelationId,
                format!(
                    "the upload of {:?} has expired at {}",
                    upload.blob_name, upload.expires_at
                ),
            ));
        }
        let notification = if result.is_success {
            let blob = storage.finish(&upload.blob_name, id, upload.expires_at).await;
            let blob = blob
                .map_err(|error| self.storage_failed(&error))?
                .ok_or_else(|| {
                    self.metrics.ended.of(UploadEnd::BlobMissing).inc();
                    Error::new(
                        ErrorCode::InvalidStorageEndpointOrBlob,
                        format!("there is no blob {:?}; the upload goes on", upload.blob_name),
                    )
                })?;
            self.config.notify.then(|| self.notification(&upload, blob, now))
        } else {
            let revoked = storage.revoke(id, upload.expires_at).await;
            revoked.map_err(|error| self.storage_failed(&error))?;
            None
        };
        let told = notification.is_some();
        match store.end_upload(device, id, notification).await {
            // Somebody told it at the same time, and was first.
            Err(StoreError::Missing) => return Err(self.unknown(id)),
            Err(error) => return Err(self.store_failed("end file upload", error)),
            Ok(()) => {}
        }
        let outcome = match result.is_success {
            true => UploadEnd::Succeeded,
            false => UploadEnd::Failed,
        };
        self.metrics.ended.of(outcome).inc();
        self.metrics.notifications.add(u64::from(told));
        // The device's own words are cut: they are worth a line, not a page.
        let words: String = result.status_description.chars().take(200).collect();
        tracing::debug!(%device, blob = upload.blob_name, success = result.is_success, status = result.status_code, ?words, "file upload ended");
        Ok(())
    }

    fn notification(&self, upload: &Upload, blob: UploadedBlob, now: Timestamp) -> FileNotification {
        FileNotification {
            device_id: upload.device.device_id().to_owned(),
            blob_uri: blob.uri,
            blob_name: upload.blob_name.clone(),
            blob_size: blob.size,
            blob_updated_at: blob.updated_at,
            enqueued_at: now,
            expires_at: now.plus(self.config.notification_ttl),
        }
    }

    fn unknown(&self, id: &str) -> Error {
        self.metrics.ended.of(UploadEnd::Unknown).inc();
        let shown: String = id.chars().take(64).collect();
        Error::new(
            ErrorCode::InvalidFileUploadCorrelationId,
            format!("the device has no upload {shown:?} under way"),
        )
    }

    fn storage_failed(&self, error: &StorageError) -> Error {
        self.metrics.failures.inc();
        tracing::warn!(%error, "a file upload could not be ended");
        match error {
            StorageError::Refused(_) => Error::new(
                ErrorCode::InvalidStorageEndpointOrBlob,
                "the storage account refuses the hub; an operator must see to it",
            ),
            StorageError::Unavailable(_) => Error::new(
                ErrorCode::ServiceUnavailable,
                "the storage account cannot be reached; try again later",
            ),
        }
    }

    fn store_failed(&self, operation: &'static str, error: StoreError) -> Error {
        match error {
            StoreError::Refused(error) => error,
            error => {
                self.metrics.failures.inc();
                tracing::warn!(operation, reason = %error, "store operation failed");
                Error::new(
                    ErrorCode::ServiceUnavailable,
                    "the hub cannot reach its storage; try again later",
                )
            }
        }
    }

    async fn receive(&self) -> Result<Option<FileNotificationDelivery>, Error> {
        let now = self.drivers.clock.now();
        let until = now.plus(self.config.notification_lock);
        let locked = self.drivers.store.lock_file_notification(now, until).await;
        locked.map_err(|error| self.store_failed("read file notifications", error))
    }

    async fn settle(&self, lock: LockToken, settlement: Settlement) -> Result<(), Error> {
        let max = self.config.delivery_count_max;
        let settled = self
            .drivers
            .store
            .settle_file_notification(lock, settlement, max)
            .await;
        settled.map_err(|error| match error {
            StoreError::Missing => Error::new(
                ErrorCode::DeviceMessageLockLost,
                "the lock token is unknown or its lock has ended",
            ),
            other => self.store_failed("settle file notification", other),
        })?;
        if matches!(settlement, Settlement::Complete | Settlement::Reject) {
            self.metrics.notifications_settled.inc();
        }
        Ok(())
    }
}

/// Signatures end at whole seconds, and an upload ends with its signature.
fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_seconds(at.as_seconds())
}

impl FileGateway for Files {
    fn begin_upload<'a>(
        &'a self,
        identity: &'a Identity,
        blob_name: &'a str,
        host: Option<&'a str>,
    ) -> BoxFuture<'a, Result<UploadGrant, Error>> {
        Box::pin(self.begin(identity, blob_name, host))
    }

    fn end_upload<'a>(
        &'a self,
        identity: &'a Identity,
        result: UploadResult,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.end(identity, result))
    }
}

impl FileNotifications for Files {
    fn receive_notification(&self) -> BoxFuture<'_, Result<Option<FileNotificationDelivery>, Error>> {
        Box::pin(self.receive())
    }

    fn settle_notification(
        &self,
        lock: LockToken,
        settlement: Settlement,
    ) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.settle(lock, settlement))
    }
}
