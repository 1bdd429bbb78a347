//! `holdfast dps enrollment`.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::super::Global;
use super::super::output::line;
use super::attestation::AttestationArgs;
use super::settings::SettingsArgs;
use super::{ENROLLMENTS, bulk_create, client, deleted, entry_path, query, update};

#[derive(Subcommand, Debug)]
pub(in crate::cli) enum Command {
    /// Enroll a device
    #[command(
        after_help = "Without attestation flags the device proves itself by a key that the service makes.\n\nExamples:\n  holdfast dps enrollment create press-4 --desired '{\"interval\":5}'\n  holdfast dps enrollment create press-4 --certificate press-4.pem"
    )]
    Create(Change),
    /// Change an enrollment; what is not given stays as it is
    Update(Change),
    /// List enrollments
    List,
    /// Show an enrollment, without its keys
    Show {
        /// Registration id
        id: String,
    },
    /// Show how a device proves itself, with its keys
    Keys {
        /// Registration id
        id: String,
    },
    /// Delete an enrollment; a device that is on a hub stays there
    Delete {
        /// Registration id
        id: String,
    },
}

#[derive(Args, Debug)]
pub(in crate::cli) struct Change {
    /// Registration id
    id: String,
    /// Device id on the hub; the registration id if not given
    #[arg(long, value_name = "ID")]
    device_id: Option<String>,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    attestation: AttestationArgs,
}

impl Command {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = client(global)?;
        let output = global.output();
        match self {
            Command::Create(change) => {
                let mut body = json!({ "attestation": { "type": "symmetricKey" } });
                change.apply(&mut body)?;
                bulk_create(
                    &client,
                    ENROLLMENTS,
                    json!({ "mode": "create", "enrollments": [body] }),
                )?;
                output.object(&client.get(entry_path(ENROLLMENTS, &change.id)).send()?)
            }
            Command::Update(change) => {
                let path = entry_path(ENROLLMENTS, &change.id);
                output.object(&update(&client, path, |body| change.apply(body))?)
            }
            Command::List => {
                let list = query(&client, "/enrollments/query")?;
                if list.is_empty() && output == super::Format::Table {
                    return line("no enrollments; `holdfast dps enrollment create` makes one");
                }
                output.list(
                    &list,
                    &[
                        ("registration", "/registrationId"),
                        ("device", "/deviceId"),
                        ("attestation", "/attestation/type"),
                        ("status", "/provisioningStatus"),
                        ("allocation", "/allocationPolicy"),
                        ("updated", "/lastUpdatedDateTimeUtc"),
                    ],
                )
            }
            Command::Show { id } => output.object(&client.get(entry_path(ENROLLMENTS, &id)).send()?),
            Command::Keys { id } => {
                let path = format!("{}/attestationmechanism", entry_path(ENROLLMENTS, &id));
                output.object(&client.post(path).send()?)
            }
            Command::Delete { id } => {
                client.delete(entry_path(ENROLLMENTS, &id)).send()?;
                deleted(output, "enrollment", &id)
            }
        }
    }
}

impl Change {
    fn apply(&self, body: &mut Value) -> anyhow::Result<()> {
        body["registrationId"] = self.id.as_str().into();
        if let Some(device_id) = &self.device_id {
            body["deviceId"] = device_id.as_str().into();
        }
        if let Some(attestation) = self.attestation.attestation("clientCertificates")? {
            body["attestation"] = attestation;
        }
        self.settings.apply(body)
    }
}
