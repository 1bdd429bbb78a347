//! One end of a connection with all its sessions and links (AMQP 2.4 to 2.7), for both roles.
//!
//! # Driving it
//!
//! ```
//! use std::sync::Arc;
//! use holdfast_amqp::performatives::{Attach, DeliveryState, Open};
//! use holdfast_amqp::{Config, Connection, Event};
//!
//! # fn read_socket() -> Vec<u8> { b"AMQP\x00\x01\x00\x00".to_vec() }
//! let mut connection = Connection::server(Arc::new(Config::default()), 0);
//! let (mut input, mut out) = (Vec::new(), Vec::new());
//!
//! input.extend(read_socket());
//! let now = 5;
//! let mut rest = &input[..];
//! while let Some(event) = connection.next_event(&mut rest, now, &mut out)? {
//!     match event {
//!         Event::Open(_) => connection.open(&Open { container_id: "hub", ..Open::default() }, &mut out),
//!         Event::Attach { link, attach } => {
//!             let answer = Attach { max_message_size: Some(262_144), ..attach.agree() };
//!             connection.accept_link(link, &answer, 100, &mut out);
//!         }
//!         Event::Transfer { link, delivery } if !delivery.settled => {
//!             connection.settle(link.session(), [delivery.id], &DeliveryState::Accepted, true, &mut out);
//!         }
//!         _ => {}
//!     }
//! }
//! let used = input.len() - rest.len();
//! input.drain(..used);
//! // Write `out`, clear it, read on; call `tick` when `next_tick` has come.
//! # Ok::<(), holdfast_amqp::ConnectionError>(())
//! ```
//!
//! * Events borrow from the input only, so every verb may be called while one is at hand.
//! * Some events hold later frames back until they are answered (see [`Event`]): `next_event` then returns `None` although
//!   input is left. Call it again after the answer.
//! * An error closes the connection: what the peer is to be told was appended, so write `out` and close the socket.
//! * Verbs on links and sessions that are gone do nothing: an answer may come later than a detach.
//! * The caller bounds `out`: it should stop reading while the peer does not take what it asked for.
//!
//! # Order
//!
//! Frames are answered in the order read. When a link or session ends, the deliveries sent on it and not settled are
//! reported first, as [`Event::Outcome`] without state. When the connection ends, [`Connection::in_flight`] lists them.
//!
//! # Memory
//!
//! A session or link is one allocation of about 200 bytes plus its name; lists of unsettled deliveries shrink to
//! almost nothing when empty; nothing is buffered but unfinished messages, within [`Config::max_reassembly`].

mod config;
mod event;
mod receive;
mod sasl;
mod send;
mod session;
#[cfg(test)]
mod tests;
mod transfer;
mod unsettled;
mod verbs;

use std::sync::Arc;

pub use config::Config;
pub use event::{Delivery, Event, LinkId, SessionId};
pub use send::Outgoing;

use crate::error::ConnectionError;
use crate::frame::{self, FrameType, MIN_MAX_FRAME_SIZE, Protocol};
use crate::performatives::{Close, Error, Open};
use session::Session;

/// Largest frame read before the connection is open: room for a token in SASL PLAIN, far from a whole message.
const EARLY_FRAME_MAX: u32 = 8_192;

/// Shortest time between two looks at heartbeats, whatever the peer asks for.
const HEARTBEAT_MIN_MS: u32 = 500;

/// In place of the time of our close, which the next tick puts in.
const UNKNOWN: u64 = u64::MAX;

/// What is read next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Server: either protocol header.
    FirstHeader,
    /// Server: `sasl-init`.
    SaslInit,
    /// Server: `sasl-response`.
    SaslResponse,
    /// Client: the SASL header.
    SaslHeader,
    /// Client: `sasl-mechanisms`.
    SaslMechanisms,
    /// Client: `sasl-challenge` or `sasl-outcome`.
    SaslOutcome,
    /// The caller has to go on with SASL.
    SaslHeld,
    /// The AMQP header.
    AmqpHeader,
    /// Open.
    Open,
    /// The caller has to open.
    OpenHeld,
    /// Anything.
    Opened,
    /// Our close is out, the peer's is awaited.
    Closing,
    /// Nothing.
    Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

