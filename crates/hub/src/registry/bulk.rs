//! Many registry operations in one request (rest.md 5.4).

use std::collections::HashSet;

use futures_util::future::join_all;
use holdfast_model::limits::BULK_REGISTRY_MAX;
use holdfast_model::twin::{ChangeMode, TwinChange};
use holdfast_model::{Error, ErrorCode, Identity};

use crate::Hub;
use crate::auth::ServiceCaller;
use crate::failure::invalid;
use crate::if_match::IfMatch;
use crate::registry::spec::IdentitySpec;

/// What to do with one entry of a bulk request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ImportMode {
    /// Create, or update unconditionally.
    #[default]
    CreateOrUpdate,
    /// Create; an error when it exists.
    Create,
    /// Update unconditionally; an error when it does not exist.
    Update,
    /// Update if the entity tag matches.
    UpdateIfMatchETag,
    /// Create, or update if the entity tag matches.
    CreateOrUpdateIfMatchETag,
    /// Delete.
    Delete,
    /// Delete if the entity tag matches.
    DeleteIfMatchETag,
    /// Patch the twin.
    UpdateTwin,
    /// Patch the twin if its entity tag matches.
    UpdateTwinIfMatchETag,
}

impl ImportMode {
    /// The spelling on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            ImportMode::CreateOrUpdate => "createOrUpdate",
            ImportMode::Create => "create",
            ImportMode::Update => "update",
            ImportMode::UpdateIfMatchETag => "updateIfMatchETag",
            ImportMode::CreateOrUpdateIfMatchETag => "createOrUpdateIfMatchETag",
            ImportMode::Delete => "delete",
            ImportMode::DeleteIfMatchETag => "deleteIfMatchETag",
            ImportMode::UpdateTwin => "updateTwin",
            ImportMode::UpdateTwinIfMatchETag => "updateTwinIfMatchETag",
        }
    }

    /// Parses the wire's spelling, without regard to case.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [
            ImportMode::CreateOrUpdate,
            ImportMode::Create,
            ImportMode::Update,
            ImportMode::UpdateIfMatchETag,
            ImportMode::CreateOrUpdateIfMatchETag,
            ImportMode::Delete,
            ImportMode::DeleteIfMatchETag,
            ImportMode::UpdateTwin,
            ImportMode::UpdateTwinIfMatchETag,
        ]
        .into_iter()
        .find(|mode| mode.as_str().eq_ignore_ascii_case(text))
    }
}

/// One entry of a bulk request.
#[derive(Clone, Debug, Default)]
pub struct BulkEntry {
    /// Device id, not checked yet.
    pub device_id: String,
    /// Module id, not checked yet.
    pub module_id: Option<String>,
    /// What to do.
    pub mode: ImportMode,
    /// Entity tag of the identity, for the `…IfMatchETag` modes; there, `Absent` is an error.
    pub if_match: IfMatch,
    /// Entity tag of the twin, for `UpdateTwinIfMatchETag`.
    pub twin_if_match: IfMatch,
    /// The identity, for create and update.
    pub spec: IdentitySpec,
    /// First content of the twin, or changes to it.
    pub twin: TwinChange,
}

/// An entry that failed; the others are done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BulkFailure {
    /// Device id as given.
    pub device_id: String,
    /// Module id as given.
    pub module_id: Option<String>,
    /// What was to be done.
    pub mode: ImportMode,
    /// Why it was not.
    pub error: Error,
}

impl Hub {
    /// Carries out up to 100 registry operations; returns those that failed, in the order of the request. Devices come
    /// before modules; beyond that the order of execution is open.
    ///
    /// # Errors
    /// Nothing is done then: `ArgumentInvalid` for more than 100 entries, `DeviceDefinedMultipleTimes` when an identity
    /// stands twice in the list.
    pub async fn bulk(
        &self,
        caller: &ServiceCaller,
        entries: Vec<BulkEntry>,
    ) -> Result<Vec<BulkFailure>, Error> {
        if entries.len() > BULK_REGISTRY_MAX {
            return Err(invalid(format!(
                "a bulk request can have {BULK_REGISTRY_MAX} entries at most, not {}",
                entries.len()
            )));
        }
        let mut seen = HashSet::new();
        if let Some(twice) = entries
            .iter()
            .find(|entry| !seen.insert((&entry.device_id, &entry.module_id)))
        {
            return Err(Error::new(
                ErrorCode::DeviceDefinedMultipleTimes,
                format!("{:?} stands in the list more than once", twice.device_id),
            ));
        }
        let mut failures = Vec::new();
        // Concurrently, so that the store can commit them in groups.
        for modules in [false, true] {
            let group = entries
                .iter()
                .enumerate()
                .filter(|(_, entry)| entry.module_id.is_some() == modules)
                .map(async |(index, entry)| (index, self.bulk_entry(caller, entry).await));
            for (index, result) in join_all(group).await {
                if let Err(error) = result {
                    failures.push((index, error));
                }
            }
        }
        failures.sort_unstable_by_key(|(index, _)| *index);
        Ok(failures
            .into_iter()
            .map(|(index, error)| BulkFailure {
                device_id: entries[index].device_id.clone(),
                module_id: entries[index].module_id.clone(),
                mode: entries[index].mode,
                error,
            })
            .collect())
    }

