//! What `serve` says on standard output once it is ready. It never holds a key: output ends up in logs.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::json;

use crate::cli::output::{Format, line};

/// Where a started hub is reached.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// Name for clients.
    pub host: String,
    /// Port of MQTT over TLS.
    pub mqtt_port: u16,
    /// Port of AMQP over TLS.
    pub amqp_port: u16,
    /// Port of HTTPS.
    pub https_port: u16,
    /// MQTT without TLS.
    pub mqtt_plain: Option<SocketAddr>,
    /// AMQP without TLS.
    pub amqp_plain: Option<SocketAddr>,
    /// Port of the blob store.
    pub blob_port: Option<u16>,
    /// Blob store without TLS.
    pub blob_plain: Option<SocketAddr>,
    /// Plain HTTP for monitoring.
    pub admin: Option<SocketAddr>,
}

/// Everything that the banner tells.
#[derive(Clone, Debug)]
pub struct Banner {
    /// Where the hub is reached.
    pub addresses: Addresses,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// The file with connection strings.
    pub connection_env: PathBuf,
    /// CA certificate for clients.
    pub ca: Option<PathBuf>,
    /// Whether this was the first start on the directory.
    pub first_start: bool,
    /// Whether other commands find this hub without flags.
    pub found_by_commands: bool,
}

impl Banner {
    /// Prints the banner: text for people, one line of JSON for scripts.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn print(&self, format: Format) -> anyhow::Result<()> {
        match format {
            Format::Table => line(&self.text()),
            Format::Json => line(&self.json().to_string()),
        }
    }

    fn json(&self) -> serde_json::Value {
        let addresses = &self.addresses;
        json!({
            "event": "ready",
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "host": addresses.host,
            "httpsPort": addresses.https_port,
            "mqttPort": addresses.mqtt_port,
            "amqpPort": addresses.amqp_port,
            "mqttPlain": addresses.mqtt_plain.map(|address| address.to_string()),
            "amqpPlain": addresses.amqp_plain.map(|address| address.to_string()),
            "blobPort": addresses.blob_port,
            "blobPlain": addresses.blob_plain.map(|address| address.to_string()),
            "admin": addresses.admin.map(|address| address.to_string()),
            "dataDir": self.data_dir,
            "connectionEnv": self.connection_env,
            "ca": self.ca,
            "firstStart": self.first_start,
        })
    }

    fn text(&self) -> String {
        let Addresses {
            host,
            mqtt_port,
            amqp_port,
            https_port,
            ..
        } = &self.addresses;
        let mut rows = vec![
            ("MQTT over TLS", format!("{host}:{mqtt_port}")),
            ("AMQP over TLS", format!("{host}:{amqp_port}")),
            ("HTTPS", format!("https://{host}:{https_port}")),
        ];
        if let Some(port) = self.addresses.blob_port {
            rows.push(("blobs", format!("https://{host}:{port}")));
        }
        if let Some(address) = self.addresses.mqtt_plain {
            rows.push(("MQTT, no TLS", address.to_string()));
        }
        if let Some(address) = self.addresses.amqp_plain {
            rows.push(("AMQP, no TLS", address.to_string()));
        }
        if let Some(address) = self.addresses.blob_plain {
            rows.push(("blobs, no TLS", format!("http://{address}")));
        }
        if let Some(address) = self.addresses.admin {
            rows.push(("health, metrics", format!("http://{address}")));
        }
        rows.push(("data", self.data_dir.display().to_string()));
        rows.push(("connection strings", self.connection_env.display().to_string()));
        if let Some(ca) = &self.ca {
            rows.push(("CA certificate", ca.display().to_string()));
        }
        let mut text = format!("Holdfast {} is ready.\n\n", env!("CARGO_PKG_VERSION"));
        for (name, value) in rows {
            text.push_str(&format!("  {name:<20}{value}\n"));
        }
        if (*mqtt_port, *amqp_port, *https_port) != (8883, 5671, 443) {
            text.push_str(
                "\nMost SDK programs know only the ports 8883, 5671 and 443: redirect those to the ports above.\n",
            );
        }
        let flag = if self.found_by_commands {
            String::new()
        } else {
            format!(" --data-dir {}", self.data_dir.display())
        };
        text.push_str(&format!(
            "\nFirst steps, in another terminal:\n  holdfast{flag} device create my-device\n  holdfast{flag} connection-string my-device\n  holdfast{flag} monitor\n"
        ));
        text
    }
}
