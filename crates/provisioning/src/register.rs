//! Registrations: starting, joining and following them; carrying them out.
//!
//! A worker first stores its plan, then does it, then stores the result. Doing it twice has the same effect as once, so
//! a plan that was cut off is taken up by whoever asks next: the device that polls, or that registers again.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_model::credential::Thumbprint;
use holdfast_model::provisioning::{
    Attestation, Enrollment, IndividualEnrollment, InitialTwin, Plan, Registration, RegistrationId,
    RegistrationStatus, Substatus, TwinPlan,
};
use holdfast_model::{Error, ErrorCode};
use holdfast_observe::Event as _;
use holdfast_ports::enrollment::{Expected, HubCredential, HubRegistry, ProvisionedDevice};
use holdfast_ports::provisioning::{
    EntryId, Proof, ProvisioningGateway, Registrant, RegistrationAccess, TpmAccess,
};
use holdfast_ports::{BoxFuture, StoreError};
use serde_json::Value;
use tokio::sync::watch;

use crate::Provisioning;
use crate::allocation::no_hub;
use crate::certificate;
use crate::events::{Assigned, NotAdmitted, RegistrationDelayed, RegistrationFailed, RequestRefused, shown};
use crate::failure::{is_transient, unauthorized};

/// What a worker reports.
type Outcome = Option<Result<Registration, Error>>;

/// A registration under way.
#[derive(Clone)]
pub(crate) struct Pending {
    operation_id: String,
    outcome: watch::Receiver<Outcome>,
}

/// The entry through which a device comes, as it is now.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) enrollment: Enrollment,
    pub(crate) group: Option<RegistrationId>,
    device_id: Option<String>,
    /// Why the device may not register, although it has proven itself.
    refuses: Option<&'static str>,
}

impl ProvisioningGateway for Provisioning {
    fn authenticate<'a>(
        &'a self,
        access: RegistrationAccess<'a>,
    ) -> BoxFuture<'a, Result<Registrant, Error>> {
        Box::pin(self.check_access(access))
    }

    fn challenge<'a>(&'a self, access: TpmAccess<'a>) -> BoxFuture<'a, Result<Bytes, Error>> {
        Box::pin(async move {
            let checked = self.check_challenge(access).await;
            checked.map_err(|denied| self.refused(access.registration_id, denied))
        })
    }

    fn register<'a>(
        &'a self,
        registrant: &'a Registrant,
        payload: Option<Value>,
    ) -> BoxFuture<'a, Result<Registration, Error>> {
        Box::pin(async move {
            let entry = self.entry(registrant).await?;
            if let Some(why) = entry.refuses {
                return Ok(self.disabled(registrant, &entry, why));
            }
            self.spend_challenge(registrant)?;
            let outcome = self.begin(registrant, entry, payload).await;
            if outcome.is_err() {
                self.give_back_challenge(registrant);
            }
            outcome
        })
    }

    fn operation<'a>(
        &'a self,
        registrant: &'a Registrant,
        operation_id: &'a str,
    ) -> BoxFuture<'a, Result<Registration, Error>> {
        Box::pin(async move {
            let key = registrant.registration_id.key();
            let under_way = self.pending.lock().get(&key).cloned();
            if let Some(pending) = under_way.filter(|pending| pending.operation_id == operation_id) {
                let registration = self.follow(registrant, pending).await?;
                return self.seal(registrant, registration).await;
            }
            let stored = self
                .stored(&key)
                .await?
                .filter(|stored| stored.operation_id == operation_id)
                .ok_or_else(|| Error::new(ErrorCode::AsyncOperationNotFound, "there is no such operation"))?;
            if stored.status != RegistrationStatus::Assigning {
                return self.seal(registrant, self.told(stored)).await;
            }
            let entry = self.entry(registrant).await?;
            if let Some(why) = entry.refuses {
                return Ok(self.disabled(registrant, &entry, why));
            }
            let pending = self.start(registrant, entry, operation_id.to_owned(), None)?;
            let registration = self.follow(registrant, pending).await?;
            self.seal(registrant, registration).await
        })
    }

    fn last_registration<'a>(
        &'a self,
        registrant: &'a Registrant,
    ) -> BoxFuture<'a, Result<Registration, Error>> {
        Box::pin(async move {
            let registration = self.registration(registrant.registration_id.as_str()).await?;
            self.seal(registrant, registration).await
        })
    }

    fn note_refusal(&self, registration_id: &str, error: &Error) {
        RequestRefused {
            registration_id: shown(registration_id),
            reason: &error.message,
            second: self.drivers.clock.monotonic_millis() / 1_000,
        }
        .emit(&self.metrics);
    }

    fn id_scope(&self) -> &str {
        &self.config.id_scope
    }
}

