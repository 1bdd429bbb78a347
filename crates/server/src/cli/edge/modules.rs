//! What is wanted of edge devices and what they report: `modules`, `status`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::agent::explain;
use super::{AGENT, HUB};
use crate::cli::Global;
use crate::cli::client::{Client, identity_path};
use crate::cli::query;

const MODULE_COLUMNS: &[(&str, &str)] = &[
    ("module", "/moduleId"),
    ("wanted", "/desiredStatus"),
    ("reported", "/runtimeStatus"),
    ("restarts", "/restartCount"),
    ("exit", "/exitCode"),
    ("connection", "/connectionState"),
    ("image", "/image"),
    ("description", "/statusDescription"),
];

const STATUS_COLUMNS: &[(&str, &str)] = &[
    ("device", "/deviceId"),
    ("connection", "/connectionState"),
    ("code", "/lastDesiredStatus/code"),
    ("version", "/lastDesiredVersion"),
    ("wanted", "/desiredVersion"),
    ("running", "/running"),
    ("modules", "/modules"),
    ("agent", "/agentVersion"),
    ("last activity", "/lastActivityTime"),
];

pub(super) fn modules(global: &Global, device: &str) -> anyhow::Result<()> {
    let client = global.client()?;
    let twin = agent_twin(&client, device)?;
    let path = format!("{}/modules", identity_path("/devices", device, None));
    let identities = client.get(path).send()?;
    global
        .output()
        .list(&module_rows(&twin, &identities), MODULE_COLUMNS)
}

pub(super) fn status(global: &Global, device: Option<&str>) -> anyhow::Result<()> {
    let client = global.client()?;
    let Some(device) = device else {
        let text = format!("SELECT * FROM devices.modules WHERE moduleId = '{AGENT}'");
        let twins = query::rows(&client, &text, None)?;
        let rows: Vec<Value> = twins.iter().map(status_of).collect();
        return global.output().list(&rows, STATUS_COLUMNS);
    };
    global.output().object(&whole_status(&client, device)?)
}

/// The twin of a device's agent. Without one the device is not an edge device, which is said rather.
fn agent_twin(client: &Client, device: &str) -> anyhow::Result<Value> {
    let twin = client.get(identity_path("/twins", device, Some(AGENT))).send();
    twin.map_err(|error| explain(client, device, error))
}

fn whole_status(client: &Client, device: &str) -> anyhow::Result<Value> {
    let agent = agent_twin(client, device)?;
    let hub = client.get(identity_path("/twins", device, Some(HUB))).send()?;
    let mut status = status_of(&agent);
    let reported = &hub["properties"]["reported"];
    let clients = reported["clients"].as_object();
    let connected = clients.map_or(0, |clients| {
        clients
            .values()
            .filter(|client| client["status"] == "Connected")
            .count()
    });
    status["platform"] = agent["properties"]["reported"]["runtime"]["platform"].clone();
    status["deployments"] = agent["configurations"].clone();
    status["edgeHub"] = json!({
        "connectionState": hub["connectionState"],
        "lastDesiredStatus": reported["lastDesiredStatus"],
        "lastDesiredVersion": reported["lastDesiredVersion"],
        "desiredVersion": hub["properties"]["desired"]["$version"],
        "clientsConnected": connected,
        "clientsKnown": clients.map_or(0, serde_json::Map::len),
    });
    Ok(status)
}

/// What the twin of an agent tells of its device.
fn status_of(twin: &Value) -> Value {
    let (desired, reported) = (&twin["properties"]["desired"], &twin["properties"]["reported"]);
    let wanted = wanted_modules(desired);
    let running = wanted
        .keys()
        .filter(|name| reported_module(reported, name)["runtimeStatus"] == "running")
        .count();
    json!({
        "deviceId": twin["deviceId"],
        "connectionState": twin["connectionState"],
        "lastActivityTime": twin["lastActivityTime"],
        "desiredVersion": desired["$version"],
        "lastDesiredVersion": reported["lastDesiredVersion"],
        "lastDesiredStatus": reported["lastDesiredStatus"],
        "agentVersion": reported["version"]["version"],
        "modules": wanted.len(),
        "running": running,
    })
}

/// The modules of a deployment, system modules included, by name.
fn wanted_modules(desired: &Value) -> BTreeMap<&str, &Value> {
    ["systemModules", "modules"]
        .into_iter()
        .filter_map(|section| desired[section].as_object())
        .flatten()
        .map(|(name, module)| (name.as_str(), module))
        .collect()
}

