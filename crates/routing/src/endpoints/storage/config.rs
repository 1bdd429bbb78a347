//! Settings of object storage.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::endpoints::secret::Secret;
use crate::endpoints::{bounded, filled, settings, socket};

/// Tokens of a file name; each must stand in it exactly once (languages.md 2.8).
pub(super) const TOKENS: [&str; 7] = [
    "{iothub}",
    "{partition}",
    "{YYYY}",
    "{MM}",
    "{DD}",
    "{HH}",
    "{mm}",
];
/// The account and key that every Azurite has; they are public.
const DEVELOPMENT_STORAGE: &str = "AccountName=devstoreaccount1;\
    AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==;\
    BlobEndpoint=http://127.0.0.1:10000/devstoreaccount1";

/// Where files are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Provider {
    /// A folder below `endpoints` in the hub's data folder.
    #[default]
    Local,
    /// A container of Azure Blob Storage, Azurite or the hub's own blob store.
    AzureBlob,
    /// A bucket of S3 or of a service that speaks like it.
    S3,
}

/// What files hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub enum Encoding {
    /// Avro object container files, not compressed.
    #[default]
    Avro,
    /// The same with the codec `deflate`.
    AvroDeflate,
    /// Parquet files with Snappy.
    Parquet,
    /// One JSON object a line.
    #[serde(rename = "JSON", alias = "Json", alias = "json")]
    Json,
}

impl Encoding {
    pub(super) fn extension(self) -> &'static str {
        match self {
            Encoding::Avro | Encoding::AvroDeflate => "avro",
            Encoding::Parquet => "parquet",
            Encoding::Json => "json",
        }
    }
}

/// Settings of the kind `storage`: events are written to files in a folder, a container of Azure Blob Storage or a bucket
/// of S3.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct StorageConfig {
    /// `local` (default), `azureBlob` or `s3`.
    pub provider: Provider,
    /// `local`: the folder, relative to `endpoints` in the hub's data folder. Default `storage`.
    pub path: String,
    /// `azureBlob` and `s3`: the container or bucket; it must be there. Required for them.
    pub container_name: String,
    /// `azureBlob`: the account's connection string, with AccountKey or SharedAccessSignature. Secret, required for it.
    pub connection_string: Option<Secret>,
    /// `s3`: address of the service with `https://` or `http://`. Default: Amazon's for the region.
    pub endpoint: Option<String>,
    /// `s3`: region. Default `us-east-1`.
    pub region: String,
    /// `s3`: access key id. Required for it.
    pub access_key_id: Option<String>,
    /// `s3`: secret access key. Secret, required for it.
    pub secret_access_key: Option<Secret>,
    /// `s3`: token of temporary keys. Secret.
    pub session_token: Option<Secret>,
    /// Certificates in PEM to trust besides those of the system.
    pub ca_certificate: Option<String>,
    /// Name of a file, with each of `{iothub} {partition} {YYYY} {MM} {DD} {HH} {mm}` exactly once, in UTC. The
    /// extension follows; a further file of the same minute has `_01`, `_02` before it.
    /// Default `{iothub}/{partition}/{YYYY}/{MM}/{DD}/{HH}/{mm}`.
    pub file_name_format: String,
    /// Longest time from the first event of a file to its writing, 1 to 720 s. Default 300.
    pub batch_frequency_in_seconds: u64,
    /// Bytes of bodies and properties after which files are written, 65,536 to 524,288,000. Default 314,572,800. What
    /// waits is kept in memory, so that files are written at 64 MiB at the latest, whatever stands here.
    pub max_chunk_size_in_bytes: u64,
    /// `Avro` (default), `AvroDeflate`, `Parquet` or `JSON`.
    pub encoding: Encoding,
}

impl Default for StorageConfig {
    fn default() -> Self {
        StorageConfig {
            provider: Provider::default(),
            path: "storage".to_owned(),
            container_name: String::new(),
            connection_string: None,
            endpoint: None,
            region: "us-east-1".to_owned(),
            access_key_id: None,
            secret_access_key: None,
            session_token: None,
            ca_certificate: None,
            file_name_format: TOKENS.join("/"),
            batch_frequency_in_seconds: 300,
            max_chunk_size_in_bytes: 314_572_800,
            encoding: Encoding::default(),
        }
    }
}

/// An account of Azure Blob Storage.
pub(super) struct Account {
    pub(super) name: String,
    pub(super) key: Option<String>,
    pub(super) signature: Option<String>,
    pub(super) endpoint: String,
}

impl StorageConfig {
    /// Reads settings and checks them.
    ///
    /// # Errors
    /// Which setting is wrong, and what it should be.
    pub(super) fn read(given: &Value) -> Result<Self, String> {
        let config: StorageConfig = settings(given)?;
        match config.provider {
            Provider::Local => check_folder(&config.path)?,
            Provider::AzureBlob => {
                check_container(&config.container_name)?;
                config.account()?;
            }
            Provider::S3 => {
                check_container(&config.container_name)?;
                if config.access_key_id.is_none() || config.secret_access_key.is_none() {
                    return Err(
                        "accessKeyId and secretAccessKey must be given for the provider s3".to_owned(),
                    );
                }
                if let Some(endpoint) = &config.endpoint {
                    check_address("endpoint", endpoint)?;
                }
            }
        }
        check_file_name(&config.file_name_format)?;
        socket::tls(config.ca_certificate.as_deref(), None)?;
        bounded(
            "batchFrequencyInSeconds",
            config.batch_frequency_in_seconds,
            1,
            720,
        )?;
        bounded(
            "maxChunkSizeInBytes",
            config.max_chunk_size_in_bytes,
            65_536,
            524_288_000,
        )?;
        Ok(config)
    }

