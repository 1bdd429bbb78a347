//! Any number of AMQP connections on one thread: what `fleet` is for MQTT, on the same sockets.
//!
//! A [`Driver`] decides what connections are for and what they say. All frames of one read are taken in before anything
//! is written, in one go.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use holdfast_amqp::{Config, Connection as Machine, Event, LinkId};
use rustix::event::epoll::{self, EventFlags};

use super::amqp_client::{Account, Client, Refused};
use super::fleet::{Endpoint, Pipe, wait, with_rest};

/// Bytes taken by one read, for all connections of a fleet.
const READ_BYTES: usize = 256 << 10;

/// Readiness events taken at once.
const EVENTS: usize = 512;

/// How often heartbeats are looked at.
const TICK: Duration = Duration::from_secs(10);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lost {
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    #[error("the connection failed")]
    Io(#[source] io::Error),
    #[error("the server closed the socket {0}")]
    Eof(&'static str),
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// What connections say.
pub(crate) trait Driver {
    /// The login of a connection, and its links.
    fn account(&mut self, index: usize) -> Account;

    /// All links are attached, and the senders among them have credit.
    fn opened(&mut self, link: &mut Link<'_>);

    /// Something came; called only after [`Driver::opened`].
    ///
    /// # Errors
    /// Ends the connection.
    fn event(&mut self, link: &mut Link<'_>, event: &Event<'_>) -> Result<(), Refused>;

    /// All frames of one read were taken in.
    fn batch(&mut self, _link: &mut Link<'_>) {}
}

/// One connection, in the hands of a driver.
pub(crate) struct Link<'a> {
    /// Number of the connection.
    pub(crate) index: usize,
    /// Nanoseconds of the fleet's clock, taken before the frames in question were read.
    pub(crate) now_ns: u64,
    /// Verbs of this append to `out`.
    pub(crate) machine: &'a mut Machine,
    /// The links of the account, in its order.
    pub(crate) links: &'a [LinkId],
    /// Written after the driver returns, in one go.
    pub(crate) out: &'a mut Vec<u8>,
}

struct Connection {
    pipe: Pipe,
    /// None until TCP is connected.
    client: Option<Client>,
    /// The driver knows that it is open.
    open: bool,
}

/// Connections of one thread. One that fails ends the turn: measurements need all of them.
pub(crate) struct AmqpFleet {
    epoll: OwnedFd,
    endpoint: Endpoint,
    config: Arc<Config>,
    connections: Vec<Option<Box<Connection>>>,
    clock: Instant,
    first_number: usize,
    begun: usize,
    open: usize,
    ticked: Instant,
    events: Vec<epoll::Event>,
    scratch: Vec<u8>,
    out: Vec<u8>,
}

impl AmqpFleet {
    /// A fleet of `size` connections. `first_number` sets fleets of several threads apart, and `clock` is what their times
    /// count from.
    pub(crate) fn new(
        endpoint: &Endpoint,
        config: Config,
        size: usize,
        first_number: usize,
        clock: Instant,
    ) -> anyhow::Result<Self> {
        Ok(AmqpFleet {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).context("no epoll")?,
            endpoint: endpoint.clone(),
            config: Arc::new(config),
            connections: (0..size).map(|_| None).collect(),
            clock,
            first_number,
            begun: 0,
            open: 0,
            ticked: Instant::now(),
            events: Vec::with_capacity(EVENTS),
            scratch: vec![0; READ_BYTES],
            out: Vec::with_capacity(READ_BYTES),
        })
    }

    /// Nanoseconds of the fleet's clock.
    pub(crate) fn now_ns(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Connections that are open.
    pub(crate) const fn open_count(&self) -> usize {
        self.open
    }

    /// Opens every connection, at most `at_once` of them under way at a time.
    ///
    /// # Errors
    /// When one fails, or nothing happens for `patience`.
    pub(crate) fn open_all(
        &mut self,
        driver: &mut impl Driver,
        at_once: usize,
        patience: Duration,
        mut progress: impl FnMut(usize),
    ) -> anyhow::Result<()> {
        let (size, mut best) = (self.connections.len(), 0);
        let mut last_progress = Instant::now();
        while self.open < size {
            while self.begun < size && self.begun - self.open < at_once {
                self.begin(self.begun)?;
                self.begun += 1;
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

    fn begin(&mut self, index: usize) -> anyhow::Result<()> {
        let pipe = Pipe::connect(&self.endpoint, self.first_number + index)
            .map_err(Lost::Connect)
            .with_context(|| format!("connection {} failed", self.first_number + index))?;
        pipe.watch(&self.epoll, index)?;
        self.connections[index] = Some(Box::new(Connection {
            pipe,
            client: None,
            open: false,
        }));
        Ok(())
    }

    /// Waits for frames, no longer than `timeout`, and handles what came.
    ///
    /// # Errors
    /// When a connection fails.
    pub(crate) fn turn(&mut self, driver: &mut impl Driver, timeout: Duration) -> anyhow::Result<()> {
        let mut events = std::mem::take(&mut self.events);
        wait(&self.epoll, &mut events, timeout)?;
        for event in &events {
            let index = usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
            self.ready(driver, index, event.flags)
                .with_context(|| format!("connection {} failed", self.first_number + index))?;
        }
        self.events = events;
        if self.ticked.elapsed() >= TICK {
            self.ticked = Instant::now();
            self.tick_all()?;
        }
        Ok(())
    }

    /// Heartbeats where they are due.
    fn tick_all(&mut self) -> anyhow::Result<()> {
        let now_ms = self.now_ns() / 1_000_000;
        for (index, connection) in self.connections.iter_mut().enumerate() {
            let Some(connection) = connection else { continue };
            let Some(client) = &mut connection.client else {
                continue;
            };
            self.out.clear();
            client.machine.tick(now_ms, &mut self.out)?;
            connection.pipe.write(&self.epoll, index, &self.out)?;
        }
        Ok(())
    }

    /// Lets the caller use an open connection, to send at a time of its own choice.
    ///
    /// # Errors
    /// When the connection fails.
    pub(crate) fn act<D: Driver>(
        &mut self,
        driver: &mut D,
        index: usize,
        action: impl FnOnce(&mut D, &mut Link<'_>),
    ) -> anyhow::Result<()> {
        let now_ns = self.now_ns();
        let Some(Some(connection)) = self.connections.get_mut(index) else {
            return Ok(());
        };
        let Some(client) = connection.client.as_mut().filter(|client| client.is_open()) else {
            return Ok(());
        };
        self.out.clear();
        action(driver, &mut link(client, &mut self.out, index, now_ns));
        connection.pipe.write(&self.epoll, index, &self.out)?;
        Ok(())
    }

    fn ready(&mut self, driver: &mut impl Driver, index: usize, flags: EventFlags) -> Result<(), Lost> {
        let now_ns = self.now_ns();
        let Some(Some(connection)) = self.connections.get_mut(index) else {
            return Ok(());
        };
        self.out.clear();
        if connection.client.is_none() {
            if !flags.intersects(EventFlags::OUT | EventFlags::ERR | EventFlags::HUP) {
                return Ok(());
            }
            connection.pipe.socket().connect_error().map_err(Lost::Connect)?;
            let (account, number) = (driver.account(index), self.first_number + index);
            let now_ms = now_ns / 1_000_000;
            let client = Client::begin(&self.config, account, number, now_ms, &mut self.out)?;
            connection.client = Some(client);
            return connection
                .pipe
                .write(&self.epoll, index, &self.out)
                .map_err(Lost::Io);
        }
        if flags.contains(EventFlags::OUT) {
            connection.pipe.flush(&self.epoll, index).map_err(Lost::Io)?;
        }
        if flags.intersects(EventFlags::IN | EventFlags::ERR | EventFlags::HUP | EventFlags::RDHUP) {
            return self.receive(driver, index, now_ns);
        }
        Ok(())
    }

    fn receive(&mut self, driver: &mut impl Driver, index: usize, now_ns: u64) -> Result<(), Lost> {
        let Some(Some(connection)) = self.connections.get_mut(index) else {
            return Ok(());
        };
        let number = self.first_number + index;
        loop {
            let read = match connection.pipe.read(&mut self.scratch).map_err(Lost::Io)? {
                Some(0) if connection.open => return Err(Lost::Eof("in use")),
                Some(0) => return Err(Lost::Eof("while the connection was set up")),
                Some(read) => read,
                None => break,
            };
            let bytes = &self.scratch[..read];
            connection.take_in(driver, (index, number), now_ns, bytes, &mut self.out)?;
            // More than this at once would keep the server waiting for credit.
            if read < self.scratch.len() && connection.pipe.socket().short_read_is_empty() {
                break;
            }
        }
        if let Some(client) = connection.client.as_mut().filter(|client| client.is_open()) {
            if !connection.open {
                connection.open = true;
                self.open += 1;
            }
            driver.batch(&mut link(client, &mut self.out, index, now_ns));
        }
        connection
            .pipe
            .write(&self.epoll, index, &self.out)
            .map_err(Lost::Io)
    }
}

fn link<'a>(client: &'a mut Client, out: &'a mut Vec<u8>, index: usize, now_ns: u64) -> Link<'a> {
    Link {
        index,
        now_ns,
        machine: &mut client.machine,
        links: &client.links,
        out,
    }
}

impl Connection {
    /// Handles the frames of one read.
    fn take_in(
        &mut self,
        driver: &mut impl Driver,
        (index, number): (usize, usize),
        now_ns: u64,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Lost> {
        let Some(client) = &mut self.client else {
            return Ok(());
        };
        let mut rest = self.pipe.take_rest();
        let outcome = with_rest(&mut rest, bytes, |bytes| {
            let mut left = bytes;
            while let Some(event) = client
                .machine
                .next_event(&mut left, now_ns / 1_000_000, out)
                .map_err(Refused::from)?
            {
                let was_open = client.is_open();
                if !client.take(&event, number, out)? {
                    driver.event(&mut link(client, out, index, now_ns), &event)?;
                } else if !was_open && client.is_open() {
                    driver.opened(&mut link(client, out, index, now_ns));
                }
            }
            Ok::<_, Lost>((bytes.len() - left.len(), ()))
        });
        self.pipe.keep_rest(rest);
        outcome
    }
}
