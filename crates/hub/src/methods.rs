//! Direct methods (rest.md section 7): nothing is stored; a call lives as long as its caller waits.
//!
//! A call waits first for a session that has subscribed to methods (woken by the login or the subscription, no polling),
//! then for the answer. Both waits end with the session, so a dropped connection answers at once. Calls under way are
//! bounded by `HubConfig::methods_pending_max`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use foldhash::fast::RandomState;
use holdfast_model::limits::{
    METHOD_BYTES_MAX, METHOD_CONNECT_TIMEOUT_MAX_SECONDS, METHOD_RESPONSE_TIMEOUT_SECONDS,
};
use holdfast_model::method::{MethodCall, MethodRequest, MethodResponse, check_method_name};
use holdfast_model::subscription::Channel;
use holdfast_model::{Error, ErrorCode, Identity};
use holdfast_ports::session::{Downlink, MailboxError, SessionHandle};
use parking_lot::Mutex;
use serde::de::IgnoredAny;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::Hub;
use crate::events::MethodOutcome;
use crate::failure::invalid;

const SHARDS: usize = 16;

/// Calls that wait for answers, by the session that was asked, and callers that wait for a session.
pub(crate) struct PendingCalls {
    /// Keyed by epoch, so that the end of a session ends its calls in one step; few calls per session.
    answers: [Mutex<HashMap<u64, Vec<PendingCall>, RandomState>>; SHARDS],
    connects: Mutex<HashMap<Identity, Waiting, RandomState>>,
    /// Read without the lock by every login and subscription.
    connects_waiting: AtomicUsize,
    under_way: AtomicUsize,
    next_request_id: AtomicU64,
}

struct PendingCall {
    request_id: u64,
    answer: oneshot::Sender<MethodResponse>,
}

struct Waiting {
    wake: Arc<Notify>,
    callers: usize,
}

impl PendingCalls {
    pub(crate) fn new() -> Self {
        PendingCalls {
            answers: std::array::from_fn(|_| Mutex::default()),
            connects: Mutex::default(),
            connects_waiting: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            next_request_id: AtomicU64::new(1),
        }
    }

    /// A session of this identity can take methods now.
    pub(crate) fn wake_callers(&self, identity: &Identity) {
        if self.connects_waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        if let Some(waiting) = self.connects.lock().get(identity) {
            waiting.wake.notify_waiters();
        }
    }

    /// The session has ended: its callers learn it by their dropped channel.
    pub(crate) fn drop_session(&self, epoch: u64) {
        let dropped = self.shard(epoch).lock().remove(&epoch);
        drop(dropped);
    }

    fn complete(&self, epoch: u64, request_id: u64, response: MethodResponse) {
        if let Some(call) = self.take(epoch, request_id) {
            // The caller may have given up meanwhile.
            let _ = call.answer.send(response);
        }
    }

    fn add(&self, epoch: u64) -> (u64, oneshot::Receiver<MethodResponse>) {
        let (answer, receiver) = oneshot::channel();
        let request_id = self.next_request_id.fetch_add(1, Ordering::Relaxed);
        let call = PendingCall { request_id, answer };
        self.shard(epoch).lock().entry(epoch).or_default().push(call);
        (request_id, receiver)
    }

    fn take(&self, epoch: u64, request_id: u64) -> Option<PendingCall> {
        let mut shard = self.shard(epoch).lock();
        let calls = shard.get_mut(&epoch)?;
        let index = calls.iter().position(|call| call.request_id == request_id)?;
        let call = calls.swap_remove(index);
        if calls.is_empty() {
            shard.remove(&epoch);
        }
        Some(call)
    }

    fn shard(&self, epoch: u64) -> &Mutex<HashMap<u64, Vec<PendingCall>, RandomState>> {
        &self.answers[epoch as usize % SHARDS]
    }

    fn wait_for(&self, identity: &Identity) -> ConnectWait<'_> {
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
        ConnectWait {
            calls: self,
            identity: identity.clone(),
            wake,
        }
    }
}

