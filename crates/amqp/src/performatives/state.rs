//! Delivery states (AMQP 3.4) and errors (AMQP 2.8.14).

use super::descriptor;
use super::fields::{Fields, composite};
use crate::error::DecodeError;
use crate::types::encode::{self, described_list, null, optional};
use crate::types::{Map, Reader};

/// Error conditions (AMQP 2.8.15 to 2.8.18). Those of the hub itself are the concern of whoever speaks for it.
pub mod condition {
    /// An internal error.
    pub const INTERNAL_ERROR: &str = "amqp:internal-error";
    /// No such thing.
    pub const NOT_FOUND: &str = "amqp:not-found";
    /// No right to do that.
    pub const UNAUTHORIZED_ACCESS: &str = "amqp:unauthorized-access";
    /// Cannot be decoded.
    pub const DECODE_ERROR: &str = "amqp:decode-error";
    /// A limit of the peer.
    pub const RESOURCE_LIMIT_EXCEEDED: &str = "amqp:resource-limit-exceeded";
    /// Not allowed in this state.
    pub const NOT_ALLOWED: &str = "amqp:not-allowed";
    /// A field has an invalid value.
    pub const INVALID_FIELD: &str = "amqp:invalid-field";
    /// Not supported.
    pub const NOT_IMPLEMENTED: &str = "amqp:not-implemented";
    /// The thing was deleted.
    pub const RESOURCE_DELETED: &str = "amqp:resource-deleted";
    /// The thing is locked.
    pub const RESOURCE_LOCKED: &str = "amqp:resource-locked";
    /// A precondition is not met.
    pub const PRECONDITION_FAILED: &str = "amqp:precondition-failed";
    /// Not in this state.
    pub const ILLEGAL_STATE: &str = "amqp:illegal-state";
    /// The peer's frames are too small.
    pub const FRAME_SIZE_TOO_SMALL: &str = "amqp:frame-size-too-small";
    /// The connection is closed for reasons of operation.
    pub const CONNECTION_FORCED: &str = "amqp:connection:forced";
    /// Not a frame, or one out of place.
    pub const FRAMING_ERROR: &str = "amqp:connection:framing-error";
    /// Go elsewhere with the connection.
    pub const CONNECTION_REDIRECT: &str = "amqp:connection:redirect";
    /// More transfers than the session window.
    pub const WINDOW_VIOLATION: &str = "amqp:session:window-violation";
    /// A frame for a link that was lost.
    pub const ERRANT_LINK: &str = "amqp:session:errant-link";
    /// Attach with a handle in use.
    pub const HANDLE_IN_USE: &str = "amqp:session:handle-in-use";
    /// A handle that is not attached.
    pub const UNATTACHED_HANDLE: &str = "amqp:session:unattached-handle";
    /// The link is detached for reasons of operation.
    pub const DETACH_FORCED: &str = "amqp:link:detach-forced";
    /// More transfers than credit.
    pub const TRANSFER_LIMIT_EXCEEDED: &str = "amqp:link:transfer-limit-exceeded";
    /// The message is too large.
    pub const MESSAGE_SIZE_EXCEEDED: &str = "amqp:link:message-size-exceeded";
    /// Go elsewhere with the link.
    pub const LINK_REDIRECT: &str = "amqp:link:redirect";
    /// Someone else attached the link.
    pub const STOLEN: &str = "amqp:link:stolen";
}

/// Why something failed (AMQP 2.8.14).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Error<'a> {
    /// A symbol; see [`condition`].
    pub condition: &'a str,
    /// For people.
    pub description: Option<&'a str>,
    /// Anything else, with symbols as keys.
    pub info: Option<Map<'a>>,
}

impl<'a> Error<'a> {
    /// An error without further information.
    #[must_use]
    pub fn new(condition: &'a str, description: &'a str) -> Self {
        Self {
            condition,
            description: Some(description),
            info: None,
        }
    }

    fn read(code: u8, fields: Fields<'a>) -> Result<Self, DecodeError> {
        if code != descriptor::ERROR {
            return Err(DecodeError::Descriptor(code.into()));
        }
        let mut fields = fields.of("error");
        let condition = fields.text()?;
        Ok(Self {
            condition: fields.must(condition)?,
            description: fields.text()?,
            info: fields.map()?,
        })
    }

