//! Entity tags and `If-Match` (REST contract, sections 3.2, 5.1 and 6.1).
//!
//! Two spellings exist: the tag of a device or module is base64 of its version in decimal digits, the tag of a twin
//! base64 of its version as eight big-endian bytes (`AAAAAAAAAAE=`). In JSON members a tag stands bare, in the
//! header `ETag` it is quoted.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Tag of a device or module at `version`.
#[must_use]
pub fn of_identity(version: u64) -> String {
    STANDARD.encode(version.to_string())
}

/// Tag of a twin at `version`.
#[must_use]
pub fn of_twin(version: u64) -> String {
    STANDARD.encode(version.to_be_bytes())
}

/// A tag as value of the header `ETag`.
#[must_use]
pub fn quoted(tag: &str) -> String {
    format!("\"{tag}\"")
}

/// What a request's `If-Match` asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum IfMatch {
    /// No header: a PUT creates, another operation is unconditional.
    Absent,
    /// `*` or `"*"`: any version, but the resource must exist.
    Any,
    /// Just this version.
    Version(u64),
    /// A tag that this hub never gave out; it matches nothing.
    Other(String),
}

impl IfMatch {
    /// Reads the header of a request about a device or module.
    #[must_use]
    pub fn identity(header: Option<&str>) -> Self {
        Self::read(header, |tag| {
            let digits = STANDARD.decode(tag).ok()?;
            let version: u64 = std::str::from_utf8(&digits).ok()?.parse().ok()?;
            (of_identity(version) == tag).then_some(version)
        })
    }

    /// Reads the header of a request about a twin.
    #[must_use]
    pub fn twin(header: Option<&str>) -> Self {
        Self::read(header, |tag| {
            let bytes = STANDARD.decode(tag).ok()?;
            Some(u64::from_be_bytes(bytes.try_into().ok()?))
        })
    }

    fn read(header: Option<&str>, decode: impl Fn(&str) -> Option<u64>) -> Self {
        let Some(header) = header.map(str::trim).filter(|header| !header.is_empty()) else {
            return IfMatch::Absent;
        };
        let tag = header.strip_prefix("W/").unwrap_or(header);
        let tag = tag
            .strip_prefix('"')
            .and_then(|tag| tag.strip_suffix('"'))
            .unwrap_or(tag);
        match tag {
            "*" => IfMatch::Any,
            tag => decode(tag).map_or_else(|| IfMatch::Other(tag.to_owned()), IfMatch::Version),
        }
    }

    /// Whether a resource at `version` satisfies the request.
    #[must_use]
    pub fn allows(&self, version: u64) -> bool {
        match self {
            IfMatch::Absent | IfMatch::Any => true,
            IfMatch::Version(wanted) => *wanted == version,
            IfMatch::Other(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_have_azures_form() {
        assert_eq!(of_twin(1), "AAAAAAAAAAE=");
        assert_eq!(of_identity(1), "MQ==");
        assert_eq!(quoted("MQ=="), "\"MQ==\"");
    }

    #[test]
    fn every_spelling_of_if_match() {
        for (header, expected) in [
            (None, IfMatch::Absent),
            (Some(""), IfMatch::Absent),
            (Some("*"), IfMatch::Any),
            (Some("\"*\""), IfMatch::Any),
            (Some("W/\"*\""), IfMatch::Any),
            (Some("MQ=="), IfMatch::Version(1)),
            (Some("\"MQ==\""), IfMatch::Version(1)),
            (Some(" W/\"MTI=\" "), IfMatch::Version(12)),
            (Some("\"MDE=\""), IfMatch::Other("MDE=".into())),
            (Some("\"job-1\""), IfMatch::Other("job-1".into())),
        ] {
            assert_eq!(IfMatch::identity(header), expected, "{header:?}");
        }
        assert_eq!(IfMatch::twin(Some("\"AAAAAAAAAAE=\"")), IfMatch::Version(1));
        assert_eq!(IfMatch::twin(Some("AAAAAAAAAAI=")), IfMatch::Version(2));
        assert_eq!(IfMatch::twin(Some("MQ==")), IfMatch::Other("MQ==".into()));
        assert!(IfMatch::Any.allows(7) && IfMatch::Version(7).allows(7) && !IfMatch::Version(7).allows(8));
        assert!(!IfMatch::Other("x".into()).allows(1));
    }

    #[test]
    fn tags_round_trip() {
        for version in [0, 1, 9, 10, 4_294_967_296, u64::MAX] {
            assert_eq!(
                IfMatch::identity(Some(&quoted(&of_identity(version)))),
                IfMatch::Version(version)
            );
            assert_eq!(
                IfMatch::twin(Some(&quoted(&of_twin(version)))),
                IfMatch::Version(version)
            );
        }
    }
}
