//! `bench compare`: the same telemetry on a hub of ours and on Debian's Mosquitto, in one run.
//!
//! Machines differ and so do their moods, so what counts is the ratio within a run. Servers are started anew for every
//! round and run one at a time, so that neither one's memory, files or background work weighs on the other, and rounds
//! alternate, so that a slower minute hits both. Each figure is the median over the rounds.

use super::Stage;
use super::ingest::load;
use super::mqtt_load::{self, LoadOptions};
use super::report::{Report, Subject};
use super::target::TargetOptions;
use crate::cli::failure::Failure;
use crate::cli::output::Format;
use crate::cli::profile::Wanted;

/// A fresh hub and a fresh Mosquitto under the same load, one after the other.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "The hub authenticates its devices, stamps and routes every message, and syncs it to the disk before it acknowledges;\nMosquitto lets anybody in, forwards to nobody and keeps nothing.\n\nExamples:\n  holdfast bench compare\n  holdfast bench compare --tls --rounds 5 --output json"
)]
pub(crate) struct CompareArgs {
    #[command(flatten)]
    target: TargetOptions,
    #[command(flatten)]
    load: LoadOptions,
    /// Rounds; each measures both, and the median counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
}

impl CompareArgs {
    pub(crate) fn run(self, _wanted: &Wanted, format: Format) -> anyhow::Result<()> {
        if self.target.is_given() {
            return Err(Failure::usage(
                "compare starts both servers itself; for one that runs there is bench ingest",
            )
            .into());
        }
        let stage = Stage::new("compare");
        let (mut ours, mut theirs): (Vec<Subject>, Vec<Subject>) = (Vec::new(), Vec::new());
        for round in 1..=self.rounds {
            stage.prefix(&format!("round {round} of {}", self.rounds));
            // Mosquitto first: if it is missing, that shows at once.
            let mosquitto = self.target.mosquitto()?;
            theirs.push(mqtt_load::subject(
                &mosquitto,
                &load(&mosquitto, &self.load, &stage)?,
            ));
            drop(mosquitto);
            let hub = self.target.fresh_hub(true)?;
            ours.push(mqtt_load::subject(&hub, &load(&hub, &self.load, &stage)?));
        }
        let mut report = Report::new("compare", self.load.parameters(self.target.tls));
        report.parameters.insert("rounds".to_owned(), self.rounds.into());
        report.subjects = vec![Subject::median(&ours), Subject::median(&theirs)];
        report.compared = true;
        report.notes.push(
            "short runs show what the disk takes in a burst; --duration 60s shows what it sustains"
                .to_owned(),
        );
        report.notes.push(
            "holdfast authenticates and syncs every message to the disk before it acknowledges; mosquitto does neither"
                .to_owned(),
        );
        drop(stage);
        report.print(format)
    }
}
