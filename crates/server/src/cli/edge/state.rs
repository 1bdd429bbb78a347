//! What is wanted of an edge device and what it reports, as its two system modules tell it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::agent::explain;
use super::{AGENT, HUB};
use crate::cli::client::{Client, identity_path};

/// A module that has no restart policy in the manifest has this one (edge.md 2.2).
const POLICY_DEFAULT: &str = "on-unhealthy";

/// Everything the hub knows of the modules of one edge device.
#[derive(Clone, Debug)]
pub(super) struct Device {
    /// Twin of `$edgeAgent`.
    pub agent: Value,
    /// Twin of `$edgeHub`.
    pub hub: Value,
    /// Identities of the modules.
    pub identities: Value,
}

impl Device {
    /// Asks the hub. A device without an agent is not an edge device, which is said rather.
    pub(super) fn read(client: &Client, device: &str) -> anyhow::Result<Self> {
        let agent = client.get(identity_path("/twins", device, Some(AGENT))).send();
        let path = format!("{}/modules", identity_path("/devices", device, None));
        Ok(Device {
            agent: agent.map_err(|error| explain(client, device, error))?,
            hub: client.get(identity_path("/twins", device, Some(HUB))).send()?,
            identities: client.get(path).send()?,
        })
    }

    /// All of it, for scripts and for `holdfast edge status DEVICE`.
    pub(super) fn status(&self) -> Value {
        let mut status = summary(&self.agent, Some(&self.hub));
        let reported = &self.agent["properties"]["reported"];
        status["runtime"] = json!({
            "type": reported["runtime"]["type"],
            "platform": reported["runtime"]["platform"],
        });
        status["platform"] = reported["runtime"]["platform"].clone();
        status["deployments"] = self.agent["configurations"].clone();
        status["edgeAgent"] = system_module(&self.agent);
        let clients = self.hub["properties"]["reported"]["clients"].as_object();
        let connected = clients.map_or(0, |clients| {
            clients
                .values()
                .filter(|client| client["status"] == "Connected")
                .count()
        });
        status["edgeHub"]["clientsConnected"] = connected.into();
        status["edgeHub"]["clientsKnown"] = clients.map_or(0, serde_json::Map::len).into();
        status["moduleStates"] = self.modules().into();
        status
    }

    /// A row per module that is wanted, reported, or has an identity.
    pub(super) fn modules(&self) -> Vec<Value> {
        let properties = &self.agent["properties"];
        let (desired, reported) = (&properties["desired"], &properties["reported"]);
        let identities: BTreeMap<&str, &Value> = self
            .identities
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|identity| Some((short(identity["moduleId"].as_str()?), identity)))
            .collect();
        let wanted = all(desired);
        let mut names: Vec<&str> = wanted.keys().chain(all(reported).keys()).copied().collect();
        names.extend(identities.keys());
        names.sort_unstable();
        names.dedup();
        names
            .into_iter()
            .map(|name| {
                let identity = identities.get(name).copied().unwrap_or(&Value::Null);
                row(name, wanted.get(name).copied(), one(reported, name), identity)
            })
            .collect()
    }
}

fn row(name: &str, wanted: Option<&Value>, is: &Value, identity: &Value) -> Value {
    // The agent has no status: it always runs.
    let wanted_status = wanted.map(|module| module["status"].as_str().unwrap_or("running"));
    let image = wanted.map_or(&is["settings"]["image"], |module| &module["settings"]["image"]);
    json!({
        "moduleId": name,
        "desiredStatus": wanted_status,
        "runtimeStatus": is["runtimeStatus"],
        "restartPolicy": wanted.unwrap_or(is)["restartPolicy"],
        "restartCount": is["restartCount"],
        "exitCode": is["exitCode"],
        "lastStartTimeUtc": is["lastStartTimeUtc"],
        "lastExitTimeUtc": is["lastExitTimeUtc"],
        "lastRestartTimeUtc": is["lastRestartTimeUtc"],
        "statusDescription": is["statusDescription"],
        "version": wanted.unwrap_or(is)["version"],
        "image": image,
        "reportedImage": is["settings"]["image"],
        "connectionState": identity["connectionState"],
        "lastActivityTime": identity["lastActivityTime"],
    })
}

