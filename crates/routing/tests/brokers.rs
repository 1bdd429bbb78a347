//! Endpoints against the brokers that people run: Mosquitto and RabbitMQ with its AMQP 1.0 plugin, both of Debian. They are
//! started here, on free ports, with their data in a temporary folder. `cargo xtask test` installs them.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_model::event::{AuthMethod, EndpointSet, EventBlock, EventSource, Origin, Records};
use holdfast_model::message::SystemProperty;
use holdfast_model::routing::EndpointDefinition;
use holdfast_model::{Identity, Timestamp};
use holdfast_ports::clock::SystemClock;
use holdfast_ports::endpoint::{Endpoint, Outbound};
use holdfast_routing::dispatchers::EndpointFactory as _;
use holdfast_routing::endpoints::{Endpoints, Environment};
use serde_json::{Value, json};

/// A program that ends with the test.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        // RabbitMQ is a script that starts others: all of them stand in the group.
        let group = format!("-{}", self.0.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// Waits until something listens.
fn await_port(port: u16) {
    let end = Instant::now() + Duration::from_secs(90);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < end, "nothing listens on port {port}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn endpoint(kind: &str, settings: Value) -> Arc<dyn Endpoint> {
    let endpoints = Endpoints::new(Environment {
        hub_name: "hub1".to_owned(),
        data_dir: std::env::temp_dir(),
        clock: Arc::new(SystemClock::new()),
        actions: None,
    });
    let definition = EndpointDefinition {
        name: "e1".to_owned(),
        number: 1,
        created_at: Timestamp::from_seconds(1),
        kind: kind.to_owned(),
        settings: endpoints.check(kind, &settings).unwrap(),
    };
    endpoints.make(&definition).unwrap()
}

fn numbers(from: usize, to: usize) -> EventBlock {
    let origin = Origin {
        source: EventSource::Telemetry,
        identity: Identity::parse("d1").unwrap(),
        generation_id: 1,
        auth: AuthMethod::IdentityKey,
    };
    let mut records = Records::new();
    for number in from..to {
        let mut record = records.record();
        record.system(SystemProperty::ContentType, "application/json");
        record.property("level", Some("3"));
        let _ = record.finish(number.to_string().as_bytes());
    }
    let mut data = Vec::new();
    origin.encode(EndpointSet::of(1), &mut data);
    data.extend_from_slice(records.as_bytes());
    EventBlock {
        partition: 0,
        first_sequence_number: from as u64,
        count: records.count(),
        enqueued_at: Timestamp::from_seconds(1_000),
        data: data.into(),
    }
}

async fn send(endpoint: &dyn Endpoint, block: &EventBlock) {
    let batch: Vec<Outbound<'_>> = block
        .events()
        .map(|event| Outbound {
            event: event.unwrap(),
            enrichments: Vec::new(),
        })
        .collect();
    endpoint.deliver(&batch).await.unwrap();
}

fn start(program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Program {
    let mut command = Command::new(program);
    command.args(arguments).envs(environment.iter().copied());
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    Program(command.spawn().unwrap_or_else(|error| {
        panic!(
            "{}: {error}; install it with: apt-get install --no-install-recommends mosquitto rabbitmq-server",
            program.display()
        )
    }))
}

#[tokio::test(flavor = "multi_thread")]
async fn mosquitto_takes_events_of_both_versions() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let config = folder.path().join("mosquitto.conf");
    let text = format!(
        "listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nmax_queued_messages 100000\n"
    );
    std::fs::write(&config, text).unwrap();
    let _broker = start(
        Path::new("/usr/sbin/mosquitto"),
        &["-c", config.to_str().unwrap()],
        &[],
    );
    await_port(port);
    for (version, qos) in [("3.1.1", 0), ("3.1.1", 1), ("5", 0), ("5", 1)] {
        let topic = format!("t/{}/{qos}", version.replace('.', "-"));
        let settings = json!({
            "url": format!("mqtt://127.0.0.1:{port}"), "version": version, "qos": qos, "retain": true,
            "topic": format!("{topic}/{{deviceId}}"),
        });
        let endpoint = endpoint("mqtt", settings);
        for from in [0, 1_000] {
            send(&*endpoint, &numbers(from, from + 1_000)).await;
        }
        assert_eq!(
            retained(port, &format!("{topic}/d1")),
            "1999",
            "MQTT {version}, QoS {qos}"
        );
        endpoint.idle().await;
    }
}

/// The retained message of a topic, read with our own client.
fn retained(port: u16, topic: &str) -> String {
    use std::io::{Read as _, Write as _};

    use holdfast_mqtt::codec::{self, Packet, QoS};

    let mut out = Vec::new();
    let connect = codec::Connect {
        client_id: "reader",
        clean_session: true,
        ..codec::Connect::default()
    };
    codec::encode_connect(&mut out, &connect).unwrap();
    codec::encode_subscribe(&mut out, codec::PacketId::MIN, &[(topic, QoS::AtMostOnce)]).unwrap();
    let mut socket = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket.write_all(&out).unwrap();
    let (mut input, mut buffer) = (Vec::new(), [0; 1_024]);
    loop {
        let read = socket.read(&mut buffer).unwrap();
        assert!(read > 0, "the broker closed the connection");
        input.extend_from_slice(&buffer[..read]);
        while let Some((packet, length)) = codec::decode(&input, 1 << 20).unwrap() {
            if let Packet::Publish(publish) = packet {
                return String::from_utf8(publish.payload.to_vec()).unwrap();
            }
            input.drain(..length);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_takes_events_over_amqp_1_0() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (port, distribution, mapper) = (free_port(), free_port(), free_port());
    std::fs::write(at("plugins"), "[rabbitmq_amqp1_0].\n").unwrap();
    std::fs::write(
        at("rabbitmq.conf"),
        format!("listeners.tcp.1 = 127.0.0.1:{port}\nloopback_users.guest = true\n"),
    )
    .unwrap();
    let node = format!("holdfast{port}@localhost");
    let (distribution, mapper) = (distribution.to_string(), mapper.to_string());
    let (config, plugins, base, logs) = (at("rabbitmq.conf"), at("plugins"), at("data"), at("log"));
    let environment = [
        ("HOME", folder.path().to_str().unwrap()),
        ("RABBITMQ_NODENAME", node.as_str()),
        ("RABBITMQ_CONFIG_FILE", &config),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", &plugins),
        ("RABBITMQ_MNESIA_BASE", &base),
        ("RABBITMQ_LOG_BASE", &logs),
        ("RABBITMQ_DIST_PORT", &distribution),
        ("ERL_EPMD_PORT", &mapper),
    ];
    let broker = start(
        Path::new("/usr/lib/rabbitmq/bin/rabbitmq-server"),
        &[],
        &environment,
    );
    await_port(port);
    let settings = |password: &str| {
        json!({
            "url": format!("amqp://127.0.0.1:{port}"), "address": "/queue/events", "username": "guest",
            "password": password,
        })
    };
    let sender = endpoint("amqp", settings("guest"));
    for from in [0, 500] {
        send(&*sender, &numbers(from, from + 500)).await;
    }
    let depth = queue_depth(&environment);
    assert_eq!(depth, "events\t1000", "every event is in the queue once");
    let wrong = endpoint("amqp", settings("wrong"));
    let block = numbers(0, 1);
    let outbound = block.events().map(|event| Outbound {
        event: event.unwrap(),
        enrichments: Vec::new(),
    });
    let error = wrong.deliver(&outbound.collect::<Vec<_>>()).await.unwrap_err();
    assert!(!error.refused, "{error}");
    drop(broker);
    let _ = Command::new("epmd").args(["-port", &mapper, "-kill"]).output();
}

fn queue_depth(environment: &[(&str, &str)]) -> String {
    let arguments = ["-q", "list_queues", "--no-table-headers", "name", "messages"];
    let mut command = Command::new("/usr/lib/rabbitmq/bin/rabbitmqctl");
    let output = command
        .args(arguments)
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
