//! What the event log says about itself: metrics, and log lines with them.

use std::path::Path;
use std::time::Duration;

use holdfast_observe::metrics::{Counter, Histogram, LATENCY_SECONDS, Registry};
use holdfast_observe::{Event, tracing};

/// Bucket bounds for events per sync.
const BATCH_EVENTS: &[f64] = &[1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16_384.0, 65_536.0];

/// Metrics of the event log.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Events made durable.
    pub events_appended: Counter,
    /// Bytes written for them, frame headers included.
    pub bytes_appended: Counter,
    /// Appends refused because the write buffer was full.
    pub appends_refused: Counter,
    /// Time of one write with its sync.
    pub commit_seconds: Histogram,
    /// Events per sync.
    pub commit_events: Histogram,
    /// Events handed to readers, in whole blocks.
    pub events_read: Counter,
    /// Segments made.
    pub segments_created: Counter,
    /// Segments deleted by retention.
    pub segments_deleted: Counter,
    /// Ends of logs cut off at start because a crash had left them incomplete.
    pub recovery_truncations: Counter,
    /// Damaged places found.
    pub damages_found: Counter,
    /// Failures after which the log takes nothing more.
    pub failures: Counter,
}

impl Metrics {
    /// Registers the metrics of the event log.
    pub fn register(registry: &mut Registry) -> Self {
        Metrics {
            events_appended: registry.counter("holdfast_log_events_appended_total", "Events made durable"),
            bytes_appended: registry.counter("holdfast_log_bytes_appended_total", "Bytes written to the log"),
            appends_refused: registry.counter(
                "holdfast_log_appends_refused_total",
                "Appends refused because the write buffer was full",
            ),
            commit_seconds: registry.histogram(
                "holdfast_log_commit_seconds",
                "Time of one write with its sync",
                LATENCY_SECONDS,
            ),
            commit_events: registry.histogram("holdfast_log_commit_events", "Events per sync", BATCH_EVENTS),
            events_read: registry.counter("holdfast_log_events_read_total", "Events handed to readers"),
            segments_created: registry.counter("holdfast_log_segments_created_total", "Segments made"),
            segments_deleted: registry.counter(
                "holdfast_log_segments_deleted_total",
                "Segments deleted by retention",
            ),
            recovery_truncations: registry.counter(
                "holdfast_log_recovery_truncations_total",
                "Incomplete ends cut off at start",
            ),
            damages_found: registry.counter("holdfast_log_damages_found_total", "Damaged places found"),
            failures: registry.counter("holdfast_log_failures_total", "Failures that stopped the log"),
        }
    }

    /// Metrics that nobody scrapes, for tests and tools.
    #[must_use]
    pub fn unattached() -> Self {
        Self::register(&mut Registry::new())
    }
}

/// A batch became durable.
pub(super) struct Committed {
    pub(super) events: u64,
    pub(super) bytes: u64,
    pub(super) took: Duration,
}

impl Event for Committed {
    type Metrics = Metrics;
    fn emit(self, metrics: &Metrics) {
        metrics.events_appended.add(self.events);
        metrics.bytes_appended.add(self.bytes);
        metrics.commit_seconds.observe_duration(self.took);
        metrics.commit_events.observe(self.events as f64);
    }
}

/// A segment was made.
pub(super) struct SegmentCreated<'a> {
    pub(super) file: &'a Path,
}

impl Event for SegmentCreated<'_> {
    type Metrics = Metrics;
    fn emit(self, metrics: &Metrics) {
        metrics.segments_created.inc();
        tracing::debug!(file = %self.file.display(), "event log segment created");
    }
}

/// Retention deleted a segment.
pub(super) struct SegmentDeleted<'a> {
    pub(super) file: &'a Path,
    pub(super) bytes: u64,
}

impl Event for SegmentDeleted<'_> {
    type Metrics = Metrics;
    fn emit(self, metrics: &Metrics) {
        metrics.segments_deleted.inc();
        tracing::debug!(file = %self.file.display(), bytes = self.bytes, "event log segment deleted");
    }
}

/// A file could not be removed or written where that costs nothing but space or time.
pub(super) struct Inconvenience<'a> {
    pub(super) action: &'static str,
    pub(super) file: &'a Path,
    pub(super) error: &'a std::io::Error,
}

impl Event for Inconvenience<'_> {
    type Metrics = Metrics;
    fn emit(self, _: &Metrics) {
        tracing::warn!(file = %self.file.display(), error = %self.error, "cannot {}", self.action);
    }
}

/// The end of the log was incomplete, as a crash leaves it, and was cut off. None of it had been acknowledged.
pub(super) struct TornTail<'a> {
    pub(super) file: &'a Path,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

impl Event for TornTail<'_> {
    type Metrics = Metrics;
    fn emit(self, metrics: &Metrics) {
        metrics.recovery_truncations.inc();
        tracing::warn!(
            file = %self.file.display(),
            offset = self.offset,
            bytes = self.bytes,
            "event log cut at an incomplete write"
        );
    }
}

/// Stored events are damaged. They stay on the disk as they are; readers go on behind them.
pub(super) struct Damaged<'a> {
    pub(super) file: &'a Path,
    pub(super) offset: u64,
    /// First sequence number that cannot be read.
    pub(super) first: u64,
    /// The next one that can, if known.
    pub(super) next: Option<u64>,
}

impl Event for Damaged<'_> {
    type Metrics = Metrics;
    fn emit(self, metrics: &Metrics) {
        metrics.damages_found.inc();
        tracing::error!(
            file = %self.file.display(),
            offset = self.offset,
            first = self.first,
            next = self.next,
            "event log is damaged: events cannot be read and are skipped; check the disk"
        );
    }
}

/// The newest segment has a damaged header, which costs nothing: its frames are read without.
pub(super) struct HeaderDamaged<'a> {
    pub(super) file: &'a Path,
    /// Sequence number with which the log goes on, in a new segment.
    pub(super) next: u64,
}

impl Event for HeaderDamaged<'_> {
    type Metrics = Metrics;
    fn emit(self, metrics: &Metrics) {
        metrics.damages_found.inc();
        tracing::error!(
            file = %self.file.display(),
            next = self.next,
            "the header of an event log file is damaged: the events behind it are read all the same, and new ones go into a new file; check the disk"
        );
    }
}

/// Nothing in the newest segment can be read. It was renamed.
pub(super) struct SegmentLost<'a> {
    pub(super) file: &'a Path,
    pub(super) aside: &'a Path,
    /// First sequence number it can have held.
    pub(super) first: u64,
    /// Sequence number with which the log goes on: behind all it can have held.
    pub(super) next: u64,
}

impl Event for SegmentLost<'_> {
    type Metrics = Metrics;
    fn emit(self, metrics: &Metrics) {
        metrics.damages_found.inc();
        tracing::error!(
            file = %self.file.display(),
            kept_as = %self.aside.display(),
            first = self.first,
            next = self.next,
            "no event in an event log file can be read: it is kept aside, and its sequence numbers are not used again; check the disk, restore the file from a backup"
        );
    }
}

/// The log has failed and takes nothing more.
pub(super) struct LogFailed<'a> {
    pub(super) reason: &'a str,
}

impl Event for LogFailed<'_> {
    type Metrics = Metrics;
    fn emit(self, metrics: &Metrics) {
        metrics.failures.inc();
        tracing::error!(
            reason = self.reason,
            "event log has failed and takes no more events"
        );
    }
}
