//! Asking the hub above for identities.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_model::Identity;
use holdfast_upstream::port::{CloudError, ScopeIdentity};

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
        }
        Ok(change)
    }

    /// Reads one identity anew; with it come those that it depends on, as the hub lists them.
    pub(crate) async fn refresh_one(&self, identity: &Identity) -> Result<ScopeChange, RefreshFailed> {
        let registry = self.registry.as_ref().ok_or(RefreshFailed::Alone)?;
        let chain = self.chain(identity).map_or_else(
            || match identity.is_module() && identity.device_id() != self.device_id {
                // A module of a device that is perhaps not known either.
                true => format!("{identity};{};{}", identity.device_id(), self.device_id),
                false => format!("{identity};{}", self.device_id),
            },
            |chain| chain.join(";"),
        );
        let found = match registry.scope_identity(identity, &chain).await {
            Ok(found) => found,
            // The hub's way to say that it is not below this device.
            Err(CloudError::Refused { status: 404, .. }) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let is_local = self.local.iter().any(|entry| entry.identity == *identity);
        let mut change = ScopeChange::default();
        {
            let mut identities = self.identities.write();
            let answered = found.iter().any(|entry| entry.identity == *identity);
            if !answered && !is_local && identities.remove(identity).is_some() {
                change.removed.push(identity.clone());
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
        }
        Ok(change)
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