impl Provisioning {
    async fn begin(
        &self,
        registrant: &Registrant,
        entry: Entry,
        payload: Option<Value>,
    ) -> Result<Registration, Error> {
        let operation_id = self.next_operation_id();
        let pending = self.start(registrant, entry, operation_id, payload)?;
        let registration = self.follow(registrant, pending).await?;
        self.seal(registrant, registration).await
    }

    /// Starts a worker, or joins the one that is at work for this device.
    fn start(
        &self,
        registrant: &Registrant,
        entry: Entry,
        operation_id: String,
        payload: Option<Value>,
    ) -> Result<Pending, Error> {
        let key = registrant.registration_id.key();
        let this = self.this.upgrade().ok_or_else(stopping)?;
        let (report, outcome) = watch::channel(None);
        let pending = Pending {
            operation_id: operation_id.clone(),
            outcome,
        };
        {
            let mut under_way = self.pending.lock();
            if let Some(present) = under_way.get(&key) {
                return Ok(present.clone());
            }
            if under_way.len() >= self.config.pending_max {
                return Err(Error::new(
                    ErrorCode::ThrottlingException,
                    "too many registrations are under way; try again later",
                ));
            }
            under_way.insert(key.clone(), pending.clone());
        }
        let registrant = registrant.clone();
        tokio::spawn(async move {
            // Whatever happens, the device may register again.
            let done = Done {
                engine: Arc::clone(&this),
                key,
            };
            let outcome = this.work(&registrant, &entry, operation_id, payload).await;
            let outcome = outcome.map_err(|error| this.delayed(&registrant, error));
            // Before the report: who asks after it finds the stored result.
            drop(done);
            let _ = report.send(Some(outcome));
        });
        Ok(pending)
    }

    /// Logs what holds a registration up. The device learns only that it may try again: what hubs say is the operator's.
    fn delayed(&self, registrant: &Registrant, error: Error) -> Error {
        RegistrationDelayed {
            registration_id: registrant.registration_id.as_str(),
            reason: &error.message,
            second: self.drivers.clock.monotonic_millis() / 1_000,
        }
        .emit(&self.metrics);
        match is_transient(&error) {
            true => Error::new(
                error.code,
                "the registration cannot be completed now; try again later",
            ),
            false => error,
        }
    }

    /// Waits a moment for the end of a registration.
    async fn follow(&self, registrant: &Registrant, mut pending: Pending) -> Result<Registration, Error> {
        let ended = pending.outcome.wait_for(Option::is_some);
        match tokio::time::timeout(self.config.answer_wait, ended).await {
            Ok(Ok(outcome)) => match outcome.as_ref() {
                Some(Ok(registration)) => return Ok(self.told(registration.clone())),
                Some(Err(error)) => return Err(error.clone()),
                None => {}
            },
            // The worker ended without a report: it panicked.
            Ok(Err(_)) => {
                return Err(Error::new(
                    ErrorCode::ServerError,
                    "the provisioning service failed; its log has the details",
                ));
            }
            Err(_) => {}
        }
        let now = self.now();
        let stored = self.stored(&registrant.registration_id.key()).await?;
        let registration = stored
            .filter(|stored| stored.operation_id == pending.operation_id)
            .unwrap_or_else(|| blank(registrant, None, now));
        Ok(self.told(Registration {
            operation_id: pending.operation_id,
            status: RegistrationStatus::Assigning,
            ..registration
        }))
    }

