//! Errors of the crate, by what failed.

use crate::performatives::condition;

/// Why bytes are not the values, performatives or message sections they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// A value ends after the end of its input.
    #[error("value is cut off")]
    Truncated,
    /// A format code that does not exist (AMQP 1.2).
    #[error("unknown format code {0:#04x}")]
    Constructor(u8),
    /// A string or symbol is not UTF-8 (AMQP 1.6.20).
    #[error("text is not utf-8")]
    Utf8,
    /// A boolean byte other than 0 and 1 (AMQP 1.6.2).
    #[error("boolean has value {0:#04x}")]
    Boolean(u8),
    /// A char that is no Unicode scalar value (AMQP 1.6.16).
    #[error("character is not a unicode scalar value")]
    Character,
    /// Nested deeper than [`DEPTH_MAX`](crate::types::DEPTH_MAX).
    #[error("value is nested too deeply")]
    TooDeep,
    /// Size and content disagree.
    #[error("size does not match the content")]
    Size,
    /// A map with a key but no value (AMQP 1.6.23).
    #[error("map has an odd number of items")]
    OddMap,
    /// An array of elements without bytes with more than
    /// [`EMPTY_ELEMENTS_MAX`](crate::types::EMPTY_ELEMENTS_MAX) of them.
    #[error("array of {0} elements without content")]
    ArrayTooLong(u32),
    /// A field of another type than its definition says.
    #[error("field {field} of {of} has the wrong type")]
    FieldType {
        /// The composite type.
        of: &'static str,
        /// Number of the field, from 0.
        field: u8,
    },
    /// A mandatory field is null or absent (AMQP 1.4).
    #[error("field {field} of {of} is missing")]
    FieldMissing {
        /// The composite type.
        of: &'static str,
        /// Number of the field, from 0.
        field: u8,
    },
    /// A field with a value outside its choices.
    #[error("field {field} of {of} has an invalid value")]
    FieldValue {
        /// The composite type.
        of: &'static str,
        /// Number of the field, from 0.
        field: u8,
    },
    /// Not a described list where a performative or a composite type belongs (AMQP 2.3.1).
    #[error("not a described list")]
    NotComposite,
    /// A descriptor that does not belong here.
    #[error("unknown descriptor {0:#x}")]
    Descriptor(u64),
    /// A message section twice, or body sections of different kinds (AMQP 3.2).
    #[error("message section {0:#x} is repeated or mixed")]
    Section(u64),
}

/// Why bytes are not a frame (AMQP 2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Larger than the limit; known from the first four bytes.
    #[error("frame of {size} bytes is over the limit of {limit}")]
    TooLarge {
        /// Size announced.
        size: usize,
        /// Size allowed.
        limit: usize,
    },
    /// Smaller than its own header (AMQP 2.3.1).
    #[error("frame of {0} bytes is smaller than its header")]
    TooSmall(usize),
    /// Data offset below 2 or past the end (AMQP 2.3.1).
    #[error("data offset {0} lies outside the frame")]
    DataOffset(u8),
    /// Neither an AMQP nor a SASL frame (AMQP 2.3.1).
    #[error("unknown frame type {0:#04x}")]
    Type(u8),
}