/// One end of a connection; see the module documentation.
#[derive(Debug)]
pub struct Connection {
    config: Arc<Config>,
    /// Sessions by our channel.
    sessions: Vec<Option<Box<Session>>>,
    /// The peer's channel and ours, in order of the peer's.
    channels: Vec<(u16, u16)>,
    /// When the last frame came; before open, when the connection was made.
    heard_ms: u64,
    /// When heartbeats were last looked at; once we closed, when that was.
    ticked_ms: u64,
    /// Of the session or link made last.
    serial: u32,
    links: u32,
    /// Bytes of unfinished messages.
    reassembling: u32,
    peer_max_frame: u32,
    peer_idle_ms: u32,
    peer_channel_max: u16,
    /// Where in the range of a disposition to go on.
    cursor: Option<u32>,
    /// The frame just handled has more to tell.
    again: bool,
    /// A frame was written since the last look at heartbeats.
    wrote: bool,
    header_sent: bool,
    open_sent: bool,
    /// The peer was asked for the state of a session.
    asked: bool,
    /// It has answered such a question.
    answers: bool,
    phase: Phase,
    side: Side,
}

impl Connection {
    /// The server's end of a connection accepted at `now`. It speaks first when the client has.
    #[must_use]
    pub fn server(config: Arc<Config>, now: u64) -> Self {
        Self::new(config, Side::Server, Phase::FirstHeader, now)
    }

    /// The client's end of a connection made at `now`; appends the first header. With `sasl` the server is asked for its
    /// mechanisms; without, go on with [`open`](Self::open) at once.
    #[must_use]
    pub fn client(config: Arc<Config>, sasl: bool, now: u64, out: &mut Vec<u8>) -> Self {
        let phase = if sasl {
            Phase::SaslHeader
        } else {
            Phase::AmqpHeader
        };
        let mut connection = Self::new(config, Side::Client, phase, now);
        if sasl {
            out.extend_from_slice(&Protocol::Sasl.header());
        } else {
            connection.send_header(out);
        }
        connection
    }

    fn new(config: Arc<Config>, side: Side, phase: Phase, now: u64) -> Self {
        Self {
            config,
            sessions: Vec::new(),
            channels: Vec::new(),
            heard_ms: now,
            ticked_ms: now,
            serial: 0,
            links: 0,
            reassembling: 0,
            peer_max_frame: MIN_MAX_FRAME_SIZE,
            peer_idle_ms: 0,
            peer_channel_max: u16::MAX,
            cursor: None,
            again: false,
            wrote: false,
            header_sent: false,
            open_sent: false,
            asked: false,
            answers: false,
            phase,
            side,
        }
    }

