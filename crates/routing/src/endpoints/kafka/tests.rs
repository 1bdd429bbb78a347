//! Against a broker by script, for what a real one cannot be made to answer. The suite `brokers` has a real one.

use std::net::SocketAddr;

use holdfast_model::event::EventBlock;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::protocol::Reader;
use super::*;
use crate::endpoints::testing::{authority, outbound, telemetry};

/// What the broker saw: log-ins, and values of accepted records with their partition.
type Log = Arc<Mutex<Vec<String>>>;

/// Starts a broker with a topic of three partitions. A value says what becomes of its batch: `"large"` (too large, by
/// itself or with others), `"busy"`, `"moved"` (not the leader), `"die"` (the connection ends), `"mute"`.
async fn broker() -> (u16, Log) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let log = Log::default();
    let seen = log.clone();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(socket, at, seen.clone()));
        }
    });
    (at.port(), log)
}

async fn serve(mut socket: TcpStream, at: SocketAddr, log: Log) {
    while let Ok(length) = socket.read_i32().await {
        let mut request = vec![0; usize::try_from(length).unwrap()];
        socket.read_exact(&mut request).await.unwrap();
        let mut reader = Reader(&request);
        let (api, _version) = (reader.i16().unwrap(), reader.i16().unwrap());
        let number = reader.i32().unwrap();
        reader.string().unwrap();
        let mut answer = number.to_be_bytes().to_vec();
        match api {
            17 => {
                log.lock().push(reader.string().unwrap().to_owned());
                answer.extend_from_slice(&[0; 6]);
            }
            36 => {
                let text = String::from_utf8_lossy(reader.bytes().unwrap()).replace('\0', "|");
                let wrong = text.contains("wrong");
                log.lock().push(text);
                answer.extend_from_slice(&if wrong { 58_i16 } else { 0 }.to_be_bytes());
                put_string("no", &mut answer);
                answer.extend_from_slice(&[0; 4]);
            }
            3 => put_metadata_answer(&mut reader, at, &mut answer),
            0 => match take(&mut reader, &log) {
                None => return,
                Some(outcomes) if outcomes.is_empty() => continue,
                Some(outcomes) => put_produce_answer(&outcomes, &mut answer),
            },
            other => panic!("request {other}"),
        }
        socket
            .write_i32(i32::try_from(answer.len()).unwrap())
            .await
            .unwrap();
        socket.write_all(&answer).await.unwrap();
    }
}

