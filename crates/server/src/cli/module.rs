//! `holdfast module`.

use clap::Subcommand;
use serde_json::json;

use super::Global;
use super::client::segment;
use super::credentials::{CredentialArgs, KeyName};
use super::identity::{self, Name};

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Register a module
    #[command(after_help = "Example:\n  holdfast module create gateway-1 filter")]
    Create {
        /// Device id
        device: String,
        /// Module id
        module: String,
        /// Who manages the module, free text
        #[arg(long, value_name = "TEXT")]
        managed_by: Option<String>,
        #[command(flatten)]
        credentials: CredentialArgs,
    },
    /// List the modules of a device
    List {
        /// Device id
        device: String,
    },
    /// Show a module
    Show {
        /// Device id
        device: String,
        /// Module id
        module: String,
    },
    /// Change a module
    Update {
        /// Device id
        device: String,
        /// Module id
        module: String,
        /// Who manages the module, free text
        #[arg(long, value_name = "TEXT")]
        managed_by: Option<String>,
        /// Change only if the entity tag is this one
        #[arg(long)]
        etag: Option<String>,
        #[command(flatten)]
        credentials: CredentialArgs,
    },
    /// Delete modules
    Delete {
        /// Device id
        device: String,
        /// Module ids
        #[arg(required = true)]
        modules: Vec<String>,
        /// Delete only if the entity tag is this one
        #[arg(long)]
        etag: Option<String>,
    },
    /// Show, make anew or swap the keys of a module
    Keys {
        /// Device id
        device: String,
        /// Module id
        module: String,
        /// Make new keys first
        #[arg(long, value_enum)]
        regenerate: Option<KeyName>,
        /// Swap primary and secondary first
        #[arg(long, conflicts_with = "regenerate")]
        swap: bool,
    },
}

const COLUMNS: &[(&str, &str)] = &[
    ("device", "/deviceId"),
    ("module", "/moduleId"),
    ("connection", "/connectionState"),
    ("auth", "/authentication/type"),
    ("managed by", "/managedBy"),
    ("last activity", "/lastActivityTime"),
];

impl Command {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let output = global.output();
        match self {
            Command::Create {
                device,
                module,
                managed_by,
                credentials,
            } => {
                let mut record = json!({ "deviceId": device, "moduleId": module, "managedBy": managed_by });
                if let Some(authentication) = credentials.authentication()? {
                    record["authentication"] = authentication;
                }
                output.object(&client.put(name(&device, &module).path()).json(record).send()?)
            }
            Command::List { device } => {
                let modules = client
                    .get(format!("/devices/{}/modules", segment(&device)))
                    .send()?;
                output.list(modules.as_array().map_or(&[], Vec::as_slice), COLUMNS)
            }
            Command::Show { device, module } => {
                output.object(&client.get(name(&device, &module).path()).send()?)
            }
            Command::Update {
                device,
                module,
                managed_by,
                etag,
                credentials,
            } => {
                let record = identity::update(&client, name(&device, &module), etag.as_deref(), |record| {
                    if let Some(managed_by) = &managed_by {
                        record["managedBy"] = managed_by.as_str().into();
                    }
                    if let Some(authentication) = credentials.authentication()? {
                        record["authentication"] = authentication;
                    }
                    Ok(())
                })?;
                output.object(&record)
            }
            Command::Delete {
                device,
                modules,
                etag,
            } => {
                let names: Vec<Name<'_>> = modules.iter().map(|module| name(&device, module)).collect();
                identity::delete(&client, &names, etag.as_deref(), output)
            }
            Command::Keys {
                device,
                module,
                regenerate,
                swap,
            } => identity::keys(&client, name(&device, &module), regenerate, swap, output),
        }
    }
}

fn name<'a>(device: &'a str, module: &'a str) -> Name<'a> {
    Name {
        device,
        module: Some(module),
    }
}
