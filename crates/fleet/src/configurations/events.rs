//! Metrics and named events of automatic device management.

use holdfast_observe::metrics::{Counter, Registry};
use holdfast_observe::{Event, tracing};

/// Metrics of configurations and deployments.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Evaluations of a device or module.
    pub evaluations: Counter,
    /// Twins brought to another plan.
    pub twins_changed: Counter,
    /// Contents that a twin cannot hold.
    pub contents_refused: Counter,
    /// Passes over all that configurations concern.
    pub rescans: Counter,
    /// Operations that a store could not serve.
    pub unavailable: Counter,
}

impl Metrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        Metrics {
            evaluations: registry.counter(
                "holdfast_configuration_evaluations_total",
                "Evaluations of devices and modules against configurations",
            ),
            twins_changed: registry.counter(
                "holdfast_configuration_twins_changed_total",
                "Twins that were brought to another configuration",
            ),
            contents_refused: registry.counter(
                "holdfast_configuration_contents_refused_total",
                "Contents of configurations that a twin could not hold",
            ),
            rescans: registry.counter(
                "holdfast_configuration_rescans_total",
                "Passes over all twins that configurations concern",
            ),
            unavailable: registry.counter(
                "holdfast_configuration_unavailable_total",
                "Operations of automatic device management that a store could not serve",
            ),
        }
    }
}

/// The set of configurations has changed.
pub(super) struct Changed {
    pub(super) count: usize,
}

impl Event for Changed {
    type Metrics = Metrics;
    fn emit(self, _: &Metrics) {
        tracing::info!(count = self.count, "configurations have changed");
    }
}

/// A condition looks at what is not documented for conditions.
pub(super) struct Unusual<'a> {
    pub(super) id: &'a str,
    pub(super) path: &'a str,
}

impl Event for Unusual<'_> {
    type Metrics = Metrics;
    fn emit(self, _: &Metrics) {
        tracing::warn!(
            configuration = self.id,
            path = self.path,
            "the target condition looks at a path that is not documented for conditions; use deviceId, tags and reported \
             properties"
        );
    }
}

/// A twin cannot hold what it should.
pub(super) struct ContentRefused<'a> {
    pub(super) identity: &'a str,
    pub(super) reason: &'a str,
}

impl Event for ContentRefused<'_> {
    type Metrics = Metrics;
    fn emit(self, metrics: &Metrics) {
        metrics.contents_refused.inc();
        tracing::debug!(
            identity = self.identity,
            reason = self.reason,
            "the twin cannot hold the content of its configuration"
        );
    }
}

/// A pass over everybody has ended.
pub(super) struct Rescanned {
    pub(super) evaluated: u64,
}

impl Event for Rescanned {
    type Metrics = Metrics;
    fn emit(self, metrics: &Metrics) {
        metrics.rescans.inc();
        tracing::debug!(
            evaluated = self.evaluated,
            "looked at all that configurations concern"
        );
    }
}

/// A store cannot serve.
pub(super) struct Unavailable<'a> {
    pub(super) operation: &'static str,
    pub(super) reason: &'a str,
}

impl Event for Unavailable<'_> {
    type Metrics = Metrics;
    fn emit(self, metrics: &Metrics) {
        metrics.unavailable.inc();
        tracing::error!(
            operation = self.operation,
            reason = self.reason,
            "automatic device management cannot use its storage"
        );
    }
}
