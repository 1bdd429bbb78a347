//! Percent-encoding as the SDKs expect it.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// Everything but the unreserved characters of RFC 3986. The SDKs split topics at raw `/`, `=` and `&`, and Java
/// decodes a raw `+` to a space (MQTT contract, section 3.2).
const STRICT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// Appends `text` with everything outside `A-Za-z0-9-_.~` encoded.
pub(crate) fn encode_into(out: &mut String, text: &str) {
    out.extend(utf8_percent_encode(text, STRICT));
}

/// Decodes; borrows when there is nothing to decode. Invalid escapes stay as they are, and so does the whole text
/// when its decoded bytes are not UTF-8. A plus sign is a plus sign.
#[inline]
pub(crate) fn decode(text: &str) -> Cow<'_, str> {
    // Most texts have no escape; decoding those would check once more that they are UTF-8.
    if !text.as_bytes().contains(&b'%') {
        return Cow::Borrowed(text);
    }
    percent_decode_str(text)
        .decode_utf8()
        .unwrap_or(Cow::Borrowed(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_what_is_valid_and_keeps_the_rest() {
        for (text, expected) in [
            ("plain", "plain"),
            ("a%20b", "a b"),
            ("a+b", "a+b"),
            ("100%", "100%"),
            ("%zz%41", "%zzA"),
            ("%ff", "%ff"),
            ("%c3%a4", "ä"),
            ("ä%20", "ä "),
        ] {
            assert_eq!(decode(text), expected, "{text}");
        }
        assert!(matches!(decode("plain"), Cow::Borrowed(_)));
    }

    #[test]
    fn encodes_strictly() {
        let mut out = String::new();
        encode_into(&mut out, "aZ9-_.~ +=/&%?ä");
        assert_eq!(out, "aZ9-_.~%20%2B%3D%2F%26%25%3F%C3%A4");
    }
}
