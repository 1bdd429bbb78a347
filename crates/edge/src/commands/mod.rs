//! The command line.

mod broker;
mod check;
mod client;
mod config;
mod deployment;
mod given_files;
mod list;
mod logs;
mod output;
mod run;
mod system;
mod tpm;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
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
    after_help = "Examples:\n  holdfast-edge config mp --connection-string 'HostName=…'   write a configuration\n  holdfast-edge                                              run the daemon\n  holdfast-edge --config edge.toml --home /srv/edge          the same, with its flags\n  holdfast-edge check                                        find what is wrong, with remedies\n  holdfast-edge list                                         what runs\n  holdfast-edge logs -f sensor                               what a module says\n\nExit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 unauthorized, 5 conflict, 6 unavailable, 7 files; 153 of `run`: reprovisioned, start again."
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    /// For `run` without the word.
    #[command(flatten, next_help_heading = "Options without a command, as of `run`")]
    run: run::RunArgs,
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

    /// The configuration for commands that can do without: `None` when no file is named and none of the usual ones can be
    /// read, since they may be for root alone and the daemon is reached all the same.
    ///
    /// # Errors
    /// When a file is named, with `--config` or in the environment, and it cannot be read or is wrong.
    fn settings(&self) -> Result<Option<Settings>, Failure> {
        match self.load() {
            Ok(loaded) => Ok(Some(loaded.settings)),
            Err(failure) if self.config.is_some() => Err(failure),
            Err(_) => Ok(None),
        }
    }

    /// A client of the running daemon.
    fn client(&self) -> Result<Client, Failure> {
        let settings = self.settings()?;
        Client::new(match &self.host {
            Some(text) => {
                let path = text.strip_prefix("unix://").unwrap_or(text);
                if !path.starts_with('/') {
                    return Err(Failure::usage(format!("--host {text} is not a unix socket"))
                        .hint("write unix:///path"));
                }
                path.into()
            }
            None => client::find_socket(settings.as_ref()),
        })
    }
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the daemon; also what happens without a command
    #[command(
        after_help = "Examples:\n  holdfast-edge run --config edge.toml\n  holdfast-edge run --check-config                 what would keep it from starting\n  holdfast-edge --home /srv/edge --mqtt-port 0     without the word, the flags are the same\n\nFlags win over the configuration. It ends with SIGTERM and leaves modules running; SIGHUP looks at certificates and the deployment anew."
    )]
    Run(run::RunArgs),
    /// Modules of this device
    ///
    /// STATUS is running, stopped, failed, dead or unknown; CONFIG is the image. Where the terminal is narrow, columns are
    /// shortened, and the last ones left out. A deployment that was refused or taken back, and routes that do not compile,
    /// are told on standard error.
    #[command(
        after_help = "Examples:\n  holdfast-edge list\n  holdfast-edge list --output json | jq -r '.[] | select(.status.runtimeStatus.status != \"running\") | .name'"
    )]
    List,
    /// What a module says
    #[command(
        after_help = "Examples:\n  holdfast-edge logs sensor --tail 100\n  holdfast-edge logs sensor --follow --since 10m --timestamps\n  holdfast-edge logs edgeHub                       the daemon's own log, when systemd keeps it"
    )]
    Logs(logs::LogsArgs),
    /// Restart a module
    ///
    /// A module has 10 seconds to end before it is killed. One that the deployment wants stopped is not started (exit code
    /// 5). The agent, edgeAgent, is the daemon itself: it looks at everything anew.
    #[command(after_help = "Examples:\n  holdfast-edge restart sensor\n  holdfast-edge restart edgeHub")]
    Restart {
        /// Name of the module, as `list` shows it
        module: String,
    },
    /// Find what is wrong, with remedies
    #[command(
        after_help = "Examples:\n  holdfast-edge check\n  holdfast-edge check --dont-run host-local-time,container-engine-dns\n  holdfast-edge check --output json | jq '.checks[] | select(.result == \"error\")'\n\nExit codes: 0 nothing failed, 1 a check failed (with --warnings-as-errors, or warned)."
    )]
    Check(check::CheckArgs),
    /// Names of the checks
    #[command(after_help = "Example:\n  holdfast-edge check-list")]
    CheckList,
    /// The machine and the daemon
    #[command(subcommand)]
    System(system::SystemCommand),
    /// The configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// What a provisioning service must know of this machine's TPM: endorsement key and registration id
    #[command(
        after_help = "Examples:\n  holdfast-edge tpm                                the TPM of the configuration, else /dev/tpmrm0\n  holdfast-edge tpm --tcti device:/dev/tpmrm0 --output json"
    )]
    Tpm(tpm::TpmArgs),
    /// Everything that someone who helps needs, in one zip file
    #[command(
        after_help = "Examples:\n  holdfast-edge support-bundle                     support_bundle.zip, logs of one day\n  holdfast-edge support-bundle --since 2h --edge-runtime-only --file - > bundle.zip\n\nThe log of a module is cut after 64 MiB. Values of variables whose names speak of secrets are left out."
    )]
    SupportBundle(system::BundleArgs),
    /// Run the edge hub alone, with no agent and no engine, to develop modules against
    #[command(
        after_help = "Examples:\n  holdfast-edge broker --manifest deployment.json\n  holdfast-edge broker --manifest deployment.json --mqtt-port 0 --amqp-port 0 --https-port 0 --output json"
    )]
    Broker(broker::BrokerArgs),
    /// Version of this program
    #[command(after_help = "Example:\n  holdfast-edge version --output json")]
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
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let outcome = check_place(&matches)
        .map_err(anyhow::Error::from)
        .and_then(|()| dispatch(&cli));
    match outcome {
        Ok(code) => code,
        Err(error) => failure::report(&error),
    }
}

/// Refuses flags of `run` before another word, where they would mean nothing.
fn check_place(matches: &ArgMatches) -> Result<(), Failure> {
    let Some(command) = matches.subcommand_name() else {
        return Ok(());
    };
    let flags = run::RunArgs::augment_args(clap::Command::new("run"));
    let given = |argument: &&clap::Arg| {
        matches.value_source(argument.get_id().as_str()) == Some(ValueSource::CommandLine)
    };
    let Some(flag) = flags.get_arguments().find(given).and_then(clap::Arg::get_long) else {
        return Ok(());
    };
    let place = match command {
        "run" => format!("write it behind the command: holdfast-edge run --{flag} …"),
        _ => format!(
            "write `holdfast-edge --{flag} …` without `{command}` to run the daemon; `holdfast-edge {command} --help` tells what {command} takes"
        ),
    };
    Err(Failure::usage(format!("--{flag} before `{command}` is a flag of the daemon")).hint(place))
}

fn dispatch(cli: &Cli) -> anyhow::Result<ExitCode> {
    let global = &cli.global;
    let done = |outcome: anyhow::Result<()>| outcome.map(|()| ExitCode::SUCCESS);
    match &cli.command {
        None => run::run(global, &cli.run),
        Some(Command::Run(args)) => run::run(global, args),
        Some(Command::List) => done(list::run(global)),
        Some(Command::Logs(args)) => done(logs::run(global, args)),
        Some(Command::Restart { module }) => done(list::restart(global, module)),
        Some(Command::Check(args)) => check::run(global, args),
        Some(Command::CheckList) => done(check::list(global)),
        Some(Command::System(command)) => done(system::run(global, command)),
        Some(Command::Config(command)) => config::run(global, command),
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
    Cli::command()
}
