//! Edge hub: what modules and downstream devices see as their hub.
//!
//! [`Broker`] implements `ports::gateway::DeviceGateway` and `ports::service::ServiceGateway` (tokens only) for the same
//! protocol heads as the hub's, routes messages between modules and upstream, and keeps them on disk until they are
//! delivered. It never sees a topic, a frame or an HTTP status.
//!
//! ```no_run
//! use std::sync::Arc;
//! use holdfast_broker::{Above, Broker, BrokerConfig, SealingKey};
//! use holdfast_ports::clock::SystemClock;
//! use holdfast_store::log::disk::RealDisk;
//! # async fn example(above: Option<Above>, key: [u8; 32], roots: Vec<bytes::Bytes>, file: Vec<u8>) -> Result<(), Box<dyn std::error::Error>> {
//! let mut config = BrokerConfig::new("edge-1", "hub.factory", "/var/lib/aziot/edgehub".into(), SealingKey::new(key));
//! config.gateway_hosts = vec!["edge-1.local".to_owned(), "edgeHub".to_owned()];
//! // Without a hub above: identities from a local file, routes from a manifest.
//! config.local_identities = holdfast_broker::read_identities(&file)?;
//! let broker = Broker::open(config, Arc::new(RealDisk), Arc::new(SystemClock::new()), above)?;
//! broker.set_trust(&roots); // authorities of X.509 leaf devices, DER
//! broker.start(); // inside a tokio runtime
//! # let desired = serde_json::Map::new();
//! let faults = broker.apply_desired(&desired)?; // only without a hub above
//! // heads: Arc<dyn DeviceGateway> and Arc<dyn ServiceGateway> are both `broker.clone()`
//! // HTTP: `broker.invoke_method(…)`, `broker.admit(…)`; port 9600: `broker.metrics_text(…)`
//! broker.stop().await;
//! # Ok(()) }
//! ```
//!
//! # Limits
//!
//! Clients 100 ([`BrokerConfig::clients_max`]); routes [`ROUTES_MAX`]; identities [`SCOPE_IDENTITIES_MAX`]; bytes of queues
//! [`queue::QueueConfig::bytes_max`], of what waits for the disk [`queue::QueueConfig::pending_bytes_max`], of what is read
//! ahead 512 KiB for each upstream queue in use and 64 KiB for each input that is being fetched; direct methods under way
//! 1,000; cloud-to-device messages 50 for each device.

mod auth;
mod edge_hub;
mod files;
mod forward;
mod gateway;
mod ingest;
mod inputs;
mod links;
mod look_up;
mod maintenance;
mod methods;
pub mod metrics;
pub mod queue;
mod relay;
mod routes;
mod scope;
mod sessions;
mod twins;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use holdfast_model::subscription::Channel;
use holdfast_model::{Error, Identity, Timestamp};
use holdfast_ports::clock::Clock;
use holdfast_ports::method_calls::MethodCalls;
use holdfast_ports::session::{CloseReason, Downlink, SessionHandle};
use holdfast_store::log::disk::Disk;
use holdfast_trust::Authorities;
use holdfast_upstream::port::ScopeIdentity;
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;

use files::Files;
use inputs::Inputs;
use links::Links;
use metrics::{Family, Metrics};
use queue::{Listener, Loss, OpenError, QueueConfig, QueueId, QueueKey, QueueStore};
use relay::Relayed;
use routes::RouteTable;
use scope::Scope;
use sessions::{Sessions, unavailable};
use twins::Twins;

pub use edge_hub::ConfigurationOutcome;
pub use files::SealingKey;
pub use forward::UPSTREAM;
pub use links::Above;
pub use routes::{Definition, ROUTES_MAX, RouteDefinition};
pub use scope::SCOPE_IDENTITIES_MAX;
pub use scope::document::decode as read_identities;

