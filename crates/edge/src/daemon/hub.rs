//! The edge hub: its engine, its listeners, its server certificate.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use holdfast_agent::identities::ModuleIdentities as _;
use holdfast_broker::queue::WhenFull;
use holdfast_broker::{Above, Broker, BrokerConfig, SealingKey};
use holdfast_heads::amqp::{AmqpConfig, AmqpHead};
use holdfast_heads::events::Metrics;
use holdfast_heads::https::{DeviceHttps, HttpsConfig, HttpsHead};
use holdfast_heads::mqtt::{MqttConfig, MqttHead};
use holdfast_heads::tls::{ServerCertificate, TicketSecret, TlsSettings};
use holdfast_model::Identity;
use holdfast_observe::Repeats;
use holdfast_ports::BoxFuture;
use holdfast_ports::clock::Clock;
use holdfast_ports::gateway::DeviceGateway;
use holdfast_ports::service::ServiceGateway;
use holdfast_program::failure::{Failure, Kind};
use holdfast_store::log::disk::RealDisk;
use holdfast_upstream::port::{Account, CloudError, Proof, TokenSigner};
use holdfast_upstream::{HttpsRegistry, Upstream, jittered};
use parking_lot::Mutex;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Base;
use crate::certificates::{Certificates, Issued, Request, Usage};
use crate::config::{Listen, Settings, Store};
use crate::http::hub::{self as api, HubApi};
use crate::identities::Identities;
use crate::keys::KeyStore;
use crate::modules::EDGE_HUB;

/// Id of the edge hub at the hub.
const MODULE: &str = "$edgeHub";
static NO_IDENTITY: Repeats = Repeats::new();
/// Longest silence of an MQTT client (edge.md section 7.1).
const SILENCE_MAX: std::time::Duration = std::time::Duration::from_secs(600);
/// TLS handshakes at once, and clients that have not logged in yet: an edge device has few.
const LOGINS_MAX: usize = 256;
/// Messages for inputs that a module may hold unanswered: enough for the next ones to be fetched meanwhile.
const INPUTS_IN_FLIGHT: usize = 64;

/// The edge hub inside this process.
pub(super) struct EdgeHub {
    device_id: String,
    broker: Arc<Broker>,
    tls: Arc<TlsSettings>,
    certificate: Mutex<Shown>,
    names: Names,
    certificates: Arc<Certificates>,
    clock: Arc<dyn Clock>,
}

/// The server certificate in use.
struct Shown {
    issued: Issued,
    authority: CertificateDer<'static>,
}

/// Signs as a module whose generation may not be known yet, and may change.
pub(super) struct LateSigner {
    pub(super) identities: Arc<Identities>,
    pub(super) keys: Arc<dyn KeyStore>,
    pub(super) module_id: &'static str,
}

impl TokenSigner for LateSigner {
    fn sign<'a>(&'a self, text: &'a [u8]) -> BoxFuture<'a, Result<[u8; 32], CloudError>> {
        Box::pin(async move {
            let unknown =
                || CloudError::Unreachable(format!("the identity of {} is not known yet", self.module_id));
            let identity = self.identities.kept(self.module_id).ok_or_else(unknown)?;
            let signed = self
                .keys
                .sign_as_module(self.module_id, &identity.generation_id, text);
            signed
                .await
                .map_err(|error| CloudError::Unreachable(error.to_string()))
        })
    }
}

