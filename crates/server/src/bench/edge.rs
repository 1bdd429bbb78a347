//! `bench edge`: messages between modules of an edge hub.
//!
//! Pairs of modules: one sends to its output, a route takes the messages to the input of the other, which acknowledges
//! them. What is counted is messages that have reached the second module; each was durable in the edge hub before the
//! first one had its acknowledgement. Every message carries its number and the time it was due, so that the receiving side
//! sees lost, repeated and reordered messages, and the time from module to module.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use holdfast_model::Timestamp;
use holdfast_model::credential::{SymmetricKey, sign_sas};
use holdfast_mqtt::client::{Event, Message};
use holdfast_mqtt::{QoS, SendError};
use holdfast_program::failure::{Failure, Kind};
use holdfast_program::units::Span;
use rustls::pki_types::ServerName;
use serde_json::json;

use super::Stage;
use super::devices::{KEEP_ALIVE_SECONDS, now_seconds};
use super::fleet::{Account, Driver, Endpoint, Fleet, Link, Lost, TlsClient, Trust, client_config};
use super::histogram::Histogram;
use super::mqtt_load::{OPENING_AT_ONCE, PATIENCE};
use super::pacing::Pace;
use super::report::{Report, Subject, Unit};
use super::spawn::{EdgeHub, WorkDir};
use super::stages::{self, LOOK, Plan, Shared};
use super::target::Target;
use crate::cli::output::Format;

/// Device of the edge hub under test.
const DEVICE: &str = "bench-edge";
/// Name that clients use for the hub above, which there is none of.
const HUB: &str = "bench.hub";
/// Number and due time at the beginning of a payload.
const STAMP_BYTES: usize = 16;

/// Messages from module to module through an edge hub, per second and per CPU-second, and their latency.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  holdfast bench edge                        as fast as it goes, ten pairs of modules\n  holdfast bench edge --rate 5000            latency at an even load\n  holdfast bench edge --duration 60s --output json\n\nThe program holdfast-edge is looked for beside this one (in a build directory: cargo build --profile size);\n--program names another."
)]
pub(crate) struct EdgeArgs {
    /// Pairs of modules
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=50))]
    pairs: u16,
    /// Bytes of a message
    #[arg(long, value_name = "BYTES", default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=200_000))]
    payload: u32,
    /// Messages that a module sends ahead of acknowledgements
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    window: u16,
    /// How long to measure
    #[arg(long, short = 'd', value_name = "DURATION", default_value = "10s")]
    duration: Span,
    /// How long to send before that
    #[arg(long, value_name = "DURATION", default_value = "2s")]
    warm_up: Span,
    /// Messages per second in all, evenly; as many as the windows allow if not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// The program holdfast-edge
    #[arg(
        long,
        value_name = "FILE",
        env = "HOLDFAST_EDGE_PROGRAM",
        hide_env_values = true
    )]
    program: Option<PathBuf>,
    /// Directory for the data of the edge hub; the disk below it is part of the measurement [default: the temporary one]
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
}

impl EdgeArgs {
    pub(crate) fn run(self, format: Format) -> anyhow::Result<()> {
        let stage = Stage::new("edge");
        let dir = WorkDir::new(self.work_dir.as_deref())?;
        let modules = Modules::new(self.pairs);
        modules.write_files(&dir)?;
        let hub = EdgeHub::start(self.program.clone(), dir.path(), DEVICE, HUB)?;
        let endpoint = Endpoint {
            address: hub.address(),
            tls: Some(TlsClient {
                config: client_config(Trust::Anyone, true)?,
                name: ServerName::try_from("localhost").context("localhost is a name")?,
            }),
        };
        let pid = hub.pid();
        let target = Target::edge(endpoint.clone(), hub, dir);
        let clock = Instant::now();
        let plan = Plan {
            threads: 1,
            warm_up: self.warm_up.0,
            duration: self.duration.0,
        };
        let worker = |_: usize, shared: &Shared| self.work(&endpoint, &modules, clock, shared);
        let outcome = stages::run(&target, plan, &worker, &|what| stage.say(what))?;
        let mut report = Report::new("edge", self.parameters());
        let mut subject = Subject::new(&target.name, &target.version);
        outcome.add_to(
            &mut subject,
            ("receivedPerSecond", "received/s"),
            ("receivedPerServerCpuSecond", "received/server CPU-second"),
        );
        subject.add("serverPssMib", "server PSS", Unit::Mebibytes, pss_mib(pid)?);
        report.subjects.push(subject);
        drop((stage, target));
        report.print(format)
    }

    fn parameters(&self) -> serde_json::Value {
        json!({
            "pairs": self.pairs,
            "payload": self.payload,
            "window": self.window,
            "duration": self.duration.to_string(),
            "rate": self.rate,
        })
    }

