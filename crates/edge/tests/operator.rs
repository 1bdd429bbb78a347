//! What an operator sees: what is told of deployments, modules and files, on terminals of any width, and that no mistake is
//! passed over in silence.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod program;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use program::{CONNECTION_STRING, code, program, run};

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A daemon of which only answers are known: path, status, document.
struct Daemon {
    dir: tempfile::TempDir,
}

impl Daemon {
    /// Answers until the test ends.
    fn answering(answers: Vec<(&'static str, u16, Value)>) -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("mgmt.sock")).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let first = lines.next().unwrap().unwrap();
                while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
                let path = first.split([' ', '?']).nth(1).unwrap();
                let known = answers.iter().find(|(known, ..)| *known == path);
                let missing = ("", 404, json!({"message": "not found"}));
                let (_, status, document) = known.unwrap_or(&missing);
                let body = document.to_string();
                write!(
                    stream,
                    "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                )
                .unwrap();
            }
        });
        Daemon { dir }
    }

    fn command(&self) -> Command {
        let mut command = program();
        let socket = self.dir.path().join("mgmt.sock");
        command.arg("--host").arg(format!("unix://{}", socket.display()));
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().unwrap()
    }

    /// What these checks find.
    fn check(&self, names: &[&str]) -> Value {
        let all: Value = serde_json::from_slice(&run(&["check-list", "--output", "json"]).stdout).unwrap();
        let all = all
            .as_array()
            .unwrap()
            .iter()
            .map(|check| check["name"].as_str().unwrap());
        let others: Vec<&str> = all.filter(|name| !names.contains(name)).collect();
        let output = self.run(&["check", "--output", "json", "--dont-run", &others.join(",")]);
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        told["checks"].clone()
    }
}

fn modules() -> Value {
    let module = |name: &str, image: &str, status: &str| {
        json!({
            "name": name, "config": {"settings": {"image": image}},
            "status": {"startTime": "2026-01-01T00:00:00Z", "runtimeStatus": {"status": status}},
        })
    };
    json!({"modules": [
        module("edgeAgent", "mcr.microsoft.com/azureiotedge-agent:1.5", "running"),
        module("edgeHub", "mcr.microsoft.com/azureiotedge-hub:1.5", "stopped"),
        module("simulated-temperature-sensor-of-hall-three", "registry.example:5000/sensors/temperature:2.0", "running"),
    ]})
}

fn deployment(code: u16, routes: u16) -> Value {
    json!({
        "lastDesiredVersion": 8, "versionInForce": 7, "connected": true,
        "lastDesiredStatus": {"code": code, "description": "modules.a.settings.image: is missing"},
        "edgeHub": {"lastDesiredVersion": 3, "lastDesiredStatus": {
            "code": routes, "description": "Error while parsing desired properties - route bad: expected INTO"}},
    })
}

#[test]
fn a_deployment_that_is_not_in_force_is_told() {
    let daemon = Daemon::answering(vec![
        ("/modules", 200, modules()),
        ("/deployment", 200, deployment(400, 400)),
    ]);
    for format in ["table", "json"] {
        let listed = daemon.run(&["list", "--output", format]);
        assert_eq!(code(&listed), 0, "{}", err(&listed));
        for words in [
            "warning: deployment 8 was refused (code 400); deployment 7 stays in force: modules.a.settings.image",
            "version 3, has faults (code 400); the other routes are in force",
            "route bad: expected INTO",
            "hint: correct the manifest",
        ] {
            assert!(err(&listed).contains(words), "{words}: {}", err(&listed));
        }
        // What scripts read is as it was.
        assert!(!out(&listed).contains("refused"), "{}", out(&listed));
    }
    let found = daemon.check(&["deployment-accepted", "routes-compiled"]);
    for name in ["deployment-accepted", "routes-compiled"] {
        assert_eq!(found[name]["result"], "error", "{found}");
        assert!(
            found[name]["remedy"]
                .as_str()
                .unwrap()
                .contains("holdfast edge deploy")
        );
    }

    let daemon = Daemon::answering(vec![
        ("/modules", 200, modules()),
        ("/deployment", 200, deployment(200, 200)),
    ]);
    assert_eq!(err(&daemon.run(&["list"])), "");
    assert_eq!(
        daemon.check(&["deployment-accepted"])["deployment-accepted"]["result"],
        "ok"
    );
    // A daemon that does not tell.
    let daemon = Daemon::answering(vec![("/modules", 200, modules())]);
    assert_eq!(err(&daemon.run(&["list"])), "");
    assert_eq!(
        daemon.check(&["deployment-accepted"])["deployment-accepted"]["result"],
        "skipped"
    );
}

