//! `cargo xtask bench`: the measurements that SPECIFICATION.md cites, each one run of `holdfast bench`.
//!
//! What is measured and how is in `holdfast bench` itself; here stand only the presets: which arguments, and
//! what must be installed for them.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::args::Args;
use crate::process::{run as run_command, shown};
use crate::{paths, say, setup, test};

pub(crate) const HELP: &str = "\
Usage: cargo xtask bench [PRESET]... [-- ARGUMENTS]

Builds holdfast and runs the measurements that SPECIFICATION.md cites. Without a preset it runs all.
ARGUMENTS are passed on to `holdfast bench`. Run it on an idle machine.

Presets:
  compare  durable telemetry, QoS 1, 200 connections, 256 bytes, window 32, beside Mosquitto in one run
  ingest   the same with TLS, and latency at half load
  idle     memory per idle connection, plain and TLS
  connect  new TLS connections per second, full and resumed
  method   direct method round trip
  twin     twin reads and durable reported updates
  amqp     telemetry over AMQP beside MQTT, events through one connection, memory per idle connection
  start    time to start and memory of an empty hub
  edge     the edge runtime with real containers: memory, start, deployments (as root; see `cargo xtask demo --help`)

The compare preset installs Debian's mosquitto when it is missing (as root); its system service is not started.";

/// A measurement: its name, the arguments of `holdfast bench` of each run, and whether Mosquitto takes part.
struct Preset {
    name: &'static str,
    runs: &'static [&'static [&'static str]],
    mosquitto: bool,
}

const fn preset(name: &'static str, runs: &'static [&'static [&'static str]]) -> Preset {
    Preset {
        name,
        runs,
        mosquitto: false,
    }
}

const PRESETS: &[Preset] = &[
    Preset {
        name: "compare",
        runs: &[&["compare"]],
        mosquitto: true,
    },
    // Half of the 400,000 acknowledged messages per second that are the goal.
    preset("ingest", &[&["ingest", "--tls"], &["ingest", "--rate", "200000"]]),
    preset("idle", &[&["idle"], &["idle", "--tls"]]),
    preset("connect", &[&["connect"], &["connect", "--resume"]]),
    preset("method", &[&["method"]]),
    preset("twin", &[&["twin"]]),
    preset(
        "amqp",
        &[
            &["compare", "--protocols"],
            &["read", "--protocol", "amqp", "--events", "3000000"],
            &["read", "--protocol", "amqp", "--events", "3000000", "--tls"],
            &["idle", "--protocol", "amqp", "--tls"],
        ],
    ),
    preset("start", &[&["start"]]),
];

pub(crate) fn run(mut args: Args) -> Result<()> {
    let mut wanted = Vec::new();
    // Not a run of `holdfast bench`, and not part of "all": it needs root.
    let mut edge = false;
    while let Some(name) = args.word() {
        if name == "edge" {
            edge = true;
            continue;
        }
        let known = || {
            PRESETS
                .iter()
                .map(|preset| preset.name)
                .collect::<Vec<_>>()
                .join(", ")
        };
        let preset = PRESETS.iter().find(|preset| preset.name == name);
        wanted.push(preset.with_context(|| format!("there is no preset {name:?}; there are {}", known()))?);
    }
    let passed_on = args.finish()?;
    if wanted.is_empty() && !edge {
        wanted = PRESETS.iter().collect();
    }
    setup::compiler()?;
    setup::build_holdfast()?;
    let mut failed = Vec::new();
    if edge && let Err(error) = test::edge_numbers(&passed_on) {
        say(&format!("edge: {error:#}"));
        failed.push("edge");
    }
    for preset in wanted {
        if let Err(error) = measure(preset, &passed_on) {
            say(&format!("{}: {error:#}", preset.name));
            failed.push(preset.name);
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn measure(preset: &Preset, passed_on: &[String]) -> Result<()> {
    let mosquitto = if preset.mosquitto {
        Some(setup::mosquitto()?)
    } else {
        None
    };
    for arguments in preset.runs {
        let mut command = Command::new(paths::holdfast());
        command.arg("bench").args(*arguments).args(passed_on);
        if let Some(dir) = mosquitto.as_deref().and_then(Path::parent) {
            command.env("PATH", path_with(dir)?);
        }
        say(&format!("\n=== {}", shown(&command)));
        run_command(&mut command)?;
    }
    Ok(())
}

/// The search path with `dir` at its end: Debian has brokers in a directory that users do not search.
fn path_with(dir: &Path) -> Result<OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain([dir.to_path_buf()]);
    std::env::join_paths(dirs).context("cannot extend the search path")
}