/// A caller's place among those who wait for a session; given back on drop.
struct ConnectWait<'a> {
    calls: &'a PendingCalls,
    identity: Identity,
    wake: Arc<Notify>,
}

impl Drop for ConnectWait<'_> {
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
struct UnderWay<'a>(&'a AtomicUsize);

impl<'a> UnderWay<'a> {
    fn begin(count: &'a AtomicUsize, max: usize) -> Option<Self> {
        let before = count.fetch_add(1, Ordering::Relaxed);
        let place = UnderWay(count);
        (before < max).then_some(place)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Takes the entry out again if the caller goes away.
struct Entry<'a> {
    calls: &'a PendingCalls,
    epoch: u64,
    request_id: u64,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        drop(self.calls.take(self.epoch, self.request_id));
    }
}

impl Hub {
    /// Calls a direct method of a device or module and waits for its answer.
    ///
    /// # Errors
    /// `ArgumentInvalid` for a bad name, payload or timeout; `DeviceNotFound`, `ModuleNotFound`; `DeviceNotOnline` when
    /// no session with a method subscription shows up within the connect timeout; `DeviceConnectionClosedRemotely` when
    /// the session ends before the answer; `GatewayTimeout` when no answer comes within the response timeout;
    /// `GenericBadGateway` when the answer is not JSON or larger than 128 KiB; `ThrottlingException` when too many calls
    /// are under way.
    pub async fn invoke_method(
        &self,
        identity: &Identity,
        call: MethodCall,
    ) -> Result<MethodResponse, Error> {
        let result = self.invoke(identity, call).await;
        let outcome = match &result {
            Ok(_) => MethodOutcome::Answered,
            Err(error) => match error.code {
                ErrorCode::ArgumentInvalid => MethodOutcome::Invalid,
                ErrorCode::DeviceNotFound | ErrorCode::ModuleNotFound => MethodOutcome::NotFound,
                ErrorCode::DeviceNotOnline => MethodOutcome::NotOnline,
                ErrorCode::DeviceConnectionClosedRemotely => MethodOutcome::ConnectionClosed,
                ErrorCode::GatewayTimeout => MethodOutcome::TimedOut,
                ErrorCode::GenericBadGateway => MethodOutcome::BadAnswer,
                ErrorCode::ThrottlingException => MethodOutcome::Throttled,
                _ => MethodOutcome::Failed,
            },
        };
        self.metrics.methods.of(outcome).inc();
        result
    }

    async fn invoke(&self, identity: &Identity, call: MethodCall) -> Result<MethodResponse, Error> {
        check_call(&call)?;
        let Some(_under_way) = UnderWay::begin(&self.calls.under_way, self.config.methods_pending_max) else {
            return Err(Error::new(
                ErrorCode::ThrottlingException,
                "too many direct methods are under way; try again later",
            ));
        };
        let connect_by = Instant::now() + self.less_margin(call.connect_timeout);
        loop {
            let session = self
                .method_session(identity, connect_by, call.connect_timeout)
                .await?;
            match self.ask(&session, &call).await {
                // The session had ended before the request was in its mailbox: as if it had not been there.
                None => continue,
                Some(outcome) => return outcome,
            }
        }
    }

    /// Waits for a live session that takes methods.
    async fn method_session(
        &self,
        identity: &Identity,
        connect_by: Instant,
        connect_timeout: Duration,
    ) -> Result<Arc<SessionHandle>, Error> {
        if let Some(session) = self.ready_for_methods(identity) {
            return Ok(session);
        }
        self.check_exists(identity).await?;
        let not_online = || {
            Error::new(
                ErrorCode::DeviceNotOnline,
                format!(
                    "{identity} is not connected or has not subscribed to direct methods (waited {} s)",
                    connect_timeout.as_secs()
                ),
            )
        };
        if connect_timeout.is_zero() {
            return Err(not_online());
        }
        let place = self.calls.wait_for(identity);
        loop {
            let woken = place.wake.notified();
            tokio::pin!(woken);
            // Listen first, look second: a session that comes in between is not missed.
            woken.as_mut().enable();
            if let Some(session) = self.ready_for_methods(identity) {
                return Ok(session);
            }
            if timeout_at(connect_by, woken).await.is_err() {
                return Err(not_online());
            }
        }
    }

