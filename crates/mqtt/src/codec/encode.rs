//! Packets to bytes. Every function appends to `out`; on error nothing was appended.

use super::packet::{
    ConnAck, Connect, ConnectCode, Packet, PacketId, Publish, QoS, SubAckCode, Subscribe, Unsubscribe,
};
use crate::cursor::{
    VARINT_MAX, check_binary, check_string, check_topic, put_binary, put_header, varint_len,
};
use crate::error::EncodeError;

impl Packet<'_> {
    /// Appends the packet.
    ///
    /// # Errors
    /// [`EncodeError`] if a field does not fit; cannot happen for a packet that was decoded, except
    /// [`Packet::UnsupportedConnect`].
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        match self {
            Self::Connect(connect) => encode_connect(out, connect)?,
            Self::UnsupportedConnect { .. } => return Err(EncodeError::UnsupportedLevel),
            Self::ConnAck(connack) => encode_connack(out, *connack),
            Self::Publish(publish) => encode_publish(out, publish)?,
            Self::PubAck(id) => encode_puback(out, *id),
            Self::PubRec(id) => put_id_packet(out, 0x50, *id),
            Self::PubRel(id) => put_id_packet(out, 0x62, *id),
            Self::PubComp(id) => put_id_packet(out, 0x70, *id),
            Self::Subscribe(Subscribe { packet_id, raw }) => put_id_and_raw(out, 0x82, *packet_id, raw)?,
            Self::SubAck(suback) => put_id_and_raw(out, 0x90, suback.packet_id, suback.raw)?,
            Self::Unsubscribe(Unsubscribe { packet_id, raw }) => put_id_and_raw(out, 0xa2, *packet_id, raw)?,
            Self::UnsubAck(id) => encode_unsuback(out, *id),
            Self::PingReq => encode_pingreq(out),
            Self::PingResp => encode_pingresp(out),
            Self::Disconnect => encode_disconnect(out),
        }
        Ok(())
    }

    /// Bytes that [`encode`](Self::encode) will append.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encoded_len(&self) -> Result<usize, EncodeError> {
        let remaining = match self {
            Self::Connect(connect) => connect_remaining(connect)?,
            Self::UnsupportedConnect { .. } => return Err(EncodeError::UnsupportedLevel),
            Self::Publish(publish) => return publish_len(publish),
            Self::Subscribe(Subscribe { raw, .. }) | Self::Unsubscribe(Unsubscribe { raw, .. }) => {
                2 + raw.len()
            }
            Self::SubAck(suback) => 2 + suback.raw.len(),
            Self::ConnAck(_)
            | Self::PubAck(_)
            | Self::PubRec(_)
            | Self::PubRel(_)
            | Self::PubComp(_)
            | Self::UnsubAck(_) => 2,
            Self::PingReq | Self::PingResp | Self::Disconnect => 0,
        };
        if remaining > VARINT_MAX {
            return Err(EncodeError::PacketTooLong);
        }
        Ok(1 + varint_len(remaining) + remaining)
    }
}

fn connect_remaining(connect: &Connect<'_>) -> Result<usize, EncodeError> {
    let mut remaining = 10 + check_string(connect.client_id)?;
    if let Some(will) = &connect.will {
        remaining += check_topic(will.topic)? + check_binary(will.payload)?;
    }
    if let Some(username) = connect.username {
        remaining += check_string(username)?;
    }
    if let Some(password) = connect.password {
        if connect.username.is_none() {
            return Err(EncodeError::PasswordWithoutUsername);
        }
        remaining += check_binary(password)?;
    }
    Ok(remaining)
}

