//! `holdfast device`.

use clap::{Args, Subcommand, ValueEnum};
use holdfast_program::failure::Failure;
use serde_json::{Value, json};

use super::Global;
use super::credentials::{CredentialArgs, KeyName};
use super::identity::{self, Name};

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Register one or many devices
    #[command(
        after_help = "Examples:\n  holdfast device create press-4\n  holdfast device create gateway-1 --edge\n  holdfast device create press-5 --primary-thumbprint 7F83...\n  holdfast device create --prefix line-a- --count 1000"
    )]
    Create(CreateArgs),
    /// List devices
    List {
        /// Most devices to list, 1 to 1000
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1000))]
        top: u32,
    },
    /// Show a device
    Show {
        /// Device id
        device: String,
    },
    /// Change a device
    #[command(
        after_help = "Examples:\n  holdfast device update press-4 --status disabled --status-reason stolen\n  holdfast device update press-4 --auth x509-ca"
    )]
    Update(UpdateArgs),
    /// Delete devices with their modules, twins and queued messages
    Delete {
        /// Device ids
        #[arg(required = true)]
        devices: Vec<String>,
        /// Delete only if the entity tag is this one
        #[arg(long)]
        etag: Option<String>,
    },
    /// Show, make anew or swap the keys of a device
    #[command(after_help = "Making a key anew closes the connections that were opened with it.")]
    Keys {
        /// Device id
        device: String,
        /// Make new keys first
        #[arg(long, value_enum)]
        regenerate: Option<KeyName>,
        /// Swap primary and secondary first
        #[arg(long, conflicts_with = "regenerate")]
        swap: bool,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Status {
    /// May connect
    Enabled,
    /// May not connect
    Disabled,
}

#[derive(Args, Debug)]
struct RecordArgs {
    /// Whether it may connect
    #[arg(long, value_enum)]
    status: Option<Status>,
    /// Why it has this status, up to 128 characters
    #[arg(long, value_name = "TEXT")]
    status_reason: Option<String>,
    /// Device scope of the parent edge device (its `deviceScope`)
    #[arg(long, value_name = "SCOPE")]
    parent_scope: Option<String>,
}

#[derive(Args, Debug)]
pub(super) struct CreateArgs {
    /// Device ids
    #[arg(required_unless_present = "prefix", conflicts_with = "prefix")]
    devices: Vec<String>,
    /// Register many devices: the prefix is followed by numbers from 0
    #[arg(long, requires = "count")]
    prefix: Option<String>,
    /// How many devices to register with --prefix
    #[arg(long, requires = "prefix", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: Option<u32>,
    /// Register as an edge device
    #[arg(long)]
    edge: bool,
    #[command(flatten)]
    record: RecordArgs,
    #[command(flatten)]
    credentials: CredentialArgs,
}

#[derive(Args, Debug)]
pub(super) struct UpdateArgs {
    /// Device id
    device: String,
    /// Whether it is an edge device
    #[arg(long)]
    edge: Option<bool>,
    /// Change only if the entity tag is this one
    #[arg(long)]
    etag: Option<String>,
    #[command(flatten)]
    record: RecordArgs,
    #[command(flatten)]
    credentials: CredentialArgs,
}

const COLUMNS: &[(&str, &str)] = &[
    ("device", "/deviceId"),
    ("status", "/status"),
    ("connection", "/connectionState"),
    ("auth", "/authentication/type"),
    ("edge", "/capabilities/iotEdge"),
    ("last activity", "/lastActivityTime"),
    ("c2d", "/cloudToDeviceMessageCount"),
];

impl Command {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let output = global.output();
        match self {
            Command::Create(args) => create(global, &args),
            Command::List { top } => {
                let devices = client.get("/devices").query("top", Some(top)).send()?;
                output.list(devices.as_array().map_or(&[], Vec::as_slice), COLUMNS)
            }
            Command::Show { device } => output.object(&client.get(device_name(&device).path()).send()?),
            Command::Update(args) => {
                let record = identity::update(
                    &client,
                    device_name(&args.device),
                    args.etag.as_deref(),
                    |record| {
                        args.record.apply(record);
                        if let Some(edge) = args.edge {
                            record["capabilities"]["iotEdge"] = edge.into();
                        }
                        if let Some(authentication) = args.credentials.authentication()? {
                            record["authentication"] = authentication;
                        }
                        Ok(())
                    },
                )?;
                output.object(&record)
            }
            Command::Delete { devices, etag } => {
                let names: Vec<Name<'_>> = devices.iter().map(|device| device_name(device)).collect();
                identity::delete(&client, &names, etag.as_deref(), output)
            }
            Command::Keys {
                device,
                regenerate,
                swap,
            } => identity::keys(&client, device_name(&device), regenerate, swap, output),
        }
    }
}

fn device_name(device: &str) -> Name<'_> {
    Name { device, module: None }
}

impl RecordArgs {
    fn apply(&self, record: &mut Value) {
        if let Some(status) = self.status {
            record["status"] = if status == Status::Enabled {
                "enabled"
            } else {
                "disabled"
            }
            .into();
        }
        if let Some(reason) = &self.status_reason {
            record["statusReason"] = reason.as_str().into();
        }
        if let Some(scope) = &self.parent_scope {
            if record["capabilities"]["iotEdge"] == true {
                record["parentScopes"] = if scope.is_empty() {
                    json!([])
                } else {
                    json!([scope])
                };
            } else {
                record["deviceScope"] = scope.as_str().into();
            }
        }
    }
}

fn create(global: &Global, args: &CreateArgs) -> anyhow::Result<()> {
    let client = global.client()?;
    let output = global.output();
    let record = |device: &str, id_member: &str| -> anyhow::Result<Value> {
        let mut record = json!({ id_member: device, "capabilities": { "iotEdge": args.edge } });
        args.record.apply(&mut record);
        if let Some(authentication) = args.credentials.authentication()? {
            record["authentication"] = authentication;
        }
        Ok(record)
    };
    let (Some(prefix), Some(count)) = (&args.prefix, args.count) else {
        let mut created = Vec::new();
        for device in &args.devices {
            let record = record(device, "deviceId")?;
            created.push(client.put(device_name(device).path()).json(record).send()?);
        }
        return match created.as_slice() {
            [one] => output.object(one),
            many => output.list(many, COLUMNS),
        };
    };
    let width = (count - 1).to_string().len();
    let entries = (0..count)
        .map(|number| {
            let mut entry = record(&format!("{prefix}{number:0width$}"), "id")?;
            entry["importMode"] = "create".into();
            Ok(entry)
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let errors = identity::bulk(&client, &entries, "registering")?;
    let failed = errors.len();
    let done = entries.len() - failed.min(entries.len());
    output.outcome(
        &format!(
            "{done} devices registered: {prefix}{:0width$} to {prefix}{}",
            0,
            count - 1
        ),
        &json!({ "created": done, "errors": errors }),
    )?;
    match errors.first() {
        None => Ok(()),
        Some(first) => {
            let first = identity::bulk_failure(first);
            Err(Failure {
                message: format!(
                    "{failed} of {count} devices were not registered; the first: {}",
                    first.message
                ),
                ..first
            }
            .into())
        }
    }
}
