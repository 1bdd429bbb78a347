//! Configurations and deployments: which devices they target, what they write there, and how far they have got
//! (rest.md section 12, languages.md 1.7, edge.md 2.7).
//!
//! # How a twin comes to its configuration
//! ```text
//! put, delete ─▶ store ─▶ Active (conditions parsed, a new generation) ─▶ rescan: all that the conditions target, then
//!                                                                                all that show any configuration
//! hub: record or twin changed ───────────────────────────────────────────▶ that device or module
//! every five minutes, and at start ──────────────────────────────────────▶ rescan
//!
//! evaluate ─ record and twin ─ conditions ─ plan ─ Hub::manage_twin (one transaction, pushed to the live session)
//! ```
//!
//! # Invariants
//! * What has been done to a twin is stored with the twin, in the same transaction. Nothing else has to survive: after a
//!   crash the rescan at start finds whatever is missing.
//! * Evaluations of one device follow each other. A plan made of an older set of configurations is not carried out: the
//!   generation is compared inside the transaction.
//! * What management itself writes does not start another evaluation, so a condition on its own effect cannot run in
//!   circles faster than the rescans.
//! * Of the changes that come in faster than they are evaluated at most
//!   [`CHANGED_IDENTITIES_MAX`](holdfast_hub::CHANGED_IDENTITIES_MAX) wait; beyond that a rescan makes up for them.

mod active;
mod apply;
mod evaluate;
pub mod events;
mod metrics;
mod plan;
mod run;
mod spec;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast_hub::{Hub, IfMatch};
use holdfast_model::configuration::{Configuration, Content, check_configuration_id};
use holdfast_model::limits::{CONFIGURATIONS_MAX, DEPLOYMENTS_MAX};
use holdfast_model::{Error, ErrorCode, Identity};
use holdfast_observe::Event as _;
use holdfast_ports::clock::Clock;
use holdfast_ports::configuration::ConfigurationStore;
use holdfast_ports::enrollment::Expected;
use holdfast_ports::query::QueryStore;
use holdfast_ports::{StoreError, StoreResult};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use active::Active;
use events::{Changed, Metrics, Unavailable, Unusual};
pub use metrics::{ConfigurationView, Metric, MetricValue};
pub use spec::{ConfigurationSpec, ConfigurationTest, ConfigurationTestResult};

/// Settings of automatic device management.
#[derive(Clone, Debug)]
pub struct ConfigurationsConfig {
    /// How often everybody is looked at although nobody has changed. Default: 5 minutes.
    pub rescan_interval: Duration,
    /// How long to wait after a store has failed. Default: 5 seconds.
    pub retry_after: Duration,
    /// Least time from one look at who has changed to the next: a device that changes all the time is evaluated so
    /// often and not more. Default: 50 milliseconds.
    pub changes_interval: Duration,
    /// Devices evaluated at once. Default: 256.
    pub evaluations_at_once: usize,
    /// How long the results of a configuration's metrics are shown again, in terms of the time that they took: asking
    /// all the time costs one part in so many of a core. Default: 20.
    pub metrics_rest: u32,
}

impl Default for ConfigurationsConfig {
    fn default() -> Self {
        ConfigurationsConfig {
            rescan_interval: Duration::from_secs(300),
            retry_after: Duration::from_secs(5),
            changes_interval: Duration::from_millis(50),
            evaluations_at_once: 256,
            metrics_rest: 20,
        }
    }
}

