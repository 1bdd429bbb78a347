//! The `api-version` parameter.

/// Name of the parameter in queries and user names.
pub const PARAMETER: &str = "api-version";

/// Whether `text` is shaped like an API version: `YYYY-MM-DD`, optionally followed by a suffix such as
/// `-preview`.
///
/// The hub accepts every such value and no other (MQTT contract, section 2.1; REST contract, section 3.1): the
/// SDKs send many, old and new, and none of them changes what the hub answers.
///
/// ```
/// assert!(holdfast_wire::api_version::is_date_shaped("2021-04-12"));
/// assert!(holdfast_wire::api_version::is_date_shaped("2017-11-08-preview"));
/// assert!(!holdfast_wire::api_version::is_date_shaped("latest"));
/// ```
#[must_use]
pub fn is_date_shaped(text: &str) -> bool {
    let bytes = text.as_bytes();
    if bytes.len() < 10 || bytes[4] != b'-' || bytes[7] != b'-' {
        return false;
    }
    let number = |from: usize, to: usize| {
        bytes[from..to].iter().try_fold(0u32, |value, byte| {
            byte.is_ascii_digit().then(|| value * 10 + u32::from(byte - b'0'))
        })
    };
    let date_fits = number(0, 4).is_some()
        && number(5, 7).is_some_and(|month| (1..=12).contains(&month))
        && number(8, 10).is_some_and(|day| (1..=31).contains(&day));
    let suffix_fits = match &bytes[10..] {
        [] => true,
        [b'-', suffix @ ..] => !suffix.is_empty() && suffix.iter().all(u8::is_ascii_alphanumeric),
        _ => false,
    };
    date_fits && suffix_fits
}

#[cfg(test)]
mod tests {
    use super::is_date_shaped;

    #[test]
    fn dates_only() {
        for good in [
            "2016-11-14",
            "2017-06-30",
            "2018-06-30",
            "2018-08-30-preview",
            "2019-10-01",
            "2020-09-30",
            "2021-04-12",
            "2024-03-31",
            "2025-07-01-preview2",
        ] {
            assert!(is_date_shaped(good), "{good}");
        }
        for bad in [
            "",
            "1",
            "2021-4-12",
            "2021-13-01",
            "2021-00-01",
            "2021-01-32",
            "2021-01-01x",
            "2021-01-01-",
            "2021/01/01",
            "2021-01-01-a b",
            "äääää",
        ] {
            assert!(!is_date_shaped(bad), "{bad}");
        }
    }
}
