//! What the embedded state store says about itself.

use std::path::Path;
use std::time::Duration;

use holdfast_observe::metrics::{Counter, Gauge, Histogram, LATENCY_SECONDS};
use holdfast_observe::{Event, Registry, tracing};

/// Bounds of the group size histogram.
const GROUP_SIZES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// Metrics of the embedded state store.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Operations written, whether they changed something or were refused.
    pub operations: Counter,
    /// Operations in one commit.
    pub group_size: Histogram,
    /// From the begin of a group's transaction to its return from the disk.
    pub commit_seconds: Histogram,
    /// Operations waiting for the writer; bound: `WRITE_QUEUE_MAX`.
    pub queue_depth: Gauge,
    /// Groups that could not be committed.
    pub commit_failures: Counter,
    /// Reading connections open.
    pub readers: Gauge,
    /// Feedback records dropped because nobody fetches them.
    pub feedback_dropped: Counter,
    /// Rows of the outbox that cannot be read, set aside.
    pub outbox_unreadable: Counter,
    /// Duration of a page of a query, whether it succeeded or not.
    pub query_seconds: Histogram,
    /// Queries that were stopped at their time, or refused since too many were running.
    pub queries_refused: Counter,
    /// Indexes that queries made themselves, made by this process less those dropped.
    pub query_indexes: Gauge,
}

impl Metrics {
    /// Registers the metrics of the embedded state store.
    pub fn register(registry: &mut Registry) -> Self {
        Metrics {
            operations: registry.counter(
                "holdfast_state_operations_total",
                "Write operations on the state database",
            ),
            group_size: registry.histogram(
                "holdfast_state_group_operations",
                "Write operations in one commit of the state database",
                GROUP_SIZES,
            ),
            commit_seconds: registry.histogram(
                "holdfast_state_commit_seconds",
                "Duration of a group of writes, sync included",
                LATENCY_SECONDS,
            ),
            queue_depth: registry.gauge(
                "holdfast_state_queue_operations",
                "Write operations waiting for the state database",
            ),
            commit_failures: registry.counter(
                "holdfast_state_commit_failures_total",
                "Groups of writes that could not be committed",
            ),
            readers: registry.gauge(
                "holdfast_state_reader_connections",
                "Reading connections to the state database",
            ),
            feedback_dropped: registry.counter(
                "holdfast_state_feedback_dropped_total",
                "Feedback records dropped because nobody fetches them",
            ),
            outbox_unreadable: registry.counter(
                "holdfast_state_outbox_unreadable_total",
                "Events of the hub that were stored but cannot be read, and were set aside",
            ),
            query_seconds: registry.histogram(
                "holdfast_state_query_seconds",
                "Duration of a page of a query over twins or jobs",
                LATENCY_SECONDS,
            ),
            queries_refused: registry.counter(
                "holdfast_state_queries_refused_total",
                "Queries stopped at their time, or refused since too many were running",
            ),
            query_indexes: registry.gauge(
                "holdfast_state_query_indexes",
                "Indexes made for queries since the start, less those dropped",
            ),
        }
    }
}

/// The database was opened.
pub(super) struct Opened<'a> {
    pub(super) path: &'a Path,
    pub(super) boot: i64,
}

impl Event for Opened<'_> {
    type Metrics = Metrics;
    fn emit(self, _metrics: &Metrics) {
        tracing::info!(path = %self.path.display(), boot = self.boot, "state database opened");
    }
}

/// A group of operations is durable.
pub(super) struct GroupCommitted {
    pub(super) operations: usize,
    pub(super) took: Duration,
}

impl Event for GroupCommitted {
    type Metrics = Metrics;
    fn emit(self, metrics: &Metrics) {
        metrics.operations.add(self.operations as u64);
        metrics.group_size.observe(self.operations as f64);
        metrics.commit_seconds.observe_duration(self.took);
        tracing::trace!(operations = self.operations, "state group committed");
    }
}

/// A group of operations was rolled back.
pub(super) struct GroupFailed<'a> {
    pub(super) operations: usize,
    pub(super) reason: &'a str,
    /// Whether the store takes nothing more until the process is started again.
    pub(super) fatal: bool,
}

impl Event for GroupFailed<'_> {
    type Metrics = Metrics;
    fn emit(self, metrics: &Metrics) {
        metrics.commit_failures.inc();
        let GroupFailed {
            operations,
            reason,
            fatal,
        } = self;
        if fatal {
            tracing::error!(
                operations,
                reason,
                "the state database has failed and takes no more changes"
            );
        } else {
            tracing::error!(operations, reason, "changes of state could not be stored");
        }
    }
}

/// A mutation handed in by the engine panicked; its operation failed, its neighbours did not.
pub(super) struct OperationPanicked;

impl Event for OperationPanicked {
    type Metrics = Metrics;
    fn emit(self, _metrics: &Metrics) {
        tracing::error!("an operation on the state database panicked and was rolled back");
    }
}

/// The oldest feedback made room for newer.
pub(super) struct FeedbackDropped {
    pub(super) records: usize,
}

impl Event for FeedbackDropped {
    type Metrics = Metrics;
    fn emit(self, metrics: &Metrics) {
        metrics.feedback_dropped.add(self.records as u64);
        tracing::debug!(records = self.records, "oldest feedback dropped");
    }
}

/// An event of the hub cannot be read any more: it is kept, but will not come to the log.
pub(super) struct OutboxRowSetAside<'a> {
    pub(super) number: i64,
    pub(super) problem: &'a str,
}

impl Event for OutboxRowSetAside<'_> {
    type Metrics = Metrics;
    fn emit(self, metrics: &Metrics) {
        metrics.outbox_unreadable.inc();
        let OutboxRowSetAside { number, problem } = self;
        tracing::error!(
            number,
            problem,
            "an event of the hub is damaged in the state database: it is set aside and will not be told"
        );
    }
}

/// A page of a query was made, or was not.
pub(super) struct QueryEnded {
    pub(super) took: Duration,
}

impl Event for QueryEnded {
    type Metrics = Metrics;
    fn emit(self, metrics: &Metrics) {
        metrics.query_seconds.observe_duration(self.took);
        tracing::trace!(took = ?self.took, "page of a query ended");
    }
}

/// A query was stopped at its time, or refused since too many were running.
pub(super) struct QueryRefused<'a> {
    pub(super) reason: &'a str,
}

impl Event for QueryRefused<'_> {
    type Metrics = Metrics;
    fn emit(self, metrics: &Metrics) {
        metrics.queries_refused.inc();
        tracing::debug!(reason = self.reason, "query refused");
    }
}

/// A place that queries look at gets an index.
pub(super) struct IndexStarted<'a> {
    pub(super) path: &'a str,
}

impl Event for IndexStarted<'_> {
    type Metrics = Metrics;
    fn emit(self, metrics: &Metrics) {
        metrics.query_indexes.inc();
        tracing::info!(path = self.path, "queries look at this place: making an index");
    }
}

/// An index is complete.
pub(super) struct IndexReady<'a> {
    pub(super) path: &'a str,
}

impl Event for IndexReady<'_> {
    type Metrics = Metrics;
    fn emit(self, _metrics: &Metrics) {
        tracing::info!(path = self.path, "the index is ready");
    }
}

/// An index that nobody used is gone.
pub(super) struct IndexDropped<'a> {
    pub(super) path: &'a str,
}

impl Event for IndexDropped<'_> {
    type Metrics = Metrics;
    fn emit(self, metrics: &Metrics) {
        metrics.query_indexes.dec();
        tracing::info!(path = self.path, "no query used this index: it is gone");
    }
}
