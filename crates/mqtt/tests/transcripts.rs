//! Runs the byte transcripts `tests/wire/mqtt-*.json`.
//!
//! A file is a list of cases: `name`, `reason`, `role` (`server` and `client` are the role under test, `v5` is the MQTT 5
//! decoder alone), optionally `max_packet`, and `steps`. Bytes are written as hex pairs and `'text'`. A step is one of
//!
//! * `receive`: bytes from the peer, with the `events` they lead to, or the `error` that ends the case, and what the
//!   machine `sends` by itself;
//! * a verb of the machine with what it `sends`: server `accept`, `refuse`, `refuse_level`, `acknowledge`, `suback`,
//!   `unsuback`, `publish`; client `connect`, `publish`, `subscribe`, `unsubscribe`, `resend`, `tick`;
//! * `now` sets the time in ms; `deadline` and `clean_end` state what the server session answers.
//!
//! Every case runs twice: with each `receive` in one piece, and byte by byte.

use std::path::Path;

use holdfast_mqtt::client::{self, Message};
use holdfast_mqtt::codec::{
    self, Connect, ConnectCode, PacketId, Publish, QoS, SubAckCode, decode, encode_suback, encode_unsuback,
};
use holdfast_mqtt::server::{self, Delivery, ServerLimits};
use holdfast_mqtt::{ClientSession, ServerSession, v5};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    reason: String,
    role: Role,
    #[serde(default = "max_packet")]
    max_packet: usize,
    steps: Vec<Value>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Role {
    Server,
    Client,
    V5,
}

fn max_packet() -> usize {
    4096
}

/// Hex pairs and `'text'`.
fn parse_bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, part) in text.split('\'').enumerate() {
        if index % 2 == 1 {
            bytes.extend_from_slice(part.as_bytes());
        } else {
            bytes.extend(
                part.split_whitespace()
                    .map(|hex| u8::from_str_radix(hex, 16).expect("hex")),
            );
        }
    }
    bytes
}

struct Run {
    role: Role,
    max_packet: usize,
    server: ServerSession,
    client: ClientSession,
    input: Vec<u8>,
    out: Vec<u8>,
    now: u64,
}

impl Run {
    fn new(case: &Case) -> Self {
        Self {
            role: case.role,
            max_packet: case.max_packet,
            server: ServerSession::new(&ServerLimits::default(), 0),
            client: ClientSession::new(8),
            input: Vec::new(),
            out: Vec::new(),
            now: 0,
        }
    }

    /// Feeds bytes; returns the events, and the error that ended it.
    fn receive(&mut self, bytes: &[u8], piece: usize) -> (Vec<String>, Option<String>) {
        let mut events = Vec::new();
        for piece in bytes.chunks(piece) {
            self.input.extend_from_slice(piece);
            loop {
                let input = std::mem::take(&mut self.input);
                let step = self.next(&input);
                match step {
                    Ok(Some((event, used))) => {
                        events.push(event);
                        self.input = input[used..].to_vec();
                    }
                    Ok(None) => {
                        self.input = input;
                        break;
                    }
                    Err(error) => return (events, Some(error)),
                }
            }
        }
        (events, None)
    }

    fn next(&mut self, input: &[u8]) -> Result<Option<(String, usize)>, String> {
        if let Role::V5 = self.role {
            let decoded = v5::decode(input, self.max_packet).map_err(|error| format!("{error:?}"))?;
            return Ok(decoded.map(|(packet, used)| {
                let mut again = Vec::new();
                packet
                    .encode(&mut again)
                    .expect("a decoded packet can be encoded");
                assert_eq!(
                    v5::decode(&again, self.max_packet),
                    Ok(Some((packet, again.len())))
                );
                let name = format!("{packet:?}");
                (name.split('(').next().unwrap_or_default().to_owned(), used)
            }));
        }
        let decoded = decode(input, self.max_packet).map_err(|error| format!("{error:?}"))?;
        let Some((packet, used)) = decoded else {
            return Ok(None);
        };
        let event = match self.role {
            Role::Server => self
                .server
                .handle(packet, self.now)
                .map(show_server)
                .map_err(|e| format!("{e:?}"))?,
            _ => self
                .client
                .handle(packet, self.now, &mut self.out)
                .map(show_client)
                .map_err(|e| format!("{e:?}"))?,
        };
        Ok(Some((event, used)))
    }

