//! Where a query goes on: cursors and their text form, the continuation token.
//!
//! A token says after which row to go on, never how many to skip, so rows that come or go meanwhile neither double nor
//! hide others. It holds nothing that only lives in memory, so it survives a restart. Its text is base64 of JSON and
//! fits a header.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde_json::{Value as Json, json};

use super::order::SortKey;

/// Longest token that is read; the longest that is made has two long group keys or four long texts of ORDER BY.
const TOKEN_BYTES_MAX: usize = 16_384;

/// Version of the token's form.
const FORM: u64 = 1;

/// Where a query goes on.
#[derive(Clone, PartialEq, Debug)]
pub struct Cursor {
    /// Whose it is: [`super::Select::fingerprint`].
    pub fingerprint: u64,
    /// Rows given out so far; bounds a query with TOP.
    pub delivered: u64,
    /// After which row.
    pub position: Position,
}

/// A row that was the last one, in the terms of the store that made it.
#[derive(Clone, PartialEq, Debug)]
pub enum Position {
    /// The key of the last row that was looked at.
    Row(String),
    /// The sort keys and the key of the last row given out.
    Ordered(Vec<SortKey>, String),
    /// The mark of the last group given out.
    Group(Vec<u8>),
}

impl Cursor {
    /// The token.
    #[must_use]
    pub fn to_token(&self) -> String {
        let position = match &self.position {
            Position::Row(key) => json!(["r", key]),
            Position::Ordered(keys, key) => {
                json!(["o", key, keys.iter().map(SortKey::to_json).collect::<Vec<Json>>()])
            }
            Position::Group(mark) => json!(["g", BASE64.encode(mark)]),
        };
        BASE64.encode(json!([FORM, self.fingerprint, self.delivered, position]).to_string())
    }

    /// Reads a token; `None` if it is none of this service.
    #[must_use]
    pub fn from_token(token: &str) -> Option<Self> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let bytes = BASE64.decode(token.trim()).ok()?;
        let json: Json = serde_json::from_slice(&bytes).ok()?;
        let [form, fingerprint, delivered, position] = json.as_array()?.as_slice() else {
            return None;
        };
        if form.as_u64() != Some(FORM) {
            return None;
        }
        let parts = position.as_array()?;
        let text = |at: usize| parts.get(at).and_then(Json::as_str);
        let position = match text(0)? {
            "r" => Position::Row(text(1)?.to_owned()),
            "o" => {
                let keys = parts.get(2)?.as_array()?;
                Position::Ordered(keys.iter().map(SortKey::from_json).collect(), text(1)?.to_owned())
            }
            "g" => Position::Group(BASE64.decode(text(1)?).ok()?),
            _ => return None,
        };
        Some(Cursor {
            fingerprint: fingerprint.as_u64()?,
            delivered: delivered.as_u64()?,
            position,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_read_as_they_were_written() {
        let positions = [
            Position::Row("17".into()),
            Position::Group(vec![0, 255, 3]),
            Position::Ordered(
                vec![
                    SortKey::Missing,
                    SortKey::Null,
                    SortKey::Bool(true),
                    SortKey::Number(-1.5),
                    SortKey::Text("ü\"\n".into()),
                    SortKey::Other,
                ],
                "d1/m1".into(),
            ),
        ];
        for position in positions {
            let cursor = Cursor {
                fingerprint: u64::MAX,
                delivered: 3,
                position,
            };
            let token = cursor.to_token();
            assert!(
                token
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'),
                "{token}"
            );
            assert_eq!(Cursor::from_token(&token), Some(cursor));
        }
    }

    #[test]
    fn other_texts_are_no_tokens() {
        for text in [
            "",
            "x",
            "bm9uc2Vuc2U",
            "W10",
            &"A".repeat(17_000),
            "WzIsMSwxLFsiciIsIjEiXV0",
        ] {
            assert_eq!(Cursor::from_token(text), None, "{text}");
        }
    }
}
