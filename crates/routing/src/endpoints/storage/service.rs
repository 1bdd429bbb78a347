//! Places that files are stored in. A file is stored whole or not at all, and never in place of another one.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use object_store::aws::AmazonS3Builder;
use object_store::azure::{MicrosoftAzureBuilder, split_sas};
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload, RetryConfig};

use super::config::{Provider, StorageConfig};
use super::connector::Connector;
use crate::endpoints::Environment;
use crate::endpoints::secret::HIDDEN;
use crate::endpoints::socket::told;

/// Folder of unfinished files in a local folder.
const PARTIAL: &str = ".partial";

/// Whether a file has been stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stored {
    Yes,
    /// There is another one of this name.
    NameTaken,
}

/// A place.
pub(super) enum Place {
    /// A folder, and one for unfinished files on the same file system.
    Folder { root: PathBuf, partial: PathBuf },
    /// A container or bucket.
    Objects {
        store: Arc<dyn ObjectStore>,
        /// Whether to ask before writing: services that speak like S3 may not know the condition that keeps a write from
        /// replacing another file, and say nothing of it.
        ask_first: bool,
    },
}

impl Place {
    pub(super) fn open(
        config: &StorageConfig,
        endpoint: &str,
        environment: &Environment,
    ) -> Result<Self, String> {
        match config.provider {
            Provider::Local => {
                let root = environment.data_dir.join(&config.path);
                let partial = root.join(PARTIAL).join(endpoint);
                // What a crash has left behind. What fails here fails again, and is told, when a file is written.
                let _ = fs::remove_dir_all(&partial);
                Ok(Place::Folder { root, partial })
            }
            Provider::AzureBlob => azure(config),
            Provider::S3 => s3(config),
        }
    }

    /// Stores a file, durably.
    ///
    /// # Errors
    /// What failed. No secrets.
    pub(super) async fn store(&self, name: &str, content: Bytes) -> Result<Stored, String> {
        match self {
            Place::Folder { root, partial } => {
                let (root, partial, name) = (root.clone(), partial.clone(), name.to_owned());
                let shown = root.join(&name).display().to_string();
                let work = move || store_file(&root, &partial, &name, &content);
                let stored = tokio::task::spawn_blocking(work).await;
                let stored = stored.map_err(|error| format!("cannot write {shown}: {error}"))?;
                stored.map_err(|error| format!("cannot write {shown}: {error}"))
            }
            Place::Objects { store, ask_first } => {
                let path = object_store::path::Path::parse(name)
                    .map_err(|error| format!("cannot store {name}: {error}"))?;
                if *ask_first {
                    match store.head(&path).await {
                        Ok(_) => return Ok(Stored::NameTaken),
                        Err(object_store::Error::NotFound { .. }) => {}
                        Err(error) => return Err(failed(name, &error)),
                    }
                }
                let options = PutOptions::from(PutMode::Create);
                match store
                    .put_opts(&path, PutPayload::from_bytes(content), options)
                    .await
                {
                    Ok(_) => Ok(Stored::Yes),
                    Err(object_store::Error::AlreadyExists { .. }) => Ok(Stored::NameTaken),
                    Err(error) => Err(failed(name, &error)),
                }
            }
        }
    }
}

/// Tells the innermost cause: the layers around it repeat name and address.
fn failed(name: &str, error: &object_store::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let cause = told(&without_signature(&cause.to_string()));
    format!("cannot store {name}: {cause}")
}

fn azure(config: &StorageConfig) -> Result<Place, String> {
    let account = config.account()?;
    let mut builder = MicrosoftAzureBuilder::new()
        .with_account(&account.name)
        .with_container_name(&config.container_name)
        .with_allow_http(account.endpoint.starts_with("http://"))
        .with_endpoint(account.endpoint)
        .with_http_connector(Connector::new(config.ca_certificate.as_deref())?)
        .with_retry(no_retries());
    if let Some(key) = account.key {
        builder = builder.with_access_key(key);
    } else if let Some(signature) = account.signature {
        let pairs = split_sas(&signature)
            .map_err(|_| "connectionString: SharedAccessSignature is none".to_owned())?;
        builder = builder.with_sas_authorization(pairs);
    }
    // The crate's message could tell of the key.
    let objects = builder
        .build()
        .map_err(|_| "connectionString: AccountKey or BlobEndpoint cannot be used".to_owned())?;
    Ok(Place::Objects {
        store: Arc::new(objects),
        ask_first: false,
    })
}

fn s3(config: &StorageConfig) -> Result<Place, String> {
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&config.container_name)
        .with_region(&config.region)
        .with_http_connector(Connector::new(config.ca_certificate.as_deref())?)
        .with_retry(no_retries());
    if let Some(id) = &config.access_key_id {
        builder = builder.with_access_key_id(id);
    }
    if let Some(key) = &config.secret_access_key {
        builder = builder.with_secret_access_key(key.reveal());
    }
    if let Some(token) = &config.session_token {
        builder = builder.with_token(token.reveal());
    }
    if let Some(endpoint) = &config.endpoint {
        builder = builder
            .with_endpoint(endpoint.trim_end_matches('/'))
            .with_allow_http(endpoint.starts_with("http://"));
    }
    let objects = builder
        .build()
        .map_err(|_| "endpoint, region or keys cannot be used for S3".to_owned())?;
    Ok(Place::Objects {
        store: Arc::new(objects),
        ask_first: true,
    })
}

/// The dispatcher tries again; two that do would multiply.
fn no_retries() -> RetryConfig {
    RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    }
}

/// A message without the signature of a shared access signature, which stands in addresses.
pub(super) fn without_signature(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("sig=") {
        let (before, secret) = rest.split_at(at + 4);
        shown.push_str(before);
        shown.push_str(HIDDEN);
        let end = secret.find(|c: char| c == '&' || c == '"' || c == ')' || c.is_whitespace());
        rest = &secret[end.unwrap_or(secret.len())..];
    }
    shown + rest
}

/// Writes aside, then gives the finished file its name: a crash leaves no half of one under it.
fn store_file(root: &Path, partial: &Path, name: &str, content: &[u8]) -> io::Result<Stored> {
    let path = root.join(name);
    let folder = path.parent().unwrap_or(root);
    make_folder(partial)?;
    make_folder(folder)?;
    let aside = partial.join(uuid::Uuid::new_v4().simple().to_string());
    let linked = write_synced(&aside, content).and_then(|()| fs::hard_link(&aside, &path));
    let removed = fs::remove_file(&aside);
    match linked {
        Ok(()) => {
            removed?;
            File::open(folder)?.sync_all()?;
            Ok(Stored::Yes)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Stored::NameTaken),
        Err(error) => Err(error),
    }
}

fn write_synced(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Makes a folder with all above it, durably.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = folder.parent();
    if let Some(above) = above {
        make_folder(above)?;
    }
    match fs::create_dir(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    match above {
        Some(above) if !above.as_os_str().is_empty() => File::open(above)?.sync_all(),
        _ => Ok(()),
    }
}
