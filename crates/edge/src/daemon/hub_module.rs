//! The edge hub as a module of this process: the agent starts and stops it while the daemon goes on.
//!
//! Between a stop and the next start nothing of it is left but its folder: ports are closed, clients are ended after what
//! is due to them has been acknowledged, conversations with the hub above are ended, queues and twins are closed. A start
//! opens everything anew, with the environment of the deployment in force.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use holdfast_agent::host::BuiltIn;
use holdfast_agent::runtime::ContainerState;
use holdfast_heads::events::Metrics;
use holdfast_program::failure::Failure;
use holdfast_upstream::{HttpsRegistry, Upstream};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::Base;
use super::hub::{self, EdgeHub, Listeners};
use crate::http::management::HubOperation;
use crate::identities::Identities;
use crate::memory::unmap_program;

/// For clients to take leave; longer than the heads wait for them.
const HEADS_FAREWELL: Duration = Duration::from_secs(8);
/// Exit code when it could not be started.
const NOT_STARTED: i64 = 1;
/// Exit code when a part of it ended by itself, as that of a program that panics.
const BROKEN: i64 = 101;

/// What a start needs.
pub(super) struct Parts {
    pub(super) base: Arc<Base>,
    pub(super) upstream: Upstream,
    pub(super) identities: Arc<Identities>,
    /// Counts on over restarts.
    pub(super) metrics: Metrics,
}

/// The module.
pub(super) struct HubModule {
    parts: Parts,
    me: Weak<HubModule>,
    /// One start or stop at a time.
    turn: tokio::sync::Mutex<()>,
    running: Mutex<Option<Running>>,
    env: Mutex<BTreeMap<String, String>>,
    /// Ports that were drawn at the first start, where the configuration says 0: clients find them again.
    drawn: Mutex<[Option<u16>; 3]>,
    /// Told when it changed otherwise than by the agent.
    changed: Notify,
}

/// One run.
struct Running {
    hub: Arc<EdgeHub>,
    stop: watch::Sender<bool>,
    heads: JoinHandle<()>,
    identify: JoinHandle<()>,
}

