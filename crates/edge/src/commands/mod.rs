//! The command line.

mod broker;
mod check;
mod client;
mod config;
mod list;
mod logs;
mod output;
mod run;
mod system;
mod tpm;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use holdfast_program::failure::{self, Failure};

use crate::config::Settings;
use client::Client;
pub use output::Format;

/// The whole command line.
#[derive(Parser, Debug)]
#[command(
    name = "holdfast-edge",
    version,
    about = "The edge runtime: runs the modules that a hub deploys to this device, keeps their identities, routes and stores their messages",
    after_help = "Examples:\n  holdfast-edge config mp --connection-string 'HostName=…'   write a configuration\n  holdfast-edge                                              run the daemon\n  holdfast-edge check                                        find what is wrong, with remedies\n  holdfast-edge list                                         what runs\n  holdfast-edge logs -f sensor                               what a module says\n\nExit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 unauthorized, 5 conflict, 6 unavailable, 7 files; 153 of `run`: reprovisioned, start again."
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Flags that every command takes.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Configuration: a file of ours or config.toml of the original; else /etc/holdfast/edge.toml or /etc/aziot/config.toml
    #[arg(
        long,
        short,
        global = true,
        env = "HOLDFAST_EDGE_CONFIG",
        hide_env_values = true,
        value_name = "FILE"
    )]
    config: Option<PathBuf>,
    /// Socket of the daemon's management API (unix:///path); else the one of the configuration
    #[arg(
        long,
        short = 'H',
        global = true,
        env = "IOTEDGE_HOST",
        hide_env_values = true,
        value_name = "SOCKET"
    )]
    host: Option<String>,
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
    /// The configuration.
    ///
    /// # Errors
    /// When there is none or it is wrong.
    fn load(&self) -> Result<crate::config::Loaded, Failure> {
        crate::config::load(self.config.as_deref())
    }

    /// The configuration if it can be had; commands that only need the socket do without.
    fn settings(&self) -> Option<Settings> {
        self.load().ok().map(|loaded| loaded.settings)
    }

    /// A client of the running daemon.
    fn client(&self) -> Result<Client, Failure> {
        Client::new(match &self.host {
            Some(text) => {
                let path = text.strip_prefix("unix://").unwrap_or(text);
                if !path.starts_with('/') {
                    return Err(Failure::usage(format!("--host {text} is not a unix socket"))
                        .hint("write unix:///path"));
                }
                path.into()
            }
            None => client::find_socket(self.settings().as_ref()),
        })
    }
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the daemon; also what happens without a command
    Run(run::RunArgs),
    /// Modules of this device
    List,
    /// What a module says
    Logs(logs::LogsArgs),
    /// Restart a module
    Restart {
        /// Module
        module: String,
    },
    /// Find what is wrong, with remedies
    Check(check::CheckArgs),
    /// Names of the checks
    CheckList,
    /// The machine and the daemon
    #[command(subcommand)]
    System(system::SystemCommand),
    /// The configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// What a provisioning service must know of this machine's TPM: endorsement key and registration id
    Tpm(tpm::TpmArgs),
    /// Everything that someone who helps needs, in one zip file
    SupportBundle(system::BundleArgs),
    /// Run the edge hub alone, with no agent and no engine, to develop modules against
    Broker(broker::BrokerArgs),
    /// Version of this program
    Version,
    /// For the build
    #[command(hide = true)]
    Internal {
        /// What
        #[arg(value_parser = ["docs"])]
        what: String,
        /// Folder
        #[arg(long)]
        out: PathBuf,
    },
}

/// Parses the command line and runs the command.
#[must_use]
pub fn main() -> ExitCode {
    crate::memory::set_up();
    match dispatch(&Cli::parse()) {
        Ok(code) => code,
        Err(error) => failure::report(&error),
    }
}

fn dispatch(cli: &Cli) -> anyhow::Result<ExitCode> {
    let global = &cli.global;
    let done = |outcome: anyhow::Result<()>| outcome.map(|()| ExitCode::SUCCESS);
    match &cli.command {
        None => run::run(global, &run::RunArgs::default()),
        Some(Command::Run(args)) => run::run(global, args),
        Some(Command::List) => done(list::run(global)),
        Some(Command::Logs(args)) => done(logs::run(global, args)),
        Some(Command::Restart { module }) => done(list::restart(global, module)),
        Some(Command::Check(args)) => check::run(global, args),
        Some(Command::CheckList) => done(check::list(global)),
        Some(Command::System(command)) => done(system::run(global, command)),
        Some(Command::Config(command)) => done(config::run(global, command)),
        Some(Command::Tpm(args)) => done(tpm::run(global, args)),
        Some(Command::SupportBundle(args)) => done(system::bundle(global, args)),
        Some(Command::Broker(args)) => broker::run(global, args),
        Some(Command::Version) => done(output::outcome(
            global.output,
            &format!("holdfast-edge {}", crate::system::VERSION),
            &serde_json::json!({ "version": crate::system::VERSION }),
        )),
        Some(Command::Internal { out, .. }) => done(crate::config::reference::write_all(out)),
    }
}

/// The command line as clap knows it, for the reference page.
#[must_use]
pub fn command() -> clap::Command {
    use clap::CommandFactory as _;
    Cli::command()
}
