//! The way to the hub, from the settings.

use std::sync::Arc;

use holdfast_ports::clock::Clock;
use holdfast_upstream::{Metrics, Ports, Proxy, Trust, Upstream, UpstreamConfig, UpstreamProtocol};

use holdfast_program::failure::Failure;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::certificates::pem;
use crate::config::{self, Settings};

/// Whom to trust: the authorities of the settings, else the system's; those of the trust bundle, too, since the parent edge
/// device's authority stands there. Not the system's besides, which take half a megabyte and could sign for anybody.
///
/// # Errors
/// When a file cannot be read.
pub fn trust(settings: &Settings) -> Result<Trust, Failure> {
    let mut authorities = Vec::new();
    let files = [settings.upstream.ca.as_ref(), settings.trust_bundle.as_ref()];
    for path in files.into_iter().flatten() {
        authorities.extend(pem::read_chain(path)?);
    }
    Ok(Trust {
        authorities,
        system: settings.upstream.ca.is_none(),
    })
}

/// Where systems keep their authorities.
const SYSTEM_ROOTS: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// TLS of a client that trusts these and the system's authorities (`SSL_CERT_FILE` names another file).
///
/// # Errors
/// When the provider refuses.
pub fn client_tls(trust: &Trust) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(trust.authorities.iter().cloned());
    let named = std::env::var_os("SSL_CERT_FILE").map(std::path::PathBuf::from);
    let system = SYSTEM_ROOTS
        .iter()
        .map(std::path::PathBuf::from)
        .find(|path| path.exists());
    if let Some(path) = named.or(system)
        && let Ok(content) = std::fs::read(path)
    {
        let certificates = CertificateDer::pem_slice_iter(&content);
        roots.add_parsable_certificates(certificates.filter_map(Result::ok));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map(|builder| builder.with_root_certificates(roots).with_no_client_auth())
        .map_err(|error| error.to_string())
}

/// The proxy, if there is one.
///
/// # Errors
/// When its address is malformed.
pub fn proxy(settings: &Settings) -> Result<Option<Proxy>, Failure> {
    let parse = |text: &String| {
        text.parse::<Proxy>().map_err(|error| {
            Failure::usage(error).hint("correct upstream.proxy, or https_proxy in the environment")
        })
    };
    settings.upstream.proxy.as_ref().map(parse).transpose()
}

/// The way to `hub`, over the parent edge device if there is one.
///
/// # Errors
/// When authorities or proxy cannot be used.
pub fn open(
    settings: &Settings,
    hub: &str,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
) -> Result<Upstream, Failure> {
    let mut config = UpstreamConfig::new(hub);
    config.connect_host.clone_from(&settings.parent_hostname);
    config.ports = Ports {
        mqtt: settings.upstream.mqtt_port,
        amqp: settings.upstream.amqp_port,
        https: settings.upstream.https_port,
    };
    config.protocol = match settings.upstream.protocol {
        config::UpstreamProtocol::Amqp => UpstreamProtocol::Amqp,
        config::UpstreamProtocol::AmqpWs => UpstreamProtocol::AmqpWs,
        config::UpstreamProtocol::Mqtt => UpstreamProtocol::Mqtt,
        config::UpstreamProtocol::MqttWs => UpstreamProtocol::MqttWs,
    };
    config.trust = trust(settings)?;
    config.proxy = proxy(settings)?;
    config.tuning.probe_after = settings.upstream.probe_after;
    config.tuning.request_timeout = settings.upstream.timeout;
    config.tuning.request_retries = settings.upstream.retries;
    Upstream::new(config, clock, metrics).map_err(|error| {
        Failure::usage(format!("the way to the hub cannot be set up: {error}"))
            .hint("upstream.ca names the hub's authority (ca.pem of its data directory)")
    })
}
