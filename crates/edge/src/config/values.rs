//! Values that both kinds of files have, and how they are read.

use std::path::PathBuf;

use holdfast_program::failure::Failure;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::bad;

/// Addresses of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Ipam {
    pub(super) subnet: Option<String>,
    pub(super) gateway: Option<String>,
    pub(super) ip_range: Option<String>,
}

/// Body of the engine's network-create call besides the name.
pub(super) fn network_options(ipv6: bool, ranges: &[Ipam]) -> Map<String, Value> {
    let mut options = Map::new();
    if ipv6 {
        options.insert("EnableIPv6".to_owned(), true.into());
    }
    let mut config = Vec::new();
    for range in ranges {
        let mut entry = Map::new();
        for (key, value) in [
            ("Subnet", &range.subnet),
            ("Gateway", &range.gateway),
            ("IPRange", &range.ip_range),
        ] {
            if let Some(value) = value {
                entry.insert(key.to_owned(), value.clone().into());
            }
        }
        if !entry.is_empty() {
            config.push(Value::Object(entry));
        }
    }
    if !config.is_empty() {
        options.insert("IPAM".to_owned(), json!({ "Config": config }));
    }
    options
}

/// The proxy of the environment.
pub(super) fn environment_proxy() -> Option<String> {
    let variables = ["https_proxy", "HTTPS_PROXY"];
    variables
        .iter()
        .find_map(|name| std::env::var(name).ok())
        .filter(|value| !value.is_empty())
}

/// Minutes after midnight of `HH:MM`.
pub(super) fn time_of_day(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
    (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
}

/// The path in `unix:///path`, or a bare path.
pub(super) fn socket_path(name: &str, key: &str, text: &str) -> Result<PathBuf, Failure> {
    let path = text.strip_prefix("unix://").unwrap_or(text);
    if path.starts_with('/') {
        return Ok(path.into());
    }
    Err(bad(
        name,
        key,
        &text,
        "is not a unix socket",
        "write unix:///path; sockets over TCP would tell nothing of the caller",
    ))
}