fn reported_module<'a>(reported: &'a Value, name: &str) -> &'a Value {
    let system = &reported["systemModules"][name];
    if system.is_null() {
        &reported["modules"][name]
    } else {
        system
    }
}

/// A row per module that is wanted, reported, or has an identity.
fn module_rows(twin: &Value, identities: &Value) -> Vec<Value> {
    let (desired, reported) = (&twin["properties"]["desired"], &twin["properties"]["reported"]);
    let wanted = wanted_modules(desired);
    let mut names: BTreeMap<String, ()> = wanted.keys().map(|name| ((*name).to_owned(), ())).collect();
    names.extend(
        wanted_modules(reported)
            .keys()
            .map(|name| ((*name).to_owned(), ())),
    );
    let connections: BTreeMap<String, &Value> = identities
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|identity| {
            // The identities of system modules have a dollar sign in front.
            let id = identity["moduleId"].as_str()?;
            let name = id
                .strip_prefix('$')
                .filter(|_| id == AGENT || id == HUB)
                .unwrap_or(id);
            Some((name.to_owned(), &identity["connectionState"]))
        })
        .collect();
    names.extend(connections.keys().map(|name| (name.clone(), ())));
    names
        .into_keys()
        .map(|name| {
            let (wanted, is) = (wanted.get(name.as_str()), reported_module(reported, &name));
            // The agent has no status: it always runs.
            let wanted_status = wanted.map(|module| module["status"].as_str().unwrap_or("running"));
            let image = wanted.map_or(&is["settings"]["image"], |module| &module["settings"]["image"]);
            json!({
                "desiredStatus": wanted_status,
                "runtimeStatus": is["runtimeStatus"],
                "restartCount": is["restartCount"],
                "exitCode": is["exitCode"],
                "lastStartTimeUtc": is["lastStartTimeUtc"],
                "statusDescription": is["statusDescription"],
                "image": image,
                "connectionState": connections.get(&name).copied().unwrap_or(&Value::Null),
                "moduleId": name,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn twin() -> Value {
        json!({
            "deviceId": "e1",
            "connectionState": "Connected",
            "properties": {
                "desired": {
                    "$version": 4,
                    "systemModules": {"edgeAgent": {"settings": {"image": "agent"}}},
                    "modules": {
                        "sensor": {"status": "running", "settings": {"image": "sensor:1"}},
                        "late": {"status": "stopped", "settings": {"image": "late:1"}},
                    },
                },
                "reported": {
                    "lastDesiredVersion": 3,
                    "lastDesiredStatus": {"code": 200, "description": ""},
                    "version": {"version": "1.2.3"},
                    "systemModules": {"edgeAgent": {"runtimeStatus": "running"}},
                    "modules": {
                        "sensor": {"runtimeStatus": "backoff", "restartCount": 3, "exitCode": 1},
                        "gone": {"runtimeStatus": "running", "settings": {"image": "gone:1"}},
                    },
                },
            },
        })
    }

    #[test]
    fn modules_are_told_from_both_sides() {
        let identities = json!([
            {"moduleId": "$edgeAgent", "connectionState": "Connected"},
            {"moduleId": "$edgeHub", "connectionState": "Disconnected"},
            {"moduleId": "sensor", "connectionState": "Disconnected"},
        ]);
        let rows = module_rows(&twin(), &identities);
        let short = |row: &Value| {
            let text = |member: &str| row[member].as_str().unwrap_or("-").to_owned();
            [
                text("moduleId"),
                text("desiredStatus"),
                text("runtimeStatus"),
                text("image"),
                text("connectionState"),
            ]
        };
        let rows: Vec<[String; 5]> = rows.iter().map(short).collect();
        let expected = [
            ["edgeAgent", "running", "running", "agent", "Connected"],
            ["edgeHub", "-", "-", "-", "Disconnected"],
            ["gone", "-", "running", "gone:1", "-"],
            ["late", "stopped", "-", "late:1", "-"],
            ["sensor", "running", "backoff", "sensor:1", "Disconnected"],
        ];
        assert_eq!(rows, expected);
    }

    #[test]
    fn the_status_counts_what_runs_of_what_is_wanted() {
        let status = status_of(&twin());
        assert_eq!((&status["modules"], &status["running"]), (&json!(3), &json!(1)));
        assert_eq!(status["lastDesiredStatus"]["code"], 200);
        assert_eq!(
            (&status["desiredVersion"], &status["lastDesiredVersion"]),
            (&json!(4), &json!(3))
        );
        assert_eq!(status["agentVersion"], "1.2.3");
    }
}
