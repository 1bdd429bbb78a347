//! The identity registry's store.

use std::sync::Arc;

use holdfast_model::registry::{IdentityRecord, RegistryStatistics};
use holdfast_model::twin::Twin;
use holdfast_model::{Error, Identity, Timestamp};

use crate::outbox::OutboxEvent;
use crate::{BoxFuture, StoreResult};

/// Changes a record in place or refuses. May run more than once when a store retries; must not have side effects.
pub type RecordMutation = Arc<dyn Fn(&mut IdentityRecord) -> Result<(), Error> + Send + Sync>;

/// Identities that are created all or none: a device, and for an edge device its system modules.
pub type CreationGroup = Vec<(IdentityRecord, Twin)>;

/// What is to be told of an identity that is created or deleted. May run more than once; must not have side effects.
pub type LifecycleTelling = Arc<dyn Fn(&IdentityRecord, &Twin) -> Vec<OutboxEvent> + Send + Sync>;

/// Last known connection of an identity, saved in batches and not on the acknowledged path.
#[derive(Clone, Debug)]
pub struct ConnectionUpdate {
    /// Who.
    pub identity: Identity,
    /// Connected or not.
    pub connected: bool,
    /// When that last changed.
    pub updated_at: Timestamp,
    /// Last activity.
    pub last_activity_at: Timestamp,
}

/// An identity whose session ended with an earlier process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interrupted {
    /// Its place in the store, for asking on behind it.
    pub place: u64,
    /// Who.
    pub identity: Identity,
}

/// Store of devices and modules. An identity and its twin are created and deleted together.
pub trait RegistryStore: Send + Sync + 'static {
    /// Adds a record with its twin; for an edge device also its system modules, in the same transaction (`entries`
    /// are created all or none).
    ///
    /// # Errors
    /// `Exists` when one of the identities exists; `Missing` when the device of a module does not exist; `Full` when
    /// the device has [`holdfast_model::limits::MODULES_PER_DEVICE_MAX`] modules (system modules not counted).
    fn create(&self, entries: Vec<(IdentityRecord, Twin)>) -> BoxFuture<'_, StoreResult<()>> {
        self.create_telling(entries, None)
    }

    /// As [`RegistryStore::create`]; what `telling` says of each entry goes into the outbox in the same transaction.
    ///
    /// # Errors
    /// As [`RegistryStore::create`].
    fn create_telling(
        &self,
        entries: Vec<(IdentityRecord, Twin)>,
        telling: Option<LifecycleTelling>,
    ) -> BoxFuture<'_, StoreResult<()>>;

    /// Adds many identities in one step: each group as [`RegistryStore::create`] would, in the order given, so that a
    /// later group meets what an earlier one added. A group that is refused does not harm the others. Returns the
    /// outcome of each group, in the same order.
    ///
    /// # Errors
    /// `Unavailable` for all of them, or what [`crate::outbox::full`] says; then nothing was added.
    fn create_many(&self, groups: Vec<CreationGroup>) -> BoxFuture<'_, StoreResult<Vec<StoreResult<()>>>> {
        self.create_many_telling(groups, None)
    }

    /// As [`RegistryStore::create_many`], telling of what was added as [`RegistryStore::create_telling`] does.
    ///
    /// # Errors
    /// As [`RegistryStore::create_many`].
    fn create_many_telling(
        &self,
        groups: Vec<CreationGroup>,
        telling: Option<LifecycleTelling>,
    ) -> BoxFuture<'_, StoreResult<Vec<StoreResult<()>>>>;

    /// The record of an identity.
    fn get<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, StoreResult<Option<IdentityRecord>>>;

    /// Applies `mutation` and raises the record's version by one. The caller checks the entity tag inside the
    /// mutation. Identity and generation cannot be changed.
    ///
    /// # Errors
    /// `Missing`; `Refused` with the mutation's error.
    fn mutate<'a>(
        &'a self,
        identity: &'a Identity,
        mutation: RecordMutation,
    ) -> BoxFuture<'a, StoreResult<IdentityRecord>>;

    /// Deletes an identity with all that belongs to it: modules, twins, queued messages, stored sessions. Returns the
    /// identities deleted. With `version`, only if it matches.
    ///
    /// # Errors
    /// `Missing`; `Conflict` when the version does not match.
    fn delete<'a>(
        &'a self,
        identity: &'a Identity,
        version: Option<u64>,
    ) -> BoxFuture<'a, StoreResult<Vec<Identity>>> {
        self.delete_telling(identity, version, None)
    }

    /// As [`RegistryStore::delete`]; what `telling` says of each deleted identity, in the order in which they are
    /// returned, goes into the outbox in the same transaction.
    ///
    /// # Errors
    /// As [`RegistryStore::delete`].
    fn delete_telling<'a>(
        &'a self,
        identity: &'a Identity,
        version: Option<u64>,
        telling: Option<LifecycleTelling>,
    ) -> BoxFuture<'a, StoreResult<Vec<Identity>>>;

    /// Up to `limit` devices (no modules) in the order of their ids, starting after `after`.
    fn list_devices<'a>(
        &'a self,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<IdentityRecord>>>;

    /// Up to `limit` devices and modules with their twins, by device id, a device before its modules, those by module
    /// id; starting after `after`, which need not exist (any more).
    fn list_with_twins<'a>(
        &'a self,
        after: Option<&'a Identity>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<(IdentityRecord, Twin)>>>;

    /// All modules of a device in the order of their ids; empty for an unknown device.
    fn list_modules<'a>(&'a self, device: &'a Identity) -> BoxFuture<'a, StoreResult<Vec<IdentityRecord>>>;

    /// Counts over all devices.
    fn statistics(&self) -> BoxFuture<'_, StoreResult<RegistryStatistics>>;

    /// The edge device that owns a device scope.
    fn find_scope<'a>(&'a self, scope: &'a str) -> BoxFuture<'a, StoreResult<Option<IdentityRecord>>>;

    /// Up to `limit` devices whose parent is the edge device with that scope, in the order of their ids, starting after
    /// `after`.
    fn list_children<'a>(
        &'a self,
        scope: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<IdentityRecord>>>;

    /// Saves connection states. Unknown identities are skipped. Does not raise versions. May be lost in a crash: the
    /// engine treats every stored "connected" as disconnected at start.
    fn save_connections(&self, updates: Vec<ConnectionUpdate>) -> BoxFuture<'_, StoreResult<()>>;

    /// Up to `limit` identities, after the place `after`, that an earlier process had saved as connected and nobody has
    /// saved anything of since: their sessions died with it. A store that ends with its process has none.
    fn interrupted(&self, after: u64, limit: usize) -> BoxFuture<'_, StoreResult<Vec<Interrupted>>> {
        let _ = (after, limit);
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    /// Saves that these, of [`RegistryStore::interrupted`], are not connected, but for those that were saved anew.
    fn end_interrupted(&self, places: Vec<u64>) -> BoxFuture<'_, StoreResult<()>> {
        let _ = places;
        Box::pin(std::future::ready(Ok(())))
    }
}
