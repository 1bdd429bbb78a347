//! `bench provision`: registrations of devices at the provisioning service.
//!
//! Every registration is of a new device, so that each one ends with a device made on the hub, on the disk. What is
//! counted is a result in the hands of the device.

pub(crate) mod group;
mod https;
pub(crate) mod mqtt;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use holdfast_observe::process::{Usage, own_usage};

use super::Stage;
use super::devices;
use super::fleet::{Fleet, Trust};
use super::histogram::Histogram;
use super::report::{Report, Subject, Unit};
use super::target::{Target, TargetOptions};
use crate::cli::output::Format;
use crate::cli::profile::{Login, Wanted};
use group::{Attestation, Group, Proof, Service};
use mqtt::{Job, Registering, register_all};

/// Group of the measurement.
const GROUP: &str = "bench-group";

/// Source addresses of the threads begin so far apart, in connections.
const NUMBERS_PER_THREAD: usize = 600_000;

/// Proofs made ahead: more would be memory of the generator for nothing.
const PROOFS_MAX: usize = 200_000;

/// Samples of the server's memory over a run.
const SAMPLES: usize = 10;

/// What carries a registration.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Protocol {
    /// A connection per device, with CONNECT, SUBSCRIBE, PUBLISH and the answer
    Mqtt,
    /// PUT and GET; connections are kept and shared by devices with keys
    Https,
}

/// Registrations of new devices per second, and the server's memory over them.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Devices with certificates need a connection each, whose TLS handshake is a full one.\n\nExamples:\n  holdfast bench provision                                     keys, HTTPS\n  holdfast bench provision --protocol mqtt                     keys, MQTT over TLS\n  holdfast bench provision --attestation x509 --protocol mqtt\n  holdfast bench provision --count 100000                      memory over many registrations"
)]
pub(crate) struct ProvisionArgs {
    #[command(flatten)]
    target: TargetOptions,
    /// How devices prove themselves
    #[arg(long, value_enum, default_value_t = Attestation::SymmetricKey)]
    attestation: Attestation,
    /// What carries the registrations
    #[arg(long, value_enum, default_value_t = Protocol::Https)]
    protocol: Protocol,
    /// MQTT without TLS
    #[arg(long, conflicts_with = "tls")]
    plain: bool,
    /// Registrations to measure
    #[arg(long, short = 'n', value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Registrations before that
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    warm_up: u32,
    /// Registrations under way at once: connections of HTTPS, handshakes of MQTT
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    at_once: u16,
}

/// What the threads of a run share.
struct Run<'a> {
    args: &'a ProvisionArgs,
    group: &'a Group,
    login: &'a Login,
    proofs: Vec<Proof>,
    next: AtomicUsize,
    done: AtomicUsize,
    failed: AtomicBool,
    /// Registrations, those of the warm-up among them.
    total: usize,
}

impl ProvisionArgs {
    pub(crate) fn run(mut self, wanted: &Wanted, format: Format) -> anyhow::Result<()> {
        self.target.tls = self.protocol == Protocol::Mqtt && !self.plain;
        anyhow::ensure!(
            self.attestation == Attestation::SymmetricKey || !self.plain,
            "devices with certificates need TLS"
        );
        let stage = Stage::new("provision");
        let target = self.target.hub(wanted)?;
        let wanted = match target.data_dir() {
            Some(dir) => &Wanted {
                data_dir: Some(dir),
                no_profile: true,
                ..Wanted::default()
            },
            None => wanted,
        };
        let (service, login) = Service::find(wanted)?;
        let group = Group::create(&service, GROUP, self.attestation)?;
        let measured = self.measure(&target, &group, &login, &stage);
        let cleaned = self.clean_up(&target, &service, &group);
        let mut report = Report::new(
            "provision",
            serde_json::json!({
                "attestation": format!("{:?}", self.attestation),
                "protocol": format!("{:?}", self.protocol),
                "tls": !self.plain,
                "count": self.count,
                "atOnce": self.at_once,
            }),
        );
        let (subject, note) = measured?;
        report.subjects.push(subject);
        report.notes.extend(note);
        cleaned?;
        drop((stage, target));
        report.print(format)
    }

    fn clean_up(&self, target: &Target, service: &Service, group: &Group) -> anyhow::Result<()> {
        if !target.stays() {
            return Ok(());
        }
        group.delete(service)?;
        let ids = (0..(self.count + self.warm_up) as usize).map(name);
        devices::delete_ids(target.rest()?, ids.collect())
    }

