//! One look at everything: list, judge, plan, begin what can be begun.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::commands::{self, Failed, Order, Progress, Stage};
use super::desired::brief;
use super::probation::Outcome;
use super::{Agent, Busy, Done, ENGINE_RETRY, Failure, LIST_SPACING};
use tokio::sync::Notify;

use crate::body::{DEFINITION_LABEL, GENERATION_LABEL, STOP_LABEL};
use crate::events;
use crate::manifest::{
    Deployment, DesiredStatus, EDGE_AGENT, EDGE_HUB, ModuleSpec, PullPolicy, RestartPolicy, StatusCode,
};
use crate::plan::{Action, Command, Phase, Present, Wanted, plan, pulls_first};
use crate::reported::DeploymentStatus;
use crate::restart::{Next, Situation, Verdict, judge, millis};
use crate::runtime::{Container, ContainerState, Health, OWNER, OWNER_LABEL, RuntimeError};

/// First pause after a command failed; doubled with each further failure.
const RETRY_UNIT: Duration = Duration::from_secs(10);
/// The longest pause.
const RETRY_MAX: Duration = Duration::from_secs(300);
/// The longest time that a container gets to end.
const STOP_MAX: Duration = Duration::from_secs(600);
/// While commands are under way, the progress of pulls is reported so often.
const PROGRESS: i64 = 5_000;

fn retry_pause(count: u32) -> Duration {
    RETRY_UNIT
        .saturating_mul(2_u32.saturating_pow(count.saturating_sub(1)))
        .min(RETRY_MAX)
}

impl Agent {
    pub(super) fn ask_network(&mut self, now: i64) {
        if self.gateway.is_some() || self.asking_network || now < self.network_at {
            return;
        }
        self.asking_network = true;
        let runtime = Arc::clone(&self.parts.runtime);
        let network = self.settings.network.clone();
        self.spawn(async move { Done::Network(runtime.ensure_network(&network).await) });
    }

    pub(super) fn network_known(&mut self, result: Result<IpAddr, RuntimeError>) {
        self.asking_network = false;
        match result {
            Ok(address) => {
                let mut around = self.settings.surroundings.clone();
                around.gateway_address = address;
                self.gateway = Some(Arc::new(around));
                self.surround();
                self.dirty = true;
                self.list_at = self.now();
            }
            Err(error) => {
                self.network_at = self.now().saturating_add(ENGINE_RETRY);
                if self.gateway.is_some() {
                    self.dirty = true;
                    self.list_at = self.network_at;
                }
                self.engine_lost(&error);
            }
        }
    }

    fn engine_lost(&mut self, error: &RuntimeError) {
        if self.engine_problem.is_none() {
            events::engine_lost(&error.to_string());
        }
        self.engine_problem = Some(error.to_string());
        self.report_dirty = true;
        self.settle(false);
    }

    pub(super) fn list(&mut self, now: i64) {
        if !self.dirty || self.listing || self.gateway.is_none() || now < self.list_at {
            return;
        }
        self.dirty = false;
        self.listing = true;
        self.list_at = now.saturating_add(LIST_SPACING);
        self.touched.clear();
        let runtime = Arc::clone(&self.parts.runtime);
        self.spawn(async move { Done::Listed(runtime.list().await) });
    }

    pub(super) fn listed(&mut self, result: Result<Vec<Container>, RuntimeError>) {
        self.listing = false;
        let list = match result {
            Ok(list) => list,
            Err(error) => {
                self.dirty = true;
                self.list_at = self.now().saturating_add(ENGINE_RETRY);
                self.engine_lost(&error);
                return;
            }
        };
        if self.engine_problem.take().is_some() {
            events::engine_back();
        }
        let containers: BTreeMap<String, Container> = list
            .into_iter()
            .filter(|container| {
                container
                    .labels
                    .get(OWNER_LABEL)
                    .is_some_and(|owner| owner == OWNER)
            })
            .map(|container| (container.name.clone(), container))
            .collect();
        let wall = self.parts.clock.now();
        let hub = self.hub_container();
        self.restarts
            .see(containers.values().chain(hub.iter()), wall, self.now());
        self.containers = Some(containers);
        if !self.touched.is_empty() {
            self.dirty = true;
        }
        self.pass();
    }

