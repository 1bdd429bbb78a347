//! Port to the rest of the daemon: the modules that are no containers, uploads, support bundles.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::Bytes;
use holdfast_model::Timestamp;
use holdfast_ports::BoxFuture;

use crate::runtime::{Container, ContainerState, LogQuery, LogStream, RuntimeError};

/// State of a module that is part of the daemon: `edgeAgent` or `edgeHub`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BuiltIn {
    /// `edgeAgent` or `edgeHub`.
    pub name: &'static str,
    /// [`ContainerState::Created`] until its first start, then running or exited.
    pub state: ContainerState,
    /// Of its last end: 0 when it was stopped in order.
    pub exit_code: i64,
    /// Why it does not run, or something to know; not part of anything else.
    pub description: Option<String>,
    /// Last start.
    pub started_at: Timestamp,
    /// Last end.
    pub exited_at: Timestamp,
}

impl BuiltIn {
    /// One that has not been started yet.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        BuiltIn {
            name,
            state: ContainerState::Created,
            exit_code: 0,
            description: None,
            started_at: Timestamp::NEVER,
            exited_at: Timestamp::NEVER,
        }
    }

    /// As a container, so that the rules for containers can be asked about it.
    pub(crate) fn container(&self) -> Container {
        let at = |time: Timestamp| (time != Timestamp::NEVER).then_some(time);
        Container {
            id: self.name.to_owned(),
            name: self.name.to_owned(),
            image: String::new(),
            image_id: String::new(),
            labels: BTreeMap::new(),
            state: self.state,
            health: None,
            exit_code: self.exit_code,
            started_at: at(self.started_at),
            finished_at: at(self.exited_at),
            pid: None,
        }
    }
}

/// What a support bundle is to contain (edge.md section 5).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BundleRequest {
    /// Logs from then on.
    pub since: Option<Timestamp>,
    /// Logs until then.
    pub until: Option<Timestamp>,
    /// Only of edgeAgent and edgeHub.
    pub edge_runtime_only: bool,
}

/// A file made for one purpose; removed when dropped.
#[derive(Debug)]
pub struct TemporaryFile(pub PathBuf);

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            holdfast_observe::tracing::warn!(file = %self.0.display(), %error, "a temporary file cannot be removed");
        }
    }
}

/// One HTTP PUT to a blob service.
#[derive(Clone, PartialEq, Eq)]
pub struct Put {
    /// Address with its SAS. Never printed: it is a credential.
    pub url: String,
    /// Headers besides `Host` and `Content-Length`.
    pub headers: Vec<(&'static str, String)>,
    /// Body, at most [`crate::methods::BLOCK_BYTES_MAX`].
    pub body: Bytes,
}

impl std::fmt::Debug for Put {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = self.url.split('?').next().unwrap_or_default();
        write!(f, "PUT {place}, {} bytes", self.body.len())
    }
}

/// Why an upload failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct UploadError {
    /// What happened, without the address's query.
    pub message: String,
    /// Worth another attempt: no connection, time-out, 408, 429, 5xx.
    pub transient: bool,
}

/// The rest of the daemon.
pub trait Host: Send + Sync + 'static {
    /// `edgeAgent` and `edgeHub`.
    fn built_ins(&self) -> Vec<BuiltIn>;

    /// Starts the edge hub with these settings over those of the configuration. One that runs is no error.
    ///
    /// # Errors
    /// Why it does not run; [`Host::built_ins`] says so from then on, too.
    fn start_hub<'a>(&'a self, env: &'a BTreeMap<String, String>) -> BoxFuture<'a, Result<(), String>>;

    /// Stops the edge hub: its ports are closed, its clients and its conversations with the hub ended, its memory given back.
    /// What it has stored stays. One that does not run is no error.
    ///
    /// # Errors
    /// Why not.
    fn stop_hub(&self) -> BoxFuture<'_, Result<(), String>>;

    /// Both, with no moment in between at which it is seen stopped.
    ///
    /// # Errors
    /// As [`Host::start_hub`].
    fn restart_hub<'a>(&'a self, env: &'a BTreeMap<String, String>) -> BoxFuture<'a, Result<(), String>>;

    /// Ready when the edge hub has ended by itself, or was stopped or started by somebody else than the agent.
    fn hub_changed(&self) -> BoxFuture<'_, ()>;

    /// Log of `edgeAgent` or `edgeHub`, which is the daemon's own. Ends; does not follow.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`] when the daemon keeps no log of its own.
    fn logs<'a>(
        &'a self,
        name: &'a str,
        query: &'a LogQuery,
    ) -> BoxFuture<'a, Result<Box<dyn LogStream>, RuntimeError>>;

    /// Carries out a PUT over HTTPS (or plain HTTP, if the address says so), with time-outs of its own. Success is a 2xx.
    ///
    /// # Errors
    /// [`UploadError`].
    fn put<'a>(&'a self, put: &'a Put) -> BoxFuture<'a, Result<(), UploadError>>;

    /// Makes a support bundle (a zip file).
    ///
    /// # Errors
    /// Why not.
    fn support_bundle<'a>(
        &'a self,
        request: &'a BundleRequest,
    ) -> BoxFuture<'a, Result<TemporaryFile, String>>;
}
