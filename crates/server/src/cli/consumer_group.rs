//! `holdfast consumer-group`.

use clap::Subcommand;
use serde_json::{Value, json};

use super::Global;
use super::client::segment;

const ROOT: &str = "/holdfast/v1/consumerGroups";

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// List consumer groups
    List,
    /// Add a consumer group
    Create {
        /// Name of the group
        name: String,
    },
    /// Delete a consumer group with its checkpoints
    Delete {
        /// Name of the group
        name: String,
    },
}

impl Command {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let output = global.output();
        let path = |name: &str| format!("{ROOT}/{}", segment(name));
        match self {
            Command::List => {
                let answer = client.get(ROOT).send()?;
                // Names, or objects with a name.
                let groups: Vec<Value> = answer
                    .as_array()
                    .map_or(&[][..], Vec::as_slice)
                    .iter()
                    .map(|group| {
                        if group.is_string() {
                            json!({ "name": group })
                        } else {
                            group.clone()
                        }
                    })
                    .collect();
                output.list(&groups, &[("consumer group", "/name")])
            }
            Command::Create { name } => {
                client.put(path(&name)).json(json!({})).send()?;
                output.outcome(
                    &format!("consumer group {name} created"),
                    &json!({ "name": name }),
                )
            }
            Command::Delete { name } => {
                client.delete(path(&name)).send()?;
                output.outcome(
                    &format!("consumer group {name} deleted"),
                    &json!({ "name": name, "deleted": true }),
                )
            }
        }
    }
}
