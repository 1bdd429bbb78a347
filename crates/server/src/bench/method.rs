//! `bench method`: direct methods, from a service's POST to the device's answer and back.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use holdfast_model::Timestamp;
use holdfast_model::credential::sign_sas;
use holdfast_mqtt::QoS;
use holdfast_mqtt::client::{Event, Message};
use holdfast_program::units::Span;

use super::Stage;
use super::devices::{Accounts, Device};
use super::fleet::{Account, Driver, Fleet, Link, Lost};
use super::histogram::Histogram;
use super::http::HttpsConnection;
use super::mqtt_load::{OPENING_AT_ONCE, PATIENCE};
use super::report::{Report, Subject};
use super::stages::{self, LOOK, Outcome, Plan, Shared};
use super::target::{Target, TargetOptions};
use crate::cli::client::{API_VERSION, segment};
use crate::cli::output::Format;
use crate::cli::profile::{Login, Wanted};

/// Answers that a device may have under way.
const ANSWERS_MAX: u16 = 1_024;

/// What of a call must come back: proof that the device answered, not the hub for it.
const ECHO: &[u8] = br#""value":42"#;

/// What every call asks for.
const CALL: &[u8] = br#"{"methodName":"echo","responseTimeoutInSeconds":30,"payload":{"value":42}}"#;

/// Round trip of direct methods: HTTPS to the hub, MQTT to the device, and back.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Each caller has a kept-alive HTTPS connection and makes one call at a time; devices answer at once.\n\nExamples:\n  holdfast bench method                         1,000 calls per second\n  holdfast bench method --rate 0 --callers 32   as many as 32 callers can make"
)]
pub(crate) struct MethodArgs {
    #[command(flatten)]
    target: TargetOptions,
    /// Devices that answer
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    devices: u32,
    /// Callers
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    callers: u16,
    /// Calls per second in all, evenly; 0 for as many as the callers can make
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    rate: u32,
    /// How long to measure
    #[arg(long, short = 'd', value_name = "DURATION", default_value = "10s")]
    duration: Span,
    /// How long to call before that
    #[arg(long, value_name = "DURATION", default_value = "2s")]
    warm_up: Span,
}

impl MethodArgs {
    pub(crate) fn run(self, wanted: &Wanted, format: Format) -> anyhow::Result<()> {
        let stage = Stage::new("method");
        let target = self.target.hub(wanted)?;
        let accounts = target.accounts(self.devices as usize)?;
        let outcome = self.measure(&target, &accounts, &stage);
        let cleaned = target.clean_up(&accounts);
        let mut report = Report::new(
            "method",
            serde_json::json!({
                "devices": self.devices,
                "callers": self.callers,
                "rate": (self.rate > 0).then_some(self.rate),
                "duration": self.duration.to_string(),
                "tls": self.target.tls,
            }),
        );
        let mut subject = Subject::new(&target.name, &target.version);
        outcome?.add_to(
            &mut subject,
            ("callsPerSecond", "calls/s"),
            ("callsPerServerCpuSecond", "calls/server CPU-second"),
        );
        report.subjects.push(subject);
        cleaned?;
        drop((stage, target));
        report.print(format)
    }

    fn measure(&self, target: &Target, accounts: &Accounts, stage: &Stage) -> anyhow::Result<Outcome> {
        let Accounts::Devices { devices, .. } = accounts else {
            anyhow::bail!("the target is not a hub");
        };
        let login = target.rest()?.login();
        let schedule = Schedule::new(self.rate);
        let plan = Plan {
            threads: usize::from(self.callers),
            warm_up: self.warm_up.0,
            duration: self.duration.0,
        };
        let done = AtomicBool::new(false);
        let (ready, is_ready) = mpsc::channel();
        stage.say("connecting devices");
        thread::scope(|scope| {
            let answers = scope.spawn(|| answer_methods(target, accounts, devices.len(), ready, &done));
            let caller = |caller: usize, shared: &Shared| call(login, devices, caller, &schedule, shared);
            let outcome = match is_ready.recv() {
                Ok(()) => stages::run(target, plan, &caller, &|what| stage.say(what)),
                Err(_) => Err(anyhow::anyhow!("the devices did not connect")),
            };
            done.store(true, Ordering::Relaxed);
            // A device that failed explains a call that did.
            answers
                .join()
                .map_err(|_| anyhow::anyhow!("the devices' thread panicked"))??;
            outcome
        })
    }
}

/// Plays all devices until `done`; tells when they are connected, or drops `ready` if they cannot be.
fn answer_methods(
    target: &Target,
    accounts: &Accounts,
    devices: usize,
    ready: mpsc::Sender<()>,
    done: &AtomicBool,
) -> anyhow::Result<()> {
    let mut fleet = Fleet::new(&target.endpoint, devices, ANSWERS_MAX, 0, Instant::now())?;
    let mut answering = Answering { accounts };
    fleet.open_all(&mut answering, OPENING_AT_ONCE, PATIENCE, |_| {})?;
    // The receiver waits for exactly this.
    let _ = ready.send(());
    while !done.load(Ordering::Relaxed) {
        fleet.turn(&mut answering, Duration::from_millis(50))?;
    }
    Ok(())
}