    fn work(
        &self,
        endpoint: &Endpoint,
        modules: &Modules,
        clock: Instant,
        shared: &Shared,
    ) -> anyhow::Result<Histogram> {
        let pairs = usize::from(self.pairs);
        let mut fleet = Fleet::new(endpoint, pairs * 2, self.window, 0, clock)?;
        let mut traffic = Traffic::new(modules, self.payload as usize, self.rate.is_some());
        fleet.open_all(&mut traffic, OPENING_AT_ONCE, PATIENCE, |_| {})?;
        shared.ready();
        while !shared.begun() {
            fleet.turn(&mut traffic, LOOK)?;
        }
        traffic.sending = true;
        let mut pace = Pace::new(fleet.now_ns(), f64::from(self.rate.unwrap_or(1)));
        for sender in 0..pairs {
            fleet.act(&mut traffic, sender, Traffic::fill)?;
        }
        while traffic.follow(shared) {
            let wait = if self.rate.is_some() {
                let now = fleet.now_ns();
                while let Some(due) = pace.take(now) {
                    let sender = (pace.taken() - 1) as usize % pairs;
                    traffic.backlog[sender].push_back(due);
                    fleet.act(&mut traffic, sender, Traffic::fill)?;
                }
                pace.wait(fleet.now_ns()).min(Duration::from_millis(100))
            } else {
                Duration::from_millis(100)
            };
            fleet.turn(&mut traffic, wait)?;
        }
        traffic.finish(&mut fleet)
    }
}

/// Who takes part: modules `s0…` send, `r0…` receive; the first half of the connections are the senders.
struct Modules {
    keys: Vec<(String, SymmetricKey)>,
}

impl Modules {
    fn new(pairs: u16) -> Self {
        let name = |kind: &'static str| (0..pairs).map(move |number| format!("{kind}{number}"));
        Modules {
            keys: name("s")
                .chain(name("r"))
                .map(|name| (name, SymmetricKey::generate()))
                .collect(),
        }
    }

    fn pairs(&self) -> usize {
        self.keys.len() / 2
    }

    /// The manifest and the identities of the edge hub.
    fn write_files(&self, dir: &WorkDir) -> anyhow::Result<()> {
        let routes: BTreeMap<String, String> = (0..self.pairs())
            .map(|number| {
                let route = format!(
                    "FROM /messages/modules/s{number}/outputs/out INTO BrokeredEndpoint(\"/modules/r{number}/inputs/in\")"
                );
                (format!("pair{number}"), route)
            })
            .collect();
        let manifest = json!({ "modulesContent": { "$edgeHub": { "properties.desired": {
            "schemaVersion": "1.1",
            "routes": routes,
            "storeAndForwardConfiguration": { "timeToLiveSecs": 7200 },
        } } } });
        let identities: Vec<_> = self
            .keys
            .iter()
            .map(|(name, key)| json!({ "id": format!("{DEVICE}/{name}"), "keys": [key.reveal()] }))
            .collect();
        let write = |name: &str, value: &serde_json::Value| {
            let path = dir.path().join(name);
            std::fs::write(&path, value.to_string())
                .with_context(|| format!("cannot write {}", path.display()))
        };
        write(EdgeHub::MANIFEST, &manifest)?;
        write(EdgeHub::IDENTITIES, &json!({ "identities": identities }))
    }

    fn account(&self, index: usize) -> Account {
        let (name, key) = &self.keys[index];
        let expiry = Timestamp::from_seconds(now_seconds() + 24 * 3_600);
        let audience = format!("{HUB}/devices/{DEVICE}/modules/{name}");
        Account {
            client_id: format!("{DEVICE}/{name}"),
            username: Some(format!(
                "{HUB}/{DEVICE}/{name}/?api-version=2021-04-12&DeviceClientType=holdfast"
            )),
            password: Some(sign_sas(&audience, key, expiry, None)),
            keep_alive: KEEP_ALIVE_SECONDS,
            clean_session: true,
        }
    }
}

/// Sends, receives, and checks what comes.
struct Traffic<'a> {
    modules: &'a Modules,
    topics: Vec<String>,
    payload: Vec<u8>,
    /// When messages that wait for room in the window were due, by sender.
    backlog: Vec<VecDeque<u64>>,
    /// Number of the next message, by sender.
    next: Vec<u64>,
    /// Number expected next, by receiver.
    expected: Vec<u64>,
    repeated: u64,
    fault: Option<String>,
    paced: bool,
    sending: bool,
    measuring: bool,
    received: u64,
    latency: Histogram,
}

