//! A connection to a peer with one sending link.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use holdfast_amqp::connection::Outgoing;
use holdfast_amqp::message::{MessageId, Properties, Writer};
use holdfast_amqp::performatives::{
    Attach, DeliveryState, Error, Open, Role, SaslCode, SaslInit, SenderSettleMode, Source,
    Target as Terminus,
};
use holdfast_amqp::types::Value;
use holdfast_amqp::{Config, Connection, Event, LinkId, Message, SendError, SessionId};
use holdfast_model::Timestamp;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use super::config::{Login, Target};
use crate::endpoints::socket::{Address, Socket, told};

/// The node for tokens.
const CBS: &str = "$cbs";
/// How long a token holds.
const TOKEN_LIFETIME: Duration = Duration::from_secs(3_600);
/// A connection is made anew well before its token ends.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(2_700);
/// Bytes read at once.
const READ_BYTES: usize = 16 << 10;
/// Encoded messages are written when there is so much.
const WRITE_BYTES: usize = 256 << 10;

/// What became of a message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    Accepted,
    Refused(String),
    Retry(String),
}

/// A happening that somebody waits for.
#[derive(Debug)]
enum News {
    Mechanisms(Vec<String>),
    LoggedIn,
    Attached(LinkId),
    Answer(Vec<u8>),
    Outcome(u64, Outcome),
}

/// See the module's documentation.
pub(super) struct Client {
    machine: Connection,
    socket: Box<dyn Socket>,
    input: Vec<u8>,
    output: Vec<u8>,
    news: std::collections::VecDeque<News>,
    started: Instant,
    link: Option<LinkId>,
}

impl Client {
    /// Connects, logs in, attaches the link and waits until it has credit.
    ///
    /// # Errors
    /// Which step failed, and what the peer said.
    pub(super) async fn connect(place: &Address, target: &Target, now: Timestamp) -> Result<Client, String> {
        let opening = async {
            let socket = place.connect().await?;
            let config = Config {
                max_unsettled: 8_192,
                max_frame_size: 65_536,
                ..Config::default()
            };
            let mut output = Vec::new();
            let machine = Connection::client(Arc::new(config), true, 0, &mut output);
            let mut client = Client {
                machine,
                socket,
                input: Vec::new(),
                output,
                news: std::collections::VecDeque::new(),
                started: Instant::now(),
                link: None,
            };
            client.log_in(target).await?;
            client.attach_link(target, now).await?;
            Ok(client)
        };
        match tokio::time::timeout(place.timeout, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(format!(
                "{}:{} did not open a link with credit within {} s",
                place.host,
                place.port,
                place.timeout.as_secs_f64()
            )),
        }
    }

    /// Whether it should be made anew.
    pub(super) fn is_old(&self) -> bool {
        self.started.elapsed() > CONNECTION_LIFETIME || self.machine.is_closed()
    }

    async fn log_in(&mut self, target: &Target) -> Result<(), String> {
        let offered = loop {
            if let News::Mechanisms(offered) = self.next().await? {
                break offered;
            }
        };
        let mut response = Vec::new();
        let wanted: &[&'static str] = match &target.login {
            Login::Anonymous => &["ANONYMOUS"],
            Login::External => &["EXTERNAL"],
            Login::Policy { .. } => &["MSSBCBS", "ANONYMOUS"],
            Login::Plain { username, password } => {
                response = format!("\0{username}\0{}", password.reveal()).into_bytes();
                &["PLAIN"]
            }
        };
        let mechanism = wanted
            .iter()
            .find(|wanted| offered.iter().any(|offered| offered == *wanted));
        let mechanism = mechanism.ok_or_else(|| {
            let offered = told(&offered.join(", "));
            format!(
                "the peer does not offer the SASL mechanism {}, but {offered}",
                wanted[0]
            )
        })?;
        let init = SaslInit {
            mechanism,
            initial_response: Some(&response),
            hostname: Some(&target.host),
        };
        self.machine.sasl_init(&init, &mut self.output);
        while !matches!(self.next().await?, News::LoggedIn) {}
        Ok(())
    }

