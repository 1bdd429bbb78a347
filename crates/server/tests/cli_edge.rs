//! `holdfast edge` against a running hub.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::process::Output;
use std::sync::Arc;

use holdfast_model::Identity;
use holdfast_model::credential::SymmetricKey;
use holdfast_ports::clock::SystemClock;
use holdfast_upstream::port::{Account, Cloud as _, CloudClient, CloudEvent, Interests, Proof};
use holdfast_upstream::{KeySigner, Metrics, Ports, Trust, Upstream, UpstreamConfig, UpstreamProtocol};
use serde_json::{Value, json};
use support::{Hub, PATIENCE, text, wait_for};

fn ids(rows: &Value) -> Vec<&str> {
    rows.as_array()
        .unwrap()
        .iter()
        .filter_map(|row| row["deviceId"].as_str())
        .collect()
}

#[test]
fn edge_devices_are_made_with_what_their_program_needs() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(&dir.path().join("data"), &["--listen", "127.0.0.1"]);
    let made = hub.json(&["edge", "create", "e1"]);
    let text_of = made["connectionString"].as_str().unwrap();
    assert!(text_of.contains(";DeviceId=e1;SharedAccessKey="), "{text_of}");
    assert_eq!(
        hub.json(&["device", "show", "e1"])["capabilities"]["iotEdge"],
        true
    );
    let modules = hub.json(&["edge", "modules", "e1"]);
    let names: Vec<&str> = modules
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|row| row["moduleId"].as_str())
        .collect();
    assert_eq!(names, ["edgeAgent", "edgeHub"]);

    let file = dir.path().join("config.toml");
    let path = file.to_str().unwrap();
    let flags = [
        "--hostname",
        "e2.test",
        "--parent",
        "e1",
        "--parent-hostname",
        "e1.test",
    ];
    hub.json(&[&["edge", "create", "e2", "--config", path], &flags[..]].concat());
    let config: toml::Table = toml::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(config["device"]["hostname"].as_str(), Some("e2.test"));
    assert_eq!(config["device"]["parent_hostname"].as_str(), Some("e1.test"));
    assert!(
        config["provisioning"]["connection_string"]
            .as_str()
            .unwrap()
            .contains("DeviceId=e2")
    );
    assert!(config["upstream"]["ca"].as_str().unwrap().ends_with("ca.pem"));
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(
        std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    // A file that is there is left alone, and no device is made for nothing.
    let output = hub.run(&["edge", "create", "e3", "--config", path]);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    assert_eq!(hub.run(&["device", "show", "e3"]).status.code(), Some(3));
    // Straight at the hub its ports count, which are not the usual ones here.
    let file = dir.path().join("direct.toml");
    hub.json(&["edge", "create", "e4", "--config", file.to_str().unwrap()]);
    let config: toml::Table = toml::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let port = config["upstream"]["mqtt_port"].as_integer().unwrap();
    assert_eq!(port, i64::from(hub.mqtt_port()));
}

#[test]
fn families_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(&dir.path().join("data"), &["--listen", "127.0.0.1"]);
    hub.json(&["edge", "create", "top"]);
    hub.json(&["edge", "create", "mid"]);
    for leaf in ["a", "b", "c"] {
        hub.json(&["device", "create", leaf]);
    }
    hub.json(&["edge", "set-parent", "mid", "top"]);
    hub.json(&["edge", "add-child", "mid", "a", "b"]);
    hub.json(&["edge", "set-parent", "c", "top"]);
    assert_eq!(ids(&hub.json(&["edge", "list-children", "mid"])), ["a", "b"]);
    assert_eq!(ids(&hub.json(&["edge", "list-children", "top"])), ["c", "mid"]);
    let scope = hub.json(&["device", "show", "mid"])["deviceScope"].clone();
    assert_eq!(hub.json(&["device", "show", "a"])["deviceScope"], scope);

    let output = hub.run(&["edge", "set-parent", "a", "top"]);
    assert_eq!(output.status.code(), Some(5));
    assert!(
        text(&output.stderr).contains("--force"),
        "{}",
        text(&output.stderr)
    );
    hub.json(&["edge", "set-parent", "a", "top", "--force"]);
    assert_eq!(ids(&hub.json(&["edge", "list-children", "mid"])), ["b"]);
    assert_eq!(
        hub.run(&["edge", "remove-child", "mid", "a"]).status.code(),
        Some(3)
    );
    hub.json(&["edge", "remove-child", "mid", "b"]);
    assert!(ids(&hub.json(&["edge", "list-children", "mid"])).is_empty());
    assert_eq!(hub.json(&["device", "show", "b"])["parentScopes"], json!([]));
    hub.json(&["edge", "remove-child", "top", "--all"]);
    assert!(ids(&hub.json(&["edge", "list-children", "top"])).is_empty());
    assert_eq!(
        hub.json(&["device", "show", "mid"])["deviceScope"],
        scope,
        "its own stays"
    );

    let output = hub.run(&["edge", "set-parent", "a", "b"]);
    assert!(
        text(&output.stderr).contains("not an edge device"),
        "{}",
        text(&output.stderr)
    );
    hub.json(&["edge", "set-parent", "mid", "top"]);
    assert!(
        !hub.run(&["edge", "set-parent", "top", "mid"]).status.success(),
        "no circles"
    );
}

