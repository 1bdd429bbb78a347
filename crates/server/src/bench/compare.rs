//! `bench compare`: the same telemetry on a hub of ours and on Debian's Mosquitto, or over AMQP and over MQTT on hubs of
//! ours, in one run.
//!
//! Machines differ and so do their moods, so what counts is the ratio within a run. Servers are started anew for every
//! round and run one at a time, so that neither one's memory, files or background work weighs on the other, and rounds
//! alternate, so that a slower minute hits both. Each figure is the median over the rounds.

use holdfast_program::failure::Failure;

use super::Stage;
use super::ingest::load;
use super::mqtt_load::{self, LoadOptions};
use super::report::{Report, Subject};
use super::target::{Protocol, TargetOptions};
use crate::cli::output::Format;
use crate::cli::profile::Wanted;

/// A fresh hub and a fresh Mosquitto, or AMQP and MQTT on fresh hubs, under the same load, one after the other.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "The hub authenticates its devices, stamps and routes every message, and syncs it to the disk before it acknowledges;\nMosquitto lets anybody in, forwards to nobody and keeps nothing.\n\nExamples:\n  holdfast bench compare\n  holdfast bench compare --tls --rounds 5 --output json\n  holdfast bench compare --protocols            AMQP against MQTT, both on hubs of ours"
)]
pub(crate) struct CompareArgs {
    #[command(flatten)]
    target: TargetOptions,
    #[command(flatten)]
    load: LoadOptions,
    /// Rounds; each measures both, and the median counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Compare AMQP with MQTT, both on fresh hubs, instead of MQTT with Mosquitto
    #[arg(long)]
    protocols: bool,
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
            let (left, right) = match self.protocols {
                true => self.protocols(&stage)?,
                false => self.mosquitto(&stage)?,
            };
            ours.push(left);
            theirs.push(right);
        }
        let mut report = Report::new("compare", self.load.parameters(self.target.tls));
        report.parameters.insert("rounds".to_owned(), self.rounds.into());
        report.subjects = vec![Subject::median(&ours), Subject::median(&theirs)];
        report.compared = true;
        report.notes.push(
            "short runs show what the disk takes in a burst; --duration 60s shows what it sustains"
                .to_owned(),
        );
        if !self.protocols {
            report.notes.push(
                "holdfast authenticates and syncs every message to the disk before it acknowledges; mosquitto does neither"
                    .to_owned(),
            );
        }
        drop(stage);
        report.print(format)
    }

    /// One round with Mosquitto; ours first.
    fn mosquitto(&self, stage: &Stage) -> anyhow::Result<(Subject, Subject)> {
        // Mosquitto first: if it is missing, that shows at once.
        let mosquitto = self.target.mosquitto()?;
        let theirs = mqtt_load::subject(&mosquitto, &load(&mosquitto, &self.load, stage)?);
        drop(mosquitto);
        let hub = self.target.fresh_hub(true)?;
        Ok((mqtt_load::subject(&hub, &load(&hub, &self.load, stage)?), theirs))
    }

    /// One round of AMQP and MQTT.
    fn protocols(&self, stage: &Stage) -> anyhow::Result<(Subject, Subject)> {
        let measure = |protocol: Protocol| {
            let mut options: TargetOptions = self.target.clone();
            options.protocol = protocol;
            let mut hub = options.fresh_hub(true)?;
            protocol.name().clone_into(&mut hub.name);
            anyhow::Ok(mqtt_load::subject(&hub, &load(&hub, &self.load, stage)?))
        };
        let mqtt = measure(Protocol::Mqtt)?;
        Ok((measure(Protocol::Amqp)?, mqtt))
    }
}
