//! The engine object: what it holds, its start, its clockwork and its end.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use holdfast_model::{Error, ErrorCode, Identity, Timestamp};
use holdfast_observe::Event as _;
use holdfast_ports::StoreResult;
use holdfast_ports::clock::Clock;
use holdfast_ports::event_log::{EventLog, LogError};
use holdfast_ports::method_calls::MethodCalls;
use holdfast_ports::outbox::OutboxStore;
use holdfast_ports::queue::{C2dLimits, C2dQueue};
use holdfast_ports::registry::{ConnectionUpdate, RegistryStore};
use holdfast_ports::session::CloseReason;
use holdfast_ports::settings::{CheckpointStore, SessionStore, SettingsStore};
use holdfast_ports::twin::TwinStore;
use parking_lot::Mutex;

use crate::auth::AuthoritySet;
use crate::changes::Changes;
use crate::config::HubConfig;
use crate::directory::Directory;
use crate::events::{LineBudget, LogFailed, Metrics};
use crate::policies::PolicySet;
use crate::routing::Routing;
use crate::sources::Outgoing;
use crate::twins::order::DesiredOrder;

/// The driven ports of a hub.
#[derive(Clone)]
pub struct Stores {
    /// Devices and modules.
    pub registry: Arc<dyn RegistryStore>,
    /// Twins.
    pub twins: Arc<dyn TwinStore>,
    /// Cloud-to-device queues and feedback.
    pub c2d: Arc<dyn C2dQueue>,
    /// Policies and certificate authorities.
    pub settings: Arc<dyn SettingsStore>,
    /// Sessions that outlive their connection.
    pub sessions: Arc<dyn SessionStore>,
    /// Consumer groups and reading positions.
    pub checkpoints: Arc<dyn CheckpointStore>,
    /// The hub's own events on their way to the log; the same store as `registry` and `twins`.
    pub outbox: Arc<dyn OutboxStore>,
    /// Events.
    pub log: Arc<dyn EventLog>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// The hub engine. See the crate's documentation for how its parts hang together.
///
/// Made once by the composition root, shared by `Arc`. The root calls [`Hub::tick`] about once a second and
/// [`Hub::drain`] before it stops, and runs [`Hub::relay_events`] meanwhile.
pub struct Hub {
    pub(crate) config: HubConfig,
    pub(crate) host_names: Arc<[String]>,
    pub(crate) stores: Stores,
    pub(crate) metrics: Metrics,
    pub(crate) sessions: Arc<Directory>,
    pub(crate) calls: MethodCalls,
    pub(crate) desired_order: Arc<DesiredOrder>,
    pub(crate) changes: Changes,
    pub(crate) routing: Routing,
    pub(crate) outgoing: Outgoing,
    pub(crate) policies: ArcSwap<PolicySet>,
    pub(crate) authorities: ArcSwap<AuthoritySet>,
    /// Serialises changes of policies and authorities, so that the caches follow the store. The one lock here that is
    /// held across an await: changes of settings are rare and nothing else waits for them.
    pub(crate) settings_changes: tokio::sync::Mutex<()>,
    pub(crate) refusal_lines: LineBudget,
    /// Connection states not saved yet; one entry per identity at most.
    pub(crate) connections: Mutex<HashMap<Identity, ConnectionUpdate, foldhash::fast::RandomState>>,
    /// Raised after every change that takes away a right; a login that began before is checked again.
    pub(crate) revocations: AtomicU64,
    /// Raised after every change of a policy or an authority; as above.
    pub(crate) trust_changes: AtomicU64,
    epochs: AtomicU64,
    /// Above every epoch of earlier processes, and below every one of this.
    pub(crate) epoch_base: u64,
    last_generation: AtomicU64,
    /// Monotonic millisecond at which queues are next searched for expired messages.
    next_c2d_expiry: AtomicU64,
    draining: AtomicBool,
    log_failed: AtomicBool,
}

impl Hub {
    /// Starts an engine: loads policies, certificate authorities and routes from the store.
    ///
    /// Session epochs count up from `epoch_base`, which must be higher than every epoch that an earlier process used
    /// on the same stores (for example the start time in microseconds, or a stored counter times 2³²).
    ///
    /// # Errors
    /// When the settings cannot be read.
    pub async fn new(
        config: HubConfig,
        stores: Stores,
        epoch_base: u64,
        metrics: Metrics,
    ) -> StoreResult<Arc<Self>> {
        let policies = PolicySet::new(stores.settings.policies().await?);
        let authorities = AuthoritySet::new(&stores.settings.authorities().await?);
        let routing = Routing::load(stores.settings.as_ref()).await?;
        let sessions = Arc::new(Directory::new());
        Ok(Arc::new(Hub {
            host_names: config.host_names.iter().cloned().collect(),
            refusal_lines: LineBudget::new(config.refusal_lines_per_second),
            desired_order: Arc::new(DesiredOrder::new(Arc::clone(&sessions), metrics.clone())),
            sessions,
            calls: MethodCalls::default(),
            changes: Changes::default(),
            routing,
            outgoing: Outgoing::new(config.host_names.first().map_or("localhost", String::as_str)),
            policies: ArcSwap::from_pointee(policies),
            authorities: ArcSwap::from_pointee(authorities),
            settings_changes: tokio::sync::Mutex::new(()),
            connections: Mutex::default(),
            revocations: AtomicU64::new(0),
            trust_changes: AtomicU64::new(0),
            epochs: AtomicU64::new(epoch_base),
            epoch_base,
            last_generation: AtomicU64::new(0),
            next_c2d_expiry: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            log_failed: AtomicBool::new(false),
            config,
            stores,
            metrics,
        }))
    }

