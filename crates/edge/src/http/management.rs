//! The management API: for this program's commands, the original's `iotedge`, and agents of other makers on this machine
//! (edge.md section 13).
//!
//! Routes by which the original's agent changes modules and identities are for the `edgeAgent` container alone; the agent
//! is this process, so nobody may call them. What an operator may do is open to whoever can open the socket, which is for
//! root and the daemon's group.

use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use holdfast_agent::host::{BundleRequest, TemporaryFile};
use holdfast_agent::identities::ModuleIdentities;
use holdfast_agent::runtime::{LogQuery, LogStream};
use holdfast_model::Timestamp;
use holdfast_ports::BoxFuture;
use http::Method;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::answer::PIECES_WAITING_MAX;
use super::callers::container_of;
use super::route::{check_method, check_version, not_found};
use super::{Answer, Api, Call};
use crate::journal;
use crate::modules::{EDGE_AGENT, Modules, engine_answer, is_system};
use crate::support::SupportBundle;
use crate::system::SystemInfo;
use crate::time_text;

const FIRST: &str = "2018-06-28";
/// How long a module may take to end before it is killed.
const STOP_GRACE: std::time::Duration = std::time::Duration::from_secs(10);

/// What the API makes the daemon do.
pub trait Control: Send + Sync + 'static {
    /// Asks for the device's hub again and starts anew.
    fn reprovision(&self);
    /// Fetches the deployment again and compares it with what runs.
    fn reconcile(&self);
    /// What became of the last deployment, as `GET /deployment` answers it:
    ///
    /// ```json
    /// {"lastDesiredVersion": 8, "lastDesiredStatus": {"code": 400, "description": "…"}, "versionInForce": 7,
    ///  "connected": true, "edgeHub": {"lastDesiredVersion": 3, "lastDesiredStatus": {"code": 200, "description": ""}}}
    /// ```
    ///
    /// Versions are `null` when they are not known, `edgeHub` while none is configured. Codes are those of the reported
    /// properties (edge.md 2.6).
    fn deployment(&self) -> Value;
    /// Starts, stops or restarts the edge hub. The agent treats what comes of it as it does with containers.
    ///
    /// # Errors
    /// Why not.
    fn operate_hub(&self, operation: HubOperation) -> BoxFuture<'_, Result<(), String>>;
}

/// What is done to the edge hub.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HubOperation {
    /// Nothing, if it runs.
    Start,
    /// Nothing, if it does not run.
    Stop,
    /// Both.
    Restart,
}

/// The API.
pub struct Management {
    /// Containers.
    pub modules: Arc<Modules>,
    /// Identities.
    pub identities: Arc<dyn ModuleIdentities>,
    /// The machine.
    pub system: Arc<SystemInfo>,
    /// Bundles.
    pub bundles: Arc<SupportBundle>,
    /// The daemon.
    pub control: Arc<dyn Control>,
}

impl Api for Management {
    fn answer<'a>(&'a self, call: Call) -> BoxFuture<'a, Answer> {
        Box::pin(async move { self.route(&call).await.unwrap_or_else(|answer| answer) })
    }
}

impl Management {
    async fn route(&self, call: &Call) -> Result<Answer, Answer> {
        let path: Vec<&str> = call.path.iter().map(String::as_str).collect();
        match path.as_slice() {
            ["modules"] => {
                check_version(call, FIRST)?;
                check_method(call, &[Method::GET, Method::POST])?;
                if call.method == Method::POST {
                    return Err(agent_only());
                }
                self.modules.list().await
            }
            ["modules", name] => {
                check_version(call, FIRST)?;
                check_method(call, &[Method::GET, Method::PUT, Method::DELETE])?;
                if call.method != Method::GET {
                    return Err(agent_only());
                }
                self.modules.get(container_of(name)).await
            }
            ["modules", name, operation @ ("start" | "stop" | "restart")] => {
                check_version(call, FIRST)?;
                check_method(call, &[Method::POST])?;
                self.operate(container_of(name), operation).await
            }
            ["modules", _, "prepareupdate"] => {
                check_version(call, "2019-01-30")?;
                check_method(call, &[Method::POST])?;
                Err(agent_only())
            }
            ["modules", name, "logs"] => {
                check_version(call, FIRST)?;
                check_method(call, &[Method::GET])?;
                self.logs(call, container_of(name)).await
            }
            ["deployment"] => {
                check_version(call, FIRST)?;
                check_method(call, &[Method::GET])?;
                Ok(Answer::json(200, &self.control.deployment()))
            }
            ["identities"] | ["identities", _] => self.identities(call).await,
            ["systeminfo", rest @ ..] => self.system(call, rest).await,
            ["device", "reprovision"] => {
                check_version(call, "2019-10-22")?;
                check_method(call, &[Method::POST])?;
                self.reprovision(call)
            }
            _ => Err(not_found()),
        }
    }

