//! States of modules for those who look, and the report of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use holdfast_model::Timestamp;
use holdfast_observe::tracing;
use serde_json::{Map, Value};

use super::commands::lock;
use super::{Agent, AgentView, Done, FAREWELL};
use crate::manifest::{Deployment, EDGE_AGENT, ModuleSpec, StatusCode};
use crate::reported::{DeploymentStatus, ModuleState, Report, difference};
use crate::restart::{Next, RuntimeStatus, millis};
use crate::runtime::Container;
use crate::twin::TwinError;

/// After the hub refused a report.
const REFUSED_RETRY: i64 = 60_000;

impl Agent {
    fn status(&self) -> &DeploymentStatus {
        self.refused.as_ref().unwrap_or(&self.applied)
    }

    /// Every module: edgeAgent and edgeHub, those of the deployment, and containers of ours that are on their way out.
    fn module_states(&self) -> BTreeMap<String, ModuleState> {
        let mut states = BTreeMap::new();
        for built_in in self.parts.host.built_ins() {
            let name = built_in.name;
            if name == EDGE_AGENT {
                let spec = self
                    .deployment
                    .as_ref()
                    .and_then(|deployment| deployment.edge_agent.as_ref());
                let image = spec.map_or("", |spec| spec.image.as_str());
                let mut state = ModuleState::unknown(name, image);
                state.status = RuntimeStatus::Running;
                state.description = built_in.description;
                state.started_at = built_in.started_at;
                states.insert(name.to_owned(), state);
            } else if let Some(state) = self.hub_state(built_in) {
                states.insert(name.to_owned(), state);
            }
        }
        let none = BTreeMap::new();
        let containers = self.containers.as_ref().unwrap_or(&none);
        for spec in self
            .deployment
            .iter()
            .flat_map(|deployment| deployment.modules.values())
        {
            let state = self.module_state(Some(spec), &spec.name, containers.get(&spec.name));
            states.insert(spec.name.clone(), state);
        }
        for (name, container) in containers {
            if !states.contains_key(name) {
                let state = self.module_state(None, name, Some(container));
                states.insert(name.clone(), state);
            }
        }
        states
    }

    fn module_state(
        &self,
        spec: Option<&ModuleSpec>,
        name: &str,
        container: Option<&Container>,
    ) -> ModuleState {
        let image = spec.map(|spec| spec.image.as_str());
        let image = image
            .or(container.map(|container| container.image.as_str()))
            .unwrap_or_default();
        let mut state = ModuleState::unknown(name, image);
        let record = self.restarts.record(name);
        state.restart_count = record.count;
        state.last_restart = record.last;
        if let Some(container) = container {
            let verdict = self.verdict(spec, container, self.now());
            state.status = verdict.status;
            state.image_id = container.image_id.clone();
            state.exit_code = container.exit_code;
            state.started_at = container.started_at.unwrap_or(Timestamp::NEVER);
            state.exited_at = container.finished_at.unwrap_or(Timestamp::NEVER);
            state.description = self.restart_text(verdict.status, verdict.next, name);
        }
        if let Some(failure) = self.failures.get(name) {
            state.description = Some(super::desired::brief(&failure.failed.text));
        }
        if let Some(progress) = self.busy.get(name).and_then(|busy| busy.progress.text()) {
            state.description = Some(progress);
        }
        state
    }

    /// Says why a module that should run does not, in words that stay the same while nothing changes.
    pub(super) fn restart_text(&self, status: RuntimeStatus, next: Next, name: &str) -> Option<String> {
        let max = self.tuning.rules.restarts_max;
        match (status, next) {
            (RuntimeStatus::Backoff, Next::Wait(until)) => {
                let pause = (until - self.restarts.since(name)).max(0) / 1000;
                Some(format!("started again after a pause of {pause} s"))
            }
            (RuntimeStatus::Failed, _) if self.restarts.record(name).count >= max => Some(format!(
                "not started again after {max} restarts; change the deployment or restart the module by hand"
            )),
            _ => None,
        }
    }

