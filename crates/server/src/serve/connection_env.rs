//! `connection.env`: shell variables that point tests, scripts and our own command line at a hub.
//!
//! One `NAME='value'` a line, quoted for POSIX shells, so that `set -a; . holdfast-data/connection.env` works whatever
//! the values hold. Lines of services that this hub does not offer are left out: a variable that is set works.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::Path;

use holdfast_program::files::{self, PRIVATE};

/// Name of the file in the data directory.
pub const FILE_NAME: &str = "connection.env";

/// Host name without port, as SDKs take it.
pub const HOST: &str = "HOLDFAST_HOST";
/// Connection string of the policy `iothubowner`.
pub const OWNER_CS: &str = "HOLDFAST_OWNER_CS";
/// Path of the CA certificate, PEM.
pub const CA: &str = "HOLDFAST_CA";
/// Port of HTTPS.
pub const HTTPS_PORT: &str = "HOLDFAST_HTTPS_PORT";
/// Port of MQTT over TLS.
pub const MQTT_PORT: &str = "HOLDFAST_MQTT_PORT";
/// Address of the MQTT listener without TLS, if there is one.
pub const MQTT_PLAIN: &str = "HOLDFAST_MQTT_PLAIN";
/// Port of AMQP over TLS.
pub const AMQP_PORT: &str = "HOLDFAST_AMQP_PORT";
/// Address of the AMQP listener without TLS, if there is one.
pub const AMQP_PLAIN: &str = "HOLDFAST_AMQP_PLAIN";
/// Event Hubs-compatible connection string.
pub const EH_CS: &str = "HOLDFAST_EH_CS";
/// Connection string of the embedded blob store.
pub const BLOB_CS: &str = "HOLDFAST_BLOB_CS";
/// Provisioning host.
pub const DPS_HOST: &str = "HOLDFAST_DPS_HOST";
/// Provisioning service connection string.
pub const DPS_CS: &str = "HOLDFAST_DPS_CS";
/// Provisioning id scope.
pub const ID_SCOPE: &str = "HOLDFAST_ID_SCOPE";

/// Variables in the order of the file.
pub struct ConnectionEnv {
    entries: Vec<(&'static str, String, &'static str)>,
}

impl ConnectionEnv {
    /// No variables yet.
    #[must_use]
    pub fn new() -> Self {
        ConnectionEnv { entries: Vec::new() }
    }

    /// Adds a variable with a comment.
    pub fn set(&mut self, name: &'static str, value: impl Into<String>, comment: &'static str) {
        self.entries.push((name, value.into(), comment));
    }

    /// The text of the file.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::from(
            "# Written by `holdfast serve` at every start. Load it with:  set -a; . connection.env; set +a\n\
             # It holds keys: keep it to yourself.\n",
        );
        for (name, value, comment) in &self.entries {
            let _ = writeln!(text, "# {comment}\n{name}={}", quote(value));
        }
        text
    }

    /// Writes the file, readable by its owner only. A reader sees the old text or the new one, never half.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        files::write(path, self.render().as_bytes(), PRIVATE)
    }
}

impl Default for ConnectionEnv {
    fn default() -> Self {
        Self::new()
    }
}

/// Single quotes; a quote inside ends them, adds an escaped one and starts again.
fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}

/// Reads `NAME=value` lines as a shell would: plain, single-quoted or double-quoted values, `export` allowed.
#[must_use]
pub fn parse(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let line = line.strip_prefix("export ").unwrap_or(line);
            let (name, value) = line.split_once('=')?;
            Some((name.trim().to_owned(), unquote(value.trim())))
        })
        .collect()
}

fn unquote(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    let mut chars = value.chars();
    let mut quote = None;
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            (None | Some('"'), '\\') => text.extend(chars.next()),
            (_, c) => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_quoting() {
        for value in [
            "plain",
            "a b",
            "it's",
            "$HOME `x` \"y\" \\ ;&",
            "HostName=h;SharedAccessKey=a+/=",
        ] {
            let mut env = ConnectionEnv::new();
            env.set(HOST, value, "a comment");
            assert_eq!(parse(&env.render()).get(HOST).map(String::as_str), Some(value));
        }
        assert_eq!(
            parse("export A=\"x\\\"y\"\n#B=1\n")
                .into_iter()
                .collect::<Vec<_>>(),
            [("A".to_owned(), "x\"y".to_owned())]
        );
    }
}
