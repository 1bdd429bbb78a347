//! How edge devices stand: `modules`, `status`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::state::{Device, summary, unwell};
use super::{AGENT, HUB};
use crate::cli::Global;
use crate::cli::output::{self, Format, line};
use crate::cli::query;

/// What is to be said of a module in words stands below the table, see [`print_modules`].
const MODULE_COLUMNS: &[(&str, &str)] = &[
    ("module", "/moduleId"),
    ("wanted", "/desiredStatus"),
    ("reported", "/runtimeStatus"),
    ("exit", "/exitCode"),
    ("restarts", "/restartCount"),
    ("connection", "/connectionState"),
    ("image", "/image"),
];

/// As many as leave a line per device on a terminal of 80 columns; the rest is told of a single device.
const STATUS_COLUMNS: &[(&str, &str)] = &[
    ("device", "/deviceId"),
    ("connection", "/connectionState"),
    ("code", "/lastDesiredStatus/code"),
    ("hub", "/edgeHub/lastDesiredStatus/code"),
    ("version", "/versions"),
    ("running", "/counts"),
    ("last activity", "/lastActivityTime"),
];

const SYSTEM_COLUMNS: &[(&str, &str)] = &[
    ("system module", "/moduleId"),
    ("code", "/lastDesiredStatus/code"),
    ("version", "/lastDesiredVersion"),
    ("wanted", "/desiredVersion"),
    ("connection", "/connectionState"),
    ("last activity", "/lastActivityTime"),
];

pub(super) fn modules(global: &Global, device: &str) -> anyhow::Result<()> {
    let modules = Device::read(&global.client()?, device)?.modules();
    match global.output() {
        Format::Json => output::json(&Value::Array(modules)),
        Format::Table => print_modules(&modules),
    }
}

/// Rows of [`Device::modules`], for people: a table, and below it what the device says of single modules and which of them
/// are not as wanted.
pub(super) fn print_modules(modules: &[Value]) -> anyhow::Result<()> {
    Format::Table.list(modules, MODULE_COLUMNS)?;
    let notes = notes(modules);
    if !notes.is_empty() {
        line("")?;
    }
    notes.iter().try_for_each(|note| output::paragraph(note))
}

fn notes(modules: &[Value]) -> Vec<String> {
    let unwell: BTreeMap<&str, String> = unwell(modules).into_iter().collect();
    modules
        .iter()
        .filter_map(|module| {
            let name = module["moduleId"].as_str()?;
            let said = module["statusDescription"]
                .as_str()
                .filter(|said| !said.is_empty());
            match (unwell.get(name), module["desiredStatus"].as_str(), said) {
                (Some(words), Some(wanted), _) => Some(format!("{name} should be {wanted} and is {words}")),
                (_, _, Some(said)) => Some(format!("{name}: {said}")),
                _ => None,
            }
        })
        .collect()
}

pub(super) fn status(global: &Global, device: Option<&str>) -> anyhow::Result<()> {
    let client = global.client()?;
    if let Some(id) = device {
        let device = Device::read(&client, id)?;
        return match global.output() {
            Format::Json => global.output().object(&device.status()),
            Format::Table => print(&device),
        };
    }
    let twins = |module: &str| {
        let text = format!("SELECT * FROM devices.modules WHERE moduleId = '{module}'");
        query::rows(&client, &text, None)
    };
    let id = |twin: &Value| twin["deviceId"].as_str().unwrap_or_default().to_owned();
    let hubs: BTreeMap<String, Value> = twins(HUB)?.into_iter().map(|twin| (id(&twin), twin)).collect();
    let mut rows: Vec<Value> = twins(AGENT)?
        .iter()
        .map(|agent| summary(agent, hubs.get(&id(agent))))
        .collect();
    if global.output() == Format::Table {
        for row in &mut rows {
            row["versions"] = of(&row["lastDesiredVersion"], &row["desiredVersion"]);
            row["counts"] = of(&row["running"], &row["modules"]);
        }
    }
    global.output().list(&rows, STATUS_COLUMNS)
}

/// Two numbers in one cell.
fn of(part: &Value, whole: &Value) -> Value {
    match part {
        Value::Null => format!("-/{whole}").into(),
        part => format!("{part}/{whole}").into(),
    }
}

