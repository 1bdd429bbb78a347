//! The engine's events: when it is worth to list again.
//!
//! The stream stays open between calls and what comes meanwhile waits in it, so nothing is missed between a list and
//! the next wait. After a gap (the stream was not open, or ended) the wait returns at once, since what happened meanwhile is
//! not known.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use holdfast_agent::runtime::RuntimeError;
use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::{Frame, Incoming};
use tokio::sync::Mutex;

use crate::answer;
use crate::connection::Connection;
use crate::containers::owner_filter;
use crate::runtime::{DockerRuntime, escape};

/// Pause before the stream is opened again after it could not be; doubled up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// What changes a container's state. Without `exec_…`, which health checks make all the time.
const KINDS: [&str; 11] = [
    "create",
    "start",
    "restart",
    "die",
    "oom",
    "stop",
    "pause",
    "unpause",
    "destroy",
    "rename",
    "health_status",
];

/// The stream between calls.
#[derive(Default)]
pub(crate) struct Watch {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    open: Option<Stream>,
    /// Attempts in a row that gave no event.
    failures: u32,
}

struct Stream {
    /// Ends with this.
    _connection: Connection,
    body: Incoming,
}

impl State {
    fn pause(&self) -> Duration {
        let doubled = PAUSE_MIN.saturating_mul(1 << self.failures.saturating_sub(1).min(10));
        if self.failures == 0 {
            Duration::ZERO
        } else {
            doubled.min(PAUSE_MAX)
        }
    }
}

impl DockerRuntime {
    pub(crate) async fn wait_for_change(&self) {
        let mut state = self.watch.state.lock().await;
        loop {
            if let Some(stream) = &mut state.open {
                match stream.body.frame().await {
                    Some(Ok(frame)) => {
                        if tells_something(frame) {
                            drain(stream);
                            state.failures = 0;
                            return;
                        }
                        continue;
                    }
                    Some(Err(_)) | None => {
                        state.open = None;
                        self.forget_version();
                        state.failures = state.failures.saturating_add(1);
                    }
                }
            }
            tokio::time::sleep(state.pause()).await;
            match self.open_events().await {
                Ok(stream) => state.open = Some(stream),
                Err(_) => state.failures = state.failures.saturating_add(1),
            }
            // Whether or not it is open: what happened before is not known.
            return;
        }
    }

    async fn open_events(&self) -> Result<Stream, RuntimeError> {
        let mut session = self.connect().await?;
        let filters = serde_json::json!({
            "type": ["container"],
            "label": [owner_filter()],
            "event": KINDS,
        });
        let path = format!("/events?filters={}", escape(&filters.to_string()));
        let call = session.call(Method::GET, &path);
        let response = self.noting(session.connection.send(call, self.timeouts.question).await)?;
        if !response.status().is_success() {
            return Err(answer::refusal(response.status(), b""));
        }
        Ok(Stream {
            _connection: session.connection,
            body: response.into_body(),
        })
    }
}

fn tells_something(frame: Frame<Bytes>) -> bool {
    frame.into_data().is_ok_and(|data| !data.trim_ascii().is_empty())
}

/// Takes what has come already: one list answers all of it.
fn drain(stream: &mut Stream) {
    while let Some(Some(Ok(_))) = stream.body.frame().now_or_never() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound() {
        let pause = |failures| {
            State {
                failures,
                ..State::default()
            }
            .pause()
        };
        assert_eq!(pause(0), Duration::ZERO);
        assert_eq!(pause(1), PAUSE_MIN);
        assert_eq!(pause(2), PAUSE_MIN * 2);
        assert_eq!(pause(7), PAUSE_MAX);
        assert_eq!(pause(u32::MAX), PAUSE_MAX);
    }
}
