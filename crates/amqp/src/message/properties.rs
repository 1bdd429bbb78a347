//! Header and properties (AMQP 3.2.1, 3.2.4).

use super::section;
use crate::error::DecodeError;
use crate::performatives::Fields;
use crate::types::Value;
use crate::types::encode::{self, described_list, null, optional};

/// How to transfer the message (AMQP 3.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Survives a restart.
    pub durable: bool,
    /// 4 is normal.
    pub priority: u8,
    /// Time to live in milliseconds.
    pub ttl: Option<u32>,
    /// Not delivered to anyone before.
    pub first_acquirer: bool,
    /// Deliveries that failed before.
    pub delivery_count: u32,
}

impl Default for Header {
    fn default() -> Self {
        Self {
            durable: false,
            priority: 4,
            ttl: None,
            first_acquirer: false,
            delivery_count: 0,
        }
    }
}

impl Header {
    pub(crate) fn read(fields: Fields<'_>) -> Result<Self, DecodeError> {
        let mut fields = fields.of("header");
        Ok(Self {
            durable: fields.boolean()?.unwrap_or(false),
            priority: fields.ubyte()?.unwrap_or(4),
            ttl: fields.uint()?,
            first_acquirer: fields.boolean()?.unwrap_or(false),
            delivery_count: fields.uint()?.unwrap_or(0),
        })
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        described_list(out, section::HEADER, |out| {
            encode::boolean(out, self.durable);
            encode::ubyte(out, self.priority);
            optional(out, self.ttl, encode::uint);
            encode::boolean(out, self.first_acquirer);
            encode::uint(out, self.delivery_count);
            5
        });
    }
}

/// A message id or correlation id (AMQP 3.2.11 to 3.2.14). Answers must repeat it with its type: azure-iot-sdk-c matches
/// only ulong, Java and azure-eventhub only uuid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageId<'a> {
    /// `ulong`
    Ulong(u64),
    /// `uuid`
    Uuid([u8; 16]),
    /// `binary`
    Binary(&'a [u8]),
    /// `string`
    String(&'a str),
}

/// A [`MessageId`] to keep.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum MessageIdBuf {
    /// `ulong`
    Ulong(u64),
    /// `uuid`
    Uuid([u8; 16]),
    /// `binary`
    Binary(Box<[u8]>),
    /// `string`
    String(Box<str>),
}

impl MessageId<'_> {
    /// A copy to keep.
    #[must_use]
    pub fn to_buf(&self) -> MessageIdBuf {
        match *self {
            Self::Ulong(id) => MessageIdBuf::Ulong(id),
            Self::Uuid(id) => MessageIdBuf::Uuid(id),
            Self::Binary(id) => MessageIdBuf::Binary(id.into()),
            Self::String(id) => MessageIdBuf::String(id.into()),
        }
    }

    /// As a value.
    #[must_use]
    pub fn to_value(&self) -> Value<'_> {
        match *self {
            Self::Ulong(id) => Value::Ulong(id),
            Self::Uuid(id) => Value::Uuid(id),
            Self::Binary(id) => Value::Binary(id),
            Self::String(id) => Value::String(id),
        }
    }
}

impl MessageIdBuf {
    /// A view.
    #[must_use]
    pub fn as_id(&self) -> MessageId<'_> {
        match self {
            Self::Ulong(id) => MessageId::Ulong(*id),
            Self::Uuid(id) => MessageId::Uuid(*id),
            Self::Binary(id) => MessageId::Binary(id),
            Self::String(id) => MessageId::String(id),
        }
    }
}

impl<'a> MessageId<'a> {
    fn field(fields: &mut Fields<'a>) -> Result<Option<Self>, DecodeError> {
        Ok(Some(match fields.value()? {
            Value::Null => return Ok(None),
            Value::Ulong(id) => Self::Ulong(id),
            Value::Uuid(id) => Self::Uuid(id),
            Value::Binary(id) => Self::Binary(id),
            Value::String(id) => Self::String(id),
            _ => return Err(fields.invalid()),
        }))
    }
}

/// What the message is (AMQP 3.2.4). `content_type` and `content_encoding` are symbols, read from strings as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Properties<'a> {
    /// Id of the message.
    pub message_id: Option<MessageId<'a>>,
    /// Who made it.
    pub user_id: Option<&'a [u8]>,
    /// The node it is for.
    pub to: Option<&'a str>,
    /// What it is about.
    pub subject: Option<&'a str>,
    /// The node for answers.
    pub reply_to: Option<&'a str>,
    /// Id of what it answers.
    pub correlation_id: Option<MessageId<'a>>,
    /// Media type of the body.
    pub content_type: Option<&'a str>,
    /// Encoding of the body.
    pub content_encoding: Option<&'a str>,
    /// When it expires, in milliseconds since 1970.
    pub absolute_expiry_time: Option<i64>,
    /// When it was made, in milliseconds since 1970.
    pub creation_time: Option<i64>,
    /// Group it belongs to.
    pub group_id: Option<&'a str>,
    /// Place in the group.
    pub group_sequence: Option<u32>,
    /// Group for answers.
    pub reply_to_group_id: Option<&'a str>,
}

impl<'a> Properties<'a> {
    pub(crate) fn read(fields: Fields<'a>) -> Result<Self, DecodeError> {
        let mut fields = fields.of("properties");
        Ok(Self {
            message_id: MessageId::field(&mut fields)?,
            user_id: fields.binary()?,
            to: fields.text()?,
            subject: fields.text()?,
            reply_to: fields.text()?,
            correlation_id: MessageId::field(&mut fields)?,
            content_type: fields.text()?,
            content_encoding: fields.text()?,
            absolute_expiry_time: fields.timestamp()?,
            creation_time: fields.timestamp()?,
            group_id: fields.text()?,
            group_sequence: fields.uint()?,
            reply_to_group_id: fields.text()?,
        })
    }

    /// Nulls at the end are left out: sections, unlike performatives, are read by their length by all clients.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        described_list(out, section::PROPERTIES, |out| {
            let (mut count, mut used, mut end) = (0u8, 0u8, out.len());
            let mut field = |out: &mut Vec<u8>, present: bool| {
                count += 1;
                if present {
                    (used, end) = (count, out.len());
                }
            };
            id(out, self.message_id);
            field(out, self.message_id.is_some());
            optional(out, self.user_id, encode::binary);
            field(out, self.user_id.is_some());
            for text in [self.to, self.subject, self.reply_to] {
                optional(out, text, encode::string);
                field(out, text.is_some());
            }
            id(out, self.correlation_id);
            field(out, self.correlation_id.is_some());
            for symbol in [self.content_type, self.content_encoding] {
                optional(out, symbol, encode::symbol);
                field(out, symbol.is_some());
            }
            for time in [self.absolute_expiry_time, self.creation_time] {
                optional(out, time, timestamp);
                field(out, time.is_some());
            }
            optional(out, self.group_id, encode::string);
            field(out, self.group_id.is_some());
            optional(out, self.group_sequence, encode::uint);
            field(out, self.group_sequence.is_some());
            optional(out, self.reply_to_group_id, encode::string);
            field(out, self.reply_to_group_id.is_some());
            out.truncate(end);
            used
        });
    }
}

fn timestamp(out: &mut Vec<u8>, time: i64) {
    encode::encode_value(out, &Value::Timestamp(time));
}

fn id(out: &mut Vec<u8>, id: Option<MessageId<'_>>) {
    match id {
        Some(id) => encode::encode_value(out, &id.to_value()),
        None => null(out),
    }
}
