//! Identities of this device's modules: made at the hub, kept on the disk, with keys that are derived here.
//!
//! A module's keys are chosen on the device and uploaded (edge.md section 3.5). What the hub said last is kept in
//! `identities.json`, so that modules are made and started without the hub; a deletion that could not be told to the hub is
//! kept there, too, and told later.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holdfast_agent::identities::{IdentityError, ModuleIdentities, ModuleIdentity};
use holdfast_model::Identity;
use holdfast_ports::BoxFuture;
use holdfast_program::files::{self, PRIVATE};
use holdfast_upstream::port::{CloudError, CloudRegistry, ModuleIdentity as HubModule};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};

use crate::keys::{KeyStore, Slot};

/// Who manages identities that are made here.
pub const MANAGED_BY: &str = "IotEdge";
/// How long a known module waits for the hub before what is kept is used.
const PATIENCE: Duration = Duration::from_millis(250);

/// Workload sockets come and go with identities.
pub trait ModuleSockets: Send + Sync + 'static {
    /// Listens for this module; nothing happens when it listens already.
    fn open(&self, module_id: &str);
    /// Stops listening.
    fn close(&self, module_id: &str);
}

/// What is kept of a module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    generation_id: String,
    managed_by: String,
    /// The hub has the keys of this generation.
    keyed: bool,
}

/// The file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct State {
    /// Whose modules these are: `hub/device`. Others are of no use after a device has moved.
    account: String,
    modules: BTreeMap<String, Kept>,
    /// To be deleted at the hub.
    doomed: BTreeSet<String>,
}

/// Identities over the hub's registry, with a memory.
pub struct Identities {
    inner: Arc<Inner>,
}

struct Inner {
    device_id: String,
    registry: RwLock<Arc<dyn CloudRegistry>>,
    keys: Arc<dyn KeyStore>,
    sockets: Arc<dyn ModuleSockets>,
    /// What is kept is used without asking.
    prefer_kept: bool,
    path: PathBuf,
    state: Mutex<State>,
    /// Modules whose keys the hub was told since the start.
    told: Mutex<BTreeSet<String>>,
}

/// What an identity is made from.
pub struct Parts {
    /// Host name of the hub; what was kept for another one is forgotten.
    pub hub: String,
    /// This device.
    pub device_id: String,
    /// Its registry calls.
    pub registry: Arc<dyn CloudRegistry>,
    /// Its keys.
    pub keys: Arc<dyn KeyStore>,
    /// Where workload sockets are opened.
    pub sockets: Arc<dyn ModuleSockets>,
    /// See [`crate::config::Settings::prefer_cached_identities`].
    pub prefer_kept: bool,
    /// File of what is kept.
    pub path: PathBuf,
}

impl Identities {
    /// Opens what is kept. A damaged file is set aside: the hub knows better, and offline modules that run go on.
    #[must_use]
    pub fn open(parts: Parts) -> Self {
        let account = format!("{}/{}", parts.hub, parts.device_id);
        let mut state = read_state(&parts.path);
        if state.account != account {
            state = State {
                account,
                ..State::default()
            };
        }
        for module_id in state.modules.keys() {
            parts.sockets.open(module_id);
        }
        Identities {
            inner: Arc::new(Inner {
                device_id: parts.device_id,
                registry: RwLock::new(parts.registry),
                keys: parts.keys,
                sockets: parts.sockets,
                prefer_kept: parts.prefer_kept,
                path: parts.path,
                state: Mutex::new(state),
                told: Mutex::new(BTreeSet::new()),
            }),
        }
    }

    /// From now on the hub is asked by these means: the device has another certificate.
    pub fn set_registry(&self, registry: Arc<dyn CloudRegistry>) {
        *self.inner.registry.write() = registry;
    }

    /// The kept identity of a module, without asking anybody.
    #[must_use]
    pub fn kept(&self, module_id: &str) -> Option<ModuleIdentity> {
        self.inner.kept(module_id)
    }

