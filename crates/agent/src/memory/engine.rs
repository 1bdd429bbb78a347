//! A container engine in memory, with faults.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use holdfast_ports::BoxFuture;
use holdfast_ports::clock::Clock;
use serde_json::{Map, Value, json};
use tokio::sync::Notify;

use crate::runtime::{
    Container, ContainerState, ContainerStats, EngineInfo, Health, Image, LogChunk, LogQuery, LogStream,
    ModuleRuntime, NetworkSpec, OWNER, OWNER_LABEL, PullProgress, RegistryAuth, RuntimeError,
};

/// What a call does instead of its work.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Fails.
    Fail(RuntimeError),
    /// Never ends.
    Hang,
    /// Ends later.
    Delay(Duration),
}

/// What containers of an image do when they are started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Behaviour {
    /// They run.
    Run,
    /// They end after a time (at once, if it is zero).
    Exit {
        /// After this time.
        after: Duration,
        /// With this code.
        code: i64,
    },
    /// They run with a health check that says this.
    Health(Health),
}

#[derive(Clone)]
struct Kept {
    container: Container,
    body: Map<String, Value>,
    log: Vec<LogChunk>,
    exit_at: Option<(tokio::time::Instant, i64)>,
}

#[derive(Default)]
struct Inner {
    containers: BTreeMap<String, Kept>,
    registry: BTreeSet<String>,
    images: BTreeMap<String, String>,
    behaviours: BTreeMap<String, Behaviour>,
    faults: BTreeMap<(String, String), (Fault, u32)>,
    calls: Vec<(tokio::time::Instant, String)>,
    auths: BTreeMap<String, Option<RegistryAuth>>,
    graces: BTreeMap<String, Duration>,
    serial: u64,
    network: Option<IpAddr>,
    pulling: usize,
    pulling_max: usize,
}

/// The engine. Cheap to clone; clones are the same engine.
#[derive(Clone)]
pub struct MemoryEngine {
    inner: Arc<Mutex<Inner>>,
    changed: Arc<Notify>,
    clock: Arc<dyn Clock>,
}

impl MemoryEngine {
    /// Empty; images have to be put into its registry first.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        MemoryEngine {
            inner: Arc::default(),
            changed: Arc::default(),
            clock,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Images that can be pulled.
    pub fn offer(&self, images: &[&str]) {
        self.lock()
            .registry
            .extend(images.iter().map(|image| (*image).to_owned()));
    }

    /// An image that can no longer be pulled.
    pub fn withdraw(&self, image: &str) {
        self.lock().registry.remove(image);
    }

    /// What containers of an image do; they [`Behaviour::Run`] otherwise.
    pub fn behave(&self, image: &str, behaviour: Behaviour) {
        self.lock().behaviours.insert(image.to_owned(), behaviour);
    }

    /// The next `times` calls of `operation` (name of the port's method) on `subject` (a module, an image, or `*`) do this.
    pub fn fault(&self, operation: &str, subject: &str, fault: Fault, times: u32) {
        self.lock()
            .faults
            .insert((operation.to_owned(), subject.to_owned()), (fault, times));
    }

    /// Takes all faults away. A call that hangs goes on hanging.
    pub fn heal(&self) {
        self.lock().faults.clear();
    }

