//! `bench configuration`: from the creation of a configuration to the last connected device that hears of it.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use holdfast_mqtt::client::Event;
use holdfast_program::units::Span;
use serde_json::{Value, json};

use super::Stage;
use super::devices::Accounts;
use super::fleet::{Account, Driver, Fleet, Link, Lost};
use super::histogram::Histogram;
use super::mqtt_load::{OPENING_AT_ONCE, PATIENCE};
use super::report::{Report, Subject, Unit};
use super::target::{Target, TargetOptions};
use crate::cli::client::Client;
use crate::cli::output::{self, Format};
use crate::cli::profile::Wanted;

/// The configuration of the measurement.
const ID: &str = "bench-configuration";

/// How long the hub may take to count them; results of metrics are shown again for a moment.
const COUNT_PATIENCE: Duration = Duration::from_secs(10);

/// What devices are to hear.
const TOPIC: &str = "$iothub/twin/PATCH/properties/desired/";

/// Seconds until a configuration has reached every connected device, and until its end has.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "A device is reached when it has received the patch of its desired properties, which is when that is on the disk. The\nlatency counts from the creation, or the deletion, of the configuration.\n\nExamples:\n  holdfast bench configuration\n  holdfast bench configuration --connections 1000 --tls"
)]
pub(crate) struct ConfigurationArgs {
    #[command(flatten)]
    target: TargetOptions,
    /// Connected devices
    #[arg(long, short = 'c', value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// How long to wait for the last device
    #[arg(long, value_name = "DURATION", default_value = "2m")]
    patience: Span,
}

impl ConfigurationArgs {
    pub(crate) fn run(self, wanted: &Wanted, format: Format) -> anyhow::Result<()> {
        let stage = Stage::new("configuration");
        let target = self.target.hub(wanted)?;
        let accounts = target.accounts(self.connections as usize)?;
        let measured = self.measure(&target, &accounts, &stage);
        // It must not go on to touch a hub that stays.
        let deleted = match (&measured, target.stays()) {
            (Err(_), true) => target
                .rest()?
                .delete(format!("/configurations/{ID}"))
                .send()
                .map(drop),
            _ => Ok(()),
        };
        let cleaned = target.clean_up(&accounts);
        let mut report = Report::new(
            "configuration",
            json!({ "connections": self.connections, "tls": self.target.tls }),
        );
        report.subjects.push(measured?);
        deleted?;
        cleaned?;
        drop((stage, target));
        report.print(format)
    }

    fn measure(&self, target: &Target, accounts: &Accounts, stage: &Stage) -> anyhow::Result<Subject> {
        let size = self.connections as usize;
        let client = target.rest()?;
        let mut fleet = Fleet::new(&target.endpoint, size, 1, 0, Instant::now())?;
        let mut reached = Reached::new(accounts, size);
        let bar = output::progress(u64::from(self.connections), "connections");
        let opened = fleet.open_all(&mut reached, OPENING_AT_ONCE, PATIENCE, |open| {
            bar.set_position(open as u64);
        });
        bar.finish_and_clear();
        opened?;
        let before = target.usage()?;
        let mut subject = Subject::new(&target.name, &target.version);

        stage.say("creating the configuration");
        reached.begin();
        create(client, &common_prefix(accounts))?;
        self.wait(&mut fleet, &mut reached, stage)?;
        let seconds = reached.began.elapsed().as_secs_f64();
        subject.add(
            "reachedMs",
            "all devices reached",
            Unit::Milliseconds,
            seconds * 1e3,
        );
        subject.add_latency(&reached.latency);
        check_counts(client, u64::from(self.connections))?;

        stage.say("deleting the configuration");
        reached.begin();
        client.delete(format!("/configurations/{ID}")).send()?;
        self.wait(&mut fleet, &mut reached, stage)?;
        let seconds = reached.began.elapsed().as_secs_f64();
        subject.add(
            "removedMs",
            "removed from all devices",
            Unit::Milliseconds,
            seconds * 1e3,
        );
        if let (Some(before), Some(after)) = (before, target.usage()?) {
            let cpu = after.cpu_seconds() - before.cpu_seconds();
            subject.add(
                "serverCpuMs",
                "server CPU time for both",
                Unit::Milliseconds,
                cpu * 1e3,
            );
        }
        Ok(subject)
    }

