//! Blobs that imports and exports read and write: block blobs over HTTP, with shared access signatures, and files below a
//! folder that the operator has opened for it. Used by the hub's jobs and by the command line. Everything here blocks.

pub(crate) mod account;
mod address;
mod folder;
mod http;
pub(crate) mod uploads;

use std::path::PathBuf;

use holdfast_fleet::transfer::{BlobPlace, BlobReader, BlobWriter, TransferFiles};
use holdfast_model::{Error, ErrorCode, Timestamp};
use ureq::tls::RootCerts;

pub(crate) use address::BlobAddress;
pub(crate) use http::BlobClient;

/// Finds blobs by the scheme of their container.
pub(crate) struct Blobs {
    client: BlobClient,
    /// Containers of `file:` URIs lie below.
    folder: Option<PathBuf>,
    /// Hosts that may be asked; empty for all.
    hosts: Vec<String>,
}

impl Blobs {
    pub(crate) fn new(roots: RootCerts, folder: Option<PathBuf>, hosts: Vec<String>) -> Self {
        Blobs {
            client: BlobClient::new(roots),
            folder,
            hosts,
        }
    }

    fn file(&self, place: &BlobPlace) -> Option<Result<PathBuf, String>> {
        let path = place.container.strip_prefix("file://")?;
        Some(match &self.folder {
            None => Err(
                "file: containers are not allowed here: set transfer.folder in the configuration of the hub"
                    .to_owned(),
            ),
            Some(folder) => folder::place(folder, path, &place.blob),
        })
    }

    fn address(&self, place: &BlobPlace) -> Result<BlobAddress, String> {
        let address = BlobAddress::in_container(&place.container, &place.blob)?;
        let known = |host: &String| host.eq_ignore_ascii_case(address.host());
        if !self.hosts.is_empty() && !self.hosts.iter().any(known) {
            return Err(format!(
                "the host {} is not one of transfer.hosts in the configuration of the hub",
                address.host()
            ));
        }
        Ok(address)
    }

    fn check_address(&self, place: &BlobPlace) -> Result<(), String> {
        let address = self.address(place)?;
        let Some(expiry) = address.signature_expiry()? else {
            return Ok(());
        };
        if expiry < now() {
            return Err(format!("its shared access signature has expired at {expiry}"));
        }
        Ok(())
    }
}

fn now() -> Timestamp {
    use holdfast_ports::clock::{Clock as _, SystemClock};
    SystemClock::new().now()
}

impl TransferFiles for Blobs {
    fn check(&self, place: &BlobPlace) -> Result<(), Error> {
        let checked = match self.file(place) {
            Some(path) => path.map(drop),
            None => self.check_address(place),
        };
        checked.map_err(|why| {
            Error::new(
                ErrorCode::BlobContainerValidationError,
                format!("the container {} cannot be used: {why}", place.redacted()),
            )
        })
    }

    fn open(&self, place: &BlobPlace) -> Result<BlobReader, String> {
        match self.file(place) {
            Some(path) => folder::open(&path?),
            None => self.client.open(self.address(place)?),
        }
    }

    fn create(&self, place: &BlobPlace) -> Result<Box<dyn BlobWriter>, String> {
        match self.file(place) {
            Some(path) => folder::create(path?),
            None => Ok(Box::new(self.client.create(self.address(place)?))),
        }
    }
}
