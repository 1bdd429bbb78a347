//! Metrics and named events of jobs.

use holdfast_observe::metrics::{Counter, Registry};
use holdfast_observe::{Event, tracing};

/// Metrics of jobs.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Jobs taken in.
    pub created: Counter,
    /// Jobs that came to their end, whichever.
    pub ended: Counter,
    /// Targets tried.
    pub targets_tried: Counter,
    /// Ended jobs that are no longer kept.
    pub forgotten: Counter,
    /// Operations that a store could not serve.
    pub unavailable: Counter,
}

impl Metrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        Metrics {
            created: registry.counter("holdfast_jobs_created_total", "Scheduled jobs taken in"),
            ended: registry.counter(
                "holdfast_jobs_ended_total",
                "Scheduled jobs that came to their end",
            ),
            targets_tried: registry.counter(
                "holdfast_job_targets_tried_total",
                "Devices and modules at which a scheduled job was tried",
            ),
            forgotten: registry.counter(
                "holdfast_jobs_forgotten_total",
                "Ended scheduled jobs that are no longer kept",
            ),
            unavailable: registry.counter(
                "holdfast_jobs_unavailable_total",
                "Operations of scheduled jobs that a store could not serve",
            ),
        }
    }
}

/// A job is at work.
pub(super) struct Started<'a> {
    pub(super) id: &'a str,
}

impl Event for Started<'_> {
    type Metrics = Metrics;
    fn emit(self, _: &Metrics) {
        tracing::info!(job = self.id, "job started");
    }
}

/// A job has come to its end.
pub(super) struct Ended<'a> {
    pub(super) id: &'a str,
    pub(super) status: &'static str,
}

impl Event for Ended<'_> {
    type Metrics = Metrics;
    fn emit(self, metrics: &Metrics) {
        metrics.ended.inc();
        tracing::info!(job = self.id, status = self.status, "job ended");
    }
}

/// History went.
pub(super) struct Forgotten {
    pub(super) count: u64,
}

impl Event for Forgotten {
    type Metrics = Metrics;
    fn emit(self, metrics: &Metrics) {
        metrics.forgotten.add(self.count);
        tracing::debug!(count = self.count, "old jobs are no longer kept");
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
            "jobs cannot use their storage"
        );
    }
}
