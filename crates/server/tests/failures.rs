//! What the hub does when its disk fails: it stops acknowledging rather than lie, says so, and still lets others read.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use holdfast_server::cli::client::Client;
use holdfast_server::cli::failure::{Failure, Kind};
use holdfast_server::cli::profile::{Login, Wanted};
use serde_json::Value;
use support::{Hub, holdfast, text, wait_for};

fn client(hub: &Hub) -> Client {
    let wanted = Wanted {
        data_dir: Some(hub.data_dir.clone()),
        ..Wanted::default()
    };
    Client::new(Login::find(&wanted).unwrap()).unwrap()
}

/// Status and body of a plain HTTP request to the admin listener.
fn get(address: &str, path: &str) -> (u16, String) {
    let mut socket = TcpStream::connect(address).unwrap();
    write!(
        socket,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[test]
fn a_log_that_cannot_grow_is_told_and_stays_readable() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let config = dir.path().join("hub.toml");
    std::fs::write(&config, "[log]\npartitions = 1\n").unwrap();
    let hub = Hub::start(
        &data,
        &["--config", config.to_str().unwrap(), "--admin", "127.0.0.1:0"],
    );
    let admin = hub.ready["admin"].as_str().unwrap().to_owned();
    assert_eq!(get(&admin, "/readyz").0, 200);
    assert!(
        get(&admin, "/metrics")
            .1
            .contains("holdfast_log_events_appended_total")
    );
    hub.json(&["device", "create", "d"]);
    let client = client(&hub);
    let send = |number: u32| {
        let body = serde_json::json!({ "number": number, "ballast": "x".repeat(100_000) });
        client.post("/devices/d/messages/events").json(body).send()
    };
    send(0).unwrap();
    // As on a full disk, a file cannot grow beyond this from now on.
    limit_file_size(hub.pid(), 24 << 20);
    let mut acknowledged = 1;
    let error = loop {
        match send(acknowledged) {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 1_000, "the limit had no effect");
    };
    let kind = error.downcast_ref::<Failure>().map(|failure| failure.kind);
    assert_eq!(kind, Some(Kind::Unavailable), "{error:#}");
    wait_for("the hub to say that it is not ready", || {
        (get(&admin, "/readyz").0 == 503).then_some(())
    });
    assert!(get(&admin, "/healthz").1.contains("event log has failed"));
    let count = acknowledged.to_string();
    let output = hub.run(&[
        "monitor",
        "--from",
        "earliest",
        "--json",
        "--count",
        &count,
        "--timeout",
        "30s",
    ]);
    let numbers: Vec<u64> = text(&output.stdout)
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["body"]["number"]
                .as_u64()
                .unwrap()
        })
        .collect();
    let expected: Vec<u64> = (0..u64::from(acknowledged)).collect();
    assert_eq!(numbers, expected, "everything acknowledged can be read");
}

fn limit_file_size(pid: u32, bytes: u64) {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let limit = Rlimit {
        current: Some(bytes),
        maximum: Some(bytes),
    };
    let pid = Pid::from_raw(i32::try_from(pid).unwrap());
    prlimit(pid, Resource::Fsize, limit).unwrap();
}

#[test]
fn systemd_is_told_of_start_and_stop() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut serve: Command = holdfast();
    let mut child = serve
        .args(["serve", "--mqtt-port", "0", "--https-port", "0", "--data-dir"])
        .arg(dir.path().join("data"))
        .env("NOTIFY_SOCKET", &path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let next = || {
        let mut buffer = [0; 1024];
        let length = socket.recv(&mut buffer).unwrap();
        text(&buffer[..length])
    };
    let ready = next();
    assert!(ready.contains("READY=1"), "{ready}");
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&child),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    assert!(next().contains("STOPPING=1"));
    assert!(child.wait().unwrap().success());
}
