//! What the fuzz targets do, as ordinary functions: `tests/fuzz_bodies.rs` runs them with a stable compiler too.

use std::sync::Arc;

use holdfast_amqp::connection::Outgoing;
use holdfast_amqp::frame::{self, FrameType};
use holdfast_amqp::message::Body;
use holdfast_amqp::performatives::{
    Attach, DeliveryState, Error, Open, Performative, Role, Sasl, SaslCode, SaslInit, condition,
};
use holdfast_amqp::types::encode_value;
use holdfast_amqp::{Config, Connection, Event, LinkId, Message, Value};

/// Small enough that random numbers hit them.
const LIMIT: u32 = 4_096;

fn config() -> Arc<Config> {
    Arc::new(Config {
        max_frame_size: LIMIT,
        channel_max: 7,
        handle_max: 7,
        max_links: 12,
        incoming_window: 9,
        max_unsettled: 6,
        max_received: 6,
        max_reassembly: 300,
        ..Config::default()
    })
}

/// Any bytes as a value: what is read is written so that it reads the same. Values are compared by their bytes, because
/// some floats do not equal themselves.
pub(crate) fn value(data: &[u8]) {
    let Ok(value) = Value::decode(data) else { return };
    let _ = format!("{value:?}");
    let (mut first, mut second) = (Vec::new(), Vec::new());
    encode_value(&mut first, &value);
    assert!(first.len() <= data.len(), "written in its shortest form");
    encode_value(
        &mut second,
        &Value::decode(&first).expect("written values are read"),
    );
    assert_eq!(first, second);
}

/// Any stream of frames.
pub(crate) fn performatives(data: &[u8]) {
    let mut rest = data;
    while let Ok(Some((frame, used))) = frame::decode(rest, LIMIT) {
        assert!(used >= 8 && used <= rest.len() && used <= LIMIT as usize);
        assert_eq!(
            frame::decode(&rest[..used - 1], LIMIT),
            Ok(None),
            "a part is never a frame"
        );
        rest = &rest[used..];
        match frame.frame_type {
            FrameType::Amqp => performative(frame.body),
            FrameType::Sasl => {
                if let Ok(sasl) = Sasl::decode(frame.body) {
                    let mut bytes = Vec::new();
                    sasl.encode(&mut bytes);
                    assert_eq!(Sasl::decode(&bytes), Ok(sasl));
                }
            }
        }
    }
}

fn performative(body: &[u8]) {
    let Ok((performative, payload)) = Performative::decode(body) else {
        return;
    };
    assert!(body.ends_with(payload));
    let _ = format!("{performative:?}");
    let (mut first, mut second) = (Vec::new(), Vec::new());
    performative.encode(&mut first);
    let (again, rest) = Performative::decode(&first).expect("written performatives are read");
    assert_eq!(rest, b"");
    again.encode(&mut second);
    assert_eq!(first, second);
}

/// Any bytes as a message.
pub(crate) fn message(data: &[u8]) {
    let Ok(message) = Message::decode(data) else {
        return;
    };
    let _ = format!("{message:?}");
    if let Body::Data(sections) = message.body {
        assert_eq!(sections.len(), sections.iter().count());
        assert!(sections.iter().map(<[u8]>::len).sum::<usize>() < data.len());
    }
    let (mut first, mut second) = (Vec::new(), Vec::new());
    message.encode(&mut first);
    Message::decode(&first)
        .expect("written messages are read")
        .encode(&mut second);
    assert_eq!(first, second);
}

/// One end that agrees to everything, sends when it may, and settles in steps taken from the data.
struct End {
    connection: Connection,
    out: Vec<u8>,
    links: Vec<(LinkId, Role)>,
    received: Vec<(LinkId, u32)>,
    sent: Vec<u64>,
    token: u64,
}

impl End {
    fn run(mut self, data: &[u8]) {
        let mut rest = data;
        let mut now = 0;
        loop {
            let before = rest.len();
            let choice = rest.last().copied().unwrap_or(0) ^ (before as u8);
            now += u64::from(choice);
            let event = match self.connection.next_event(&mut rest, now, &mut self.out) {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(error) => {
                    assert!(self.connection.is_closed());
                    let _ = (error.to_string(), error.condition());
                    break;
                }
            };
            self.on(event, choice);
            if self.connection.tick(now, &mut self.out).is_err() {
                break;
            }
            self.act(choice);
            self.check();
        }
        self.frames_are_well_formed();
    }

