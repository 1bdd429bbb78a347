//! Moving a registry: many identities in one step, with what only an export of another hub knows of them.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use holdfast_model::registry::IdentityRecord;
use holdfast_model::twin::{ChangeMode, Twin, TwinChange};
use holdfast_model::{Error, ErrorCode, Identity, Timestamp};
use holdfast_ports::registry::CreationGroup;
use holdfast_ports::twin::TwinMutation;
use holdfast_ports::{StoreError, StoreResult};
use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::Hub;
use crate::auth::ServiceCaller;
use crate::failure::invalid;
use crate::if_match::IfMatch;
use crate::registry::bulk::{BulkEntry, ImportMode};
use crate::registry::check_system_module;
use crate::registry::spec::is_edge_scope_of;

/// Entries of one call of [`Hub::import`] that change something that exists and are under way at once.
const CHANGES_AT_ONCE: usize = 256;
/// How long an import waits for room in the outbox, each time.
const IMPORT_WAIT: Duration = Duration::from_secs(60);
/// Longest model id taken from an export; a DTMI may have this many characters (languages.md 7.1).
const MODEL_ID_MAX: usize = 2_048;

/// What an export says of an identity beyond what a service may write. It is taken when the identity is created; of an
/// identity that exists, only reported properties that were never written.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Restored {
    /// Reported properties.
    pub reported: Option<Map<String, Value>>,
    /// `$version` of the desired properties, so that devices that remember it do not ignore later changes.
    pub desired_version: Option<u64>,
    /// `$version` of the reported properties.
    pub reported_version: Option<u64>,
    /// Model id that the device last announced.
    pub model_id: Option<String>,
    /// Scope of an edge device, which its children name as their parent. Taken if it has the form that hubs make.
    pub edge_scope: Option<String>,
}

/// One entry of an import.
#[derive(Clone, Debug, Default)]
pub struct ImportEntry {
    /// What to do.
    pub entry: BulkEntry,
    /// What else is known.
    pub restored: Restored,
}

impl Hub {
    /// Carries out registry operations, as many as the caller can hold; returns the outcome of each, in their order. What
    /// creates comes first, in the given order, in one step of the store; then what changes or deletes. So that this
    /// is the order of the list, no identity may stand in it twice, and nothing that changes or deletes a device beside
    /// its modules.
    ///
    /// The caller holds the right to move the registry, so the reserved modules of edge devices are taken too.
    pub async fn import(&self, entries: &[ImportEntry]) -> Vec<Result<(), Error>> {
        let mut outcomes: Vec<Option<Result<(), Error>>> = vec![None; entries.len()];
        self.import_new(entries, &mut outcomes).await;
        let rest: Vec<usize> = (0..entries.len()).filter(|at| outcomes[*at].is_none()).collect();
        let mut changes = stream::iter(rest)
            .map(async |at| (at, self.import_existing(&entries[at]).await))
            .buffer_unordered(CHANGES_AT_ONCE);
        while let Some((at, outcome)) = changes.next().await {
            outcomes[at] = Some(outcome);
        }
        let outcomes: Vec<_> = outcomes
            .into_iter()
            .map(|outcome| outcome.unwrap_or(Ok(())))
            .collect();
        for (import, _) in entries
            .iter()
            .zip(&outcomes)
            .filter(|(_, outcome)| outcome.is_ok())
        {
            let entry = &import.entry;
            if let Ok(identity) = Identity::new(&entry.device_id, entry.module_id.as_deref()) {
                self.changes.note(&identity);
            }
        }
        outcomes
    }

    /// Devices and modules with their twins, as [`holdfast_ports::registry::RegistryStore::list_with_twins`]. Without
    /// live state.
    ///
    /// # Errors
    /// `ServiceUnavailable`.
    pub async fn export(
        &self,
        after: Option<&Identity>,
        limit: usize,
    ) -> Result<Vec<(IdentityRecord, Twin)>, Error> {
        let listed = self.stores.registry.list_with_twins(after, limit).await;
        listed.map_err(|error| self.store_error("export identities", error))
    }

    /// Creates what is to be created; leaves open what exists and may be changed.
    async fn import_new(&self, entries: &[ImportEntry], outcomes: &mut [Option<Result<(), Error>>]) {
        let (mut groups, mut places) = (Vec::new(), Vec::new());
        for (at, entry) in entries.iter().enumerate() {
            if !creates(entry.entry.mode) {
                continue;
            }
            match self.creation_group(entry).await {
                Ok(group) => {
                    groups.push(group);
                    places.push(at);
                }
                Err(error) => outcomes[at] = Some(Err(error)),
            }
        }
        if groups.is_empty() {
            return;
        }
        let created = match self.create_groups(groups).await {
            Ok(created) => created,
            Err(error) => {
                let error = self.store_error("import identities", error);
                for at in places {
                    outcomes[at] = Some(Err(error.clone()));
                }
                return;
            }
        };
        self.told();
        for (at, result) in places.into_iter().zip(created) {
            let entry = &entries[at].entry;
            outcomes[at] = match result {
                Ok(()) => Some(Ok(())),
                Err(StoreError::Exists) if may_change(entry) => None,
                Err(error) => Some(
                    Identity::new(&entry.device_id, entry.module_id.as_deref())
                        .and_then(|identity| Err(self.create_error(&identity, error))),
                ),
            };
        }
    }