/// Settings of an edge hub.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// The edge device.
    pub device_id: String,
    /// Host name of the hub above, as tokens of clients name it.
    pub hub_host: String,
    /// Names under which clients reach this edge hub; also taken in tokens. Default none.
    pub gateway_hosts: Vec<String>,
    /// Everything that is kept; made when missing.
    pub dir: PathBuf,
    /// Seals the scope and the twins.
    pub sealing_key: SealingKey,
    /// Identities that are known without a hub above. Default none.
    pub local_identities: Vec<ScopeIdentity>,
    /// Most clients at once (`MaxConnectedClients`). Default 100.
    pub clients_max: usize,
    /// Queues; their directory is below `dir`.
    pub queues: QueueConfig,
    /// How long a module may hold a message without an answer (`MessageAckTimeoutSecs`). Default 30 s.
    pub input_lock: Duration,
    /// How long reports are gathered before they are sent as one. Default 1 s.
    pub reported_sync_after: Duration,
    /// How often the whole scope is read (`DeviceScopeCacheRefreshRateSecs`). Default 1 hour.
    pub scope_every: Duration,
    /// How often it is read while devices of it are connected, so that one that was removed or disabled above does not stay
    /// connected. A scope of more than 100 identities, or 10 edge devices, is read less often in proportion. `None`: no more
    /// often than otherwise. Default 60 s.
    pub scope_in_use_every: Option<Duration>,
    /// Least time between two look-ups of one identity (`DeviceScopeCacheRefreshDelaySecs`). Default 120 s. A few a minute are
    /// repeated before that, so that who is given rights is let in within seconds.
    pub scope_identity_every: Duration,
    /// How often sessions are looked at again. Default 5 minutes.
    pub recheck_every: Duration,
    /// How often the twin of `$edgeHub` is read again (`ConfigRefreshFrequencySecs`). Default 1 hour.
    pub configuration_every: Duration,
    /// Senders that are forwarded for side by side (`UpstreamFanOutFactor`). Default 10.
    pub fan_out: usize,
    /// Most messages of one batch. Default 256.
    pub batch_messages_max: usize,
    /// Most bytes a second to the hub above; `None` for no bound. Default none.
    pub upstream_bytes_per_second: Option<u64>,
    /// Announced upstream. Default `EdgeHub/<version>`.
    pub product_info: String,
}

impl BrokerConfig {
    /// The defaults.
    #[must_use]
    pub fn new(device_id: &str, hub_host: &str, dir: PathBuf, sealing_key: SealingKey) -> Self {
        BrokerConfig {
            device_id: device_id.to_owned(),
            hub_host: hub_host.to_owned(),
            gateway_hosts: Vec::new(),
            queues: QueueConfig::new(dir.join("queues")),
            dir,
            sealing_key,
            local_identities: Vec::new(),
            clients_max: 100,
            input_lock: Duration::from_secs(30),
            reported_sync_after: Duration::from_secs(1),
            scope_every: Duration::from_secs(3_600),
            scope_in_use_every: Some(Duration::from_secs(60)),
            scope_identity_every: Duration::from_secs(120),
            recheck_every: Duration::from_secs(300),
            configuration_every: Duration::from_secs(3_600),
            fan_out: 10,
            batch_messages_max: 256,
            upstream_bytes_per_second: None,
            product_info: format!("EdgeHub/{}", env!("CARGO_PKG_VERSION")),
        }
    }
}

