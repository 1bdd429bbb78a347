//! Puts a hub together from its parts, and takes it apart again in order.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use holdfast_fleet::models::ModelFolder;
use holdfast_fleet::transfer::{Transfer, TransferJobs};
use holdfast_heads::amqp::{AmqpConfig, AmqpHead};
use holdfast_heads::dps::ProvisioningHttps;
use holdfast_heads::https::{DeviceHttps, HttpsConfig, HttpsHead};
use holdfast_heads::mqtt::{MqttConfig, MqttHead};
use holdfast_heads::tls::{ServerCertificate, TicketSecret, TlsSettings};
use holdfast_hub::{Hub, HubConfig, Stores};
use holdfast_model::provisioning::OWNER_POLICY;
use holdfast_observe::{Health, Registry};
use holdfast_ports::clock::{Clock, SystemClock};
use holdfast_ports::gateway::DeviceGateway;
use holdfast_ports::provisioning::ProvisioningGateway;
use holdfast_ports::service::ServiceGateway;
use holdfast_provisioning::{Drivers, Provisioning, ProvisioningConfig};
use holdfast_store::log::{EmbeddedLog, LogConfig};
use holdfast_store::sqlite::SqliteStore;
use holdfast_store::sqlite::query::QueryLimits;
use holdfast_wire::connection_string::{ConnectionString, Credential, Party};
use holdfast_wire::links::EVENT_HUB_NAME;

use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use ureq::tls::RootCerts;

use super::banner::{Addresses, Banner};
use super::certificates::ServerIdentities;
use super::config::{self, Config};
use super::connection_env::{self as variables, ConnectionEnv, write_private};
use super::data_dir::unusable;
use super::files::{self, Uploads};
use super::fleet::{self, Management};
use super::listen::{self, bind, bind_all};
use super::periodic::Periodic;
use super::provisioning::{Connector, HttpWebhook};
use super::routing::Routing;
use super::signals::{Request, Signals};
use super::{Settings, admin};
use crate::blobs::Blobs;
use crate::cli::failure::{Failure, Kind};
use crate::cli::profile::write_user_profile;

/// Policy whose key goes into `connection.env`.
const OWNER: &str = "iothubowner";

/// How often the latencies of linked hubs are measured.
const LATENCY_INTERVAL: Duration = Duration::from_secs(60);

/// Sockets that wait for their heads.
struct Listeners {
    mqtt: Vec<TcpListener>,
    https: Vec<TcpListener>,
    mqtt_plain: Option<TcpListener>,
    amqp: Vec<TcpListener>,
    amqp_plain: Option<TcpListener>,
    blob: Vec<TcpListener>,
    blob_plain: Option<TcpListener>,
    admin: Option<TcpListener>,
}

impl Listeners {
    fn bind(config: &Config) -> anyhow::Result<Self> {
        let addresses = &config.server.listen;
        let plain = config.mqtt.plain.map(|address| bind(address, listen::MQTT_PLAIN));
        let amqp_plain = config.amqp.plain.map(|address| bind(address, listen::AMQP_PLAIN));
        let blob_plain = config.blob.plain.map(|address| bind(address, listen::BLOB_PLAIN));
        let admin = config.server.admin.map(|address| bind(address, listen::ADMIN));
        Ok(Listeners {
            https: bind_all(addresses, config.https.port, listen::HTTPS)?,
            mqtt: bind_all(addresses, config.mqtt.port, listen::MQTT)?,
            mqtt_plain: plain.transpose()?,
            amqp: bind_all(addresses, config.amqp.port, listen::AMQP)?,
            amqp_plain: amqp_plain.transpose()?,
            blob: match config.blob.enabled {
                true => bind_all(addresses, config.blob.port(config.https.port), listen::BLOB)?,
                false => Vec::new(),
            },
            blob_plain: blob_plain.transpose()?,
            admin: admin.transpose()?,
        })
    }

