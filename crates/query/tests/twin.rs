//! Runs the Markdown suites beside this file.
//!
//! A suite has rows in a fenced block `json devices` (also `modules`, `jobs`), which hold until the next one, and
//! tables of cases:
//!
//! * `| query | result |`: the result as JSON, in any order of rows; `SELECT *` rows are shown by their ids.
//! * `| condition | targets |`: a target condition and the ids it targets, in order.
//! * `| wrong | where | says |`: the marked range `line:column-column` and a part of the message.
//!
//! A cell holds its text between backticks; `\|` is a bar.

use std::collections::BTreeMap;
use std::path::Path as FilePath;

use holdfast_model::registry::{Authentication, IdentityRecord, Status};
use holdfast_model::twin::{ConfigurationStatus, Twin};
use holdfast_model::{Identity, Timestamp};
use holdfast_query::twin::ast::Projection;
use holdfast_query::twin::{
    Groups, JobRow, Row, Select, Source, TwinRow, matches, order, parse, parse_condition, project,
};
use serde_json::{Map, Value};

struct Entry {
    record: IdentityRecord,
    twin: Twin,
    waiting: u64,
}

#[derive(Default)]
struct Rows {
    devices: Vec<Entry>,
    modules: Vec<Entry>,
    jobs: Vec<Map<String, Value>>,
}

/// A document as a suite writes it; what it leaves out has the value of a new identity.
fn entry(document: &Value) -> Entry {
    let text = |name: &str| document.get(name).and_then(Value::as_str);
    let map = |value: Option<&Value>| value.and_then(Value::as_object).cloned().unwrap_or_default();
    let time =
        |name: &str| text(name).map_or(Timestamp::NEVER, |text| Timestamp::parse(text).expect("a time"));
    let record = IdentityRecord {
        identity: Identity::new(text("deviceId").expect("a deviceId"), text("moduleId")).expect("an id"),
        generation_id: 1,
        version: 1,
        status: if text("status") == Some("disabled") {
            Status::Disabled
        } else {
            Status::Enabled
        },
        status_reason: text("statusReason").map(str::to_owned),
        status_updated_at: Timestamp::NEVER,
        authentication: Authentication::CertificateAuthority,
        iot_edge: document.pointer("/capabilities/iotEdge") == Some(&Value::Bool(true)),
        device_scope: text("deviceScope").map(str::to_owned),
        parent_scopes: document["parentScopes"]
            .as_array()
            .map(|scopes| {
                scopes
                    .iter()
                    .filter_map(Value::as_str)
                    .map(str::to_owned)
                    .collect()
            })
            .unwrap_or_default(),
        managed_by: None,
        connected: text("connectionState") == Some("Connected"),
        connection_updated_at: Timestamp::NEVER,
        last_activity_at: time("lastActivityTime"),
    };
    let mut twin = Twin::new(Timestamp::NEVER);
    twin.tags = map(document.get("tags"));
    twin.desired.properties = map(document.pointer("/properties/desired"));
    twin.reported.properties = map(document.pointer("/properties/reported"));
    for section in [&mut twin.desired, &mut twin.reported] {
        if let Some(version) = section.properties.remove("$version") {
            section.version = version.as_u64().expect("a version");
        }
    }
    twin.model_id = text("modelId").map(str::to_owned);
    for (id, status) in map(document.get("configurations")) {
        let applied = status["status"] == "Applied";
        let status = if applied {
            ConfigurationStatus::Applied
        } else {
            ConfigurationStatus::Targeted
        };
        twin.configurations.insert(id, status);
    }
    Entry {
        record,
        twin,
        waiting: document["cloudToDeviceMessageCount"].as_u64().unwrap_or(0),
    }
}

impl Entry {
    fn row(&self) -> TwinRow<'_> {
        TwinRow {
            record: &self.record,
            twin: &self.twin,
            waiting: self.waiting,
        }
    }
}

impl Rows {
    fn of(&self, source: Source) -> Vec<(Value, Box<dyn Row + '_>)> {
        let twins = |entries: &'_ [Entry]| -> Vec<usize> { (0..entries.len()).collect() };
        let entries = match source {
            Source::Devices => &self.devices,
            Source::Modules => &self.modules,
            Source::Jobs => {
                return self
                    .jobs
                    .iter()
                    .map(|job| {
                        let id = format!(
                            "{}/{}",
                            job["jobId"].as_str().unwrap_or(""),
                            job["deviceId"].as_str().unwrap_or("")
                        );
                        (Value::from(id), Box::new(JobRow(job)) as Box<dyn Row>)
                    })
                    .collect();
            }
        };
        twins(entries)
            .into_iter()
            .map(|at| {
                let entry = &entries[at];
                (
                    Value::from(entry.record.identity.as_str()),
                    Box::new(entry.row()) as Box<dyn Row>,
                )
            })
            .collect()
    }

