//! The daemon as a service of systemd, through systemd's own tools.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use holdfast_program::failure::{Failure, Kind};
use serde_json::{Value, json};

use super::machine::size;
use crate::commands::output::{self, Format};

/// Name of the service.
const UNIT: &str = "holdfast-edge";
/// What is there when systemd is the first process (sd_booted).
const BOOTED: &str = "/run/systemd/system";
/// Where journald keeps its files.
const JOURNALS: [&str; 2] = ["/run/log/journal", "/var/log/journal"];
/// Flags of journalctl that name another journal.
const OTHER_JOURNALS: [&str; 6] = ["-D", "--directory", "--file", "--root", "--image", "-M"];
/// What is asked of systemd.
const PROPERTIES: &str = "LoadState,ActiveState,SubState,UnitFileState,MainPID,NRestarts,Result,ExecMainStatus,\
                          MemoryCurrent,ActiveEnterTimestamp,InactiveEnterTimestamp";
const WITHOUT: &str = "use the tools of whatever started the daemon; what it logs goes to its standard error";

/// What systemd says of the service.
pub(super) fn status(format: Format) -> anyhow::Result<()> {
    let property = format!("--property={PROPERTIES}");
    let output = Command::new("systemctl")
        .args(["show", "--no-pager", &property, UNIT])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .map_err(|error| not_run("systemctl", &error))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed("systemctl", &output.status, said.trim()).into());
    }
    let shown = read(&String::from_utf8_lossy(&output.stdout));
    if shown.get("LoadState").is_some_and(|state| state == "not-found") {
        return Err(
            Failure::new(Kind::NotFound, format!("systemd knows no service {UNIT}"))
                .hint("install packaging/holdfast-edge.service, which says how; else use the tools of whatever started the daemon")
                .into(),
        );
    }
    match format {
        Format::Json => output::json(&tell(&shown)),
        Format::Table => output::fields(&describe(&shown)),
    }
}

/// Restarts or stops the service.
pub(super) fn operate(format: Format, verb: &str, done: &str) -> anyhow::Result<()> {
    let output = Command::new("systemctl")
        .args([verb, UNIT])
        .stdout(Stdio::inherit())
        .output()
        .map_err(|error| not_run("systemctl", &error))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(failed("systemctl", &output.status, said.trim()).into());
    }
    // Such as that the unit's file has changed.
    eprint!("{said}");
    output::outcome(
        format,
        &format!("{done} {UNIT}; modules run on"),
        &json!({ done: UNIT }),
    )
}

/// The daemon's log.
pub(super) fn logs(format: Format, arguments: &[String]) -> anyhow::Result<()> {
    let holds = |folder: &&str| std::fs::read_dir(folder).is_ok_and(|mut files| files.next().is_some());
    let journal = JOURNALS.iter().any(holds);
    if !journal && !names_a_journal(arguments) {
        return Err(Failure::new(
            Kind::Unavailable,
            "this machine keeps no journal: journald does not run",
        )
        .hint(WITHOUT)
        .into());
    }
    let status = Command::new("journalctl")
        .args(journal_arguments(format, arguments))
        .status()
        .map_err(|error| not_run("journalctl", &error))?;
    if status.success() {
        return Ok(());
    }
    Err(failed("journalctl", &status, "").into())
}

fn journal_arguments(format: Format, arguments: &[String]) -> Vec<String> {
    let mut all = vec!["--unit".to_owned(), UNIT.to_owned()];
    if format == Format::Json {
        all.push("--output=json".to_owned());
    }
    all.extend_from_slice(arguments);
    all
}

fn names_a_journal(arguments: &[String]) -> bool {
    arguments.iter().any(|argument| {
        let flag = argument.split('=').next().unwrap_or_default();
        OTHER_JOURNALS.contains(&flag)
    })
}

fn not_run(program: &str, error: &std::io::Error) -> Failure {
    let what = if error.kind() == std::io::ErrorKind::NotFound {
        format!("{program} is not installed: this machine has no systemd")
    } else {
        format!("cannot run {program}: {error}")
    };
    Failure::new(Kind::Unavailable, what).hint(WITHOUT)
}

fn failed(program: &str, status: &std::process::ExitStatus, said: &str) -> Failure {
    if !Path::new(BOOTED).exists() {
        return Failure::new(
            Kind::Unavailable,
            "this machine was not started by systemd, so the daemon is no service of it",
        )
        .hint(WITHOUT);
    }
    let said = if said.is_empty() {
        String::new()
    } else {
        format!(": {said}")
    };
    Failure::new(Kind::Failed, format!("{program} failed ({status}){said}"))
        .hint("run it as root; `holdfast-edge system logs` tells what the daemon said")
}

