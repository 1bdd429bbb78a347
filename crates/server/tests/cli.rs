//! The command line against a running hub, and its reference pages.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::Path;

use holdfast_server::cli::client::Client;
use holdfast_server::cli::profile::{Login, Wanted};
use serde_json::Value;
use support::{Hub, holdfast, text};

fn hub() -> (tempfile::TempDir, Hub) {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(&dir.path().join("data"), &["--listen", "127.0.0.1"]);
    (dir, hub)
}

fn code(hub: &Hub, args: &[&str]) -> (i32, String) {
    let output = hub.run(args);
    (output.status.code().unwrap_or(-1), text(&output.stderr))
}

#[test]
fn devices_live_and_die() {
    let (_dir, hub) = hub();
    let device = hub.json(&["device", "create", "press-4"]);
    assert_eq!(
        (&device["deviceId"], &device["status"]),
        (&Value::from("press-4"), &Value::from("enabled"))
    );
    let keys = hub.json(&["device", "keys", "press-4"]);
    assert_eq!(keys, device["authentication"]["symmetricKey"]);
    let swapped = hub.json(&["device", "keys", "press-4", "--swap"]);
    assert_eq!(
        (&swapped["primaryKey"], &swapped["secondaryKey"]),
        (&keys["secondaryKey"], &keys["primaryKey"])
    );
    let new = hub.json(&["device", "keys", "press-4", "--regenerate", "primary"]);
    assert_ne!(new["primaryKey"], swapped["primaryKey"]);
    assert_eq!(new["secondaryKey"], swapped["secondaryKey"]);

    let updated = hub.json(&[
        "device",
        "update",
        "press-4",
        "--status",
        "disabled",
        "--status-reason",
        "stolen",
    ]);
    assert_eq!(
        (&updated["status"], &updated["statusReason"]),
        (&"disabled".into(), &"stolen".into())
    );
    assert_eq!(hub.json(&["device", "list"]).as_array().unwrap().len(), 1);
    let table = text(&hub.run(&["device", "list"]).stdout);
    assert!(
        table.starts_with("DEVICE") && table.contains("press-4") && table.contains("never"),
        "{table}"
    );

    assert_eq!(code(&hub, &["device", "create", "press-4"]).0, 5);
    assert_eq!(code(&hub, &["device", "show", "nobody"]).0, 3);
    assert_eq!(
        code(
            &hub,
            &[
                "device", "update", "press-4", "--status", "enabled", "--etag", "other"
            ]
        )
        .0,
        5
    );
    assert_eq!(hub.json(&["device", "delete", "press-4"])["deleted"], true);
    assert_eq!(code(&hub, &["device", "delete", "press-4"]).0, 3);
}

#[test]
fn many_devices_at_once() {
    let (_dir, hub) = hub();
    let created = hub.json(&["device", "create", "--prefix", "line-", "--count", "250"]);
    assert_eq!(created["created"], 250);
    assert_eq!(hub.json(&["statistics"])["totalDeviceCount"], 250);
    hub.json(&["device", "show", "line-007"]);
    let (code, message) = code(&hub, &["device", "create", "--prefix", "line-", "--count", "250"]);
    assert_eq!(code, 5, "{message}");
}

