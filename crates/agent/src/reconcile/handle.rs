//! What the rest of the daemon sees of the agent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::{mpsc, oneshot, watch};

use super::Request;
use super::commands::lock;
use crate::manifest::{Deployment, StatusCode};
use crate::methods::Methods;
use crate::metrics::Metrics;
use crate::reported::{DeploymentStatus, ModuleState};

/// The agent at one moment.
#[derive(Clone, Debug)]
pub struct AgentView {
    /// Every module by name, edgeAgent and edgeHub included.
    pub modules: Arc<BTreeMap<String, ModuleState>>,
    /// Of the last desired properties.
    pub status: DeploymentStatus,
    /// Version of the deployment in force; 0: none.
    pub deployment_version: u64,
    /// The hub can be reached.
    pub connected: bool,
}

impl Default for AgentView {
    fn default() -> Self {
        AgentView {
            modules: Arc::default(),
            status: DeploymentStatus {
                version: 0,
                code: StatusCode::Unknown,
                description: String::new(),
            },
            deployment_version: 0,
            connected: false,
        }
    }
}

/// Asks the agent; cheap to clone.
#[derive(Clone)]
pub struct AgentHandle {
    published: Arc<Mutex<AgentView>>,
    in_force: watch::Receiver<Option<Arc<Deployment>>>,
    requests: mpsc::Sender<Request>,
    metrics: Arc<Metrics>,
    methods: Arc<Methods>,
}

impl AgentHandle {
    pub(super) const fn new(
        published: Arc<Mutex<AgentView>>,
        in_force: watch::Receiver<Option<Arc<Deployment>>>,
        requests: mpsc::Sender<Request>,
        metrics: Arc<Metrics>,
        methods: Arc<Methods>,
    ) -> Self {
        AgentHandle {
            published,
            in_force,
            requests,
            metrics,
            methods,
        }
    }

    /// State of everything, at most a second old.
    #[must_use]
    pub fn view(&self) -> AgentView {
        lock(&self.published).clone()
    }

    /// The deployment in force and its changes; `edge_hub` has the environment of the edge hub.
    #[must_use]
    pub fn deployment(&self) -> watch::Receiver<Option<Arc<Deployment>>> {
        self.in_force.clone()
    }

    /// Restarts a module by hand and forgets its earlier restarts; the edge hub, too, and what can be of the agent.
    ///
    /// # Errors
    /// Why not, in words.
    pub async fn restart(&self, module: &str) -> Result<(), String> {
        restart(&self.requests, module).await
    }

    /// Looks at the engine and at the twin now.
    pub async fn refresh(&self) {
        let _ = self.requests.send(Request::Refresh).await;
    }

    /// Prometheus text of the agent's metrics.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The direct methods of `$edgeAgent`, for callers besides the hub.
    #[must_use]
    pub fn methods(&self) -> &Methods {
        &self.methods
    }
}

/// Why a module is not restarted that the deployment wants stopped: to say that it was would be true for a moment only.
pub(super) fn wanted_stopped(module: &str) -> String {
    format!("the deployment wants {module} stopped, and it stays so")
}

/// Asks the loop for a restart and waits for its end.
pub(crate) async fn restart(requests: &mpsc::Sender<Request>, module: &str) -> Result<(), String> {
    let (sender, answer) = oneshot::channel();
    requests
        .send(Request::Restart(module.to_owned(), sender))
        .await
        .map_err(|_| "the agent has ended".to_owned())?;
    answer.await.map_err(|_| "the agent has ended".to_owned())?
}
