//! How far a transfer has come, read by others while it runs.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Counters of one transfer.
#[derive(Debug, Default)]
pub struct Progress {
    /// Lines read or written.
    pub(super) lines: AtomicU64,
    /// Lines of an import that failed so far.
    pub(super) failed: AtomicU64,
    /// What was done, in the unit of `total`.
    pub(super) done: AtomicU64,
    /// Bytes of an import, devices of an export; 0 when it is not known.
    pub(super) total: AtomicU64,
    cancelled: AtomicBool,
}

impl Progress {
    /// Lines read or written so far.
    #[must_use]
    pub fn lines(&self) -> u64 {
        self.lines.load(Ordering::Relaxed)
    }

    /// Lines that failed so far.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// 0 to 99 while it runs.
    #[must_use]
    pub fn percent(&self) -> u8 {
        let (done, total) = (
            self.done.load(Ordering::Relaxed),
            self.total.load(Ordering::Relaxed),
        );
        let percent = done.saturating_mul(100).checked_div(total).unwrap_or(0);
        u8::try_from(percent.min(99)).unwrap_or(99)
    }

    /// Asks the transfer to stop at the next batch.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked to stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    pub(super) fn add(counter: &AtomicU64, count: usize) {
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }
}