/// The state of one device, for people.
fn print(device: &Device) -> anyhow::Result<()> {
    let status = device.status();
    output::members(&facts(&status))?;
    line("")?;
    let system: Vec<Value> = [(AGENT, "edgeAgent"), (HUB, "edgeHub")]
        .into_iter()
        .map(|(id, member)| {
            let mut module = status[member].clone();
            module["moduleId"] = id.into();
            module
        })
        .collect();
    Format::Table.list(&system, SYSTEM_COLUMNS)?;
    let said: Vec<String> = system.iter().filter_map(said).collect();
    if !said.is_empty() {
        line("")?;
    }
    said.iter().try_for_each(|said| output::paragraph(said))?;
    line("")?;
    print_modules(&device.modules())
}

/// What a system module said of its desired properties, and that it has yet to tell of the last ones.
fn said(module: &Value) -> Option<String> {
    let id = module["moduleId"].as_str()?;
    let code = &module["lastDesiredStatus"]["code"];
    let text = module["lastDesiredStatus"]["description"]
        .as_str()
        .unwrap_or_default();
    let mut said = Vec::new();
    if !text.is_empty() {
        said.push(format!("{id}, code {code}: {text}"));
    }
    let (version, wanted) = (
        module["lastDesiredVersion"].as_u64(),
        module["desiredVersion"].as_u64(),
    );
    if let (Some(version), Some(wanted)) = (version, wanted)
        && version != wanted
    {
        said.push(format!(
            "{id} has not told of version {wanted} yet; what it tells is of {version}"
        ));
    }
    (!said.is_empty()).then(|| said.join("\n"))
}

fn facts(status: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.starts_with("0001-") => "never".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let platform = &status["runtime"]["platform"];
    let runtime: Vec<&str> = [
        &status["runtime"]["type"],
        &platform["os"],
        &platform["architecture"],
    ]
    .into_iter()
    .filter_map(Value::as_str)
    .collect();
    let deployments: Vec<String> = status["deployments"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, deployment)| format!("{name} ({})", text(&deployment["status"])))
        .collect();
    let or_none = |texts: Vec<String>| {
        if texts.is_empty() {
            "-".to_owned()
        } else {
            texts.join(", ")
        }
    };
    let hub = &status["edgeHub"];
    [
        ("device", text(&status["deviceId"])),
        ("connection", text(&status["connectionState"])),
        ("last activity", text(&status["lastActivityTime"])),
        ("agent version", text(&status["agentVersion"])),
        (
            "runtime",
            or_none(runtime.into_iter().map(str::to_owned).collect()),
        ),
        (
            "modules running",
            format!("{} of {}", status["running"], status["modules"]),
        ),
        (
            "clients connected",
            format!("{} of {}", hub["clientsConnected"], hub["clientsKnown"]),
        ),
        ("deployments", or_none(deployments)),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::state::tests::device;
    use super::*;

    #[test]
    fn what_people_are_told_of_a_device() {
        let status = device().status();
        let facts = facts(&status);
        let fact = |name: &str| {
            facts
                .iter()
                .find(|(known, _)| known == name)
                .map(|(_, value)| value.as_str())
        };
        assert_eq!(fact("connection"), Some("Connected"));
        assert_eq!(fact("runtime"), Some("docker, linux, x86_64"));
        assert_eq!(fact("modules running"), Some("1 of 3"));
        assert_eq!(fact("clients connected"), Some("1 of 2"));
        assert_eq!(fact("deployments"), Some("-"));
    }

    #[test]
    fn what_is_to_be_said_of_modules_stands_below_them() {
        let mut modules = device().modules();
        let sensor = "sensor should be running and is backoff, exit code 1, 3 restarts";
        assert_eq!(
            notes(&modules),
            ["late should be stopped and is not there yet", sensor]
        );
        modules.retain(|module| module["moduleId"] == "edgeAgent");
        assert!(notes(&modules).is_empty());
        modules[0]["statusDescription"] = "pulls".into();
        assert_eq!(notes(&modules), ["edgeAgent: pulls"]);
    }

    #[test]
    fn what_a_system_module_said_is_told_with_its_version() {
        let module = |version: u64, code: u64, text: &str| {
            json!({"moduleId": "$edgeHub", "desiredVersion": 3, "lastDesiredVersion": version,
                "lastDesiredStatus": {"code": code, "description": text}})
        };
        assert_eq!(said(&module(3, 200, "")), None);
        assert_eq!(
            said(&module(3, 400, "route up: no")).as_deref(),
            Some("$edgeHub, code 400: route up: no")
        );
        let old = said(&module(2, 200, "")).unwrap_or_default();
        assert!(old.contains("version 3") && old.contains("of 2"), "{old}");
        assert_eq!(said(&json!({"moduleId": "$edgeHub", "desiredVersion": 1})), None);
    }
}
