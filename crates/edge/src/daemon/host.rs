//! What the agent asks of the rest of the daemon.

use std::process::Stdio;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use holdfast_agent::host::{BuiltIn, BundleRequest, Host, Put, TemporaryFile, UploadError};
use holdfast_agent::runtime::{LogChunk, LogQuery, LogStream, RuntimeError};
use holdfast_model::Timestamp;
use holdfast_ports::BoxFuture;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStdout, Command};

use super::hub::EdgeHub;
use crate::modules::{EDGE_AGENT, EDGE_HUB};
use crate::support::SupportBundle;
use crate::upload::Uploader;

/// Bytes read from the journal at once.
const PIECE_BYTES: usize = 64 * 1024;

/// The rest of the daemon.
pub(super) struct DaemonHost {
    pub(super) started_at: Timestamp,
    /// Empty while the daemon is being put together.
    pub(super) hub: Arc<OnceLock<Arc<EdgeHub>>>,
    pub(super) uploader: Uploader,
    pub(super) bundles: Arc<SupportBundle>,
}

impl Host for DaemonHost {
    fn built_ins(&self) -> Vec<BuiltIn> {
        vec![
            BuiltIn {
                name: EDGE_AGENT,
                running: true,
                description: None,
                started_at: self.started_at,
            },
            BuiltIn {
                name: EDGE_HUB,
                running: self.hub.get().is_some(),
                description: None,
                started_at: self.started_at,
            },
        ]
    }

    fn restart_built_in<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            match name {
                EDGE_AGENT => Ok(()),
                EDGE_HUB => match self.hub.get() {
                    Some(hub) => {
                        hub.refresh();
                        Ok(())
                    }
                    None => Err("the edge hub has not been started yet".to_owned()),
                },
                other => Err(format!("{other} is not part of the daemon")),
            }
        })
    }

    fn logs<'a>(
        &'a self,
        name: &'a str,
        query: &'a LogQuery,
    ) -> BoxFuture<'a, Result<Box<dyn LogStream>, RuntimeError>> {
        Box::pin(async move { journal(name, query) })
    }

    fn put<'a>(&'a self, put: &'a Put) -> BoxFuture<'a, Result<(), UploadError>> {
        Box::pin(self.uploader.put(put))
    }

    fn support_bundle<'a>(
        &'a self,
        request: &'a BundleRequest,
    ) -> BoxFuture<'a, Result<TemporaryFile, String>> {
        Box::pin(self.bundles.make(request))
    }
}

/// The daemon's log, when systemd keeps it: both system modules have the same.
pub(super) fn journal(name: &str, query: &LogQuery) -> Result<Box<dyn LogStream>, RuntimeError> {
    if std::env::var_os("JOURNAL_STREAM").is_none() {
        return Err(RuntimeError::NotFound(format!(
            "{name} is part of the daemon, which was not started by systemd and keeps no log of its own"
        )));
    }
    let mut command = Command::new("journalctl");
    command.args(["--no-pager", "--output=cat"]);
    command.arg(format!("_PID={}", std::process::id()));
    if let Some(tail) = query.tail {
        command.arg(format!("--lines={tail}"));
    }
    if let Some(since) = query.since {
        command.arg(format!("--since=@{}", since.as_seconds()));
    }
    if let Some(until) = query.until {
        command.arg(format!("--until=@{}", until.as_seconds()));
    }
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let unread = |error: &dyn std::fmt::Display| {
        RuntimeError::NotFound(format!("the journal cannot be read: {error}"))
    };
    let mut child = child.map_err(|error| unread(&error))?;
    let output = child.stdout.take().ok_or_else(|| unread(&"it has no output"))?;
    Ok(Box::new(Journal {
        _child: child,
        output,
    }))
}

struct Journal {
    /// Killed when dropped.
    _child: Child,
    output: ChildStdout,
}

impl LogStream for Journal {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<LogChunk>, RuntimeError>> {
        Box::pin(async move {
            let mut piece = vec![0; PIECE_BYTES];
            let length =
                self.output.read(&mut piece).await.map_err(|error| {
                    RuntimeError::NotFound(format!("the journal cannot be read: {error}"))
                })?;
            piece.truncate(length);
            let chunk = LogChunk {
                stderr: true,
                bytes: Bytes::from(piece),
            };
            Ok((length > 0).then_some(chunk))
        })
    }
}