#[test]
fn what_is_not_restarted_is_not_said_to_be() {
    let refusal = json!({"message": "the deployment wants edgeHub stopped, and it stays so"});
    let daemon = Daemon::answering(vec![
        ("/modules/edgeHub/restart", 409, refusal),
        ("/modules/edgeAgent/restart", 204, Value::Null),
    ]);
    for format in ["table", "json"] {
        let restarted = daemon.run(&["restart", "edgeHub", "--output", format]);
        assert_eq!((code(&restarted), out(&restarted).as_str()), (5, ""));
        assert!(
            err(&restarted).contains("wants edgeHub stopped"),
            "{}",
            err(&restarted)
        );
        assert!(
            err(&restarted).contains("hint: deploy edgeHub with the status"),
            "{}",
            err(&restarted)
        );
    }
    let agent = daemon.run(&["restart", "edgeAgent"]);
    assert_eq!(code(&agent), 0);
    assert!(out(&agent).contains("is the daemon itself"), "{}", out(&agent));
}

#[test]
fn output_fits_the_terminal() {
    let stats = json!([{"name": "/simulated-temperature-sensor-of-hall-three", "cpu_stats": {"cpu_usage": {"total_usage": 0}},
        "pids_stats": {"current": 3}, "memory_stats": {"usage": 5_242_880, "limit": 67_108_864}}]);
    let resources = json!({"host_uptime": 90_000, "process_uptime": 61, "used_cpu": "12.50",
        "used_ram": 1_073_741_824_u64, "total_ram": 4_294_967_296_u64, "docker_stats": stats.to_string(),
        "disks": [{"name": "/dev/mapper/system-root-volume", "available_space": 1_048_576, "total_space": 2_097_152,
                   "file_system": "ext4"}]});
    let info = json!({"osType": "linux", "kernel_version": "#1 SMP PREEMPT_DYNAMIC Debian 6.1.119-1 (2024-11-22)",
        "version": "0.1.0", "total_memory": 4_294_967_296_u64,
        "provisioning": {"type": "dps", "dynamicReprovisioning": true, "alwaysReprovisionOnStartup": false}});
    let daemon = Daemon::answering(vec![
        ("/modules", 200, modules()),
        ("/systeminfo", 200, info.clone()),
        ("/systeminfo/resources", 200, resources.clone()),
    ]);
    let commands: [&[&str]; 4] = [
        &["list"],
        &["system", "info"],
        &["system", "resources"],
        &["check-list"],
    ];
    for width in [40, 60, 80, 120] {
        for command in commands {
            let output = daemon
                .command()
                .args(command)
                .env("COLUMNS", width.to_string())
                .output()
                .unwrap();
            assert_eq!(code(&output), 0, "{}", err(&output));
            for line in out(&output).lines() {
                assert!(line.chars().count() <= width, "{width}: {line}");
            }
        }
    }
    let listed = |width: &str| {
        out(&daemon
            .command()
            .arg("list")
            .env("COLUMNS", width)
            .output()
            .unwrap())
    };
    assert!(
        listed("40").starts_with("NAME ") && !listed("40").contains("CONFIG"),
        "{}",
        listed("40")
    );
    assert!(
        listed("60").contains("…") && listed("60").contains("hub:1.5"),
        "{}",
        listed("60")
    );
    let piped = out(&daemon.run(&["list"]));
    assert!(
        piped.contains("registry.example:5000/sensors/temperature:2.0"),
        "whole lines for grep: {piped}"
    );
    let told = out(&daemon.run(&["system", "resources"]));
    for words in [
        "1.0 GiB of 4.0 GiB used (25 %)",
        "12.50 % busy",
        "/dev/mapper/system-root-volume",
        "64.0 MiB",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert!(!told.contains('{'), "{told}");
    let scripted: Value =
        serde_json::from_slice(&daemon.run(&["system", "resources", "--output", "json"]).stdout).unwrap();
    assert_eq!(scripted, resources);
}

#[test]
fn a_configuration_that_is_named_is_used_or_an_error() {
    let commands: [&[&str]; 11] = [
        &["list"],
        &["logs", "sensor"],
        &["restart", "sensor"],
        &["system", "info"],
        &["system", "resources"],
        &["system", "reprovision"],
        &["support-bundle", "--file", "-"],
        &["config", "check"],
        &["tpm"],
        &["run"],
        &[],
    ];
    let dir = tempfile::tempdir().unwrap();
    let (folder, broken) = (dir.path().display().to_string(), dir.path().join("broken.toml"));
    std::fs::write(&broken, "[devise]\n").unwrap();
    let broken = broken.display().to_string();
    for file in ["/does/not/exist.toml", &folder, &broken] {
        for command in commands {
            let named = program().args(command).args(["--config", file]).output().unwrap();
            let in_environment = program()
                .args(command)
                .env("HOLDFAST_EDGE_CONFIG", file)
                .output()
                .unwrap();
            for output in [named, in_environment] {
                assert_eq!(code(&output), 2, "{command:?} {file}: {}", err(&output));
                assert!(err(&output).contains(file), "{command:?}: {}", err(&output));
            }
        }
    }
    let found = program()
        .args(["check", "--output", "json", "--ntp-server", "127.0.0.1:1"])
        .env("HOLDFAST_EDGE_CONFIG", "/does/not/exist.toml")
        .output()
        .unwrap();
    assert_eq!(code(&found), 1);
    let found: Value = serde_json::from_slice(&found.stdout).unwrap();
    assert!(
        found["checks"]["config-well-formed"]["details"][0]
            .as_str()
            .unwrap()
            .contains("/does/not/exist.toml")
    );
    assert_eq!(
        found["checks"]["connect-management-uri"]["result"], "skipped",
        "no other daemon is asked"
    );
}

#[test]
fn flags_of_run_need_no_word() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("edge.toml");
    std::fs::write(
        &file,
        format!("provisioning.connection_string = \"{CONNECTION_STRING}\"\n"),
    )
    .unwrap();
    let file = file.display().to_string();
    for arguments in [
        &["--check-config", "--config", &file][..],
        &["--config", &file, "--mqtt-port", "0", "--check-config"],
        &["run", "--check-config", "--config", &file],
        &["--config", &file, "run", "--check-config"],
    ] {
        let output = run(arguments);
        assert_eq!(
            (code(&output), out(&output)),
            (0, format!("{file} is in order\n")),
            "{arguments:?}"
        );
    }
    // They are used.
    let relative = run(&["--config", &file, "--check-config", "--home", "here"]);
    assert_eq!(code(&relative), 2);
    assert!(
        err(&relative).contains("device.home = here"),
        "{}",
        err(&relative)
    );
    // Before another word they would mean nothing.
    for (command, words) in [("list", "without `list`"), ("run", "holdfast-edge run --home")] {
        let output = run(&["--home", "/x", command]);
        assert_eq!(code(&output), 2);
        assert!(err(&output).contains(words), "{}", err(&output));
    }
}