/// `KEY=VALUE` lines.
fn read(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// For people; what is not known is left out.
fn describe(shown: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let get = |key: &str| {
        let text = shown.get(key).map(String::as_str);
        text.filter(|text| !matches!(*text, "" | "[not set]"))
    };
    let active = get("ActiveState").unwrap_or("unknown");
    let since = match active {
        "active" | "reloading" => get("ActiveEnterTimestamp"),
        _ => get("InactiveEnterTimestamp"),
    };
    let since = since.map_or_else(String::new, |since| format!(" since {since}"));
    let state = format!("{active} ({}){since}", get("SubState").unwrap_or("unknown"));
    let result = get("Result").filter(|result| *result != "success");
    let result = result.map(|result| match get("ExecMainStatus") {
        Some(code) => format!("{result}, exit code {code}"),
        None => result.to_owned(),
    });
    let number = |key: &str| get(key)?.parse::<u64>().ok();
    let pairs = [
        ("service", Some(UNIT.to_owned())),
        ("state", Some(state)),
        ("failed with", result),
        ("at boot", get("UnitFileState").map(str::to_owned)),
        (
            "process",
            number("MainPID")
                .filter(|&pid| pid > 0)
                .map(|pid| pid.to_string()),
        ),
        ("restarts", number("NRestarts").map(|count| count.to_string())),
        // All ones where systemd does not count.
        (
            "memory",
            number("MemoryCurrent")
                .filter(|&bytes| bytes < u64::MAX)
                .map(size),
        ),
        ("log", Some("holdfast-edge system logs".to_owned())),
    ];
    let known = pairs.into_iter();
    known
        .filter_map(|(name, text)| Some((name.to_owned(), text?)))
        .collect()
}

/// For scripts: numbers as numbers, `null` for what is not known.
fn tell(shown: &BTreeMap<String, String>) -> Value {
    let text = |key: &str| {
        shown
            .get(key)
            .filter(|text| !text.is_empty() && *text != "[not set]")
    };
    let number = |key: &str| text(key).and_then(|text| text.parse::<u64>().ok());
    json!({
        "service": UNIT,
        "loadState": text("LoadState"),
        "activeState": text("ActiveState"),
        "subState": text("SubState"),
        "unitFileState": text("UnitFileState"),
        "result": text("Result"),
        "exitStatus": number("ExecMainStatus"),
        "mainPid": number("MainPID").filter(|&pid| pid > 0),
        "restarts": number("NRestarts"),
        "memoryBytes": number("MemoryCurrent").filter(|&bytes| bytes < u64::MAX),
        "activeSince": text("ActiveEnterTimestamp"),
        "inactiveSince": text("InactiveEnterTimestamp"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILED: &str = "MainPID=0\nNRestarts=3\nResult=exit-code\nExecMainStatus=2\nMemoryCurrent=[not set]\n\
        LoadState=loaded\nActiveState=failed\nSubState=failed\nUnitFileState=enabled\nActiveEnterTimestamp=\n\
        InactiveEnterTimestamp=Sat 2026-11-21 09:00:00 UTC\n";
    const RUNNING: &str = "MainPID=42\nNRestarts=0\nResult=success\nExecMainStatus=0\nMemoryCurrent=11534336\n\
        LoadState=loaded\nActiveState=active\nSubState=running\nUnitFileState=disabled\n\
        ActiveEnterTimestamp=Sat 2026-11-21 09:00:00 UTC\nInactiveEnterTimestamp=\n";

    #[test]
    fn a_service_is_described() {
        let text = |shown: &str| {
            let pairs = describe(&read(shown));
            pairs
                .iter()
                .map(|(name, text)| format!("{name}: {text}"))
                .collect::<Vec<_>>()
                .join("\n")
        };
        assert_eq!(
            text(RUNNING),
            "service: holdfast-edge\nstate: active (running) since Sat 2026-11-21 09:00:00 UTC\nat boot: disabled\n\
             process: 42\nrestarts: 0\nmemory: 11.0 MiB\nlog: holdfast-edge system logs"
        );
        assert_eq!(
            text(FAILED),
            "service: holdfast-edge\nstate: failed (failed) since Sat 2026-11-21 09:00:00 UTC\n\
             failed with: exit-code, exit code 2\nat boot: enabled\nrestarts: 3\nlog: holdfast-edge system logs"
        );
        let told = tell(&read(FAILED));
        assert_eq!((&told["restarts"], &told["mainPid"]), (&json!(3), &Value::Null));
        assert_eq!(tell(&read(RUNNING))["memoryBytes"], 11_534_336);
    }

    #[test]
    fn arguments_are_passed_on() {
        let more = ["--lines".to_owned(), "5".to_owned()];
        assert_eq!(
            journal_arguments(Format::Table, &more),
            ["--unit", "holdfast-edge", "--lines", "5"]
        );
        assert_eq!(
            journal_arguments(Format::Json, &[]),
            ["--unit", "holdfast-edge", "--output=json"]
        );
        assert!(names_a_journal(&["--directory=/x".to_owned()]) && !names_a_journal(&more));
    }
}
