//! How many tests passed, read from what the test runners print.

/// The outcome of one suite.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) passed: u64,
    pub(super) failed: u64,
    /// Skipped when running; a test that cannot run here has to say so by failing.
    pub(super) skipped: u64,
    pub(super) note: String,
}

impl Counts {
    /// One check that passed.
    pub(super) fn one() -> Self {
        Self {
            passed: 1,
            ..Self::default()
        }
    }

    /// A suite that could not run.
    pub(super) fn failure(note: String) -> Self {
        Self {
            failed: 1,
            note,
            ..Self::default()
        }
    }

    /// Both together.
    pub(super) fn and(self, other: Self) -> Self {
        let note = [self.note, other.note]
            .into_iter()
            .filter(|note| !note.is_empty())
            .collect::<Vec<_>>();
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
            note: note.join("; "),
        }
    }

    /// Adds what only the exit status tells: a crash, a compile error, an ended run.
    pub(super) fn with_status(mut self, success: bool, note: Option<String>) -> Self {
        if !success && self.failed == 0 {
            self.failed = 1;
            self.note = note.unwrap_or_else(|| "the runner failed outside of a test".to_owned());
        } else if let Some(note) = note {
            self.note = note;
        }
        self
    }

    /// Turns a suite that ran nothing, or skipped something, into one that failed.
    pub(super) fn strict(mut self) -> Self {
        if self.passed + self.failed == 0 {
            self.failed = 1;
            self.note = "ran no test".to_owned();
        } else if self.skipped > 0 && self.failed == 0 {
            self.failed = self.skipped;
            self.note = "a test may not be skipped: install what it needs, or let it fail".to_owned();
        }
        self
    }
}

/// Sums the lines `test result: ok. 3 passed; 0 failed; 1 ignored; …` of `cargo test`. Ignored tests are
/// those that are run by name only; they do not count.
pub(super) fn cargo(lines: &[String]) -> Counts {
    let mut counts = Counts::default();
    for line in lines {
        let Some((_, result)) = line.split_once("test result: ") else {
            continue;
        };
        counts.passed += before(result, "passed");
        counts.failed += before(result, "failed");
    }
    counts
}

/// Reads the last line of pytest: `== 1 failed, 3 passed, 1 skipped, 1 error in 1.20s ==`.
pub(super) fn pytest(lines: &[String]) -> Counts {
    let summary = |line: &&String| {
        line.contains(" in ") && line.contains(['0', '1', '2', '3', '4', '5', '6', '7', '8', '9'])
    };
    let is_result = |line: &&String| {
        ["passed", "failed", "error", "skipped"]
            .iter()
            .any(|word| line.contains(word))
    };
    let Some(line) = lines.iter().rev().filter(summary).find(is_result) else {
        return Counts::default();
    };
    let failed = before(line, "failed") + before(line, "error") + before(line, "errors");
    Counts {
        // A test expected to fail that fails tells as much as one that passes; one that passes unexpectedly
        // needs its mark removed.
        passed: before(line, "passed") + before(line, "xfailed"),
        failed: failed + before(line, "xpassed"),
        skipped: before(line, "skipped"),
        note: String::new(),
    }
}

/// Reads the summary of Node's runner: `# pass 3` (tap) or `ℹ pass 3` (spec).
pub(super) fn node(lines: &[String]) -> Counts {
    let sum = |name: &str| -> u64 {
        let values = lines.iter().filter_map(|line| {
            let rest = line.strip_prefix("# ").or_else(|| line.strip_prefix("ℹ "))?;
            rest.strip_prefix(name)?.strip_prefix(' ')?.parse::<u64>().ok()
        });
        values.sum()
    };
    Counts {
        passed: sum("pass"),
        failed: sum("fail") + sum("cancelled"),
        skipped: sum("skipped") + sum("todo"),
        note: String::new(),
    }
}

/// The number in front of a word: 3 in `…, 3 passed, …`.
fn before(text: &str, word: &str) -> u64 {
    let words: Vec<&str> = text
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    words
        .windows(2)
        .find(|pair| pair[1] == word)
        .and_then(|pair| pair[0].parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    fn counts(passed: u64, failed: u64, skipped: u64) -> Counts {
        Counts {
            passed,
            failed,
            skipped,
            note: String::new(),
        }
    }

    #[test]
    fn cargo_results_are_summed() {
        let text = "running 2 tests\n\
            test result: ok. 19 passed; 0 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.07s\n\
            test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(cargo(&lines(text)), counts(20, 2, 0));
        assert_eq!(cargo(&[]), counts(0, 0, 0));
    }

    #[test]
    fn pytest_summaries() {
        for (line, expected) in [
            ("===== 3 passed in 1.20s =====", counts(3, 0, 0)),
            ("3 passed, 1 skipped, 2 warnings in 1.20s", counts(3, 0, 1)),
            (
                "== 1 failed, 12 passed, 1 error in 75.20s (0:01:15) ==",
                counts(12, 2, 0),
            ),
            ("= 2 xfailed, 1 xpassed, 2 errors in 0.1s =", counts(2, 3, 0)),
            ("===== no tests ran in 0.01s =====", counts(0, 0, 0)),
        ] {
            assert_eq!(
                pytest(&lines(&format!("test_x.py ..\n{line}"))),
                expected,
                "{line}"
            );
        }
    }

    #[test]
    fn node_summaries() {
        assert_eq!(
            node(&lines(
                "ok 1 - x\n# tests 3\n# pass 2\n# fail 1\n# cancelled 0\n# skipped 0"
            )),
            counts(2, 1, 0)
        );
        assert_eq!(
            node(&lines(
                "ℹ tests 3\nℹ pass 2\nℹ fail 0\nℹ cancelled 1\nℹ skipped 1\nℹ todo 0"
            )),
            counts(2, 1, 1)
        );
    }

    #[test]
    fn a_run_without_tests_or_with_skips_has_failed() {
        assert_eq!(Counts::default().strict().failed, 1);
        assert_eq!(counts(3, 0, 1).strict().failed, 1);
        assert_eq!(counts(3, 0, 0).strict().failed, 0);
    }

    #[test]
    fn a_bad_status_counts() {
        assert_eq!(counts(3, 0, 0).with_status(false, None).failed, 1);
        assert_eq!(counts(3, 2, 0).with_status(false, None).failed, 2);
        assert_eq!(counts(3, 0, 0).with_status(true, None).failed, 0);
    }
}