    /// As [`EndpointFactory::check`](crate::dispatchers::EndpointFactory::check).
    pub(super) fn check(given: &Value) -> Result<Value, String> {
        filled(&Self::read(given)?)
    }

    /// The account of the connection string. Messages tell nothing of its values.
    pub(super) fn account(&self) -> Result<Account, String> {
        let missing = "connectionString is missing: that of a storage account, \
            such as DefaultEndpointsProtocol=https;AccountName=…;AccountKey=…;EndpointSuffix=core.windows.net";
        let text = self.connection_string.as_ref().ok_or(missing)?.reveal().trim();
        let text = match text.trim_end_matches(';') {
            "UseDevelopmentStorage=true" => DEVELOPMENT_STORAGE,
            text => text,
        };
        let mut fields = BTreeMap::new();
        for field in text.split(';').filter(|field| !field.trim().is_empty()) {
            let (name, value) = field
                .split_once('=')
                .ok_or("connectionString: each part must look like Name=value")?;
            fields.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
        let name = fields.remove("accountname");
        let endpoint = match (fields.remove("blobendpoint"), &name) {
            (Some(endpoint), _) => endpoint.trim_end_matches('/').to_owned(),
            (None, Some(name)) => {
                let suffix = fields.remove("endpointsuffix");
                let scheme = fields.remove("defaultendpointsprotocol");
                format!(
                    "{}://{name}.blob.{}",
                    scheme.as_deref().unwrap_or("https"),
                    suffix.as_deref().unwrap_or("core.windows.net")
                )
            }
            (None, None) => {
                return Err("connectionString has neither AccountName nor BlobEndpoint".to_owned());
            }
        };
        check_address("connectionString: BlobEndpoint", &endpoint)?;
        let name = name.or_else(|| account_of(&endpoint));
        let account = Account {
            name: name.ok_or("connectionString has no AccountName")?,
            key: fields.remove("accountkey"),
            signature: fields.remove("sharedaccesssignature"),
            endpoint,
        };
        match (&account.key, &account.signature) {
            (None, None) => {
                Err("connectionString has neither AccountKey nor SharedAccessSignature".to_owned())
            }
            _ => Ok(account),
        }
    }
}

/// The account's name in the first label of the host.
fn account_of(endpoint: &str) -> Option<String> {
    let (_, rest) = endpoint.split_once("://")?;
    let label = rest.split(['.', ':', '/']).next()?;
    (!label.is_empty()).then(|| label.to_owned())
}

fn check_address(name: &str, address: &str) -> Result<(), String> {
    let url: http::Uri = address
        .parse()
        .map_err(|_| format!("{name} is no address; it looks such as https://example.com"))?;
    let known = matches!(url.scheme_str(), Some("http" | "https"));
    if !known || url.host().is_none_or(str::is_empty) || url.query().is_some() {
        return Err(format!(
            "{name} must begin with https:// or http://, with a host and without a query"
        ));
    }
    Ok(())
}

fn check_container(name: &str) -> Result<(), String> {
    let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.' | '$');
    if (3..=63).contains(&name.len()) && name.chars().all(known) {
        return Ok(());
    }
    Err("containerName must have 3 to 63 lower-case letters, digits, dots and hyphens".to_owned())
}

/// The folder stays below the data folder.
fn check_folder(path: &str) -> Result<(), String> {
    let inside = Path::new(path)
        .components()
        .all(|component| matches!(component, Component::Normal(_)));
    if path.is_empty() || path.len() > 512 || !inside || path.contains('\0') {
        return Err("path must be a folder relative to the hub's data folder, without .. in it".to_owned());
    }
    Ok(())
}

fn check_file_name(format: &str) -> Result<(), String> {
    let mut rest = format.to_owned();
    for token in TOKENS {
        let found = format.matches(token).count();
        if found != 1 {
            return Err(format!(
                "fileNameFormat must have {token} exactly once, not {found} times; it looks such as {}",
                TOKENS.join("/")
            ));
        }
        // A letter in its place, so that a segment of a token alone is not empty.
        rest = rest.replace(token, "x");
    }
    let plain = |c: char| {
        !c.is_control()
            && !matches!(
                c,
                '{' | '}' | '\\' | '?' | '#' | '*' | '<' | '>' | '|' | '"' | ':' | '%'
            )
    };
    if format.len() > 512 || !rest.chars().all(plain) {
        return Err(
            "fileNameFormat: besides the tokens, at most 512 printable characters without \\ ? # * < > | \" : % { }".to_owned(),
        );
    }
    if rest
        .split('/')
        .any(|segment| segment.is_empty() || segment.starts_with('.') || segment.ends_with('.'))
    {
        return Err("fileNameFormat must not begin or end with /, nor have empty parts or ones that begin or end with a dot".to_owned());
    }
    Ok(())
}
