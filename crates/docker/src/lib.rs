//! Module runtime on the Docker Engine API (Docker, Moby, Podman's compatible socket).
//!
//! ```
//! use holdfast_docker::{DockerRuntime, Endpoint};
//!
//! let runtime = DockerRuntime::new(Endpoint::parse("unix:///var/run/docker.sock")?);
//! # Ok::<(), holdfast_docker::EndpointError>(())
//! ```
//!
//! [`DockerRuntime`] implements [`holdfast_agent::runtime::ModuleRuntime`]. It opens a connection per call and keeps none,
//! besides the one on which the engine tells events: an engine that restarts is found again by the next call, and an idle
//! daemon holds no buffers. Every call has a bound in time ([`Timeouts`]) and every answer one in size; past either the
//! outcome is `RuntimeError::Unavailable`.
//!
//! Version of the API: 1.41, which manifests were written for, or the nearest that the engine offers.
//!
//! Only containers with the owner label are touched: every call by name looks at the label first, since an engine also
//! takes the beginning of an id for a name. [`frames`], [`progress`], [`usage`] read what the engine streams and do no I/O.
//!
//! Podman differs in three ways that are known and handled: `top` tells the process ids of the container, not of the host,
//! so they are read from the control group; a conflict may come with status 500; a started container may be started
//! again without the answer 304.

mod answer;
mod connection;
mod containers;
mod endpoint;
mod events;
pub mod frames;
mod images;
mod logs;
mod networks;
mod processes;
pub mod progress;
mod runtime;
pub mod usage;
mod version;

pub use connection::Timeouts;
pub use endpoint::{Endpoint, EndpointError};
pub use runtime::DockerRuntime;