/// A manifest with one module.
fn manifest() -> Value {
    json!({"modulesContent": {
        "$edgeAgent": {"properties.desired": {
            "schemaVersion": "1.1",
            "runtime": {"type": "docker", "settings": {}},
            "systemModules": {
                "edgeAgent": {"type": "docker", "settings": {"image": "agent:1"}},
                "edgeHub": {"type": "docker", "status": "running", "restartPolicy": "always", "settings": {"image": "hub:1"}},
            },
            "modules": {"sensor": {"type": "docker", "status": "running", "restartPolicy": "always",
                "settings": {"image": "sensor:1"}}},
        }},
        "$edgeHub": {"properties.desired": {"schemaVersion": "1.1", "routes": {},
            "storeAndForwardConfiguration": {"timeToLiveSecs": 7200}}},
    }})
}

/// Deploys the manifest; how that ended, and the JSON it printed.
fn deploy(hub: &Hub, extra: &[&str]) -> (Output, Value) {
    let content = manifest().to_string();
    let args = ["edge", "deploy", "e1", "--content", &content, "--output", "json"];
    let output = hub.run(&[&args, extra].concat());
    let told = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", text(&output.stdout), text(&output.stderr)));
    (output, told)
}

/// A system module of e1 that reports what a test wants it to, as soon as it has new desired properties.
struct Pretender {
    client: Arc<dyn CloudClient>,
    _upstream: Upstream,
}

impl Pretender {
    async fn connect(hub: &Hub, module: &str) -> Self {
        let port = |name: &str| u16::try_from(hub.ready[name].as_u64().unwrap()).unwrap();
        let mut config = UpstreamConfig::new("localhost");
        config.protocol = UpstreamProtocol::Mqtt;
        config.ports = Ports {
            mqtt: port("mqttPort"),
            amqp: port("amqpPort"),
            https: port("httpsPort"),
        };
        config.trust = Trust::from_pem(&std::fs::read(hub.data_dir.join("ca.pem")).unwrap()).unwrap();
        let upstream = Upstream::new(config, Arc::new(SystemClock::new()), Metrics::default()).unwrap();
        let record = hub.json(&["module", "show", "e1", module]);
        let key = record["authentication"]["symmetricKey"]["primaryKey"]
            .as_str()
            .unwrap();
        let client = upstream.client(Account {
            identity: Identity::parse(&format!("e1/{module}")).unwrap(),
            proof: Proof::Key(Arc::new(KeySigner::new(SymmetricKey::parse(key).unwrap()))),
            product_info: "test".to_owned(),
            model_id: None,
        });
        client.want(Interests {
            methods: false,
            desired: true,
            cloud_to_device: false,
        });
        let pretender = Pretender {
            client,
            _upstream: upstream,
        };
        while !matches!(pretender.event().await, CloudEvent::Connected) {}
        pretender
    }

    async fn event(&self) -> CloudEvent {
        tokio::time::timeout(PATIENCE, self.client.next()).await.unwrap()
    }

