//! File uploads of a running hub: the embedded blob store on a port of its own, or a storage account elsewhere; and who
//! is told of uploads.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_blob::signature::Account;
use holdfast_blob::store::FREE_BYTES_MIN;
use holdfast_blob::{BlobService, BlobStore};
use holdfast_heads::https::{HttpsConfig, HttpsHead};
use holdfast_heads::tls::TlsSettings;
use holdfast_hub::files::{FileDrivers, Files, FilesConfig as EngineConfig, events};
use holdfast_model::c2d::Settlement;
use holdfast_model::limits;
use holdfast_observe::Registry;
use holdfast_ports::clock::Clock;
use holdfast_ports::enrollment::AllocationWebhook as _;
use holdfast_ports::file::{FileNotifications as _, UploadStorage};
use holdfast_program::failure::Failure;
use holdfast_program::files::{self, PRIVATE};
use holdfast_program::units::{Size, Span};
use holdfast_routing::endpoints::secret::Secret;
use holdfast_store::sqlite::SqliteStore;
use holdfast_wire::dto::file_notification_json;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use ureq::tls::RootCerts;

use super::data_dir::{DataDir, make_private_dir};
use super::provisioning::HttpWebhook;
use crate::blobs::BlobClient;
use crate::blobs::account::StorageAccount;
use crate::blobs::uploads::{EmbeddedUploads, RemoteUploads, with_port};
use crate::cli::client::roots_of;

/// Name of the embedded account.
const ACCOUNT: &str = "holdfast";
/// Port of the embedded store, unless another is chosen.
const PORT: u16 = 10_000;
/// How often expired uploads and notifications are dropped.
const UPKEEP: Duration = Duration::from_secs(10);
/// How often old blocks and signatures are dropped.
const SWEEP: Duration = Duration::from_secs(3_600);
/// How often notifications for the webhook are looked for.
const LOOK: Duration = Duration::from_secs(1);
/// Longest pause after the webhook has failed.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Time for one call of the webhook.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// The embedded blob store, for file uploads and for the blobs of import and export jobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BlobConfig {
    /// Whether the store runs. Without it, files can still be uploaded to an account elsewhere (`files.account`).
    pub enabled: bool,
    /// Port of the store's REST API over TLS. Empty means 10000, or any free one if `https.port` is 0; 0 takes any free
    /// one.
    pub port: Option<u16>,
    /// Address of a listener without TLS, for example `127.0.0.1:10001`. Off when empty. Only loopback addresses are
    /// taken: signatures and data cross it in the clear.
    pub plain: Option<SocketAddr>,
    /// Bytes that uploads must leave free on the disk of the data directory; beyond, they are refused with 507.
    pub free_space_min: Size,
    /// Most connections at once; above, a new one takes the place of one that is idle.
    pub connections_max: usize,
}

impl Default for BlobConfig {
    fn default() -> Self {
        BlobConfig {
            enabled: true,
            port: None,
            plain: None,
            free_space_min: Size(FREE_BYTES_MIN),
            connections_max: 1_024,
        }
    }
}

/// File uploads of devices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FilesConfig {
    /// Whether devices may upload files.
    pub enabled: bool,
    /// Connection string of a storage account elsewhere (Azure Storage, Azurite) that files go to. Empty means the
    /// embedded store. Signatures of accounts elsewhere cannot be ended early: they are good for `upload_time`.
    pub account: Option<Secret>,
    /// Container that files go to; made if it is not there.
    pub container: String,
    /// How long a device may take for an upload, 1 minute to 1 day. Its signature is good for as long.
    pub upload_time: Span,
    /// Most uploads of a device under way.
    pub uploads_max: usize,
    /// Whether services are told of uploads.
    pub notify: bool,
    /// Address that notifications are posted to, as JSON, one a request; any 2xx takes it. Then no service receives them
    /// over AMQP. Empty means AMQP.
    pub webhook: Option<String>,
    /// How long a notification waits to be taken, 1 minute to 2 days.
    pub notification_ttl: Span,
    /// How long a notification handed out waits for its answer before it is handed out again, 5 to 300 seconds.
    pub notification_lock: Span,
    /// How often a notification may be given back before it is dropped, 1 to 100.
    pub delivery_count: u32,
}