/// What is against the rules of a connection or session. It ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The peer's protocol header is not one we speak (AMQP 2.2). Ours was appended as the answer.
    #[error("protocol header is not supported")]
    Header,
    /// Not a frame.
    #[error("frame is malformed")]
    Frame(#[source] FrameError),
    /// A frame with content that cannot be read.
    #[error("frame cannot be decoded")]
    Decode(#[source] DecodeError),
    /// A SASL frame outside the SASL layer, or an AMQP frame inside (AMQP 5.3).
    #[error("frame of the wrong type for this layer")]
    Layer,
    /// A performative where it does not belong: before open, a second open, a SASL step out of turn (AMQP 2.4.6, 5.3.2).
    #[error("performative {0:#04x} is out of order")]
    OutOfOrder(u8),
    /// The server offered no SASL mechanism that was asked for, or refused (AMQP 5.3.2).
    #[error("sasl failed with code {0}")]
    Sasl(u8),
    /// The peer's max-frame-size is below 512 (AMQP 2.7.1).
    #[error("maximum frame size {0} is below 512")]
    FrameSizeTooSmall(u32),
    /// A channel above channel-max (AMQP 2.7.1).
    #[error("channel {0} is above the maximum")]
    ChannelMax(u16),
    /// A begin on a channel in use, or a reply to a begin that was not sent (AMQP 2.5.1).
    #[error("begin on channel {0} does not fit")]
    Begin(u16),
    /// A frame on a channel without session (AMQP 2.5.1).
    #[error("no session on channel {0}")]
    NoSession(u16),
    /// More transfers than the incoming window (AMQP 2.5.6).
    #[error("transfer exceeds the session window")]
    WindowViolation,
    /// An attach with a handle in use (AMQP 2.7.3).
    #[error("handle {0} is in use")]
    HandleInUse(u32),
    /// A handle above handle-max (AMQP 2.7.2).
    #[error("handle {0} is above the maximum")]
    HandleMax(u32),
    /// A frame for a handle that is not attached (AMQP 2.6.2).
    #[error("handle {0} is not attached")]
    UnattachedHandle(u32),
    /// A transfer on a link on which we send (AMQP 2.6.12).
    #[error("transfer on a sending link")]
    WrongRole,
    /// A first transfer without delivery-id or tag, or one that goes back (AMQP 2.7.5).
    #[error("transfer has no valid delivery id")]
    DeliveryId,
    /// More links than the configuration allows.
    #[error("too many links")]
    TooManyLinks,
    /// Silence for longer than our idle-time-out (AMQP 2.4.5).
    #[error("peer was silent for too long")]
    IdleTimeout,
    /// The connection was not opened in time.
    #[error("connection was not opened in time")]
    OpenTimeout,
}

impl ConnectionError {
    /// The error condition that goes with it on the wire (AMQP 2.8.15 to 2.8.18).
    #[must_use]
    pub fn condition(&self) -> &'static str {
        match self {
            Self::Header | Self::Frame(_) | Self::Layer | Self::ChannelMax(_) | Self::NoSession(_) => {
                condition::FRAMING_ERROR
            }
            Self::Decode(_) => condition::DECODE_ERROR,
            Self::Sasl(_) => condition::UNAUTHORIZED_ACCESS,
            Self::FrameSizeTooSmall(_) | Self::HandleMax(_) => condition::INVALID_FIELD,
            Self::OutOfOrder(_) | Self::Begin(_) | Self::WrongRole => condition::NOT_ALLOWED,
            Self::WindowViolation => condition::WINDOW_VIOLATION,
            Self::HandleInUse(_) => condition::HANDLE_IN_USE,
            Self::UnattachedHandle(_) => condition::UNATTACHED_HANDLE,
            Self::DeliveryId => condition::INVALID_FIELD,
            Self::TooManyLinks => condition::RESOURCE_LIMIT_EXCEEDED,
            Self::IdleTimeout | Self::OpenTimeout => condition::CONNECTION_FORCED,
        }
    }
}

impl From<FrameError> for ConnectionError {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

impl From<DecodeError> for ConnectionError {
    fn from(error: DecodeError) -> Self {
        Self::Decode(error)
    }
}

/// Why a link was detached by this end by itself. The connection and its other links live on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// A transfer without credit (AMQP 2.6.7).
    #[error("transfer exceeds the link credit")]
    TransferLimit,
    /// A message larger than max-message-size (AMQP 2.7.3).
    #[error("message exceeds the maximum size")]
    MessageSize,
    /// Unfinished messages of the connection together exceed the configuration.
    #[error("unfinished messages exceed the limit")]
    Reassembly,
    /// Another link with the same name and role was attached in the session (AMQP 2.6.1).
    #[error("link was stolen")]
    Stolen,
}

impl LinkError {
    /// The error condition that goes with it on the wire (AMQP 2.8.18).
    #[must_use]
    pub fn condition(&self) -> &'static str {
        match self {
            Self::TransferLimit => condition::TRANSFER_LIMIT_EXCEEDED,
            Self::MessageSize => condition::MESSAGE_SIZE_EXCEEDED,
            Self::Reassembly => condition::RESOURCE_LIMIT_EXCEEDED,
            Self::Stolen => condition::STOLEN,
        }
    }
}

/// Why a message was not sent. Nothing was appended and nothing is tracked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The link does not exist (any more), is not attached, or receives.
    #[error("link cannot send")]
    NotAttached,
    /// The receiver gave no credit; wait for [`Event::Credit`](crate::connection::Event::Credit).
    #[error("link has no credit")]
    NoCredit,
    /// The session's window is used up, or a large message is under way on it; wait for
    /// [`Event::WindowOpen`](crate::connection::Event::WindowOpen).
    #[error("session window is full")]
    WindowFull,
    /// As many unsettled deliveries as the configuration allows; wait for an outcome.
    #[error("too many unsettled deliveries")]
    TooManyUnsettled,
    /// The receiver takes no message of this size (AMQP 2.7.3).
    #[error("message of {size} bytes is over the receiver's limit of {limit}")]
    TooLarge {
        /// Bytes of the message.
        size: usize,
        /// Bytes allowed.
        limit: u64,
    },
    /// A delivery tag above 32 bytes (AMQP 2.8.7).
    #[error("delivery tag is longer than 32 bytes")]
    Tag,
}

/// Why a session or link was not begun. Nothing was appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The connection or session is not open.
    #[error("connection or session is not open")]
    NotOpen,
    /// As many as the peer, or the configuration, allows.
    #[error("no more sessions or links are allowed")]
    Limit,
    /// A link of this name and role is attached in the session already (AMQP 2.6.1).
    #[error("link name is in use")]
    NameInUse,
}
