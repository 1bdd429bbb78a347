//! Configurations in memory.

use std::collections::BTreeMap;

use holdfast_model::Identity;
use holdfast_model::configuration::{Configuration, EDGE_AGENT};
use holdfast_model::twin::ConfigurationStatus;

use super::MemoryStore;
use crate::configuration::{ConfigurationStore, ConfiguredPage, Reach, ReachCounts};
use crate::enrollment::Expected;
use crate::{BoxFuture, StoreError, StoreResult};

/// By id.
pub(super) type Configurations = BTreeMap<String, Configuration>;

impl ConfigurationStore for MemoryStore {
    fn configurations(&self) -> BoxFuture<'_, StoreResult<Vec<Configuration>>> {
        self.run(|state| Ok(state.configurations.values().cloned().collect()))
    }

    fn put_configuration(
        &self,
        configuration: Configuration,
        expected: Expected,
    ) -> BoxFuture<'_, StoreResult<()>> {
        self.run(move |state| {
            let present = state.configurations.get(&configuration.id);
            expected.check(present.map(|present| present.version))?;
            state
                .configurations
                .insert(configuration.id.clone(), configuration);
            Ok(())
        })
    }

    fn delete_configuration<'a>(&'a self, id: &'a str, expected: Expected) -> BoxFuture<'a, StoreResult<()>> {
        self.run(move |state| {
            let present = state.configurations.get(id).ok_or(StoreError::Missing)?;
            expected.check(Some(present.version))?;
            state.configurations.remove(id);
            Ok(())
        })
    }

    fn configured<'a>(
        &'a self,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<ConfiguredPage>> {
        self.run(move |state| {
            let shows = state
                .identities
                .iter()
                .filter(|(_, entry)| !entry.twin.configurations.is_empty())
                .filter(|(identity, _)| after.is_none_or(|after| identity.as_str() > after));
            let identities: Vec<Identity> = shows.map(|(identity, _)| identity.clone()).take(limit).collect();
            let next = identities.last().filter(|_| identities.len() == limit);
            let next = next.map(|identity| identity.as_str().to_owned());
            Ok(ConfiguredPage { identities, next })
        })
    }

    fn count_configured<'a>(&'a self, id: &'a str, reach: Reach) -> BoxFuture<'a, StoreResult<ReachCounts>> {
        self.run(move |state| {
            let mut counts = ReachCounts::default();
            let counted = state.identities.iter().filter(|(identity, _)| match reach {
                Reach::Devices => !identity.is_module(),
                Reach::Modules => identity.is_module(),
                Reach::EdgeAgents => identity.module_id() == Some(EDGE_AGENT),
            });
            for status in counted.filter_map(|(_, entry)| entry.twin.configurations.get(id)) {
                counts.targeted += 1;
                counts.applied += u64::from(*status == ConfigurationStatus::Applied);
            }
            Ok(counts)
        })
    }
}
