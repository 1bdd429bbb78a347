//! What is worth telling. What happens to a single client is DEBUG; the counters show how often.

use holdfast_model::Identity;
use holdfast_observe::metrics::Counter;
use holdfast_observe::{Event, Registry, tracing};

use crate::port::CloudError;

/// Counters of one upstream.
#[derive(Clone, Default)]
pub struct Metrics {
    connections: Counter,
    failures: Counter,
    unknown_topics: Counter,
}

impl Metrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        Metrics {
            connections: registry.counter(
                "holdfast_upstream_connections_total",
                "Connections to the hub that were opened",
            ),
            failures: registry.counter(
                "holdfast_upstream_failures_total",
                "Connections to the hub that ended or could not be opened",
            ),
            unknown_topics: registry.counter(
                "holdfast_upstream_unknown_topics_total",
                "Messages of the hub that mean nothing to their receiver",
            ),
        }
    }
}

/// A client's connection is up.
pub(crate) struct Connected<'a> {
    pub(crate) identity: &'a Identity,
    pub(crate) protocol: &'static str,
}

impl Event for Connected<'_> {
    type Metrics = Metrics;

    fn emit(self, metrics: &Metrics) {
        metrics.connections.inc();
        let identity = self.identity.as_str();
        tracing::debug!(identity, protocol = self.protocol, "upstream connected");
    }
}

/// A client's connection ended, or could not be opened.
pub(crate) struct Disconnected<'a> {
    pub(crate) identity: &'a Identity,
    pub(crate) cause: &'a CloudError,
}

impl Event for Disconnected<'_> {
    type Metrics = Metrics;

    fn emit(self, metrics: &Metrics) {
        metrics.failures.inc();
        let identity = self.identity.as_str();
        tracing::debug!(identity, cause = %self.cause, "upstream not connected");
    }
}

/// A message of the hub that means nothing to this client.
pub(crate) struct UnknownTopic<'a> {
    pub(crate) identity: &'a Identity,
    pub(crate) topic: &'a str,
}

impl Event for UnknownTopic<'_> {
    type Metrics = Metrics;

    fn emit(self, metrics: &Metrics) {
        metrics.unknown_topics.inc();
        let identity = self.identity.as_str();
        tracing::debug!(identity, topic = self.topic, "upstream sent an unknown topic");
    }
}
