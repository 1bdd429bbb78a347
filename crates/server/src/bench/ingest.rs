//! `bench ingest`: telemetry of one server.

use super::mqtt_load::{self, LoadOptions};
use super::report::Report;
use super::stages::Outcome;
use super::target::{Protocol, Target, TargetOptions};
use super::{Stage, amqp_load};
use crate::cli::output::Format;
use crate::cli::profile::Wanted;

/// Messages per second and per CPU-second of the server, and their latency.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  holdfast bench ingest                         a fresh hub, as fast as it goes\n  holdfast bench ingest --tls --duration 30s\n  holdfast bench ingest --protocol amqp         the same over AMQP: a token, a link, settled by disposition\n  holdfast bench ingest --rate 200000           latency at an even load\n  holdfast bench ingest --broker localhost:1883 --server-pid $(pidof mosquitto)\n  holdfast bench ingest --running --output json"
)]
pub(crate) struct IngestArgs {
    /// What devices speak
    #[arg(long, value_enum, default_value_t)]
    protocol: Protocol,
    #[command(flatten)]
    target: TargetOptions,
    #[command(flatten)]
    load: LoadOptions,
}

impl IngestArgs {
    pub(crate) fn run(mut self, wanted: &Wanted, format: Format) -> anyhow::Result<()> {
        self.target.protocol = self.protocol;
        let stage = Stage::new("ingest");
        let target = self.target.target(wanted, true)?;
        let result = load(&target, &self.load, &stage)?;
        let mut report = Report::new("ingest", self.load.parameters(self.target.tls));
        report
            .parameters
            .insert("protocol".to_owned(), self.protocol.name().into());
        report.subjects.push(mqtt_load::subject(&target, &result));
        drop((stage, target));
        report.print(format)
    }
}

/// Registers devices, runs the load and cleans up.
pub(crate) fn load(target: &Target, options: &LoadOptions, stage: &Stage) -> anyhow::Result<Outcome> {
    let accounts = target.accounts(options.connections as usize)?;
    let note = |what: &str| stage.say(&format!("{}: {what}", target.name));
    let result = match target.protocol {
        Protocol::Mqtt => mqtt_load::run(target, &accounts, options, &note),
        Protocol::Amqp => amqp_load::run(target, &accounts, options, &note),
    };
    let cleaned = target.clean_up(&accounts);
    let result = result?;
    cleaned?;
    Ok(result)
}
