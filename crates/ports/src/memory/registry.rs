//! Registry and twins in memory.

use holdfast_model::Identity;
use holdfast_model::limits::MODULES_PER_DEVICE_MAX;
use holdfast_model::registry::{IdentityRecord, RegistryStatistics, Status};
use holdfast_model::twin::Twin;

use super::{Entry, MemoryStore, State};
use crate::registry::{ConnectionUpdate, CreationGroup, LifecycleTelling, RecordMutation, RegistryStore};
use crate::twin::{TwinMutation, TwinStore, TwinTelling};
use crate::{BoxFuture, StoreError, StoreResult};

impl RegistryStore for MemoryStore {
    fn create_telling(
        &self,
        entries: Vec<(IdentityRecord, Twin)>,
        telling: Option<LifecycleTelling>,
    ) -> BoxFuture<'_, StoreResult<()>> {
        self.run(move |state| state.add_group(entries, telling.as_ref()))
    }

    fn create_many_telling(
        &self,
        groups: Vec<CreationGroup>,
        telling: Option<LifecycleTelling>,
    ) -> BoxFuture<'_, StoreResult<Vec<StoreResult<()>>>> {
        self.run(move |state| {
            let added = groups
                .into_iter()
                .map(|group| state.add_group(group, telling.as_ref()));
            Ok(added.collect())
        })
    }

    fn get<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, StoreResult<Option<IdentityRecord>>> {
        self.run(move |state| Ok(state.identities.get(identity).map(|entry| entry.record.clone())))
    }

    fn mutate<'a>(
        &'a self,
        identity: &'a Identity,
        mutation: RecordMutation,
    ) -> BoxFuture<'a, StoreResult<IdentityRecord>> {
        self.run(move |state| {
            let entry = state.identities.get_mut(identity).ok_or(StoreError::Missing)?;
            let mut record = entry.record.clone();
            mutation(&mut record)?;
            record.identity = entry.record.identity.clone();
            record.generation_id = entry.record.generation_id;
            record.version = entry.record.version + 1;
            entry.record = record.clone();
            Ok(record)
        })
    }

    fn delete_telling<'a>(
        &'a self,
        identity: &'a Identity,
        version: Option<u64>,
        telling: Option<LifecycleTelling>,
    ) -> BoxFuture<'a, StoreResult<Vec<Identity>>> {
        self.run(move |state| {
            let entry = state.identities.get(identity).ok_or(StoreError::Missing)?;
            if version.is_some_and(|version| version != entry.record.version) {
                return Err(StoreError::Conflict);
            }
            let mut deleted = vec![identity.clone()];
            deleted.extend(
                state
                    .modules_of(identity)
                    .map(|entry| entry.record.identity.clone()),
            );
            if let Some(telling) = &telling {
                let entries = deleted
                    .iter()
                    .filter_map(|identity| state.identities.get(identity));
                let told: Vec<_> = entries
                    .flat_map(|entry| telling(&entry.record, &entry.twin))
                    .collect();
                state.outbox.check_room(told.len())?;
                state.outbox.add(told);
            }
            for identity in &deleted {
                state.files.forget(identity);
                state.identities.remove(identity);
            }
            Ok(deleted)
        })
    }

    fn list_devices<'a>(
        &'a self,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<IdentityRecord>>> {
        self.run(move |state| {
            Ok(state
                .devices()
                .filter(|record| after.is_none_or(|after| record.identity.as_str() > after))
                .take(limit)
                .cloned()
                .collect())
        })
    }

    fn list_with_twins<'a>(
        &'a self,
        after: Option<&'a Identity>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<(IdentityRecord, Twin)>>> {
        // Not the order of the map: there the separator of the ids counts as a character.
        fn place(identity: &Identity) -> (&str, &str) {
            (identity.device_id(), identity.module_id().unwrap_or_default())
        }
        self.run(move |state| {
            let mut entries: Vec<&Entry> = state.identities.values().collect();
            entries.retain(|entry| after.is_none_or(|after| place(&entry.record.identity) > place(after)));
            entries.sort_by(|a, b| place(&a.record.identity).cmp(&place(&b.record.identity)));
            Ok(entries
                .into_iter()
                .take(limit)
                .map(|entry| (entry.record.clone(), entry.twin.clone()))
                .collect())
        })
    }

    fn list_modules<'a>(&'a self, device: &'a Identity) -> BoxFuture<'a, StoreResult<Vec<IdentityRecord>>> {
        self.run(move |state| {
            Ok(state
                .modules_of(device)
                .map(|entry| entry.record.clone())
                .collect())
        })
    }

    fn statistics(&self) -> BoxFuture<'_, StoreResult<RegistryStatistics>> {
        self.run(|state| {
            let mut counts = RegistryStatistics::default();
            for record in state.devices() {
                counts.total += 1;
                match record.status {
                    Status::Enabled => counts.enabled += 1,
                    Status::Disabled => counts.disabled += 1,
                }
            }
            Ok(counts)
        })
    }

    fn find_scope<'a>(&'a self, scope: &'a str) -> BoxFuture<'a, StoreResult<Option<IdentityRecord>>> {
        self.run(move |state| {
            Ok(state
                .devices()
                .find(|record| record.iot_edge && record.device_scope.as_deref() == Some(scope))
                .cloned())
        })
    }

    fn list_children<'a>(
        &'a self,
        scope: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<IdentityRecord>>> {
        self.run(move |state| {
            let mut children: Vec<IdentityRecord> = state
                .devices()
                .filter(|record| record.parent_scopes.iter().any(|parent| parent == scope))
                .filter(|record| after.is_none_or(|after| record.identity.device_id() > after))
                .cloned()
                .collect();
            children.sort_by(|left, right| left.identity.cmp(&right.identity));
            children.truncate(limit);
            Ok(children)
        })
    }

    fn save_connections(&self, updates: Vec<ConnectionUpdate>) -> BoxFuture<'_, StoreResult<()>> {
        self.run(move |state| {
            for update in updates {
                if let Some(entry) = state.identities.get_mut(&update.identity) {
                    entry.record.connected = update.connected;
                    entry.record.connection_updated_at = update.updated_at;
                    entry.record.last_activity_at = update.last_activity_at;
                }
            }
            Ok(())
        })
    }
}