    fn addresses(&self, host: &str) -> anyhow::Result<Addresses> {
        let port = |listeners: &[TcpListener]| -> anyhow::Result<u16> {
            Ok(listeners.first().context("no listener")?.local_addr()?.port())
        };
        let address =
            |listener: &Option<TcpListener>| listener.as_ref().map(TcpListener::local_addr).transpose();
        Ok(Addresses {
            host: host.to_owned(),
            mqtt_port: port(&self.mqtt)?,
            amqp_port: port(&self.amqp)?,
            https_port: port(&self.https)?,
            mqtt_plain: address(&self.mqtt_plain)?,
            amqp_plain: address(&self.amqp_plain)?,
            blob_port: match self.blob.first() {
                Some(listener) => Some(listener.local_addr()?.port()),
                None => None,
            },
            blob_plain: address(&self.blob_plain)?,
            admin: address(&self.admin)?,
        })
    }
}

/// The parts of a running hub.
struct Parts {
    hub: Arc<Hub>,
    log: Arc<EmbeddedLog>,
    store: SqliteStore,
    provisioning: Arc<Provisioning>,
    transfer: Arc<TransferJobs>,
    models: Arc<ModelFolder>,
    management: Management,
    routing: Routing,
    uploads: Uploads,
    tls: Arc<TlsSettings>,
    clock: Arc<dyn Clock>,
    health: Health,
    registry: Arc<Registry>,
    heads: holdfast_heads::events::Metrics,
}

/// Starts the hub, tells that it is ready, and runs it until it is asked to stop.
pub(super) async fn run(settings: Settings) -> anyhow::Result<()> {
    raise_file_limit();
    let mut signals = Signals::listen().context("cannot listen to signals")?;
    let listeners = Listeners::bind(&settings.config)?;
    let host = settings
        .names
        .first()
        .cloned()
        .unwrap_or_else(|| "localhost".to_owned());
    let addresses = listeners.addresses(&host)?;
    let parts = open(&settings, addresses.blob_port).await.map_err(unusable)?;

    let (stop, stopped) = watch::channel(false);
    let mut heads = JoinSet::new();
    serve_heads(&mut heads, listeners, &parts, &settings, &stopped);
    let periodic = Periodic {
        hub: Arc::clone(&parts.hub),
        log: Arc::clone(&parts.log),
        queries: Arc::new(parts.store.clone()),
        clock: Arc::clone(&parts.clock),
        health: parts.health.clone(),
        certificates: settings.certificates.clone(),
        tls: Arc::clone(&parts.tls),
        data_dir: settings.data_dir.path().to_owned(),
    };
    let mut upkeep = periodic.start();
    let mut management = parts.management.start();
    let dispatchers = parts.routing.start(&parts.hub);
    let mut uploads = parts.uploads.start(&parts.clock, webhook_roots());

    announce(&settings, &parts, addresses).map_err(unusable)?;
    loop {
        match signals.next().await {
            Request::Stop => break,
            Request::Reload => periodic.reload_certificates().await,
        }
    }
    tracing::info!("stopping; a second signal ends at once");
    notify(&[NotifyState::Stopping]);
    parts.health.drain();
    // Before the sessions end, so that no job takes a device for gone.
    management.shutdown().await;
    let drained = async {
        drain(&parts, &stop, &mut heads, settings.config.server.drain_timeout.0).await;
        dispatchers.stop().await;
    };
    tokio::select! {
        () = drained => {}
        () = signals.stop_again() => {
            tracing::warn!("stopped at once; everything acknowledged is on the disk");
            std::process::exit(1);
        }
    }
    uploads.shutdown().await;
    upkeep.shutdown().await;
    drop(periodic);
    close(parts, &settings).await
}

fn query_limits(settings: &Settings) -> QueryLimits {
    let query = &settings.config.query;
    QueryLimits {
        running_max: query.running_max,
        page_time: query.page_time.0,
        time_max: query.time_max.0,
        ..QueryLimits::default()
    }
}

