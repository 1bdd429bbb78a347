//! `holdfast dps linked-hub`.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Map, Value};

use super::super::Global;
use super::super::ca::certificate_text;
use super::{client, deleted, entry_path};

const ROOT: &str = "/holdfast/v1/linkedHubs";

#[derive(Subcommand, Debug)]
pub(in crate::cli) enum Command {
    /// Link a hub, or change what is known of it
    #[command(
        after_help = "The hub that provisioning runs in is linked by itself.\n\nExamples:\n  holdfast dps linked-hub set hub2.plant.example --connection-string \"$HUB2_CS\" --hub-ca hub2-ca.pem --weight 3\n  holdfast dps linked-hub set localhost --apply false"
    )]
    Set {
        /// Host name of the hub
        host: String,
        /// Service connection string of the hub, with the rights RegistryWrite and ServiceConnect
        #[arg(long, value_name = "CONNECTION_STRING")]
        connection_string: Option<String>,
        /// CA certificate of the hub (PEM), if it is not one of the system's
        #[arg(long, value_name = "FILE")]
        hub_ca: Option<PathBuf>,
        /// Share of devices, 1 to 1000
        #[arg(long)]
        weight: Option<u32>,
        /// Latency in milliseconds, for the allocation geo-latency; measured once a minute if not given
        #[arg(long, value_name = "MS")]
        latency: Option<u32>,
        /// Whether enrollments that name no hubs may choose it
        #[arg(long, value_name = "true|false")]
        apply: Option<bool>,
    },
    /// List linked hubs
    List,
    /// Show a linked hub
    Show {
        /// Host name of the hub
        host: String,
    },
    /// Unlink a hub; devices on it stay until they register again
    Delete {
        /// Host name of the hub
        host: String,
    },
}

impl Command {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = client(global)?;
        let output = global.output();
        match self {
            Command::Set {
                host,
                connection_string,
                hub_ca,
                weight,
                latency,
                apply,
            } => {
                let mut body = Map::new();
                let mut set = |name: &str, value: Option<Value>| {
                    body.extend(value.map(|value| (name.to_owned(), value)));
                };
                set("connectionString", connection_string.map(Value::from));
                let ca = hub_ca.map(|path| certificate_text(&path)).transpose()?;
                set("caCertificate", ca.map(Value::from));
                set("allocationWeight", weight.map(Value::from));
                set("latencyMs", latency.map(Value::from));
                set("applyAllocationPolicy", apply.map(Value::from));
                output.object(&client.put(entry_path(ROOT, &host)).json(body.into()).send()?)
            }
            Command::List => {
                let list = client.get(ROOT).send()?.as_array().cloned().unwrap_or_default();
                output.list(
                    &list,
                    &[
                        ("host", "/hostName"),
                        ("own", "/isOwn"),
                        ("weight", "/allocationWeight"),
                        ("apply", "/applyAllocationPolicy"),
                        ("latency", "/latencyMs"),
                        ("measured", "/measuredLatencyMs"),
                        ("policy", "/policy"),
                    ],
                )
            }
            Command::Show { host } => output.object(&client.get(entry_path(ROOT, &host)).send()?),
            Command::Delete { host } => {
                client.delete(entry_path(ROOT, &host)).send()?;
                deleted(output, "linked hub", &host)
            }
        }
    }
}
