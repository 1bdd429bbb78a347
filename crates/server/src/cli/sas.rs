//! `holdfast sas`.

use clap::Args;
use holdfast_model::Timestamp;
use holdfast_model::credential::{SymmetricKey, sign_sas};
use holdfast_ports::clock::{Clock as _, SystemClock};
use holdfast_program::failure::{Failure, Kind};
use holdfast_program::units::Span;
use serde_json::json;

use super::Global;
use super::client::Client;
use super::identity::Name;
use super::profile::Login;

#[derive(Args, Debug)]
#[command(
    after_help = "Without --device the token is for the service side, signed with the policy of the login.\n\nExamples:\n  holdfast sas --device press-4 --ttl 1d\n  curl --cacert \"$HOLDFAST_CA\" -H \"Authorization: $(holdfast sas)\" \"https://$HOLDFAST_HOST/devices?api-version=2021-04-12\""
)]
pub(super) struct SasArgs {
    /// Device id: make a token for this device
    #[arg(long, short)]
    device: Option<String>,
    /// Module id, with --device
    #[arg(long, short, requires = "device")]
    module: Option<String>,
    /// How long the token lives
    #[arg(long, default_value = "1h")]
    ttl: Span,
    /// Sign with this key instead of one that the hub knows (nothing is sent then)
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Sign with the policy of the login, also for a device
    #[arg(long)]
    policy: bool,
    /// Sign with the secondary key
    #[arg(long, conflicts_with = "key")]
    secondary: bool,
}

impl SasArgs {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let login = global.find_login()?;
        let expiry = SystemClock::new().now().plus(self.ttl.0);
        let resource = match (&self.device, &self.module) {
            (None, _) => login.host.clone(),
            (Some(device), None) => format!("{}/devices/{device}", login.host),
            (Some(device), Some(module)) => format!("{}/devices/{device}/modules/{module}", login.host),
        };
        let token = match (&self.key, &self.device) {
            (Some(key), device) => {
                let key =
                    SymmetricKey::parse(key).map_err(|error| Failure::usage(format!("--key: {error}")))?;
                let policy = device.is_none().then_some(login.policy.as_str());
                sign_sas(&resource, &key, expiry, policy)
            }
            (None, Some(device)) if !self.policy => {
                let name = Name {
                    device,
                    module: self.module.as_deref(),
                };
                let key = identity_key(&Client::new(login)?, name, self.secondary)?;
                sign_sas(&resource, &key, expiry, None)
            }
            _ => self.with_policy(login, &resource, expiry)?,
        };
        let item = json!({ "sas": token, "resource": resource, "expiry": expiry.to_string() });
        global.output().outcome(&token, &item)
    }

    fn with_policy(&self, login: Login, resource: &str, expiry: Timestamp) -> anyhow::Result<String> {
        if !self.secondary {
            return Ok(sign_sas(resource, &login.key, expiry, Some(&login.policy)));
        }
        let policy = login.policy.clone();
        let key = policy_key(&Client::new(login)?, &policy, true)?;
        Ok(sign_sas(resource, &key, expiry, Some(&policy)))
    }
}

/// A symmetric key of a device or module, from the registry.
pub(super) fn identity_key(client: &Client, name: Name<'_>, secondary: bool) -> anyhow::Result<SymmetricKey> {
    let record = client.get(name.path()).send()?;
    let member = if secondary { "secondaryKey" } else { "primaryKey" };
    let key = record["authentication"]["symmetricKey"][member]
        .as_str()
        .ok_or_else(|| {
            Failure::new(Kind::Failed, format!("{name} has no symmetric keys"))
                .hint("it authenticates with certificates; `update --auth sas` gives it keys")
        })?;
    Ok(SymmetricKey::parse(key)?)
}

/// A key of a policy.
pub(super) fn policy_key(client: &Client, policy: &str, secondary: bool) -> anyhow::Result<SymmetricKey> {
    let path = format!("/holdfast/v1/policies/{}", super::client::segment(policy));
    let record = client.get(path).send()?;
    let member = if secondary { "secondaryKey" } else { "primaryKey" };
    let key = record[member].as_str().ok_or_else(|| {
        Failure::new(
            Kind::Failed,
            format!("the hub did not return the {member} of the policy {policy}"),
        )
    })?;
    Ok(SymmetricKey::parse(key)?)
}
