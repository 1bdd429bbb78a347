//! Where the hub is and how it is spoken to.

use std::str::FromStr;
use std::time::Duration;

use rustls::pki_types::CertificateDer;

use crate::gate::{backoff, jittered};

/// How messages, twins and methods travel. The registry and provisioning always use HTTPS.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum UpstreamProtocol {
    /// AMQP over TLS: one connection for all clients with keys.
    Amqp,
    /// AMQP in a WebSocket.
    AmqpWs,
    /// MQTT over TLS: one connection per client.
    #[default]
    Mqtt,
    /// MQTT in a WebSocket.
    MqttWs,
}

impl UpstreamProtocol {
    /// The spelling of the variable `UpstreamProtocol` (edge.md section 16).
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            UpstreamProtocol::Amqp => "Amqp",
            UpstreamProtocol::AmqpWs => "AmqpWs",
            UpstreamProtocol::Mqtt => "Mqtt",
            UpstreamProtocol::MqttWs => "MqttWs",
        }
    }

    /// Whether it goes through a WebSocket.
    #[must_use]
    pub const fn is_websocket(self) -> bool {
        matches!(self, UpstreamProtocol::AmqpWs | UpstreamProtocol::MqttWs)
    }
}

impl FromStr for UpstreamProtocol {
    type Err = String;

    /// In any case of letters.
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Amqp, Self::AmqpWs, Self::Mqtt, Self::MqttWs]
            .into_iter()
            .find(|known| known.as_str().eq_ignore_ascii_case(text.trim()))
            .ok_or_else(|| format!("the upstream protocol {text:?} is none of Amqp, AmqpWs, Mqtt, MqttWs"))
    }
}

/// Ports of the hub.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ports {
    /// MQTT over TLS.
    pub mqtt: u16,
    /// AMQP over TLS.
    pub amqp: u16,
    /// HTTPS, and both protocols in WebSockets.
    pub https: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Ports {
            mqtt: 8883,
            amqp: 5671,
            https: 443,
        }
    }
}

/// Which authorities may have signed the hub's certificate.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// Certificates of authorities, such as the trust bundle of the edge device.
    pub authorities: Vec<CertificateDer<'static>>,
    /// Whether the system's authorities count besides; they do also when `authorities` is empty.
    pub system: bool,
}

impl Trust {
    /// Authorities of a PEM text, without the system's.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn from_pem(pem: &[u8]) -> Result<Self, String> {
        use rustls::pki_types::pem::PemObject as _;
        let authorities: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        let authorities = authorities.map_err(|error| format!("the trust bundle cannot be read: {error}"))?;
        if authorities.is_empty() {
            return Err("the trust bundle holds no PEM certificate".to_owned());
        }
        Ok(Trust {
            authorities,
            system: false,
        })
    }
}

/// An HTTP proxy that is asked for tunnels (`CONNECT`).
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// `user:password` for basic authentication, decoded. Never printed.
    pub credentials: Option<String>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let with = if self.credentials.is_some() {
            " (with credentials)"
        } else {
            ""
        };
        write!(f, "{}:{}{with}", self.host, self.port)
    }
}

impl FromStr for Proxy {
    type Err = String;

    /// `http://[user:password@]host[:port][/]`, as the variable `https_proxy` has it; the port is 80 when absent.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "the proxy is not of the form http://[user:password@]host[:port]".to_owned();
        let text = text.trim();
        let rest = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some(_) => return Err("only proxies with http:// are supported".to_owned()),
            None => text,
        };
        let authority = rest.split('/').next().unwrap_or_default();
        let (credentials, address) = match authority.rsplit_once('@') {
            Some((credentials, address)) => (Some(credentials), address),
            None => (None, authority),
        };
        let (host, port) = split_port(address).ok_or_else(wrong)?;
        let decode = |text: &str| {
            let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
            decoded.map(|text| text.into_owned()).map_err(|_| wrong())
        };
        Ok(Proxy {
            host: host.to_owned(),
            port: port.unwrap_or(80),
            credentials: credentials.map(decode).transpose()?,
        })
    }
}

/// Splits `host[:port]` or `[v6][:port]`; `None` when it is neither.
pub(crate) fn split_port(address: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            (host, rest.strip_prefix(':'))
        }
        None => match address.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        },
    };
    if host.is_empty() {
        return None;
    }
    match port {
        None => Some((host, None)),
        Some(port) => Some((host, Some(port.parse().ok()?))),
    }
}

