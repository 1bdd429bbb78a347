//! Device HTTPS (rest.md sections 4 and 15).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use bytes::Bytes;
use holdfast_heads::https::{DeviceHttps, HttpsConfig, HttpsHead};
use holdfast_heads::mqtt::{MqttConfig, MqttHead};
use holdfast_heads::tls::TlsSettings;
use holdfast_model::c2d::Settlement;
use holdfast_model::message::{Message, SystemProperty};
use holdfast_ports::clock::SystemClock;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::client::{PATIENCE, metrics, until};
use crate::gateway::FakeGateway;

/// An HTTPS port on loopback, plain unless `tls`.
pub(crate) struct Port {
    pub(crate) gateway: Arc<FakeGateway>,
    pub(crate) head: MqttHead,
    pub(crate) address: SocketAddr,
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) served: tokio::task::JoinHandle<()>,
}

impl Port {
    pub(crate) fn start(tls: Option<Arc<TlsSettings>>) -> Self {
        Self::start_with(tls, HttpsConfig::default())
    }

    pub(crate) fn start_with(tls: Option<Arc<TlsSettings>>, config: HttpsConfig) -> Self {
        Self::start_all(tls, config, MqttConfig::default())
    }

    pub(crate) fn start_all(tls: Option<Arc<TlsSettings>>, config: HttpsConfig, mqtt: MqttConfig) -> Self {
        let gateway = FakeGateway::new();
        let clock = Arc::new(SystemClock::new());
        let metrics = metrics();
        let mqtt = MqttHead::new(mqtt, gateway.clone(), clock.clone(), metrics.clone());
        let device = DeviceHttps::new(gateway.clone(), clock, metrics.clone());
        let router = Router::new()
            .route("/", get(async || "portal"))
            .route("/upload", post(async |body: Bytes| body.len().to_string()))
            .fallback(async || (http::StatusCode::IM_A_TEAPOT, "the router"));
        let head = HttpsHead::new(config, router, Some(device), Some(mqtt.clone()), metrics);
        let listener =
            holdfast_heads::listener::bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (stop, shutdown) = watch::channel(false);
        let served = tokio::spawn(async move { head.serve(listener, tls, shutdown).await });
        Port {
            gateway,
            head: mqtt,
            address,
            stop,
            served,
        }
    }

