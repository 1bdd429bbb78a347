//! The table at the end of a test run.

use std::time::Duration;

use super::counts::Counts;

/// One suite that was run.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) counts: Counts,
    pub(super) duration: Duration,
}

/// The sum of all suites.
pub(super) fn total(rows: &[Row]) -> Counts {
    rows.iter().fold(Counts::default(), |mut sum, row| {
        sum.passed += row.counts.passed;
        sum.failed += row.counts.failed;
        sum.skipped += row.counts.skipped;
        sum
    })
}

/// One line per suite.
pub(super) fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<8} {:>8} {:>8} {:>9}\n",
        "suite", "passed", "failed", "seconds"
    );
    for Row {
        name,
        counts,
        duration,
    } in rows
    {
        let line = format!(
            "{name:<8} {:>8} {:>8} {:>9.1}  {}",
            counts.passed,
            counts.failed,
            duration.as_secs_f64(),
            counts.note
        );
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_up_and_lines_up() {
        let row = |name, passed, failed, note: &str| Row {
            name,
            counts: Counts {
                passed,
                failed,
                skipped: 0,
                note: note.to_owned(),
            },
            duration: Duration::from_millis(1250),
        };
        let rows = [row("rust", 120, 0, ""), row("python", 7, 2, "ended after 9 s")];
        let sum = total(&rows);
        assert_eq!((sum.passed, sum.failed), (127, 2));
        let expected = "\
suite      passed   failed   seconds
rust          120        0       1.2
python          7        2       1.2  ended after 9 s
";
        assert_eq!(table(&rows), expected);
    }
}
