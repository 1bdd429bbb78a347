//! Direct methods under way, the same in a hub and an edge hub: nothing is stored, and a call lives as long as its caller
//! waits.
//!
//! A call waits first for a session that has subscribed to methods (woken by the login or the subscription, no polling),
//! then for the answer. Both waits end with the session, so a dropped connection answers at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use holdfast_model::method::{MethodCall, MethodRequest, MethodResponse, check_method_response};
use holdfast_model::{Error, ErrorCode, Identity};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::session::{Downlink, MailboxError, SessionHandle};

const SHARDS: usize = 16;

/// Calls that wait for answers, by the session that was asked, and callers that wait for a session.
pub struct MethodCalls {
    /// Keyed by epoch, so that the end of a session ends its calls in one step; few calls per session.
    answers: [Mutex<HashMap<u64, Vec<Pending>>>; SHARDS],
    connects: Mutex<HashMap<Identity, Waiting>>,
    /// Read without the lock by every login and subscription.
    connects_waiting: AtomicUsize,
    under_way: AtomicUsize,
    next_request_id: AtomicU64,
}

struct Pending {
    request_id: u64,
    answer: oneshot::Sender<MethodResponse>,
}

struct Waiting {
    wake: Arc<Notify>,
    callers: usize,
}

impl Default for MethodCalls {
    fn default() -> Self {
        MethodCalls {
            answers: std::array::from_fn(|_| Mutex::default()),
            connects: Mutex::default(),
            connects_waiting: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            next_request_id: AtomicU64::new(1),
        }
    }
}

impl MethodCalls {
    /// A session of this identity can take methods now.
    pub fn wake_callers(&self, identity: &Identity) {
        if self.connects_waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        if let Some(waiting) = self.connects.lock().get(identity) {
            waiting.wake.notify_waiters();
        }
    }

    /// The session has ended: its callers learn it by their dropped channel.
    pub fn drop_session(&self, epoch: u64) {
        let dropped = self.shard(epoch).lock().remove(&epoch);
        drop(dropped);
    }

    /// A session has answered.
    pub fn complete(&self, epoch: u64, request_id: u64, response: MethodResponse) {
        if let Some(call) = self.take(epoch, request_id) {
            // The caller may have given up meanwhile.
            let _ = call.answer.send(response);
        }
    }

    /// Begins a call, which is counted until the result is dropped.
    ///
    /// # Errors
    /// `ThrottlingException` when `max` calls are under way.
    pub fn begin(&self, max: usize) -> Result<UnderWay<'_>, Error> {
        let before = self.under_way.fetch_add(1, Ordering::Relaxed);
        let place = UnderWay(&self.under_way);
        if before < max {
            Ok(place)
        } else {
            Err(throttled(
                "too many direct methods are under way; try again later",
            ))
        }
    }

    /// Waits until `ready` finds a session, woken by [`MethodCalls::wake_callers`]; `None` when none has come by `deadline`.
    pub async fn session(
        &self,
        identity: &Identity,
        deadline: Instant,
        ready: impl Fn() -> Option<Arc<SessionHandle>>,
    ) -> Option<Arc<SessionHandle>> {
        let place = self.wait_for(identity);
        loop {
            let woken = place.wake.notified();
            tokio::pin!(woken);
            // Listen first, look second: a session that comes in between is not missed.
            woken.as_mut().enable();
            if let Some(session) = ready() {
                return Some(session);
            }
            timeout_at(deadline, woken).await.ok()?;
        }
    }

    /// Hands the call to a session and waits for the answer; `None` when the session had ended before the request was in its
    /// mailbox, which is as if it had not been there.
    ///
    /// # Errors
    /// `DeviceConnectionClosedRemotely` when the session ends before the answer, `GatewayTimeout` when none comes by
    /// `answer_by`, `GenericBadGateway` when it is not JSON or too large, `ThrottlingException` when the mailbox is full.
    pub async fn ask(
        &self,
        session: &SessionHandle,
        call: &MethodCall,
        answer_by: Instant,
    ) -> Option<Result<MethodResponse, Error>> {
        let (request_id, receiver) = self.add(session.epoch);
        let _entry = Entry {
            calls: self,
            epoch: session.epoch,
            request_id,
        };
        let request = MethodRequest {
            request_id,
            name: call.name.clone(),
            payload: call.payload.clone(),
        };
        match session.push(Downlink::Method(request)) {
            Ok(()) => {}
            Err(MailboxError::Closed) => return None,
            Err(MailboxError::Full) => {
                return Some(Err(throttled(
                    "the client does not keep up with the calls it has been sent; try again later",
                )));
            }
        }
        let identity = session.identity();
        Some(match timeout_at(answer_by, receiver).await {
            Ok(Ok(response)) => check_method_response(response),
            Ok(Err(_)) => Err(Error::new(
                ErrorCode::DeviceConnectionClosedRemotely,
                format!("the connection of {identity} ended before it answered"),
            )),
            Err(_) => {
                let seconds = call.response_timeout.as_secs();
                Err(Error::new(
                    ErrorCode::GatewayTimeout,
                    format!("{identity} did not answer within {seconds} s"),
                ))
            }
        })
    }

    fn add(&self, epoch: u64) -> (u64, oneshot::Receiver<MethodResponse>) {
        let (answer, receiver) = oneshot::channel();
        let request_id = self.next_request_id.fetch_add(1, Ordering::Relaxed);
        let call = Pending { request_id, answer };
        self.shard(epoch).lock().entry(epoch).or_default().push(call);
        (request_id, receiver)
    }

    fn take(&self, epoch: u64, request_id: u64) -> Option<Pending> {
        let mut shard = self.shard(epoch).lock();
        let calls = shard.get_mut(&epoch)?;
        let index = calls.iter().position(|call| call.request_id == request_id)?;
        let call = calls.swap_remove(index);
        if calls.is_empty() {
            shard.remove(&epoch);
        }
        Some(call)
    }

    fn shard(&self, epoch: u64) -> &Mutex<HashMap<u64, Vec<Pending>>> {
        &self.answers[epoch as usize % SHARDS]
    }

    fn wait_for(&self, identity: &Identity) -> Place<'_> {
        let wake = {
            let mut connects = self.connects.lock();
            let waiting = connects.entry(identity.clone()).or_insert_with(|| Waiting {
                wake: Arc::new(Notify::new()),
                callers: 0,
            });
            waiting.callers += 1;
            Arc::clone(&waiting.wake)
        };
        self.connects_waiting.fetch_add(1, Ordering::SeqCst);
        Place {
            calls: self,
            identity: identity.clone(),
            wake,
        }
    }
}

fn throttled(why: &str) -> Error {
    Error::new(ErrorCode::ThrottlingException, why)
}

/// A caller's place among those who wait for a session; given back on drop.
struct Place<'a> {
    calls: &'a MethodCalls,
    identity: Identity,
    wake: Arc<Notify>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.calls.connects_waiting.fetch_sub(1, Ordering::SeqCst);
        let mut connects = self.calls.connects.lock();
        if let Some(waiting) = connects.get_mut(&self.identity) {
            waiting.callers -= 1;
            if waiting.callers == 0 {
                connects.remove(&self.identity);
            }
        }
    }
}

/// Counts a call as under way until dropped.
#[must_use]
pub struct UnderWay<'a>(&'a AtomicUsize);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Takes the entry out again if the caller goes away.
struct Entry<'a> {
    calls: &'a MethodCalls,
    epoch: u64,
    request_id: u64,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        drop(self.calls.take(self.epoch, self.request_id));
    }
}

#[cfg(test)]
mod tests;
