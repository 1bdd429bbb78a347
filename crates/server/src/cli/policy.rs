//! `holdfast policy`.

use clap::{Subcommand, ValueEnum};
use holdfast_program::failure::{Failure, Kind};
use serde_json::json;

use super::Global;
use super::client::segment;
use super::credentials::KeyName;

const ROOT: &str = "/holdfast/v1/policies";

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// List policies with their rights
    List,
    /// Show a policy with its keys
    Show {
        /// Name of the policy
        name: String,
    },
    /// Add a policy
    #[command(
        after_help = "Example:\n  holdfast policy create dashboards --rights registry-read,service-connect"
    )]
    Create {
        /// Name of the policy
        name: String,
        /// What its holder may do
        #[arg(long, value_enum, value_delimiter = ',', required = true)]
        rights: Vec<Right>,
    },
    /// Delete a policy; its tokens end at once
    Delete {
        /// Name of the policy
        name: String,
    },
    /// Make new keys for a policy
    Regenerate {
        /// Name of the policy
        name: String,
        /// Which key
        #[arg(long, value_enum)]
        key: KeyName,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum Right {
    /// Read identities
    RegistryRead,
    /// Create, change and delete identities
    RegistryWrite,
    /// Twins, methods, cloud-to-device messages, events
    ServiceConnect,
    /// Connect as any device
    DeviceConnect,
}

impl Right {
    const fn as_str(self) -> &'static str {
        match self {
            Right::RegistryRead => "RegistryRead",
            Right::RegistryWrite => "RegistryWrite",
            Right::ServiceConnect => "ServiceConnect",
            Right::DeviceConnect => "DeviceConnect",
        }
    }
}

impl Command {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let output = global.output();
        let path = |name: &str| format!("{ROOT}/{}", segment(name));
        match self {
            Command::List => {
                let policies = client.get(ROOT).send()?;
                let policies = policies.as_array().cloned().unwrap_or_default();
                output.list(&policies, &[("policy", "/keyName"), ("rights", "/rights")])
            }
            Command::Show { name } => output.object(&client.get(path(&name)).send()?),
            Command::Create { name, rights } => {
                let rights: Vec<&str> = rights.into_iter().map(Right::as_str).collect();
                // PUT replaces, keys and all; whoever says "create" does not mean that.
                if client.get(path(&name)).send().is_ok() {
                    return Err(
                        Failure::new(Kind::Conflict, format!("the policy {name} exists already"))
                            .hint("delete it first, or choose another name")
                            .into(),
                    );
                }
                let body = json!({ "rights": rights.join(", ") });
                output.object(&client.put(path(&name)).json(body).send()?)
            }
            Command::Delete { name } => {
                client.delete(path(&name)).send()?;
                output.outcome(
                    &format!("policy {name} deleted"),
                    &json!({ "keyName": name, "deleted": true }),
                )
            }
            Command::Regenerate { name, key } => {
                let body = json!({ "policyKey": key.as_policy_key() });
                output.object(
                    &client
                        .post(format!("{}/regenerate", path(&name)))
                        .json(body)
                        .send()?,
                )
            }
        }
    }
}
