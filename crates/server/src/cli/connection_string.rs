//! `holdfast connection-string`.

use clap::Args;
use holdfast_program::failure::Failure;
use holdfast_wire::connection_string::{ConnectionString, Credential, Party};
use serde_json::json;

use super::Global;
use super::client::Client;
use super::identity::Name;
use super::sas::{identity_key, policy_key};

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  holdfast connection-string                      of the hub, with the policy of the login\n  holdfast connection-string press-4\n  holdfast connection-string --policy service"
)]
pub(super) struct ConnectionStringArgs {
    /// Device id; without one the connection string of the hub is printed
    #[arg(value_name = "DEVICE")]
    of: Option<String>,
    /// Device id, in place of DEVICE
    #[arg(long, short, conflicts_with = "of")]
    device: Option<String>,
    /// Module id, with a device
    #[arg(long, short)]
    module: Option<String>,
    /// Policy of the hub
    #[arg(long, conflicts_with_all = ["device", "of"])]
    policy: Option<String>,
    /// With the secondary key
    #[arg(long)]
    secondary: bool,
}

impl ConnectionStringArgs {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let login = global.find_login()?;
        let host = login.host.clone();
        let (party, credential) = match (self.of.or(self.device), self.module) {
            (None, Some(_)) => {
                return Err(Failure::usage(
                    "--module needs a device: holdfast connection-string DEVICE --module MODULE",
                )
                .into());
            }
            (None, None) => {
                let name = self.policy.unwrap_or_else(|| login.policy.clone());
                let key = if name == login.policy && !self.secondary {
                    login.key
                } else {
                    policy_key(&Client::new(login)?, &name, self.secondary)?
                };
                (Party::Service, Credential::Policy { name, key })
            }
            (Some(device_id), module_id) => {
                let client = Client::new(login)?;
                let name = Name {
                    device: &device_id,
                    module: module_id.as_deref(),
                };
                let record = client.get(name.path()).send()?;
                let by_key = matches!(record["authentication"]["type"].as_str(), None | Some("sas"));
                let credential = if by_key {
                    Credential::IdentityKey(identity_key(&client, name, self.secondary)?)
                } else {
                    Credential::X509
                };
                let party = match module_id {
                    None => Party::Device { device_id },
                    Some(module_id) => Party::Module { device_id, module_id },
                };
                (party, credential)
            }
        };
        let text = ConnectionString {
            host,
            gateway_host: None,
            party,
            credential,
        }
        .reveal();
        global
            .output()
            .outcome(&text, &json!({ "connectionString": text }))
    }
}
