//! Containers: list, inspect, create, start, stop, remove.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_agent::runtime::{Container, ContainerState, Health, OWNER, OWNER_LABEL, RuntimeError};
use holdfast_model::Timestamp;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::answer;
use crate::runtime::{DockerRuntime, Session, escape};

/// The engine's `GET /containers/{id}/json`, as far as it is needed here.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Inspected {
    pub(crate) id: String,
    pub(crate) name: String,
    #[serde(default)]
    image: String,
    #[serde(default)]
    state: State,
    #[serde(default)]
    pub(crate) config: Config,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct State {
    status: String,
    pid: i64,
    exit_code: i64,
    started_at: String,
    finished_at: String,
    health: Option<HealthState>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct HealthState {
    status: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Config {
    pub(crate) tty: bool,
    image: String,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Created {
    id: String,
}

impl Inspected {
    fn owned(&self) -> bool {
        let labels = self.config.labels.as_ref();
        labels
            .and_then(|labels| labels.get(OWNER_LABEL))
            .is_some_and(|owner| owner == OWNER)
    }

    /// Process id on the host while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        u32::try_from(self.state.pid).ok().filter(|pid| *pid > 0)
    }

    fn into_container(self) -> Container {
        let state = container_state(&self.state.status);
        let pid = self.pid();
        Container {
            name: self.name.trim_start_matches('/').to_owned(),
            id: self.id,
            image: self.config.image,
            image_id: with_algorithm(self.image),
            labels: self.config.labels.unwrap_or_default(),
            state,
            health: self.state.health.and_then(|health| health_state(&health.status)),
            exit_code: if state == ContainerState::Running {
                0
            } else {
                self.state.exit_code
            },
            started_at: moment(&self.state.started_at),
            finished_at: moment(&self.state.finished_at),
            pid,
        }
    }
}

/// Podman leaves out the algorithm.
fn with_algorithm(id: String) -> String {
    if id.is_empty() || id.contains(':') {
        id
    } else {
        format!("sha256:{id}")
    }
}

fn container_state(status: &str) -> ContainerState {
    match status {
        // Podman knows more words for the way up.
        "created" | "configured" | "initialized" => ContainerState::Created,
        "running" => ContainerState::Running,
        "paused" => ContainerState::Paused,
        "restarting" => ContainerState::Restarting,
        "removing" => ContainerState::Removing,
        "exited" | "stopped" => ContainerState::Exited,
        "dead" => ContainerState::Dead,
        _ => ContainerState::Unknown,
    }
}

fn health_state(status: &str) -> Option<Health> {
    match status {
        "starting" => Some(Health::Starting),
        "healthy" => Some(Health::Healthy),
        "unhealthy" => Some(Health::Unhealthy),
        _ => None,
    }
}

/// The engine's "never" is the year 1.
fn moment(text: &str) -> Option<Timestamp> {
    Timestamp::parse(text).filter(|at| *at > Timestamp::NEVER)
}

/// The filter of lists and events: the owner's label.
pub(crate) fn owner_filter() -> String {
    format!("{OWNER_LABEL}={OWNER}")
}

fn no_such(name: &str) -> RuntimeError {
    RuntimeError::NotFound(format!("no such container: {name}"))
}

impl DockerRuntime {
    pub(crate) async fn list_owned(&self) -> Result<Vec<Container>, RuntimeError> {
        let mut session = self.connect().await?;
        let filters = serde_json::json!({ "label": [owner_filter()] }).to_string();
        let path = format!("/containers/json?all=true&filters={}", escape(&filters));
        let body = self.noting(session.get(&path, self.timeouts.question).await)?;
        let listed: Vec<Listed> = answer::json("GET /containers/json", &body)?;
        let mut containers = Vec::with_capacity(listed.len());
        for Listed { id } in listed {
            // The list has neither exit codes nor times.
            match self.noting(inspected(&mut session, &id, self.timeouts.question).await) {
                Ok(inspected) if inspected.owned() => containers.push(inspected.into_container()),
                Ok(_) | Err(RuntimeError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        containers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(containers)
    }

    /// The container of exactly this name, if it is ours.
    pub(crate) async fn own(&self, session: &mut Session, name: &str) -> Result<Inspected, RuntimeError> {
        let found = self.noting(inspected(session, name, self.timeouts.question).await)?;
        // An engine also takes the beginning of an id for a name.
        if found.name.trim_start_matches('/') == name && found.owned() {
            Ok(found)
        } else {
            Err(no_such(name))
        }
    }

    pub(crate) async fn create_container(
        &self,
        name: &str,
        body: &Map<String, Value>,
    ) -> Result<String, RuntimeError> {
        let mut session = self.connect().await?;
        let path = format!("/containers/create?name={}", escape(name));
        let body = self.noting(session.post(&path, body, self.timeouts.change).await)?;
        let created: Created = answer::json("POST /containers/create", &body)?;
        Ok(created.id)
    }

    pub(crate) async fn start_container(&self, name: &str) -> Result<(), RuntimeError> {
        let mut session = self.connect().await?;
        let id = self.own(&mut session, name).await?.id;
        let path = format!("/containers/{}/start", escape(&id));
        self.change(&mut session, Method::POST, &path, self.timeouts.change)
            .await
    }

    pub(crate) async fn stop_container(&self, name: &str, grace: Duration) -> Result<(), RuntimeError> {
        let mut session = self.connect().await?;
        let id = self.own(&mut session, name).await?.id;
        // The engine counts whole seconds; none at all would be a kill without a chance to end.
        let seconds = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
        let path = format!("/containers/{}/stop?t={seconds}", escape(&id));
        let within = Duration::from_secs(seconds) + self.timeouts.change;
        self.change(&mut session, Method::POST, &path, within).await
    }

    pub(crate) async fn remove_container(&self, name: &str) -> Result<(), RuntimeError> {
        let mut session = self.connect().await?;
        let id = match self.own(&mut session, name).await {
            Ok(found) => found.id,
            Err(RuntimeError::NotFound(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        let path = format!("/containers/{}?force=true&v=true", escape(&id));
        let removed = self
            .change(&mut session, Method::DELETE, &path, self.timeouts.change)
            .await;
        match removed {
            Ok(()) | Err(RuntimeError::NotFound(_)) => Ok(()),
            // Somebody else, or an earlier call of ours that was given up, is about it.
            Err(RuntimeError::Conflict(message)) if message.contains("in progress") => {
                self.gone(&mut session, &id, message).await
            }
            Err(error) => Err(error),
        }
    }

    /// Waits until a container that is being removed is gone.
    async fn gone(&self, session: &mut Session, id: &str, message: String) -> Result<(), RuntimeError> {
        const PAUSE: Duration = Duration::from_millis(100);
        let deadline = Instant::now() + self.timeouts.change;
        while Instant::now() < deadline {
            match self.noting(inspected(session, id, self.timeouts.question).await) {
                Err(RuntimeError::NotFound(_)) => return Ok(()),
                Err(error) => return Err(error),
                Ok(_) => tokio::time::sleep(PAUSE).await,
            }
        }
        Err(RuntimeError::Conflict(message))
    }

    /// A change; "not modified" is success, since what was wanted is so.
    pub(crate) async fn change(
        &self,
        session: &mut Session,
        method: Method,
        path: &str,
        within: Duration,
    ) -> Result<(), RuntimeError> {
        let call = session.call(method, path);
        let (status, body) = self.noting(session.connection.ask(call, within).await)?;
        if status.is_success() || status == StatusCode::NOT_MODIFIED {
            Ok(())
        } else {
            Err(answer::refusal(status, &body))
        }
    }

    pub(crate) async fn inspect_container(&self, name: &str) -> Result<Value, RuntimeError> {
        let mut session = self.connect().await?;
        let id = self.own(&mut session, name).await?.id;
        let path = format!("/containers/{}/json", escape(&id));
        let body = self.noting(session.get(&path, self.timeouts.question).await)?;
        answer::json("GET /containers/ID/json", &body)
    }
}

async fn inspected(session: &mut Session, name: &str, within: Duration) -> Result<Inspected, RuntimeError> {
    let body = session
        .get(&format!("/containers/{}/json", escape(name)), within)
        .await?;
    answer::json("GET /containers/ID/json", &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"Id":"ab","Name":"/sensor","Image":"sha256:12",
        "State":{"Status":"exited","Pid":0,"ExitCode":137,"StartedAt":"2026-01-02T03:04:05.123456789Z",
                 "FinishedAt":"0001-01-01T00:00:00Z","Health":{"Status":"unhealthy","Log":[]}},
        "Config":{"Tty":true,"Image":"r/sensor:1","Labels":{"net.azure-devices.edge.owner":"Microsoft.Azure.Devices.Edge.Agent"}}}"#;

    #[test]
    fn reads_an_inspected_container() {
        let inspected: Inspected = serde_json::from_str(TEXT).unwrap();
        assert!(inspected.owned() && inspected.config.tty);
        let container = inspected.into_container();
        assert_eq!(container.name, "sensor");
        assert_eq!(container.image, "r/sensor:1");
        assert_eq!(container.image_id, "sha256:12");
        assert_eq!(container.state, ContainerState::Exited);
        assert_eq!(container.health, Some(Health::Unhealthy));
        assert_eq!(container.exit_code, 137);
        assert_eq!(container.finished_at, None);
        assert_eq!(container.pid, None);
        let started = container.started_at.unwrap().to_string();
        assert_eq!(started, "2026-01-02T03:04:05.1234560Z");
    }

    #[test]
    fn a_running_one_has_no_exit_code_and_foreign_ones_are_known() {
        let text = TEXT
            .replace("exited", "running")
            .replace("\"Pid\":0", "\"Pid\":77")
            .replace("Microsoft.", "Other.");
        let inspected: Inspected = serde_json::from_str(&text).unwrap();
        assert!(!inspected.owned());
        let container = inspected.into_container();
        assert_eq!((container.exit_code, container.pid), (0, Some(77)));
    }

    #[test]
    fn engines_leave_things_out() {
        let inspected: Inspected =
            serde_json::from_str(r#"{"Id":"a","Name":"b","Image":"cd","Config":{"Labels":null}}"#).unwrap();
        assert!(!inspected.owned());
        let container = inspected.into_container();
        assert_eq!(container.state, ContainerState::Unknown);
        assert_eq!(container.image_id, "sha256:cd");
        assert_eq!(container.health, None);
    }
}
