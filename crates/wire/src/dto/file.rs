//! File upload: bodies of devices and of notifications (REST contract, section 15.4; AMQP contract, section 4.3).

use holdfast_model::file::FileNotification;
use holdfast_model::{Error, ErrorCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{TimeDto, from_json};

/// What a device asks when it begins an upload.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UploadRequestDto {
    /// Name of the file, without the device id.
    #[serde(default)]
    pub blob_name: Option<String>,
}

impl UploadRequestDto {
    /// Reads the body; gives the name.
    ///
    /// # Errors
    /// Those of [`from_json`]; `ArgumentNull` without a name.
    pub fn parse(body: &[u8]) -> Result<String, Error> {
        let request: UploadRequestDto = from_json(body)?;
        let name = request.blob_name.filter(|name| !name.is_empty());
        name.ok_or_else(|| Error::new(ErrorCode::ArgumentNull, "blobName is missing: name the file"))
    }
}

/// Where the device shall put its blob: `https://{hostName}/{containerName}/{blobName}{sasToken}`. Clients need all five
/// as strings.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UploadGrantDto {
    /// Names the upload when its end is told.
    pub correlation_id: String,
    /// Host of the storage account, with a port unless that is 443.
    pub host_name: String,
    /// Container.
    pub container_name: String,
    /// Name of the blob, device id included.
    pub blob_name: String,
    /// Signature, beginning with `?`.
    pub sas_token: String,
}

impl UploadGrantDto {
    /// The body.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // Serializing texts into memory cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// How an upload ended, as its device tells it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UploadEndDto {
    /// From the path, else from the body.
    pub correlation_id: String,
    /// Whether the blob is there.
    pub is_success: bool,
    /// Status code of the device's own choice; 0 if it sent none.
    pub status_code: i64,
    /// Text of the device's own choice.
    pub status_description: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct UploadEndBody {
    #[serde(default)]
    correlation_id: Option<String>,
    #[serde(default)]
    is_success: Option<Value>,
    #[serde(default)]
    status_code: Option<Value>,
    #[serde(default)]
    status_description: Option<Value>,
}

impl UploadEndDto {
    /// Reads the body; `in_path` is the correlation id of the path, if it has one.
    ///
    /// # Errors
    /// Those of [`from_json`]; `InvalidFileUploadCorrelationId` without an id or when path and body name different ones;
    /// `InvalidFileUploadCompletionStatus` unless `isSuccess` is true or false and `statusCode` a whole number.
    pub fn parse(body: &[u8], in_path: Option<&str>) -> Result<Self, Error> {
        let told: UploadEndBody = from_json(body)?;
        let in_body = told.correlation_id.as_deref().filter(|id| !id.is_empty());
        let correlation_id = match (in_path, in_body) {
            (Some(path), Some(body)) if path != body => {
                let text = "the correlation ids of path and body differ";
                return Err(Error::new(ErrorCode::InvalidFileUploadCorrelationId, text));
            }
            (Some(id), _) | (None, Some(id)) => id.to_owned(),
            (None, None) => {
                let text = "correlationId is missing: it came with the place for the file";
                return Err(Error::new(ErrorCode::InvalidFileUploadCorrelationId, text));
            }
        };
        let unclear = |text: &str| Error::new(ErrorCode::InvalidFileUploadCompletionStatus, text);
        let is_success = told.is_success.as_ref().and_then(Value::as_bool);
        let status_code = match &told.status_code {
            None | Some(Value::Null) => 0,
            Some(code) => code
                .as_i64()
                .ok_or_else(|| unclear("statusCode must be a whole number"))?,
        };
        let status_description = match told.status_description {
            Some(Value::String(text)) => text,
            _ => String::new(),
        };
        Ok(UploadEndDto {
            correlation_id,
            is_success: is_success.ok_or_else(|| unclear("isSuccess must be true or false"))?,
            status_code,
            status_description,
        })
    }
}

/// What services are told of an upload that succeeded. Its content type is [`crate::headers::FILE_NOTIFICATION`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileNotificationDto {
    /// Device id.
    pub device_id: String,
    /// URI of the blob, without a signature.
    pub blob_uri: String,
    /// Name of the blob, device id included.
    pub blob_name: String,
    /// When the blob was last written.
    pub last_updated_time: TimeDto,
    /// Bytes.
    pub blob_size_in_bytes: u64,
    /// When the device told of it.
    pub enqueued_time_utc: TimeDto,
}

