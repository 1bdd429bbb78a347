//! `holdfast c2d`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand, ValueEnum};
use holdfast_program::failure::Failure;
use holdfast_program::units::Span;
use serde_json::{Map, Value, json};

use super::client::segment;
use super::{Global, input};

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Queue a message for a device
    #[command(
        after_help = "Examples:\n  holdfast c2d send press-4 'hello'\n  holdfast c2d send press-4 --data '{\"stop\":true}' --content-type application/json --property urgency=high --ttl 10m\n  holdfast c2d send press-4 --data-file firmware.bin --ack full"
    )]
    Send(Box<SendArgs>),
    /// Delete all messages that wait for a device
    Purge {
        /// Device id
        device: String,
    },
}

/// Which outcomes of a message its sender wants to hear of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
#[value(rename_all = "lowercase")]
enum Ack {
    /// No feedback
    None,
    /// When the device completed it
    Positive,
    /// When it expired or was rejected
    Negative,
    /// Both
    Full,
}

#[derive(Args, Debug)]
pub(super) struct SendArgs {
    /// Device id
    device: String,
    /// The message as text; - reads standard input
    #[arg(value_name = "TEXT", required_unless_present_any = ["data", "data_file"], conflicts_with_all = ["data", "data_file"])]
    text: Option<String>,
    /// The message as text, in place of TEXT
    #[arg(long, value_name = "TEXT", conflicts_with = "data_file")]
    data: Option<String>,
    /// Send the bytes of a file instead
    #[arg(long, value_name = "FILE")]
    data_file: Option<std::path::PathBuf>,
    /// Application property; may be given several times
    #[arg(long = "property", short, value_name = "KEY=VALUE", value_parser = input::property)]
    properties: Vec<(String, String)>,
    /// Message id
    #[arg(long, value_name = "ID")]
    message_id: Option<String>,
    /// Correlation id
    #[arg(long, value_name = "ID")]
    correlation_id: Option<String>,
    /// User id
    #[arg(long, value_name = "ID")]
    user_id: Option<String>,
    /// Content type, for example application/json
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// Content encoding, for example utf-8
    #[arg(long, value_name = "ENCODING")]
    content_encoding: Option<String>,
    /// Feedback wanted
    #[arg(long, value_enum)]
    ack: Option<Ack>,
    /// How long the message lives, up to 2d; the default of the hub is 1h
    #[arg(long)]
    ttl: Option<Span>,
}

impl Command {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        match self {
            Command::Send(args) => {
                let path = format!("/holdfast/v1/devices/{}/messages", segment(&args.device));
                let answer = client.post(path).json(args.message()?).send()?;
                let id = answer["messageId"].as_str().unwrap_or("without an id");
                global
                    .output()
                    .outcome(&format!("message {id} queued for {}", args.device), &answer)
            }
            Command::Purge { device } => {
                let answer = client
                    .delete(format!("/devices/{}/commands", segment(&device)))
                    .send()?;
                let count = &answer["totalMessagesPurged"];
                global
                    .output()
                    .outcome(&format!("{count} messages of {device} deleted"), &answer)
            }
        }
    }
}

impl SendArgs {
    fn message(&self) -> anyhow::Result<Value> {
        let mut message = Map::new();
        match (&self.data_file, self.text.as_ref().or(self.data.as_ref())) {
            (Some(path), _) => {
                let bytes = std::fs::read(path).map_err(|error| {
                    Failure::usage(format!("cannot read the file {}: {error}", path.display()))
                })?;
                message.insert("body".to_owned(), STANDARD.encode(bytes).into());
                message.insert("base64".to_owned(), true.into());
            }
            (None, body) => {
                let body = body.map_or("", String::as_str);
                // Only `-` is special: a message may well begin with an at sign.
                let text = if body == "-" {
                    input::text(body)?
                } else {
                    body.to_owned()
                };
                message.insert("body".to_owned(), text.into());
            }
        }
        for (name, value) in [
            ("messageId", &self.message_id),
            ("correlationId", &self.correlation_id),
            ("userId", &self.user_id),
            ("contentType", &self.content_type),
            ("contentEncoding", &self.content_encoding),
        ] {
            if let Some(value) = value {
                message.insert(name.to_owned(), value.as_str().into());
            }
        }
        if let Some(ack) = self.ack {
            let name = ack.to_possible_value().map(|value| value.get_name().to_owned());
            message.insert("ack".to_owned(), json!(name));
        }
        if let Some(ttl) = self.ttl {
            message.insert("ttlSeconds".to_owned(), ttl.0.as_secs().into());
        }
        if !self.properties.is_empty() {
            let properties: Map<String, Value> = self
                .properties
                .iter()
                .map(|(key, value)| (key.clone(), value.as_str().into()))
                .collect();
            message.insert("properties".to_owned(), Value::Object(properties));
        }
        Ok(Value::Object(message))
    }
}
