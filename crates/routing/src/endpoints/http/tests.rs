//! Against a service that answers by script, and against peers that are not there, hang, or lie.

use std::sync::Arc;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::endpoints::socket::Socket;
use crate::endpoints::testing::{authority, environment, outbound, telemetry};

/// A request as it came.
#[derive(Clone, Debug)]
struct Seen {
    /// Number of the connection that brought it.
    connection: usize,
    head: String,
    body: String,
}

type Log = Arc<Mutex<Vec<Seen>>>;
use parking_lot::Mutex;

/// Starts a service whose answer is worked out from the request; `None` never answers.
async fn serve(
    tls: Option<Arc<rustls::ServerConfig>>,
    answer: impl Fn(&Seen) -> Option<String> + Send + Sync + 'static,
) -> (u16, Log) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let log = Log::default();
    let (seen, answer) = (log.clone(), Arc::new(answer));
    tokio::spawn(async move {
        for connection in 0.. {
            let (tcp, _) = listener.accept().await.unwrap();
            let (seen, answer, tls) = (seen.clone(), answer.clone(), tls.clone());
            tokio::spawn(async move {
                let socket: Box<dyn Socket> = match tls {
                    None => Box::new(tcp),
                    Some(config) => match tokio_rustls::TlsAcceptor::from(config).accept(tcp).await {
                        Ok(stream) => Box::new(stream),
                        Err(_) => return,
                    },
                };
                talk(socket, connection, &seen, &*answer).await;
            });
        }
    });
    (port, log)
}

async fn talk(
    mut socket: Box<dyn Socket>,
    connection: usize,
    log: &Log,
    answer: &(impl Fn(&Seen) -> Option<String> + ?Sized),
) {
    let mut bytes = Vec::new();
    loop {
        let head_end = loop {
            if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if socket.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let head = String::from_utf8(bytes[..head_end].to_vec())
            .unwrap()
            .to_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.parse().unwrap());
        while bytes.len() < head_end + length {
            assert!(socket.read_buf(&mut bytes).await.unwrap() > 0);
        }
        let body = plain(&head, &bytes[head_end..head_end + length]);
        bytes.drain(..head_end + length);
        let request = Seen {
            connection,
            head,
            body,
        };
        log.lock().push(request.clone());
        let Some(text) = answer(&request) else {
            std::future::pending::<()>().await;
            return;
        };
        if socket.write_all(text.as_bytes()).await.is_err() || text.contains("connection: close") {
            return;
        }
    }
}

/// A body without its compression.
fn plain(head: &str, body: &[u8]) -> String {
    if !head.contains("content-encoding: gzip") {
        return String::from_utf8(body.to_vec()).unwrap();
    }
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(body), &mut text).unwrap();
    text
}

fn reply(status: &str, extra: &str, body: &str) -> Option<String> {
    let length = body.len();
    Some(format!(
        "HTTP/1.1 {status} x\r\n{extra}content-length: {length}\r\n\r\n{body}"
    ))
}

fn endpoint(port: u16, mut settings: Value) -> HttpEndpoint {
    settings["url"] = json!(format!("http://127.0.0.1:{port}/hook?x=1"));
    HttpEndpoint::new(&settings, &environment()).unwrap()
}

async fn send(endpoint: &HttpEndpoint, bodies: &[&str]) -> Result<(), DeliveryError> {
    let block = telemetry("d1", bodies);
    endpoint.deliver(&outbound(&block)).await
}

#[tokio::test]
async fn a_batch_of_cloud_events_over_one_connection() {
    let (port, log) = serve(None, |_| reply("200", "", "thanks")).await;
    let endpoint = endpoint(port, json!({"headers": {"X-Key": "k"}, "bearerToken": "t"}));
    send(&endpoint, &["{\"a\":1}", "{\"a\":2}"]).await.unwrap();
    send(&endpoint, &["3"]).await.unwrap();
    let log = log.lock();
    let first = &log[0];
    assert!(
        first.head.starts_with("post /hook?x=1 http/1.1\r\n"),
        "{}",
        first.head
    );
    for line in [
        "content-type: application/cloudevents-batch+json; charset=utf-8",
        "x-key: k",
        "authorization: bearer t",
        &format!("host: 127.0.0.1:{port}"),
    ] {
        assert!(first.head.contains(line), "{line} in {}", first.head);
    }
    let events: Value = serde_json::from_str(&first.body).unwrap();
    assert_eq!(events[1]["data"]["body"], json!({"a": 2}));
    assert_eq!(
        events[1]["data"]["properties"],
        json!({"level": "3", "hub": "hub1"})
    );
    assert_eq!((log.len(), log[1].connection), (2, 0), "the connection is kept");
    endpoint.service.close();
}