impl Default for FilesConfig {
    fn default() -> Self {
        let engine = EngineConfig::default();
        FilesConfig {
            enabled: true,
            account: None,
            container: "uploads".to_owned(),
            upload_time: Span(engine.upload_ttl),
            uploads_max: engine.uploads_max,
            notify: engine.notify,
            webhook: None,
            notification_ttl: Span(engine.notification_ttl),
            notification_lock: Span(engine.notification_lock),
            delivery_count: engine.delivery_count_max,
        }
    }
}

impl BlobConfig {
    /// The port to listen on, given that of HTTPS.
    pub(super) fn port(&self, https: u16) -> u16 {
        self.port.unwrap_or(if https == 0 { 0 } else { PORT })
    }

    /// # Errors
    /// Naming key, value and remedy.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        if let Some(plain) = self.plain.filter(|plain| !plain.ip().is_loopback()) {
            return Err(Failure::usage(format!(
                "configuration: blob.plain = {plain}: signatures and data would cross the network unencrypted"
            ))
            .hint("use a loopback address such as 127.0.0.1:10001")
            .into());
        }
        if !(1..=1_000_000).contains(&self.connections_max) {
            let count = self.connections_max;
            return Err(Failure::usage(format!(
                "configuration: blob.connections_max = {count}: must be 1 to 1000000"
            ))
            .hint("leave it out for the default")
            .into());
        }
        Ok(())
    }
}

impl FilesConfig {
    /// # Errors
    /// Naming key, value and remedy.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let bad = |key: &str, value: &dyn std::fmt::Display, why: &str| {
            Err(
                Failure::usage(format!("configuration: files.{key} = {value}: {why}"))
                    .hint("leave it out for the default")
                    .into(),
            )
        };
        let day = Span::seconds(24 * 3_600);
        if self.upload_time < Span::seconds(60) || self.upload_time > day {
            return bad("upload_time", &self.upload_time, "must be 1m to 1d");
        }
        let ttl_max = Span::seconds(limits::FILE_NOTIFICATION_TTL_SECONDS.1);
        if self.notification_ttl < Span::seconds(60) || self.notification_ttl > ttl_max {
            return bad("notification_ttl", &self.notification_ttl, "must be 1m to 2d");
        }
        let (least, _, most) = limits::FILE_NOTIFICATION_LOCK_SECONDS;
        let lock = self.notification_lock;
        if lock < Span::seconds(least) || lock > Span::seconds(most) {
            return bad("notification_lock", &lock, "must be 5s to 5m");
        }
        if !(1..=limits::FILE_NOTIFICATION_DELIVERY_COUNT_MAX).contains(&self.delivery_count) {
            return bad("delivery_count", &self.delivery_count, "must be 1 to 100");
        }
        if !(1..=1_000).contains(&self.uploads_max) {
            return bad("uploads_max", &self.uploads_max, "must be 1 to 1000");
        }
        let name = &self.container;
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let dashes = name.starts_with('-') || name.ends_with('-') || name.contains("--");
        if !(3..=63).contains(&name.len()) || !name.chars().all(plain) || dashes || name == ACCOUNT {
            let why = "must be 3 to 63 lower-case letters, digits and single dashes, and not holdfast";
            return bad("container", name, why);
        }
        let http = |url: &&String| !url.starts_with("https://") && !url.starts_with("http://");
        if let Some(url) = self.webhook.as_ref().filter(http) {
            return bad("webhook", url, "must begin with https:// or http://");
        }
        if let Some(Err(why)) = self
            .account
            .as_ref()
            .map(|text| StorageAccount::parse(text.reveal()))
        {
            return bad("account", &"(hidden)", &why);
        }
        Ok(())
    }

    fn engine(&self) -> EngineConfig {
        EngineConfig {
            upload_ttl: self.upload_time.0,
            uploads_max: self.uploads_max,
            notify: self.notify,
            notification_ttl: self.notification_ttl.0,
            notification_lock: self.notification_lock.0,
            delivery_count_max: self.delivery_count,
        }
    }
}

