//! What the hub does when its disk fails: it stops acknowledging rather than lie, says so, and still lets others read.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use holdfast_program::failure::{Failure, Kind};
use holdfast_server::cli::client::Client;
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

/// A file system of its own, which can be full without hurting others. Unmounted when dropped.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    /// `None` where mounting is not permitted.
    fn mount(at: &Path, megabytes: u32) -> Option<SmallDisk> {
        std::fs::create_dir(at).unwrap();
        let size = format!("size={megabytes}m");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(at)
            .stderr(Stdio::null())
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then(|| SmallDisk(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the hub of a failed test may still be there.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Leaves `bytes` free on the disk of `dir`; gives the file that takes the rest.
fn fill(dir: &Path, bytes: u64) -> std::path::PathBuf {
    let disk = rustix::fs::statvfs(dir).unwrap();
    let path = dir.join("ballast");
    let file = std::fs::File::create(&path).unwrap();
    let taken = disk.f_bavail * disk.f_frsize - bytes;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, taken).unwrap();
    path
}

/// Bodies' numbers of all events.
fn numbers(hub: &Hub, count: usize, timeout: &str) -> Vec<u64> {
    let count = count.to_string();
    let output = hub.run(&[
        "monitor",
        "--from",
        "earliest",
        "--source",
        "telemetry",
        "--json",
        "--count",
        &count,
        "--timeout",
        timeout,
    ]);
    let number = |line: &str| {
        serde_json::from_str::<Value>(line).unwrap()["body"]["number"]
            .as_u64()
            .unwrap()
    };
    let mut numbers: Vec<u64> = text(&output.stdout).lines().map(number).collect();
    numbers.sort_unstable();
    numbers
}

#[test]
fn a_full_disk_loses_nothing_and_ends_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    let mounted = SmallDisk::mount(&disk, 160);
    if mounted.is_none() {
        eprintln!("mounting is not permitted here: a bound on the size of files stands in for the full disk");
    }
    let data = disk.join("data");
    let flags = ["--admin", "127.0.0.1:0"];
    let hub = Hub::start(&data, &flags);
    let admin = hub.ready["admin"].as_str().unwrap().to_owned();
    assert_eq!(get(&admin, "/readyz").0, 200);
    for device in 0..8 {
        hub.json(&["device", "create", &format!("d{device}")]);
    }
    let client = client(&hub);
    let send = |number: u64| {
        let body = serde_json::json!({ "number": number, "ballast": "x".repeat(100_000) });
        let path = format!("/devices/d{}/messages/events", number % 8);
        client.post(path).json(body).send()
    };
    (0..20).for_each(|number| drop(send(number).unwrap()));
    let ballast = mounted.as_ref().map(|_| fill(&disk, 12 << 20));
    if mounted.is_none() {
        limit_file_size(hub.pid(), 10 << 20);
    }
    let mut acknowledged = 20;
    while send(acknowledged).is_ok() {
        acknowledged += 1;
        assert!(acknowledged < 2_000, "the disk never was full");
    }
    wait_for("the hub to say that it is not ready", || {
        (get(&admin, "/readyz").0 == 503).then_some(())
    });
    assert!(get(&admin, "/healthz").1.contains("event log has failed"));
    // What needs no space goes on, and every reader gets everything of every partition.
    assert_eq!(hub.json(&["device", "show", "d3"])["deviceId"], "d3");
    assert_eq!(hub.json(&["twin", "show", "d3"])["deviceId"], "d3");
    let expected: Vec<u64> = (0..acknowledged).collect();
    let count = expected.len();
    // One more than there can be: the streams stay open until the time is over.
    let kept = numbers(&hub, count + 2, "5s");
    assert!(kept.len() >= count && kept[..count] == expected, "{kept:?}");
    let (status, log) = hub.stop();
    assert_eq!(status.code(), Some(7), "{log}");
    assert!(
        log.contains("event log has failed") && log.contains("\"stopped\""),
        "{log}"
    );
    assert!(!log.contains("cannot be read"), "it can: {log}");
    assert!(log.contains("hint: everything acknowledged is kept"), "{log}");

    if let Some(ballast) = ballast {
        std::fs::remove_file(ballast).unwrap();
    }
    let hub = Hub::start(&data, &flags);
    let kept = numbers(&hub, count, "30s");
    assert_eq!(kept[..count], expected, "after the restart");
    assert!(hub.stop().0.success());
}

#[test]
fn a_file_that_cannot_be_used_is_named_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let hub = Hub::start(&data, &[]);
    hub.json(&["device", "create", "kept"]);
    assert!(hub.stop().0.success());
    let aside = dir.path().join("aside");
    for name in [
        "holdfast.json",
        "holdfast.lock",
        "hub.db",
        "connection.env",
        "tls/tickets.key",
        "ca.pem",
        "tls/ca.key",
        "tls/server-ec.pem",
        "events/meta",
        "events/p0000",
        "events/p0000/00000000000000000000.seg",
    ] {
        let path = data.join(name);
        assert!(path.exists(), "{name}");
        std::fs::rename(&path, &aside).unwrap();
        // A directory for a file, and a file for a directory: what even root cannot read or write.
        match aside.is_dir() {
            true => std::fs::write(&path, "").unwrap(),
            false => std::fs::create_dir(&path).unwrap(),
        }
        let mut child = Hub::spawn(&data, &[]);
        let status = child.wait().unwrap();
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(status.code(), Some(7), "{name}: {said}");
        assert!(said.contains(name) && said.contains("hint: "), "{name}: {said}");
        match path.is_dir() {
            true => std::fs::remove_dir(&path).unwrap(),
            false => std::fs::remove_file(&path).unwrap(),
        }
        std::fs::rename(&aside, &path).unwrap();
    }
    let hub = Hub::start(&data, &[]);
    assert_eq!(hub.json(&["device", "show", "kept"])["deviceId"], "kept");
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
        .args([
            "serve",
            "--mqtt-port",
            "0",
            "--amqp-port",
            "0",
            "--https-port",
            "0",
            "--data-dir",
        ])
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
