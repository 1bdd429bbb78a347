//! An AMQP head on a loopback port, and two clients: one that keeps the rules, made of our own client role, and one that
//! sends whatever bytes a test wants sent.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use holdfast_amqp::connection::Outgoing;
use holdfast_amqp::frame::{self, FrameType, Protocol};
use holdfast_amqp::message::{MessageId, Properties, Writer};
use holdfast_amqp::performatives::{
    Attach, Begin, DeliveryState, Detach, End, Open, Performative, Role, Sasl, SaslCode, SaslInit,
};
use holdfast_amqp::types::Value;
use holdfast_amqp::{Config, Connection, Event, LinkId, Message, SessionId};
use holdfast_heads::amqp::{AmqpConfig, AmqpHead};
use holdfast_model::Timestamp;
use holdfast_ports::clock::ManualClock;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::amqp_files::FakeFiles;
use crate::amqp_services::FakeServices;
use crate::client::{PATIENCE, metrics};
use crate::gateway::FakeGateway;

/// The hub's time when a test begins.
pub(crate) const START: i64 = 1_800_000_000;

/// A head on a loopback port. Its clock stands until a test moves it.
pub(crate) struct Hub {
    pub(crate) gateway: Arc<FakeGateway>,
    pub(crate) services: Arc<FakeServices>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) head: AmqpHead,
    pub(crate) address: SocketAddr,
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) served: tokio::task::JoinHandle<()>,
}

/// The defaults, with time-outs looked at often enough for tests.
pub(crate) fn quick() -> AmqpConfig {
    AmqpConfig {
        sweep_interval: Duration::from_millis(5),
        ..AmqpConfig::default()
    }
}

/// The same with another machine.
pub(crate) fn with_machine(machine: Config) -> AmqpConfig {
    AmqpConfig { machine, ..quick() }
}

impl Hub {
    pub(crate) fn start() -> Self {
        Self::start_with(quick())
    }

    pub(crate) fn start_with(config: AmqpConfig) -> Self {
        Self::start_with_files(config, Arc::default())
    }

    pub(crate) fn start_with_files(config: AmqpConfig, files: Arc<FakeFiles>) -> Self {
        let clock = Arc::new(ManualClock::at(Timestamp::from_seconds(START)));
        let gateway = FakeGateway::with_clock(clock.clone());
        let services = FakeServices::with_clock(clock.clone());
        let head = AmqpHead::new(
            config,
            gateway.clone(),
            services.clone(),
            clock.clone(),
            metrics(),
        )
        .with_files(files);
        let listener =
            holdfast_heads::listener::bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (stop, shutdown) = watch::channel(false);
        let served = tokio::spawn({
            let head = head.clone();
            async move { head.serve(listener, None, shutdown).await }
        });
        Hub {
            gateway,
            services,
            clock,
            head,
            address,
            stop,
            served,
        }
    }

    pub(crate) async fn socket(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("the hub listens")
    }

    /// A client that has opened its connection, without SASL.
    pub(crate) async fn dial(&self) -> Peer<TcpStream> {
        self.dial_with(Config::default()).await
    }

    pub(crate) async fn dial_with(&self, config: Config) -> Peer<TcpStream> {
        let mut peer = Peer::new(self.socket().await, config, false);
        peer.open().await;
        peer
    }

    /// A client with a session and these tokens put.
    pub(crate) async fn log_in(&self, tokens: &[&str]) -> Peer<TcpStream> {
        self.log_in_with(Config::default(), tokens).await
    }

    pub(crate) async fn log_in_with(&self, config: Config, tokens: &[&str]) -> Peer<TcpStream> {
        let mut peer = self.dial_with(config).await;
        for token in tokens {
            assert_eq!(peer.put_token(token).await, 200, "{token}");
        }
        peer
    }

    pub(crate) async fn raw(&self) -> Raw {
        Raw {
            stream: self.socket().await,
            input: Vec::new(),
        }
    }
}