    pub(super) async fn bulk_entry(&self, caller: &ServiceCaller, entry: &BulkEntry) -> Result<(), Error> {
        let identity = Identity::new(&entry.device_id, entry.module_id.as_deref())?;
        match entry.mode {
            ImportMode::Create => self.bulk_create(caller, &identity, entry).await,
            ImportMode::Update => self.bulk_update(caller, &identity, entry, IfMatch::Any).await,
            ImportMode::UpdateIfMatchETag => {
                let if_match = required(entry.if_match, "eTag")?;
                self.bulk_update(caller, &identity, entry, if_match).await
            }
            ImportMode::CreateOrUpdate => {
                self.bulk_create_or_update(caller, &identity, entry, IfMatch::Any)
                    .await
            }
            ImportMode::CreateOrUpdateIfMatchETag => {
                // Without a tag the sender knows of no earlier version.
                self.bulk_create_or_update(caller, &identity, entry, entry.if_match)
                    .await
            }
            ImportMode::Delete => self.delete_identity(&identity, IfMatch::Any).await,
            ImportMode::DeleteIfMatchETag => {
                let if_match = required(entry.if_match, "eTag")?;
                self.delete_identity(&identity, if_match).await
            }
            ImportMode::UpdateTwin => self.bulk_twin(caller, &identity, entry, IfMatch::Any).await,
            ImportMode::UpdateTwinIfMatchETag => {
                let if_match = required(entry.twin_if_match, "twinETag")?;
                self.bulk_twin(caller, &identity, entry, if_match).await
            }
        }
    }

    async fn bulk_create(
        &self,
        caller: &ServiceCaller,
        identity: &Identity,
        entry: &BulkEntry,
    ) -> Result<(), Error> {
        self.create_with_twin(caller, identity, &entry.spec, entry.twin.clone())
            .await
            .map(drop)
    }

    pub(super) async fn bulk_update(
        &self,
        caller: &ServiceCaller,
        identity: &Identity,
        entry: &BulkEntry,
        if_match: IfMatch,
    ) -> Result<(), Error> {
        self.update_identity(caller, identity, &entry.spec, if_match)
            .await?;
        if entry.twin == TwinChange::default() {
            return Ok(());
        }
        self.bulk_twin(caller, identity, entry, IfMatch::Any).await
    }

    async fn bulk_create_or_update(
        &self,
        caller: &ServiceCaller,
        identity: &Identity,
        entry: &BulkEntry,
        if_match: IfMatch,
    ) -> Result<(), Error> {
        match self.bulk_create(caller, identity, entry).await {
            Err(error)
                if matches!(
                    error.code,
                    ErrorCode::DeviceAlreadyExists | ErrorCode::ModuleAlreadyExistsOnDevice
                ) && if_match != IfMatch::Absent =>
            {
                self.bulk_update(caller, identity, entry, if_match).await
            }
            other => other,
        }
    }

    async fn bulk_twin(
        &self,
        caller: &ServiceCaller,
        identity: &Identity,
        entry: &BulkEntry,
        if_match: IfMatch,
    ) -> Result<(), Error> {
        self.change_twin(caller, identity, ChangeMode::Patch, entry.twin.clone(), if_match)
            .await
            .map(drop)
    }
}

fn required(if_match: IfMatch, member: &str) -> Result<IfMatch, Error> {
    match if_match {
        IfMatch::Absent => Err(invalid(format!("{member} is required by this import mode"))),
        given => Ok(given),
    }
}
