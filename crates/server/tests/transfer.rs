//! Import, export and plug and play on the command line, against a hub of its own.
//!
//! Goal: a fleet goes out of one hub and into another by files, streams and jobs; bad lines, cut-off jobs and closed
//! folders are told. Method: the program as users run it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use holdfast_model::Timestamp;
use holdfast_model::credential::sign_sas;
use holdfast_wire::connection_string::{ConnectionString, Credential};
use serde_json::{Value, json};
use support::{Hub, holdfast, text, wait_for};
use ureq::tls::{TlsConfig, TlsProvider};

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_fleet_moves_from_hub_to_hub() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (
        Hub::start(&dir.path().join("first"), &[]),
        Hub::start(&dir.path().join("second"), &[]),
    );
    first.json(&["device", "create", "d1"]);
    first.json(&[
        "twin",
        "update",
        "d1",
        "--tags",
        r#"{"plant":"north"}"#,
        "--desired",
        r#"{"n":1}"#,
    ]);
    first.json(&["module", "create", "d1", "m1"]);
    let file = dir.path().join("devices.txt");
    let path = file.to_str().unwrap();
    let told = first.json(&["export", path]);
    assert_eq!(told["lines"], 2);
    let exported = lines(&file);
    assert_eq!(
        (exported[0]["id"].as_str(), exported[1]["moduleId"].as_str()),
        (Some("d1"), Some("m1"))
    );
    use std::os::unix::fs::PermissionsExt as _;
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "it holds keys");
    let again = first.run(&["export", path]);
    assert_eq!(again.status.code(), Some(2));
    assert!(
        text(&again.stderr).contains("exists already"),
        "{}",
        text(&again.stderr)
    );

    let told = second.json(&["import", path]);
    assert_eq!(
        (told["imported"].as_u64(), told["failed"].as_u64()),
        (Some(2), Some(0))
    );
    let key = |hub: &Hub| {
        hub.json(&["device", "show", "d1"])["authentication"]["symmetricKey"]["primaryKey"].clone()
    };
    assert_eq!(key(&first), key(&second));
    assert_eq!(second.json(&["twin", "show", "d1"])["tags"]["plant"], "north");

    // Through pipes, without keys.
    let out = first.run(&["export", "-", "--exclude-keys"]);
    assert!(out.status.success());
    assert!(!text(&out.stdout).contains(key(&first).as_str().unwrap()));
    let mut import = holdfast();
    import
        .args(["import", "-", "--output", "json", "--data-dir"])
        .arg(dir.path().join("second"));
    let mut child = import
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&out.stdout).unwrap();
    let told: Value = serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(told["imported"], 2, "{told}");
    // A line without keys leaves those that are there.
    assert_eq!(key(&first), key(&second));
}

#[test]
fn bad_lines_are_told_by_number() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(&dir.path().join("data"), &[]);
    let file = dir.path().join("devices.txt");
    let mut content = String::from("{\"id\":\"good\"}\nnonsense\n");
    for number in 0..30 {
        content.push_str(&format!(
            "{{\"id\":\"gone{number}\",\"importMode\":\"delete\"}}\n"
        ));
    }
    fs::write(&file, content).unwrap();
    let (path, errors) = (file.to_str().unwrap(), dir.path().join("bad.jsonl"));
    let out = hub.run(&["import", path, "--errors", errors.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(1));
    let told = text(&out.stderr);
    assert!(told.contains("line 2: the line cannot be read"), "{told}");
    assert!(told.contains("line 3: gone0: there is no device"), "{told}");
    assert!(told.contains("and 11 more"), "{told}");
    assert_eq!(lines(&errors).len(), 31);
    assert_eq!(hub.json(&["device", "show", "good"])["deviceId"], "good");
    for (source, words) in [
        ("/nowhere/x.txt", "cannot read"),
        ("http://127.0.0.1:1/box/x.txt?sig=SECRET", "cannot be reached"),
    ] {
        let out = hub.run(&["import", source]);
        assert!(!out.status.success());
        let told = text(&out.stderr);
        assert!(told.contains(words) && !told.contains("SECRET"), "{told}");
    }
}

