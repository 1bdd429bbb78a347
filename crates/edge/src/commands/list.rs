//! `list` and `restart`.

use holdfast_model::Timestamp;
use holdfast_program::failure::{Failure, Kind};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::check::Found;
use super::output::{self, Column, Format};
use super::{Global, deployment};
use crate::modules::EDGE_AGENT;
use crate::time_text;

const COLUMNS: &[Column] = &[
    Column::cut_to("NAME", 16),
    Column::whole("STATUS"),
    Column::cut_to("DESCRIPTION", 12),
    Column::end_of("CONFIG", 18),
];

/// What engines say when there is no container of a name.
const NO_CONTAINER: &str = "no such container";

pub(super) fn run(global: &Global) -> anyhow::Result<()> {
    let client = global.client()?;
    let answer = client.get("/modules")?;
    let modules = &answer["modules"];
    // A daemon of another version or maker may not tell.
    let told = client.get("/deployment").ok();
    match global.output {
        Format::Json => output::json(modules)?,
        Format::Table => print(modules)?,
    }
    // Not among the modules: scripts read those line by line.
    for found in told
        .iter()
        .flat_map(|told| [deployment::accepted(told), deployment::routes(told)])
    {
        if let Found::Failed(what, remedy) = found {
            eprintln!("warning: {what}\n  hint: {remedy}");
        }
    }
    Ok(())
}

fn print(modules: &Value) -> anyhow::Result<()> {
    let now = time_text::now();
    let rows: Vec<Vec<String>> = modules
        .as_array()
        .into_iter()
        .flatten()
        .map(|module| {
            let text = |pointer: &str| {
                module
                    .pointer(pointer)
                    .and_then(Value::as_str)
                    .unwrap_or("-")
                    .to_owned()
            };
            vec![
                text("/name"),
                text("/status/runtimeStatus/status"),
                description(module, now),
                text("/config/settings/image"),
            ]
        })
        .collect();
    output::table(COLUMNS, &rows)
}

/// `Up 3 minutes`, `Stopped 2 hours ago`, `Failed (1) 5 seconds ago`.
fn description(module: &Value, now: Timestamp) -> String {
    let since = |pointer: &str| {
        let at = Timestamp::parse(module.pointer(pointer)?.as_str()?)?;
        Some(time_text::in_words(now.since(at)))
    };
    match module
        .pointer("/status/runtimeStatus/status")
        .and_then(Value::as_str)
    {
        Some("running") => {
            since("/status/startTime").map_or_else(|| "Up".to_owned(), |ago| format!("Up {ago}"))
        }
        Some("stopped") => since("/status/exitStatus/exitTime")
            .map_or_else(|| "Stopped".to_owned(), |ago| format!("Stopped {ago} ago")),
        Some("failed") => {
            let code = module
                .pointer("/status/exitStatus/statusCode")
                .and_then(Value::as_str)
                .unwrap_or("?");
            let ago = since("/status/exitStatus/exitTime");
            ago.map_or_else(
                || format!("Failed ({code})"),
                |ago| format!("Failed ({code}) {ago} ago"),
            )
        }
        _ => "-".to_owned(),
    }
}

/// The engine speaks of containers; what is asked for here are modules.
pub(super) fn unknown(failure: Failure, module: &str) -> Failure {
    if failure.kind != Kind::NotFound || !failure.message.to_lowercase().contains(NO_CONTAINER) {
        return failure;
    }
    Failure::new(
        Kind::NotFound,
        format!("there is no module {module} on this device"),
    )
    .hint("holdfast-edge list shows those that there are")
}

pub(super) fn restart(global: &Global, module: &str) -> anyhow::Result<()> {
    let name = utf8_percent_encode(module, NON_ALPHANUMERIC);
    let asked = global.client()?.post(&format!("/modules/{name}/restart"));
    asked.map_err(|failure| refused(failure, module))?;
    let sentence = match module {
        EDGE_AGENT => format!(
            "{EDGE_AGENT} is the daemon itself, which looks at its deployment and its modules anew; `holdfast-edge system restart` starts it anew"
        ),
        _ => format!("restarted {module}"),
    };
    output::outcome(
        global.output,
        &sentence,
        &serde_json::json!({ "restarted": module }),
    )
}

/// Why a module is not restarted.
fn refused(failure: Failure, module: &str) -> Failure {
    match failure.kind {
        Kind::Conflict => failure.hint(format!(
            "deploy {module} with the status \"running\" (`holdfast edge deploy`); that starts it"
        )),
        _ => unknown(failure, module),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn modules_are_described() {
        let now = Timestamp::parse("2026-01-01T12:00:00Z").unwrap();
        for (status, text) in [
            (
                json!({"startTime": "2026-01-01T11:57:00Z", "runtimeStatus": {"status": "running"}}),
                "Up 3 minutes",
            ),
            (
                json!({"exitStatus": {"exitTime": "2026-01-01T10:00:00Z", "statusCode": "0"}, "runtimeStatus": {"status": "stopped"}}),
                "Stopped 2 hours ago",
            ),
            (
                json!({"exitStatus": {"exitTime": "2026-01-01T11:59:55Z", "statusCode": "1"}, "runtimeStatus": {"status": "failed"}}),
                "Failed (1) 5 seconds ago",
            ),
            (json!({"runtimeStatus": {"status": "unknown"}}), "-"),
        ] {
            assert_eq!(description(&json!({ "status": status }), now), text);
        }
    }
}