    pub(crate) fn field(fields: &mut Fields<'a>) -> Result<Option<Self>, DecodeError> {
        fields
            .composite()?
            .map(|(code, fields)| Self::read(code, fields))
            .transpose()
    }

    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        described_list(out, descriptor::ERROR, |out| {
            encode::symbol(out, self.condition);
            optional(out, self.description, encode::string);
            optional(out, self.info, encode::map);
            3
        });
    }
}

/// State of a delivery (AMQP 3.4).
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum DeliveryState<'a> {
    /// So much has arrived; not an outcome.
    Received {
        /// Section the receiver has got to.
        section_number: u32,
        /// Offset in it.
        section_offset: u64,
    },
    /// Taken.
    Accepted,
    /// Refused as invalid.
    Rejected(Option<Error<'a>>),
    /// Not taken; may be delivered again.
    Released,
    /// Not taken, with changes for the next time.
    Modified {
        /// Count the attempt as failed.
        delivery_failed: bool,
        /// Not to this receiver again.
        undeliverable_here: bool,
        /// Annotations to be merged.
        message_annotations: Option<Map<'a>>,
    },
}

impl<'a> DeliveryState<'a> {
    /// Whether it is final (AMQP 3.4).
    #[must_use]
    pub fn is_outcome(&self) -> bool {
        !matches!(self, Self::Received { .. })
    }

    /// Reads a state: a described list.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let (code, fields) = composite(&mut Reader::new(bytes))?;
        Self::read(code, fields)
    }

    fn read(code: u8, fields: Fields<'a>) -> Result<Self, DecodeError> {
        let mut fields = fields.of("delivery state");
        Ok(match code {
            descriptor::ACCEPTED => Self::Accepted,
            descriptor::RELEASED => Self::Released,
            descriptor::REJECTED => Self::Rejected(Error::field(&mut fields)?),
            descriptor::MODIFIED => Self::Modified {
                delivery_failed: fields.boolean()?.unwrap_or(false),
                undeliverable_here: fields.boolean()?.unwrap_or(false),
                message_annotations: fields.map()?,
            },
            descriptor::RECEIVED => {
                let section_number = fields.uint()?;
                let section_number = fields.must(section_number)?;
                let section_offset = fields.ulong()?;
                Self::Received {
                    section_number,
                    section_offset: fields.must(section_offset)?,
                }
            }
            other => return Err(DecodeError::Descriptor(other.into())),
        })
    }

    #[inline]
    pub(crate) fn field(fields: &mut Fields<'a>) -> Result<Option<Self>, DecodeError> {
        // Every transfer has this field, and next to none a state in it.
        if fields.skip_null() {
            return Ok(None);
        }
        Self::some_field(fields)
    }

    fn some_field(fields: &mut Fields<'a>) -> Result<Option<Self>, DecodeError> {
        match fields.composite()? {
            None => Ok(None),
            Some((code, fields)) => Self::read(code, fields).map(Some),
        }
    }

    /// Appends it. States without fields are written as `list0`, as all others do; only performatives must not be.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Accepted => empty(out, descriptor::ACCEPTED),
            Self::Released => empty(out, descriptor::RELEASED),
            Self::Rejected(error) => described_list(out, descriptor::REJECTED, |out| {
                match error {
                    Some(error) => error.encode(out),
                    None => null(out),
                }
                1
            }),
            Self::Modified {
                delivery_failed,
                undeliverable_here,
                message_annotations,
            } => described_list(out, descriptor::MODIFIED, |out| {
                encode::boolean(out, *delivery_failed);
                encode::boolean(out, *undeliverable_here);
                optional(out, *message_annotations, encode::map);
                3
            }),
            Self::Received {
                section_number,
                section_offset,
            } => described_list(out, descriptor::RECEIVED, |out| {
                encode::uint(out, *section_number);
                encode::ulong(out, *section_offset);
                2
            }),
        }
    }
}

fn empty(out: &mut Vec<u8>, descriptor: u8) {
    encode::descriptor_code(out, descriptor);
    out.push(crate::types::code::LIST0);
}
