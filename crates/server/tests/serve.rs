//! Starting and stopping the hub: what it refuses, what it says, what it leaves behind.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::{Hub, holdfast, text, wait_for};

fn refusal(args: &[&str]) -> (i32, String) {
    let output = holdfast().args(args).output().unwrap();
    assert!(!output.status.success(), "{args:?} must be refused");
    (output.status.code().unwrap_or(-1), text(&output.stderr))
}

#[test]
fn first_start_makes_everything_and_a_later_one_keeps_it() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    let hub = Hub::start(&dir, &[]);
    assert_eq!(hub.ready["firstStart"], true);
    let mode = |name: &str| fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(""), 0o700);
    for private in ["connection.env", "tls/ca.key", "tls/server-ec.key", "hub.db"] {
        assert_eq!(mode(private), 0o600, "{private}");
    }
    wait_for("the RSA certificate", || {
        dir.join("tls/server-rsa.pem").exists().then_some(())
    });
    let env = fs::read_to_string(dir.join("connection.env")).unwrap();
    let ca = fs::read(dir.join("ca.pem")).unwrap();
    let (status, log) = hub.stop();
    assert!(status.success(), "{status}: {log}");
    assert!(!log.contains("SharedAccessKey"), "a secret is in the log");
    assert!(
        !log.contains("\"level\":\"ERROR\"") && !log.contains("\"level\":\"WARN\""),
        "{log}"
    );

    let hub = Hub::start(&dir, &[]);
    assert_eq!(hub.ready["firstStart"], false);
    let owner = |env: &str| {
        env.lines()
            .find(|line| line.starts_with("HOLDFAST_OWNER_CS="))
            .map(str::to_owned)
    };
    assert_eq!(
        owner(&fs::read_to_string(dir.join("connection.env")).unwrap()),
        owner(&env)
    );
    assert_eq!(fs::read(dir.join("ca.pem")).unwrap(), ca);
}

#[test]
fn connection_env_is_a_shell_file() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("it's a dir");
    let hub = Hub::start(&dir, &["--host", "hub.test", "--mqtt-plain", "127.0.0.1:0"]);
    let script = format!(
        "set -eua; . '{}'/connection.env; printf '%s\\n' \"$HOLDFAST_HOST\" \"$HOLDFAST_OWNER_CS\" \"$HOLDFAST_CA\" \"$HOLDFAST_ID_SCOPE\" \"$HOLDFAST_HTTPS_PORT\" \"$HOLDFAST_MQTT_PLAIN\"; test -f \"$HOLDFAST_CA\"",
        dir.display().to_string().replace('\'', r"'\''")
    );
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let lines: Vec<String> = text(&output.stdout).lines().map(str::to_owned).collect();
    assert_eq!(lines[0], "hub.test");
    assert!(lines[1].starts_with("HostName=hub.test;SharedAccessKeyName=iothubowner;SharedAccessKey="));
    assert!(lines[3].starts_with("0ne"));
    assert_eq!(lines[4], hub.https_port().to_string());
    assert_eq!(lines[5], hub.plain());
}

#[test]
fn a_second_serve_on_the_same_data_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(dir.path(), &[]);
    let (code, message) = refusal(&[
        "serve",
        "--mqtt-port",
        "0",
        "--amqp-port",
        "0",
        "--https-port",
        "0",
        "--data-dir",
        dir.path().to_str().unwrap(),
    ]);
    assert_eq!(code, 5);
    assert!(
        message.contains(&format!("process {} already serves", hub.pid())),
        "{message}"
    );
    assert!(message.contains("hint:"), "{message}");
}

#[test]
fn a_newer_data_directory_is_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("holdfast.json"),
        r#"{"formatVersion":2,"idScope":{}}"#,
    )
    .unwrap();
    let (_, message) = refusal(&[
        "serve",
        "--mqtt-port",
        "0",
        "--amqp-port",
        "0",
        "--https-port",
        "0",
        "--data-dir",
        dir.path().to_str().unwrap(),
    ]);
    assert!(
        message.contains("format 2") && message.contains("nothing was changed"),
        "{message}"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was added");
}

#[test]
fn a_taken_port_names_the_flag() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (flag, other) in [("--mqtt-port", "--https-port"), ("--https-port", "--mqtt-port")] {
        let dir = tempfile::tempdir().unwrap();
        let (code, message) = refusal(&[
            "serve",
            flag,
            &port,
            other,
            "0",
            "--amqp-port",
            "0",
            "--listen",
            "127.0.0.1",
            "--data-dir",
            dir.path().to_str().unwrap(),
        ]);
        assert_eq!(code, 1);
        assert!(
            message.contains(&format!("cannot listen on 127.0.0.1:{port}")),
            "{message}"
        );
        assert!(
            message.contains(flag) && message.contains("ss -ltnp"),
            "{message}"
        );
    }
}

