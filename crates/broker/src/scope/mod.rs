//! Who may connect: the identities below this edge device, kept on the disk, sealed, so that whoever was seen once can come
//! back without a network (edge.md section 8).

pub(crate) mod document;
mod refresh;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::Identity;
use holdfast_observe::tracing;
use holdfast_upstream::port::{CloudRegistry, ScopeIdentity};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::files::Files;

pub(crate) use refresh::RefreshFailed;

const FILE: &str = "scope.sealed";
/// Most identities of a scope; more is refused whole, since a part of it would shut clients out.
pub const SCOPE_IDENTITIES_MAX: usize = 20_000;
/// Identities whose last look-up is remembered, so that it is not repeated too soon.
const ATTEMPTS_MAX: usize = 1_000;
/// The target, five edge levels above it, and one to spare for a module's own device.
pub(crate) const CHAIN_MAX: usize = 7;

/// What changed in the scope.
#[derive(Default, Debug)]
pub(crate) struct ScopeChange {
    pub(crate) added: Vec<Identity>,
    pub(crate) removed: Vec<Identity>,
    /// Other credentials, status or parents.
    pub(crate) changed: Vec<Identity>,
}

impl ScopeChange {
    pub(crate) fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}

/// The identities of this edge device's scope.
pub(crate) struct Scope {
    /// The edge device itself.
    device_id: String,
    identities: RwLock<BTreeMap<Identity, Arc<ScopeIdentity>>>,
    /// Given with the configuration; never refreshed away.
    local: Vec<ScopeIdentity>,
    registry: Option<Arc<dyn CloudRegistry>>,
    files: Arc<Files>,
    /// When an identity was last asked for, in milliseconds of the monotonic clock.
    attempts: Mutex<HashMap<Identity, u64>>,
    /// One refresh at a time.
    refreshing: tokio::sync::Mutex<()>,
    /// Identities that are being asked for; told when one is done.
    under_way: Mutex<Vec<Identity>>,
    done: Notify,
}

/// An identity is being asked for, until this is dropped.
pub(crate) struct Asking<'a> {
    scope: &'a Scope,
    identity: Identity,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut under_way = self.scope.under_way.lock();
        if let Some(at) = under_way.iter().position(|identity| *identity == self.identity) {
            under_way.swap_remove(at);
        }
        drop(under_way);
        self.scope.done.notify_waiters();
    }
}

impl Scope {
    /// Reads what was kept. A damaged file is told and forgotten: the next refresh makes it anew.
    pub(crate) fn open(
        device_id: &str,
        local: Vec<ScopeIdentity>,
        registry: Option<Arc<dyn CloudRegistry>>,
        files: Arc<Files>,
    ) -> Self {
        let kept = match files.read_sealed(FILE) {
            Ok(Some(content)) => document::decode(&content).unwrap_or_else(|error| {
                tracing::error!(%error, "the identities kept by the edge hub cannot be read");
                Vec::new()
            }),
            Ok(None) => Vec::new(),
            Err(error) => {
                tracing::error!(%error, "the identities kept by the edge hub cannot be read");
                Vec::new()
            }
        };
        let kept = if registry.is_some() { kept } else { Vec::new() };
        let all = kept.into_iter().chain(local.iter().cloned());
        Scope {
            device_id: device_id.to_owned(),
            identities: RwLock::new(
                all.map(|entry| (entry.identity.clone(), Arc::new(entry)))
                    .collect(),
            ),
            local,
            registry,
            files,
            attempts: Mutex::default(),
            refreshing: tokio::sync::Mutex::default(),
            under_way: Mutex::default(),
            done: Notify::new(),
        }
    }

    pub(crate) fn device_id(&self) -> &str {
        &self.device_id
    }

    pub(crate) fn get(&self, identity: &Identity) -> Option<Arc<ScopeIdentity>> {
        self.identities.read().get(identity).cloned()
    }

    /// Whether identities can be asked for above.
    pub(crate) fn has_registry(&self) -> bool {
        self.registry.is_some()
    }

    /// A module is enabled when its device is; the edge device itself always is, as long as it runs.
    pub(crate) fn is_enabled(&self, entry: &ScopeIdentity) -> bool {
        if !entry.identity.is_module() {
            return entry.enabled;
        }
        if entry.identity.device_id() == self.device_id {
            return true;
        }
        self.get(&entry.identity.owner())
            .is_some_and(|owner| owner.enabled)
    }

    /// The ids from `identity` up to this edge device, as an `auth-chain` names them; `None` when it is not below it.
    pub(crate) fn chain(&self, identity: &Identity) -> Option<Vec<String>> {
        let identities = self.identities.read();
        let mut chain = vec![identity.as_str().to_owned()];
        let mut at = identity.owner();
        if identity.is_module() {
            chain.push(at.as_str().to_owned());
        }
        while at.as_str() != self.device_id {
            let entry = identities.get(&at)?;
            let parent = identities.values().find(|other| is_parent(other, entry))?;
            chain.push(parent.identity.as_str().to_owned());
            if chain.len() > CHAIN_MAX {
                return None;
            }
            at = parent.identity.clone();
        }
        // The edge device itself, as an identity, is its own actor.
        if chain.len() == 1 {
            chain.push(self.device_id.clone());
        }
        Some(chain)
    }

    /// Whether a look-up of `identity` is due; notes it. Bounded: when many are remembered, the oldest are forgotten.
    pub(crate) fn may_ask(&self, identity: &Identity, now_millis: u64, every: Duration) -> bool {
        let every = u64::try_from(every.as_millis()).unwrap_or(u64::MAX);
        let mut attempts = self.attempts.lock();
        if attempts
            .get(identity)
            .is_some_and(|last| now_millis.saturating_sub(*last) < every)
        {
            return false;
        }
        if attempts.len() >= ATTEMPTS_MAX {
            attempts.retain(|_, last| now_millis.saturating_sub(*last) < every);
            if attempts.len() >= ATTEMPTS_MAX {
                // Somebody asks for ever new names: no more until the oldest are forgotten.
                return false;
            }
        }
        attempts.insert(identity.clone(), now_millis);
        true
    }

    /// Notes that an identity is being asked for.
    pub(crate) fn asking(&self, identity: &Identity) -> Asking<'_> {
        self.under_way.lock().push(identity.clone());
        Asking {
            scope: self,
            identity: identity.clone(),
        }
    }

    /// Waits until an identity is not being asked for any more. False when it was not.
    pub(crate) async fn asked(&self, identity: &Identity) -> bool {
        let mut waited = false;
        loop {
            let done = self.done.notified();
            tokio::pin!(done);
            done.as_mut().enable();
            if !self.under_way.lock().contains(identity) {
                return waited;
            }
            done.await;
            waited = true;
        }
    }

    fn save(&self) {
        let identities: Vec<Arc<ScopeIdentity>> = self.identities.read().values().cloned().collect();
        let content = document::encode(identities.iter().map(AsRef::as_ref));
        if let Err(error) = self.files.write_sealed(FILE, content) {
            tracing::warn!(%error, "the identities of the scope cannot be kept");
        }
    }
}

/// Whether `parent` is an edge device in whose scope `child` is.
fn is_parent(parent: &ScopeIdentity, child: &ScopeIdentity) -> bool {
    let Some(scope) = parent.device_scope.as_ref().filter(|_| parent.iot_edge) else {
        return false;
    };
    if parent.identity == child.identity || parent.identity.is_module() {
        return false;
    }
    child.parent_scopes.contains(scope) || (!child.iot_edge && child.device_scope.as_ref() == Some(scope))
}
