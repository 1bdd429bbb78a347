//! Log lines about what may happen again and again: the first is written at once, and as long as it goes on one in ten
//! minutes, with how often it has happened meanwhile.
//!
//! ```
//! use holdfast_observe::{Repeats, tracing};
//!
//! static NOT_SENT: Repeats = Repeats::new();
//!
//! fn sent(client: &str, outcome: Result<(), String>) {
//!     match outcome {
//!         Ok(()) => if let Some(more) = NOT_SENT.over(client) {
//!             tracing::info!(client, more, "messages are sent again");
//!         },
//!         Err(error) => if let Some(times) = NOT_SENT.happened(client) {
//!             tracing::warn!(client, %error, times, "a message was not sent");
//!         },
//!     }
//! }
//! # sent("a", Err("x".to_owned())); sent("a", Ok(()));
//! ```

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines while it goes on.
const EVERY: Duration = Duration::from_secs(600);
/// Between two lines when it was over in between.
const ANEW: Duration = Duration::from_secs(60);
/// Whom it happened to, kept apart; all others share one line.
const KEYS_MAX: usize = 256;

/// See the module documentation. One for each kind of line; made as a `static`.
#[derive(Debug)]
pub struct Repeats {
    lines: Mutex<Lines>,
}

#[derive(Debug)]
struct Lines {
    by_key: BTreeMap<Box<str>, Line>,
    others: Option<Line>,
}

#[derive(Debug)]
struct Line {
    written: Instant,
    /// How often it has happened since.
    untold: u64,
    over: bool,
}

impl Line {
    fn is_due(&self, now: Instant) -> bool {
        let pause = if self.over { ANEW } else { EVERY };
        now.saturating_duration_since(self.written) >= pause
    }
}

impl Repeats {
    /// Nothing has happened.
    #[must_use]
    pub const fn new() -> Self {
        Repeats {
            lines: Mutex::new(Lines {
                by_key: BTreeMap::new(),
                others: None,
            }),
        }
    }

    /// It has happened to `key`. `Some`: a line is due, and it has happened that often since the last one, this time
    /// included.
    pub fn happened(&self, key: &str) -> Option<u64> {
        self.happened_at(key, Instant::now())
    }

    /// It does not happen to `key` any more. `Some`: a line had told that it did, and it has happened that often since.
    pub fn over(&self, key: &str) -> Option<u64> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let line = lines.by_key.get_mut(key).filter(|line| !line.over)?;
        line.over = true;
        Some(std::mem::take(&mut line.untold))
    }

    fn happened_at(&self, key: &str, now: Instant) -> Option<u64> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = &mut *lines;
        let line = match lines.by_key.get_mut(key) {
            Some(line) => Some(line),
            None => {
                if lines.by_key.len() >= KEYS_MAX {
                    lines.by_key.retain(|_, line| !line.is_due(now));
                }
                if lines.by_key.len() < KEYS_MAX {
                    lines.by_key.insert(key.into(), Line::new(now));
                    return Some(1);
                }
                lines.others.as_mut()
            }
        };
        let Some(line) = line else {
            lines.others = Some(Line::new(now));
            return Some(1);
        };
        line.untold += 1;
        if !line.is_due(now) {
            return None;
        }
        let times = line.untold;
        *line = Line::new(now);
        Some(times)
    }
}

impl Default for Repeats {
    fn default() -> Self {
        Self::new()
    }
}

impl Line {
    fn new(now: Instant) -> Self {
        Line {
            written: now,
            untold: 0,
            over: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    #[test]
    fn the_first_is_told_and_then_how_often() {
        let (repeats, start) = (Repeats::new(), Instant::now());
        let told: Vec<(u64, u64)> = (0..1_800)
            .filter_map(|second| Some((second, repeats.happened_at("a", start + seconds(second))?)))
            .collect();
        assert_eq!(told, [(0, 1), (600, 600), (1_200, 600)]);
        assert_eq!(repeats.happened_at("b", start), Some(1), "another one");
    }

    #[test]
    fn what_comes_anew_is_told_but_not_each_time_of_many() {
        let (repeats, start) = (Repeats::new(), Instant::now());
        assert_eq!(repeats.over("a"), None);
        let mut told = Vec::new();
        for second in 0..300 {
            if let Some(times) = repeats.happened_at("a", start + seconds(second)) {
                told.push((second, times));
            }
            let over = repeats.over("a");
            assert_eq!(over.is_some(), told.last().is_some_and(|(at, _)| *at == second));
        }
        assert_eq!(told, [(0, 1), (60, 60), (120, 60), (180, 60), (240, 60)]);
    }

    #[test]
    fn ever_new_names_share_a_line() {
        let (repeats, start) = (Repeats::new(), Instant::now());
        let happen = |from: usize, to: usize, second: u64| {
            (from..to)
                .filter_map(|number| repeats.happened_at(&number.to_string(), start + seconds(second)))
                .collect::<Vec<_>>()
        };
        assert_eq!(happen(0, 10_000, 0), vec![1; KEYS_MAX + 1]);
        assert_eq!(happen(10_000, 10_010, 599), Vec::<u64>::new());
        // The older ones are forgotten.
        assert_eq!(happen(20_000, 20_010, 600), vec![1; 10]);
        assert!(repeats.lines.lock().expect("whole").by_key.len() <= KEYS_MAX);
    }
}