    async fn work(
        &self,
        registrant: &Registrant,
        entry: &Entry,
        operation_id: String,
        payload: Option<Value>,
    ) -> Result<Registration, Error> {
        let credential = hub_credential(registrant, entry)?;
        let stored = self.stored(&registrant.registration_id.key()).await?;
        let expected = match &stored {
            None => Expected::Absent,
            Some(stored) => Expected::Version(stored.version),
        };
        let unfinished = stored
            .as_ref()
            .filter(|stored| stored.status == RegistrationStatus::Assigning)
            .and_then(|stored| stored.plan.clone());
        let plan = match unfinished {
            Some(plan) => Ok(plan),
            None => {
                self.decide(registrant, entry, stored.as_ref(), payload.as_ref())
                    .await
            }
        };
        let now = self.now();
        let mut registration = Registration {
            operation_id,
            group_id: entry.group.clone(),
            status: RegistrationStatus::Assigning,
            substatus: None,
            failure: None,
            payload: None,
            certificate: match &registrant.proof {
                Proof::Certificate(der) => certificate::describe(der),
                Proof::Key { .. } | Proof::Tpm { .. } => None,
            },
            updated_at: now,
            version: self.next_version(stored.as_ref().map(|stored| stored.version)),
            ..stored.unwrap_or_else(|| blank(registrant, entry.group.clone(), now))
        };
        let plan = match plan {
            Ok(plan) => plan,
            Err(error) if is_transient(&error) => return Err(error),
            Err(error) => return self.fail(registration, expected, &error).await,
        };
        registration.plan = Some(plan.clone());
        self.save(&registration, expected).await?;
        let expected = Expected::Version(registration.version);
        let device_id = registration
            .device_id
            .clone()
            .or_else(|| entry.device_id.clone())
            .unwrap_or_else(|| registrant.registration_id.as_str().to_owned());
        match self.carry_out(&plan, &device_id, credential, entry).await {
            Ok(substatus) => {
                registration.status = RegistrationStatus::Assigned;
                registration.substatus = Some(substatus);
                registration.hub = Some(plan.target);
                registration.device_id = Some(device_id);
                registration.payload = plan.payload;
                registration.plan = None;
                registration.updated_at = self.now();
                registration.version = self.next_version(Some(registration.version));
                self.save(&registration, expected).await?;
                Assigned {
                    registration_id: registration.registration_id.as_str(),
                    hub: registration.hub.as_deref().unwrap_or_default(),
                }
                .emit(&self.metrics);
                Ok(registration)
            }
            Err(error) if is_transient(&error) => Err(error),
            Err(error) => self.fail(registration, expected, &error).await,
        }
    }

    /// What is to be done (languages.md 6.3).
    async fn decide(
        &self,
        registrant: &Registrant,
        entry: &Entry,
        previous: Option<&Registration>,
        payload: Option<&Value>,
    ) -> Result<Plan, Error> {
        let policy = entry.enrollment.reprovision();
        let initial_twin = entry.enrollment.initial_twin.clone();
        let hub = previous.and_then(|previous| previous.hub.clone());
        if let Some(hub) = &hub
            && !policy.update_hub_assignment
        {
            return Ok(Plan {
                target: hub.clone(),
                source: None,
                twin: TwinPlan::Keep,
                initial_twin,
                payload: None,
            });
        }
        let choice = self.choose(entry, registrant, previous, payload).await?;
        let (source, twin) = match hub {
            None => (None, TwinPlan::Keep),
            // A webhook's twin wins over what the device had.
            Some(hub) => {
                let moves = hub != choice.host;
                let twin = match (policy.migrate_device_data && choice.twin.is_none(), moves) {
                    (true, true) => TwinPlan::Migrate,
                    (true, false) => TwinPlan::Keep,
                    (false, _) => TwinPlan::Reset,
                };
                (moves.then_some(hub), twin)
            }
        };
        Ok(Plan {
            target: choice.host,
            source,
            twin,
            initial_twin: choice.twin.or(initial_twin),
            payload: choice.payload,
        })
    }

