//! Port to a container engine.
//!
//! The engine is spoken to in the words of the Docker Engine API's container-create body, since `createOptions` is the
//! user's contract with the engine and passes through untouched. Every call has a bound in time of its own; an engine that
//! hangs makes an error, never a stuck agent.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use holdfast_model::Timestamp;
use holdfast_ports::BoxFuture;
use serde_json::{Map, Value};

/// Label by which containers of an edge runtime are known; the value is [`OWNER`].
pub const OWNER_LABEL: &str = "net.azure-devices.edge.owner";
/// Value of [`OWNER_LABEL`].
pub const OWNER: &str = "Microsoft.Azure.Devices.Edge.Agent";

/// State of a container as the engine tells it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ContainerState {
    /// Made, never started.
    Created,
    /// Runs.
    Running,
    /// Frozen.
    Paused,
    /// The engine itself starts it again.
    Restarting,
    /// On its way out.
    Removing,
    /// Ended.
    Exited,
    /// Could not be removed; the engine gives it up.
    Dead,
    /// Anything else.
    Unknown,
}

/// Result of a container's own health check.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Health {
    /// No result yet.
    Starting,
    /// Passed.
    Healthy,
    /// Failed as often as its definition allows.
    Unhealthy,
}

/// A container that carries [`OWNER_LABEL`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Container {
    /// Name, which is the module's name.
    pub name: String,
    /// Engine's id.
    pub id: String,
    /// Image as it was asked for.
    pub image: String,
    /// Image id, `sha256:…`.
    pub image_id: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// State.
    pub state: ContainerState,
    /// Of its own health check, if it has one.
    pub health: Option<Health>,
    /// 0 while it runs.
    pub exit_code: i64,
    /// Last start.
    pub started_at: Option<Timestamp>,
    /// Last end.
    pub finished_at: Option<Timestamp>,
    /// Process id on the host while it runs.
    pub pid: Option<u32>,
}

/// Credentials of a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct RegistryAuth {
    /// Host of the registry.
    pub server_address: String,
    /// User.
    pub username: String,
    /// Password. Never printed.
    pub password: String,
}

impl std::fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RegistryAuth({} at {})", self.username, self.server_address)
    }
}

/// How far a pull is, summed over layers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PullProgress {
    /// Bytes that have come.
    pub current: u64,
    /// Bytes in all, as far as known.
    pub total: u64,
}

/// Which part of a container's log is wanted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LogQuery {
    /// Last lines only; `None`: all.
    pub tail: Option<u64>,
    /// Not before.
    pub since: Option<Timestamp>,
    /// Not after.
    pub until: Option<Timestamp>,
    /// Goes on as lines come.
    pub follow: bool,
    /// Each line begins with its time.
    pub timestamps: bool,
}

/// A piece of a log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogChunk {
    /// From standard error.
    pub stderr: bool,
    /// Bytes, not cut at lines.
    pub bytes: Bytes,
}

/// A running log; ends with `None`.
pub trait LogStream: Send {
    /// The next piece.
    ///
    /// # Errors
    /// [`RuntimeError`].
    fn next(&mut self) -> BoxFuture<'_, Result<Option<LogChunk>, RuntimeError>>;
}

/// Use of resources by one container.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ContainerStats {
    /// Module name.
    pub name: String,
    /// CPU, per cent of one core.
    pub cpu_percent: f64,
    /// Memory in bytes without inactive file cache.
    pub memory_bytes: u64,
    /// Its limit.
    pub memory_limit_bytes: u64,
    /// Processes.
    pub pids: u64,
    /// Received.
    pub network_in_bytes: u64,
    /// Sent.
    pub network_out_bytes: u64,
    /// Read from block devices.
    pub disk_read_bytes: u64,
    /// Written to block devices.
    pub disk_write_bytes: u64,
    /// As the engine told it, for `docker_stats` of the management API.
    pub raw: Value,
}

/// What the engine says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EngineInfo {
    /// Version, e.g. `20.10.24`.
    pub version: String,
    /// API version in use.
    pub api_version: String,
    /// `linux`.
    pub os: String,
    /// `x86_64`, `aarch64`, `armv7l`.
    pub architecture: String,
    /// Name of the operating system.
    pub operating_system: String,
}

/// An image that is on this machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    /// `sha256:…`.
    pub id: String,
    /// Names with tags.
    pub tags: Vec<String>,
    /// Size on disk.
    pub size_bytes: u64,
}

/// The network that modules share.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkSpec {
    /// Name; `azure-iot-edge` by default.
    pub name: String,
    /// Body of the engine's network-create call besides the name (`IPAM`, `EnableIPv6`, …).
    pub options: Map<String, Value>,
}

