//! The conversations of `$edgeAgent` and `$edgeHub` with the hub, once their identities are known.

use std::sync::Arc;
use std::time::Duration;

use holdfast_agent::identities::{IdentityError, ModuleIdentities as _, ModuleIdentity};
use holdfast_agent::runtime::ModuleRuntime;
use holdfast_observe::Repeats;
use holdfast_program::failure::Failure;
use holdfast_upstream::port::{Account, Cloud as _, CloudClient, Interests, Proof};
use holdfast_upstream::{Upstream, jittered};
use tokio::sync::{Notify, watch};

use super::Base;
use super::twin::Conversation;
use crate::identities::Identities;
use crate::keys::{KeyStore, ModuleSigner};
use crate::provisioning::{Device, NOT_ACCEPTED};
use crate::system::SystemInfo;

/// Id of the agent at the hub.
const AGENT: &str = "$edgeAgent";
/// First and longest pause between two attempts to learn an identity.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));
/// By device.
static NO_IDENTITY: Repeats = Repeats::new();
static KEYS_NOT_SET: Repeats = Repeats::new();
/// Keys are not set again more often than this.
const RENEW_SPACING: Duration = Duration::from_secs(60);

/// The conversations.
pub(super) struct Accounts {
    upstream: Upstream,
    identities: Arc<Identities>,
    keys: Arc<dyn KeyStore>,
    runtime: Arc<dyn ModuleRuntime>,
    system: Arc<SystemInfo>,
    agent: watch::Sender<Option<Arc<dyn CloudClient>>>,
    refused: Arc<Notify>,
    renewed: tokio::sync::Mutex<Option<tokio::time::Instant>>,
    instance: String,
    hub: String,
    device_id: String,
}

impl Accounts {
    pub(super) fn new(base: &Base, upstream: &Upstream, identities: Arc<Identities>) -> Arc<Self> {
        let (agent, _) = watch::channel(None);
        Arc::new(Accounts {
            upstream: upstream.clone(),
            identities,
            keys: Arc::clone(&base.keys) as Arc<dyn KeyStore>,
            runtime: Arc::clone(&base.runtime),
            system: Arc::clone(&base.system),
            agent,
            refused: Arc::new(Notify::new()),
            renewed: tokio::sync::Mutex::new(None),
            instance: uuid(),
            hub: base.device.hub.clone(),
            device_id: base.device.device_id.clone(),
        })
    }

    /// The conversation of `$edgeAgent`.
    pub(super) fn agent(&self) -> Conversation {
        self.agent.subscribe()
    }

    /// Told when the hub refuses `$edgeAgent`.
    pub(super) fn refused(&self) -> Arc<Notify> {
        Arc::clone(&self.refused)
    }

    /// A GUID for this run.
    pub(super) fn instance(&self) -> &str {
        &self.instance
    }

    /// Learns the identity of the agent, from the disk or from the hub, and begins its conversation.
    pub(super) async fn keep(self: Arc<Self>) {
        let mut pause = RETRY.0;
        loop {
            match self.identities.ensure(AGENT).await {
                Ok(identity) => {
                    self.begin(&identity).await;
                    return;
                }
                Err(error) => {
                    match (&error, NO_IDENTITY.happened(&self.device_id)) {
                        (_, None) => {}
                        (IdentityError::Refused { cause, .. }, Some(times)) => tracing::error!(
                            device = self.device_id,
                            hub = self.hub,
                            cause,
                            hint = NOT_ACCEPTED,
                            times,
                            "the hub refuses this device; trying again. `holdfast-edge check` tells more"
                        ),
                        (IdentityError::Offline { .. }, Some(times)) => {
                            tracing::warn!(%error, times, "the agent has no identity yet; trying again");
                        }
                    }
                    tokio::time::sleep(jittered(pause)).await;
                    pause = (pause * 2).min(RETRY.1);
                }
            }
        }
    }

    async fn begin(&self, identity: &ModuleIdentity) {
        let product_info = self.system.product_info("EdgeAgent", &self.runtime).await;
        let client = self.upstream.client(Account {
            identity: identity.identity.clone(),
            proof: Proof::Key(Arc::new(ModuleSigner {
                keys: Arc::clone(&self.keys),
                module_id: AGENT.to_owned(),
                generation_id: identity.generation_id.clone(),
            })),
            product_info,
            model_id: None,
        });
        client.want(Interests {
            methods: true,
            desired: true,
            cloud_to_device: false,
        });
        self.agent.send_replace(Some(client));
    }

    /// The device has another certificate: its registry calls are made with that.
    pub(super) fn use_device(&self, device: &Device) -> Result<(), Failure> {
        let registry = self.upstream.registry(device.account()?);
        self.identities.set_registry(Arc::new(registry));
        Ok(())
    }

    /// Sets the agent's keys at the hub again, and begins anew when its identity has changed.
    pub(super) async fn renew(&self) {
        let mut renewed = self.renewed.lock().await;
        if renewed.is_some_and(|at| at.elapsed() < RENEW_SPACING) {
            return;
        }
        *renewed = Some(tokio::time::Instant::now());
        let before = self.identities.kept(AGENT);
        if let Err(error) = self.identities.upload_again(AGENT).await {
            if let Some(times) = KEYS_NOT_SET.happened(&self.device_id) {
                tracing::warn!(%error, times, "the keys of $edgeAgent could not be set anew");
            }
            return;
        }
        if let Some(now) = self.identities.kept(AGENT)
            && before.as_ref() != Some(&now)
        {
            self.begin(&now).await;
        }
        self.upstream.nudge();
    }
}

/// A random GUID, version 4.
fn uuid() -> String {
    let mut bytes = [0u8; 16];
    let random = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes);
    if random.is_err() {
        tracing::warn!("the operating system's random source does not work");
    }
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}
