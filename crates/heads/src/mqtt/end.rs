//! How a session ends.

use std::borrow::Cow;

use holdfast_ports::event_log::LogError;
use holdfast_ports::gateway::Disconnect;
use holdfast_ports::session::CloseReason;

use crate::events::EndReason;

/// Why a connection is over. Ends are rare, so the text may cost.
#[derive(Debug)]
pub(super) struct End {
    pub(super) reason: EndReason,
    pub(super) how: Disconnect,
    /// For the log.
    pub(super) detail: Cow<'static, str>,
}

impl End {
    fn new(reason: EndReason, how: Disconnect, detail: impl Into<Cow<'static, str>>) -> Self {
        End {
            reason,
            how,
            detail: detail.into(),
        }
    }

    pub(super) fn goodbye() -> Self {
        End::new(EndReason::Goodbye, Disconnect::Clean, "disconnect packet")
    }

    pub(super) fn lost(detail: impl Into<Cow<'static, str>>) -> Self {
        End::new(EndReason::ConnectionLost, Disconnect::Lost, detail)
    }

    pub(super) fn silent() -> Self {
        End::new(
            EndReason::KeepAlive,
            Disconnect::Lost,
            "nothing heard for 1.5 times the keep-alive",
        )
    }

    pub(super) fn protocol(detail: impl Into<Cow<'static, str>>) -> Self {
        End::new(EndReason::ProtocolError, Disconnect::Lost, detail)
    }

    pub(super) fn topic(detail: impl Into<Cow<'static, str>>) -> Self {
        End::new(EndReason::ForeignTopic, Disconnect::Lost, detail)
    }

    pub(super) fn slow(detail: impl Into<Cow<'static, str>>) -> Self {
        End::new(EndReason::SlowReader, Disconnect::Lost, detail)
    }

    pub(super) fn stopping() -> Self {
        End::new(EndReason::ShuttingDown, Disconnect::Closed, "the hub stops")
    }

    pub(super) fn storage(error: &LogError) -> Self {
        End::new(EndReason::StorageFailed, Disconnect::Closed, error.to_string())
    }

    pub(super) fn unavailable(error: &holdfast_model::Error) -> Self {
        End::new(
            EndReason::StorageFailed,
            Disconnect::Closed,
            error.message.clone(),
        )
    }

    pub(super) fn closed(reason: CloseReason) -> Self {
        let (reason, detail) = match reason {
            CloseReason::TakenOver => (EndReason::TakenOver, "a newer connection of the identity"),
            CloseReason::TokenExpired => (EndReason::TokenExpired, "the token has expired"),
            CloseReason::IdentityChanged => (
                EndReason::IdentityChanged,
                "the identity was disabled, deleted, or its credentials changed",
            ),
            CloseReason::ShuttingDown => (EndReason::ShuttingDown, "the hub stops"),
            CloseReason::StorageFailed => (EndReason::StorageFailed, "the hub cannot store"),
        };
        End::new(reason, Disconnect::Closed, detail)
    }
}
