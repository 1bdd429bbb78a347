//! Against a peer by script, made of the server's role of our own machine. The suite `brokers` has RabbitMQ.

use holdfast_amqp::connection::Outgoing;
use holdfast_amqp::message::{Body, Writer};
use holdfast_amqp::performatives::{DeliveryState, Error, Open, Role, SaslCode};
use holdfast_amqp::types::Value as Amqp;
use holdfast_amqp::{Config, Connection, Event, Message};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::endpoints::testing::{environment, outbound, telemetry};

/// What the peer saw: log-ins, tokens, bodies of messages.
type Log = Arc<Mutex<Vec<String>>>;

/// Starts a peer that gives `credit` on each link. Bodies say what becomes of them: `"reject"`, `"busy"`, `"release"`,
/// `"mute"` (no outcome), `"die"` (the connection ends).
async fn peer(credit: u32) -> (u16, Log) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let log = Log::default();
    let seen = log.clone();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut machine = Connection::server(Arc::new(Config::default()), 0);
                let (mut input, mut out, mut answers) = (Vec::new(), Vec::new(), None);
                while socket.read_buf(&mut input).await.unwrap_or(0) > 0 {
                    let bytes = std::mem::take(&mut input);
                    let mut rest = &bytes[..];
                    while let Some(event) = machine.next_event(&mut rest, 0, &mut out).unwrap() {
                        match event {
                            Event::SaslInit(init) => {
                                let response =
                                    String::from_utf8_lossy(init.initial_response.unwrap_or_default());
                                seen.lock().push(format!(
                                    "{} {}",
                                    init.mechanism,
                                    response.replace('\0', "|")
                                ));
                                let wrong = response.contains("wrong");
                                let code = if wrong { SaslCode::Auth } else { SaslCode::Ok };
                                machine.sasl_outcome(code, &mut out);
                            }
                            Event::Open(_) => machine.open(&Open::default(), &mut out),
                            Event::Attach { link, attach } => {
                                if attach.role == Role::Receiver {
                                    answers = Some(link);
                                }
                                machine.accept_link(link, &attach.agree(), credit, &mut out);
                            }
                            Event::Transfer { link, delivery } => {
                                let message = Message::decode(&delivery.payload).unwrap();
                                let text = match message.body {
                                    Body::Value(Amqp::String(token)) => token.to_owned(),
                                    _ => String::from_utf8(data(&message)).unwrap(),
                                };
                                seen.lock().push(text.clone());
                                if let Some(answers) = answers.filter(|_| text.starts_with("SharedAccess")) {
                                    let outgoing = Outgoing {
                                        tag: b"a",
                                        settled: true,
                                        ..Outgoing::default()
                                    };
                                    let status = if text.contains("skn=bad") { 401 } else { 202 };
                                    let mut answer = Vec::new();
                                    Writer::new(&mut answer).application_properties(|map| {
                                        map.string("status-code", &Amqp::Int(status));
                                    });
                                    machine.send(answers, &outgoing, &answer, &mut out).unwrap();
                                    continue;
                                }
                                let error = |condition| Error {
                                    condition,
                                    description: Some("no"),
                                    info: None,
                                };
                                let state = match text.as_str() {
                                    "\"reject\"" => DeliveryState::Rejected(Some(error("amqp:decode-error"))),
                                    "\"busy\"" => {
                                        DeliveryState::Rejected(Some(error("com.microsoft:server-busy")))
                                    }
                                    "\"release\"" => DeliveryState::Released,
                                    "\"mute\"" => continue,
                                    "\"die\"" => return,
                                    _ => DeliveryState::Accepted,
                                };
                                machine.settle(link.session(), [delivery.id], &state, true, &mut out);
                            }
                            _ => {}
                        }
                    }
                    input = rest.to_vec();
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

fn data(message: &Message<'_>) -> Vec<u8> {
    match &message.body {
        Body::Data(sections) => sections.iter().flat_map(<[u8]>::to_vec).collect(),
        _ => Vec::new(),
    }
}

fn endpoint(port: u16, mut settings: Value) -> AmqpEndpoint {
    if settings.get("connectionString").is_none() {
        settings["url"] = json!(format!("amqp://127.0.0.1:{port}"));
        settings["address"] = json!("q");
    }
    AmqpEndpoint::new(&settings, &environment()).unwrap()
}

async fn send(endpoint: &AmqpEndpoint, bodies: &[&str]) -> Result<(), DeliveryError> {
    let block = telemetry("d1", bodies);
    endpoint.deliver(&outbound(&block)).await
}

#[tokio::test]
async fn batches_arrive_in_order_within_the_credit() {
    let (port, log) = peer(7).await;
    let endpoint = endpoint(port, json!({"username": "u", "password": "p"}));
    let bodies: Vec<String> = (0..500).map(|number| number.to_string()).collect();
    let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
    send(&endpoint, &bodies).await.unwrap();
    send(&endpoint, &["again"]).await.unwrap();
    endpoint.idle().await;
    send(&endpoint, &["after"]).await.unwrap();
    let log = log.lock();
    assert_eq!(log[0], "PLAIN |u|p");
    assert_eq!(log[1..501], bodies[..]);
    assert_eq!(
        log[501..],
        ["again", "PLAIN |u|p", "after"],
        "the connection is kept until it rests"
    );
}

#[tokio::test]
async fn outcomes_become_verdicts() {
    for (body, refused, word) in [
        ("\"reject\"", true, "amqp:decode-error"),
        ("\"busy\"", false, "server-busy"),
        ("\"release\"", false, "released"),
        ("\"die\"", false, "connection"),
    ] {
        let (port, log) = peer(1).await;
        let endpoint = endpoint(port, json!({}));
        let error = send(&endpoint, &["1", "2", body, "4"]).await.unwrap_err();
        assert_eq!((error.accepted, error.refused), (2, refused), "{error}");
        assert!(error.message.contains(word), "{error}");
        send(&endpoint, &["4"]).await.unwrap();
        assert_eq!(log.lock()[0], "ANONYMOUS ");
    }
}

#[tokio::test]
async fn silent_peers_are_given_up() {
    let (port, _) = peer(10).await;
    let mut silent = endpoint(port, json!({}));
    silent.time_max = Duration::from_secs(1);
    let error = send(&silent, &["1", "\"mute\""]).await.unwrap_err();
    assert_eq!((error.accepted, error.refused), (1, false), "{error}");
    let (port, _) = peer(0).await;
    let error = send(&endpoint(port, json!({"connectTimeoutSeconds": 1})), &["1"])
        .await
        .unwrap_err();
    assert!(error.message.contains("credit within 1 s"), "{error}");
}

#[tokio::test]
async fn policies_put_a_token_first() {
    let (port, log) = peer(10).await;
    let text = |policy| {
        format!(
            "Endpoint=sb://127.0.0.1:{port}/;SharedAccessKeyName={policy};SharedAccessKey=a2V5;EntityPath=hub one;UseDevelopmentEmulator=true"
        )
    };
    send(&endpoint(port, json!({"connectionString": text("send")})), &["1"])
        .await
        .unwrap();
    {
        let log = log.lock();
        assert_eq!(
            (log[0].as_str(), log[2].as_str(), log.len()),
            ("MSSBCBS ", "1", 3)
        );
        let token = &log[1];
        assert!(
            token.starts_with("SharedAccessSignature sr=amqps%3A%2F%2F127%2E0%2E0%2E1%2Fhub%20one&sig="),
            "{token}"
        );
        assert!(token.ends_with("&se=5600&skn=send"), "{token}");
    }
    let error = send(&endpoint(port, json!({"connectionString": text("bad")})), &["1"])
        .await
        .unwrap_err();
    assert!(!error.refused && error.message.contains("401"), "{error}");
}

#[tokio::test]
async fn refused_logins_and_absent_peers() {
    let (port, _) = peer(10).await;
    let wrong = endpoint(port, json!({"username": "u", "password": "wrong"}));
    let error = send(&wrong, &["1"]).await.unwrap_err();
    assert!(
        !error.refused && error.message.contains("login") && !error.message.contains("wrong"),
        "{error}"
    );
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
fn messages_have_the_envelope_of_the_contract() {
    let block = telemetry("d1/m1", &["{}"]);
    let mut bytes = Vec::new();
    request::write(&outbound(&block)[0], &mut bytes);
    let message = Message::decode(&bytes).unwrap();
    let annotation = |key: &str| message.message_annotations.and_then(|map| map.get(key));
    assert_eq!(
        annotation("iothub-connection-device-id"),
        Some(Amqp::String("d1"))
    );
    assert_eq!(
        annotation("iothub-connection-module-id"),
        Some(Amqp::String("m1"))
    );
    assert_eq!(
        annotation("iothub-connection-auth-generation-id"),
        Some(Amqp::String("42"))
    );
    assert_eq!(
        annotation("iothub-enqueuedtime"),
        Some(Amqp::Timestamp(1_000_000))
    );
    assert_eq!(
        annotation("iothub-message-source"),
        Some(Amqp::String("Telemetry"))
    );
    assert_eq!(annotation("x-opt-partition-key"), Some(Amqp::String("d1")));
    let property = |key: &str| message.application_properties.and_then(|map| map.get(key));
    assert_eq!(
        (property("level"), property("hub")),
        (Some(Amqp::String("3")), Some(Amqp::String("hub1")))
    );
    let properties = message.properties;
    assert_eq!(
        (properties.content_type, properties.content_encoding),
        (Some("application/json"), Some("utf-8"))
    );
    assert_eq!(data(&message), b"{}");
}

#[test]
fn faults_in_settings_are_named_without_secrets() {
    let string = "Endpoint=sb://h/;SharedAccessKeyName=n;SharedAccessKey=hush";
    for (settings, names) in [
        (json!({}), "connectionString or url"),
        (json!({"url": "amqp://h"}), "address"),
        (json!({"url": "h", "address": "q"}), "url"),
        (json!({"url": "amqp://u:hush@h", "address": "q"}), "username"),
        (json!({"url": "amqp://h/q", "address": "q"}), "url"),
        (
            json!({"url": "amqp://h", "address": "q", "username": "u"}),
            "password",
        ),
        (
            json!({"url": "amqp://h", "address": "q", "connectionString": string}),
            "together",
        ),
        (json!({"connectionString": string}), "address"),
        (
            json!({"connectionString": "Endpoint=sb://h/;SharedAccessKey=hush;EntityPath=q"}),
            "SharedAccessKeyName",
        ),
        (
            json!({"connectionString": "Endpoint=h;SharedAccessKey=hush;EntityPath=q"}),
            "Endpoint",
        ),
        (
            json!({"connectionString": string, "address": "q", "username": "u"}),
            "connectionString",
        ),
        (
            json!({"url": "amqp://h", "address": "q", "batchEventsMax": 0}),
            "batchEventsMax",
        ),
    ] {
        let error = AmqpConfig::check(&settings).unwrap_err();
        assert!(
            error.contains(names) && !error.contains("hush"),
            "{names}: {error}"
        );
    }
    let filled = AmqpConfig::check(&json!({"connectionString": string, "address": "q"})).unwrap();
    assert_eq!(AmqpConfig::check(&filled).unwrap(), filled);
    let read = AmqpConfig::read(&filled).unwrap();
    assert!(!format!("{read:?}").contains("hush"));
}
