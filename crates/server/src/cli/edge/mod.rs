//! `holdfast edge`: edge devices, what runs on them, and who is below whom.

mod agent;
mod check;
mod create;
mod deploy;
mod family;
mod follow;
mod modules;
mod state;

use clap::Subcommand;

use super::Global;
use super::client::identity_path;

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
    /// Apply a manifest to one edge device, and follow what the device makes of it
    #[command(
        after_help = "A device that is connected is followed until $edgeAgent and $edgeHub tell of the new versions and every module is as wanted, for 5 minutes unless --wait says otherwise. A device that is not connected takes the deployment when it connects: the command says so and ends with code 0, unless --wait is given. With -o json the member result is done, waiting (not connected), given (not followed), refused, takenBack, failing, unwell, hubRefused, superseded or timedOut.\n\nExit codes: 0 done, or given to a device that is not followed; 1 the device refused it, took it back, fails to carry it out, or not all of it runs; 2 the manifest has faults and was not sent; 5 another deployment came meanwhile; 6 time is up.\n\nFor many devices at once: holdfast deployment create ID --content @deployment.json --target-condition CONDITION\n\nExamples:\n  holdfast edge deploy gateway-1 --content @deployment.json\n  holdfast edge deploy gateway-1 --content @deployment.json --wait 600\n  holdfast edge deploy gateway-1 --content @deployment.json --wait 0\n  holdfast edge deploy gateway-1 --content @deployment.json -o json | jq .result"
    )]
    Deploy(deploy::DeployArgs),
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
    #[command(
        after_help = "Codes of $edgeAgent (of $edgeHub: 200 and 400): 200 done; 400 the deployment cannot be read; 406 the agent is not running; 412 schema version not known; 417 nothing deployed; 500 something could not be carried out, or the deployment was taken back. VERSION is the version that the code speaks of and the one that the hub holds, RUNNING how many modules run and how many there are, HUB the code of $edgeHub.\n\nExamples:\n  holdfast edge status\n  holdfast edge status gateway-1\n  holdfast edge status gateway-1 -o json"
    )]
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

impl Command {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        match self {
            Command::Create(args) => args.run(global),
            Command::Deploy(args) => args.run(global),
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
