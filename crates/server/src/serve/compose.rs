//! Puts a hub together from its parts, and takes it apart again in order.

mod announce;
mod heads;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use holdfast_fleet::models::ModelFolder;
use holdfast_fleet::transfer::{Transfer, TransferJobs};
use holdfast_heads::tls::{ServerCertificate, TicketSecret, TlsSettings};
use holdfast_hub::{Hub, HubConfig, Stores};
use holdfast_observe::{Health, Registry};
use holdfast_ports::clock::{Clock, SystemClock};
use holdfast_program::failure::{Failure, Kind};
use holdfast_program::files::{PRIVATE, write};
use holdfast_program::process::{NotifyState, notify, raise_file_limit};
use holdfast_program::signals::{Asked, Signals};
use holdfast_provisioning::{Drivers, Provisioning, ProvisioningConfig};
use holdfast_store::log::{EmbeddedLog, LogConfig};
use holdfast_store::sqlite::SqliteStore;
use holdfast_store::sqlite::query::QueryLimits;
use tokio::sync::watch;
use tokio::task::JoinSet;
use ureq::tls::RootCerts;

use super::certificates::ServerIdentities;
use super::data_dir::unusable;
use super::files::{self, Uploads};
use super::fleet::{self, Management};
use super::periodic::Periodic;
use super::provisioning::{Connector, HttpWebhook};
use super::routing::Routing;
use super::{Settings, config};
use crate::blobs::Blobs;
use announce::announce;
use heads::{Listeners, serve_heads};

/// How often the latencies of linked hubs are measured.
const LATENCY_INTERVAL: Duration = Duration::from_secs(60);

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
            Asked::Stop => break,
            Asked::Reload => periodic.reload_certificates().await,
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
    write(&path, secret.reveal(), PRIVATE).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(secret)
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