/// Opens the stores and makes the engine.
async fn open(settings: &Settings, blob_port: Option<u16>) -> anyhow::Result<Parts> {
    let mut registry = Registry::new();
    registry.process_metrics();
    let health = Health::new();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let state_metrics = holdfast_store::sqlite::Metrics::register(&mut registry);
    let log_metrics = holdfast_store::log::Metrics::register(&mut registry);
    let hub_metrics = holdfast_hub::events::Metrics::register(&mut registry);
    let heads = holdfast_heads::events::Metrics::register(&mut registry);
    let transfer_metrics = holdfast_fleet::transfer::Metrics::register(&mut registry);
    let provisioning_metrics = holdfast_provisioning::events::Metrics::register(&mut registry);
    let management_metrics = fleet::Metrics::register(&mut registry);

    let store = SqliteStore::open_with(
        &settings.data_dir.join("hub.db"),
        state_metrics,
        query_limits(settings),
    )
    .context("cannot open the state database")?;
    let log =
        EmbeddedLog::open_with(log_config(settings), log_metrics).context("cannot open the event log")?;
    if log_partitions(&log) != settings.config.log.partitions && !settings.data_dir.is_fresh() {
        tracing::warn!(
            has = log_partitions(&log),
            configured = settings.config.log.partitions,
            "log.partitions is taken at the first start only"
        );
    }
    let log = Arc::new(log);
    let shared = Arc::new(store.clone());
    let stores = Stores {
        registry: shared.clone(),
        twins: shared.clone(),
        c2d: shared.clone(),
        settings: shared.clone(),
        sessions: shared.clone(),
        checkpoints: shared.clone(),
        outbox: shared,
        log: log.clone(),
        clock: Arc::clone(&clock),
    };
    let hub = Hub::new(hub_config(settings), stores, store.next_epoch_base(), hub_metrics)
        .await
        .context("cannot read the hub's settings")?;
    hub.ensure_policies()
        .await
        .context("cannot make the shared access policies")?;
    let provisioning = provision(settings, &hub, &store, &clock, provisioning_metrics).await?;
    let transfer = transfer_jobs(settings, &hub, &store, &clock, transfer_metrics).await?;
    let models = Arc::new(ModelFolder::new(settings.data_dir.join("models")));
    let management = Management::new(&hub, &store, &clock, &settings.config.jobs, management_metrics).await?;
    let routing = Routing::new(
        &settings.config.routing,
        settings.names.first().map_or("localhost", String::as_str),
        settings.data_dir.join("endpoints"),
        (&store, log.clone()),
        &hub,
        &clock,
        &mut registry,
    );
    let uploads = Uploads::open(
        &settings.config.files,
        &settings.config.blob,
        files::Surroundings {
            data_dir: &settings.data_dir,
            names: &settings.names,
            port: blob_port,
            store: &store,
            clock: &clock,
            roots: webhook_roots(),
        },
        &mut registry,
    )
    .await?;
    let identities = settings.certificates.load()?;
    let tls = TlsSettings::new(
        server_certificates(identities),
        &ticket_secret(settings)?,
        Arc::clone(&clock),
    )
    .context("cannot set up TLS")?;
    for component in ["log", "state", "disk"] {
        health.set(component, Ok(()));
    }
    Ok(Parts {
        hub,
        log,
        store,
        provisioning,
        transfer,
        models,
        management,
        routing,
        uploads,
        tls,
        clock,
        health,
        registry: Arc::new(registry),
        heads,
    })
}

/// Makes the provisioning engine, which assigns devices to this hub unless others are linked.
async fn provision(
    settings: &Settings,
    hub: &Arc<Hub>,
    store: &SqliteStore,
    clock: &Arc<dyn Clock>,
    metrics: holdfast_provisioning::events::Metrics,
) -> anyhow::Result<Arc<Provisioning>> {
    let store = Arc::new(store.clone());
    let drivers = Drivers {
        store: store.clone(),
        settings: store,
        connector: Arc::new(Connector::new(Arc::clone(hub))),
        webhook: Arc::new(HttpWebhook::new(webhook_roots())),
        clock: Arc::clone(clock),
    };
    let config = ProvisioningConfig {
        id_scope: settings.data_dir.id_scope().to_owned(),
        host_names: settings.names.clone(),
        ..ProvisioningConfig::default()
    };
    let provisioning = Provisioning::new(config, drivers, metrics)
        .await
        .context("cannot read the settings of device provisioning")?;
    provisioning.watch_latencies(LATENCY_INTERVAL);
    Ok(provisioning)
}

