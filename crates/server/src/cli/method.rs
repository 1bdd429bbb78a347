//! `holdfast method`.

use std::time::Duration;

use clap::{Args, Subcommand};
use holdfast_program::units::Span;
use serde_json::{Value, json};

use super::twin::Target;
use super::{Global, input};

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Call a direct method and print the answer
    #[command(
        after_help = "Examples:\n  holdfast method invoke press-4 reboot\n  holdfast method invoke press-4 setSpeed --payload '{\"rpm\":900}' --timeout 1m"
    )]
    Invoke(InvokeArgs),
}

#[derive(Args, Debug)]
pub(super) struct InvokeArgs {
    #[command(flatten)]
    target: Target,
    /// Name of the method
    method: String,
    /// Payload: JSON, @FILE or - for standard input
    #[arg(long, short, value_name = "JSON")]
    payload: Option<String>,
    /// How long to wait for the answer, 5s to 5m
    #[arg(long, default_value = "30s")]
    timeout: Span,
    /// How long to wait for the device to connect, up to 5m
    #[arg(long, default_value = "0s")]
    connect_timeout: Span,
}

impl Command {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let Command::Invoke(args) = self;
        let client = global.client()?;
        let payload = match &args.payload {
            Some(payload) => input::json("--payload", payload)?,
            None => Value::Null,
        };
        let body = json!({
            "methodName": args.method,
            "payload": payload,
            "responseTimeoutInSeconds": args.timeout.0.as_secs(),
            "connectTimeoutInSeconds": args.connect_timeout.0.as_secs(),
        });
        // The hub answers in time; the rest is for a slow network.
        let patience = args.timeout.0 + args.connect_timeout.0 + Duration::from_secs(15);
        let path = format!("{}/methods", args.target.name().twin_path());
        let answer = client.post(path).json(body).timeout(Some(patience)).send()?;
        global.output().object(&answer)
    }
}
