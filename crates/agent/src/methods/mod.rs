//! Direct methods of `$edgeAgent` (edge.md section 5).
//!
//! [`Methods::call`] takes a request and answers with a status and JSON; it never fails otherwise. What a method may read
//! or send is bounded: [`RESPONSE_BYTES_MAX`] for a response, [`BLOCK_BYTES_MAX`] for a piece of an upload, [`TASKS_MAX`]
//! uploads that are remembered and [`UPLOADS_MAX`] that run.

mod lines;
mod logs;
mod request;
mod tasks;
mod times;
mod upload;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_model::method::{MethodRequest, MethodResponse};
use holdfast_ports::clock::Clock;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::host::{BundleRequest, Host};
use crate::manifest::{EDGE_AGENT, EDGE_HUB};
use crate::metrics::Metrics;
use crate::reconcile::{Parts, Request};
use crate::runtime::{LogQuery, LogStream, ModuleRuntime, RuntimeError};
use crate::settings::Settings;
use logs::Source;
use request::{LogsRequest, Payload};
use tasks::Tasks;
pub use times::parse_time;

/// Bytes of all payloads of a response to GetModuleLogs.
pub const RESPONSE_BYTES_MAX: usize = 127_000;
/// Bytes of one PUT of an upload.
pub const BLOCK_BYTES_MAX: usize = 1024 * 1024;
/// Uploads that are remembered for GetTaskStatus; the oldest that has ended makes room.
pub const TASKS_MAX: usize = 64;
/// Uploads that run side by side; more wait.
pub const UPLOADS_MAX: usize = 2;
/// `RequestTimeoutSecs`.
const TIMEOUT: Duration = Duration::from_secs(600);

const NAMES: [&str; 6] = [
    "ping",
    "RestartModule",
    "GetModuleLogs",
    "UploadModuleLogs",
    "UploadSupportBundle",
    "GetTaskStatus",
];

/// Why a method fails.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct MethodError {
    status: i64,
    message: String,
}

impl MethodError {
    /// The request is wrong: 400.
    fn argument(message: impl Into<String>) -> Self {
        MethodError {
            status: 400,
            message: message.into(),
        }
    }

    /// Anything else: 500.
    fn failed(message: impl Into<String>) -> Self {
        MethodError {
            status: 500,
            message: message.into(),
        }
    }
}

/// Names that blobs and log records carry.
#[derive(Clone, Debug)]
struct Place {
    hub: String,
    device: String,
    parent: Option<String>,
}

/// The direct methods.
pub struct Methods {
    place: Place,
    runtime: Arc<dyn ModuleRuntime>,
    host: Arc<dyn Host>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    requests: mpsc::Sender<Request>,
    tasks: Arc<Tasks>,
}

impl Methods {
    pub(crate) fn new(
        settings: &Settings,
        parts: &Parts,
        metrics: Arc<Metrics>,
        requests: mpsc::Sender<Request>,
    ) -> Self {
        Methods {
            place: Place {
                hub: settings.surroundings.hub_host.clone(),
                device: settings.surroundings.device_id.clone(),
                parent: settings.surroundings.parent_host.clone(),
            },
            runtime: Arc::clone(&parts.runtime),
            host: Arc::clone(&parts.host),
            clock: Arc::clone(&parts.clock),
            metrics,
            requests,
            tasks: Arc::default(),
        }
    }

    /// Answer when too many methods are under way.
    pub(crate) fn too_many() -> MethodResponse {
        respond(Err(MethodError::failed(
            "too many direct methods are under way; try again later",
        )))
    }

    /// Carries out a method. Uploads go on in the background, in tasks of the runtime in which this is called.
    pub async fn call(&self, request: &MethodRequest) -> MethodResponse {
        let name = NAMES
            .iter()
            .copied()
            .find(|name| name.eq_ignore_ascii_case(&request.name));
        let Some(name) = name else {
            let known = NAMES.join(", ");
            let message = format!("unknown method {:?}; this agent knows {known}", request.name);
            return respond(Err(MethodError::argument(message)));
        };
        self.metrics.method_called(name);
        let work = self.dispatch(name, &request.payload);
        match tokio::time::timeout(TIMEOUT, work).await {
            Ok(result) => respond(result),
            Err(_) => {
                let message = format!("{name} did not end within {} s", TIMEOUT.as_secs());
                respond(Err(MethodError::failed(message)))
            }
        }
    }

    async fn dispatch(&self, name: &str, payload: &[u8]) -> Result<Option<Value>, MethodError> {
        if name == "ping" {
            return Ok(None);
        }
        let payload = Payload::read(payload)?;
        match name {
            "RestartModule" => self.restart(payload.id()?).await,
            "GetModuleLogs" => {
                let request = LogsRequest::read(&payload, self.clock.now())?;
                self.logs(&request).await.map(Some)
            }
            "UploadModuleLogs" => self.upload_logs(&payload).map(Some),
            "UploadSupportBundle" => self.upload_bundle(&payload).map(Some),
            _ => Ok(Some(self.tasks.status(payload.correlation_id()?))),
        }
    }

