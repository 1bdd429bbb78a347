//! `holdfast dps`: device provisioning.

mod access;
mod attestation;
mod certificate;
mod enrollment;
mod group;
mod linked_hub;
mod registration;
mod settings;

use clap::{Args, Subcommand};
use holdfast_model::credential::SymmetricKey;
use holdfast_program::failure::{Failure, Kind};
use serde_json::{Value, json};

use super::Global;
use super::client::{Client, segment};
use super::output::Format;
use super::profile::Login;

/// `holdfast dps …`
#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Enrollments of single devices: create, list, show, update, delete, keys
    #[command(subcommand)]
    Enrollment(enrollment::Command),
    /// Enrollments of many devices: create, list, show, update, delete, keys
    #[command(subcommand)]
    Group(group::Command),
    /// Authorities that enrollments name: upload, verify, list, show, delete
    #[command(subcommand)]
    Certificate(certificate::Command),
    /// Where devices stand: list, show, delete
    #[command(subcommand)]
    Registration(registration::Command),
    /// Hubs that devices are assigned to: set, list, show, delete
    #[command(subcommand)]
    LinkedHub(linked_hub::Command),
    /// The key of a device in a group, derived from the group's
    ComputeDeviceKey(ComputeDeviceKey),
}

#[derive(Args, Debug)]
#[command(
    after_help = "With --key nothing is sent, so it works on a machine that knows no hub.\n\nExamples:\n  holdfast dps compute-device-key --group line-4 --registration-id press-4\n  holdfast dps compute-device-key --key \"$GROUP_KEY\" --registration-id press-4"
)]
pub(super) struct ComputeDeviceKey {
    /// Registration id of the device
    #[arg(long, short)]
    registration_id: String,
    /// Group whose primary key to use
    #[arg(long, short, required_unless_present = "key")]
    group: Option<String>,
    /// The group's key
    #[arg(long, value_name = "KEY", conflicts_with = "group")]
    key: Option<String>,
}

impl Command {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        match self {
            Command::Enrollment(command) => command.run(global),
            Command::Group(command) => command.run(global),
            Command::Certificate(command) => command.run(global),
            Command::Registration(command) => command.run(global),
            Command::LinkedHub(command) => command.run(global),
            Command::ComputeDeviceKey(args) => args.run(global),
        }
    }
}

impl ComputeDeviceKey {
    fn run(self, global: &Global) -> anyhow::Result<()> {
        let key = match (self.key, self.group) {
            (Some(key), _) => key,
            (None, group) => {
                let client = client(global)?;
                let path = entry_path(GROUPS, &group.unwrap_or_default());
                let mechanism = client.post(format!("{path}/attestationmechanism")).send()?;
                let key = mechanism
                    .pointer("/symmetricKey/primaryKey")
                    .and_then(Value::as_str);
                key.ok_or_else(|| Failure::usage("the group has no keys: it uses certificates"))?
                    .to_owned()
            }
        };
        let key = SymmetricKey::parse(&key).map_err(|error| Failure::usage(format!("--key: {error}")))?;
        let derived = key.derive(&self.registration_id);
        let item = json!({ "registrationId": self.registration_id, "symmetricKey": derived.reveal() });
        global.output().outcome(derived.reveal(), &item)
    }
}

/// Path of individual enrollments.
const ENROLLMENTS: &str = "/enrollments";
/// Path of groups.
const GROUPS: &str = "/enrollmentGroups";

fn entry_path(root: &str, id: &str) -> String {
    format!("{root}/{}", segment(id))
}

/// A client with the policy of the provisioning service.
fn client(global: &Global) -> anyhow::Result<Client> {
    Client::new(Login::find_provisioning(&global.wanted())?)
}

/// Lists all pages of a query.
fn query(client: &Client, path: &str) -> anyhow::Result<Vec<Value>> {
    let mut items = Vec::new();
    let mut continuation: Option<String> = None;
    loop {
        let call = client.post(path).json(json!({ "query": "SELECT *" }));
        let call = match &continuation {
            Some(token) => call.header("x-ms-continuation", token),
            None => call,
        };
        let mut response = call.open()?;
        let next = response.headers().get("x-ms-continuation");
        let next = next.and_then(|value| value.to_str().ok()).map(str::to_owned);
        let text = response
            .body_mut()
            .with_config()
            .limit(256 << 20)
            .read_to_string()?;
        if let Value::Array(page) = serde_json::from_str(&text)? {
            items.extend(page);
        }
        match next {
            Some(token) => continuation = Some(token),
            None => return Ok(items),
        }
    }
}

/// Changes an entry that nobody else changes meanwhile, and reads it again: the answer to a change has the keys in it.
fn update(
    client: &Client,
    path: String,
    apply: impl FnOnce(&mut Value) -> anyhow::Result<()>,
) -> anyhow::Result<Value> {
    let mut body = client.get(path.clone()).send()?;
    let tag = body.get("etag").and_then(Value::as_str).map(str::to_owned);
    apply(&mut body)?;
    client
        .put(path.clone())
        .if_match(tag.as_deref())
        .json(body)
        .send()?;
    client.get(path).send()
}

/// Creates an entry; a PUT would replace one that is there.
fn bulk_create(client: &Client, path: &str, body: Value) -> anyhow::Result<()> {
    let answer = client.post(path).json(body).send()?;
    let Some(error) = answer.pointer("/errors/0") else {
        return Ok(());
    };
    let text = error
        .get("errorStatus")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let kind = match error.get("errorCode").and_then(Value::as_u64) {
        Some(409_000..=409_999) => Kind::Conflict,
        _ => Kind::Failed,
    };
    Err(Failure::new(kind, text).into())
}

/// Prints that something is gone.
fn deleted(output: Format, what: &str, id: &str) -> anyhow::Result<()> {
    output.outcome(
        &format!("{what} {id} deleted"),
        &json!({ "id": id, "deleted": true }),
    )
}
