//! The command line: nouns, then verbs, as in `az iot` and `kubectl`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};

pub mod client;
pub mod output;
pub mod profile;

mod c2d;
mod ca;
mod configuration;
mod connection_string;
mod consumer_group;
mod credentials;
mod deployment;
mod device;
mod dps;
mod edge;
mod endpoint;
mod enrichment;
mod export;
mod identity;
mod import;
mod input;
mod internal;
mod job;
mod method;
mod module;
mod monitor;
mod pnp;
mod policy;
mod query;
mod reference;
mod route;
mod sas;
mod sse;
mod statistics;
mod twin;

use client::Client;
use output::Format;
use profile::{Login, Wanted};

/// The whole command line.
#[derive(Parser, Debug)]
#[command(
    name = "holdfast",
    version,
    about = "A self-hosted hub for IoT devices that speaks the wire contracts of Azure IoT Hub",
    after_help = "Examples:\n  holdfast serve                                   start a hub; no configuration needed\n  holdfast device create press-4                   register a device\n  holdfast connection-string press-4               what its program needs to connect\n  holdfast monitor                                 watch what devices send\n\nExit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 unauthorized, 5 conflict, 6 unavailable, 7 data directory.",
    arg_required_else_help = true,
    subcommand_required = true
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags that every command takes.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Connection string of the hub; else the one in connection.env of the data directory, else of the profile
    #[arg(
        long,
        global = true,
        env = "HOLDFAST_CONNECTION_STRING",
        hide_env_values = true,
        value_name = "CONNECTION_STRING"
    )]
    login: Option<String>,
    /// CA certificate of the hub (PEM); else the one in connection.env, else the system's
    #[arg(long, global = true, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Data directory: where `serve` keeps everything, and where other commands find connection.env
    #[arg(
        long,
        global = true,
        env = "HOLDFAST_DATA_DIR",
        hide_env_values = true,
        value_name = "DIR"
    )]
    data_dir: Option<PathBuf>,
    /// Neither write (serve) nor read (other commands) the profile in the user's configuration directory
    #[arg(long, global = true, env = "HOLDFAST_NO_PROFILE", hide_env_values = true, value_parser = clap::builder::FalseyValueParser::new())]
    no_profile: bool,
    /// How results are printed
    #[arg(
        long,
        short,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT"
    )]
    output: Format,
}

impl Global {
    /// A client of the hub that the flags, the environment or the profile name.
    ///
    /// # Errors
    /// When there is none.
    pub fn client(&self) -> anyhow::Result<Client> {
        Client::new(self.find_login()?)
    }

    /// The login that the flags, the environment or the profile name.
    ///
    /// # Errors
    /// When there is none.
    pub fn find_login(&self) -> anyhow::Result<Login> {
        Login::find(&self.wanted())
    }

