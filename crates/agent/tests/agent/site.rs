//! An edge device in memory.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holdfast_agent::body::LogBounds;
use holdfast_agent::memory::{MemoryEngine, MemoryHost, MemoryIdentities, MemoryTwin, TokioClock};
use holdfast_agent::metrics::MetricLabels;
use holdfast_agent::{Agent, AgentHandle, Parts, Settings, Surroundings};
use holdfast_model::Timestamp;
use serde_json::{Map, Value, json};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// The engine, the hub and the disk, which outlive a daemon.
pub(crate) struct Site {
    pub(crate) engine: MemoryEngine,
    pub(crate) identities: MemoryIdentities,
    pub(crate) twin: MemoryTwin,
    pub(crate) host: MemoryHost,
    pub(crate) clock: Arc<TokioClock>,
    folder: tempfile::TempDir,
}

/// A daemon's run.
pub(crate) struct Run {
    pub(crate) handle: AgentHandle,
    stop: Arc<Notify>,
    task: JoinHandle<()>,
}

pub(crate) fn surroundings() -> Surroundings {
    Surroundings {
        hub_host: "hub.example".to_owned(),
        device_id: "edge1".to_owned(),
        gateway_host: "gate.local".to_owned(),
        parent_host: None,
        network: "azure-iot-edge".to_owned(),
        gateway_address: std::net::Ipv4Addr::UNSPECIFIED.into(),
        workload_uri: "unix:///var/run/iotedge/workload.sock".to_owned(),
        workload_folder: "/var/lib/edge/mnt".into(),
        log_level: "info".to_owned(),
        upstream_protocol: None,
        allow_elevated: true,
        log_bounds: Some(LogBounds::default()),
    }
}

impl Site {
    /// Connected; `images` can be pulled.
    pub(crate) fn new(images: &[&str]) -> Self {
        let clock = Arc::new(TokioClock::at(
            Timestamp::parse("2026-11-21T12:00:00Z").expect("a time"),
        ));
        let engine = MemoryEngine::new(clock.clone());
        engine.offer(images);
        let site = Site {
            engine,
            identities: MemoryIdentities::new("edge1"),
            twin: MemoryTwin::new(),
            host: MemoryHost::new(),
            clock,
            folder: tempfile::tempdir().expect("a folder"),
        };
        site.twin.connect();
        site
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.folder.path().join("agent")
    }

    pub(crate) fn settings(&self) -> Settings {
        let mut settings = Settings::new(surroundings(), self.folder());
        settings.boot = "boot-1".to_owned();
        settings
    }

    pub(crate) fn start(&self) -> Run {
        self.start_with(self.settings())
    }

    pub(crate) fn start_with(&self, settings: Settings) -> Run {
        let parts = Parts {
            runtime: Arc::new(self.engine.clone()),
            identities: Arc::new(self.identities.clone()),
            twin: Arc::new(self.twin.clone()),
            host: Arc::new(self.host.clone()),
            clock: self.clock.clone(),
        };
        self.twin.attach();
        self.host.attach();
        let labels = MetricLabels {
            iothub: "hub.example".to_owned(),
            edge_device: "edge1".to_owned(),
            instance_number: "1".to_owned(),
            version: "1".to_owned(),
        };
        let (agent, handle) = Agent::new(settings, parts, labels).expect("an agent");
        let stop = Arc::new(Notify::new());
        let shutdown = Arc::clone(&stop);
        let task = tokio::spawn(async move { agent.run(shutdown.notified()).await });
        Run { handle, stop, task }
    }

    /// What was last reported of a module.
    pub(crate) fn module(&self, name: &str) -> Value {
        self.twin.reported()["modules"][name].clone()
    }

    pub(crate) fn code(&self) -> u64 {
        self.twin.reported()["lastDesiredStatus"]["code"]
            .as_u64()
            .unwrap_or(0)
    }

    pub(crate) fn version(&self) -> u64 {
        self.twin.reported()["lastDesiredVersion"].as_u64().unwrap_or(0)
    }

    pub(crate) fn description(&self) -> String {
        self.twin.reported()["lastDesiredStatus"]["description"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// Waits until a deployment is reported as carried out.
    pub(crate) async fn done(&self, version: u64) {
        until(&format!("deployment {version} is done"), || {
            self.code() == 200 && self.version() == version
        })
        .await;
    }
}

impl Run {
    /// Ends the daemon in good order.
    pub(crate) async fn stop(self) {
        self.stop.notify_one();
        self.task.await.expect("the agent ends well");
    }

    /// Ends it as `kill -9` does.
    pub(crate) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// Waits for a condition; an hour of virtual time at most.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(3_600) {
        if condition() {
            return;
        }
        // Fine steps first, so that times that tests measure are exact.
        let step = if begun.elapsed() < Duration::from_secs(5) {
            10
        } else {
            200
        };
        tokio::time::sleep(Duration::from_millis(step)).await;
    }
    panic!("waited for an hour: {what}");
}

/// Lets time pass.
pub(crate) async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

/// A module of an image, running, with changes merged in.
pub(crate) fn module(image: &str, changes: Value) -> Value {
    let mut module = json!({
        "type": "docker", "status": "running", "restartPolicy": "always",
        "settings": {"image": image, "createOptions": "{}"}
    });
    let changes = changes.as_object().cloned().unwrap_or_default();
    holdfast_agent::manifest::merge(module.as_object_mut().expect("an object"), changes);
    module
}

/// A deployment of modules.
pub(crate) fn deployment(modules: &[(&str, Value)]) -> Value {
    let modules: Map<String, Value> = modules
        .iter()
        .map(|(name, module)| ((*name).to_owned(), module.clone()))
        .collect();
    json!({
        "schemaVersion": "1.1",
        "runtime": {"type": "docker", "settings": {"minDockerVersion": "v1.25"}},
        "systemModules": {
            "edgeAgent": {"type": "docker", "settings": {"image": "agent:1"}},
            "edgeHub": {"type": "docker", "status": "running", "restartPolicy": "always",
                        "settings": {"image": "hub:1"}}
        },
        "modules": modules
    })
}

/// Deploys one module `m` of an image.
pub(crate) fn one(image: &str) -> Value {
    deployment(&[("m", module(image, json!({})))])
}
