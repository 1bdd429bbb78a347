//! The hub's side in memory: identities, the twin, and the rest of the daemon.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use holdfast_model::method::{MethodRequest, MethodResponse};
use holdfast_model::{Identity, Timestamp};
use holdfast_ports::BoxFuture;
use serde_json::{Map, Value, json};
use tokio::sync::{Notify, oneshot};

use crate::host::{BuiltIn, BundleRequest, Host, Put, TemporaryFile, UploadError};
use crate::identities::{IdentityError, ModuleIdentities, ModuleIdentity};
use crate::manifest::{EDGE_AGENT, EDGE_HUB, merge, read_object};
use crate::runtime::{ContainerState, LogQuery, LogStream, RuntimeError};
use crate::twin::{AgentTwin, TwinError, TwinEvent};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Default)]
struct Identities {
    known: BTreeMap<String, ModuleIdentity>,
    offline: bool,
    serial: u64,
    removed: Vec<String>,
}

/// Module identities in memory. Clones are the same.
#[derive(Clone)]
pub struct MemoryIdentities {
    device: String,
    inner: Arc<Mutex<Identities>>,
}

impl MemoryIdentities {
    /// Of a device, none yet.
    #[must_use]
    pub fn new(device: &str) -> Self {
        MemoryIdentities {
            device: device.to_owned(),
            inner: Arc::default(),
        }
    }

    /// Whether the hub can be reached; known identities are answered anyway.
    pub fn set_offline(&self, offline: bool) {
        lock(&self.inner).offline = offline;
    }

    /// Makes an identity anew, with another generation id.
    pub fn renew(&self, module: &str) {
        lock(&self.inner).known.remove(module);
    }

    /// Identities that were removed, in order.
    #[must_use]
    pub fn removed(&self) -> Vec<String> {
        lock(&self.inner).removed.clone()
    }
}