    fn ready_for_methods(&self, identity: &Identity) -> Option<Arc<SessionHandle>> {
        self.sessions
            .get(identity.as_str())
            .filter(|session| session.subscribed(Channel::Methods) && !session.is_ended())
    }

    /// Hands the call to a session and waits for the answer; `None` when the session had ended already.
    async fn ask(&self, session: &SessionHandle, call: &MethodCall) -> Option<Result<MethodResponse, Error>> {
        let answer_by = Instant::now() + self.less_margin(call.response_timeout);
        let (request_id, receiver) = self.calls.add(session.epoch);
        let _entry = Entry {
            calls: &self.calls,
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
                return Some(Err(Error::new(
                    ErrorCode::ThrottlingException,
                    "the device does not keep up with the calls it has been sent; try again later",
                )));
            }
        }
        Some(match timeout_at(answer_by, receiver).await {
            Ok(Ok(response)) => check_response(response),
            Ok(Err(_)) => Err(Error::new(
                ErrorCode::DeviceConnectionClosedRemotely,
                format!(
                    "the connection of {} ended before it answered",
                    session.identity()
                ),
            )),
            Err(_) => Err(Error::new(
                ErrorCode::GatewayTimeout,
                format!(
                    "{} did not answer within {} s",
                    session.identity(),
                    call.response_timeout.as_secs()
                ),
            )),
        })
    }

    /// See `DeviceGateway::complete_method`.
    pub(crate) fn answer_method(&self, session: &SessionHandle, request_id: u64, response: MethodResponse) {
        self.calls.complete(session.epoch, request_id, response);
    }

    /// # Errors
    /// `DeviceNotFound`, `ModuleNotFound`.
    pub(crate) async fn check_exists(&self, identity: &Identity) -> Result<(), Error> {
        self.stored_identity(identity).await.map(drop)
    }

    fn less_margin(&self, timeout: Duration) -> Duration {
        timeout.saturating_sub(self.config.method_answer_margin)
    }
}

fn check_call(call: &MethodCall) -> Result<(), Error> {
    check_method_name(&call.name)?;
    let (least, _, most) = METHOD_RESPONSE_TIMEOUT_SECONDS;
    if !(Duration::from_secs(least)..=Duration::from_secs(most)).contains(&call.response_timeout) {
        return Err(invalid(format!(
            "responseTimeoutInSeconds must be within [{least}; {most}]."
        )));
    }
    if call.connect_timeout > Duration::from_secs(METHOD_CONNECT_TIMEOUT_MAX_SECONDS) {
        return Err(invalid(format!(
            "connectTimeoutInSeconds must be within [0; {METHOD_CONNECT_TIMEOUT_MAX_SECONDS}]."
        )));
    }
    check_payload(&call.payload).map_err(|why| invalid(format!("payload {why}")))
}

fn check_response(response: MethodResponse) -> Result<MethodResponse, Error> {
    match check_payload(&response.payload) {
        Ok(()) => Ok(response),
        Err(why) => Err(Error::new(
            ErrorCode::GenericBadGateway,
            format!("the device's answer {why}"),
        )),
    }
}

/// Empty, or JSON in UTF-8 of at most 128 KiB.
fn check_payload(payload: &Bytes) -> Result<(), &'static str> {
    if payload.len() > METHOD_BYTES_MAX {
        return Err("is larger than 128 KiB");
    }
    if payload.is_empty() {
        return Ok(());
    }
    // Skipping values does not look at the encoding of strings, so that is checked on its own.
    let text = std::str::from_utf8(payload).map_err(|_| "is not UTF-8")?;
    serde_json::from_str::<IgnoredAny>(text)
        .map(drop)
        .map_err(|_| "is not valid JSON")
}
