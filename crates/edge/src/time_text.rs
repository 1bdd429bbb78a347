//! Points in time as operators write them: RFC 3339, Unix seconds, or how long ago (`90m`, `1 day`, `2 days 3 hours`).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use holdfast_model::Timestamp;

/// What a text should have been.
pub const EXPECTED: &str =
    "write a time (2026-01-31T12:00:00Z), Unix seconds, or how long ago (\"90m\", \"1 day\")";

/// The time of this machine.
#[must_use]
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// Reads a text; `None` when it is none of the forms.
#[must_use]
pub fn parse(text: &str, now: Timestamp) -> Option<Timestamp> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<i64>() {
        return Some(Timestamp::from_seconds(seconds));
    }
    if let Some(ago) = ago(text) {
        return Some(now.minus(ago));
    }
    Timestamp::parse(text)
}

fn ago(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0u64;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().ok()?;
        rest = rest[digits..].trim_start();
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let factor = match &rest[..letters] {
            "s" | "sec" | "secs" | "second" | "seconds" => 1,
            "m" | "min" | "mins" | "minute" | "minutes" => 60,
            "h" | "hr" | "hrs" | "hour" | "hours" => 3_600,
            "d" | "day" | "days" => 86_400,
            "w" | "week" | "weeks" => 604_800,
            _ => return None,
        };
        seconds = seconds.checked_add(number.checked_mul(factor)?)?;
        rest = rest[letters..].trim_start();
    }
    (!text.is_empty()).then(|| Duration::from_secs(seconds))
}

/// How long ago, in words such as `3 minutes`.
#[must_use]
pub fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (number, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3_600 => (seconds / 60, "minute"),
        3_600..86_400 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{number} {unit}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_are_read() {
        let now = Timestamp::from_seconds(1_000_000);
        for (text, seconds) in [
            ("999", 999),
            ("1970-01-01T00:00:05Z", 5),
            ("90m", 1_000_000 - 5_400),
            ("1 day", 1_000_000 - 86_400),
            ("2 days 3 hours 2 minutes", 1_000_000 - 183_720),
            ("2d3h", 1_000_000 - 183_600),
        ] {
            assert_eq!(parse(text, now), Some(Timestamp::from_seconds(seconds)), "{text}");
        }
        for bad in ["", "yesterday", "1 fortnight", "d", "99999999999999999999d"] {
            assert_eq!(parse(bad, now), None, "{bad}");
        }
    }

    #[test]
    fn durations_are_told_in_words() {
        assert_eq!(in_words(Duration::from_secs(1)), "1 second");
        assert_eq!(in_words(Duration::from_secs(7_300)), "2 hours");
    }
}
