//! Settings of an AMQP endpoint.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::endpoints::secret::Secret;
use crate::endpoints::{bounded, filled, settings, socket};

/// Settings of the kind `amqp`: each event becomes a message for a queue, topic or event hub of an AMQP 1.0 broker.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AmqpConfig {
    /// Connection string of Event Hubs or Service Bus: host, policy, key and, if `address` is not given, `EntityPath`.
    /// Used instead of `url`, `username` and `password`. Secret.
    pub connection_string: Option<Secret>,
    /// Where the broker is: `amqps://host[:5671]` or `amqp://host[:5672]`.
    pub url: Option<String>,
    /// Node to send to: a queue, topic or event hub.
    pub address: Option<String>,
    /// User name for SASL PLAIN, together with `password`. Without either, and without a certificate, ANONYMOUS.
    pub username: Option<String>,
    /// Password for SASL PLAIN. Secret.
    pub password: Option<Secret>,
    /// Certificate chain in PEM for SASL EXTERNAL, together with `clientKey`.
    pub client_certificate: Option<String>,
    /// Private key in PEM for SASL EXTERNAL. Secret.
    pub client_key: Option<Secret>,
    /// Certificates in PEM to trust besides those of the system.
    pub ca_certificate: Option<String>,
    /// For TCP, TLS and the opening of the link, 1 to 25 s. Default 10.
    pub connect_timeout_seconds: u64,
    /// Most messages handed over before their outcomes are awaited, 1 to 5,000. Default 500.
    pub batch_events_max: usize,
    /// Most bytes of bodies and properties handed over before, 1,024 to 16 MiB; a single event may be larger. Default
    /// 1 MiB.
    pub batch_bytes_max: usize,
}

impl Default for AmqpConfig {
    fn default() -> Self {
        AmqpConfig {
            connection_string: None,
            url: None,
            address: None,
            username: None,
            password: None,
            client_certificate: None,
            client_key: None,
            ca_certificate: None,
            connect_timeout_seconds: 10,
            batch_events_max: 500,
            batch_bytes_max: 1 << 20,
        }
    }
}

/// What the settings come to.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: bool,
    pub(super) address: String,
    pub(super) login: Login,
}

/// How to log in.
#[derive(Clone, Debug)]
pub(super) enum Login {
    Anonymous,
    Plain {
        username: String,
        password: Secret,
    },
    External,
    /// A token of a shared access policy over CBS.
    Policy {
        name: String,
        key: Secret,
    },
}

impl AmqpConfig {
    /// Reads settings and checks them.
    ///
    /// # Errors
    /// Which setting is wrong, and what it should be.
    pub(super) fn read(given: &Value) -> Result<Self, String> {
        let config: AmqpConfig = settings(given)?;
        let target = config.target()?;
        if matches!(target.login, Login::External) && !target.tls {
            return Err("clientCertificate needs amqps:// in url".to_owned());
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

    pub(super) fn target(&self) -> Result<Target, String> {
        match (&self.connection_string, &self.url) {
            (Some(_), Some(_)) => Err("connectionString and url cannot be given together".to_owned()),
            (None, None) => Err("connectionString or url is missing".to_owned()),
            (Some(text), None) => self.of_connection_string(text.reveal()),
            (None, Some(url)) => self.of_url(url),
        }
    }

    fn of_url(&self, url: &str) -> Result<Target, String> {
        let (tls, rest) = match (url.strip_prefix("amqps://"), url.strip_prefix("amqp://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err("url must begin with amqps:// or amqp://".to_owned()),
        };
        if rest.contains('@') {
            return Err("url must not hold a user name or password; use username and password".to_owned());
        }
        let (host, port) = socket::host_and_port(rest, if tls { 5_671 } else { 5_672 })
            .ok_or("url must be amqps://host:port; the node goes into address")?;
        let login = match (
            &self.username,
            &self.password,
            &self.client_certificate,
            &self.client_key,
        ) {
            (None, None, None, None) => Login::Anonymous,
            (Some(username), Some(password), None, None) => Login::Plain {
                username: username.clone(),
                password: password.clone(),
            },
            (None, None, Some(_), Some(_)) => Login::External,
            _ => {
                return Err(
                    "give username with password, or clientCertificate with clientKey, or none".to_owned(),
                );
            }
        };
        Ok(Target {
            host,
            port,
            tls,
            address: self.node(None)?,
            login,
        })
    }

    fn node(&self, entity_path: Option<&str>) -> Result<String, String> {
        let address = self.address.as_deref().or(entity_path).unwrap_or_default();
        if address.is_empty() || address.len() > 1_024 {
            return Err("address is missing: the queue, topic or event hub to send to".to_owned());
        }
        Ok(address.to_owned())
    }

    fn of_connection_string(&self, text: &str) -> Result<Target, String> {
        if self.username.is_some() || self.password.is_some() || self.client_certificate.is_some() {
            return Err(
                "connectionString holds the login; leave username, password and clientCertificate out"
                    .to_owned(),
            );
        }
        // It holds a key, so messages tell nothing of its values.
        let part = |name: &str| {
            text.split(';')
                .filter_map(|part| part.split_once('='))
                .find(|(key, _)| key.trim().eq_ignore_ascii_case(name))
                .map(|(_, value)| value.trim())
        };
        let needed = |name: &str| part(name).ok_or_else(|| format!("connectionString has no {name}"));
        let endpoint = needed("Endpoint")?;
        let rest = ["sb://", "amqps://"]
            .iter()
            .find_map(|scheme| endpoint.strip_prefix(scheme));
        let tls = part("UseDevelopmentEmulator") != Some("true");
        let (host, port) = rest
            .and_then(|rest| {
                socket::host_and_port(rest.trim_end_matches('/'), if tls { 5_671 } else { 5_672 })
            })
            .ok_or("connectionString: Endpoint must be sb://host/")?;
        Ok(Target {
            host,
            port,
            tls,
            address: self.node(part("EntityPath"))?,
            login: Login::Policy {
                name: needed("SharedAccessKeyName")?.to_owned(),
                key: needed("SharedAccessKey")?.into(),
            },
        })
    }
}