/// Makes the engine of imports and exports.
async fn transfer_jobs(
    settings: &Settings,
    hub: &Arc<Hub>,
    store: &SqliteStore,
    clock: &Arc<dyn Clock>,
    metrics: holdfast_fleet::transfer::Metrics,
) -> anyhow::Result<Arc<TransferJobs>> {
    let work_dir = settings.data_dir.join("transfer");
    super::data_dir::make_private_dir(&work_dir)
        .with_context(|| format!("cannot make {}", work_dir.display()))?;
    let config = &settings.config.transfer;
    let transfer = Transfer::new(
        Arc::clone(hub),
        Arc::new(holdfast_api::JsonLines),
        work_dir,
        metrics,
    );
    // The embedded blob store is one of those that jobs may ask.
    let roots = files::roots_with(webhook_roots(), settings.certificates.ca_path().as_deref());
    let blobs = Blobs::new(roots, config.folder.clone(), config.hosts.clone());
    TransferJobs::new(
        transfer,
        Arc::new(blobs),
        Arc::new(store.clone()),
        Arc::clone(clock),
    )
    .await
    .context("cannot read the history of import and export jobs")
}

/// The system's authorities. A machine without any can still ask webhooks without TLS.
fn webhook_roots() -> RootCerts {
    crate::cli::client::roots(None).unwrap_or_else(|error| {
        tracing::warn!(%error, "webhooks with TLS will not be trusted");
        RootCerts::new_with_certs(&[])
    })
}

fn log_partitions(log: &EmbeddedLog) -> u16 {
    use holdfast_ports::event_log::EventLog as _;
    log.partitions()
}

fn log_config(settings: &Settings) -> LogConfig {
    let config = &settings.config.log;
    LogConfig {
        dir: settings.data_dir.join("events"),
        partitions: config.partitions,
        segment_bytes: config.segment_size.0,
        retention_age: config.retention.0,
        retention_bytes: config.retention_size.map(|size| size.0),
        durability: match config.durability {
            config::Durability::Fsync => holdfast_store::log::Durability::Fsync,
            config::Durability::Os => holdfast_store::log::Durability::Os,
        },
        ..LogConfig::default()
    }
}

fn hub_config(settings: &Settings) -> HubConfig {
    let (hub, c2d) = (&settings.config.hub, &settings.config.c2d);
    HubConfig {
        host_names: settings.names.clone(),
        clock_skew: hub.clock_skew.0,
        token_grace: hub.token_grace.0,
        c2d_depth_max: c2d.queue_depth,
        c2d_delivery_count_max: c2d.delivery_count,
        c2d_ttl: c2d.default_ttl.0,
        c2d_lock: c2d.lock_timeout.0,
        ..HubConfig::default()
    }
}

fn amqp_config(config: &config::AmqpConfig, hub: &config::HubSection, drain_timeout: Duration) -> AmqpConfig {
    let millis = |span: Duration| u32::try_from(span.as_millis()).unwrap_or(u32::MAX);
    let bytes = |size: u64| usize::try_from(size).unwrap_or(usize::MAX);
    let bytes_u32 = |size: u64| u32::try_from(size).unwrap_or(u32::MAX);
    let default = AmqpConfig::default();
    let machine = holdfast_amqp::Config {
        max_frame_size: bytes_u32(config.frame_size_max.0),
        channel_max: config.sessions_max.saturating_sub(1),
        max_links: config.links_max,
        idle_time_out_ms: millis(config.silence_max.0),
        open_timeout_ms: millis(config.login_timeout.0),
        max_reassembly: bytes_u32(config.unfinished_size.0),
        ..default.machine.clone()
    };
    AmqpConfig {
        machine,
        handshake_timeout: config.handshake_timeout.0,
        login_timeout: config.login_timeout.0,
        clock_skew: hub.clock_skew.0,
        token_grace: hub.token_grace.0,
        producer_bytes_max: config.event_size_max.0,
        link_window: config.link_window,
        unacknowledged_bytes_max: bytes(config.unacknowledged_size.0),
        requests_max: config.requests_max,
        grants_max: config.tokens_max,
        output_bytes_pause: default
            .output_bytes_pause
            .min(bytes(config.output_size_max.0 / 2)),
        output_bytes_max: bytes(config.output_size_max.0),
        logins_pending_max: config.logins_pending_max,
        connections_max: config.connections_max,
        drain_timeout,
        ..default
    }
}

