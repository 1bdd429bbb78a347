//! `run`: the daemon itself.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{Global, output};
use crate::config::{Loaded, Settings};
use crate::daemon;

/// Flags of `run`. They win over the configuration.
#[derive(Args, Debug, Default)]
pub(super) struct RunArgs {
    /// Only read and check the configuration
    #[arg(long)]
    check_config: bool,
    /// Folder of everything that is kept
    #[arg(long, env = "HOLDFAST_EDGE_HOME", hide_env_values = true, value_name = "DIR")]
    home: Option<PathBuf>,
    /// Name by which modules and downstream devices reach this device
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Port of MQTT; 0 takes any free one
    #[arg(long, value_name = "PORT")]
    mqtt_port: Option<u16>,
    /// Port of AMQP
    #[arg(long, value_name = "PORT")]
    amqp_port: Option<u16>,
    /// Port of HTTPS and WebSockets
    #[arg(long, value_name = "PORT")]
    https_port: Option<u16>,
    /// What is logged: a level, or directives such as info,holdfast_agent=debug
    #[arg(
        long,
        env = "HOLDFAST_EDGE_LOG",
        hide_env_values = true,
        value_name = "FILTER"
    )]
    log: Option<String>,
}

impl RunArgs {
    fn apply(&self, settings: &mut Settings) {
        if let Some(home) = &self.home {
            settings.home.clone_from(home);
        }
        if let Some(hostname) = &self.hostname {
            settings.hostname.clone_from(hostname);
        }
        for (port, flag) in [
            (&mut settings.listen.mqtt, self.mqtt_port),
            (&mut settings.listen.amqp, self.amqp_port),
            (&mut settings.listen.https, self.https_port),
        ] {
            *port = flag.or(*port);
        }
        if let Some(log) = &self.log {
            settings.observe.filter.clone_from(log);
        }
    }
}

pub(super) fn run(global: &Global, args: &RunArgs) -> anyhow::Result<ExitCode> {
    let Loaded {
        mut settings,
        warnings,
    } = global.load()?;
    args.apply(&mut settings);
    crate::config::check(&settings)?;
    if args.check_config {
        for warning in &warnings {
            output::line(&format!("warning: {warning}"))?;
        }
        output::line(&format!("{} is in order", settings.source))?;
        return Ok(ExitCode::SUCCESS);
    }
    settings.observe.start()?;
    daemon::run(Loaded { settings, warnings })
}
