//! Settings, stored sessions and checkpoints in memory.

use holdfast_model::Identity;
use holdfast_model::policy::Policy;
use holdfast_model::subscription::Subscriptions;

use super::MemoryStore;
use crate::settings::{
    CertificateAuthority, CheckpointStore, DEFAULT_CONSUMER_GROUP, SessionStore, SettingsStore,
};
use crate::{BoxFuture, StoreError, StoreResult};

/// Most consumer groups, the default one included.
const CONSUMER_GROUPS_MAX: usize = 20;

impl SettingsStore for MemoryStore {
    fn policies(&self) -> BoxFuture<'_, StoreResult<Vec<Policy>>> {
        self.run(|state| Ok(state.policies.values().cloned().collect()))
    }

    fn put_policy(&self, policy: Policy) -> BoxFuture<'_, StoreResult<()>> {
        self.run(move |state| {
            state.policies.insert(policy.name.clone(), policy);
            Ok(())
        })
    }

    fn delete_policy<'a>(&'a self, name: &'a str) -> BoxFuture<'a, StoreResult<()>> {
        self.run(move |state| state.policies.remove(name).map(drop).ok_or(StoreError::Missing))
    }

    fn authorities(&self) -> BoxFuture<'_, StoreResult<Vec<CertificateAuthority>>> {
        self.run(|state| Ok(state.authorities.values().cloned().collect()))
    }

    fn put_authority(&self, authority: CertificateAuthority) -> BoxFuture<'_, StoreResult<()>> {
        self.run(move |state| {
            state.authorities.insert(authority.name.clone(), authority);
            Ok(())
        })
    }

    fn delete_authority<'a>(&'a self, name: &'a str) -> BoxFuture<'a, StoreResult<()>> {
        self.run(move |state| {
            state
                .authorities
                .remove(name)
                .map(drop)
                .ok_or(StoreError::Missing)
        })
    }

    fn value<'a>(&'a self, key: &'a str) -> BoxFuture<'a, StoreResult<Option<String>>> {
        self.run(move |state| Ok(state.values.get(key).cloned()))
    }

    fn set_value<'a>(&'a self, key: &'a str, value: &'a str) -> BoxFuture<'a, StoreResult<()>> {
        self.run(move |state| {
            state.values.insert(key.to_owned(), value.to_owned());
            Ok(())
        })
    }
}

impl SessionStore for MemoryStore {
    fn session<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, StoreResult<Option<Subscriptions>>> {
        self.run(move |state| Ok(state.identities.get(identity).and_then(|entry| entry.session)))
    }

    fn save_session<'a>(
        &'a self,
        identity: &'a Identity,
        subscriptions: Subscriptions,
    ) -> BoxFuture<'a, StoreResult<()>> {
        self.run(move |state| {
            if let Some(entry) = state.identities.get_mut(identity) {
                entry.session = Some(subscriptions);
            }
            Ok(())
        })
    }

    fn delete_session<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, StoreResult<()>> {
        self.run(move |state| {
            if let Some(entry) = state.identities.get_mut(identity) {
                entry.session = None;
            }
            Ok(())
        })
    }
}

impl CheckpointStore for MemoryStore {
    fn consumer_groups(&self) -> BoxFuture<'_, StoreResult<Vec<String>>> {
        self.run(|state| {
            let mut groups = vec![DEFAULT_CONSUMER_GROUP.to_owned()];
            let others = state.consumer_groups.iter();
            groups.extend(others.filter(|name| *name != DEFAULT_CONSUMER_GROUP).cloned());
            Ok(groups)
        })
    }

    fn create_consumer_group<'a>(&'a self, name: &'a str) -> BoxFuture<'a, StoreResult<()>> {
        self.run(move |state| {
            if state.consumer_groups.contains(name) {
                return Err(StoreError::Exists);
            }
            if state.consumer_groups.len() >= CONSUMER_GROUPS_MAX {
                return Err(StoreError::Full);
            }
            state.consumer_groups.insert(name.to_owned());
            Ok(())
        })
    }

    fn delete_consumer_group<'a>(&'a self, name: &'a str) -> BoxFuture<'a, StoreResult<()>> {
        self.run(move |state| {
            if name == DEFAULT_CONSUMER_GROUP || !state.consumer_groups.remove(name) {
                return Err(StoreError::Missing);
            }
            state.checkpoints.retain(|(reader, _), _| reader != name);
            Ok(())
        })
    }

    fn checkpoint<'a>(&'a self, reader: &'a str, partition: u16) -> BoxFuture<'a, StoreResult<Option<u64>>> {
        self.run(move |state| Ok(state.checkpoints.get(&(reader.to_owned(), partition)).copied()))
    }

    fn save_checkpoint<'a>(
        &'a self,
        reader: &'a str,
        partition: u16,
        next: u64,
    ) -> BoxFuture<'a, StoreResult<()>> {
        self.run(move |state| {
            state.checkpoints.insert((reader.to_owned(), partition), next);
            Ok(())
        })
    }

    fn delete_checkpoints<'a>(&'a self, reader: &'a str) -> BoxFuture<'a, StoreResult<()>> {
        self.run(move |state| {
            state.checkpoints.retain(|(known, _), _| known != reader);
            Ok(())
        })
    }
}