    /// The settings it was made with.
    #[must_use]
    pub fn config(&self) -> &HubConfig {
        &self.config
    }

    /// Does what time asks for: closes sessions whose token is over, saves connection states, dead-letters expired
    /// cloud-to-device messages. To be called about once a second; cheap when nothing is due. Failures are logged and
    /// made good by a later call.
    pub async fn tick(&self) {
        if self.log_failed.load(Ordering::Acquire) {
            self.close_all(CloseReason::StorageFailed);
        }
        let deadline = self.now().minus(self.config.token_grace);
        for session in self.sessions.expired(deadline, self.config.expiry_scan_max) {
            self.end_session(&session, CloseReason::TokenExpired);
        }
        self.save_connections().await;
        let now = self.stores.clock.monotonic_millis();
        if now >= self.next_c2d_expiry.load(Ordering::Relaxed) {
            let interval = u64::try_from(self.config.c2d_expiry_interval.as_millis()).unwrap_or(u64::MAX);
            self.next_c2d_expiry
                .store(now.saturating_add(interval), Ordering::Relaxed);
            self.expire_c2d().await;
        }
    }

    /// Takes no more connections, closes all sessions, saves their connection states and tells of them.
    pub async fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
        self.close_all(CloseReason::ShuttingDown);
        self.save_connections().await;
        self.drain_events().await;
    }

    /// Live sessions of devices; modules not counted (rest.md 5.3, `connectedDeviceCount`).
    #[must_use]
    pub fn connected_devices(&self) -> usize {
        self.sessions.counts().0
    }

    /// Live sessions of devices and modules.
    #[must_use]
    pub fn connected_sessions(&self) -> usize {
        let (devices, modules) = self.sessions.counts();
        devices + modules
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.stores.clock.now()
    }

    pub(crate) fn next_epoch(&self) -> u64 {
        self.epochs.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A generation id: the time in ticks of 100 ns since 0001-01-01, 18 digits as IoT Hub's; never the same twice in
    /// one process.
    pub(crate) fn next_generation(&self) -> u64 {
        const TICKS_TO_1970: i64 = 621_355_968_000_000_000;
        let ticks = self
            .now()
            .as_micros()
            .saturating_mul(10)
            .saturating_add(TICKS_TO_1970);
        let ticks = u64::try_from(ticks).unwrap_or(0);
        let last = self
            .last_generation
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |last| {
                Some(ticks.max(last + 1))
            })
            .unwrap_or(0);
        ticks.max(last + 1)
    }

    pub(crate) fn c2d_limits(&self) -> C2dLimits {
        C2dLimits {
            depth_max: self.config.c2d_depth_max,
            delivery_count_max: self.config.c2d_delivery_count_max,
        }
    }

    /// # Errors
    /// `ServiceUnavailable` while the hub is stopping or cannot store events.
    pub(crate) fn check_serving(&self) -> Result<(), Error> {
        let why = if self.draining.load(Ordering::SeqCst) {
            "the hub is stopping; try again later"
        } else if self.log_failed.load(Ordering::Acquire) {
            "the hub cannot store events"
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorCode::ServiceUnavailable, why))
    }

    /// Notes that the log has failed; the sessions are closed by the next tick, not on the sender's path.
    pub(crate) fn note_log_failure(&self, error: &LogError) {
        if !self.log_failed.swap(true, Ordering::AcqRel) {
            LogFailed {
                reason: &error.to_string(),
            }
            .emit(&self.metrics);
        }
    }
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub")
            .field("host_names", &self.host_names)
            .field("sessions", &self.connected_sessions())
            .finish_non_exhaustive()
    }
}