impl EdgeHub {
    /// Opens what the edge hub keeps; nothing is served yet.
    pub(super) fn open(
        base: &Base,
        upstream: &Upstream,
        identities: &Arc<Identities>,
        env: &BTreeMap<String, String>,
    ) -> anyhow::Result<(Arc<Self>, Arc<HttpsRegistry>)> {
        let signer: Arc<dyn TokenSigner> = Arc::new(LateSigner {
            identities: Arc::clone(identities),
            keys: Arc::clone(&base.keys) as Arc<dyn KeyStore>,
            module_id: MODULE,
        });
        let own = Identity::module(&base.device.device_id, MODULE)
            .map_err(|error| Failure::usage(error.to_string()))?;
        let registry = Arc::new(upstream.registry(Account {
            identity: own,
            proof: Proof::Key(Arc::clone(&signer)),
            product_info: format!("EdgeHub/{}", crate::system::VERSION),
            model_id: None,
        }));
        let above = Above {
            cloud: Arc::new(upstream.clone()),
            registry: Arc::clone(&registry) as _,
            signer,
        };
        let mut config = BrokerConfig::new(
            &base.device.device_id,
            &base.device.hub,
            base.settings.home.join("hub"),
            SealingKey::new(base.keys.secret("edge hub")),
        );
        let names = Names::new(&base.settings);
        config.gateway_hosts.clone_from(&names.0);
        apply_store(&mut config, base.settings.store);
        adjust(&mut config, env);
        let broker = Broker::open(config, Arc::new(RealDisk), Arc::clone(&base.clock), Some(above))
            .context("cannot open the edge hub's store")?;
        let hub = Self::new(
            &base.device.device_id,
            names,
            Arc::clone(&base.certificates),
            Arc::clone(&base.clock),
            broker,
        )?;
        Ok((Arc::new(hub), registry))
    }

    /// Makes the server certificate; nothing is served yet.
    pub(super) fn new(
        device_id: &str,
        names: Names,
        certificates: Arc<Certificates>,
        clock: Arc<dyn Clock>,
        broker: Arc<Broker>,
    ) -> anyhow::Result<Self> {
        let shown = issue(&certificates, &names.0)?;
        // Tickets are good until the next start: a client then makes one full handshake.
        let secret =
            TicketSecret::generate().context("the operating system's random source does not work")?;
        let tls = TlsSettings::new(
            vec![server_certificate(&shown.issued)],
            &secret,
            Arc::clone(&clock),
        )
        .context("cannot set up TLS")?;
        let hub = EdgeHub {
            device_id: device_id.to_owned(),
            broker,
            tls,
            certificate: Mutex::new(shown),
            names,
            certificates,
            clock,
        };
        hub.trust();
        Ok(hub)
    }

    /// Where certificates come from.
    pub(super) fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    pub(super) fn broker(&self) -> &Arc<Broker> {
        &self.broker
    }

    /// Authorities of downstream devices' certificates.
    fn trust(&self) {
        match self.certificates.trust_bundle() {
            Ok(bundle) => {
                let authorities: Vec<Bytes> = CertificateDer::pem_slice_iter(bundle.as_bytes())
                    .filter_map(Result::ok)
                    .map(|der| Bytes::copy_from_slice(&der))
                    .collect();
                self.broker.set_trust(&authorities);
            }
            Err(error) => tracing::warn!(%error, "downstream devices with certificates are not let in"),
        }
    }

    /// Renews the server certificate when that is due or the edge CA is another one. Connections go on.
    pub(super) fn renew_certificate(&self) -> anyhow::Result<()> {
        let authority = self.certificates.authority()?;
        {
            let shown = self.certificate.lock();
            let same = authority.chain.first() == Some(&shown.authority);
            if same && !shown.issued.is_due(self.clock.now().as_seconds()) {
                return Ok(());
            }
        }
        let renewed = issue(&self.certificates, &self.names.0)?;
        self.tls
            .reload(vec![server_certificate(&renewed.issued)])
            .context("cannot use the renewed server certificate")?;
        *self.certificate.lock() = renewed;
        self.trust();
        tracing::info!("the edge hub's server certificate was renewed");
        Ok(())
    }
}

/// Names by which clients reach the edge hub, which its certificate carries and tokens may name; the host name first.
pub(super) struct Names(pub(super) Vec<String>);

impl Names {
    pub(super) fn new(settings: &Settings) -> Self {
        let mut names = vec![settings.hostname.clone(), EDGE_HUB.to_owned()];
        for name in &settings.listen.names {
            if !names.iter().any(|known| known.eq_ignore_ascii_case(name)) {
                names.push(name.clone());
            }
        }
        Names(names)
    }
}

fn issue(certificates: &Certificates, names: &[String]) -> anyhow::Result<Shown> {
    let issued = certificates.issue(&Request {
        common_name: &names[0],
        names,
        usage: Usage::Server,
    })?;
    let authority = certificates.authority()?;
    let authority = authority
        .chain
        .first()
        .context("the edge CA has no certificate")?
        .clone();
    Ok(Shown { issued, authority })
}