    /// Takes the next event from `input`, and the bytes it was made of off its front. `None` means that more bytes are
    /// needed, or an answer of the caller's.
    ///
    /// # Errors
    /// [`ConnectionError`]: the peer broke the rules. It was told so as far as it can be; write `out` and close.
    #[inline]
    pub fn next_event<'a>(
        &mut self,
        input: &mut &'a [u8],
        now: u64,
        out: &mut Vec<u8>,
    ) -> Result<Option<Event<'a>>, ConnectionError> {
        let event = self.step(input, now, out);
        if let Err(error) = &event {
            self.fail(*error, out);
        }
        event
    }

    fn step<'a>(
        &mut self,
        input: &mut &'a [u8],
        now: u64,
        out: &mut Vec<u8>,
    ) -> Result<Option<Event<'a>>, ConnectionError> {
        loop {
            let limit = match self.phase {
                Phase::Opened | Phase::Closing => self.config.max_frame_size,
                Phase::FirstHeader | Phase::SaslHeader | Phase::AmqpHeader => {
                    if !self.read_header(input, out)? {
                        return Ok(None);
                    }
                    continue;
                }
                Phase::SaslHeld | Phase::OpenHeld => return Ok(None),
                Phase::Closed => {
                    *input = &[];
                    return Ok(None);
                }
                _ => self.config.max_frame_size.min(EARLY_FRAME_MAX),
            };
            let Some((frame, used)) = frame::decode(input, limit)? else {
                return Ok(None);
            };
            self.again = false;
            // Passed on as it is: taking it apart and putting it together again would copy it each time.
            let handled = match (self.phase, frame.frame_type) {
                (Phase::Opened, FrameType::Amqp) => {
                    self.heard_ms = now;
                    self.on_frame(frame.channel, frame.body, out)
                }
                (Phase::Closing, FrameType::Amqp) => self.on_frame_while_closing(frame.body),
                (Phase::Open, FrameType::Amqp) => self.on_open_frame(frame.body, now),
                (
                    Phase::SaslInit | Phase::SaslResponse | Phase::SaslMechanisms | Phase::SaslOutcome,
                    FrameType::Sasl,
                ) => self.on_sasl(frame.body, out),
                _ => Err(ConnectionError::Layer),
            };
            if handled.is_ok() && !self.again {
                self.cursor = None;
                *input = &input[used..];
            }
            if !matches!(handled, Ok(None)) {
                return handled;
            }
        }
    }

    /// Tells the peer why and ends it (AMQP 2.4.7).
    fn fail(&mut self, error: ConnectionError, out: &mut Vec<u8>) {
        if self.header_sent && self.phase != Phase::Closing {
            let description = match std::error::Error::source(&error) {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            };
            self.write_close(Some(&Error::new(error.condition(), &description)), out);
        }
        self.phase = Phase::Closed;
    }

    fn write_close(&mut self, error: Option<&Error<'_>>, out: &mut Vec<u8>) {
        self.open(&Open::default(), out);
        self.put(out, 0, |out| {
            Close {
                error: error.copied(),
            }
            .encode(out);
        });
    }

    /// Opens this end (AMQP 2.4.1): in answer to [`Event::Open`], or, as a client, at any time. Frame size, channels and
    /// idle-time-out are taken from the configuration. Does nothing the second time.
    pub fn open(&mut self, open: &Open<'_>, out: &mut Vec<u8>) {
        if self.open_sent || !self.header_sent {
            return;
        }
        self.open_sent = true;
        let idle = self.config.idle_time_out_ms;
        let open = Open {
            max_frame_size: self.config.max_frame_size,
            channel_max: self.config.channel_max,
            idle_time_out: (idle > 0).then_some(idle),
            ..*open
        };
        self.put(out, 0, |out| open.encode(out));
        if self.phase == Phase::OpenHeld {
            self.phase = Phase::Opened;
        }
    }

    /// Whether the peer has answered [`ask`](Self::ask) on this connection. Peers should, and may not (AMQP 2.7.4).
    #[must_use]
    pub fn answers(&self) -> bool {
        self.answers
    }

    /// Closes the connection (AMQP 2.7.9). The peer's answer comes as [`Event::Close`]; nothing else does any more.
    pub fn close(&mut self, error: Option<&Error<'_>>, out: &mut Vec<u8>) {
        match self.phase {
            Phase::Closing | Phase::Closed => {}
            _ if self.header_sent => {
                self.write_close(error, out);
                self.phase = Phase::Closing;
                self.ticked_ms = UNKNOWN;
            }
            _ => self.phase = Phase::Closed,
        }
    }

    /// Whether both ends opened the connection and neither closed it.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Opened
    }

    /// Whether it is over: nothing is read any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// When to call [`tick`](Self::tick), in the milliseconds of `now`. Traffic moves it to later, so a timer that fires
    /// early only has to ask again.
    #[must_use]
    pub fn next_tick(&self) -> Option<u64> {
        match self.phase {
            Phase::Closed => None,
            Phase::Opened => {
                let idle = self.config.idle_time_out_ms;
                let silence = (idle > 0).then(|| self.heard_ms + u64::from(idle));
                let heartbeat = self
                    .heartbeat_ms()
                    .map(|period| self.ticked_ms + u64::from(period));
                [silence, heartbeat].into_iter().flatten().min()
            }
            Phase::Closing if self.ticked_ms == UNKNOWN => Some(0),
            Phase::Closing => Some(self.ticked_ms + u64::from(self.config.open_timeout_ms)),
            _ => Some(self.heard_ms + u64::from(self.config.open_timeout_ms)),
        }
    }

    /// A quarter of the peer's idle-time-out: a heartbeat is due when one such time went by without a frame, so the peer
    /// hears from us at least every half of it (AMQP 2.4.5).
    fn heartbeat_ms(&self) -> Option<u32> {
        (self.peer_idle_ms > 0).then(|| (self.peer_idle_ms / 4).max(HEARTBEAT_MIN_MS))
    }

    /// Appends a heartbeat if one is due.
    ///
    /// # Errors
    /// [`ConnectionError::IdleTimeout`] after too long a silence of the peer, [`ConnectionError::OpenTimeout`] if it did
    /// not get to open, or did not answer close. Write `out` and close.
    pub fn tick(&mut self, now: u64, out: &mut Vec<u8>) -> Result<(), ConnectionError> {
        if let Some(period) = self.heartbeat_ms()
            && self.phase == Phase::Opened
            && now >= self.ticked_ms + u64::from(period)
        {
            self.ticked_ms = now;
            if self.wrote {
                self.wrote = false;
            } else {
                frame::encode_heartbeat(out);
                self.wrote = true;
            }
        }
        if self.phase == Phase::Closing && self.ticked_ms == UNKNOWN {
            self.ticked_ms = now;
        }
        let open_timeout = self.config.open_timeout_ms;
        let (since, limit, error) = match self.phase {
            Phase::Closed => return Ok(()),
            Phase::Opened => (
                self.heard_ms,
                self.config.idle_time_out_ms,
                ConnectionError::IdleTimeout,
            ),
            Phase::Closing => (self.ticked_ms, open_timeout, ConnectionError::OpenTimeout),
            _ => (self.heard_ms, open_timeout, ConnectionError::OpenTimeout),
        };
        if limit > 0 && now >= since + u64::from(limit) {
            self.fail(error, out);
            return Err(error);
        }
        Ok(())
    }

    fn send_header(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&Protocol::Amqp.header());
        self.header_sent = true;
    }

    /// Appends an AMQP frame.
    #[inline]
    fn put(&mut self, out: &mut Vec<u8>, channel: u16, write: impl FnOnce(&mut Vec<u8>)) {
        frame::encode(out, FrameType::Amqp, channel, write);
        self.wrote = true;
    }

    /// Largest frame to write.
    #[inline]
    fn frame_max(&self) -> usize {
        self.peer_max_frame.min(self.config.max_frame_size) as usize
    }

    #[inline]
    fn session(&mut self, channel: u16) -> Option<&mut Session> {
        self.sessions.get_mut(usize::from(channel))?.as_deref_mut()
    }

    fn next_serial(&mut self) -> u32 {
        self.serial = self.serial.wrapping_add(1);
        self.serial
    }

    /// Every delivery sent and not settled: its link, its number within the session, the caller's token. What to give back
    /// when the connection ends.
    pub fn in_flight(&self) -> impl Iterator<Item = (LinkId, u32, u64)> + '_ {
        self.sessions.iter().enumerate().flat_map(|(channel, session)| {
            let session = session.as_deref();
            session.into_iter().flat_map(move |session| {
                session.outgoing.iter().filter_map(move |entry| {
                    let channel = u16::try_from(channel).ok()?;
                    Some((session.link_id(channel, entry.handle)?, entry.id, entry.item))
                })
            })
        })
    }

    /// The same for one link: what to give back before detaching it.
    pub fn in_flight_on(&self, link: LinkId) -> impl Iterator<Item = (u32, u64)> + '_ {
        let session = self
            .sessions
            .get(usize::from(link.channel))
            .and_then(|session| session.as_deref())
            .filter(|session| session.link_id(link.channel, link.handle) == Some(link));
        session
            .into_iter()
            .flat_map(|session| session.outgoing.iter())
            .filter(move |entry| entry.handle == link.handle)
            .map(|entry| (entry.id, entry.item))
    }
}
