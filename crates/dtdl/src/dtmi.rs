//! Digital twin model identifiers: `dtmi:com:example:Thermostat;1` (languages.md 7.1).

use std::fmt;

use crate::fault::clip;

/// Longest id of an interface, characters.
pub const INTERFACE_ID_MAX: usize = 128;
/// Longest id of another element.
pub const ELEMENT_ID_MAX: usize = 2_048;
/// Longest id of all.
const ID_MAX: usize = 4_096;
/// Prefixes that models of users may not have.
const RESERVED: &[&str] = &["dtmi:dtdl:", "dtmi:standard:"];

/// A valid identifier. Two are equal only if their texts are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Dtmi(Box<str>);

/// Version of a model.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Version {
    /// Up to nine digits.
    pub major: u32,
    /// DTDL v3 only.
    pub minor: Option<u32>,
}

/// Why a text is no identifier.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{id:?} is no DTMI: {why}")]
pub struct BadDtmi {
    id: String,
    why: &'static str,
}

impl Dtmi {
    /// Reads an identifier by the rules of DTDL v3, which take in those of v2.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn parse(text: &str) -> Result<Self, BadDtmi> {
        let bad = |why| Err(BadDtmi { id: clip(text), why });
        if text.len() > ID_MAX {
            return bad("it has more than 4,096 characters");
        }
        let Some(rest) = text.strip_prefix("dtmi:") else {
            return bad("it must begin with \"dtmi:\"");
        };
        let (path, version) = match rest.split_once(';') {
            None => (rest, None),
            Some((path, version)) => (path, Some(version)),
        };
        for segment in path.split(':') {
            if let Some(why) = segment_fault(segment) {
                return bad(why);
            }
        }
        if version.is_some_and(|version| parse_version(version).is_none()) {
            return bad(
                "the version must be 1 to 9 digits, in DTDL v3 with a minor version of 1 to 6 digits behind a dot, neither \
                 with a leading zero",
            );
        }
        Ok(Dtmi(text.into()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The version; DTDL v3 has ids without.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        self.0
            .split_once(';')
            .and_then(|(_, version)| parse_version(version))
    }

    /// The segments between `dtmi:` and the version.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        let path = self.0.split(';').next().unwrap_or_default();
        path.split(':').skip(1)
    }

    /// Why a user's model may not be called so; `None` if it may.
    #[must_use]
    pub fn reserved(&self) -> Option<&'static str> {
        if RESERVED.iter().any(|prefix| self.0.starts_with(prefix)) {
            return Some("the prefixes dtmi:dtdl: and dtmi:standard: are reserved");
        }
        self.segments()
            .any(|segment| segment.starts_with('_'))
            .then_some("a segment that begins with an underscore is reserved for the system")
    }
}

impl fmt::Display for Dtmi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn segment_fault(segment: &str) -> Option<&'static str> {
    let bytes = segment.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return Some("a segment is empty");
    };
    if !bytes
        .iter()
        .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
    {
        return Some("a segment may have letters, digits and underscores only");
    }
    if first.is_ascii_digit() {
        return Some("a segment may not begin with a digit");
    }
    (*last == b'_').then_some("a segment may not end with an underscore")
}

fn parse_version(text: &str) -> Option<Version> {
    let number = |text: &str, digits_max: usize| -> Option<u32> {
        let digits = (1..=digits_max).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        (digits && !text.starts_with('0')).then(|| text.parse().ok())?
    };
    match text.split_once('.') {
        None => Some(Version {
            major: number(text, 9)?,
            minor: None,
        }),
        Some((major, minor)) => Some(Version {
            major: number(major, 9)?,
            minor: Some(number(minor, 6)?),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_ids() {
        for (id, major, minor) in [
            ("dtmi:com:example:Thermostat;1", Some(1), None),
            ("dtmi:a;999999999", Some(999_999_999), None),
            ("dtmi:a_b:c1;12.345678", Some(12), Some(345_678)),
            ("dtmi:com:example:Thermostat", None, None),
            ("dtmi:_a;1", Some(1), None),
        ] {
            let id = Dtmi::parse(id).unwrap();
            assert_eq!(id.version().map(|version| version.major), major, "{id}");
            assert_eq!(id.version().and_then(|version| version.minor), minor, "{id}");
        }
        let id = Dtmi::parse("dtmi:com:example:Thermostat;1").unwrap();
        assert_eq!(
            id.segments().collect::<Vec<_>>(),
            ["com", "example", "Thermostat"]
        );
    }

    #[test]
    fn bad_ids() {
        for (id, why) in [
            ("", "begin with"),
            ("dtmi", "begin with"),
            ("DTMI:a;1", "begin with"),
            ("dtmi:;1", "empty"),
            ("dtmi:a::b;1", "empty"),
            ("dtmi:1a;1", "digit"),
            ("dtmi:a_;1", "underscore"),
            ("dtmi:a-b;1", "letters"),
            ("dtmi:ä;1", "letters"),
            ("dtmi:a b;1", "letters"),
            ("dtmi:a;", "version"),
            ("dtmi:a;0", "version"),
            ("dtmi:a;01", "version"),
            ("dtmi:a;1234567890", "version"),
            ("dtmi:a;1;2", "version"),
            ("dtmi:a;1.0", "version"),
            ("dtmi:a;1.1234567", "version"),
            ("dtmi:a;-1", "version"),
        ] {
            let error = Dtmi::parse(id).unwrap_err().to_string();
            assert!(error.contains(why), "{id}: {error}");
        }
        let long = format!("dtmi:{}", "a".repeat(5_000));
        assert!(Dtmi::parse(&long).unwrap_err().to_string().len() < 400);
    }

    #[test]
    fn reserved_ids() {
        for id in ["dtmi:dtdl:x;1", "dtmi:standard:x;1", "dtmi:a:_b;1"] {
            assert!(Dtmi::parse(id).unwrap().reserved().is_some(), "{id}");
        }
        assert_eq!(Dtmi::parse("dtmi:dtdlx:a;1").unwrap().reserved(), None);
    }
}
