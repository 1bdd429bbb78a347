//! `run`: the daemon itself.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::Global;
use crate::config::{Loaded, Settings};
use crate::daemon;

/// Flags of `run`. They win over the configuration.
#[derive(Args, Debug, Default)]
pub(super) struct RunArgs {
    /// Only check the configuration and the files that it names, as `config check` does
    #[arg(long)]
    check_config: bool,
    /// Folder of everything that is kept; else that of the configuration, /var/lib/holdfast-edge by default
    #[arg(long, env = "HOLDFAST_EDGE_HOME", hide_env_values = true, value_name = "DIR")]
    home: Option<PathBuf>,
    /// Name by which modules and downstream devices reach this device; the machine's by default
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Port of MQTT, 8883 by default; 0 takes any free one
    #[arg(long, value_name = "PORT")]
    mqtt_port: Option<u16>,
    /// Port of AMQP, 5671 by default
    #[arg(long, value_name = "PORT")]
    amqp_port: Option<u16>,
    /// Port of HTTPS and WebSockets, 443 by default
    #[arg(long, value_name = "PORT")]
    https_port: Option<u16>,
    /// What is logged: a level, or directives such as info,holdfast_agent=debug; info by default
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
    let loaded = Loaded { settings, warnings };
    if args.check_config {
        return super::config::check(&loaded, global.output);
    }
    loaded.settings.observe.start()?;
    daemon::run(loaded)
}
