//! Times in requests: RFC 3339, Unix seconds, or how long ago (edge.md section 5).

use std::time::Duration;

use holdfast_model::Timestamp;

/// Reads `2026-11-21T10:00:00Z`, `1790000000`, `90m`, `1 day` or `2 days 3 hours 2 minutes`. A duration is taken off `now`.
#[must_use]
pub fn parse_time(text: &str, now: Timestamp) -> Option<Timestamp> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().map(Timestamp::from_seconds);
    }
    Timestamp::parse(text).or_else(|| Some(now.minus(duration(text)?)))
}

/// A sequence of numbers with units.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number: u64 = rest[..digits].parse().ok()?;
        rest = rest[digits..].trim_start();
        let letters = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        let unit = match rest[..letters].to_ascii_lowercase().as_str() {
            "s" | "sec" | "secs" | "second" | "seconds" => 1,
            "m" | "min" | "mins" | "minute" | "minutes" => 60,
            "h" | "hr" | "hrs" | "hour" | "hours" => 3_600,
            "d" | "day" | "days" => 86_400,
            "w" | "week" | "weeks" => 604_800,
            _ => return None,
        };
        seconds = seconds.checked_add(number.checked_mul(unit)?)?;
        rest = rest[letters..].trim_start_matches([' ', ',']);
    }
    (!text.is_empty()).then_some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms() {
        let now = Timestamp::parse("2026-11-21T12:00:00Z").unwrap();
        for (text, expected) in [
            ("2026-11-20T12:00:00Z", "2026-11-20T12:00:00Z"),
            ("1790000000", "2026-09-21T14:13:20Z"),
            ("1 day", "2026-11-20T12:00:00Z"),
            ("90m", "2026-11-21T10:30:00Z"),
            ("1d12h", "2026-11-20T00:00:00Z"),
            ("2 days 3 hours 2 minutes", "2026-11-19T08:58:00Z"),
        ] {
            let expected = Timestamp::parse(expected).unwrap();
            assert_eq!(parse_time(text, now), Some(expected), "{text}");
        }
        for text in [
            "",
            "yesterday",
            "1 fortnight",
            "h",
            "-1 day",
            "99999999999999999999d",
            "1d 2",
        ] {
            assert_eq!(parse_time(text, now), None, "{text}");
        }
    }
}