impl HubModule {
    pub(super) fn new(parts: Parts) -> Arc<Self> {
        Arc::new_cyclic(|me| HubModule {
            parts,
            me: me.clone(),
            turn: tokio::sync::Mutex::default(),
            running: Mutex::default(),
            env: Mutex::default(),
            drawn: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// The edge hub while it runs.
    pub(super) fn hub(&self) -> Option<Arc<EdgeHub>> {
        self.running
            .lock()
            .as_ref()
            .map(|running| Arc::clone(&running.hub))
    }

    pub(super) fn state(&self) -> BuiltIn {
        self.parts.base.modules.hub()
    }

    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// See `Host::start_hub`.
    pub(super) async fn start(&self, env: &BTreeMap<String, String>) -> Result<(), String> {
        *self.env.lock() = env.clone();
        self.carry_out(HubOperation::Start).await
    }

    /// See `Host::restart_hub`.
    pub(super) async fn restart(&self, env: &BTreeMap<String, String>) -> Result<(), String> {
        *self.env.lock() = env.clone();
        self.carry_out(HubOperation::Restart).await
    }

    /// See `Host::stop_hub`.
    pub(super) async fn stop(&self) -> Result<(), String> {
        self.carry_out(HubOperation::Stop).await
    }

    /// What an operator asks for; the agent is told afterwards.
    pub(super) async fn operate(&self, operation: HubOperation) -> Result<(), String> {
        let result = self.carry_out(operation).await;
        self.changed.notify_one();
        result
    }

    /// In a task of its own: whoever waits may go away, and what was begun is carried to its end.
    async fn carry_out(&self, operation: HubOperation) -> Result<(), String> {
        let Some(module) = self.me.upgrade() else {
            return Err("the daemon is ending".to_owned());
        };
        let task = tokio::spawn(async move {
            let _turn = module.turn.lock().await;
            match operation {
                HubOperation::Start => module.begin().await,
                HubOperation::Stop => {
                    if module.end().await {
                        module.show_end(0, None);
                        unmap_program();
                    }
                    Ok(())
                }
                HubOperation::Restart => {
                    let ended = module.end().await.then(|| module.parts.base.clock.now());
                    let begun = module.begin().await;
                    if let Some(ended) = ended
                        && begun.is_ok()
                    {
                        let mut state = module.state();
                        state.exited_at = ended;
                        module.parts.base.modules.set_hub(state);
                    }
                    begun
                }
            }
        });
        match task.await {
            Ok(result) => result,
            Err(error) => Err(error.to_string()),
        }
    }

    async fn begin(self: &Arc<Self>) -> Result<(), String> {
        if self.running.lock().is_some() {
            return Ok(());
        }
        let mut env = self.parts.base.settings.agent.env.clone();
        env.extend(self.env.lock().clone());
        let module = Arc::clone(self);
        let opened = tokio::task::spawn_blocking(move || module.open(&env)).await;
        let opened = opened.unwrap_or_else(|error| Err(error.into()));
        let (hub, registry, listeners) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let text = format!("{error:#}");
                if let Some(hint) = error
                    .downcast_ref::<Failure>()
                    .and_then(|failure| failure.hint.as_ref())
                {
                    tracing::error!(problem = text, hint, "the edge hub cannot be started");
                }
                self.show_end(NOT_STARTED, Some(text.clone()));
                return Err(text);
            }
        };
        let [mqtt_port, amqp_port, https_port] = listeners.ports();
        *self.drawn.lock() = [mqtt_port, amqp_port, https_port];
        let (stop, stopped) = watch::channel(false);
        let mut heads = JoinSet::new();
        let metrics = self.parts.metrics.clone();
        hub::serve(&mut heads, &hub, Some(registry), listeners, metrics, &stopped);
        let identify = hub::start_when_known(Arc::clone(&hub), Arc::clone(&self.parts.identities));
        *self.running.lock() = Some(Running {
            hub,
            stop,
            heads: tokio::spawn(watch_heads(self.me.clone(), heads, stopped)),
            identify: tokio::spawn(identify),
        });
        let mut state = self.state();
        state.state = ContainerState::Running;
        state.exit_code = 0;
        state.description = None;
        state.started_at = self.parts.base.clock.now();
        self.parts.base.modules.set_hub(state);
        tracing::info!(mqtt_port, amqp_port, https_port, "the edge hub is up");
        Ok(())
    }

    fn open(
        &self,
        env: &BTreeMap<String, String>,
    ) -> anyhow::Result<(Arc<EdgeHub>, Arc<HttpsRegistry>, Listeners)> {
        let Parts {
            base,
            upstream,
            identities,
            ..
        } = &self.parts;
        let mut listen = base.settings.listen.clone();
        hub::adjust_listeners(&mut listen, env);
        let ports = [&mut listen.mqtt, &mut listen.amqp, &mut listen.https];
        for (port, drawn) in ports.into_iter().zip(*self.drawn.lock()) {
            if *port == Some(0) && drawn.is_some() {
                *port = drawn;
            }
        }
        let listeners = Listeners::bind(&listen)?;
        let (hub, registry) = EdgeHub::open(base, upstream, identities, env)?;
        Ok((hub, registry, listeners))
    }

    /// Takes everything apart; whether there was something. When this returns, nobody uses the edge hub's folder any more.
    async fn end(&self) -> bool {
        let Some(mut running) = self.running.lock().take() else {
            return false;
        };
        running.identify.abort();
        let _ = (&mut running.identify).await;
        // Acknowledgements that are due leave first.
        let _ = running.stop.send(true);
        let farewell = tokio::time::timeout(HEADS_FAREWELL, &mut running.heads).await;
        if farewell.is_err() {
            running.heads.abort();
        }
        running.hub.broker().stop().await;
        tracing::info!("the edge hub is stopped");
        true
    }

    fn show_end(&self, exit_code: i64, description: Option<String>) {
        let mut state = self.state();
        state.state = ContainerState::Exited;
        state.exit_code = exit_code;
        state.description = description;
        state.exited_at = self.parts.base.clock.now();
        if exit_code == NOT_STARTED {
            state.started_at = state.exited_at;
        }
        self.parts.base.modules.set_hub(state);
    }

    /// A part of it has ended by itself.
    async fn broke(&self) {
        let _turn = self.turn.lock().await;
        if self.end().await {
            self.show_end(BROKEN, Some("a listener ended by itself".to_owned()));
            self.changed.notify_one();
        }
    }
}

/// Ends with the heads. They end when they are told to; one that ends before that has failed, and all with it.
async fn watch_heads(module: Weak<HubModule>, mut heads: JoinSet<()>, stopped: watch::Receiver<bool>) {
    while let Some(ended) = heads.join_next().await {
        if *stopped.borrow() {
            continue;
        }
        let cause = ended.err().map(|error| error.to_string());
        tracing::error!(cause, "a listener of the edge hub ended by itself");
        if let Some(module) = module.upgrade() {
            // Not here: this task is waited for.
            tokio::spawn(async move { module.broke().await });
        }
        return;
    }
    if heads.is_empty() && !*stopped.borrow() {
        // All protocols are turned off.
        let mut stopped = stopped;
        let _ = stopped.wait_for(|stopped| *stopped).await;
    }
}
