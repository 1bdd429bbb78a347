//! When the body of a message can be asked (languages.md section 0, "Body queries").

use serde_json::Value as Json;

/// Why a body cannot be asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BodyFault {
    /// The content type is missing or not exactly `application/json`.
    #[error("the content type is not application/json")]
    ContentType,
    /// The content encoding is missing or none of `utf-8`, `utf-16`, `utf-32`.
    #[error("the content encoding is not utf-8, utf-16 or utf-32")]
    ContentEncoding,
    /// The bytes are no text in that encoding.
    #[error("the body is not text in its content encoding")]
    Text,
    /// The text is no JSON.
    #[error("the body is not JSON")]
    Json,
    /// JSON, but not an object.
    #[error("the body is not a JSON object")]
    NotAnObject,
}

/// The body of a message as JSON, if its content type and encoding say that it may be asked.
///
/// # Errors
/// [`BodyFault`]; then every reference to the body is undefined.
pub fn parse(
    content_type: Option<&str>,
    content_encoding: Option<&str>,
    body: &[u8],
) -> Result<Json, BodyFault> {
    if !content_type.is_some_and(|given| given.eq_ignore_ascii_case("application/json")) {
        return Err(BodyFault::ContentType);
    }
    let encoding = content_encoding.unwrap_or_default();
    let json: Result<Json, _> = if encoding.eq_ignore_ascii_case("utf-8") {
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        serde_json::from_slice(body)
    } else if encoding.eq_ignore_ascii_case("utf-16") {
        serde_json::from_str(&utf16(body).ok_or(BodyFault::Text)?)
    } else if encoding.eq_ignore_ascii_case("utf-32") {
        serde_json::from_str(&utf32(body).ok_or(BodyFault::Text)?)
    } else {
        return Err(BodyFault::ContentEncoding);
    };
    match json {
        Ok(json @ Json::Object(_)) => Ok(json),
        Ok(_) => Err(BodyFault::NotAnObject),
        Err(_) => Err(BodyFault::Json),
    }
}

/// Little-endian, with or without a byte order mark.
fn utf16(body: &[u8]) -> Option<String> {
    let units = body.chunks_exact(2);
    if !units.remainder().is_empty() {
        return None;
    }
    let units = units.map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    let text: String = char::decode_utf16(units).collect::<Result<_, _>>().ok()?;
    Some(without_mark(text))
}

fn utf32(body: &[u8]) -> Option<String> {
    let units = body.chunks_exact(4);
    if !units.remainder().is_empty() {
        return None;
    }
    let text: Option<String> = units
        .map(|unit| char::from_u32(u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]])))
        .collect();
    text.map(without_mark)
}

fn without_mark(text: String) -> String {
    match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    }
}
