//! Settings of a NATS subject.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::endpoints::secret::Secret;
use crate::endpoints::{bounded, filled, settings, socket};

/// Tokens that a subject can have.
const TOKENS: [&str; 5] = ["{iothub}", "{source}", "{deviceid}", "{moduleid}", "{partition}"];

/// Settings of the kind `nats`: each event is published to a subject, with or without a stream that stores it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NatsConfig {
    /// Name or IP address of a server. Required.
    pub host: String,
    /// Its port. Default 4222.
    pub port: u16,
    /// TLS, with the certificate and its name verified. Default false, as with NATS itself.
    pub tls: bool,
    /// Certificates in PEM to trust besides those of the system.
    pub ca_certificate: Option<String>,
    /// User name, together with `password`.
    pub username: Option<String>,
    /// Password. Secret.
    pub password: Option<Secret>,
    /// Token in place of user name and password. Secret.
    pub token: Option<Secret>,
    /// Subject, with any of `{iothub} {source} {deviceid} {moduleid} {partition}`; characters of a value that have a
    /// meaning in subjects become `_`, and so does a value that there is none of, such as the device of a job. Default `{iothub}.{source}.{deviceid}`.
    pub subject: String,
    /// Whether a stream stores the events: each is accepted when the stream says so, and its id lets the stream drop
    /// repeats. Default true. Otherwise accepted means that the server has read them.
    pub jet_stream: bool,
    /// For TCP, TLS and login together, 1 to 25 s. Default 10.
    pub connect_timeout_seconds: u64,
    /// Most events of a batch, 1 to 5,000. Default 1,000.
    pub batch_events_max: usize,
}

impl Default for NatsConfig {
    fn default() -> Self {
        NatsConfig {
            host: String::new(),
            port: 4222,
            tls: false,
            ca_certificate: None,
            username: None,
            password: None,
            token: None,
            subject: "{iothub}.{source}.{deviceid}".to_owned(),
            jet_stream: true,
            connect_timeout_seconds: 10,
            batch_events_max: 1_000,
        }
    }
}

impl NatsConfig {
    /// Reads settings and checks them.
    ///
    /// # Errors
    /// Which setting is wrong, and what it should be.
    pub(super) fn read(given: &Value) -> Result<Self, String> {
        let config: NatsConfig = settings(given)?;
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if config.host.is_empty() || config.host.len() > 255 || !config.host.chars().all(known) {
            return Err("host is missing, or no name or IP address of a server".to_owned());
        }
        bounded("port", config.port.into(), 1, 65_535)?;
        match (&config.username, &config.password, &config.token) {
            (None, None, _) | (Some(_), Some(_), None) => {}
            (Some(_), Some(_), Some(_)) => {
                return Err("token cannot be given together with username and password".to_owned());
            }
            _ => return Err("username and password must be given together".to_owned()),
        }
        check_subject(&config.subject)?;
        socket::tls(config.ca_certificate.as_deref(), None)?;
        bounded("connectTimeoutSeconds", config.connect_timeout_seconds, 1, 25)?;
        bounded("batchEventsMax", config.batch_events_max as u64, 1, 5_000)?;
        Ok(config)
    }

    /// As [`EndpointFactory::check`](crate::dispatchers::EndpointFactory::check).
    pub(super) fn check(given: &Value) -> Result<Value, String> {
        filled(&Self::read(given)?)
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        Duration::from_secs(self.connect_timeout_seconds)
    }
}

fn check_subject(subject: &str) -> Result<(), String> {
    let plain = TOKENS
        .iter()
        .fold(subject.to_owned(), |plain, token| plain.replace(token, "x"));
    let known = |c: char| c.is_ascii_graphic() && !matches!(c, '*' | '>' | '{' | '}');
    let parts_named = plain.split('.').all(|part| !part.is_empty());
    if subject.len() > 255 || plain.starts_with('$') || !parts_named || !plain.chars().all(known) {
        return Err(format!(
            "subject must have 1 to 255 characters without white space, * and >, no empty part, none of the server's own \
             ($…), and of tokens only {}",
            TOKENS.join(" ")
        ));
    }
    Ok(())
}