    async fn operate(&self, name: &str, operation: &str) -> Result<Answer, Answer> {
        // To answer that it has been started would be true for a moment only.
        if operation != "stop" && self.modules.is_wanted_stopped(name) {
            return Err(Answer::error(
                409,
                &format!("the deployment wants {name} stopped, and it stays so"),
            ));
        }
        if is_system(name) {
            return self.operate_system(name, operation).await;
        }
        // Containers that are not ours do not exist for the runtime.
        let runtime = self.modules.runtime();
        if operation != "start" {
            runtime
                .stop(name, STOP_GRACE)
                .await
                .map_err(|error| engine_answer(&error))?;
        }
        if operation != "stop" {
            runtime.start(name).await.map_err(|error| engine_answer(&error))?;
        }
        Ok(Answer::empty(204))
    }

    /// The agent runs as long as this process: to restart it means to look at everything again.
    async fn operate_system(&self, name: &str, operation: &str) -> Result<Answer, Answer> {
        if name == EDGE_AGENT {
            return match operation {
                "start" => Ok(Answer::empty(204)),
                "restart" => {
                    self.control.reconcile();
                    Ok(Answer::empty(204))
                }
                _ => Err(Answer::error(
                    409,
                    "edgeAgent is the daemon itself; stop that (systemctl stop holdfast-edge)",
                )),
            };
        }
        if !self.modules.has_hub() {
            return Err(Answer::error(404, &format!("there is no module {name}")));
        }
        let operation = match operation {
            "start" => HubOperation::Start,
            "stop" => HubOperation::Stop,
            _ => HubOperation::Restart,
        };
        match self.control.operate_hub(operation).await {
            Ok(()) => Ok(Answer::empty(204)),
            Err(cause) => Err(Answer::error(500, &cause)),
        }
    }

    async fn logs(&self, call: &Call, name: &str) -> Result<Answer, Answer> {
        let query = log_query(call)?;
        let log = if is_system(name) {
            journal::open(name, &query)
        } else {
            self.modules.runtime().logs(name, &query).await
        };
        let log = log.map_err(|error| engine_answer(&error))?;
        let (sender, pieces) = mpsc::channel(PIECES_WAITING_MAX);
        tokio::spawn(copy_log(log, sender));
        Ok(Answer::stream("text/plain; charset=utf-8", pieces))
    }

    async fn identities(&self, call: &Call) -> Result<Answer, Answer> {
        check_version(call, FIRST)?;
        let single = call.path.len() > 1;
        let allowed: &[Method] = if single {
            &[Method::PUT, Method::DELETE]
        } else {
            &[Method::GET, Method::POST]
        };
        check_method(call, allowed)?;
        if call.method != Method::GET {
            return Err(agent_only());
        }
        let identities = self.identities.list().await;
        let identities = identities.map_err(|error| Answer::error(500, &error.to_string()))?;
        let identities: Vec<Value> = identities
            .iter()
            .map(|module| {
                json!({
                    "moduleId": module.identity.module_id(),
                    "managedBy": module.managed_by,
                    "generationId": module.generation_id,
                    "authType": "sas",
                })
            })
            .collect();
        Ok(Answer::json(200, &json!({ "identities": identities })))
    }