/// What the hub said, owned.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Got {
    Open {
        max_frame_size: u32,
        channel_max: u16,
        idle_time_out: Option<u32>,
    },
    Begin(SessionId),
    Attached {
        link: LinkId,
        agreed: bool,
        max_message_size: Option<u64>,
    },
    Credit(LinkId, u32),
    Window,
    Drained(LinkId),
    Transfer {
        link: LinkId,
        id: u32,
        settled: bool,
        tag: Vec<u8>,
        message: Vec<u8>,
    },
    /// `token`, name of the state with its condition, settled.
    Outcome(u64, String, bool),
    Settled(u32, String),
    Detach(LinkId, String),
    LinkFailed(LinkId),
    End(String),
    Close(String),
    Sasl(SaslCode),
    Gone,
}

fn state_name(state: Option<DeliveryState<'_>>) -> String {
    match state {
        None => "none".to_owned(),
        Some(DeliveryState::Accepted) => "accepted".to_owned(),
        Some(DeliveryState::Released) => "released".to_owned(),
        Some(DeliveryState::Rejected(error)) => {
            format!("rejected {}", error.map_or("", |error| error.condition))
        }
        Some(other) => format!("{other:?}"),
    }
}

/// A client that keeps the rules.
pub(crate) struct Peer<S> {
    pub(crate) stream: S,
    pub(crate) machine: Connection,
    pub(crate) out: Vec<u8>,
    input: Vec<u8>,
    /// Came and was not asked for yet.
    pub(crate) queue: VecDeque<Got>,
    /// Requests and answers of `$cbs`.
    pub(crate) cbs: Option<(LinkId, LinkId)>,
    session: Option<SessionId>,
    sent: u64,
    gone: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    pub(crate) fn new(stream: S, config: Config, sasl: bool) -> Self {
        let mut out = Vec::new();
        Peer {
            stream,
            machine: Connection::client(Arc::new(config), sasl, 0, &mut out),
            out,
            input: Vec::new(),
            queue: VecDeque::new(),
            cbs: None,
            session: None,
            sent: 0,
            gone: false,
        }
    }

    pub(crate) async fn open(&mut self) {
        let open = Open {
            container_id: "test",
            hostname: Some("hub.test"),
            ..Open::default()
        };
        self.machine.open(&open, &mut self.out);
        self.flush().await;
        self.wait("open", |got| matches!(got, Got::Open { .. })).await;
    }

    pub(crate) async fn flush(&mut self) {
        let out = std::mem::take(&mut self.out);
        if self.stream.write_all(&out).await.is_ok() {
            let _ = self.stream.flush().await;
        }
    }

    pub(crate) async fn sasl(&mut self, mechanism: &str, response: &[u8]) -> SaslCode {
        self.flush().await;
        self.pump_until(|peer| !peer.is_waiting_for_mechanisms()).await;
        let init = SaslInit {
            mechanism,
            initial_response: Some(response),
            hostname: None,
        };
        self.machine.sasl_init(&init, &mut self.out);
        self.flush().await;
        match self.wait("an outcome", |got| matches!(got, Got::Sasl(_))).await {
            Got::Sasl(code) => code,
            other => panic!("{other:?}"),
        }
    }

    fn is_waiting_for_mechanisms(&self) -> bool {
        !self.queue.iter().any(|got| *got == Got::Window)
    }