impl ModuleIdentities for MemoryIdentities {
    fn ensure<'a>(&'a self, module_id: &'a str) -> BoxFuture<'a, Result<ModuleIdentity, IdentityError>> {
        Box::pin(async move {
            let mut inner = lock(&self.inner);
            if let Some(known) = inner.known.get(module_id) {
                return Ok(known.clone());
            }
            if inner.offline {
                return Err(IdentityError::Offline {
                    module: module_id.to_owned(),
                    cause: "no network".to_owned(),
                });
            }
            inner.serial += 1;
            let identity =
                Identity::module(&self.device, module_id).map_err(|error| IdentityError::Refused {
                    module: module_id.to_owned(),
                    cause: error.to_string(),
                })?;
            let made = ModuleIdentity {
                identity,
                generation_id: format!("g{}", inner.serial),
                managed_by: "IotEdge".to_owned(),
            };
            inner.known.insert(module_id.to_owned(), made.clone());
            Ok(made)
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ModuleIdentity>, IdentityError>> {
        Box::pin(async { Ok(lock(&self.inner).known.values().cloned().collect()) })
    }

    fn remove<'a>(&'a self, module_id: &'a str) -> BoxFuture<'a, Result<(), IdentityError>> {
        Box::pin(async move {
            let mut inner = lock(&self.inner);
            if inner.offline {
                return Err(IdentityError::Offline {
                    module: module_id.to_owned(),
                    cause: "no network".to_owned(),
                });
            }
            inner.known.remove(module_id);
            inner.removed.push(module_id.to_owned());
            Ok(())
        })
    }
}

#[derive(Default)]
struct Twin {
    desired: Map<String, Value>,
    reported: Map<String, Value>,
    version: u64,
    connected: bool,
    refuse_above: Option<usize>,
    events: VecDeque<TwinEvent>,
    patches: Vec<Value>,
    answers: BTreeMap<u64, oneshot::Sender<MethodResponse>>,
    serial: u64,
    reads: u64,
}

/// The twin of `$edgeAgent` in memory. Clones are the same.
#[derive(Clone, Default)]
pub struct MemoryTwin {
    inner: Arc<Mutex<Twin>>,
    ready: Arc<Notify>,
}

impl MemoryTwin {
    /// Empty and not connected.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn tell(&self, event: TwinEvent) {
        lock(&self.inner).events.push_back(event);
        self.ready.notify_one();
    }

    /// The connection is there.
    pub fn connect(&self) {
        lock(&self.inner).connected = true;
        self.tell(TwinEvent::Connected);
    }

    /// A daemon starts: what an earlier one was told is forgotten, and a connection that is there is told of.
    pub fn attach(&self) {
        let mut inner = lock(&self.inner);
        inner.events.clear();
        let connected = inner.connected;
        drop(inner);
        if connected {
            self.tell(TwinEvent::Connected);
        }
    }

    /// It is gone.
    pub fn disconnect(&self) {
        lock(&self.inner).connected = false;
        self.tell(TwinEvent::Disconnected("no network".to_owned()));
    }

    /// Replaces the desired properties; a connected agent gets a patch. Returns the version.
    pub fn deploy(&self, desired: &Value) -> u64 {
        let new = desired.as_object().cloned().unwrap_or_default();
        let mut inner = lock(&self.inner);
        inner.version += 1;
        let version = inner.version;
        let patch = crate::reported::difference(&inner.desired, &new);
        inner.desired = new;
        let connected = inner.connected;
        drop(inner);
        if connected {
            self.tell(TwinEvent::Desired {
                version,
                patch: Value::Object(patch).to_string().into(),
            });
        }
        version
    }

    /// Changes the desired properties without telling anybody, as a push that got lost. Returns the version.
    pub fn deploy_silently(&self, desired: &Value) -> u64 {
        let mut inner = lock(&self.inner);
        inner.version += 1;
        inner.desired = desired.as_object().cloned().unwrap_or_default();
        inner.version
    }

    /// Tells of a patch as it is.
    pub fn push(&self, version: u64, patch: &Value) {
        self.tell(TwinEvent::Desired {
            version,
            patch: patch.to_string().into(),
        });
    }

    /// Reports of more bytes are refused.
    pub fn refuse_above(&self, bytes: usize) {
        lock(&self.inner).refuse_above = Some(bytes);
    }

    /// The reported properties.
    #[must_use]
    pub fn reported(&self) -> Value {
        Value::Object(lock(&self.inner).reported.clone())
    }

    /// Sets what was reported before.
    pub fn set_reported(&self, reported: &Value) {
        lock(&self.inner).reported = reported.as_object().cloned().unwrap_or_default();
    }

    /// Patches that came since the last time.
    pub fn take_patches(&self) -> Vec<Value> {
        std::mem::take(&mut lock(&self.inner).patches)
    }

    /// How often the whole twin was read.
    #[must_use]
    pub fn reads(&self) -> u64 {
        lock(&self.inner).reads
    }

    /// Calls a direct method; status and JSON.
    pub async fn method(&self, name: &str, payload: &Value) -> (i64, Value) {
        let (sender, answer) = oneshot::channel();
        let request_id = {
            let mut inner = lock(&self.inner);
            inner.serial += 1;
            let id = inner.serial;
            inner.answers.insert(id, sender);
            id
        };
        let payload = if payload.is_null() {
            Bytes::new()
        } else {
            payload.to_string().into()
        };
        self.tell(TwinEvent::Method(MethodRequest {
            request_id,
            name: name.to_owned(),
            payload,
        }));
        match answer.await {
            Ok(response) => (
                response.status,
                serde_json::from_slice(&response.payload).unwrap_or(Value::Null),
            ),
            Err(_) => (0, Value::Null),
        }
    }
}

impl AgentTwin for MemoryTwin {
    fn next(&self) -> BoxFuture<'_, TwinEvent> {
        Box::pin(async {
            loop {
                if let Some(event) = lock(&self.inner).events.pop_front() {
                    return event;
                }
                self.ready.notified().await;
            }
        })
    }

    fn twin(&self) -> BoxFuture<'_, Result<Bytes, TwinError>> {
        Box::pin(async {
            let mut inner = lock(&self.inner);
            inner.reads += 1;
            if !inner.connected {
                return Err(TwinError::Unreachable("no network".to_owned()));
            }
            let mut desired = inner.desired.clone();
            desired.insert("$version".to_owned(), inner.version.into());
            desired.insert(
                "$metadata".to_owned(),
                json!({"$lastUpdated": "2026-11-21T00:00:00Z"}),
            );
            let mut reported = inner.reported.clone();
            reported.insert("$version".to_owned(), 1.into());
            Ok(json!({"desired": desired, "reported": reported})
                .to_string()
                .into())
        })
    }

    fn report(&self, patch: Bytes) -> BoxFuture<'_, Result<(), TwinError>> {
        Box::pin(async move {
            let mut inner = lock(&self.inner);
            if !inner.connected {
                return Err(TwinError::Unreachable("no network".to_owned()));
            }
            if inner.refuse_above.is_some_and(|max| patch.len() > max) {
                return Err(TwinError::Refused("413 too large".to_owned()));
            }
            let patch = read_object(&patch).map_err(TwinError::Refused)?;
            inner.patches.push(Value::Object(patch.clone()));
            merge(&mut inner.reported, patch);
            Ok(())
        })
    }

    fn answer(&self, request_id: u64, response: MethodResponse) {
        if let Some(sender) = lock(&self.inner).answers.remove(&request_id) {
            let _ = sender.send(response);
        }
    }
}

#[derive(Default)]
struct HostInner {
    puts: Vec<Put>,
    put_errors: VecDeque<UploadError>,
    hub: Option<BuiltIn>,
    hub_calls: Vec<String>,
    hub_faults: u32,
    ticks: i64,
    bundle: Vec<u8>,
    requests: Vec<BundleRequest>,
}

/// The rest of the daemon in memory: edgeAgent runs, edgeHub does as it is told, uploads are kept.
#[derive(Clone, Default)]
pub struct MemoryHost {
    inner: Arc<Mutex<HostInner>>,
    hub_changed: Arc<Notify>,
}

