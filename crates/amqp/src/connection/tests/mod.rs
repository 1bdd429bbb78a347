//! Rules of the machine, one test each. A server is fed frames made by hand; what it answers is decoded again.

mod deliveries;
mod links;
mod opening;

use std::sync::Arc;

use super::{Config, Connection, Event, LinkId, Outgoing, SessionId};
use crate::error::{ConnectionError, LinkError, OpenError, SendError};
use crate::frame::{self, FrameType, Protocol};
use crate::performatives::{
    Attach, Begin, Close, DeliveryState, Detach, Disposition, End, Error, Flow, Open, Performative, Role,
    Sasl, SaslCode, SaslInit, Transfer, condition,
};

/// An event without its borrow.
#[derive(Debug, PartialEq)]
enum Seen {
    Open,
    Begin(SessionId),
    Attach(LinkId),
    Attached(LinkId),
    Credit(LinkId, u32, bool),
    WindowOpen,
    Drained(LinkId),
    Transfer(LinkId, u32, Vec<u8>),
    Outcome(u64, Option<String>, bool),
    Settled(u32),
    Detach(LinkId, Option<String>),
    LinkFailed(LinkId, LinkError),
    End(SessionId),
    Close(Option<String>),
    Sasl(String),
}

fn seen(event: Event<'_>) -> Seen {
    let condition = |error: Option<Error<'_>>| error.map(|error| error.condition.to_owned());
    match event {
        Event::Open(_) => Seen::Open,
        Event::Begin { session, .. } => Seen::Begin(session),
        Event::Attach { link, .. } => Seen::Attach(link),
        Event::Attached { link, .. } => Seen::Attached(link),
        Event::Credit { link, credit, drain } => Seen::Credit(link, credit, drain),
        Event::WindowOpen { .. } => Seen::WindowOpen,
        Event::Drained { link } => Seen::Drained(link),
        Event::Transfer { link, delivery } => {
            Seen::Transfer(link, delivery.id, delivery.payload.into_owned())
        }
        Event::Outcome {
            token,
            state,
            settled,
            ..
        } => Seen::Outcome(token, state.map(|state| format!("{state:?}")), settled),
        Event::Settled { delivery_id, .. } => Seen::Settled(delivery_id),
        Event::Detach { link, error, .. } => Seen::Detach(link, condition(error)),
        Event::LinkFailed { link, error } => Seen::LinkFailed(link, error),
        Event::End { session, .. } => Seen::End(session),
        Event::Close { error } => Seen::Close(condition(error)),
        other => Seen::Sasl(format!("{other:?}")),
    }
}

struct Bench {
    connection: Connection,
    out: Vec<u8>,
    now: u64,
}

fn amqp(channel: u16, performative: Performative<'_>, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode(&mut bytes, FrameType::Amqp, channel, |out| {
        performative.encode(out);
        out.extend_from_slice(payload);
    });
    bytes
}

fn sasl(body: &Sasl<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode(&mut bytes, FrameType::Sasl, 0, |out| body.encode(out));
    bytes
}

fn begin() -> Performative<'static> {
    Performative::Begin(Begin {
        incoming_window: 100,
        outgoing_window: 100,
        ..Begin::default()
    })
}

fn sender(handle: u32, name: &str) -> Performative<'_> {
    Performative::Attach(Box::new(Attach {
        handle,
        initial_delivery_count: Some(0),
        ..Attach::sender(name, "to")
    }))
}

fn receiver(handle: u32, name: &str) -> Performative<'_> {
    Performative::Attach(Box::new(Attach {
        handle,
        ..Attach::receiver(name, "from")
    }))
}

fn credit(handle: u32, count: u32, credit: u32) -> Flow<'static> {
    Flow {
        next_incoming_id: Some(0),
        incoming_window: 100,
        handle: Some(handle),
        delivery_count: Some(count),
        link_credit: Some(credit),
        ..Flow::default()
    }
}

fn transfer(handle: u32, id: u32) -> Transfer<'static> {
    Transfer {
        handle,
        delivery_id: Some(id),
        delivery_tag: Some(b"t"),
        message_format: Some(0),
        ..Transfer::default()
    }
}

impl Bench {
    fn server(config: Config) -> Self {
        Self {
            connection: Connection::server(Arc::new(config), 0),
            out: Vec::new(),
            now: 0,
        }
    }

    /// A server with a session open on the client's channel 0.
    fn open() -> (Self, SessionId) {
        Self::open_with(Config::default(), Open::default())
    }

