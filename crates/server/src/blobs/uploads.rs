//! Where uploaded files go: the embedded blob store, or a storage account elsewhere.

use std::sync::Arc;
use std::time::Duration;

use holdfast_blob::BlobStore;
use holdfast_blob::signature::Account;
use holdfast_model::Timestamp;
use holdfast_model::file::UploadedBlob;
use holdfast_ports::BoxFuture;
use holdfast_ports::clock::Clock;
use holdfast_ports::file::{SignedBlob, StorageError, UploadStorage};

use super::account::StorageAccount;
use super::address::{BlobAddress, encoded_name};
use super::http::{BlobClient, Found};

/// What a device may do with its blob: write it, and read what it wrote.
const PERMISSIONS: &str = "rw";
/// Life of the signatures that the hub makes for its own looks.
const LOOK: Duration = Duration::from_secs(300);

/// The embedded store.
pub(crate) struct EmbeddedUploads {
    pub(crate) store: BlobStore,
    pub(crate) account: Account,
    pub(crate) container: String,
    /// Names by which devices may reach the store; the first stands in notifications.
    pub(crate) hosts: Vec<String>,
    /// Port of its listener with TLS.
    pub(crate) port: u16,
}

impl EmbeddedUploads {
    fn host(&self, asked: Option<&str>) -> String {
        let known = |name: &&String| asked.is_some_and(|asked| asked.eq_ignore_ascii_case(name));
        let name = self.hosts.iter().find(known).or(self.hosts.first());
        with_port(name.map_or("localhost", String::as_str), self.port)
    }
}

/// A host with its port, unless that goes without saying.
pub(crate) fn with_port(host: &str, port: u16) -> String {
    let host = match host.parse::<std::net::Ipv6Addr>() {
        Ok(address) => format!("[{address}]"),
        Err(_) => host.to_owned(),
    };
    match port {
        443 => host,
        port => format!("{host}:{port}"),
    }
}

impl UploadStorage for EmbeddedUploads {
    fn sign(&self, blob: &str, id: &str, expires_at: Timestamp, host: Option<&str>) -> SignedBlob {
        let query = self
            .account
            .sign_blob(&self.container, blob, PERMISSIONS, expires_at, Some(id));
        SignedBlob {
            host_name: self.host(host),
            container_name: self.container.clone(),
            sas_token: format!("?{query}"),
        }
    }

    fn finish<'a>(
        &'a self,
        blob: &'a str,
        id: &'a str,
        expires_at: Timestamp,
    ) -> BoxFuture<'a, Result<Option<UploadedBlob>, StorageError>> {
        let (store, container) = (self.store.clone(), self.container.clone());
        let (name, id) = (blob.to_owned(), id.to_owned());
        Box::pin(async move {
            let look = move || store.finish_upload(&container, &name, &id, expires_at);
            let found = blocking(look).await?;
            Ok(found.map(|found| UploadedBlob {
                uri: format!(
                    "https://{}/{}/{}",
                    self.host(None),
                    self.container,
                    encoded_name(blob)
                ),
                size: found.size,
                updated_at: found.modified_at,
            }))
        })
    }

    fn revoke<'a>(&'a self, id: &'a str, expires_at: Timestamp) -> BoxFuture<'a, Result<(), StorageError>> {
        let (store, id) = (self.store.clone(), id.to_owned());
        Box::pin(blocking(move || store.revoke(&id, expires_at)))
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, holdfast_blob::BlobError> + Send + 'static,
) -> Result<T, StorageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome.map_err(|error| StorageError::Unavailable(error.to_string())),
        Err(error) => Err(StorageError::Unavailable(error.to_string())),
    }
}

/// An account elsewhere. Its signatures cannot be ended early: they end with the upload's time.
pub(crate) struct RemoteUploads {
    pub(crate) account: StorageAccount,
    pub(crate) container: String,
    pub(crate) client: BlobClient,
    pub(crate) clock: Arc<dyn Clock>,
}

impl RemoteUploads {
    /// Makes the container if it is not there. Blocks.
    ///
    /// # Errors
    /// Why it cannot.
    pub(crate) fn ensure_container(&self) -> Result<(), String> {
        self.client
            .create_container(&self.account, &self.container, self.clock.now())
    }

