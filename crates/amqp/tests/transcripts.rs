//! Runs the byte transcripts `tests/wire/amqp-*.json`, `amqp-vectors.json` apart.
//!
//! A file is a list of cases: `name`, `reason`, `role` under test, optionally limits of the configuration, and `steps`.
//! Bytes are written as hex pairs and `'text'`. A step is one of
//!
//! * `receive`: bytes from the peer, with the `events` they lead to, or the `error` that ends the case;
//! * a verb of the machine: `open`, `sasl`, `begin`, `attach`, `accept`, `refuse`, `send`, `settle`, `settle_sent`,
//!   `credit`, `drain`, `drained`, `detach`, `end`, `close`, `tick`. Links are meant by the order in which they came up;
//!   `fails` is the error of the verb.
//!
//! `sends` is what the machine appends to its output, asked or not.
//!
//! Unless a case says `"auto": false`, a server agrees to everything: it accepts SASL, opens as `hub`, accepts links with a
//! window of 10 and messages up to 1000 bytes, and accepts messages.
//!
//! Every case runs twice: with each `receive` in one piece, and byte by byte.

use std::path::Path;
use std::sync::Arc;

use holdfast_amqp::connection::Outgoing;
use holdfast_amqp::message::Body;
use holdfast_amqp::performatives::{
    Attach, DeliveryState, Error, Open, ReceiverSettleMode, Role, SaslCode, SaslInit,
};
use holdfast_amqp::{Config, Connection, Event, LinkId, Message, SessionId};
use serde::Deserialize;
use serde_json::Value as Json;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    reason: String,
    role: Side,
    #[serde(default = "yes")]
    auto: bool,
    #[serde(default)]
    sasl: bool,
    channel_max: Option<u16>,
    max_frame_size: Option<u32>,
    incoming_window: Option<u32>,
    max_reassembly: Option<u32>,
    steps: Vec<Json>,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Side {
    Server,
    Client,
}