    fn step(&mut self, step: &Value, piece: usize) {
        if let Some(now) = step["now"].as_u64() {
            self.now = now;
        } else if let Some(deadline) = step["deadline"].as_u64() {
            assert_eq!(self.server.deadline(), deadline);
        } else if let Some(clean) = step["clean_end"].as_bool() {
            assert_eq!(self.server.ended_cleanly(), clean);
        } else if let Some(bytes) = step["receive"].as_str() {
            let (events, error) = self.receive(&parse_bytes(bytes), piece);
            let expected: Vec<&str> = step["events"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            assert_eq!(error.as_deref(), step["error"].as_str());
            assert_eq!(events, expected);
        } else {
            let done = match self.role {
                Role::Server => self.server_verb(step),
                _ => self.client_verb(step),
            };
            assert!(done, "no such step");
        }
        let sends = parse_bytes(step["sends"].as_str().unwrap_or_default());
        assert_eq!(std::mem::take(&mut self.out), sends, "bytes sent");
    }

    fn server_verb(&mut self, step: &Value) -> bool {
        let out = &mut self.out;
        if let Some(present) = step["accept"].as_bool() {
            self.server.accept(present, out);
        } else if step["refuse"].as_u64() == Some(5) {
            self.server.refuse(ConnectCode::NotAuthorized, out);
        } else if let Some(level) = step["refuse_level"].as_u64() {
            codec::encode_unsupported_level(out, level as u8);
        } else if let Some(count) = step["acknowledge"].as_u64() {
            self.server.acknowledge(count as usize, out);
        } else if !step["suback"].is_null() {
            let codes: Vec<_> = step["codes"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_u64)
                .map(code)
                .collect();
            encode_suback(out, id(&step["suback"]).expect("an identifier"), &codes).expect("codes");
        } else if !step["unsuback"].is_null() {
            encode_unsuback(out, id(&step["unsuback"]).expect("an identifier"));
        } else if let Some(topic) = step["publish"].as_str() {
            let delivery = Delivery {
                topic,
                payload: text(step, "payload").as_bytes(),
                qos: qos(&step["qos"]),
                token: step["token"].as_u64().expect("a token"),
                redelivery_of: id(&step["redelivery_of"]),
            };
            self.server.publish(&delivery, out).expect("sent");
        } else {
            return false;
        }
        true
    }

    fn client_verb(&mut self, step: &Value) -> bool {
        let out = &mut self.out;
        if let Some(client_id) = step["connect"].as_str() {
            let clean_session = step["clean"].as_bool().expect("clean");
            let keep_alive = step["keep_alive"].as_u64().expect("keep-alive") as u16;
            let connect = Connect {
                client_id,
                clean_session,
                keep_alive,
                ..Connect::default()
            };
            self.client.connect(&connect, self.now, out).expect("fits");
        } else if let Some(topic) = step["publish"].as_str() {
            let message = Message {
                topic,
                payload: text(step, "payload").as_bytes(),
                qos: qos(&step["qos"]),
                retain: false,
                token: step["token"].as_u64().expect("a token"),
            };
            self.client.publish(&message, self.now, out).expect("sent");
        } else if let Some(filters) = step["subscribe"].as_array() {
            let filters: Vec<_> = filters
                .iter()
                .map(|filter| (filter[0].as_str().expect("a filter"), qos(&filter[1])))
                .collect();
            self.client.subscribe(&filters, self.now, out).expect("sent");
        } else if let Some(filters) = step["unsubscribe"].as_array() {
            let filters: Vec<_> = filters.iter().filter_map(Value::as_str).collect();
            self.client.unsubscribe(&filters, self.now, out).expect("sent");
        } else if let Some(count) = step["resend"].as_u64() {
            assert_eq!(self.client.resend(self.now, out), count as usize);
        } else if step["tick"].as_bool() == Some(true) {
            let error = self
                .client
                .tick(self.now, out)
                .err()
                .map(|error| format!("{error:?}"));
            assert_eq!(error.as_deref(), step["error"].as_str());
        } else {
            return false;
        }
        true
    }
}

fn text<'a>(step: &'a Value, key: &str) -> &'a str {
    step[key].as_str().expect("text")
}

fn id(value: &Value) -> Option<PacketId> {
    value.as_u64().and_then(|id| PacketId::new(id as u16))
}

fn qos(value: &Value) -> QoS {
    value
        .as_u64()
        .and_then(|qos| QoS::from_u8(qos as u8).ok())
        .expect("a quality of service")
}