    fn measure(
        &self,
        target: &Target,
        group: &Group,
        login: &Login,
        stage: &Stage,
    ) -> anyhow::Result<(Subject, Option<String>)> {
        let total = (self.count + self.warm_up) as usize;
        let mut run = Run {
            args: self,
            group,
            login,
            proofs: Vec::new(),
            next: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            total,
        };
        if self.attestation == Attestation::X509 {
            stage.say("issuing certificates");
            run.proofs = (0..total.min(PROOFS_MAX))
                .map(|number| group.proof(&name(number)))
                .collect::<anyhow::Result<_>>()?;
        }
        let latency = Mutex::new(Histogram::default());
        let threads = match self.protocol {
            Protocol::Mqtt => 1,
            Protocol::Https => usize::from(self.at_once),
        };
        let measured = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|thread| {
                    let (run, latency) = (&run, &latency);
                    scope.spawn(move || {
                        let outcome = run.work(target, thread, latency);
                        run.failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
                        outcome
                    })
                })
                .collect();
            let measured = run.watch(target, stage);
            for worker in workers {
                let ended = worker.join();
                ended.map_err(|_| anyhow::anyhow!("a generator thread panicked"))??;
            }
            measured
        })?;
        let latency = latency.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(self.subject(target, &measured, &latency))
    }

    fn subject(
        &self,
        target: &Target,
        measured: &Measured,
        latency: &Histogram,
    ) -> (Subject, Option<String>) {
        let mut subject = Subject::new(&target.name, &target.version);
        let (count, seconds) = (measured.count as f64, measured.seconds);
        subject.add("registrations", "registrations", Unit::Count, count);
        subject.add(
            "registrationsPerSecond",
            "registrations/s",
            Unit::Count,
            count / seconds,
        );
        let mib = |usage: &Usage| usage.rss_bytes as f64 / f64::from(1 << 20);
        if let (Some(first), Some(last)) = (measured.server.first(), measured.server.last()) {
            let cpu = last.cpu_seconds() - first.cpu_seconds();
            subject.add(
                "registrationsPerServerCpuSecond",
                "registrations/server CPU-second",
                Unit::Count,
                count / cpu.max(0.001),
            );
            subject.add("serverCores", "server cores", Unit::Cores, cpu / seconds);
            subject.add(
                "serverRssStartMib",
                "server memory, start",
                Unit::Mebibytes,
                mib(first),
            );
            subject.add("serverRssMib", "server memory, end", Unit::Mebibytes, mib(last));
        }
        let cores = measured.generator_cpu_seconds / seconds;
        subject.add("generatorCores", "generator cores", Unit::Cores, cores);
        subject.add_latency(latency);
        let samples: Vec<String> = measured
            .server
            .iter()
            .map(|usage| format!("{:.0}", mib(usage)))
            .collect();
        let note = (!samples.is_empty()).then(|| {
            format!(
                "server memory at the start and after each tenth of the run, MiB: {}",
                samples.join(" ")
            )
        });
        (subject, note)
    }
}

/// What was seen.
struct Measured {
    count: usize,
    seconds: f64,
    generator_cpu_seconds: f64,
    /// At the start, after each tenth, at the end.
    server: Vec<Usage>,
}

impl Run<'_> {
    /// Follows the run and takes the samples.
    fn watch(&self, target: &Target, stage: &Stage) -> anyhow::Result<Measured> {
        let warm_up = self.args.warm_up as usize;
        stage.say("warming up");
        self.wait_for(warm_up);
        let (before, own, begun) = (self.done.load(Ordering::Relaxed), own_usage()?, Instant::now());
        let mut server: Vec<Usage> = target.usage()?.into_iter().collect();
        for sample in 1..=SAMPLES {
            stage.say(&format!("measuring, {} of {SAMPLES}", sample - 1));
            self.wait_for(before + (self.total - before) * sample / SAMPLES);
            server.extend(target.usage()?);
        }
        let seconds = begun.elapsed().as_secs_f64();
        Ok(Measured {
            count: self.done.load(Ordering::Relaxed) - before,
            seconds,
            generator_cpu_seconds: own_usage()?.cpu_seconds() - own.cpu_seconds(),
            server,
        })
    }

    fn wait_for(&self, done: usize) {
        while self.done.load(Ordering::Relaxed) < done && !self.failed.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn job(&self) -> anyhow::Result<Option<Job>> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if number >= self.total || self.failed.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let registration_id = name(number);
        let proof = match self.proofs.get(number) {
            Some(proof) => proof.clone(),
            None => self.group.proof(&registration_id)?,
        };
        Ok(Some(Job {
            number,
            registration_id,
            proof,
        }))
    }

    fn ended(&self, number: usize, nanoseconds: u64, latency: &mut Histogram) {
        self.done.fetch_add(1, Ordering::Relaxed);
        if number >= self.args.warm_up as usize {
            latency.record(nanoseconds);
        }
    }

    fn work(&self, target: &Target, thread: usize, latency: &Mutex<Histogram>) -> anyhow::Result<()> {
        let mut own = Histogram::default();
        match self.args.protocol {
            Protocol::Mqtt => self.over_mqtt(target, thread, &mut own)?,
            Protocol::Https => self.over_https(&mut own)?,
        }
        let mut all = latency.lock().unwrap_or_else(PoisonError::into_inner);
        all.merge(&own);
        Ok(())
    }

    fn over_mqtt(&self, target: &Target, thread: usize, latency: &mut Histogram) -> anyhow::Result<()> {
        let (at_once, clock) = (usize::from(self.args.at_once), Instant::now());
        let trust = self.login.ca.as_deref().map_or(Trust::System, Trust::Ca);
        let mut fleet = Fleet::new(&target.endpoint, at_once, 1, thread * NUMBERS_PER_THREAD, clock)?;
        let mut registering = Registering::new(self.group, &target.endpoint, trust, at_once, clock);
        register_all(
            &mut registering,
            &mut fleet,
            || self.job(),
            |done| {
                self.ended(done.job.number, done.nanoseconds, latency);
            },
        )
    }

    fn over_https(&self, latency: &mut Histogram) -> anyhow::Result<()> {
        let mut kept = None;
        while let Some(job) = self.job()? {
            let begun = Instant::now();
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => https::connect(self.login, &job.proof).context("cannot connect")?,
            };
            https::register(&mut connection, self.group, &job.registration_id, &job.proof)?;
            if matches!(job.proof, Proof::Key(_)) {
                kept = Some(connection);
            }
            let nanoseconds = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.ended(job.number, nanoseconds, latency);
        }
        Ok(())
    }
}

fn name(number: usize) -> String {
    format!("bench-{number:07}")
}
