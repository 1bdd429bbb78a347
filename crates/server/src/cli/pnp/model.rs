//! `holdfast pnp model`.

use std::path::PathBuf;

use clap::Subcommand;
use holdfast_fleet::models::{ModelFailure, ModelFolder};
use holdfast_program::failure::{Failure, Kind};
use serde_json::{Value, json};
use ureq::http::Method;

use crate::cli::Global;
use crate::cli::client::segment;
use crate::cli::input;
use crate::cli::output::Format;

#[derive(Subcommand, Debug)]
pub(in crate::cli) enum Command {
    /// Check a model and tell every rule it breaks
    #[command(
        after_help = "Examples:\n  holdfast pnp model validate @thermostat.json              with the models of the hub\n  holdfast pnp model validate @thermostat.json --repo .     with those of a local repository, without a hub"
    )]
    Validate {
        /// The model: JSON, @FILE or - for standard input
        #[arg(value_name = "JSON")]
        model: String,
        /// Folder of a model repository (with dtmi/com/example/… in it) in which what it refers to is looked up, instead of
        /// the hub
        #[arg(long, value_name = "DIR")]
        repo: Option<PathBuf>,
    },
    /// Give a model to the hub, or replace it; what it refers to must be there already
    Add {
        /// The model: JSON, @FILE or - for standard input
        #[arg(value_name = "JSON")]
        model: String,
    },
    /// List the models of the hub
    List,
    /// Show a model of the hub
    Show {
        /// DTMI, such as dtmi:com:example:Thermostat;1
        dtmi: String,
    },
    /// Remove a model from the hub
    Delete {
        /// DTMI
        dtmi: String,
    },
}

impl Command {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let format = global.output();
        match self {
            Command::Validate { model, repo } => {
                let result = match repo {
                    Some(repo) => validate_here(&input::text(&model)?, repo)?,
                    None => {
                        let client = global.client()?;
                        let call = client.post("/holdfast/v1/models/validate");
                        call.json(input::json("the model", &model)?).send()?
                    }
                };
                report(format, &result)
            }
            Command::Add { model } => add(global, &model),
            Command::List => {
                let models = global.client()?.get("/holdfast/v1/models").send()?;
                let models = models.as_array().cloned().unwrap_or_default();
                format.list(&models, &[("id", "/id"), ("name", "/displayName")])
            }
            Command::Show { dtmi } => {
                let model = global.client()?.get(path(&dtmi)).send()?;
                crate::cli::output::json(&model)
            }
            Command::Delete { dtmi } => {
                global.client()?.delete(path(&dtmi)).send()?;
                format.outcome(&format!("{dtmi} deleted"), &json!({ "id": dtmi }))
            }
        }
    }
}

fn path(dtmi: &str) -> String {
    format!("/holdfast/v1/models/{}", segment(dtmi))
}

fn add(global: &Global, model: &str) -> anyhow::Result<()> {
    let client = global.client()?;
    let model = input::json("the model", model)?;
    // Checked first, since only this answer tells every fault.
    let checked = client
        .post("/holdfast/v1/models/validate")
        .json(model.clone())
        .send()?;
    let id = match (checked["valid"].as_bool(), checked["modelId"].as_str()) {
        (Some(true), Some(id)) => id.to_owned(),
        _ => return report(global.output(), &checked),
    };
    client.call(Method::PUT, path(&id)).json(model).send()?;
    global
        .output()
        .outcome(&format!("{id} added"), &json!({ "id": id }))
}

fn validate_here(text: &str, repo: PathBuf) -> anyhow::Result<Value> {
    let faults = match ModelFolder::new(repo).check(text) {
        Ok((id, _)) => return Ok(json!({ "valid": true, "modelId": id.to_string(), "faults": [] })),
        Err(ModelFailure::Faults(faults)) => faults,
        Err(ModelFailure::Error(error)) => return Err(Failure::new(Kind::Storage, error.message).into()),
    };
    let faults: Vec<Value> = faults
        .iter()
        .map(|fault| json!({ "place": fault.place, "rule": fault.rule }))
        .collect();
    Ok(json!({ "valid": false, "faults": faults }))
}

/// Prints what a check has found; faults are a failure of the command.
pub(super) fn report(format: Format, result: &Value) -> anyhow::Result<()> {
    let faults = result["faults"].as_array().map_or(&[][..], Vec::as_slice);
    if format == Format::Json {
        crate::cli::output::json(result)?;
    } else {
        for fault in faults {
            let text = |name: &str| fault[name].as_str().unwrap_or_default();
            let gap = if text("place").is_empty() { "" } else { ": " };
            eprintln!("{}{gap}{}", text("place"), text("rule"));
        }
        if faults.is_empty() {
            let id = result["modelId"].as_str().unwrap_or_default();
            crate::cli::output::line(&format!("no faults: {id}"))?;
        }
    }
    match faults.len() {
        0 => Ok(()),
        1 => Err(Failure::new(Kind::Failed, "1 rule is broken").into()),
        count => Err(Failure::new(Kind::Failed, format!("{count} rules are broken")).into()),
    }
}