/// File uploads and the embedded blob store, before they run.
pub(super) struct Uploads {
    pub(super) files: Arc<Files>,
    /// The embedded store, if it runs.
    blobs: Option<BlobService>,
    /// Connection string of the embedded store.
    pub(super) connection_string: Option<String>,
    webhook: Option<String>,
    notifies: bool,
}

/// What [`Uploads::open`] needs of others.
pub(super) struct Surroundings<'a> {
    pub(super) data_dir: &'a DataDir,
    /// Names of the hub; the first is for connection strings.
    pub(super) names: &'a [String],
    /// Port on which the embedded store listens with TLS.
    pub(super) port: Option<u16>,
    pub(super) store: &'a SqliteStore,
    pub(super) clock: &'a Arc<dyn Clock>,
    pub(super) roots: RootCerts,
}

impl Uploads {
    pub(super) async fn open(
        config: &FilesConfig,
        blob: &BlobConfig,
        around: Surroundings<'_>,
        registry: &mut Registry,
    ) -> anyhow::Result<Self> {
        let embedded = match around.port {
            None => None,
            Some(port) => Some(open_store(blob, &around, port)?),
        };
        let storage = match (config.enabled, &config.account, &embedded) {
            (false, ..) => None,
            (true, Some(text), _) => Some(remote(config, text, &around).await?),
            (true, None, Some(embedded)) => Some(embedded_storage(config, embedded, &around)?),
            (true, None, None) => {
                tracing::warn!(
                    "files cannot be uploaded: blob.enabled is false and files.account is empty; files.enabled = false says that it is meant so"
                );
                None
            }
        };
        let drivers = FileDrivers {
            store: Arc::new(around.store.clone()),
            storage,
            clock: Arc::clone(around.clock),
        };
        let metrics = events::Metrics::register(registry);
        let (blobs, connection_string) = match embedded {
            None => (None, None),
            Some(Embedded {
                service,
                connection_string,
                ..
            }) => (Some(service), Some(connection_string)),
        };
        Ok(Uploads {
            files: Files::new(config.engine(), drivers, metrics),
            blobs,
            connection_string,
            webhook: config.webhook.clone(),
            notifies: config.notify,
        })
    }

    /// Whether services receive notifications over AMQP.
    pub(super) fn tells_services(&self) -> bool {
        self.notifies && self.webhook.is_none()
    }

    /// Serves the embedded store with TLS, and without it where that is chosen. Requests without a valid signature end
    /// before their body is read.
    pub(super) fn serve_blobs(
        &self,
        heads: &mut JoinSet<()>,
        (listeners, plain): (Vec<TcpListener>, Option<TcpListener>),
        config: &HttpsConfig,
        (tls, metrics): (&Arc<TlsSettings>, &holdfast_heads::events::Metrics),
        stopped: &watch::Receiver<bool>,
    ) {
        let Some(service) = &self.blobs else { return };
        let tls = listeners
            .into_iter()
            .map(|listener| (listener, Some(Arc::clone(tls))));
        for (listener, tls) in tls.chain(plain.map(|listener| (listener, None))) {
            let service = BlobService {
                tls: tls.is_some(),
                ..service.clone()
            };
            let router = holdfast_blob::router(service);
            let head = HttpsHead::new(config.clone(), router, None, None, metrics.clone());
            let stopped = stopped.clone();
            heads.spawn(async move { head.serve(listener, tls, stopped).await });
        }
    }