/// PEM of a certificate with its key.
fn certificate(is_authority: bool, from_days: i64, to_days: i64) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["edge-1".to_owned()]).unwrap();
    let now = OffsetDateTime::now_utc();
    params.not_before = now + Duration::days(from_days);
    params.not_after = now + Duration::days(to_days);
    if is_authority {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// A configuration with files in a folder; every path in it is relative.
struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Site {
        let site = Site {
            dir: tempfile::tempdir().unwrap(),
        };
        for (name, (certificate, key)) in [
            ("device", certificate(false, -1, 100)),
            ("authority", certificate(true, -1, 100)),
        ] {
            site.put(&format!("{name}.pem"), &certificate);
            site.put(&format!("{name}.key"), &key);
        }
        site.put("trust.pem", &certificate(true, -1, 100).0);
        site.put(
            "edge.toml",
            "[device]\nhome = \"/does/not/exist/yet\"\n\
             [provisioning]\nhub = \"hub.example\"\ndevice_id = \"edge-1\"\ncertificate = \"device.pem\"\nprivate_key = \"device.key\"\n\
             [certificates]\ntrust_bundle = \"trust.pem\"\nedge_ca = \"authority.pem\"\nedge_ca_key = \"authority.key\"\n",
        );
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, name: &str, content: &str) {
        std::fs::write(self.path(name), content).unwrap();
    }

    fn check(&self, format: &str) -> Output {
        let file = self.path("edge.toml").display().to_string();
        run(&["config", "check", "--config", &file, "--output", format])
    }

    fn names(&self) -> Vec<std::ffi::OsString> {
        let mut names: Vec<_> = std::fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    }
}

