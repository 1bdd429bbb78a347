//! Who may connect: the identities below this edge device, kept on the disk, sealed, so that whoever was seen once can come
//! back without a network (edge.md section 8).

pub(crate) mod document;
mod ledger;
pub(crate) mod questions;
mod refresh;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use holdfast_model::Identity;
use holdfast_observe::tracing;
use holdfast_upstream::port::{CloudRegistry, ScopeIdentity};
use parking_lot::{Mutex, RwLock};

use crate::files::Files;
use ledger::{Ledger, Number};
use questions::Questions;

pub(crate) use refresh::RefreshFailed;

const FILE: &str = "scope.sealed";
/// Most identities of a scope; more is refused whole, since a part of it would shut clients out.
pub const SCOPE_IDENTITIES_MAX: usize = 20_000;
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
    ledger: RwLock<Ledger>,
    registry: Option<Arc<dyn CloudRegistry>>,
    files: Arc<Files>,
    /// What was asked for above, and when.
    pub(crate) questions: Questions,
    /// Pages of the last reading of the whole scope.
    pages: AtomicUsize,
    /// One reading of the whole scope at a time.
    refreshing: tokio::sync::Mutex<()>,
    /// Held while the file is written, so that a newer one is not replaced by an older one.
    saving: Mutex<()>,
}

/// A reading that is under way, until this is dropped.
struct Reading<'a> {
    scope: &'a Scope,
    number: Number,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.scope.ledger.write().end(self.number);
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
            Ok(Some(content)) => document::decode(&content),
            Ok(None) => Ok(Vec::new()),
            Err(error) => Err(error.to_string()),
        };
        let kept = kept.unwrap_or_else(|error| {
            tracing::error!(%error, "the identities kept by the edge hub cannot be read");
            Vec::new()
        });
        let kept = if registry.is_some() { kept } else { Vec::new() };
        Scope {
            device_id: device_id.to_owned(),
            ledger: RwLock::new(Ledger::new(kept, local)),
            registry,
            files,
            questions: Questions::default(),
            pages: AtomicUsize::new(0),
            refreshing: tokio::sync::Mutex::default(),
            saving: Mutex::default(),
        }
    }

    pub(crate) fn device_id(&self) -> &str {
        &self.device_id
    }

    pub(crate) fn get(&self, identity: &Identity) -> Option<Arc<ScopeIdentity>> {
        self.ledger.read().get(identity).cloned()
    }

    /// Another number means that something is not as it was. Whoever is refused looks at it before and after a question:
    /// not only the answer to it may let them in, but whatever else was learned meanwhile.
    pub(crate) fn revision(&self) -> u64 {
        self.ledger.read().revision()
    }

    /// Identities, and the pages of the last reading of all of them.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.ledger.read().len(), self.pages.load(Ordering::Relaxed))
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
        let ledger = self.ledger.read();
        let mut chain = vec![identity.as_str().to_owned()];
        let mut at = identity.owner();
        if identity.is_module() {
            chain.push(at.as_str().to_owned());
        }
        while at.as_str() != self.device_id {
            let entry = ledger.get(&at)?;
            let parent = ledger.entries().find(|other| is_parent(other, entry))?;
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

    fn save(&self) {
        let _one = self.saving.lock();
        let identities: Vec<Arc<ScopeIdentity>> = self.ledger.read().entries().cloned().collect();
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
