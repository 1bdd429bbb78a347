//! The device side of the provisioning service as protocol heads see it.

use bytes::Bytes;
use holdfast_model::Error;
use holdfast_model::provisioning::{Registration, RegistrationId};
use serde_json::Value;

use crate::BoxFuture;
use crate::gateway::{Credential, Protocol};

/// Who asks to be let in. Texts are as the client sent them.
#[derive(Clone, Copy)]
pub struct RegistrationAccess<'a> {
    /// Id scope.
    pub id_scope: &'a str,
    /// Registration id.
    pub registration_id: &'a str,
    /// Its proof: a token or certificates; grants are for hub devices and prove nothing here.
    pub credential: Credential<'a>,
    /// Protocol.
    pub protocol: Protocol,
}

/// Public areas of a TPM's keys, each a `TPM2B_PUBLIC` (TPM 2.0 Part 2, `TPM2B_PUBLIC`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TpmKeys {
    /// Endorsement key: the identity of the TPM.
    pub endorsement_key: Bytes,
    /// Storage root key: under it the device keeps what it is sent.
    pub storage_root_key: Bytes,
}

/// Who asks for a challenge to its TPM. Texts are as the client sent them.
#[derive(Clone, Copy, Debug)]
pub struct TpmAccess<'a> {
    /// Id scope.
    pub id_scope: &'a str,
    /// Registration id.
    pub registration_id: &'a str,
    /// Its TPM's keys, unchecked.
    pub keys: &'a TpmKeys,
}

/// The entry through which a device comes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EntryId {
    /// Its own enrollment.
    Individual,
    /// A group.
    Group(RegistrationId),
}

/// By what a device proved itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Proof {
    /// A key of the enrollment, or derived from the group's; `id` is the form of the id it was derived from.
    Key {
        /// Case as typed, or lower case.
        id: String,
    },
    /// Its certificate, DER.
    Certificate(Bytes),
    /// A token made with the key of a challenge, which only its TPM could read.
    Tpm {
        /// The TPM's keys, as given for the challenge.
        keys: TpmKeys,
        /// The challenge.
        challenge: u64,
    },
}

/// A device that has proven its registration id. Kept by the head for as long as its connection lives, without a secret.
#[derive(Clone, Debug)]
pub struct Registrant {
    /// Who.
    pub registration_id: RegistrationId,
    /// Through which entry.
    pub entry: EntryId,
    /// By what.
    pub proof: Proof,
}

/// What protocol heads ask of the provisioning service on behalf of devices.
///
/// In the registrations that come back, [`Registration::hub`] is a host name to connect to.
pub trait ProvisioningGateway: Send + Sync + 'static {
    /// Checks a credential. A disabled enrollment is let in, and told so by [`ProvisioningGateway::register`].
    ///
    /// # Errors
    /// `EnrollmentNotFound` for an unknown scope or when no enrollment could be meant; `InvalidRegistrationId`;
    /// `IotHubUnauthorized…` for every proof that does not hold; `ServiceUnavailable`.
    fn authenticate<'a>(&'a self, access: RegistrationAccess<'a>)
    -> BoxFuture<'a, Result<Registrant, Error>>;

    /// A challenge for a device with a TPM: an activation blob with the key for a token, readable by the TPM with this
    /// endorsement key alone. The token is a credential for [`ProvisioningGateway::authenticate`] until the challenge
    /// expires, and good for one registration.
    ///
    /// # Errors
    /// `EnrollmentNotFound` for an unknown scope or enrollment; `InvalidRegistrationId`; `IotHubUnauthorizedAccess` when
    /// the enrollment has another endorsement key, or none; `ArgumentInvalid` for a storage root key that is none;
    /// `ThrottlingException` when too many challenges are open; `ServiceUnavailable`.
    fn challenge<'a>(&'a self, access: TpmAccess<'a>) -> BoxFuture<'a, Result<Bytes, Error>>;

    /// Registers a device, or joins the registration that is under way. What is `Assigned` or `Failed` is stored; what
    /// takes longer than a moment is `Assigning`, to be asked for by its operation id.
    ///
    /// # Errors
    /// `IotHubUnauthorizedAccess` when the entry is gone or the TPM's challenge was used for a registration already;
    /// `ServiceUnavailable` when it may be tried again; `ThrottlingException`.
    fn register<'a>(
        &'a self,
        registrant: &'a Registrant,
        payload: Option<Value>,
    ) -> BoxFuture<'a, Result<Registration, Error>>;

    /// Where an operation stands. One that was cut off goes on by being asked for.
    ///
    /// # Errors
    /// `AsyncOperationNotFound`, and as [`ProvisioningGateway::register`].
    fn operation<'a>(
        &'a self,
        registrant: &'a Registrant,
        operation_id: &'a str,
    ) -> BoxFuture<'a, Result<Registration, Error>>;

    /// The last registration.
    ///
    /// # Errors
    /// `DeviceRegistrationNotFound`.
    fn last_registration<'a>(
        &'a self,
        registrant: &'a Registrant,
    ) -> BoxFuture<'a, Result<Registration, Error>>;

    /// A head has refused a request by itself: too large, unreadable, for another device, without any proof. For the log
    /// and the metrics of the service, which bounds both; texts are as the client sent them.
    fn note_refusal(&self, _registration_id: &str, _error: &Error) {}

    /// The id scope of this service.
    fn id_scope(&self) -> &str;
}
