//! Any number of MQTT connections on one thread: the engine under every measurement and under `holdfast simulate`.
//!
//! An epoll loop rather than a task per connection, since the generator shares the machine with the server it measures.
//! What it costs per message is one copy into the output and one look at the window; system calls are per batch: all
//! PUBACKs of one read are taken in before the window is refilled by one write. An idle connection holds a socket and a
//! [`ClientSession`], and no buffer.
//!
//! A [`Driver`] decides what connections say. The [`Fleet`] owns sockets and sessions and calls it.

mod pipe;
mod socket;
mod tls;

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use holdfast_mqtt::client::Event;
use holdfast_mqtt::codec::{Connect, ConnectCode, SubAckCode};
use holdfast_mqtt::{ClientError, ClientSession, DecodeError, EncodeError, QoS, SendError, decode};
use rustix::event::epoll::{self, EventFlags};

pub(crate) use pipe::{Pipe, wait, with_rest};
pub(crate) use socket::{Endpoint, TlsClient};
pub(crate) use tls::{Trust, client_config, client_config_with};

/// Bytes taken by one read, for all connections of a fleet.
const READ_BYTES: usize = 64 << 10;

/// Readiness events taken at once.
const EVENTS: usize = 512;

/// Largest packet taken: C2D messages and twins are far below.
const PACKET_MAX: usize = 1 << 20;

