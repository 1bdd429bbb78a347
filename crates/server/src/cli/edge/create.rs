//! `holdfast edge create`.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use holdfast_program::failure::{Failure, Kind};
use holdfast_wire::connection_string::{ConnectionString, Credential, Party};
use serde_json::{Value, json};

use super::device_path;
use super::family::scope_of;
use crate::cli::Global;
use crate::cli::credentials::CredentialArgs;
use crate::cli::identity::Name;
use crate::cli::profile::Login;
use crate::cli::sas::identity_key;

#[derive(Args, Debug)]
pub(in crate::cli) struct CreateArgs {
    /// Id of the edge device
    device: String,
    /// Edge device above it
    #[arg(long, value_name = "DEVICE")]
    parent: Option<String>,
    /// Write the configuration of holdfast-edge to this file, which must not exist
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Host name of the edge device, for the configuration; by default the machine's own
    #[arg(long, value_name = "NAME", requires = "config")]
    hostname: Option<String>,
    /// Host name at which the edge device above is reached, for the configuration
    #[arg(long, value_name = "NAME", requires_all = ["config", "parent"])]
    parent_hostname: Option<String>,
    #[command(flatten)]
    credentials: CredentialArgs,
}

impl CreateArgs {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        // Before the device is registered: a file that cannot be written leaves nothing behind.
        let mut file = self.config.as_deref().map(NewFile::create).transpose()?;
        let client = global.client()?;
        let mut record = json!({ "deviceId": self.device, "capabilities": { "iotEdge": true } });
        if let Some(parent) = &self.parent {
            record["parentScopes"] = json!([scope_of(&client, parent)?]);
        }
        if let Some(authentication) = self.credentials.authentication()? {
            record["authentication"] = authentication;
        }
        let created = client.put(device_path(&self.device)).json(record).send()?;
        let by_key = matches!(created["authentication"]["type"].as_str(), None | Some("sas"));
        let credential = if by_key {
            let name = Name {
                device: &self.device,
                module: None,
            };
            Credential::IdentityKey(identity_key(&client, name, false)?)
        } else {
            Credential::X509
        };
        let text = ConnectionString {
            host: client.login().host.clone(),
            gateway_host: None,
            party: Party::Device {
                device_id: self.device.clone(),
            },
            credential,
        }
        .reveal();
        let Some(file) = &mut file else {
            return global.output().outcome(
                &text,
                &json!({ "deviceId": self.device, "connectionString": text }),
            );
        };
        file.write(&self.configuration(client.login(), by_key.then_some(text.as_str())))?;
        let file = file.path.display().to_string();
        let mut sentence = format!(
            "{} registered; start it with: holdfast-edge run --config {file}",
            self.device
        );
        for (to_do, holds) in [
            ("certificate and private_key, which it names", !by_key),
            (
                "device.parent_hostname, without which it goes to the hub itself",
                self.parent.is_some() && self.parent_hostname.is_none(),
            ),
        ] {
            if holds {
                sentence.push_str(&format!("\nbefore that, set in {file}: {to_do}"));
            }
        }
        global
            .output()
            .outcome(&sentence, &json!({ "deviceId": self.device, "config": file }))
    }

    /// The configuration of holdfast-edge.
    fn configuration(&self, login: &Login, connection_string: Option<&str>) -> String {
        let mut lines = vec!["# Configuration of holdfast-edge; holds a secret.".to_owned()];
        let mut section = |name: &str, entries: Vec<(&str, Value)>| {
            if entries.is_empty() {
                return;
            }
            lines.push(format!("\n[{name}]"));
            lines.extend(entries.into_iter().map(|(key, value)| match value {
                // The two notations write a basic string alike.
                Value::String(text) => format!("{key} = {}", toml::Value::String(text)),
                other => format!("{key} = {other}"),
            }));
        };
        let mut device = Vec::new();
        for (key, value) in [
            ("hostname", &self.hostname),
            ("parent_hostname", &self.parent_hostname),
        ] {
            device.extend(value.as_ref().map(|value| (key, json!(value))));
        }
        section("device", device);
        let provisioning = match connection_string {
            Some(text) => vec![("connection_string", json!(text))],
            None => vec![
                ("hub", json!(login.host)),
                ("device_id", json!(self.device)),
                ("certificate", json!("device.crt.pem")),
                ("private_key", json!("device.key.pem")),
            ],
        };
        section("provisioning", provisioning);
        let mut upstream = Vec::new();
        if let Some(ca) = &login.ca {
            let ca = std::path::absolute(ca).unwrap_or_else(|_| ca.clone());
            upstream.push(("ca", json!(ca.to_string_lossy())));
        }
        for (key, port, usual) in [
            ("amqp_port", login.amqp_port, 5671),
            ("mqtt_port", login.mqtt_port, 8883),
            ("https_port", login.https_port, 443),
        ] {
            // Below another edge device its ports count, which are the usual ones.
            if port != usual && self.parent_hostname.is_none() {
                upstream.push((key, json!(port)));
            }
        }
        section("upstream", upstream);
        lines.push(String::new());
        lines.join("\n")
    }
}

/// A file that only its owner may read, and that goes away again when nothing comes to be written.
struct NewFile<'a> {
    path: &'a Path,
    file: File,
    written: bool,
}

impl<'a> NewFile<'a> {
    fn create(path: &'a Path) -> anyhow::Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        match options.open(path) {
            Ok(file) => Ok(NewFile {
                path,
                file,
                written: false,
            }),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let text = format!("{} exists already", path.display());
                Err(Failure::new(Kind::Conflict, text)
                    .hint("name another file, or remove that one")
                    .into())
            }
            Err(error) => Err(
                Failure::storage(format!("cannot create {}: {error}", path.display()))
                    .hint("name another file")
                    .into(),
            ),
        }
    }

    fn write(&mut self, text: &str) -> anyhow::Result<()> {
        // What is in it from here on is kept: the device is registered.
        self.written = true;
        self.file
            .write_all(text.as_bytes())
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if !self.written {
            let _ = std::fs::remove_file(self.path);
        }
    }
}
