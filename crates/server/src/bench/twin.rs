//! `bench twin`: twins over MQTT, read and changed by their devices.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use holdfast_mqtt::QoS;
use holdfast_mqtt::client::{Event, Message};
use holdfast_program::units::Span;

use super::Stage;
use super::devices::Accounts;
use super::fleet::{Account, Driver, Fleet, Link, Lost};
use super::histogram::Histogram;
use super::mqtt_load::{OPENING_AT_ONCE, PATIENCE};
use super::report::{Report, Subject};
use super::stages::{self, LOOK, Plan, Shared};
use super::target::{Target, TargetOptions};
use crate::cli::output::Format;
use crate::cli::profile::Wanted;

/// Twin reads, then durable changes of reported properties, per second.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Requests go out at QoS 0, since the answer is acknowledgement enough; a change is answered when it is on the disk.\n\nExamples:\n  holdfast bench twin\n  holdfast bench twin --connections 1000 --window 1"
)]
pub(crate) struct TwinArgs {
    #[command(flatten)]
    target: TargetOptions,
    /// Connections, each of a device of its own
    #[arg(long, short = 'c', value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Requests that a device has under way
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    window: u16,
    /// How long to measure reads, and then changes
    #[arg(long, short = 'd', value_name = "DURATION", default_value = "5s")]
    duration: Span,
    /// How long to send before each
    #[arg(long, value_name = "DURATION", default_value = "1s")]
    warm_up: Span,
}

impl TwinArgs {
    pub(crate) fn run(self, wanted: &Wanted, format: Format) -> anyhow::Result<()> {
        let stage = Stage::new("twin");
        let target = self.target.hub(wanted)?;
        let accounts = target.accounts(self.connections as usize)?;
        let measured = self.measure(&target, &accounts, &stage);
        let cleaned = target.clean_up(&accounts);
        let mut report = Report::new(
            "twin",
            serde_json::json!({
                "connections": self.connections,
                "window": self.window,
                "duration": self.duration.to_string(),
                "tls": self.target.tls,
            }),
        );
        report.subjects = measured?;
        cleaned?;
        drop((stage, target));
        report.print(format)
    }

    fn measure(&self, target: &Target, accounts: &Accounts, stage: &Stage) -> anyhow::Result<Vec<Subject>> {
        let mut subjects = Vec::new();
        for (request, name) in [(Request::Read, "reads"), (Request::Change, "changes")] {
            stage.prefix(&format!("twin {name}"));
            let plan = Plan {
                threads: 1,
                warm_up: self.warm_up.0,
                duration: self.duration.0,
            };
            let worker = |_: usize, shared: &Shared| self.load(target, accounts, request, shared);
            let outcome = stages::run(target, plan, &worker, &|what| stage.say(what))?;
            let mut subject = Subject::new(name, &target.version);
            outcome.add_to(
                &mut subject,
                ("answeredPerSecond", "answered/s"),
                ("answeredPerServerCpuSecond", "answered/server CPU-second"),
            );
            subjects.push(subject);
        }
        Ok(subjects)
    }

