//! The agent's loop: events in, commands out.
//!
//! One task owns all state. Whatever takes time (calls of the engine, of the hub, of the disk) is a future in
//! [`Agent::work`] whose result comes back as a [`Done`]; the loop itself never waits for one, so that a pull that hangs, an
//! engine that does not answer or a full disk delays nothing but itself. At most one listing, one report, one read of the
//! twin and one write are under way; per module at most one command.

mod commands;
mod desired;
mod edge_hub;
mod gate;
mod handle;
mod pass;
mod probation;
mod view;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use holdfast_ports::BoxFuture;
use holdfast_ports::clock::Clock;
use serde_json::{Map, Value};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::body::Surroundings;
use crate::gc;
use crate::host::Host;
use crate::identities::ModuleIdentities;
use crate::manifest::{Deployment, EDGE_AGENT, EDGE_HUB, StatusCode};
use crate::methods::Methods;
use crate::metrics::{MetricLabels, Metrics};
use crate::plan::{Action, Command};
use crate::reported::DeploymentStatus;
use crate::restart::{Restarts, millis};
use crate::runtime::{Container, ModuleRuntime, RuntimeError};
use crate::settings::{Settings, Tuning};
use crate::state::{File, RollbackFile, StateFolder};
use crate::system::Meter;
use crate::twin::{AgentTwin, TwinError, TwinEvent};
use commands::{Failed, Progress, Work, lock};
use edge_hub::{HubCommand, HubTending};
pub(crate) use handle::restart;
pub use handle::{AgentHandle, AgentView};
use probation::Probation;

/// Requests of [`AgentHandle`] and of methods that wait for the loop.
const REQUESTS_MAX: usize = 16;
/// Direct methods under way; more are answered with 500.
const METHODS_MAX: usize = 16;
/// Between two listings, however often the engine tells of changes.
const LIST_SPACING: i64 = 50;
/// After the engine or the network failed.
const ENGINE_RETRY: i64 = 5_000;
/// After a write failed.
const WRITE_RETRY: i64 = 30_000;
/// Reads of the twin because of reconnections, at most one in this time.
const REFRESH_SPACING: i64 = 30_000;
/// Reads of the twin because of missed versions, at most one in this time.
const GAP_SPACING: i64 = 1_000;
/// Time for the last report.
const FAREWELL: Duration = Duration::from_secs(5);

/// What the agent is made of.
#[derive(Clone)]
pub struct Parts {
    /// The container engine.
    pub runtime: Arc<dyn ModuleRuntime>,
    /// Identities of modules.
    pub identities: Arc<dyn ModuleIdentities>,
    /// The twin of `$edgeAgent`.
    pub twin: Arc<dyn AgentTwin>,
    /// The rest of the daemon.
    pub host: Arc<dyn Host>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// What somebody asks of the loop.
pub(crate) enum Request {
    /// Restart a module by hand, the edge hub and the agent included; answers when it has been started, or why not.
    Restart(String, oneshot::Sender<Result<(), String>>),
    /// Look at everything now.
    Refresh,
}

/// The result of something that took time.
enum Done {
    Event(TwinEvent),
    Changed,
    HubChanged,
    Hub(HubCommand, Result<(), String>, Duration),
    Network(Result<IpAddr, RuntimeError>),
    Listed(Result<Vec<Container>, RuntimeError>),
    Command(Command, Result<(), Failed>, Duration),
    Twin(Result<Bytes, TwinError>),
    Reported(Map<String, Value>, Result<(), TwinError>),
    Written(File, Vec<u8>, io::Result<()>),
    Method,
    Identity,
    Collected(Vec<String>),
    Measured,
}

/// A command under way.
struct Busy {
    /// Of the deployment for which it was begun.
    version: u64,
    progress: Arc<Progress>,
    /// Ends its pull.
    cancel: Arc<Notify>,
}

/// A command that failed and waits to be tried again.
struct Failure {
    count: u32,
    again_at: i64,
    action: Action,
    failed: Failed,
}

/// Where requests come from and what others see.
type Outlets = (
    mpsc::Receiver<Request>,
    Arc<Mutex<AgentView>>,
    watch::Sender<Option<Arc<Deployment>>>,
);

/// The edge agent. Made by [`Agent::new`], driven by [`Agent::run`].
pub struct Agent {
    settings: Settings,
    parts: Parts,
    work: Arc<Work>,
    methods: Arc<Methods>,
    requests: mpsc::Receiver<Request>,
    published: Arc<Mutex<AgentView>>,
    in_force: watch::Sender<Option<Arc<Deployment>>>,
    state: StateFolder,
    under_way: FuturesUnordered<BoxFuture<'static, Done>>,