impl MemoryHost {
    /// Nothing uploaded yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// PUTs that were made, successful or not.
    #[must_use]
    pub fn puts(&self) -> Vec<Put> {
        lock(&self.inner).puts.clone()
    }

    /// The next PUTs fail like this.
    pub fn fail_puts(&self, errors: Vec<UploadError>) {
        lock(&self.inner).put_errors = errors.into();
    }

    /// What was done to the edge hub since the last time: `start`, `stop`, `restart`, with the environment if there is one.
    pub fn take_hub_calls(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.inner).hub_calls)
    }

    /// The next starts of the edge hub fail, so many.
    pub fn fail_hub_starts(&self, count: u32) {
        lock(&self.inner).hub_faults = count;
    }

    /// The edge hub ends by itself.
    pub fn crash_hub(&self, exit_code: i64) {
        let at = self.later();
        if let Some(hub) = &mut lock(&self.inner).hub {
            hub.state = ContainerState::Exited;
            hub.exit_code = exit_code;
            hub.exited_at = at;
        }
        self.hub_changed.notify_one();
    }

    /// A daemon starts: its edge hub has not run yet.
    pub fn attach(&self) {
        lock(&self.inner).hub = None;
    }

    /// A time that differs from all earlier ones.
    fn later(&self) -> Timestamp {
        let mut inner = lock(&self.inner);
        inner.ticks += 1;
        Timestamp::from_seconds(1_790_000_000 + inner.ticks)
    }

    fn begin_hub(&self, what: &str, env: &BTreeMap<String, String>) -> Result<(), String> {
        let at = self.later();
        let mut inner = lock(&self.inner);
        let pairs: Vec<String> = env
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let call = format!("{what} {}", pairs.join(" "));
        inner.hub_calls.push(call.trim().to_owned());
        let fails = inner.hub_faults > 0;
        inner.hub_faults = inner.hub_faults.saturating_sub(1);
        let hub = inner.hub.get_or_insert(BuiltIn::new(EDGE_HUB));
        if what == "restart" || fails {
            hub.exited_at = at;
        }
        hub.state = if fails {
            ContainerState::Exited
        } else {
            ContainerState::Running
        };
        hub.exit_code = i64::from(fails);
        hub.description = fails.then(|| "the port is taken".to_owned());
        hub.started_at = at;
        match fails {
            true => Err("the port is taken".to_owned()),
            false => Ok(()),
        }
    }

    /// Content of support bundles.
    pub fn set_bundle(&self, content: &[u8]) {
        lock(&self.inner).bundle = content.to_vec();
    }

    /// Support bundles that were asked for.
    #[must_use]
    pub fn bundle_requests(&self) -> Vec<BundleRequest> {
        lock(&self.inner).requests.clone()
    }
}

impl Host for MemoryHost {
    fn built_ins(&self) -> Vec<BuiltIn> {
        let agent = BuiltIn {
            state: ContainerState::Running,
            started_at: Timestamp::from_seconds(1_790_000_000),
            ..BuiltIn::new(EDGE_AGENT)
        };
        let hub = lock(&self.inner).hub.clone();
        vec![agent, hub.unwrap_or(BuiltIn::new(EDGE_HUB))]
    }

    fn start_hub<'a>(&'a self, env: &'a BTreeMap<String, String>) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move { self.begin_hub("start", env) })
    }

    fn stop_hub(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let at = self.later();
            let mut inner = lock(&self.inner);
            inner.hub_calls.push("stop".to_owned());
            let hub = inner.hub.get_or_insert(BuiltIn::new(EDGE_HUB));
            hub.state = ContainerState::Exited;
            hub.exit_code = 0;
            hub.exited_at = at;
            Ok(())
        })
    }

    fn restart_hub<'a>(&'a self, env: &'a BTreeMap<String, String>) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move { self.begin_hub("restart", env) })
    }

    fn hub_changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.hub_changed.notified())
    }

    fn logs<'a>(
        &'a self,
        name: &'a str,
        _query: &'a LogQuery,
    ) -> BoxFuture<'a, Result<Box<dyn LogStream>, RuntimeError>> {
        Box::pin(async move { Err(RuntimeError::NotFound(format!("{name} keeps no log"))) })
    }

    fn put<'a>(&'a self, put: &'a Put) -> BoxFuture<'a, Result<(), UploadError>> {
        Box::pin(async move {
            let mut inner = lock(&self.inner);
            inner.puts.push(put.clone());
            match inner.put_errors.pop_front() {
                Some(error) => Err(error),
                None => Ok(()),
            }
        })
    }

    fn support_bundle<'a>(
        &'a self,
        request: &'a BundleRequest,
    ) -> BoxFuture<'a, Result<TemporaryFile, String>> {
        Box::pin(async move {
            let mut inner = lock(&self.inner);
            inner.requests.push(request.clone());
            let path = std::env::temp_dir().join(format!("bundle-{}.zip", uuid::Uuid::new_v4()));
            std::fs::write(&path, &inner.bundle).map_err(|error| error.to_string())?;
            Ok(TemporaryFile(path))
        })
    }
}
