//! `bench idle`: what a connection costs that does nothing.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use holdfast_mqtt::client::Event;
use holdfast_program::units::Span;

use super::devices::Accounts;
use super::fleet::{Account, Driver, Fleet, Link, Lost};
use super::mqtt_load::PATIENCE;
use super::report::{Report, Subject, Unit};
use super::target::{Protocol, Target, TargetOptions};
use super::{Stage, amqp_idle};
use crate::cli::output::{self, Format};
use crate::cli::profile::Wanted;

/// Handshakes under way at once.
const OPENING_AT_ONCE: usize = 64;

/// Memory per idle connection: logged in, with the four subscriptions of an ordinary device, or its links over AMQP.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Resident memory is read after the devices are registered and again when all connections are open and quiet.\nA process may hold as many connections as `ulimit -Hn` allows it files; source addresses change by themselves on loopback.\n\nWith AMQP each connection has eight links: $cbs both ways, telemetry, cloud-to-device messages, methods both ways and\ntwin both ways, as the Node.js SDK opens them, and has asked for changes of desired properties.\n\nExamples:\n  holdfast bench idle\n  holdfast bench idle --protocol amqp --tls\n  holdfast bench idle --tls --connections 5000\n  holdfast bench idle --broker 127.0.0.1:1883 --server-pid $(pidof mosquitto)"
)]
pub(crate) struct IdleArgs {
    /// What devices speak
    #[arg(long, value_enum, default_value_t)]
    protocol: Protocol,
    #[command(flatten)]
    target: TargetOptions,
    /// Connections, each of a device of its own
    #[arg(long, short = 'c', value_name = "N", default_value_t = 15_000, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// How long to wait before memory is read, both times
    #[arg(long, value_name = "DURATION", default_value = "5s")]
    settle: Span,
}

impl IdleArgs {
    pub(crate) fn run(mut self, wanted: &Wanted, format: Format) -> anyhow::Result<()> {
        self.target.protocol = self.protocol;
        let stage = Stage::new("idle");
        let count = self.connections as usize;
        let target = self.target.target(wanted, true)?;
        anyhow::ensure!(
            target.usage()?.is_some(),
            "memory can be read of a process only: give --server-pid"
        );
        let accounts = target.accounts(count)?;
        let measured = self.measure(&target, &accounts, &stage);
        let cleaned = target.clean_up(&accounts);
        let mut parameters = serde_json::json!({ "connections": count, "tls": self.target.tls });
        match self.protocol {
            Protocol::Mqtt => parameters["subscriptionsPerConnection"] = 4.into(),
            Protocol::Amqp => {
                parameters["protocol"] = Protocol::Amqp.name().into();
                parameters["linksPerConnection"] = amqp_idle::LINKS.into();
            }
        }
        let mut report = Report::new("idle", parameters);
        report.subjects.push(measured?);
        cleaned?;
        drop((stage, target));
        report.print(format)
    }

    fn measure(&self, target: &Target, accounts: &Accounts, stage: &Stage) -> anyhow::Result<Subject> {
        let count = self.connections as usize;
        stage.say("waiting for the server to settle");
        thread::sleep(self.settle.0);
        let before = target.usage()?.context("the server is gone")?;
        let begin = Instant::now();
        let mut connections = match self.protocol {
            Protocol::Mqtt => Connections::Mqtt(
                Fleet::new(&target.endpoint, count, 1, 0, begin)?,
                Idle { accounts },
            ),
            Protocol::Amqp => Connections::Amqp(amqp_idle::AmqpIdle::new(&target.endpoint, accounts, count)?),
        };
        let bar = output::progress(u64::from(self.connections), "connections");
        let opened = connections.open_all(|open| bar.set_position(open as u64));
        bar.finish_and_clear();
        opened?;
        let opening_seconds = begin.elapsed().as_secs_f64();
        let open = target.usage()?.context("the server is gone")?;
        let quiet = Instant::now();
        while quiet.elapsed() < self.settle.0 {
            connections.turn()?;
        }
        let after = target.usage()?.context("the server is gone")?;
        anyhow::ensure!(
            connections.open_count() == count,
            "some connections ended meanwhile"
        );
        let mut subject = Subject::new(&target.name, &target.version);
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let grown = after.rss_bytes as f64 - before.rss_bytes as f64;
        subject.add(
            "bytesPerConnection",
            "memory per connection",
            Unit::Bytes,
            grown / count as f64,
        );
        subject.add(
            "serverRssBeforeMib",
            "server memory before",
            Unit::Mebibytes,
            mib(before.rss_bytes),
        );
        subject.add(
            "serverRssAfterMib",
            "server memory after",
            Unit::Mebibytes,
            mib(after.rss_bytes),
        );
        subject.add(
            "serverRssMaxMib",
            "server memory at most",
            Unit::Mebibytes,
            mib(after.rss_bytes_max),
        );
        subject.add(
            "openedPerSecond",
            "opened/s",
            Unit::Count,
            count as f64 / opening_seconds,
        );
        let cpu = open.cpu_seconds() - before.cpu_seconds();
        if cpu > 0.0 {
            subject.add(
                "openedPerServerCpuSecond",
                "opened/server CPU-second",
                Unit::Count,
                count as f64 / cpu,
            );
        }
        let cpu = (after.cpu_seconds() - open.cpu_seconds()) / quiet.elapsed().as_secs_f64();
        subject.add("serverCoresIdle", "server cores when idle", Unit::Cores, cpu);
        Ok(subject)
    }
}

/// Connections of either protocol.
enum Connections<'a> {
    Mqtt(Fleet, Idle<'a>),
    Amqp(amqp_idle::AmqpIdle<'a>),
}

impl Connections<'_> {
    fn open_all(&mut self, progress: impl FnMut(usize)) -> anyhow::Result<()> {
        match self {
            Connections::Mqtt(fleet, idle) => fleet.open_all(idle, OPENING_AT_ONCE, PATIENCE, progress),
            Connections::Amqp(idle) => idle.open_all(OPENING_AT_ONCE, PATIENCE, progress),
        }
    }

    fn turn(&mut self) -> anyhow::Result<()> {
        let wait = Duration::from_millis(100);
        match self {
            Connections::Mqtt(fleet, idle) => fleet.turn(idle, wait),
            Connections::Amqp(idle) => idle.turn(wait),
        }
    }

    const fn open_count(&self) -> usize {
        match self {
            Connections::Mqtt(fleet, _) => fleet.open_count(),
            Connections::Amqp(idle) => idle.open_count(),
        }
    }
}

/// Logs in, subscribes and keeps quiet.
struct Idle<'a> {
    accounts: &'a Accounts,
}

impl Driver for Idle<'_> {
    fn account(&mut self, index: usize) -> Account {
        self.accounts.account(index)
    }

    fn filters(&self, index: usize) -> Vec<String> {
        self.accounts.filters(index)
    }

    fn opened(&mut self, link: &mut Link<'_>) {
        // What the login needed is not needed any more.
        link.session.shrink();
    }

    fn event(&mut self, _link: &mut Link<'_>, _event: Event<'_>) {}

    fn lost(&mut self, index: usize, why: Lost) -> anyhow::Result<()> {
        Err(why).with_context(|| format!("connection {index} failed"))
    }
}
