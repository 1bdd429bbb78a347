//! Desired properties: read, patched, accepted or refused, kept, taken back.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use holdfast_observe::tracing;
use serde_json::{Map, Value};

use super::commands::{Stage, leave, lock};
use super::probation::Probation;
use super::{Agent, Done, GAP_SPACING, REFRESH_SPACING};
use crate::body::definition;
use crate::manifest::{self, Deployment, StatusCode};
use crate::reported::DeploymentStatus;
use crate::restart::millis;
use crate::settings::Tuning;
use crate::state::{File, RollbackFile};
use crate::twin::TwinError;

/// Pause after a read of the twin that failed: 2 s, doubled up to a minute.
fn fetch_pause(failures: u32) -> i64 {
    2_000_i64
        .saturating_mul(1_i64.checked_shl(failures.min(5)).unwrap_or(32))
        .min(60_000)
}

fn version_of(desired: &Map<String, Value>) -> u64 {
    desired.get("$version").and_then(Value::as_u64).unwrap_or(0)
}

impl Agent {
    /// Goes on from the deployment on disk, without waiting for the hub.
    pub(super) fn take_up(&mut self) {
        let parent = self.settings.surroundings.parent_host.clone();
        let read = |file| -> Option<(Bytes, Deployment)> {
            let text = self.state.read(file)?;
            let parsed = manifest::read_object(&text)
                .and_then(|desired| manifest::parse(&desired, parent.as_deref()).map_err(|e| e.to_string()));
            match parsed {
                Ok(deployment) => Some((Bytes::from(text), deployment)),
                Err(problem) => {
                    tracing::error!(
                        problem,
                        "a deployment that was kept on disk cannot be read any more"
                    );
                    None
                }
            }
        };
        let accepted = read(File::Accepted);
        self.good = read(File::Good).map(|(_, deployment)| Arc::new(deployment));
        let Some((text, accepted)) = accepted else {
            if let Some(good) = self.good.clone() {
                self.put_in_force(good);
            }
            return;
        };
        self.desired = Some((accepted.version, text.clone()));
        self.accepted = Some((accepted.version, text));
        if self.rollback.rejected == Some(accepted.version)
            && self.settings.rollback.is_some()
            && let Some(good) = self.good.clone()
        {
            self.refused = Some(self.taken_back(accepted.version));
            self.put_in_force(good);
            return;
        }
        let proven = self
            .good
            .as_ref()
            .is_some_and(|good| good.same_content(&accepted));
        let version = accepted.version;
        self.put_in_force(Arc::new(accepted));
        if !proven {
            self.begin_trial(version);
        }
    }

    fn taken_back(&self, version: u64) -> DeploymentStatus {
        DeploymentStatus {
            version,
            code: StatusCode::Failed,
            description: self.rollback.reason.clone(),
        }
    }

    pub(super) fn put_in_force(&mut self, deployment: Arc<Deployment>) {
        let env = deployment.edge_agent.as_ref().map(|agent| &agent.env);
        self.tuning = Tuning::read(std::iter::once(&self.settings.env).chain(env));
        if let Some(former) = self.deployment.replace(Arc::clone(&deployment)) {
            self.say_goodbye(&former, &deployment);
            for (name, busy) in &self.busy {
                if former.modules.get(name) != deployment.modules.get(name) {
                    busy.cancel.notify_one();
                }
            }
        }
        self.failures.clear();
        self.pulled.clear();
        self.applied = DeploymentStatus {
            version: 0,
            ..self.applied.clone()
        };
        self.surround();
        self.in_force.send_replace(Some(deployment));
        self.accepted_at = self.now();
        self.look_at_hub();
        self.dirty = true;
        self.list_at = self.now();
    }

    /// Identities of modules that are gone and have no container whose removal would see to it.
    fn say_goodbye(&mut self, former: &Deployment, new: &Deployment) {
        let Some(containers) = &self.containers else {
            return;
        };
        let gone: Vec<String> = former
            .modules
            .keys()
            .filter(|name| !new.modules.contains_key(*name) && !containers.contains_key(*name))
            .cloned()
            .collect();
        for name in gone {
            let work = Arc::clone(&self.work);
            self.spawn(async move {
                leave(&work, &name).await;
                Done::Identity
            });
        }
    }

