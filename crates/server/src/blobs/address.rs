//! Addresses of blobs: `https://account.host/container/blob?signature`.

use holdfast_model::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use ureq::http::Uri;

/// A blob's name may have slashes.
const NAME: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/');

/// A blob's name in an address.
pub(super) fn encoded_name(name: &str) -> String {
    utf8_percent_encode(name, NAME).to_string()
}

/// Where a blob is, with the signature that opens it; shown without that.
#[derive(Clone)]
pub(crate) struct BlobAddress {
    /// Scheme, host and path.
    base: String,
    host: String,
    query: String,
}

impl BlobAddress {
    /// A blob in the container that a URI names.
    ///
    /// # Errors
    /// Why it names none, without its signature.
    pub(super) fn in_container(container: &str, blob: &str) -> Result<Self, String> {
        let mut address = Self::parse(container)?;
        if address.base.ends_with('/') || path_of(&address.base).len() < 2 {
            return Err("the URI names no container: it must be https://host/container?signature".to_owned());
        }
        address.base = format!("{}/{}", address.base, encoded_name(blob));
        if address.parameter("sig").is_none() {
            return Err(
                "the URI has no shared access signature: make one that allows to read, write and create blobs".to_owned(),
            );
        }
        Ok(address)
    }

    /// A blob that a URI names itself.
    ///
    /// # Errors
    /// As [`BlobAddress::in_container`].
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        // The error of the parser may hold what it could not read, and that may be the signature.
        let uri: Uri = text.parse().map_err(|_| "it is not a valid URI".to_owned())?;
        let scheme = uri.scheme_str().unwrap_or_default().to_ascii_lowercase();
        if scheme != "https" && scheme != "http" {
            return Err("the URI must begin with https://, http:// or file://".to_owned());
        }
        let authority = uri
            .authority()
            .map(|authority| authority.as_str())
            .unwrap_or_default();
        if authority.contains('@') {
            return Err("the URI must not hold a user name".to_owned());
        }
        let path = uri.path().trim_end_matches('/');
        Ok(BlobAddress {
            base: format!("{scheme}://{authority}{path}"),
            host: uri.host().unwrap_or_default().to_owned(),
            query: uri.query().unwrap_or_default().to_owned(),
        })
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// The whole URI, with more parameters. A secret.
    pub(super) fn uri(&self, parameters: &str) -> String {
        let parts = [parameters, self.query.as_str()];
        let query: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        if query.is_empty() {
            return self.base.clone();
        }
        format!("{}?{}", self.base, query.join("&"))
    }

    /// When the signature ends; `None` if the URI does not say (a stored access policy may).
    pub(super) fn signature_expiry(&self) -> Result<Option<Timestamp>, String> {
        let Some(expiry) = self.parameter("se") else {
            return Ok(None);
        };
        let text = percent_decode_str(expiry).decode_utf8_lossy().into_owned();
        let whole = match text.len() {
            // Forms that the storage service takes too: a day, or minutes.
            10 => format!("{text}T00:00:00Z"),
            17 => text.replace('Z', ":00Z"),
            _ => text.clone(),
        };
        Timestamp::parse(&whole)
            .map(Some)
            .ok_or_else(|| format!("the end of its signature, se={text}, is no time"))
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        let pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        let mut values = pairs.filter(|(known, _)| *known == name).map(|(_, value)| value);
        values.next().filter(|value| !value.is_empty())
    }
}

fn path_of(base: &str) -> &str {
    let rest = base.split_once("://").map_or(base, |(_, rest)| rest);
    rest.find('/').map_or("", |slash| &rest[slash..])
}

impl std::fmt::Display for BlobAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.base)
    }
}

impl std::fmt::Debug for BlobAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BlobAddress({})", self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_and_blobs_become_addresses() {
        let address = BlobAddress::in_container("https://a.test/box/?sv=1&sig=S%3D", "dir/a b.txt").unwrap();
        assert_eq!(address.uri(""), "https://a.test/box/dir/a%20b.txt?sv=1&sig=S%3D");
        assert_eq!(
            address.uri("comp=block"),
            "https://a.test/box/dir/a%20b.txt?comp=block&sv=1&sig=S%3D"
        );
        assert_eq!(address.to_string(), "https://a.test/box/dir/a%20b.txt");
        assert!(!format!("{address:?}").contains("S%3D"));
        let plain = BlobAddress::parse("http://127.0.0.1:10000/acc/box/x.txt").unwrap();
        assert_eq!(
            (plain.uri("").as_str(), plain.host()),
            ("http://127.0.0.1:10000/acc/box/x.txt", "127.0.0.1")
        );
    }

    #[test]
    fn bad_containers_are_refused_without_their_signature() {
        for (container, why) in [
            ("https://a.test/box", "no shared access signature"),
            ("https://a.test/box?sig=", "no shared access signature"),
            ("https://a.test/?sig=SECRET", "no container"),
            ("https://a.test?sig=SECRET", "no container"),
            ("ftp://a.test/box?sig=SECRET", "must begin with"),
            ("box?sig=SECRET", "not a valid URI"),
            ("https://me:pw@a.test/box?sig=SECRET", "user name"),
            ("https://a b/box?sig=SECRET", "not a valid URI"),
            ("", "not a valid URI"),
        ] {
            let error = BlobAddress::in_container(container, "x").unwrap_err();
            assert!(
                error.contains(why) && !error.contains("SECRET"),
                "{container}: {error}"
            );
        }
    }

    #[test]
    fn the_end_of_a_signature_is_read() {
        let expiry = |se: &str| {
            let address = BlobAddress::parse(&format!("https://a.test/box?se={se}&sig=x")).unwrap();
            address
                .signature_expiry()
                .map(|end| end.map(Timestamp::as_seconds))
        };
        assert_eq!(expiry("1970-01-02T00%3A00%3A01Z"), Ok(Some(86_401)));
        assert_eq!(expiry("1970-01-02"), Ok(Some(86_400)));
        assert_eq!(expiry("1970-01-02T00%3A01Z"), Ok(Some(86_460)));
        assert_eq!(expiry(""), Ok(None));
        assert!(expiry("soon").is_err());
    }
}
