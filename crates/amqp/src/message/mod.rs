//! The message format (AMQP 3.2) and Azure's batches.
//!
//! [`Message::decode`] gives a view of a message that lies in one piece: texts, maps and bodies stay where they are.
//! Sections are taken in any order, because azure-iot-sdk-c puts annotations after the body.
//!
//! [`Writer`] appends the sections of a message to an output buffer one by one, without any value in between.

mod decode;
mod properties;
#[cfg(test)]
mod tests;
mod write;

pub use decode::{Body, Data, Message, Sequences};
pub use properties::{Header, MessageId, MessageIdBuf, Properties};
pub use write::Writer;

/// Message format of an ordinary message.
pub const FORMAT: u32 = 0;

/// Message format of a batch: each Data section is an encoded message (Azure; also Event Hubs producers).
pub const BATCH_FORMAT: u32 = 0x8001_3700;

/// Descriptor codes of the sections.
pub mod section {
    /// `amqp:header:list`
    pub const HEADER: u8 = 0x70;
    /// `amqp:delivery-annotations:map`
    pub const DELIVERY_ANNOTATIONS: u8 = 0x71;
    /// `amqp:message-annotations:map`
    pub const MESSAGE_ANNOTATIONS: u8 = 0x72;
    /// `amqp:properties:list`
    pub const PROPERTIES: u8 = 0x73;
    /// `amqp:application-properties:map`
    pub const APPLICATION_PROPERTIES: u8 = 0x74;
    /// `amqp:data:binary`
    pub const DATA: u8 = 0x75;
    /// `amqp:amqp-sequence:list`
    pub const SEQUENCE: u8 = 0x76;
    /// `amqp:amqp-value:*`
    pub const VALUE: u8 = 0x77;
    /// `amqp:footer:map`
    pub const FOOTER: u8 = 0x78;
}