    /// Does what the plan says. The old hub loses the device last, so that no crash loses the twin.
    async fn carry_out(
        &self,
        plan: &Plan,
        device_id: &str,
        credential: HubCredential,
        entry: &Entry,
    ) -> Result<Substatus, Error> {
        let target = self
            .connect(&plan.target)
            .await?
            .ok_or_else(|| no_hub("the device's hub is not linked any more"))?;
        let source = match &plan.source {
            Some(source) => self.connect(source).await?,
            None => None,
        };
        let initial = plan.initial_twin.clone().unwrap_or_default();
        let (twin, replace_twin, substatus) = match (plan.twin, &source) {
            (TwinPlan::Keep, _) => (initial, false, Substatus::InitialAssignment),
            (TwinPlan::Reset, _) => (initial, true, Substatus::DeviceDataReset),
            (TwinPlan::Migrate, Some(source)) => match source.twin(device_id).await? {
                Some(twin) => (twin, true, Substatus::DeviceDataMigrated),
                // Gone there: deleted by hand, or by us before a crash, when the twin is on its new hub already.
                None => (initial, false, Substatus::DeviceDataMigrated),
            },
            // The hub it leaves is not linked any more.
            (TwinPlan::Migrate, None) => (initial, false, Substatus::DeviceDataReset),
        };
        let device = ProvisionedDevice {
            device_id: device_id.to_owned(),
            credential,
            iot_edge: entry.enrollment.iot_edge,
            twin: without_metadata(twin),
            replace_twin,
        };
        target.put_device(&device).await?;
        if let Some(source) = source {
            HubRegistry::delete_device(&*source, device_id).await?;
        }
        Ok(substatus)
    }

    async fn fail(
        &self,
        mut registration: Registration,
        expected: Expected,
        error: &Error,
    ) -> Result<Registration, Error> {
        let number = number_of(error.code);
        registration.status = RegistrationStatus::Failed;
        registration.failure = Some((number, error.message.clone()));
        registration.plan = None;
        registration.updated_at = self.now();
        registration.version = self.next_version(Some(registration.version));
        self.save(&registration, expected).await?;
        RegistrationFailed {
            registration_id: registration.registration_id.as_str(),
            number,
            reason: &error.message,
            second: self.drivers.clock.monotonic_millis() / 1_000,
        }
        .emit(&self.metrics);
        Ok(registration)
    }

    async fn save(&self, registration: &Registration, expected: Expected) -> Result<(), Error> {
        let saved = self
            .drivers
            .store
            .put_registration(registration.clone(), expected);
        saved.await.map_err(|error| match error {
            // Another node is at it, or an operator deleted it; the device asks again.
            StoreError::Exists | StoreError::Missing | StoreError::Conflict => Error::new(
                ErrorCode::ServiceUnavailable,
                "the registration has changed meanwhile; try again",
            ),
            other => self.store_error("save registration", other),
        })
    }

    async fn stored(&self, key: &str) -> Result<Option<Registration>, Error> {
        let read = self.drivers.store.registration(key).await;
        read.map_err(|error| self.store_error("read registration", error))
    }

    /// The entry of a device that has proven itself, as it is now.
    async fn entry(&self, registrant: &Registrant) -> Result<Entry, Error> {
        match &registrant.entry {
            EntryId::Individual => {
                let found = self.find_enrollment(&registrant.registration_id.key()).await?;
                let IndividualEnrollment {
                    device_id,
                    enrollment,
                    ..
                } = found.ok_or_else(unauthorized)?;
                Ok(Entry {
                    refuses: (!enrollment.enabled).then_some("the enrollment is disabled"),
                    enrollment,
                    group: None,
                    device_id,
                })
            }
            EntryId::Group(group) => {
                let found = self.find_group(&group.key()).await?;
                let group = found.ok_or_else(unauthorized)?;
                let admitted = group.access.admits(&registrant.registration_id);
                Ok(Entry {
                    refuses: match (group.enrollment.enabled, admitted) {
                        (false, _) => Some("the enrollment group is disabled"),
                        (true, false) => Some("the enrollment group does not admit this device"),
                        (true, true) => None,
                    },
                    enrollment: group.enrollment,
                    group: Some(group.group_id),
                    device_id: None,
                })
            }
        }
    }

    fn disabled(&self, registrant: &Registrant, entry: &Entry, why: &'static str) -> Registration {
        NotAdmitted {
            registration_id: registrant.registration_id.as_str(),
            reason: why,
            second: self.drivers.clock.monotonic_millis() / 1_000,
        }
        .emit(&self.metrics);
        Registration {
            status: RegistrationStatus::Disabled,
            operation_id: self.next_operation_id(),
            failure: Some((number_of(ErrorCode::IotHubUnauthorizedAccess), why.to_owned())),
            ..blank(registrant, entry.group.clone(), self.now())
        }
    }

