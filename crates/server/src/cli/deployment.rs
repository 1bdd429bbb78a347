//! `holdfast deployment`: edge deployments, automatic ones and content for one device.

use clap::{Args, Subcommand};
use holdfast_program::failure::Failure;
use serde_json::{Value, json};

use super::client::{Client, segment};
use super::configuration::{
    COLUMNS, MetricsArgs, Settings, UpdateArgs, create, delete, list, path, show_metrics, update,
};
use super::{Global, input};

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Create a deployment; a layered one has paths such as properties.desired.modules.NAME instead of whole modules
    #[command(
        after_help = "The manifest is what `az iot edge` takes: {\"content\":{\"modulesContent\":{…}}}, with or without what is around.\n\nExamples:\n  holdfast deployment create press-v2 --content @deployment.json --target-condition \"tags.line='press'\" --priority 10\n  holdfast deployment create camera --content @layer.json --target-condition \"tags.camera=true\" --priority 20"
    )]
    Create(CreateArgs),
    /// List deployments
    List,
    /// Show a deployment with its metrics
    Show {
        /// Id of the deployment
        id: String,
    },
    /// Change target condition, priority, labels or metrics; the content cannot change
    #[command(after_help = "Example:\n  holdfast deployment update press-v2 --priority 30")]
    Update(UpdateArgs),
    /// Delete a deployment; devices take on the next best one, or keep their modules
    Delete {
        /// Id of the deployment
        id: String,
        /// Delete only if the entity tag is this one
        #[arg(long)]
        etag: Option<String>,
    },
    /// Show what the metrics of a deployment come to
    #[command(
        after_help = "Examples:\n  holdfast deployment show-metric press-v2\n  holdfast deployment show-metric press-v2 --metric reportedSuccessfulCount"
    )]
    ShowMetric(MetricsArgs),
    /// Apply a manifest to one edge device
    #[command(after_help = "Example:\n  holdfast deployment apply gateway-1 --content @deployment.json")]
    Apply(ApplyArgs),
}

#[derive(Args, Debug)]
pub(super) struct CreateArgs {
    /// Id of the deployment: lower case
    id: String,
    /// Manifest: JSON, @FILE or - for standard input
    #[arg(long, value_name = "JSON")]
    content: String,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Args, Debug)]
pub(super) struct ApplyArgs {
    /// Id of the edge device
    device: String,
    /// Manifest: JSON, @FILE or - for standard input
    #[arg(long, value_name = "JSON")]
    content: String,
}

impl Command {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let output = global.output();
        match self {
            Command::Create(args) => {
                let content = json!({ "modulesContent": modules(&args.content)? });
                output.object(&create(&client, &args.id, content, &args.settings)?)
            }
            Command::List => output.list(&list(&client, |content| content == "modulesContent")?, COLUMNS),
            Command::Show { id } => output.object(&client.get(path(&id)).send()?),
            Command::Update(args) => output.object(&update(&client, &args)?),
            Command::Delete { id, etag } => delete(global, &client, "deployment", &id, etag.as_deref()),
            Command::ShowMetric(args) => show_metrics(global, &client, &args),
            Command::Apply(args) => apply(global, &client, &args.device, &args.content),
        }
    }
}

/// Applies a manifest to one edge device.
fn apply(global: &Global, client: &Client, device: &str, content: &str) -> anyhow::Result<()> {
    let modules = modules(content)?;
    send(client, device, &modules)?;
    let ids: Vec<&String> = modules
        .as_object()
        .into_iter()
        .flat_map(|all| all.keys())
        .collect();
    global.output().outcome(
        &format!(
            "manifest given to {device} ({}); whether the device takes it: holdfast edge status {device}",
            ids.iter().map(|id| id.as_str()).collect::<Vec<_>>().join(", ")
        ),
        &json!({ "deviceId": device, "modules": ids }),
    )
}

/// Gives the modules of a manifest to one edge device.
pub(super) fn send(client: &Client, device: &str, modules: &Value) -> anyhow::Result<()> {
    let path = format!("/devices/{}/applyConfigurationContent", segment(device));
    client
        .post(path)
        .json(json!({ "modulesContent": modules }))
        .send()
        .map(drop)
}

/// The modules of a manifest.
pub(super) fn modules(text: &str) -> anyhow::Result<Value> {
    let given = input::object("--content", text)?;
    let given = given.get("content").cloned().unwrap_or(given);
    let modules = given.get("modulesContent").or_else(|| given.get("moduleContent"));
    match modules {
        Some(modules) if modules.is_object() => Ok(modules.clone()),
        _ if given.get("$edgeAgent").is_some() || given.get("$edgeHub").is_some() => Ok(given),
        _ => Err(Failure::usage("the manifest has no modulesContent")
            .hint("a manifest is {\"modulesContent\":{\"$edgeAgent\":{…},\"$edgeHub\":{…},…}}")
            .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_are_taken_bare_and_wrapped() {
        let expected = json!({"$edgeAgent": {}});
        for text in [
            r#"{"$edgeAgent": {}}"#,
            r#"{"modulesContent": {"$edgeAgent": {}}}"#,
            r#"{"content": {"modulesContent": {"$edgeAgent": {}}}}"#,
            r#"{"content": {"moduleContent": {"$edgeAgent": {}}}}"#,
        ] {
            assert_eq!(modules(text).expect("a manifest"), expected, "{text}");
        }
        assert!(modules("{}").is_err());
    }
}
