//! Logs of containers.

use std::time::Duration;

use bytes::Bytes;
use holdfast_agent::runtime::{LogChunk, LogQuery, LogStream, RuntimeError};
use holdfast_model::Timestamp;
use holdfast_ports::BoxFuture;
use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::Incoming;
use tokio::time::timeout;

use crate::answer;
use crate::connection::{Connection, MESSAGE_BYTES_MAX};
use crate::frames::{Frames, Stream};
use crate::runtime::{DockerRuntime, escape};

struct ContainerLog {
    /// Ends with this.
    connection: Connection,
    body: Incoming,
    /// `None` for a container with a terminal: its log is bare.
    frames: Option<Frames>,
    /// What has come and was not handed on.
    rest: Bytes,
    /// `None` when the log is followed: silence is normal then.
    silence: Option<Duration>,
}

impl ContainerLog {
    async fn next_chunk(&mut self) -> Result<Option<LogChunk>, RuntimeError> {
        loop {
            if let Some(chunk) = self.take()? {
                return Ok(Some(chunk));
            }
            let frame = match self.silence {
                Some(silence) => match timeout(silence, self.body.frame()).await {
                    Ok(frame) => frame,
                    Err(_) => return Err(self.connection.late("the next part of a log", silence)),
                },
                None => self.body.frame().await,
            };
            match frame {
                None if self.frames.as_ref().is_none_or(Frames::complete) => return Ok(None),
                None => return Err(refused("the log ended in the middle of a frame".to_owned())),
                Some(Err(error)) => return Err(self.connection.failed("reading a log", &error)),
                Some(Ok(frame)) => self.rest = frame.into_data().unwrap_or_default(),
            }
        }
    }

    fn take(&mut self) -> Result<Option<LogChunk>, RuntimeError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let Some(frames) = &mut self.frames else {
            let bytes = std::mem::take(&mut self.rest);
            return Ok(Some(LogChunk { stderr: false, bytes }));
        };
        match frames.next(&mut self.rest).map_err(refused)? {
            None => Ok(None),
            Some((Stream::Engine, words)) => {
                let words = &words[..words.len().min(MESSAGE_BYTES_MAX)];
                Err(refused(String::from_utf8_lossy(words).trim().to_owned()))
            }
            Some((stream, bytes)) => Ok(Some(LogChunk {
                stderr: stream == Stream::Err,
                bytes,
            })),
        }
    }
}

fn refused(message: String) -> RuntimeError {
    RuntimeError::Refused { status: 200, message }
}

impl LogStream for ContainerLog {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<LogChunk>, RuntimeError>> {
        Box::pin(self.next_chunk())
    }
}

/// The engine's form of a time: seconds and nanoseconds.
fn moment(at: Timestamp) -> String {
    let micros = at.as_micros().max(0);
    format!("{}.{:06}000", micros / 1_000_000, micros % 1_000_000)
}

fn query_text(query: &LogQuery) -> String {
    let tail = query
        .tail
        .map_or_else(|| "all".to_owned(), |tail| tail.to_string());
    let mut text = format!(
        "stdout=true&stderr=true&follow={}&timestamps={}&tail={tail}",
        query.follow, query.timestamps
    );
    if let Some(since) = query.since {
        text.push_str(&format!("&since={}", moment(since)));
    }
    if let Some(until) = query.until {
        text.push_str(&format!("&until={}", moment(until)));
    }
    text
}

impl DockerRuntime {
    pub(crate) async fn open_log(
        &self,
        name: &str,
        query: &LogQuery,
    ) -> Result<Box<dyn LogStream>, RuntimeError> {
        let mut session = self.connect().await?;
        let container = self.own(&mut session, name).await?;
        let path = format!("/containers/{}/logs?{}", escape(&container.id), query_text(query));
        let call = session.call(Method::GET, &path);
        let response = self.noting(session.connection.send(call, self.timeouts.question).await)?;
        let status = response.status();
        let mut body = response.into_body();
        if !status.is_success() {
            let first = timeout(self.timeouts.question, body.frame()).await;
            let words = match first {
                Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
                _ => Bytes::new(),
            };
            return Err(answer::refusal(status, &words));
        }
        Ok(Box::new(ContainerLog {
            connection: session.connection,
            body,
            frames: (!container.config.tty).then(Frames::default),
            rest: Bytes::new(),
            silence: (!query.follow).then_some(self.timeouts.silence),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_as_the_engine_reads_it() {
        assert_eq!(
            query_text(&LogQuery::default()),
            "stdout=true&stderr=true&follow=false&timestamps=false&tail=all"
        );
        let query = LogQuery {
            tail: Some(5),
            since: Some(Timestamp::from_micros(1_700_000_000_250_000)),
            until: Some(Timestamp::from_seconds(1_700_000_001)),
            follow: true,
            timestamps: true,
        };
        assert_eq!(
            query_text(&query),
            "stdout=true&stderr=true&follow=true&timestamps=true&tail=5&since=1700000000.250000000&until=1700000001.000000000"
        );
        // Before 1970, engines take the minus for nonsense.
        assert_eq!(moment(Timestamp::NEVER), "0.000000000");
    }
}