    /// Plans with what is known and begins what can be begun.
    pub(super) fn pass(&mut self) {
        self.report_dirty = true;
        let (Some(deployment), Some(around)) = (self.deployment.clone(), self.gateway.clone()) else {
            return;
        };
        let Some(containers) = self.containers.take() else {
            return;
        };
        let now = self.now();
        self.identify(&containers, now);
        let (present, mut due) = self.present(&deployment, &containers, now);
        let mut wanted: BTreeMap<String, Wanted> = deployment
            .modules
            .iter()
            .map(|(name, spec)| (name.clone(), self.wanted(spec)))
            .collect();
        let put_off = self.put_off(&mut wanted, &present, now);
        due = due.min(put_off);
        self.containers = Some(containers);
        let mut commands = plan(&wanted, &present);
        if self.tuning.pulls_first {
            let needs_pull = |name: &str| {
                deployment.modules.get(name).is_some_and(|spec| {
                    spec.pull_policy == PullPolicy::OnCreate && self.pulled.get(name) != Some(&spec.image)
                })
            };
            commands = pulls_first(&commands, &wanted, &present, needs_pull).unwrap_or(commands);
        }
        // What needs no command any more has been mended by somebody else.
        self.failures.retain(|name, failure| {
            let is_put_off = matches!(failure.action, Action::Replace { .. }) && failure.again_at > now;
            is_put_off || commands.iter().any(|command| command.module == *name)
        });
        let mut begun = false;
        for command in commands {
            begun |= self.begin(command, &deployment, &around, now);
        }
        if !self.busy.is_empty() {
            due = due.min(now.saturating_add(PROGRESS));
        }
        self.count_availability(now);
        let settled = !begun
            && put_off == i64::MAX
            && self.nothing_under_way()
            && self.failures.is_empty()
            && !self.dirty;
        self.settle(settled);
        due = due.min(self.look_at_trial(now));
        self.plan_at = self.plan_at.min(due);
        self.restart_waiting();
    }

    /// What is there with what its state asks for, and when the first of it asks for something.
    fn present(
        &self,
        deployment: &Deployment,
        containers: &BTreeMap<String, Container>,
        now: i64,
    ) -> (BTreeMap<String, Present>, i64) {
        let mut due = i64::MAX;
        let mut present = BTreeMap::new();
        for (name, container) in containers {
            let verdict = self.verdict(deployment.modules.get(name), container, now);
            if let Next::Wait(until) = verdict.next {
                due = due.min(until);
            }
            let label = |label: &str| container.labels.get(label).cloned();
            present.insert(
                name.clone(),
                Present {
                    owned: true,
                    definition: label(DEFINITION_LABEL),
                    generation: label(GENERATION_LABEL),
                    next: verdict.next,
                },
            );
        }
        (present, due)
    }

    /// A module whose update waits to be tried again is kept running as it is. When the first command that waits is due.
    fn put_off(
        &self,
        wanted: &mut BTreeMap<String, Wanted>,
        present: &BTreeMap<String, Present>,
        now: i64,
    ) -> i64 {
        let mut due = i64::MAX;
        for (name, failure) in self.failures.iter().filter(|(_, failure)| failure.again_at > now) {
            due = due.min(failure.again_at);
            if let (Action::Replace { .. }, Some(wanted), Some(present)) =
                (failure.action, wanted.get_mut(name), present.get(name))
            {
                wanted.definition = present.definition.clone().unwrap_or_default();
                wanted.generation = None;
            }
        }
        due
    }

    fn wanted(&mut self, spec: &ModuleSpec) -> Wanted {
        let running = spec.status == DesiredStatus::Running;
        if !running {
            self.restarts.wanted_stopped(&spec.name);
        }
        Wanted {
            definition: self.definitions.get(&spec.name).cloned().unwrap_or_default(),
            generation: commands::lock(&self.work.generations).get(&spec.name).cloned(),
            order: spec.startup_order,
            running,
        }
    }

    pub(super) fn verdict(&self, spec: Option<&ModuleSpec>, container: &Container, now: i64) -> Verdict {
        let record = self.restarts.record(&container.name);
        let situation = Situation {
            desired: spec.map_or(DesiredStatus::Stopped, |spec| spec.status),
            policy: spec.map_or(RestartPolicy::Never, |spec| spec.restart_policy),
            container,
            record: &record,
            since: self.restarts.since(&container.name),
            rebooted: self.restarts.rebooted(&container.name),
        };
        judge(&situation, &self.tuning.rules, now)
    }