    // What is wanted.
    tuning: Tuning,
    /// Desired properties of the twin as last read, compact JSON; the base of patches.
    desired: Option<(u64, Bytes)>,
    /// Those that were last accepted, with their version.
    accepted: Option<(u64, Bytes)>,
    deployment: Option<Arc<Deployment>>,
    good: Option<Arc<Deployment>>,
    definitions: BTreeMap<String, String>,
    rollback: RollbackFile,
    trial: Option<Probation>,
    /// Why the desired properties of the twin are not what is in force.
    refused: Option<DeploymentStatus>,
    applied: DeploymentStatus,
    accepted_at: i64,

    // What is there.
    gateway: Option<Arc<Surroundings>>,
    containers: Option<BTreeMap<String, Container>>,
    restarts: Restarts,
    busy: BTreeMap<String, Busy>,
    /// Modules whose command ended while a listing was under way: it may be older than that.
    touched: BTreeSet<String>,
    failures: BTreeMap<String, Failure>,
    /// Images that were pulled for the deployment in force before it is carried out, by module.
    pulled: BTreeMap<String, String>,
    waiting_restarts: VecDeque<(String, oneshot::Sender<Result<(), String>>)>,
    running_restarts: BTreeMap<String, Vec<oneshot::Sender<Result<(), String>>>>,
    hub: HubTending,
    engine_problem: Option<String>,
    identified: BTreeSet<String>,
    identify_at: i64,

    // What is under way.
    asking_network: bool,
    listing: bool,
    dirty: bool,
    fetching: bool,
    fetch_at: Option<i64>,
    fetched_at: i64,
    fetch_failures: u32,
    reported: Option<Map<String, Value>>,
    reporting: bool,
    report_dirty: bool,
    brief: bool,
    writes: VecDeque<(File, Vec<u8>)>,
    writing: bool,
    methods_open: usize,

    // When something is due, monotonic milliseconds.
    network_at: i64,
    list_at: i64,
    tick_at: i64,
    plan_at: i64,
    report_at: i64,
    write_at: i64,
    collect_at: i64,
    measure_at: i64,
    meter: Arc<Mutex<Meter>>,
    availability_at: i64,
}

impl Agent {
    /// Reads the kept state; nothing is done before [`Agent::run`].
    ///
    /// # Errors
    /// When the folder of the state cannot be made.
    pub fn new(settings: Settings, parts: Parts, labels: MetricLabels) -> io::Result<(Agent, AgentHandle)> {
        let state = StateFolder::open(&settings.state_folder, Arc::clone(&settings.seal))?;
        let metrics = Arc::new(Metrics::new(labels));
        let (sender, requests) = mpsc::channel(REQUESTS_MAX);
        let work = Arc::new(Work::new(
            &settings,
            &parts,
            Arc::clone(&metrics),
            state.read_json(File::Images),
        ));
        let methods = Methods::new(&settings, &parts, Arc::clone(&metrics), sender.clone());
        let methods = Arc::new(methods);
        let (in_force, _) = watch::channel(None);
        let published = Arc::new(Mutex::new(AgentView::default()));
        let handle = AgentHandle::new(
            Arc::clone(&published),
            in_force.subscribe(),
            sender,
            metrics,
            Arc::clone(&methods),
        );
        let mut agent = Self::idle(
            settings,
            parts,
            work,
            methods,
            state,
            (requests, published, in_force),
        );
        agent.take_up();
        Ok((agent, handle))
    }

