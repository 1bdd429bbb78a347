//! Client of a hub on behalf of an edge device, its modules and the clients behind it.
//!
//! [`port`] is what the edge agent and the edge hub call; the rest implements it over the client roles of our own
//! protocol crates, so it speaks to Holdfast, to a compatible cloud hub and to a parent edge device alike.
//!
//! ```no_run
//! use std::sync::Arc;
//! use holdfast_ports::clock::SystemClock;
//! use holdfast_upstream::port::{Account, Cloud as _, CloudClient as _, Interests, Proof};
//! use holdfast_upstream::{KeySigner, Metrics, Trust, Upstream, UpstreamConfig};
//! # use holdfast_model::{Identity, credential::SymmetricKey};
//! # async fn example(pem: Vec<u8>, key: SymmetricKey) -> Result<(), Box<dyn std::error::Error>> {
//! let mut config = UpstreamConfig::new("hub.factory");
//! config.trust = Trust::from_pem(&pem)?;
//! let upstream = Upstream::new(config, Arc::new(SystemClock::new()), Metrics::default())?;
//! let account = Account {
//!     identity: Identity::module("edge-1", "$edgeAgent")?,
//!     proof: Proof::Key(Arc::new(KeySigner::new(key))),
//!     product_info: "EdgeAgent/1".to_owned(),
//!     model_id: None,
//! };
//! let client = upstream.client(account.clone());
//! client.want(Interests { methods: true, desired: true, cloud_to_device: false });
//! let twin = client.twin().await?;
//! let registry = upstream.registry(account); // implements `port::CloudRegistry`
//! # Ok(()) }
//! ```
//!
//! Provisioning (DPS) is in [`provisioning`]; it needs no [`Upstream`].

mod amqp;
mod config;
mod events;
mod gate;
mod https;
mod login;
mod mqtt;
mod net;
pub mod port;
pub mod provisioning;
mod pushes;
mod registry;
mod silence;
mod token;

use std::sync::{Arc, OnceLock};

use holdfast_ports::clock::Clock;
use tokio::sync::watch;

pub use config::{Ports, Proxy, Trust, Tuning, UpstreamConfig, UpstreamProtocol};
pub use events::Metrics;
pub use gate::jittered;
pub use registry::HttpsRegistry;
pub use token::KeySigner;

use gate::Gate;
use net::{Route, TlsSettings};
use port::{Account, Cloud, CloudClient, Proof, Reach};

/// The way to one hub, implementing [`Cloud`].
#[derive(Clone)]
pub struct Upstream {
    core: Arc<Core>,
    /// The connection of all clients with keys, over AMQP.
    trunk: Arc<SharedTrunk>,
}

/// Closes the shared connection with the last [`Upstream`].
#[derive(Default)]
struct SharedTrunk(OnceLock<Arc<amqp::Trunk>>);

impl Drop for SharedTrunk {
    fn drop(&mut self) {
        if let Some(trunk) = self.0.get() {
            trunk.close();
        }
    }
}

/// What all clients of one upstream share.
pub(crate) struct Core {
    pub(crate) config: UpstreamConfig,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Metrics,
    pub(crate) tls: TlsSettings,
    pub(crate) route: Route,
    pub(crate) gate: Arc<Gate>,
}

impl Core {
    /// Milliseconds for the protocol machines.
    pub(crate) fn monotonic_millis(&self) -> u64 {
        self.clock.monotonic_millis()
    }
}

impl Upstream {
    /// Prepares; nothing is connected yet. Clients need a tokio runtime with I/O and time when they are made.
    ///
    /// # Errors
    /// When the authorities of the configuration cannot be used.
    pub fn new(config: UpstreamConfig, clock: Arc<dyn Clock>, metrics: Metrics) -> Result<Self, String> {
        let tls = TlsSettings::new(&config.trust)?;
        let gate = Arc::new(Gate::new(&config.tuning, Arc::clone(&clock)));
        Ok(Upstream {
            core: Arc::new(Core {
                route: Route::to_hub(&config),
                tls,
                gate,
                clock,
                metrics,
                config,
            }),
            trunk: Arc::default(),
        })
    }

    /// The registry of the hub, asked as `account`: the edge device for its module identities, its `$edgeHub` for
    /// scopes and for what it does on behalf of children.
    #[must_use]
    pub fn registry(&self, account: Account) -> HttpsRegistry {
        HttpsRegistry::new(Arc::clone(&self.core), account)
    }
}

impl Cloud for Upstream {
    fn client(&self, account: Account) -> Arc<dyn CloudClient> {
        let core = || Arc::clone(&self.core);
        match self.core.config.protocol {
            UpstreamProtocol::Mqtt | UpstreamProtocol::MqttWs => {
                Arc::new(mqtt::MqttClient::new(core(), account))
            }
            UpstreamProtocol::Amqp | UpstreamProtocol::AmqpWs => {
                let trunk = match account.proof {
                    // A certificate speaks for a whole connection.
                    Proof::Certificate(_) => amqp::Trunk::new(core(), Some(account.clone())),
                    Proof::Key(_) | Proof::OnBehalf { .. } => {
                        Arc::clone(self.trunk.0.get_or_init(|| amqp::Trunk::new(core(), None)))
                    }
                };
                Arc::new(trunk.client(account))
            }
        }
    }

    fn reach(&self) -> watch::Receiver<Reach> {
        self.core.gate.reach()
    }

    fn nudge(&self) {
        self.core.gate.nudge();
    }
}