fn put_string(text: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(&i16::try_from(text.len()).unwrap().to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn put_metadata_answer(reader: &mut Reader<'_>, at: SocketAddr, out: &mut Vec<u8>) {
    let int = |value: i32, out: &mut Vec<u8>| out.extend_from_slice(&value.to_be_bytes());
    reader.count().unwrap();
    let topic = reader.string().unwrap();
    int(0, out);
    int(1, out);
    int(7, out);
    put_string(&at.ip().to_string(), out);
    int(at.port().into(), out);
    put_string("rack", out);
    put_string("cluster", out);
    int(7, out);
    int(1, out);
    let error: i16 = if topic == "absent" { 3 } else { 0 };
    out.extend_from_slice(&error.to_be_bytes());
    put_string(topic, out);
    out.push(0);
    int(if error == 0 { 3 } else { 0 }, out);
    for partition in 0..(if error == 0 { 3 } else { 0 }) {
        out.extend_from_slice(&0_i16.to_be_bytes());
        int(partition, out);
        int(7, out);
        for _ in 0..2 {
            int(1, out);
            int(7, out);
        }
    }
}

/// The outcome for each partition: none of them for no answer, `None` for the end of the connection.
fn take(reader: &mut Reader<'_>, log: &Log) -> Option<Vec<(i32, i16)>> {
    reader.string().unwrap();
    assert_eq!(reader.i16().unwrap(), -1, "all replicas");
    reader.i32().unwrap();
    reader.count().unwrap();
    reader.string().unwrap();
    let mut outcomes = Vec::new();
    for _ in 0..reader.count().unwrap() {
        let partition = reader.i32().unwrap();
        let values = values(reader.bytes().unwrap());
        let has = |value: &str| values.iter().any(|found| found == value);
        if has("\"die\"") {
            return None;
        }
        if has("\"mute\"") {
            return Some(Vec::new());
        }
        let code = match () {
            () if has("\"large\"") => 10,
            () if has("\"busy\"") => 19,
            () if has("\"moved\"") => 6,
            () => 0,
        };
        if code == 0 {
            log.lock()
                .extend(values.iter().map(|value| format!("{partition}:{value}")));
        }
        outcomes.push((partition, code));
    }
    Some(outcomes)
}

/// Values of the records of a batch that is not compressed.
fn values(batch: &[u8]) -> Vec<String> {
    let checksum = u32::from_be_bytes(batch[17..21].try_into().unwrap());
    assert_eq!(checksum, crc32c::crc32c(&batch[21..]), "checksum");
    let count = i32::from_be_bytes(batch[57..61].try_into().unwrap());
    let mut rest = &batch[61..];
    let mut values = Vec::new();
    for number in 0..i64::from(count) {
        let length = usize::try_from(varint(&mut rest)).unwrap();
        let (mut record, behind) = rest.split_at(length);
        rest = behind;
        record = &record[1..];
        assert_eq!((varint(&mut record), varint(&mut record)), (0, number));
        let key = usize::try_from(varint(&mut record)).unwrap();
        record = &record[key..];
        let value = usize::try_from(varint(&mut record)).unwrap();
        values.push(String::from_utf8(record[..value].to_vec()).unwrap());
    }
    assert!(rest.is_empty());
    values
}

fn varint(bytes: &mut &[u8]) -> i64 {
    let (mut value, mut shift) = (0_u64, 0);
    loop {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return (value >> 1) as i64 ^ -((value & 1) as i64);
        }
        shift += 7;
    }
}

fn put_answer(partition: i32, code: i16, out: &mut Vec<u8>) {
    out.extend_from_slice(&partition.to_be_bytes());
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(&[0; 16]);
}

fn put_produce_answer(outcomes: &[(i32, i16)], out: &mut Vec<u8>) {
    out.extend_from_slice(&1_i32.to_be_bytes());
    put_string("t", out);
    out.extend_from_slice(&i32::try_from(outcomes.len()).unwrap().to_be_bytes());
    for (partition, code) in outcomes {
        put_answer(*partition, *code, out);
    }
    out.extend_from_slice(&0_i32.to_be_bytes());
}

fn endpoint(port: u16, mut settings: Value) -> KafkaEndpoint {
    settings["bootstrapServers"] = json!([format!("127.0.0.1:{port}")]);
    if settings.get("topic").is_none() {
        settings["topic"] = json!("t");
    }
    KafkaEndpoint::new(&settings).unwrap()
}

async fn send(endpoint: &KafkaEndpoint, bodies: &[&str]) -> Result<(), DeliveryError> {
    let block = telemetry("d1", bodies);
    endpoint.deliver(&outbound(&block)).await
}

/// The log without partitions.
fn bodies(log: &Log) -> Vec<String> {
    let log = log.lock();
    log.iter()
        .filter_map(|line| line.split_once(':'))
        .map(|(_, body)| body.to_owned())
        .collect()
}

#[tokio::test]
async fn a_device_keeps_its_partition_and_its_order() {
    let (port, log) = broker().await;
    let endpoint = endpoint(port, json!({"batchBytesMax": 1_024}));
    let numbers: Vec<String> = (0..200).map(|number| number.to_string()).collect();
    let numbers: Vec<&str> = numbers.iter().map(String::as_str).collect();
    send(&endpoint, &numbers).await.unwrap();
    endpoint.idle().await;
    send(&endpoint, &["200"]).await.unwrap();
    assert_eq!(bodies(&log)[..200], numbers[..]);
    let partitions: HashSet<String> = log
        .lock()
        .iter()
        .map(|line| line.split(':').next().unwrap().to_owned())
        .collect();
    assert_eq!(partitions.len(), 1);
}

#[tokio::test]
async fn a_record_that_is_too_large_is_found_and_refused_alone() {
    let (port, log) = broker().await;
    let endpoint = endpoint(port, json!({}));
    let error = send(&endpoint, &["1", "2", "3", "\"large\"", "5", "6"])
        .await
        .unwrap_err();
    assert!(error.refused && error.accepted == 3, "{error}");
    assert!(error.message.contains("MESSAGE_TOO_LARGE"), "{error}");
    assert_eq!(bodies(&log), ["1", "2", "3"]);
}

#[tokio::test]
async fn what_another_partition_took_is_not_sent_again() {
    let (port, log) = broker().await;
    let endpoint = endpoint(port, json!({}));
    let one = telemetry("d1", &["1", "\"busy\""]);
    let partition = |block: &EventBlock| request::partition(&outbound(block)[0], 3);
    let other = (2..).map(|number| telemetry(&format!("d{number}"), &["a", "b"]));
    let mut two = other
        .into_iter()
        .find(|block| partition(block) != partition(&one))
        .unwrap();
    two.first_sequence_number = 100;
    let batch = [outbound(&one), outbound(&two)].concat();
    let error = endpoint.deliver(&batch).await.unwrap_err();
    assert_eq!((error.accepted, error.refused), (0, false), "{error}");
    assert!(error.message.contains("NOT_ENOUGH_REPLICAS"), "{error}");
    assert_eq!(bodies(&log), ["a", "b"]);
    let better = telemetry("d1", &["1", "2"]);
    let batch = [outbound(&better), outbound(&two)].concat();
    endpoint.deliver(&batch).await.unwrap();
    assert_eq!(bodies(&log), ["a", "b", "1", "2"]);
    assert!(endpoint.ahead.lock().is_empty());
}

#[tokio::test]
async fn faults_of_a_broker_are_tried_again() {
    for (body, word) in [("\"moved\"", "NOT_LEADER"), ("\"die\"", "Produce")] {
        let (port, log) = broker().await;
        let endpoint = endpoint(port, json!({}));
        let error = send(&endpoint, &["1", body]).await.unwrap_err();
        assert_eq!((error.accepted, error.refused), (0, false), "{error}");
        assert!(error.message.contains(word), "{error}");
        send(&endpoint, &["1", "2"]).await.unwrap();
        assert_eq!(bodies(&log), ["1", "2"]);
    }
}

#[tokio::test]
async fn a_broker_that_says_nothing_is_given_up() {
    let (port, _) = broker().await;
    let endpoint = endpoint(port, json!({}));
    // Known before the clock runs ahead of the sockets.
    send(&endpoint, &["1"]).await.unwrap();
    tokio::time::pause();
    let error = send(&endpoint, &["\"mute\""]).await.unwrap_err();
    assert!(!error.refused && error.message.contains("no answer"), "{error}");
}

#[tokio::test]
async fn logins_topics_and_servers_that_are_not_there() {
    let (port, log) = broker().await;
    let login = |password: &str| json!({"username": "u", "password": password});
    send(&endpoint(port, login("p")), &["1"]).await.unwrap();
    assert_eq!(log.lock()[..2], ["PLAIN", "|u|p"]);
    let error = send(&endpoint(port, login("wrong")), &["1"]).await.unwrap_err();
    assert!(
        !error.refused
            && error.message.contains("SASL_AUTHENTICATION_FAILED")
            && !error.message.contains("wrong"),
        "{error}"
    );
    let error = send(&endpoint(port, json!({"topic": "absent"})), &["1"])
        .await
        .unwrap_err();
    assert!(
        !error.refused && error.message.contains("topic absent: UNKNOWN_TOPIC"),
        "{error}"
    );
    let free = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let error = send(&endpoint(free.port(), json!({})), &["1"]).await.unwrap_err();
    assert!(error.message.contains("cannot connect"), "{error}");
}

#[tokio::test]
async fn tls_is_verified() {
    let (pem, config) = authority();
    let (inner, log) = broker().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(config);
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut secure) = acceptor.accept(socket).await else {
                    return;
                };
                let mut plain = TcpStream::connect(("127.0.0.1", inner)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut secure, &mut plain).await;
            });
        }
    });
    // Discovered over TLS; the broker's own address is without, so producing fails there and says so.
    let settings = |ca: Option<&str>| {
        json!({"bootstrapServers": [format!("localhost:{port}")], "topic": "t", "tls": true, "caCertificate": ca,
               "connectTimeoutSeconds": 2})
    };
    let known = KafkaEndpoint::new(&settings(Some(&pem))).unwrap();
    Cluster::discover(&known.config, known.tls.as_ref())
        .await
        .unwrap();
    let unknown = KafkaEndpoint::new(&settings(None)).unwrap();
    let error = send(&unknown, &["1"]).await.unwrap_err();
    assert!(error.message.contains("cannot connect"), "{error}");
    assert!(bodies(&log).is_empty());
}