    fn run(&self, select: &Select) -> Vec<Value> {
        let mut rows = self.of(select.source);
        rows.retain(|(_, row)| {
            select
                .filter
                .as_ref()
                .is_none_or(|filter| matches(filter, &**row))
        });
        if !select.order_by.is_empty() {
            rows.sort_by(|(_, left), (_, right)| {
                let keys = |row: &dyn Row| order::keys(&select.order_by, row);
                order::compare(&select.order_by, &keys(&**left), &keys(&**right))
            });
        }
        let most = select.top.map_or(usize::MAX, |top| top as usize);
        if select.is_aggregated() {
            let mut groups = Groups::new(select);
            for (_, row) in &rows {
                groups.add_row(&**row).expect("few groups");
            }
            return groups.rows(None, most).0.into_iter().map(Value::Object).collect();
        }
        rows.iter()
            .take(most)
            .map(|(id, row)| match &select.projection {
                Projection::Document => id.clone(),
                Projection::Columns(columns) => Value::Object(project(columns, &**row)),
            })
            .collect()
    }
}

/// The cells of a table row, without their backticks.
fn cells(line: &str) -> Vec<String> {
    let line = line
        .trim()
        .trim_start_matches('|')
        .trim_end_matches('|')
        .replace("\\|", "\u{0}");
    line.split('|')
        .map(|cell| {
            let cell = cell.trim().replace('\u{0}', "|");
            let quoted = cell.strip_prefix('`').and_then(|cell| cell.strip_suffix('`'));
            quoted.map_or(cell.clone(), str::to_owned)
        })
        .collect()
}

fn check(kind: &str, cells: &[String], rows: &Rows) -> Result<(), String> {
    match (kind, cells) {
        ("query", [query, expected]) => {
            let select = parse(query).map_err(|error| error.to_string())?;
            let expected: Value = serde_json::from_str(expected).map_err(|error| error.to_string())?;
            let mut expected = expected.as_array().cloned().ok_or("the result is no array")?;
            let mut found = rows.run(&select);
            if select.order_by.is_empty() {
                expected.sort_by_key(Value::to_string);
                found.sort_by_key(Value::to_string);
            }
            (found == expected)
                .then_some(())
                .ok_or_else(|| format!("found {}", Value::from(found)))
        }
        ("condition", [condition, expected]) => {
            let condition = parse_condition(condition).map_err(|error| error.to_string())?;
            let all = rows.of(condition.source);
            let found: Vec<&str> = all
                .iter()
                .filter(|(_, row)| condition.matches(&**row))
                .filter_map(|(id, _)| id.as_str())
                .collect();
            (found.join(" ") == *expected)
                .then_some(())
                .ok_or_else(|| format!("found {}", found.join(" ")))
        }
        ("wrong" | "wrong condition", [text, place, says]) => {
            let text = text.replace("\\n", "\n");
            let error = if kind == "wrong" {
                parse(&text).err()
            } else {
                parse_condition(&text).err()
            };
            let error = error.ok_or("it was taken")?;
            let found = format!("{}:{}-{}", error.start.line, error.start.column, error.end.column);
            if found != *place || !error.message.contains(says.as_str()) {
                return Err(format!("found {found} {}", error.message));
            }
            Ok(())
        }
        _ => Err("the table has another number of columns".into()),
    }
}

fn run_suite(path: &FilePath, failures: &mut Vec<String>) -> usize {
    let text = std::fs::read_to_string(path).expect("a readable suite");
    let mut rows = Rows::default();
    let mut block: Option<(String, String)> = None;
    let mut table: Option<String> = None;
    let mut cases = 0;
    for (number, line) in text.lines().enumerate() {
        if let Some((kind, body)) = &mut block {
            if line.trim() == "```" {
                let list: Vec<Value> = serde_json::from_str(body)
                    .unwrap_or_else(|error| panic!("{}:{number}: {error}", path.display()));
                match kind.as_str() {
                    "devices" => rows.devices = list.iter().map(entry).collect(),
                    "modules" => rows.modules = list.iter().map(entry).collect(),
                    "jobs" => {
                        rows.jobs = list
                            .iter()
                            .map(|job| job.as_object().cloned().expect("an object"))
                            .collect()
                    }
                    other => panic!("{}:{number}: unknown rows {other}", path.display()),
                }
                block = None;
            } else {
                body.push_str(line);
                body.push('\n');
            }
        } else if let Some(kind) = line.strip_prefix("```json ") {
            block = Some((kind.trim().to_owned(), String::new()));
        } else if line.starts_with('|') {
            let cells = cells(line);
            match &table {
                None => table = cells.first().cloned(),
                Some(_) if cells.iter().all(|cell| cell.chars().all(|c| c == '-')) => {}
                Some(kind) => {
                    cases += 1;
                    if let Err(problem) = check(kind, &cells, &rows) {
                        failures.push(format!(
                            "{}:{}: {}\n    {problem}",
                            path.display(),
                            number + 1,
                            cells[0]
                        ));
                    }
                }
            }
        } else {
            table = None;
        }
    }
    cases
}

