//! Routing of a running hub: a dispatcher per endpoint, and what watchers see of them.

use std::path::PathBuf;
use std::sync::Arc;

use holdfast_hub::Hub;
use holdfast_observe::Registry;
use holdfast_ports::clock::Clock;
use holdfast_ports::dead_letters::DeadLetterStore;
use holdfast_ports::event_log::EventLog;
use holdfast_program::units::Span;
use holdfast_routing::DeliveryPolicy;
use holdfast_routing::dispatchers::{self, DispatchersParts, HealthBoard};
use holdfast_routing::endpoints::action::Actions;
use holdfast_routing::endpoints::{Endpoints, Environment};
use holdfast_routing::health::{Health, Status};
use holdfast_routing::sources::hub_name;
use holdfast_store::sqlite::SqliteStore;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::actions::HubActions;

/// Delivery of routed events to endpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RoutingConfig {
    /// Time for one delivery; then it has failed and is tried again.
    pub delivery_timeout: Span,
    /// First pause after a failed delivery; each further one is twice as long.
    pub backoff: Span,
    /// Longest pause after a failed delivery.
    pub backoff_max: Span,
    /// How long events are kept for an endpoint that fails; older ones become its dead letters.
    pub patience: Span,
}

impl Default for RoutingConfig {
    fn default() -> Self {
        let policy = DeliveryPolicy::default();
        RoutingConfig {
            delivery_timeout: Span(policy.timeout),
            backoff: Span(policy.backoff),
            backoff_max: Span(policy.backoff_max),
            patience: Span(policy.patience),
        }
    }
}

impl RoutingConfig {
    fn policy(&self) -> DeliveryPolicy {
        DeliveryPolicy {
            timeout: self.delivery_timeout.0,
            backoff: self.backoff.0,
            backoff_max: self.backoff_max.0,
            patience: self.patience.0,
            ..DeliveryPolicy::default()
        }
    }
}

/// What dispatchers need, before they run.
#[derive(Clone)]
pub(super) struct Routing {
    parts: DispatchersParts,
    board: HealthBoard,
}

/// The dispatchers of a running hub.
pub(super) struct Dispatchers {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Routing {
    pub(super) fn new(
        config: &RoutingConfig,
        host: &str,
        data_dir: PathBuf,
        (store, log): (&SqliteStore, Arc<dyn EventLog>),
        hub: &Arc<Hub>,
        clock: &Arc<dyn Clock>,
        registry: &mut Registry,
    ) -> Self {
        let store = Arc::new(store.clone());
        let hub_name = hub_name(host);
        let environment = Environment {
            hub_name: hub_name.clone(),
            data_dir,
            clock: Arc::clone(clock),
            actions: Some(Actions::new(Arc::new(HubActions {
                hub: Arc::clone(hub),
                queries: store.clone(),
            }))),
        };
        let board = HealthBoard::default();
        register_metrics(registry, &board);
        Routing {
            parts: DispatchersParts {
                factory: Arc::new(Endpoints::new(environment)),
                log,
                checkpoints: store.clone(),
                dead_letters: store.clone(),
                twins: store,
                clock: Arc::clone(clock),
                hub_name,
                policy: config.policy(),
            },
            board,
        }
    }

    /// What the REST API works with.
    pub(super) fn api(&self) -> holdfast_api::Routing {
        holdfast_api::Routing {
            factory: Arc::clone(&self.parts.factory),
            board: self.board.clone(),
            dead_letters: Arc::clone(&self.parts.dead_letters) as Arc<dyn DeadLetterStore>,
        }
    }

    /// Starts the dispatchers of all endpoints, which follow the definition.
    pub(super) fn start(&self, hub: &Hub) -> Dispatchers {
        let (stop, stopped) = watch::channel(false);
        let running = dispatchers::run(self.parts.clone(), self.board.clone(), hub.routing(), stopped);
        Dispatchers {
            stop,
            task: tokio::spawn(running),
        }
    }
}

impl Dispatchers {
    /// Ends deliveries and saves checkpoints.
    pub(super) async fn stop(self) {
        self.stop.send_replace(true);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the dispatchers of endpoints have failed; what they delivered last comes again");
        }
    }
}

/// One series per endpoint; their names are the operator's, and at most 63.
fn register_metrics(registry: &mut Registry, board: &HealthBoard) {
    let read = |value: fn(&Health) -> u64| {
        let board = board.clone();
        move || {
            let all = board.all().into_iter();
            all.map(|(name, health)| (name, value(&health))).collect()
        }
    };
    registry.gauges_by_name(
        "holdfast_endpoint_lag_events",
        "Events between an endpoint's place and the end of the log, those of other endpoints included",
        "endpoint",
        read(|health| health.lag),
    );
    registry.gauges_by_name(
        "holdfast_endpoint_status",
        "State of an endpoint: 0 unknown, 1 healthy, 2 unhealthy, 3 dead",
        "endpoint",
        read(|health| match health.status {
            Status::Unknown => 0,
            Status::Healthy => 1,
            Status::Unhealthy => 2,
            Status::Dead => 3,
        }),
    );
    registry.counters_by_name(
        "holdfast_endpoint_delivered_events_total",
        "Events that an endpoint has taken",
        "endpoint",
        read(|health| health.delivered),
    );
    registry.counters_by_name(
        "holdfast_endpoint_dead_letters_total",
        "Events that were given up for an endpoint",
        "endpoint",
        read(|health| health.dead_lettered),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_endpoint_has_its_series() {
        let mut registry = Registry::new();
        register_metrics(&mut registry, &HealthBoard::default());
        let text = registry.render();
        assert!(
            text.contains("# TYPE holdfast_endpoint_lag_events gauge"),
            "{text}"
        );
        assert!(
            text.contains("# TYPE holdfast_endpoint_delivered_events counter"),
            "{text}"
        );
    }
}