#[test]
fn settings_are_filled_and_wrong_ones_named() {
    let given = || json!({"bootstrapServers": ["h"], "topic": "t"});
    let filled = KafkaConfig::check(&given()).unwrap();
    assert_eq!(
        (
            &filled["saslMechanism"],
            &filled["batchBytesMax"],
            &filled["payload"]
        ),
        (&json!("PLAIN"), &json!(921_600), &json!("body"))
    );
    assert_eq!(KafkaConfig::check(&filled).unwrap(), filled);
    for (name, value) in [
        ("bootstrapServers", json!([])),
        ("bootstrapServers", json!(["a:b"])),
        ("bootstrapServers", json!(["kafka://h:1"])),
        ("topic", json!("")),
        ("topic", json!("a/b")),
        ("password", json!("alone")),
        ("clientKey", json!("alone")),
        ("saslMechanism", json!("GSSAPI")),
        ("compression", json!("zstd")),
        ("batchEventsMax", json!(0)),
        ("batchBytesMax", json!(1)),
        ("connectTimeoutSeconds", json!(26)),
        ("caCertificate", json!("x")),
        ("unknown", json!(1)),
    ] {
        let mut settings = given();
        settings[name] = value.clone();
        let error = KafkaConfig::check(&settings).unwrap_err();
        let named = error.contains(name) || value.as_str().is_some_and(|value| error.contains(value));
        assert!(named && !error.contains("alone"), "{settings}: {error}");
    }
}

#[test]
fn answers_cut_anywhere_are_refused() {
    let mut answer = Vec::new();
    let mut request = super::protocol::Request::new(super::protocol::METADATA, 1);
    super::protocol::put_metadata("t", &mut request);
    let request = request.finish();
    let mut reader = Reader(&request[4 + 2 + 2 + 4 + 2 + 8..]);
    put_metadata_answer(&mut reader, "127.0.0.1:9".parse().unwrap(), &mut answer);
    let metadata = super::protocol::read_metadata(&answer).unwrap();
    assert_eq!(metadata.leaders, [Some(7); 3]);
    for length in 0..answer.len() {
        assert!(
            super::protocol::read_metadata(&answer[..length]).is_err(),
            "{length}"
        );
    }
    let mut many = answer.clone();
    // A number of replicas that no memory would hold.
    let at = many.len() - 8;
    many[at..at + 4].copy_from_slice(&i32::MAX.to_be_bytes());
    assert!(super::protocol::read_metadata(&many).is_err());
}
