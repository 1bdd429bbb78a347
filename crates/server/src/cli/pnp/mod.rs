//! `holdfast pnp`: plug and play models and digital twins.

mod model;
mod twin;

use clap::Subcommand;

use super::Global;

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Models (DTDL v2 and v3): validate, add, list, show, delete
    #[command(subcommand)]
    Model(model::Command),
    /// Digital twins: show, update, check, invoke-command
    #[command(subcommand)]
    Twin(twin::Command),
}

impl Command {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        match self {
            Command::Model(command) => command.run(global),
            Command::Twin(command) => command.run(global),
        }
    }
}