#[tokio::test]
async fn single_events_and_lines() {
    let (port, log) = serve(None, |_| reply("204", "", "")).await;
    let singles = endpoint(port, json!({"batch": false, "username": "u", "password": "p"}));
    send(&singles, &["1", "2"]).await.unwrap();
    let lines = endpoint(port, json!({"format": "json"}));
    send(&lines, &["1", "2"]).await.unwrap();
    let log = log.lock();
    assert_eq!(log.len(), 3);
    assert!(
        log[0].head.contains("application/cloudevents+json"),
        "{}",
        log[0].head
    );
    assert!(
        log[0].head.contains("authorization: basic dtpw"),
        "{}",
        log[0].head
    );
    let bodies: Vec<Value> = log[2]
        .body
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!((bodies.len(), &bodies[1]["Body"]), (2, &json!(2)));
}

#[tokio::test]
async fn the_event_that_is_refused_is_found() {
    let (port, log) = serve(None, |request| match request.body.contains("\"bad\"") {
        true => reply("400", "", "no\u{1b}[1mgood"),
        false => reply("200", "", ""),
    })
    .await;
    let endpoint = endpoint(port, json!({}));
    let bodies = ["1", "2", "3", "4", "5", "\"bad\"", "7", "8"];
    let error = send(&endpoint, &bodies).await.unwrap_err();
    assert_eq!((error.accepted, error.refused), (5, true));
    assert!(
        error.message.contains("400") && error.message.contains("no [1mgood"),
        "{}",
        error.message
    );
    let taken: usize = log
        .lock()
        .iter()
        .filter(|request| !request.body.contains("\"bad\""))
        .map(|request| {
            serde_json::from_str::<Value>(&request.body)
                .unwrap()
                .as_array()
                .unwrap()
                .len()
        })
        .sum();
    assert_eq!(taken, 5, "nothing is sent twice while searching");
    send(&endpoint, &bodies[6..]).await.unwrap();
}

#[tokio::test]
async fn requests_keep_their_bounds_and_their_order() {
    let bodies: Vec<String> = (10..60).map(|number| number.to_string()).collect();
    let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
    // By number, and by bytes: the least bound has room for some twenty of these events.
    for (settings, most) in [
        (json!({"batchEventsMax": 5}), 5),
        (json!({"batchBytesMax": 1_024}), 24),
    ] {
        let mut settings = settings;
        settings["format"] = json!("json");
        let (port, log) = serve(None, |_| reply("200", "", "")).await;
        let endpoint = endpoint(port, settings);
        send(&endpoint, &bodies).await.unwrap();
        let log = log.lock();
        let counts: Vec<usize> = log.iter().map(|request| request.body.lines().count()).collect();
        assert!(
            counts.len() > 1 && counts.iter().all(|count| *count <= most),
            "{counts:?}"
        );
        let lines = log.iter().flat_map(|request| request.body.lines());
        let numbers = lines.map(|line| serde_json::from_str::<Value>(line).unwrap()["Body"].to_string());
        assert_eq!(numbers.collect::<Vec<_>>(), bodies);
    }
}

#[tokio::test]
async fn bodies_are_compressed_when_asked_for() {
    let (port, log) = serve(None, |_| reply("200", "", "")).await;
    let settings = json!({"format": "json", "compression": "gzip"});
    send(&endpoint(port, settings), &["1", "2"]).await.unwrap();
    let log = log.lock();
    assert!(log[0].head.contains("content-encoding: gzip"), "{}", log[0].head);
    assert_eq!(log[0].body.lines().count(), 2);
    assert!(log[0].body.contains("\"Body\":2"), "{}", log[0].body);
}

