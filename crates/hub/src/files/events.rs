//! What file uploads say about themselves.

use holdfast_observe::metrics::{Counter, CounterBy, Label, Registry};

/// How a device's word about an upload was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UploadEnd {
    /// The blob is there.
    Succeeded,
    /// The device gave up.
    Failed,
    /// The upload had expired.
    Expired,
    /// No such upload.
    Unknown,
    /// The device says that it succeeded, and there is no blob.
    BlobMissing,
}

impl Label for UploadEnd {
    const NAME: &'static str = "outcome";
    const VALUES: &'static [&'static str] = &["succeeded", "failed", "expired", "unknown", "blob_missing"];
    fn index(self) -> usize {
        self as usize
    }
}

/// Metrics of file uploads.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Uploads begun.
    pub begun: Counter,
    /// Uploads refused because the device had too many.
    pub refused: Counter,
    /// Ends of uploads as devices told them.
    pub ended: CounterBy<UploadEnd>,
    /// Notifications made.
    pub notifications: Counter,
    /// Notifications that services have taken for good.
    pub notifications_settled: Counter,
    /// Notifications that nobody took in time.
    pub notifications_expired: Counter,
    /// Calls of the stores and of the storage account that failed.
    pub failures: Counter,
}

impl Metrics {
    /// Registers the metrics of file uploads.
    pub fn register(registry: &mut Registry) -> Self {
        Metrics {
            begun: registry.counter(
                "holdfast_file_uploads_begun_total",
                "File uploads begun by devices",
            ),
            refused: registry.counter(
                "holdfast_file_uploads_refused_total",
                "File uploads refused because the device has too many under way",
            ),
            ended: registry.counter_by(
                "holdfast_file_uploads_ended_total",
                "File uploads ended by devices",
            ),
            notifications: registry.counter(
                "holdfast_file_notifications_total",
                "Notifications of file uploads made for services",
            ),
            notifications_settled: registry.counter(
                "holdfast_file_notifications_settled_total",
                "Notifications of file uploads that services have completed or rejected",
            ),
            notifications_expired: registry.counter(
                "holdfast_file_notifications_expired_total",
                "Notifications of file uploads that nobody took in time",
            ),
            failures: registry.counter(
                "holdfast_file_failures_total",
                "Calls of store or storage account that failed during file uploads",
            ),
        }
    }
}
