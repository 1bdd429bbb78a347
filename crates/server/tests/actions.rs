//! Endpoints of the kind `action` in a running hub.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use serde_json::json;
use support::{Hub, wait_for};

#[test]
fn telemetry_is_answered_by_a_twin_patch() {
    let parent = tempfile::tempdir().unwrap();
    let hub = Hub::start(&parent.path().join("data"), &[]);
    let settings = json!({"patch": {"tags": {"heard": "{{source}} of {{deviceId}}"}}});
    let settings = settings.to_string();
    hub.json(&["endpoint", "create", "action", "answer", "--settings", &settings]);
    hub.json(&["route", "create", "all", "--endpoint", "answer"]);
    hub.json(&["simulate", "--count", "1", "-n", "1"]);
    let devices = hub.json(&["query", "SELECT * FROM devices"]);
    let device = devices[0]["deviceId"].as_str().unwrap().to_owned();
    let twin = wait_for("the tag", || {
        let twin = hub.json(&["twin", "show", &device]);
        twin["tags"]["heard"].is_string().then_some(twin)
    });
    assert_eq!(twin["tags"]["heard"], format!("Telemetry of {device}"));
}