    fn wait(&self, fleet: &mut Fleet, reached: &mut Reached<'_>, stage: &Stage) -> anyhow::Result<()> {
        while reached.count < reached.seen.len() {
            fleet.turn(reached, Duration::from_millis(100))?;
            stage.say(&format!("{} of {} devices", reached.count, reached.seen.len()));
            anyhow::ensure!(
                reached.began.elapsed() < self.patience.0,
                "after {} only {} of {} devices have heard of it",
                self.patience,
                reached.count,
                reached.seen.len()
            );
        }
        Ok(())
    }
}

fn create(client: &Client, prefix: &str) -> anyhow::Result<()> {
    let body = json!({
        "id": ID,
        "priority": 1,
        "targetCondition": format!("STARTSWITH(deviceId, '{prefix}')"),
        "content": { "deviceContent": { "properties.desired.bench.configuration": { "interval": 5, "mode": "batch" } } },
    });
    client.put(format!("/configurations/{ID}")).json(body).send()?;
    Ok(())
}

/// What all devices' ids begin with.
fn common_prefix(accounts: &Accounts) -> String {
    let Accounts::Devices { devices, .. } = accounts else {
        return String::new();
    };
    let (first, last) = (devices.first(), devices.last());
    let (Some(first), Some(last)) = (first, last) else {
        return String::new();
    };
    let same = first.id.bytes().zip(last.id.bytes()).take_while(|(a, b)| a == b);
    first.id[..same.count()].to_owned()
}

/// What the hub says must be what the devices have seen.
fn check_counts(client: &Client, devices: u64) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let shown = client.get(format!("/configurations/{ID}")).send()?;
        let count = shown
            .pointer("/systemMetrics/results/appliedCount")
            .and_then(Value::as_u64);
        if count.is_some_and(|count| count >= devices) {
            return Ok(());
        }
        anyhow::ensure!(
            began.elapsed() < COUNT_PATIENCE,
            "the hub counts {count:?} devices with the configuration, not {devices}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Which devices have heard of the change.
struct Reached<'a> {
    accounts: &'a Accounts,
    began: Instant,
    seen: Vec<bool>,
    count: usize,
    latency: Histogram,
}

impl<'a> Reached<'a> {
    fn new(accounts: &'a Accounts, size: usize) -> Self {
        Reached {
            accounts,
            began: Instant::now(),
            seen: vec![false; size],
            count: 0,
            latency: Histogram::default(),
        }
    }

    fn begin(&mut self) {
        self.began = Instant::now();
        self.seen.fill(false);
        self.count = 0;
        self.latency = Histogram::default();
    }
}

impl Driver for Reached<'_> {
    fn account(&mut self, index: usize) -> Account {
        self.accounts.account(index)
    }

    fn filters(&self, _index: usize) -> Vec<String> {
        vec![format!("{TOPIC}#")]
    }

    fn opened(&mut self, _link: &mut Link<'_>) {}

    fn event(&mut self, link: &mut Link<'_>, event: Event<'_>) {
        let Event::Publish(publish) = event else { return };
        if !publish.topic.starts_with(TOPIC) {
            return;
        }
        if !std::mem::replace(&mut self.seen[link.index], true) {
            self.count += 1;
            let nanoseconds = self.began.elapsed().as_nanos();
            self.latency
                .record(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        }
    }

    fn batch(&mut self, _link: &mut Link<'_>) {}

    fn lost(&mut self, index: usize, why: Lost) -> anyhow::Result<()> {
        Err(why).with_context(|| format!("device {index} failed"))
    }
}
