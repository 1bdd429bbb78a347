//! `holdfast pnp twin`.

use std::io::Read as _;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use ureq::http::Method;

use super::model::report;
use crate::cli::Global;
use crate::cli::client::segment;
use crate::cli::input;

/// Wait for the answer of a device beyond its own time-outs.
const ANSWER_MARGIN_SECONDS: u64 = 15;

#[derive(Subcommand, Debug)]
pub(in crate::cli) enum Command {
    /// Show a digital twin
    Show {
        /// Device id
        device: String,
    },
    /// Change writable properties by JSON Patch
    #[command(
        after_help = "Examples:\n  holdfast pnp twin update d1 --json-patch '[{\"op\":\"add\",\"path\":\"/thermostat1/targetTemperature\",\"value\":21}]'"
    )]
    Update {
        /// Device id
        device: String,
        /// Operations add, replace, remove on /property, /component or /component/property: JSON, @FILE or -
        #[arg(long, value_name = "JSON")]
        json_patch: String,
        /// Change only if the twin's entity tag is this one
        #[arg(long)]
        etag: Option<String>,
    },
    /// Check the values of a twin against the model that the device announced
    Check {
        /// Device id
        device: String,
        /// Module id
        #[arg(long, short, value_name = "MODULE")]
        module: Option<String>,
    },
    /// Invoke a command and wait for its answer
    #[command(name = "invoke-command")]
    Invoke(InvokeArgs),
}

#[derive(Args, Debug)]
pub(in crate::cli) struct InvokeArgs {
    /// Device id
    device: String,
    /// Name of the command
    command: String,
    /// Component that has the command; else the default one
    #[arg(long, value_name = "NAME")]
    component: Option<String>,
    /// Argument: JSON, @FILE or - for standard input
    #[arg(long, short, value_name = "JSON")]
    payload: Option<String>,
    /// Seconds to wait for the device to connect
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    connect_timeout: u64,
    /// Seconds to wait for its answer
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    response_timeout: u64,
}

impl Command {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        match self {
            Command::Show { device } => {
                let twin = global.client()?.get(path(&device)).send()?;
                global.output().object(&twin)
            }
            Command::Update {
                device,
                json_patch,
                etag,
            } => {
                let patch = input::json("--json-patch", &json_patch)?;
                let client = global.client()?;
                let call = client.call(Method::PATCH, path(&device));
                call.if_match(etag.as_deref()).json(patch).send()?;
                let twin = client.get(path(&device)).send()?;
                global.output().object(&twin)
            }
            Command::Check { device, module } => {
                let module = module.map_or(String::new(), |module| format!("/modules/{}", segment(&module)));
                let place = format!("/holdfast/v1/devices/{}{module}/modelCheck", segment(&device));
                let result = global.client()?.get(place).send()?;
                report(global.output(), &result)
            }
            Command::Invoke(args) => args.run(global),
        }
    }
}

impl InvokeArgs {
    fn run(&self, global: &Global) -> anyhow::Result<()> {
        let payload = self.payload.as_deref();
        let payload = payload.map(|text| input::json("--payload", text)).transpose()?;
        let component = self.component.as_deref();
        let component = component.map_or(String::new(), |name| format!("/components/{}", segment(name)));
        let place = format!(
            "{}{component}/commands/{}",
            path(&self.device),
            segment(&self.command)
        );
        let wait = self.connect_timeout + self.response_timeout + ANSWER_MARGIN_SECONDS;
        let client = global.client()?;
        let mut call = client
            .post(place)
            .query("connectTimeoutInSeconds", Some(self.connect_timeout))
            .query("responseTimeoutInSeconds", Some(self.response_timeout))
            .timeout(Some(Duration::from_secs(wait)));
        if let Some(payload) = payload {
            call = call.json(payload);
        }
        let response = call.open()?;
        let status = response.headers().get("x-ms-command-statuscode");
        let status: Option<i64> = status.and_then(|status| status.to_str().ok()?.parse().ok());
        let mut text = String::new();
        let mut body = response.into_body().into_reader();
        body.read_to_string(&mut text)
            .context("the hub's answer broke off")?;
        let payload: Value = serde_json::from_str(&text).context("the hub's answer is not JSON")?;
        global
            .output()
            .object(&json!({ "status": status, "payload": payload }))
    }
}

fn path(device: &str) -> String {
    format!("/digitaltwins/{}", segment(device))
}