    /// Calls that change something, as `operation subject`, since the last time; in order.
    pub fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().calls)
            .into_iter()
            .map(|(_, call)| call)
            .collect()
    }

    /// When a call was made last.
    #[must_use]
    pub fn called_at(&self, call: &str) -> Option<tokio::time::Instant> {
        self.lock()
            .calls
            .iter()
            .rev()
            .find(|(_, made)| made == call)
            .map(|(at, _)| *at)
    }

    /// Pulls that were under way at once, at most.
    #[must_use]
    pub fn pulls_at_once(&self) -> usize {
        self.lock().pulling_max
    }

    /// Credentials of the last pull of an image.
    #[must_use]
    pub fn auth_of(&self, image: &str) -> Option<RegistryAuth> {
        self.lock().auths.get(image).cloned().flatten()
    }

    /// Time that a container was given when it was last stopped.
    #[must_use]
    pub fn grace_of(&self, name: &str) -> Option<Duration> {
        self.lock().graces.get(name).copied()
    }

    /// A container, whoever owns it.
    #[must_use]
    pub fn container(&self, name: &str) -> Option<Container> {
        self.settle();
        self.lock()
            .containers
            .get(name)
            .map(|kept| kept.container.clone())
    }

    /// Names of containers that run.
    #[must_use]
    pub fn running(&self) -> Vec<String> {
        self.settle();
        self.lock()
            .containers
            .values()
            .filter(|kept| kept.container.state == ContainerState::Running)
            .map(|kept| kept.container.name.clone())
            .collect()
    }

    /// The body a container was made with.
    #[must_use]
    pub fn body(&self, name: &str) -> Option<Map<String, Value>> {
        self.lock().containers.get(name).map(|kept| kept.body.clone())
    }

    /// Puts a container there that is not of this runtime.
    pub fn put_foreign(&self, name: &str) {
        self.put(name, "foreign:1", BTreeMap::new());
    }

    /// Puts a running container there that carries the owner label and nothing else, as the original's do.
    pub fn put_owned(&self, name: &str, image: &str) {
        self.put(
            name,
            image,
            BTreeMap::from([(OWNER_LABEL.to_owned(), OWNER.to_owned())]),
        );
    }

    fn put(&self, name: &str, image: &str, labels: BTreeMap<String, String>) {
        let now = self.clock.now();
        let mut inner = self.lock();
        inner.serial += 1;
        let mut container = blank(name, image, inner.serial);
        container.labels = labels;
        container.state = ContainerState::Running;
        container.started_at = Some(now);
        let kept = Kept {
            container,
            body: Map::new(),
            log: Vec::new(),
            exit_at: None,
        };
        inner.containers.insert(name.to_owned(), kept);
        drop(inner);
        self.changed.notify_one();
    }

    /// Ends a container.
    pub fn exit(&self, name: &str, code: i64) {
        let now = self.clock.now();
        self.alter(name, |container| {
            container.state = ContainerState::Exited;
            container.exit_code = code;
            container.finished_at = Some(now);
            container.pid = None;
        });
    }

    /// Ends all containers, as a machine that is switched off does.
    pub fn power_off(&self) {
        let names: Vec<String> = self.running();
        for name in names {
            self.exit(&name, 255);
        }
    }

    /// Changes a container behind everybody's back.
    pub fn alter(&self, name: &str, change: impl FnOnce(&mut Container)) {
        if let Some(kept) = self.lock().containers.get_mut(name) {
            kept.exit_at = None;
            change(&mut kept.container);
        }
        self.changed.notify_one();
    }

    /// Removes a container behind everybody's back.
    pub fn lose(&self, name: &str) {
        self.lock().containers.remove(name);
        self.changed.notify_one();
    }

    /// Appends to a container's log.
    pub fn say(&self, name: &str, stderr: bool, text: &str) {
        if let Some(kept) = self.lock().containers.get_mut(name) {
            kept.log.push(LogChunk {
                stderr,
                bytes: Bytes::copy_from_slice(text.as_bytes()),
            });
        }
    }

    /// Lets containers end whose time has come.
    fn settle(&self) {
        let wall = self.clock.now();
        let now = tokio::time::Instant::now();
        for kept in self.lock().containers.values_mut() {
            if let Some((at, code)) = kept.exit_at
                && at <= now
            {
                kept.exit_at = None;
                kept.container.state = ContainerState::Exited;
                kept.container.exit_code = code;
                kept.container.finished_at = Some(wall.minus(now - at));
                kept.container.pid = None;
            }
        }
    }

    async fn meet(&self, operation: &str, subject: &str) -> Result<(), RuntimeError> {
        let fault = {
            let mut inner = self.lock();
            if !matches!(operation, "list" | "image_id" | "logs" | "stats") {
                inner
                    .calls
                    .push((tokio::time::Instant::now(), format!("{operation} {subject}")));
            }
            [subject, "*"].iter().find_map(|subject| {
                let key = (operation.to_owned(), (*subject).to_owned());
                let (fault, times) = inner.faults.get_mut(&key)?;
                let fault = fault.clone();
                *times = times.saturating_sub(1);
                if *times == 0 {
                    inner.faults.remove(&key);
                }
                Some(fault)
            })
        };
        match fault {
            None => Ok(()),
            Some(Fault::Fail(error)) => Err(error),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Delay(pause)) => {
                tokio::time::sleep(pause).await;
                Ok(())
            }
        }
    }

    fn run(&self, name: &str) -> Result<(), RuntimeError> {
        let wall = self.clock.now();
        let mut inner = self.lock();
        let Some(kept) = inner.containers.get(name) else {
            return Err(not_found(name));
        };
        let behaviour = inner
            .behaviours
            .get(&kept.container.image)
            .copied()
            .unwrap_or(Behaviour::Run);
        let Some(kept) = inner.containers.get_mut(name) else {
            return Err(not_found(name));
        };
        if kept.container.state == ContainerState::Running {
            return Ok(());
        }
        kept.container.state = ContainerState::Running;
        kept.container.exit_code = 0;
        kept.container.started_at = Some(wall);
        kept.container.pid = Some(4_000_000);
        kept.container.health = None;
        match behaviour {
            Behaviour::Run => {}
            Behaviour::Health(health) => kept.container.health = Some(health),
            Behaviour::Exit { after, code } => {
                kept.exit_at = Some((tokio::time::Instant::now() + after, code));
                let changed = Arc::clone(&self.changed);
                tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    changed.notify_one();
                });
            }
        }
        drop(inner);
        self.changed.notify_one();
        Ok(())
    }
}