    /// Surroundings and definitions of what is in force.
    pub(super) fn surround(&mut self) {
        if let Some(around) = &mut self.gateway {
            let log_level = &self.settings.surroundings.log_level;
            let around = Arc::make_mut(around);
            around.log_level = self.tuning.log_level.as_ref().unwrap_or(log_level).clone();
            around.upstream_protocol = self
                .tuning
                .upstream_protocol
                .clone()
                .or_else(|| self.settings.surroundings.upstream_protocol.clone());
        }
        self.definitions = match (&self.deployment, &self.gateway) {
            (Some(deployment), Some(around)) => deployment
                .modules
                .iter()
                .map(|(name, spec)| (name.clone(), definition(spec, around)))
                .collect(),
            _ => Default::default(),
        };
    }

    pub(super) fn connected(&mut self) {
        self.work.connected.store(true, Ordering::Relaxed);
        crate::events::hub_back();
        self.fetch_failures = 0;
        let now = self.now();
        // What failed for want of a network may go now.
        for failure in self.failures.values_mut() {
            if failure.failed.stage != Stage::Engine {
                failure.again_at = now;
            }
        }
        self.plan_at = now;
        let generations = lock(&self.work.generations);
        self.identified.retain(|name| generations.contains_key(name));
        drop(generations);
        let at = now.max(self.fetched_at.saturating_add(REFRESH_SPACING));
        // The first read after a start, and the one without which nothing can be reported, do not wait.
        let at = if self.reported.is_none() { now } else { at };
        self.fetch_at = Some(self.fetch_at.map_or(at, |planned| planned.min(at)));
        let leavers: Vec<String> = lock(&self.work.leavers).keys().cloned().collect();
        for name in leavers {
            if self
                .deployment
                .as_ref()
                .is_some_and(|d| d.modules.contains_key(&name))
            {
                lock(&self.work.leavers).remove(&name);
                continue;
            }
            let work = Arc::clone(&self.work);
            self.spawn(async move {
                leave(&work, &name).await;
                Done::Identity
            });
        }
    }

    pub(super) fn fetch_soon(&mut self, pause: i64) {
        let at = self.now().saturating_add(pause);
        self.fetch_at = Some(self.fetch_at.map_or(at, |planned| planned.min(at)));
    }

    pub(super) fn fetch(&mut self, now: i64) {
        let connected = self.work.connected.load(Ordering::Relaxed);
        if self.fetching || !connected || self.fetch_at.is_none_or(|at| now < at) {
            return;
        }
        self.fetching = true;
        self.fetched_at = now;
        self.fetch_at = Some(now.saturating_add(millis(self.tuning.refresh)));
        let twin = Arc::clone(&self.parts.twin);
        self.spawn(async move { Done::Twin(twin.twin().await) });
    }

    pub(super) fn twin_read(&mut self, result: Result<Bytes, TwinError>) {
        self.fetching = false;
        self.work.metrics.synced(result.is_ok());
        let text = match result {
            Ok(text) => text,
            Err(error) => {
                let pause = fetch_pause(self.fetch_failures);
                self.fetch_failures += 1;
                crate::events::twin_not_read(&error.to_string(), pause / 1000);
                self.fetch_soon(pause);
                return;
            }
        };
        self.fetch_failures = 0;
        crate::events::twin_read();
        let mut twin = match manifest::read_object(&text) {
            Ok(twin) => twin,
            Err(problem) => {
                self.refuse(
                    0,
                    StatusCode::ConfigFormat,
                    &format!("the twin cannot be read: {problem}"),
                );
                return;
            }
        };
        let section = |twin: &mut Map<String, Value>, name: &str| match twin.remove(name) {
            Some(Value::Object(section)) => section,
            _ => Map::new(),
        };
        let mut reported = section(&mut twin, "reported");
        reported.retain(|name, _| !name.starts_with('$'));
        self.reported = Some(reported);
        self.report_dirty = true;
        let mut desired = section(&mut twin, "desired");
        desired.remove("$metadata");
        self.consider(&desired);
    }

    pub(super) fn desired_patch(&mut self, version: u64, patch: &[u8]) {
        let Some((known, text)) = &self.desired else {
            return self.fetch_soon(0);
        };
        if version <= *known {
            return;
        }
        let patched = (version == known + 1).then(|| {
            let mut desired = manifest::read_object(text).ok()?;
            let mut patch = manifest::read_object(patch).ok()?;
            patch.retain(|name, _| !name.starts_with('$'));
            manifest::merge(&mut desired, patch);
            desired.insert("$version".to_owned(), version.into());
            Some(desired)
        });
        match patched.flatten() {
            Some(desired) => self.consider(&desired),
            None => {
                let spacing = self.fetched_at.saturating_add(GAP_SPACING) - self.now();
                self.fetch_soon(spacing.max(0));
            }
        }
    }