impl TwinStore for MemoryStore {
    fn twin<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, StoreResult<Option<Twin>>> {
        self.run(move |state| Ok(state.identities.get(identity).map(|entry| entry.twin.clone())))
    }

    fn mutate_twin_telling<'a>(
        &'a self,
        identity: &'a Identity,
        mutation: TwinMutation,
        telling: Option<TwinTelling>,
    ) -> BoxFuture<'a, StoreResult<Twin>> {
        self.run(move |state| {
            let entry = state.identities.get_mut(identity).ok_or(StoreError::Missing)?;
            let mut twin = entry.twin.clone();
            mutation(&mut twin)?;
            if let Some(telling) = telling {
                let told = telling(&entry.twin, &twin);
                state.outbox.check_room(told.len())?;
                state.outbox.add(told);
            }
            entry.twin = twin.clone();
            Ok(twin)
        })
    }
}

impl State {
    /// All devices in the order of their ids.
    fn devices(&self) -> impl Iterator<Item = &IdentityRecord> {
        self.identities
            .values()
            .map(|entry| &entry.record)
            .filter(|record| !record.identity.is_module())
    }

    /// The modules of a device in the order of their ids; a module has none.
    fn modules_of(&self, device: &Identity) -> impl Iterator<Item = &Entry> {
        self.identities
            .values()
            .filter(|entry| entry.record.identity.is_module() && entry.record.identity.owner() == *device)
    }

    /// Adds all of these or none.
    fn add_group(&mut self, entries: CreationGroup, telling: Option<&LifecycleTelling>) -> StoreResult<()> {
        let mut added: Vec<Identity> = Vec::new();
        let mut told = Vec::new();
        for (record, twin) in entries {
            if let Some(telling) = telling {
                told.extend(telling(&record, &twin));
            }
            let may_add = self.may_add(&record.identity);
            if let Err(error) = may_add.and_then(|()| self.outbox.check_room(told.len())) {
                for identity in added {
                    self.identities.remove(&identity);
                }
                return Err(error);
            }
            added.push(record.identity.clone());
            let entry = Entry {
                record,
                twin,
                session: None,
                queue: Vec::new(),
            };
            self.identities.insert(entry.record.identity.clone(), entry);
        }
        self.outbox.add(told);
        Ok(())
    }

    fn may_add(&self, identity: &Identity) -> StoreResult<()> {
        if self.identities.contains_key(identity) {
            return Err(StoreError::Exists);
        }
        if !identity.is_module() {
            return Ok(());
        }
        let device = identity.owner();
        if !self.identities.contains_key(&device) {
            return Err(StoreError::Missing);
        }
        let modules = self
            .modules_of(&device)
            .filter(|entry| !entry.record.identity.is_system_module())
            .count();
        if modules >= MODULES_PER_DEVICE_MAX && !identity.is_system_module() {
            return Err(StoreError::Full);
        }
        Ok(())
    }
}