    async fn attach_link(&mut self, target: &Target, now: Timestamp) -> Result<(), String> {
        let container = format!("holdfast-{}", uuid::Uuid::new_v4());
        let open = Open {
            container_id: &container,
            hostname: Some(&target.host),
            ..Open::default()
        };
        self.machine.open(&open, &mut self.output);
        let session = self
            .machine
            .begin(&mut self.output)
            .map_err(|error| error.to_string())?;
        if let Login::Policy { name, key } = &target.login {
            let token = token(&target.host, &target.address, name, key.reveal(), now);
            self.put_token(session, target, &token, now).await?;
        }
        let link = self.attach(session, Role::Sender, &target.address, "events", 0)?;
        self.wait_for(link).await?;
        self.wait_for_credit(link).await?;
        self.link = Some(link);
        Ok(())
    }

    fn attach(
        &mut self,
        session: SessionId,
        role: Role,
        address: &str,
        name: &str,
        window: u32,
    ) -> Result<LinkId, String> {
        let name = format!("{name}-{}", uuid::Uuid::new_v4());
        let (source, terminus) = match role {
            Role::Sender => (Source::default(), Terminus::new(address)),
            Role::Receiver => (Source::new(address), Terminus::default()),
        };
        let attach = Attach {
            snd_settle_mode: SenderSettleMode::Unsettled,
            source: Some(source),
            target: Some(terminus),
            ..Attach::new(&name, role)
        };
        let link = self.machine.attach(session, &attach, window, &mut self.output);
        link.map_err(|error| error.to_string())
    }

    async fn wait_for(&mut self, link: LinkId) -> Result<(), String> {
        loop {
            if let News::Attached(attached) = self.next().await?
                && attached == link
            {
                return Ok(());
            }
        }
    }

    async fn wait_for_credit(&mut self, link: LinkId) -> Result<(), String> {
        while self.machine.credit(link) == 0 {
            self.exchange().await?;
        }
        Ok(())
    }

    async fn put_token(
        &mut self,
        session: SessionId,
        target: &Target,
        token: &str,
        now: Timestamp,
    ) -> Result<(), String> {
        let answers = self.attach(session, Role::Receiver, CBS, "cbs-receiver", 10)?;
        let link = self.attach(session, Role::Sender, CBS, "cbs-sender", 0)?;
        let mut left = vec![answers, link];
        while !left.is_empty() {
            if let News::Attached(attached) = self.next().await? {
                left.retain(|link| *link != attached);
            }
        }
        self.wait_for_credit(link).await?;
        let audience = audience(&target.host, &target.address);
        let mut message = Vec::with_capacity(512);
        let expiry = now.plus(TOKEN_LIFETIME).as_millis();
        Writer::new(&mut message)
            .properties(&Properties {
                message_id: Some(MessageId::String("token")),
                to: Some(CBS),
                reply_to: Some("cbs"),
                ..Properties::default()
            })
            .application_properties(|map| {
                map.string("operation", &Value::String("put-token"));
                map.string("type", &Value::String("servicebus.windows.net:sastoken"));
                map.string("name", &Value::String(&audience));
                map.string("expiration", &Value::Timestamp(expiry));
            })
            .value(&Value::String(token));
        let outgoing = Outgoing {
            tag: b"token",
            settled: true,
            ..Outgoing::default()
        };
        let sent = self.machine.send(link, &outgoing, &message, &mut self.output);
        sent.map_err(|error| error.to_string())?;
        loop {
            if let News::Answer(payload) = self.next().await? {
                return judge_token(&payload);
            }
        }
    }

