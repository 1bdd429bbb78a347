//! MQTT 3.1.1 packets: borrowed when decoded, appended to a `Vec<u8>` when encoded.
//!
//! [`decode`] is the hot path of the hub. A decoded packet borrows from the input buffer: no copy, no allocation. What is
//! checked here is everything that can be judged from one packet; order of packets is the business of the session machines.
//!
//! Not checked, on purpose: wildcard characters in the topic of a PUBLISH (MQTT-3.3.2-2). The C SDK writes property values
//! unencoded into the topic, so a `+` may occur in an honest client's property bag; the hub matches topics by fixed
//! templates, in which a wildcard has no meaning. [`has_wildcard`] is there for those who care.

mod decode;
mod encode;
mod packet;

#[cfg(test)]
mod tests;

pub(crate) use decode::fixed_header;
pub use decode::{decode, packet_len};
pub use encode::{
    encode_connack, encode_connect, encode_disconnect, encode_pingreq, encode_pingresp, encode_puback,
    encode_publish, encode_publish_header, encode_suback, encode_subscribe, encode_unsuback,
    encode_unsubscribe, encode_unsupported_level, publish_len,
};
pub use packet::{
    ConnAck, Connect, ConnectCode, Filters, Packet, PacketId, PacketType, Publish, QoS, SubAck, SubAckCode,
    SubAckCodes, Subscribe, Subscriptions, Unsubscribe, Will,
};

/// True if the topic contains `+` or `#`, which only filters may (MQTT-3.3.2-2, MQTT-4.7.1-1).
#[must_use]
pub fn has_wildcard(topic: &str) -> bool {
    topic.bytes().any(|byte| byte == b'+' || byte == b'#')
}
