//! How a link or a delivery is refused, and how a connection ends.

use std::borrow::Cow;

use holdfast_amqp::performatives::{Error as AmqpError, condition};
use holdfast_amqp::types::{MapBuf, Value};
use holdfast_model::{Error, ErrorCode, Timestamp};
use holdfast_ports::gateway::Disconnect;
use holdfast_ports::session::CloseReason;
use holdfast_wire::error::{self as table, TrackingId};

pub(super) use crate::end::End;
use crate::events::EndReason;
use crate::tracking;

/// A condition with a text for the client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Failure {
    pub(super) condition: Cow<'static, str>,
    pub(super) text: Cow<'static, str>,
}

impl Failure {
    pub(super) fn new(condition: &'static str, text: impl Into<Cow<'static, str>>) -> Self {
        Failure {
            condition: condition.into(),
            text: text.into(),
        }
    }

    pub(super) fn unauthorized(text: impl Into<Cow<'static, str>>) -> Self {
        Failure::new(condition::UNAUTHORIZED_ACCESS, text)
    }

    /// Hands the error to `tell`, with an id under which it is found in the log.
    pub(super) fn tell(&self, now: Timestamp, tell: impl FnOnce(&AmqpError<'_>)) {
        let id = TrackingId {
            id: tracking::random(),
            node: 0,
            at: now,
        }
        .to_string();
        let mut info = MapBuf::new();
        info.symbol("com.microsoft:tracking-id", &Value::String(&id));
        holdfast_observe::tracing::debug!(
            tracking_id = id,
            condition = &*self.condition,
            text = &*self.text,
            "refused"
        );
        tell(&AmqpError {
            info: Some(info.as_map()),
            ..AmqpError::new(&self.condition, &self.text)
        });
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure {
            condition: table::row(error.code).amqp_condition.into(),
            text: error.message.into(),
        }
    }
}

impl From<CloseReason> for Failure {
    fn from(reason: CloseReason) -> Self {
        let (condition, text) = match reason {
            CloseReason::TakenOver => (condition::STOLEN, "a newer connection of the identity took over"),
            CloseReason::TokenExpired => (condition::UNAUTHORIZED_ACCESS, "the token has expired"),
            CloseReason::IdentityChanged => (
                condition::UNAUTHORIZED_ACCESS,
                "the identity was disabled, deleted, or its credentials changed",
            ),
            CloseReason::ShuttingDown => (condition::CONNECTION_FORCED, "the hub is stopping"),
            CloseReason::StorageFailed => (condition::INTERNAL_ERROR, "the hub cannot store events"),
        };
        Failure::new(condition, text)
    }
}

/// How a session's end is counted.
pub(super) fn end_of(reason: CloseReason) -> EndReason {
    match reason {
        CloseReason::TakenOver => EndReason::TakenOver,
        CloseReason::TokenExpired => EndReason::TokenExpired,
        CloseReason::IdentityChanged => EndReason::IdentityChanged,
        CloseReason::ShuttingDown => EndReason::ShuttingDown,
        CloseReason::StorageFailed => EndReason::StorageFailed,
    }
}

/// Error of a log, for the client.
pub(super) fn storage_failed() -> Failure {
    Failure::from(Error::new(
        ErrorCode::ServiceUnavailable,
        "the hub cannot store events",
    ))
}

impl End {
    /// Whether the client may still be there to hear of it, and is to be waited for.
    pub(super) fn can_be_told(&self) -> bool {
        !matches!(self.reason, EndReason::ConnectionLost | EndReason::SlowReader)
    }

    pub(super) fn crowded() -> Self {
        End::new(
            EndReason::ConnectionLost,
            Disconnect::Closed,
            "there is no place for the connection",
        )
    }

    pub(super) fn refused(detail: impl Into<Cow<'static, str>>) -> Self {
        End::new(EndReason::TokenExpired, Disconnect::Closed, detail)
    }
}
