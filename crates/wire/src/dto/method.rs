//! Direct methods (REST contract, section 7).

use std::time::Duration;

use bytes::Bytes;
use holdfast_model::method::{MethodCall, MethodResponse, check_method_name};
use holdfast_model::{Error, ErrorCode, limits};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::invalid;

/// Body of a method call.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MethodRequestDto {
    /// Name; see [`check_method_name`].
    #[serde(default)]
    pub method_name: Option<String>,
    /// Any JSON, handed to the device as it stands; absent: an empty payload.
    #[serde(
        default,
        deserialize_with = "even_null",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<Object>)]
    pub payload: Option<Box<RawValue>>,
    /// 5 to 300, default 30.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_timeout_in_seconds: Option<i64>,
    /// 0 to 300, default 0: the device must be online now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_timeout_in_seconds: Option<i64>,
}

/// Tells `"payload": null`, which reaches the device as the text `null`, from no payload.
fn even_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

impl MethodRequestDto {
    /// Checks the call.
    ///
    /// # Errors
    /// [`ErrorCode::ArgumentInvalid`] for the name and the timeouts, [`ErrorCode::MessageTooLarge`] for a payload
    /// above 128 KB. Answered in shape B.
    pub fn call(&self) -> Result<MethodCall, Error> {
        let name = self.method_name.as_deref().unwrap_or_default();
        check_method_name(name)?;
        let payload = self.payload.as_ref().map_or("", |payload| payload.get());
        if payload.len() > limits::METHOD_BYTES_MAX {
            let text = format!("the payload may have {} bytes", limits::METHOD_BYTES_MAX);
            return Err(Error::new(ErrorCode::MessageTooLarge, text));
        }
        let (least, default, most) = limits::METHOD_RESPONSE_TIMEOUT_SECONDS;
        Ok(MethodCall {
            name: name.to_owned(),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            connect_timeout: timeout(
                "connectTimeoutInSeconds",
                self.connect_timeout_in_seconds,
                (0, 0, limits::METHOD_CONNECT_TIMEOUT_MAX_SECONDS),
            )?,
            response_timeout: timeout(
                "responseTimeoutInSeconds",
                self.response_timeout_in_seconds,
                (least, default, most),
            )?,
        })
    }
}

fn timeout(
    member: &str,
    seconds: Option<i64>,
    (least, default, most): (u64, u64, u64),
) -> Result<Duration, Error> {
    let Some(seconds) = seconds else {
        return Ok(Duration::from_secs(default));
    };
    match u64::try_from(seconds) {
        Ok(seconds) if (least..=most).contains(&seconds) => Ok(Duration::from_secs(seconds)),
        _ => Err(invalid(format!("{member} must be within [{least}; {most}]."))),
    }
}

/// Answer to a method call. The status is the device's and never the answer's HTTP status.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct MethodResponseDto {
    /// Status chosen by the device.
    pub status: i64,
    /// JSON chosen by the device.
    #[schema(value_type = Object)]
    pub payload: Box<RawValue>,
}

/// The body `{"status":…,"payload":…}` for what the device answered; an empty payload becomes `null`.
///
/// # Errors
/// [`ErrorCode::GenericBadGateway`] when the payload is not JSON or is above 128 KB.
pub fn method_response_json(response: &MethodResponse) -> Result<Vec<u8>, Error> {
    let bad = |text: &str| Error::new(ErrorCode::GenericBadGateway, text);
    if response.payload.len() > limits::METHOD_BYTES_MAX {
        return Err(bad("the device answered the method with more than 128 KB"));
    }
    let blank = response.payload.iter().all(u8::is_ascii_whitespace);
    let payload: &[u8] = if blank { b"null" } else { &response.payload };
    let not_json = |_| bad("the device answered the method with something that is not JSON");
    let payload: Box<RawValue> = serde_json::from_slice(payload).map_err(not_json)?;
    let body = MethodResponseDto {
        status: response.status,
        payload,
    };
    serde_json::to_vec(&body).map_err(not_json)
}
