//! Asking the hub above for identities.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use holdfast_model::Identity;
use holdfast_upstream::port::{CloudError, CloudRegistry, ScopeIdentity};

use super::{CHAIN_MAX, SCOPE_IDENTITIES_MAX, Scope, ScopeChange};

/// Why the scope is as it was.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum RefreshFailed {
    /// There is no hub above.
    #[error("this edge hub has no hub above it")]
    Alone,
    /// The hub above did not answer, or refused.
    #[error(transparent)]
    Cloud(#[from] CloudError),
    /// More than can be kept.
    #[error("the scope has more than {SCOPE_IDENTITIES_MAX} identities")]
    TooLarge,
}

impl Scope {
    /// Reads the whole scope, child edge devices included, and replaces what was known, all at once: a refresh that fails
    /// half-way changes nothing.
    pub(crate) async fn refresh(&self) -> Result<ScopeChange, RefreshFailed> {
        let registry = self.registry.as_ref().ok_or(RefreshFailed::Alone)?;
        let _one = self.refreshing.lock().await;
        let mut found: BTreeMap<Identity, ScopeIdentity> = BTreeMap::new();
        // Edge devices whose scope is still to be read, with their chains.
        let mut targets = vec![vec![self.device_id.clone()]];
        while let Some(chain) = targets.pop() {
            let mut continuation: Option<String> = None;
            loop {
                let page = registry
                    .scope_page(&chain[0], &chain.join(";"), continuation.as_deref())
                    .await?;
                for entry in page.identities {
                    let is_child_edge = entry.iot_edge && !entry.identity.is_module();
                    let id = entry.identity.clone();
                    let known = found.insert(id.clone(), entry).is_some();
                    if is_child_edge && !known && id.as_str() != self.device_id && chain.len() < CHAIN_MAX - 1
                    {
                        let mut below = vec![id.as_str().to_owned()];
                        below.extend(chain.iter().cloned());
                        targets.push(below);
                    }
                }
                if found.len() > SCOPE_IDENTITIES_MAX {
                    return Err(RefreshFailed::TooLarge);
                }
                continuation = page.continuation.filter(|next| !next.is_empty());
                if continuation.is_none() {
                    break;
                }
            }
        }
        for entry in &self.local {
            found.insert(entry.identity.clone(), entry.clone());
        }
        let change = self.replace(found);
        if !change.is_empty() {
            self.save();
            self.forget_attempts(&change);
        }
        Ok(change)
    }

