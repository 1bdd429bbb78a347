//! A workload socket for each module, in a folder of its own that its container mounts.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;

use crate::http::callers::container_of;
use crate::http::server::{self, Served, Throttle};
use crate::http::workload::{Generations, Workload};
use crate::identities::{Identities, ModuleSockets};

/// Anyone in the container may connect; who is let in is decided by process.
pub const WORKLOAD_MODE: u32 = 0o666;
/// Name of the socket in a module's folder.
const SOCKET: &str = "workload.sock";

/// The sockets.
pub struct WorkloadSockets {
    folder: PathBuf,
    api: Arc<Workload>,
    throttle: Throttle,
    open: Mutex<HashMap<String, Served>>,
}

impl WorkloadSockets {
    /// Folders below `folder`, requests to `api`.
    #[must_use]
    pub fn new(folder: PathBuf, api: Arc<Workload>, throttle: Throttle) -> Self {
        WorkloadSockets {
            folder,
            api,
            throttle,
            open: Mutex::new(HashMap::new()),
        }
    }

    /// What answers.
    #[must_use]
    pub fn api(&self) -> &Arc<Workload> {
        &self.api
    }

    /// What all sockets share.
    #[must_use]
    pub fn throttle(&self) -> &Throttle {
        &self.throttle
    }
}

impl ModuleSockets for WorkloadSockets {
    fn open(&self, module_id: &str) {
        let name = container_of(module_id);
        // System modules are this process. Ids of modules cannot hold a slash; two of them would be folders of others.
        if module_id.starts_with('$') || matches!(name, "." | ".." | "") || name.contains('/') {
            return;
        }
        let mut open = self.open.lock();
        if open.contains_key(name) {
            return;
        }
        let path = self.folder.join(name).join(SOCKET);
        match server::serve(&path, WORKLOAD_MODE, Arc::clone(&self.api), self.throttle.clone()) {
            Ok(served) => {
                open.insert(name.to_owned(), served);
            }
            Err(error) => tracing::error!(module = name, %error, "the module has no workload socket"),
        }
    }

    fn close(&self, module_id: &str) {
        let name = container_of(module_id);
        if self.open.lock().remove(name).is_some() {
            let _ = std::fs::remove_dir(self.folder.join(name));
        }
    }
}

/// Generation ids as identities have them; empty until they are open.
#[derive(Default)]
pub struct KnownGenerations(OnceLock<Weak<Identities>>);

impl KnownGenerations {
    /// From now on these are asked.
    pub fn set(&self, identities: &Arc<Identities>) {
        let _ = self.0.set(Arc::downgrade(identities));
    }
}

impl Generations for KnownGenerations {
    fn generation_of(&self, module_id: &str) -> Option<String> {
        let identities = self.0.get()?.upgrade()?;
        Some(identities.kept(module_id)?.generation_id)
    }
}
