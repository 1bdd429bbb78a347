//! `holdfast dps group`.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::super::Global;
use super::super::output::line;
use super::attestation::AttestationArgs;
use super::settings::SettingsArgs;
use super::{GROUPS, bulk_create, client, deleted, entry_path, query, update};

#[derive(Subcommand, Debug)]
pub(in crate::cli) enum Command {
    /// Enroll many devices
    #[command(
        after_help = "Without attestation flags devices prove themselves by keys derived from one that the service makes.\n\nExamples:\n  holdfast dps group create line-4 --tags '{\"line\":4}'\n  holdfast dps group create line-4 --certificate line-4-ca.pem"
    )]
    Create(Change),
    /// Change a group; what is not given stays as it is
    Update(Change),
    /// List groups
    List,
    /// Show a group, without its keys
    Show {
        /// Group id
        id: String,
    },
    /// Show how devices prove themselves, with the keys
    Keys {
        /// Group id
        id: String,
    },
    /// Show or set which devices of a group are let in
    Access(super::access::Access),
    /// Delete a group; devices that are on a hub stay there
    Delete {
        /// Group id
        id: String,
    },
}

#[derive(Args, Debug)]
pub(in crate::cli) struct Change {
    /// Group id
    id: String,
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
            Command::Access(access) => access.run(global),
            Command::Create(change) => {
                let mut body = json!({ "attestation": { "type": "symmetricKey" } });
                change.apply(&mut body)?;
                bulk_create(
                    &client,
                    GROUPS,
                    json!({ "mode": "create", "enrollmentGroups": [body] }),
                )?;
                output.object(&client.get(entry_path(GROUPS, &change.id)).send()?)
            }
            Command::Update(change) => {
                let path = entry_path(GROUPS, &change.id);
                output.object(&update(&client, path, |body| change.apply(body))?)
            }
            Command::List => {
                let list = query(&client, "/enrollmentGroups/query")?;
                if list.is_empty() && output == super::Format::Table {
                    return line("no enrollment groups; `holdfast dps group create` makes one");
                }
                output.list(
                    &list,
                    &[
                        ("group", "/enrollmentGroupId"),
                        ("attestation", "/attestation/type"),
                        ("status", "/provisioningStatus"),
                        ("allocation", "/allocationPolicy"),
                        ("updated", "/lastUpdatedDateTimeUtc"),
                    ],
                )
            }
            Command::Show { id } => output.object(&client.get(entry_path(GROUPS, &id)).send()?),
            Command::Keys { id } => {
                let path = format!("{}/attestationmechanism", entry_path(GROUPS, &id));
                output.object(&client.post(path).send()?)
            }
            Command::Delete { id } => {
                client.delete(entry_path(GROUPS, &id)).send()?;
                deleted(output, "enrollment group", &id)
            }
        }
    }
}

impl Change {
    fn apply(&self, body: &mut Value) -> anyhow::Result<()> {
        body["enrollmentGroupId"] = self.id.as_str().into();
        if let Some(attestation) = self.attestation.attestation("signingCertificates")? {
            body["attestation"] = attestation;
        }
        self.settings.apply(body)
    }
}