    /// Reads one identity anew; with it come those that it depends on, as the hub lists them. `chain` is the way up from it
    /// to a child of this device, where the scope does not know it.
    pub(crate) async fn refresh_one(
        &self,
        identity: &Identity,
        chain: Option<&str>,
    ) -> Result<ScopeChange, RefreshFailed> {
        let registry = self.registry.as_ref().ok_or(RefreshFailed::Alone)?;
        // What a child claims and the hub does not confirm changes nothing: it may be wrong, and others rest on the entry.
        let may_go = chain.is_none();
        let given = chain.map(|chain| format!("{chain};{}", self.device_id));
        let known = || self.chain(identity).map(|chain| chain.join(";"));
        let chain = given.or_else(known).unwrap_or_else(|| {
            match identity.is_module() && identity.device_id() != self.device_id {
                // A module of a device that is perhaps not known either.
                true => format!("{identity};{};{}", identity.device_id(), self.device_id),
                false => format!("{identity};{}", self.device_id),
            }
        });
        let found = match registry.scope_identity(identity, &chain).await {
            Ok(found) => found,
            // The hub's way to say that it is not below this device.
            Err(CloudError::Refused { status: 404, .. }) => Vec::new(),
            // The chain is none any more; unless it is this device that is refused.
            Err(CloudError::Unauthorized(_)) if self.is_in_force(registry.as_ref()).await => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let is_local = self.local.iter().any(|entry| entry.identity == *identity);
        let mut change = ScopeChange::default();
        {
            let mut identities = self.identities.write();
            let answered = found.iter().any(|entry| entry.identity == *identity);
            if may_go && !answered && !is_local && identities.remove(identity).is_some() {
                change.removed.push(identity.clone());
            }
            if !change.removed.is_empty() {
                let below = self.orphans(&identities);
                change.removed.extend(below);
                for gone in &change.removed {
                    identities.remove(gone);
                }
            }
            for entry in found {
                if identities.len() >= SCOPE_IDENTITIES_MAX && !identities.contains_key(&entry.identity) {
                    return Err(RefreshFailed::TooLarge);
                }
                let id = entry.identity.clone();
                let before = identities.insert(id.clone(), Arc::new(entry.clone()));
                match before {
                    None => change.added.push(id),
                    Some(before) if *before != entry => change.changed.push(id),
                    Some(_) => {}
                }
            }
        }
        if !change.is_empty() {
            self.save();
            self.forget_attempts(&change);
        }
        Ok(change)
    }

    /// Who stands below an edge device that has come may be asked for at once, however lately it was not there.
    fn forget_attempts(&self, change: &ScopeChange) {
        let is_edge = |id: &Identity| {
            self.get(id)
                .is_some_and(|entry| entry.iot_edge && !id.is_module())
        };
        if change.added.iter().any(is_edge) {
            self.attempts.lock().clear();
        }
    }

    /// Whether the hub above still answers this device about itself.
    async fn is_in_force(&self, registry: &dyn CloudRegistry) -> bool {
        let Ok(own) = Identity::device(&self.device_id) else {
            return false;
        };
        registry.scope_identity(&own, &self.device_id).await.is_ok()
    }

    /// Identities that no edge device of the scope is above any more.
    fn orphans(&self, identities: &BTreeMap<Identity, Arc<ScopeIdentity>>) -> Vec<Identity> {
        // A hub that does not list the edge device itself does not tell whose children the others are.
        let own = Identity::device(&self.device_id)
            .ok()
            .and_then(|own| identities.get(&own));
        if own.is_none_or(|own| own.device_scope.is_none()) {
            return Vec::new();
        }
        let mut left: Vec<&ScopeIdentity> = identities.values().map(AsRef::as_ref).collect();
        let mut gone = Vec::new();
        loop {
            let ids: HashSet<&str> = left.iter().map(|entry| entry.identity.as_str()).collect();
            let edges = left
                .iter()
                .filter(|entry| entry.iot_edge && !entry.identity.is_module());
            let scopes: HashSet<&String> = edges.filter_map(|entry| entry.device_scope.as_ref()).collect();
            let is_held = |entry: &&ScopeIdentity| {
                let id = &entry.identity;
                if id.device_id() == self.device_id || self.local.iter().any(|local| local.identity == *id) {
                    return true;
                }
                if id.is_module() {
                    return ids.contains(id.device_id());
                }
                let of_own = entry.device_scope.as_ref().filter(|_| !entry.iot_edge);
                entry
                    .parent_scopes
                    .iter()
                    .chain(of_own)
                    .any(|scope| scopes.contains(scope))
            };
            let (held, orphans): (Vec<_>, Vec<_>) = left.into_iter().partition(is_held);
            if orphans.is_empty() {
                return gone;
            }
            gone.extend(orphans.into_iter().map(|entry| entry.identity.clone()));
            left = held;
        }
    }

    fn replace(&self, found: BTreeMap<Identity, ScopeIdentity>) -> ScopeChange {
        let mut change = ScopeChange::default();
        let mut identities = self.identities.write();
        change.removed = identities
            .keys()
            .filter(|known| !found.contains_key(*known))
            .cloned()
            .collect();
        for (id, entry) in &found {
            match identities.get(id) {
                None => change.added.push(id.clone()),
                Some(before) if **before != *entry => change.changed.push(id.clone()),
                Some(_) => {}
            }
        }
        *identities = found
            .into_iter()
            .map(|(id, entry)| (id, Arc::new(entry)))
            .collect();
        change
    }
}