#[test]
fn files_that_a_configuration_names_are_looked_at() {
    let site = Site::new();
    let before = site.names();
    let good = site.check("table");
    assert_eq!(code(&good), 0, "{}{}", out(&good), err(&good));
    assert!(out(&good).ends_with("is in order\n"), "{}", out(&good));
    assert_eq!(site.names(), before, "nothing is made");
    assert!(!Path::new("/does/not/exist/yet").exists());

    let other = certificate(false, -1, 100);
    let cases: [(&str, Option<String>, &str); 9] = [
        ("device.pem", None, "cannot use the certificates in"),
        ("device.key", None, "cannot use the private key in"),
        ("device.key", Some(other.1), "was issued for another key"),
        ("device.pem", Some("no PEM".to_owned()), "there is none"),
        (
            "authority.key",
            Some("no PEM".to_owned()),
            "cannot use the private key in",
        ),
        ("trust.pem", None, "cannot use the certificates in"),
        (
            "device.pem",
            Some(certificate(false, -20, -10).0),
            "ended 10 days ago",
        ),
        (
            "device.pem",
            Some(certificate(false, 10, 20).0),
            "is not valid before",
        ),
        (
            "authority.pem",
            Some(certificate(false, -1, 100).0),
            "CA:TRUE is missing",
        ),
    ];
    for (name, content, words) in cases {
        let site = Site::new();
        match &content {
            Some(content) => site.put(name, content),
            None => std::fs::remove_file(site.path(name)).unwrap(),
        }
        let path = site.path(name).display().to_string();
        let refused = site.check("table");
        assert_eq!(code(&refused), 2, "{name} {words}: {}", out(&refused));
        let said = err(&refused);
        assert!(
            said.contains(words) && said.contains(&path) && said.contains("  hint: "),
            "{name} {words}: {said}"
        );
        assert!(!out(&refused).contains("in order"), "{}", out(&refused));
        let told = site.check("json");
        assert_eq!(code(&told), 2);
        let told: Value = serde_json::from_slice(&told.stdout).unwrap();
        assert_eq!(told["inOrder"], false);
        let problems = told["problems"].as_array().unwrap();
        let told = problems
            .iter()
            .find(|problem| problem["reason"].as_str().unwrap().contains(words));
        assert!(
            told.is_some_and(|told| told["file"].as_str() == Some(path.as_str())),
            "{problems:?}"
        );
        // The daemon's own flag says the same.
        let file = site.path("edge.toml").display().to_string();
        let flag = run(&["--check-config", "--config", &file]);
        assert_eq!((code(&flag), err(&flag)), (2, said));
    }
}