    /// Starts the upkeep and the webhook; they end with the set.
    pub(super) fn start(&self, clock: &Arc<dyn Clock>, roots: RootCerts) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        let files = Arc::clone(&self.files);
        tasks.spawn(async move {
            let mut ticks = tokio::time::interval(UPKEEP);
            loop {
                ticks.tick().await;
                files.tick().await;
            }
        });
        if let Some(service) = &self.blobs {
            tasks.spawn(sweep(service.store.clone(), Arc::clone(clock)));
        }
        if let Some(url) = self.webhook.clone().filter(|_| self.notifies) {
            tasks.spawn(call_webhook(
                Arc::clone(&self.files),
                url,
                HttpWebhook::new(roots),
            ));
        }
        tasks
    }
}

/// The embedded store with what clients need for it.
struct Embedded {
    service: BlobService,
    port: u16,
    connection_string: String,
}

fn open_store(config: &BlobConfig, around: &Surroundings<'_>, port: u16) -> anyhow::Result<Embedded> {
    let dir = around.data_dir.join("blobs");
    make_private_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let key = account_key(&dir.join("account.key"))?;
    let account = Account::new(ACCOUNT, &key).context("the key of the blob store is not base64")?;
    let store = BlobStore::open(&dir, config.free_space_min.0, around.clock.now())
        .with_context(|| format!("cannot open the blob store in {}", dir.display()))?;
    let host = around.names.first().map_or("localhost", String::as_str);
    let connection_string = format!(
        "DefaultEndpointsProtocol=https;AccountName={ACCOUNT};AccountKey={key};BlobEndpoint=https://{}/{ACCOUNT};",
        with_port(host, port)
    );
    let clock = Arc::clone(around.clock);
    Ok(Embedded {
        service: BlobService {
            store,
            account,
            now: Arc::new(move || clock.now()),
            tls: true,
        },
        port,
        connection_string,
    })
}

/// Reads the key of the embedded account; a first start draws it.
fn account_key(path: &Path) -> anyhow::Result<String> {
    match std::fs::read_to_string(path) {
        Ok(text) => return Ok(text.trim().to_owned()),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot read {}", path.display()));
        }
        Err(_) => {}
    }
    let mut key = [0; 64];
    getrandom::fill(&mut key).map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
    let key = STANDARD.encode(key);
    files::write(path, key.as_bytes(), PRIVATE)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(key)
}

fn embedded_storage(
    config: &FilesConfig,
    embedded: &Embedded,
    around: &Surroundings<'_>,
) -> anyhow::Result<Arc<dyn UploadStorage>> {
    let store = &embedded.service.store;
    match store.create_container(&config.container, &Vec::new(), around.clock.now()) {
        Err(error) if error.code != "ContainerAlreadyExists" => {
            return Err(error).with_context(|| format!("cannot make the container {}", config.container));
        }
        _ => {}
    }
    Ok(Arc::new(EmbeddedUploads {
        store: store.clone(),
        account: embedded.service.account.clone(),
        container: config.container.clone(),
        hosts: around.names.to_vec(),
        port: embedded.port,
    }))
}

async fn remote(
    config: &FilesConfig,
    text: &Secret,
    around: &Surroundings<'_>,
) -> anyhow::Result<Arc<dyn UploadStorage>> {
    let account =
        StorageAccount::parse(text.reveal()).map_err(|why| anyhow::anyhow!("files.account: {why}"))?;
    if account.endpoint.starts_with("http://") {
        tracing::warn!("files.account has an endpoint without TLS; device SDKs upload over TLS only");
    }
    let uploads = Arc::new(RemoteUploads {
        account,
        container: config.container.clone(),
        client: BlobClient::new(around.roots.clone()),
        clock: Arc::clone(around.clock),
    });
    let remote = Arc::clone(&uploads);
    // An account that cannot be reached now may be later, and nobody else should wait for it.
    tokio::task::spawn_blocking(move || {
        if let Err(why) = remote.ensure_container() {
            tracing::warn!(
                why,
                "the storage account of file uploads is not ready; uploads may fail"
            );
        }
    });
    Ok(uploads)
}

