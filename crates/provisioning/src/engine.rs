//! The engine object and its settings.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use holdfast_model::provisioning::ProvisioningPolicy;
use holdfast_model::{Timestamp, limits};
use holdfast_ports::StoreResult;
use holdfast_ports::clock::Clock;
use holdfast_ports::enrollment::{AllocationWebhook, EnrollmentStore, HubConnector};
use holdfast_ports::settings::SettingsStore;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::events::Metrics;
use crate::latency::Latencies;
use crate::register::Pending;
use crate::tpm::challenges::Challenges;

/// Settings of the provisioning service.
#[derive(Clone, Debug)]
pub struct ProvisioningConfig {
    /// Id scope that devices name.
    pub id_scope: String,
    /// Host names of this service and of its own hub; the first one is told to devices.
    pub host_names: Vec<String>,
    /// How long a request waits for a registration to end before it is told to ask again. Default 500 ms.
    pub answer_wait: Duration,
    /// For the whole answer of a webhook. Default 5 s.
    pub webhook_timeout: Duration,
    /// Registrations under way at once; further ones are told to try again. Default 4,096.
    pub pending_max: usize,
    /// How long the token that answers a TPM challenge is good, whatever its own end. Default 10 minutes.
    pub challenge_life: Duration,
    /// Devices with open TPM challenges at once; further ones are told to try again. Default 16,384.
    pub challenged_max: usize,
    /// Tolerated difference of clocks when a token's end is checked. Default 5 minutes.
    pub clock_skew: Duration,
}

impl Default for ProvisioningConfig {
    fn default() -> Self {
        ProvisioningConfig {
            id_scope: String::new(),
            host_names: Vec::new(),
            answer_wait: Duration::from_millis(500),
            webhook_timeout: Duration::from_secs(5),
            pending_max: 4_096,
            challenge_life: Duration::from_secs(600),
            challenged_max: 16_384,
            clock_skew: Duration::from_secs(limits::CLOCK_SKEW_SECONDS),
        }
    }
}

/// The driven ports of the engine.
#[derive(Clone)]
pub struct Drivers {
    /// Enrollments, registrations, linked hubs, policies.
    pub store: Arc<dyn EnrollmentStore>,
    /// Certificate authorities, shared with the own hub.
    pub settings: Arc<dyn SettingsStore>,
    /// Access to hubs.
    pub connector: Arc<dyn HubConnector>,
    /// Custom allocation.
    pub webhook: Arc<dyn AllocationWebhook>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// The provisioning engine. See the crate's documentation for how its parts hang together.
pub struct Provisioning {
    pub(crate) config: ProvisioningConfig,
    pub(crate) drivers: Drivers,
    pub(crate) metrics: Metrics,
    pub(crate) policies: ArcSwap<Vec<ProvisioningPolicy>>,
    /// Registrations under way, by key; bounded by [`ProvisioningConfig::pending_max`].
    pub(crate) pending: Mutex<HashMap<String, Pending>>,
    /// Keys that were sent to TPMs, until their tokens come.
    pub(crate) challenges: Challenges,
    /// What was measured of linked hubs.
    pub(crate) latencies: Mutex<Latencies>,
    /// A hub was linked or changed.
    pub(crate) hub_linked: Arc<Notify>,
    /// Workers outlive the request that started them.
    pub(crate) this: Weak<Provisioning>,
}

impl Provisioning {
    /// Starts an engine: loads its policies from the store, and makes the first one if there is none.
    ///
    /// # Errors
    /// When the store does not work.
    pub async fn new(
        config: ProvisioningConfig,
        drivers: Drivers,
        metrics: Metrics,
    ) -> StoreResult<Arc<Self>> {
        let policies = crate::policies::ensure(&*drivers.store).await?;
        Ok(Arc::new_cyclic(|this| Provisioning {
            challenges: Challenges::new(config.challenge_life, config.challenged_max),
            config,
            drivers,
            metrics,
            policies: ArcSwap::from_pointee(policies),
            pending: Mutex::default(),
            latencies: Mutex::default(),
            hub_linked: Arc::default(),
            this: Weak::clone(this),
        }))
    }

    /// Id scope that devices name.
    #[must_use]
    pub fn scope(&self) -> &str {
        &self.config.id_scope
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.drivers.clock.now()
    }

    /// The version after `present`.
    pub(crate) fn next_version(&self, present: Option<u64>) -> u64 {
        let now = u64::try_from(self.now().as_micros()).unwrap_or(0);
        now.max(present.map_or(0, |version| version + 1))
    }
}

impl std::fmt::Debug for Provisioning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Provisioning")
            .field("id_scope", &self.config.id_scope)
            .finish_non_exhaustive()
    }
}