fn mqtt_config(config: &config::MqttConfig, drain_timeout: Duration) -> MqttConfig {
    MqttConfig {
        connect_timeout: config.connect_timeout.0,
        silence_max: config.silence_max.0,
        unacknowledged_max: config.unacknowledged_max,
        unacknowledged_bytes_max: usize::try_from(config.unacknowledged_size.0).unwrap_or(usize::MAX),
        drain_timeout,
        ..MqttConfig::default()
    }
}

fn https_config(config: &config::HttpsConfig, drain_timeout: Duration) -> HttpsConfig {
    HttpsConfig {
        handshake_timeout: config.handshake_timeout.0,
        head_timeout: config.head_timeout.0,
        body_timeout: config.body_timeout.0,
        ingest_timeout: config.ingest_timeout.0,
        drain_timeout,
        ..HttpsConfig::default()
    }
}

/// Certificates in the form the heads take.
pub(super) fn server_certificates(identities: ServerIdentities) -> Vec<ServerCertificate> {
    let identities = identities.identities.into_iter();
    identities
        .map(|identity| ServerCertificate {
            chain: identity.chain,
            key: identity.key,
        })
        .collect()
}

/// The secret of session tickets, kept so that devices resume their TLS sessions after a restart of the hub.
fn ticket_secret(settings: &Settings) -> anyhow::Result<TicketSecret> {
    super::data_dir::make_private_dir(&settings.data_dir.join("tls"))?;
    let path = settings.data_dir.join("tls/tickets.key");
    // A file of another length is damaged; the only cost of a new secret is one full handshake a device.
    if let Ok(bytes) = std::fs::read(&path)
        && let Ok(bytes) = <[u8; 32]>::try_from(bytes)
    {
        return Ok(TicketSecret::new(bytes));
    }
    let secret = TicketSecret::generate().context("the operating system's random source does not work")?;
    write_private(&path, secret.reveal()).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(secret)
}

/// Starts a task per listener.
fn serve_heads(
    heads: &mut JoinSet<()>,
    listeners: Listeners,
    parts: &Parts,
    settings: &Settings,
    stopped: &watch::Receiver<bool>,
) {
    let drain_timeout = settings.config.server.drain_timeout.0 / 2;
    let config = mqtt_config(&settings.config.mqtt, drain_timeout);
    let (clock, metrics) = (&parts.clock, &parts.heads);
    let gateway: Arc<dyn DeviceGateway> = Arc::clone(&parts.hub) as Arc<_>;
    let dps: Arc<dyn ProvisioningGateway> = Arc::clone(&parts.provisioning) as Arc<_>;
    let mqtt = MqttHead::new(config, Arc::clone(&gateway), Arc::clone(clock), metrics.clone())
        .with_provisioning(Arc::clone(&dps));
    for listener in listeners.mqtt {
        let (head, tls, stopped) = (mqtt.clone(), Arc::clone(&parts.tls), stopped.clone());
        heads.spawn(async move { head.serve(listener, Some(tls), stopped).await });
    }
    if let Some(listener) = listeners.mqtt_plain {
        let (head, stopped) = (mqtt.clone(), stopped.clone());
        heads.spawn(async move { head.serve(listener, None, stopped).await });
    }
    let config = amqp_config(&settings.config.amqp, &settings.config.hub, drain_timeout);
    let services: Arc<dyn ServiceGateway> = Arc::clone(&parts.hub) as Arc<_>;
    let amqp = AmqpHead::new(
        config,
        Arc::clone(&gateway),
        services,
        Arc::clone(clock),
        metrics.clone(),
    )
    .with_provisioning(Arc::clone(&dps));
    let amqp = match parts.uploads.tells_services() {
        true => amqp.with_files(Arc::clone(&parts.uploads.files) as Arc<_>),
        false => amqp,
    };
    for listener in listeners.amqp {
        let (head, tls, stopped) = (amqp.clone(), Arc::clone(&parts.tls), stopped.clone());
        heads.spawn(async move { head.serve(listener, Some(tls), stopped).await });
    }
    if let Some(listener) = listeners.amqp_plain {
        let (head, stopped) = (amqp.clone(), stopped.clone());
        heads.spawn(async move { head.serve(listener, None, stopped).await });
    }
    let watched = admin::router(parts.health.clone(), Arc::clone(&parts.registry));
    let config = https_config(&settings.config.https, drain_timeout);
    let router = https_router(parts, watched.clone(), stopped);
    let devices = DeviceHttps::new(gateway, Arc::clone(clock), metrics.clone())
        .with_files(Arc::clone(&parts.uploads.files) as Arc<_>);
    let https = HttpsHead::new(config, router, Some(devices), Some(mqtt), metrics.clone())
        .with_amqp(amqp)
        .with_provisioning(ProvisioningHttps::new(dps, Arc::clone(clock), metrics.clone()));
    for listener in listeners.https {
        let (head, tls, stopped) = (https.clone(), Arc::clone(&parts.tls), stopped.clone());
        heads.spawn(async move { head.serve(listener, Some(tls), stopped).await });
    }
    let config = HttpsConfig {
        connections_max: settings.config.blob.connections_max,
        ..https_config(&settings.config.https, drain_timeout)
    };
    let blobs = (listeners.blob, listeners.blob_plain);
    (parts.uploads).serve_blobs(heads, blobs, &config, (&parts.tls, metrics), stopped);
    if let Some(listener) = listeners.admin {
        let mut stopped = stopped.clone();
        heads.spawn(async move {
            let stop = async move {
                let _ = stopped.wait_for(|stop| *stop).await;
            };
            if let Err(error) = axum::serve(listener, watched).with_graceful_shutdown(stop).await {
                tracing::error!(%error, "the admin listener has failed");
            }
        });
    }
}