/// When the next call is due, for all callers together.
struct Schedule {
    start: Instant,
    interval: Duration,
    next: AtomicU64,
}

impl Schedule {
    fn new(rate: u32) -> Self {
        Schedule {
            start: Instant::now(),
            interval: if rate == 0 {
                Duration::ZERO
            } else {
                Duration::from_secs(1) / rate
            },
            next: AtomicU64::new(0),
        }
    }

    /// Waits for the next call's time; returns its number and when its latency begins.
    fn wait(&self) -> (u64, Instant) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        if self.interval.is_zero() {
            return (number, now);
        }
        let due = self.start + self.interval.mul_f64(number as f64);
        let early = due.saturating_duration_since(now);
        if early.is_zero() {
            // All callers were busy when this call was due: its wait is the hub's.
            return (number, due);
        }
        // Waking up takes a while, which is not the hub's.
        thread::sleep(early);
        (number, Instant::now())
    }

    /// Begins anew: what was due while connections were opened is not.
    fn restart_from(&self, now: Instant) {
        if !self.interval.is_zero() {
            let passed = now.duration_since(self.start).as_nanos() / self.interval.as_nanos().max(1);
            self.next
                .fetch_max(u64::try_from(passed).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }
}

fn call(
    login: &Login,
    devices: &[Device],
    caller: usize,
    schedule: &Schedule,
    shared: &Shared,
) -> anyhow::Result<Histogram> {
    let mut connection = HttpsConnection::open(login)?;
    let token = service_token(login);
    let paths: Vec<String> = devices
        .iter()
        .map(|device| format!("/twins/{}/methods?api-version={API_VERSION}", segment(&device.id)))
        .collect();
    // The first call of a connection pays for its handshake.
    one_call(&mut connection, &paths[caller % paths.len()], &token)?;
    shared.ready();
    while !shared.begun() {
        thread::sleep(LOOK);
    }
    schedule.restart_from(Instant::now());
    let mut latency = Histogram::default();
    while !shared.stopped() {
        let (number, begin) = schedule.wait();
        one_call(&mut connection, &paths[number as usize % paths.len()], &token)?;
        shared.add(1);
        if shared.measuring() {
            latency.record(u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
    }
    Ok(latency)
}

fn one_call(connection: &mut HttpsConnection, path: &str, token: &str) -> anyhow::Result<()> {
    let (status, body) = connection.post(path, token, CALL)?;
    anyhow::ensure!(
        status == 200,
        "a call was answered with HTTP {status}: {}",
        String::from_utf8_lossy(body)
    );
    anyhow::ensure!(
        body.windows(ECHO.len()).any(|part| part == ECHO),
        "a call was answered, but not by its device: {}",
        String::from_utf8_lossy(body)
    );
    Ok(())
}

fn service_token(login: &Login) -> String {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let expiry = i64::try_from(since.as_secs() + 24 * 3_600).unwrap_or(i64::MAX);
    sign_sas(
        &login.host,
        &login.key,
        Timestamp::from_seconds(expiry),
        Some(&login.policy),
    )
}

/// Answers every method with what it was given.
struct Answering<'a> {
    accounts: &'a Accounts,
}

impl Driver for Answering<'_> {
    fn account(&mut self, index: usize) -> Account {
        self.accounts.account(index)
    }

    fn filters(&self, _index: usize) -> Vec<String> {
        vec!["$iothub/methods/POST/#".to_owned()]
    }

    fn opened(&mut self, _link: &mut Link<'_>) {}

    fn event(&mut self, link: &mut Link<'_>, event: Event<'_>) {
        let Event::Publish(publish) = event else { return };
        let Some((_, request)) = publish.topic.split_once("/?$rid=") else {
            return;
        };
        let topic = format!("$iothub/methods/res/200/?$rid={request}");
        let answer = Message {
            topic: &topic,
            payload: publish.payload,
            qos: QoS::AtLeastOnce,
            ..Message::default()
        };
        if link.session.publish(&answer, link.now_ms(), link.out).is_err() {
            // A thousand answers without acknowledgement: the call in question runs into its timeout.
            link.close();
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
    fn calls_are_due_evenly() {
        let schedule = Schedule::new(100_000);
        let first = schedule.wait();
        let second = schedule.wait();
        assert_eq!((first.0, second.0), (0, 1));
        assert!(second.1 > first.1);
        schedule.restart_from(schedule.start + Duration::from_secs(1));
        assert_eq!(schedule.next.load(Ordering::Relaxed), 100_000);
        let unpaced = Schedule::new(0);
        assert_eq!((unpaced.wait().0, unpaced.wait().0), (0, 1));
    }
}