    /// Once per refresh and module that is there: its identity is asked for, so that its workload socket is opened and a new
    /// generation is noticed. Modules that are made ask themselves.
    fn identify(&mut self, containers: &BTreeMap<String, Container>, now: i64) {
        let Some(deployment) = self.deployment.clone() else {
            return;
        };
        if now >= self.identify_at {
            self.identify_at = now.saturating_add(millis(self.tuning.refresh));
            self.identified.clear();
        }
        let new: Vec<String> = deployment
            .modules
            .keys()
            .filter(|name| containers.contains_key(*name) && !self.identified.contains(*name))
            .cloned()
            .collect();
        for name in new {
            self.identified.insert(name.clone());
            let work = Arc::clone(&self.work);
            self.spawn(async move {
                if let Err(failed) = commands::identity(&work, &name).await {
                    events::identity_unknown(&name, &failed.text);
                }
                Done::Identity
            });
        }
    }

    /// Begins a command, unless its module is busy or has to wait; whether it was begun.
    fn begin(
        &mut self,
        command: Command,
        deployment: &Arc<Deployment>,
        around: &Arc<crate::body::Surroundings>,
        now: i64,
    ) -> bool {
        let name = &command.module;
        if self.busy.contains_key(name) || self.touched.contains(name) {
            return false;
        }
        let waits = self
            .failures
            .get(name)
            .is_some_and(|failure| failure.again_at > now && failure.action.name() == command.action.name());
        if waits {
            return false;
        }
        if command.action == Action::Forget {
            self.restarts.forget(name);
            return false;
        }
        if let Action::Start { counted } | Action::Restart { counted } = command.action {
            self.restarts.started(name, counted, self.parts.clock.now());
        }
        events::command_begins(name, command.action.name());
        let pulls = matches!(
            command.action,
            Action::Create { .. } | Action::Replace { .. } | Action::Pull
        );
        let image = deployment.modules.get(name).map(|spec| &spec.image);
        let is_removal = matches!(command.phase, Phase::Remove);
        let progress = Arc::new(Progress::default());
        let cancel = Arc::new(Notify::new());
        let known = self.good.iter().any(|good| {
            let image = |d: &Deployment| d.modules.get(name).map(|spec| spec.image.clone());
            image(good).is_some() && image(good) == image(deployment)
        });
        self.busy.insert(
            name.clone(),
            Busy {
                version: deployment.version,
                progress: Arc::clone(&progress),
                cancel: Arc::clone(&cancel),
            },
        );
        let order = Order {
            pass: self.work.gate.enter((command.order, !is_removal), pulls),
            deployment: Arc::clone(deployment),
            registries: self.tuning.registries.clone().into(),
            around: Arc::clone(around),
            grace: self.grace(name),
            progress,
            cancel,
            local_image_will_do: known,
            pulled: self.tuning.pulls_first && self.pulled.get(name) == image && image.is_some(),
            command: command.clone(),
        };
        let work = Arc::clone(&self.work);
        self.spawn(async move {
            let begun = tokio::time::Instant::now();
            let result = commands::execute(work, order).await;
            Done::Command(command, result, begun.elapsed())
        });
        true
    }

    /// How long the container that is there may take to end: what its own `createOptions` said, or the setting.
    fn grace(&self, name: &str) -> Duration {
        self.containers
            .as_ref()
            .and_then(|containers| containers.get(name)?.labels.get(STOP_LABEL)?.parse().ok())
            .map_or(self.settings.stop_grace, |seconds| {
                Duration::from_secs(seconds).min(STOP_MAX)
            })
    }

    pub(super) fn command_done(&mut self, command: &Command, result: Result<(), Failed>, took: Duration) {
        let name = &command.module;
        let begun_for = self.busy.remove(name).map(|busy| busy.version);
        let is_current = begun_for == self.deployment.as_ref().map(|deployment| deployment.version);
        self.touched.insert(name.clone());
        self.dirty = true;
        let now = self.now();
        self.list_at = self.list_at.min(now);
        self.work.metrics.command_took(command.action.name(), took);
        if let Action::Create { .. } | Action::Replace { .. } = command.action {
            self.identified.insert(name.clone());
        }
        for answer in self.running_restarts.remove(name).into_iter().flatten() {
            let _ = answer.send(result.clone().map_err(|failed| failed.text));
        }
        match result {
            Ok(()) => {
                self.failures.remove(name);
                let spec = self.deployment.as_ref().and_then(|d| d.modules.get(name));
                if let (Action::Pull, true, Some(spec)) = (command.action, is_current, spec) {
                    self.pulled.insert(name.clone(), spec.image.clone());
                }
            }
            // It was begun for a deployment that is no longer in force.
            Err(_) if !is_current => {}
            Err(failed) => {
                let count = self.failures.get(name).map_or(1, |failure| failure.count + 1);
                let pause = retry_pause(count);
                events::command_failed(name, command.action.name(), &failed.text, pause.as_secs());
                if failed.stage == Stage::Engine {
                    // It may be the network that is gone.
                    self.network_again();
                }
                self.failures.insert(
                    name.clone(),
                    Failure {
                        count,
                        again_at: now.saturating_add(millis(pause)),
                        action: command.action,
                        failed,
                    },
                );
                self.settle(false);
            }
        }
        self.restart_waiting();
    }