    /// With nothing known and nothing under way.
    fn idle(
        settings: Settings,
        parts: Parts,
        work: Arc<Work>,
        methods: Arc<Methods>,
        state: StateFolder,
        (requests, published, in_force): Outlets,
    ) -> Agent {
        let now = i64::try_from(parts.clock.monotonic_millis()).unwrap_or(0);
        let collect_at = settings.image_collection.as_ref().map_or(i64::MAX, |collection| {
            now.saturating_add(millis(collection.first_after(parts.clock.now())))
        });
        Agent {
            tuning: Tuning::read([&settings.env].into_iter()),
            work,
            methods,
            requests,
            published,
            in_force,
            under_way: FuturesUnordered::new(),
            desired: None,
            accepted: None,
            deployment: None,
            good: None,
            definitions: BTreeMap::new(),
            rollback: state.read_json(File::Rollback),
            trial: None,
            refused: None,
            applied: DeploymentStatus {
                version: 0,
                code: StatusCode::Unknown,
                description: String::new(),
            },
            accepted_at: now,
            gateway: None,
            containers: None,
            restarts: Restarts::new(state.read_json(File::Restarts), &settings.boot),
            busy: BTreeMap::new(),
            touched: BTreeSet::new(),
            failures: BTreeMap::new(),
            pulled: BTreeMap::new(),
            waiting_restarts: VecDeque::new(),
            running_restarts: BTreeMap::new(),
            hub: HubTending::default(),
            engine_problem: None,
            identified: BTreeSet::new(),
            identify_at: now,
            asking_network: false,
            listing: false,
            dirty: true,
            fetching: false,
            fetch_at: None,
            fetched_at: i64::MIN / 2,
            fetch_failures: 0,
            reported: None,
            reporting: false,
            report_dirty: true,
            brief: false,
            writes: VecDeque::new(),
            writing: false,
            methods_open: 0,
            network_at: now,
            list_at: now,
            tick_at: now.saturating_add(millis(settings.tick)),
            plan_at: i64::MAX,
            report_at: now,
            write_at: now,
            collect_at,
            measure_at: now.saturating_add(10_000),
            meter: Arc::default(),
            availability_at: now,
            state,
            settings,
            parts,
        }
    }

    /// Works until `shutdown` is ready; then reports 406 and returns. Containers go on running, so that the next daemon
    /// adopts them.
    pub async fn run(mut self, shutdown: impl Future<Output = ()> + Send) {
        let mut shutdown = std::pin::pin!(shutdown);
        self.await_event();
        self.await_change();
        self.await_hub();
        loop {
            self.turn();
            let rest = Duration::from_millis(u64::try_from(self.next_due() - self.now()).unwrap_or(0));
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                Some(done) = self.under_way.next() => self.done(done),
                Some(request) = self.requests.recv() => self.request(request),
                () = tokio::time::sleep(rest) => {}
            }
        }
        self.farewell().await;
    }

    fn now(&self) -> i64 {
        i64::try_from(self.parts.clock.monotonic_millis()).unwrap_or(i64::MAX)
    }

    fn spawn(&mut self, future: impl Future<Output = Done> + Send + 'static) {
        self.under_way.push(Box::pin(future));
    }

    /// Begins whatever is due.
    fn turn(&mut self) {
        let now = self.now();
        if now >= self.tick_at {
            self.tick_at = now.saturating_add(millis(self.settings.tick));
            self.dirty = true;
        }
        self.tend_hub(now);
        if now >= self.plan_at {
            self.plan_at = i64::MAX;
            self.pass();
        }
        self.ask_network(now);
        self.list(now);
        self.fetch(now);
        self.write(now);
        self.report(now);
        self.collect(now);
        self.measure(now);
    }