    /// A registration as it is told: with a host name to connect to.
    pub(crate) fn told(&self, mut registration: Registration) -> Registration {
        registration.hub = registration.hub.map(|hub| self.host_name(&hub).to_owned());
        registration
    }

    /// `4.{16 hex digits}.{GUID}`, as the original's: nothing in it needs to be encoded in a topic.
    fn next_operation_id(&self) -> String {
        let micros = self.now().as_micros();
        format!("4.{micros:016x}.{}", uuid::Uuid::new_v4())
    }
}

/// Takes the registration out of the list of those under way.
struct Done {
    engine: Arc<Provisioning>,
    key: String,
}

impl Drop for Done {
    fn drop(&mut self) {
        self.engine.pending.lock().remove(&self.key);
    }
}

fn blank(
    registrant: &Registrant,
    group_id: Option<RegistrationId>,
    now: holdfast_model::Timestamp,
) -> Registration {
    Registration {
        registration_id: registrant.registration_id.clone(),
        group_id,
        operation_id: String::new(),
        status: RegistrationStatus::Assigning,
        substatus: None,
        hub: None,
        device_id: None,
        failure: None,
        payload: None,
        certificate: None,
        plan: None,
        authentication_key: None,
        created_at: now,
        updated_at: now,
        version: 0,
    }
}

/// The device proves itself to its hub by what it proved itself with here.
fn hub_credential(registrant: &Registrant, entry: &Entry) -> Result<HubCredential, Error> {
    let thumbprint = |text: &str| Thumbprint::parse(text).ok_or_else(unauthorized);
    match (&registrant.proof, &entry.enrollment.attestation) {
        (
            Proof::Key { id },
            Attestation::SymmetricKey {
                primary_key,
                secondary_key,
            },
        ) => Ok(match &entry.group {
            None => HubCredential::Keys {
                primary: primary_key.clone(),
                secondary: secondary_key.clone(),
            },
            Some(_) => HubCredential::Keys {
                primary: primary_key.derive(id),
                secondary: secondary_key.derive(id),
            },
        }),
        (
            Proof::Tpm { .. },
            Attestation::Tpm {
                primary_key,
                secondary_key,
                ..
            },
        ) => Ok(HubCredential::Keys {
            primary: primary_key.clone(),
            secondary: secondary_key.clone(),
        }),
        (Proof::Certificate(_), Attestation::ClientCertificates { primary, secondary }) => {
            let mut known = [primary, secondary].into_iter().flatten();
            let first = known.next().ok_or_else(unauthorized)?;
            Ok(HubCredential::Thumbprints {
                primary: thumbprint(&first.info.sha256_thumbprint)?,
                secondary: match known.next() {
                    Some(second) => Some(thumbprint(&second.info.sha256_thumbprint)?),
                    None => None,
                },
            })
        }
        (
            Proof::Certificate(der),
            Attestation::SigningCertificates { .. } | Attestation::AuthorityReferences { .. },
        ) => {
            let info = certificate::describe(der).ok_or_else(unauthorized)?;
            Ok(HubCredential::Thumbprints {
                primary: thumbprint(&info.sha256_thumbprint)?,
                secondary: None,
            })
        }
        // The enrollment was changed to another kind since.
        _ => Err(unauthorized()),
    }
}

/// A twin that made a round trip through a tool carries members that are not properties.
fn without_metadata(mut twin: InitialTwin) -> InitialTwin {
    for section in [&mut twin.tags, &mut twin.desired] {
        section.retain(|name, _| !name.starts_with('$'));
    }
    twin
}

/// The contract's numbers of what a registration can fail with; `wire` has them all, but what is stored is a number.
fn number_of(code: ErrorCode) -> u32 {
    match code {
        ErrorCode::CustomAllocationIotHubNotSpecified => 400_208,
        ErrorCode::IotHubUnauthorizedAccess | ErrorCode::IotHubUnauthorized => 400_209,
        ErrorCode::ArgumentInvalid => 400_004,
        _ => 400_207,
    }
}

fn stopping() -> Error {
    Error::new(ErrorCode::ServiceUnavailable, "the provisioning service stops")
}
