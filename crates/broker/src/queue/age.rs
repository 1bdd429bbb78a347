//! The store's own clock, by which messages age.
//!
//! While the process runs it follows the monotonic clock, so a wall clock that is set forward by years ends no message. Over
//! a restart it goes on by the difference of the wall clock, and not at all if that went back: a machine without a
//! battery-backed clock keeps messages longer, never shorter.

use std::sync::Arc;

use holdfast_model::Timestamp;
use holdfast_ports::clock::Clock;

/// Milliseconds of the store's clock.
pub type Age = u64;

/// The clock, from the moment the store was opened.
#[derive(Clone)]
pub(super) struct AgeClock {
    clock: Arc<dyn Clock>,
    at_open: Age,
    monotonic_at_open: u64,
}

impl AgeClock {
    /// Goes on from `last`: an age and the wall clock at that age, in microseconds.
    pub(super) fn resume(clock: Arc<dyn Clock>, last: Option<(Age, i64)>) -> Self {
        let now = clock.now().as_micros();
        let at_open = last.map_or(0, |(age, wall)| {
            let passed = now.saturating_sub(wall).max(0) / 1_000;
            age.saturating_add(u64::try_from(passed).unwrap_or(0))
        });
        AgeClock {
            monotonic_at_open: clock.monotonic_millis(),
            clock,
            at_open,
        }
    }

    pub(super) fn now(&self) -> Age {
        let passed = self
            .clock
            .monotonic_millis()
            .saturating_sub(self.monotonic_at_open);
        self.at_open.saturating_add(passed)
    }

    pub(super) fn wall(&self) -> Timestamp {
        self.clock.now()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holdfast_ports::clock::ManualClock;

    use super::*;

    #[test]
    fn ages_over_restarts_and_never_goes_back() {
        let start = Timestamp::from_seconds(1_000_000);
        let clock = Arc::new(ManualClock::at(start));
        let first = AgeClock::resume(clock.clone(), None);
        clock.advance(Duration::from_secs(5));
        assert_eq!(first.now(), 5_000);
        let last = Some((first.now(), clock.now().as_micros()));
        clock.advance(Duration::from_secs(60));
        assert_eq!(AgeClock::resume(clock, last).now(), 65_000);
        let unset = Arc::new(ManualClock::at(Timestamp::from_seconds(0)));
        assert_eq!(AgeClock::resume(unset, last).now(), 5_000);
    }
}