    pub(super) fn report(&mut self, now: i64) {
        if !self.report_dirty || now < self.report_at {
            return;
        }
        let modules = Arc::new(self.module_states());
        *lock(&self.published) = AgentView {
            modules: Arc::clone(&modules),
            status: self.status().clone(),
            deployment_version: self
                .deployment
                .as_ref()
                .map_or(0, |deployment| deployment.version),
            connected: self.work.connected.load(Ordering::Relaxed),
        };
        if self.reporting || !self.work.connected.load(Ordering::Relaxed) {
            // Looked at again when the connection is back or the report under way has ended.
            self.report_at = now.saturating_add(millis(self.settings.report_interval));
            self.report_dirty = self.reporting;
            return;
        }
        let Some(before) = &self.reported else {
            self.report_dirty = false;
            return;
        };
        let document = self.document(self.status(), &modules, before);
        let patch = difference(before, &document);
        self.report_dirty = false;
        if patch.is_empty() {
            return;
        }
        self.report_at = now.saturating_add(millis(self.settings.report_interval));
        self.reporting = true;
        let twin = Arc::clone(&self.parts.twin);
        let patch = Bytes::from(Value::Object(patch).to_string());
        self.spawn(async move { Done::Reported(document, twin.report(patch).await) });
    }

    fn document(
        &self,
        status: &DeploymentStatus,
        modules: &BTreeMap<String, ModuleState>,
        before: &Map<String, Value>,
    ) -> Map<String, Value> {
        let deployment: Option<&Deployment> = self.deployment.as_deref();
        let report = Report {
            version: &self.settings.version,
            platform: &self.settings.platform,
            status,
            deployment,
            modules,
            brief: self.brief,
        };
        let mut document = report.document();
        if status.version == 0
            && let Some(version) = before.get("lastDesiredVersion")
        {
            document.insert("lastDesiredVersion".to_owned(), version.clone());
        }
        document
    }

    pub(super) fn report_done(&mut self, document: Map<String, Value>, result: Result<(), TwinError>) {
        self.reporting = false;
        self.work.metrics.synced(result.is_ok());
        match result {
            Ok(()) => {
                crate::events::report_taken();
                self.reported = Some(document);
            }
            Err(TwinError::Unreachable(cause)) => {
                crate::events::report_not_answered(&cause);
                self.reported = None;
                self.fetch_soon(2_000);
            }
            Err(TwinError::Refused(cause)) => {
                crate::events::report_refused(&cause, !self.brief);
                let pause = if self.brief { REFUSED_RETRY } else { 0 };
                self.brief = true;
                self.report_dirty = true;
                self.report_at = self.now().saturating_add(pause);
            }
        }
    }

    /// Reports that the agent is not running, and writes what is still to be written.
    pub(super) async fn farewell(mut self) {
        if let Some(file) = self.restarts.take_changes() {
            self.keep_json(crate::state::File::Restarts, &file);
        }
        let writes = std::mem::take(&mut self.writes);
        for (file, content) in writes {
            if let Err(error) = self.state.write(file, &content) {
                crate::events::state_not_written(&error.to_string());
            }
        }
        let Some(before) = self.reported.clone() else {
            return;
        };
        if !self.work.connected.load(Ordering::Relaxed) {
            return;
        }
        let mut modules = self.module_states();
        for state in modules.values_mut() {
            state.status = RuntimeStatus::Unknown;
            state.description = None;
        }
        let status = DeploymentStatus {
            version: self.status().version,
            code: StatusCode::Unknown,
            description: "Agent is not running".to_owned(),
        };
        let patch = difference(&before, &self.document(&status, &modules, &before));
        let patch = Bytes::from(Value::Object(patch).to_string());
        let report = tokio::time::timeout(FAREWELL, self.parts.twin.report(patch));
        if !matches!(report.await, Ok(Ok(()))) {
            tracing::warn!("the hub could not be told that the agent ends");
        }
    }
}
