//! Bytes to packets.

use super::packet::{
    ConnAck, Connect, ConnectCode, Packet, PacketType, Publish, QoS, SubAck, SubAckCode, Subscribe,
    Unsubscribe, Will,
};
use crate::cursor::{Cursor, peek_varint};
use crate::error::DecodeError;

/// Decodes the packet at the front of `buf`.
///
/// `Ok(None)` means that more bytes are needed; otherwise the packet and the number of bytes it took. `max_packet` bounds
/// the whole packet, fixed header included; a larger one is refused as soon as its fixed header is there.
///
/// # Errors
/// See [`DecodeError`]. The stream cannot be read on after an error.
#[inline]
pub fn decode(buf: &[u8], max_packet: usize) -> Result<Option<(Packet<'_>, usize)>, DecodeError> {
    let Some(header) = fixed_header::<false>(buf, max_packet)? else {
        return Ok(None);
    };
    let Some(body) = buf.get(header.len..header.total) else {
        return Ok(None);
    };
    let packet = match header.packet_type {
        PacketType::Publish => Packet::Publish(decode_publish(header.flags, body)?),
        packet_type => decode_other(packet_type, body)?,
    };
    Ok(Some((packet, header.total)))
}

/// Size in bytes of the packet at the front of `buf`, as soon as its fixed header is there: what to size a buffer by.
///
/// # Errors
/// Those that the fixed header shows: reserved type or flags, malformed length, size above `max_packet`.
#[inline]
pub fn packet_len(buf: &[u8], max_packet: usize) -> Result<Option<usize>, DecodeError> {
    Ok(fixed_header::<false>(buf, max_packet)?.map(|header| header.total))
}

/// A checked fixed header (2.2).
pub(crate) struct FixedHeader {
    pub(crate) packet_type: PacketType,
    pub(crate) flags: u8,
    /// Bytes of the fixed header itself.
    pub(crate) len: usize,
    /// Bytes of the whole packet.
    pub(crate) total: usize,
}

/// Reads the fixed header. The first byte is judged even when the length is not there yet.
#[inline]
pub(crate) fn fixed_header<const V5: bool>(
    buf: &[u8],
    max_packet: usize,
) -> Result<Option<FixedHeader>, DecodeError> {
    let Some((&first, rest)) = buf.split_first() else {
        return Ok(None);
    };
    let flags = first & 0x0f;
    let packet_type = match PacketType::from_u8(first >> 4) {
        None => return Err(DecodeError::PacketType(first >> 4)),
        Some(PacketType::Auth) if !V5 => return Err(DecodeError::PacketType(15)),
        Some(packet_type) => packet_type,
    };
    check_flags(packet_type, flags)?;
    let Some((remaining, varint)) = peek_varint(rest)? else {
        return Ok(None);
    };
    if V5 && varint != crate::cursor::varint_len(remaining) {
        return Err(DecodeError::RemainingLength);
    }
    let len = 1 + varint;
    let total = len + remaining;
    if total > max_packet {
        return Err(DecodeError::TooLarge {
            size: total,
            limit: max_packet,
        });
    }
    Ok(Some(FixedHeader {
        packet_type,
        flags,
        len,
        total,
    }))
}

/// Table 2.2.
#[inline]
fn check_flags(packet_type: PacketType, flags: u8) -> Result<(), DecodeError> {
    let expected = match packet_type {
        PacketType::Publish => {
            return match flags & 0b0110 {
                0b0110 => Err(DecodeError::Qos),
                0 if flags & 0b1000 != 0 => Err(DecodeError::DupAtQosZero),
                _ => Ok(()),
            };
        }
        PacketType::PubRel | PacketType::Subscribe | PacketType::Unsubscribe => 0b0010,
        _ => 0,
    };
    if flags == expected {
        Ok(())
    } else {
        Err(DecodeError::HeaderFlags { packet_type, flags })
    }
}

#[inline]
fn decode_publish(flags: u8, body: &[u8]) -> Result<Publish<'_>, DecodeError> {
    let mut cursor = Cursor::new(body);
    let topic = cursor.topic()?;
    let qos = QoS::from_u8((flags >> 1) & 0b11)?;
    let packet_id = if qos == QoS::AtMostOnce {
        None
    } else {
        Some(cursor.packet_id()?)
    };
    Ok(Publish {
        dup: flags & 0b1000 != 0,
        qos,
        retain: flags & 0b0001 != 0,
        topic,
        packet_id,
        payload: cursor.rest(),
    })
}

