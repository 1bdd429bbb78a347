//! The engine with in-memory drivers.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_model::credential::{SymmetricKey, sign_sas};
use holdfast_model::provisioning::{
    Attestation, InitialTwin, LinkedHub, OWN_HUB, Registration, ReprovisionPolicy,
};
use holdfast_model::{Error, ErrorCode, Timestamp};
use holdfast_observe::Registry;
use holdfast_ports::BoxFuture;
use holdfast_ports::clock::{Clock as _, ManualClock};
use holdfast_ports::enrollment::{
    AllocationWebhook, EnrollmentStore as _, Expected, HubConnector, HubRegistry, ProvisionedDevice,
};
use holdfast_ports::gateway::{Credential, Protocol};
use holdfast_ports::memory::MemoryStore;
use holdfast_ports::provisioning::{ProvisioningGateway as _, Registrant, RegistrationAccess};
use holdfast_provisioning::events::Metrics;
use holdfast_provisioning::{
    AttestationSpec, Drivers, EnrollmentSpec, IndividualSpec, LinkedHubSpec, Provisioning, ProvisioningConfig,
};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

pub(crate) const SCOPE: &str = "0neTEST";
pub(crate) const HOST: &str = "dps.test";
/// About now, so that certificates made by the tests are valid.
pub(crate) const START: i64 = 1_780_000_000;

/// A hub that is a map.
pub(crate) struct FakeHub {
    pub(crate) devices: Mutex<BTreeMap<String, ProvisionedDevice>>,
    pub(crate) created: Mutex<u32>,
    pub(crate) failure: Mutex<Option<Error>>,
    /// While closed, calls wait.
    pub(crate) gate: tokio::sync::Semaphore,
}

impl FakeHub {
    async fn enter(&self) -> Result<(), Error> {
        drop(self.gate.acquire().await.expect("never closed"));
        match &*self.failure.lock() {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    pub(crate) fn twin_of(&self, device: &str) -> Value {
        let devices = self.devices.lock();
        let twin = &devices.get(device).expect("the device is there").twin;
        json!({"tags": twin.tags, "desired": twin.desired})
    }

    pub(crate) fn set_desired(&self, device: &str, desired: Value) {
        let mut devices = self.devices.lock();
        devices.get_mut(device).expect("there").twin.desired = object(desired);
    }
}

impl HubRegistry for FakeHub {
    fn probe(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.enter())
    }

    fn put_device<'a>(&'a self, device: &'a ProvisionedDevice) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            self.enter().await?;
            let mut devices = self.devices.lock();
            let mut device = device.clone();
            match devices.get(&device.device_id) {
                Some(present) if !device.replace_twin => device.twin = present.twin.clone(),
                Some(_) => {}
                None => *self.created.lock() += 1,
            }
            devices.insert(device.device_id.clone(), device);
            Ok(())
        })
    }

    fn twin<'a>(&'a self, device_id: &'a str) -> BoxFuture<'a, Result<Option<InitialTwin>, Error>> {
        Box::pin(async move {
            self.enter().await?;
            Ok(self
                .devices
                .lock()
                .get(device_id)
                .map(|device| device.twin.clone()))
        })
    }

    fn delete_device<'a>(&'a self, device_id: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            self.enter().await?;
            self.devices.lock().remove(device_id);
            Ok(())
        })
    }
}

#[derive(Default)]
pub(crate) struct Hubs(Mutex<HashMap<String, Arc<FakeHub>>>);

impl Hubs {
    pub(crate) fn of(&self, host: &str) -> Arc<FakeHub> {
        let mut hubs = self.0.lock();
        let new = || {
            Arc::new(FakeHub {
                devices: Mutex::default(),
                created: Mutex::default(),
                failure: Mutex::default(),
                gate: tokio::sync::Semaphore::new(1_000),
            })
        };
        Arc::clone(hubs.entry(host.to_owned()).or_insert_with(new))
    }
}

impl HubConnector for Hubs {
    fn connect(&self, hub: &LinkedHub) -> Result<Arc<dyn HubRegistry>, Error> {
        Ok(self.of(&hub.host))
    }
}

/// A webhook with an answer; `None` hangs.
#[derive(Default)]
pub(crate) struct Webhook {
    pub(crate) answer: Mutex<Option<(u16, String)>>,
    pub(crate) asked: Mutex<Vec<Value>>,
}

impl AllocationWebhook for Webhook {
    fn call<'a>(
        &'a self,
        _url: &'a str,
        body: Bytes,
        _timeout: Duration,
    ) -> BoxFuture<'a, Result<(u16, Bytes), String>> {
        Box::pin(async move {
            let asked = serde_json::from_slice(&body).expect("JSON");
            self.asked.lock().push(asked);
            let answer = self.answer.lock().clone();
            match answer {
                Some((status, text)) => Ok((status, Bytes::from(text))),
                None => std::future::pending().await,
            }
        })
    }
}

pub(crate) struct Rig {
    pub(crate) engine: Arc<Provisioning>,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) hubs: Arc<Hubs>,
    pub(crate) webhook: Arc<Webhook>,
    pub(crate) clock: Arc<ManualClock>,
}