/// What the twin of an agent tells of its device, and that of its edge hub if there is one.
pub(super) fn summary(agent: &Value, hub: Option<&Value>) -> Value {
    let (desired, reported) = (&agent["properties"]["desired"], &agent["properties"]["reported"]);
    let wanted = all(desired);
    let running = wanted
        .keys()
        .filter(|name| one(reported, name)["runtimeStatus"] == "running")
        .count();
    json!({
        "deviceId": agent["deviceId"],
        "connectionState": agent["connectionState"],
        "lastActivityTime": agent["lastActivityTime"],
        "desiredVersion": desired["$version"],
        "lastDesiredVersion": reported["lastDesiredVersion"],
        "lastDesiredStatus": reported["lastDesiredStatus"],
        "agentVersion": reported["version"]["version"],
        "modules": wanted.len(),
        "running": running,
        "edgeHub": hub.map(system_module),
    })
}

/// What the twin of a system module tells of what it was told.
fn system_module(twin: &Value) -> Value {
    let reported = &twin["properties"]["reported"];
    json!({
        "connectionState": twin["connectionState"],
        "lastActivityTime": twin["lastActivityTime"],
        "desiredVersion": twin["properties"]["desired"]["$version"],
        "lastDesiredVersion": reported["lastDesiredVersion"],
        "lastDesiredStatus": reported["lastDesiredStatus"],
    })
}

/// The modules of a deployment or a report, system modules included, by name.
fn all(properties: &Value) -> BTreeMap<&str, &Value> {
    ["systemModules", "modules"]
        .into_iter()
        .filter_map(|section| properties[section].as_object())
        .flatten()
        .map(|(name, module)| (name.as_str(), module))
        .collect()
}

fn one<'a>(properties: &'a Value, name: &str) -> &'a Value {
    let system = &properties["systemModules"][name];
    if system.is_null() {
        &properties["modules"][name]
    } else {
        system
    }
}

/// The identities of system modules have a dollar sign in front, which their entries in a deployment have not.
fn short(id: &str) -> &str {
    let is_system = id == AGENT || id == HUB;
    id.strip_prefix('$').filter(|_| is_system).unwrap_or(id)
}

/// The modules of the deployment that are not as it wants them, in words; by a row of [`Device::modules`].
pub(super) fn unwell(modules: &[Value]) -> Vec<(&str, String)> {
    modules
        .iter()
        .filter_map(|module| {
            let name = module["moduleId"].as_str()?;
            let wanted = module["desiredStatus"].as_str()?;
            let is = module["runtimeStatus"].as_str();
            let policy = module["restartPolicy"].as_str().unwrap_or(POLICY_DEFAULT);
            let done = is == Some("stopped") && module["exitCode"] == 0 && policy != "always";
            let well = match wanted {
                "stopped" => is.is_some() && is != Some("running"),
                _ => is == Some("running") || done,
            };
            (!well).then(|| (name, words(module, is)))
        })
        .collect()
}

