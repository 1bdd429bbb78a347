//! The clock, so that tests decide what time it is.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use holdfast_model::Timestamp;

/// Source of the current time.
pub trait Clock: Send + Sync + 'static {
    /// Wall clock time, UTC. May jump when the operating system's clock is set.
    fn now(&self) -> Timestamp;

    /// Milliseconds since an arbitrary start; never goes back. For keep-alive and time-outs.
    fn monotonic_millis(&self) -> u64;
}

/// The operating system's clock.
#[derive(Debug)]
pub struct SystemClock {
    started: std::time::Instant,
}

impl SystemClock {
    /// Starts the monotonic count at zero.
    #[must_use]
    pub fn new() -> Self {
        SystemClock {
            started: std::time::Instant::now(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }

    fn monotonic_millis(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// A clock that moves only when told.
#[derive(Debug)]
pub struct ManualClock {
    micros: AtomicI64,
    start: i64,
}

impl ManualClock {
    /// Stands at `now`.
    #[must_use]
    pub fn at(now: Timestamp) -> Self {
        ManualClock {
            micros: AtomicI64::new(now.as_micros()),
            start: now.as_micros(),
        }
    }

    /// Moves forward.
    pub fn advance(&self, duration: Duration) {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        self.micros.fetch_add(micros, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.micros.load(Ordering::SeqCst))
    }

    fn monotonic_millis(&self) -> u64 {
        u64::try_from((self.micros.load(Ordering::SeqCst) - self.start) / 1_000).unwrap_or(0)
    }
}
