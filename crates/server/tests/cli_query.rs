//! `holdfast query` against a running hub.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use serde_json::json;
use support::{Hub, text};

#[test]
fn queries_are_asked_and_explained() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(&dir.path().join("data"), &["--listen", "127.0.0.1"]);
    for (id, tags) in [
        ("press-1", r#"{"site":"north","line":1}"#),
        ("press-2", r#"{"site":"north","line":2}"#),
        ("press-3", r#"{"site":"south","line":3}"#),
    ] {
        hub.json(&["device", "create", id]);
        hub.json(&["twin", "update", id, "--tags", tags]);
    }
    let found = hub.json(&[
        "query",
        "SELECT deviceId, tags.line FROM devices WHERE tags.site = 'north'",
    ]);
    assert_eq!(
        found,
        json!([{"deviceId": "press-1", "line": 1}, {"deviceId": "press-2", "line": 2}])
    );
    let found = hub.json(&[
        "query",
        "SELECT * FROM devices ORDER BY tags.line DESC",
        "--top",
        "2",
    ]);
    let ids: Vec<&str> = found
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|twin| twin["deviceId"].as_str())
        .collect();
    assert_eq!(ids, ["press-3", "press-2"]);

    let groups = "SELECT tags.site AS site, COUNT() AS devices FROM devices GROUP BY tags.site";
    let output = hub.run(&["query", groups]);
    let lines: Vec<String> = text(&output.stdout).lines().map(str::to_owned).collect();
    assert!(
        lines[0].contains("DEVICES") && lines[0].contains("SITE"),
        "{lines:?}"
    );
    assert!(
        lines
            .iter()
            .any(|line| line.contains("north") && line.contains('2')),
        "{lines:?}"
    );
    let output = hub.run(&["query", "SELECT * FROM devices WHERE deviceId = 'press-1'"]);
    let table = text(&output.stdout);
    assert!(
        table.contains("CONNECTION") && table.contains("Disconnected"),
        "{table}"
    );

    let file = dir.path().join("query.txt");
    std::fs::write(&file, "SELECT COUNT() AS n\nFROM devices.modules\n").unwrap();
    let argument = format!("@{}", file.display());
    assert_eq!(hub.json(&["query", &argument]), json!([{"n": 0}]));

    let output = hub.run(&["query", "SELECT * FROM devices WHERE tags.group = 'x'"]);
    assert_eq!(output.status.code(), Some(2));
    let message = text(&output.stderr);
    assert!(
        message.contains("group is a keyword; as a name it is written [[group]] (line 1, column 34)"),
        "{message}"
    );
    let marked: Vec<&str> = message
        .lines()
        .filter(|line| line.trim().chars().all(|c| c == '^'))
        .collect();
    assert!(
        marked.contains(&&*format!("  {}^^^^^", " ".repeat(33))),
        "{message}"
    );
}