fn blank(name: &str, image: &str, serial: u64) -> Container {
    Container {
        name: name.to_owned(),
        id: format!("{serial:064x}"),
        image: image.to_owned(),
        image_id: format!("sha256:{image}"),
        labels: BTreeMap::new(),
        state: ContainerState::Created,
        health: None,
        exit_code: 0,
        started_at: None,
        finished_at: None,
        pid: None,
    }
}

fn not_found(name: &str) -> RuntimeError {
    RuntimeError::NotFound(format!("No such container: {name}"))
}

struct MemoryLog(std::collections::VecDeque<LogChunk>);

impl LogStream for MemoryLog {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<LogChunk>, RuntimeError>> {
        Box::pin(async { Ok(self.0.pop_front()) })
    }
}

impl ModuleRuntime for MemoryEngine {
    fn info(&self) -> BoxFuture<'_, Result<EngineInfo, RuntimeError>> {
        Box::pin(async {
            Ok(EngineInfo {
                version: "memory".to_owned(),
                ..EngineInfo::default()
            })
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Container>, RuntimeError>> {
        Box::pin(async {
            self.meet("list", "*").await?;
            self.settle();
            let inner = self.lock();
            let owned = inner.containers.values().filter(|kept| {
                kept.container
                    .labels
                    .get(OWNER_LABEL)
                    .is_some_and(|owner| owner == OWNER)
            });
            Ok(owned.map(|kept| kept.container.clone()).collect())
        })
    }

    fn ensure_network<'a>(&'a self, network: &'a NetworkSpec) -> BoxFuture<'a, Result<IpAddr, RuntimeError>> {
        Box::pin(async {
            self.meet("ensure_network", &network.name).await?;
            let address = IpAddr::V4(Ipv4Addr::new(172, 18, 0, 1));
            Ok(*self.lock().network.get_or_insert(address))
        })
    }

    fn pull<'a>(
        &'a self,
        image: &'a str,
        auth: Option<&'a RegistryAuth>,
        progress: &'a (dyn Fn(PullProgress) + Send + Sync),
    ) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async move {
            let _pulling = Pulling::begin(self);
            progress(PullProgress {
                current: 25_000_000,
                total: 100_000_000,
            });
            self.meet("pull", image).await?;
            let mut inner = self.lock();
            inner.auths.insert(image.to_owned(), auth.cloned());
            if !inner.registry.contains(image) {
                return Err(RuntimeError::Pull {
                    image: image.to_owned(),
                    cause: "manifest unknown".to_owned(),
                });
            }
            inner.images.insert(image.to_owned(), format!("sha256:{image}"));
            Ok(())
        })
    }

    fn image_id<'a>(&'a self, image: &'a str) -> BoxFuture<'a, Result<Option<String>, RuntimeError>> {
        Box::pin(async move {
            self.meet("image_id", image).await?;
            Ok(self.lock().images.get(image).cloned())
        })
    }

    fn images(&self) -> BoxFuture<'_, Result<Vec<Image>, RuntimeError>> {
        Box::pin(async {
            let images = self.lock().images.clone();
            Ok(images
                .into_iter()
                .map(|(tag, id)| Image {
                    id,
                    tags: vec![tag],
                    size_bytes: 1,
                })
                .collect())
        })
    }

    fn remove_image<'a>(&'a self, image: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async move {
            self.meet("remove_image", image).await?;
            let mut inner = self.lock();
            if inner
                .containers
                .values()
                .any(|kept| kept.container.image == image)
            {
                return Err(RuntimeError::Conflict(format!("image {image} is in use")));
            }
            inner.images.remove(image);
            Ok(())
        })
    }

    fn create<'a>(
        &'a self,
        name: &'a str,
        body: &'a Map<String, Value>,
    ) -> BoxFuture<'a, Result<String, RuntimeError>> {
        Box::pin(async move {
            self.meet("create", name).await?;
            let image = body.get("Image").and_then(Value::as_str).unwrap_or_default();
            let mut inner = self.lock();
            if inner.containers.contains_key(name) {
                return Err(RuntimeError::Conflict(format!(
                    "Conflict. The container name \"/{name}\" is already in use"
                )));
            }
            if !inner.images.contains_key(image) {
                return Err(RuntimeError::NotFound(format!("No such image: {image}")));
            }
            inner.serial += 1;
            let mut container = blank(name, image, inner.serial);
            let labels = body.get("Labels").and_then(Value::as_object);
            container.labels = labels
                .into_iter()
                .flatten()
                .map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()))
                .collect();
            let id = container.id.clone();
            let kept = Kept {
                container,
                body: body.clone(),
                log: Vec::new(),
                exit_at: None,
            };
            inner.containers.insert(name.to_owned(), kept);
            drop(inner);
            self.changed.notify_one();
            Ok(id)
        })
    }

    fn start<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async move {
            self.settle();
            self.meet("start", name).await?;
            self.run(name)
        })
    }

    fn stop<'a>(&'a self, name: &'a str, grace: Duration) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async move {
            self.settle();
            self.meet("stop", name).await?;
            let state = self
                .lock()
                .containers
                .get(name)
                .map(|kept| kept.container.state)
                .ok_or_else(|| not_found(name))?;
            self.lock().graces.insert(name.to_owned(), grace);
            if matches!(state, ContainerState::Running | ContainerState::Paused) {
                self.exit(name, 143);
            }
            Ok(())
        })
    }

    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async move {
            self.meet("remove", name).await?;
            self.lose(name);
            Ok(())
        })
    }

    fn logs<'a>(
        &'a self,
        name: &'a str,
        query: &'a LogQuery,
    ) -> BoxFuture<'a, Result<Box<dyn LogStream>, RuntimeError>> {
        Box::pin(async move {
            self.meet("logs", name).await?;
            let inner = self.lock();
            let kept = inner.containers.get(name).ok_or_else(|| not_found(name))?;
            let mut log: Vec<LogChunk> = kept.log.clone();
            if let Some(tail) = query.tail {
                let from = log
                    .len()
                    .saturating_sub(usize::try_from(tail).unwrap_or(usize::MAX));
                log.drain(..from);
            }
            if query.timestamps {
                for chunk in &mut log {
                    let text = String::from_utf8_lossy(&chunk.bytes).into_owned();
                    chunk.bytes = format!("2026-11-21T10:00:00.000000000Z {text}").into();
                }
            }
            Ok(Box::new(MemoryLog(log.into())) as Box<dyn LogStream>)
        })
    }

    fn inspect<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Value, RuntimeError>> {
        Box::pin(async move {
            let container = self.container(name).ok_or_else(|| not_found(name))?;
            Ok(json!({"Id": container.id, "Name": format!("/{name}")}))
        })
    }

    fn inspect_network<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Value, RuntimeError>> {
        Box::pin(async move { Ok(json!({"Name": name})) })
    }

    fn processes<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<u32>, RuntimeError>> {
        Box::pin(async move {
            let container = self.container(name).ok_or_else(|| not_found(name))?;
            Ok(container.pid.into_iter().collect())
        })
    }

    fn stats<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<ContainerStats, RuntimeError>> {
        Box::pin(async move {
            self.meet("stats", name).await?;
            Ok(ContainerStats {
                name: name.to_owned(),
                memory_bytes: 1 << 20,
                ..ContainerStats::default()
            })
        })
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.changed.notified())
    }
}

/// Counts pulls that are under way.
struct Pulling<'a>(&'a MemoryEngine);

impl<'a> Pulling<'a> {
    fn begin(engine: &'a MemoryEngine) -> Self {
        let mut inner = engine.lock();
        inner.pulling += 1;
        inner.pulling_max = inner.pulling_max.max(inner.pulling);
        drop(inner);
        Pulling(engine)
    }
}

impl Drop for Pulling<'_> {
    fn drop(&mut self) {
        self.0.lock().pulling -= 1;
    }
}