    /// What the flags and the environment say about the login.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        Wanted {
            login: self.login.clone(),
            ca: self.ca.clone(),
            data_dir: self.data_dir.clone(),
            no_profile: self.no_profile,
        }
    }

    /// How results are printed.
    #[must_use]
    pub fn output(&self) -> Format {
        self.output
    }

    /// `--data-dir`, if given.
    #[must_use]
    pub fn data_dir(&self) -> Option<&std::path::Path> {
        self.data_dir.as_deref()
    }

    /// Whether the user's profile is left alone.
    #[must_use]
    pub fn no_profile(&self) -> bool {
        self.no_profile
    }
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Start a hub
    Serve(Box<crate::serve::ServeArgs>),
    /// Devices: create, list, show, update, delete, keys
    #[command(subcommand)]
    Device(device::Command),
    /// Modules of devices: create, list, show, update, delete, keys
    #[command(subcommand)]
    Module(module::Command),
    /// Twins: show, update, replace
    #[command(subcommand)]
    Twin(twin::Command),
    /// Direct methods: invoke
    #[command(subcommand)]
    Method(method::Command),
    /// Cloud-to-device messages: send, purge
    #[command(subcommand, name = "c2d")]
    C2d(c2d::Command),
    /// Print events as they arrive
    Monitor(monitor::MonitorArgs),
    /// Make a shared access signature
    Sas(sas::SasArgs),
    /// Print the connection string of the hub, a device or a module
    ConnectionString(connection_string::ConnectionStringArgs),
    /// Shared access policies: list, show, create, delete, regenerate
    #[command(subcommand)]
    Policy(policy::Command),
    /// Certificate authorities of devices: add, verify, list, show, delete
    #[command(subcommand)]
    Ca(ca::Command),
    /// Consumer groups of the event stream: list, create, delete
    #[command(subcommand)]
    ConsumerGroup(consumer_group::Command),
    /// Device provisioning: enrollment, group, certificate, registration, linked-hub, compute-device-key
    #[command(subcommand)]
    Dps(Box<dps::Command>),
    /// Ask for twins, modules and jobs by their properties
    Query(query::QueryArgs),
    /// Create and change devices and modules by a file of lines, as exports are
    Import(import::ImportArgs),
    /// Write all devices and modules with keys and twins to a file
    Export(export::ExportArgs),
    /// Plug and play: models and digital twins
    #[command(subcommand)]
    Pnp(pnp::Command),
    /// Configurations of devices and modules: create, list, show, update, delete, metrics
    #[command(subcommand)]
    Configuration(configuration::Command),
    /// Edge deployments: create, list, show, update, delete, show-metric, apply
    #[command(subcommand)]
    Deployment(deployment::Command),
    /// Edge devices: create, deploy, modules, logs, restart, status, set-parent, add-child, remove-child, list-children
    #[command(subcommand)]
    Edge(edge::Command),
    /// Scheduled jobs: create, list, show, cancel
    #[command(subcommand)]
    Job(job::Command),
    /// Message routes: create, list, show, update, delete, test, fallback, export, import
    #[command(subcommand)]
    Route(route::Command),
    /// Endpoints of routes: create, list, show, health, delete, dead-letters
    #[command(subcommand)]
    Endpoint(endpoint::Command),
    /// Properties added to what goes to endpoints: create, list, delete
    #[command(subcommand)]
    Enrichment(enrichment::Command),
    /// Count devices and connections
    Statistics,
    /// Run a fleet of simulated devices
    Simulate(crate::simulate::SimulateCommand),
    /// Measure a hub or an MQTT broker under load
    Bench(crate::bench::BenchCommand),
    /// Print a completion script for a shell
    #[command(
        after_help = "Examples:\n  holdfast completion bash > /etc/bash_completion.d/holdfast\n  holdfast completion zsh > ~/.zfunc/_holdfast"
    )]
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// For building Holdfast itself
    #[command(subcommand, hide = true)]
    Internal(internal::Command),
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    match run(std::env::args_os()) {
        Ok(code) => code,
        Err(error) => holdfast_program::failure::report(&error),
    }
}

fn run(args: impl Iterator<Item = OsString>) -> anyhow::Result<ExitCode> {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        // clap prints help to standard output with code 0, mistakes to standard error with code 2.
        Err(error) => error.exit(),
    };
    let global = &cli.global;
    match cli.command {
        Command::Serve(args) => return crate::serve::run(global, &args),
        Command::Device(command) => command.run(global)?,
        Command::Module(command) => command.run(global)?,
        Command::Twin(command) => command.run(global)?,
        Command::Method(command) => command.run(global)?,
        Command::C2d(command) => command.run(global)?,
        Command::Monitor(args) => args.run(global)?,
        Command::Sas(args) => args.run(global)?,
        Command::ConnectionString(args) => args.run(global)?,
        Command::Policy(command) => command.run(global)?,
        Command::Ca(command) => command.run(global)?,
        Command::ConsumerGroup(command) => command.run(global)?,
        Command::Dps(command) => command.run(global)?,
        Command::Query(args) => args.run(global)?,
        Command::Import(args) => args.run(global)?,
        Command::Export(args) => args.run(global)?,
        Command::Pnp(command) => command.run(global)?,
        Command::Configuration(command) => command.run(global)?,
        Command::Deployment(command) => command.run(global)?,
        Command::Edge(command) => command.run(global)?,
        Command::Job(command) => command.run(global)?,
        Command::Route(command) => command.run(global)?,
        Command::Endpoint(command) => command.run(global)?,
        Command::Enrichment(command) => command.run(global)?,
        Command::Statistics => statistics::run(global)?,
        Command::Simulate(command) => command.run(&global.wanted(), global.output())?,
        Command::Bench(command) => command.run(&global.wanted(), global.output())?,
        Command::Completion { shell } => completion(shell),
        Command::Internal(command) => command.run()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn completion(shell: clap_complete::Shell) {
    clap_complete::generate(shell, &mut command(), "holdfast", &mut std::io::stdout());
}

/// The command line as data, for completion scripts, reference pages and tests.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        super::command().debug_assert();
    }
}
