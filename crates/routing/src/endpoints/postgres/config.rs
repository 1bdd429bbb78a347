//! Settings of a PostgreSQL table.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::endpoints::secret::Secret;
use crate::endpoints::{bounded, filled, settings, socket};

/// Settings of the kind `postgres`: each event becomes a row of a table.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PostgresConfig {
    /// Name or IP address of the server. Required.
    pub host: String,
    /// Its port. Default 5432.
    pub port: u16,
    /// TLS, with the certificate and its name verified. Default true; without it the password is not protected.
    pub tls: bool,
    /// Certificates in PEM to trust besides those of the system.
    pub ca_certificate: Option<String>,
    /// Database. Required.
    pub database: String,
    /// User. Required.
    pub username: String,
    /// Password. Secret.
    pub password: Option<Secret>,
    /// Table, or schema and table with a dot between; each 1 to 63 lower-case letters, digits and underscores.
    /// Events of jobs have an empty `device_id`. Default `iothub_events`.
    pub table: String,
    /// Whether to make the table when it is not there. Default true.
    pub create_table: bool,
    /// For TCP, TLS and login together, 1 to 25 s. Default 10.
    pub connect_timeout_seconds: u64,
    /// Most events of a transaction, 1 to 10,000. Default 2,000.
    pub batch_events_max: usize,
    /// Most bytes of bodies and properties in a transaction, 1,024 to 16 MiB; a single event may be larger.
    /// Default 4 MiB.
    pub batch_bytes_max: usize,
    /// How long to wait for a transaction to fill, 0 to 60,000 ms. Default 0.
    pub batch_wait_milliseconds: u64,
}

impl Default for PostgresConfig {
    fn default() -> Self {
        PostgresConfig {
            host: String::new(),
            port: 5432,
            tls: true,
            ca_certificate: None,
            database: String::new(),
            username: String::new(),
            password: None,
            table: "iothub_events".to_owned(),
            create_table: true,
            connect_timeout_seconds: 10,
            batch_events_max: 2_000,
            batch_bytes_max: 4 << 20,
            batch_wait_milliseconds: 0,
        }
    }
}

impl PostgresConfig {
    /// Reads settings and checks them.
    ///
    /// # Errors
    /// Which setting is wrong, and what it should be.
    pub(super) fn read(given: &Value) -> Result<Self, String> {
        let config: PostgresConfig = settings(given)?;
        for (name, value) in [
            ("host", &config.host),
            ("database", &config.database),
            ("username", &config.username),
        ] {
            if value.is_empty() || value.len() > 255 || value.contains('\0') {
                return Err(format!("{name} is missing, or longer than 255 characters"));
            }
        }
        bounded("port", config.port.into(), 1, 65_535)?;
        let parts: Vec<_> = config.table.split('.').collect();
        if parts.len() > 2 || !parts.iter().all(|part| is_identifier(part)) {
            return Err("table must be a name of 1 to 63 lower-case letters, digits and underscores that does not begin \
                 with a digit, or a schema and such a name with a dot between"
                .to_owned());
        }
        socket::tls(config.ca_certificate.as_deref(), None)?;
        bounded("connectTimeoutSeconds", config.connect_timeout_seconds, 1, 25)?;
        bounded("batchEventsMax", config.batch_events_max as u64, 1, 10_000)?;
        bounded("batchBytesMax", config.batch_bytes_max as u64, 1_024, 16 << 20)?;
        bounded("batchWaitMilliseconds", config.batch_wait_milliseconds, 0, 60_000)?;
        Ok(config)
    }

    /// As [`EndpointFactory::check`](crate::dispatchers::EndpointFactory::check).
    pub(super) fn check(given: &Value) -> Result<Value, String> {
        filled(&Self::read(given)?)
    }

    /// The table's name in SQL: quoted, so that it may be a word of the language.
    pub(super) fn quoted_table(&self) -> String {
        let parts: Vec<_> = self.table.split('.').map(|part| format!("\"{part}\"")).collect();
        parts.join(".")
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        Duration::from_secs(self.connect_timeout_seconds)
    }
}

/// Nothing that needs escaping.
fn is_identifier(name: &str) -> bool {
    let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    (1..=63).contains(&name.len())
        && name.chars().all(known)
        && !name.starts_with(|c: char| c.is_ascii_digit())
}