    /// The blob, with a signature of the hub's own to look at it.
    fn address(&self, blob: &str) -> Result<BlobAddress, String> {
        let until = self.clock.now().plus(LOOK);
        let query = self
            .account
            .account
            .sign_blob(&self.container, blob, "r", until, None);
        let container = format!("{}/{}?{query}", self.account.endpoint, self.container);
        BlobAddress::in_container(&container, blob)
    }
}

impl UploadStorage for RemoteUploads {
    fn sign(&self, blob: &str, _id: &str, expires_at: Timestamp, _host: Option<&str>) -> SignedBlob {
        let query = self
            .account
            .account
            .sign_blob(&self.container, blob, PERMISSIONS, expires_at, None);
        let (host, path) = self.account.host_and_path();
        SignedBlob {
            host_name: host.to_owned(),
            container_name: match path {
                "" => self.container.clone(),
                path => format!("{path}/{}", self.container),
            },
            sas_token: format!("?{query}"),
        }
    }

    fn finish<'a>(
        &'a self,
        blob: &'a str,
        _id: &'a str,
        _expires_at: Timestamp,
    ) -> BoxFuture<'a, Result<Option<UploadedBlob>, StorageError>> {
        Box::pin(async move {
            let address = self.address(blob).map_err(StorageError::Refused)?;
            let (client, uri) = (self.client.clone(), address.to_string());
            let looked = tokio::task::spawn_blocking(move || client.look(&address)).await;
            match looked.unwrap_or_else(|error| Err(StorageError::Unavailable(error.to_string())))? {
                Found::Nothing => Ok(None),
                Found::Blob { size, updated_at } => Ok(Some(UploadedBlob {
                    uri,
                    size,
                    updated_at,
                })),
            }
        })
    }

    fn revoke<'a>(&'a self, _id: &'a str, _expires_at: Timestamp) -> BoxFuture<'a, Result<(), StorageError>> {
        Box::pin(async { Ok(()) })
    }
}

#[cfg(test)]
mod tests {
    use holdfast_ports::clock::SystemClock;
    use ureq::tls::RootCerts;

    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

    #[tokio::test]
    async fn the_embedded_store_is_reached_by_the_name_that_was_asked() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path(), 0, NOW).unwrap();
        store.create_container("uploads", &Vec::new(), NOW).unwrap();
        let uploads = EmbeddedUploads {
            store,
            account: Account::new("holdfast", "c2VjcmV0").unwrap(),
            container: "uploads".to_owned(),
            hosts: vec!["hub.test".to_owned(), "other.test".to_owned(), "::1".to_owned()],
            port: 10_000,
        };
        for (asked, host) in [
            (Some("OTHER.test"), "other.test:10000"),
            (Some("evil.test"), "hub.test:10000"),
            (Some("::1"), "[::1]:10000"),
            (None, "hub.test:10000"),
        ] {
            let signed = uploads.sign("d1/x", "c1", NOW, asked);
            assert_eq!(
                (signed.host_name.as_str(), signed.container_name.as_str()),
                (host, "uploads")
            );
            assert!(signed.sas_token.starts_with("?sv="));
        }
        assert_eq!(uploads.finish("d1/x", "c1", NOW).await, Ok(None));
        assert!(!uploads.store.is_revoked("c1").unwrap());
        uploads.revoke("c1", NOW).await.unwrap();
        assert!(uploads.store.is_revoked("c1").unwrap());
    }

    #[test]
    fn an_account_with_a_path_is_part_of_the_container() {
        let text = "AccountName=a;AccountKey=c2VjcmV0;BlobEndpoint=https://127.0.0.1:10000/a";
        let uploads = RemoteUploads {
            account: StorageAccount::parse(text).unwrap(),
            container: "box".to_owned(),
            client: BlobClient::new(RootCerts::new_with_certs(&[])),
            clock: Arc::new(SystemClock::new()),
        };
        let signed = uploads.sign("d1/x", "c1", NOW, Some("hub.test"));
        assert_eq!(
            (signed.host_name.as_str(), signed.container_name.as_str()),
            ("127.0.0.1:10000", "a/box")
        );
        assert!(
            !signed.sas_token.contains("si="),
            "no stored policy has that name"
        );
    }
}
