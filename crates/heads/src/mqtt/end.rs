//! How an MQTT session ends, besides what every connection may end with.

use std::borrow::Cow;

use holdfast_ports::gateway::Disconnect;
use holdfast_ports::session::CloseReason;

pub(super) use crate::end::End;
use crate::events::EndReason;

impl End {
    /// A topic that is not the client's.
    pub(super) fn topic(detail: impl Into<Cow<'static, str>>) -> Self {
        End::new(EndReason::ForeignTopic, Disconnect::Lost, detail)
    }

    /// The engine ends the session.
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
