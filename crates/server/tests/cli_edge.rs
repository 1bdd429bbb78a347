//! `holdfast edge` against a running hub.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use serde_json::{Value, json};
use support::{Hub, text};

fn ids(rows: &Value) -> Vec<&str> {
    rows.as_array()
        .unwrap()
        .iter()
        .filter_map(|row| row["deviceId"].as_str())
        .collect()
}

#[test]
fn edge_devices_are_made_with_what_their_program_needs() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(&dir.path().join("data"), &["--listen", "127.0.0.1"]);
    let made = hub.json(&["edge", "create", "e1"]);
    let text_of = made["connectionString"].as_str().unwrap();
    assert!(text_of.contains(";DeviceId=e1;SharedAccessKey="), "{text_of}");
    assert_eq!(
        hub.json(&["device", "show", "e1"])["capabilities"]["iotEdge"],
        true
    );
    let modules = hub.json(&["edge", "modules", "e1"]);
    let names: Vec<&str> = modules
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|row| row["moduleId"].as_str())
        .collect();
    assert_eq!(names, ["edgeAgent", "edgeHub"]);

    let file = dir.path().join("config.toml");
    let path = file.to_str().unwrap();
    let flags = [
        "--hostname",
        "e2.test",
        "--parent",
        "e1",
        "--parent-hostname",
        "e1.test",
    ];
    hub.json(&[&["edge", "create", "e2", "--config", path], &flags[..]].concat());
    let config: toml::Table = toml::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(config["device"]["hostname"].as_str(), Some("e2.test"));
    assert_eq!(config["device"]["parent_hostname"].as_str(), Some("e1.test"));
    assert!(
        config["provisioning"]["connection_string"]
            .as_str()
            .unwrap()
            .contains("DeviceId=e2")
    );
    assert!(config["upstream"]["ca"].as_str().unwrap().ends_with("ca.pem"));
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(
        std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    // A file that is there is left alone, and no device is made for nothing.
    let output = hub.run(&["edge", "create", "e3", "--config", path]);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    assert_eq!(hub.run(&["device", "show", "e3"]).status.code(), Some(3));
    // Straight at the hub its ports count, which are not the usual ones here.
    let file = dir.path().join("direct.toml");
    hub.json(&["edge", "create", "e4", "--config", file.to_str().unwrap()]);
    let config: toml::Table = toml::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let port = config["upstream"]["mqtt_port"].as_integer().unwrap();
    assert_eq!(port, i64::from(hub.mqtt_port()));
}

#[test]
fn families_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(&dir.path().join("data"), &["--listen", "127.0.0.1"]);
    hub.json(&["edge", "create", "top"]);
    hub.json(&["edge", "create", "mid"]);
    for leaf in ["a", "b", "c"] {
        hub.json(&["device", "create", leaf]);
    }
    hub.json(&["edge", "set-parent", "mid", "top"]);
    hub.json(&["edge", "add-child", "mid", "a", "b"]);
    hub.json(&["edge", "set-parent", "c", "top"]);
    assert_eq!(ids(&hub.json(&["edge", "list-children", "mid"])), ["a", "b"]);
    assert_eq!(ids(&hub.json(&["edge", "list-children", "top"])), ["c", "mid"]);
    let scope = hub.json(&["device", "show", "mid"])["deviceScope"].clone();
    assert_eq!(hub.json(&["device", "show", "a"])["deviceScope"], scope);

    let output = hub.run(&["edge", "set-parent", "a", "top"]);
    assert_eq!(output.status.code(), Some(5));
    assert!(
        text(&output.stderr).contains("--force"),
        "{}",
        text(&output.stderr)
    );
    hub.json(&["edge", "set-parent", "a", "top", "--force"]);
    assert_eq!(ids(&hub.json(&["edge", "list-children", "mid"])), ["b"]);
    assert_eq!(
        hub.run(&["edge", "remove-child", "mid", "a"]).status.code(),
        Some(3)
    );
    hub.json(&["edge", "remove-child", "mid", "b"]);
    assert!(ids(&hub.json(&["edge", "list-children", "mid"])).is_empty());
    assert_eq!(hub.json(&["device", "show", "b"])["parentScopes"], json!([]));
    hub.json(&["edge", "remove-child", "top", "--all"]);
    assert!(ids(&hub.json(&["edge", "list-children", "top"])).is_empty());
    assert_eq!(
        hub.json(&["device", "show", "mid"])["deviceScope"],
        scope,
        "its own stays"
    );

    let output = hub.run(&["edge", "set-parent", "a", "b"]);
    assert!(
        text(&output.stderr).contains("not an edge device"),
        "{}",
        text(&output.stderr)
    );
    hub.json(&["edge", "set-parent", "mid", "top"]);
    assert!(
        !hub.run(&["edge", "set-parent", "top", "mid"]).status.success(),
        "no circles"
    );
}

#[test]
fn deployments_and_their_state_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(&dir.path().join("data"), &["--listen", "127.0.0.1"]);
    hub.json(&["edge", "create", "e1"]);
    let manifest = json!({"modulesContent": {
        "$edgeAgent": {"properties.desired": {
            "schemaVersion": "1.1",
            "runtime": {"type": "docker", "settings": {}},
            "systemModules": {
                "edgeAgent": {"type": "docker", "settings": {"image": "agent:1"}},
                "edgeHub": {"type": "docker", "status": "running", "restartPolicy": "always", "settings": {"image": "hub:1"}},
            },
            "modules": {"sensor": {"type": "docker", "status": "running", "restartPolicy": "always",
                "settings": {"image": "sensor:1"}}},
        }},
        "$edgeHub": {"properties.desired": {"schemaVersion": "1.1", "routes": {},
            "storeAndForwardConfiguration": {"timeToLiveSecs": 7200}}},
    }});
    hub.json(&["edge", "deploy", "e1", "--content", &manifest.to_string()]);
    let rows = hub.json(&["edge", "modules", "e1"]);
    let sensor = rows
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["moduleId"] == "sensor")
        .unwrap();
    assert_eq!(
        (&sensor["desiredStatus"], &sensor["image"]),
        (&json!("running"), &json!("sensor:1"))
    );
    let status = hub.json(&["edge", "status", "e1"]);
    assert_eq!((&status["modules"], &status["running"]), (&json!(3), &json!(0)));
    assert_eq!(status["connectionState"], "Disconnected");
    let output = hub.run(&["edge", "status"]);
    let table = text(&output.stdout);
    assert!(table.contains("e1") && table.contains("Disconnected"), "{table}");
    let table = text(&hub.run(&["edge", "modules", "e1"]).stdout);
    assert!(table.contains("sensor:1"), "{table}");
    // Nobody is there to ask.
    for command in [
        &["edge", "logs", "e1", "sensor"][..],
        &["edge", "restart", "e1", "sensor"],
    ] {
        let output = hub.run(command);
        assert_eq!(output.status.code(), Some(6), "{}", text(&output.stderr));
    }
    let output = hub.run(&["edge", "deploy", "e1", "--content", "{}"]);
    assert_eq!(output.status.code(), Some(2));
}
