//! All dispatchers of a hub: one per endpoint, following the definition.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::routing::{EndpointDefinition, Enrichment, RoutingDefinition};
use holdfast_observe::tracing;
use holdfast_ports::clock::Clock;
use holdfast_ports::dead_letters::DeadLetterStore;
use holdfast_ports::endpoint::Endpoint;
use holdfast_ports::event_log::EventLog;
use holdfast_ports::settings::CheckpointStore;
use holdfast_ports::twin::TwinStore;
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::dispatcher::{DeliveryPolicy, Dispatcher, DispatcherParts, reader_name};
use crate::enrich::Enricher;
use crate::health::Health;

/// How long a dispatcher may take to end: it saves its checkpoint.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before a dispatcher that could not start is tried again.
const RESTART_PAUSE: Duration = Duration::from_secs(5);

/// Makes endpoints from their settings.
pub trait EndpointFactory: Send + Sync + 'static {
    /// Checks the settings of a kind, and fills in what is not given.
    ///
    /// # Errors
    /// Which setting is wrong, and what it should be.
    fn check(&self, kind: &str, settings: &serde_json::Value) -> Result<serde_json::Value, String>;

    /// Makes an endpoint. It connects when it is first used.
    ///
    /// # Errors
    /// As [`EndpointFactory::check`].
    fn make(&self, definition: &EndpointDefinition) -> Result<Arc<dyn Endpoint>, String>;
}

/// What all dispatchers work with.
#[derive(Clone)]
pub struct DispatchersParts {
    /// Makes endpoints.
    pub factory: Arc<dyn EndpointFactory>,
    /// Where events come from.
    pub log: Arc<dyn EventLog>,
    /// Where checkpoints are kept.
    pub checkpoints: Arc<dyn CheckpointStore>,
    /// Where events go that are not taken.
    pub dead_letters: Arc<dyn DeadLetterStore>,
    /// Twins for enrichments.
    pub twins: Arc<dyn TwinStore>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// What `$iothubname` stands for.
    pub hub_name: String,
    /// Retries and time-outs.
    pub policy: DeliveryPolicy,
}

/// How every endpoint is doing. Cheap to clone; clones see the same.
#[derive(Clone, Default)]
pub struct HealthBoard {
    entries: Arc<RwLock<BTreeMap<String, watch::Sender<Health>>>>,
}

impl HealthBoard {
    /// The health of an endpoint that is defined.
    #[must_use]
    pub fn get(&self, endpoint: &str) -> Option<Health> {
        self.entries
            .read()
            .get(endpoint)
            .map(|health| health.borrow().clone())
    }

    /// All endpoints by name.
    #[must_use]
    pub fn all(&self) -> Vec<(String, Health)> {
        let entries = self.entries.read();
        entries
            .iter()
            .map(|(name, health)| (name.clone(), health.borrow().clone()))
            .collect()
    }

    fn enter(&self, endpoint: &str) -> watch::Sender<Health> {
        self.entries
            .write()
            .entry(endpoint.to_owned())
            .or_default()
            .clone()
    }

    fn remove(&self, endpoint: &str) {
        self.entries.write().remove(endpoint);
    }
}