/// What CONNECT says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Account {
    pub(crate) client_id: String,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<String>,
    /// Seconds; 0 for none.
    pub(crate) keep_alive: u16,
    /// Whether the session starts anew.
    pub(crate) clean_session: bool,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lost {
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    #[error("the connection failed")]
    Io(#[source] io::Error),
    #[error("the server closed the connection {0}")]
    Closed(&'static str),
    #[error("the server refused the login: {0:?}")]
    Refused(ConnectCode),
    #[error("the server refused a subscription")]
    Subscription,
    #[error("the server sent what is no MQTT packet")]
    Decode(#[source] DecodeError),
    #[error("the server broke the protocol")]
    Protocol(#[source] ClientError),
    #[error("the login cannot be encoded")]
    Login(#[source] EncodeError),
    #[error("a subscription cannot be encoded")]
    Subscribe(#[source] SendError),
}

/// What connections say.
pub(crate) trait Driver {
    /// Where a connection goes, if not where the others go: to another server, or as the holder of a certificate.
    ///
    /// # Errors
    /// Ends the turn of the fleet.
    fn endpoint(&mut self, _index: usize) -> anyhow::Result<Option<Endpoint>> {
        Ok(None)
    }

    /// The login of a connection.
    fn account(&mut self, index: usize) -> Account;

    /// What a new connection subscribes to, at QoS 1, before it counts as open.
    fn filters(&self, _index: usize) -> Vec<String> {
        Vec::new()
    }

    /// The server accepted the connection and its subscriptions.
    fn opened(&mut self, link: &mut Link<'_>);

    /// A packet came; called only after [`Driver::opened`].
    fn event(&mut self, link: &mut Link<'_>, event: Event<'_>);

    /// All packets of one read were taken in.
    fn batch(&mut self, _link: &mut Link<'_>) {}

    /// The connection ended, other than by [`Link::close`].
    ///
    /// # Errors
    /// Ends the turn of the fleet.
    fn lost(&mut self, index: usize, why: Lost) -> anyhow::Result<()>;
}

/// One connection, in the hands of a driver.
pub(crate) struct Link<'a> {
    /// Number of the connection.
    pub(crate) index: usize,
    /// Nanoseconds of the fleet's clock, taken before the packets in question were read.
    pub(crate) now_ns: u64,
    /// Verbs of this append to `out`.
    pub(crate) session: &'a mut ClientSession,
    /// Written after the driver returns, in one go.
    pub(crate) out: &'a mut Vec<u8>,
    /// Whether TLS was resumed.
    pub(crate) resumed: Option<bool>,
    close: bool,
}

impl Link<'_> {
    /// Milliseconds of the fleet's clock, as the session counts them.
    pub(crate) const fn now_ms(&self) -> u64 {
        self.now_ns / 1_000_000
    }

    /// A connection to nowhere.
    #[cfg(test)]
    pub(crate) fn for_tests<'a>(session: &'a mut ClientSession, out: &'a mut Vec<u8>) -> Link<'a> {
        Link {
            index: 0,
            now_ns: 0,
            session,
            out,
            resumed: None,
            close: false,
        }
    }

    /// Ends the connection after what `out` holds and DISCONNECT are written.
    pub(crate) fn close(&mut self) {
        self.session.disconnect(self.out);
        self.close = true;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// TCP is on its way; TLS begins with the first write.
    Connecting,
    /// CONNECT is sent.
    LoggingIn,
    Subscribing,
    Open,
}

struct Connection {
    pipe: Pipe,
    session: ClientSession,
    phase: Phase,
    /// Stands in [`Fleet::open`], no longer in [`Fleet::opening`].
    counted: bool,
}

/// Connections of one thread.
pub(crate) struct Fleet {
    epoll: OwnedFd,
    endpoint: Endpoint,
    connections: Vec<Option<Box<Connection>>>,
    window: u16,
    /// Sessions of ended connections, kept for the next one of the same number; empty if none are kept.
    kept: Vec<Option<ClientSession>>,
    clock: Instant,
    opening: usize,
    open: usize,
    /// Connections begun so far, from `first_number` on: chooses source addresses.
    begun: usize,
    events: Vec<epoll::Event>,
    scratch: Vec<u8>,
    out: Vec<u8>,
}

impl Fleet {
    /// A fleet of at most `size` connections that send at most `window` messages ahead. `first_number` sets fleets of
    /// several threads apart, and `clock` is what their times count from.
    pub(crate) fn new(
        endpoint: &Endpoint,
        size: usize,
        window: u16,
        first_number: usize,
        clock: Instant,
    ) -> anyhow::Result<Self> {
        Ok(Fleet {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).context("no epoll")?,
            endpoint: endpoint.clone(),
            connections: (0..size).map(|_| None).collect(),
            window,
            kept: Vec::new(),
            clock,
            opening: 0,
            open: 0,
            begun: first_number,
            events: Vec::with_capacity(EVENTS),
            scratch: vec![0; READ_BYTES],
            out: Vec::with_capacity(READ_BYTES),
        })
    }

    /// Keeps sessions over connections, so that what was not acknowledged is sent again. For accounts whose sessions do
    /// not start anew.
    pub(crate) fn keep_sessions(mut self) -> Self {
        self.kept = self.connections.iter().map(|_| None).collect();
        self
    }

    /// Nanoseconds of the fleet's clock.
    pub(crate) fn now_ns(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Connections under way that do not count as open yet.
    pub(crate) const fn opening(&self) -> usize {
        self.opening
    }

    /// Whether the server accepted this connection.
    pub(crate) fn is_open(&self, index: usize) -> bool {
        matches!(self.connections.get(index), Some(Some(connection)) if connection.phase == Phase::Open)
    }

    /// Connections there can be.
    pub(crate) const fn size(&self) -> usize {
        self.connections.len()
    }

    /// Connections accepted by the server.
    pub(crate) const fn open_count(&self) -> usize {
        self.open
    }

    /// Begins to connect. A failure goes to [`Driver::lost`], like any later one.
    ///
    /// # Errors
    /// Those of [`Driver::lost`].
    pub(crate) fn begin(&mut self, driver: &mut impl Driver, index: usize) -> anyhow::Result<()> {
        let number = self.begun;
        self.begun += 1;
        let own = driver.endpoint(index)?;
        let pipe = match Pipe::connect(own.as_ref().unwrap_or(&self.endpoint), number) {
            Ok(pipe) => pipe,
            Err(error) => return driver.lost(index, Lost::Connect(error)),
        };
        pipe.watch(&self.epoll, index)?;
        self.opening += 1;
        let kept = self.kept.get_mut(index).and_then(Option::take);
        let session = kept.unwrap_or_else(|| ClientSession::new(self.window));
        self.connections[index] = Some(Box::new(Connection {
            pipe,
            session,
            phase: Phase::Connecting,
            counted: false,
        }));
        Ok(())
    }

    /// Opens every connection, at most `at_once` of them under way at a time.
    ///
    /// # Errors
    /// When one fails and the driver does not mind its own business about it, or nothing happens for `patience`.
    pub(crate) fn open_all(
        &mut self,
        driver: &mut impl Driver,
        at_once: usize,
        patience: Duration,
        mut progress: impl FnMut(usize),
    ) -> anyhow::Result<()> {
        let (size, mut next, mut best) = (self.connections.len(), 0, 0);
        let mut last_progress = Instant::now();
        while self.open < size {
            while next < size && self.opening < at_once {
                self.begin(driver, next)?;
                next += 1;
            }
            self.turn(driver, Duration::from_millis(100))?;
            if self.open > best {
                best = self.open;
                last_progress = Instant::now();
                progress(self.open);
            }
            anyhow::ensure!(
                last_progress.elapsed() < patience,
                "only {} of {size} connections are open after {} seconds without another one",
                self.open,
                patience.as_secs()
            );
        }
        Ok(())
    }

    /// Waits for packets, no longer than `timeout`, and handles what came.
    ///
    /// # Errors
    /// Those of [`Driver::lost`].
    pub(crate) fn turn(&mut self, driver: &mut impl Driver, timeout: Duration) -> anyhow::Result<()> {
        let mut events = std::mem::take(&mut self.events);
        wait(&self.epoll, &mut events, timeout)?;
        for event in &events {
            let index = usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
            self.step(driver, index, |fleet, driver| {
                fleet.ready(driver, index, event.flags)
            })?;
        }
        self.events = events;
        Ok(())
    }

    /// Lets the caller use an open connection, to send at a time of its own choice.
    ///
    /// # Errors
    /// Those of [`Driver::lost`].
    pub(crate) fn act<D: Driver>(
        &mut self,
        driver: &mut D,
        index: usize,
        action: impl FnOnce(&mut D, &mut Link<'_>),
    ) -> anyhow::Result<()> {
        let now_ns = self.now_ns();
        self.step(driver, index, |fleet, driver| {
            let Some(Some(connection)) = fleet.connections.get_mut(index) else {
                return Ok(false);
            };
            if connection.phase != Phase::Open {
                return Ok(false);
            }
            fleet.out.clear();
            let mut link = link(connection, &mut fleet.out, index, now_ns);
            action(driver, &mut link);
            let close = link.close;
            connection
                .pipe
                .write(&fleet.epoll, index, &fleet.out)
                .map_err(Lost::Io)?;
            Ok(close)
        })
    }

    /// Sends a ping where one is due.
    ///
    /// # Errors
    /// Those of [`Driver::lost`].
    pub(crate) fn tick(&mut self, driver: &mut impl Driver, index: usize) -> anyhow::Result<()> {
        let now_ms = self.now_ns() / 1_000_000;
        self.step(driver, index, |fleet, _| {
            let Some(Some(connection)) = fleet.connections.get_mut(index) else {
                return Ok(false);
            };
            fleet.out.clear();
            connection
                .session
                .tick(now_ms, &mut fleet.out)
                .map_err(Lost::Protocol)?;
            connection
                .pipe
                .write(&fleet.epoll, index, &fleet.out)
                .map_err(Lost::Io)?;
            Ok(false)
        })
    }

    /// Ends a connection without a word, as a power cut would.
    pub(crate) fn drop_connection(&mut self, index: usize) {
        let Some(mut connection) = self.connections.get_mut(index).and_then(Option::take) else {
            return;
        };
        if connection.counted {
            self.open -= 1;
        } else {
            self.opening -= 1;
        }
        if let Some(kept) = self.kept.get_mut(index) {
            connection.session.connection_lost();
            *kept = Some(connection.session);
        }
    }

    /// Runs an action on a connection; it ends when the action says so (true) or fails.
    fn step<D: Driver>(
        &mut self,
        driver: &mut D,
        index: usize,
        action: impl FnOnce(&mut Self, &mut D) -> Result<bool, Lost>,
    ) -> anyhow::Result<()> {
        match action(self, driver) {
            Ok(false) => Ok(()),
            Ok(true) => {
                self.drop_connection(index);
                Ok(())
            }
            Err(why) => {
                self.drop_connection(index);
                driver.lost(index, why)
            }
        }
    }

    /// True when the driver wants the connection to end.
    fn ready(&mut self, driver: &mut impl Driver, index: usize, flags: EventFlags) -> Result<bool, Lost> {
        let Some(Some(connection)) = self.connections.get_mut(index) else {
            return Ok(false);
        };
        if connection.phase == Phase::Connecting {
            if !flags.intersects(EventFlags::OUT | EventFlags::ERR | EventFlags::HUP) {
                return Ok(false);
            }
            connection.pipe.socket().connect_error().map_err(Lost::Connect)?;
            let account = driver.account(index);
            self.log_in(index, &account)?;
            return Ok(false);
        }
        if flags.contains(EventFlags::OUT) {
            connection.pipe.flush(&self.epoll, index).map_err(Lost::Io)?;
        }
        if flags.intersects(EventFlags::IN | EventFlags::ERR | EventFlags::HUP | EventFlags::RDHUP) {
            return self.receive(driver, index);
        }
        Ok(false)
    }

    fn log_in(&mut self, index: usize, account: &Account) -> Result<(), Lost> {
        let now_ms = self.now_ns() / 1_000_000;
        let Some(Some(connection)) = self.connections.get_mut(index) else {
            return Ok(());
        };
        let connect = Connect {
            client_id: &account.client_id,
            clean_session: account.clean_session,
            keep_alive: account.keep_alive,
            will: None,
            username: account.username.as_deref(),
            password: account.password.as_deref().map(str::as_bytes),
        };
        self.out.clear();
        connection
            .session
            .connect(&connect, now_ms, &mut self.out)
            .map_err(Lost::Login)?;
        connection.phase = Phase::LoggingIn;
        connection
            .pipe
            .write(&self.epoll, index, &self.out)
            .map_err(Lost::Io)
    }

    fn receive(&mut self, driver: &mut impl Driver, index: usize) -> Result<bool, Lost> {
        let now_ns = self.now_ns();
        self.out.clear();
        let Some(Some(connection)) = self.connections.get_mut(index) else {
            return Ok(false);
        };
        let mut close = false;
        loop {
            let read = match connection.pipe.read(&mut self.scratch).map_err(Lost::Io)? {
                Some(0) => return Err(Lost::Closed(connection.phase.when())),
                Some(read) => read,
                None => break,
            };
            close |= connection.take_in(driver, index, now_ns, &self.scratch[..read], &mut self.out)?;
            if close || (read < self.scratch.len() && connection.pipe.socket().short_read_is_empty()) {
                break;
            }
        }
        if connection.phase == Phase::Open {
            if !connection.counted {
                connection.counted = true;
                self.open += 1;
                self.opening -= 1;
            }
            if !close {
                let mut link = link(connection, &mut self.out, index, now_ns);
                driver.batch(&mut link);
                close = link.close;
            }
        }
        connection
            .pipe
            .write(&self.epoll, index, &self.out)
            .map_err(Lost::Io)?;
        Ok(close)
    }
}

impl Phase {
    /// For the message of a lost connection.
    const fn when(self) -> &'static str {
        match self {
            Phase::Connecting => "before it was used",
            Phase::LoggingIn => "instead of answering the login",
            Phase::Subscribing => "instead of answering a subscription",
            Phase::Open => "in use",
        }
    }
}

fn link<'a>(connection: &'a mut Connection, out: &'a mut Vec<u8>, index: usize, now_ns: u64) -> Link<'a> {
    Link {
        index,
        now_ns,
        resumed: connection.pipe.socket().resumed(),
        session: &mut connection.session,
        out,
        close: false,
    }
}

impl Connection {
    /// Handles the packets of one read. True when the driver wants the connection to end.
    fn take_in(
        &mut self,
        driver: &mut impl Driver,
        index: usize,
        now_ns: u64,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<bool, Lost> {
        let mut rest = self.pipe.take_rest();
        let outcome = with_rest(&mut rest, bytes, |bytes| {
            self.packets(driver, index, now_ns, bytes, out)
        });
        self.pipe.keep_rest(rest);
        outcome
    }

    fn packets(
        &mut self,
        driver: &mut impl Driver,
        index: usize,
        now_ns: u64,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(usize, bool), Lost> {
        let (mut used, mut close) = (0, false);
        while let Some((packet, length)) = decode(&bytes[used..], PACKET_MAX).map_err(Lost::Decode)? {
            used += length;
            let event = self
                .session
                .handle(packet, now_ns / 1_000_000, out)
                .map_err(Lost::Protocol)?;
            if self.phase == Phase::Open {
                let mut link = link(self, out, index, now_ns);
                driver.event(&mut link, event);
                close |= link.close;
            } else {
                close |= self.set_up(driver, index, now_ns, event, out)?;
            }
        }
        Ok((used, close))
    }

    /// CONNACK and SUBACK.
    fn set_up(
        &mut self,
        driver: &mut impl Driver,
        index: usize,
        now_ns: u64,
        event: Event<'_>,
        out: &mut Vec<u8>,
    ) -> Result<bool, Lost> {
        match event {
            Event::ConnAck(connack) if connack.code != ConnectCode::Accepted => {
                return Err(Lost::Refused(connack.code));
            }
            Event::ConnAck(_) => {
                self.session.resend(now_ns / 1_000_000, out);
                let filters = driver.filters(index);
                if !filters.is_empty() {
                    let filters: Vec<(&str, QoS)> = filters
                        .iter()
                        .map(|filter| (filter.as_str(), QoS::AtLeastOnce))
                        .collect();
                    self.session
                        .subscribe(&filters, now_ns / 1_000_000, out)
                        .map_err(Lost::Subscribe)?;
                    self.phase = Phase::Subscribing;
                    return Ok(false);
                }
            }
            Event::SubAck(suback) if suback.codes().any(|code| code == SubAckCode::Failure) => {
                return Err(Lost::Subscription);
            }
            Event::SubAck(_) => {}
            // A queued message may come before the SUBACK; a measurement has no use for it.
            _ => return Ok(false),
        }
        self.phase = Phase::Open;
        let mut link = link(self, out, index, now_ns);
        driver.opened(&mut link);
        Ok(link.close)
    }
}
