//! Names of HTTP headers and media types of the hub's HTTPS contract. Header names are lower case, as they are to
//! be sent: the C# SDK looks some of them up in a case-sensitive dictionary (REST contract, section 1).

/// Error name of a failed hub request, in exact PascalCase.
pub const ERROR_CODE: &str = "iothub-errorcode";
/// Error name of a failed provisioning request.
pub const DPS_ERROR_CODE: &str = "x-ms-error-code";
/// Id of the request, a GUID, on every answer.
pub const REQUEST_ID: &str = "x-ms-request-id";
/// Continuation of a paged query; absent on the last page.
pub const CONTINUATION: &str = "x-ms-continuation";
/// Content type of a notification of a file upload (AMQP contract, section 4.3).
pub const FILE_NOTIFICATION: &str = "application/vnd.microsoft.iothub.filenotification.json";

/// Kind of the items of a query answer, always sent; see [`ItemType`].
pub const ITEM_TYPE: &str = "x-ms-item-type";
/// Wanted page size of a query.
pub const MAX_ITEM_COUNT: &str = "x-ms-max-item-count";
/// Tells the real method of a `POST` (the Java service client sends PATCH so).
pub const METHOD_OVERRIDE: &str = "x-http-method-override";
/// Module that calls a method on another one.
pub const EDGE_MODULE_ID: &str = "x-ms-edge-moduleid";
/// Seconds to wait before a throttled or unavailable operation is tried again.
pub const RETRY_AFTER: &str = "retry-after";

/// Content type of every JSON answer.
pub const JSON: &str = "application/json; charset=utf-8";
/// Content type of a batch of device messages (REST contract, section 15.2).
pub const MESSAGE_BATCH: &str = "application/vnd.microsoft.iothub.json";
/// Content type of a batch of feedback records (REST contract, section 8).
pub const FEEDBACK_BATCH: &str = "application/vnd.microsoft.iothub.feedback.json";

/// Kind of the items of a query answer (REST contract, section 9).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ItemType {
    /// Twin documents: `SELECT *`.
    Twin,
    /// Projections and aggregates.
    Raw,
    /// Per-device results of a job.
    DeviceJob,
    /// Jobs.
    JobResponse,
}

impl ItemType {
    /// Value of the header [`ITEM_TYPE`].
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            ItemType::Twin => "Twin",
            ItemType::Raw => "Raw",
            ItemType::DeviceJob => "DeviceJob",
            ItemType::JobResponse => "JobResponse",
        }
    }
}

/// Whether a request's content type announces a batch of device messages; parameters and case do not count.
#[must_use]
pub fn is_message_batch(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default();
    essence.trim().eq_ignore_ascii_case(MESSAGE_BATCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_content_type_is_recognised() {
        assert!(is_message_batch(MESSAGE_BATCH));
        assert!(is_message_batch(
            "Application/vnd.microsoft.iothub.JSON ; charset=utf-8"
        ));
        assert!(!is_message_batch("application/json"));
        assert_eq!(ItemType::JobResponse.as_str(), "JobResponse");
    }
}
