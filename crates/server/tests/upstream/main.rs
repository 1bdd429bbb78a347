//! The edge's client of a hub against a hub: every protocol, keys and on behalf of others, outage and return, drain rate.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod faults;
mod identity;
mod silence;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_model::Identity;
use holdfast_model::credential::SymmetricKey;
use holdfast_model::message::{Message, SystemProperty};
use holdfast_model::method::MethodResponse;
use holdfast_ports::clock::SystemClock;
use holdfast_upstream::port::{
    Account, Cloud as _, CloudClient, CloudError, CloudEvent, CloudRegistry as _, Interests, Proof, Reach,
    Settle,
};
use holdfast_upstream::{
    KeySigner, Metrics, Ports, Proxy, Trust, Upstream, UpstreamConfig, UpstreamProtocol,
};
use serde_json::{Value, json};
use support::{Hub, PATIENCE};
use tokio::time::timeout;

const PROTOCOLS: [UpstreamProtocol; 4] = [
    UpstreamProtocol::Mqtt,
    UpstreamProtocol::MqttWs,
    UpstreamProtocol::Amqp,
    UpstreamProtocol::AmqpWs,
];

fn start(dir: &Path) -> Hub {
    Hub::start(
        &dir.join("data"),
        &["--listen", "127.0.0.1", "--host", "localhost"],
    )
}

fn config(hub: &Hub, protocol: UpstreamProtocol) -> UpstreamConfig {
    let port = |name: &str| u16::try_from(hub.ready[name].as_u64().unwrap()).unwrap();
    let mut config = UpstreamConfig::new("localhost");
    config.protocol = protocol;
    config.ports = Ports {
        mqtt: port("mqttPort"),
        amqp: port("amqpPort"),
        https: port("httpsPort"),
    };
    let pem = std::fs::read(hub.data_dir.join("ca.pem")).unwrap();
    config.trust = Trust::from_pem(&pem).unwrap();
    config
}

fn upstream(config: UpstreamConfig) -> Upstream {
    Upstream::new(config, Arc::new(SystemClock::new()), Metrics::default()).unwrap()
}

fn signer(hub: &Hub, id: &str) -> Arc<KeySigner> {
    let record = match id.split_once('/') {
        None => hub.json(&["device", "show", id]),
        Some((device, module)) => hub.json(&["module", "show", device, module]),
    };
    let key = record["authentication"]["symmetricKey"]["primaryKey"]
        .as_str()
        .unwrap();
    Arc::new(KeySigner::new(SymmetricKey::parse(key).unwrap()))
}

fn account(hub: &Hub, id: &str) -> Account {
    Account {
        identity: Identity::parse(id).unwrap(),
        proof: Proof::Key(signer(hub, id)),
        product_info: "EdgeHub/test".to_owned(),
        model_id: None,
    }
}

fn on_behalf(hub: &Hub, id: &str, actor: &str, chain: &str) -> Account {
    let actor = format!("{actor}/$edgeHub");
    Account {
        proof: Proof::OnBehalf {
            signer: signer(hub, &actor),
            actor: Identity::parse(&actor).unwrap(),
            chain: chain.to_owned(),
        },
        ..Account {
            identity: Identity::parse(id).unwrap(),
            ..account(hub, &actor)
        }
    }
}

const ALL: Interests = Interests {
    methods: true,
    desired: true,
    cloud_to_device: true,
};

async fn event(client: &Arc<dyn CloudClient>) -> CloudEvent {
    timeout(PATIENCE, client.next()).await.expect("an event in time")
}

async fn connected(client: &Arc<dyn CloudClient>) {
    while !matches!(event(client).await, CloudEvent::Connected) {}
}

fn message(text: &str) -> Message {
    let mut message = Message {
        body: Bytes::copy_from_slice(text.as_bytes()),
        ..Message::default()
    };
    message.set_system(SystemProperty::ContentType, "text/plain");
    message.set_property("source", Some("test".to_owned()));
    message
}