/// Why an edge hub cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The id of the edge device is none.
    #[error("the id of the edge device cannot be used: {0}")]
    DeviceId(Error),
    /// The directory cannot be used.
    #[error("cannot use {path}: {error}", path = path.display())]
    Dir {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The queues cannot be opened.
    #[error(transparent)]
    Queues(#[from] OpenError),
}

/// The edge hub.
pub struct Broker {
    pub(crate) config: BrokerConfig,
    pub(crate) clock: Arc<dyn Clock>,
    /// `<edge device>/$edgeHub`.
    pub(crate) own: Identity,
    pub(crate) host_names: Arc<[String]>,
    pub(crate) files: Arc<Files>,
    pub(crate) scope: Scope,
    /// Places of questions for identities.
    pub(crate) asking: Semaphore,
    pub(crate) trust: ArcSwap<Authorities>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) queues: Arc<QueueStore>,
    pub(crate) inputs: Inputs,
    pub(crate) routes: ArcSwap<RouteTable>,
    pub(crate) twins: Twins,
    pub(crate) links: Links,
    pub(crate) calls: MethodCalls,
    pub(crate) relayed: Relayed,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) upstream_ready: Arc<Notify>,
    /// Whose conversations with the hub above were opened since the forwarder looked: they pause no longer.
    pub(crate) opened: Mutex<HashSet<Identity>>,
    /// Upstream queues may be new.
    pub(crate) lanes_changed: AtomicBool,
    /// The scope was read from above since the start.
    pub(crate) scope_fresh: AtomicBool,
    /// Clients that came or went and were not reported yet.
    pub(crate) clients_seen: Mutex<BTreeMap<Identity, (bool, Timestamp)>>,
    /// What became of its own desired properties.
    pub(crate) configured: Mutex<Option<edge_hub::ConfigurationOutcome>>,
    pub(crate) epochs: AtomicU64,
    pub(crate) message_numbers: AtomicU64,
    pub(crate) message_id_seed: u128,
    pub(crate) bytes_max: AtomicU64,
    pub(crate) runtime: OnceLock<Handle>,
    pub(crate) me: Weak<Broker>,
    watcher: Arc<StoreWatcher>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    stopping: AtomicBool,
}

/// Who looks after a queue.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Destination {
    Upstream,
    Input(Identity),
}

/// Wakes whom a queue has something for.
struct StoreWatcher {
    destinations: RwLock<HashMap<QueueId, Destination>>,
    sessions: Arc<Sessions>,
    upstream_ready: Arc<Notify>,
    metrics: Arc<Metrics>,
}

impl Listener for StoreWatcher {
    fn readable(&self, queues: &[QueueId]) {
        let destinations = self.destinations.read();
        let mut upstream = false;
        for queue in queues {
            match destinations.get(queue) {
                Some(Destination::Input(module)) => {
                    self.sessions
                        .push(module, Channel::Inputs, Downlink::CloudToDevice);
                }
                Some(Destination::Upstream) => upstream = true,
                None => {}
            }
        }
        if upstream {
            self.upstream_ready.notify_one();
        }
    }

    fn lost(&self, key: &QueueKey, count: u64, why: Loss) {
        let reason = match why {
            Loss::Full => "storage_full",
            Loss::Damage => "storage_damaged",
        };
        self.metrics
            .count(Family::MessagesDropped, &[reason, &key.name, ""], count);
    }

    fn set_aside(&self) {
        self.metrics.count(Family::SegmentsSetAside, &[], 1);
    }

    fn stalled(&self, error: Option<&str>) {
        self.metrics
            .set(Family::DiskStalled, &[], f64::from(u8::from(error.is_some())));
        match error {
            Some(error) => holdfast_observe::tracing::error!(
                error,
                "the edge hub cannot store messages and takes none until the disk does again; free space on it"
            ),
            None => holdfast_observe::tracing::info!("the edge hub stores messages again"),
        }
    }
}