#[test]
fn what_does_no_harm_yet_is_a_warning() {
    for (name, content, words) in [
        ("device.pem", certificate(false, -10, 3), "ends in "),
        ("trust.pem", certificate(true, -20, -10), "ended 10 days ago"),
    ] {
        let site = Site::new();
        site.put(name, &content.0);
        if name == "device.pem" {
            site.put("device.key", &content.1);
        }
        let warned = site.check("table");
        assert_eq!(code(&warned), 0, "{}", err(&warned));
        assert!(
            out(&warned).contains("warning: ") && out(&warned).contains(words),
            "{}",
            out(&warned)
        );
        assert!(out(&warned).ends_with("is in order\n"), "{}", out(&warned));
    }
}

#[test]
fn the_service_is_told_by_systemd_or_why_not() {
    let dir = tempfile::tempdir().unwrap();
    let missing = |command: &[&str]| program().args(command).env("PATH", dir.path()).output().unwrap();
    let commands: [&[&str]; 4] = [
        &["system", "status"],
        &["system", "restart"],
        &["system", "stop"],
        &["system", "logs", "--directory=/x"],
    ];
    for command in commands {
        let output = missing(command);
        assert_eq!(code(&output), 6, "{command:?}");
        assert!(
            err(&output).contains("is not installed") && err(&output).contains("hint: "),
            "{}",
            err(&output)
        );
    }
    let script = |name: &str, text: &str| {
        // Written by a process of its own: while this one has a program open for writing, a child that another test is
        // just starting has it open, too, and the program cannot be run.
        let mut install = Command::new("install")
            .args(["-m", "755", "/dev/stdin"])
            .arg(dir.path().join(name))
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        write!(install.stdin.take().unwrap(), "#!/bin/sh\n{text}\n").unwrap();
        assert!(install.wait().unwrap().success());
    };
    script(
        "systemctl",
        "[ \"$1\" = show ] && printf 'LoadState=loaded\\nActiveState=active\\nSubState=running\\nMainPID=42\\nNRestarts=1\\n'; exit 0",
    );
    script("journalctl", "echo \"$@\"");
    let status = missing(&["system", "status"]);
    assert!(
        out(&status).contains("active (running)") && code(&status) == 0,
        "{}{}",
        out(&status),
        err(&status)
    );
    let told: Value =
        serde_json::from_slice(&missing(&["system", "status", "--output", "json"]).stdout).unwrap();
    assert_eq!(
        (&told["activeState"], &told["mainPid"]),
        (&json!("active"), &json!(42))
    );
    assert_eq!(
        out(&missing(&["system", "restart"])),
        "restarted holdfast-edge; modules run on\n"
    );
    let logs = missing(&["system", "logs", "--directory=/x", "-n", "5"]);
    assert_eq!(out(&logs), "--unit holdfast-edge --directory=/x -n 5\n");
    script("systemctl", "echo LoadState=not-found");
    let unknown = missing(&["system", "status"]);
    assert_eq!(code(&unknown), 3);
    assert!(err(&unknown).contains("knows no service"), "{}", err(&unknown));
}

#[test]
fn every_command_has_examples() {
    let mut missing = Vec::new();
    look_for_examples(&holdfast_edge::commands::command(), &mut missing);
    assert_eq!(missing, [""; 0]);
}

fn look_for_examples(command: &clap::Command, missing: &mut Vec<String>) {
    let mut children = command
        .get_subcommands()
        .filter(|child| !child.is_hide_set())
        .peekable();
    let told = command
        .get_after_help()
        .is_some_and(|text| text.to_string().contains("Example"));
    if children.peek().is_none() && !told {
        missing.push(command.get_name().to_owned());
    }
    children.for_each(|child| look_for_examples(child, missing));
}
