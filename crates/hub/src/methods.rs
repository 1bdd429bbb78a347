//! Direct methods (rest.md section 7): nothing is stored; a call lives as long as its caller waits. Calls under way are
//! bounded by `HubConfig::methods_pending_max`.

use std::sync::Arc;
use std::time::Duration;

use holdfast_model::method::{MethodCall, MethodResponse, check_method_call};
use holdfast_model::subscription::Channel;
use holdfast_model::{Error, ErrorCode, Identity};
use holdfast_ports::session::SessionHandle;
use tokio::time::Instant;

use crate::Hub;
use crate::events::MethodOutcome;

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
        check_method_call(&call)?;
        let _under_way = self.calls.begin(self.config.methods_pending_max)?;
        let connect_by = Instant::now() + self.less_margin(call.connect_timeout);
        loop {
            let session = self
                .method_session(identity, connect_by, call.connect_timeout)
                .await?;
            let answer_by = Instant::now() + self.less_margin(call.response_timeout);
            match self.calls.ask(&session, &call, answer_by).await {
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
        let ready = || self.ready_for_methods(identity);
        let found = self.calls.session(identity, connect_by, ready).await;
        found.ok_or_else(not_online)
    }

    fn ready_for_methods(&self, identity: &Identity) -> Option<Arc<SessionHandle>> {
        self.sessions
            .get(identity.as_str())
            .filter(|session| session.subscribed(Channel::Methods) && !session.is_ended())
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
