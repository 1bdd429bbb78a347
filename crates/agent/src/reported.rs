//! Reported properties of `$edgeAgent` (edge.md 2.6): the whole document, and the patch that leads to it.

use std::collections::BTreeMap;

use holdfast_model::Timestamp;
use serde_json::{Map, Value, json};

use crate::manifest::{
    Deployment, EDGE_AGENT, EDGE_HUB, ModuleSpec, RuntimeSettings, STARTUP_ORDER_DEFAULT, StatusCode,
    write_chunks,
};
use crate::restart::RuntimeStatus;

/// In place of passwords.
const REDACTED: &str = "******";

/// Version of the agent.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AgentVersion {
    /// Version of the product.
    pub version: String,
    /// Build.
    pub build: String,
    /// Commit.
    pub commit: String,
}

/// Where the agent runs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `x86_64`, `aarch64`, `armv7l`.
    pub architecture: String,
    /// Version of the daemon.
    pub version: String,
}

/// What became of the last desired properties.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeploymentStatus {
    /// `$version` that this speaks of; 0: none yet, then the one reported before stays.
    pub version: u64,
    /// Outcome.
    pub code: StatusCode,
    /// In words; empty when all is well.
    pub description: String,
}

/// State of a module, for the reported twin, `list` and the management API.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ModuleState {
    /// Module name.
    pub name: String,
    /// Image as deployed.
    pub image: String,
    /// `sha256:…`, when there is a container.
    pub image_id: String,
    /// As reported.
    pub status: RuntimeStatus,
    /// What else is to be said: a pause before a restart, progress of a pull, an error.
    pub description: Option<String>,
    /// 0 while it runs.
    pub exit_code: i64,
    /// Last start.
    pub started_at: Timestamp,
    /// Last end.
    pub exited_at: Timestamp,
    /// Restarts since it was last well.
    pub restart_count: u32,
    /// Last of them.
    pub last_restart: Timestamp,
}

impl ModuleState {
    /// A module of which nothing is known.
    #[must_use]
    pub fn unknown(name: &str, image: &str) -> Self {
        ModuleState {
            name: name.to_owned(),
            image: image.to_owned(),
            image_id: String::new(),
            status: RuntimeStatus::Unknown,
            description: None,
            exit_code: 0,
            started_at: Timestamp::NEVER,
            exited_at: Timestamp::NEVER,
            restart_count: 0,
            last_restart: Timestamp::NEVER,
        }
    }
}

/// All that is reported.
#[derive(Clone, Debug)]
pub struct Report<'a> {
    /// Of the agent.
    pub version: &'a AgentVersion,
    /// Of the machine.
    pub platform: &'a Platform,
    /// Of the last desired properties.
    pub status: &'a DeploymentStatus,
    /// In force, if any.
    pub deployment: Option<&'a Deployment>,
    /// Of every module by name, edgeAgent and edgeHub included.
    pub modules: &'a BTreeMap<String, ModuleState>,
    /// Without `createOptions` and `env`: the hub found the whole document too large.
    pub brief: bool,
}

