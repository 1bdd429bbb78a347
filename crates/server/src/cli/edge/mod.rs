//! `holdfast edge`: edge devices, what runs on them, and who is below whom.

mod agent;
mod create;
mod family;
mod modules;

use clap::{Args, Subcommand};

use super::client::identity_path;
use super::{Global, deployment};

/// The module that runs deployments.
const AGENT: &str = "$edgeAgent";
/// The module that others connect to.
const HUB: &str = "$edgeHub";

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Register an edge device; prints its connection string, or writes the configuration of holdfast-edge
    #[command(
        after_help = "Examples:\n  holdfast edge create gateway-1\n  holdfast edge create gateway-1 --config config.toml\n  holdfast edge create cell-7 --parent gateway-1 --parent-hostname gateway-1.plant.example --config config.toml"
    )]
    Create(create::CreateArgs),
    /// Apply a manifest to one edge device
    #[command(
        after_help = "For many devices at once: holdfast deployment create ID --content @deployment.json --target-condition CONDITION\n\nExample:\n  holdfast edge deploy gateway-1 --content @deployment.json"
    )]
    Deploy(DeployArgs),
    /// Show the modules of an edge device: what is wanted and what the device reports
    #[command(
        after_help = "Examples:\n  holdfast edge modules gateway-1\n  holdfast edge modules gateway-1 -o json"
    )]
    Modules {
        /// Id of the edge device
        device: String,
    },
    /// Print what modules have written; asks the device's agent
    #[command(
        after_help = "Examples:\n  holdfast edge logs gateway-1 sensor --tail 100\n  holdfast edge logs gateway-1 all --since 2h --regex error"
    )]
    Logs(agent::LogsArgs),
    /// Restart a module; asks the device's agent
    #[command(after_help = "Example:\n  holdfast edge restart gateway-1 sensor")]
    Restart(agent::RestartArgs),
    /// Show whether an edge device is connected and has done what it was told; without a device, all of them
    #[command(after_help = "Examples:\n  holdfast edge status\n  holdfast edge status gateway-1")]
    Status {
        /// Id of the edge device
        device: Option<String>,
    },
    /// Put a device or edge device below an edge device
    #[command(after_help = "Example:\n  holdfast edge set-parent press-4 gateway-1")]
    SetParent(family::SetParentArgs),
    /// Put devices below an edge device
    #[command(after_help = "Example:\n  holdfast edge add-child gateway-1 press-4 press-5")]
    AddChild(family::AddChildArgs),
    /// Take devices from below an edge device
    #[command(
        after_help = "The edge device learns of it within the hour, and at once with:\n  holdfast method invoke gateway-1 --module '$edgeHub' RefreshDeviceScopeIdentityCache --payload '{\"deviceIds\":[\"press-4\"]}'\n\nExamples:\n  holdfast edge remove-child gateway-1 press-4\n  holdfast edge remove-child gateway-1 --all"
    )]
    RemoveChild(family::RemoveChildArgs),
    /// List the devices below an edge device
    #[command(after_help = "Example:\n  holdfast edge list-children gateway-1")]
    ListChildren {
        /// Id of the edge device
        device: String,
    },
}

#[derive(Args, Debug)]
pub(super) struct DeployArgs {
    /// Id of the edge device
    device: String,
    /// Manifest: JSON, @FILE or - for standard input
    #[arg(long, value_name = "JSON")]
    content: String,
}

impl Command {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        match self {
            Command::Create(args) => args.run(global),
            Command::Deploy(args) => {
                deployment::apply(global, &global.client()?, &args.device, &args.content)
            }
            Command::Modules { device } => modules::modules(global, &device),
            Command::Logs(args) => args.run(global),
            Command::Restart(args) => args.run(global),
            Command::Status { device } => modules::status(global, device.as_deref()),
            Command::SetParent(args) => args.run(global),
            Command::AddChild(args) => args.run(global),
            Command::RemoveChild(args) => args.run(global),
            Command::ListChildren { device } => family::list(global, &device),
        }
    }
}

fn device_path(device: &str) -> String {
    identity_path("/devices", device, None)
}