    fn open_with(config: Config, open: Open<'_>) -> (Self, SessionId) {
        let mut bench = Self::server(config);
        bench.feed(&Protocol::Amqp.header());
        assert_eq!(
            bench.feed(&amqp(0, Performative::Open(Box::new(open)), b"")),
            [Seen::Open]
        );
        bench.connection.open(
            &Open {
                container_id: "hub",
                ..Open::default()
            },
            &mut bench.out,
        );
        let events = bench.feed(&amqp(0, begin(), b""));
        let [Seen::Begin(session)] = events[..] else {
            panic!("{events:?}")
        };
        bench.out.clear();
        (bench, session)
    }

    fn attached(&mut self, attach: Performative<'_>, window: u32) -> LinkId {
        let Performative::Attach(asked) = attach.clone() else {
            panic!("not an attach")
        };
        let events = self.feed(&amqp(0, attach, b""));
        let [Seen::Attach(link)] = events[..] else {
            panic!("{events:?}")
        };
        let answer = Attach {
            max_message_size: Some(1_000),
            ..asked.agree()
        };
        self.connection.accept_link(link, &answer, window, &mut self.out);
        self.out.clear();
        link
    }

    fn feed(&mut self, bytes: &[u8]) -> Vec<Seen> {
        let (events, error) = self.feed_all(bytes);
        assert_eq!(error, None);
        events
    }

    fn send(&mut self, performative: Performative<'_>) -> Vec<Seen> {
        self.feed(&amqp(0, performative, b""))
    }

    fn feed_all(&mut self, bytes: &[u8]) -> (Vec<Seen>, Option<ConnectionError>) {
        let mut rest = bytes;
        let mut events = Vec::new();
        loop {
            match self.connection.next_event(&mut rest, self.now, &mut self.out) {
                Ok(Some(event)) => events.push(seen(event)),
                Ok(None) => return (events, None),
                Err(error) => return (events, Some(error)),
            }
        }
    }

    /// The error that feeding this leads to, and the condition the peer is told.
    fn broken(&mut self, bytes: &[u8]) -> (ConnectionError, String) {
        self.out.clear();
        let (events, error) = self.feed_all(bytes);
        assert_eq!(events, []);
        assert!(self.connection.is_closed());
        let told = self.told();
        let close = told.last().map(|(_, told)| told.clone());
        (error.expect("an error"), close.unwrap_or_default())
    }

    /// Performatives written since the last call.
    fn told(&mut self) -> Vec<(u16, String)> {
        let out = std::mem::take(&mut self.out);
        let mut rest = &out[..];
        let mut told = Vec::new();
        while let Some((frame, used)) = frame::decode(rest, u32::MAX).expect("frames") {
            rest = &rest[used..];
            if frame.body.is_empty() {
                told.push((frame.channel, "heartbeat".to_owned()));
                continue;
            }
            let (performative, payload) = Performative::decode(frame.body).expect("a performative");
            let text = match performative {
                Performative::Attach(attach) => format!(
                    "attach {} {:?} {}",
                    attach.name,
                    attach.role,
                    if attach.source.is_some() {
                        "agreed"
                    } else {
                        "refused"
                    }
                ),
                Performative::Begin(begin) => format!("begin {:?}", begin.remote_channel),
                Performative::Open(_) => "open".to_owned(),
                Performative::Flow(flow) => format!(
                    "flow {:?} count={:?} credit={:?} drain={}",
                    flow.handle, flow.delivery_count, flow.link_credit, flow.drain
                ),
                Performative::Transfer(transfer) => format!(
                    "transfer {} id={:?} more={} {}",
                    transfer.handle,
                    transfer.delivery_id,
                    transfer.more,
                    payload.len()
                ),
                Performative::Disposition(disposition) => format!(
                    "{:?} {}..{:?} settled={} {:?}",
                    disposition.role,
                    disposition.first,
                    disposition.last,
                    disposition.settled,
                    disposition.state
                ),
                Performative::Detach(Detach { error, .. }) => format!("detach {}", name(error)),
                Performative::End(End { error }) => format!("end {}", name(error)),
                Performative::Close(Close { error }) => format!("close {}", name(error)),
            };
            told.push((frame.channel, text));
        }
        assert_eq!(rest, b"");
        told
    }

    fn told_0(&mut self) -> Vec<String> {
        self.told().into_iter().map(|(_, text)| text).collect()
    }
}

fn name(error: Option<Error<'_>>) -> &str {
    error.map_or("in order", |error| error.condition)
}

fn outgoing(tag: &[u8], token: u64) -> Outgoing<'_> {
    Outgoing {
        tag,
        token,
        ..Outgoing::default()
    }
}