impl Rig {
    pub(crate) async fn start() -> Rig {
        let store = Arc::new(MemoryStore::new());
        let hubs = Arc::new(Hubs::default());
        let webhook = Arc::new(Webhook::default());
        let clock = Arc::new(ManualClock::at(Timestamp::from_seconds(START)));
        let engine = engine(&store, &hubs, &webhook, &clock).await;
        Rig {
            engine,
            store,
            hubs,
            webhook,
            clock,
        }
    }

    /// As after the process was killed: nothing is left but what was stored.
    pub(crate) async fn restart(&mut self) {
        self.engine = engine(&self.store, &self.hubs, &self.webhook, &self.clock).await;
    }

    pub(crate) fn own(&self) -> Arc<FakeHub> {
        self.hubs.of(OWN_HUB)
    }

    pub(crate) async fn link(&self, host: &str) {
        let spec = LinkedHubSpec {
            policy: Some(("p".into(), SymmetricKey::generate())),
            ..LinkedHubSpec::default()
        };
        self.engine.put_linked_hub(host, spec).await.expect("a hub");
    }

    /// Enrolls one device by key; returns the key.
    pub(crate) async fn enroll(&self, id: &str, change: impl FnOnce(&mut IndividualSpec)) -> SymmetricKey {
        let mut spec = IndividualSpec {
            device_id: None,
            device_information: None,
            enrollment: by_key(),
        };
        change(&mut spec);
        let made = self.engine.put_enrollment(id, spec, Expected::Whatever).await;
        key_of(&made.expect("an enrollment").enrollment.attestation)
    }

    /// Makes a group with keys; returns its key.
    pub(crate) async fn group(&self, id: &str, change: impl FnOnce(&mut EnrollmentSpec)) -> SymmetricKey {
        let mut spec = by_key();
        change(&mut spec);
        let made = self.engine.put_group(id, spec, Expected::Whatever).await;
        key_of(&made.expect("a group").enrollment.attestation)
    }

    pub(crate) fn token(&self, id: &str, key: &SymmetricKey) -> String {
        let expiry = self.clock.now().plus(Duration::from_secs(3_600));
        sign_sas(
            &format!("{SCOPE}/registrations/{id}"),
            key,
            expiry,
            Some("registration"),
        )
    }

    pub(crate) async fn prove(&self, id: &str, credential: Credential<'_>) -> Result<Registrant, Error> {
        let access = RegistrationAccess {
            id_scope: SCOPE,
            registration_id: id,
            credential,
            protocol: Protocol::Https,
        };
        self.engine.authenticate(access).await
    }

    pub(crate) async fn prove_key(&self, id: &str, key: &SymmetricKey) -> Result<Registrant, Error> {
        self.prove(id, Credential::Sas(&self.token(id, key))).await
    }

    pub(crate) async fn register(&self, id: &str, key: &SymmetricKey) -> Result<Registration, Error> {
        let registrant = self.prove_key(id, key).await?;
        self.engine.register(&registrant, None).await
    }
}

async fn engine(
    store: &Arc<MemoryStore>,
    hubs: &Arc<Hubs>,
    webhook: &Arc<Webhook>,
    clock: &Arc<ManualClock>,
) -> Arc<Provisioning> {
    let config = ProvisioningConfig {
        id_scope: SCOPE.into(),
        host_names: vec![HOST.into(), "localhost".into()],
        webhook_timeout: Duration::from_millis(50),
        ..ProvisioningConfig::default()
    };
    let drivers = Drivers {
        store: store.clone(),
        settings: store.clone(),
        connector: hubs.clone(),
        webhook: webhook.clone(),
        clock: clock.clone(),
    };
    let metrics = Metrics::register(&mut Registry::new());
    Provisioning::new(config, drivers, metrics)
        .await
        .expect("the memory store works")
}

pub(crate) fn by_key() -> EnrollmentSpec {
    EnrollmentSpec {
        attestation: AttestationSpec::SymmetricKey {
            primary_key: None,
            secondary_key: None,
        },
        enabled: true,
        reprovision: None,
        allocation: None,
        hub_host_name: None,
        hubs: Vec::new(),
        custom: None,
        initial_twin: None,
        iot_edge: false,
    }
}

pub(crate) fn key_of(attestation: &Attestation) -> SymmetricKey {
    match attestation {
        Attestation::SymmetricKey { primary_key, .. } => primary_key.clone(),
        other => panic!("no keys: {other:?}"),
    }
}

pub(crate) const NEVER: ReprovisionPolicy = ReprovisionPolicy {
    update_hub_assignment: false,
    migrate_device_data: false,
};
pub(crate) const RESET: ReprovisionPolicy = ReprovisionPolicy {
    update_hub_assignment: true,
    migrate_device_data: false,
};

pub(crate) fn twin(desired: Value) -> Option<InitialTwin> {
    Some(InitialTwin {
        tags: Map::new(),
        desired: object(desired),
    })
}

pub(crate) fn object(value: Value) -> Map<String, Value> {
    value.as_object().cloned().expect("an object")
}

pub(crate) fn unavailable() -> Error {
    Error::new(ErrorCode::ServiceUnavailable, "switched off by the test")
}

impl Rig {
    pub(crate) async fn stored(&self, id: &str) -> Option<Registration> {
        self.store.registration(id).await.expect("readable")
    }
}