#[test]
fn a_refused_import_is_told_before_it_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(&dir.path().join("data"), &[]);
    let file = dir.path().join("devices.txt");
    let line = format!("{{\"id\":\"d\",\"tags\":{{\"x\":\"{}\"}}}}\n", "y".repeat(4_000));
    fs::write(&file, line.repeat(10_000)).unwrap();
    let reader = hub.json(&["connection-string", "--policy", "registryRead"]);
    let login = reader["connectionString"].as_str().unwrap();
    let port = hub.https_port().to_string();
    let out = holdfast()
        .args(["import", file.to_str().unwrap(), "--login", login, "--ca"])
        .arg(hub.data_dir.join("ca.pem"))
        .env("HOLDFAST_HTTPS_PORT", port)
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(4), "{}", text(&out.stderr));
}

/// A request of the service API.
fn request(hub: &Hub, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
    let login = hub.json(&["connection-string"]);
    let parsed = ConnectionString::parse(login["connectionString"].as_str().unwrap()).unwrap();
    let Credential::Policy { name, key } = parsed.credential else {
        panic!("a policy");
    };
    let token = sign_sas(
        &parsed.host,
        &key,
        Timestamp::from_seconds(4_000_000_000),
        Some(&name),
    );
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .disable_verification(true)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    let config = ureq::Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false);
    let agent = config.build().new_agent();
    let uri = format!(
        "https://127.0.0.1:{}{path}?api-version=2021-04-12",
        hub.https_port()
    );
    let request = ureq::http::Request::builder()
        .method(method)
        .uri(uri)
        .header("authorization", token);
    let body = body.map_or(Vec::new(), |body| body.to_string().into_bytes());
    let request = agent.configure_request(request.body(body).unwrap());
    let mut response = agent
        .run(request.allow_non_standard_methods(true).build())
        .unwrap();
    let text = response.body_mut().read_to_string().unwrap();
    let body = serde_json::from_str(&text).unwrap_or(Value::Null);
    (response.status().as_u16(), body)
}

#[test]
fn jobs_work_on_an_open_folder_and_on_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let open = dir.path().join("open");
    fs::create_dir_all(open.join("box")).unwrap();
    let config = dir.path().join("holdfast.toml");
    fs::write(
        &config,
        format!("[transfer]\nfolder = {:?}\nhosts = [\"blobs.example\"]\n", open),
    )
    .unwrap();
    let data = dir.path().join("data");
    let flags = ["--config", config.to_str().unwrap()];
    let hub = Hub::start(&data, &flags);
    hub.json(&["device", "create", "d1"]);
    let container = format!("file://{}/box", open.display());
    let job = json!({"type": "export", "outputBlobContainerUri": container});
    let (status, job) = request(&hub, "POST", "/jobs/create", Some(&job));
    assert_eq!(status, 200, "{job}");
    let id = job["jobId"].as_str().unwrap().to_owned();
    let ended = wait_for("the export", || {
        let (_, job) = request(&hub, "GET", &format!("/jobs/{id}"), None);
        (job["status"] != "running").then_some(job)
    });
    assert_eq!(ended["status"], "completed", "{ended}");
    assert_eq!(lines(&open.join("box/devices.txt"))[0]["id"], "d1");
    for (uri, words) in [
        (format!("file://{}", dir.path().display()), "transfer.folder"),
        (
            "https://elsewhere.example/box?sig=SECRET".to_owned(),
            "transfer.hosts",
        ),
    ] {
        let job = json!({"type": "export", "outputBlobContainerUri": uri});
        let (status, answer) = request(&hub, "POST", "/jobs/create", Some(&job));
        assert_eq!(status, 400);
        assert!(
            answer.to_string().contains(words) && !answer.to_string().contains("SECRET"),
            "{answer}"
        );
    }

    // A job that is under way when the hub is killed is not forgotten.
    let many: String = (0..200_000)
        .map(|n| format!("{{\"id\":\"many{n}\"}}\n"))
        .collect();
    fs::write(open.join("box/many.txt"), many).unwrap();
    let job = json!({"type": "import", "inputBlobContainerUri": container, "inputBlobName": "many.txt",
        "outputBlobContainerUri": container});
    let (status, job) = request(&hub, "POST", "/jobs/create", Some(&job));
    assert_eq!(status, 200, "{job}");
    hub.kill();
    let hub = Hub::start(&data, &flags);
    let id = job["jobId"].as_str().unwrap();
    let (_, job) = request(&hub, "GET", &format!("/jobs/{id}"), None);
    assert_eq!(job["status"], "failed", "{job}");
    assert!(
        job["failureReason"]
            .as_str()
            .unwrap()
            .contains("the hub was stopped while the job ran"),
        "{job}"
    );
    let (status, _) = request(
        &hub,
        "POST",
        "/jobs/create",
        Some(&json!({"type": "export", "outputBlobContainerUri": container})),
    );
    assert_eq!(status, 200, "others may run");
}

