//! Identities against a registry in memory.

use holdfast_model::credential::SymmetricKey;
use holdfast_upstream::port::{ScopeIdentity, ScopePage};

use super::*;
use crate::keys::FileKeys;

#[derive(Default)]
struct Registry {
    state: Mutex<Remote>,
}

#[derive(Default)]
struct Remote {
    offline: bool,
    refuses: bool,
    modules: BTreeMap<String, HubModule>,
    keys: BTreeMap<String, SymmetricKey>,
    generation: u64,
    uploads: usize,
}

impl Registry {
    fn check(&self) -> Result<parking_lot::MutexGuard<'_, Remote>, CloudError> {
        let state = self.state.lock();
        if state.offline {
            return Err(CloudError::Unreachable("cut".to_owned()));
        }
        if state.refuses {
            return Err(CloudError::Refused {
                status: 400,
                message: "no".to_owned(),
            });
        }
        Ok(state)
    }
}

impl CloudRegistry for Registry {
    fn modules(&self) -> BoxFuture<'_, Result<Vec<HubModule>, CloudError>> {
        Box::pin(async { Ok(self.check()?.modules.values().cloned().collect()) })
    }

    fn create_module<'a>(
        &'a self,
        module_id: &'a str,
        managed_by: &'a str,
    ) -> BoxFuture<'a, Result<HubModule, CloudError>> {
        Box::pin(async move {
            let mut state = self.check()?;
            state.generation += 1;
            let generation_id = state.generation.to_string();
            let module = state.modules.entry(module_id.to_owned()).or_insert(HubModule {
                module_id: module_id.to_owned(),
                generation_id,
                managed_by: managed_by.to_owned(),
                etag: String::new(),
            });
            Ok(module.clone())
        })
    }

    fn set_module_keys<'a>(
        &'a self,
        module: &'a HubModule,
        primary: &'a SymmetricKey,
        _: &'a SymmetricKey,
    ) -> BoxFuture<'a, Result<HubModule, CloudError>> {
        Box::pin(async move {
            let mut state = self.check()?;
            state.uploads += 1;
            state.keys.insert(module.module_id.clone(), primary.clone());
            Ok(module.clone())
        })
    }

    fn delete_module<'a>(&'a self, module_id: &'a str) -> BoxFuture<'a, Result<(), CloudError>> {
        Box::pin(async move {
            self.check()?.modules.remove(module_id);
            Ok(())
        })
    }

    fn scope_page<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        _: Option<&'a str>,
    ) -> BoxFuture<'a, Result<ScopePage, CloudError>> {
        Box::pin(async { Ok(ScopePage::default()) })
    }

    fn scope_identity<'a>(
        &'a self,
        _: &'a Identity,
        _: &'a str,
    ) -> BoxFuture<'a, Result<Vec<ScopeIdentity>, CloudError>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

#[derive(Default)]
struct Sockets(Mutex<BTreeSet<String>>);

impl ModuleSockets for Sockets {
    fn open(&self, module_id: &str) {
        self.0.lock().insert(module_id.to_owned());
    }

    fn close(&self, module_id: &str) {
        self.0.lock().remove(module_id);
    }
}

struct Rig {
    dir: tempfile::TempDir,
    registry: Arc<Registry>,
    keys: Arc<FileKeys>,
    sockets: Arc<Sockets>,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keys = Arc::new(FileKeys::open(dir.path(), None).unwrap());
        Rig {
            dir,
            registry: Arc::default(),
            keys,
            sockets: Arc::default(),
        }
    }

    fn open(&self, hub: &str) -> Identities {
        Identities::open(Parts {
            hub: hub.to_owned(),
            device_id: "d".to_owned(),
            registry: Arc::clone(&self.registry) as _,
            keys: Arc::clone(&self.keys) as _,
            sockets: Arc::clone(&self.sockets) as _,
            prefer_kept: false,
            path: self.dir.path().join("modules.json"),
        })
    }

    fn remote(&self) -> parking_lot::MutexGuard<'_, Remote> {
        self.registry.state.lock()
    }
}

#[tokio::test]
async fn an_identity_is_made_once_with_keys_of_the_device() {
    let rig = Rig::new();
    let identities = rig.open("h");
    let first = identities.ensure("m").await.unwrap();
    assert_eq!(first.identity.as_str(), "d/m");
    assert_eq!(first.managed_by, MANAGED_BY);
    assert_eq!(identities.ensure("m").await.unwrap(), first);
    assert_eq!(rig.remote().uploads, 1, "known keys are not sent again");
    let own = rig
        .keys
        .module_key("m", &first.generation_id, Slot::Primary)
        .await
        .unwrap();
    assert!(rig.remote().keys["m"] == own);
    assert!(rig.sockets.0.lock().contains("m"));
    // A new process sends them once more, since they may have been changed at the hub.
    rig.open("h").ensure("m").await.unwrap();
    assert_eq!(rig.remote().uploads, 2);
}

#[tokio::test]
async fn offline_what_is_kept_is_used() {
    let rig = Rig::new();
    let known = rig.open("h").ensure("m").await.unwrap();
    rig.remote().offline = true;
    let identities = rig.open("h");
    assert_eq!(identities.ensure("m").await.unwrap(), known);
    assert_eq!(identities.list().await.unwrap(), [known]);
    assert!(rig.sockets.0.lock().contains("m"));
    assert!(matches!(
        identities.ensure("n").await,
        Err(IdentityError::Offline { .. })
    ));
    // Another hub: nothing is known of it.
    assert!(rig.open("other").list().await.unwrap().is_empty());
}

#[tokio::test]
async fn an_identity_made_anew_gets_new_keys() {
    let rig = Rig::new();
    let identities = rig.open("h");
    let first = identities.ensure("m").await.unwrap();
    rig.remote().modules.clear();
    assert!(
        identities.list().await.unwrap().is_empty(),
        "the hub has forgotten it"
    );
    let second = identities.ensure("m").await.unwrap();
    assert_ne!(first.generation_id, second.generation_id);
    assert_eq!(rig.remote().uploads, 2);
}

#[tokio::test]
async fn a_deletion_is_told_when_the_hub_is_back() {
    let rig = Rig::new();
    let identities = rig.open("h");
    identities.ensure("m").await.unwrap();
    rig.remote().modules.insert(
        "foreign".to_owned(),
        HubModule {
            module_id: "foreign".to_owned(),
            generation_id: "9".to_owned(),
            managed_by: "somebody".to_owned(),
            etag: String::new(),
        },
    );
    identities.list().await.unwrap();
    rig.remote().offline = true;
    identities.remove("m").await.unwrap();
    identities.remove("foreign").await.unwrap();
    assert!(identities.list().await.unwrap().is_empty());
    assert!(!rig.sockets.0.lock().contains("m"));
    // Over a restart.
    drop(identities);
    rig.remote().offline = false;
    rig.open("h").list().await.unwrap();
    let left: Vec<String> = rig.remote().modules.keys().cloned().collect();
    assert_eq!(left, ["foreign"], "others' identities are left alone");
}

#[tokio::test]
async fn a_refusal_is_told_and_damage_is_no_end() {
    let rig = Rig::new();
    rig.remote().refuses = true;
    assert!(matches!(
        rig.open("h").ensure("m").await,
        Err(IdentityError::Refused { .. })
    ));
    rig.remote().refuses = false;
    rig.open("h").ensure("m").await.unwrap();
    std::fs::write(rig.dir.path().join("modules.json"), b"{\"modules\":").unwrap();
    rig.open("h").ensure("m").await.unwrap();
}