/// Writes `connection.env` and the profile, prints the banner, tells systemd.
fn announce(settings: &Settings, parts: &Parts, addresses: Addresses) -> anyhow::Result<()> {
    let env_path = settings.data_dir.join(variables::FILE_NAME);
    let ca = settings.certificates.ca_path();
    connection_env(settings, parts, &addresses, ca.as_deref())?
        .write(&env_path)
        .with_context(|| format!("cannot write {}", env_path.display()))?;
    if settings.profile
        && let Err(error) = write_user_profile(settings.data_dir.path())
    {
        tracing::warn!(%error, "cannot write the user's profile; other commands need --data-dir");
    }
    let banner = Banner {
        data_dir: settings.data_dir.path().to_owned(),
        connection_env: env_path,
        ca,
        first_start: settings.data_dir.is_fresh(),
        found_by_commands: settings.profile,
        addresses,
    };
    tracing::info!(
        host = banner.addresses.host,
        mqtt_port = banner.addresses.mqtt_port,
        amqp_port = banner.addresses.amqp_port,
        https_port = banner.addresses.https_port,
        "ready"
    );
    // Nobody reads it: no reason not to serve.
    if let Err(error) = banner.print(settings.output) {
        tracing::debug!(%error, "the banner could not be printed");
    }
    notify(&[NotifyState::Ready, NotifyState::Status("serving")]);
    Ok(())
}