    /// Sends messages and collects their outcomes in `outcomes`, one place each. Returns when all are there, or after
    /// the first that is not accepted once those before it are known.
    ///
    /// # Errors
    /// The connection cannot be used any more.
    pub(super) async fn send(
        &mut self,
        count: usize,
        write: impl Fn(usize, &mut Vec<u8>),
        outcomes: &mut Vec<Option<Outcome>>,
    ) -> Result<(), String> {
        let link = self.link.ok_or("the link is not attached")?;
        outcomes.clear();
        outcomes.resize(count, None);
        let mut next = 0;
        let mut message = Vec::new();
        let mut stopped = false;
        loop {
            while next < count && !stopped && self.output.len() < WRITE_BYTES {
                message.clear();
                write(next, &mut message);
                let tag = (next as u64).to_be_bytes();
                let outgoing = Outgoing {
                    tag: &tag,
                    token: next as u64,
                    batchable: true,
                    ..Outgoing::default()
                };
                match self.machine.send(link, &outgoing, &message, &mut self.output) {
                    Ok(_) => next += 1,
                    Err(SendError::NoCredit | SendError::WindowFull | SendError::TooManyUnsettled) => break,
                    Err(error @ SendError::TooLarge { .. }) => {
                        outcomes[next] = Some(Outcome::Refused(error.to_string()));
                        stopped = true;
                    }
                    Err(error) => return Err(error.to_string()),
                }
            }
            while let Some(news) = self.news.pop_front() {
                if let News::Outcome(token, outcome) = news
                    && let Some(place) = usize::try_from(token)
                        .ok()
                        .and_then(|token| outcomes.get_mut(token))
                {
                    stopped |= outcome != Outcome::Accepted;
                    *place = Some(outcome);
                }
            }
            let waiting = outcomes[..next].iter().any(Option::is_none);
            if !waiting && (stopped || next == count) {
                return Ok(());
            }
            self.machine.notify_window(link.session());
            self.exchange().await?;
        }
    }

    /// Says good-bye.
    pub(super) async fn close(mut self) {
        self.machine.close(None, &mut self.output);
        // The peer's answer is not awaited: nothing depends on it.
        let _ = self.socket.write_all(&self.output).await;
        let _ = self.socket.shutdown().await;
    }

    async fn next(&mut self) -> Result<News, String> {
        loop {
            if let Some(news) = self.news.pop_front() {
                return Ok(news);
            }
            self.exchange().await?;
        }
    }

    /// Writes what there is to write; if that was nothing, reads something and takes it in.
    async fn exchange(&mut self) -> Result<(), String> {
        if !self.output.is_empty() {
            let written = self.socket.write_all(&self.output).await;
            self.output.clear();
            written.map_err(|error| format!("the connection broke: {error}"))?;
            if self.output.capacity() > 2 * WRITE_BYTES {
                self.output = Vec::new();
            }
        }
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.input.reserve(READ_BYTES);
        let due = self
            .machine
            .next_tick()
            .map(|due| self.started + Duration::from_millis(due));
        let read = self.socket.read_buf(&mut self.input);
        let read = match due {
            None => read.await,
            Some(due) => match tokio::time::timeout_at(due, read).await {
                Ok(read) => read,
                Err(_) => {
                    let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
                    return self
                        .machine
                        .tick(now, &mut self.output)
                        .map_err(|error| error.to_string());
                }
            },
        };
        match read {
            Ok(0) => return Err("the peer closed the connection".to_owned()),
            Ok(_) => {}
            Err(error) => return Err(format!("the connection broke: {error}")),
        }
        self.take_in(now)
    }

