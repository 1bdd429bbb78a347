//! Against a broker by script. The suite `brokers` has Mosquitto.

use holdfast_model::event::EventSource;
use holdfast_mqtt::codec::{self, Packet};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::endpoints::testing::{environment, events, outbound, telemetry};

/// What the broker saw: topics and payloads.
type Log = Arc<Mutex<Vec<(String, String)>>>;

/// Starts an MQTT 3.1.1 broker. It hangs up without a word when it sees the payload `die`, and says nothing any more
/// after `mute`.
async fn broker() -> (u16, Log) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let log = Log::default();
    let seen = log.clone();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let seen = seen.clone();
            tokio::spawn(async move {
                let (mut input, mut out) = (Vec::new(), Vec::new());
                while socket.read_buf(&mut input).await.unwrap_or(0) > 0 {
                    while let Some((packet, length)) = codec::decode(&input, 1 << 20).unwrap() {
                        match packet {
                            Packet::Connect(connect) if connect.password == Some(b"wrong") => {
                                out.extend_from_slice(&[0x20, 2, 0, 5]);
                            }
                            Packet::Connect(_) => out.extend_from_slice(&[0x20, 2, 0, 0]),
                            Packet::PingReq => codec::encode_pingresp(&mut out),
                            Packet::Publish(publish) => {
                                let payload = String::from_utf8(publish.payload.to_vec()).unwrap();
                                match payload.as_str() {
                                    "\"die\"" => return,
                                    "\"mute\"" => std::future::pending().await,
                                    _ => {}
                                }
                                seen.lock().push((publish.topic.to_owned(), payload));
                                if let Some(id) = publish.packet_id {
                                    codec::encode_puback(&mut out, id);
                                }
                            }
                            _ => {}
                        }
                        input.drain(..length);
                    }
                    if socket.write_all(&out).await.is_err() {
                        return;
                    }
                    out.clear();
                }
            });
        }
    });
    (port, log)
}

fn endpoint(port: u16, mut settings: Value) -> MqttEndpoint {
    settings["url"] = json!(format!("mqtt://127.0.0.1:{port}"));
    MqttEndpoint::new("e1", &settings, &environment()).unwrap()
}

async fn send(endpoint: &MqttEndpoint, bodies: &[&str]) -> Result<(), DeliveryError> {
    let block = telemetry("d+1/m1", bodies);
    endpoint.deliver(&outbound(&block)).await
}

#[tokio::test]
async fn batches_are_published_in_order() {
    for qos in [0, 1] {
        let (port, log) = broker().await;
        let endpoint = endpoint(
            port,
            json!({"qos": qos, "inFlightMax": 3, "topic": "x/{hub}/{deviceId}/{moduleId}/{source}"}),
        );
        let bodies: Vec<String> = (0..500).map(|number| number.to_string()).collect();
        let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
        send(&endpoint, &bodies).await.unwrap();
        endpoint.idle().await;
        send(&endpoint, &["last"]).await.unwrap();
        let log = log.lock();
        assert_eq!(log[0].0, "x/hub1/d%2B1/m1/Telemetry");
        let payloads: Vec<&str> = log.iter().map(|(_, payload)| payload.as_str()).collect();
        assert_eq!(payloads[..500], bodies[..]);
        assert_eq!(payloads.len(), 501);
    }
}

#[tokio::test]
async fn records_carry_everything() {
    let (port, log) = broker().await;
    send(&endpoint(port, json!({"payload": "record"})), &["{\"t\":1}"])
        .await
        .unwrap();
    let record: Value = serde_json::from_str(&log.lock()[0].1).unwrap();
    assert_eq!(
        (&record["Body"], &record["Properties"]["hub"]),
        (&json!({"t": 1}), &json!("hub1"))
    );
}

#[tokio::test]
async fn a_broker_that_goes_away_keeps_what_it_has_taken() {
    let (port, log) = broker().await;
    let endpoint = endpoint(port, json!({"inFlightMax": 1}));
    let error = send(&endpoint, &["1", "2", "\"die\"", "4"]).await.unwrap_err();
    assert_eq!((error.accepted, error.refused), (2, false), "{error}");
    send(&endpoint, &["3", "4"]).await.unwrap();
    assert_eq!(log.lock().len(), 4);
}

#[tokio::test]
async fn a_silent_broker_is_given_up() {
    let (port, _) = broker().await;
    let mut endpoint = endpoint(port, json!({"inFlightMax": 1}));
    endpoint.time_max = Duration::from_secs(1);
    let error = send(&endpoint, &["1", "\"mute\""]).await.unwrap_err();
    assert_eq!((error.accepted, error.refused), (1, false), "{error}");
    assert!(error.message.contains("no acknowledgement within 1 s"), "{error}");
}

#[tokio::test]
async fn refused_logins_and_absent_brokers() {
    let (port, _) = broker().await;
    let wrong = endpoint(port, json!({"username": "u", "password": "wrong"}));
    let error = send(&wrong, &["1"]).await.unwrap_err();
    assert!(
        !error.refused && error.message.contains("NotAuthorized"),
        "{error}"
    );
    assert!(!error.message.contains("wrong"), "{error}");
    let free = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let error = send(&endpoint(free, json!({})), &["1"]).await.unwrap_err();
    assert!(error.message.contains("cannot connect"), "{error}");
}

#[test]
fn faults_in_settings_are_named() {
    let url = "mqtt://h";
    for (settings, names) in [
        (json!({}), "url"),
        (json!({"url": "http://h"}), "url"),
        (json!({"url": "mqtt://u:p@h"}), "username"),
        (json!({"url": "mqtt://h:99999"}), "url"),
        (json!({"url": url, "topic": "a/+"}), "topic"),
        (json!({"url": url, "topic": "a/{device}"}), "{device}"),
        (json!({"url": url, "topic": "a/{deviceId"}), "topic"),
        (json!({"url": url, "qos": 2}), "qos"),
        (json!({"url": url, "version": "4"}), "4"),
        (json!({"url": url, "password": "p"}), "username"),
        (json!({"url": url, "clientKey": "k"}), "clientCertificate"),
        (json!({"url": url, "inFlightMax": 0}), "inFlightMax"),
    ] {
        let error = MqttConfig::check(&settings).unwrap_err();
        assert!(error.contains(names), "{names}: {error}");
    }
    let filled = MqttConfig::check(&json!({"url": "mqtts://[::1]:1"})).unwrap();
    assert_eq!(MqttConfig::check(&filled).unwrap(), filled);
    assert_eq!((&filled["version"], &filled["qos"]), (&json!("3.1.1"), &json!(1)));
}

#[test]
fn events_of_jobs_have_no_device() {
    let block = events(EventSource::JobLifecycle, "job7", &["1"]);
    let topic = super::request::Topic::parse("x/{deviceId}/{source}").unwrap();
    assert_eq!(
        topic.of(&outbound(&block)[0], "hub1"),
        "x/-/deviceJobLifecycleEvents"
    );
}
