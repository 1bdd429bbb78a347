//! What the agent of an edge device is asked to do: `logs`, `restart`.

use std::time::Duration;

use clap::Args;
use holdfast_program::failure::{Failure, Kind, find};
use holdfast_program::units::Span;
use serde_json::{Value, json};

use super::AGENT;
use super::family::scope_of;
use crate::cli::Global;
use crate::cli::client::{Client, identity_path};
use crate::cli::output::line;

/// The agent reads logs of many modules one after the other.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Args, Debug)]
pub(in crate::cli) struct LogsArgs {
    /// Id of the edge device
    device: String,
    /// Module, regular expression of modules, or all
    module: String,
    /// Only so many lines of each module, from the end
    #[arg(long, value_name = "LINES", default_value_t = 100)]
    tail: u32,
    /// Only what was written since then: a time (RFC 3339) or a span such as 2h
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only what was written until then
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only lines of that syslog level, 0 to 7
    #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(u8).range(0..=7))]
    level: Option<u8>,
    /// Only lines in which this regular expression is found
    #[arg(long, value_name = "REGEX")]
    regex: Option<String>,
    /// How long to wait for the answer, 5s to 5m
    #[arg(long, default_value = "60s")]
    timeout: Span,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct RestartArgs {
    /// Id of the edge device
    device: String,
    /// The module
    module: String,
    /// How long to wait for the answer, 5s to 5m
    #[arg(long, default_value = "60s")]
    timeout: Span,
}

impl LogsArgs {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let mut filter = json!({ "tail": self.tail });
        for (member, value) in [
            ("since", self.since),
            ("until", self.until),
            ("regex", self.regex),
        ] {
            if let Some(value) = value {
                filter[member] = value.into();
            }
        }
        if let Some(level) = self.level {
            filter["loglevel"] = level.into();
        }
        let payload = json!({
            "schemaVersion": "1.0",
            "items": [{ "id": self.module, "filter": filter }],
            "encoding": "none",
            "contentType": "text",
        });
        let client = global.client()?;
        let answer = ask(&client, &self.device, "GetModuleLogs", &payload, self.timeout.0)?;
        if global.output() == crate::cli::output::Format::Json {
            return global.output().object(&answer);
        }
        let modules = answer.as_array().map_or(&[][..], Vec::as_slice);
        for module in modules {
            if modules.len() > 1 {
                line(&format!("==> {} <==", module["id"].as_str().unwrap_or_default()))?;
            }
            line(
                module["payload"]
                    .as_str()
                    .unwrap_or_default()
                    .trim_end_matches('\n'),
            )?;
        }
        Ok(())
    }
}

impl RestartArgs {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let payload = json!({ "schemaVersion": "1.0", "id": self.module });
        ask(&client, &self.device, "RestartModule", &payload, self.timeout.0)?;
        global.output().outcome(
            &format!("{} restarted on {}", self.module, self.device),
            &json!({ "deviceId": self.device, "moduleId": self.module }),
        )
    }
}

/// Calls a method of the agent; its refusal is a failure of the command.
fn ask(
    client: &Client,
    device: &str,
    method: &str,
    payload: &Value,
    timeout: Duration,
) -> anyhow::Result<Value> {
    let path = format!("{}/methods", identity_path("/twins", device, Some(AGENT)));
    let body = json!({
        "methodName": method,
        "payload": payload,
        "responseTimeoutInSeconds": timeout.as_secs(),
        "connectTimeoutInSeconds": 0,
    });
    let answer = client
        .post(path)
        .json(body)
        .timeout(Some(timeout + PATIENCE))
        .send()
        .map_err(|error| explain(client, device, error))?;
    let status = answer["status"].as_i64().unwrap_or(0);
    if (200..300).contains(&status) {
        return Ok(answer["payload"].clone());
    }
    let said = &answer["payload"]["message"];
    let said = said
        .as_str()
        .map_or_else(|| answer["payload"].to_string(), str::to_owned);
    let failure = Failure::new(
        Kind::Failed,
        format!("the agent of {device} refused {method} ({status}): {said}"),
    );
    let is_unknown = said.contains("no module");
    Err(if is_unknown {
        failure.hint(format!("its modules: holdfast edge modules {device}"))
    } else {
        failure
    }
    .into())
}

/// What a failure to reach the agent means for somebody who thinks of the device.
pub(super) fn explain(client: &Client, device: &str, error: anyhow::Error) -> anyhow::Error {
    let Some(failure) = find(&error) else {
        return error;
    };
    match failure.kind {
        Kind::Unavailable if failure.message.contains("DeviceNotOnline") => {
            let hint = format!(
                "start holdfast-edge on the device, and look there with `holdfast-edge check`; holdfast edge status {device} tells when it was last heard of"
            );
            Failure::new(failure.kind, failure.message.clone())
                .hint(hint)
                .into()
        }
        // No agent: no such device, or not an edge device.
        Kind::NotFound => scope_of(client, device).err().unwrap_or(error),
        _ => error,
    }
}