    fn take_in(&mut self, now: u64) -> Result<(), String> {
        let bytes = std::mem::take(&mut self.input);
        let mut rest = &bytes[..];
        while let Some(event) = self
            .machine
            .next_event(&mut rest, now, &mut self.output)
            .map_err(|error| format!("the peer broke the protocol: {error}"))?
        {
            let news = match event {
                Event::SaslMechanisms(offered) => {
                    News::Mechanisms(offered.mechanisms.iter().map(str::to_owned).collect())
                }
                Event::SaslOutcome(SaslCode::Ok) => News::LoggedIn,
                Event::SaslOutcome(code) => return Err(format!("the peer refused the login: SASL {code:?}")),
                Event::SaslChallenge(_) => return Err("the peer asked a SASL question".to_owned()),
                Event::Attached { link, attach }
                    if attach.role == Role::Sender || attach.target.is_some() =>
                {
                    News::Attached(link)
                }
                Event::Transfer { link, delivery } => {
                    let ids = [delivery.id];
                    let accepted = DeliveryState::Accepted;
                    self.machine
                        .settle(link.session(), ids, &accepted, true, &mut self.output);
                    News::Answer(delivery.payload.into_owned())
                }
                Event::Outcome {
                    link,
                    delivery_id,
                    token,
                    state: Some(state),
                    settled,
                } if state.is_outcome() => {
                    if !settled {
                        self.machine
                            .settle_sent(link, delivery_id, Some(&state), &mut self.output);
                    }
                    News::Outcome(token, judge(&state))
                }
                Event::Detach { error, .. } => {
                    return Err(gone("the peer detached the link", error.as_ref()));
                }
                Event::End { error, .. } => return Err(gone("the peer ended the session", error.as_ref())),
                Event::Close { error } => return Err(gone("the peer closed the connection", error.as_ref())),
                Event::LinkFailed { error, .. } => {
                    return Err(format!("the peer broke the protocol: {error}"));
                }
                _ => continue,
            };
            self.news.push_back(news);
        }
        self.input = rest.to_vec();
        Ok(())
    }
}

/// The resource that tokens are for.
fn audience(host: &str, address: &str) -> String {
    format!("amqps://{host}/{address}")
}

/// A token of a policy. Event Hubs and Service Bus take the key's text for the secret.
fn token(host: &str, address: &str, policy: &str, key: &str, now: Timestamp) -> String {
    let resource = escaped(&audience(host, address));
    let expiry = now.plus(TOKEN_LIFETIME).as_seconds();
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key.as_bytes());
    let signature = ring::hmac::sign(&key, format!("{resource}\n{expiry}").as_bytes());
    let signature = escaped(&base64::engine::general_purpose::STANDARD.encode(signature));
    let policy = escaped(policy);
    format!("SharedAccessSignature sr={resource}&sig={signature}&se={expiry}&skn={policy}")
}

fn escaped(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

fn judge_token(payload: &[u8]) -> Result<(), String> {
    let answer = Message::decode(payload).map_err(|error| format!("the answer to the token: {error}"))?;
    let of = |key: &str| answer.application_properties.and_then(|map| map.get(key));
    let status = of("status-code").and_then(|value| value.as_i64()).unwrap_or(0);
    if (200..300).contains(&status) {
        return Ok(());
    }
    let text = of("status-description").and_then(|value| value.as_str().map(told));
    let text = text.unwrap_or_default();
    Err(format!("the peer refused the token with status {status}: {text}"))
}

/// Rejections that speak of the peer's state, not of the message.
const PASSING: &[&str] = &[
    "com.microsoft:server-busy",
    "com.microsoft:timeout",
    "com.microsoft:operation-cancelled",
    "amqp:internal-error",
    "amqp:resource-limit-exceeded",
    "amqp:unauthorized-access",
    "amqp:not-found",
];

fn judge(state: &DeliveryState<'_>) -> Outcome {
    match state {
        DeliveryState::Accepted => Outcome::Accepted,
        DeliveryState::Rejected(error) => {
            let text = gone("the peer rejected the message", error.as_ref());
            match error {
                Some(error) if PASSING.contains(&error.condition) => Outcome::Retry(text),
                _ => Outcome::Refused(text),
            }
        }
        _ => Outcome::Retry("the peer released the message".to_owned()),
    }
}

fn gone(what: &str, error: Option<&Error<'_>>) -> String {
    match error {
        None => what.to_owned(),
        Some(error) => told(&format!(
            "{what}: {} {}",
            error.condition,
            error.description.unwrap_or_default()
        )),
    }
}