    async fn pump_until(&mut self, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            self.read_more().await;
        }
        self.queue.retain(|got| *got != Got::Window);
    }

    /// Reads once, and takes all events.
    pub(crate) async fn read_more(&mut self) {
        assert!(!self.gone, "the hub has hung up; left: {:?}", self.queue);
        let mut chunk = vec![0; 65_536];
        let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut chunk))
            .await
            .unwrap_or_else(|_| panic!("nothing comes; left: {:?}", self.queue));
        match read {
            Ok(0) | Err(_) => {
                self.gone = true;
                self.queue.push_back(Got::Gone);
            }
            Ok(length) => {
                self.input.extend_from_slice(&chunk[..length]);
                self.take_events();
                self.flush().await;
            }
        }
    }

    fn take_events(&mut self) {
        let input = std::mem::take(&mut self.input);
        let mut rest = &input[..];
        loop {
            let event = self.machine.next_event(&mut rest, 0, &mut self.out);
            let Some(event) = event.expect("the hub keeps the rules") else {
                break;
            };
            if let Some(got) = owned(event) {
                self.queue.push_back(got);
            }
        }
        self.input = rest.to_vec();
    }

    /// The first that fits, now or later; the others stay.
    pub(crate) async fn wait(&mut self, what: &str, fits: impl Fn(&Got) -> bool) -> Got {
        loop {
            if let Some(place) = self.queue.iter().position(&fits) {
                return self.queue.remove(place).expect("found");
            }
            assert!(
                !self.gone,
                "no {what}: the hub has hung up; left: {:?}",
                self.queue
            );
            self.read_more().await;
        }
    }

    pub(crate) async fn begin(&mut self) -> SessionId {
        let session = self.machine.begin(&mut self.out).expect("a session");
        self.flush().await;
        self.wait("begin", |got| *got == Got::Begin(session)).await;
        session
    }

    /// The session of everything that does not need its own.
    pub(crate) async fn session(&mut self) -> SessionId {
        match self.session {
            Some(session) => session,
            None => {
                let session = self.begin().await;
                self.session = Some(session);
                session
            }
        }
    }

    /// The link, or why there is none.
    pub(crate) async fn attach(
        &mut self,
        session: SessionId,
        attach: &Attach<'_>,
        window: u32,
    ) -> Result<LinkId, String> {
        let link = self
            .machine
            .attach(session, attach, window, &mut self.out)
            .expect("allowed here");
        self.flush().await;
        let answer = self
            .wait(
                "an attach",
                |got| matches!(got, Got::Attached { link: of, .. } if *of == link),
            )
            .await;
        if matches!(answer, Got::Attached { agreed: true, .. }) {
            return Ok(link);
        }
        Err(self.detached(link).await)
    }

    /// A sending link with credit.
    pub(crate) async fn sender(&mut self, address: &str) -> Result<LinkId, String> {
        let session = self.session().await;
        self.sender_on(session, address).await
    }

    pub(crate) async fn sender_on(&mut self, session: SessionId, address: &str) -> Result<LinkId, String> {
        let name = format!("sender {address}");
        let link = self.attach(session, &Attach::sender(&name, address), 0).await?;
        self.wait("credit", |got| matches!(got, Got::Credit(of, _) if *of == link))
            .await;
        Ok(link)
    }

    /// A receiving link with that much credit.
    pub(crate) async fn receiver(&mut self, address: &str, window: u32) -> Result<LinkId, String> {
        let session = self.session().await;
        let name = format!("receiver {address}");
        self.attach(session, &Attach::receiver(&name, address), window)
            .await
    }

    /// Waits until the hub ends a link; with what condition.
    pub(crate) async fn detached(&mut self, link: LinkId) -> String {
        match self
            .wait("a detach", |got| matches!(got, Got::Detach(of, _) if *of == link))
            .await
        {
            Got::Detach(_, condition) => condition,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the hub closes the connection; with what condition.
    pub(crate) async fn closed(&mut self) -> String {
        let got = self.wait("a close", |got| matches!(got, Got::Close(_))).await;
        match got {
            Got::Close(condition) => condition,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the hub hangs up without a close.
    pub(crate) async fn hung_up(&mut self) {
        self.wait("the end", |got| *got == Got::Gone).await;
        assert!(!self.queue.iter().any(|got| matches!(got, Got::Close(_))));
    }

    /// As [`Peer::closed`], while the hub's time goes on in such steps.
    pub(crate) async fn closed_in_time(&mut self, hub: &Hub, step: Duration) -> String {
        for _ in 0..50 {
            hub.clock.advance(step);
            // The hub may say other things before.
            let _ = tokio::time::timeout(Duration::from_millis(50), self.read_more()).await;
            if self.queue.iter().any(|got| matches!(got, Got::Close(_))) {
                return self.closed().await;
            }
        }
        panic!("not closed; left: {:?}", self.queue)
    }

    /// Puts a message on its way; its token.
    pub(crate) fn post(&mut self, link: LinkId, message: &[u8], settled: bool) -> u64 {
        self.sent += 1;
        let outgoing = Outgoing {
            tag: &self.sent.to_be_bytes(),
            token: self.sent,
            settled,
            ..Outgoing::default()
        };
        self.machine
            .send(link, &outgoing, message, &mut self.out)
            .expect("allowed");
        self.sent
    }

    pub(crate) async fn outcome(&mut self, token: u64) -> String {
        match self
            .wait(
                "an outcome",
                |got| matches!(got, Got::Outcome(of, ..) if *of == token),
            )
            .await
        {
            Got::Outcome(_, state, settled) => {
                assert!(settled, "by the hub");
                state
            }
            other => panic!("{other:?}"),
        }
    }

    /// As [`Peer::outcome`], for a message whose link has ended: what is known of it.
    pub(crate) fn outcome_or_lost(&mut self, token: u64) -> String {
        match self
            .queue
            .iter()
            .find(|got| matches!(got, Got::Outcome(of, ..) if *of == token))
        {
            Some(Got::Outcome(_, state, _)) => state.clone(),
            _ => "none".to_owned(),
        }
    }

    /// Sends a message and waits for what becomes of it.
    pub(crate) async fn send(&mut self, link: LinkId, message: &[u8]) -> String {
        let token = self.post(link, message, false);
        self.flush().await;
        self.outcome(token).await
    }

    /// The next message on a link: its number, whether it is settled, the message.
    pub(crate) async fn received(&mut self, link: LinkId) -> (u32, bool, Vec<u8>) {
        match self
            .wait(
                "a message",
                |got| matches!(got, Got::Transfer { link: of, .. } if *of == link),
            )
            .await
        {
            Got::Transfer {
                id, settled, message, ..
            } => (id, settled, message),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn settle(&mut self, link: LinkId, id: u32, state: &DeliveryState<'_>, settled: bool) {
        self.machine
            .settle(link.session(), [id], state, settled, &mut self.out);
        self.flush().await;
    }

    /// Puts a token; the status of the answer.
    pub(crate) async fn put_token(&mut self, token: &str) -> i64 {
        let (requests, answers) = match self.cbs {
            Some(links) => links,
            None => {
                let session = self.session().await;
                let answers = self
                    .attach(session, &Attach::receiver("cbs", "$cbs"), 10)
                    .await
                    .expect("$cbs is for everyone");
                let requests = self
                    .sender_on(session, "$cbs")
                    .await
                    .expect("$cbs is for everyone");
                *self.cbs.insert((requests, answers))
            }
        };
        let mut message = Vec::new();
        Writer::new(&mut message)
            .properties(&Properties {
                message_id: Some(MessageId::Ulong(7)),
                ..Properties::default()
            })
            .application_properties(|map| {
                map.string("operation", &Value::String("put-token"));
                map.string("type", &Value::String("servicebus.windows.net:sastoken"));
                map.string("name", &Value::String("hub.test"));
            })
            .value(&Value::String(token));
        // Settled before it is answered.
        assert_eq!(self.send(requests, &message).await, "accepted");
        let (id, settled, answer) = self.received(answers).await;
        if !settled {
            self.settle(answers, id, &DeliveryState::Accepted, true).await;
        }
        let answer = Message::decode(&answer).expect("a message");
        assert_eq!(answer.properties.correlation_id, Some(MessageId::Ulong(7)));
        let map = answer.application_properties.expect("properties");
        match map.get("status-code") {
            Some(Value::Int(status)) => i64::from(status),
            other => panic!("{other:?}"),
        }
    }

    /// Nothing but what is said here comes: proven by a token put, which is answered.
    pub(crate) async fn is_alive(&mut self) {
        self.put_token("nonsense").await;
    }
}

/// A plain message.
pub(crate) fn message(body: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    Writer::new(&mut message).data(body);
    message
}

pub(crate) fn body(message: &[u8]) -> Vec<u8> {
    let message = Message::decode(message).expect("a message");
    message.body.as_bytes().expect("bytes").to_vec()
}

fn owned(event: Event<'_>) -> Option<Got> {
    let condition = |error: Option<holdfast_amqp::performatives::Error<'_>>| {
        error.map_or(String::new(), |error| error.condition.to_owned())
    };
    Some(match event {
        Event::Open(open) => Got::Open {
            max_frame_size: open.max_frame_size,
            channel_max: open.channel_max,
            idle_time_out: open.idle_time_out,
        },
        Event::Begin { session, .. } => Got::Begin(session),
        Event::Attached { link, attach } => Got::Attached {
            link,
            agreed: attach.source.is_some() && attach.target.is_some(),
            max_message_size: attach.max_message_size,
        },
        Event::Credit { link, credit, .. } => Got::Credit(link, credit),
        // Stands for the mechanisms too, which no test looks at.
        Event::WindowOpen { .. } | Event::SaslMechanisms(_) => Got::Window,
        Event::Drained { link } => Got::Drained(link),
        Event::Transfer { link, delivery } => Got::Transfer {
            link,
            id: delivery.id,
            settled: delivery.settled,
            tag: delivery.tag.to_vec(),
            message: delivery.payload.into_owned(),
        },
        Event::Outcome {
            token,
            state,
            settled,
            ..
        } => Got::Outcome(token, state_name(state), settled),
        Event::Settled {
            delivery_id, state, ..
        } => Got::Settled(delivery_id, state_name(state)),
        Event::Detach { link, error, .. } => Got::Detach(link, condition(error)),
        Event::LinkFailed { link, .. } => Got::LinkFailed(link),
        Event::End { error, .. } => Got::End(condition(error)),
        Event::Close { error } => Got::Close(condition(error)),
        Event::SaslOutcome(code) => Got::Sasl(code),
        _ => return None,
    })
}

/// A client that sends what a test makes up.
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    input: Vec<u8>,
}

/// A frame of the hub, shortly.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Said {
    pub(crate) channel: u16,
    pub(crate) text: String,
    pub(crate) size: usize,
}

pub(crate) fn amqp(channel: u16, performative: &Performative<'_>) -> Vec<u8> {
    with_payload(channel, performative, b"")
}

pub(crate) fn with_payload(channel: u16, performative: &Performative<'_>, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode(&mut bytes, FrameType::Amqp, channel, |out| {
        performative.encode(out);
        out.extend_from_slice(payload);
    });
    bytes
}

