//! Doubles in memory of the agent's ports, for tests of this crate and of others.

mod engine;
mod hub;

pub use engine::{Behaviour, Fault, MemoryEngine};
pub use hub::{MemoryHost, MemoryIdentities, MemoryTwin};

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use holdfast_model::Timestamp;
use holdfast_ports::clock::Clock;

/// A clock that goes with tokio's, which tests pause and move; its wall clock can be set wrong.
#[derive(Debug)]
pub struct TokioClock {
    begun: tokio::time::Instant,
    wall: AtomicI64,
}

impl TokioClock {
    /// Shows `now`.
    #[must_use]
    pub fn at(now: Timestamp) -> Self {
        TokioClock {
            begun: tokio::time::Instant::now(),
            wall: AtomicI64::new(now.as_micros()),
        }
    }

    /// Sets the wall clock, and only that one.
    pub fn set(&self, now: Timestamp) {
        let passed = i64::try_from(self.begun.elapsed().as_micros()).unwrap_or(0);
        self.wall.store(now.as_micros() - passed, Ordering::SeqCst);
    }
}

impl Clock for TokioClock {
    fn now(&self) -> Timestamp {
        let passed = Duration::from_micros(u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(0));
        Timestamp::from_micros(self.wall.load(Ordering::SeqCst)).plus(passed)
    }

    fn monotonic_millis(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(0)
    }
}