    /// When [`Agent::turn`] has something to do again, if nothing happens until then. An hour at most.
    fn next_due(&self) -> i64 {
        let when = |due: bool, at: i64| if due { at } else { i64::MAX };
        let now = self.now();
        [
            self.tick_at,
            self.plan_at,
            when(!self.hub.busy, self.hub.at),
            when(self.gateway.is_none() && !self.asking_network, self.network_at),
            when(
                self.dirty && !self.listing && self.gateway.is_some(),
                self.list_at,
            ),
            when(
                !self.fetching && self.work.connected.load(Ordering::Relaxed),
                self.fetch_at.unwrap_or(i64::MAX),
            ),
            when(!self.writing && !self.writes.is_empty(), self.write_at),
            when(self.report_dirty && !self.reporting, self.report_at),
            self.collect_at,
            self.measure_at,
        ]
        .into_iter()
        .min()
        .unwrap_or(i64::MAX)
        .clamp(now, now.saturating_add(3_600_000))
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Event(event) => {
                self.await_event();
                self.event(event);
            }
            Done::Changed => {
                self.await_change();
                self.dirty = true;
            }
            Done::HubChanged => {
                self.await_hub();
                self.look_at_hub();
            }
            Done::Hub(command, result, took) => self.hub_done(command, &result, took),
            Done::Network(result) => self.network_known(result),
            Done::Listed(result) => self.listed(result),
            Done::Command(command, result, took) => self.command_done(&command, result, took),
            Done::Twin(result) => self.twin_read(result),
            Done::Reported(document, result) => self.report_done(document, result),
            Done::Written(file, content, result) => self.written(file, content, result),
            Done::Method => self.methods_open -= 1,
            Done::Identity => self.dirty = true,
            Done::Collected(gone) => {
                let mut images = lock(&self.work.images);
                for image in &gone {
                    images.gone(image);
                }
            }
            Done::Measured => {}
        }
    }

    fn request(&mut self, request: Request) {
        match request {
            Request::Restart(module, answer) if module == EDGE_HUB => return self.restart_hub(answer),
            Request::Restart(module, answer) if module == EDGE_AGENT => {
                // What makes a new run of the agent: failures are forgotten, everything is looked at again.
                self.failures.clear();
                self.dirty = true;
                self.fetch_soon(0);
                let _ = answer.send(Ok(()));
                return;
            }
            Request::Restart(module, answer) => self.waiting_restarts.push_back((module, answer)),
            Request::Refresh => {
                self.dirty = true;
                self.fetch_soon(0);
                return;
            }
        }
        self.restart_waiting();
    }

    fn await_event(&mut self) {
        let twin = Arc::clone(&self.parts.twin);
        self.spawn(async move { Done::Event(twin.next().await) });
    }

    /// Waits for the engine to tell of a change. Changes come in flocks, so the first of them is taken up a little later;
    /// an engine that cannot tell is ready at once and is asked less often.
    fn await_change(&mut self) {
        let runtime = Arc::clone(&self.parts.runtime);
        self.spawn(async move {
            let begun = tokio::time::Instant::now();
            runtime.changed().await;
            let pause = if begun.elapsed() < Duration::from_millis(2) {
                250
            } else {
                10
            };
            tokio::time::sleep(Duration::from_millis(pause)).await;
            Done::Changed
        });
    }

    fn event(&mut self, event: TwinEvent) {
        match event {
            TwinEvent::Connected => self.connected(),
            TwinEvent::Disconnected(cause) => {
                crate::events::hub_lost(&cause);
                self.work.connected.store(false, Ordering::Relaxed);
                self.plan_at = self.now();
            }
            TwinEvent::Desired { version, patch } => self.desired_patch(version, &patch),
            TwinEvent::Method(request) => {
                let methods = Arc::clone(&self.methods);
                let twin = Arc::clone(&self.parts.twin);
                if self.methods_open == METHODS_MAX {
                    twin.answer(request.request_id, Methods::too_many());
                    return;
                }
                self.methods_open += 1;
                self.spawn(async move {
                    let response = methods.call(&request).await;
                    twin.answer(request.request_id, response);
                    Done::Method
                });
            }
        }
    }

    fn collect(&mut self, now: i64) {
        let Some(collection) = self
            .settings
            .image_collection
            .clone()
            .filter(|_| now >= self.collect_at)
        else {
            return;
        };
        self.collect_at = now.saturating_add(millis(collection.recurrence).max(60_000));
        let mut in_use = BTreeSet::new();
        for deployment in self.deployment.iter().chain(self.good.iter()) {
            in_use.extend(deployment.modules.values().map(|spec| spec.image.clone()));
        }
        for container in self.containers.iter().flat_map(BTreeMap::values) {
            in_use.insert(container.image.clone());
        }
        let wall = self.parts.clock.now();
        let old = lock(&self.work.images).old(collection.age, &in_use, wall, now);
        if !old.is_empty() {
            let runtime = Arc::clone(&self.parts.runtime);
            self.spawn(async move { Done::Collected(gc::remove(&*runtime, old).await) });
        }
    }

    fn measure(&mut self, now: i64) {
        if now < self.measure_at {
            return;
        }
        self.measure_at = now.saturating_add(millis(self.settings.stats_interval).max(1_000));
        let names: Vec<String> = self
            .containers
            .iter()
            .flat_map(BTreeMap::values)
            .filter(|container| container.state == crate::runtime::ContainerState::Running)
            .map(|container| container.name.clone())
            .collect();
        let runtime = Arc::clone(&self.parts.runtime);
        let metrics = Arc::clone(&self.work.metrics);
        let meter = Arc::clone(&self.meter);
        self.spawn(async move {
            metrics.machine(lock(&meter).read());
            for name in names {
                if let Ok(stats) = runtime.stats(&name).await {
                    metrics.container(stats);
                }
            }
            Done::Measured
        });
    }

    fn write(&mut self, now: i64) {
        if let Some(file) = self.restarts.take_changes() {
            self.keep_json(File::Restarts, &file);
        }
        let images = {
            let mut images = lock(&self.work.images);
            images.take_changes().then(|| images.clone())
        };
        if let Some(images) = images {
            self.keep_json(File::Images, &images);
        }
        if self.writing || now < self.write_at {
            return;
        }
        let Some((file, content)) = self.writes.pop_front() else {
            return;
        };
        self.writing = true;
        let state = self.state.clone();
        self.spawn(async move {
            let write = tokio::task::spawn_blocking(move || {
                let result = state.write(file, &content);
                (content, result)
            });
            match write.await {
                Ok((content, result)) => Done::Written(file, content, result),
                Err(error) => Done::Written(file, Vec::new(), Err(io::Error::other(error))),
            }
        });
    }

    fn written(&mut self, file: File, content: Vec<u8>, result: io::Result<()>) {
        self.writing = false;
        if let Err(error) = result {
            crate::events::state_not_written(&error.to_string());
            self.write_at = self.now().saturating_add(WRITE_RETRY);
            // Something newer may wait already.
            if !content.is_empty() && !self.writes.iter().any(|(waiting, _)| *waiting == file) {
                self.writes.push_back((file, content));
            }
        }
    }

    fn keep_json<T: serde::Serialize>(&mut self, file: File, value: &T) {
        match serde_json::to_vec(value) {
            Ok(content) => self.keep(file, content),
            Err(error) => crate::events::state_not_written(&error.to_string()),
        }
    }

    /// Writes a file soon; at most one content per file waits, the newest.
    fn keep(&mut self, file: File, content: Vec<u8>) {
        match self.writes.iter_mut().find(|(waiting, _)| *waiting == file) {
            Some(slot) => slot.1 = content,
            None => self.writes.push_back((file, content)),
        }
    }
}
