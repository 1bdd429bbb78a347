//! `holdfast bench`: measures a hub, or a broker beside it, over real sockets.
//!
//! The command line calls [`BenchCommand::run`] with the login options and the output format that are common to all
//! commands.
//!
//! Every measurement starts a hub of its own, with this executable and a data directory that goes away afterwards, unless
//! the command line names a running one. A load test of the hub that `./holdfast-data` or the environment happens to
//! point at would be a surprise, so those are used only when `--running`, `--login` or `--data-dir` asks for them.
//!
//! | Module | What |
//! |---|---|
//! | `fleet` | connections of one thread: sockets, TLS, sessions |
//! | [`mqtt_load`] | telemetry over a fleet, saturating or paced |
//! | `amqp_client`, `amqp_fleet`, `amqp_load`, `amqp_idle`, `amqp_read` | the same over AMQP, and events out of the hub |
//! | `target`, `spawn`, `devices` | the server under test: started or found, its devices registered |
//! | `stages` | warm-up, measured time, samples of CPU time and memory |
//! | `histogram`, `pacing`, `report` | numbers |
//! | the others | one measurement each |

pub(crate) mod amqp_client;
mod amqp_fleet;
mod amqp_idle;
mod amqp_load;
mod amqp_read;
mod compare;
mod configuration;
mod connect;
pub(crate) mod devices;
mod edge;
mod endpoint;
pub(crate) mod fleet;
pub(crate) mod histogram;
mod http;
mod idle;
mod import;
mod ingest;
mod job;
mod method;
pub mod mqtt_load;
pub(crate) mod pacing;
pub(crate) mod provision;
pub(crate) mod query;
mod read;
mod report;
mod spawn;
mod stages;
mod start;
pub(crate) mod target;
mod twin;

use std::cell::RefCell;

use indicatif::ProgressBar;

use crate::cli::output::Format;
use crate::cli::profile::Wanted;

/// Arguments of `holdfast bench`.
#[derive(clap::Args, Debug)]
pub struct BenchCommand {
    #[command(subcommand)]
    measurement: Measurement,
}

#[derive(clap::Subcommand, Debug)]
enum Measurement {
    Compare(compare::CompareArgs),
    Ingest(ingest::IngestArgs),
    Idle(idle::IdleArgs),
    Connect(connect::ConnectArgs),
    Method(method::MethodArgs),
    Twin(twin::TwinArgs),
    Provision(provision::ProvisionArgs),
    Query(query::QueryArgs),
    Read(read::ReadArgs),
    Import(import::ImportArgs),
    Configuration(configuration::ConfigurationArgs),
    Job(job::JobArgs),
    Start(start::StartArgs),
    Edge(edge::EdgeArgs),
    Endpoint(endpoint::EndpointArgs),
    #[command(hide = true)]
    Receiver(endpoint::ReceiverArgs),
}

impl BenchCommand {
    /// Runs the measurement and prints its report.
    ///
    /// # Errors
    /// When a hub or broker cannot be started or reached, or the load did not get through.
    pub fn run(self, wanted: &Wanted, format: Format) -> anyhow::Result<()> {
        raise_open_files();
        match self.measurement {
            Measurement::Compare(args) => args.run(wanted, format),
            Measurement::Ingest(args) => args.run(wanted, format),
            Measurement::Idle(args) => args.run(wanted, format),
            Measurement::Connect(args) => args.run(wanted, format),
            Measurement::Method(args) => args.run(wanted, format),
            Measurement::Twin(args) => args.run(wanted, format),
            Measurement::Provision(args) => args.run(wanted, format),
            Measurement::Query(args) => args.run(format),
            Measurement::Read(args) => args.run(wanted, format),
            Measurement::Import(args) => args.run(wanted, format),
            Measurement::Configuration(args) => args.run(wanted, format),
            Measurement::Job(args) => args.run(wanted, format),
            Measurement::Start(args) => args.run(format),
            Measurement::Edge(args) => args.run(format),
            Measurement::Endpoint(args) => args.run(format),
            Measurement::Receiver(args) => args.run(),
        }
    }
}

/// Lets this process, and the servers it starts, open as many files as the system allows.
pub(crate) fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Raising the soft limit to the hard one is always allowed; if not, opening too many says so.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// A line on standard error that says what is going on; nothing when that is not a terminal.
pub(crate) struct Stage {
    bar: ProgressBar,
    prefix: RefCell<String>,
}

impl Stage {
    fn new(measurement: &str) -> Self {
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(std::time::Duration::from_millis(200));
        bar.set_message(format!("{measurement}: starting"));
        Stage {
            bar,
            prefix: RefCell::new(measurement.to_owned()),
        }
    }

    /// What stands before everything said from now on.
    fn prefix(&self, text: &str) {
        text.clone_into(&mut self.prefix.borrow_mut());
    }

    fn say(&self, what: &str) {
        self.bar.set_message(format!("{}: {what}", self.prefix.borrow()));
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
