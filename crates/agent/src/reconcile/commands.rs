//! Carrying out one command.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_observe::tracing;
use holdfast_ports::clock::Clock;
use tokio::sync::{Notify, Semaphore};

use super::Parts;
use super::gate::{Gate, Pass};
use crate::body::{Surroundings, body};
use crate::gc::ImageUse;
use crate::identities::{ModuleIdentities, ModuleIdentity};
use crate::manifest::{Deployment, EDGE_AGENT, EDGE_HUB, ModuleSpec, PullPolicy, Registry};
use crate::metrics::Metrics;
use crate::plan::{Action, Command};
use crate::runtime::{ModuleRuntime, PullProgress, RuntimeError};
use crate::settings::Settings;

/// What commands work with.
pub(super) struct Work {
    pub(super) runtime: Arc<dyn ModuleRuntime>,
    pub(super) identities: Arc<dyn ModuleIdentities>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) gate: Arc<Gate>,
    pub(super) pulls: Semaphore,
    pub(super) order_wait: Duration,
    /// The hub can be reached.
    pub(super) connected: AtomicBool,
    pub(super) images: Mutex<ImageUse>,
    /// Generation ids that are known in this run.
    pub(super) generations: Mutex<HashMap<String, String>>,
    /// Identities of removed modules that the hub has still to be told of.
    pub(super) leavers: Mutex<BTreeMap<String, ()>>,
}

impl Work {
    pub(super) fn new(settings: &Settings, parts: &Parts, metrics: Arc<Metrics>, images: ImageUse) -> Self {
        Work {
            runtime: Arc::clone(&parts.runtime),
            identities: Arc::clone(&parts.identities),
            clock: Arc::clone(&parts.clock),
            metrics,
            gate: Arc::default(),
            pulls: Semaphore::new(settings.pulls_max.max(1)),
            order_wait: settings.order_wait,
            connected: AtomicBool::new(false),
            images: Mutex::new(images),
            generations: Mutex::default(),
            leavers: Mutex::default(),
        }
    }
}

/// In which step a command failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    Pull,
    Identity,
    Engine,
}

/// Why a command failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Failed {
    pub(super) stage: Stage,
    pub(super) text: String,
}

impl Failed {
    fn engine(what: &str, error: &RuntimeError) -> Self {
        Failed {
            stage: Stage::Engine,
            text: format!("{what}: {error}"),
        }
    }
}

/// How far a command is, for those who look.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pulling: AtomicBool,
    current: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    pub(super) fn is_pulling(&self) -> bool {
        self.pulling.load(Ordering::Relaxed)
    }

    /// In words; in steps of five per cent, so that a report is not sent for every layer.
    pub(super) fn text(&self) -> Option<String> {
        if !self.is_pulling() {
            return None;
        }
        let current = self.current.load(Ordering::Relaxed);
        let total = self.total.load(Ordering::Relaxed);
        let Some(percent) = current.saturating_mul(100).checked_div(total) else {
            return Some("pulling the image".to_owned());
        };
        let megabytes = total.div_ceil(1_000_000);
        Some(format!(
            "pulling the image: {} % of {megabytes} MB",
            (percent / 5 * 5).min(100)
        ))
    }

    fn set(&self, progress: PullProgress) {
        self.current.store(progress.current, Ordering::Relaxed);
        self.total.store(progress.total, Ordering::Relaxed);
    }
}

/// A command with all it needs.
pub(super) struct Order {
    pub(super) command: Command,
    pub(super) deployment: Arc<Deployment>,
    /// Registries from the agent's own environment, after those of the manifest.
    pub(super) registries: Arc<[Registry]>,
    pub(super) around: Arc<Surroundings>,
    /// Time for the container that is there to end.
    pub(super) grace: Duration,
    pub(super) pass: Pass,
    pub(super) progress: Arc<Progress>,
    /// Notified when a newer deployment wants something else of the module: a pull is given up then.
    pub(super) cancel: Arc<Notify>,
    /// An image that is here may be used when it cannot be pulled.
    pub(super) local_image_will_do: bool,
    /// The image was pulled for this deployment already.
    pub(super) pulled: bool,
}

/// Runs a command to its end.
pub(super) async fn execute(work: Arc<Work>, mut order: Order) -> Result<(), Failed> {
    let name = order.command.module.clone();
    match order.command.action {
        // Done by the caller, who keeps the records.
        Action::Forget => Ok(()),
        Action::Remove => remove(&work, &name, &order).await,
        Action::RemoveDead => work
            .runtime
            .remove(&name)
            .await
            .map_err(|error| Failed::engine("the dead container cannot be removed", &error)),
        Action::Pull => match order.deployment.modules.get(&name).cloned() {
            Some(spec) => pull_or_give_up(&work, &order, &spec).await,
            None => Ok(()),
        },
        Action::Create { start } => make(&work, &mut order, false, start).await,
        Action::Replace { start } => make(&work, &mut order, true, start).await,
        Action::Start { .. } => {
            order.pass.turn(work.order_wait, true).await;
            start_module(&work, &order).await
        }
        Action::Restart { .. } => {
            order.pass.turn(work.order_wait, true).await;
            stop(&work, &name, &order).await?;
            start_module(&work, &order).await
        }
        Action::Stop => stop(&work, &name, &order).await,
    }
}

