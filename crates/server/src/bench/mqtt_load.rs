//! Telemetry at QoS 1 over many connections: as fast as the windows allow, or evenly at a given rate.
//!
//! Each thread runs a `Fleet` of its share of the connections. One thread is the default: the generator shares the
//! machine with the server, and one core of it outruns a server that does more than throw messages away. Watch the
//! generator's cores in the report: near the number of threads, the generator is what was measured, though messages per
//! CPU-second of the server stay true.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use holdfast_mqtt::client::{Event, Message};
use holdfast_mqtt::{QoS, SendError};
use holdfast_program::units::Span;

use super::devices::Accounts;
use super::fleet::{Account, Driver, Endpoint, Fleet, Link, Lost};
use super::histogram::Histogram;
use super::pacing::Pace;
use super::report::Subject;
use super::stages::{self, LOOK, Outcome, Plan, Shared};
use super::target::Target;

/// Handshakes under way at once while connections are opened.
pub(crate) const OPENING_AT_ONCE: usize = 32;

/// A server that opens no further connection for so long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The shape of the load.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Load")]
pub(crate) struct LoadOptions {
    /// Connections, each of a device of its own
    #[arg(long, short = 'c', value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) connections: u32,
    /// Bytes of a message
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    pub(crate) payload: usize,
    /// Messages that a connection sends ahead of acknowledgements
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) window: u16,
    /// How long to measure
    #[arg(long, short = 'd', value_name = "DURATION", default_value = "10s")]
    pub(crate) duration: Span,
    /// How long to send before that
    #[arg(long, value_name = "DURATION", default_value = "2s")]
    pub(crate) warm_up: Span,
    /// Threads of the load generator
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: u16,
    /// Messages per second in all, evenly; as many as the windows allow if not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rate: Option<u32>,
    /// Values of the application property `kind` that connections send in turn; 0 for messages without properties. Set
    /// by measurements that need them.
    #[arg(skip)]
    pub(crate) kinds: u16,
}

impl LoadOptions {
    /// For the report.
    pub(crate) fn parameters(&self, tls: bool) -> serde_json::Value {
        serde_json::json!({
            "connections": self.connections,
            "payload": self.payload,
            "window": self.window,
            "duration": self.duration.to_string(),
            "threads": self.threads,
            "rate": self.rate,
            "tls": tls,
        })
    }
}

/// Opens the connections, sends, and measures; what is counted is acknowledgements. `note` hears what is going on.
pub(crate) fn run(
    target: &Target,
    accounts: &Accounts,
    options: &LoadOptions,
    note: &dyn Fn(&str),
) -> anyhow::Result<Outcome> {
    let connections = options.connections as usize;
    let threads = usize::from(options.threads).min(connections);
    let clock = Instant::now();
    let plan = Plan {
        threads,
        warm_up: options.warm_up.0,
        duration: options.duration.0,
    };
    let worker = |thread: usize, shared: &Shared| {
        let shard = Shard {
            first: connections * thread / threads,
            end: connections * (thread + 1) / threads,
            rate: options.rate.map(|rate| f64::from(rate) / threads as f64),
            clock,
        };
        shard.run(&target.endpoint, accounts, options, shared)
    };
    stages::run(target, plan, &worker, note)
}

/// The figures of a report.
pub(crate) fn subject(target: &Target, outcome: &Outcome) -> Subject {
    let mut subject = Subject::new(&target.name, &target.version);
    outcome.add_to(
        &mut subject,
        ("ackedPerSecond", "acknowledged/s"),
        ("ackedPerServerCpuSecond", "acknowledged/server CPU-second"),
    );
    subject
}

/// The connections of one thread.
struct Shard {
    first: usize,
    end: usize,
    rate: Option<f64>,
    clock: Instant,
}