fn connection_env(
    settings: &Settings,
    parts: &Parts,
    addresses: &Addresses,
    ca: Option<&Path>,
) -> anyhow::Result<ConnectionEnv> {
    let mut env = ConnectionEnv::new();
    env.set(
        variables::HOST,
        &addresses.host,
        "Host name, as it stands in connection strings",
    );
    match parts.hub.policy(OWNER) {
        Ok(policy) => {
            let events = format!(
                "Endpoint=sb://{}/;SharedAccessKeyName={};SharedAccessKey={};EntityPath={EVENT_HUB_NAME}",
                addresses.host,
                policy.name,
                policy.primary_key.reveal()
            );
            env.set(
                variables::EH_CS,
                events,
                "Event Hubs-compatible connection string, for reading events",
            );
            let owner = ConnectionString {
                host: addresses.host.clone(),
                gateway_host: None,
                party: Party::Service,
                credential: Credential::Policy {
                    name: policy.name,
                    key: policy.primary_key,
                },
            };
            env.set(
                variables::OWNER_CS,
                owner.reveal(),
                "Service connection string with every right",
            );
        }
        Err(_) => tracing::warn!("the policy {OWNER} was deleted: connection.env has no connection string"),
    }
    if let Some(ca) = ca {
        env.set(
            variables::CA,
            ca.to_string_lossy(),
            "Certificate authority that clients must trust, PEM",
        );
    }
    env.set(
        variables::DPS_HOST,
        &addresses.host,
        "Host name for device provisioning",
    );
    if let Ok(policy) = parts.provisioning.policy(OWNER_POLICY) {
        let owner = ConnectionString {
            host: addresses.host.clone(),
            gateway_host: None,
            party: Party::Service,
            credential: Credential::Policy {
                name: policy.name,
                key: policy.primary_key,
            },
        };
        env.set(
            variables::DPS_CS,
            owner.reveal(),
            "Provisioning service connection string with every right",
        );
    }
    env.set(
        variables::ID_SCOPE,
        settings.data_dir.id_scope(),
        "Id scope of this hub for device provisioning",
    );
    if let Some(blobs) = &parts.uploads.connection_string {
        env.set(
            variables::BLOB_CS,
            blobs.clone(),
            "Connection string of the embedded blob store, for Azure Storage clients",
        );
    }
    if addresses.https_port != 443 {
        env.set(
            variables::HTTPS_PORT,
            addresses.https_port.to_string(),
            "Port of HTTPS; SDKs know only 443",
        );
    }
    if addresses.mqtt_port != 8883 {
        env.set(
            variables::MQTT_PORT,
            addresses.mqtt_port.to_string(),
            "Port of MQTT over TLS; SDKs know only 8883",
        );
    }
    if addresses.amqp_port != 5671 {
        env.set(
            variables::AMQP_PORT,
            addresses.amqp_port.to_string(),
            "Port of AMQP over TLS; SDKs know only 5671",
        );
    }
    if let Some(plain) = addresses.amqp_plain {
        env.set(variables::AMQP_PLAIN, plain.to_string(), "AMQP without TLS");
    }
    if let Some(plain) = addresses.mqtt_plain {
        env.set(variables::MQTT_PLAIN, plain.to_string(), "MQTT without TLS");
    }
    Ok(env)
}

/// Stops the heads, then the engine: what was received is acknowledged if it becomes durable in time.
async fn drain(parts: &Parts, stop: &watch::Sender<bool>, heads: &mut JoinSet<()>, timeout: Duration) {
    // Nobody listens any more only if every head has ended, which is as good.
    let _ = stop.send(true);
    let ended = async { while heads.join_next().await.is_some() {} };
    if tokio::time::timeout(timeout, ended).await.is_err() {
        tracing::warn!(
            ?timeout,
            "sessions and requests that did not end in time are cut off"
        );
        heads.abort_all();
    }
    parts.transfer.stop().await;
    parts.hub.drain().await;
}

/// Closes the stores. A log that has failed is told by the exit code: whoever supervises the hub should know.
async fn close(parts: Parts, settings: &Settings) -> anyhow::Result<()> {
    let Parts { log, store, hub, .. } = parts;
    let closed = tokio::task::spawn_blocking(move || {
        let closed = log.close();
        drop((hub, store));
        closed
    });
    let closed = closed.await.context("closing the stores has failed")?;
    tracing::info!("stopped");
    if let Err(error) = closed {
        return Err(Failure::new(Kind::Storage, format!("stopped; {error}"))
            .hint(format!(
                "everything acknowledged is kept: see to the disk of {}, then start the hub again",
                settings.data_dir.path().display()
            ))
            .into());
    }
    Ok(())
}

/// Every connection is a file: takes as many as the system lets us.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, wanted) {
        tracing::warn!(%error, "cannot raise the limit of open files; it bounds the number of connections");
    }
}

/// Tells systemd, if it started us.
pub(super) fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}

/// Everything that HTTPS answers besides devices and WebSockets: the watchers' paths, then the service API.
fn https_router(parts: &Parts, watched: Router, stopped: &watch::Receiver<bool>) -> Router {
    let api = holdfast_api::Api {
        hub: Arc::clone(&parts.hub),
        provisioning: Arc::clone(&parts.provisioning),
        transfer: Arc::clone(&parts.transfer),
        models: Arc::clone(&parts.models),
        configurations: Arc::clone(&parts.management.configurations),
        jobs: Arc::clone(&parts.management.jobs),
        log: Arc::clone(&parts.log) as Arc<_>,
        queries: Arc::new(parts.store.clone()),
        checkpoints: Arc::new(parts.store.clone()),
        routing: parts.routing.api(),
        closing: holdfast_api::Closing::new(stopped.clone()),
    };
    watched.fallback_service(holdfast_api::service(api))
}