    /// Makes the module network again if somebody has removed it.
    fn network_again(&mut self) {
        if self.asking_network {
            return;
        }
        self.asking_network = true;
        let runtime = Arc::clone(&self.parts.runtime);
        let network = self.settings.network.clone();
        self.spawn(async move { Done::Network(runtime.ensure_network(&network).await) });
    }

    /// Status of the deployment in force: 200 when there is nothing left to do, 500 as soon as something failed; until then
    /// what was said of the former one stays.
    pub(super) fn settle(&mut self, settled: bool) {
        let Some(deployment) = &self.deployment else {
            return;
        };
        let version = deployment.version;
        let mut problems: Vec<String> = self
            .failures
            .iter()
            .filter(|(name, _)| {
                deployment.modules.contains_key(*name)
                    || self
                        .containers
                        .as_ref()
                        .is_some_and(|containers| containers.contains_key(*name))
            })
            .map(|(name, failure)| format!("{name}: {}", failure.failed.text))
            .collect();
        problems.extend(self.engine_problem.clone());
        let status = if !problems.is_empty() {
            DeploymentStatus {
                version,
                code: StatusCode::Failed,
                description: brief(&problems.join("; ")),
            }
        } else if settled {
            DeploymentStatus {
                version,
                code: StatusCode::Successful,
                description: String::new(),
            }
        } else {
            return;
        };
        if status == self.applied {
            return;
        }
        if status.code == StatusCode::Successful {
            if self.applied.version != version {
                events::deployment_done(version);
                let took = self.now() - self.accepted_at;
                let took = Duration::from_millis(u64::try_from(took).unwrap_or(0));
                self.work.metrics.deployment_took(took);
                self.work.metrics.keep_modules(|name| {
                    if [EDGE_AGENT, EDGE_HUB].contains(&name) {
                        return Some(String::new());
                    }
                    deployment.modules.get(name).map(|spec| spec.version.clone())
                });
            }
            if self.settings.rollback.is_none() && self.refused.is_none() {
                let deployment = Arc::clone(deployment);
                if !self
                    .good
                    .as_ref()
                    .is_some_and(|good| Arc::ptr_eq(good, &deployment))
                {
                    self.keep_good(deployment);
                }
            }
        }
        self.applied = status;
        self.report_dirty = true;
    }

    /// Goes on with the trial of the deployment in force; when to look again.
    fn look_at_trial(&mut self, now: i64) -> i64 {
        let Some(rules) = self.settings.rollback.clone().filter(|_| self.trial.is_some()) else {
            return i64::MAX;
        };
        let problems = self.unwell(now);
        let counting = self.trial_counts();
        let well = self.is_well_now();
        let Some(trial) = &mut self.trial else {
            return i64::MAX;
        };
        match trial.look(&rules, now, well, counting) {
            Outcome::Open(at) => at,
            Outcome::Good => {
                if let Some(deployment) = self.deployment.clone() {
                    events::deployment_good(deployment.version);
                    self.keep_good(deployment);
                }
                i64::MAX
            }
            Outcome::Overdue => {
                let mut reasons: Vec<String> = self
                    .failures
                    .iter()
                    .map(|(name, failure)| format!("{name}: {}", failure.failed.text))
                    .collect();
                reasons.extend(problems);
                let within = rules.healthy_within.as_secs();
                self.take_back(&format!("not healthy within {within} s: {}", reasons.join("; ")));
                i64::MAX
            }
        }
    }

    /// Every module is as it should be, and nothing is under way.
    pub(super) fn is_well_now(&self) -> bool {
        self.unwell(self.now()).is_empty() && self.failures.is_empty() && self.nothing_under_way()
    }

    /// No command is being carried out.
    fn nothing_under_way(&self) -> bool {
        self.busy.is_empty() && !self.hub.busy
    }