async fn remove(work: &Work, name: &str, order: &Order) -> Result<(), Failed> {
    stop(work, name, order).await?;
    work.runtime
        .remove(name)
        .await
        .map_err(|error| Failed::engine("the container cannot be removed", &error))?;
    leave(work, name).await;
    Ok(())
}

/// Tells the hub that a module is gone; when that fails it is told later, since the module is gone all the same.
pub(super) async fn leave(work: &Work, name: &str) {
    if [EDGE_AGENT, EDGE_HUB].contains(&name) {
        return;
    }
    let result = work.identities.remove(name).await;
    let mut leavers = lock(&work.leavers);
    lock(&work.generations).remove(name);
    match result {
        Ok(()) => {
            leavers.remove(name);
        }
        Err(error) => {
            crate::events::identity_left(name, &error.to_string());
            leavers.insert(name.to_owned(), ());
        }
    }
}

/// A container that somebody else has removed meanwhile is stopped, too.
async fn stop(work: &Work, name: &str, order: &Order) -> Result<(), Failed> {
    match work.runtime.stop(name, order.grace).await {
        Ok(()) | Err(RuntimeError::NotFound(_)) => {}
        Err(error) => return Err(Failed::engine("the container cannot be stopped", &error)),
    }
    let version = version_of(&order.deployment, name);
    work.metrics.module_stopped(name, version);
    Ok(())
}

fn version_of<'a>(deployment: &'a Deployment, name: &str) -> &'a str {
    deployment
        .modules
        .get(name)
        .map_or("", |spec| spec.version.as_str())
}

async fn start_module(work: &Work, order: &Order) -> Result<(), Failed> {
    let name = &order.command.module;
    let result = work.runtime.start(name).await;
    work.metrics
        .module_started(name, version_of(&order.deployment, name));
    result.map_err(|error| Failed::engine("the container cannot be started", &error))
}

async fn make(work: &Work, order: &mut Order, replace: bool, start: bool) -> Result<(), Failed> {
    let name = order.command.module.clone();
    let Some(spec) = order.deployment.modules.get(&name).cloned() else {
        return Ok(());
    };
    if spec.pull_policy == PullPolicy::OnCreate && !order.pulled {
        pull_or_give_up(work, order, &spec).await?;
    }
    order.pass.pulled();
    let identity = identity(work, &name).await?;
    order.pass.turn(work.order_wait, false).await;
    if replace {
        work.metrics.module_prepared(&name, &spec.version);
        stop(work, &name, order).await?;
        work.runtime
            .remove(&name)
            .await
            .map_err(|error| Failed::engine("the former container cannot be removed", &error))?;
    }
    let body = body(&spec, &identity, &order.around);
    work.runtime
        .create(&name, &body)
        .await
        .map_err(|error| Failed::engine("the container cannot be made", &error))?;
    lock(&work.images).used(&spec.image, work.clock.now());
    if start {
        start_module(work, order).await?;
    }
    Ok(())
}

/// The identity of a module, and its generation for later plans.
pub(super) async fn identity(work: &Work, name: &str) -> Result<ModuleIdentity, Failed> {
    match work.identities.ensure(name).await {
        Ok(identity) => {
            lock(&work.generations).insert(name.to_owned(), identity.generation_id.clone());
            lock(&work.leavers).remove(name);
            Ok(identity)
        }
        Err(error) => Err(Failed {
            stage: Stage::Identity,
            text: error.to_string(),
        }),
    }
}

async fn pull_or_give_up(work: &Work, order: &Order, spec: &ModuleSpec) -> Result<(), Failed> {
    tokio::select! {
        result = pull(work, order, spec) => result,
        () = order.cancel.notified() => Err(Failed {
            stage: Stage::Pull,
            text: "given up for a newer deployment".to_owned(),
        }),
    }
}

async fn pull(work: &Work, order: &Order, spec: &ModuleSpec) -> Result<(), Failed> {
    let connected = work.connected.load(Ordering::Relaxed);
    if !connected && is_here(work, &spec.image).await {
        tracing::info!(
            module = spec.name,
            image = spec.image,
            "offline: the image is here and is taken as it is"
        );
        return Ok(());
    }
    let _permit = work.pulls.acquire().await;
    order.progress.pulling.store(true, Ordering::Relaxed);
    let registries = order.deployment.runtime.registries.iter();
    let auth = crate::manifest::credentials(&spec.image, registries.chain(order.registries.iter()));
    let progress = Arc::clone(&order.progress);
    let result = work
        .runtime
        .pull(&spec.image, auth.as_ref(), &move |step| progress.set(step))
        .await;
    order.progress.pulling.store(false, Ordering::Relaxed);
    match result {
        Ok(()) => {
            lock(&work.images).pulled(&spec.image, work.clock.now());
            Ok(())
        }
        Err(error) => {
            let offline = !work.connected.load(Ordering::Relaxed);
            if (offline || order.local_image_will_do) && is_here(work, &spec.image).await {
                crate::events::image_not_pulled(&spec.name, &spec.image, &error.to_string());
                return Ok(());
            }
            Err(Failed {
                stage: Stage::Pull,
                text: error.to_string(),
            })
        }
    }
}

async fn is_here(work: &Work, image: &str) -> bool {
    matches!(work.runtime.image_id(image).await, Ok(Some(_)))
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