struct Running {
    definition: EndpointDefinition,
    enrichments: Vec<Enrichment>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// Runs a dispatcher per endpoint, from now until `stop` is true: starts those of new endpoints, ends those of deleted
/// ones, and starts anew what has changed.
pub async fn run(
    parts: DispatchersParts,
    board: HealthBoard,
    mut definition: watch::Receiver<Arc<RoutingDefinition>>,
    mut stop: watch::Receiver<bool>,
) {
    let mut running: BTreeMap<String, Running> = BTreeMap::new();
    loop {
        let wanted = definition.borrow_and_update().clone();
        for name in follow(&parts, &board, &mut running, &wanted).await {
            // Whoever has made it anew meanwhile has set its checkpoint anew.
            if !definition
                .borrow()
                .endpoints
                .iter()
                .any(|endpoint| endpoint.name == name)
            {
                forget(&parts, &name).await;
            }
        }
        tokio::select! {
            changed = definition.changed() => if changed.is_err() { break },
            _ = stop.wait_for(|stop| *stop) => break,
        }
    }
    // All at once, so that the slowest one decides how long it takes.
    for dispatcher in running.values() {
        dispatcher.stop.send_replace(true);
    }
    for (_, dispatcher) in running {
        end(dispatcher).await;
    }
}

/// Forgets what is kept for an endpoint that was deleted.
async fn forget(parts: &DispatchersParts, name: &str) {
    let letters = parts.dead_letters.clear_dead_letters(name).await.map(drop);
    let checkpoints = parts.checkpoints.delete_checkpoints(&reader_name(name)).await;
    if let Err(error) = letters.and(checkpoints) {
        tracing::warn!(endpoint = name, %error, "dead letters or checkpoints of a deleted endpoint stay");
    }
}

/// Brings the dispatchers to what is wanted. Returns the endpoints that are no more.
async fn follow(
    parts: &DispatchersParts,
    board: &HealthBoard,
    running: &mut BTreeMap<String, Running>,
    wanted: &RoutingDefinition,
) -> Vec<String> {
    let mut deleted = Vec::new();
    let gone: Vec<String> = running
        .iter()
        .filter(|(name, dispatcher)| {
            let same = |endpoint: &&EndpointDefinition| {
                endpoint.name == **name && **endpoint == dispatcher.definition
            };
            let enrichments = of_endpoint(&wanted.enrichments, name);
            wanted.endpoints.iter().find(same).is_none() || enrichments != dispatcher.enrichments
        })
        .map(|(name, _)| name.clone())
        .collect();
    for name in gone {
        if let Some(dispatcher) = running.remove(&name) {
            end(dispatcher).await;
        }
        if !wanted.endpoints.iter().any(|endpoint| endpoint.name == name) {
            board.remove(&name);
            deleted.push(name);
        }
    }
    for endpoint in &wanted.endpoints {
        if !running.contains_key(&endpoint.name) {
            let enrichments = of_endpoint(&wanted.enrichments, &endpoint.name);
            let started = start(parts.clone(), board, endpoint.clone(), enrichments);
            running.insert(endpoint.name.clone(), started);
        }
    }
    deleted
}

fn of_endpoint(enrichments: &[Enrichment], endpoint: &str) -> Vec<Enrichment> {
    let mine = |enrichment: &&Enrichment| {
        let mut names = enrichment.endpoint_names.iter();
        names.any(|name| name.eq_ignore_ascii_case(endpoint))
    };
    enrichments.iter().filter(mine).cloned().collect()
}

fn start(
    parts: DispatchersParts,
    board: &HealthBoard,
    definition: EndpointDefinition,
    enrichments: Vec<Enrichment>,
) -> Running {
    let (stop, stopped) = watch::channel(false);
    let health = board.enter(&definition.name);
    let task = tokio::spawn(dispatch(
        parts,
        definition.clone(),
        enrichments.clone(),
        health,
        stopped,
    ));
    Running {
        definition,
        enrichments,
        stop,
        task,
    }
}

/// Runs one dispatcher, trying again while it cannot be started.
async fn dispatch(
    parts: DispatchersParts,
    definition: EndpointDefinition,
    enrichments: Vec<Enrichment>,
    health: watch::Sender<Health>,
    mut stopped: watch::Receiver<bool>,
) {
    loop {
        let enricher = Enricher::new(
            &enrichments,
            &definition.name,
            &parts.hub_name,
            parts.twins.clone(),
        );
        let started = match parts.factory.make(&definition) {
            Ok(endpoint) => {
                let dispatcher = DispatcherParts {
                    name: definition.name.clone(),
                    number: definition.number,
                    endpoint,
                    log: parts.log.clone(),
                    checkpoints: parts.checkpoints.clone(),
                    dead_letters: parts.dead_letters.clone(),
                    clock: parts.clock.clone(),
                    policy: parts.policy,
                    health: health.clone(),
                };
                Dispatcher::start(dispatcher, enricher).await
            }
            Err(error) => Err(error),
        };
        match started {
            Ok(dispatcher) => return dispatcher.run(stopped).await,
            Err(error) => {
                tracing::error!(
                    endpoint = definition.name,
                    error,
                    "an endpoint cannot be started; it is tried again"
                );
                let now = parts.clock.now();
                health.send_modify(|health| health.failed(&error, now, parts.policy.patience));
            }
        }
        let wait = tokio::time::timeout(RESTART_PAUSE, stopped.wait_for(|stop| *stop));
        if wait.await.is_ok() {
            return;
        }
    }
}

async fn end(dispatcher: Running) {
    let Running {
        definition,
        stop,
        task,
        ..
    } = dispatcher;
    stop.send_replace(true);
    let abort = task.abort_handle();
    if tokio::time::timeout(STOP_TIMEOUT, task).await.is_err() {
        abort.abort();
        tracing::warn!(
            endpoint = definition.name,
            "a dispatcher did not end in time; what it delivered last comes again"
        );
    }
}
