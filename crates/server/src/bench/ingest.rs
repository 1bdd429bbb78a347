//! `bench ingest`: telemetry of one server.

use holdfast_program::failure::Failure;
use serde_json::json;

use super::mqtt_load::{self, LoadOptions};
use super::report::{Report, Subject};
use super::stages::Outcome;
use super::target::{Protocol, Target, TargetOptions};
use super::{Stage, amqp_load};
use crate::cli::output::Format;
use crate::cli::profile::Wanted;

/// Messages per second and per CPU-second of the server, and their latency.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  holdfast bench ingest                         a fresh hub, as fast as it goes\n  holdfast bench ingest --tls --duration 30s\n  holdfast bench ingest --protocol amqp         the same over AMQP: a token, a link, settled by disposition\n  holdfast bench ingest --rate 200000           latency at an even load\n  holdfast bench ingest --broker localhost:1883 --server-pid $(pidof mosquitto)\n  holdfast bench ingest --routes 10             a hub with ten routes against one without, in one run\n  holdfast bench ingest --running --output json"
)]
pub(crate) struct IngestArgs {
    /// What devices speak
    #[arg(long, value_enum, default_value_t)]
    protocol: Protocol,
    /// Compare a fresh hub with so many routes on an application property, all to the built-in endpoint, with one
    /// without routes; every message has the property and takes one of the routes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    routes: Option<u16>,
    /// Rounds of --routes; each measures both hubs, and the median counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    #[command(flatten)]
    target: TargetOptions,
    #[command(flatten)]
    load: LoadOptions,
}

impl IngestArgs {
    pub(crate) fn run(mut self, wanted: &Wanted, format: Format) -> anyhow::Result<()> {
        self.target.protocol = self.protocol;
        if let Some(routes) = self.routes {
            return self.compare(routes, format);
        }
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

impl IngestArgs {
    /// The same load on a hub with routes and on one without, in turn.
    fn compare(mut self, routes: u16, format: Format) -> anyhow::Result<()> {
        if self.target.is_given() || self.protocol != Protocol::Mqtt {
            return Err(Failure::usage("--routes starts fresh hubs itself, and sends over MQTT").into());
        }
        self.load.kinds = routes;
        let stage = Stage::new("ingest");
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for round in 1..=self.rounds {
            stage.prefix(&format!("round {round} of {}", self.rounds));
            without.push(self.measure(0, &stage)?);
            with.push(self.measure(routes, &stage)?);
        }
        let mut report = Report::new("ingest", self.load.parameters(self.target.tls));
        report.parameters.insert("routes".to_owned(), routes.into());
        report.parameters.insert("rounds".to_owned(), self.rounds.into());
        report.subjects = vec![Subject::median(&with), Subject::median(&without)];
        report.compared = true;
        drop(stage);
        report.print(format)
    }

    fn measure(&self, routes: u16, stage: &Stage) -> anyhow::Result<Subject> {
        let mut hub = self.target.fresh_hub(true)?;
        hub.name = match routes {
            0 => "no routes".to_owned(),
            routes => format!("{routes} routes"),
        };
        for number in 0..routes {
            let route = json!({
                "source": "DeviceMessages",
                "condition": format!("kind = 'k{number}'"),
                "endpointNames": ["events"],
            });
            let path = format!("/holdfast/v1/routing/routes/kind-{number}");
            hub.rest()?.put(path).json(route).send()?;
        }
        Ok(mqtt_load::subject(&hub, &load(&hub, &self.load, stage)?))
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