impl<'a> Traffic<'a> {
    fn new(modules: &'a Modules, payload: usize, paced: bool) -> Self {
        let pairs = modules.pairs();
        let topic = |number| format!("devices/{DEVICE}/modules/s{number}/messages/events/%24.on=out");
        Traffic {
            modules,
            topics: (0..pairs).map(topic).collect(),
            payload: (0..payload).map(|byte| b'a' + (byte % 26) as u8).collect(),
            backlog: vec![VecDeque::new(); pairs],
            next: vec![0; pairs],
            expected: vec![0; pairs],
            repeated: 0,
            fault: None,
            paced,
            sending: false,
            measuring: false,
            received: 0,
            latency: Histogram::default(),
        }
    }

    fn fill(&mut self, link: &mut Link<'_>) {
        let sender = link.index;
        loop {
            let due = match (self.paced, self.backlog[sender].front()) {
                (true, Some(due)) => *due,
                (true, None) => return,
                (false, _) => link.now_ns,
            };
            self.payload[..8].copy_from_slice(&self.next[sender].to_le_bytes());
            self.payload[8..STAMP_BYTES].copy_from_slice(&due.to_le_bytes());
            let message = Message {
                topic: &self.topics[sender],
                payload: &self.payload,
                qos: QoS::AtLeastOnce,
                retain: false,
                token: due,
            };
            match link.session.publish(&message, link.now_ms(), link.out) {
                Ok(_) => {
                    self.next[sender] += 1;
                    if self.paced {
                        self.backlog[sender].pop_front();
                    }
                }
                Err(SendError::WindowFull) => return,
                Err(_) => return link.close(),
            }
        }
    }

    fn receive(&mut self, receiver: usize, payload: &[u8], now_ns: u64) {
        let Some((stamp, _)) = payload.split_at_checked(STAMP_BYTES) else {
            self.fault = Some("a message came without its number".to_owned());
            return;
        };
        let word = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).unwrap_or_default();
        let (number, due) = (word(&stamp[..8]), word(&stamp[8..]));
        let expected = &mut self.expected[receiver];
        if number < *expected {
            self.repeated += 1;
            return;
        }
        if number > *expected {
            self.fault = Some(format!("message {number} came where {expected} was due"));
        }
        *expected = number + 1;
        self.received += 1;
        if self.measuring {
            self.latency.record(now_ns.saturating_sub(due));
        }
    }

    /// Tells what was received and takes over the stage; false at the end.
    fn follow(&mut self, shared: &Shared) -> bool {
        shared.add(std::mem::take(&mut self.received));
        self.measuring = shared.measuring();
        !shared.stopped() && self.fault.is_none()
    }

    /// Waits for what is under way, and judges.
    fn finish(mut self, fleet: &mut Fleet) -> anyhow::Result<Histogram> {
        self.sending = false;
        let end = Instant::now() + PATIENCE;
        while self.fault.is_none() && self.expected != self.next && Instant::now() < end {
            fleet.turn(&mut self, Duration::from_millis(20))?;
        }
        let missing: u64 = self.next.iter().sum::<u64>() - self.expected.iter().sum::<u64>();
        let fault = self
            .fault
            .or_else(|| (missing > 0).then(|| format!("{missing} messages did not come")))
            .or_else(|| (self.repeated > 0).then(|| format!("{} messages came twice", self.repeated)));
        match fault {
            None => Ok(self.latency),
            Some(fault) => Err(Failure::new(Kind::Failed, fault).into()),
        }
    }
}

impl Driver for Traffic<'_> {
    fn account(&mut self, index: usize) -> Account {
        self.modules.account(index)
    }

    fn filters(&self, index: usize) -> Vec<String> {
        match index.checked_sub(self.topics.len()) {
            Some(receiver) => vec![format!("devices/{DEVICE}/modules/r{receiver}/inputs/#")],
            None => Vec::new(),
        }
    }

    fn opened(&mut self, _link: &mut Link<'_>) {}

    #[inline]
    fn event(&mut self, link: &mut Link<'_>, event: Event<'_>) {
        if let Event::Publish(publish) = event
            && let Some(receiver) = link.index.checked_sub(self.topics.len())
        {
            self.receive(receiver, publish.payload, link.now_ns);
        }
    }

    #[inline]
    fn batch(&mut self, link: &mut Link<'_>) {
        if self.sending && link.index < self.topics.len() {
            self.fill(link);
        }
    }

    fn lost(&mut self, index: usize, why: Lost) -> anyhow::Result<()> {
        Err(why).with_context(|| format!("the connection of module {} failed", self.modules.keys[index].0))
    }
}

/// Proportional set size of a process.
fn pss_mib(pid: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<f64>().ok());
    Ok(kib.with_context(|| format!("{path} has no Pss"))? / 1024.0)
}