fn words(module: &Value, is: Option<&str>) -> String {
    let mut text = is.unwrap_or("not there yet").to_owned();
    match module["exitCode"].as_i64() {
        Some(code) if code != 0 => text.push_str(&format!(", exit code {code}")),
        _ => {}
    }
    match module["restartCount"].as_u64() {
        Some(1) => text.push_str(", 1 restart"),
        Some(count) if count > 0 => text.push_str(&format!(", {count} restarts")),
        _ => {}
    }
    if let Some(said) = module["statusDescription"]
        .as_str()
        .filter(|said| !said.is_empty())
    {
        text.push_str(&format!(": {said}"));
    }
    text
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::cli::edge) fn device() -> Device {
        let agent = json!({
            "deviceId": "e1",
            "connectionState": "Connected",
            "lastActivityTime": "2026-03-01T10:00:00Z",
            "properties": {
                "desired": {
                    "$version": 4,
                    "$metadata": {"$lastUpdated": "2026-03-01T10:00:00Z"},
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
                    "runtime": {"type": "docker", "platform": {"os": "linux", "architecture": "x86_64", "version": "1.2.3"}},
                    "systemModules": {"edgeAgent": {"runtimeStatus": "running"}},
                    "modules": {
                        "sensor": {"runtimeStatus": "backoff", "restartCount": 3, "exitCode": 1,
                            "settings": {"image": "sensor:0"}},
                        "gone": {"runtimeStatus": "running", "settings": {"image": "gone:1"}},
                    },
                },
            },
        });
        let hub = json!({
            "deviceId": "e1",
            "connectionState": "Disconnected",
            "lastActivityTime": "2026-03-01T09:00:00Z",
            "properties": {
                "desired": {"$version": 7, "routes": {}},
                "reported": {
                    "lastDesiredVersion": 7,
                    "lastDesiredStatus": {"code": 400, "description": "route up: expected INTO"},
                    "clients": {"e1/sensor": {"status": "Connected"}, "e1/late": {"status": "Disconnected"}},
                },
            },
        });
        let identities = json!([
            {"moduleId": "$edgeAgent", "connectionState": "Connected"},
            {"moduleId": "$edgeHub", "connectionState": "Disconnected"},
            {"moduleId": "sensor", "connectionState": "Disconnected"},
        ]);
        Device {
            agent,
            hub,
            identities,
        }
    }

    #[test]
    fn modules_are_told_from_both_sides() {
        let rows = device().modules();
        let short = |row: &Value| {
            let text = |member: &str| row[member].as_str().unwrap_or("-").to_owned();
            [
                text("moduleId"),
                text("desiredStatus"),
                text("runtimeStatus"),
                text("image"),
                text("reportedImage"),
                text("connectionState"),
            ]
        };
        let rows: Vec<[String; 6]> = rows.iter().map(short).collect();
        let expected = [
            ["edgeAgent", "running", "running", "agent", "-", "Connected"],
            ["edgeHub", "-", "-", "-", "-", "Disconnected"],
            ["gone", "-", "running", "gone:1", "gone:1", "-"],
            ["late", "stopped", "-", "late:1", "-", "-"],
            [
                "sensor",
                "running",
                "backoff",
                "sensor:1",
                "sensor:0",
                "Disconnected",
            ],
        ];
        assert_eq!(rows, expected);
    }

    #[test]
    fn the_status_counts_what_runs_of_what_is_wanted() {
        let status = device().status();
        assert_eq!((&status["modules"], &status["running"]), (&json!(3), &json!(1)));
        assert_eq!(status["lastDesiredStatus"]["code"], 200);
        assert_eq!(
            (&status["desiredVersion"], &status["lastDesiredVersion"]),
            (&json!(4), &json!(3))
        );
        assert_eq!(status["agentVersion"], "1.2.3");
        assert_eq!(
            status["edgeHub"]["lastDesiredStatus"]["description"],
            "route up: expected INTO"
        );
        assert_eq!(
            (
                &status["edgeHub"]["clientsConnected"],
                &status["edgeHub"]["clientsKnown"]
            ),
            (&json!(1), &json!(2))
        );
        assert_eq!(status["runtime"]["type"], "docker");
        assert_eq!(status["edgeAgent"]["connectionState"], "Connected");
    }

    #[test]
    fn a_module_is_well_when_it_is_as_wanted() {
        let module = |wanted: &str, is: Option<&str>, exit: i64, policy: Option<&str>| {
            json!({"moduleId": "m", "desiredStatus": wanted, "runtimeStatus": is, "exitCode": exit,
                "restartPolicy": policy, "restartCount": 1})
        };
        let well = |module: Value| unwell(&[module]).is_empty();
        assert!(well(module("running", Some("running"), 0, Some("always"))));
        assert!(
            well(module("running", Some("stopped"), 0, None)),
            "it has done its work"
        );
        assert!(!well(module("running", Some("stopped"), 0, Some("always"))));
        assert!(!well(module("running", Some("failed"), 1, None)));
        assert!(!well(module("running", None, 0, None)));
        assert!(well(module("stopped", Some("stopped"), 0, None)));
        assert!(well(module("stopped", Some("failed"), 137, None)));
        assert!(!well(module("stopped", Some("running"), 0, None)));
        assert!(!well(module("stopped", None, 0, None)));
        let said = module("running", Some("backoff"), 1, None);
        let said = [said];
        assert_eq!(
            unwell(&said),
            [("m", "backoff, exit code 1, 1 restart".to_owned())]
        );
        let rows = device().modules();
        let names: Vec<&str> = unwell(&rows).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["late", "sensor"]);
    }
}
