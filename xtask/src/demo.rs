//! `cargo xtask demo`: from a fresh checkout to an unmodified Azure IoT device program talking to a hub.
//!
//! # The device program
//!
//! `tests/clients/python/demo_device.py --connection-string CS --ca FILE` is an ordinary program for the Azure IoT
//! device SDK. It knows nothing of Holdfast except that it is given the CA certificate's file. It
//!
//! - connects over MQTT with TLS, sends a few telemetry messages, answers a direct method, receives a
//!   cloud-to-device message, receives a change of desired properties and reports it back;
//! - prints one JSON object per line on standard output for each happening, with the name in `event`: `connected`,
//!   `telemetry-sent`, `ready` (all sent and subscribed), `method` (with `name`), `c2d` (with `data`),
//!   `twin-desired` (with `patch`), `twin-reported` (with `reported`);
//! - exits with 0 once it has seen one method call, one cloud-to-device message and one desired change and has sent
//!   its telemetry, and with 1 when that has not happened in its own time limit.

mod edge;
mod hub;
mod story;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::args::Args;
use crate::process::Service;
use crate::{lock, paths, process, say, setup};

use hub::Hub;
use story::Story;

pub(crate) const HELP: &str = "\
Usage: cargo xtask demo [--edge] [--keep]

Sets up what is missing (Debian packages when root, a Python environment in the build directory), builds
holdfast and shows it working: starts a hub in a temporary directory, registers a device, runs an unmodified
Azure IoT device SDK program against it and talks to that from the command line. Prints each step with its
outcome; fails when a step failed. Needs TCP port 8883, which the Python SDK fixes.

With --edge: a hub and an edge device with real containers, a simulated sensor and a module on the unmodified Python
SDK, pulled from a registry with credentials. The device is a network namespace with a container engine of its own,
so an engine that you use is left alone and no port of this machine is taken. Needs root and, to install what is
missing, Debian; the first run makes the images, which takes some minutes.

Options:
  --edge   the story of an edge device
  --keep   afterwards leave the hub running until Ctrl-C, and its data directory in place";

const DEVICE: &str = "demo-device";

/// How long the story waits for one thing to happen.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn run(mut args: Args) -> Result<()> {
    let keep = args.flag("--keep");
    let edge = args.flag("--edge");
    args.finish()?;
    if edge {
        return edge::run(keep);
    }
    let python = setup::for_demo()?;
    let _ports = lock::fixed_ports()?;
    let mut story = Story::begin();
    let hub = tell(&mut story, &python);
    if let (true, Ok(Some(hub))) = (keep, &hub) {
        say(&hub.how_to_use());
    }
    finish(&mut story, hub, keep)?;
    say(&story.summary());
    if story.failed() > 0 {
        bail!("{} of {} steps of the demo failed", story.failed(), story.steps());
    }
    Ok(())
}

/// The same story as a suite: how many steps passed and failed.
pub(crate) fn play() -> Result<(u64, u64)> {
    let python = setup::for_demo()?;
    let _ports = lock::fixed_ports()?;
    let mut story = Story::begin();
    let hub = tell(&mut story, &python);
    finish(&mut story, hub, false)?;
    say(&story.summary());
    Ok((story.steps() - story.failed(), story.failed()))
}

/// Tells the story; returns the hub, still running. A step that later ones need ends the story when it fails,
/// and has been counted then.
fn tell(story: &mut Story, python: &Path) -> Result<Option<Hub>> {
    let Some(hub) = story.step("Start a hub with an empty data directory", || {
        let hub = Hub::start()?;
        let detail = format!("ready, {} on MQTT port 8883", hub.host());
        Ok((hub, detail))
    }) else {
        return Ok(None);
    };
    if with_device(story, &hub, python).is_none() {
        say(&format!(
            "The story cannot go on. The hub's log:\n{}",
            hub.log_tail()
        ));
    }
    Ok(Some(hub))
}