#[test]
fn configuration_mistakes_are_named_before_anything_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let file = dir.path().join("hub.toml");
    for (content, expected) in [
        (
            "[mqtt]\nprot = 1\n",
            "line 2: mqtt.prot = 1: unknown field `prot`",
        ),
        ("[log]\nretention = \"soon\"\n", "log.retention = \"soon\""),
        (
            "[c2d]\ndelivery_count = 0\n",
            "c2d.delivery_count = 0: must be 1 to 100",
        ),
        ("[mqtt]\nplain = \"0.0.0.0:1883\"\n", "mqtt.plain = 0.0.0.0:1883"),
        ("[observe]\nfilter = \"holdfast=loud\"\n", "holdfast=loud"),
        (
            "[tls]\ncertificate = \"x.pem\"\n",
            "tls.certificate = x.pem: certificate and key go together",
        ),
    ] {
        fs::write(&file, content).unwrap();
        let (code, message) = refusal(&[
            "serve",
            "--config",
            file.to_str().unwrap(),
            "--data-dir",
            data.to_str().unwrap(),
        ]);
        assert_eq!(code, 2, "{message}");
        assert!(
            message.contains(expected) && message.contains("hint:"),
            "{message}"
        );
        assert!(!data.exists(), "nothing may be made: {content}");
    }
    let (code, message) = refusal(&["serve", "--config", "/nonexistent.toml"]);
    assert_eq!(code, 2);
    assert!(message.contains("/nonexistent.toml"), "{message}");
}

#[test]
fn a_configuration_file_works_and_flags_win() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("hub.toml");
    fs::write(
        &file,
        "[server]\nhosts = [\"from.file\"]\n[mqtt]\nport = 0\nplain = \"127.0.0.1:0\"\n[log]\npartitions = 2\ndurability = \"os\"\n",
    )
    .unwrap();
    let data = dir.path().join("data");
    let hub = Hub::start(
        &data,
        &["--config", file.to_str().unwrap(), "--host", "from.flag"],
    );
    assert_eq!(hub.ready["host"], "from.flag");
    assert!(hub.ready["mqttPlain"].is_string());
    assert!(data.join("events/p0001").exists() && !data.join("events/p0002").exists());
}

#[test]
fn sigterm_ends_idle_connections_and_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(dir.path(), &["--mqtt-plain", "127.0.0.1:0"]);
    // One that says nothing at all, one in the middle of its first packet.
    let mut silent = TcpStream::connect(hub.plain()).unwrap();
    let mut torn = TcpStream::connect(hub.plain()).unwrap();
    torn.write_all(&[0x10, 0x20, 0x00]).unwrap();
    let started = Instant::now();
    let (status, log) = hub.stop();
    assert!(status.success(), "{status}: {log}");
    assert!(
        started.elapsed() < Duration::from_secs(15),
        "{:?}",
        started.elapsed()
    );
    assert!(log.contains("stopped"), "{log}");
    for connection in [&mut silent, &mut torn] {
        connection.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        assert_eq!(connection.read(&mut [0; 16]).unwrap_or(0), 0, "closed");
    }
}

#[test]
fn sighup_takes_new_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(dir.path(), &[]);
    wait_for("the RSA certificate", || {
        dir.path().join("tls/server-rsa.pem").exists().then_some(())
    });
    let path = dir.path().join("tls/server-ec.pem");
    let before = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    hub.signal(Signal::HUP);
    wait_for("a new certificate", || {
        fs::read(&path).ok().filter(|now| *now != before)
    });
    let (status, log) = hub.stop();
    assert!(status.success() && log.contains("certificates loaded"), "{log}");
}

#[test]
fn banners_never_hold_a_key() {
    for format in ["table", "json"] {
        let dir = tempfile::tempdir().unwrap();
        let mut child = holdfast()
            .args([
                "serve",
                "--mqtt-port",
                "0",
                "--amqp-port",
                "0",
                "--https-port",
                "0",
                "--output",
                format,
                "--data-dir",
            ])
            .arg(dir.path())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        wait_for("the hub", || {
            dir.path().join("connection.env").exists().then_some(())
        });
        let pid = rustix::process::Pid::from_child(&child);
        // The signal handlers stand before the file does.
        rustix::process::kill_process(pid, Signal::TERM).unwrap();
        let mut output = String::new();
        child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
        assert!(child.wait().unwrap().success());
        assert!(output.contains("connection.env"), "{output}");
        assert!(!output.contains("SharedAccess"), "{output}");
    }
}

#[test]
fn starts_quickly_and_small() {
    let dir = tempfile::tempdir().unwrap();
    drop(Hub::start(dir.path(), &[]));
    let started = Instant::now();
    let hub = Hub::start(dir.path(), &[]);
    let took = started.elapsed();
    let usage = holdfast_observe::process::usage(hub.pid()).unwrap();
    println!("start {took:?}, resident {} KiB", usage.rss_bytes / 1024);
    // Bounds for an unoptimised build on a busy machine; SPECIFICATION.md has the real numbers.
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert!(usage.rss_bytes < 64 << 20, "{} bytes", usage.rss_bytes);
}