impl Shard {
    fn run(
        &self,
        endpoint: &Endpoint,
        accounts: &Accounts,
        options: &LoadOptions,
        shared: &Shared,
    ) -> anyhow::Result<Histogram> {
        let size = self.end - self.first;
        let mut fleet = Fleet::new(endpoint, size, options.window, self.first, self.clock)?;
        let mut load = Telemetry {
            accounts,
            first: self.first,
            topics: (self.first..self.end)
                .map(|index| match options.kinds {
                    0 => accounts.telemetry_topic(index),
                    kinds => {
                        let kind = index % usize::from(kinds);
                        format!("{}kind=k{kind}", accounts.telemetry_topic(index))
                    }
                })
                .collect(),
            payload: (0..options.payload)
                .map(|byte| b'a' + (byte % 26) as u8)
                .collect(),
            backlog: vec![VecDeque::new(); size],
            paced: self.rate.is_some(),
            sending: false,
            measuring: false,
            acked: 0,
            latency: Histogram::default(),
        };
        fleet.open_all(&mut load, OPENING_AT_ONCE, PATIENCE, |_| {})?;
        shared.ready();
        while !shared.begun() {
            fleet.turn(&mut load, LOOK)?;
        }
        load.sending = true;
        match self.rate {
            None => self.saturate(&mut fleet, &mut load, shared)?,
            Some(rate) => self.pace(&mut fleet, &mut load, shared, rate)?,
        }
        Ok(load.latency)
    }

    fn saturate(&self, fleet: &mut Fleet, load: &mut Telemetry<'_>, shared: &Shared) -> anyhow::Result<()> {
        for index in 0..load.topics.len() {
            fleet.act(load, index, Telemetry::fill)?;
        }
        while load.follow(shared) {
            fleet.turn(load, Duration::from_millis(100))?;
        }
        Ok(())
    }

    fn pace(
        &self,
        fleet: &mut Fleet,
        load: &mut Telemetry<'_>,
        shared: &Shared,
        rate: f64,
    ) -> anyhow::Result<()> {
        let mut pace = Pace::new(fleet.now_ns(), rate);
        let mut touched = Vec::new();
        while load.follow(shared) {
            pace.hand_out(fleet.now_ns(), &mut load.backlog, &mut touched);
            for index in touched.drain(..) {
                fleet.act(load, index, Telemetry::fill)?;
            }
            fleet.turn(load, pace.wait(fleet.now_ns()).min(Duration::from_millis(100)))?;
        }
        Ok(())
    }
}

/// Sends telemetry and counts acknowledgements.
struct Telemetry<'a> {
    accounts: &'a Accounts,
    /// Number of the first connection among those of all threads.
    first: usize,
    topics: Vec<String>,
    payload: Vec<u8>,
    /// When messages that wait for room in the window were due, by connection.
    backlog: Vec<VecDeque<u64>>,
    paced: bool,
    sending: bool,
    measuring: bool,
    acked: u64,
    latency: Histogram,
}

impl Telemetry<'_> {
    /// Sends what the window takes. The token of a message is the time its latency counts from.
    fn fill(&mut self, link: &mut Link<'_>) {
        let index = link.index;
        loop {
            let token = if self.paced {
                match self.backlog[index].front() {
                    Some(due) => *due,
                    None => return,
                }
            } else {
                link.now_ns
            };
            let message = Message {
                topic: &self.topics[index],
                payload: &self.payload,
                qos: QoS::AtLeastOnce,
                retain: false,
                token,
            };
            match link.session.publish(&message, link.now_ms(), link.out) {
                Ok(_) => {
                    if self.paced {
                        self.backlog[index].pop_front();
                    }
                }
                // The window is full; nothing else can be wrong with a message of ours.
                Err(SendError::WindowFull) => return,
                Err(_) => return link.close(),
            }
        }
    }

    /// Tells the number of acknowledgements and takes over the stage; false at the end.
    fn follow(&mut self, shared: &Shared) -> bool {
        shared.add(std::mem::take(&mut self.acked));
        self.measuring = shared.measuring();
        !shared.stopped()
    }
}

impl Driver for Telemetry<'_> {
    fn account(&mut self, index: usize) -> Account {
        self.accounts.account(self.first + index)
    }

    fn opened(&mut self, _link: &mut Link<'_>) {}

    #[inline]
    fn event(&mut self, link: &mut Link<'_>, event: Event<'_>) {
        if let Event::PubAck { token } = event {
            self.acked += 1;
            if self.measuring {
                self.latency.record(link.now_ns.saturating_sub(token));
            }
        }
    }

    #[inline]
    fn batch(&mut self, link: &mut Link<'_>) {
        if self.sending {
            self.fill(link);
        }
    }

    fn lost(&mut self, index: usize, why: Lost) -> anyhow::Result<()> {
        Err(why).with_context(|| format!("connection {} failed", self.first + index))
    }
}
