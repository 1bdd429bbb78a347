//! `broker`: the edge hub alone, for developers of modules: no agent, no container engine, no hub above.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use holdfast_program::logging::LogSection;

use super::Global;
use crate::daemon::standalone::{self, Standalone};

/// Flags of `broker`.
#[derive(Args, Debug)]
pub(super) struct BrokerArgs {
    /// Deployment manifest; its `$edgeHub` says the routes, its modules get keys
    #[arg(long, value_name = "FILE")]
    manifest: PathBuf,
    /// Identities of further modules and devices: {"identities":[{"id":"edge/module","keys":["base64"]}]}
    #[arg(long, value_name = "FILE")]
    identities: Option<PathBuf>,
    /// Id of the edge device
    #[arg(long, default_value = "edge", value_name = "ID")]
    device_id: String,
    /// Name of the hub, as it stands in connection strings and tokens
    #[arg(long, default_value = "localhost", value_name = "NAME")]
    hub_host: String,
    /// Name by which modules reach this edge hub
    #[arg(long, default_value = "localhost", value_name = "NAME")]
    hostname: String,
    /// Folder of keys, certificates and messages
    #[arg(long, default_value = "holdfast-edge-broker", value_name = "DIR")]
    data_dir: PathBuf,
    /// Port of MQTT; 0 takes any free one
    #[arg(long, default_value_t = 8883, value_name = "PORT")]
    mqtt_port: u16,
    /// Port of AMQP
    #[arg(long, default_value_t = 5671, value_name = "PORT")]
    amqp_port: u16,
    /// Port of HTTPS and WebSockets
    #[arg(long, default_value_t = 443, value_name = "PORT")]
    https_port: u16,
    /// What is logged: a level, or directives such as info,holdfast_broker=debug
    #[arg(long, default_value = "info", value_name = "FILTER")]
    log: String,
}

pub(super) fn run(global: &Global, args: &BrokerArgs) -> anyhow::Result<ExitCode> {
    let logs = LogSection {
        filter: args.log.clone(),
        ..LogSection::default()
    };
    logs.start().map_err(|failure| failure.hint("--log info"))?;
    let data_dir = std::path::absolute(&args.data_dir)?;
    standalone::run(&Standalone {
        manifest: args.manifest.clone(),
        identities: args.identities.clone(),
        device_id: args.device_id.clone(),
        hub_host: args.hub_host.clone(),
        hostname: args.hostname.clone(),
        data_dir,
        ports: [args.mqtt_port, args.amqp_port, args.https_port],
        output: global.output,
    })
}