fn server_certificate(issued: &Issued) -> ServerCertificate {
    ServerCertificate {
        chain: issued.chain.clone(),
        key: PrivateKeyDer::Pkcs8(issued.key.to_vec().into()),
    }
}

/// Bounds of the store, as the configuration has them.
pub(super) fn apply_store(config: &mut BrokerConfig, store: Store) {
    config.queues.bytes_max = store.bytes_max;
    if store.drop_oldest {
        config.queues.when_full = WhenFull::DropOldest;
    }
    config.upstream_bytes_per_second = store.upstream_bytes_per_second;
}

/// Settings of the original's edge hub (edge.md section 16), as a deployment gives them in `env`.
fn adjust(config: &mut BrokerConfig, env: &BTreeMap<String, String>) {
    let number = |name: &str| {
        let mut env = env.iter();
        let (_, text) = env.find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        text.trim().parse::<u64>().ok().filter(|number| *number > 0)
    };
    let seconds = |name: &str| number(name).map(std::time::Duration::from_secs);
    let count = |name: &str| number(name).and_then(|number| usize::try_from(number).ok());
    // The edge hub itself is one of them.
    config.clients_max =
        count("MaxConnectedClients").map_or(config.clients_max, |most| most.saturating_add(1));
    config.input_lock = seconds("MessageAckTimeoutSecs").unwrap_or(config.input_lock);
    if let Some(every) = seconds("DeviceScopeCacheRefreshRateSecs") {
        // Whoever says how often means it.
        (config.scope_every, config.scope_in_use_every) = (every, None);
    }
    config.scope_identity_every =
        seconds("DeviceScopeCacheRefreshDelaySecs").unwrap_or(config.scope_identity_every);
    config.configuration_every = seconds("ConfigRefreshFrequencySecs").unwrap_or(config.configuration_every);
    config.fan_out = count("UpstreamFanOutFactor").unwrap_or(config.fan_out);
}

/// Heads that a deployment turns off (`mqttSettings__enabled` and so on, edge.md section 10), and their ports.
pub(super) fn adjust_listeners(listen: &mut Listen, env: &BTreeMap<String, String>) {
    let find = |name: &str| {
        let mut env = env.iter();
        env.find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, text)| text.trim())
    };
    for (settings, port) in [
        ("mqttSettings", &mut listen.mqtt),
        ("amqpSettings", &mut listen.amqp),
        ("httpSettings", &mut listen.https),
    ] {
        let off =
            find(&format!("{settings}__enabled")).is_some_and(|text| text.eq_ignore_ascii_case("false"));
        if off {
            *port = None;
        } else if port.is_some()
            && settings != "mqttSettings"
            && let Some(other) = find(&format!("{settings}__port")).and_then(|text| text.parse().ok())
        {
            *port = Some(other);
        }
    }
}

/// Sockets that wait for their heads.
pub(super) struct Listeners {
    mqtt: Vec<TcpListener>,
    amqp: Vec<TcpListener>,
    https: Vec<TcpListener>,
}

impl Listeners {
    /// Opens all ports, so that one that is taken is told at the start.
    pub(super) fn bind(listen: &Listen) -> Result<Self, Failure> {
        Ok(Listeners {
            mqtt: bind(&listen.addresses, listen.mqtt, "MQTT over TLS", "mqtt")?,
            amqp: bind(&listen.addresses, listen.amqp, "AMQP over TLS", "amqp")?,
            https: bind(&listen.addresses, listen.https, "HTTPS", "https")?,
        })
    }

    /// Port of MQTT, AMQP and HTTPS, as far as they are served.
    pub(super) fn ports(&self) -> [Option<u16>; 3] {
        let port = |listeners: &[TcpListener]| Some(listeners.first()?.local_addr().ok()?.port());
        [port(&self.mqtt), port(&self.amqp), port(&self.https)]
    }
}

