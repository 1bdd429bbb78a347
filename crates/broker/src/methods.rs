//! Direct methods: from the hub above, and from modules to modules and leaf devices (edge.md 7.7 and 11). Nothing is stored;
//! a call lives as long as its caller waits.

use std::sync::Arc;
use std::time::Duration;

use holdfast_model::method::{MethodCall, MethodResponse, check_method_call};
use holdfast_model::subscription::Channel;
use holdfast_model::{Error, ErrorCode, Identity};
use holdfast_ports::session::SessionHandle;
use tokio::time::Instant;

use crate::Broker;
use crate::metrics::Family;

/// Most calls under way.
const CALLS_MAX: usize = 1_000;

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
        check_method_call(&call)?;
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
        let _under_way = self.calls.begin(CALLS_MAX)?;
        let known = self.scope.get(target).is_some();
        let to = if known { target.as_str() } else { "unknown" };
        self.metrics.count(Family::Methods, &[from, to], 1);
        let connect_by = Instant::now() + call.connect_timeout;
        let outcome = loop {
            let session = self.method_session(target, connect_by, &call).await?;
            // The session had ended before the request was in its mailbox: as if it had not been there.
            let answer_by = Instant::now() + call.response_timeout;
            if let Some(outcome) = self.calls.ask(&session, &call, answer_by).await {
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
        let found = self.calls.session(target, connect_by, ready).await;
        found.ok_or_else(not_online)
    }
}
