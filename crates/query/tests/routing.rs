//! Runs `routing.md`.

use holdfast_query::route::{Condition, Outcome, Place, Sample, Symbols, SystemName};
use serde_json::Value as Json;

/// A message with the conditions that are tried on it, each with its line in the suite.
struct Section {
    sample: Sample,
    cases: Vec<(usize, String, String)>,
}

fn sections(suite: &str) -> Vec<Section> {
    let mut sections = Vec::new();
    let mut json: Option<String> = None;
    for (number, line) in suite.lines().enumerate() {
        match (&mut json, line) {
            (None, "```json") => json = Some(String::new()),
            (Some(text), "```") => {
                let message = serde_json::from_str(text).unwrap_or_else(|error| panic!("{number}: {error}"));
                sections.push(Section {
                    sample: sample(&message),
                    cases: Vec::new(),
                });
                json = None;
            }
            (Some(text), line) => text.push_str(line),
            (None, line) => {
                let Some(row) = line.strip_prefix("| `") else {
                    continue;
                };
                let (condition, outcome) = row.split_once("` | ").expect("two columns");
                let outcome = outcome.strip_suffix(" |").expect("a closed row");
                let case = (number + 1, condition.replace("\\|", "|"), outcome.to_owned());
                sections.last_mut().expect("a message first").cases.push(case);
            }
        }
    }
    sections
}

fn sample(message: &Json) -> Sample {
    let texts = |name: &str| {
        let object = message[name].as_object().cloned().unwrap_or_default();
        object
            .into_iter()
            .map(|(name, value)| (name, value.as_str().expect("a text").to_owned()))
    };
    Sample {
        properties: texts("properties").collect(),
        system: texts("system")
            .map(|(name, value)| (SystemName::parse(&name).expect("a system property"), value))
            .collect(),
        body: message["body"].to_string().into_bytes(),
        twin: message["twin"].clone(),
    }
}

fn outcome(condition: &str, sample: &Sample) -> String {
    let mut symbols = Symbols::default();
    match Condition::compile(condition, &mut symbols, Place::default()) {
        Ok(condition) => match condition.decide(&sample.with(&symbols)) {
            Outcome::True => "true".to_owned(),
            Outcome::False => "false".to_owned(),
            Outcome::Undefined => "undefined".to_owned(),
        },
        Err(error) => format!(
            "error {}:{} {}",
            error.start.line, error.start.column, error.message
        ),
    }
}

#[test]
fn the_suite() {
    let mut wrong = Vec::new();
    let mut tried = 0;
    for section in sections(include_str!("routing.md")) {
        for (line, condition, expected) in section.cases {
            tried += 1;
            let found = outcome(&condition, &section.sample);
            let same = match expected.strip_prefix("error ") {
                None => found == expected,
                Some(expected) => {
                    let (place, words) = expected.split_once(' ').unwrap_or((expected, ""));
                    found.starts_with(&format!("error {place} ")) && found.contains(words)
                }
            };
            if !same {
                wrong.push(format!(
                    "routing.md:{line}: {condition}\n  expected {expected}\n  found    {found}"
                ));
            }
        }
    }
    assert!(tried > 100, "the suite was not read: {tried}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