/// One socket per address on one port, which is drawn once when it is 0; no address means all of them.
fn bind(addresses: &[IpAddr], port: Option<u16>, what: &str, key: &str) -> Result<Vec<TcpListener>, Failure> {
    let Some(mut port) = port else {
        return Ok(Vec::new());
    };
    let refused = |address: SocketAddr, error: std::io::Error| {
        Failure::new(Kind::Failed, format!("cannot listen on {address} for {what}: {error}")).hint(format!(
            "stop the program that uses the port (ss -ltnp 'sport = :{}'), or choose another one: --{key}-port, hub.{key}_port; \
             hub.{key} = false serves none. Ports below 1024 need root or the capability CAP_NET_BIND_SERVICE",
            address.port()
        ))
    };
    if addresses.is_empty() {
        let all = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        return match holdfast_heads::listener::bind(all) {
            Ok(listener) => Ok(vec![listener]),
            // No IPv6 on this machine.
            Err(error)
                if error.kind() != std::io::ErrorKind::AddrInUse
                    && error.kind() != std::io::ErrorKind::PermissionDenied =>
            {
                let all = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
                Ok(vec![
                    holdfast_heads::listener::bind(all).map_err(|error| refused(all, error))?,
                ])
            }
            Err(error) => Err(refused(all, error)),
        };
    }
    let mut listeners = Vec::new();
    for address in addresses {
        let address = SocketAddr::new(*address, port);
        let listener = holdfast_heads::listener::bind(address).map_err(|error| refused(address, error))?;
        port = listener.local_addr().map_or(port, |address| address.port());
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Starts a task per listener. They end with the shutdown.
pub(super) fn serve(
    tasks: &mut JoinSet<()>,
    hub: &Arc<EdgeHub>,
    registry: Option<Arc<HttpsRegistry>>,
    listeners: Listeners,
    metrics: Metrics,
    stopped: &watch::Receiver<bool>,
) {
    let (clock, broker) = (&hub.clock, &hub.broker);
    let gateway: Arc<dyn DeviceGateway> = Arc::clone(broker) as Arc<_>;
    let services: Arc<dyn ServiceGateway> = Arc::clone(broker) as Arc<_>;
    let config = MqttConfig {
        silence_max: SILENCE_MAX,
        logins_pending_max: LOGINS_MAX,
        tolerant: true,
        c2d_in_flight_max: INPUTS_IN_FLIGHT,
        ..MqttConfig::default()
    };
    let mqtt = MqttHead::new(config, Arc::clone(&gateway), Arc::clone(clock), metrics.clone());
    let config = AmqpConfig {
        logins_pending_max: LOGINS_MAX,
        connections_max: LOGINS_MAX,
        module_inputs: true,
        c2d_in_flight_max: INPUTS_IN_FLIGHT,
        ..AmqpConfig::default()
    };
    let amqp = AmqpHead::new(
        config,
        Arc::clone(&gateway),
        services,
        Arc::clone(clock),
        metrics.clone(),
    );
    let config = HttpsConfig {
        connections_max: LOGINS_MAX,
        ..HttpsConfig::default()
    };
    let router = api::router(HubApi {
        broker: Arc::clone(broker),
        device_id: hub.device_id.as_str().into(),
        registry,
    });
    let devices = DeviceHttps::new(gateway, Arc::clone(clock), metrics.clone());
    let https =
        HttpsHead::new(config, router, Some(devices), Some(mqtt.clone()), metrics).with_amqp(amqp.clone());
    for listener in listeners.mqtt {
        let (head, tls, stopped) = (mqtt.clone(), Arc::clone(&hub.tls), stopped.clone());
        tasks.spawn(async move { head.serve(listener, Some(tls), stopped).await });
    }
    for listener in listeners.amqp {
        let (head, tls, stopped) = (amqp.clone(), Arc::clone(&hub.tls), stopped.clone());
        tasks.spawn(async move { head.serve(listener, Some(tls), stopped).await });
    }
    for listener in listeners.https {
        let (head, tls, stopped) = (https.clone(), Arc::clone(&hub.tls), stopped.clone());
        tasks.spawn(async move { head.serve(listener, Some(tls), stopped).await });
    }
}

/// Starts the engine when the edge hub has an identity.
pub(super) async fn start_when_known(hub: Arc<EdgeHub>, identities: Arc<Identities>) {
    let mut pause = std::time::Duration::from_secs(1);
    while let Err(error) = identities.ensure(MODULE).await {
        if let Some(times) = NO_IDENTITY.happened(MODULE) {
            tracing::warn!(%error, times, "the edge hub has no identity yet; trying again");
        }
        tokio::time::sleep(jittered(pause)).await;
        pause = (pause * 2).min(std::time::Duration::from_secs(15));
    }
    hub.broker.start();
}