    /// An import goes at the pace at which what it creates is told of.
    async fn create_groups(&self, groups: Vec<CreationGroup>) -> StoreResult<Vec<StoreResult<()>>> {
        let store = &self.stores.registry;
        let Some(telling) = self.creation_telling() else {
            return store.create_many(groups).await;
        };
        let deadline = Instant::now() + IMPORT_WAIT;
        loop {
            let created = store.create_many_telling(groups.clone(), Some(telling.clone()));
            match created.await {
                Err(error) if self.waited_for_room(&error, deadline).await => {}
                other => return other,
            }
        }
    }

    async fn creation_group(&self, import: &ImportEntry) -> Result<CreationGroup, Error> {
        let entry = &import.entry;
        let identity = Identity::new(&entry.device_id, entry.module_id.as_deref())?;
        check_system_module(&ServiceCaller::Local, &identity)?;
        let parent_scope = self.resolve_parent(&identity, &entry.spec).await?;
        let prepared = entry.spec.prepare(parent_scope)?;
        let now = self.now();
        let mut record = prepared.create(&identity, self.next_generation(), now);
        if record.iot_edge
            && let Some(scope) = &import.restored.edge_scope
            && is_edge_scope_of(scope, &identity)
        {
            record.device_scope = Some(scope.clone());
        }
        let mut group = vec![(record, restored_twin(&entry.twin, &import.restored, now)?)];
        if prepared.iot_edge() && !identity.is_module() {
            group.extend(self.system_modules(&identity)?);
        }
        Ok(group)
    }

    async fn import_existing(&self, import: &ImportEntry) -> Result<(), Error> {
        let entry = &import.entry;
        let caller = ServiceCaller::Local;
        let identity = Identity::new(&entry.device_id, entry.module_id.as_deref())?;
        let if_match = match entry.mode {
            ImportMode::CreateOrUpdate => IfMatch::Any,
            ImportMode::CreateOrUpdateIfMatchETag => entry.if_match,
            _ => return self.bulk_entry(&caller, entry).await,
        };
        self.bulk_update(&caller, &identity, entry, if_match).await?;
        self.restore_reported(&identity, &import.restored).await
    }

    /// Takes reported properties for a twin that never had any, such as that of a reserved module made with its device.
    async fn restore_reported(&self, identity: &Identity, restored: &Restored) -> Result<(), Error> {
        let Some(reported) = restored.reported.as_ref().filter(|reported| !reported.is_empty()) else {
            return Ok(());
        };
        let (reported, restored, now) = (reported.clone(), restored.clone(), self.now());
        let mutation: TwinMutation = std::sync::Arc::new(move |twin| {
            if twin.reported.version == 1 && twin.reported.properties.is_empty() {
                twin.report(&reported, now)?;
                twin.reported.version = section_version(restored.reported_version)?;
            }
            Ok(())
        });
        let changed = self.mutate_twin(identity, ChangeMode::Patch, mutation).await;
        changed
            .map(drop)
            .map_err(|error| self.store_error("restore reported properties", error))
    }
}

const fn creates(mode: ImportMode) -> bool {
    matches!(
        mode,
        ImportMode::Create | ImportMode::CreateOrUpdate | ImportMode::CreateOrUpdateIfMatchETag
    )
}

fn may_change(entry: &BulkEntry) -> bool {
    match entry.mode {
        ImportMode::CreateOrUpdate => true,
        // Without a tag the sender knows of no earlier version.
        ImportMode::CreateOrUpdateIfMatchETag => entry.if_match != IfMatch::Absent,
        _ => false,
    }
}

/// A new twin with the content of an export.
fn restored_twin(content: &TwinChange, restored: &Restored, now: Timestamp) -> Result<Twin, Error> {
    let desired_version = section_version(restored.desired_version)?;
    let reported_version = section_version(restored.reported_version)?;
    let mut twin = Twin::new(now);
    // One below, so that the metadata of what is written carries the version that it ends with.
    (twin.desired.version, twin.reported.version) = (desired_version - 1, reported_version - 1);
    twin.apply(ChangeMode::Patch, content, now)?;
    if let Some(reported) = &restored.reported {
        twin.report(reported, now)?;
    }
    // The content a twin is created with is its first version.
    twin.version = 1;
    (twin.desired.version, twin.reported.version) = (desired_version, reported_version);
    if let Some(model_id) = restored.model_id.as_ref().filter(|id| !id.is_empty()) {
        if model_id.len() > MODEL_ID_MAX {
            return Err(invalid(format!("modelId can have {MODEL_ID_MAX} bytes at most")));
        }
        twin.model_id = Some(model_id.clone());
    }
    Ok(twin)
}

/// Versions count from 1, and must leave room for all changes to come.
fn section_version(given: Option<u64>) -> Result<u64, Error> {
    match given {
        None => Ok(1),
        Some(version) if (1..=u64::from(u32::MAX) << 16).contains(&version) => Ok(version),
        Some(version) => Err(Error::new(
            ErrorCode::ArgumentInvalid,
            format!("$version {version} is not one that a hub would have reached"),
        )),
    }
}