    pub(crate) async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("the hub listens")
    }

    async fn ask(&self, request: &str, fields: &str, body: &[u8]) -> Answer {
        ask(&mut self.dial().await, request, fields, body).await
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// One request and its answer.
pub(crate) async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    request: &str,
    fields: &str,
    body: &[u8],
) -> Answer {
    let head = format!(
        "{request} HTTP/1.1\r\nhost: hub.test\r\ncontent-length: {}\r\n{fields}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    // A hub that has refused already may not take the body.
    let _ = stream.write_all(body).await;
    read_answer(stream).await
}

async fn read_answer<S: AsyncRead + Unpin>(stream: &mut S) -> Answer {
    let mut text = Vec::new();
    let read = async {
        loop {
            let mut chunk = [0; 4096];
            let length = stream.read(&mut chunk).await.unwrap_or(0);
            text.extend_from_slice(&chunk[..length]);
            let all = String::from_utf8_lossy(&text);
            if let Some((head, body)) = all.split_once("\r\n\r\n") {
                let wanted = head
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok())
                    .unwrap_or(0);
                if body.len() >= wanted {
                    return;
                }
            }
            if length == 0 {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, read)
        .await
        .expect("an answer in time");
    let text = String::from_utf8(text).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    Answer {
        status: head
            .get(9..12)
            .and_then(|status| status.parse().ok())
            .unwrap_or(0),
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

const GOOD: &str = "authorization: good\r\n";

#[tokio::test]
async fn one_message_with_its_headers() {
    let port = Port::start(None);
    let fields = "Authorization: good\r\nIoTHub-MessageId: m1\r\niothub-app-Level: 3\r\niothub-contenttype: text/plain\r\naccept: */*\r\n";
    let answer = port
        .ask(
            "POST /Devices/d%31/Messages/Events/?api-version=2016-11-14",
            fields,
            b"hello",
        )
        .await;
    assert_eq!(answer.status, 204, "{answer:?}");
    assert_eq!(answer.field("x-ms-request-id").map(str::len), Some(36));
    let received = &port.gateway.received()[0];
    assert_eq!((&*received.identity, &*received.body), ("d1", &b"hello"[..]));
    let mut properties = received.properties.clone();
    properties.sort();
    assert_eq!(properties, ["ContentType=text/plain", "MessageId=m1", "level=3"]);
    let answer = port
        .ask(
            "POST /devices/d1/modules/m1/messages/events?api-version=2020-09-30",
            GOOD,
            b"",
        )
        .await;
    assert_eq!(answer.status, 204);
    assert_eq!(port.gateway.received()[1].identity, "d1/m1");
}

#[tokio::test]
async fn a_batch_is_all_or_nothing() {
    let port = Port::start(None);
    let fields = "authorization: good\r\ncontent-type: application/vnd.microsoft.iothub.json\r\n";
    let send = "POST /devices/d1/messages/events?api-version=2020-09-30";
    let good =
        br#"[{"body":"aGk="},{"body":"text","base64Encoded":false,"properties":{"iothub-app-a":"1"}}]"#;
    assert_eq!(port.ask(send, fields, good).await.status, 204);
    let bodies: Vec<Vec<u8>> = port
        .gateway
        .received()
        .into_iter()
        .map(|message| message.body)
        .collect();
    assert_eq!(bodies, [b"hi".to_vec(), b"text".to_vec()]);
    assert_eq!(port.gateway.appends(), 1);
    let bad = br#"[{"body":"aGk="},{"body":"*"}]"#;
    let answer = port.ask(send, fields, bad).await;
    assert_eq!(
        (answer.status, answer.field("iothub-errorcode")),
        (400, Some("ArgumentInvalid"))
    );
    assert_eq!(port.gateway.received().len(), 2);
}

#[tokio::test]
async fn answered_only_when_durable() {
    let port = Port::start(None);
    port.gateway.hold_durability();
    let mut stream = port.dial().await;
    let asked = ask(
        &mut stream,
        "POST /devices/d1/messages/events?api-version=2020-09-30",
        GOOD,
        b"x",
    );
    let mut asked = std::pin::pin!(asked);
    let early = tokio::time::timeout(Duration::from_millis(50), asked.as_mut()).await;
    assert!(early.is_err() && port.gateway.end() == 1);
    port.gateway.make_durable(1);
    assert_eq!(asked.await.status, 204);
}

#[tokio::test]
async fn a_full_log_is_waited_for_and_a_failed_one_refused() {
    let port = Port::start_with(
        None,
        HttpsConfig {
            ingest_timeout: Duration::from_millis(60),
            ..HttpsConfig::default()
        },
    );
    let send = "POST /devices/d1/messages/events?api-version=2020-09-30";
    port.gateway.set_busy(true);
    let answer = port.ask(send, GOOD, b"x").await;
    assert_eq!((answer.status, answer.field("retry-after")), (429, Some("5")));
    port.gateway.set_busy(false);
    assert_eq!(port.ask(send, GOOD, b"x").await.status, 204);
    port.gateway.fail();
    assert_eq!(port.ask(send, GOOD, b"x").await.status, 503);
}

#[tokio::test]
async fn refusals_have_the_contracts_shape() {
    let port = Port::start(None);
    let events = "POST /devices/d1/messages/events?api-version=2020-09-30";
    for (request, fields, status, code) in [
        (events, "", 401, "IotHubUnauthorizedAccess"),
        (
            events,
            "authorization: Bearer x\r\n",
            401,
            "IotHubUnauthorizedAccess",
        ),
        (
            "POST /devices/d1/messages/events",
            GOOD,
            400,
            "InvalidProtocolVersion",
        ),
        (
            "POST /devices/d1/messages/events?api-version=new",
            GOOD,
            400,
            "InvalidProtocolVersion",
        ),
        (
            "DELETE /devices/d1/messages/deviceBound/none?api-version=2020-09-30",
            GOOD,
            412,
            "DeviceMessageLockLost",
        ),
        (
            "POST /devices/d1/files?api-version=2020-09-30",
            GOOD,
            400,
            "DefaultStorageEndpointNotConfigured",
        ),
        (
            "POST /devices/stopping/messages/events?api-version=2020-09-30",
            GOOD,
            503,
            "ServiceUnavailable",
        ),
    ] {
        let answer = port.ask(request, fields, b"").await;
        assert_eq!(
            (answer.status, answer.field("iothub-errorcode")),
            (status, Some(code)),
            "{request}"
        );
        assert!(
            answer
                .body
                .starts_with(&format!("{{\"Message\":\"ErrorCode:{code};")),
            "{answer:?}"
        );
        assert_eq!(
            answer.field("content-type"),
            Some("application/json; charset=utf-8")
        );
        assert!(answer.field("x-ms-request-id").is_some());
    }
    assert!(port.gateway.received().is_empty());
}

#[tokio::test]
async fn oversize_is_refused_before_it_is_read() {
    let port = Port::start(None);
    let send = "POST /devices/d1/messages/events?api-version=2020-09-30";
    let largest = vec![b'x'; 256 * 1024];
    assert_eq!(port.ask(send, GOOD, &largest).await.status, 204);
    let mut stream = port.dial().await;
    let head = format!("{send} HTTP/1.1\r\nhost: h\r\n{GOOD}content-length: 262145\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("sent");
    let answer = read_answer(&mut stream).await;
    assert_eq!(
        (answer.status, answer.field("iothub-errorcode")),
        (413, Some("MessageTooLarge"))
    );
    let mut stream = port.dial().await;
    let head = format!("{send} HTTP/1.1\r\nhost: h\r\n{GOOD}transfer-encoding: chunked\r\n\r\n40001\r\n");
    stream.write_all(head.as_bytes()).await.expect("sent");
    let _ = stream.write_all(&vec![b'x'; 0x40001]).await;
    assert_eq!(read_answer(&mut stream).await.status, 413);
    let mut stream = port.dial().await;
    let _ = stream
        .write_all(format!("{send} HTTP/1.1\r\nlong: {}\r\n\r\n", "x".repeat(70_000)).as_bytes())
        .await;
    assert_eq!(read_answer(&mut stream).await.status, 431);
}

#[tokio::test]
async fn slow_requests_are_ended() {
    let port = Port::start_with(
        None,
        HttpsConfig {
            head_timeout: Duration::from_millis(80),
            body_timeout: Duration::from_millis(80),
            ..HttpsConfig::default()
        },
    );
    let mut silent = port.dial().await;
    let mut half = port.dial().await;
    half.write_all(b"POST /devices/d1/mess").await.expect("sent");
    let mut bodiless = port.dial().await;
    let head = format!(
        "POST /devices/d1/messages/events?api-version=2020-09-30 HTTP/1.1\r\nhost: h\r\n{GOOD}content-length: 5\r\n\r\nab"
    );
    bodiless.write_all(head.as_bytes()).await.expect("sent");
    assert_eq!(read_answer(&mut bodiless).await.status, 408);
    for stream in [&mut silent, &mut half] {
        let status = read_answer(stream).await.status;
        assert!(matches!(status, 0 | 408), "{status}");
    }
}

#[tokio::test]
async fn a_body_for_the_router_has_to_come_at_a_pace() {
    let port = Port::start_with(
        None,
        HttpsConfig {
            body_timeout: Duration::from_millis(120),
            ..HttpsConfig::default()
        },
    );
    assert_eq!(port.ask("POST /upload", "", &[0; 3_000]).await.body, "3000");
    let head = "POST /upload HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\n\r\n";
    // Each byte comes in time, all of them together do not.
    let mut trickle = port.dial().await;
    trickle.write_all(head.as_bytes()).await.expect("sent");
    let (mut reader, mut writer) = trickle.split();
    let feed = async {
        while writer.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = feed => panic!("cut off before it was answered"),
        answer = read_answer(&mut reader) => assert_eq!(answer.status, 408),
    }
}

#[tokio::test]
async fn a_body_that_nobody_reads_does_not_cost_the_answer() {
    let port = Port::start(None);
    let mut stream = port.dial().await;
    let answer = ask(&mut stream, "POST /nowhere", "", &vec![0; 3_000_000]).await;
    assert_eq!((answer.status, &*answer.body), (418, "the router"));
}

#[tokio::test]
async fn messages_are_received_and_settled() {
    let port = Port::start(None);
    let receive = "GET /devices/d1/messages/deviceBound?api-version=2020-09-30";
    assert_eq!(port.ask(receive, GOOD, b"").await.status, 204);
    let mut message = Message {
        body: Bytes::from_static(b"do it"),
        ..Message::default()
    };
    message.set_system(SystemProperty::MessageId, "m1");
    message.set_property("level", Some("3".into()));
    for _ in 0..3 {
        port.gateway.enqueue("d1", message.clone(), false);
    }
    let mut tokens = Vec::new();
    for _ in 0..3 {
        let answer = port.ask(receive, GOOD, b"").await;
        assert_eq!((answer.status, &*answer.body), (200, "do it"));
        assert_eq!(answer.field("iothub-messageid"), Some("m1"));
        assert_eq!(answer.field("iothub-app-level"), Some("3"));
        let tag = answer.field("etag").expect("a lock token");
        assert!(tag.starts_with('"') && tag.ends_with('"'));
        tokens.push(tag.trim_matches('"').to_owned());
    }
    let base = "/devices/d1/messages/deviceBound";
    let query = "api-version=2020-09-30";
    for request in [
        format!("DELETE {base}/{}?{query}", tokens[0]),
        format!("DELETE {base}/{}?{query}&reject", tokens[1]),
        format!("POST {base}/{}/abandon?{query}", tokens[2]),
    ] {
        assert_eq!(port.ask(&request, GOOD, b"\0").await.status, 204, "{request}");
        assert_eq!(
            port.ask(&request, GOOD, b"").await.status,
            412,
            "{request}, again"
        );
    }
    let outcomes = [
        (1, Settlement::Complete),
        (2, Settlement::Reject),
        (3, Settlement::Abandon),
    ];
    assert_eq!(port.gateway.settled(), outcomes);
    let module = "GET /devices/d1/modules/m1/messages/deviceBound?api-version=2020-09-30";
    assert_eq!(port.ask(module, GOOD, b"").await.status, 204);
}

#[tokio::test]
async fn other_requests_reach_the_router() {
    let port = Port::start(None);
    assert_eq!(port.ask("GET /", "", b"").await.body, "portal");
    assert_eq!(port.ask("GET /devices/d1", "", b"").await.status, 418);
    assert_eq!(port.ask("GET /mqtt", "", b"").await.status, 418);
    let mut stream = port.dial().await;
    for _ in 0..3 {
        assert_eq!(
            ask(&mut stream, "GET /", "", b"").await.status,
            200,
            "one connection, several requests"
        );
    }
}

#[tokio::test]
async fn a_stop_lets_a_request_end() {
    let port = Port::start(None);
    port.gateway.hold_durability();
    let mut stream = port.dial().await;
    let mut idle = port.dial().await;
    let asked = tokio::spawn(async move {
        ask(
            &mut stream,
            "POST /devices/d1/messages/events?api-version=2020-09-30",
            GOOD,
            b"x",
        )
        .await
    });
    until("appended", || port.gateway.end() == 1).await;
    port.stop.send(true).expect("served");
    assert_eq!(
        idle.read(&mut [0; 8]).await.unwrap_or(0),
        0,
        "an idle connection is closed"
    );
    port.gateway.make_durable(1);
    assert_eq!(asked.await.expect("no panic").status, 204);
    port.served.await.expect("no panic");
}
