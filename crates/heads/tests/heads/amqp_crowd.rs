//! Connections that prove nothing, and WebSockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use holdfast_amqp::frame::Protocol;
use holdfast_heads::amqp::{AmqpConfig, AmqpHead};
use holdfast_heads::https::{HttpsConfig, HttpsHead};
use holdfast_ports::clock::SystemClock;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::amqp_client::{Got, Hub, amqp, message, open, quick};
use crate::amqp_services::FakeServices;
use crate::client::{metrics, until};
use crate::gateway::FakeGateway;
use crate::websocket::{frame, read_frame, upgrade};

const PLACES: usize = 8;
/// Far below every timeout by which silent clients are ended.
const SOON: Duration = Duration::from_secs(3);

fn few() -> AmqpConfig {
    AmqpConfig {
        logins_pending_max: PLACES,
        ..quick()
    }
}

async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    let outcome = tokio::time::timeout(SOON, work).await;
    outcome.unwrap_or_else(|_| panic!("{what} takes too long"))
}

#[tokio::test]
async fn silent_connections_keep_nobody_out() {
    let hub = Hub::start_with(few());
    let mut early = hub.raw().await;
    early.send(&Protocol::Amqp.header()).await;
    assert_eq!(early.header().await, Protocol::Amqp.header());
    let mut proven = hub.log_in(&["device:d1"]).await;
    let mut crowd = Vec::new();
    for _ in 0..PLACES * 10 {
        crowd.push(hub.socket().await);
    }
    let mut late = soon("a log-in", hub.log_in(&["device:d2"])).await;
    // Whoever has proven something is not among them, whoever has said something goes last.
    proven.is_alive().await;
    late.is_alive().await;
    early.send(&amqp(0, &open())).await;
    assert_eq!(soon("an open", early.next()).await.expect("an open").text, "open");
    let ended = soon("the end of the first", crowd[0].read(&mut [0; 1])).await;
    assert!(matches!(ended, Ok(0) | Err(_)));
    until("few are left", || hub.head.connections() <= PLACES + 2).await;
    // Those that speak and prove nothing yield to each other.
    let mut speakers = Vec::new();
    for _ in 0..PLACES * 2 {
        let mut raw = hub.raw().await;
        raw.open().await;
        speakers.push(raw);
    }
    assert_eq!(
        soon("an eviction", speakers[0].closed()).await,
        "amqp:connection:forced"
    );
    proven.is_alive().await;
}