/// Roots of the system and those of a PEM file, if it can be read.
pub(super) fn roots_with(system: RootCerts, ca: Option<&Path>) -> RootCerts {
    let pem = ca.and_then(|path| std::fs::read(path).ok());
    match (system, pem.and_then(|pem| roots_of(&pem))) {
        (RootCerts::Specific(system), Some(RootCerts::Specific(own))) => {
            let all: Vec<_> = system.iter().chain(own.iter()).cloned().collect();
            RootCerts::Specific(Arc::new(all))
        }
        (system, _) => system,
    }
}

async fn sweep(store: BlobStore, clock: Arc<dyn Clock>) {
    let mut ticks = tokio::time::interval(SWEEP);
    loop {
        ticks.tick().await;
        let (store, now) = (store.clone(), clock.now());
        match tokio::task::spawn_blocking(move || store.sweep(now)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "old blocks of the blob store could not be removed"),
            Err(error) => tracing::error!(%error, "the upkeep of the blob store has failed"),
        }
    }
}

/// Posts notifications, oldest first, one at a time. What is not taken comes again until it has expired.
async fn call_webhook(files: Arc<Files>, url: String, webhook: HttpWebhook) {
    let mut pause = LOOK;
    loop {
        let delivery = match files.receive_notification().await {
            Ok(Some(delivery)) => delivery,
            // The engine has logged why.
            Ok(None) | Err(_) => {
                tokio::time::sleep(LOOK).await;
                continue;
            }
        };
        let body = file_notification_json(&delivery.notification);
        let answer = webhook.call(&url, body.into(), CALL_TIMEOUT).await;
        let settlement = match &answer {
            Ok((200..=299, _)) => Settlement::Complete,
            _ => Settlement::Abandon,
        };
        if files
            .settle_notification(delivery.lock, settlement)
            .await
            .is_err()
        {
            tracing::debug!("a notification of a file upload comes again");
        }
        if settlement == Settlement::Complete {
            pause = LOOK;
            continue;
        }
        let why = answer.map_or_else(|why| why, |(status, _)| format!("HTTP {status}"));
        tracing::warn!(
            why,
            "the webhook of file uploads has not taken a notification; it is tried again"
        );
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_values_are_named() {
        let check = |change: fn(&mut FilesConfig)| {
            let mut config = FilesConfig::default();
            change(&mut config);
            config.check().err().map(|error| error.to_string())
        };
        assert_eq!(check(|_| ()), None);
        let account = "AccountName=a;AccountKey=c2VjcmV0";
        assert_eq!(
            check(|config| config.account = Some(Secret::from("AccountName=a;AccountKey=c2VjcmV0"))),
            None
        );
        assert!(StorageAccount::parse(account).is_ok());
        for (wrong, key) in [
            (
                check(|config| config.upload_time = Span::seconds(1)),
                "files.upload_time = 1s",
            ),
            (
                check(|config| config.container = "Up".to_owned()),
                "files.container = Up",
            ),
            (
                check(|config| config.container = ACCOUNT.to_owned()),
                "files.container = holdfast",
            ),
            (
                check(|config| config.delivery_count = 101),
                "files.delivery_count = 101",
            ),
            (
                check(|config| config.webhook = Some("x".to_owned())),
                "files.webhook = x",
            ),
            (
                check(|config| config.account = Some(Secret::from("AccountKey=U0VDUkVU"))),
                "files.account = (hidden)",
            ),
        ] {
            let wrong = wrong.expect("it is refused");
            assert!(wrong.contains(key) && !wrong.contains("U0VDUkVU"), "{wrong}");
        }
        let plain = BlobConfig {
            plain: Some("192.0.2.1:80".parse().expect("an address")),
            ..BlobConfig::default()
        };
        assert!(plain.check().is_err());
        assert_eq!((plain.port(443), plain.port(0)), (10_000, 0));
    }

    #[test]
    fn the_key_is_drawn_once_and_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("account.key");
        let key = account_key(&path).expect("written");
        assert_eq!(account_key(&path).expect("read"), key);
        assert_eq!(STANDARD.decode(&key).expect("base64").len(), 64);
        let mode = std::fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
