//! Settings of a Kafka topic.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::endpoints::secret::Secret;
use crate::endpoints::{bounded, filled, settings, socket};

/// Most servers that can be given to begin with.
const SERVERS_MAX: usize = 16;

/// What a record's value is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Payload {
    /// The event's body as it stands; properties travel as headers.
    #[default]
    Body,
    /// The record of storage endpoints (languages.md 2.8), without headers.
    Record,
}

/// How records are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// gzip.
    Gzip,
}

/// How to log in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub enum Mechanism {
    /// User name and password as they are; use it over TLS only.
    #[default]
    #[serde(rename = "PLAIN")]
    Plain,
    /// Proof of the password with SHA-256.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// Proof of the password with SHA-512.
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
}

/// Settings of the kind `kafka`: each event becomes a record of a topic, with the device id as its key, accepted when
/// all replicas in sync have it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct KafkaConfig {
    /// Servers to ask first, each `host[:9092]`, 1 to 16. Required.
    pub bootstrap_servers: Vec<String>,
    /// The topic; it must be there. Required.
    pub topic: String,
    /// TLS, with the certificate and its name verified. Default false, as with Kafka itself.
    pub tls: bool,
    /// Certificates in PEM to trust besides those of the system.
    pub ca_certificate: Option<String>,
    /// Certificate chain in PEM, together with `clientKey`.
    pub client_certificate: Option<String>,
    /// Private key in PEM. Secret.
    pub client_key: Option<Secret>,
    /// User name for SASL, together with `password`. For Event Hubs `$ConnectionString`.
    pub username: Option<String>,
    /// Password. For Event Hubs the connection string. Secret.
    pub password: Option<Secret>,
    /// `PLAIN` (default), `SCRAM-SHA-256` or `SCRAM-SHA-512`.
    pub sasl_mechanism: Mechanism,
    /// `body` (default) or `record`.
    pub payload: Payload,
    /// `none` (default) or `gzip`.
    pub compression: Compression,
    /// For TCP, TLS and login together, 1 to 25 s. Default 10.
    pub connect_timeout_seconds: u64,
    /// Most events of a batch, 1 to 5,000. Default 1,000.
    pub batch_events_max: usize,
    /// Most bytes of records sent to one partition at once, 1,024 to 16 MiB; a single event may be larger. Not more than
    /// the topic's `max.message.bytes`. Default 900 KiB.
    pub batch_bytes_max: usize,
}

impl Default for KafkaConfig {
    fn default() -> Self {
        KafkaConfig {
            bootstrap_servers: Vec::new(),
            topic: String::new(),
            tls: false,
            ca_certificate: None,
            client_certificate: None,
            client_key: None,
            username: None,
            password: None,
            sasl_mechanism: Mechanism::default(),
            payload: Payload::default(),
            compression: Compression::default(),
            connect_timeout_seconds: 10,
            batch_events_max: 1_000,
            batch_bytes_max: 900 << 10,
        }
    }
}

impl KafkaConfig {
    /// Reads settings and checks them.
    ///
    /// # Errors
    /// Which setting is wrong, and what it should be.
    pub(super) fn read(given: &Value) -> Result<Self, String> {
        let config: KafkaConfig = settings(given)?;
        config.servers()?;
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if !(1..=249).contains(&config.topic.len()) || !config.topic.chars().all(known) {
            return Err("topic must have 1 to 249 letters, digits, dots, hyphens and underscores".to_owned());
        }
        if config.username.is_some() != config.password.is_some() {
            return Err("username and password must be given together".to_owned());
        }
        if config.client_certificate.is_some() != config.client_key.is_some() {
            return Err("clientCertificate and clientKey must be given together".to_owned());
        }
        if config.client_certificate.is_some() && !config.tls {
            return Err("clientCertificate needs tls".to_owned());
        }
        socket::tls(config.ca_certificate.as_deref(), config.identity())?;
        bounded("connectTimeoutSeconds", config.connect_timeout_seconds, 1, 25)?;
        bounded("batchEventsMax", config.batch_events_max as u64, 1, 5_000)?;
        bounded("batchBytesMax", config.batch_bytes_max as u64, 1_024, 16 << 20)?;
        Ok(config)
    }

    /// As [`EndpointFactory::check`](crate::dispatchers::EndpointFactory::check).
    pub(super) fn check(given: &Value) -> Result<Value, String> {
        filled(&Self::read(given)?)
    }

    pub(super) fn identity(&self) -> Option<(&str, &str)> {
        let chain = self.client_certificate.as_deref()?;
        Some((chain, self.client_key.as_ref()?.reveal()))
    }

    /// Hosts and ports of the servers.
    pub(super) fn servers(&self) -> Result<Vec<(String, u16)>, String> {
        if !(1..=SERVERS_MAX).contains(&self.bootstrap_servers.len()) {
            return Err(format!(
                "bootstrapServers must name 1 to {SERVERS_MAX} servers, such as [\"kafka.example.com:9092\"]"
            ));
        }
        let place = |server: &String| {
            socket::host_and_port(server, 9_092)
                .ok_or_else(|| format!("bootstrapServers: {server:?} must be host or host:port"))
        };
        self.bootstrap_servers.iter().map(place).collect()
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        Duration::from_secs(self.connect_timeout_seconds)
    }
}
