//! How a connection ends, the same for MQTT and AMQP.

use std::borrow::Cow;

use holdfast_ports::gateway::Disconnect;

use crate::events::EndReason;

/// Why a connection is over. Ends are rare, so the text may cost.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) reason: EndReason,
    pub(crate) how: Disconnect,
    /// For the log.
    pub(crate) detail: Cow<'static, str>,
}

impl End {
    pub(crate) fn new(reason: EndReason, how: Disconnect, detail: impl Into<Cow<'static, str>>) -> Self {
        End {
            reason,
            how,
            detail: detail.into(),
        }
    }

    /// The client said that it goes.
    pub(crate) fn goodbye(detail: &'static str) -> Self {
        End::new(EndReason::Goodbye, Disconnect::Clean, detail)
    }

    /// The client is gone.
    pub(crate) fn lost(detail: impl Into<Cow<'static, str>>) -> Self {
        End::new(EndReason::ConnectionLost, Disconnect::Lost, detail)
    }

    /// Nothing, or not what was awaited, was heard of the client in time.
    pub(crate) fn silent(detail: impl Into<Cow<'static, str>>) -> Self {
        End::new(EndReason::KeepAlive, Disconnect::Lost, detail)
    }

    /// The client broke the rules of its protocol.
    pub(crate) fn protocol(detail: impl Into<Cow<'static, str>>) -> Self {
        End::new(EndReason::ProtocolError, Disconnect::Lost, detail)
    }

    /// The client does not take what it is sent.
    pub(crate) fn slow(detail: impl Into<Cow<'static, str>>) -> Self {
        End::new(EndReason::SlowReader, Disconnect::Lost, detail)
    }

    /// Nothing can be stored any more.
    pub(crate) fn storage(detail: impl Into<Cow<'static, str>>) -> Self {
        End::new(EndReason::StorageFailed, Disconnect::Closed, detail)
    }

    /// The hub stops.
    pub(crate) fn stopping() -> Self {
        End::new(EndReason::ShuttingDown, Disconnect::Closed, "the hub stops")
    }
}