/// Appends CONNECT of level 4.
///
/// # Errors
/// A field above 65,535 bytes or with U+0000, an empty will topic, a password without user name.
pub fn encode_connect(out: &mut Vec<u8>, connect: &Connect<'_>) -> Result<(), EncodeError> {
    let remaining = connect_remaining(connect)?;
    put_header(out, 0x10, remaining)?;
    let mut flags = u8::from(connect.clean_session) << 1;
    if let Some(will) = &connect.will {
        flags |= 0b100 | (will.qos as u8) << 3 | u8::from(will.retain) << 5;
    }
    flags |= u8::from(connect.password.is_some()) << 6 | u8::from(connect.username.is_some()) << 7;
    out.extend_from_slice(b"\x00\x04MQTT\x04");
    out.push(flags);
    out.extend_from_slice(&connect.keep_alive.to_be_bytes());
    put_binary(out, connect.client_id.as_bytes());
    if let Some(will) = &connect.will {
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

/// Appends CONNACK. Session present is left out of a refusal (MQTT-3.2.2-4).
pub fn encode_connack(out: &mut Vec<u8>, connack: ConnAck) {
    let present = connack.session_present && connack.code == ConnectCode::Accepted;
    out.extend_from_slice(&[0x20, 2, u8::from(present), connack.code as u8]);
}

/// Appends the refusal for a CONNECT of another level, in the form its sender can read: level 5 gets an MQTT 5 CONNACK with
/// reason 0x84 (unsupported protocol version) and no properties, every other level gets return code 1 (MQTT-3.1.2-2).
pub fn encode_unsupported_level(out: &mut Vec<u8>, level: u8) {
    if level == 5 {
        out.extend_from_slice(&[0x20, 3, 0, 0x84, 0]);
    } else {
        let code = ConnectCode::UnacceptableProtocolVersion;
        encode_connack(
            out,
            ConnAck {
                session_present: false,
                code,
            },
        );
    }
}

#[inline]
fn publish_remaining(publish: &Publish<'_>, payload_len: usize) -> Result<usize, EncodeError> {
    let has_id = publish.qos != QoS::AtMostOnce;
    if has_id != publish.packet_id.is_some() || (publish.dup && !has_id) {
        return Err(EncodeError::PacketId);
    }
    let remaining = check_topic(publish.topic)? + usize::from(has_id) * 2 + payload_len;
    if remaining > VARINT_MAX {
        Err(EncodeError::PacketTooLong)
    } else {
        Ok(remaining)
    }
}

/// Bytes that [`encode_publish`] will append.
///
/// # Errors
/// As [`encode_publish`].
pub fn publish_len(publish: &Publish<'_>) -> Result<usize, EncodeError> {
    let remaining = publish_remaining(publish, publish.payload.len())?;
    Ok(1 + varint_len(remaining) + remaining)
}

/// Appends PUBLISH.
///
/// # Errors
/// Empty or over-long topic, U+0000 in it, packet identifier that does not fit the QoS, packet above the protocol's size.
#[inline]
pub fn encode_publish(out: &mut Vec<u8>, publish: &Publish<'_>) -> Result<(), EncodeError> {
    encode_publish_header(out, publish, publish.payload.len())?;
    out.extend_from_slice(publish.payload);
    Ok(())
}

/// Appends PUBLISH up to its payload, for callers that append exactly `payload_len` bytes themselves (room for them is
/// reserved). `publish.payload` is ignored.
///
/// # Errors
/// As [`encode_publish`].
#[inline]
pub fn encode_publish_header(
    out: &mut Vec<u8>,
    publish: &Publish<'_>,
    payload_len: usize,
) -> Result<(), EncodeError> {
    let remaining = publish_remaining(publish, payload_len)?;
    let first = 0x30 | u8::from(publish.dup) << 3 | (publish.qos as u8) << 1 | u8::from(publish.retain);
    put_header(out, first, remaining)?;
    put_binary(out, publish.topic.as_bytes());
    if let Some(id) = publish.packet_id {
        out.extend_from_slice(&id.get().to_be_bytes());
    }
    Ok(())
}

#[inline]
fn put_id_packet(out: &mut Vec<u8>, first: u8, id: PacketId) {
    let [high, low] = id.get().to_be_bytes();
    out.extend_from_slice(&[first, 2, high, low]);
}

fn put_id_and_raw(out: &mut Vec<u8>, first: u8, id: PacketId, raw: &[u8]) -> Result<(), EncodeError> {
    put_header(out, first, 2 + raw.len())?;
    out.extend_from_slice(&id.get().to_be_bytes());
    out.extend_from_slice(raw);
    Ok(())
}

/// Appends PUBACK: four bytes.
#[inline]
pub fn encode_puback(out: &mut Vec<u8>, id: PacketId) {
    put_id_packet(out, 0x40, id);
}

/// Appends SUBSCRIBE.
///
/// # Errors
/// No filter, an empty or over-long one, U+0000 in one.
pub fn encode_subscribe(out: &mut Vec<u8>, id: PacketId, filters: &[(&str, QoS)]) -> Result<(), EncodeError> {
    if filters.is_empty() {
        return Err(EncodeError::NoFilters);
    }
    let mut remaining = 2;
    for (filter, _) in filters {
        remaining += check_topic(filter)? + 1;
    }
    put_header(out, 0x82, remaining)?;
    out.extend_from_slice(&id.get().to_be_bytes());
    for (filter, qos) in filters {
        put_binary(out, filter.as_bytes());
        out.push(*qos as u8);
    }
    Ok(())
}

/// Appends SUBACK: one code per filter, in the order of the SUBSCRIBE (MQTT-3.8.4-5).
///
/// # Errors
/// No code.
pub fn encode_suback(out: &mut Vec<u8>, id: PacketId, codes: &[SubAckCode]) -> Result<(), EncodeError> {
    if codes.is_empty() {
        return Err(EncodeError::NoFilters);
    }
    put_header(out, 0x90, 2 + codes.len())?;
    out.extend_from_slice(&id.get().to_be_bytes());
    out.extend(codes.iter().map(|&code| code as u8));
    Ok(())
}

/// Appends UNSUBSCRIBE.
///
/// # Errors
/// No filter, an empty or over-long one, U+0000 in one.
pub fn encode_unsubscribe(out: &mut Vec<u8>, id: PacketId, filters: &[&str]) -> Result<(), EncodeError> {
    if filters.is_empty() {
        return Err(EncodeError::NoFilters);
    }
    let mut remaining = 2;
    for filter in filters {
        remaining += check_topic(filter)?;
    }
    put_header(out, 0xa2, remaining)?;
    out.extend_from_slice(&id.get().to_be_bytes());
    for filter in filters {
        put_binary(out, filter.as_bytes());
    }
    Ok(())
}

/// Appends UNSUBACK.
pub fn encode_unsuback(out: &mut Vec<u8>, id: PacketId) {
    put_id_packet(out, 0xb0, id);
}

/// Appends PINGREQ.
pub fn encode_pingreq(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xc0, 0]);
}

/// Appends PINGRESP.
pub fn encode_pingresp(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xd0, 0]);
}

/// Appends DISCONNECT.
pub fn encode_disconnect(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xe0, 0]);
}
