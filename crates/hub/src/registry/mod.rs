//! The identity registry (rest.md section 5).

pub(crate) mod bulk;
pub(crate) mod import;
pub(crate) mod scope;
pub(crate) mod spec;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use holdfast_model::credential::SymmetricKey;
use holdfast_model::limits::{DEVICES_PER_LIST_MAX, MODULES_PER_DEVICE_MAX};
use holdfast_model::registry::{Authentication, IdentityRecord, RegistryStatistics, Status};
use holdfast_model::twin::{ChangeMode, Twin, TwinChange};
use holdfast_model::{Error, ErrorCode, Identity};
use holdfast_ports::StoreError;
use holdfast_ports::registry::RecordMutation;
use parking_lot::Mutex;

use crate::Hub;
use crate::auth::ServiceCaller;
use crate::failure::{invalid, not_found};
use crate::if_match::{IfMatch, precondition_failed};
use crate::registry::spec::{IdentitySpec, KeyChoice};
use crate::twins::reserved_module;

/// The modules that every edge device has.
const SYSTEM_MODULES: [&str; 2] = ["$edgeAgent", "$edgeHub"];

impl Hub {
    /// The record of a device or module, with its live connection state.
    ///
    /// # Errors
    /// `DeviceNotFound`, `ModuleNotFound`.
    pub async fn identity(&self, identity: &Identity) -> Result<IdentityRecord, Error> {
        let mut record = self.stored_identity(identity).await?;
        self.add_live_state(&mut record);
        Ok(record)
    }