fn yes() -> bool {
    true
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

/// The same the other way, so that a difference can be read.
fn show_bytes(bytes: &[u8]) -> String {
    let mut words = Vec::new();
    let mut rest = bytes;
    while let Some(first) = rest.first() {
        let plain = |byte: &u8| (byte.is_ascii_graphic() || *byte == b' ') && *byte != b'\'';
        let len = rest.iter().take_while(|byte| plain(byte)).count();
        if len >= 4 {
            words.push(format!("'{}'", String::from_utf8_lossy(&rest[..len])));
            rest = &rest[len..];
        } else {
            words.push(format!("{first:02x}"));
            rest = &rest[1..];
        }
    }
    words.join(" ")
}

struct Run {
    connection: Connection,
    auto: bool,
    input: Vec<u8>,
    out: Vec<u8>,
    now: u64,
    links: Vec<LinkId>,
    sessions: Vec<SessionId>,
}

impl Run {
    fn new(case: &Case) -> Self {
        let defaults = Config::default();
        let config = Arc::new(Config {
            channel_max: case.channel_max.unwrap_or(defaults.channel_max),
            max_frame_size: case.max_frame_size.unwrap_or(defaults.max_frame_size),
            incoming_window: case.incoming_window.unwrap_or(defaults.incoming_window),
            max_reassembly: case.max_reassembly.unwrap_or(defaults.max_reassembly),
            ..defaults
        });
        let mut out = Vec::new();
        let connection = match case.role {
            Side::Server => Connection::server(config, 0),
            Side::Client => Connection::client(config, case.sasl, 0, &mut out),
        };
        Self {
            connection,
            auto: case.auto && case.role == Side::Server,
            input: Vec::new(),
            out,
            now: 0,
            links: Vec::new(),
            sessions: Vec::new(),
        }
    }

    /// Feeds bytes; returns the events, and the error that ended it.
    fn receive(&mut self, bytes: &[u8], piece: usize) -> (Vec<String>, Option<String>) {
        let mut events = Vec::new();
        // No bytes at all: what was held back is looked at again.
        let pieces: Vec<&[u8]> = if bytes.is_empty() {
            vec![bytes]
        } else {
            bytes.chunks(piece).collect()
        };
        for piece in pieces {
            self.input.extend_from_slice(piece);
            let input = std::mem::take(&mut self.input);
            let mut rest = &input[..];
            loop {
                match self.connection.next_event(&mut rest, self.now, &mut self.out) {
                    Ok(Some(event)) => {
                        self.note(&event);
                        events.push(self.show(&event));
                        if self.auto {
                            self.agree(event);
                        }
                    }
                    Ok(None) => break,
                    Err(error) => return (events, Some(format!("{error:?}"))),
                }
            }
            self.input = rest.to_vec();
        }
        (events, None)
    }

    fn note(&mut self, event: &Event<'_>) {
        match event {
            Event::Attach { link, .. } => self.links.push(*link),
            Event::Begin { session, .. } if !self.sessions.contains(session) => self.sessions.push(*session),
            _ => {}
        }
    }

    fn agree(&mut self, event: Event<'_>) {
        let out = &mut self.out;
        match event {
            Event::SaslInit(_) | Event::SaslResponse(_) => self.connection.sasl_outcome(SaslCode::Ok, out),
            Event::Open(_) => self.connection.open(&opening("hub"), out),
            Event::Attach { link, attach } => accept(&mut self.connection, link, &attach.agree(), out),
            Event::Transfer { link, delivery } if !delivery.settled => {
                let accepted = DeliveryState::Accepted;
                self.connection
                    .settle(link.session(), [delivery.id], &accepted, true, out);
            }
            _ => {}
        }
    }

    fn step(&mut self, step: &Json, piece: usize) {
        if let Some(bytes) = step["receive"].as_str() {
            let (events, error) = self.receive(&parse_bytes(bytes), piece);
            let expected: Vec<&str> = step["events"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Json::as_str)
                .collect();
            assert_eq!(error.as_deref(), step["error"].as_str());
            assert_eq!(events, expected);
        } else {
            let failure = self.connection_verb(step).or_else(|| self.link_verb(step));
            let failure = failure.unwrap_or_else(|| panic!("no such step"));
            assert_eq!(failure.as_deref(), step["fails"].as_str());
        }
        let sends = parse_bytes(step["sends"].as_str().unwrap_or_default());
        let sent = std::mem::take(&mut self.out);
        assert!(
            sent == sends,
            "sent {}\n instead {}",
            show_bytes(&sent),
            show_bytes(&sends)
        );
    }

    /// Returns the error of the verb, `None` if the step is none of these.
    fn connection_verb(&mut self, step: &Json) -> Option<Option<String>> {
        let out = &mut self.out;
        if let Some(container) = step["open"].as_str() {
            self.connection.open(&opening(container), out);
        } else if let Some(mechanism) = step["sasl"].as_str() {
            let response = step["response"].as_str().map(parse_bytes);
            let init = SaslInit {
                mechanism,
                initial_response: response.as_deref(),
                hostname: None,
            };
            self.connection.sasl_init(&init, out);
        } else if let Some(code) = step["sasl"].as_u64() {
            let code = if code == 0 { SaslCode::Ok } else { SaslCode::Auth };
            self.connection.sasl_outcome(code, out);
        } else if step["begin"].as_bool() == Some(true) {
            match self.connection.begin(out) {
                Ok(session) => self.sessions.push(session),
                Err(error) => return Some(Some(format!("{error:?}"))),
            }
        } else if let Some(name) = step["attach"].as_str() {
            let address = text(step, "address");
            let attach = match text(step, "role") {
                "sender" => Attach::sender(name, address),
                _ => Attach::receiver(name, address),
            };
            let session = self.sessions[number(step, "session") as usize];
            let window = number(step, "window") as u32;
            match self.connection.attach(session, &attach, window, out) {
                Ok(link) => self.links.push(link),
                Err(error) => return Some(Some(format!("{error:?}"))),
            }
        } else if let Some(session) = step["end"].as_u64() {
            let session = self.sessions[session as usize];
            self.connection.end(session, error(step).as_ref(), out);
        } else if step["close"].as_bool() == Some(true) {
            self.connection.close(error(step).as_ref(), out);
        } else if let Some(now) = step["tick"].as_u64() {
            self.now = now;
            let error = self.connection.tick(now, out).err();
            return Some(error.map(|error| format!("{error:?}")));
        } else {
            return None;
        }
        Some(None)
    }

    fn link_verb(&mut self, step: &Json) -> Option<Option<String>> {
        let verb = [
            "accept",
            "refuse",
            "send",
            "settle",
            "settle_sent",
            "credit",
            "drain",
            "drained",
            "detach",
        ];
        let verb = verb.into_iter().find(|verb| !step[*verb].is_null())?;
        let link = self.links[step[verb].as_u64().expect("the number of a link") as usize];
        let out = &mut self.out;
        let connection = &mut self.connection;
        match verb {
            "accept" => accept(connection, link, &Attach::new("", Role::Sender), out),
            "refuse" => connection.refuse_link(link, &error(step).expect("a condition"), out),
            "send" => {
                let outgoing = Outgoing {
                    tag: text(step, "tag").as_bytes(),
                    settled: step["settled"].as_bool().unwrap_or(false),
                    token: number(step, "token"),
                    ..Outgoing::default()
                };
                let payload = parse_bytes(text(step, "payload"));
                let error = connection.send(link, &outgoing, &payload, out).err();
                return Some(error.map(|error| format!("{error:?}")));
            }
            "settle" => {
                let ids = step["ids"].as_array().expect("ids").iter();
                let ids = ids.map(|id| id.as_u64().expect("an id") as u32);
                let settled = step["settled"].as_bool().unwrap_or(true);
                connection.settle(link.session(), ids, &state(step), settled, out);
            }
            "settle_sent" => connection.settle_sent(link, number(step, "id") as u32, Some(&state(step)), out),
            "credit" => connection.set_credit(link, number(step, "of") as u32, out),
            "drain" => connection.drain(link, number(step, "of") as u32, out),
            "drained" => connection.drained(link, out),
            _ => connection.detach(link, error(step).as_ref(), out),
        }
        Some(None)
    }

    fn number_of(&self, link: LinkId) -> String {
        match self.links.iter().position(|other| *other == link) {
            Some(number) => format!("#{number}"),
            None => "#?".to_owned(),
        }
    }

    fn show(&self, event: &Event<'_>) -> String {
        match event {
            Event::Open(open) => show_open(open),
            Event::Begin { session, begin } => format!(
                "begin {} window={} handles={}",
                session.channel(),
                begin.incoming_window,
                begin.handle_max
            ),
            Event::Attach { link, attach } => {
                format!("attach {} {}", self.number_of(*link), show_attach(attach))
            }
            Event::Attached { link, attach } => {
                format!("attached {} {}", self.number_of(*link), show_attach(attach))
            }
            Event::Credit { link, credit, drain } => {
                format!(
                    "credit {} {credit} drain={}",
                    self.number_of(*link),
                    u8::from(*drain)
                )
            }
            Event::WindowOpen { .. } => "window-open".to_owned(),
            Event::Drained { link } => format!("drained {}", self.number_of(*link)),
            Event::Transfer { link, delivery } => format!(
                "transfer {} id={} settled={} format={:#x} {}",
                self.number_of(*link),
                delivery.id,
                u8::from(delivery.settled),
                delivery.message_format,
                show_message(&delivery.payload)
            ),
            Event::Outcome {
                token,
                state,
                settled,
                ..
            } => format!(
                "outcome token={token} {} settled={}",
                state.map_or("none".to_owned(), |state| format!("{state:?}")),
                u8::from(*settled)
            ),
            Event::Settled {
                delivery_id, state, ..
            } => format!("settled {delivery_id} {state:?}"),
            Event::Detach { link, closed, error } => format!(
                "detach {} closed={}{}",
                self.number_of(*link),
                u8::from(*closed),
                show_error(*error)
            ),
            Event::LinkFailed { link, error } => format!("link-failed {} {error:?}", self.number_of(*link)),
            Event::End { error, .. } => format!("end{}", show_error(*error)),
            Event::Close { error } => format!("close{}", show_error(*error)),
            Event::SaslInit(init) => format!(
                "sasl {} {}",
                init.mechanism,
                init.initial_response.map_or("null".to_owned(), show_bytes)
            ),
            Event::SaslMechanisms(offer) => format!(
                "mechanisms {}",
                offer.mechanisms.iter().collect::<Vec<_>>().join(" ")
            ),
            other => format!("{other:?}"),
        }
    }
}

fn opening(container_id: &str) -> Open<'_> {
    Open {
        container_id,
        ..Open::default()
    }
}