/// The driven ports of automatic device management.
#[derive(Clone)]
pub struct Drivers {
    /// Configurations.
    pub store: Arc<dyn ConfigurationStore>,
    /// Finds what conditions target and answers metrics.
    pub query: Arc<dyn QueryStore>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// Automatic device management. The composition root runs [`Configurations::run`] as long as the hub lives.
pub struct Configurations {
    config: ConfigurationsConfig,
    hub: Arc<Hub>,
    drivers: Drivers,
    metrics: Metrics,
    active: RwLock<Arc<Active>>,
    /// Raised with every change of the configurations; part of [`Active`] too.
    generation: Arc<AtomicU64>,
    /// Serialises changes of configurations, so that `active` follows the store.
    changes: tokio::sync::Mutex<()>,
    rescan_wanted: Notify,
    /// Devices under evaluation, each with the identities of it that have to be looked at again.
    busy: Mutex<HashMap<Identity, BTreeSet<Identity>>>,
    /// Devices that content is being applied to by request.
    applying: Mutex<HashSet<Identity>>,
    shown: Mutex<HashMap<String, metrics::Shown>>,
}

impl Configurations {
    /// Reads the configurations.
    ///
    /// # Errors
    /// When the store does not work.
    pub async fn new(
        config: ConfigurationsConfig,
        hub: Arc<Hub>,
        drivers: Drivers,
        metrics: Metrics,
    ) -> StoreResult<Arc<Self>> {
        let all = drivers.store.configurations().await?;
        let active = Active::new(0, all);
        hub.listen_to_changes(active.concerned());
        Ok(Arc::new(Configurations {
            config,
            hub,
            drivers,
            metrics,
            active: RwLock::new(Arc::new(active)),
            generation: Arc::default(),
            changes: tokio::sync::Mutex::new(()),
            rescan_wanted: Notify::new(),
            busy: Mutex::default(),
            applying: Mutex::default(),
            shown: Mutex::default(),
        }))
    }

    fn active(&self) -> Arc<Active> {
        Arc::clone(&self.active.read())
    }

    /// All configurations and deployments in the order of their ids, with the results of their metrics; at most `top`.
    ///
    /// # Errors
    /// `ServiceUnavailable`.
    pub async fn list(&self, top: usize) -> Result<Vec<ConfigurationView>, Error> {
        let all = self.active().configurations();
        let mut views = Vec::new();
        for configuration in all.into_iter().take(top) {
            views.push(self.view(configuration).await?);
        }
        Ok(views)
    }

    /// A configuration with the results of its metrics.
    ///
    /// # Errors
    /// `ConfigurationNotFound`; `ServiceUnavailable`.
    pub async fn get(&self, id: &str) -> Result<ConfigurationView, Error> {
        let found = self.active().find(id).ok_or_else(|| not_found(id))?;
        self.view(found).await
    }

    /// Creates (without `if_match`) or updates a configuration. Of an existing one the content stays.
    ///
    /// # Errors
    /// `ConfigurationAlreadyExists`, `ConfigurationNotFound`, `PreconditionFailed`; `ArgumentInvalid`;
    /// `InvalidConfigurationContent`, `InvalidConfigurationTargetCondition`, `InvalidConfigurationCustomMetricsQuery`
    /// with the place of the fault; `CannotModifyImmutableConfigurationContent`; `ConfigurationCountLimitExceeded`;
    /// `ServiceUnavailable`.
    pub async fn put(
        &self,
        id: &str,
        spec: ConfigurationSpec,
        if_match: IfMatch,
    ) -> Result<ConfigurationView, Error> {
        check_configuration_id(id)?;
        let _one_at_a_time = self.changes.lock().await;
        let present = self.active().find(id);
        let (configuration, expected) = match (present, if_match) {
            (Some(_), IfMatch::Absent) => return Err(exists(id)),
            (None, IfMatch::Absent) => {
                let made = spec.create(id, self.drivers.clock.now())?;
                self.check_count(&made.content)?;
                (made, Expected::Absent)
            }
            (None, _) => return Err(not_found(id)),
            (Some(present), if_match) => {
                check_version(if_match, present.version)?;
                let expected = Expected::Version(present.version);
                (spec.update(&present, self.drivers.clock.now())?, expected)
            }
        };
        self.warn_of_unusual(&configuration);
        let stored = self
            .drivers
            .store
            .put_configuration(configuration.clone(), expected);
        stored
            .await
            .map_err(|error| self.store_error("save configuration", id, error))?;
        self.reload().await?;
        self.view(Arc::new(configuration)).await
    }