    async fn restart(&self, id: &str) -> Result<Option<Value>, MethodError> {
        crate::reconcile::restart(&self.requests, id)
            .await
            .map(|()| None)
            .map_err(|cause| MethodError::failed(format!("module {id} was not restarted: {cause}")))
    }

    async fn logs(&self, request: &LogsRequest) -> Result<Value, MethodError> {
        let mut left = RESPONSE_BYTES_MAX;
        let mut answers = Vec::new();
        for (module, filter) in self.select(request).await? {
            let source = self.source(module.clone());
            let Some(payload) = logs::collect(&source, filter, request.form, &mut left).await? else {
                continue;
            };
            answers.push(if request.form.gzip {
                use base64::Engine as _;
                let text = base64::engine::general_purpose::STANDARD.encode(payload);
                json!({"id": module, "payloadBytes": text})
            } else {
                json!({"id": module, "payload": String::from_utf8_lossy(&payload)})
            });
        }
        Ok(Value::Array(answers))
    }

    /// Modules of a request with the filter of the first item that names them.
    async fn select<'a>(
        &self,
        request: &'a LogsRequest,
    ) -> Result<Vec<(String, &'a request::Filter)>, MethodError> {
        let containers = self
            .runtime
            .list()
            .await
            .map_err(|error| MethodError::failed(error.to_string()))?;
        let mut names: Vec<String> = containers.into_iter().map(|container| container.name).collect();
        for built_in in [EDGE_AGENT, EDGE_HUB] {
            if !names.iter().any(|name| name == built_in) {
                names.push(built_in.to_owned());
            }
        }
        names.sort();
        let selected: Vec<_> = names
            .into_iter()
            .filter_map(|name| {
                let item = request.items.iter().find(|item| item.names(&name))?;
                Some((name, &item.filter))
            })
            .collect();
        if selected.is_empty() {
            return Err(MethodError::failed(format!(
                "no module on this device is called {}",
                request
                    .items
                    .iter()
                    .map(|item| item.id.as_str())
                    .collect::<Vec<_>>()
                    .join(" or ")
            )));
        }
        Ok(selected)
    }

    fn source(&self, module: String) -> Source {
        Source {
            runtime: Arc::clone(&self.runtime),
            host: Arc::clone(&self.host),
            hub: self.place.hub.clone(),
            device: self.place.device.clone(),
            module,
        }
    }

    fn upload_logs(&self, payload: &Payload) -> Result<Value, MethodError> {
        let now = self.clock.now();
        let request = LogsRequest::read(payload, now)?;
        let target = upload::Target::read(payload.sas_url()?, &self.place, now)?;
        let methods = self.part();
        Ok(self.tasks.begin(async move {
            let modules = methods.select(&request).await.map_err(|error| error.message)?;
            for (module, filter) in modules {
                let source = methods.source(module);
                upload::logs(&*methods.host, &source, filter, request.form, &target).await?;
            }
            Ok(())
        }))
    }

    fn upload_bundle(&self, payload: &Payload) -> Result<Value, MethodError> {
        let now = self.clock.now();
        let target = upload::Target::read(payload.sas_url()?, &self.place, now)?;
        let request = BundleRequest {
            since: payload.time("since", now)?,
            until: payload.time("until", now)?,
            edge_runtime_only: payload.flag("edgeRuntimeOnly")?,
        };
        let host = Arc::clone(&self.host);
        Ok(self.tasks.begin(async move {
            let file = host.support_bundle(&request).await?;
            upload::file(&*host, &file.0, &target).await
        }))
    }

    /// What a background task needs.
    fn part(&self) -> Methods {
        Methods {
            place: self.place.clone(),
            runtime: Arc::clone(&self.runtime),
            host: Arc::clone(&self.host),
            clock: Arc::clone(&self.clock),
            metrics: Arc::clone(&self.metrics),
            requests: self.requests.clone(),
            tasks: Arc::clone(&self.tasks),
        }
    }
}

impl Source {
    /// Opens the log of a module, the daemon's own included.
    async fn open(&self, query: &LogQuery) -> Result<Option<Box<dyn LogStream>>, RuntimeError> {
        match self.runtime.logs(&self.module, query).await {
            Err(RuntimeError::NotFound(_)) if [EDGE_AGENT, EDGE_HUB].contains(&self.module.as_str()) => {
                match self.host.logs(&self.module, query).await {
                    Err(RuntimeError::NotFound(_)) => Ok(None),
                    other => other.map(Some),
                }
            }
            other => other.map(Some),
        }
    }
}

fn respond(result: Result<Option<Value>, MethodError>) -> MethodResponse {
    let (status, body) = match result {
        Ok(None) => (200, Bytes::new()),
        Ok(Some(value)) => (200, value.to_string().into()),
        Err(error) => (error.status, json!({"message": error.message}).to_string().into()),
    };
    MethodResponse {
        status,
        payload: body,
    }
}