/// Times and bounds. The defaults are for the field; tests shorten them.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// For TCP, proxy, TLS, WebSocket and login together.
    pub connect_timeout: Duration,
    /// For the answer to a twin request or a registry call.
    pub request_timeout: Duration,
    /// How often a registry call is repeated that was not answered.
    pub request_retries: u32,
    /// Longest time without any acknowledgement of what is in flight, while the hub is heard otherwise. A hub that
    /// throttles may delay acknowledgements by 20 s.
    pub acknowledge_timeout: Duration,
    /// MQTT keep-alive, AMQP idle time-out.
    pub keep_alive: Duration,
    /// While something is awaited, a hub not heard for this long is asked whether it is there …
    pub silence_before_ping: Duration,
    /// … and given up when it says nothing for this long after that.
    pub silence_after_ping: Duration,
    /// A connection on which nothing came for this long is probed by TCP (keep-alive), and breaks 9 s later when there is no
    /// answer. A probe and its answer take about 100 bytes of the link and wake no program.
    pub probe_after: Duration,
    /// First wait after a failed attempt; doubled each time.
    pub retry_first: Duration,
    /// Longest wait between attempts while the hub cannot be reached. Small, so that a network that is back is noticed
    /// within seconds; there is one attempt at a time for all clients together.
    pub retry_max: Duration,
    /// First wait of a client whose identity the hub refuses; doubled each time up to `refused_max`.
    pub refused_first: Duration,
    /// Longest wait of such a client.
    pub refused_max: Duration,
    /// Longest wait of such a client below a parent edge device: who is given rights there expects to be on within seconds,
    /// and a parent asks its hub for few.
    pub refused_by_parent_max: Duration,
    /// Attempts at the same time when the hub can be reached.
    pub attempts_max: usize,
    /// Life of tokens.
    pub token_life: Duration,
    /// A client without interests and calls closes its connection after this time.
    pub idle_close: Duration,
    /// Messages of one client that may wait for their acknowledgement.
    pub window: u16,
}

impl Default for Tuning {
    fn default() -> Self {
        Tuning {
            connect_timeout: Duration::from_secs(20),
            request_timeout: Duration::from_secs(20),
            request_retries: 1,
            acknowledge_timeout: Duration::from_secs(60),
            keep_alive: Duration::from_secs(60),
            silence_before_ping: Duration::from_secs(5),
            silence_after_ping: Duration::from_secs(10),
            probe_after: Duration::from_secs(10),
            retry_first: Duration::from_millis(500),
            retry_max: Duration::from_secs(5),
            refused_first: Duration::from_secs(10),
            refused_max: Duration::from_secs(300),
            refused_by_parent_max: Duration::from_secs(10),
            attempts_max: 4,
            token_life: Duration::from_secs(3_600),
            idle_close: Duration::from_secs(3_600),
            window: 500,
        }
    }
}

/// The way to a hub.
#[derive(Clone, Debug)]
pub struct UpstreamConfig {
    /// The hub's name: in tokens and user names.
    pub hub_host: String,
    /// Host to connect to and whose name the certificate must bear, when it is another than the hub's: the parent edge
    /// device.
    pub connect_host: Option<String>,
    /// Its ports.
    pub ports: Ports,
    /// How to speak to it.
    pub protocol: UpstreamProtocol,
    /// Whom to trust.
    pub trust: Trust,
    /// Proxy, if connections go through one.
    pub proxy: Option<Proxy>,
    /// Times and bounds.
    pub tuning: Tuning,
}

impl UpstreamConfig {
    /// The hub of that name at its usual ports, over MQTT, with the system's authorities.
    #[must_use]
    pub fn new(hub_host: impl Into<String>) -> Self {
        UpstreamConfig {
            hub_host: hub_host.into(),
            connect_host: None,
            ports: Ports::default(),
            protocol: UpstreamProtocol::default(),
            trust: Trust::default(),
            proxy: None,
            tuning: Tuning::default(),
        }
    }

    /// How long a client waits that the hub, or the parent, has refused `failures` times since it last let it in.
    pub(crate) fn refused_pause(&self, failures: u32) -> Duration {
        let tuning = &self.tuning;
        let most = match self.connect_host {
            Some(_) => tuning.refused_max.min(tuning.refused_by_parent_max),
            None => tuning.refused_max,
        };
        jittered(backoff(tuning.refused_first, most, failures))
    }

    /// The host that connections go to.
    #[must_use]
    pub fn connect_host(&self) -> &str {
        self.connect_host.as_deref().unwrap_or(&self.hub_host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_read() {
        let proxy: Proxy = "http://u%40x:p%3Aw@proxy.test:3128/".parse().expect("a proxy");
        assert_eq!((proxy.host.as_str(), proxy.port), ("proxy.test", 3128));
        assert_eq!(proxy.credentials.as_deref(), Some("u@x:p:w"));
        assert!(!format!("{proxy:?}").contains("p:w"));
        let proxy: Proxy = "[::1]:8080".parse().expect("a proxy");
        assert_eq!((proxy.host.as_str(), proxy.port), ("::1", 8080));
        for bad in ["https://p:1", "http://", "http://p:x", "http://[::1"] {
            assert!(bad.parse::<Proxy>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_parent_that_refuses_is_asked_again_within_seconds() {
        let mut config = UpstreamConfig::new("hub.test");
        let pauses = |config: &UpstreamConfig| {
            let pauses = (0..20).map(|failures| config.refused_pause(failures));
            pauses.max().expect("some")
        };
        assert!(pauses(&config) > Duration::from_secs(150));
        config.connect_host = Some("parent.test".to_owned());
        assert!(pauses(&config) <= Duration::from_secs(10));
        assert!(config.refused_pause(20) >= Duration::from_secs(5));
    }

    #[test]
    fn protocols_are_read_in_any_case() {
        assert_eq!("amqpws".parse(), Ok(UpstreamProtocol::AmqpWs));
        assert_eq!(" Mqtt ".parse(), Ok(UpstreamProtocol::Mqtt));
        assert!("http".parse::<UpstreamProtocol>().is_err());
    }
}