#[test]
fn models_and_digital_twins() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(&dir.path().join("data"), &[]);
    let model = dir.path().join("thermostat.json");
    let document = json!({"@context": "dtmi:dtdl:context;2", "@id": "dtmi:ex:Thermostat;1", "@type": "Interface",
        "displayName": "Thermostat", "contents": [
            {"@type": "Property", "name": "target", "schema": "double", "writable": true}]});
    fs::write(&model, document.to_string()).unwrap();
    let at = format!("@{}", model.display());
    assert_eq!(hub.json(&["pnp", "model", "validate", &at])["valid"], true);
    assert_eq!(
        hub.json(&["pnp", "model", "add", &at])["id"],
        "dtmi:ex:Thermostat;1"
    );
    assert_eq!(
        hub.json(&["pnp", "model", "list"])[0]["displayName"],
        "Thermostat"
    );
    assert_eq!(
        hub.json(&["pnp", "model", "show", "dtmi:ex:Thermostat;1"]),
        document
    );
    let bad = document.to_string().replace("double", "fast");
    let out = hub.run(&["pnp", "model", "validate", &bad]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("contents[0] \"target\" schema: there is no schema \"fast\""));
    // Without a hub, in a folder.
    let repo = dir.path().join("repo/dtmi/ex");
    fs::create_dir_all(&repo).unwrap();
    fs::copy(&model, repo.join("thermostat-1.json")).unwrap();
    let controller = json!({"@context": "dtmi:dtdl:context;2", "@id": "dtmi:ex:C;1", "@type": "Interface",
        "contents": [{"@type": "Component", "name": "t", "schema": "dtmi:ex:Thermostat;1"}]});
    let offline = |repo: &str| {
        let text = controller.to_string();
        holdfast()
            .args(["pnp", "model", "validate", &text, "--repo", repo])
            .output()
            .unwrap()
    };
    let found = offline(dir.path().join("repo").to_str().unwrap());
    assert!(found.status.success(), "{}", text(&found.stderr));
    assert_eq!(offline(dir.path().to_str().unwrap()).status.code(), Some(1));

    let line = dir.path().join("line.txt");
    let device =
        json!({"id": "d1", "modelId": "dtmi:ex:Thermostat;1", "properties": {"reported": {"target": 1.5}}});
    fs::write(&line, device.to_string()).unwrap();
    hub.json(&["import", line.to_str().unwrap()]);
    assert_eq!(hub.json(&["pnp", "twin", "check", "d1"])["valid"], true);
    let patch = r#"[{"op":"add","path":"/target","value":"hot"}]"#;
    let twin = hub.json(&["pnp", "twin", "update", "d1", "--json-patch", patch]);
    assert_eq!(twin["$metadata"]["target"]["desiredValue"], "hot");
    assert_eq!(hub.json(&["pnp", "twin", "show", "d1"])["target"], 1.5);
    let out = hub.run(&["pnp", "twin", "check", "d1"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("desired.target: must be a number (double), not \"hot\""));
    let out = hub.run(&["pnp", "twin", "invoke-command", "d1", "reboot"]);
    assert_eq!(out.status.code(), Some(6), "{}", text(&out.stderr));
}
