//! `holdfast dps registration`.

use clap::Subcommand;

use super::super::Global;
use super::super::output::line;
use super::{client, deleted, entry_path, query};

const ROOT: &str = "/registrations";

#[derive(Subcommand, Debug)]
pub(in crate::cli) enum Command {
    /// List the devices that registered through a group
    List {
        /// Group id
        #[arg(long, short)]
        group: String,
    },
    /// Show where a device stands
    Show {
        /// Registration id
        id: String,
    },
    /// Forget a registration: the device's next one is its first. The device stays on its hub
    Delete {
        /// Registration id
        id: String,
    },
}

impl Command {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = client(global)?;
        let output = global.output();
        match self {
            Command::List { group } => {
                let list = query(&client, &format!("{}/query", entry_path(ROOT, &group)))?;
                if list.is_empty() && output == super::Format::Table {
                    return line("no device has registered through this group");
                }
                output.list(
                    &list,
                    &[
                        ("registration", "/registrationId"),
                        ("status", "/status"),
                        ("substatus", "/substatus"),
                        ("hub", "/assignedHub"),
                        ("device", "/deviceId"),
                        ("error", "/errorMessage"),
                        ("updated", "/lastUpdatedDateTimeUtc"),
                    ],
                )
            }
            Command::Show { id } => output.object(&client.get(entry_path(ROOT, &id)).send()?),
            Command::Delete { id } => {
                client.delete(entry_path(ROOT, &id)).send()?;
                deleted(output, "registration", &id)
            }
        }
    }
}
