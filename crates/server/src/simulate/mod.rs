//! `holdfast simulate`: any number of devices that send, answer and report as real ones would.
//!
//! The command line calls [`SimulateCommand::run`] with the login and the output format that are common to all commands.
//!
//! All devices run on one thread, on the connections of `bench::fleet`. Messages are spread evenly over time and devices;
//! a device without a connection keeps its messages for later, and sends again what was not acknowledged.

mod devices;
mod provision;
mod template;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use holdfast_program::failure::{Failure, Kind};
use holdfast_program::units::Span;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use crate::bench::devices::{Device, delete, register};
use crate::bench::fleet::{Fleet, Link};
use crate::bench::pacing::Pace;
use crate::bench::raise_open_files;
use crate::bench::target::{Protocol, hub_endpoint};
use crate::cli::client::Client;
use crate::cli::output::{self, Format};
use crate::cli::profile::{Login, Wanted};
use devices::{Devices, Totals};
use provision::{ProvisionOptions, Provisioned};
use template::Template;

/// Handshakes under way at once.
const OPENING_AT_ONCE: usize = 32;

/// Sending begins when all devices are connected, or after this time.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);

/// Longest wait for acknowledgements at the end.
const DRAIN: Duration = Duration::from_secs(10);

/// How often pings are looked at.
const PING_SWEEP: Duration = Duration::from_secs(1);

/// Arguments of `holdfast simulate`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Devices are called PREFIX0, PREFIX1 and so on. They are created, or given new keys if they exist; with\n--provision they register themselves. They answer every\ndirect method with status 200 and its own payload, and report desired properties as they are.\n\nPlaceholders of messages: {{device}}, {{sequence}}, {{time}}, {{uuid}}, {{random 1 6}} (whole numbers),\n{{random 18.00 26.00}} (as many decimals as written).\n\nExamples:\n  holdfast simulate                                            ten devices, a message per second each\n  holdfast simulate -n 5000 --total-rate 20000 --duration 1m --cleanup\n  holdfast simulate -n 5000 --provision                        the devices find their hub through provisioning\n  holdfast simulate -n 100 --provision --attestation x509\n  holdfast simulate -n 3 --prefix press- --count 10 --message '{\"pressure\":{{random 1.0 9.9}}}'"
)]
pub struct SimulateCommand {
    /// Number of devices
    #[arg(long = "devices", short = 'n', value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    count_of_devices: u32,
    /// Beginning of their names
    #[arg(long, value_name = "TEXT", default_value = "simulated-")]
    prefix: String,
    /// Message template
    #[arg(
        long,
        short = 'm',
        value_name = "TEMPLATE",
        default_value = r#"{"device":"{{device}}","sequence":{{sequence}},"time":"{{time}}","temperature":{{random 18.0 26.0}}}"#
    )]
    message: Template,
    /// Messages per second of each device
    #[arg(long, value_name = "N", default_value_t = 1.0, conflicts_with = "total_rate", value_parser = positive)]
    rate: f64,
    /// Messages per second of all devices together
    #[arg(long, value_name = "N", value_parser = positive)]
    total_rate: Option<f64>,
    /// Stop after so many messages of each device
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Stop after this time
    #[arg(long, short = 'd', value_name = "DURATION")]
    duration: Option<Span>,
    /// Messages that a device sends ahead of acknowledgements
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    window: u16,
    /// Connect without TLS, to the plain listener of a hub on this machine
    #[arg(long)]
    plain: bool,
    /// Delete the devices at the end
    #[arg(long)]
    cleanup: bool,
    #[command(flatten)]
    provisioning: ProvisionOptions,
}

fn positive(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.parse().ok();
    number
        .filter(|number| number.is_finite() && *number > 0.0)
        .ok_or_else(|| "must be a number greater than zero".to_owned())
}

impl SimulateCommand {
    /// Runs the devices until the count, the duration or Ctrl-C ends them, and prints the summary.
    ///
    /// # Errors
    /// When the hub cannot be reached or refuses the devices.
    pub fn run(self, wanted: &Wanted, format: Format) -> anyhow::Result<()> {
        raise_open_files();
        let login = Login::find(wanted)?;
        let client = Client::new(login.clone())?;
        let count = self.count_of_devices as usize;
        let stop = Arc::new(AtomicBool::new(false));
        watch_for_interrupt(Arc::clone(&stop))?;
        let (devices, provisioned) = self.devices(wanted, &login, &client, &stop)?;
        let clock = Instant::now();
        let mut simulated = Devices::new(&login.host, &devices, &self.message, clock);
        let run = self.simulate(&login, &mut simulated, clock, &stop);
        if self.cleanup {
            let bar = output::progress(u64::from(self.count_of_devices), "deleting devices");
            // Those that provisioning put on another hub are not this login's to delete.
            let here = |device: &&Device| {
                let place = device.place.as_ref();
                place.is_none_or(|place| place.host.eq_ignore_ascii_case(&login.host))
            };
            let devices: Vec<Device> = devices.iter().filter(here).cloned().collect();
            let deleted = delete(&client, &devices, |done| bar.inc(done as u64));
            bar.finish_and_clear();
            deleted?;
            if let Some(provisioned) = &provisioned {
                provisioned.clean_up()?;
            }
        }
        let seconds = run?;
        let totals = simulated.totals;
        print_summary(&totals, count, seconds, provisioned.as_ref(), format)?;
        if totals.connects == 0 {
            let why = totals
                .last_fault
                .unwrap_or_else(|| "no device connected".to_owned());
            return Err(Failure::new(Kind::Unavailable, why)
                .hint("are the MQTT port and the CA right? `holdfast serve` prints both")
                .into());
        }
        Ok(())
    }