    /// Deletes a configuration. Twins that show it take on the next best one, or lose what it wrote.
    ///
    /// # Errors
    /// `ConfigurationNotFound`, `PreconditionFailed`, `ServiceUnavailable`.
    pub async fn delete(&self, id: &str, if_match: IfMatch) -> Result<(), Error> {
        let _one_at_a_time = self.changes.lock().await;
        let present = self.active().find(id).ok_or_else(|| not_found(id))?;
        check_version(if_match, present.version)?;
        let deleted = self
            .drivers
            .store
            .delete_configuration(id, Expected::Version(present.version));
        deleted
            .await
            .map_err(|error| self.store_error("delete configuration", id, error))?;
        self.shown.lock().remove(id);
        self.reload().await
    }

    /// Takes the stored configurations into use and looks at everybody.
    async fn reload(&self) -> Result<(), Error> {
        let all = self.drivers.store.configurations().await;
        let all = all.map_err(|error| self.store_error("read configurations", "", error))?;
        Changed { count: all.len() }.emit(&self.metrics);
        // First the set, then the number: who sees the new number plans with the new set.
        let generation = self.generation.load(Ordering::Acquire) + 1;
        let active = Active::new(generation, all);
        self.hub.listen_to_changes(active.concerned());
        *self.active.write() = Arc::new(active);
        self.generation.store(generation, Ordering::Release);
        self.shown.lock().clear();
        self.rescan_wanted.notify_one();
        Ok(())
    }

    fn check_count(&self, content: &Content) -> Result<(), Error> {
        let is_deployment = |content: &Content| matches!(content, Content::Edge(_));
        let (what, most) = match is_deployment(content) {
            true => ("deployments", DEPLOYMENTS_MAX),
            false => ("configurations", CONFIGURATIONS_MAX),
        };
        let all = self.active().configurations();
        let same = |one: &&Arc<Configuration>| is_deployment(&one.content) == is_deployment(content);
        if all.iter().filter(same).count() < most {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::ConfigurationCountLimitExceeded,
            format!("the hub has {most} {what}, as many as it may; delete one first"),
        ))
    }

    /// Says so when a condition looks at something that is not documented for target conditions: it works here, and is
    /// judged anew only when something else changes too.
    fn warn_of_unusual(&self, configuration: &Configuration) {
        let condition = holdfast_query::twin::parse_condition(&configuration.target_condition);
        let paths = condition.map_or_else(|_| Vec::new(), |condition| condition.undocumented_paths());
        if let Some(path) = paths.first() {
            Unusual {
                id: &configuration.id,
                path: &path.to_string(),
            }
            .emit(&self.metrics);
        }
    }

    fn store_error(&self, operation: &'static str, id: &str, error: StoreError) -> Error {
        let reason = match error {
            StoreError::Refused(error) => return error,
            StoreError::Exists => return exists(id),
            StoreError::Missing => return not_found(id),
            StoreError::Conflict => return precondition_failed(),
            StoreError::Unavailable(reason) => reason,
            StoreError::Full => "a bound of the store is reached".to_owned(),
        };
        Unavailable {
            operation,
            reason: &reason,
        }
        .emit(&self.metrics);
        Error::new(
            ErrorCode::ServiceUnavailable,
            "the hub cannot reach its storage; try again later",
        )
    }
}

fn check_version(if_match: IfMatch, version: u64) -> Result<(), Error> {
    match if_match {
        IfMatch::Absent | IfMatch::Any => Ok(()),
        IfMatch::Version(wanted) if wanted == version => Ok(()),
        IfMatch::Version(_) | IfMatch::Never => Err(precondition_failed()),
    }
}

fn precondition_failed() -> Error {
    Error::new(
        ErrorCode::PreconditionFailed,
        "the entity tag does not match: the configuration has changed meanwhile; read it again and repeat the change",
    )
}

fn not_found(id: &str) -> Error {
    Error::new(
        ErrorCode::ConfigurationNotFound,
        format!("there is no configuration {id:?}"),
    )
}

fn exists(id: &str) -> Error {
    Error::new(
        ErrorCode::ConfigurationAlreadyExists,
        format!("the configuration {id:?} exists already"),
    )
}

impl std::fmt::Debug for Configurations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Configurations")
            .field("count", &self.active().configurations().len())
            .finish_non_exhaustive()
    }
}
