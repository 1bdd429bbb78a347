//! `holdfast enrichment`.

use clap::Subcommand;
use serde_json::{Value, json};

use super::Global;
use super::client::segment;

const ROOT: &str = "/holdfast/v1/routing/enrichments";

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Add a property to everything that goes to some endpoints
    #[command(
        after_help = "Examples:\n  holdfast enrichment create site --value '$twin.tags.site' --endpoint alarms\n  holdfast enrichment create hub --value '$iothubname' --endpoint alarms --endpoint archive\n  holdfast enrichment create stage --value production --endpoint events"
    )]
    Create {
        /// Name of the property
        key: String,
        /// A text, $iothubname, or a path such as $twin.tags.site
        #[arg(long, short)]
        value: String,
        /// Endpoint; can be given several times
        #[arg(
            long = "endpoint",
            visible_alias = "endpoints",
            short,
            required = true,
            value_name = "NAME"
        )]
        endpoints: Vec<String>,
    },
    /// List enrichments
    List,
    /// Delete an enrichment
    Delete {
        /// Name of the property
        key: String,
    },
}

impl Command {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let output = global.output();
        match self {
            Command::Create {
                key,
                value,
                endpoints,
            } => {
                let body = json!({"value": value, "endpointNames": endpoints});
                let made = client
                    .put(format!("{ROOT}/{}", segment(&key)))
                    .json(body)
                    .send()?;
                output.outcome(&format!("enrichment {key} created"), &made)
            }
            Command::List => {
                let all = client.get(ROOT).send()?;
                let all: Vec<Value> = all.as_array().cloned().unwrap_or_default();
                output.list(
                    &all,
                    &[
                        ("key", "/key"),
                        ("value", "/value"),
                        ("endpoints", "/endpointNames"),
                    ],
                )
            }
            Command::Delete { key } => {
                client.delete(format!("{ROOT}/{}", segment(&key))).send()?;
                output.outcome(
                    &format!("enrichment {key} deleted"),
                    &json!({"key": key, "deleted": true}),
                )
            }
        }
    }
}
