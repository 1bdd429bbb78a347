//! Runs the program as users do: as a process of its own, on free ports, with a data directory that goes away.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

pub(crate) mod dps;

/// Longest wait for anything. Far above what is normal, because test machines are slow at times.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The program, with an environment in which no hub of the developer is found.
pub(crate) fn holdfast() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    for name in std::env::vars_os().map(|(name, _)| name) {
        if name.to_string_lossy().starts_with("HOLDFAST_") {
            command.env_remove(name);
        }
    }
    command.env("HOLDFAST_NO_PROFILE", "1");
    // Nothing may be found in the current directory either.
    command.current_dir(env!("CARGO_TARGET_TMPDIR"));
    command
}

/// A running `holdfast serve`; killed when dropped.
pub(crate) struct Hub {
    child: Child,
    /// The banner.
    pub(crate) ready: Value,
    /// Its data directory.
    pub(crate) data_dir: PathBuf,
    log: std::thread::JoinHandle<String>,
}

impl Hub {
    /// Starts a hub on free ports and waits until it is ready.
    pub(crate) fn start(data_dir: &Path, extra: &[&str]) -> Hub {
        Self::try_start(data_dir, extra).unwrap_or_else(|log| panic!("the hub did not start:\n{log}"))
    }

    /// As [`Hub::start`]; `Err` holds what it wrote to standard error.
    pub(crate) fn try_start(data_dir: &Path, extra: &[&str]) -> Result<Hub, String> {
        let mut child = Self::spawn(data_dir, extra);
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut stderr = child.stderr.take().unwrap();
        let log = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = stderr.read_to_string(&mut text);
            text
        });
        stdout.read_line(&mut line).unwrap();
        let Ok(ready) = serde_json::from_str(&line) else {
            let _ = child.wait();
            return Err(log.join().unwrap());
        };
        Ok(Hub {
            child,
            ready,
            data_dir: data_dir.to_owned(),
            log,
        })
    }

    /// Starts the process and waits for nothing.
    pub(crate) fn spawn(data_dir: &Path, extra: &[&str]) -> Child {
        let mut command = holdfast();
        command
            .args(["serve", "--output", "json", "--log-format", "json", "--data-dir"])
            .arg(data_dir);
        for flag in ["--mqtt-port", "--amqp-port", "--https-port", "--blob-port"] {
            if !extra.contains(&flag) {
                command.args([flag, "0"]);
            }
        }
        command
            .args(extra)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Address of the plain MQTT listener.
    pub(crate) fn plain(&self) -> String {
        self.ready["mqttPlain"]
            .as_str()
            .expect("started with --mqtt-plain")
            .to_owned()
    }

    pub(crate) fn https_port(&self) -> u16 {
        u16::try_from(self.ready["httpsPort"].as_u64().unwrap()).unwrap()
    }

    pub(crate) fn mqtt_port(&self) -> u16 {
        u16::try_from(self.ready["mqttPort"].as_u64().unwrap()).unwrap()
    }

    /// Runs a command against this hub.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        holdfast()
            .args(args)
            .arg("--data-dir")
            .arg(&self.data_dir)
            .output()
            .unwrap()
    }

    /// Runs a command that must succeed and returns its JSON.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let output = self.run(&[args, &["--output", "json"]].concat());
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{args:?}: {error}: {}", text(&output.stdout)))
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// kill -9.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; returns how it ended and its log.
    pub(crate) fn stop(mut self) -> (ExitStatus, String) {
        self.signal(rustix::process::Signal::TERM);
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the hub did not stop");
            std::thread::sleep(Duration::from_millis(5));
        };
        let log = std::mem::replace(&mut self.log, std::thread::spawn(String::new));
        (status, log.join().unwrap())
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a condition.
pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "still waiting for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