    /// Accepts desired properties, or refuses them and leaves everything as it is.
    fn consider(&mut self, desired: &Map<String, Value>) {
        let version = version_of(desired);
        let text = Bytes::from(Value::Object(desired.clone()).to_string());
        let is_new = self
            .desired
            .as_ref()
            .is_none_or(|(known, before)| *known != version || *before != text);
        if !is_new {
            return;
        }
        self.report_dirty = true;
        self.desired = Some((version, text.clone()));
        if self.rollback.rejected == Some(version) && self.refused.is_some() {
            return;
        }
        let parsed = manifest::parse(desired, self.settings.surroundings.parent_host.as_deref());
        let deployment = match parsed {
            Ok(deployment) => deployment,
            Err(error) => return self.refuse(version, error.code, &error.description()),
        };
        crate::events::deployment_accepted(version, deployment.modules.len());
        self.close_trial();
        self.accepted = Some((version, text.clone()));
        self.refused = None;
        self.keep(File::Accepted, text.to_vec());
        let proven = self
            .good
            .as_ref()
            .is_some_and(|good| good.same_content(&deployment));
        let deployment = Arc::new(deployment);
        self.put_in_force(Arc::clone(&deployment));
        self.trial = None;
        if proven {
            self.keep_good(deployment);
        } else {
            self.rollback = RollbackFile::default();
            self.begin_trial(version);
        }
    }

    fn refuse(&mut self, version: u64, code: StatusCode, description: &str) {
        if code == StatusCode::ConfigEmpty && self.deployment.is_none() {
            crate::events::nothing_deployed();
        } else {
            crate::events::deployment_refused(version, description);
        }
        self.refused = Some(DeploymentStatus {
            version,
            code,
            description: brief(description),
        });
        self.report_dirty = true;
    }

    fn begin_trial(&mut self, version: u64) {
        if self.rollback.trial == Some(version) {
            self.rollback.begun += 1;
        } else {
            self.rollback = RollbackFile {
                trial: Some(version),
                begun: 1,
                ..RollbackFile::default()
            };
        }
        let file = self.rollback.clone();
        self.keep_json(File::Rollback, &file);
        let begun = self.rollback.begun;
        match &self.settings.rollback {
            Some(rules) if begun > rules.starts_max => {
                let reason = format!("the daemon was started {begun} times before all modules were well");
                self.take_back(&reason);
            }
            // Without roll-back a deployment is good when it has been carried out.
            None => self.trial = None,
            Some(_) => self.trial = Some(Probation::begin(self.now())),
        }
    }

    /// A newer deployment cuts the trial of the one in force short: if all was well until now, that one is good, since it is
    /// what people would want to go back to.
    fn close_trial(&mut self) {
        let Some(deployment) = self.deployment.clone().filter(|_| self.trial.is_some()) else {
            return;
        };
        let is_done =
            self.applied.version == deployment.version && self.applied.code == StatusCode::Successful;
        let has_failed = |name: &String| self.restarts.record(name).count > 0;
        if is_done && self.is_well_now() && !deployment.modules.keys().any(has_failed) {
            self.keep_good(deployment);
        }
    }

    /// The deployment in force is the last good one from now on.
    pub(super) fn keep_good(&mut self, deployment: Arc<Deployment>) {
        self.trial = None;
        if let Some((version, text)) = &self.accepted
            && *version == deployment.version
        {
            let text = text.to_vec();
            self.keep(File::Good, text);
        }
        self.good = Some(deployment);
        if self.rollback != RollbackFile::default() {
            self.rollback = RollbackFile::default();
            let file = self.rollback.clone();
            self.keep_json(File::Rollback, &file);
        }
    }

    /// The deployment in force did not become healthy.
    pub(super) fn take_back(&mut self, reason: &str) {
        self.trial = None;
        let Some(version) = self.deployment.as_ref().map(|deployment| deployment.version) else {
            return;
        };
        let good = self.good.clone().filter(|good| good.version != version);
        let Some(good) = good else {
            crate::events::deployment_not_healthy(version, reason);
            return;
        };
        crate::events::deployment_taken_back(version, good.version, reason);
        let reason = format!(
            "Deployment {version} was taken back to deployment {}: {reason}",
            good.version
        );
        self.rollback = RollbackFile {
            rejected: Some(version),
            reason: brief(&reason),
            trial: None,
            begun: 0,
        };
        let file = self.rollback.clone();
        self.keep_json(File::Rollback, &file);
        self.refused = Some(self.taken_back(version));
        self.put_in_force(good);
        self.report_dirty = true;
    }
}

/// A description fits into a twin: at most 2,000 characters.
pub(super) fn brief(text: &str) -> String {
    match text.char_indices().nth(2_000) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
