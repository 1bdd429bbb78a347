//! Metrics and named events of imports and exports.

use holdfast_observe::metrics::{Counter, Registry};
use holdfast_observe::{Event, tracing};

use super::{JobKind, JobStatus};

/// Metrics of imports and exports.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Lines of imports that were carried out.
    pub lines_imported: Counter,
    /// Lines of imports that were not.
    pub lines_failed: Counter,
    /// Identities exported.
    pub identities_exported: Counter,
    /// Import and export jobs that ended, well or not.
    pub jobs_ended: Counter,
}

impl Metrics {
    /// Registers the metrics of imports and exports.
    pub fn register(registry: &mut Registry) -> Self {
        Metrics {
            lines_imported: registry.counter(
                "holdfast_import_lines_total",
                "Lines of imports that were carried out",
            ),
            lines_failed: registry.counter(
                "holdfast_import_lines_failed_total",
                "Lines of imports that were not carried out",
            ),
            identities_exported: registry.counter(
                "holdfast_export_identities_total",
                "Identities that were exported",
            ),
            jobs_ended: registry.counter(
                "holdfast_transfer_jobs_ended_total",
                "Import and export jobs that ended, well or not",
            ),
        }
    }
}

/// An import or export job has ended.
pub(super) struct JobEnded<'a> {
    pub(super) job_id: &'a str,
    pub(super) kind: JobKind,
    pub(super) status: JobStatus,
    pub(super) lines: u64,
    pub(super) failed: u64,
    /// Never has a signature in it.
    pub(super) reason: &'a str,
}

impl Event for JobEnded<'_> {
    type Metrics = Metrics;

    fn emit(self, metrics: &Metrics) {
        metrics.jobs_ended.inc();
        tracing::info!(
            job = self.job_id,
            kind = self.kind.as_str(),
            status = self.status.as_str(),
            lines = self.lines,
            failed = self.failed,
            reason = self.reason,
            "import or export job ended"
        );
    }
}
