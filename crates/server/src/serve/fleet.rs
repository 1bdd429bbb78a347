//! Fleet management of a running hub: configurations and jobs.

use std::sync::Arc;

use anyhow::Context as _;
use holdfast_fleet::configurations::{self, Configurations, ConfigurationsConfig};
use holdfast_fleet::jobs::{self, Jobs, JobsConfig};
use holdfast_hub::Hub;
use holdfast_observe::Registry;
use holdfast_ports::clock::Clock;
use holdfast_store::sqlite::SqliteStore;
use tokio::task::JoinSet;

use super::config;

/// The engines that look after many devices at once.
#[derive(Clone)]
pub(super) struct Management {
    pub(super) configurations: Arc<Configurations>,
    pub(super) jobs: Arc<Jobs>,
}

/// Metrics of both.
pub(super) struct Metrics {
    configurations: configurations::events::Metrics,
    jobs: jobs::events::Metrics,
}

impl Metrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        Metrics {
            configurations: configurations::events::Metrics::register(registry),
            jobs: jobs::events::Metrics::register(registry),
        }
    }
}

fn jobs_config(config: &config::JobsConfig) -> JobsConfig {
    JobsConfig {
        concurrent: config.running_max,
        history: config.history.0,
        ..JobsConfig::default()
    }
}

impl Management {
    pub(super) async fn new(
        hub: &Arc<Hub>,
        store: &SqliteStore,
        clock: &Arc<dyn Clock>,
        config: &config::JobsConfig,
        metrics: Metrics,
    ) -> anyhow::Result<Self> {
        let store = Arc::new(store.clone());
        let drivers = configurations::Drivers {
            store: store.clone(),
            query: store.clone(),
            clock: Arc::clone(clock),
        };
        let configurations = Configurations::new(
            ConfigurationsConfig::default(),
            Arc::clone(hub),
            drivers,
            metrics.configurations,
        );
        let drivers = jobs::Drivers {
            store: store.clone(),
            query: store,
            clock: Arc::clone(clock),
        };
        Ok(Management {
            configurations: configurations
                .await
                .context("cannot read the configurations of devices")?,
            jobs: Jobs::new(jobs_config(config), Arc::clone(hub), drivers, metrics.jobs),
        })
    }

    /// Starts both; they end with the set. What they leave undone is done after the next start.
    pub(super) fn start(&self) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&self.configurations).run());
        tasks.spawn(Arc::clone(&self.jobs).run());
        tasks
    }
}