    /// Makes the devices on the hub, or lets provisioning do so.
    fn devices(
        &self,
        wanted: &Wanted,
        login: &Login,
        client: &Client,
        stop: &AtomicBool,
    ) -> anyhow::Result<(Vec<Device>, Option<Provisioned>)> {
        let count = self.count_of_devices as usize;
        if self.provisioning.provision {
            let mut provisioned =
                self.provisioning
                    .bring_up(wanted, login, &self.prefix, count, self.plain, stop)?;
            let devices = std::mem::take(&mut provisioned.devices);
            return Ok((devices, Some(provisioned)));
        }
        let bar = output::progress(u64::from(self.count_of_devices), "creating devices");
        let devices = register(client, &self.prefix, count, |done| bar.inc(done as u64));
        bar.finish_and_clear();
        Ok((devices?, None))
    }

    /// Returns for how many seconds messages were sent.
    fn simulate(
        &self,
        login: &Login,
        devices: &mut Devices<'_>,
        clock: Instant,
        stop: &AtomicBool,
    ) -> anyhow::Result<f64> {
        let count = self.count_of_devices as usize;
        let endpoint = hub_endpoint(login, Protocol::Mqtt, !self.plain, true)?;
        let mut fleet = Fleet::new(&endpoint, count, self.window, 0, clock)?.keep_sessions();
        let mut crew = Crew {
            to_connect: (0..count).collect(),
            swept: Instant::now(),
            bar: progress_line(),
        };
        while fleet.open_count() < count
            && clock.elapsed() < CONNECT_PATIENCE
            && !stop.load(Ordering::Relaxed)
        {
            crew.turn(&mut fleet, devices, PING_SWEEP)?;
            crew.show(&fleet, devices, count);
        }
        let begin = Instant::now();
        self.send_all(&mut fleet, devices, &mut crew, stop)?;
        let seconds = begin.elapsed().as_secs_f64();
        // What is under way is waited for, unless the hub is gone.
        let drained = Instant::now();
        while devices.totals.acked < devices.totals.sent || devices.waiting() > 0 {
            if drained.elapsed() > DRAIN {
                break;
            }
            crew.turn(&mut fleet, devices, Duration::from_millis(100))?;
        }
        devices.totals.failed += devices.waiting() + (devices.totals.sent - devices.totals.acked);
        for index in 0..count {
            fleet.act(devices, index, |_, link: &mut Link<'_>| link.close())?;
        }
        crew.bar.finish_and_clear();
        Ok(seconds)
    }

    /// Sends until the count, the duration or Ctrl-C.
    fn send_all(
        &self,
        fleet: &mut Fleet,
        devices: &mut Devices<'_>,
        crew: &mut Crew,
        stop: &AtomicBool,
    ) -> anyhow::Result<()> {
        let count = self.count_of_devices as usize;
        let rate = self.total_rate.unwrap_or(self.rate * count as f64);
        let messages = self
            .count
            .map_or(u64::MAX, |each| each.saturating_mul(count as u64));
        let deadline = self.duration.map(|duration| Instant::now() + duration.0);
        let mut pace = Pace::new(fleet.now_ns(), rate);
        let mut touched: Vec<usize> = Vec::new();
        while !stop.load(Ordering::Relaxed) && deadline.is_none_or(|deadline| Instant::now() < deadline) {
            let now_ns = fleet.now_ns();
            while pace.taken() < messages
                && let Some(due) = pace.take(now_ns)
            {
                let index = (pace.taken() - 1) as usize % count;
                devices.enqueue(index, due);
                touched.push(index);
            }
            for index in touched.drain(..) {
                fleet.act(devices, index, Devices::send)?;
            }
            if pace.taken() == messages {
                return Ok(());
            }
            crew.turn(fleet, devices, pace.wait(fleet.now_ns()))?;
            crew.show(fleet, devices, count);
        }
        Ok(())
    }
}

/// Keeps devices connected.
struct Crew {
    /// Devices that are to connect, as soon as not too many others do.
    to_connect: VecDeque<usize>,
    swept: Instant,
    bar: ProgressBar,
}

impl Crew {
    /// Begins connections, sends pings, and handles what comes within `wait`, at most a tenth of a second.
    fn turn(&mut self, fleet: &mut Fleet, devices: &mut Devices<'_>, wait: Duration) -> anyhow::Result<()> {
        let now_ns = fleet.now_ns();
        while let Some(index) = devices.take_retry(now_ns) {
            self.to_connect.push_back(index);
        }
        while fleet.opening() < OPENING_AT_ONCE
            && let Some(index) = self.to_connect.pop_front()
        {
            fleet.begin(devices, index)?;
        }
        if self.swept.elapsed() > PING_SWEEP {
            self.swept = Instant::now();
            for index in 0..fleet.size() {
                fleet.tick(devices, index)?;
            }
        }
        fleet.turn(devices, wait.min(Duration::from_millis(100)))
    }

