//! When to send, so that the load is even and does not depend on how fast the server answers.
//!
//! The schedule is fixed at the start: message `k` is due at `k / rate`. A generator that waited for answers before it
//! sent on would send less exactly when the server is slow, and report too short latencies ("coordinated omission").
//! Latencies are therefore counted from the time a message was due, not from the time it was sent.

use std::collections::VecDeque;
use std::time::Duration;

/// Due times are whole ticks: the shortest sleep of `epoll_wait`. All messages of a tick are due together.
pub(crate) const TICK_NS: u64 = 1_000_000;

/// An even schedule.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    start_ns: u64,
    per_second: f64,
    taken: u64,
}

impl Pace {
    /// `per_second` messages from `start_ns` on.
    pub(crate) const fn new(start_ns: u64, per_second: f64) -> Self {
        Pace {
            start_ns,
            per_second,
            taken: 0,
        }
    }

    /// The due time of the next message if that has come, and steps to the one after it.
    pub(crate) fn take(&mut self, now_ns: u64) -> Option<u64> {
        let due = self.next_due();
        (due <= now_ns).then(|| {
            self.taken += 1;
            due
        })
    }

    /// Takes all messages that are due: puts their due times into the backlogs of connections, round robin, and names those
    /// whose backlog was empty, so that what is due for a connection goes out in one write.
    pub(crate) fn hand_out(&mut self, now_ns: u64, backlogs: &mut [VecDeque<u64>], touched: &mut Vec<usize>) {
        while let Some(due) = self.take(now_ns) {
            let index = (self.taken - 1) as usize % backlogs.len();
            if backlogs[index].is_empty() {
                touched.push(index);
            }
            backlogs[index].push_back(due);
        }
    }

    /// How many messages were taken so far.
    pub(crate) const fn taken(&self) -> u64 {
        self.taken
    }

    /// How long until the next message is due.
    pub(crate) fn wait(&self, now_ns: u64) -> Duration {
        Duration::from_nanos(self.next_due().saturating_sub(now_ns))
    }

    fn next_due(&self) -> u64 {
        let offset = self.taken as f64 * 1e9 / self.per_second;
        self.start_ns + (offset as u64).next_multiple_of(TICK_NS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many messages are taken when the loop looks at these times.
    fn taken(rate: f64, looks: &[u64]) -> Vec<usize> {
        let mut pace = Pace::new(1_000, rate);
        looks
            .iter()
            .map(|at| std::iter::from_fn(|| pace.take(1_000 + at)).count())
            .collect()
    }

    #[test]
    fn the_rate_is_kept_whatever_the_loop_does() {
        // 10,000/s: the first at once, then ten per millisecond, and a late look takes what it missed.
        assert_eq!(
            taken(10_000.0, &[0, 1_000_000, 1_500_000, 5_000_000]),
            [1, 10, 0, 40]
        );
        assert_eq!(taken(0.5, &[0, 1_999_000_000, 2_000_000_000]), [1, 0, 1]);
        let looks: Vec<u64> = (0..=1_000).map(|ms| ms * 1_000_000).collect();
        assert_eq!(taken(123_456.0, &looks).iter().sum::<usize>(), 123_457);
    }

    #[test]
    fn what_is_due_is_handed_out_in_turn() {
        let (mut pace, mut backlogs) = (Pace::new(0, 1_000.0), [const { VecDeque::new() }; 2]);
        let mut touched = Vec::new();
        pace.hand_out(2_000_000, &mut backlogs, &mut touched);
        assert_eq!(
            backlogs,
            [VecDeque::from([0, 2_000_000]), VecDeque::from([1_000_000])]
        );
        assert_eq!(touched, [0, 1]);
        // The next one is the second connection's, which has something to send already.
        touched.clear();
        pace.hand_out(3_000_000, &mut backlogs, &mut touched);
        assert_eq!(backlogs[1], [1_000_000, 3_000_000]);
        assert_eq!(touched, [0; 0]);
    }

    #[test]
    fn due_times_are_those_of_the_schedule() {
        let mut pace = Pace::new(0, 1_000.0);
        let late = 10_000_000;
        let dues: Vec<u64> = std::iter::from_fn(|| pace.take(late)).collect();
        assert_eq!(dues, (0..=10).map(|ms| ms * 1_000_000).collect::<Vec<_>>());
        assert_eq!(pace.taken(), 11);
        assert_eq!(pace.wait(late), Duration::from_millis(1));
        assert_eq!(pace.wait(late + 5_000_000), Duration::ZERO);
    }
}
