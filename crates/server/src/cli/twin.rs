//! `holdfast twin`.

use clap::{Args, Subcommand};
use holdfast_program::failure::Failure;
use serde_json::{Map, Value};
use ureq::http::Method;

use super::identity::Name;
use super::{Global, input};

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Show a twin
    Show {
        #[command(flatten)]
        target: Target,
    },
    /// Merge into tags and desired properties; null removes a key
    #[command(
        after_help = "Examples:\n  holdfast twin update press-4 --desired '{\"interval\":5}'\n  holdfast twin update press-4 --tags '{\"plant\":\"north\"}' --desired @desired.json"
    )]
    Update(ChangeArgs),
    /// Replace tags and desired properties whole
    Replace(ChangeArgs),
}

/// A device, or one of its modules.
#[derive(Args, Debug)]
pub(super) struct Target {
    /// Device id
    device: String,
    /// Module id
    #[arg(long, short, value_name = "MODULE")]
    module: Option<String>,
}

impl Target {
    pub(super) fn name(&self) -> Name<'_> {
        Name {
            device: &self.device,
            module: self.module.as_deref(),
        }
    }
}

#[derive(Args, Debug)]
pub(super) struct ChangeArgs {
    #[command(flatten)]
    target: Target,
    /// Desired properties: JSON, @FILE or - for standard input
    #[arg(long, value_name = "JSON")]
    desired: Option<String>,
    /// Tags: JSON, @FILE or - for standard input
    #[arg(long, value_name = "JSON")]
    tags: Option<String>,
    /// Change only if the twin's entity tag is this one
    #[arg(long)]
    etag: Option<String>,
}

impl Command {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let twin = match &self {
            Command::Show { target } => client.get(target.name().twin_path()).send()?,
            Command::Update(args) | Command::Replace(args) => {
                let method = if matches!(self, Command::Update(_)) {
                    Method::PATCH
                } else {
                    Method::PUT
                };
                let call = client.call(method, args.target.name().twin_path());
                call.if_match(args.etag.as_deref()).json(args.body()?).send()?
            }
        };
        global.output().object(&twin)
    }
}

impl ChangeArgs {
    fn body(&self) -> anyhow::Result<Value> {
        let mut body = Map::new();
        if let Some(tags) = &self.tags {
            body.insert("tags".to_owned(), input::object("--tags", tags)?);
        }
        if let Some(desired) = &self.desired {
            let desired = input::object("--desired", desired)?;
            body.insert("properties".to_owned(), serde_json::json!({ "desired": desired }));
        }
        if body.is_empty() {
            return Err(Failure::usage("nothing to change: give --desired or --tags").into());
        }
        Ok(Value::Object(body))
    }
}