    /// Fetches an identity and sets its keys again, whatever is thought of them.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn upload_again(&self, module_id: &str) -> Result<(), CloudError> {
        self.inner.told.lock().remove(module_id);
        self.inner.fetch(module_id).await
    }
}

fn read_state(path: &std::path::Path) -> State {
    let read = files::read(path)
        .map_err(|error| error.to_string())
        .and_then(|content| match content {
            Some(content) => serde_json::from_slice(&content).map_err(|error| error.to_string()),
            None => Ok(State::default()),
        });
    read.unwrap_or_else(|error| {
        tracing::warn!(file = %path.display(), %error, "what was kept of module identities cannot be read; the hub is asked again");
        State::default()
    })
}

impl Inner {
    fn registry(&self) -> Arc<dyn CloudRegistry> {
        Arc::clone(&self.registry.read())
    }

    fn identity(&self, module_id: &str, kept: &Kept) -> Option<ModuleIdentity> {
        Some(ModuleIdentity {
            identity: Identity::module(&self.device_id, module_id).ok()?,
            generation_id: kept.generation_id.clone(),
            managed_by: kept.managed_by.clone(),
        })
    }

    fn kept(&self, module_id: &str) -> Option<ModuleIdentity> {
        let kept = self.state.lock().modules.get(module_id).cloned()?;
        self.identity(module_id, &kept)
    }

    /// Changes what is kept, and writes it when it is another thing afterwards.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        let before = state.clone();
        change(&mut state);
        if *state == before {
            return;
        }
        // Text of a few names per module; written under the lock, so that the newest stands last.
        let written = serde_json::to_vec_pretty(&*state)
            .map_err(std::io::Error::other)
            .and_then(|content| files::write(&self.path, &content, PRIVATE));
        if let Err(error) = written {
            tracing::error!(file = %self.path.display(), %error, "module identities cannot be kept; a start without the hub would miss them");
        }
    }

    /// Asks the hub for a module's identity and gives it our keys.
    async fn fetch(&self, module_id: &str) -> Result<(), CloudError> {
        let mut module = self.registry().create_module(module_id, MANAGED_BY).await?;
        let keyed = {
            let state = self.state.lock();
            let same = state
                .modules
                .get(module_id)
                .is_some_and(|kept| kept.keyed && kept.generation_id == module.generation_id);
            same && self.told.lock().contains(module_id)
        };
        if !keyed {
            module = self.upload_keys(&module).await?;
        }
        self.told.lock().insert(module_id.to_owned());
        self.change(|state| {
            state.doomed.remove(module_id);
            let kept = Kept {
                generation_id: module.generation_id.clone(),
                managed_by: module.managed_by.clone(),
                keyed: true,
            };
            state.modules.insert(module_id.to_owned(), kept);
        });
        Ok(())
    }

    async fn upload_keys(&self, module: &HubModule) -> Result<HubModule, CloudError> {
        let key = async |slot| {
            self.keys
                .module_key(&module.module_id, &module.generation_id, slot)
                .await
                .map_err(|error| CloudError::Unreachable(error.to_string()))
        };
        let (primary, secondary) = (key(Slot::Primary).await?, key(Slot::Secondary).await?);
        self.registry()
            .set_module_keys(module, &primary, &secondary)
            .await
    }

    /// Tells the hub of deletions that it has not heard of.
    async fn bury(&self) {
        let doomed: Vec<String> = self.state.lock().doomed.iter().cloned().collect();
        for module_id in doomed {
            match self.registry().delete_module(&module_id).await {
                Ok(()) | Err(CloudError::Refused { .. }) => self.change(|state| {
                    state.doomed.remove(&module_id);
                }),
                Err(_) => return,
            }
        }
    }

    async fn refresh(&self) -> Result<(), CloudError> {
        let modules = self.registry().modules().await?;
        self.change(|state| {
            let listed: BTreeMap<&str, &HubModule> = modules
                .iter()
                .map(|module| (module.module_id.as_str(), module))
                .collect();
            state
                .modules
                .retain(|module_id, _| listed.contains_key(module_id.as_str()));
            for (module_id, module) in listed {
                let known = state.modules.get(module_id);
                let keyed =
                    known.is_some_and(|kept| kept.keyed && kept.generation_id == module.generation_id);
                let kept = Kept {
                    generation_id: module.generation_id.clone(),
                    managed_by: module.managed_by.clone(),
                    keyed,
                };
                state.modules.insert(module_id.to_owned(), kept);
            }
        });
        self.bury().await;
        Ok(())
    }
}