/// The body of a notification.
#[must_use]
pub fn file_notification_json(notification: &FileNotification) -> Vec<u8> {
    let dto = FileNotificationDto {
        device_id: notification.device_id.clone(),
        blob_uri: notification.blob_uri.clone(),
        blob_name: notification.blob_name.clone(),
        last_updated_time: TimeDto(notification.blob_updated_at),
        blob_size_in_bytes: notification.blob_size,
        enqueued_time_utc: TimeDto(notification.enqueued_at),
    };
    // Serializing texts and numbers into memory cannot fail.
    serde_json::to_vec(&dto).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use holdfast_model::Timestamp;
    use serde_json::json;

    use super::*;

    #[test]
    fn requests_name_a_file() {
        assert_eq!(
            UploadRequestDto::parse(br#"{"blobName":"a b.txt"}"#).unwrap(),
            "a b.txt"
        );
        for (body, code) in [
            ("{}", ErrorCode::ArgumentNull),
            (r#"{"blobName":null}"#, ErrorCode::ArgumentNull),
            (r#"{"blobName":""}"#, ErrorCode::ArgumentNull),
            (r#"{"blobName":7}"#, ErrorCode::IotHubFormatError),
            ("[]", ErrorCode::IotHubFormatError),
            ("x", ErrorCode::DeserializationError),
            ("", ErrorCode::DeserializationError),
        ] {
            assert_eq!(
                UploadRequestDto::parse(body.as_bytes()).unwrap_err().code,
                code,
                "{body}"
            );
        }
    }

    #[test]
    fn ends_of_every_sdk_are_read() {
        let python = br#"{"correlationId":"c1","isSuccess":true,"statusCode":200,"statusDescription":"OK"}"#;
        let end = UploadEndDto::parse(python, None).unwrap();
        assert_eq!(
            (end.correlation_id.as_str(), end.is_success, end.status_code),
            ("c1", true, 200)
        );
        let node = br#"{"isSuccess":false,"statusCode":-1,"statusDescription":"broken"}"#;
        let end = UploadEndDto::parse(node, Some("c2")).unwrap();
        assert_eq!(
            (end.correlation_id.as_str(), end.is_success, end.status_code),
            ("c2", false, -1)
        );
        assert_eq!(end.status_description, "broken");
        let short = UploadEndDto::parse(br#"{"correlationId":"c1","isSuccess":true}"#, Some("c1")).unwrap();
        assert_eq!(short.status_code, 0);
    }

    #[test]
    fn unclear_ends_are_refused() {
        use ErrorCode as C;
        for (body, path, code) in [
            (r#"{"isSuccess":true}"#, None, C::InvalidFileUploadCorrelationId),
            (
                r#"{"correlationId":"","isSuccess":true}"#,
                None,
                C::InvalidFileUploadCorrelationId,
            ),
            (
                r#"{"correlationId":"a","isSuccess":true}"#,
                Some("b"),
                C::InvalidFileUploadCorrelationId,
            ),
            (
                r#"{"correlationId":"a"}"#,
                None,
                C::InvalidFileUploadCompletionStatus,
            ),
            (
                r#"{"correlationId":"a","isSuccess":"yes"}"#,
                None,
                C::InvalidFileUploadCompletionStatus,
            ),
            (
                r#"{"correlationId":"a","isSuccess":true,"statusCode":"200"}"#,
                None,
                C::InvalidFileUploadCompletionStatus,
            ),
            ("", Some("a"), C::DeserializationError),
        ] {
            assert_eq!(
                UploadEndDto::parse(body.as_bytes(), path).unwrap_err().code,
                code,
                "{body}"
            );
        }
    }

    #[test]
    fn notifications_have_their_shape() {
        let notification = FileNotification {
            device_id: "d1".to_owned(),
            blob_uri: "https://a.test/box/d1/x".to_owned(),
            blob_name: "d1/x".to_owned(),
            blob_size: 104_857_600,
            blob_updated_at: Timestamp::from_seconds(0),
            enqueued_at: Timestamp::from_micros(1_250_000),
            expires_at: Timestamp::from_seconds(9),
        };
        let body: Value = serde_json::from_slice(&file_notification_json(&notification)).unwrap();
        assert_eq!(
            body,
            json!({
                "deviceId": "d1",
                "blobUri": "https://a.test/box/d1/x",
                "blobName": "d1/x",
                "lastUpdatedTime": "1970-01-01T00:00:00Z",
                "blobSizeInBytes": 104_857_600,
                "enqueuedTimeUtc": "1970-01-01T00:00:01.2500000Z",
            })
        );
    }
}