    /// Reports, at the next desired properties, this code and these other properties.
    async fn answer(&self, code: u64, description: &str, others: Value) {
        let version = loop {
            if let CloudEvent::Desired { version, .. } = self.event().await {
                break version;
            }
        };
        let mut report = others;
        report["lastDesiredVersion"] = version.into();
        report["lastDesiredStatus"] = json!({"code": code, "description": description});
        self.client
            .patch_reported(report.to_string().into())
            .await
            .unwrap();
    }
}

/// What an agent reports whose modules are so.
fn reporting(sensor: &str) -> Value {
    json!({
        "systemModules": {"edgeAgent": {"runtimeStatus": "running"}, "edgeHub": {"runtimeStatus": "running"}},
        "modules": {"sensor": {"runtimeStatus": sensor, "exitCode": 3, "restartCount": 2}},
    })
}

#[test]
fn a_deployment_is_followed_until_the_device_has_answered() {
    let dir = tempfile::tempdir().unwrap();
    let flags = ["--listen", "127.0.0.1", "--host", "localhost"];
    let hub = Hub::start(&dir.path().join("data"), &flags);
    hub.json(&["edge", "create", "e1"]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (agent, edge_hub) = runtime.block_on(async {
        (
            Pretender::connect(&hub, "$edgeAgent").await,
            Pretender::connect(&hub, "$edgeHub").await,
        )
    });
    let unclear = "Agent configuration format is invalid. modules.sensor: no image";
    let back = "Deployment 9 was taken back to deployment 8: sensor does not run";
    let route = "Error while parsing desired properties - route up: no";
    // What the two tell, how the module is; then exit code, word, and what people are told.
    type Case<'a> = (u64, &'a str, (u64, &'a str), &'a str, i32, &'a str, &'a str);
    let cases: [Case<'_>; 6] = [
        (
            400,
            unclear,
            (200, ""),
            "running",
            1,
            "refused",
            "modules.sensor: no image",
        ),
        (
            412,
            "schema",
            (200, ""),
            "running",
            1,
            "refused",
            "code 412: schema",
        ),
        (
            500,
            back,
            (200, ""),
            "running",
            1,
            "takenBack",
            "was taken back to deployment 8",
        ),
        (200, "", (400, route), "running", 1, "hubRefused", "route up: no"),
        (
            200,
            "",
            (200, ""),
            "failed",
            1,
            "unwell",
            "sensor is failed, exit code 3, 2 restarts",
        ),
        (200, "", (200, ""), "running", 0, "done", ""),
    ];
    for (code, said, (hub_code, hub_said), sensor, exit, word, told) in cases {
        let answers = async {
            tokio::join!(
                agent.answer(code, said, reporting(sensor)),
                edge_hub.answer(hub_code, hub_said, json!({}))
            )
        };
        // Only the one that does not end by itself waits for the time to be up.
        let wait: &[&str] = if word == "unwell" { &["--wait", "10"] } else { &[] };
        let (output, json) = std::thread::scope(|scope| {
            let deploying = scope.spawn(|| deploy(&hub, wait));
            runtime.block_on(answers);
            deploying.join().unwrap()
        });
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(exit), "{word}: {stderr}");
        assert_eq!(json["result"], word, "{stderr}");
        assert!(stderr.contains(told), "{word}: {stderr}");
        assert_eq!(stderr.contains("hint: "), exit != 0, "{word}: {stderr}");
        assert_eq!(json["status"]["lastDesiredStatus"]["code"], code);
    }
    let table = text(&hub.run(&["edge", "status", "e1"]).stdout);
    for part in ["$edgeAgent", "$edgeHub", "Connected", "modules running    3 of 3"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    // Somebody else deploys while this one waits: the agent says nothing of either.
    let (output, json) = std::thread::scope(|scope| {
        let deploying = scope.spawn(|| deploy(&hub, &[]));
        let first = runtime.block_on(async { agent.event().await });
        assert!(matches!(first, CloudEvent::Desired { .. }), "{first:?}");
        // Until the first has read what it waits for, another one is not another one.
        wait_for("the first to give up", || {
            let content = manifest().to_string();
            hub.run(&["deployment", "apply", "e1", "--content", &content]);
            deploying.is_finished().then_some(())
        });
        deploying.join().unwrap()
    });
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    assert_eq!(json["result"], "superseded");
    // One that is connected and silent.
    let (output, json) = deploy(&hub, &["--wait", "1"]);
    assert_eq!(output.status.code(), Some(6), "{}", text(&output.stderr));
    assert_eq!(json["result"], "timedOut");
    assert!(
        text(&output.stderr).contains("$edgeAgent"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_device_that_is_away_takes_the_deployment_later() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(&dir.path().join("data"), &["--listen", "127.0.0.1"]);
    hub.json(&["edge", "create", "e1"]);
    let (output, json) = deploy(&hub, &[]);
    assert_eq!(
        (output.status.code(), &json["result"]),
        (Some(0), &json!("waiting"))
    );
    let content = manifest().to_string();
    let output = hub.run(&["edge", "deploy", "e1", "--content", &content]);
    assert!(
        text(&output.stdout).contains("takes it when it connects"),
        "{}",
        text(&output.stdout)
    );
    let (output, json) = deploy(&hub, &["--wait", "0"]);
    assert_eq!(
        (output.status.code(), &json["result"]),
        (Some(0), &json!("given"))
    );
    let (output, json) = deploy(&hub, &["--wait", "1"]);
    assert_eq!(
        (output.status.code(), &json["result"]),
        (Some(6), &json!("timedOut"))
    );
    assert!(
        text(&output.stderr).contains("not connected"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_manifest_with_faults_is_not_sent() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(&dir.path().join("data"), &["--listen", "127.0.0.1"]);
    hub.json(&["edge", "create", "e1"]);
    let version = |hub: &Hub| {
        hub.json(&["twin", "show", "e1", "--module", "$edgeAgent"])["properties"]["desired"]["$version"]
            .clone()
    };
    let before = version(&hub);
    let mut wrong = manifest();
    wrong["modulesContent"]["$edgeHub"]["properties.desired"]["routes"]["up"] = json!("FROM /* INTO nowhere");
    let content = wrong.to_string();
    let output = hub.run(&["edge", "deploy", "e1", "--content", &content]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    let stderr = text(&output.stderr);
    assert!(
        stderr.contains("route up: ") && stderr.contains("(line 1, column 14)"),
        "{stderr}"
    );
    assert_eq!(version(&hub), before);
    hub.json(&["edge", "deploy", "e1", "--content", &content, "--no-check"]);
    assert_ne!(version(&hub), before);
}

#[test]
fn deployments_and_their_state_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(&dir.path().join("data"), &["--listen", "127.0.0.1"]);
    hub.json(&["edge", "create", "e1"]);
    hub.json(&["edge", "deploy", "e1", "--content", &manifest().to_string()]);
    let rows = hub.json(&["edge", "modules", "e1"]);
    let sensor = rows
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["moduleId"] == "sensor")
        .unwrap();
    assert_eq!(
        (&sensor["desiredStatus"], &sensor["image"]),
        (&json!("running"), &json!("sensor:1"))
    );
    let status = hub.json(&["edge", "status", "e1"]);
    assert_eq!((&status["modules"], &status["running"]), (&json!(3), &json!(0)));
    assert_eq!(status["connectionState"], "Disconnected");
    let names: Vec<&str> = status["moduleStates"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|row| row["moduleId"].as_str())
        .collect();
    assert_eq!(names, ["edgeAgent", "edgeHub", "sensor"]);
    let output = hub.run(&["edge", "status"]);
    let table = text(&output.stdout);
    assert!(table.contains("e1") && table.contains("Disconnected"), "{table}");
    let table = text(&hub.run(&["edge", "modules", "e1"]).stdout);
    assert!(table.contains("sensor:1"), "{table}");
    // Nobody is there to ask.
    for command in [
        &["edge", "logs", "e1", "sensor"][..],
        &["edge", "restart", "e1", "sensor"],
    ] {
        let output = hub.run(command);
        assert_eq!(output.status.code(), Some(6), "{}", text(&output.stderr));
    }
    let output = hub.run(&["edge", "deploy", "e1", "--content", "{}"]);
    assert_eq!(output.status.code(), Some(2));
}