    fn on(&mut self, event: Event<'_>, choice: u8) {
        let (connection, out) = (&mut self.connection, &mut self.out);
        match event {
            Event::SaslInit(_) if choice.is_multiple_of(3) => connection.sasl_challenge(b"?", out),
            Event::SaslInit(_) | Event::SaslResponse(_) => connection.sasl_outcome(SaslCode::Ok, out),
            Event::SaslMechanisms(_) => {
                let init = SaslInit {
                    mechanism: "ANONYMOUS",
                    initial_response: None,
                    hostname: None,
                };
                connection.sasl_init(&init, out);
            }
            Event::SaslChallenge(_) => connection.sasl_response(b"!", out),
            Event::Open(_) => connection.open(&Open::default(), out),
            Event::Attach { link, .. } if choice.is_multiple_of(8) => {
                let error = Error::new(condition::UNAUTHORIZED_ACCESS, "no");
                connection.refuse_link(link, &error, out);
            }
            Event::Attach { link, attach } => {
                let answer = Attach {
                    max_message_size: Some(200),
                    ..attach.agree()
                };
                connection.accept_link(link, &answer, u32::from(choice % 5), out);
                self.links.push((link, answer.role));
            }
            Event::Transfer { link, delivery } => {
                assert!(self.links.contains(&(link, Role::Receiver)));
                assert!(delivery.payload.len() <= 4_096);
                if !delivery.settled {
                    self.received.push((link, delivery.id));
                }
            }
            Event::Outcome {
                link,
                delivery_id,
                token,
                settled,
                ..
            } => {
                assert!(self.sent.contains(&token), "an outcome of nothing");
                if !settled && choice.is_multiple_of(2) {
                    connection.settle_sent(link, delivery_id, Some(&DeliveryState::Accepted), out);
                    self.sent.retain(|other| *other != token);
                } else if settled {
                    self.sent.retain(|other| *other != token);
                }
            }
            Event::Settled {
                link, delivery_id, ..
            } => self.received.retain(|entry| *entry != (link, delivery_id)),
            Event::Detach { link, .. } | Event::LinkFailed { link, .. } => {
                self.links.retain(|(other, _)| *other != link);
                self.received.retain(|(other, _)| *other != link);
            }
            Event::End { session, .. } => {
                self.links.retain(|(link, _)| link.session() != session);
                self.received.retain(|(link, _)| link.session() != session);
            }
            Event::Credit {
                link, drain: true, ..
            } => connection.drained(link, out),
            _ => {}
        }
    }

    fn act(&mut self, choice: u8) {
        let (connection, out) = (&mut self.connection, &mut self.out);
        for (link, role) in &self.links {
            if *role == Role::Sender {
                self.token += 1;
                let outgoing = Outgoing {
                    tag: b"tag",
                    token: self.token,
                    settled: choice % 4 == 1,
                    ..Outgoing::default()
                };
                let payload = vec![choice; usize::from(choice) * 8];
                let before = out.len();
                let can = connection.can_send(*link);
                match connection.send(*link, &outgoing, &payload, out) {
                    Ok(_) => {
                        assert!(can > 0);
                        if !outgoing.settled {
                            self.sent.push(self.token);
                        }
                    }
                    Err(_) => assert_eq!(out.len(), before),
                }
            }
        }
        if choice.is_multiple_of(3)
            && let Some((link, id)) = self.received.pop()
        {
            let told = connection.settle(link.session(), [id], &DeliveryState::Accepted, true, out);
            assert_eq!(told, 1, "known until it is settled");
        }
        if choice == 77
            && let Some((link, _)) = self.links.pop()
        {
            for (_, token) in connection.in_flight_on(link) {
                self.sent.retain(|other| *other != token);
            }
            connection.detach(link, None, out);
            self.received.retain(|(other, _)| *other != link);
        }
        if choice == 78
            && let Some((link, _)) = self.links.first().copied()
        {
            let session = link.session();
            let lost = connection
                .in_flight()
                .filter(|(link, ..)| link.session() == session);
            for (_, _, token) in lost {
                self.sent.retain(|other| *other != token);
            }
            connection.end(session, None, out);
            self.links.retain(|(link, _)| link.session() != session);
            self.received.retain(|(link, _)| link.session() != session);
        }
    }

    fn check(&self) {
        if self.connection.is_open() {
            let mut listed: Vec<_> = self.connection.in_flight().map(|(.., token)| token).collect();
            listed.sort_unstable();
            let mut sent = self.sent.clone();
            sent.sort_unstable();
            assert_eq!(listed, sent);
            assert!(self.links.len() <= 12);
        }
    }

    /// Whatever came, what went out can be read.
    fn frames_are_well_formed(&self) {
        let mut rest = &self.out[..];
        while rest.starts_with(b"AMQP") {
            rest = &rest[8..];
            while !rest.starts_with(b"AMQP") {
                let Some((frame, used)) = frame::decode(rest, LIMIT).expect("well-formed frames") else {
                    break;
                };
                rest = &rest[used..];
                match frame.frame_type {
                    FrameType::Amqp if !frame.body.is_empty() => {
                        Performative::decode(frame.body).expect("a performative");
                    }
                    FrameType::Amqp => {}
                    FrameType::Sasl => drop(Sasl::decode(frame.body).expect("a sasl frame")),
                }
            }
        }
        assert_eq!(rest, b"");
    }

    fn new(connection: Connection, out: Vec<u8>) -> Self {
        Self {
            connection,
            out,
            links: Vec::new(),
            received: Vec::new(),
            sent: Vec::new(),
            token: 0,
        }
    }
}

/// Any stream to a server.
pub(crate) fn server_connection(data: &[u8]) {
    End::new(Connection::server(config(), 0), Vec::new()).run(data);
}

/// Any stream to a client that has begun a session and attached two links. The first byte says whether it asked for SASL.
pub(crate) fn client_connection(data: &[u8]) {
    let (first, data) = data.split_first().unwrap_or((&0, &[]));
    let mut out = Vec::new();
    let sasl = first % 2 == 1;
    let mut connection = Connection::client(config(), sasl, 0, &mut out);
    let mut links = Vec::new();
    if !sasl {
        connection.open(&Open::default(), &mut out);
        let session = connection.begin(&mut out).expect("begun");
        for attach in [Attach::sender("s", "a"), Attach::receiver("r", "a")] {
            let link = connection
                .attach(session, &attach, 3, &mut out)
                .expect("attached");
            links.push((link, attach.role));
        }
    }
    let mut end = End::new(connection, out);
    end.links = links;
    end.run(data);
}
