//! `holdfast bench` and `holdfast simulate` as programs: each starts or finds a real hub and prints true numbers.

use std::process::{Command, Output};

use serde_json::Value;

fn holdfast(arguments: &[&str], directory: &std::path::Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    // What the environment of the test says of other hubs is not meant.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HOLDFAST_") {
            command.env_remove(name);
        }
    }
    command
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("holdfast starts")
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn measure(arguments: &[&str]) -> Value {
    let dir = tempfile::tempdir().expect("a directory");
    let work_dir = dir.path().to_str().expect("a name");
    let arguments = [
        &["bench"],
        arguments,
        &["--output", "json", "--work-dir", work_dir],
    ]
    .concat();
    let report = json(&holdfast(&arguments, dir.path()));
    let left: Vec<_> = std::fs::read_dir(dir.path()).expect("the directory").collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    report
}

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("{value} is not a number"))
}

#[test]
fn ingest_measures_a_hub_of_its_own() {
    for extra in [&["--spawn"][..], &["--spawn", "--tls"], &["--rate", "500"]] {
        let load = &["ingest", "-c", "4", "--duration", "1s", "--warm-up", "100ms"];
        let report = measure(&[load, extra].concat());
        assert_eq!(report["measurement"], "ingest");
        assert_eq!(report["parameters"]["connections"], 4);
        let result = &report["results"][0];
        let rate = number(&result["ackedPerSecond"]);
        assert!(rate > 100.0, "{report}");
        if extra.contains(&"--rate") {
            assert!(rate < 600.0, "{report}");
        }
        assert!(
            number(&result["latencyP99Ms"]) >= number(&result["latencyP50Ms"]),
            "{report}"
        );
        assert!(number(&result["serverRssMib"]) > 1.0, "{report}");
    }
}

#[test]
fn every_measurement_of_a_hub_works() {
    let short = ["--duration", "300ms", "--warm-up", "50ms"];
    let report = measure(&["idle", "-c", "50", "--settle", "100ms"]);
    assert!(number(&report["results"][0]["openedPerSecond"]) > 1.0, "{report}");
    let report = measure(
        &[
            &["connect", "--resume", "--devices", "50", "--at-once", "4"],
            &short[..],
        ]
        .concat(),
    );
    assert!(number(&report["results"][0]["resumedPercent"]) > 50.0, "{report}");
    let report = measure(&[&["connect", "--devices", "50", "--at-once", "4"], &short[..]].concat());
    assert_eq!(number(&report["results"][0]["resumedPercent"]), 0.0, "{report}");
    let report = measure(
        &[
            &["method", "--devices", "3", "--callers", "2", "--rate", "100"],
            &short[..],
        ]
        .concat(),
    );
    assert!(number(&report["results"][0]["latencyP50Ms"]) > 0.0, "{report}");
    let report = measure(&[&["twin", "-c", "3"], &short[..]].concat());
    assert_eq!(report["results"].as_array().map(Vec::len), Some(2), "{report}");
    let report = measure(&["read", "--events", "100"]);
    assert!(number(&report["results"][0]["eventsPerSecond"]) > 1.0, "{report}");
    let report = measure(&["import", "--devices", "2000"]);
    assert!(
        number(&report["results"][0]["identitiesPerSecond"]) > 1.0,
        "{report}"
    );
    assert!(
        number(&report["results"][0]["exportedPerSecond"]) > 1.0,
        "{report}"
    );
    let report = measure(&["start", "--runs", "1", "--idle", "10ms"]);
    assert!(number(&report["results"][0]["readyMs"]) > 1.0, "{report}");
}