#[test]
fn every_case_of_every_suite() {
    let folder = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut failures = Vec::new();
    let mut counts = BTreeMap::new();
    for file in std::fs::read_dir(folder).expect("a folder") {
        let path = file.expect("a file").path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
            .to_owned();
        if name.starts_with("twin_") && name.ends_with(".md") {
            counts.insert(name, run_suite(&path, &mut failures));
        }
    }
    println!("{counts:?}");
    assert!(
        counts.len() >= 4 && counts.values().all(|count| *count > 0),
        "suites are missing: {counts:?}"
    );
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn long_and_deep_texts_are_refused() {
    let padded = |length: usize| {
        let text = "SELECT * FROM devices WHERE deviceId = 'ü'";
        format!("{text}{}", " ".repeat(length - text.chars().count()))
    };
    assert!(parse(&padded(8_192)).is_ok());
    let error = parse(&padded(8_193)).expect_err("too long");
    assert!(error.message.contains("longer than 8192 characters"), "{error}");
    for (open, close) in [
        ("(", ")"),
        ("NOT ", ""),
        ("- ", ""),
        ("NOT (", ")"),
        ("IS_NULL(", ")"),
    ] {
        let nested = |depth: usize| {
            let condition = format!("{}tags.a{}", open.repeat(depth), close.repeat(depth));
            parse(&format!("SELECT * FROM devices WHERE {condition}"))
        };
        assert!(nested(20).is_ok(), "{open}");
        let error = nested(700).expect_err("too deep");
        assert!(error.message.contains("nested deeper than 64 levels"), "{error}");
    }
    let error = parse_condition(&format!("tags.a = 1{}", " + 1".repeat(1_000))).expect_err("too many");
    assert!(error.message.contains("operands in a row"), "{error}");
    // Width is only bounded by the length.
    let wide = vec!["tags.a = 1"; 500].join(" OR ");
    let condition = parse_condition(&wide).expect("wide is not deep");
    assert!(!condition.matches(&JobRow(&Map::new())));
}

#[test]
fn paths_are_read_as_they_are_printed() {
    use holdfast_query::twin::parse_path;
    for (text, printed) in [
        ("TAGS.a.[[b c]].[[group]][2]", "tags.a.[[b c]].[[group]][2]"),
        ("properties.Reported.$metadata", "properties.reported.$metadata"),
        ("id", "deviceId"),
        ("Configurations.[[a-b]].STATUS", "configurations.[[a-b]].status"),
    ] {
        let path = parse_path(text).expect("a path");
        assert_eq!(path.to_string(), printed);
        assert_eq!(parse_path(printed), Ok(path));
    }
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// No text panics, and an error points into the text.
        #[test]
        fn no_text_panics(text in "\\PC{0,60}") {
            for error in [parse(&text).err(), parse_condition(&text).err()].into_iter().flatten() {
                prop_assert!(error.start.offset <= error.end.offset && error.end.offset <= text.len());
            }
        }

        /// Neither does any sequence of words.
        #[test]
        fn no_soup_of_words_panics(words in prop::collection::vec(prop::sample::select(WORDS), 0..24)) {
            let text = words.join(" ");
            for text in [text.clone(), format!("SELECT * FROM devices WHERE {text}"), words.concat()] {
                if let Ok(select) = parse(&text) {
                    let row = Map::new();
                    if let Some(filter) = &select.filter {
                        let _ = matches(filter, &JobRow(&row));
                    }
                }
                if let Ok(condition) = parse_condition(&text) {
                    let _ = condition.matches(&JobRow(&Map::new()));
                }
            }
        }
    }

    const WORDS: &[&str] = &[
        "SELECT",
        "*",
        "FROM",
        "devices",
        ".modules",
        ".jobs",
        "WHERE",
        "GROUP BY",
        "ORDER BY",
        "TOP",
        "1",
        "0x",
        "-",
        "+",
        "(",
        ")",
        "[",
        "]",
        "[[",
        "]]",
        ",",
        ".",
        "=",
        "!=",
        "<",
        "AND",
        "OR",
        "NOT",
        "IN",
        "NIN",
        "tags.a",
        "deviceId",
        "'x'",
        "\"",
        "'",
        "\\",
        "COUNT()",
        "AVG(",
        "IS_DEFINED(",
        "STARTSWITH(",
        "AS",
        "n",
        "null",
        "$a",
        "1e9",
        "ü",
        "\u{0}",
    ];
}
