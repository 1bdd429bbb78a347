//! Blobs that jobs read and write; implemented outside, over HTTP and over files.

use std::io::{Read, Write};

use holdfast_model::Error;

/// A blob in a container.
#[derive(Clone, PartialEq, Eq)]
pub struct BlobPlace {
    /// URI of the container; an HTTP address carries a shared access signature, so it is a secret.
    pub container: String,
    /// Name of the blob in it.
    pub blob: String,
}

impl BlobPlace {
    /// What may be shown of it: without query, which holds the signature, and without user name.
    #[must_use]
    pub fn redacted(&self) -> String {
        redacted(&format!("{}/{}", shown(&self.container), self.blob))
    }
}

impl std::fmt::Debug for BlobPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BlobPlace({})", self.redacted())
    }
}

/// A URI without its query and user name.
pub(super) fn shown(uri: &str) -> String {
    redacted(
        uri.split(['?', '#'])
            .next()
            .unwrap_or_default()
            .trim_end_matches('/'),
    )
}

fn redacted(uri: &str) -> String {
    match uri.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            let host = authority.rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{host}/{path}")
                .trim_end_matches('/')
                .to_owned()
        }
        None => uri.to_owned(),
    }
}

/// A blob being read.
pub struct BlobReader {
    /// Its bytes.
    pub bytes: Box<dyn Read + Send>,
    /// How many, if that is known.
    pub size: Option<u64>,
}

impl std::fmt::Debug for BlobReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobReader")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// A blob being written. It is there as a whole after [`BlobWriter::finish`], and not before.
pub trait BlobWriter: Write + Send {
    /// Makes the blob of what was written.
    ///
    /// # Errors
    /// Why there is none; without a signature in it.
    fn finish(self: Box<Self>) -> Result<(), String>;
}

/// Where jobs find blobs. The methods besides `check` block: they are called on threads that may wait. No text of theirs
/// holds a signature.
pub trait TransferFiles: Send + Sync + 'static {
    /// Checks a place without asking anybody.
    ///
    /// # Errors
    /// `BlobContainerValidationError`: what is wrong with it, and what would be right.
    fn check(&self, place: &BlobPlace) -> Result<(), Error>;

    /// Opens a blob for reading.
    ///
    /// # Errors
    /// Why it cannot be read.
    fn open(&self, place: &BlobPlace) -> Result<BlobReader, String>;

    /// Begins a blob, in place of one that is there.
    ///
    /// # Errors
    /// Why it cannot be written.
    fn create(&self, place: &BlobPlace) -> Result<Box<dyn BlobWriter>, String>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_not_shown() {
        let place = BlobPlace {
            container: "https://me:pw@store.test/box/?sv=1&sig=SECRET".into(),
            blob: "devices.txt".into(),
        };
        assert_eq!(place.redacted(), "https://store.test/box/devices.txt");
        assert_eq!(
            format!("{place:?}"),
            "BlobPlace(https://store.test/box/devices.txt)"
        );
        assert_eq!(shown("file:///a/b"), "file:///a/b");
    }
}
