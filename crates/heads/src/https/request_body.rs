//! The body of a request that goes to the router: it has to come at a pace, and what nobody read is taken off the
//! connection.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep};

/// Each second of waiting beyond the time-out has to be earned by as many bytes.
const BYTES_PER_SECOND_MIN: u64 = 1_024;
/// How much of a body that nobody read is still taken, so that the client gets to read the answer.
const DISCARDED_BYTES_MAX: usize = 8 * 1024 * 1024;
/// For how long.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether a body was given up because it did not come in time.
#[derive(Clone, Default, Debug)]
pub(super) struct GivenUp(Arc<AtomicBool>);

impl GivenUp {
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A body that fails when the hub has waited for it, all in all, longer than `timeout` plus a second for each 1,024
/// bytes received. Time in which the reader does not ask does not count, so a slow reader costs its client nothing.
pub(super) struct PacedBody {
    /// `None` once it has ended, failed or been given up.
    body: Option<Incoming>,
    timeout: Duration,
    waited: Duration,
    received: u64,
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
    given_up: GivenUp,
    /// The client waits for a go-ahead (`Expect: 100-continue`); without it nothing comes that would have to be taken.
    asks_first: bool,
}

impl PacedBody {
    pub(super) fn new(body: Incoming, timeout: Duration, asks_first: bool, given_up: GivenUp) -> Self {
        PacedBody {
            body: Some(body),
            timeout,
            waited: Duration::ZERO,
            received: 0,
            waiting: None,
            given_up,
            asks_first,
        }
    }

    fn patience(&self) -> Duration {
        (self.timeout + Duration::from_secs(self.received / BYTES_PER_SECOND_MIN)).saturating_sub(self.waited)
    }

    /// Ready when the client has been waited for long enough.
    fn poll_wait(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let patience = self.patience();
        let (_, sleep) = self.waiting.get_or_insert_with(|| {
            let now = Instant::now();
            (now, Box::pin(tokio::time::sleep_until(now + patience)))
        });
        sleep.as_mut().poll(context)
    }
}

impl HttpBody for PacedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        // Whoever reads has asked, so the client has been told to go on.
        this.asks_first = false;
        let Some(body) = &mut this.body else {
            return Poll::Ready(None);
        };
        let Poll::Ready(frame) = Pin::new(body).poll_frame(context) else {
            if this.poll_wait(context).is_pending() {
                return Poll::Pending;
            }
            this.given_up.0.store(true, Ordering::Relaxed);
            this.body = None;
            return Poll::Ready(Some(Err(axum::Error::new("the body did not come in time"))));
        };
        if let Some((since, _)) = this.waiting.take() {
            this.waited += since.elapsed();
        }
        match &frame {
            Some(Ok(frame)) => this.received += frame.data_ref().map_or(0, |data| data.len() as u64),
            None | Some(Err(_)) => this.body = None,
        }
        Poll::Ready(frame.map(|frame| frame.map_err(axum::Error::new)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for PacedBody {
    /// Most clients listen only when they have sent everything, and a connection closed before that would take the
    /// answer away from them.
    fn drop(&mut self) {
        let Some(mut body) = self.body.take().filter(|body| !body.is_end_stream()) else {
            return;
        };
        if self.asks_first {
            return;
        }
        let rest = async move {
            let mut received = 0;
            while let Some(Ok(frame)) = body.frame().await {
                received += frame.data_ref().map_or(0, Bytes::len);
                if received > DISCARDED_BYTES_MAX {
                    return;
                }
            }
        };
        tokio::spawn(tokio::time::timeout(DISCARD_TIMEOUT, rest));
    }
}