/// What failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The engine cannot be spoken to, or did not answer in time.
    #[error("the container engine at {endpoint} cannot be used: {cause}")]
    Unavailable {
        /// Its socket.
        endpoint: String,
        /// Why.
        cause: String,
    },
    /// There is no such container, image or network.
    #[error("{0}")]
    NotFound(String),
    /// A container of that name exists, or is in use.
    #[error("{0}")]
    Conflict(String),
    /// The image could not be pulled: it does not exist, the registry refuses or cannot be reached.
    #[error("image {image} cannot be pulled: {cause}")]
    Pull {
        /// Image.
        image: String,
        /// The engine's words.
        cause: String,
    },
    /// The engine refused for another reason.
    #[error("the container engine answered {status}: {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its words.
        message: String,
    },
}

/// A container engine.
pub trait ModuleRuntime: Send + Sync + 'static {
    /// What the engine says of itself.
    ///
    /// # Errors
    /// [`RuntimeError`].
    fn info(&self) -> BoxFuture<'_, Result<EngineInfo, RuntimeError>>;

    /// All containers with [`OWNER_LABEL`], whatever their state; others are never shown and never touched.
    ///
    /// # Errors
    /// [`RuntimeError`].
    fn list(&self) -> BoxFuture<'_, Result<Vec<Container>, RuntimeError>>;

    /// Makes the module network if it is not there; returns the host's address in it (the gateway), by which containers
    /// reach this daemon.
    ///
    /// # Errors
    /// [`RuntimeError`].
    fn ensure_network<'a>(
        &'a self,
        network: &'a NetworkSpec,
    ) -> BoxFuture<'a, Result<std::net::IpAddr, RuntimeError>>;

    /// Pulls an image; `progress` is called as it comes.
    ///
    /// # Errors
    /// [`RuntimeError::Pull`] and others.
    fn pull<'a>(
        &'a self,
        image: &'a str,
        auth: Option<&'a RegistryAuth>,
        progress: &'a (dyn Fn(PullProgress) + Send + Sync),
    ) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Whether an image is on this machine, and its id.
    ///
    /// # Errors
    /// [`RuntimeError`].
    fn image_id<'a>(&'a self, image: &'a str) -> BoxFuture<'a, Result<Option<String>, RuntimeError>>;

    /// Images on this machine.
    ///
    /// # Errors
    /// [`RuntimeError`].
    fn images(&self) -> BoxFuture<'_, Result<Vec<Image>, RuntimeError>>;

    /// Removes an image; one that is gone is no error, one in use is [`RuntimeError::Conflict`].
    ///
    /// # Errors
    /// [`RuntimeError`].
    fn remove_image<'a>(&'a self, image: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Makes a container with exactly this container-create body; returns its id. Does not start it.
    ///
    /// # Errors
    /// [`RuntimeError::Conflict`] when the name is taken, [`RuntimeError::NotFound`] when the image is not there.
    fn create<'a>(
        &'a self,
        name: &'a str,
        body: &'a Map<String, Value>,
    ) -> BoxFuture<'a, Result<String, RuntimeError>>;

    /// Starts; a running one is no error.
    ///
    /// # Errors
    /// [`RuntimeError`].
    fn start<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Stops, by force after `grace`; a stopped one is no error.
    ///
    /// # Errors
    /// [`RuntimeError`].
    fn stop<'a>(&'a self, name: &'a str, grace: Duration) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Removes a container with its anonymous volumes, by force; one that is gone is no error.
    ///
    /// # Errors
    /// [`RuntimeError`].
    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Opens a log.
    ///
    /// # Errors
    /// [`RuntimeError`].
    fn logs<'a>(
        &'a self,
        name: &'a str,
        query: &'a LogQuery,
    ) -> BoxFuture<'a, Result<Box<dyn LogStream>, RuntimeError>>;

    /// Everything the engine knows of a container, for support bundles.
    ///
    /// # Errors
    /// [`RuntimeError`].
    fn inspect<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Value, RuntimeError>>;

    /// Everything the engine knows of a network, for support bundles.
    ///
    /// # Errors
    /// [`RuntimeError`].
    fn inspect_network<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Value, RuntimeError>>;

    /// Host process ids of all processes in a container: who may speak for the module on the workload socket.
    ///
    /// # Errors
    /// [`RuntimeError`].
    fn processes<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<u32>, RuntimeError>>;

    /// One reading of resource use.
    ///
    /// # Errors
    /// [`RuntimeError`].
    fn stats<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<ContainerStats, RuntimeError>>;

    /// Ready when something of these containers has changed (the engine's event stream), or at once when that is not
    /// known; the caller lists again then.
    fn changed(&self) -> BoxFuture<'_, ()>;
}
