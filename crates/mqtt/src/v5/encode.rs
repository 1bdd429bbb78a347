//! Packets to bytes. Every function appends to `out`; on error nothing was appended.

use super::decode::has_topic_alias;
use super::packet::{
    Ack, ConnAck, Connect, Packet, Publish, ReasonCode, SubAck, Subscribe, SubscribeOptions, Unsubscribe,
};
use super::property::{Place, Properties};
use crate::codec::{PacketId, PacketType, QoS};
use crate::cursor::{check_binary, check_string, check_topic, put_binary, put_header};
use crate::error::EncodeError;

impl Packet<'_> {
    /// Appends the packet.
    ///
    /// # Errors
    /// [`EncodeError`] if a field does not fit, or a property or reason code is not allowed in the packet.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        match self {
            Self::Connect(connect) => encode_connect(out, connect),
            Self::ConnAck(connack) => encode_connack(out, connack),
            Self::Publish(publish) => encode_publish(out, publish),
            Self::PubAck(ack) => encode_ack(out, 0x40, PacketType::PubAck, ack),
            Self::PubRec(ack) => encode_ack(out, 0x50, PacketType::PubRec, ack),
            Self::PubRel(ack) => encode_ack(out, 0x62, PacketType::PubRel, ack),
            Self::PubComp(ack) => encode_ack(out, 0x70, PacketType::PubComp, ack),
            Self::Subscribe(Subscribe {
                packet_id,
                properties,
                raw,
            }) => {
                put_request(
                    out,
                    0x82,
                    PacketType::Subscribe,
                    *packet_id,
                    *properties,
                    raw.len(),
                )?;
                out.extend_from_slice(raw);
                Ok(())
            }
            Self::Unsubscribe(Unsubscribe {
                packet_id,
                properties,
                raw,
            }) => {
                put_request(
                    out,
                    0xa2,
                    PacketType::Unsubscribe,
                    *packet_id,
                    *properties,
                    raw.len(),
                )?;
                out.extend_from_slice(raw);
                Ok(())
            }
            Self::SubAck(suback) => encode_suback(out, 0x90, PacketType::SubAck, suback),
            Self::UnsubAck(unsuback) => encode_suback(out, 0xb0, PacketType::UnsubAck, unsuback),
            Self::PingReq => put_header(out, 0xc0, 0),
            Self::PingResp => put_header(out, 0xd0, 0),
            Self::Disconnect(disconnect) => encode_reason(
                out,
                0xe0,
                PacketType::Disconnect,
                None,
                disconnect.reason,
                disconnect.properties,
            ),
            Self::Auth(auth) => {
                encode_reason(out, 0xf0, PacketType::Auth, None, auth.reason, auth.properties)
            }
        }
    }
}

fn encode_connect(out: &mut Vec<u8>, connect: &Connect<'_>) -> Result<(), EncodeError> {
    let mut remaining = 10 + connect.properties.check_len(Place::of(PacketType::Connect))?;
    remaining += check_string(connect.client_id)?;
    let mut flags = u8::from(connect.clean_start) << 1;
    if let Some(will) = &connect.will {
        remaining += will.properties.check_len(Place::WILL)?;
        remaining += check_topic(will.topic)? + check_binary(will.payload)?;
        flags |= 0b100 | (will.qos as u8) << 3 | u8::from(will.retain) << 5;
    }
    if let Some(username) = connect.username {
        remaining += check_string(username)?;
        flags |= 0b1000_0000;
    }
    if let Some(password) = connect.password {
        remaining += check_binary(password)?;
        flags |= 0b0100_0000;
    }
    put_header(out, 0x10, remaining)?;
    out.extend_from_slice(b"\x00\x04MQTT\x05");
    out.push(flags);
    out.extend_from_slice(&connect.keep_alive.to_be_bytes());
    connect.properties.write(out);
    put_binary(out, connect.client_id.as_bytes());
    if let Some(will) = &connect.will {
        will.properties.write(out);
        put_binary(out, will.topic.as_bytes());
        put_binary(out, will.payload);
    }
    if let Some(username) = connect.username {
        put_binary(out, username.as_bytes());
    }
    if let Some(password) = connect.password {
        put_binary(out, password);
    }
    Ok(())
}

fn encode_connack(out: &mut Vec<u8>, connack: &ConnAck<'_>) -> Result<(), EncodeError> {
    check_reason(connack.reason, PacketType::ConnAck)?;
    if connack.session_present && connack.reason != ReasonCode::SUCCESS {
        return Err(EncodeError::ReasonCode);
    }
    let properties = connack.properties.check_len(Place::of(PacketType::ConnAck))?;
    put_header(out, 0x20, 2 + properties)?;
    out.extend_from_slice(&[connack.session_present.into(), connack.reason.0]);
    connack.properties.write(out);
    Ok(())
}

