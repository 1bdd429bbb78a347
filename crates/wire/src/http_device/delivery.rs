//! The response that hands a cloud-to-device message to a device.

use std::borrow::Cow;
use std::fmt::Write as _;

use holdfast_model::Timestamp;
use holdfast_model::c2d::C2dDelivery;
use holdfast_model::message::SystemProperty;

use super::APPLICATION_PREFIX;
use crate::etag;

/// The response headers of a cloud-to-device message (REST contract, section 15.3), names as the clients read them.
///
/// `ETag` is the quoted lock token. Values are safe to send: bytes that header values cannot hold are
/// percent-encoded, and an application property whose name is no header name is left out. A property without value
/// has an empty one.
#[must_use]
pub fn delivery_headers(delivery: &C2dDelivery) -> Vec<(Cow<'static, str>, String)> {
    let message = &delivery.message;
    let content = &message.message;
    let mut headers: Vec<(Cow<'static, str>, String)> = Vec::with_capacity(12);
    let mut add = |name: &'static str, value: String| headers.push((Cow::Borrowed(name), value));
    add("ETag", etag::quoted(&delivery.lock.to_string()));
    add("iothub-sequencenumber", delivery.lock.sequence_number.to_string());
    let to = format!("/devices/{}/messages/devicebound", message.device.device_id());
    add("iothub-to", to);
    if message.expires_at != Timestamp::MAX {
        add("iothub-expiry", message.expires_at.to_string());
    }
    add("iothub-ack", message.ack.as_str().to_owned());
    add("iothub-enqueuedtime", message.enqueued_at.to_string());
    add("iothub-deliverycount", delivery.delivery_count.to_string());
    for (name, property) in [
        ("iothub-messageid", SystemProperty::MessageId),
        ("iothub-correlationid", SystemProperty::CorrelationId),
        ("iothub-userid", SystemProperty::UserId),
        ("ContentType", SystemProperty::ContentType),
        ("ContentEncoding", SystemProperty::ContentEncoding),
    ] {
        if let Some(value) = content.system(property) {
            add(name, header_value(value));
        }
    }
    for (key, value) in &content.properties {
        if is_header_name(key) {
            let value = header_value(value.as_deref().unwrap_or_default());
            headers.push((Cow::Owned(format!("{APPLICATION_PREFIX}{key}")), value));
        }
    }
    headers
}

/// Whether the text may stand in a header name (RFC 9110, section 5.6.2).
fn is_header_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// The text with everything but visible ASCII and inner spaces percent-encoded. A `%` that is there stays: nearly
/// all values are plain, and clients do not decode.
fn header_value(text: &str) -> String {
    let mut value = String::with_capacity(text.len());
    let last = text.len().saturating_sub(1);
    for (at, byte) in text.bytes().enumerate() {
        let inner_space = byte == b' ' && at != 0 && at != last;
        if byte.is_ascii_graphic() || inner_space {
            value.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(value, "%{byte:02X}");
        }
    }
    value
}
