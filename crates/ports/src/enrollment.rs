//! What the provisioning engine needs: its store, the hubs it assigns devices to, and the webhook that may choose one.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_model::Error;
use holdfast_model::credential::{SymmetricKey, Thumbprint};
use holdfast_model::provisioning::{
    EnrollmentGroup, IndividualEnrollment, InitialTwin, LinkedHub, ProvisioningPolicy, Registration,
};

use crate::{BoxFuture, StoreResult};

/// What must be there for a write to happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expected {
    /// Anything or nothing.
    Whatever,
    /// Nothing.
    Absent,
    /// Some version.
    Present,
    /// Just this version.
    Version(u64),
}

impl Expected {
    /// Compares with the version that is there.
    ///
    /// # Errors
    /// `Exists`, `Missing`, `Conflict`.
    pub fn check(self, present: Option<u64>) -> StoreResult<()> {
        use crate::StoreError;
        match (self, present) {
            (Expected::Whatever, _) | (Expected::Absent, None) | (Expected::Present, Some(_)) => Ok(()),
            (Expected::Absent, Some(_)) => Err(StoreError::Exists),
            (Expected::Present | Expected::Version(_), None) => Err(StoreError::Missing),
            (Expected::Version(wanted), Some(version)) if wanted == version => Ok(()),
            (Expected::Version(_), Some(_)) => Err(StoreError::Conflict),
        }
    }
}

/// Store of enrollments, registrations, linked hubs and policies of the provisioning service. Ids are looked up in lower
/// case ([`holdfast_model::provisioning::RegistrationId::key`]); what is stored keeps its case. Every list is in the
/// order of those keys.
pub trait EnrollmentStore: Send + Sync + 'static {
    /// An individual enrollment.
    fn enrollment<'a>(&'a self, key: &'a str) -> BoxFuture<'a, StoreResult<Option<IndividualEnrollment>>>;

    /// Stores an individual enrollment as it is, its version included.
    ///
    /// # Errors
    /// `Exists`, `Missing`, `Conflict` as `expected` says.
    fn put_enrollment(
        &self,
        enrollment: IndividualEnrollment,
        expected: Expected,
    ) -> BoxFuture<'_, StoreResult<()>>;

    /// Deletes an individual enrollment together with the registration made through it.
    ///
    /// # Errors
    /// As [`EnrollmentStore::put_enrollment`].
    fn delete_enrollment<'a>(&'a self, key: &'a str, expected: Expected) -> BoxFuture<'a, StoreResult<()>>;

    /// Up to `limit` individual enrollments after `after`.
    fn list_enrollments<'a>(
        &'a self,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<IndividualEnrollment>>>;

    /// A group.
    fn group<'a>(&'a self, key: &'a str) -> BoxFuture<'a, StoreResult<Option<EnrollmentGroup>>>;

    /// Stores a group as it is, its version included.
    ///
    /// # Errors
    /// As [`EnrollmentStore::put_enrollment`].
    fn put_group(&self, group: EnrollmentGroup, expected: Expected) -> BoxFuture<'_, StoreResult<()>>;

    /// Deletes a group together with the registrations made through it.
    ///
    /// # Errors
    /// As [`EnrollmentStore::put_enrollment`].
    fn delete_group<'a>(&'a self, key: &'a str, expected: Expected) -> BoxFuture<'a, StoreResult<()>>;

    /// Up to `limit` groups after `after`.
    fn list_groups<'a>(
        &'a self,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<EnrollmentGroup>>>;

    /// The registration of a device.
    fn registration<'a>(&'a self, key: &'a str) -> BoxFuture<'a, StoreResult<Option<Registration>>>;

    /// Stores a registration as it is, its version included.
    ///
    /// # Errors
    /// As [`EnrollmentStore::put_enrollment`].
    fn put_registration(
        &self,
        registration: Registration,
        expected: Expected,
    ) -> BoxFuture<'_, StoreResult<()>>;

    /// Deletes a registration.
    ///
    /// # Errors
    /// As [`EnrollmentStore::put_enrollment`].
    fn delete_registration<'a>(&'a self, key: &'a str, expected: Expected) -> BoxFuture<'a, StoreResult<()>>;

    /// Up to `limit` registrations made through a group, after `after`.
    fn list_registrations<'a>(
        &'a self,
        group: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<Registration>>>;

    /// All linked hubs that were ever set, by host.
    fn linked_hubs(&self) -> BoxFuture<'_, StoreResult<Vec<LinkedHub>>>;

    /// Adds or replaces a linked hub by host.
    fn put_linked_hub(&self, hub: LinkedHub) -> BoxFuture<'_, StoreResult<()>>;

    /// Deletes a linked hub.
    ///
    /// # Errors
    /// `Missing`.
    fn delete_linked_hub<'a>(&'a self, host: &'a str) -> BoxFuture<'a, StoreResult<()>>;

    /// All policies of the provisioning service, by name.
    fn provisioning_policies(&self) -> BoxFuture<'_, StoreResult<Vec<ProvisioningPolicy>>>;

    /// Adds or replaces a policy by name.
    fn put_provisioning_policy(&self, policy: ProvisioningPolicy) -> BoxFuture<'_, StoreResult<()>>;

    /// Deletes a policy.
    ///
    /// # Errors
    /// `Missing`.
    fn delete_provisioning_policy<'a>(&'a self, name: &'a str) -> BoxFuture<'a, StoreResult<()>>;
}