#[tokio::test]
async fn who_is_being_judged_keeps_the_place() {
    let hub = Hub::start_with(AmqpConfig {
        logins_pending_max: 2,
        ..quick()
    });
    hub.services.hold_tokens(true);
    let mut judged = hub.dial().await;
    let task = tokio::spawn(async move {
        let status = judged.put_token("device:d1").await;
        (status, judged)
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut others = Vec::new();
    for _ in 0..10 {
        let mut raw = hub.raw().await;
        raw.open().await;
        others.push(raw);
    }
    hub.services.hold_tokens(false);
    let (status, mut judged) = soon("an answer", task).await.expect("no panic");
    assert_eq!(status, 200);
    judged.is_alive().await;
}

#[tokio::test]
async fn a_hub_with_all_its_connections_says_so() {
    let hub = Hub::start_with(AmqpConfig {
        connections_max: 2,
        ..quick()
    });
    let mut first = hub.log_in(&["device:d1"]).await;
    let second = hub.log_in(&["device:d2"]).await;
    let mut third = hub.dial().await;
    third.put_token("device:d3").await;
    assert_eq!(third.closed().await, "amqp:resource-limit-exceeded");
    drop(second);
    until("a place is free", || hub.head.connections() == 1).await;
    let mut fourth = hub.log_in(&["device:d4"]).await;
    fourth.is_alive().await;
    first.is_alive().await;
}

/// AMQP behind an HTTPS port, plain.
struct Port {
    gateway: Arc<FakeGateway>,
    services: Arc<FakeServices>,
    address: SocketAddr,
    head: AmqpHead,
    _stop: watch::Sender<bool>,
}

fn port(config: AmqpConfig) -> Port {
    let (gateway, services) = (FakeGateway::new(), FakeServices::new());
    let clock = Arc::new(SystemClock::new());
    let head = AmqpHead::new(config, gateway.clone(), services.clone(), clock, metrics());
    let https =
        HttpsHead::new(HttpsConfig::default(), Router::new(), None, None, metrics()).with_amqp(head.clone());
    let listener =
        holdfast_heads::listener::bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (stop, shutdown) = watch::channel(false);
    tokio::spawn(async move { https.serve(listener, None, shutdown).await });
    Port {
        gateway,
        services,
        address,
        head,
        _stop: stop,
    }
}

async fn dial(port: &Port) -> TcpStream {
    TcpStream::connect(port.address).await.expect("the hub listens")
}

#[tokio::test]
async fn every_path_and_subprotocol_is_upgraded() {
    let port = port(quick());
    for path in [
        "/$iothub/websocket",
        "/$iothub/websocket?iothub-no-client-cert=true",
        "/$servicebus/websocket",
        "/$servicebus/websocket/",
        "/",
        "/$IoTHub/WebSocket",
    ] {
        for (offered, chosen) in [
            ("AMQPWSB10", "AMQPWSB10"),
            ("amqpwsb10", "amqpwsb10"),
            ("amqp", "amqp"),
            ("other, AMQPWSB10", "AMQPWSB10"),
        ] {
            let mut stream = dial(&port).await;
            let head = upgrade(&mut stream, path, offered, &frame(0x82, &Protocol::Amqp.header())).await;
            assert!(head.starts_with("HTTP/1.1 101 "), "{path} {head}");
            assert!(
                head.contains(&format!("sec-websocket-protocol: {chosen}\r\n")),
                "{head}"
            );
            let (first, header) = read_frame(&mut stream).await;
            assert_eq!((first, &header[..]), (0x82, &Protocol::Amqp.header()[..]));
        }
    }
    for (path, offered) in [("/nowhere", "AMQPWSB10"), ("/$iothub/websocket", "other")] {
        let mut stream = dial(&port).await;
        let head = upgrade(&mut stream, path, offered, b"").await;
        assert!(!head.starts_with("HTTP/1.1 101 "), "{path} {offered} {head}");
    }
}

#[tokio::test]
async fn frames_of_amqp_and_of_the_websocket_are_independent() {
    let port = port(quick());
    // The bytes of a whole conversation, as a client would say it without waiting.
    let mut words = Vec::new();
    words.extend_from_slice(&Protocol::Amqp.header());
    words.extend(amqp(0, &open()));
    words.extend(amqp(0, &crate::amqp_client::begin()));
    let close = holdfast_amqp::performatives::Performative::Close(holdfast_amqp::performatives::Close {
        error: None,
    });
    words.extend(amqp(0, &close));
    for step in [1, 7, words.len()] {
        let mut stream = dial(&port).await;
        let early: Vec<u8> = words.chunks(step).flat_map(|piece| frame(0x82, piece)).collect();
        upgrade(&mut stream, "/$iothub/websocket", "AMQPWSB10", &early).await;
        let mut answers = Vec::new();
        loop {
            let (first, payload) = read_frame(&mut stream).await;
            match first {
                0x82 => answers.extend(payload),
                0x88 => break,
                other => panic!("{other:#x}"),
            }
        }
        assert_eq!(answers[..8], Protocol::Amqp.header());
        let mut rest = &answers[8..];
        let mut codes = Vec::new();
        while let Some((frame, used)) = holdfast_amqp::frame::decode(rest, u32::MAX).expect("frames") {
            codes.push(frame.body[2]);
            rest = &rest[used..];
        }
        assert_eq!(codes, [0x10, 0x11, 0x18], "open, begin, close");
    }
    assert!(port.gateway.disconnects().is_empty());
}

#[tokio::test]
async fn silent_websockets_yield_and_a_full_house_says_so() {
    let port = port(few());
    let mut silent = Vec::new();
    for _ in 0..PLACES * 3 {
        let mut stream = dial(&port).await;
        let head = upgrade(&mut stream, "/$iothub/websocket", "AMQPWSB10", b"").await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        silent.push(stream);
    }
    drop(silent);
    until("they are gone", || port.head.connections() == 0).await;
    // All places are taken by clients whose tokens are being judged.
    port.services.hold_tokens(true);
    let mut judged = Vec::new();
    for _ in 0..PLACES {
        let mut stream = dial(&port).await;
        let plain = plain_login();
        upgrade(
            &mut stream,
            "/$servicebus/websocket",
            "AMQPWSB10",
            &frame(0x82, &plain),
        )
        .await;
        // The header, and what is offered.
        read_frame(&mut stream).await;
        judged.push(stream);
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut refused = dial(&port).await;
    let head = soon(
        "a refusal",
        upgrade(&mut refused, "/$iothub/websocket", "AMQPWSB10", b""),
    )
    .await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert!(head.contains("retry-after: "), "{head}");
    port.services.hold_tokens(false);
    for stream in &mut judged {
        let (first, outcome) = soon("an outcome", read_frame(stream)).await;
        assert_eq!(first, 0x82);
        assert_eq!(outcome[8 + 2], 0x44, "sasl-outcome");
    }
}

fn plain_login() -> Vec<u8> {
    use holdfast_amqp::frame::{self, FrameType};
    use holdfast_amqp::performatives::{Sasl, SaslInit};
    let mut out = Protocol::Sasl.header().to_vec();
    frame::encode(&mut out, FrameType::Sasl, 0, |out| {
        Sasl::Init(SaslInit {
            mechanism: "PLAIN",
            initial_response: Some(b"\0d1@sas.hub\0device:d1"),
            hostname: None,
        })
        .encode(out);
    });
    out
}

#[tokio::test]
async fn telemetry_goes_on_while_others_are_sent_away() {
    let hub = Hub::start_with(few());
    let mut peer = hub.log_in(&["device:d1"]).await;
    let link = peer
        .sender("/devices/d1/messages/events")
        .await
        .expect("attached");
    for number in 0..50u8 {
        let _other = hub.socket().await;
        assert_eq!(peer.send(link, &message(&[number])).await, "accepted");
    }
    assert!(!peer.queue.contains(&Got::Gone));
    assert_eq!(hub.gateway.received().len(), 50);
}