    fn show(&self, fleet: &Fleet, devices: &Devices<'_>, count: usize) {
        if self.bar.is_hidden() {
            return;
        }
        let totals = &devices.totals;
        let fault = totals
            .last_fault
            .as_deref()
            .filter(|_| fleet.open_count() < count);
        self.bar.set_message(format!(
            "{} of {count} connected, {} sent, {} acknowledged, {} failed, p50 {:.1} ms{}",
            fleet.open_count(),
            totals.sent,
            totals.acked,
            totals.failed,
            totals.latency.percentile(50.0) as f64 / 1e6,
            fault.map_or(String::new(), |fault| format!("; {fault}"))
        ));
    }
}

fn progress_line() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// The first Ctrl-C or SIGTERM asks for the end, the second one is the end.
fn watch_for_interrupt(stop: Arc<AtomicBool>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("cannot watch for Ctrl-C")?;
    let watcher = std::thread::Builder::new().name("signals".to_owned());
    watcher.spawn(move || {
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let (Ok(mut interrupt), Ok(mut terminate)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                return;
            };
            for attempt in 0..2 {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                stop.store(true, Ordering::Relaxed);
                if attempt == 1 {
                    std::process::exit(130);
                }
            }
        });
    })?;
    Ok(())
}

fn print_summary(
    totals: &Totals,
    devices: usize,
    seconds: f64,
    provisioned: Option<&Provisioned>,
    format: Format,
) -> anyhow::Result<()> {
    if format == Format::Json {
        let mut summary = summary(totals, devices, seconds);
        if let Some(provisioned) = provisioned {
            summary["provisioning"] = provisioned.summary(devices);
        }
        return output::json(&summary);
    }
    let ms = |percent: f64| format!("{:.1} ms", totals.latency.percentile(percent) as f64 / 1e6);
    let row = |name: &str, value: String| json!({ "what": name, "value": value });
    let mut rows = Vec::new();
    if let Some(provisioned) = provisioned {
        rows.push(row("provisioned", provisioned.line(devices)));
    }
    rows.extend([
        row(
            "devices",
            format!("{devices}, connected {}", totals.connects - totals.reconnects),
        ),
        row("sent", format!("{} in {seconds:.1} s", totals.sent)),
        row("acknowledged", totals.acked.to_string()),
        row("failed", totals.failed.to_string()),
        row("latency p50, p99", format!("{}, {}", ms(50.0), ms(99.0))),
        row("reconnects", totals.reconnects.to_string()),
        row("methods answered", totals.methods.to_string()),
        row("desired changes", totals.desired.to_string()),
        row("cloud-to-device messages", totals.cloud_to_device.to_string()),
    ]);
    if let Some(fault) = &totals.last_fault {
        rows.push(row("last fault", fault.clone()));
    }
    format.list(&rows, &[("what", "/what"), ("value", "/value")])
}

fn summary(totals: &Totals, devices: usize, seconds: f64) -> Value {
    let ms = |percent: f64| (totals.latency.percentile(percent) as f64 / 1e3).round() / 1e3;
    json!({
        "devices": devices,
        "connected": totals.connects - totals.reconnects,
        "seconds": (seconds * 1e3).round() / 1e3,
        "sent": totals.sent,
        "acknowledged": totals.acked,
        "failed": totals.failed,
        "latencyP50Ms": ms(50.0),
        "latencyP99Ms": ms(99.0),
        "latencyMaxMs": ms(100.0),
        "reconnects": totals.reconnects,
        "methods": totals.methods,
        "desiredChanges": totals.desired,
        "cloudToDevice": totals.cloud_to_device,
        "lastFault": totals.last_fault,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        command: SimulateCommand,
    }

    #[test]
    fn the_command_line_is_checked() {
        let line = Line::try_parse_from(["x"]).unwrap().command;
        assert_eq!(
            (line.count_of_devices, line.rate, line.total_rate),
            (10, 1.0, None)
        );
        for bad in [
            &["x", "--rate", "0"][..],
            &["x", "--rate", "2", "--total-rate", "3"],
            &["x", "-n", "0"],
            &["x", "--message", "{{what}}"],
            &["x", "--duration", "soon"],
        ] {
            assert!(Line::try_parse_from(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_summary_has_every_total() {
        let mut totals = Totals {
            sent: 3,
            acked: 2,
            failed: 1,
            connects: 5,
            reconnects: 1,
            ..Totals::default()
        };
        totals.latency.record(2_000_000);
        let summary = summary(&totals, 4, 1.5);
        assert_eq!(summary["connected"], 4);
        assert_eq!(summary["latencyP50Ms"], 2.0);
        assert_eq!(summary["failed"], 1);
        assert_eq!(summary["lastFault"], Value::Null);
    }
}
