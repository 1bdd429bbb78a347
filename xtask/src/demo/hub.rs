//! A hub of our own: `holdfast serve` in a temporary data directory, and the command line that talks to it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process::{Service, output};
use crate::{paths, say};

/// The Python device SDK connects to this port and no other.
const MQTT_PORT: u16 = 8883;

/// How long a hub may take to start or stop.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running hub.
pub(super) struct Hub {
    service: Service,
    data: PathBuf,
    env: BTreeMap<String, String>,
}

impl Hub {
    /// Starts a hub and waits until it answers.
    pub(super) fn start() -> Result<Self> {
        if !is_free(MQTT_PORT) {
            bail!(
                "TCP port {MQTT_PORT} is in use, and the Python SDK knows no other. See who has it: \
                 ss --listening --tcp --processes 'sport = {MQTT_PORT}'"
            );
        }
        Self::start_with(&["--https-port", "0", "--amqp-port", "0"])
    }

    /// Starts a hub that listens on this address alone, on free ports, and is known by it.
    pub(super) fn start_on(address: Ipv4Addr) -> Result<Self> {
        let address = address.to_string();
        let ports = ["--mqtt-port", "0", "--https-port", "0", "--amqp-port", "0"];
        let place = ["--host", &address, "--listen", &address];
        Self::start_with(&[&ports[..], &place[..]].concat())
    }

    /// The command line finds the HTTPS port in the data directory, so any free one will do. The profile of the person who
    /// runs this stays as it is.
    fn start_with(arguments: &[&str]) -> Result<Self> {
        let data = std::env::temp_dir().join(format!("holdfast-demo-{}", std::process::id()));
        let mut command = holdfast();
        command.arg("serve").arg("--data-dir").arg(&data);
        command.args(arguments).args(["--blob-port", "0", "--no-profile"]);
        let service = Service::start("hub", &mut command, &paths::logs())?;
        let mut hub = Self {
            service,
            data,
            env: BTreeMap::new(),
        };
        hub.wait_ready()?;
        Ok(hub)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let file = self.data.join("connection.env");
        loop {
            if !self.service.is_running() {
                bail!("the hub ended at its start:\n{}", self.service.log_tail());
            }
            let answer = match std::fs::read_to_string(&file) {
                Ok(text) => {
                    self.env = parse_env(&text);
                    self.text(&["device", "list", "--output", "json"]).map(drop)
                }
                Err(error) => Err(error).with_context(|| format!("no {}", file.display())),
            };
            match answer {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    let log = self.service.log_tail();
                    return Err(error.context(format!("the hub is not ready after {PATIENCE:?}:\n{log}")));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// The hub's host name.
    pub(super) fn host(&self) -> &str {
        self.env.get("HOLDFAST_HOST").map_or("localhost", String::as_str)
    }

    /// The file with the CA certificate.
    pub(super) fn ca(&self) -> PathBuf {
        self.env
            .get("HOLDFAST_CA")
            .map_or_else(|| self.data.join("ca.pem"), PathBuf::from)
    }

    pub(super) fn log_tail(&self) -> String {
        self.service.log_tail()
    }

    /// A command of `holdfast` that speaks to this hub.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = holdfast();
        command.args(args).arg("--data-dir").arg(&self.data);
        command
    }

    /// Runs a command and returns what it printed.
    pub(super) fn text(&self, args: &[&str]) -> Result<String> {
        output(&mut self.command(args))
    }

    /// Runs a command and returns the JSON it printed.
    pub(super) fn json(&self, args: &[&str]) -> Result<Value> {
        let mut command = self.command(args);
        super::parse(&output(&mut command)?, &command)
    }

    /// Starts `holdfast monitor`, one JSON object per event; from the first, so that none is missed while it starts.
    pub(super) fn monitor(&self) -> Result<Service> {
        Service::start(
            "monitor",
            &mut self.command(&["monitor", "--json", "--from", "earliest"]),
            &paths::logs(),
        )
    }

    /// Asks the hub to end and waits for it.
    pub(super) fn stop(&mut self) -> Result<()> {
        let status = self.service.stop(PATIENCE)?;
        if !status.success() {
            bail!("the hub ended with {status}\n{}", self.service.log_tail());
        }
        Ok(())
    }

    /// Removes the data directory.
    pub(super) fn remove_data(&self) {
        if let Err(error) = std::fs::remove_dir_all(&self.data) {
            say(&format!("cannot remove {}: {error}", self.data.display()));
        }
    }

    /// What to type to go on with this hub.
    pub(super) fn how_to_use(&self) -> String {
        format!(
            "\nThe hub keeps running (process {}). In another terminal:\n  \
             source {}\n  {} device list --data-dir {}\nEnd it with Ctrl-C; the data stays in {3}.",
            self.service.pid(),
            self.data.join("connection.env").display(),
            paths::holdfast().display(),
            self.data.display(),
        )
    }

    /// Waits until the hub ends, which Ctrl-C makes it do.
    pub(super) fn wait_for_person(&mut self) -> Result<()> {
        // Ctrl-C goes to the whole process group, so the hub ends with us.
        self.service.wait_end(Duration::from_secs(365 * 24 * 3600))?;
        Ok(())
    }
}

/// The program, without variables that would make it talk to another hub.
fn holdfast() -> Command {
    let mut command = Command::new(paths::holdfast());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HOLDFAST_") {
            command.env_remove(name);
        }
    }
    command
}

/// Whether a listener can be had on the port, on all addresses.
fn is_free(port: u16) -> bool {
    TcpListener::bind(("0.0.0.0", port)).is_ok()
}

/// Reads shell assignments: `NAME=value`, `NAME='value'`, `export NAME="value"`.
fn parse_env(text: &str) -> BTreeMap<String, String> {
    let assignments = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let pairs = assignments.filter_map(|line| line.strip_prefix("export ").unwrap_or(line).split_once('='));
    pairs
        .map(|(name, value)| (name.to_owned(), value.trim_matches(['\'', '"']).to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_shell_assignments() {
        let env = parse_env("# x=1\nA=b\nexport CS='HostName=h;Key=a+b=='\nQ=\"x y\"\n");
        assert_eq!(env["A"], "b");
        assert_eq!(env["CS"], "HostName=h;Key=a+b==");
        assert_eq!(env["Q"], "x y");
        assert_eq!(env.len(), 3);
    }

    #[test]
    fn a_taken_port_is_not_free() {
        let listener = TcpListener::bind(("0.0.0.0", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(!is_free(port));
        drop(listener);
        assert!(is_free(port));
    }
}