    async fn system(&self, call: &Call, rest: &[&str]) -> Result<Answer, Answer> {
        let since = match rest {
            [] => FIRST,
            ["resources"] => "2019-11-05",
            ["supportbundle"] => "2020-07-07",
            _ => return Err(not_found()),
        };
        check_version(call, since)?;
        check_method(call, &[Method::GET])?;
        match rest {
            [] => Ok(Answer::json(
                200,
                &self.system.describe(self.modules.runtime()).await,
            )),
            ["resources"] => Ok(Answer::json(
                200,
                &self.system.resources(self.modules.runtime()).await,
            )),
            _ => {
                let request = BundleRequest {
                    since: time_parameter(call, "since")?,
                    until: time_parameter(call, "until")?,
                    edge_runtime_only: call.parameter("edge_runtime_only") == Some("true"),
                };
                let bundle = self.bundles.make(&request).await;
                let bundle = bundle.map_err(|error| Answer::error(500, &error))?;
                Ok(Answer::stream("application/zip", stream_file(bundle)))
            }
        }
    }

    fn reprovision(&self, call: &Call) -> Result<Answer, Answer> {
        let own = rustix::process::getuid().as_raw();
        if call.peer.uid != 0 && call.peer.uid != own {
            return Err(Answer::error(
                403,
                "only root and the daemon's own user may reprovision",
            ));
        }
        self.control.reprovision();
        Ok(Answer::empty(204))
    }
}

fn agent_only() -> Answer {
    Answer::error(
        403,
        "modules and identities are changed by deployments; the agent, which alone may call this, is part of the daemon",
    )
}

fn log_query(call: &Call) -> Result<LogQuery, Answer> {
    let flag = |name: &str| match call.parameter(name) {
        None | Some("false" | "0" | "") => Ok(false),
        Some("true" | "1") => Ok(true),
        Some(other) => Err(Answer::error(
            400,
            &format!("{name}={other}: write true or false"),
        )),
    };
    let tail = match call.parameter("tail") {
        None | Some("all" | "") => None,
        Some(number) => Some(
            number
                .parse()
                .map_err(|_| Answer::error(400, "tail is neither a number of lines nor \"all\""))?,
        ),
    };
    Ok(LogQuery {
        tail,
        since: time_parameter(call, "since")?,
        until: time_parameter(call, "until")?,
        follow: flag("follow")?,
        timestamps: flag("timestamps")?,
    })
}

fn time_parameter(call: &Call, name: &str) -> Result<Option<Timestamp>, Answer> {
    let Some(text) = call.parameter(name).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    time_text::parse(text, time_text::now())
        .map(Some)
        .ok_or_else(|| Answer::error(400, &format!("{name}={text}: {}", time_text::EXPECTED)))
}

/// Pieces of a file that goes when the last one is sent.
fn stream_file(file: TemporaryFile) -> mpsc::Receiver<Bytes> {
    let (sender, pieces) = mpsc::channel(PIECES_WAITING_MAX);
    tokio::task::spawn_blocking(move || {
        use std::io::Read as _;
        let Ok(mut reader) = std::fs::File::open(&file.0) else {
            return;
        };
        let mut piece = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = reader.read(&mut piece) {
            if sender
                .blocking_send(Bytes::copy_from_slice(&piece[..length]))
                .is_err()
            {
                return;
            }
        }
    });
    pieces
}

/// Each piece with the engine's header: stream (1 output, 2 errors), three zeros, length.
async fn copy_log(mut log: Box<dyn LogStream>, sender: mpsc::Sender<Bytes>) {
    loop {
        let next = tokio::select! {
            next = log.next() => next,
            // The client has gone; a followed log could be silent for ever.
            () = sender.closed() => return,
        };
        let chunk = match next {
            Ok(Some(chunk)) => chunk,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%error, "a log broke off");
                return;
            }
        };
        let mut framed = BytesMut::with_capacity(8 + chunk.bytes.len());
        framed.put_slice(&[if chunk.stderr { 2 } else { 1 }, 0, 0, 0]);
        framed.put_u32(u32::try_from(chunk.bytes.len()).unwrap_or(u32::MAX));
        framed.put_slice(&chunk.bytes);
        if sender.send(framed.freeze()).await.is_err() {
            return;
        }
    }
}