pub(crate) fn open() -> Performative<'static> {
    Performative::Open(Box::new(Open {
        container_id: "raw",
        ..Open::default()
    }))
}

pub(crate) fn begin() -> Performative<'static> {
    Performative::Begin(Begin {
        incoming_window: 100,
        outgoing_window: 100,
        ..Begin::default()
    })
}

pub(crate) fn attach<'a>(name: &'a str, handle: u32, role: Role, address: &'a str) -> Performative<'a> {
    let attach = match role {
        Role::Sender => Attach::sender(name, address),
        Role::Receiver => Attach::receiver(name, address),
    };
    Performative::Attach(Box::new(Attach {
        handle,
        initial_delivery_count: (role == Role::Sender).then_some(0),
        ..attach
    }))
}

impl Raw {
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        // The hub may have hung up already, and be right.
        let _ = self.stream.write_all(bytes).await;
    }

    /// Header and open, with what the hub says to it read.
    pub(crate) async fn open(&mut self) {
        self.send(&Protocol::Amqp.header()).await;
        self.send(&amqp(0, &open())).await;
        assert_eq!(self.header().await, Protocol::Amqp.header());
        assert_eq!(self.next().await.expect("an open").text, "open");
    }

    pub(crate) async fn header(&mut self) -> [u8; 8] {
        while self.input.len() < 8 {
            assert!(self.read().await, "the hub has hung up");
        }
        let header = self.input[..8].try_into().expect("eight bytes");
        self.input.drain(..8);
        header
    }

    /// Reads once; false at the end.
    async fn read(&mut self) -> bool {
        let mut chunk = [0; 4_096];
        let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut chunk))
            .await
            .expect("the hub answers in time");
        match read {
            Ok(0) | Err(_) => false,
            Ok(length) => {
                self.input.extend_from_slice(&chunk[..length]);
                true
            }
        }
    }

    /// The next frame; `None` when the hub has hung up.
    pub(crate) async fn next(&mut self) -> Option<Said> {
        loop {
            if let Some((frame, used)) = frame::decode(&self.input, u32::MAX).expect("a frame") {
                let text = match frame.frame_type {
                    FrameType::Sasl => match Sasl::decode(frame.body).expect("SASL") {
                        Sasl::Mechanisms(_) => "mechanisms".to_owned(),
                        Sasl::Outcome(code, _) => format!("outcome {code:?}"),
                        other => format!("{other:?}"),
                    },
                    FrameType::Amqp if frame.body.is_empty() => "heartbeat".to_owned(),
                    FrameType::Amqp => told(Performative::decode(frame.body).expect("a performative").0),
                };
                let said = Said {
                    channel: frame.channel,
                    text,
                    size: used,
                };
                self.input.drain(..used);
                return Some(said);
            }
            if !self.read().await {
                assert!(self.input.is_empty(), "half a frame");
                return None;
            }
        }
    }

    /// The frame that begins so, past all others.
    pub(crate) async fn until(&mut self, begins: &str) -> Said {
        loop {
            let said = self.next().await;
            let said = said.unwrap_or_else(|| panic!("no {begins}: the hub has hung up"));
            if said.text.starts_with(begins) {
                return said;
            }
        }
    }

    /// The condition with which the hub closes the connection; then it hangs up.
    pub(crate) async fn closed(&mut self) -> String {
        let said = self.until("close").await;
        self.hung_up().await;
        said.text["close".len()..].trim().to_owned()
    }

    pub(crate) async fn hung_up(&mut self) {
        assert_eq!(self.next().await, None, "nothing more is said");
    }
}

fn told(performative: Performative<'_>) -> String {
    let name = |error: Option<holdfast_amqp::performatives::Error<'_>>| {
        error.map_or("in order".to_owned(), |error| error.condition.to_owned())
    };
    match performative {
        Performative::Open(_) => "open".to_owned(),
        Performative::Begin(_) => "begin".to_owned(),
        Performative::Attach(attach) => {
            let agreed = attach.source.is_some() && attach.target.is_some();
            format!("attach {} {agreed}", attach.name)
        }
        Performative::Flow(flow) => format!("flow {:?} {:?}", flow.handle, flow.link_credit),
        Performative::Transfer(transfer) => format!("transfer {:?} {}", transfer.delivery_id, transfer.more),
        Performative::Disposition(disposition) => format!(
            "disposition {}..{} {}",
            disposition.first,
            disposition.last.unwrap_or(disposition.first),
            state_name(disposition.state)
        ),
        Performative::Detach(Detach { error, .. }) => format!("detach {}", name(error)),
        Performative::End(End { error }) => format!("end {}", name(error)),
        Performative::Close(holdfast_amqp::performatives::Close { error }) => {
            format!("close {}", name(error))
        }
    }
}
