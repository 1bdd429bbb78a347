//! What the tests share: a hub over memory, and short ways to say who connects with what.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use holdfast_hub::events::Metrics;
use holdfast_hub::{Hub, HubConfig, IdentitySpec, ServiceCaller, Stores};
use holdfast_model::credential::{SymmetricKey, sign_sas};
use holdfast_model::registry::{Authentication, IdentityRecord};
use holdfast_model::subscription::{Channel, Subscriptions};
use holdfast_model::{Error, ErrorCode, Identity, Timestamp};
use holdfast_observe::Registry;
use holdfast_ports::clock::{Clock as _, ManualClock};
use holdfast_ports::gateway::{
    AccessRequest, ConnectRequest, Connected, Credential, DeviceGateway as _, Persistence, Protocol,
};
use holdfast_ports::memory::MemoryStore;
use holdfast_ports::memory::event_log::MemoryLog;
use holdfast_ports::session::{CloseReason, Downlink, SessionHandle};

pub(crate) const HOST: &str = "hub.test";
pub(crate) const OWNER: ServiceCaller = ServiceCaller::Local;

pub(crate) struct TestHub {
    pub(crate) hub: Arc<Hub>,
    pub(crate) store: MemoryStore,
    pub(crate) log: Arc<MemoryLog>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) metrics: Metrics,
}

impl TestHub {
    pub(crate) async fn new() -> Self {
        Self::with(HubConfig::default()).await
    }

    pub(crate) async fn with(config: HubConfig) -> Self {
        Self::build(config, |_| {}).await
    }