#[test]
fn modules_and_certificate_devices() {
    let (_dir, hub) = hub();
    let thumbprint = "AB:".repeat(19) + "CD";
    let device = hub.json(&["device", "create", "x", "--primary-thumbprint", &thumbprint]);
    assert_eq!(device["authentication"]["type"], "selfSigned");
    assert_eq!(
        text(&hub.run(&["connection-string", "x"]).stdout).trim(),
        "HostName=localhost;DeviceId=x;x509=true"
    );
    assert_eq!(code(&hub, &["device", "keys", "x"]).0, 1);
    hub.json(&["device", "create", "gateway", "--edge"]);
    let module = hub.json(&["module", "create", "gateway", "filter", "--managed-by", "IotEdge"]);
    assert_eq!(
        (&module["moduleId"], &module["managedBy"]),
        (&"filter".into(), &"IotEdge".into())
    );
    let names: Vec<String> = hub
        .json(&["module", "list", "gateway"])
        .as_array()
        .unwrap()
        .iter()
        .map(|module| module["moduleId"].as_str().unwrap().to_owned())
        .collect();
    assert!(
        names.contains(&"$edgeAgent".to_owned()) && names.contains(&"filter".to_owned()),
        "{names:?}"
    );
    let text_of = text(
        &hub.run(&["connection-string", "gateway", "--module", "filter"])
            .stdout,
    );
    assert!(
        text_of.starts_with("HostName=localhost;DeviceId=gateway;ModuleId=filter;SharedAccessKey="),
        "{text_of}"
    );
    hub.json(&["module", "delete", "gateway", "filter"]);
    assert_eq!(code(&hub, &["module", "show", "gateway", "filter"]).0, 3);
}

