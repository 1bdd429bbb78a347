//! What the machine tells its caller.

use std::borrow::Cow;

use crate::error::LinkError;
use crate::performatives::{Attach, Begin, DeliveryState, Error, Open, SaslCode, SaslInit, SaslMechanisms};

/// A session of one connection. Never means another one later, even when its channel is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId {
    pub(crate) channel: u16,
    pub(crate) serial: u32,
}

/// A link of one connection. Never means another one later, even when its handle is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId {
    pub(crate) channel: u16,
    pub(crate) handle: u16,
    pub(crate) serial: u32,
    /// Serial of the session.
    pub(crate) session: u32,
}

impl LinkId {
    /// The session it is in.
    #[must_use]
    pub fn session(self) -> SessionId {
        SessionId {
            channel: self.channel,
            serial: self.session,
        }
    }
}

impl SessionId {
    /// The number of its channel at this end.
    #[must_use]
    pub fn channel(self) -> u16 {
        self.channel
    }
}

/// Longest delivery tag (AMQP 2.8.7).
pub(crate) const TAG_MAX: usize = 32;

/// A delivery tag kept while its message is put together: inline, since that is rare and short.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tag {
    bytes: [u8; TAG_MAX],
    len: u8,
}

impl Tag {
    #[inline]
    pub(crate) fn new(tag: &[u8]) -> Option<Self> {
        let mut bytes = [0; TAG_MAX];
        bytes.get_mut(..tag.len())?.copy_from_slice(tag);
        let len = u8::try_from(tag.len()).ok()?;
        Some(Self { bytes, len })
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl std::fmt::Debug for Tag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:02x?}", self.as_bytes())
    }
}

/// A message that arrived in full.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery<'a> {
    /// Number within the session, to settle it by.
    pub id: u32,
    /// Whether the sender settled it: there is nothing to answer.
    pub settled: bool,
    /// [`FORMAT`](crate::message::FORMAT) or [`BATCH_FORMAT`](crate::message::BATCH_FORMAT).
    pub message_format: u32,
    /// The sender's name for it: borrowed from the input if the message came in one frame.
    pub tag: Cow<'a, [u8]>,
    /// The encoded message: borrowed from the input if it came in one frame.
    pub payload: Cow<'a, [u8]>,
}

/// What a frame means to the caller. Borrows from the input, not from the machine.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Server: the client begins a SASL exchange. Frames wait until
    /// [`sasl_challenge`](super::Connection::sasl_challenge) or [`sasl_outcome`](super::Connection::sasl_outcome).
    SaslInit(SaslInit<'a>),
    /// Server: the client answers a challenge. Frames wait as after `SaslInit`.
    SaslResponse(&'a [u8]),
    /// Client: what the server offers. Frames wait until [`sasl_init`](super::Connection::sasl_init).
    SaslMechanisms(SaslMechanisms<'a>),
    /// Client: the server asks. Frames wait until [`sasl_response`](super::Connection::sasl_response).
    SaslChallenge(&'a [u8]),
    /// Client: the exchange is over. Anything but `Ok` is the end of the connection.
    SaslOutcome(SaslCode),
    /// The peer's open. Frames wait until [`open`](super::Connection::open) was called.
    Open(Box<Open<'a>>),
    /// A session exists: begun by the peer and answered already, or our begin was answered.
    Begin {
        /// The session.
        session: SessionId,
        /// What the peer sent.
        begin: Box<Begin<'a>>,
    },
    /// The peer wants a link. Answer with [`accept_link`](super::Connection::accept_link) or
    /// [`refuse_link`](super::Connection::refuse_link), at once or later.
    Attach {
        /// The link.
        link: LinkId,
        /// What the peer sent.
        attach: Box<Attach<'a>>,
    },
    /// The peer answered our attach. Termini that are missing announce a refusal, which follows as `Detach`.
    Attached {
        /// The link.
        link: LinkId,
        /// What the peer sent.
        attach: Box<Attach<'a>>,
    },
    /// The receiver changed the credit of our sending link.
    Credit {
        /// The link.
        link: LinkId,
        /// Messages that may be sent.
        credit: u32,
        /// Send what there is, then call [`drained`](super::Connection::drained).
        drain: bool,
    },
    /// A send that found the window full can be tried again.
    WindowOpen {
        /// The session.
        session: SessionId,
    },
    /// Our [`drain`](super::Connection::drain) is done: no credit is left at the sender.
    Drained {
        /// The link.
        link: LinkId,
    },
    /// A message arrived.
    Transfer {
        /// The link.
        link: LinkId,
        /// The message.
        delivery: Delivery<'a>,
    },
    /// The receiver told of a message we sent unsettled.
    Outcome {
        /// The link.
        link: LinkId,
        /// Number within the session.
        delivery_id: u32,
        /// As given to [`send`](super::Connection::send).
        token: u64,
        /// Its state; `None` if the link or session ends, which is reported next.
        state: Option<DeliveryState<'a>>,
        /// Whether it is forgotten now. If not, settle it with
        /// [`settle_sent`](super::Connection::settle_sent).
        settled: bool,
    },
    /// The sender settled a message we had not, such as after our unsettled answer.
    Settled {
        /// The link.
        link: LinkId,
        /// Number within the session.
        delivery_id: u32,
        /// State at the sender.
        state: Option<DeliveryState<'a>>,
    },
    /// The peer detached the link; that is answered already and the link gone.
    Detach {
        /// The link.
        link: LinkId,
        /// Whether it is gone for good at the peer too.
        closed: bool,
        /// Why.
        error: Option<Error<'a>>,
    },
    /// The peer broke the rules of one link: it was told so by a detach and the link is gone.
    LinkFailed {
        /// The link.
        link: LinkId,
        /// Which rule.
        error: LinkError,
    },
    /// The peer ended the session; that is answered already, and session and links are gone.
    End {
        /// The session.
        session: SessionId,
        /// Why.
        error: Option<Error<'a>>,
    },
    /// The peer closed the connection; that is answered already. Close the socket.
    Close {
        /// Why.
        error: Option<Error<'a>>,
    },
}