    /// With some of its stores exchanged.
    pub(crate) async fn build(config: HubConfig, exchange: impl FnOnce(&mut Stores)) -> Self {
        let store = MemoryStore::new();
        let log = Arc::new(MemoryLog::new(4));
        // 2026-06-01T00:00:00Z
        let clock = Arc::new(ManualClock::at(Timestamp::from_seconds(1_780_272_000)));
        clock.advance(Duration::from_secs(1_000));
        let shared = Arc::new(store.clone());
        let mut stores = Stores {
            registry: shared.clone(),
            twins: shared.clone(),
            c2d: shared.clone(),
            settings: shared.clone(),
            sessions: shared.clone(),
            checkpoints: shared.clone(),
            outbox: shared,
            log: log.clone(),
            clock: clock.clone(),
        };
        exchange(&mut stores);
        let config = HubConfig {
            host_names: vec![HOST.to_owned(), "gateway.test".to_owned()],
            ..config
        };
        let metrics = Metrics::register(&mut Registry::new());
        let hub = Hub::new(config, stores, 1 << 32, metrics.clone())
            .await
            .expect("the store is empty");
        hub.ensure_policies().await.expect("policies are made");
        TestHub {
            hub,
            store,
            log,
            clock,
            metrics,
        }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Creates a device or module with keys.
    pub(crate) async fn create(&self, id: &str) -> IdentityRecord {
        self.create_with(id, &IdentitySpec::default()).await
    }

    pub(crate) async fn create_with(&self, id: &str, spec: &IdentitySpec) -> IdentityRecord {
        self.hub
            .create_identity(&OWNER, &identity(id), spec)
            .await
            .expect("the identity is new")
    }

    pub(crate) async fn record(&self, id: &str) -> IdentityRecord {
        self.hub.identity(&identity(id)).await.expect("it exists")
    }

    pub(crate) async fn primary_key(&self, id: &str) -> SymmetricKey {
        keys(&self.record(id).await).0
    }

    /// A token of the identity's primary key, good for an hour.
    pub(crate) async fn token(&self, id: &str) -> String {
        self.sign(&resource(id), &self.primary_key(id).await, None)
    }

    pub(crate) fn sign(&self, resource: &str, key: &SymmetricKey, policy: Option<&str>) -> String {
        sign_sas(resource, key, self.now().plus(Duration::from_secs(3_600)), policy)
    }

    pub(crate) fn policy_token(&self, resource: &str, policy: &str) -> String {
        let key = self.hub.policy(policy).expect("the policy exists").primary_key;
        self.sign(resource, &key, Some(policy))
    }

    /// Connects with a token of the identity's own, as the SDKs do (session kept).
    pub(crate) async fn connect(&self, id: &str) -> Connected {
        let token = self.token(id).await;
        self.connect_with(id, Credential::Sas(&token))
            .await
            .expect("the token is good")
    }

    pub(crate) async fn connect_with(
        &self,
        id: &str,
        credential: Credential<'_>,
    ) -> Result<Connected, Error> {
        self.connect_chain(id, credential, None).await
    }

    pub(crate) async fn connect_chain(
        &self,
        id: &str,
        credential: Credential<'_>,
        auth_chain: Option<&str>,
    ) -> Result<Connected, Error> {
        self.hub
            .connect(ConnectRequest {
                access: AccessRequest {
                    auth_chain,
                    ..access(id, credential)
                },
                persistence: Persistence::Stored,
                model_id: None,
                client_type: None,
            })
            .await
    }

    /// Connects and subscribes.
    pub(crate) async fn online(&self, id: &str, channels: &[Channel]) -> Arc<SessionHandle> {
        let session = self.connect(id).await.session;
        self.subscribe(&session, channels).await;
        session
    }

    pub(crate) async fn subscribe(&self, session: &Arc<SessionHandle>, channels: &[Channel]) {
        let mut subscriptions = Subscriptions::NONE;
        for channel in channels {
            subscriptions.insert(*channel, true);
        }
        self.hub
            .subscribe(session, subscriptions)
            .await
            .expect("the session is live");
    }
}

pub(crate) fn identity(id: &str) -> Identity {
    Identity::parse(id).expect("a valid id")
}

pub(crate) fn access<'a>(id: &'a str, credential: Credential<'a>) -> AccessRequest<'a> {
    let (device_id, module_id) = match id.split_once('/') {
        None => (id, None),
        Some((device_id, module_id)) => (device_id, Some(module_id)),
    };
    AccessRequest {
        device_id,
        module_id,
        credential,
        auth_chain: None,
        protocol: Protocol::Mqtt,
    }
}

pub(crate) fn resource(id: &str) -> String {
    match id.split_once('/') {
        None => format!("{HOST}/devices/{id}"),
        Some((device_id, module_id)) => format!("{HOST}/devices/{device_id}/modules/{module_id}"),
    }
}

pub(crate) fn keys(record: &IdentityRecord) -> (SymmetricKey, SymmetricKey) {
    match &record.authentication {
        Authentication::Sas {
            primary_key,
            secondary_key,
        } => (primary_key.clone(), secondary_key.clone()),
        other => panic!("no keys but {other:?}"),
    }
}

/// The code of a refused connection.
pub(crate) fn refused(result: Result<Connected, Error>) -> ErrorCode {
    result.expect_err("must be refused").code
}

/// What waits in the mailbox now.
pub(crate) fn next(session: &SessionHandle) -> Option<Downlink> {
    match session.poll_next(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(item)) => Some(item),
        Poll::Ready(Err(_)) | Poll::Pending => None,
    }
}

/// The desired-property changes that wait in the mailbox.
pub(crate) fn desired(session: &SessionHandle) -> Vec<(u64, serde_json::Value)> {
    let mut changes = Vec::new();
    while let Some(item) = next(session) {
        if let Downlink::Desired { version, patch } = item {
            changes.push((version, serde_json::from_slice(&patch).expect("JSON")));
        }
    }
    changes
}

pub(crate) fn closed(session: &SessionHandle) -> Option<CloseReason> {
    session.close_reason()
}

pub(crate) fn json(value: serde_json::Value) -> serde_json::Map<String, serde_json::Value> {
    match value {
        serde_json::Value::Object(object) => object,
        other => panic!("not an object: {other}"),
    }
}

pub(crate) fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}