impl Broker {
    /// Opens what is kept in the directory; nothing runs before [`Broker::start`]. Clients that were seen before can log in at
    /// once, with no network.
    ///
    /// # Errors
    /// [`BrokerError`].
    pub fn open(
        config: BrokerConfig,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        above: Option<Above>,
    ) -> Result<Arc<Self>, BrokerError> {
        let own = Identity::module(&config.device_id, "$edgeHub").map_err(BrokerError::DeviceId)?;
        let files = |dir: PathBuf| {
            Files::open(Arc::clone(&disk), dir.clone(), &config.sealing_key)
                .map(Arc::new)
                .map_err(|error| BrokerError::Dir { path: dir, error })
        };
        let state = files(config.dir.clone())?;
        let twin_dir = config.dir.join("twins");
        let twins = Twins::open(files(twin_dir.clone())?).map_err(|error| BrokerError::Dir {
            path: twin_dir,
            error,
        })?;
        let sessions = Arc::new(Sessions::open(Arc::clone(&state)));
        let metrics = Arc::new(Metrics::default());
        let upstream_ready = Arc::new(Notify::new());
        let watcher = Arc::new(StoreWatcher {
            destinations: RwLock::default(),
            sessions: Arc::clone(&sessions),
            upstream_ready: Arc::clone(&upstream_ready),
            metrics: Arc::clone(&metrics),
        });
        let queues = Arc::new(QueueStore::open(
            config.queues.clone(),
            disk,
            Arc::clone(&clock),
            Arc::clone(&watcher) as Arc<dyn Listener>,
        )?);
        let registry = above.as_ref().map(|above| Arc::clone(&above.registry));
        let scope = Scope::open(
            &config.device_id,
            config.local_identities.clone(),
            registry,
            Arc::clone(&state),
        );
        let mut host_names = vec![config.hub_host.clone()];
        host_names.extend(config.gateway_hosts.iter().cloned());
        let mut seed = [0; 16];
        // Ids of messages need to be unlike, not unguessable.
        let _ = getrandom::fill(&mut seed);
        let broker = Arc::new_cyclic(|me| Broker {
            inputs: Inputs::new(
                &config.device_id,
                Arc::clone(&queues),
                Arc::clone(&clock),
                Arc::clone(&metrics),
                config.input_lock,
            ),
            bytes_max: AtomicU64::new(config.queues.bytes_max),
            own,
            host_names: host_names.into(),
            files: state,
            scope,
            asking: Semaphore::new(look_up::ASKING_MAX),
            trust: ArcSwap::default(),
            sessions,
            queues,
            routes: ArcSwap::default(),
            twins,
            links: Links::new(above),
            calls: MethodCalls::default(),
            relayed: Relayed::default(),
            metrics,
            upstream_ready,
            opened: Mutex::default(),
            lanes_changed: AtomicBool::new(true),
            scope_fresh: AtomicBool::new(false),
            clients_seen: Mutex::default(),
            configured: Mutex::default(),
            epochs: AtomicU64::new(1),
            message_numbers: AtomicU64::new(0),
            message_id_seed: u128::from_le_bytes(seed),
            runtime: OnceLock::new(),
            me: me.clone(),
            watcher,
            tasks: Mutex::default(),
            stopping: AtomicBool::new(false),
            config,
            clock,
        });
        for (id, key, _) in broker.queues.queues() {
            broker.destine(id, &key);
        }
        broker.restore_configuration();
        Ok(broker)
    }

    /// Says who looks after a queue, by its name.
    pub(crate) fn destine(&self, id: QueueId, key: &QueueKey) {
        let input = key
            .name
            .strip_prefix("input/")
            .and_then(|name| name.split_once('/'));
        let destination = match input {
            Some((module, input)) => {
                let Ok(identity) = Identity::module(&self.config.device_id, module) else {
                    return;
                };
                self.inputs.add(module, input, key.priority, id);
                Destination::Input(identity)
            }
            None => Destination::Upstream,
        };
        self.watcher.destinations.write().insert(id, destination);
    }

    /// Begins to work, on the runtime in which it is called. Once.
    pub fn start(self: &Arc<Self>) {
        if self.runtime.set(Handle::current()).is_err() {
            return;
        }
        let tasks = [
            tokio::spawn(maintenance::run(Arc::clone(self))),
            tokio::spawn(maintenance::follow_above(Arc::clone(self))),
            tokio::spawn(forward::run(Arc::clone(self))),
            tokio::spawn(twins::run_sync(Arc::clone(self))),
        ];
        *self.tasks.lock() = tasks.into();
        self.interests_changed(&self.own);
        self.twins.sync.notify_one();
    }

