//! Asking the hub above for identities.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::Ordering;

use holdfast_model::Identity;
use holdfast_upstream::port::{CloudError, CloudRegistry, ScopeIdentity};

use super::ledger::{Applied, Ledger};
use super::{CHAIN_MAX, Reading, SCOPE_IDENTITIES_MAX, Scope, ScopeChange};

/// Answers in one reading, against a hub that never says it was the last. A page holds some hundred identities.
const PAGES_MAX: usize = 5_000;

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
    #[error("the scope has more than {SCOPE_IDENTITIES_MAX} identities, or never ends")]
    TooLarge,
}

impl Scope {
    /// Reads the whole scope, child edge devices included, and replaces what was known, all at once: a refresh that fails
    /// half-way changes nothing, and neither does it undo what was learned since it began.
    pub(crate) async fn refresh(&self) -> Result<ScopeChange, RefreshFailed> {
        let registry = self.registry.as_ref().ok_or(RefreshFailed::Alone)?;
        let _one = self.refreshing.lock().await;
        let reading = self.begin_reading();
        let found = self.read_all(registry.as_ref()).await?;
        let applied = self.ledger.write().apply_whole(reading.number, found);
        drop(reading);
        self.keep(&applied.change);
        Ok(applied.change)
    }

    async fn read_all(
        &self,
        registry: &dyn CloudRegistry,
    ) -> Result<BTreeMap<Identity, ScopeIdentity>, RefreshFailed> {
        let mut found: BTreeMap<Identity, ScopeIdentity> = BTreeMap::new();
        // Edge devices whose scope is still to be read, with their chains.
        let mut targets = vec![vec![self.device_id.clone()]];
        let mut pages = 0;
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
                pages += 1;
                if found.len() > SCOPE_IDENTITIES_MAX || pages > PAGES_MAX {
                    return Err(RefreshFailed::TooLarge);
                }
                continuation = page.continuation.filter(|next| !next.is_empty());
                if continuation.is_none() {
                    break;
                }
            }
        }
        self.pages.store(pages, Ordering::Relaxed);
        Ok(found)
    }

    fn begin_reading(&self) -> Reading<'_> {
        let number = self.ledger.write().begin();
        Reading { scope: self, number }
    }

    /// Reads one identity anew; with it come those that it depends on, as the hub lists them. `chain` is the way up from it
    /// to a child of this device, where the scope does not know it.
    pub(crate) async fn refresh_one(
        &self,
        identity: &Identity,
        chain: Option<&str>,
    ) -> Result<Applied, RefreshFailed> {
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
        let reading = self.begin_reading();
        let found = match registry.scope_identity(identity, &chain).await {
            Ok(found) => found,
            // The hub's way to say that it is not below this device.
            Err(CloudError::Refused { status: 404, .. }) => Vec::new(),
            // The chain is none any more; unless it is this device that is refused.
            Err(CloudError::Unauthorized(_)) if self.is_in_force(registry.as_ref()).await => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let applied = self
            .ledger
            .write()
            .apply_one(reading.number, identity, found, may_go, |ledger| {
                self.orphans(ledger)
            })
            .ok_or(RefreshFailed::TooLarge)?;
        drop(reading);
        self.keep(&applied.change);
        Ok(applied)
    }

    fn keep(&self, change: &ScopeChange) {
        if !change.is_empty() {
            self.save();
            self.forget_questions(change);
        }
    }

    /// Who stands below an edge device that has come may be asked for at once, however lately it was not there.
    fn forget_questions(&self, change: &ScopeChange) {
        let is_edge = |id: &Identity| {
            self.get(id)
                .is_some_and(|entry| entry.iot_edge && !id.is_module())
        };
        if change.added.iter().any(is_edge) {
            self.questions.forget();
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
    fn orphans(&self, ledger: &Ledger) -> Vec<Identity> {
        // A hub that does not list the edge device itself does not tell whose children the others are.
        let own = Identity::device(&self.device_id)
            .ok()
            .and_then(|own| ledger.get(&own));
        if own.is_none_or(|own| own.device_scope.is_none()) {
            return Vec::new();
        }
        let mut left: Vec<&ScopeIdentity> = ledger.entries().map(AsRef::as_ref).collect();
        let mut gone = Vec::new();
        loop {
            let ids: HashSet<&str> = left.iter().map(|entry| entry.identity.as_str()).collect();
            let edges = left
                .iter()
                .filter(|entry| entry.iot_edge && !entry.identity.is_module());
            let scopes: HashSet<&String> = edges.filter_map(|entry| entry.device_scope.as_ref()).collect();
            let is_held = |entry: &&ScopeIdentity| {
                let id = &entry.identity;
                if id.device_id() == self.device_id {
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
}
