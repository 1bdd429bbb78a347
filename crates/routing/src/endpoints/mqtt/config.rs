//! Settings of an MQTT endpoint.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::request::Topic;
use crate::endpoints::secret::Secret;
use crate::endpoints::{bounded, filled, settings, socket};

/// Version of the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub enum Version {
    /// MQTT 3.1.1.
    #[default]
    #[serde(rename = "3.1.1")]
    V3,
    /// MQTT 5: properties travel as user properties.
    #[serde(rename = "5")]
    V5,
}

/// What is published.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Payload {
    /// The event's body as it stands.
    #[default]
    Body,
    /// The record of storage endpoints (languages.md 2.8).
    Record,
}

/// Settings of the kind `mqtt`: each event is published to a topic of an MQTT broker.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MqttConfig {
    /// Where the broker is: `mqtts://host[:8883]` or `mqtt://host[:1883]`. Required.
    pub url: String,
    /// `3.1.1` (default) or `5`.
    pub version: Version,
    /// Topic to publish to, with `{hub}`, `{deviceId}` (`-` for events of jobs), `{moduleId}` (`-` for devices) and
    /// `{source}` (the message source). Default `holdfast/{hub}/{deviceId}/{source}`.
    pub topic: String,
    /// `body` (default) or `record`.
    pub payload: Payload,
    /// 0 or 1. Default 1. At 0 the broker's answer to a ping stands for acceptance.
    pub qos: u8,
    /// Whether the broker keeps the last message of a topic. Default false.
    pub retain: bool,
    /// Client id. Default: `holdfast-` and the hub's and the endpoint's names.
    pub client_id: Option<String>,
    /// User name.
    pub username: Option<String>,
    /// Password. Secret.
    pub password: Option<Secret>,
    /// Certificate chain in PEM, together with `clientKey`.
    pub client_certificate: Option<String>,
    /// Private key in PEM. Secret.
    pub client_key: Option<Secret>,
    /// Certificates in PEM to trust besides those of the system.
    pub ca_certificate: Option<String>,
    /// For TCP, TLS and CONNACK, 1 to 25 s. Default 10.
    pub connect_timeout_seconds: u64,
    /// Most messages that wait for their PUBACK, 1 to 1,000; the broker may want fewer. Default 100.
    pub in_flight_max: u16,
}

impl Default for MqttConfig {
    fn default() -> Self {
        MqttConfig {
            url: String::new(),
            version: Version::default(),
            topic: "holdfast/{hub}/{deviceId}/{source}".to_owned(),
            payload: Payload::default(),
            qos: 1,
            retain: false,
            client_id: None,
            username: None,
            password: None,
            client_certificate: None,
            client_key: None,
            ca_certificate: None,
            connect_timeout_seconds: 10,
            in_flight_max: 100,
        }
    }
}

/// Where the settings' address leads: TLS, host, port.
pub(super) type Place = (bool, String, u16);

impl MqttConfig {
    /// Reads settings and checks them.
    ///
    /// # Errors
    /// Which setting is wrong, and what it should be.
    pub(super) fn read(given: &Value) -> Result<Self, String> {
        let config: MqttConfig = settings(given)?;
        let (tls, ..) = config.place()?;
        Topic::parse(&config.topic)?;
        bounded("qos", config.qos.into(), 0, 1)?;
        if config.password.is_some() && config.username.is_none() {
            return Err("password needs username".to_owned());
        }
        if config.client_certificate.is_some() != config.client_key.is_some() {
            return Err("clientCertificate and clientKey must be given together".to_owned());
        }
        if config.client_certificate.is_some() && !tls {
            return Err("clientCertificate needs mqtts:// in url".to_owned());
        }
        if config
            .client_id
            .as_ref()
            .is_some_and(|id| id.is_empty() || id.len() > 256)
        {
            return Err("clientId must have 1 to 256 characters".to_owned());
        }
        socket::tls(config.ca_certificate.as_deref(), config.identity())?;
        bounded("connectTimeoutSeconds", config.connect_timeout_seconds, 1, 25)?;
        bounded("inFlightMax", config.in_flight_max.into(), 1, 1_000)?;
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

    pub(super) fn place(&self) -> Result<Place, String> {
        if self.url.is_empty() {
            return Err("url is missing: mqtts://host:port of the broker".to_owned());
        }
        let (tls, rest) = match (
            self.url.strip_prefix("mqtts://"),
            self.url.strip_prefix("mqtt://"),
        ) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err("url must begin with mqtts:// or mqtt://".to_owned()),
        };
        if rest.contains('@') {
            return Err("url must not hold a user name or password; use username and password".to_owned());
        }
        let found = socket::host_and_port(rest.trim_end_matches('/'), if tls { 8_883 } else { 1_883 });
        let (host, port) = found.ok_or("url must be mqtts://host:port")?;
        Ok((tls, host, port))
    }
}
