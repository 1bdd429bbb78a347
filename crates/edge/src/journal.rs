//! The daemon's own log, when systemd keeps it: what `edgeAgent` and `edgeHub` say.

use std::process::Stdio;

use bytes::Bytes;
use holdfast_agent::runtime::{LogChunk, LogQuery, LogStream, RuntimeError};
use holdfast_ports::BoxFuture;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStdout, Command};

/// Bytes read at once.
const PIECE_BYTES: usize = 64 * 1024;

/// Opens it under the name of a system module; both have the same.
///
/// # Errors
/// [`RuntimeError::NotFound`] when systemd does not keep it.
pub(crate) fn open(name: &str, query: &LogQuery) -> Result<Box<dyn LogStream>, RuntimeError> {
    if std::env::var_os("JOURNAL_STREAM").is_none() {
        return Err(RuntimeError::NotFound(format!(
            "{name} is part of the daemon, which was not started by systemd and keeps no log of its own: see what the daemon prints"
        )));
    }
    let mut command = Command::new("journalctl");
    command.args(["--no-pager", "--output=cat"]);
    command.arg(format!("_PID={}", std::process::id()));
    if query.follow {
        command.arg("--follow");
    }
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
