//! Between AMQP messages and the hub's words (AMQP contract, sections 3.4, 3.5, 4 and 5.6).

mod event;
mod inbound;
mod outbound;
#[cfg(test)]
mod tests;

pub(super) use event::{Runtime, write_event};
pub(super) use inbound::{C2d, Malformed, Source, body_of, read_c2d, write_batch, write_record};
pub(super) use outbound::{delivery_tag, write_c2d, write_feedback, write_file_notification};

use std::borrow::Cow;

use holdfast_amqp::message::MessageId;

/// An id as text: the hub keeps no types.
fn id_text(id: MessageId<'_>) -> Cow<'_, str> {
    match id {
        MessageId::String(text) => text.into(),
        MessageId::Ulong(number) => number.to_string().into(),
        MessageId::Uuid(uuid) => uuid_text(&uuid).into(),
        MessageId::Binary(bytes) => String::from_utf8_lossy(bytes),
    }
}

/// Lower case, with dashes.
fn uuid_text(uuid: &[u8; 16]) -> String {
    let number = u128::from_be_bytes(*uuid);
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        number >> 96,
        (number >> 80) & 0xffff,
        (number >> 64) & 0xffff,
        (number >> 48) & 0xffff,
        number & 0xffff_ffff_ffff
    )
}
