//! An edge hub with clients.

use std::future::poll_fn;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_broker::queue::QueueConfig;
use holdfast_broker::{Above, Broker, BrokerConfig, SealingKey};
use holdfast_model::c2d::{C2dDelivery, Settlement};
use holdfast_model::credential::{SymmetricKey, sign_sas};
use holdfast_model::event::Records;
use holdfast_model::message::SystemProperty;
use holdfast_model::subscription::{Channel, Subscriptions};
use holdfast_model::{Error, Identity, Timestamp};
use holdfast_ports::clock::{Clock, ManualClock};
use holdfast_ports::gateway::{
    AccessRequest, ConnectRequest, Connected, Credential, DeviceGateway, Disconnect, IngestError,
    Persistence, Protocol,
};
use holdfast_ports::session::{Downlink, SessionHandle};
use holdfast_store::log::disk::Disk;
use holdfast_store::log::sim::SimDisk;
use holdfast_upstream::port::{ScopeAuthentication, ScopeIdentity};
use serde_json::{Value, json};

use crate::cloud::{CloudHandle, FakeCloud, Registry, Signer};
use crate::rig::DEADLINE;

pub(crate) const EDGE_SCOPE: &str = "ms-azure-iot-edge://edge-1";

/// The same key for everybody in tests that are not about keys.
pub(crate) fn shared_key() -> SymmetricKey {
    SymmetricKey::parse("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=").expect("a key")
}

/// A key of its own for each identity.
pub(crate) fn key_of(identity: &str) -> SymmetricKey {
    shared_key().derive(identity)
}

pub(crate) fn entry(identity: &str) -> ScopeIdentity {
    let parsed = Identity::parse(identity).expect("an id");
    let is_edge = identity == "edge";
    ScopeIdentity {
        generation_id: "1".to_owned(),
        enabled: true,
        authentication: ScopeAuthentication::Keys {
            primary: key_of(identity),
            secondary: SymmetricKey::generate(),
        },
        iot_edge: is_edge,
        device_scope: (!parsed.is_module()).then(|| EDGE_SCOPE.to_owned()),
        parent_scopes: match is_edge || parsed.is_module() {
            true => Vec::new(),
            false => vec![EDGE_SCOPE.to_owned()],
        },
        identity: parsed,
    }
}

/// The edge device with a few modules and leaf devices.
pub(crate) fn scope() -> Vec<ScopeIdentity> {
    [
        "edge",
        "edge/$edgeHub",
        "edge/a",
        "edge/b",
        "edge/c",
        "leaf",
        "leaf2",
    ]
    .into_iter()
    .map(entry)
    .collect()
}

pub(crate) struct Edge {
    pub(crate) broker: Arc<Broker>,
    pub(crate) clock: Arc<dyn Clock>,
}

pub(crate) fn settings() -> BrokerConfig {
    let mut config = BrokerConfig::new(
        "edge",
        "hub.test",
        PathBuf::from("/edge"),
        SealingKey::new([7; 32]),
    );
    config.gateway_hosts = vec!["gateway.test".to_owned()];
    config.queues = QueueConfig {
        segment_bytes: 16 << 10,
        commit_interval: Duration::ZERO,
        empty_after: Duration::from_millis(10),
        chores_every: Duration::from_millis(5),
        retry_after: Duration::from_millis(2),
        sync_threads: 1,
        ..QueueConfig::new(PathBuf::from("/edge/queues"))
    };
    config.reported_sync_after = Duration::from_millis(5);
    config
}

pub(crate) fn above(cloud: &Arc<FakeCloud>) -> Above {
    Above {
        cloud: Arc::new(CloudHandle(Arc::clone(cloud))),
        registry: Arc::new(Registry(Arc::clone(cloud))),
        signer: Arc::new(Signer(key_of("edge/$edgeHub"))),
    }
}

impl Edge {
    /// Without a hub above, everybody known.
    pub(crate) fn alone() -> Self {
        let mut config = settings();
        config.local_identities = scope();
        Self::open(config, Arc::new(SimDisk::new()), manual(), None)
    }

    /// Below a hub, at the present time, once the scope is read if that is possible.
    pub(crate) async fn below(cloud: &Arc<FakeCloud>, disk: Arc<dyn Disk>) -> Self {
        let edge = Self::open(settings(), disk, manual(), Some(above(cloud)));
        if cloud.state.lock().online {
            edge.until("the scope", || cloud.state.lock().scope_reads >= 3)
                .await;
            let broker = &edge.broker;
            broker.refresh_scope().await.expect("online");
        }
        edge
    }

    pub(crate) fn open(
        config: BrokerConfig,
        disk: Arc<dyn Disk>,
        clock: Arc<ManualClock>,
        above: Option<Above>,
    ) -> Self {
        let broker = Broker::open(config, disk, clock.clone(), above).expect("opens");
        broker.start();
        Edge { broker, clock }
    }

    pub(crate) fn route(&self, routes: Value) -> Vec<String> {
        self.route_with(routes, json!({ "timeToLiveSecs": 7200 }))
    }

    pub(crate) fn route_with(&self, routes: Value, store: Value) -> Vec<String> {
        let desired = json!({
            "schemaVersion": "1.1",
            "routes": routes,
            "storeAndForwardConfiguration": store,
        });
        self.broker
            .apply_desired(desired.as_object().expect("an object"))
            .expect("a configuration")
    }

