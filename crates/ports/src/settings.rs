//! Stores of the hub's own settings: policies, certificate authorities, sessions, consumer groups, checkpoints.

use bytes::Bytes;
use holdfast_model::policy::Policy;
use holdfast_model::subscription::Subscriptions;
use holdfast_model::{Identity, Timestamp};

use crate::{BoxFuture, StoreResult};

/// A certificate authority whose devices may connect (rest.md section 18).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CertificateAuthority {
    /// Name given by the operator.
    pub name: String,
    /// DER of the CA certificate.
    pub certificate: Bytes,
    /// Whether possession of its key was proven, or the operator vouched for it at upload.
    pub verified: bool,
    /// Common name the proof certificate must carry, while a proof is pending.
    pub verification_code: Option<String>,
    /// When it was uploaded.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// Raised with every change.
    pub version: u64,
}

/// Store of settings. Everything here is small and read at start; the engine caches it.
pub trait SettingsStore: Send + Sync + 'static {
    /// All shared access policies.
    fn policies(&self) -> BoxFuture<'_, StoreResult<Vec<Policy>>>;

    /// Adds or replaces a policy by name.
    fn put_policy(&self, policy: Policy) -> BoxFuture<'_, StoreResult<()>>;

    /// Deletes a policy.
    ///
    /// # Errors
    /// `Missing`.
    fn delete_policy<'a>(&'a self, name: &'a str) -> BoxFuture<'a, StoreResult<()>>;

    /// All certificate authorities.
    fn authorities(&self) -> BoxFuture<'_, StoreResult<Vec<CertificateAuthority>>>;

    /// Adds or replaces an authority by name.
    fn put_authority(&self, authority: CertificateAuthority) -> BoxFuture<'_, StoreResult<()>>;

    /// Deletes an authority.
    ///
    /// # Errors
    /// `Missing`.
    fn delete_authority<'a>(&'a self, name: &'a str) -> BoxFuture<'a, StoreResult<()>>;

    /// A free-form value of the hub, such as its id scope.
    fn value<'a>(&'a self, key: &'a str) -> BoxFuture<'a, StoreResult<Option<String>>>;

    /// Sets a free-form value.
    fn set_value<'a>(&'a self, key: &'a str, value: &'a str) -> BoxFuture<'a, StoreResult<()>>;
}

/// Store of device sessions that outlive their connection (MQTT CleanSession 0).
pub trait SessionStore: Send + Sync + 'static {
    /// Subscriptions of a stored session; `None` when there is none.
    fn session<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, StoreResult<Option<Subscriptions>>>;

    /// Stores a session, replacing an earlier one. An identity that does not exist (any more) is skipped.
    fn save_session<'a>(
        &'a self,
        identity: &'a Identity,
        subscriptions: Subscriptions,
    ) -> BoxFuture<'a, StoreResult<()>>;

    /// Forgets a stored session; no error when there is none.
    fn delete_session<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, StoreResult<()>>;
}

/// The consumer group that always exists.
pub const DEFAULT_CONSUMER_GROUP: &str = "$Default";

/// Store of consumer groups and of the positions their readers have reached.
pub trait CheckpointStore: Send + Sync + 'static {
    /// All consumer groups, [`DEFAULT_CONSUMER_GROUP`] first, the others by name.
    fn consumer_groups(&self) -> BoxFuture<'_, StoreResult<Vec<String>>>;

    /// Adds a consumer group.
    ///
    /// # Errors
    /// `Exists`; `Full` at 20 groups.
    fn create_consumer_group<'a>(&'a self, name: &'a str) -> BoxFuture<'a, StoreResult<()>>;

    /// Deletes a consumer group with its checkpoints.
    ///
    /// # Errors
    /// `Missing`; the default group cannot be deleted and counts as missing here.
    fn delete_consumer_group<'a>(&'a self, name: &'a str) -> BoxFuture<'a, StoreResult<()>>;

    /// The sequence number at which `reader` continues in a partition; `None` when it never saved one.
    fn checkpoint<'a>(&'a self, reader: &'a str, partition: u16) -> BoxFuture<'a, StoreResult<Option<u64>>>;

    /// Saves where `reader` continues. `reader` is a consumer group or an endpoint name.
    fn save_checkpoint<'a>(
        &'a self,
        reader: &'a str,
        partition: u16,
        next: u64,
    ) -> BoxFuture<'a, StoreResult<()>>;

    /// Forgets where `reader` continues, in all partitions. One that never saved anything is no error.
    fn delete_checkpoints<'a>(&'a self, reader: &'a str) -> BoxFuture<'a, StoreResult<()>>;
}