    /// Ends all sessions, writes what is pending, and stops working. What is accepted stays for the next start; when this
    /// returns, nothing writes to the directory any more and another edge hub may open it.
    pub async fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        for session in self.sessions.all() {
            self.ended(&session, CloseReason::ShuttingDown);
        }
        let tasks = std::mem::take(&mut *self.tasks.lock());
        tasks.iter().for_each(JoinHandle::abort);
        for task in tasks {
            // One that is in the middle of something would begin a conversation again.
            let _ = task.await;
        }
        self.links.drop_all();
        let queues = Arc::clone(&self.queues);
        let files = [Arc::clone(&self.files), self.twins.files()];
        let _ = tokio::task::spawn_blocking(move || {
            queues.close();
            files.iter().for_each(|files| files.close());
        })
        .await;
    }

    pub(crate) fn check_serving(&self) -> Result<(), Error> {
        if self.stopping.load(Ordering::SeqCst) {
            return Err(unavailable("the edge hub is stopping"));
        }
        Ok(())
    }

    /// Authorities that issue certificates of leaf devices, in DER; sessions that rest on others end.
    pub fn set_trust(&self, authorities: &[Bytes]) {
        self.trust
            .store(Arc::new(Authorities::new(authorities.iter().map(|der| &der[..]))));
        self.recheck_sessions();
    }

    /// A session is open, after an older one of the same client has ended.
    pub(crate) fn connected(&self, session: &SessionHandle) {
        self.metrics
            .set(Family::ConnectedClients, &[], self.sessions.count() as f64);
        self.note_client(session.identity(), true);
    }

    /// A client has no session any more.
    pub(crate) fn disconnected(&self, identity: &Identity) {
        self.metrics
            .set(Family::ConnectedClients, &[], self.sessions.count() as f64);
        self.note_client(identity, false);
        self.interests_changed(identity);
    }

    /// There may be something to forward.
    pub(crate) fn forward_now(&self) {
        self.upstream_ready.notify_one();
    }

    /// All metrics of edge.md 19 as Prometheus text; `common` labels stand on every series (`iothub`, `edge_device`,
    /// `instance_number`).
    #[must_use]
    pub fn metrics_text(&self, common: &[(&str, &str)]) -> String {
        let gauges = [Family::QueueLength, Family::QueueAge, Family::QueueBytes];
        gauges.iter().for_each(|family| self.metrics.clear(*family));
        for (_, key, info) in self.queues.queues() {
            let priority = key.priority.to_string();
            let name = match key.name.as_str() {
                UPSTREAM => "iothub",
                other => other.strip_prefix("input/").unwrap_or(other),
            };
            let labels = [name, priority.as_str()];
            self.metrics
                .set(Family::QueueLength, &labels, info.length() as f64);
            self.metrics.set(Family::QueueBytes, &labels, info.bytes as f64);
            let age = info.oldest.unwrap_or_default().as_secs_f64();
            self.metrics.set(Family::QueueAge, &labels, age);
        }
        self.metrics
            .set(Family::DiskBytes, &[], self.queues.bytes() as f64);
        let most = self.bytes_max.load(Ordering::Relaxed);
        self.metrics.set(Family::DiskBytesMax, &[], most as f64);
        self.metrics.render(common)
    }

    /// The edge hub's metrics, to be read by tests and by the agent.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Length of each queue, by name and priority.
    #[must_use]
    pub fn queue_lengths(&self) -> Vec<(QueueKey, u64)> {
        let queues = self.queues.queues().into_iter();
        queues.map(|(_, key, info)| (key, info.length())).collect()
    }

    /// Bytes that the queues take on the disk.
    #[must_use]
    pub fn queue_bytes(&self) -> u64 {
        self.queues.bytes()
    }

    /// The `auth-chain` by which this edge hub speaks for a client: the ids from it up to this edge device, joined by `;`.
    /// `None` when the scope does not have it.
    #[must_use]
    pub fn auth_chain(&self, identity: &Identity) -> Option<String> {
        self.scope.get(identity)?;
        self.scope.chain(identity).map(|chain| chain.join(";"))
    }

    /// Clients that are connected, by id.
    #[must_use]
    pub fn clients(&self) -> Vec<Identity> {
        let sessions = self.sessions.all().into_iter();
        sessions.map(|session| session.identity().clone()).collect()
    }
}
