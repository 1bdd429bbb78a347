//! MQTT 5 packets, of the same shape as [`codec`](crate::codec): borrowed when decoded, appended to a `Vec<u8>` when
//! encoded. Kept apart from the 3.1.1 codec so that the hub's hot path pays nothing for it.
//!
//! Properties stay in their encoded form ([`Properties`]) and are read through an iterator; a [`PropertyList`] builds them.
//! Each packet's own rules are checked: which properties and reason codes it may carry, ranges, repetitions. Rules between
//! packets (topic aliases, receive maximum, authentication method across AUTH) belong to a session machine.

mod decode;
mod encode;
mod packet;
mod property;

#[cfg(test)]
mod tests;

pub use decode::decode;
pub use encode::{encode_subscribe, encode_unsubscribe};
pub use packet::{
    Ack, Auth, Codes, ConnAck, Connect, Disconnect, Packet, Publish, ReasonCode, RetainHandling, SubAck,
    Subscribe, SubscribeOptions, Subscriptions, Unsubscribe, Will,
};
pub use property::{Properties, Property, PropertyIter, PropertyList};
