//! Edge agent: from the twin of `$edgeAgent` to running containers.
//!
//! The agent reads a deployment ([`manifest`]), compares it with what the container engine runs, makes a pure plan
//! ([`plan`]) and carries it out through [`runtime::ModuleRuntime`]; identities come through
//! [`identities::ModuleIdentities`], the twin and direct methods through [`twin::AgentTwin`], the rest of the daemon is
//! [`host::Host`]. It knows no engine, no hub and no socket.
//!
//! # Composing it
//!
//! ```
//! # async fn compose() -> std::io::Result<()> {
//! use std::sync::Arc;
//! use holdfast_agent::{Agent, Parts, Settings, Surroundings};
//! use holdfast_agent::body::LogBounds;
//! use holdfast_agent::memory::{MemoryEngine, MemoryHost, MemoryIdentities, MemoryTwin};
//! use holdfast_agent::metrics::MetricLabels;
//! use holdfast_ports::clock::SystemClock;
//!
//! let clock = Arc::new(SystemClock::new());
//! let parts = Parts {
//!     runtime: Arc::new(MemoryEngine::new(clock.clone())), // holdfast_docker::DockerRuntime
//!     identities: Arc::new(MemoryIdentities::new("edge1")), // opens workload sockets, too
//!     twin: Arc::new(MemoryTwin::new()),                    // over an upstream CloudClient of $edgeAgent
//!     host: Arc::new(MemoryHost::new()),
//!     clock,
//! };
//! let settings = Settings::new(
//!     Surroundings {
//!         hub_host: "hub.example".to_owned(),
//!         device_id: "edge1".to_owned(),
//!         gateway_host: "edge1.local".to_owned(),
//!         parent_host: None,
//!         network: "azure-iot-edge".to_owned(),
//!         gateway_address: std::net::Ipv4Addr::UNSPECIFIED.into(), // the agent asks the engine
//!         workload_uri: "unix:///var/run/iotedge/workload.sock".to_owned(),
//!         workload_folder: "/var/lib/holdfast-edge/mnt".into(),
//!         log_level: "info".to_owned(),
//!         upstream_protocol: None,
//!         allow_elevated: true,
//!         log_bounds: Some(LogBounds::default()),
//!     },
//!     "/var/lib/holdfast-edge/agent".into(),
//! );
//! let (agent, handle) = Agent::new(settings, parts, MetricLabels::default())?;
//! let stop = tokio::sync::Notify::new();
//! // In a task of its own, until shutdown; containers stay as they are, the last report is 406.
//! agent.run(stop.notified()).await;
//! // For `list`, GET /modules and metrics:
//! let view = handle.view();
//! let text = handle.metrics().render();
//! # let _ = (view, text);
//! # Ok(())
//! # }
//! ```
//!
//! [`AgentHandle::deployment`] tells of the deployment in force, whose `edge_hub` has the environment of the edge hub.
//!
//! # Invariants
//!
//! - A manifest that cannot be read, or an engine or a hub that cannot be reached, leaves running modules alone.
//! - Only containers with the owner label are touched, and of these only what differs from the deployment.
//! - One module's pull, crash loop or failing command never holds up another's, besides the bounded wait of
//!   `startupOrder`.
//! - Pauses are counted on the monotonic clock; a wrong wall clock stops nothing.
//! - What is kept on disk is written whole or not at all.

pub mod body;
mod events;
pub mod gc;
pub mod host;
pub mod identities;
pub mod manifest;
pub mod memory;
pub mod methods;
pub mod metrics;
pub mod plan;
mod reconcile;
pub mod reported;
pub mod restart;
pub mod runtime;
mod settings;
pub mod state;
pub mod system;
pub mod twin;

pub use body::Surroundings;
pub use reconcile::{Agent, AgentHandle, AgentView, Parts};
pub use settings::{Rollback, Settings};