/// Runs a call in a task of its own and waits for it, for a moment only if there is something to go on with. The call
/// ends in the background then.
async fn patiently(
    known: bool,
    call: impl Future<Output = Result<(), CloudError>> + Send + 'static,
) -> Result<(), CloudError> {
    let task = tokio::spawn(call);
    let joined = if known {
        match tokio::time::timeout(PATIENCE, task).await {
            Ok(joined) => joined,
            Err(_) => return Err(CloudError::Unreachable("no answer yet".to_owned())),
        }
    } else {
        task.await
    };
    joined.unwrap_or_else(|_| Err(CloudError::Unreachable("the request was given up".to_owned())))
}

impl ModuleIdentities for Identities {
    fn ensure<'a>(&'a self, module_id: &'a str) -> BoxFuture<'a, Result<ModuleIdentity, IdentityError>> {
        Box::pin(async move {
            let inner = &self.inner;
            // Before anything can fail: a container that exists already wants its socket.
            inner.sockets.open(module_id);
            let known = inner.kept(module_id);
            if inner.prefer_kept
                && let Some(known) = known
            {
                return Ok(known);
            }
            let call = {
                let (inner, module_id) = (Arc::clone(inner), module_id.to_owned());
                async move { inner.fetch(&module_id).await }
            };
            let fetched = patiently(known.is_some(), call).await;
            match (fetched, inner.kept(module_id)) {
                (Ok(()), Some(identity)) => Ok(identity),
                (Err(CloudError::Refused { status, message }), _) => Err(IdentityError::Refused {
                    module: module_id.to_owned(),
                    cause: format!("{status} {message}"),
                }),
                (Err(error), Some(identity)) => {
                    tracing::debug!(module = module_id, %error, "the kept identity is used");
                    Ok(identity)
                }
                (Err(CloudError::Unauthorized(cause)), None) => Err(IdentityError::Refused {
                    module: module_id.to_owned(),
                    cause,
                }),
                (outcome, None) => Err(IdentityError::Offline {
                    module: module_id.to_owned(),
                    cause: outcome.err().map_or_else(
                        || format!("{module_id} is no module id"),
                        |error| error.to_string(),
                    ),
                }),
            }
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ModuleIdentity>, IdentityError>> {
        Box::pin(async move {
            let call = {
                let inner = Arc::clone(&self.inner);
                async move { inner.refresh().await }
            };
            // What is kept is always enough to go on with.
            if let Err(error) = patiently(true, call).await {
                tracing::debug!(%error, "kept module identities are listed");
            }
            let modules = self.inner.state.lock().modules.clone();
            Ok(modules
                .iter()
                .filter_map(|(module_id, kept)| self.inner.identity(module_id, kept))
                .collect())
        })
    }

    fn remove<'a>(&'a self, module_id: &'a str) -> BoxFuture<'a, Result<(), IdentityError>> {
        Box::pin(async move {
            let inner = &self.inner;
            let system = module_id.starts_with('$');
            let managed = inner
                .kept(module_id)
                .is_some_and(|module| module.managed_by.eq_ignore_ascii_case(MANAGED_BY));
            inner.sockets.close(module_id);
            inner.told.lock().remove(module_id);
            inner.change(|state| {
                state.modules.remove(module_id);
                if managed && !system {
                    state.doomed.insert(module_id.to_owned());
                }
            });
            let inner = Arc::clone(inner);
            tokio::spawn(async move { inner.bury().await });
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests;
