//! Message templates: text with placeholders in double braces.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use holdfast_model::Timestamp;

/// For error messages and help.
const PLACEHOLDERS: &str = "{{device}}, {{sequence}}, {{time}}, {{random A B}} and {{uuid}}";

/// A parsed template.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, PartialEq, Debug)]
enum Part {
    Text(String),
    Device,
    Sequence,
    Time,
    Uuid,
    Random { low: f64, high: f64, decimals: usize },
}

impl std::str::FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            let (name, after) = after
                .split_once("}}")
                .ok_or_else(|| format!("{{{{{after} has no end; placeholders are {PLACEHOLDERS}"))?;
            parts.push(placeholder(name.trim())?);
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Template { parts })
    }
}

fn placeholder(name: &str) -> Result<Part, String> {
    let words: Vec<&str> = name.split_whitespace().collect();
    match words.as_slice() {
        ["device"] => Ok(Part::Device),
        ["sequence"] => Ok(Part::Sequence),
        ["time"] => Ok(Part::Time),
        ["uuid"] => Ok(Part::Uuid),
        ["random", low, high] => random(low, high),
        _ => Err(format!(
            "there is no placeholder {{{{{name}}}}}; there are {PLACEHOLDERS}"
        )),
    }
}

/// Bounds written with decimals give numbers with as many.
fn random(low: &str, high: &str) -> Result<Part, String> {
    let number = |text: &str| {
        let value: Option<f64> = text.parse().ok().filter(|value: &f64| value.is_finite());
        value.ok_or_else(|| format!("{text:?} in {{{{random {low} {high}}}}} is not a number"))
    };
    let decimals = |text: &str| text.split_once('.').map_or(0, |(_, fraction)| fraction.len());
    let (from, to) = (number(low)?, number(high)?);
    if from > to {
        return Err(format!(
            "{{{{random {low} {high}}}}}: the first number is the greater one"
        ));
    }
    Ok(Part::Random {
        low: from,
        high: to,
        decimals: decimals(low).max(decimals(high)).min(9),
    })
}

impl Template {
    /// Appends a message to `out`.
    pub(super) fn render(&self, device: &str, sequence: u64, random: &mut Random, out: &mut String) {
        for part in &self.parts {
            // Writing to a string cannot fail.
            let _ = match part {
                Part::Text(text) => out.write_str(text),
                Part::Device => out.write_str(device),
                Part::Sequence => write!(out, "{sequence}"),
                Part::Time => write!(out, "{}", now()),
                Part::Uuid => out.write_str(&random.uuid()),
                Part::Random {
                    low,
                    high,
                    decimals: 0,
                } => write!(out, "{:.0}", random.integer(*low, *high)),
                Part::Random { low, high, decimals } => {
                    let value = low + (high - low) * random.fraction();
                    write!(out, "{value:.decimals$}")
                }
            };
        }
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// A small generator for test data (splitmix64); nothing secret comes out of it.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    /// The same numbers for the same seed.
    pub(super) const fn from_seed(seed: u64) -> Self {
        Random(seed)
    }

    /// Other numbers every time.
    pub(super) fn new() -> Self {
        let mut seed = [0u8; 8];
        // Without a random source the numbers are the same every time, which harms nobody.
        let _ = getrandom::fill(&mut seed);
        Self::from_seed(u64::from_le_bytes(seed))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 inclusive to 1 exclusive.
    pub(super) fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A whole number, both bounds included.
    fn integer(&mut self, low: f64, high: f64) -> f64 {
        (low + ((high - low + 1.0) * self.fraction()).floor()).min(high)
    }

    /// A random (version 4) UUID.
    fn uuid(&mut self) -> String {
        let (high, low) = (self.next(), self.next());
        let high = high & !0xf000 | 0x4000;
        let low = low & !(0b11 << 62) | 0b10 << 62;
        format!(
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            high >> 32,
            high >> 16 & 0xffff,
            high & 0xffff,
            low >> 48,
            low & 0xffff_ffff_ffff
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str) -> String {
        let mut out = String::new();
        let template: Template = template
            .parse()
            .unwrap_or_else(|error| panic!("{template}: {error}"));
        template.render("d-1", 7, &mut Random::from_seed(1), &mut out);
        out
    }

    #[test]
    fn placeholders_are_filled() {
        assert_eq!(
            render(r#"{"id":"{{device}}","n":{{ sequence }}}"#),
            r#"{"id":"d-1","n":7}"#
        );
        assert_eq!(
            render("no placeholders, {single} braces}}"),
            "no placeholders, {single} braces}}"
        );
        assert_eq!(render(""), "");
        let time = render("{{time}}");
        assert!(Timestamp::parse(&time).is_some(), "{time}");
    }

    #[test]
    fn uuids_are_of_version_4() {
        let text = render("{{uuid}} {{uuid}}");
        let (one, other) = text.split_once(' ').unwrap();
        assert_ne!(one, other);
        for uuid in [one, other] {
            let lengths: Vec<usize> = uuid.split('-').map(str::len).collect();
            assert_eq!(lengths, [8, 4, 4, 4, 12], "{uuid}");
            assert_eq!(&uuid[14..15], "4", "{uuid}");
            assert!("89ab".contains(&uuid[19..20]), "{uuid}");
        }
    }

    #[test]
    fn random_numbers_keep_their_bounds_and_their_form() {
        let whole: Template = "{{random -2 2}}".parse().unwrap();
        let fraction: Template = "{{random 18 26.50}}".parse().unwrap();
        let mut random = Random::from_seed(42);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..1_000 {
            let mut out = String::new();
            whole.render("", 0, &mut random, &mut out);
            seen.insert(out.parse::<i64>().unwrap_or_else(|_| panic!("{out}")));
            let mut out = String::new();
            fraction.render("", 0, &mut random, &mut out);
            assert!((18.0..=26.5).contains(&out.parse::<f64>().unwrap()), "{out}");
            assert_eq!(
                out.split_once('.').map(|(_, digits)| digits.len()),
                Some(2),
                "{out}"
            );
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [-2, -1, 0, 1, 2]);
    }

    #[test]
    fn mistakes_are_explained() {
        for (template, part) in [
            ("{{colour}}", "no placeholder {{colour}}"),
            ("{{device", "no end"),
            ("{{random 1}}", "no placeholder"),
            ("{{random a 2}}", "\"a\" in {{random a 2}} is not a number"),
            ("{{random 3 2}}", "greater"),
        ] {
            let error = template.parse::<Template>().unwrap_err();
            assert!(error.contains(part), "{template}: {error}");
        }
    }
}