#[test]
fn every_measurement_over_amqp_works() {
    let load = ["-c", "4", "--duration", "500ms", "--warm-up", "100ms"];
    for extra in [&["--tls"][..], &["--rate", "500"]] {
        let report = measure(&[&["ingest", "--protocol", "amqp"], &load[..], extra].concat());
        assert_eq!(report["parameters"]["protocol"], "AMQP");
        let result = &report["results"][0];
        let rate = number(&result["ackedPerSecond"]);
        assert!(rate > 100.0, "{report}");
        if extra.contains(&"--rate") {
            assert!(rate < 600.0, "{report}");
        }
        assert!(number(&result["latencyP50Ms"]) > 0.0, "{report}");
    }
    let report = measure(&[&["compare", "--protocols", "--rounds", "1"], &load[..]].concat());
    assert_eq!(report["results"][0]["name"], "AMQP");
    assert_eq!(report["results"][1]["name"], "MQTT");
    assert!(
        number(&report["ratios"]["ackedPerServerCpuSecond"]) > 0.0,
        "{report}"
    );
    let idle = ["idle", "--protocol", "amqp", "-c", "20", "--settle", "100ms"];
    let report = measure(&[&idle[..], &["--tls"]].concat());
    assert_eq!(report["parameters"]["linksPerConnection"], 8);
    assert!(number(&report["results"][0]["openedPerSecond"]) > 1.0, "{report}");
    // Credit for one event at a time, so that readers stop in the middle of blocks; and for all of them.
    for prefetch in ["1", "60000"] {
        let read = [
            "read",
            "--protocol",
            "amqp",
            "--events",
            "2000",
            "--prefetch",
            prefetch,
        ];
        let report = measure(&read);
        assert!(number(&report["parameters"]["events"]) >= 2_000.0, "{report}");
        assert!(number(&report["results"][0]["eventsPerSecond"]) > 1.0, "{report}");
    }
}

#[test]
fn a_broker_does_not_speak_amqp() {
    let dir = tempfile::tempdir().expect("a directory");
    let arguments = ["bench", "ingest", "--protocol", "amqp", "--broker", "127.0.0.1:1"];
    let output = holdfast(&arguments, dir.path());
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("AMQP is measured on a hub"), "{said}");
}

/// A hub that ends with the test.
struct Hub {
    process: std::process::Child,
    data: tempfile::TempDir,
}

impl Hub {
    fn start() -> Hub {
        let data = tempfile::tempdir().expect("a directory");
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        command
            .args([
                "serve",
                "--no-profile",
                "--listen",
                "127.0.0.1",
                "--host",
                "localhost",
            ])
            .args([
                "--mqtt-port",
                "0",
                "--amqp-port",
                "0",
                "--https-port",
                "0",
                "--mqtt-plain",
                "127.0.0.1:0",
            ])
            .arg("--data-dir")
            .arg(data.path().join("data"))
            .stdout(std::process::Stdio::piped());
        let mut process = command.spawn().expect("holdfast starts");
        // The hub announces itself on standard output when it is ready; keep reading, so that it never blocks.
        let (ready, is_ready) = std::sync::mpsc::channel();
        let output = std::io::BufReader::new(process.stdout.take().expect("piped"));
        std::thread::spawn(move || {
            for _ in std::io::BufRead::lines(output) {
                let _ = ready.send(());
            }
        });
        let hub = Hub { process, data };
        is_ready
            .recv_timeout(std::time::Duration::from_secs(30))
            .expect("the hub says that it is ready");
        hub
    }

    fn simulate(&self, arguments: &[&str]) -> Value {
        let data = self.data.path().join("data");
        let fixed = [
            "simulate",
            "--output",
            "json",
            "--data-dir",
            data.to_str().expect("a name"),
        ];
        json(&holdfast(&[&fixed, arguments].concat(), self.data.path()))
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn simulated_devices_deliver_every_message() {
    let hub = Hub::start();
    for transport in [&[][..], &["--plain"]] {
        let load = &["-n", "3", "--count", "20", "--rate", "50", "--cleanup"];
        let summary = hub.simulate(&[load, transport].concat());
        for (member, expected) in [
            ("connected", 3),
            ("sent", 60),
            ("acknowledged", 60),
            ("failed", 0),
        ] {
            assert_eq!(summary[member], expected, "{member} of {summary}");
        }
    }
    let data = hub.data.path().join("data");
    let data = data.to_str().expect("a name");
    let left = json(&holdfast(
        &["device", "list", "--output", "json", "--data-dir", data],
        hub.data.path(),
    ));
    assert_eq!(left.as_array().map(Vec::len), Some(0), "{left}");
}
