//! Clients that say nothing, or little, or slowly, and those who want to get in beside them.

use std::time::Duration;

use holdfast_heads::https::HttpsConfig;
use holdfast_heads::mqtt::MqttConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::{Client, Got, Hub, connect_packet};
use crate::https_device::{Port, ask};
use crate::websocket::{frame, read_frame, upgrade};

/// Far below every timeout by which silent clients are ended.
const SOON: Duration = Duration::from_secs(3);
const PLACES: usize = 8;

fn few_logins() -> MqttConfig {
    MqttConfig {
        logins_pending_max: PLACES,
        ..MqttConfig::default()
    }
}

fn few_connections() -> HttpsConfig {
    HttpsConfig {
        connections_max: PLACES,
        ..HttpsConfig::default()
    }
}

async fn crowd(address: std::net::SocketAddr) -> Vec<TcpStream> {
    let mut crowd = Vec::new();
    for _ in 0..PLACES * 10 {
        crowd.push(TcpStream::connect(address).await.expect("the kernel takes it"));
    }
    crowd
}

async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    let outcome = tokio::time::timeout(SOON, work).await;
    outcome.unwrap_or_else(|_| panic!("{what} takes too long"))
}

#[tokio::test]
async fn silent_connections_keep_nobody_from_logging_in() {
    let hub = Hub::start_with(few_logins());
    let mut early = hub.dial().await;
    let connect = connect_packet("d1", Some("good"));
    early.send(&connect[..1]).await;
    // Noticed, before so many come at once that eight places are nothing.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut crowd = crowd(hub.address).await;
    soon("a log-in", hub.log_in("d2")).await;
    // Whoever has said something goes last.
    early.send(&connect[1..]).await;
    assert_eq!(soon("a slow log-in", early.next()).await, Got::ConnAck(false, 0));
    // The oldest were sent away, the youngest were not.
    let ended = soon("the end of the first", crowd[0].read(&mut [0; 1])).await;
    assert!(matches!(ended, Ok(0) | Err(_)));
    let mut last = Client::new(crowd.pop().expect("a crowd"));
    soon("the last", last.connect("d3")).await;
}

#[tokio::test]
async fn silent_connections_keep_nobody_from_https() {
    let port = Port::start_all(None, few_connections(), few_logins());
    let mut kept = port.dial().await;
    assert_eq!(ask(&mut kept, "GET /", "", b"").await.status, 200);
    let _crowd = crowd(port.address).await;
    let mut late = port.dial().await;
    assert_eq!(
        soon("a request", ask(&mut late, "GET /", "", b"")).await.status,
        200
    );
    assert_eq!(
        soon("a connection that is used", ask(&mut kept, "GET /", "", b""))
            .await
            .status,
        200
    );
    let mut stream = port.dial().await;
    let early = frame(0x82, &connect_packet("d1", Some("good")));
    soon("an upgrade", upgrade(&mut stream, "/mqtt", "mqtt", &early)).await;
    assert_eq!(soon("a log-in", read_frame(&mut stream)).await.1, [0x20, 2, 0, 0]);
}

#[tokio::test]
async fn idle_connections_make_room() {
    let port = Port::start_all(None, few_connections(), few_logins());
    let mut idle = Vec::new();
    for _ in 0..PLACES * 3 {
        let mut stream = port.dial().await;
        assert_eq!(
            soon("a request", ask(&mut stream, "GET /", "", b"")).await.status,
            200
        );
        idle.push(stream);
    }
    let ended = soon("the end of the first", idle[0].read(&mut [0; 1])).await;
    assert!(matches!(ended, Ok(0) | Err(_)));
}

#[tokio::test]
async fn silent_websockets_keep_nobody_out_and_a_full_house_says_so() {
    let port = Port::start_all(None, HttpsConfig::default(), few_logins());
    let mut silent = Vec::new();
    for _ in 0..PLACES * 3 {
        let mut stream = port.dial().await;
        let head = upgrade(&mut stream, "/mqtt", "mqtt", b"").await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        silent.push(stream);
    }
    let login = |id: &str| frame(0x82, &connect_packet(id, Some("good")));
    let mut stream = port.dial().await;
    soon("an upgrade", upgrade(&mut stream, "/mqtt", "mqtt", &login("d0"))).await;
    assert_eq!(soon("a log-in", read_frame(&mut stream)).await.1, [0x20, 2, 0, 0]);
    drop(silent);
    port.gateway.hold_connects(true);
    let mut judged = Vec::new();
    for number in 0..PLACES {
        let mut stream = port.dial().await;
        let id = format!("d{number}");
        upgrade(&mut stream, "/mqtt", "mqtt", &login(&id)).await;
        judged.push(stream);
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut refused = port.dial().await;
    let head = soon("a refusal", upgrade(&mut refused, "/mqtt", "mqtt", b"")).await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert!(head.contains("retry-after: "), "{head}");
    port.gateway.hold_connects(false);
    for stream in &mut judged {
        assert_eq!(soon("a log-in", read_frame(stream)).await.1, [0x20, 2, 0, 0]);
    }
}

/// Sends `bytes` one by one, far too slowly; true when the hub ends it before they are all sent.
async fn is_cut_off(stream: &mut TcpStream, bytes: &[u8]) -> bool {
    for byte in bytes {
        if stream.write_all(&[*byte]).await.is_err() {
            return true;
        }
        let mut answer = [0; 512];
        let read = stream.read(&mut answer);
        // An answer in words is the end too.
        if tokio::time::timeout(Duration::from_millis(30), read)
            .await
            .is_ok()
        {
            return true;
        }
    }
    false
}

#[tokio::test]
async fn bytes_that_drip_are_cut_off() {
    let short = Duration::from_millis(200);
    let https = HttpsConfig {
        handshake_timeout: short,
        head_timeout: short,
        ..HttpsConfig::default()
    };
    let mqtt = MqttConfig {
        connect_timeout: short,
        ..MqttConfig::default()
    };
    let connect = connect_packet("d1", Some("good"));
    let hub = Hub::start_with(mqtt.clone());
    let mut drip = hub.dial().await.stream;
    assert!(soon("CONNECT", is_cut_off(&mut drip, &connect)).await);

    let port = Port::start_all(None, https.clone(), mqtt.clone());
    let mut drip = port.dial().await;
    let head = b"GET / HTTP/1.1\r\nhost: hub.test\r\nx: y\r\n\r\n";
    assert!(soon("a request head", is_cut_off(&mut drip, head)).await);

    let mut drip = port.dial().await;
    upgrade(&mut drip, "/mqtt", "mqtt", b"").await;
    assert!(soon("WebSocket frames", is_cut_off(&mut drip, &frame(0x82, &connect))).await);

    let tls = crate::tls::any_settings();
    let port = Port::start_all(Some(tls), https, mqtt);
    let mut drip = port.dial().await;
    // The record of a ClientHello that is never whole.
    let mut hello = vec![22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
    hello.resize(64, 7);
    assert!(soon("a handshake", is_cut_off(&mut drip, &hello)).await);
}