fn accept(connection: &mut Connection, link: LinkId, answer: &Attach<'_>, out: &mut Vec<u8>) {
    let answer = Attach {
        max_message_size: Some(1_000),
        ..*answer
    };
    connection.accept_link(link, &answer, 10, out);
}

fn text<'a>(step: &'a Json, key: &str) -> &'a str {
    step[key].as_str().unwrap_or_default()
}

fn number(step: &Json, key: &str) -> u64 {
    step[key].as_u64().unwrap_or(0)
}

fn error(step: &Json) -> Option<Error<'_>> {
    step["condition"]
        .as_str()
        .map(|condition| Error::new(condition, text(step, "description")))
}

fn state(step: &Json) -> DeliveryState<'_> {
    match text(step, "state") {
        "released" => DeliveryState::Released,
        "rejected" => DeliveryState::Rejected(error(step)),
        _ => DeliveryState::Accepted,
    }
}

fn show_error(error: Option<Error<'_>>) -> String {
    error.map_or(String::new(), |error| {
        format!(" {}: {}", error.condition, error.description.unwrap_or("none"))
    })
}

fn show_open(open: &Open<'_>) -> String {
    let mut text = format!(
        "open {} frame={} channels={}",
        open.container_id, open.max_frame_size, open.channel_max
    );
    if let Some(hostname) = open.hostname {
        text += &format!(" host={hostname}");
    }
    if let Some(idle) = open.idle_time_out {
        text += &format!(" idle={idle}");
    }
    text
}