    /// Up to `limit` devices (1 to 1000, anything else means 1000) in the order of their ids, after `after`.
    ///
    /// # Errors
    /// `ServiceUnavailable`.
    pub async fn list_devices(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<IdentityRecord>, Error> {
        let limit = if (1..=DEVICES_PER_LIST_MAX).contains(&limit) {
            limit
        } else {
            DEVICES_PER_LIST_MAX
        };
        let listed = self.stores.registry.list_devices(after, limit).await;
        let mut records = listed.map_err(|error| self.store_error("list devices", error))?;
        records.iter_mut().for_each(|record| self.add_live_state(record));
        Ok(records)
    }

    /// All modules of a device in the order of their ids.
    ///
    /// # Errors
    /// `DeviceNotFound`.
    pub async fn list_modules(&self, device: &Identity) -> Result<Vec<IdentityRecord>, Error> {
        self.check_exists(device).await?;
        let listed = self.stores.registry.list_modules(device).await;
        let mut records = listed.map_err(|error| self.store_error("list modules", error))?;
        records.iter_mut().for_each(|record| self.add_live_state(record));
        Ok(records)
    }

    /// Counts over the registry.
    ///
    /// # Errors
    /// `ServiceUnavailable`.
    pub async fn registry_statistics(&self) -> Result<RegistryStatistics, Error> {
        self.stores
            .registry
            .statistics()
            .await
            .map_err(|error| self.store_error("count devices", error))
    }

    /// Creates a device or module, with its twin; for an edge device also `$edgeAgent` and `$edgeHub`.
    ///
    /// # Errors
    /// `DeviceAlreadyExists`, `ModuleAlreadyExistsOnDevice`; `DeviceNotFound` for a module without device;
    /// `TooManyModulesOnDevice`; `InvalidDeviceScope`; `ArgumentInvalid`; `SystemModuleModifyUnauthorizedAccess`.
    pub async fn create_identity(
        &self,
        caller: &ServiceCaller,
        identity: &Identity,
        spec: &IdentitySpec,
    ) -> Result<IdentityRecord, Error> {
        self.create_with_twin(caller, identity, spec, TwinChange::default())
            .await
    }

    /// Replaces the writable members of a device or module. A disabled device or new credentials end its live sessions,
    /// and for a disabled device those of its modules, before this returns.
    ///
    /// # Errors
    /// `PreconditionFailed`, and as [`Hub::create_identity`].
    pub async fn update_identity(
        &self,
        caller: &ServiceCaller,
        identity: &Identity,
        spec: &IdentitySpec,
        if_match: IfMatch,
    ) -> Result<IdentityRecord, Error> {
        check_system_module(caller, identity)?;
        // Said first, since a wrong scope means nothing for a device that is not there.
        self.check_exists(identity).await?;
        let parent_scope = self.resolve_parent(identity, spec).await?;
        let prepared = spec.prepare(parent_scope)?;
        let now = self.now();
        let record = self
            .mutate_identity(identity, if_match, {
                let prepared = prepared.clone();
                move |record| {
                    prepared.apply(record, now);
                    Ok(())
                }
            })
            .await?;
        if prepared.iot_edge() && !identity.is_module() {
            self.add_system_modules(identity).await?;
        }
        Ok(record)
    }

    /// PUT of a device or module: creates without `If-Match`, updates with it (rest.md 5.3).
    ///
    /// # Errors
    /// As [`Hub::create_identity`] and [`Hub::update_identity`].
    pub async fn put_identity(
        &self,
        caller: &ServiceCaller,
        identity: &Identity,
        spec: &IdentitySpec,
        if_match: IfMatch,
    ) -> Result<IdentityRecord, Error> {
        match if_match {
            IfMatch::Absent => self.create_identity(caller, identity, spec).await,
            _ => self.update_identity(caller, identity, spec, if_match).await,
        }
    }

    /// Deletes a device with its modules, or a module, and all that belongs to it; live sessions end before this
    /// returns.
    ///
    /// # Errors
    /// `DeviceNotFound`, `ModuleNotFound`; `PreconditionFailed`; `SystemModuleModifyUnauthorizedAccess`.
    pub async fn delete_identity(&self, identity: &Identity, if_match: IfMatch) -> Result<(), Error> {
        if identity.is_system_module() {
            return Err(reserved_module());
        }
        let version = match if_match {
            IfMatch::Absent | IfMatch::Any => None,
            IfMatch::Version(version) => Some(version),
            IfMatch::Never => {
                self.check_exists(identity).await?;
                return Err(precondition_failed());
            }
        };
        let telling = self.deletion_telling();
        let deadline = self.room_deadline();
        let deleted = loop {
            let deleted = self
                .stores
                .registry
                .delete_telling(identity, version, telling.clone());
            match deleted.await {
                Err(error) if self.waited_for_room(&error, deadline).await => {}
                Err(StoreError::Missing) => return Err(not_found(identity)),
                other => break other.map_err(|error| self.store_error("delete identity", error))?,
            }
        };
        self.told();
        self.revocations.fetch_add(1, Ordering::SeqCst);
        self.end_sessions_of(deleted.iter().chain([identity]));
        Ok(())
    }

    /// Makes new keys for an identity that uses keys; its live session ends. Returns the new record.
    ///
    /// # Errors
    /// `DeviceNotFound`, `ModuleNotFound`; `InvalidOperation` when it uses certificates;
    /// `SystemModuleModifyUnauthorizedAccess`.
    pub async fn regenerate_keys(
        &self,
        caller: &ServiceCaller,
        identity: &Identity,
        choice: KeyChoice,
    ) -> Result<IdentityRecord, Error> {
        check_system_module(caller, identity)?;
        let (fresh_primary, fresh_secondary) = (SymmetricKey::generate(), SymmetricKey::generate());
        self.mutate_identity(identity, IfMatch::Absent, move |record| {
            let Authentication::Sas {
                primary_key,
                secondary_key,
            } = &mut record.authentication
            else {
                return Err(Error::new(
                    ErrorCode::InvalidOperation,
                    "the identity does not use keys",
                ));
            };
            if choice != KeyChoice::Secondary {
                *primary_key = fresh_primary.clone();
            }
            if choice != KeyChoice::Primary {
                *secondary_key = fresh_secondary.clone();
            }
            Ok(())
        })
        .await
    }

    /// As stored, without live state.
    pub(crate) async fn stored_identity(&self, identity: &Identity) -> Result<IdentityRecord, Error> {
        self.stores
            .registry
            .get(identity)
            .await
            .map_err(|error| self.store_error("read identity", error))?
            .ok_or_else(|| not_found(identity))
    }

    pub(crate) async fn create_with_twin(
        &self,
        caller: &ServiceCaller,
        identity: &Identity,
        spec: &IdentitySpec,
        content: TwinChange,
    ) -> Result<IdentityRecord, Error> {
        check_system_module(caller, identity)?;
        let parent_scope = self.resolve_parent(identity, spec).await?;
        let prepared = spec.prepare(parent_scope)?;
        let now = self.now();
        let mut twin = Twin::new(now);
        // The content a twin is created with is its first version.
        twin.apply(ChangeMode::Patch, &content, now)?;
        (twin.version, twin.desired.version) = (1, 1);
        let record = prepared.create(identity, self.next_generation(), now);
        let mut entries = vec![(record.clone(), twin)];
        if record.iot_edge {
            entries.extend(self.system_modules(identity)?);
        }
        let telling = self.creation_telling();
        let deadline = self.room_deadline();
        loop {
            let created = self
                .stores
                .registry
                .create_telling(entries.clone(), telling.clone());
            match created.await {
                Err(error) if self.waited_for_room(&error, deadline).await => {}
                other => break other.map_err(|error| self.create_error(identity, error))?,
            }
        }
        self.told();
        self.changes.note(identity);
        Ok(record)
    }

    fn system_modules(&self, device: &Identity) -> Result<Vec<(IdentityRecord, Twin)>, Error> {
        let spec = IdentitySpec {
            managed_by: Some("IotEdge".to_owned()),
            ..IdentitySpec::default()
        };
        let now = self.now();
        SYSTEM_MODULES
            .iter()
            .map(|module_id| {
                let identity = Identity::module(device.device_id(), module_id)?;
                let record = spec.prepare(None)?.create(&identity, self.next_generation(), now);
                Ok((record, Twin::new(now)))
            })
            .collect()
    }

    /// For a device that has become an edge device; those it has already stay.
    async fn add_system_modules(&self, device: &Identity) -> Result<(), Error> {
        for entry in self.system_modules(device)? {
            let telling = self.creation_telling();
            match self.stores.registry.create_telling(vec![entry], telling).await {
                Ok(()) => self.told(),
                Err(StoreError::Exists) => {}
                Err(error) => return Err(self.create_error(device, error)),
            }
        }
        Ok(())
    }

    fn create_error(&self, identity: &Identity, error: StoreError) -> Error {
        match (error, identity.module_id()) {
            (StoreError::Exists, None) => Error::new(
                ErrorCode::DeviceAlreadyExists,
                format!("the device {:?} exists already", identity.device_id()),
            ),
            (StoreError::Exists, Some(module_id)) => Error::new(
                ErrorCode::ModuleAlreadyExistsOnDevice,
                format!(
                    "the module {module_id:?} exists already on device {:?}",
                    identity.device_id()
                ),
            ),
            (StoreError::Missing, _) => not_found(&identity.owner()),
            (StoreError::Full, _) => Error::new(
                ErrorCode::TooManyModulesOnDevice,
                format!("a device can have {MODULES_PER_DEVICE_MAX} modules at most"),
            ),
            (other, _) => self.store_error("create identity", other),
        }
    }

    /// Changes a record under a precondition, and ends the sessions that lose their right by it.
    async fn mutate_identity(
        &self,
        identity: &Identity,
        if_match: IfMatch,
        change: impl Fn(&mut IdentityRecord) -> Result<(), Error> + Send + Sync + 'static,
    ) -> Result<IdentityRecord, Error> {
        let before = Arc::new(Mutex::new(None));
        let mutation: RecordMutation = {
            let before = Arc::clone(&before);
            Arc::new(move |record| {
                if_match.check(record.version)?;
                *before.lock() = Some((record.status, record.authentication.clone()));
                change(record)
            })
        };
        let changed = self.stores.registry.mutate(identity, mutation).await;
        let mut record = changed.map_err(|error| match error {
            StoreError::Missing => not_found(identity),
            other => self.store_error("change identity", other),
        })?;
        self.changes.note(identity);
        let before = before.lock().take();
        if let Some((status, authentication)) = before {
            let disabled = status == Status::Enabled && record.status == Status::Disabled;
            if disabled || authentication != record.authentication {
                self.revoke(&record, disabled).await?;
            }
        }
        self.add_live_state(&mut record);
        Ok(record)
    }

    async fn revoke(&self, record: &IdentityRecord, with_modules: bool) -> Result<(), Error> {
        // Before the sessions are looked up: a login that was under way either sees this and checks again, or its
        // session is found.
        self.revocations.fetch_add(1, Ordering::SeqCst);
        self.end_sessions_of([&record.identity]);
        if with_modules && !record.identity.is_module() {
            let modules = self.stores.registry.list_modules(&record.identity).await;
            let modules = modules.map_err(|error| self.store_error("list modules", error))?;
            self.end_sessions_of(modules.iter().map(|module| &module.identity));
        }
        Ok(())
    }

    /// Connection state and last activity as this node knows them. The store learns them in batches, and what it says of
    /// connections is from before the start.
    pub(crate) fn add_live_state(&self, record: &mut IdentityRecord) {
        if let Some(update) = self.connections.lock().get(&record.identity) {
            record.connection_updated_at = update.updated_at;
            record.last_activity_at = update.last_activity_at;
        }
        let session = self.sessions.get(record.identity.as_str());
        record.connected = session.is_some();
        if let Some(session) = session {
            record.last_activity_at = record.last_activity_at.max(self.last_heard(&session));
        }
    }
}

/// `$edgeAgent` and `$edgeHub` are made by the hub; their own device may give them keys (identityd), services may not
/// touch them.
fn check_system_module(caller: &ServiceCaller, identity: &Identity) -> Result<(), Error> {
    if let ServiceCaller::Device(device) = caller
        && (identity.owner() != *device || !identity.is_module())
    {
        return Err(Error::new(
            ErrorCode::IotHubUnauthorizedAccess,
            "a device may manage its own modules only",
        ));
    }
    if identity.is_system_module() && !caller.may_change_system_modules() {
        return Err(reserved_module());
    }
    if identity.module_id().is_some_and(|id| id.starts_with('$')) && !identity.is_system_module() {
        return Err(invalid("module ids that start with '$' are reserved"));
    }
    Ok(())
}
