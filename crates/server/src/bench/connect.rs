//! `bench connect`: how fast devices can log in.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use holdfast_mqtt::client::Event;
use holdfast_program::units::Span;

use super::Stage;
use super::devices::Accounts;
use super::fleet::{Account, Driver, Fleet, Link, Lost};
use super::histogram::Histogram;
use super::report::{Report, Subject, Unit};
use super::stages::{self, LOOK, Plan, Shared};
use super::target::{Target, TargetOptions};
use crate::cli::output::Format;
use crate::cli::profile::Wanted;

/// Source addresses of the threads begin so far apart, in connections.
const NUMBERS_PER_THREAD: usize = 600_000;

/// New TLS connections per second, with login: a handshake, a signature check, CONNACK, and the end of it.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "The generator's side of a handshake costs about as much as the server's: connections per CPU-second of the server is\nthe figure to compare. Every connection logs in as another device than those just before it.\n\nExamples:\n  holdfast bench connect\n  holdfast bench connect --resume\n  holdfast bench connect --plain                the login alone\n  holdfast bench connect --broker localhost:8883 --server-pid $(pidof mosquitto)"
)]
pub(crate) struct ConnectArgs {
    #[command(flatten)]
    target: TargetOptions,
    /// Resume TLS sessions with tickets of earlier connections
    #[arg(long)]
    resume: bool,
    /// Without TLS
    #[arg(long, conflicts_with_all = ["resume", "tls"])]
    plain: bool,
    /// Handshakes under way at once, in each thread
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    at_once: u16,
    /// Devices to log in as
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..))]
    devices: u32,
    /// How long to measure
    #[arg(long, short = 'd', value_name = "DURATION", default_value = "10s")]
    duration: Span,
    /// How long to connect before that
    #[arg(long, value_name = "DURATION", default_value = "1s")]
    warm_up: Span,
    /// Threads of the load generator
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    threads: u16,
}

impl ConnectArgs {
    pub(crate) fn run(mut self, wanted: &Wanted, format: Format) -> anyhow::Result<()> {
        self.target.tls = !self.plain;
        let stage = Stage::new("connect");
        let target = self.target.target(wanted, self.resume)?;
        // A device that logs in twice at once ends its own first connection.
        let devices = self
            .devices
            .max(u32::from(self.at_once) * u32::from(self.threads) * 4);
        let accounts = target.accounts(devices as usize)?;
        let measured = self.measure(&target, &accounts, &stage);
        let cleaned = target.clean_up(&accounts);
        let mut report = Report::new(
            "connect",
            serde_json::json!({
                "tls": self.target.tls,
                "resume": self.resume,
                "atOnce": self.at_once,
                "devices": devices,
                "duration": self.duration.to_string(),
                "threads": self.threads,
            }),
        );
        report.subjects.push(measured?);
        cleaned?;
        drop((stage, target));
        report.print(format)
    }

    fn measure(&self, target: &Target, accounts: &Accounts, stage: &Stage) -> anyhow::Result<Subject> {
        let threads = usize::from(self.threads);
        let plan = Plan {
            threads,
            warm_up: self.warm_up.0,
            duration: self.duration.0,
        };
        let totals = std::sync::Mutex::new((0, 0));
        let clock = Instant::now();
        let worker = |thread: usize, shared: &Shared| {
            let slots = usize::from(self.at_once);
            let mut fleet = Fleet::new(&target.endpoint, slots, 1, thread * NUMBERS_PER_THREAD, clock)?;
            let mut churn = Churn {
                accounts,
                next_account: thread,
                step: threads,
                begun_ns: vec![0; slots],
                free: (0..slots).collect(),
                latency: Histogram::default(),
                measuring: false,
                done: 0,
                resumed: 0,
                counted: 0,
            };
            churn.run(&mut fleet, shared)?;
            let mut totals = totals.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            totals.0 += churn.resumed;
            totals.1 += churn.counted;
            Ok(churn.latency)
        };
        let outcome = stages::run(target, plan, &worker, &|what| stage.say(what))?;
        let mut subject = Subject::new(&target.name, &target.version);
        outcome.add_to(
            &mut subject,
            ("connectionsPerSecond", "connections/s"),
            ("connectionsPerServerCpuSecond", "connections/server CPU-second"),
        );
        let (resumed, counted) = totals
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if self.target.tls && counted > 0 {
            let percent = f64::from(resumed) * 100.0 / f64::from(counted);
            subject.add("resumedPercent", "resumed", Unit::Percent, percent);
        }
        Ok(subject)
    }
}

/// Connects, and ends every connection as soon as it is accepted.
struct Churn<'a> {
    accounts: &'a Accounts,
    next_account: usize,
    /// Threads take turns with the devices.
    step: usize,
    /// When each slot began to connect.
    begun_ns: Vec<u64>,
    /// Slots without a connection.
    free: Vec<usize>,
    latency: Histogram,
    measuring: bool,
    done: u64,
    resumed: u32,
    counted: u32,
}

impl Churn<'_> {
    fn run(&mut self, fleet: &mut Fleet, shared: &Shared) -> anyhow::Result<()> {
        shared.ready();
        while !shared.begun() {
            std::thread::sleep(LOOK);
        }
        while !shared.stopped() {
            self.measuring = shared.measuring();
            for slot in std::mem::take(&mut self.free) {
                self.begun_ns[slot] = fleet.now_ns();
                fleet.begin(self, slot)?;
            }
            fleet.turn(self, Duration::from_millis(100))?;
            shared.add(std::mem::take(&mut self.done));
        }
        Ok(())
    }
}

impl Driver for Churn<'_> {
    fn account(&mut self, _index: usize) -> Account {
        let account = self.accounts.account(self.next_account);
        self.next_account += self.step;
        account
    }

    fn opened(&mut self, link: &mut Link<'_>) {
        self.done += 1;
        if self.measuring {
            self.counted += 1;
            self.resumed += u32::from(link.resumed == Some(true));
            self.latency
                .record(link.now_ns.saturating_sub(self.begun_ns[link.index]));
        }
        self.free.push(link.index);
        link.close();
    }

    fn event(&mut self, _link: &mut Link<'_>, _event: Event<'_>) {}

    fn lost(&mut self, _index: usize, why: Lost) -> anyhow::Result<()> {
        Err(why).context("a connection failed")
    }
}