fn code(code: u64) -> SubAckCode {
    if code == 128 {
        SubAckCode::Failure
    } else {
        QoS::from_u8(code as u8).expect("a code").into()
    }
}

fn show_publish(publish: &Publish<'_>) -> String {
    let id = publish.packet_id.map_or(String::new(), |id| format!(" id={id}"));
    format!(
        "publish q{}{id} dup={} retain={} {} '{}'",
        publish.qos as u8,
        u8::from(publish.dup),
        u8::from(publish.retain),
        publish.topic,
        String::from_utf8_lossy(publish.payload)
    )
}

fn show_connect(connect: &Connect<'_>) -> String {
    let mut text = format!(
        "connect id={} clean={} keep-alive={}",
        connect.client_id,
        u8::from(connect.clean_session),
        connect.keep_alive
    );
    if let Some(will) = connect.will {
        let payload = String::from_utf8_lossy(will.payload);
        let (qos, retain) = (will.qos as u8, u8::from(will.retain));
        text += &format!(" will=q{qos} retain={retain} {} '{payload}'", will.topic);
    }
    if let Some(username) = connect.username {
        text += &format!(" user={username}");
    }
    if let Some(password) = connect.password {
        text += &format!(" password={}", String::from_utf8_lossy(password));
    }
    text
}

fn show_server(event: server::Event<'_>) -> String {
    use server::Event;
    match event {
        Event::Connect(connect) => show_connect(&connect),
        Event::Publish(publish) => show_publish(&publish),
        Event::Subscribe(subscribe) => {
            let filters = subscribe
                .filters()
                .map(|(filter, qos)| format!(" {filter}:{}", qos as u8));
            format!(
                "subscribe id={}{}",
                subscribe.packet_id,
                filters.collect::<String>()
            )
        }
        Event::Unsubscribe(unsubscribe) => {
            let filters = unsubscribe.filters().map(|filter| format!(" {filter}"));
            format!(
                "unsubscribe id={}{}",
                unsubscribe.packet_id,
                filters.collect::<String>()
            )
        }
        Event::PubAck { token } => format!("puback token={token}"),
        Event::StalePubAck { packet_id } => format!("stale-puback id={packet_id}"),
        Event::PingReq => "pingreq".to_owned(),
        Event::Disconnect => "disconnect".to_owned(),
    }
}

fn show_client(event: client::Event<'_>) -> String {
    use client::Event;
    match event {
        Event::ConnAck(connack) => {
            format!(
                "connack present={} code={}",
                u8::from(connack.session_present),
                connack.code as u8
            )
        }
        Event::Publish(publish) => show_publish(&publish),
        Event::PubAck { token } => format!("puback token={token}"),
        Event::StalePubAck { packet_id } => format!("stale-puback id={packet_id}"),
        Event::SubAck(suback) => {
            let codes = suback.codes().map(|code| format!(" {}", code as u8));
            format!("suback id={}{}", suback.packet_id, codes.collect::<String>())
        }
        Event::UnsubAck(packet_id) => format!("unsuback id={packet_id}"),
        Event::PingResp => "pingresp".to_owned(),
    }
}

fn run_file(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/wire")
        .join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let cases: Vec<Case> = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
    for case in &cases {
        for piece in [usize::MAX, 1] {
            let mut run = Run::new(case);
            for (index, step) in case.steps.iter().enumerate() {
                eprintln!(
                    "{name}: {} ({}), step {}, pieces of {piece}: {step}",
                    case.name,
                    case.reason,
                    index + 1
                );
                run.step(step, piece);
            }
        }
    }
}

#[test]
fn connect() {
    run_file("mqtt-connect.json");
}

#[test]
fn publish() {
    run_file("mqtt-publish.json");
}

#[test]
fn subscribe() {
    run_file("mqtt-subscribe.json");
}

#[test]
fn session() {
    run_file("mqtt-session.json");
}

#[test]
fn client() {
    run_file("mqtt-client.json");
}

#[test]
fn v5() {
    run_file("mqtt-v5.json");
}

/// A transcript file without a test above would never run.
#[test]
fn every_file_is_run() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/wire");
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .expect("tests/wire")
        .map(|entry| entry.expect("entry").file_name().into_string().expect("utf-8"))
        .filter(|name| name.starts_with("mqtt-"))
        .collect();
    names.sort_unstable();
    let run = ["client", "connect", "publish", "session", "subscribe", "v5"];
    assert_eq!(names, run.map(|name| format!("mqtt-{name}.json")));
}