/// The part of the story that needs a device. `None` when it could not be told to its end.
fn with_device(story: &mut Story, hub: &Hub, python: &Path) -> Option<()> {
    story.step("Register a device", || {
        let device = hub.json(&["device", "create", DEVICE, "--output", "json"])?;
        Ok((
            (),
            format!("{} is {}", text(&device, "deviceId"), text(&device, "status")),
        ))
    })?;
    let connection_string = story.step("Ask for its connection string", || {
        let line = hub
            .text(&["connection-string", "--device", DEVICE])?
            .trim()
            .to_owned();
        let shown = line
            .split(";SharedAccessKey=")
            .next()
            .unwrap_or_default()
            .to_owned();
        Ok((line, format!("{shown};SharedAccessKey=…")))
    })?;
    let mut monitor = story.step("Watch the hub's events with `holdfast monitor`", || {
        Ok((hub.monitor()?, "watching".to_owned()))
    })?;
    let mut device = story.step("Start the Azure IoT SDK program (Python, MQTT over TLS)", || {
        let mut device = start_device(hub, python, &connection_string)?;
        event(&mut device, "connected")?;
        Ok((device, "connected".to_owned()))
    })?;
    telemetry(story, &mut device, &mut monitor);
    method(story, hub, &mut device);
    twin(story, hub, &mut device);
    // Last, because the program ends when it has seen all three, and must have reported its twin by then.
    cloud_to_device(story, hub, &mut device);
    story.step("The device program ends by itself", || {
        let status = device.wait_end(PATIENCE)?;
        if !status.success() {
            bail!(
                "it says that something is missing ({status})\n{}",
                device.log_tail()
            );
        }
        Ok(((), "it has seen all it waited for".to_owned()))
    });
    story.step("Stop the monitor", || {
        let seen = monitor.lines().len();
        monitor.stop(PATIENCE)?;
        Ok(((), format!("it printed {seen} events")))
    });
    Some(())
}

fn telemetry(story: &mut Story, device: &mut Service, monitor: &mut Service) {
    story.step("The device's telemetry arrives", || {
        event(device, "ready")?;
        let line = monitor.wait_lines("telemetry in the monitor", PATIENCE, |lines| {
            lines
                .iter()
                .find(|line| line.contains(DEVICE) && line.contains("temperature"))
                .cloned()
        })?;
        Ok(((), shorten(&line)))
    });
}

fn method(story: &mut Story, hub: &Hub, device: &mut Service) {
    story.step("Call a direct method", || {
        let args = [
            "method",
            "invoke",
            DEVICE,
            "reboot",
            "--payload",
            r#"{"delay":1}"#,
            "--output",
            "json",
        ];
        let answer = hub.json(&args)?;
        let seen = event(device, "method")?;
        if answer["status"] != 200 {
            bail!("the answer is {answer}");
        }
        Ok((
            (),
            format!(
                "the device saw {}, answered {}",
                text(&seen, "name"),
                answer["payload"]
            ),
        ))
    });
}

fn cloud_to_device(story: &mut Story, hub: &Hub, device: &mut Service) {
    story.step("Send a cloud-to-device message", || {
        hub.text(&["c2d", "send", DEVICE, "hello from the hub"])?;
        let seen = event(device, "c2d")?;
        if text(&seen, "data") != "hello from the hub" {
            bail!("the device received {seen}");
        }
        Ok(((), format!("the device received \"{}\"", text(&seen, "data"))))
    });
}

fn twin(story: &mut Story, hub: &Hub, device: &mut Service) {
    let changed = story.step("Change a desired property", || {
        hub.text(&["twin", "update", DEVICE, "--desired", r#"{"interval":5}"#])?;
        let seen = event(device, "twin-desired")?;
        Ok(((), format!("the device received {}", seen["patch"])))
    });
    if changed.is_none() {
        return;
    }
    story.step("The device reports it back", || {
        event(device, "twin-reported")?;
        let twin = hub.json(&["twin", "show", DEVICE, "--output", "json"])?;
        let reported = &twin["properties"]["reported"];
        if reported["interval"] != 5 {
            bail!("the twin's reported properties are {reported}");
        }
        Ok(((), format!("the twin says interval {}", reported["interval"])))
    });
}

/// Stops the hub, or leaves it to the person who asked for that.
fn finish(story: &mut Story, hub: Result<Option<Hub>>, keep: bool) -> Result<()> {
    let Some(mut hub) = hub? else { return Ok(()) };
    if keep {
        return hub.wait_for_person();
    }
    story.step("Stop the hub", || {
        hub.stop()?;
        Ok(((), "closed cleanly".to_owned()))
    });
    hub.remove_data();
    Ok(())
}

fn start_device(hub: &Hub, python: &Path, connection_string: &str) -> Result<Service> {
    let program: PathBuf = paths::root().join("tests/clients/python/demo_device.py");
    if !program.is_file() {
        bail!("{} is missing", program.display());
    }
    let mut command = Command::new(python);
    command
        .arg("-u")
        .arg(program)
        .args(["--connection-string", connection_string, "--ca"])
        .arg(hub.ca());
    Service::start("device", &mut command, &paths::logs())
}

/// Waits for the device program to print the event, and returns it.
fn event(device: &mut Service, name: &str) -> Result<Value> {
    device.wait_lines(&format!("event {name:?}"), PATIENCE, |lines| {
        let events = lines
            .iter()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.into_iter().find(|event| event["event"] == name)
    })
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn shorten(line: &str) -> String {
    match line.char_indices().nth(100) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line.to_owned(),
    }
}

/// Parses the JSON that a command printed.
fn parse(output: &str, command: &Command) -> Result<Value> {
    serde_json::from_str(output)
        .with_context(|| format!("{} did not print JSON but: {output}", process::shown(command)))
}