fn show_attach(attach: &Attach<'_>) -> String {
    let source = attach.source.map(|source| source.address.unwrap_or("-"));
    let target = attach.target.map(|target| target.address.unwrap_or("-"));
    let mut text = format!(
        "{} {:?} {} -> {} {:?}",
        attach.name,
        attach.role,
        source.unwrap_or("none"),
        target.unwrap_or("none"),
        attach.snd_settle_mode
    );
    if attach.rcv_settle_mode == ReceiverSettleMode::Second {
        text += " second";
    }
    if let Some(selector) = attach.source.and_then(|source| source.selector()) {
        text += &format!(" where {selector}");
    }
    if let Some(properties) = attach.properties {
        text += &format!(" {properties:?}");
    }
    text
}

fn show_message(payload: &[u8]) -> String {
    let Ok(message) = Message::decode(payload) else {
        return show_bytes(payload);
    };
    let mut parts = Vec::new();
    if let Some(id) = message.properties.message_id {
        parts.push(format!("{id:?}"));
    }
    if let Some(map) = message.message_annotations {
        parts.push(format!("{map:?}"));
    }
    if let Some(map) = message.application_properties {
        parts.push(format!("{map:?}"));
    }
    parts.push(match message.body {
        Body::Empty => "empty".to_owned(),
        Body::Data(data) => data.iter().map(show_bytes).collect::<Vec<_>>().join(" | "),
        Body::Value(value) => format!("{value:?}"),
        other => format!("{other:?}"),
    });
    parts.join(" ")
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
fn opening_and_sasl() {
    run_file("amqp-opening.json");
}

#[test]
fn links() {
    run_file("amqp-links.json");
}

#[test]
fn recorded() {
    run_file("amqp-recorded.json");
}

#[test]
fn bad_input() {
    run_file("amqp-bad-input.json");
}

#[test]
fn client() {
    run_file("amqp-client.json");
}

/// A transcript file without a test above would never run.
#[test]
fn every_file_is_run() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/wire");
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .expect("tests/wire")
        .map(|entry| entry.expect("entry").file_name().into_string().expect("utf-8"))
        .filter(|name| name.starts_with("amqp-") && name != "amqp-vectors.json")
        .collect();
    names.sort_unstable();
    let run = ["bad-input", "client", "links", "opening", "recorded"];
    assert_eq!(names, run.map(|name| format!("amqp-{name}.json")));
}
