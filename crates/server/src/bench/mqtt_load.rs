//! Telemetry at QoS 1 over many connections: as fast as the windows allow, or evenly at a given rate.
//!
//! Each thread runs a `Fleet` of its share of the connections. One thread is the default: the generator shares the
//! machine with the server, and one core of it outruns a server that does more than throw messages away. Watch the
//! generator's cores in the report: near the number of threads, the generator is what was measured, though messages per
//! CPU-second of the server stay true.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use holdfast_mqtt::client::{Event, Message};
use holdfast_mqtt::{QoS, SendError};
use holdfast_observe::process::{Usage, own_usage};

use super::devices::Accounts;
use super::fleet::{Account, Driver, Endpoint, Fleet, Link, Lost};
use super::histogram::Histogram;
use super::pacing::Pace;
use super::report::{Subject, Unit};
use super::target::Target;
use crate::cli::failure::{Failure, Kind};
use crate::serve::units::Span;

/// Handshakes under way at once while connections are opened.
const OPENING_AT_ONCE: usize = 32;

/// A server that opens no further connection for so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often a thread looks whether the measurement goes on.
const LOOK: Duration = Duration::from_millis(1);

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

/// What came of it.
pub(crate) struct LoadResult {
    pub(crate) acked: u64,
    pub(crate) seconds: f64,
    /// Server CPU seconds and memory at the end, if it is a process known here.
    pub(crate) server: Option<(f64, Usage)>,
    pub(crate) generator_cpu_seconds: f64,
    /// From sending (with a rate: from when it was due) to PUBACK, in nanoseconds.
    pub(crate) latency: Histogram,
}

impl LoadResult {
    /// The figures of the report.
    pub(crate) fn subject(&self, target: &Target) -> Subject {
        let mut subject = Subject::new(&target.name, &target.version);
        let acked = self.acked as f64;
        subject.add(
            "ackedPerSecond",
            "acknowledged/s",
            Unit::Count,
            acked / self.seconds,
        );
        if let Some((cpu, usage)) = &self.server {
            if *cpu > 0.0 {
                subject.add(
                    "ackedPerServerCpuSecond",
                    "acknowledged/server CPU-second",
                    Unit::Count,
                    acked / cpu,
                );
            }
            subject.add("serverCores", "server cores", Unit::Cores, cpu / self.seconds);
            let rss = usage.rss_bytes as f64 / f64::from(1 << 20);
            subject.add("serverRssMib", "server memory", Unit::Mebibytes, rss);
        }
        let cores = self.generator_cpu_seconds / self.seconds;
        subject.add("generatorCores", "generator cores", Unit::Cores, cores);
        subject.add_latency(&self.latency);
        subject
    }
}

/// Opens the connections, sends, and measures. `note` hears what is going on.
pub(crate) fn run(
    target: &Target,
    accounts: &Accounts,
    options: &LoadOptions,
    note: &dyn Fn(&str),
) -> anyhow::Result<LoadResult> {
    let shared = Shared::default();
    let connections = options.connections as usize;
    let threads = usize::from(options.threads).min(connections);
    let clock = Instant::now();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                let shard = Shard {
                    first: connections * thread / threads,
                    end: connections * (thread + 1) / threads,
                    rate: options.rate.map(|rate| f64::from(rate) / threads as f64),
                    clock,
                };
                let (endpoint, shared) = (&target.endpoint, &shared);
                scope.spawn(move || shard.run(endpoint, accounts, options, shared))
            })
            .collect();
        let measured = orchestrate(target, options, threads, &shared, &workers, note);
        shared.stage.store(STOP, Ordering::Relaxed);
        let mut latency = Histogram::default();
        for worker in workers {
            let outcome = worker
                .join()
                .map_err(|_| anyhow::anyhow!("a generator thread panicked"))?;
            latency.merge(&outcome?);
        }
        let (acked, seconds, server, generator_cpu_seconds) = measured?;
        if acked == 0 {
            return Err(Failure::new(Kind::Unavailable, "the server acknowledged nothing").into());
        }
        Ok(LoadResult {
            acked,
            seconds,
            server,
            generator_cpu_seconds,
            latency,
        })
    })
}

const OPENING: u8 = 0;
const WARMING: u8 = 1;
const MEASURING: u8 = 2;
const STOP: u8 = 3;

#[derive(Default)]
struct Shared {
    stage: AtomicU8,
    threads_ready: AtomicUsize,
    acked: AtomicU64,
}

type Measured = (u64, f64, Option<(f64, Usage)>, f64);

/// Leads the threads through the stages and takes the samples.
fn orchestrate<T>(
    target: &Target,
    options: &LoadOptions,
    threads: usize,
    shared: &Shared,
    workers: &[ScopedJoinHandle<'_, T>],
    note: &dyn Fn(&str),
) -> anyhow::Result<Measured> {
    let failed = || workers.iter().any(ScopedJoinHandle::is_finished);
    // A thread that ended early has an error to tell, which joining it brings to light.
    let wait = |until: Instant| {
        while Instant::now() < until && !failed() {
            thread::sleep(Duration::from_millis(20).min(until - Instant::now()));
        }
        anyhow::ensure!(!failed(), "a generator thread ended early");
        Ok(())
    };
    note("connecting");
    while shared.threads_ready.load(Ordering::Acquire) < threads {
        wait(Instant::now() + LOOK)?;
    }
    note("warming up");
    shared.stage.store(WARMING, Ordering::Relaxed);
    wait(Instant::now() + options.warm_up.0)?;
    note("measuring");
    let server_before = target.usage()?;
    let own_before = own_usage()?;
    shared.stage.store(MEASURING, Ordering::Relaxed);
    let (acked, start) = (shared.acked.load(Ordering::Relaxed), Instant::now());
    wait(start + options.duration.0)?;
    let (acked, seconds) = (
        shared.acked.load(Ordering::Relaxed) - acked,
        start.elapsed().as_secs_f64(),
    );
    let server_after = target.usage()?;
    let own_after = own_usage()?;
    let server = server_before
        .zip(server_after)
        .map(|(before, after)| (after.cpu_seconds() - before.cpu_seconds(), after));
    Ok((
        acked,
        seconds,
        server,
        own_after.cpu_seconds() - own_before.cpu_seconds(),
    ))
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
                .map(|index| accounts.telemetry_topic(index))
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
        shared.threads_ready.fetch_add(1, Ordering::Release);
        while shared.stage.load(Ordering::Relaxed) == OPENING {
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
        let size = load.topics.len();
        let mut touched = Vec::new();
        while load.follow(shared) {
            let now = fleet.now_ns();
            // Round robin; what is due for a connection goes out in one write.
            while let Some(due) = pace.take(now) {
                let index = (pace.taken() - 1) as usize % size;
                if load.backlog[index].is_empty() {
                    touched.push(index);
                }
                load.backlog[index].push_back(due);
            }
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
        let new = std::mem::take(&mut self.acked);
        if new > 0 {
            shared.acked.fetch_add(new, Ordering::Relaxed);
        }
        let stage = shared.stage.load(Ordering::Relaxed);
        self.measuring = stage == MEASURING;
        stage != STOP
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