    /// Time counts against a deployment unless commands are being carried out (pulls, and stops with their grace), the engine
    /// is away, or all that fails fails for want of a network.
    fn trial_counts(&self) -> bool {
        let offline = !self.work.connected.load(Ordering::Relaxed)
            && !self.failures.is_empty()
            && self
                .failures
                .values()
                .all(|failure| failure.failed.stage != Stage::Engine);
        self.nothing_under_way() && !offline && self.engine_problem.is_none()
    }

    /// Modules of the deployment that are not as they should be, in words.
    fn unwell(&self, now: i64) -> Vec<String> {
        let (Some(deployment), Some(containers)) = (&self.deployment, &self.containers) else {
            return vec!["the container engine has not been asked yet".to_owned()];
        };
        deployment
            .modules
            .values()
            .filter_map(|spec| {
                let Some(container) = containers.get(&spec.name) else {
                    return Some(format!("{} does not exist", spec.name));
                };
                if is_well(spec, container) {
                    return None;
                }
                let status = self.verdict(Some(spec), container, now).status.as_str();
                let name = &spec.name;
                Some(match container.state {
                    ContainerState::Running => format!("{name} is {status}: its health check does not pass"),
                    _ => format!("{name} is {status}, exit code {}", container.exit_code),
                })
            })
            .chain(self.hub_unwell())
            .collect()
    }

    fn count_availability(&mut self, now: i64) {
        let passed = Duration::from_millis(u64::try_from(now - self.availability_at).unwrap_or(0));
        if passed.is_zero() {
            return;
        }
        self.availability_at = now;
        let (Some(deployment), Some(containers)) = (&self.deployment, &self.containers) else {
            return;
        };
        for spec in deployment.modules.values() {
            if spec.status == DesiredStatus::Running {
                let running = containers
                    .get(&spec.name)
                    .is_some_and(|container| container.state == ContainerState::Running);
                self.work.metrics.ran(&spec.name, passed, running);
            }
        }
        let hub_is_wanted = deployment
            .edge_hub
            .as_ref()
            .is_some_and(|hub| hub.status == DesiredStatus::Running);
        for built_in in self.parts.host.built_ins() {
            if built_in.name == EDGE_AGENT || hub_is_wanted {
                let running = built_in.state == ContainerState::Running;
                self.work.metrics.ran(built_in.name, passed, running);
            }
        }
    }

    /// Restarts by hand: as soon as the module is not busy.
    pub(super) fn restart_waiting(&mut self) {
        if self.waiting_restarts.is_empty() {
            return;
        }
        let Some(deployment) = self.deployment.clone() else {
            for (name, answer) in std::mem::take(&mut self.waiting_restarts) {
                let _ = answer.send(Err(format!("there is no module {name} on this device")));
            }
            return;
        };
        let Some(around) = self.gateway.clone() else {
            return;
        };
        if self.containers.is_none() {
            return;
        }
        let now = self.now();
        for (name, answer) in std::mem::take(&mut self.waiting_restarts) {
            let is_here = self
                .containers
                .iter()
                .any(|containers| containers.contains_key(&name));
            if !is_here {
                let _ = answer.send(Err(format!("there is no module {name} on this device")));
            } else if is_wanted_stopped(&deployment, &name) {
                let _ = answer.send(Err(super::handle::wanted_stopped(&name)));
            } else if self.busy.contains_key(&name) {
                self.waiting_restarts.push_back((name, answer));
            } else {
                self.touched.remove(&name);
                self.failures.remove(&name);
                self.restarts.forget(&name);
                let command = Command {
                    order: deployment.modules.get(&name).map_or(0, |spec| spec.startup_order),
                    module: name.clone(),
                    phase: Phase::Mend,
                    action: Action::Restart { counted: false },
                };
                self.running_restarts.entry(name).or_default().push(answer);
                self.begin(command, &deployment, &around, now);
            }
        }
    }
}

fn is_wanted_stopped(deployment: &Deployment, name: &str) -> bool {
    let spec = deployment.modules.get(name);
    spec.is_some_and(|spec| spec.status == DesiredStatus::Stopped)
}

/// A module is as it should be: it runs and no health check says otherwise, or it has done its work.
fn is_well(spec: &ModuleSpec, container: &Container) -> bool {
    let done = container.state == ContainerState::Exited && container.exit_code == 0;
    match spec.status {
        DesiredStatus::Stopped => container.state != ContainerState::Running,
        DesiredStatus::Running => {
            (container.state == ContainerState::Running
                && matches!(container.health, None | Some(Health::Healthy)))
                || (done && spec.restart_policy != RestartPolicy::Always)
        }
    }
}
