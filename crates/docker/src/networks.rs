//! The network that modules share.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use holdfast_agent::runtime::{NetworkSpec, RuntimeError};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::answer;
use crate::runtime::{DockerRuntime, Session, escape};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Network {
    name: String,
    #[serde(rename = "IPAM", default)]
    ipam: Ipam,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Ipam {
    config: Option<Vec<Range>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Range {
    subnet: String,
    #[serde(rename = "IPRange")]
    ip_range: String,
    gateway: String,
}

impl Range {
    /// The host's address. Engines leave it out when the range was given without one; they take the first then.
    fn host(&self) -> Option<IpAddr> {
        let gateway = self.gateway.split('/').next().unwrap_or_default();
        let range = if self.ip_range.is_empty() {
            &self.subnet
        } else {
            &self.ip_range
        };
        gateway.parse().ok().or_else(|| first_of(range))
    }
}

/// First address that a host can have in `10.0.0.0/24` or `fd00::/64`.
fn first_of(range: &str) -> Option<IpAddr> {
    let (address, bits) = range.split_once('/')?;
    let bits: u32 = bits.parse().ok()?;
    match address.parse().ok()? {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32_u32.checked_sub(bits)?).unwrap_or(0);
            Some(IpAddr::V4(Ipv4Addr::from(
                (u32::from(address) & mask).checked_add(1)?,
            )))
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128_u32.checked_sub(bits)?).unwrap_or(0);
            Some(IpAddr::V6(Ipv6Addr::from(
                (u128::from(address) & mask).checked_add(1)?,
            )))
        }
    }
}

/// IPv4 first: every container of a bridge has it unless it was taken away.
fn gateway(network: &Network) -> Option<IpAddr> {
    let ranges = network.ipam.config.as_deref().unwrap_or_default();
    let hosts = || ranges.iter().filter_map(Range::host);
    hosts().find(IpAddr::is_ipv4).or_else(|| hosts().next())
}

impl DockerRuntime {
    pub(crate) async fn network_made(&self, spec: &NetworkSpec) -> Result<IpAddr, RuntimeError> {
        let mut session = self.connect().await?;
        if let Some(network) = self.network(&mut session, &spec.name).await? {
            return gateway(&network).ok_or_else(|| without_gateway(&spec.name));
        }
        let body = creation(spec);
        let made = session
            .post("/networks/create", &body, self.timeouts.change)
            .await;
        match self.noting(made) {
            // Made meanwhile by somebody else.
            Ok(_) | Err(RuntimeError::Conflict(_)) => {}
            Err(error) => return Err(error),
        }
        let network = self.network(&mut session, &spec.name).await?;
        let network =
            network.ok_or_else(|| RuntimeError::NotFound(format!("no such network: {}", spec.name)))?;
        gateway(&network).ok_or_else(|| without_gateway(&spec.name))
    }

    async fn network(&self, session: &mut Session, name: &str) -> Result<Option<Network>, RuntimeError> {
        let path = format!("/networks/{}", escape(name));
        match self.noting(session.get(&path, self.timeouts.question).await) {
            Ok(body) => {
                let network: Network = answer::json("GET /networks/NAME", &body)?;
                // The engine also takes the beginning of an id for a name.
                Ok((network.name == name).then_some(network))
            }
            Err(RuntimeError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn network_as_told(&self, name: &str) -> Result<Value, RuntimeError> {
        let body = self.get(&format!("/networks/{}", escape(name))).await?;
        answer::json("GET /networks/NAME", &body)
    }
}

/// Body of the network-create call: a bridge, unless the options say otherwise. Without `CheckDuplicate` older engines
/// make a second network of the same name.
fn creation(spec: &NetworkSpec) -> Map<String, Value> {
    let mut body = Map::new();
    body.insert("Driver".to_owned(), Value::from("bridge"));
    body.insert("CheckDuplicate".to_owned(), Value::from(true));
    body.extend(spec.options.clone());
    body.insert("Name".to_owned(), Value::from(spec.name.as_str()));
    body
}

fn without_gateway(name: &str) -> RuntimeError {
    RuntimeError::Refused {
        status: 200,
        message: format!(
            "network {name} has no gateway, so modules could not reach this daemon; it must be a bridge that is not internal"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(config: &str) -> Option<String> {
        let text = format!(r#"{{"Name":"n","IPAM":{{"Driver":"default","Config":{config}}}}}"#);
        let network: Network = serde_json::from_str(&text).unwrap();
        gateway(&network).map(|address| address.to_string())
    }

    #[test]
    fn the_hosts_address() {
        for (config, expected) in [
            (
                r#"[{"Subnet":"172.18.0.0/16","Gateway":"172.18.0.1"}]"#,
                Some("172.18.0.1"),
            ),
            (r#"[{"Subnet":"172.18.5.7/24"}]"#, Some("172.18.5.1")),
            (
                r#"[{"Subnet":"10.0.0.0/8","IPRange":"10.7.0.0/16"}]"#,
                Some("10.7.0.1"),
            ),
            (
                r#"[{"Subnet":"fd00::/64","Gateway":"fd00::1"},{"Subnet":"10.0.0.0/24","Gateway":"10.0.0.254/24"}]"#,
                Some("10.0.0.254"),
            ),
            (r#"[{"Subnet":"fd00:1::/64"}]"#, Some("fd00:1::1")),
            ("[]", None),
            ("null", None),
            (r#"[{"Subnet":"nonsense"}]"#, None),
            (r#"[{"Subnet":"10.0.0.0/99"}]"#, None),
            (r#"[{"Subnet":"0.0.0.0/0"}]"#, Some("0.0.0.1")),
        ] {
            assert_eq!(host(config).as_deref(), expected, "{config}");
        }
    }

    #[test]
    fn options_pass_and_the_name_stays() {
        let options = serde_json::json!({"Driver":"macvlan","EnableIPv6":true,"Name":"x"});
        let spec = NetworkSpec {
            name: "edge".to_owned(),
            options: options.as_object().unwrap().clone(),
        };
        let body = Value::Object(creation(&spec));
        let expected =
            serde_json::json!({"Driver":"macvlan","CheckDuplicate":true,"EnableIPv6":true,"Name":"edge"});
        assert_eq!(body, expected);
    }
}