/// How a device will prove itself to its hub.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HubCredential {
    /// By a key.
    Keys {
        /// First key.
        primary: SymmetricKey,
        /// Second key.
        secondary: SymmetricKey,
    },
    /// By certificates known by thumbprint.
    Thumbprints {
        /// First certificate.
        primary: Thumbprint,
        /// Second certificate.
        secondary: Option<Thumbprint>,
    },
}

/// A device as it is to be on its hub.
#[derive(Clone, PartialEq, Debug)]
pub struct ProvisionedDevice {
    /// Its id.
    pub device_id: String,
    /// How it proves itself.
    pub credential: HubCredential,
    /// Whether it is an IoT Edge device.
    pub iot_edge: bool,
    /// What its twin begins with.
    pub twin: InitialTwin,
    /// Whether a twin that is there already is replaced by that.
    pub replace_twin: bool,
}

/// A hub as the provisioning service uses it. Every call may be repeated.
pub trait HubRegistry: Send + Sync + 'static {
    /// Creates the device, or gives the one that is there its credential. Enabled either way.
    ///
    /// # Errors
    /// `ServiceUnavailable` when it may be tried again; any other error is the hub's final answer.
    fn put_device<'a>(&'a self, device: &'a ProvisionedDevice) -> BoxFuture<'a, Result<(), Error>>;

    /// Asks for something cheap, with the credentials of every other call. Its time is the hub's latency.
    ///
    /// # Errors
    /// When the hub does not answer, or not as a hub.
    fn probe(&self) -> BoxFuture<'_, Result<(), Error>>;

    /// Tags and desired properties of a device; `None` when there is no such device.
    ///
    /// # Errors
    /// As [`HubRegistry::put_device`].
    fn twin<'a>(&'a self, device_id: &'a str) -> BoxFuture<'a, Result<Option<InitialTwin>, Error>>;

    /// Deletes a device; no error when there is none.
    ///
    /// # Errors
    /// As [`HubRegistry::put_device`].
    fn delete_device<'a>(&'a self, device_id: &'a str) -> BoxFuture<'a, Result<(), Error>>;
}

/// Gives access to linked hubs.
pub trait HubConnector: Send + Sync + 'static {
    /// Access to one of them. Opens no connection yet.
    ///
    /// # Errors
    /// `ArgumentInvalid` when what is known of the hub is not usable.
    fn connect(&self, hub: &LinkedHub) -> Result<Arc<dyn HubRegistry>, Error>;
}

/// Calls the webhooks of custom allocation.
pub trait AllocationWebhook: Send + Sync + 'static {
    /// Posts a JSON body; the answer is its status and body.
    ///
    /// # Errors
    /// What went wrong, when there was no whole answer in time.
    fn call<'a>(
        &'a self,
        url: &'a str,
        body: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<(u16, Bytes), String>>;
}
