//! Numbered steps with their outcome and time.

use std::time::Instant;

use anyhow::Result;

use crate::process::say_part;
use crate::say;

/// The steps told so far.
pub(super) struct Story {
    steps: u64,
    failed: u64,
    start: Instant,
}

impl Story {
    pub(super) fn begin() -> Self {
        say("");
        Self {
            steps: 0,
            failed: 0,
            start: Instant::now(),
        }
    }

    /// Does one step; `act` returns what later steps need and a few words about what happened.
    pub(super) fn step<T>(&mut self, title: &str, act: impl FnOnce() -> Result<(T, String)>) -> Option<T> {
        self.steps += 1;
        say_part(&format!("{:>2}. {title} ... ", self.steps));
        let start = Instant::now();
        match act() {
            Ok((value, detail)) => {
                say(&format!(
                    "ok ({:.2} s)\n    {detail}",
                    start.elapsed().as_secs_f64()
                ));
                Some(value)
            }
            Err(error) => {
                self.failed += 1;
                say(&format!(
                    "FAILED ({:.2} s)\n    {error:#}",
                    start.elapsed().as_secs_f64()
                ));
                None
            }
        }
    }

    pub(super) fn steps(&self) -> u64 {
        self.steps
    }

    pub(super) fn failed(&self) -> u64 {
        self.failed
    }

    pub(super) fn summary(&self) -> String {
        format!(
            "\ndemo: {} steps passed, {} failed, in {:.1} s",
            self.steps - self.failed,
            self.failed,
            self.start.elapsed().as_secs_f64()
        )
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn counts_steps() {
        let mut story = Story::begin();
        assert_eq!(story.step("one", || Ok((1, "fine".to_owned()))), Some(1));
        assert_eq!(
            story.step("two", || -> Result<((), String)> { bail!("no") }),
            None
        );
        assert_eq!((story.steps(), story.failed()), (2, 1));
        assert!(story.summary().contains("1 steps passed, 1 failed"));
    }
}