#[tokio::test]
async fn busy_services_say_when_to_come_back() {
    for (status, header, wait) in [
        ("429", "retry-after: 7\r\n", Some(Duration::from_secs(7))),
        ("503", "retry-after: 99999999\r\n", Some(RETRY_AFTER_MAX)),
        (
            "503",
            "retry-after: Thu, 01 Jan 1970 00:33:30 GMT\r\n",
            Some(Duration::from_secs(10)),
        ),
        (
            "503",
            "retry-after: Wed, 21 Oct 2026 07:28:00 GMT\r\n",
            Some(RETRY_AFTER_MAX),
        ),
        (
            "503",
            "retry-after: Thu, 01 Jan 1970 00:00:00 GMT\r\n",
            Some(Duration::ZERO),
        ),
        ("503", "retry-after: soon\r\n", None),
        ("415", "", None),
        ("500", "", None),
        ("401", "", None),
        ("302", "location: http://elsewhere/\r\n", None),
    ] {
        let (port, log) = serve(None, move |_| reply(status, header, "")).await;
        let error = send(&endpoint(port, json!({})), &["1", "2"]).await.unwrap_err();
        assert_eq!(
            (error.refused, error.accepted, error.retry_after),
            (false, 0, wait),
            "{status}"
        );
        assert!(error.message.contains(status), "{}", error.message);
        assert_eq!(log.lock().len(), 1, "{status} is not followed or split");
    }
}

#[tokio::test]
async fn subscribers_prove_themselves_by_the_code() {
    let (port, log) = serve(None, |request| {
        if !request.head.contains("aeg-event-type: subscriptionvalidation") {
            return reply("200", "", "");
        }
        let event: Value = serde_json::from_str(&request.body).unwrap();
        let code = event[0]["data"]["validationCode"].clone();
        reply("200", "", &json!({"validationResponse": code}).to_string())
    })
    .await;
    let endpoint = endpoint(port, json!({"format": "eventgrid"}));
    send(&endpoint, &["1"]).await.unwrap();
    send(&endpoint, &["2"]).await.unwrap();
    {
        let log = log.lock();
        assert_eq!(log.len(), 3, "one handshake");
        assert!(log[1].head.contains("aeg-event-type: notification"));
        assert_eq!(
            serde_json::from_str::<Value>(&log[1].body).unwrap()[0]["data"]["body"],
            1
        );
    }
    let (port, log) = serve(None, |_| reply("200", "", "{\"validationResponse\":\"guess\"}")).await;
    let error = send(&self::endpoint(port, json!({"format": "eventgrid"})), &["1"])
        .await
        .unwrap_err();
    assert!(
        !error.refused && error.message.contains("handshake"),
        "{}",
        error.message
    );
    assert!(
        log.lock()
            .iter()
            .all(|request| request.body.contains("validationCode")),
        "no event leaves"
    );
}

#[tokio::test]
async fn subscribers_allow_our_origin() {
    for (allowed, works) in [("hub1", true), ("*", true), ("other", false)] {
        let (port, log) = serve(None, move |_| {
            reply("200", &format!("webhook-allowed-origin: {allowed}\r\n"), "")
        })
        .await;
        let sent = send(&endpoint(port, json!({"handshake": true})), &["1"]).await;
        assert_eq!(sent.is_ok(), works, "{allowed}: {sent:?}");
        let log = log.lock();
        assert!(log[0].head.starts_with("options ") && log[0].head.contains("webhook-request-origin: hub1"));
        assert_eq!(log.len(), if works { 2 } else { 1 });
    }
}

#[tokio::test]
async fn absent_hanging_and_broken_peers() {
    let free = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let error = send(&endpoint(free, json!({})), &["1"]).await.unwrap_err();
    assert!(
        !error.refused && error.message.contains(&format!("127.0.0.1:{free}")),
        "{}",
        error.message
    );

    let (port, _) = serve(None, |_| None).await;
    let error = send(&endpoint(port, json!({"timeoutSeconds": 1})), &["1"])
        .await
        .unwrap_err();
    assert!(
        error.message.contains("no answer within 1 s"),
        "{}",
        error.message
    );

    let (port, _) = serve(None, |_| Some("ni hao\r\nconnection: close".to_owned())).await;
    let error = send(&endpoint(port, json!({})), &["1"]).await.unwrap_err();
    assert!(!error.refused, "{}", error.message);

    let head = format!("HTTP/1.1 200 x\r\n{}", "a: b\r\n".repeat(100_000));
    let (port, _) = serve(None, move |_| Some(head.clone())).await;
    assert!(
        send(&endpoint(port, json!({})), &["1"]).await.is_err(),
        "endless headers"
    );
}