/// Runs the command line beside the clients.
async fn command(hub: &Arc<Hub>, args: &[&str]) -> Value {
    let (hub, args) = (
        Arc::clone(hub),
        args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>(),
    );
    tokio::task::spawn_blocking(move || hub.json(&args.iter().map(String::as_str).collect::<Vec<_>>()))
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_does_all_that_a_device_does() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Arc::new(start(dir.path()));
    command(&hub, &["device", "create", "d1"]).await;
    for protocol in PROTOCOLS {
        let upstream = upstream(config(&hub, protocol));
        let client = upstream.client(account(&hub, "d1"));
        client.want(ALL);
        connected(&client).await;
        client.send(&[message("one"), message("two")]).await.unwrap();

        let patch = json!({ "firmware": protocol.as_str() }).to_string();
        let version = client.patch_reported(patch.into()).await.unwrap();
        let twin: Value = serde_json::from_slice(&client.twin().await.unwrap()).unwrap();
        assert_eq!(twin["reported"]["firmware"], protocol.as_str());
        assert_eq!(twin["reported"]["$version"], version);
        let refused = client
            .patch_reported(Bytes::from_static(b"[1]"))
            .await
            .unwrap_err();
        assert!(
            matches!(refused, CloudError::Refused { status: 400, .. }),
            "{refused}"
        );

        command(&hub, &["twin", "update", "d1", "--desired", r#"{"speed":7}"#]).await;
        let CloudEvent::Desired { version, patch } = event(&client).await else {
            panic!("a patch")
        };
        let patch: Value = serde_json::from_slice(&patch).unwrap();
        assert_eq!(
            (patch["speed"].as_u64(), patch["$version"].as_u64()),
            (Some(7), Some(version))
        );

        let call = tokio::spawn({
            let hub = Arc::clone(&hub);
            async move {
                command(
                    &hub,
                    &["method", "invoke", "d1", "reboot", "--payload", "{\"in\":5}"],
                )
                .await
            }
        });
        let CloudEvent::Method(request) = event(&client).await else {
            panic!("a method")
        };
        assert_eq!(
            (request.name.as_str(), request.payload.as_ref()),
            ("reboot", &b"{\"in\":5}"[..])
        );
        let payload = Bytes::from_static(b"\"soon\"");
        client.answer(request.request_id, MethodResponse { status: 202, payload });
        assert_eq!(call.await.unwrap(), json!({"status": 202, "payload": "soon"}));

        command(&hub, &["c2d", "send", "d1", "hello", "--property", "colour=blue"]).await;
        let CloudEvent::CloudToDevice(received) = event(&client).await else {
            panic!("a message")
        };
        assert_eq!(received.message.body.as_ref(), b"hello");
        assert_eq!(
            received.message.properties,
            [("colour".to_owned(), Some("blue".to_owned()))]
        );
        client.settle(received.token, Settle::Complete);
        let deadline = Instant::now() + PATIENCE;
        while command(&hub, &["device", "show", "d1"]).await["cloudToDeviceMessageCount"] != 0 {
            assert!(Instant::now() < deadline, "the message is still there");
        }
        assert_eq!(*upstream.reach().borrow(), Reach::Online);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_hub_speaks_for_those_below_it() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Arc::new(start(dir.path()));
    command(&hub, &["edge", "create", "top"]).await;
    command(&hub, &["edge", "create", "mid", "--parent", "top"]).await;
    command(&hub, &["device", "create", "leaf"]).await;
    command(&hub, &["edge", "set-parent", "leaf", "mid"]).await;
    command(&hub, &["module", "create", "mid", "app"]).await;
    for protocol in PROTOCOLS {
        let upstream = upstream(config(&hub, protocol));
        for (id, chain) in [
            ("leaf", "leaf;mid;top"),
            ("mid/app", "mid/app;mid;top"),
            ("mid", "mid;top"),
        ] {
            let client = upstream.client(on_behalf(&hub, id, "top", chain));
            client
                .send(&[message(id)])
                .await
                .unwrap_or_else(|error| panic!("{id}: {error}"));
            client.twin().await.unwrap();
        }
        let foreign = upstream.client(on_behalf(&hub, "leaf", "top", "leaf;top"));
        let failure = foreign.send(&[message("x")]).await.unwrap_err();
        assert!(matches!(failure.cause, CloudError::Unauthorized(_)), "{failure}");
    }
    let registry = upstream(config(&hub, UpstreamProtocol::Mqtt)).registry(account(&hub, "top/$edgeHub"));
    let page = registry.scope_page("mid", "mid;top", None).await.unwrap();
    let ids: Vec<&str> = page
        .identities
        .iter()
        .map(|identity| identity.identity.as_str())
        .collect();
    assert_eq!(ids, ["mid", "leaf", "mid/$edgeAgent", "mid/$edgeHub", "mid/app"]);
    let leaf = registry
        .scope_identity(&Identity::parse("leaf").unwrap(), "mid;top")
        .await
        .unwrap();
    assert_eq!(leaf.len(), 1);
    assert!(
        registry
            .scope_identity(&Identity::parse("leaf").unwrap(), "top")
            .await
            .unwrap()
            .is_empty()
    );
    let refused = registry.scope_page("leaf", "leaf;top", None).await.unwrap_err();
    assert!(matches!(refused, CloudError::Unauthorized(_)), "{refused}");
    assert_eq!(registry.modules_on_behalf("mid;top").await.unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_device_manages_its_modules() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Arc::new(start(dir.path()));
    command(&hub, &["edge", "create", "e1"]).await;
    let upstream = upstream(config(&hub, UpstreamProtocol::Mqtt));
    let registry = upstream.registry(account(&hub, "e1"));
    let made = registry.create_module("app", "IotEdge").await.unwrap();
    let again = registry.create_module("app", "IotEdge").await.unwrap();
    assert_eq!(
        (&made.generation_id, made.managed_by.as_str()),
        (&again.generation_id, "IotEdge")
    );
    let agent = registry.create_module("$edgeAgent", "IotEdge").await.unwrap();
    let (primary, secondary) = (SymmetricKey::generate(), SymmetricKey::generate());
    for module in [&made, &agent] {
        registry
            .set_module_keys(module, &primary, &secondary)
            .await
            .unwrap();
    }
    let account = |id: &str, key: &SymmetricKey| Account {
        proof: Proof::Key(Arc::new(KeySigner::new(key.clone()))),
        identity: Identity::parse(id).unwrap(),
        ..account(&hub, "e1")
    };
    for (id, key) in [("e1/app", &primary), ("e1/$edgeAgent", &secondary)] {
        upstream
            .client(account(id, key))
            .send(&[message(id)])
            .await
            .unwrap();
    }
    let failure = upstream
        .client(account("e1/app", &SymmetricKey::generate()))
        .twin()
        .await
        .unwrap_err();
    assert!(matches!(failure, CloudError::Unauthorized(_)));
    let mut ids: Vec<String> = registry
        .modules()
        .await
        .unwrap()
        .into_iter()
        .map(|module| module.module_id)
        .collect();
    ids.sort();
    assert_eq!(ids, ["$edgeAgent", "$edgeHub", "app"]);
    registry.delete_module("app").await.unwrap();
    registry.delete_module("app").await.unwrap();
    assert_eq!(registry.modules().await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_go_through_a_proxy_that_is_set() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let dir = tempfile::tempdir().unwrap();
    let hub = Arc::new(start(dir.path()));
    command(&hub, &["device", "create", "d1"]).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tell, mut tunnels) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut inner, _)) = listener.accept().await {
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(inner.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                let authority = head.split(' ').nth(1).unwrap().to_owned();
                let mut outer = tokio::net::TcpStream::connect(&authority).await.unwrap();
                inner.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                tell.send(head).unwrap();
                let _ = tokio::io::copy_bidirectional(&mut inner, &mut outer).await;
            });
        }
    });
    for protocol in PROTOCOLS {
        let mut config = config(&hub, protocol);
        config.proxy = Some(
            format!("http://me:secret@127.0.0.1:{port}")
                .parse::<Proxy>()
                .unwrap(),
        );
        let upstream = upstream(config);
        upstream
            .client(account(&hub, "d1"))
            .send(&[message("x")])
            .await
            .unwrap();
        let head = tunnels.recv().await.unwrap();
        assert!(
            head.contains("Proxy-Authorization: Basic bWU6c2VjcmV0\r\n"),
            "{head}"
        );
        let missing = upstream.registry(account(&hub, "d1")).modules().await.unwrap();
        assert!(missing.is_empty());
        assert!(tunnels.recv().await.unwrap().starts_with("CONNECT localhost:"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_is_killed_and_comes_back_is_noticed_and_nothing_is_lost() {
    for protocol in [UpstreamProtocol::Mqtt, UpstreamProtocol::Amqp] {
        outlive_the_hub(protocol).await;
    }
}

async fn outlive_the_hub(protocol: UpstreamProtocol) {
    let dir = tempfile::tempdir().unwrap();
    let hub = start(dir.path());
    hub.json(&["device", "create", "d1"]);
    let config = config(&hub, protocol);
    let (ports, account) = (config.ports, account(&hub, "d1"));
    let upstream = upstream(config);
    let client = upstream.client(account);
    client.want(ALL);
    connected(&client).await;
    let numbered =
        |from: u32, to: u32| -> Vec<Message> { (from..to).map(|n| message(&n.to_string())).collect() };
    client.send(&numbered(0, 1000)).await.unwrap();
    hub.kill();
    let batch = numbered(1000, 2000);
    let failure = timeout(PATIENCE, client.send(&batch)).await.unwrap().unwrap_err();
    assert!(matches!(failure.cause, CloudError::Unreachable(_)), "{failure}");
    assert!(matches!(
        event(&client).await,
        CloudEvent::Disconnected(CloudError::Unreachable(_))
    ));
    let (mqtt, amqp) = (ports.mqtt.to_string(), ports.amqp.to_string());
    let mut flags = vec!["--listen", "127.0.0.1", "--host", "localhost"];
    flags.extend(["--mqtt-port", &mqtt, "--amqp-port", &amqp]);
    let hub = Hub::start(&dir.path().join("data"), &flags);
    let back = Instant::now();
    connected(&client).await;
    assert!(back.elapsed() < Duration::from_secs(10), "{:?}", back.elapsed());
    client.send(&batch[failure.accepted..]).await.unwrap();
    let read = [
        "monitor",
        "--from",
        "earliest",
        "--json",
        "--source",
        "telemetry",
        "--timeout",
        "5s",
    ];
    let output = hub.run(&read);
    let text = support::text(&output.stdout);
    let mut first = std::collections::BTreeSet::new();
    let numbers = text.lines().filter_map(|line| {
        let event: Value = serde_json::from_str(line).ok()?;
        event["body"].as_u64()
    });
    let order: Vec<u64> = numbers.filter(|number| first.insert(*number)).collect();
    assert_eq!(
        order,
        (0..2000).collect::<Vec<_>>(),
        "{}",
        support::text(&output.stderr)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neighbours_of_a_refused_client_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Arc::new(start(dir.path()));
    for device in ["good", "bad", "fired"] {
        command(&hub, &["device", "create", device]).await;
    }
    for protocol in PROTOCOLS {
        command(&hub, &["device", "update", "fired", "--status", "enabled"]).await;
        let upstream = upstream(config(&hub, protocol));
        let good = upstream.client(account(&hub, "good"));
        good.want(ALL);
        connected(&good).await;
        let bad = upstream.client(Account {
            proof: Proof::Key(Arc::new(KeySigner::new(SymmetricKey::generate()))),
            ..account(&hub, "bad")
        });
        let failure = bad.send(&[message("x")]).await.unwrap_err();
        assert!(matches!(failure.cause, CloudError::Unauthorized(_)), "{failure}");
        assert!(matches!(
            event(&bad).await,
            CloudEvent::Disconnected(CloudError::Unauthorized(_))
        ));
        let fired = upstream.client(account(&hub, "fired"));
        fired.want(ALL);
        connected(&fired).await;
        fired
            .send(&[message("x")])
            .await
            .unwrap_or_else(|error| panic!("{protocol:?}: {error}"));
        command(&hub, &["device", "update", "fired", "--status", "disabled"]).await;
        assert!(matches!(event(&fired).await, CloudEvent::Disconnected(_)));
        // It may find out at its next attempt only.
        let deadline = Instant::now() + PATIENCE;
        while !matches!(fired.twin().await, Err(CloudError::Unauthorized(_))) {
            assert!(Instant::now() < deadline, "{protocol:?}: still let in");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        good.send(&[message("y")]).await.unwrap();
        assert!(
            timeout(Duration::from_millis(200), good.next()).await.is_err(),
            "{protocol:?}: its connection was disturbed"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_renewed_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Arc::new(start(dir.path()));
    command(&hub, &["device", "create", "d1"]).await;
    for protocol in [UpstreamProtocol::Amqp, UpstreamProtocol::MqttWs] {
        let mut config = config(&hub, protocol);
        config.tuning.token_life = Duration::from_secs(2);
        let upstream = upstream(config);
        let client = upstream.client(account(&hub, "d1"));
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(5) {
            client.send(&[message("x")]).await.unwrap();
        }
        let mut connections = 0;
        while let Ok(told) = timeout(Duration::from_millis(100), client.next()).await {
            assert!(matches!(told, CloudEvent::Connected), "{protocol:?}: {told:?}");
            connections += 1;
        }
        // Over AMQP a new token goes to the connection that is there; MQTT needs a new one.
        let most = if protocol == UpstreamProtocol::Amqp { 1 } else { 4 };
        assert!(
            (1..=most).contains(&connections),
            "{protocol:?}: {connections} connections"
        );
    }
}

/// Drains as an edge hub does after a long outage and prints the rate:
/// `cargo test --release -p holdfast --test upstream -- --ignored --nocapture drain`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn drain_rate() {
    const BATCH: usize = 1_000;
    let dir = tempfile::tempdir().unwrap();
    let hub = start(dir.path());
    for device in 0..4 {
        hub.json(&["device", "create", &format!("d{device}")]);
    }
    let rounds: usize = std::env::var("ROUNDS").map_or(100, |text| text.parse().unwrap());
    for protocol in PROTOCOLS {
        for connections in [1, 4] {
            let upstream = upstream(config(&hub, protocol));
            let batch: Arc<Vec<Message>> = Arc::new((0..BATCH).map(|_| message(&"x".repeat(256))).collect());
            let clients: Vec<_> = (0..connections)
                .map(|device| upstream.client(account(&hub, &format!("d{device}"))))
                .collect();
            for client in &clients {
                client.send(&batch[..1]).await.unwrap();
            }
            let started = Instant::now();
            let tasks: Vec<_> = clients
                .into_iter()
                .map(|client| {
                    let batch = Arc::clone(&batch);
                    tokio::spawn(async move {
                        for _ in 0..rounds / connections {
                            client.send(&batch).await.unwrap();
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
            let sent = (rounds / connections * connections * BATCH) as f64;
            let rate = sent / started.elapsed().as_secs_f64();
            println!(
                "{}: {connections} connections: {rate:.0} messages/s",
                protocol.as_str()
            );
        }
    }
}

/// Memory that connected, idle clients take in this process:
/// `cargo test --release -p holdfast --test upstream -- --ignored --nocapture memory`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn memory_of_idle_clients() {
    const CLIENTS: usize = 50;
    let dir = tempfile::tempdir().unwrap();
    let hub = start(dir.path());
    let devices: Vec<String> = (0..CLIENTS).map(|number| format!("m{number}")).collect();
    for device in &devices {
        hub.json(&["device", "create", device]);
    }
    let accounts: Vec<Account> = devices.iter().map(|device| account(&hub, device)).collect();
    for protocol in [UpstreamProtocol::Amqp, UpstreamProtocol::Mqtt] {
        let upstream = upstream(config(&hub, protocol));
        // What the first one needs is not counted: the runtime, the authorities, the shared connection.
        let first = upstream.client(accounts[0].clone());
        first.want(ALL);
        connected(&first).await;
        let before = resident_kib();
        let mut clients = vec![first];
        for account in &accounts[1..] {
            let client = upstream.client(account.clone());
            client.want(ALL);
            connected(&client).await;
            clients.push(client);
        }
        let each = (resident_kib() - before) as f64 / (CLIENTS - 1) as f64;
        println!("{}: {each:.1} KiB a client", protocol.as_str());
    }
}

/// Private memory of this process.
fn resident_kib() -> i64 {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = text.lines().find(|line| line.starts_with("Pss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
