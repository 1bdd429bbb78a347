//! The JSON batch of device messages.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_model::event::Records;
use holdfast_model::{Error, ErrorCode, limits};
use serde::Deserialize;
use serde_json::Value;

use super::{HeaderKey, header_key};

/// One message of a batch, as its JSON holds it.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BatchItem<'a> {
    /// The payload, base64 unless told otherwise.
    #[serde(borrow)]
    pub body: Cow<'a, str>,
    /// Whether `body` is base64; default true.
    #[serde(default)]
    pub base64_encoded: Option<bool>,
    /// Properties under the names of the headers of a single message.
    #[serde(default)]
    pub properties: Option<BTreeMap<String, Value>>,
}

/// Reads a batch, all or nothing, and appends its messages to `records`. Returns how many there were.
///
/// Members that are no property are passed over; numbers and booleans as values are taken as text, `null` as a
/// property without value.
///
/// # Errors
/// [`ErrorCode::MessageTooLarge`] above 256 KB, [`ErrorCode::IotHubFormatError`] for a body of another shape,
/// [`ErrorCode::ArgumentInvalid`] for an empty batch, more than 500 messages, a body that is not base64, or a
/// property that is an object or array. `records` is then as before.
pub fn parse_batch(body: &[u8], records: &mut Records) -> Result<usize, Error> {
    if body.len() > limits::D2C_BYTES_MAX {
        let text = format!("a batch may have {} bytes", limits::D2C_BYTES_MAX);
        return Err(Error::new(ErrorCode::MessageTooLarge, text));
    }
    let items: Vec<BatchItem<'_>> = serde_json::from_slice(body).map_err(|error| {
        let text = format!("the batch is not an array of messages: {error}");
        Error::new(ErrorCode::IotHubFormatError, text)
    })?;
    if items.is_empty() || items.len() > limits::D2C_BATCH_MESSAGES_MAX {
        return Err(invalid(format!(
            "a batch has 1 to {} messages, not {}",
            limits::D2C_BATCH_MESSAGES_MAX,
            items.len()
        )));
    }
    // Everything is checked before the first record is written, so that a bad batch leaves nothing behind.
    let payloads = items
        .iter()
        .enumerate()
        .map(|(index, item)| check(index, item))
        .collect::<Result<Vec<_>, _>>()?;
    for (item, payload) in items.iter().zip(&payloads) {
        write(item, payload, records);
    }
    Ok(items.len())
}

fn invalid(text: String) -> Error {
    Error::new(ErrorCode::ArgumentInvalid, text)
}

/// The payload of an item whose properties are all usable.
fn check<'i>(index: usize, item: &'i BatchItem<'_>) -> Result<Cow<'i, [u8]>, Error> {
    for (name, value) in item.properties.iter().flatten() {
        if matches!(value, Value::Array(_) | Value::Object(_)) {
            return Err(invalid(format!(
                "message {index}: the property `{name}` is not a text"
            )));
        }
    }
    if item.base64_encoded == Some(false) {
        return Ok(Cow::Borrowed(item.body.as_bytes()));
    }
    STANDARD
        .decode(item.body.as_bytes())
        .map(Cow::Owned)
        .map_err(|_| invalid(format!("message {index}: the body is not base64")))
}

fn write(item: &BatchItem<'_>, payload: &[u8], records: &mut Records) {
    let mut record = records.record();
    let mut system = Vec::new();
    for (name, value) in item.properties.iter().flatten() {
        let text = match value {
            Value::Null => None,
            Value::String(text) => Some(Cow::Borrowed(text.as_str())),
            other => Some(Cow::Owned(other.to_string())),
        };
        match (header_key(name), text) {
            (Some(HeaderKey::Application(key)), text) => record.property(key, text.as_deref()),
            (Some(HeaderKey::System(property)), Some(text)) if !system.contains(&property) => {
                system.push(property);
                record.system(property, &text);
            }
            _ => {}
        }
    }
    // The size was checked over the whole batch.
    let _ = record.finish(payload);
}
