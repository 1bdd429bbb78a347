//! The edge hub, which is a part of this process and lives as a module.
//!
//! It is started, stopped and restarted by the same rules as containers, but neither a listing of the engine nor the engine
//! itself is needed for that: devices behind the gateway do not wait for a container engine that hangs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Agent, Done};
use crate::events;
use crate::host::BuiltIn;
use crate::manifest::{DesiredStatus, EDGE_HUB, ModuleSpec};
use crate::reported::ModuleState;
use crate::restart::Next;
use crate::runtime::{Container, ContainerState};

/// What is kept of the edge hub.
#[derive(Default)]
pub(super) struct HubTending {
    /// It is being started or stopped.
    pub(super) busy: bool,
    /// When it is looked at again, monotonic milliseconds.
    pub(super) at: i64,
    /// Environment with which it was last started.
    env: Option<BTreeMap<String, String>>,
    /// Who wants it restarted, and who waits for the restart under way.
    waiting: Vec<oneshot::Sender<Result<(), String>>>,
    answers: Vec<oneshot::Sender<Result<(), String>>>,
}

/// What is done to it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum HubCommand {
    Start,
    Stop,
    Restart,
}

impl HubCommand {
    pub(super) const fn name(self) -> &'static str {
        match self {
            HubCommand::Start => "start",
            HubCommand::Stop => "stop",
            HubCommand::Restart => "restart",
        }
    }
}

impl Agent {
    fn hub_now(&self) -> Option<BuiltIn> {
        let mut built_ins = self.parts.host.built_ins().into_iter();
        built_ins.find(|built_in| built_in.name == EDGE_HUB)
    }

    /// As [`crate::restart::Restarts`] sees it.
    pub(super) fn hub_container(&self) -> Option<Container> {
        Some(self.hub_now()?.container())
    }

    fn hub_spec(&self) -> Option<ModuleSpec> {
        self.deployment.as_ref()?.edge_hub.clone()
    }

    pub(super) fn await_hub(&mut self) {
        let host = Arc::clone(&self.parts.host);
        self.spawn(async move {
            host.hub_changed().await;
            Done::HubChanged
        });
    }

    /// Somebody wants it restarted.
    pub(super) fn restart_hub(&mut self, answer: oneshot::Sender<Result<(), String>>) {
        self.hub.waiting.push(answer);
        self.hub.at = self.now();
    }

    /// Something about it may have to be done.
    pub(super) fn look_at_hub(&mut self) {
        self.hub.at = self.now();
        self.report_dirty = true;
    }

    /// Begins what is due about the edge hub.
    pub(super) fn tend_hub(&mut self, now: i64) {
        if self.hub.busy || now < self.hub.at {
            return;
        }
        self.hub.at = i64::MAX;
        let Some(built_in) = self.hub_now() else {
            return;
        };
        let container = built_in.container();
        let wall = self.parts.clock.now();
        self.restarts.see_one(&container, wall, now);
        let runs = container.state == ContainerState::Running;
        let Some(spec) = self.hub_spec() else {
            for answer in self.hub.waiting.drain(..) {
                let _ = answer.send(Err("the deployment has no edgeHub".to_owned()));
            }
            self.restarts.forget(EDGE_HUB);
            if runs {
                self.begin_hub(HubCommand::Stop, &BTreeMap::new());
            }
            return;
        };
        if spec.status == DesiredStatus::Stopped {
            for answer in self.hub.waiting.drain(..) {
                let _ = answer.send(Err(super::handle::wanted_stopped(EDGE_HUB)));
            }
        }
        if !self.hub.waiting.is_empty() {
            self.hub.answers = std::mem::take(&mut self.hub.waiting);
            self.restarts.forget(EDGE_HUB);
            self.begin_hub(HubCommand::Restart, &spec.env);
            return;
        }
        if spec.status == DesiredStatus::Stopped {
            self.restarts.wanted_stopped(EDGE_HUB);
        } else if runs && self.hub.env.as_ref() != Some(&spec.env) {
            self.restarts.forget(EDGE_HUB);
            self.begin_hub(HubCommand::Restart, &spec.env);
            return;
        }
        match self.verdict(Some(&spec), &container, now).next {
            Next::Rest | Next::Discard => {}
            Next::Wait(until) => self.hub.at = until,
            Next::Forget => self.restarts.forget(EDGE_HUB),
            Next::TurnOff => self.begin_hub(HubCommand::Stop, &spec.env),
            Next::TurnOn => {
                self.restarts.forget(EDGE_HUB);
                self.begin_hub(HubCommand::Start, &spec.env);
            }
            Next::Start { counted } | Next::Restart { counted } => {
                self.restarts.started(EDGE_HUB, counted, wall);
                self.begin_hub(HubCommand::Start, &spec.env);
            }
        }
    }

    fn begin_hub(&mut self, command: HubCommand, env: &BTreeMap<String, String>) {
        events::command_begins(EDGE_HUB, command.name());
        self.hub.busy = true;
        if command != HubCommand::Stop {
            self.hub.env = Some(env.clone());
        }
        let (host, env) = (Arc::clone(&self.parts.host), env.clone());
        self.spawn(async move {
            let begun = tokio::time::Instant::now();
            let result = match command {
                HubCommand::Start => host.start_hub(&env).await,
                HubCommand::Stop => host.stop_hub().await,
                HubCommand::Restart => host.restart_hub(&env).await,
            };
            Done::Hub(command, result, begun.elapsed())
        });
    }

    pub(super) fn hub_done(&mut self, command: HubCommand, result: &Result<(), String>, took: Duration) {
        self.hub.busy = false;
        let metrics = &self.work.metrics;
        metrics.command_took(command.name(), took);
        if command != HubCommand::Start {
            metrics.module_stopped(EDGE_HUB, "");
        }
        if command != HubCommand::Stop && result.is_ok() {
            metrics.module_started(EDGE_HUB, "");
        }
        for answer in self.hub.answers.drain(..) {
            let _ = answer.send(result.clone());
        }
        if let Err(problem) = result {
            events::hub_failed(command.name(), problem);
        }
        self.look_at_hub();
        self.plan_at = self.now();
    }

    /// As reported; `None` when the deployment has none and none runs.
    pub(super) fn hub_state(&self, built_in: BuiltIn) -> Option<ModuleState> {
        let spec = self
            .deployment
            .as_ref()
            .and_then(|deployment| deployment.edge_hub.as_ref());
        let container = built_in.container();
        if spec.is_none() && container.state != ContainerState::Running {
            return None;
        }
        let image = spec.map_or("", |spec| spec.image.as_str());
        let mut state = ModuleState::unknown(EDGE_HUB, image);
        let verdict = self.verdict(spec, &container, self.now());
        let record = self.restarts.record(EDGE_HUB);
        state.status = verdict.status;
        state.restart_count = record.count;
        state.last_restart = record.last;
        state.exit_code = built_in.exit_code;
        state.started_at = built_in.started_at;
        state.exited_at = built_in.exited_at;
        state.description = built_in
            .description
            .or_else(|| self.restart_text(verdict.status, verdict.next, EDGE_HUB));
        Some(state)
    }

    /// Why it is not as the deployment wants it, in words.
    pub(super) fn hub_unwell(&self) -> Option<String> {
        let spec = self.deployment.as_ref()?.edge_hub.as_ref()?;
        let built_in = self.hub_now()?;
        if spec.status == DesiredStatus::Stopped || built_in.state == ContainerState::Running {
            return None;
        }
        let why = built_in
            .description
            .unwrap_or_else(|| "it does not run".to_owned());
        Some(format!("{EDGE_HUB}: {why}"))
    }
}
