//! `bench start`: how long a hub takes to be ready, and what it holds when it has nothing to do.

use std::thread;

use holdfast_observe::process::{pss_bytes, usage};
use holdfast_program::units::Span;

use super::Stage;
use super::devices;
use super::report::{Report, Subject, Unit};
use super::spawn::{Hub, WorkDir};
use crate::cli::client::Client;
use crate::cli::output::{self, Format};

/// Time from starting the program until it is ready, and memory of the idle hub.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "The first start makes keys and certificates and is reported apart. Ready means that the program told its service\nmanager so: every listener is open.\n\nExamples:\n  holdfast bench start\n  holdfast bench start --devices 1000000 --runs 3"
)]
pub(crate) struct StartArgs {
    /// How often to start
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// How long the hub idles before its memory is read
    #[arg(long, value_name = "DURATION", default_value = "3s")]
    idle: Span,
    /// Devices to register before
    #[arg(long, value_name = "N", default_value_t = 0)]
    devices: u32,
    /// Directory for the data of the hub [default: the temporary one]
    #[arg(long, value_name = "DIR")]
    work_dir: Option<std::path::PathBuf>,
}

impl StartArgs {
    pub(crate) fn run(self, format: Format) -> anyhow::Result<()> {
        let stage = Stage::new("start");
        let dir = WorkDir::new(self.work_dir.as_deref())?;
        let data = dir.path().join("data");
        stage.say("first start");
        let hub = Hub::start(&data)?;
        let first_ms = hub.start.as_secs_f64() * 1e3;
        if self.devices > 0 {
            let client = Client::new(hub.login.clone())?;
            let bar = output::progress(u64::from(self.devices), "devices");
            let devices = devices::register(&client, "bench-", self.devices as usize, |done| {
                bar.inc(done as u64)
            });
            bar.finish_and_clear();
            devices?;
        }
        drop(hub);
        let mut rounds = Vec::new();
        for run in 1..=self.runs {
            stage.say(&format!("run {run} of {}", self.runs));
            let hub = Hub::start(&data)?;
            thread::sleep(self.idle.0);
            let used = usage(hub.pid())?;
            let mut round = Subject::new("holdfast", format!("holdfast {}", env!("CARGO_PKG_VERSION")));
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            round.add(
                "readyMs",
                "ready after",
                Unit::Milliseconds,
                hub.start.as_secs_f64() * 1e3,
            );
            round.add(
                "serverRssMib",
                "resident memory",
                Unit::Mebibytes,
                mib(used.rss_bytes),
            );
            round.add(
                "serverPssMib",
                "proportional share",
                Unit::Mebibytes,
                mib(pss_bytes(hub.pid())?),
            );
            rounds.push(round);
        }
        let slowest = rounds
            .iter()
            .filter_map(|round| Some(round.figures.first()?.value));
        let slowest = slowest.fold(0.0, f64::max);
        let mut subject = Subject::median(&rounds);
        subject.add("readyMaxMs", "ready after, slowest", Unit::Milliseconds, slowest);
        subject.add(
            "firstReadyMs",
            "ready after, first start",
            Unit::Milliseconds,
            first_ms,
        );
        let parameters =
            serde_json::json!({ "runs": self.runs, "idle": self.idle.to_string(), "devices": self.devices });
        let mut report = Report::new("start", parameters);
        report.subjects.push(subject);
        drop((stage, dir));
        report.print(format)
    }
}