    pub(crate) async fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        until(what, &mut condition).await;
    }

    pub(crate) fn token(&self, identity: &str, key: &SymmetricKey) -> String {
        token(identity, key, self.clock.now().plus(Duration::from_secs(3_600)))
    }

    pub(crate) async fn try_connect(&self, identity: &str, key: &SymmetricKey) -> Result<Connected, Error> {
        let token = self.token(identity, key);
        self.connect_with(identity, Credential::Sas(&token), Persistence::Forgotten, None)
            .await
    }

    pub(crate) async fn connect_with(
        &self,
        identity: &str,
        credential: Credential<'_>,
        persistence: Persistence,
        auth_chain: Option<&str>,
    ) -> Result<Connected, Error> {
        let (device_id, module_id) = split(identity);
        let request = ConnectRequest {
            access: AccessRequest {
                device_id,
                module_id,
                credential,
                auth_chain,
                protocol: Protocol::Mqtt,
            },
            persistence,
            model_id: None,
            client_type: None,
        };
        self.broker.connect(request).await
    }

    pub(crate) async fn client(&self, identity: &str) -> Client {
        let connected = self
            .try_connect(identity, &key_of(identity))
            .await
            .unwrap_or_else(|error| panic!("{identity}: {error}"));
        Client {
            broker: Arc::clone(&self.broker),
            session: connected.session,
        }
    }
}

pub(crate) fn manual() -> Arc<ManualClock> {
    Arc::new(ManualClock::at(Timestamp::from_seconds(1_700_000_000)))
}

pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "{what} did not come about in time");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(crate) fn split(identity: &str) -> (&str, Option<&str>) {
    match identity.split_once('/') {
        Some((device, module)) => (device, Some(module)),
        None => (identity, None),
    }
}

pub(crate) fn token(identity: &str, key: &SymmetricKey, expires: Timestamp) -> String {
    let path = match split(identity) {
        (device, Some(module)) => format!("hub.test/devices/{device}/modules/{module}"),
        (device, None) => format!("hub.test/devices/{device}"),
    };
    sign_sas(&path, key, expires, None)
}

/// A connected client.
pub(crate) struct Client {
    pub(crate) broker: Arc<Broker>,
    pub(crate) session: Arc<SessionHandle>,
}

/// A message to be sent.
#[derive(Clone, Default)]
pub(crate) struct Draft<'a> {
    pub(crate) body: &'a str,
    pub(crate) output: Option<&'a str>,
    pub(crate) properties: Vec<(&'a str, &'a str)>,
    pub(crate) system: Vec<(SystemProperty, &'a str)>,
}

pub(crate) fn records(drafts: &[Draft<'_>]) -> Records {
    let mut records = Records::new();
    for draft in drafts {
        let mut record = records.record();
        if let Some(output) = draft.output {
            record.system(SystemProperty::OutputName, output);
        }
        for (property, value) in &draft.system {
            record.system(*property, value);
        }
        for (key, value) in &draft.properties {
            record.property(key, Some(value));
        }
        let _ = record.finish(draft.body.as_bytes());
    }
    records
}

impl Client {
    pub(crate) async fn send(&self, drafts: &[Draft<'_>]) -> Result<(), IngestError> {
        let records = records(drafts);
        let ticket = self.broker.send(&self.session, &records)?;
        poll_fn(|context| self.broker.poll_durable(ticket, context))
            .await
            .map_err(IngestError::Failed)
    }

    /// Sends bodies to an output, durably.
    pub(crate) async fn say(&self, output: Option<&str>, bodies: &[&str]) {
        let drafts: Vec<Draft<'_>> = bodies
            .iter()
            .map(|body| Draft {
                body,
                output,
                ..Draft::default()
            })
            .collect();
        self.send(&drafts).await.expect("taken");
    }

    pub(crate) async fn subscribe(&self, channels: &[Channel]) {
        let mut set = Subscriptions::NONE;
        channels.iter().for_each(|channel| set.insert(*channel, true));
        self.broker.subscribe(&self.session, set).await.expect("stored");
    }

    /// The next thing pushed.
    pub(crate) async fn pushed(&self) -> Downlink {
        let next = poll_fn(|context| self.session.poll_next(context));
        tokio::time::timeout(DEADLINE, next)
            .await
            .expect("something in time")
            .expect("a live session")
    }

    /// Fetches messages until there are `count`.
    pub(crate) async fn fetch(&self, count: usize) -> Vec<C2dDelivery> {
        let mut all = Vec::new();
        let end = Instant::now() + DEADLINE;
        while all.len() < count {
            assert!(
                Instant::now() < end,
                "{} of {count} messages came in time",
                all.len()
            );
            let some = self.take(count - all.len()).await;
            if some.is_empty() {
                // A hint must come for what comes later.
                let pushed = self.pushed().await;
                assert!(matches!(pushed, Downlink::CloudToDevice), "{pushed:?}");
            }
            all.extend(some);
        }
        all
    }

    pub(crate) async fn take(&self, max: usize) -> Vec<C2dDelivery> {
        self.broker
            .receive_c2d(self.session.identity(), Some(&self.session), max)
            .await
            .expect("readable")
    }

    pub(crate) async fn settle(&self, delivery: &C2dDelivery, settlement: Settlement) -> Result<(), Error> {
        self.broker
            .settle_c2d(self.session.identity(), delivery.lock, settlement)
            .await
    }

    /// Fetches and completes.
    pub(crate) async fn consume(&self, count: usize) -> Vec<String> {
        let deliveries = self.fetch(count).await;
        for delivery in &deliveries {
            self.settle(delivery, Settlement::Complete).await.expect("locked");
        }
        bodies(&deliveries)
    }

    pub(crate) fn leave(self) {
        self.broker.disconnect(&self.session, Disconnect::Clean);
    }
}

pub(crate) fn bodies(deliveries: &[C2dDelivery]) -> Vec<String> {
    let text = |delivery: &C2dDelivery| String::from_utf8_lossy(&delivery.message.message.body).into_owned();
    deliveries.iter().map(text).collect()
}
