//! A provisioning service whose answers follow from the registration id.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_model::provisioning::{Registration, RegistrationId, RegistrationStatus, Substatus};
use holdfast_model::{Error, ErrorCode, Timestamp};
use holdfast_ports::BoxFuture;
use holdfast_ports::gateway::Credential;
use holdfast_ports::provisioning::{
    EntryId, Proof, ProvisioningGateway, Registrant, RegistrationAccess, TpmAccess,
};
use parking_lot::Mutex;
use serde_json::Value;

pub(crate) const SCOPE: &str = "0neTEST";

/// Lets in who says `good`, or who has a certificate. `slow` is assigning until it was asked for twice.
#[derive(Default)]
pub(crate) struct FakeProvisioning {
    /// Payloads of registrations.
    pub(crate) payloads: Mutex<Vec<Option<Value>>>,
    /// Ids of requests that the head refused by itself.
    pub(crate) noted: Mutex<Vec<String>>,
    /// How often an operation was asked for.
    pub(crate) asked: Mutex<u32>,
}

impl FakeProvisioning {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }
}

fn registration(registrant: &Registrant, status: RegistrationStatus) -> Registration {
    let assigned = status == RegistrationStatus::Assigned;
    Registration {
        registration_id: registrant.registration_id.clone(),
        group_id: None,
        operation_id: "4.0123456789abcdef.op".to_owned(),
        status,
        substatus: assigned.then_some(Substatus::InitialAssignment),
        hub: assigned.then(|| "hub.test".to_owned()),
        device_id: assigned.then(|| registrant.registration_id.as_str().to_owned()),
        failure: (status == RegistrationStatus::Failed).then(|| (400_207, "no luck".to_owned())),
        payload: None,
        certificate: None,
        authentication_key: None,
        plan: None,
        created_at: Timestamp::from_seconds(1),
        updated_at: Timestamp::from_seconds(2),
        version: 3,
    }
}

fn error(code: ErrorCode) -> Error {
    Error::new(code, "said the test")
}

impl ProvisioningGateway for FakeProvisioning {
    fn authenticate<'a>(
        &'a self,
        access: RegistrationAccess<'a>,
    ) -> BoxFuture<'a, Result<Registrant, Error>> {
        Box::pin(async move {
            if access.id_scope != SCOPE {
                return Err(error(ErrorCode::EnrollmentNotFound));
            }
            let proof = match access.credential {
                Credential::Sas("good") => Proof::Key {
                    id: access.registration_id.to_owned(),
                },
                Credential::Sas("later") => return Err(error(ErrorCode::ServiceUnavailable)),
                Credential::Certificates([leaf, ..]) => Proof::Certificate(leaf.clone()),
                _ => return Err(error(ErrorCode::IotHubUnauthorizedAccess)),
            };
            Ok(Registrant {
                registration_id: RegistrationId::parse(access.registration_id)?,
                entry: EntryId::Individual,
                proof,
            })
        })
    }

    fn challenge<'a>(&'a self, _: TpmAccess<'a>) -> BoxFuture<'a, Result<Bytes, Error>> {
        Box::pin(async { Err(error(ErrorCode::EnrollmentNotFound)) })
    }

    fn register<'a>(
        &'a self,
        registrant: &'a Registrant,
        payload: Option<Value>,
    ) -> BoxFuture<'a, Result<Registration, Error>> {
        Box::pin(async move {
            self.payloads.lock().push(payload);
            let status = match registrant.registration_id.as_str() {
                "slow" => RegistrationStatus::Assigning,
                "failing" => RegistrationStatus::Failed,
                "disabled" => RegistrationStatus::Disabled,
                "throttled" => return Err(error(ErrorCode::ThrottlingException)),
                "deleted" => return Err(error(ErrorCode::IotHubUnauthorizedAccess)),
                _ => RegistrationStatus::Assigned,
            };
            Ok(registration(registrant, status))
        })
    }

    fn operation<'a>(
        &'a self,
        registrant: &'a Registrant,
        operation_id: &'a str,
    ) -> BoxFuture<'a, Result<Registration, Error>> {
        Box::pin(async move {
            if operation_id != "4.0123456789abcdef.op" {
                return Err(error(ErrorCode::AsyncOperationNotFound));
            }
            let mut asked = self.asked.lock();
            *asked += 1;
            let slow = registrant.registration_id.as_str() == "slow" && *asked < 2;
            let status = match (slow, registrant.registration_id.as_str()) {
                (true, _) => RegistrationStatus::Assigning,
                (false, "failing") => RegistrationStatus::Failed,
                (false, _) => RegistrationStatus::Assigned,
            };
            Ok(registration(registrant, status))
        })
    }

    fn last_registration<'a>(
        &'a self,
        registrant: &'a Registrant,
    ) -> BoxFuture<'a, Result<Registration, Error>> {
        Box::pin(async move {
            match registrant.registration_id.as_str() {
                "new" => Err(error(ErrorCode::DeviceRegistrationNotFound)),
                _ => Ok(registration(registrant, RegistrationStatus::Assigned)),
            }
        })
    }

    fn note_refusal(&self, registration_id: &str, _: &Error) {
        self.noted.lock().push(registration_id.to_owned());
    }

    fn id_scope(&self) -> &str {
        SCOPE
    }
}