impl Report<'_> {
    /// The whole document.
    #[must_use]
    pub fn document(&self) -> Map<String, Value> {
        let mut document = Map::new();
        let mut put = |name: &str, value| document.insert(name.to_owned(), value);
        put("schemaVersion", json!("1.0"));
        put(
            "version",
            json!({"version": self.version.version, "build": self.version.build, "commit": self.version.commit}),
        );
        if self.status.version > 0 {
            put("lastDesiredVersion", json!(self.status.version));
        }
        put(
            "lastDesiredStatus",
            json!({"code": self.status.code.number(), "description": self.status.description}),
        );
        put("runtime", self.runtime());
        put("systemModules", self.system_modules());
        put("modules", self.modules());
        document
    }

    fn runtime(&self) -> Value {
        let platform = json!({
            "os": self.platform.os, "architecture": self.platform.architecture, "version": self.platform.version,
        });
        match self.deployment {
            None => json!({"type": "Unknown", "platform": platform}),
            Some(deployment) => {
                let settings = settings(&deployment.runtime);
                json!({"type": "docker", "settings": settings, "platform": platform})
            }
        }
    }

    fn system_modules(&self) -> Value {
        let mut modules = Map::new();
        let specs = self
            .deployment
            .map(|deployment| (deployment.edge_agent.as_ref(), deployment.edge_hub.as_ref()));
        let (agent, hub) = specs.unwrap_or_default();
        for (name, spec) in [(EDGE_AGENT, agent), (EDGE_HUB, hub)] {
            if let Some(state) = self.modules.get(name) {
                modules.insert(name.to_owned(), self.module(name, spec, state));
            }
        }
        Value::Object(modules)
    }

    fn modules(&self) -> Value {
        let mut modules = Map::new();
        for (name, state) in self.modules {
            if name != EDGE_AGENT && name != EDGE_HUB {
                let spec = self
                    .deployment
                    .and_then(|deployment| deployment.modules.get(name));
                modules.insert(name.clone(), self.module(name, spec, state));
            }
        }
        Value::Object(modules)
    }

    fn module(&self, name: &str, spec: Option<&ModuleSpec>, state: &ModuleState) -> Value {
        let mut module = Map::new();
        let mut put = |name: &str, value| module.insert(name.to_owned(), value);
        put("type", json!("docker"));
        put("settings", self.settings(spec, state));
        put("exitCode", json!(state.exit_code));
        if let Some(description) = &state.description {
            put("statusDescription", json!(description));
        }
        put("lastStartTimeUtc", json!(state.started_at.to_string()));
        put("lastExitTimeUtc", json!(state.exited_at.to_string()));
        put("runtimeStatus", json!(state.status.as_str()));
        if name == EDGE_AGENT {
            put("startupOrder", json!(0));
        } else {
            put("restartCount", json!(state.restart_count));
            put("lastRestartTimeUtc", json!(state.last_restart.to_string()));
        }
        if let Some(spec) = spec {
            put("imagePullPolicy", json!(spec.pull_policy.as_str()));
            if name != EDGE_AGENT {
                put("status", json!(spec.status.as_str()));
                put("restartPolicy", json!(spec.restart_policy.as_str()));
                if spec.startup_order != STARTUP_ORDER_DEFAULT {
                    put("startupOrder", json!(spec.startup_order));
                }
            }
            if name != EDGE_AGENT && name != EDGE_HUB && !spec.version.is_empty() {
                put("version", json!(spec.version));
            }
            if !self.brief {
                let env: Map<String, Value> = spec
                    .env
                    .iter()
                    .map(|(name, value)| (name.clone(), json!({"value": value})))
                    .collect();
                put("env", Value::Object(env));
            }
        }
        Value::Object(module)
    }

    fn settings(&self, spec: Option<&ModuleSpec>, state: &ModuleState) -> Value {
        let mut settings = Map::new();
        settings.insert("image".to_owned(), json!(state.image));
        settings.insert("imageHash".to_owned(), json!(state.image_id));
        if let Some(spec) = spec {
            if !self.brief {
                write_chunks(&mut settings, &spec.create_options);
            }
            if let Some(digest) = &spec.digest {
                settings.insert("digest".to_owned(), json!(digest));
            }
        }
        Value::Object(settings)
    }
}

fn settings(runtime: &RuntimeSettings) -> Value {
    let mut registries = Map::new();
    for registry in &runtime.registries {
        registries.insert(
            registry.name.clone(),
            json!({"address": registry.address, "username": registry.username, "password": REDACTED}),
        );
    }
    json!({
        "minDockerVersion": runtime.min_docker_version,
        "loggingOptions": runtime.logging_options,
        "registryCredentials": registries,
    })
}

/// The merge patch from one document to another; empty when they are equal. Members whose name begins with `$` belong to
/// the hub and are passed over.
#[must_use]
pub fn difference(from: &Map<String, Value>, to: &Map<String, Value>) -> Map<String, Value> {
    let mut patch = Map::new();
    for key in from.keys() {
        if !to.contains_key(key) && !key.starts_with('$') {
            patch.insert(key.clone(), Value::Null);
        }
    }
    for (key, new) in to {
        match (from.get(key), new) {
            (Some(old), new) if old == new => {}
            (Some(Value::Object(old)), Value::Object(new)) => {
                let inner = difference(old, new);
                if !inner.is_empty() {
                    patch.insert(key.clone(), Value::Object(inner));
                }
            }
            // Over a value of another kind a patch would merge nothing, but an object's own nulls have no meaning there.
            _ => {
                patch.insert(key.clone(), new.clone());
            }
        }
    }
    patch
}

#[cfg(test)]
mod tests;