#[test]
fn twins_methods_and_messages() {
    let (_dir, hub) = hub();
    hub.json(&["device", "create", "d"]);
    let twin = hub.json(&[
        "twin",
        "update",
        "d",
        "--desired",
        r#"{"interval":5,"a":{"b":1}}"#,
        "--tags",
        r#"{"site":"north"}"#,
    ]);
    assert_eq!(twin["properties"]["desired"]["interval"], 5);
    let twin = hub.json(&["twin", "update", "d", "--desired", r#"{"a":null}"#]);
    assert!(twin["properties"]["desired"]["a"].is_null());
    assert_eq!(twin["tags"]["site"], "north");
    let etag = twin["etag"].as_str().unwrap().to_owned();
    hub.json(&[
        "twin",
        "replace",
        "d",
        "--desired",
        r#"{"only":1}"#,
        "--etag",
        &etag,
    ]);
    assert_eq!(
        code(
            &hub,
            &["twin", "replace", "d", "--desired", "{}", "--etag", &etag]
        )
        .0,
        5
    );
    assert_eq!(code(&hub, &["twin", "update", "d", "--desired", "5"]).0, 2);
    assert_eq!(code(&hub, &["twin", "update", "d"]).0, 2);

    let (code_of, message) = code(&hub, &["method", "invoke", "d", "reboot"]);
    assert_eq!(code_of, 6, "{message}");
    assert!(message.contains("not connected"), "{message}");

    let sent = hub.json(&[
        "c2d",
        "send",
        "d",
        "hello",
        "--property",
        "a=b",
        "--ttl",
        "10m",
        "--ack",
        "full",
    ]);
    assert!(sent["messageId"].is_string());
    hub.json(&["c2d", "send", "d", "--data", "again"]);
    assert_eq!(hub.json(&["device", "show", "d"])["cloudToDeviceMessageCount"], 2);
    assert_eq!(hub.json(&["c2d", "purge", "d"])["totalMessagesPurged"], 2);
    assert_eq!(code(&hub, &["c2d", "send", "nobody", "x"]).0, 3);
}

#[test]
fn policies_groups_and_authorities() {
    let (dir, hub) = hub();
    let names: Vec<Value> = hub
        .json(&["policy", "list"])
        .as_array()
        .unwrap()
        .iter()
        .map(|policy| policy["keyName"].clone())
        .collect();
    for name in [
        "iothubowner",
        "service",
        "device",
        "registryRead",
        "registryReadWrite",
    ] {
        assert!(names.contains(&name.into()), "{names:?}");
    }
    let policy = hub.json(&[
        "policy",
        "create",
        "dash",
        "--rights",
        "registry-read,service-connect",
    ]);
    assert_eq!(policy["rights"], "RegistryRead, ServiceConnect");
    assert_eq!(
        code(&hub, &["policy", "create", "dash", "--rights", "registry-read"]).0,
        5
    );
    let login = text(&hub.run(&["connection-string", "--policy", "dash"]).stdout)
        .trim()
        .to_owned();
    let (code_of, message) = code(&hub, &["device", "create", "x", "--login", &login]);
    assert_eq!(code_of, 4, "{message}");
    assert!(message.contains("policy dash"), "{message}");
    hub.json(&["policy", "regenerate", "dash", "--key", "primary"]);
    assert_eq!(
        code(&hub, &["device", "list", "--login", &login]).0,
        4,
        "the old key is worth nothing"
    );
    hub.json(&["policy", "delete", "dash"]);
    assert_eq!(code(&hub, &["policy", "show", "dash"]).0, 3);

    hub.json(&["consumer-group", "create", "billing"]);
    assert_eq!(code(&hub, &["consumer-group", "create", "billing"]).0, 5);
    let groups = hub.json(&["consumer-group", "list"]);
    assert_eq!(groups[0]["name"], "$Default");
    assert_eq!(groups[1]["name"], "billing");
    hub.json(&["consumer-group", "delete", "billing"]);

    let ca = dir.path().join("data/ca.pem");
    let added = hub.json(&["ca", "add", "plant", "--certificate", ca.to_str().unwrap()]);
    assert_eq!(added["properties"]["isVerified"], false);
    let code_text = hub.json(&["ca", "verify", "plant"])["properties"]["verificationCode"].clone();
    assert!(
        code_text.as_str().is_some_and(|code| code.len() > 8),
        "{code_text}"
    );
    hub.json(&[
        "ca",
        "add",
        "vouched",
        "--certificate",
        ca.to_str().unwrap(),
        "--verified",
    ]);
    assert_eq!(
        hub.json(&["ca", "show", "vouched"])["properties"]["isVerified"],
        true
    );
    assert_eq!(hub.json(&["ca", "list"]).as_array().unwrap().len(), 2);
    hub.json(&["ca", "delete", "plant"]);
    assert_eq!(code(&hub, &["ca", "show", "plant"]).0, 3);
}

#[test]
fn events_are_followed_from_any_point_and_checkpoints_kept() {
    let (_dir, hub) = hub();
    // The owner's policy may speak for any device.
    let client = Client::new(
        Login::find(&Wanted {
            data_dir: Some(hub.data_dir.clone()),
            ..Wanted::default()
        })
        .unwrap(),
    )
    .unwrap();
    let send = |device: &str| {
        hub.json(&["device", "create", device]);
        let body = serde_json::json!({ "temperature": 21.5 });
        client
            .post(format!("/devices/{device}/messages/events"))
            .json(body)
            .send()
            .unwrap();
    };
    for device in ["a", "b", "c"] {
        send(device);
    }
    let lines = |args: &[&str]| -> Vec<Value> {
        // The count ends it; the timeout is for the case that events are missing.
        let timeout = if args.contains(&"--timeout") {
            &[][..]
        } else {
            &["--timeout", "20s"]
        };
        let output = hub.run(&[args, timeout].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let all = lines(&["monitor", "--from", "earliest", "--json", "--count", "3"]);
    assert_eq!(all.len(), 3);
    assert!(
        all.iter()
            .all(|event| event["source"] == "Telemetry" && event["body"]["temperature"] == 21.5),
        "{all:?}"
    );
    let one = lines(&[
        "monitor",
        "--since",
        "1h",
        "--json",
        "--device",
        "b",
        "--source",
        "telemetry",
        "--count",
        "1",
    ]);
    assert_eq!(one[0]["deviceId"], "b");
    let first = lines(&["monitor", "--checkpoint", "--json", "--timeout", "2s"]);
    assert_eq!(
        first.len(),
        3,
        "a reader without a checkpoint begins with the oldest event"
    );
    send("d");
    let next = lines(&["monitor", "--checkpoint", "--json", "--count", "1"]);
    assert_eq!(next[0]["deviceId"], "d", "what was read is not read again");
    let shown = text(
        &hub.run(&[
            "monitor",
            "--from",
            "earliest",
            "--device",
            "a",
            "--count",
            "1",
            "--timeout",
            "20s",
        ])
        .stdout,
    );
    assert!(shown.contains("  a  {\"temperature\":21.5}"), "{shown}");
    assert_eq!(
        code(
            &hub,
            &["monitor", "--consumer-group", "nobody", "--timeout", "1s"]
        )
        .0,
        3
    );
}

#[test]
fn the_way_to_a_hub_is_explained() {
    let output = holdfast().args(["device", "list"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("holdfast serve"),
        "{}",
        text(&output.stderr)
    );
    let login = "HostName=127.0.0.1;SharedAccessKeyName=a;SharedAccessKey=MDEyMzQ1Njc4OWFiY2RlZg==";
    let output = holdfast()
        .args(["device", "list", "--login", login])
        .env("HOLDFAST_HTTPS_PORT", "1")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(6));
    assert!(
        text(&output.stderr).contains("is the hub running"),
        "{}",
        text(&output.stderr)
    );
    let output = holdfast()
        .args(["device", "list", "--login", "HostName=x"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_profile_leads_to_the_hub_started_last() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let config = dir.path().join("config");
    let with_profile = || {
        let mut command = holdfast();
        command
            .env_remove("HOLDFAST_NO_PROFILE")
            .env("XDG_CONFIG_HOME", &config);
        command
    };
    let mut serve = with_profile()
        .args([
            "serve",
            "--mqtt-port",
            "0",
            "--amqp-port",
            "0",
            "--https-port",
            "0",
            "--listen",
            "127.0.0.1",
            "--data-dir",
        ])
        .arg(&data)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    support::wait_for("the profile", || {
        config.join("holdfast/profile.env").exists().then_some(())
    });
    let output = support::wait_for("the hub", || {
        let output = with_profile()
            .args(["statistics", "-o", "json"])
            .output()
            .unwrap();
        output.status.success().then_some(output)
    });
    assert!(text(&output.stdout).contains("totalDeviceCount"));
    let pointer = fs::read_to_string(config.join("holdfast/profile.env")).unwrap();
    assert!(
        !pointer.contains("SharedAccessKey"),
        "keys stay in the data directory"
    );
    serve.kill().unwrap();
    serve.wait().unwrap();
}

#[test]
fn tokens_are_for_whom_they_say() {
    let (_dir, hub) = hub();
    hub.json(&["device", "create", "d"]);
    let device = text(&hub.run(&["sas", "--device", "d", "--ttl", "5m"]).stdout);
    assert!(
        device.starts_with("SharedAccessSignature sr=localhost%2Fdevices%2Fd&sig="),
        "{device}"
    );
    assert!(!device.contains("skn="));
    let service = text(&hub.run(&["sas"]).stdout);
    assert!(
        service.contains("sr=localhost&") && service.trim().ends_with("skn=iothubowner"),
        "{service}"
    );
}

#[test]
fn completion_scripts_are_made() {
    for shell in ["bash", "zsh", "fish"] {
        let output = holdfast().args(["completion", shell]).output().unwrap();
        assert!(output.status.success() && output.stdout.len() > 1000, "{shell}");
    }
}

/// The pages are the reviewed snapshot of the help texts, the configuration and the error table.
#[test]
fn reference_pages_are_fresh() {
    let out = tempfile::tempdir().unwrap();
    let output = holdfast()
        .args(["internal", "docs", "--out"])
        .arg(out.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for dir in ["docs/reference", "openapi"] {
        for entry in fs::read_dir(out.path().join(dir)).unwrap() {
            let path = entry.unwrap().path();
            let kept = root.join(dir).join(path.file_name().unwrap());
            let same = fs::read(&kept).is_ok_and(|kept| kept == fs::read(&path).unwrap());
            assert!(same, "{} is not fresh; run: cargo xtask docs", kept.display());
        }
    }
}