fn encode_publish(out: &mut Vec<u8>, publish: &Publish<'_>) -> Result<(), EncodeError> {
    let has_id = publish.qos != QoS::AtMostOnce;
    if has_id != publish.packet_id.is_some() || (publish.dup && !has_id) {
        return Err(EncodeError::PacketId);
    }
    let properties = publish.properties.check_len(Place::of(PacketType::Publish))?;
    if publish.topic.is_empty() && !has_topic_alias(publish.properties) {
        return Err(EncodeError::EmptyTopic);
    }
    let topic = check_string(publish.topic)?;
    let first = 0x30 | u8::from(publish.dup) << 3 | (publish.qos as u8) << 1 | u8::from(publish.retain);
    put_header(
        out,
        first,
        topic + usize::from(has_id) * 2 + properties + publish.payload.len(),
    )?;
    put_binary(out, publish.topic.as_bytes());
    if let Some(id) = publish.packet_id {
        out.extend_from_slice(&id.get().to_be_bytes());
    }
    publish.properties.write(out);
    out.extend_from_slice(publish.payload);
    Ok(())
}

fn check_reason(reason: ReasonCode, packet_type: PacketType) -> Result<(), EncodeError> {
    if reason.is_allowed_in(packet_type) {
        Ok(())
    } else {
        Err(EncodeError::ReasonCode)
    }
}

fn encode_ack(
    out: &mut Vec<u8>,
    first: u8,
    packet_type: PacketType,
    ack: &Ack<'_>,
) -> Result<(), EncodeError> {
    encode_reason(
        out,
        first,
        packet_type,
        Some(ack.packet_id),
        ack.reason,
        ack.properties,
    )
}

/// Leaves reason and properties out when they say nothing (v5 3.4.2.1, 3.14.2.1, 3.15.2.1).
fn encode_reason(
    out: &mut Vec<u8>,
    first: u8,
    packet_type: PacketType,
    packet_id: Option<PacketId>,
    reason: ReasonCode,
    properties: Properties<'_>,
) -> Result<(), EncodeError> {
    check_reason(reason, packet_type)?;
    let details = if reason == ReasonCode::SUCCESS && properties.is_empty() {
        0
    } else {
        1 + properties.check_len(Place::of(packet_type))?
    };
    put_header(out, first, usize::from(packet_id.is_some()) * 2 + details)?;
    if let Some(id) = packet_id {
        out.extend_from_slice(&id.get().to_be_bytes());
    }
    if details > 0 {
        out.push(reason.0);
        properties.write(out);
    }
    Ok(())
}

/// Header, identifier and properties of a packet whose body goes on for `rest` bytes, which must not be 0.
fn put_request(
    out: &mut Vec<u8>,
    first: u8,
    packet_type: PacketType,
    packet_id: PacketId,
    properties: Properties<'_>,
    rest: usize,
) -> Result<(), EncodeError> {
    if rest == 0 {
        return Err(EncodeError::NoFilters);
    }
    put_header(
        out,
        first,
        2 + properties.check_len(Place::of(packet_type))? + rest,
    )?;
    out.extend_from_slice(&packet_id.get().to_be_bytes());
    properties.write(out);
    Ok(())
}

fn encode_suback(
    out: &mut Vec<u8>,
    first: u8,
    packet_type: PacketType,
    suback: &SubAck<'_>,
) -> Result<(), EncodeError> {
    suback
        .codes
        .are_allowed_in(packet_type)
        .map_err(|_| EncodeError::ReasonCode)?;
    put_request(
        out,
        first,
        packet_type,
        suback.packet_id,
        suback.properties,
        suback.codes.0.len(),
    )?;
    out.extend_from_slice(suback.codes.0);
    Ok(())
}

/// Appends SUBSCRIBE.
///
/// # Errors
/// No filter, one that does not fit, no-local on a shared subscription, a property not allowed here.
pub fn encode_subscribe(
    out: &mut Vec<u8>,
    packet_id: PacketId,
    properties: Properties<'_>,
    filters: &[(&str, SubscribeOptions)],
) -> Result<(), EncodeError> {
    let mut len = 0;
    for (filter, options) in filters {
        if options.no_local && filter.starts_with("$share/") {
            return Err(EncodeError::SharedNoLocal);
        }
        len += check_topic(filter)? + 1;
    }
    put_request(out, 0x82, PacketType::Subscribe, packet_id, properties, len)?;
    for (filter, options) in filters {
        put_binary(out, filter.as_bytes());
        out.push(options.to_u8());
    }
    Ok(())
}

/// Appends UNSUBSCRIBE.
///
/// # Errors
/// No filter, one that does not fit, a property not allowed here.
pub fn encode_unsubscribe(
    out: &mut Vec<u8>,
    packet_id: PacketId,
    properties: Properties<'_>,
    filters: &[&str],
) -> Result<(), EncodeError> {
    let mut len = 0;
    for filter in filters {
        len += check_topic(filter)?;
    }
    put_request(out, 0xa2, PacketType::Unsubscribe, packet_id, properties, len)?;
    for filter in filters {
        put_binary(out, filter.as_bytes());
    }
    Ok(())
}
