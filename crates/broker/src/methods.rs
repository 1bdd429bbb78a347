//! Direct methods: from the hub above, and from modules to modules and leaf devices (edge.md 7.7 and 11). Nothing is stored;
//! a call lives as long as its caller waits.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
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

use crate::Broker;
use crate::metrics::Family;

/// Most calls under way.
const CALLS_MAX: usize = 1_000;

/// Calls that wait for answers, by the session that was asked, and callers that wait for a session.
#[derive(Default)]
pub(crate) struct Calls {
    answers: Mutex<HashMap<(u64, u64), oneshot::Sender<MethodResponse>>>,
    connects: Mutex<HashMap<Identity, (Arc<Notify>, usize)>>,
    under_way: AtomicUsize,
    next_request_id: AtomicU64,
}

impl Calls {
    /// A session of this identity can take methods now.
    pub(crate) fn wake_callers(&self, identity: &Identity) {
        if let Some((wake, _)) = self.connects.lock().get(identity) {
            wake.notify_waiters();
        }
    }

    /// The session has ended: its callers learn it by their dropped channel.
    pub(crate) fn drop_session(&self, epoch: u64) {
        self.answers.lock().retain(|(other, _), _| *other != epoch);
    }

    pub(crate) fn complete(&self, epoch: u64, request_id: u64, response: MethodResponse) {
        if let Some(answer) = self.answers.lock().remove(&(epoch, request_id)) {
            // The caller may have given up meanwhile.
            let _ = answer.send(response);
        }
    }
}

/// A caller's place among those who wait for a session.
struct Place<'a> {
    calls: &'a Calls,
    identity: &'a Identity,
    wake: Arc<Notify>,
}

impl<'a> Place<'a> {
    fn take(calls: &'a Calls, identity: &'a Identity) -> Self {
        let mut connects = calls.connects.lock();
        let entry = connects
            .entry(identity.clone())
            .or_insert_with(|| (Arc::new(Notify::new()), 0));
        entry.1 += 1;
        Place {
            calls,
            identity,
            wake: Arc::clone(&entry.0),
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut connects = self.calls.connects.lock();
        if let Some(entry) = connects.get_mut(self.identity) {
            entry.1 -= 1;
            if entry.1 == 0 {
                connects.remove(self.identity);
            }
        }
    }
}

/// Takes the entry out again if the caller goes away, and counts the call as over.
struct UnderWay<'a> {
    calls: &'a Calls,
    entry: Option<(u64, u64)>,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.calls.under_way.fetch_sub(1, Ordering::Relaxed);
        if let Some(entry) = self.entry {
            self.calls.answers.lock().remove(&entry);
        }
    }
}

impl Broker {
    /// Calls a direct method of a client of this edge hub and waits for its answer. `from` is who calls, for metrics.
    ///
    /// # Errors
    /// `ArgumentInvalid` for a bad name, payload or timeout (HTTP 400); `DeviceNotOnline` when no session with a method
    /// subscription shows up within the connect timeout (404); `DeviceConnectionClosedRemotely` when the session ends before
    /// the answer, `GatewayTimeout` when none comes within the response timeout (504 both); `GenericBadGateway` when the
    /// answer is not JSON or larger than 128 KiB; `ThrottlingException` when too many calls are under way.
    pub async fn invoke_method(
        &self,
        from: &str,
        target: &Identity,
        call: MethodCall,
    ) -> Result<MethodResponse, Error> {
        check_call(&call)?;
        self.call(from, target, call).await
    }

    /// As [`Broker::invoke_method`], for a call that somebody else has checked.
    pub(crate) async fn call(
        &self,
        from: &str,
        target: &Identity,
        call: MethodCall,
    ) -> Result<MethodResponse, Error> {
        let begun = self.clock.monotonic_millis();
        let mut under_way = UnderWay {
            calls: &self.calls,
            entry: None,
        };
        if self.calls.under_way.fetch_add(1, Ordering::Relaxed) >= CALLS_MAX {
            return Err(throttled(
                "too many direct methods are under way; try again later",
            ));
        }
        let known = self.scope.get(target).is_some();
        let to = if known { target.as_str() } else { "unknown" };
        self.metrics.count(Family::Methods, &[from, to], 1);
        let connect_by = Instant::now() + call.connect_timeout;
        let outcome = loop {
            let session = self.method_session(target, connect_by, &call).await?;
            // The session had ended before the request was in its mailbox: as if it had not been there.
            if let Some(outcome) = self.ask(&session, &call, &mut under_way).await {
                break outcome;
            }
        };
        let took = self.clock.monotonic_millis().saturating_sub(begun);
        self.metrics
            .observe_duration(Family::MethodDuration, &[from, to], Duration::from_millis(took));
        outcome
    }

    async fn method_session(
        &self,
        target: &Identity,
        connect_by: Instant,
        call: &MethodCall,
    ) -> Result<Arc<SessionHandle>, Error> {
        let ready = || {
            self.sessions
                .get(target)
                .filter(|session| session.subscribed(Channel::Methods) && !session.is_ended())
        };
        if let Some(session) = ready() {
            return Ok(session);
        }
        let not_online = || {
            let seconds = call.connect_timeout.as_secs();
            Error::new(
                ErrorCode::DeviceNotOnline,
                format!(
                    "{target} is not connected to this edge hub or has not subscribed to direct methods (waited {seconds} s)"
                ),
            )
        };
        if call.connect_timeout.is_zero() {
            return Err(not_online());
        }
        let place = Place::take(&self.calls, target);
        loop {
            let woken = place.wake.notified();
            tokio::pin!(woken);
            // Listen first, look second: a session that comes in between is not missed.
            woken.as_mut().enable();
            if let Some(session) = ready() {
                return Ok(session);
            }
            if timeout_at(connect_by, woken).await.is_err() {
                return Err(not_online());
            }
        }
    }

    /// Hands the call to a session and waits for the answer; `None` when the session had ended already.
    async fn ask(
        &self,
        session: &SessionHandle,
        call: &MethodCall,
        under_way: &mut UnderWay<'_>,
    ) -> Option<Result<MethodResponse, Error>> {
        let answer_by = Instant::now() + call.response_timeout;
        let (answer, receiver) = oneshot::channel();
        let request_id = self.calls.next_request_id.fetch_add(1, Ordering::Relaxed) + 1;
        self.calls
            .answers
            .lock()
            .insert((session.epoch, request_id), answer);
        under_way.entry = Some((session.epoch, request_id));
        let request = MethodRequest {
            request_id,
            name: call.name.clone(),
            payload: call.payload.clone(),
        };
        match session.push(Downlink::Method(request)) {
            Ok(()) => {}
            Err(MailboxError::Closed) => {
                self.calls.answers.lock().remove(&(session.epoch, request_id));
                under_way.entry = None;
                return None;
            }
            Err(MailboxError::Full) => {
                return Some(Err(throttled(
                    "the client does not keep up with the calls it has been sent; try again later",
                )));
            }
        }
        let identity = session.identity();
        Some(match timeout_at(answer_by, receiver).await {
            Ok(Ok(response)) => check_response(response),
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
}

fn throttled(why: &str) -> Error {
    Error::new(ErrorCode::ThrottlingException, why)
}

fn invalid(why: String) -> Error {
    Error::new(ErrorCode::ArgumentInvalid, why)
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
            format!("the client's answer {why}"),
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
    let text = std::str::from_utf8(payload).map_err(|_| "is not UTF-8")?;
    serde_json::from_str::<IgnoredAny>(text)
        .map(drop)
        .map_err(|_| "is not valid JSON")
}