/// Everything but PUBLISH; kept out of line so that the hot path stays small.
#[inline(never)]
fn decode_other(packet_type: PacketType, body: &[u8]) -> Result<Packet<'_>, DecodeError> {
    let mut cursor = Cursor::new(body);
    let packet = match packet_type {
        PacketType::PubAck => Packet::PubAck(cursor.packet_id()?),
        PacketType::PubRec => Packet::PubRec(cursor.packet_id()?),
        PacketType::PubRel => Packet::PubRel(cursor.packet_id()?),
        PacketType::PubComp => Packet::PubComp(cursor.packet_id()?),
        PacketType::UnsubAck => Packet::UnsubAck(cursor.packet_id()?),
        PacketType::PingReq => Packet::PingReq,
        PacketType::PingResp => Packet::PingResp,
        PacketType::Disconnect => Packet::Disconnect,
        PacketType::Connect => return decode_connect(body),
        PacketType::ConnAck => Packet::ConnAck(decode_connack(&mut cursor)?),
        PacketType::Subscribe => return decode_subscribe(body),
        PacketType::SubAck => return decode_suback(body),
        PacketType::Unsubscribe => return decode_unsubscribe(body),
        // Publish goes its own way and Auth never passes the fixed header; refuse rather than panic.
        PacketType::Publish | PacketType::Auth => return Err(DecodeError::PacketType(packet_type as u8)),
    };
    cursor.finish()?;
    Ok(packet)
}

fn decode_connect(body: &[u8]) -> Result<Packet<'_>, DecodeError> {
    let mut cursor = Cursor::new(body);
    let name = cursor.binary()?;
    let level = cursor.u8()?;
    match (name, level) {
        (b"MQTT", 4) => {}
        (b"MQTT", level) => return Ok(Packet::UnsupportedConnect { level }),
        (b"MQIsdp", _) => return Ok(Packet::UnsupportedConnect { level: 3 }),
        _ => return Err(DecodeError::ProtocolName),
    }
    let flags = cursor.u8()?;
    let keep_alive = cursor.u16()?;
    if flags & 0b0000_0001 != 0 {
        return Err(DecodeError::ReservedConnectFlag);
    }
    let has_will = flags & 0b0000_0100 != 0;
    if !has_will && flags & 0b0011_1000 != 0 {
        return Err(DecodeError::WillFlags);
    }
    let will_qos = QoS::from_u8((flags >> 3) & 0b11)?;
    let has_username = flags & 0b1000_0000 != 0;
    let has_password = flags & 0b0100_0000 != 0;
    if has_password && !has_username {
        return Err(DecodeError::PasswordWithoutUsername);
    }
    let client_id = cursor.string()?;
    let will = if has_will {
        Some(Will {
            topic: cursor.topic()?,
            payload: cursor.binary()?,
            qos: will_qos,
            retain: flags & 0b0010_0000 != 0,
        })
    } else {
        None
    };
    let username = if has_username {
        Some(cursor.string()?)
    } else {
        None
    };
    let password = if has_password {
        Some(cursor.binary()?)
    } else {
        None
    };
    cursor.finish()?;
    let clean_session = flags & 0b0000_0010 != 0;
    Ok(Packet::Connect(Connect {
        client_id,
        clean_session,
        keep_alive,
        will,
        username,
        password,
    }))
}

fn decode_connack(cursor: &mut Cursor<'_>) -> Result<ConnAck, DecodeError> {
    let flags = cursor.u8()?;
    let code = ConnectCode::from_u8(cursor.u8()?)?;
    if flags > 1 || (flags == 1 && code != ConnectCode::Accepted) {
        return Err(DecodeError::ConnAckFlags);
    }
    Ok(ConnAck {
        session_present: flags == 1,
        code,
    })
}

fn decode_subscribe(body: &[u8]) -> Result<Packet<'_>, DecodeError> {
    let mut cursor = Cursor::new(body);
    let packet_id = cursor.packet_id()?;
    let raw = cursor.rest();
    if raw.is_empty() {
        return Err(DecodeError::NoFilters);
    }
    while !cursor.is_empty() {
        cursor.topic()?;
        let options = cursor.u8()?;
        if options & 0b1111_1100 != 0 {
            return Err(DecodeError::SubscribeOptions(options));
        }
        QoS::from_u8(options)?;
    }
    Ok(Packet::Subscribe(Subscribe { packet_id, raw }))
}

fn decode_suback(body: &[u8]) -> Result<Packet<'_>, DecodeError> {
    let mut cursor = Cursor::new(body);
    let packet_id = cursor.packet_id()?;
    let raw = cursor.rest();
    if raw.is_empty() {
        return Err(DecodeError::NoFilters);
    }
    for &code in raw {
        SubAckCode::from_u8(code)?;
    }
    Ok(Packet::SubAck(SubAck { packet_id, raw }))
}

fn decode_unsubscribe(body: &[u8]) -> Result<Packet<'_>, DecodeError> {
    let mut cursor = Cursor::new(body);
    let packet_id = cursor.packet_id()?;
    let raw = cursor.rest();
    if raw.is_empty() {
        return Err(DecodeError::NoFilters);
    }
    while !cursor.is_empty() {
        cursor.topic()?;
    }
    Ok(Packet::Unsubscribe(Unsubscribe { packet_id, raw }))
}
