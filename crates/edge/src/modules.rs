//! Modules of this device as its local APIs show them: containers of the engine, and the agent and the edge hub, which are
//! this process but stand beside them.

use std::collections::BTreeSet;
use std::sync::Arc;

use holdfast_agent::host::BuiltIn;
use holdfast_agent::runtime::{Container, ContainerState, ModuleRuntime, RuntimeError};
use holdfast_model::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::http::Answer;

/// Name of the agent as a module.
pub const EDGE_AGENT: &str = "edgeAgent";
/// Name of the edge hub as a module.
pub const EDGE_HUB: &str = "edgeHub";
/// Label with the image that a deployment names.
const IMAGE_LABEL: &str = "net.azure-devices.edge.original-image";

/// Images that the deployment names for the two system modules; they are shown, never pulled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SystemImages {
    /// Of the agent.
    pub agent: String,
    /// Of the edge hub; `None` while the deployment has none.
    pub hub: Option<String>,
}

/// The list.
pub struct Modules {
    runtime: Arc<dyn ModuleRuntime>,
    started_at: Timestamp,
    images: Mutex<SystemImages>,
    stopped: Mutex<BTreeSet<String>>,
    hub: Mutex<BuiltIn>,
}

impl Modules {
    /// Modules of this engine; this process began at `started_at`.
    #[must_use]
    pub fn new(runtime: Arc<dyn ModuleRuntime>, started_at: Timestamp) -> Self {
        Modules {
            runtime,
            started_at,
            images: Mutex::new(SystemImages::default()),
            stopped: Mutex::default(),
            hub: Mutex::new(BuiltIn::new(EDGE_HUB)),
        }
    }

    /// State of the edge hub.
    #[must_use]
    pub fn hub(&self) -> BuiltIn {
        self.hub.lock().clone()
    }

    /// Whether the deployment has an edge hub, or one still runs.
    #[must_use]
    pub fn has_hub(&self) -> bool {
        self.images.lock().hub.is_some() || self.hub.lock().state == ContainerState::Running
    }

    /// What has become of the edge hub.
    pub fn set_hub(&self, state: BuiltIn) {
        *self.hub.lock() = state;
    }

    /// What the deployment in force names.
    pub fn set_images(&self, images: SystemImages) {
        *self.images.lock() = images;
    }

    /// Modules that the deployment in force wants stopped.
    pub fn set_stopped(&self, names: BTreeSet<String>) {
        *self.stopped.lock() = names;
    }

    /// Whether the deployment in force wants a module stopped: whoever starts it would see the agent stop it at once.
    #[must_use]
    pub fn is_wanted_stopped(&self, name: &str) -> bool {
        self.stopped.lock().contains(name)
    }

    /// The engine.
    #[must_use]
    pub fn runtime(&self) -> &Arc<dyn ModuleRuntime> {
        &self.runtime
    }

    /// `{"modules":[…]}`, system modules first.
    ///
    /// # Errors
    /// The answer that says why the engine cannot be asked.
    pub async fn list(&self) -> Result<Answer, Answer> {
        let containers = self.runtime.list().await.map_err(|error| engine_answer(&error))?;
        let mut modules = self.system();
        modules.extend(containers.iter().map(module));
        Ok(Answer::json(200, &json!({ "modules": modules })))
    }

    /// One module.
    ///
    /// # Errors
    /// 404, or why the engine cannot be asked.
    pub async fn get(&self, name: &str) -> Result<Answer, Answer> {
        if let Some(module) = self.system().into_iter().find(|module| module["name"] == name) {
            return Ok(Answer::json(200, &module));
        }
        let containers = self.runtime.list().await.map_err(|error| engine_answer(&error))?;
        containers
            .iter()
            .find(|container| container.name == name)
            .map(|container| Answer::json(200, &module(container)))
            .ok_or_else(|| Answer::error(404, &format!("there is no module {name}")))
    }

    fn system(&self) -> Vec<Value> {
        let images = self.images.lock().clone();
        let agent = BuiltIn {
            state: ContainerState::Running,
            started_at: self.started_at,
            ..BuiltIn::new(EDGE_AGENT)
        };
        let mut modules = vec![system_module(&agent, &images.agent)];
        if self.has_hub() {
            modules.push(system_module(&self.hub(), &images.hub.unwrap_or_default()));
        }
        modules
    }
}

fn system_module(module: &BuiltIn, image: &str) -> Value {
    let mut status = json!({ "runtimeStatus": { "status": status(module.state, module.exit_code) } });
    if module.started_at != Timestamp::NEVER {
        status["startTime"] = module.started_at.to_string().into();
    }
    if module.state == ContainerState::Exited {
        status["exitStatus"] = json!({
            "exitTime": module.exited_at.to_string(),
            "statusCode": module.exit_code.to_string(),
        });
    }
    json!({
        "id": "id",
        "name": module.name,
        "type": "docker",
        "config": { "settings": { "image": image, "createOptions": {} }, "env": [] },
        "status": status,
    })
}

/// Whether a name is that of a module which is this process.
#[must_use]
pub fn is_system(name: &str) -> bool {
    name == EDGE_AGENT || name == EDGE_HUB
}

fn module(container: &Container) -> Value {
    let image = container.labels.get(IMAGE_LABEL).unwrap_or(&container.image);
    let mut status = json!({ "runtimeStatus": { "status": status(container.state, container.exit_code) } });
    if let Some(started) = container.started_at {
        status["startTime"] = started.to_string().into();
    }
    if let Some(finished) = container.finished_at
        && container.state != ContainerState::Running
    {
        status["exitStatus"] = json!({
            "exitTime": finished.to_string(),
            "statusCode": container.exit_code.to_string(),
        });
    }
    json!({
        "id": "id",
        "name": container.name,
        "type": "docker",
        "config": {
            "settings": {
                "image": image,
                "imageHash": container.image_id,
                "createOptions": { "Labels": container.labels },
            },
            "env": [],
        },
        "status": status,
    })
}

/// State of a container in the runtime's words (edge.md section 3.4).
const fn status(state: ContainerState, exit_code: i64) -> &'static str {
    match state {
        ContainerState::Running => "running",
        ContainerState::Created | ContainerState::Paused | ContainerState::Restarting => "stopped",
        ContainerState::Exited | ContainerState::Removing if exit_code == 0 => "stopped",
        ContainerState::Exited | ContainerState::Removing => "failed",
        ContainerState::Dead => "dead",
        ContainerState::Unknown => "unknown",
    }
}

/// Errors of the engine keep their status.
#[must_use]
pub fn engine_answer(error: &RuntimeError) -> Answer {
    let status = match error {
        RuntimeError::Unavailable { .. } => 503,
        RuntimeError::NotFound(_) => 404,
        RuntimeError::Conflict(_) => 409,
        RuntimeError::Pull { .. } => 500,
        RuntimeError::Refused { status, .. } => *status,
    };
    Answer::error(status, &error.to_string())
}
