//! File uploads of devices, and what services are told of them (rest.md section 15.4, amqp.md section 4.3).

use crate::c2d::LockToken;
use crate::identity::Identity;
use crate::time::Timestamp;

/// An upload that a device has begun: it holds a signature for one blob and has not told how it went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Upload {
    /// Names it; drawn by the hub, hard to guess.
    pub correlation_id: String,
    /// Whose it is.
    pub device: Identity,
    /// Name of the blob, beginning with the device id and a slash.
    pub blob_name: String,
    /// When it was begun.
    pub begun_at: Timestamp,
    /// When it ends by itself, together with its signature.
    pub expires_at: Timestamp,
}

/// A blob as it was found when its upload was notified.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UploadedBlob {
    /// Its URI, without a signature.
    pub uri: String,
    /// Bytes.
    pub size: u64,
    /// When it was last written.
    pub updated_at: Timestamp,
}

/// What services are told of an upload that succeeded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileNotification {
    /// Whose file it is.
    pub device_id: String,
    /// URI of the blob, without a signature.
    pub blob_uri: String,
    /// Name of the blob, beginning with the device id and a slash.
    pub blob_name: String,
    /// Bytes.
    pub blob_size: u64,
    /// When the blob was last written.
    pub blob_updated_at: Timestamp,
    /// When the device told of it.
    pub enqueued_at: Timestamp,
    /// When it is of no more use.
    pub expires_at: Timestamp,
}

/// A notification handed to a service under a lock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileNotificationDelivery {
    /// Names this delivery when it is settled.
    pub lock: LockToken,
    /// When the lock ends: from then on the notification may be handed out anew.
    pub locked_until: Timestamp,
    /// How often it was abandoned before.
    pub delivery_count: u32,
    /// The notification.
    pub notification: FileNotification,
}