#[tokio::test]
async fn long_answers_are_cut_and_closed_connections_opened_again() {
    let (port, log) = serve(None, |_| reply("200", "", &"x".repeat(1 << 20))).await;
    let endpoint = endpoint(port, json!({}));
    send(&endpoint, &["1"]).await.unwrap();
    send(&endpoint, &["2"]).await.unwrap();
    assert_eq!(
        log.lock()[1].connection,
        1,
        "an answer that is not read to its end costs the connection"
    );

    let (port, log) = serve(None, |_| reply("200", "connection: close\r\n", "")).await;
    let endpoint = self::endpoint(port, json!({}));
    for _ in 0..3 {
        send(&endpoint, &["1"]).await.unwrap();
    }
    assert_eq!(log.lock().len(), 3);
}

#[tokio::test]
async fn certificates_and_names_are_verified() {
    let (pem, server) = authority();
    let (port, log) = serve(Some(server), |_| reply("200", "", "")).await;
    let make = |host: &str, ca: Option<&str>| {
        let settings = json!({"url": format!("https://{host}:{port}/"), "caCertificate": ca});
        HttpEndpoint::new(&settings, &environment()).unwrap()
    };
    send(&make("localhost", Some(&pem)), &["1"]).await.unwrap();
    let unknown = send(&make("localhost", None), &["1"]).await.unwrap_err();
    assert!(
        !unknown.refused && unknown.message.contains("certificate"),
        "{}",
        unknown.message
    );
    let wrong = send(&make("127.0.0.1", Some(&pem)), &["1"]).await.unwrap_err();
    assert!(wrong.message.contains("certificate"), "{}", wrong.message);
    assert_eq!(log.lock().len(), 1);
}

#[test]
fn settings_are_filled_in_and_faults_named() {
    let filled = HttpConfig::check(&json!({"url": "https://x/", "format": "eventgrid"})).unwrap();
    assert_eq!(
        (&filled["handshake"], &filled["batchEventsMax"]),
        (&json!(true), &json!(500))
    );
    assert_eq!(
        HttpConfig::check(&filled).unwrap(),
        filled,
        "filled settings are settings"
    );
    for (settings, names) in [
        (json!({}), "url"),
        (json!({"url": "ftp://x/"}), "url"),
        (json!({"url": "https://u:p@x/"}), "url"),
        (json!({"url": "https:///x"}), "url"),
        (json!({"url": "https://x/", "format": "xml"}), "xml"),
        (json!({"url": "https://x/", "colour": 1}), "colour"),
        (
            json!({"url": "https://x/", "batchEventsMax": 0}),
            "batchEventsMax",
        ),
        (
            json!({"url": "https://x/", "timeoutSeconds": 90}),
            "timeoutSeconds",
        ),
        (json!({"url": "https://x/", "headers": {"Host": "y"}}), "Host"),
        (json!({"url": "https://x/", "headers": {"a b": "y"}}), "a b"),
        (
            json!({"url": "https://x/", "headers": {"a": "hu\nsh"}}),
            "headers",
        ),
        (json!({"url": "https://x/", "password": "p"}), "username"),
        (
            json!({"url": "https://x/", "bearerToken": "t", "username": "u", "password": "p"}),
            "bearerToken",
        ),
        (
            json!({"url": "https://x/", "caCertificate": "none"}),
            "caCertificate",
        ),
        (
            json!({"url": "https://x/", "format": "json", "handshake": true}),
            "handshake",
        ),
    ] {
        let error = HttpConfig::check(&settings).unwrap_err();
        assert!(
            error.contains(names) || names == "headers" && error.starts_with("a:"),
            "{error}"
        );
        assert!(!error.contains("hu\n") && !error.contains("hush"), "{error}");
    }
}
