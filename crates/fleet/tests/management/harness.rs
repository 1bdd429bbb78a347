//! A hub on in-memory stores with both engines.

use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_fleet::configurations::{self, Configurations, ConfigurationsConfig};
use holdfast_fleet::jobs::{self, Jobs, JobsConfig};
use holdfast_hub::{Hub, HubConfig, IdentitySpec, IfMatch, ServiceCaller, Stores};
use holdfast_model::Identity;
use holdfast_model::twin::{ChangeMode, Twin, TwinChange};
use holdfast_observe::Registry;
use holdfast_ports::clock::{Clock, SystemClock};
use holdfast_ports::memory::MemoryStore;
use holdfast_ports::memory::event_log::MemoryLog;
use serde_json::{Map, Value};
use tokio::task::JoinHandle;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct World {
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) configurations: Arc<Configurations>,
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) metrics: configurations::events::Metrics,
    running: Vec<JoinHandle<()>>,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(JobsConfig::default()).await
    }

    pub(crate) async fn with(config: JobsConfig) -> Self {
        Self::on(Arc::new(MemoryStore::new()), config).await
    }

    /// A hub that finds what an earlier one has stored.
    pub(crate) async fn on(store: Arc<MemoryStore>, config: JobsConfig) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let stores = Stores {
            registry: store.clone(),
            twins: store.clone(),
            c2d: store.clone(),
            settings: store.clone(),
            sessions: store.clone(),
            checkpoints: store.clone(),
            outbox: store.clone(),
            log: Arc::new(MemoryLog::new(1)),
            clock: Arc::clone(&clock),
        };
        let metrics = holdfast_hub::events::Metrics::register(&mut Registry::new());
        let hub = Hub::new(HubConfig::default(), stores, 1, metrics).await;
        let hub = hub.expect("the memory store works");
        let settings = ConfigurationsConfig {
            retry_after: Duration::from_millis(20),
            metrics_rest: 0,
            ..ConfigurationsConfig::default()
        };
        let drivers = configurations::Drivers {
            store: store.clone(),
            query: store.clone(),
            clock: Arc::clone(&clock),
        };
        let metrics = configurations::events::Metrics::register(&mut Registry::new());
        let configurations = Configurations::new(settings, Arc::clone(&hub), drivers, metrics.clone()).await;
        let drivers = jobs::Drivers {
            store: store.clone(),
            query: store.clone(),
            clock,
        };
        let job_metrics = jobs::events::Metrics::register(&mut Registry::new());
        let config = JobsConfig {
            retry_after: Duration::from_millis(20),
            ..config
        };
        World {
            jobs: Jobs::new(config, Arc::clone(&hub), drivers, job_metrics),
            metrics,
            configurations: configurations.expect("the memory store works"),
            store,
            hub,
            running: Vec::new(),
        }
    }

    pub(crate) fn run(&mut self) {
        self.running
            .push(tokio::spawn(Arc::clone(&self.configurations).run()));
        self.running.push(tokio::spawn(Arc::clone(&self.jobs).run()));
    }

    /// Ends the engines at once, as a crash would, and waits until they are gone.
    pub(crate) async fn kill(&mut self) {
        for task in self.running.drain(..) {
            task.abort();
            let _ = task.await;
        }
    }

    pub(crate) async fn create(&self, name: &str, iot_edge: bool) {
        let spec = IdentitySpec {
            iot_edge,
            ..IdentitySpec::default()
        };
        let created = self
            .hub
            .create_identity(&ServiceCaller::Local, &id(name), &spec)
            .await;
        created.expect("a new identity");
    }

    pub(crate) async fn tag(&self, name: &str, tags: Value) {
        let change = TwinChange {
            tags: Some(object(tags)),
            desired: None,
        };
        let identity = id(name);
        let changed = self.hub.change_twin(
            &ServiceCaller::Local,
            &identity,
            ChangeMode::Patch,
            change,
            IfMatch::Absent,
        );
        changed.await.expect("it is there");
    }

    pub(crate) async fn twin(&self, name: &str) -> Twin {
        self.hub.twin(&id(name)).await.expect("it is there")
    }

    pub(crate) async fn desired(&self, name: &str) -> Value {
        Value::Object(self.twin(name).await.desired.properties)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.running.iter().for_each(JoinHandle::abort);
    }
}

pub(crate) fn id(name: &str) -> Identity {
    Identity::parse(name).expect("an id")
}

pub(crate) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("not an object: {other}"),
    }
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let begin = Instant::now();
    while !condition().await {
        assert!(begin.elapsed() < PATIENCE, "still waiting for: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