    fn load(
        &self,
        target: &Target,
        accounts: &Accounts,
        request: Request,
        shared: &Shared,
    ) -> anyhow::Result<Histogram> {
        let size = self.connections as usize;
        let mut fleet = Fleet::new(&target.endpoint, size, 1, 0, Instant::now())?;
        let mut twins = Twins {
            accounts,
            request,
            window: self.window,
            under_way: vec![0; size],
            sending: false,
            measuring: false,
            answered: 0,
            changes: 0,
            fault: None,
            latency: Histogram::default(),
            topic: String::new(),
            body: String::new(),
        };
        fleet.open_all(&mut twins, OPENING_AT_ONCE, PATIENCE, |_| {})?;
        shared.ready();
        while !shared.begun() {
            fleet.turn(&mut twins, LOOK)?;
        }
        twins.sending = true;
        for index in 0..size {
            fleet.act(&mut twins, index, Twins::fill)?;
        }
        while !shared.stopped() {
            fleet.turn(&mut twins, Duration::from_millis(100))?;
            shared.add(std::mem::take(&mut twins.answered));
            twins.measuring = shared.measuring();
            if let Some(fault) = twins.fault.take() {
                anyhow::bail!("the hub refused a request: {fault}");
            }
        }
        Ok(twins.latency)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Request {
    Read,
    Change,
}

/// Asks for twins, or changes them, and counts answers.
struct Twins<'a> {
    accounts: &'a Accounts,
    request: Request,
    window: u16,
    /// Requests without answer, by connection.
    under_way: Vec<u16>,
    sending: bool,
    measuring: bool,
    answered: u64,
    changes: u64,
    fault: Option<String>,
    latency: Histogram,
    /// Kept for their memory.
    topic: String,
    body: String,
}

impl Twins<'_> {
    /// Sends what the window takes. The request id is the time of sending.
    fn fill(&mut self, link: &mut Link<'_>) {
        while self.under_way[link.index] < self.window {
            self.topic.clear();
            self.body.clear();
            let rid = link.now_ns;
            // Writing to a string cannot fail.
            let _ = match self.request {
                Request::Read => write!(self.topic, "$iothub/twin/GET/?$rid={rid}"),
                Request::Change => {
                    self.changes += 1;
                    let _ = write!(self.body, r#"{{"counter":{},"state":"running"}}"#, self.changes);
                    write!(self.topic, "$iothub/twin/PATCH/properties/reported/?$rid={rid}")
                }
            };
            let message = Message {
                topic: &self.topic,
                payload: self.body.as_bytes(),
                ..Message::default()
            };
            debug_assert_eq!(message.qos, QoS::AtMostOnce);
            if link.session.publish(&message, link.now_ms(), link.out).is_err() {
                return link.close();
            }
            self.under_way[link.index] += 1;
        }
    }
}

/// Status and request id of `$iothub/twin/res/{status}/?$rid={rid}[&…]`.
fn parse_answer(topic: &str) -> Option<(&str, u64)> {
    let (status, query) = topic.strip_prefix("$iothub/twin/res/")?.split_once("/?$rid=")?;
    let rid = query.split('&').next()?;
    Some((status, rid.parse().ok()?))
}

impl Driver for Twins<'_> {
    fn account(&mut self, index: usize) -> Account {
        self.accounts.account(index)
    }

    fn filters(&self, _index: usize) -> Vec<String> {
        vec!["$iothub/twin/res/#".to_owned()]
    }

    fn opened(&mut self, _link: &mut Link<'_>) {}

    fn event(&mut self, link: &mut Link<'_>, event: Event<'_>) {
        let Event::Publish(publish) = event else { return };
        let Some((status, sent_ns)) = parse_answer(publish.topic) else {
            return;
        };
        if !status.starts_with('2') {
            let body = String::from_utf8_lossy(publish.payload);
            self.fault = Some(format!("status {status}: {body}"));
        }
        self.under_way[link.index] = self.under_way[link.index].saturating_sub(1);
        self.answered += 1;
        if self.measuring {
            self.latency.record(link.now_ns.saturating_sub(sent_ns));
        }
    }

    fn batch(&mut self, link: &mut Link<'_>) {
        if self.sending {
            self.fill(link);
        }
    }

    fn lost(&mut self, index: usize, why: Lost) -> anyhow::Result<()> {
        Err(why).with_context(|| format!("device {index} failed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_recognised() {
        assert_eq!(parse_answer("$iothub/twin/res/200/?$rid=17"), Some(("200", 17)));
        assert_eq!(
            parse_answer("$iothub/twin/res/204/?$rid=9&$version=4"),
            Some(("204", 9))
        );
        assert_eq!(
            parse_answer("$iothub/twin/PATCH/properties/desired/?$version=2"),
            None
        );
    }
}
