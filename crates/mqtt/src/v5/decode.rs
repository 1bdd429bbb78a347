//! Bytes to packets.

use super::packet::{
    Ack, Auth, Codes, ConnAck, Connect, Disconnect, Packet, Publish, ReasonCode, SubAck, Subscribe,
    SubscribeOptions, Unsubscribe, Will,
};
use super::property::{Place, Properties, Property};
use crate::codec::{PacketType, QoS, fixed_header};
use crate::cursor::Cursor;
use crate::error::DecodeError;

/// Decodes the packet at the front of `buf`; as [`codec::decode`](crate::codec::decode).
///
/// # Errors
/// See [`DecodeError`]; a CONNECT of another level gives [`DecodeError::ProtocolLevel`].
pub fn decode(buf: &[u8], max_packet: usize) -> Result<Option<(Packet<'_>, usize)>, DecodeError> {
    let Some(header) = fixed_header::<true>(buf, max_packet)? else {
        return Ok(None);
    };
    let Some(body) = buf.get(header.len..header.total) else {
        return Ok(None);
    };
    let mut cursor = Cursor::new(body);
    let packet = match header.packet_type {
        PacketType::Publish => Packet::Publish(decode_publish(header.flags, cursor)?),
        packet_type => {
            let packet = decode_body(packet_type, &mut cursor)?;
            cursor.finish()?;
            packet
        }
    };
    Ok(Some((packet, header.total)))
}

fn decode_body<'a>(packet_type: PacketType, cursor: &mut Cursor<'a>) -> Result<Packet<'a>, DecodeError> {
    Ok(match packet_type {
        PacketType::Connect => Packet::Connect(decode_connect(cursor)?),
        PacketType::ConnAck => Packet::ConnAck(decode_connack(cursor)?),
        PacketType::PubAck => Packet::PubAck(decode_ack(packet_type, cursor)?),
        PacketType::PubRec => Packet::PubRec(decode_ack(packet_type, cursor)?),
        PacketType::PubRel => Packet::PubRel(decode_ack(packet_type, cursor)?),
        PacketType::PubComp => Packet::PubComp(decode_ack(packet_type, cursor)?),
        PacketType::Subscribe => Packet::Subscribe(decode_subscribe(cursor)?),
        PacketType::SubAck => Packet::SubAck(decode_suback(packet_type, cursor)?),
        PacketType::Unsubscribe => Packet::Unsubscribe(decode_unsubscribe(cursor)?),
        PacketType::UnsubAck => Packet::UnsubAck(decode_suback(packet_type, cursor)?),
        PacketType::PingReq => Packet::PingReq,
        PacketType::PingResp => Packet::PingResp,
        PacketType::Disconnect => {
            let (reason, properties) = decode_reason(packet_type, cursor)?;
            Packet::Disconnect(Disconnect { reason, properties })
        }
        PacketType::Auth => {
            let (reason, properties) = decode_reason(packet_type, cursor)?;
            Packet::Auth(Auth { reason, properties })
        }
        // Publish goes its own way; refuse rather than panic.
        PacketType::Publish => return Err(DecodeError::PacketType(packet_type as u8)),
    })
}

fn decode_publish(flags: u8, mut cursor: Cursor<'_>) -> Result<Publish<'_>, DecodeError> {
    let topic = cursor.string()?;
    let qos = QoS::from_u8((flags >> 1) & 0b11)?;
    let packet_id = if qos == QoS::AtMostOnce {
        None
    } else {
        Some(cursor.packet_id()?)
    };
    let properties = Properties::read(&mut cursor, Place::of(PacketType::Publish))?;
    if topic.is_empty() && !has_topic_alias(properties) {
        return Err(DecodeError::EmptyTopic);
    }
    Ok(Publish {
        dup: flags & 0b1000 != 0,
        qos,
        retain: flags & 0b0001 != 0,
        topic,
        packet_id,
        properties,
        payload: cursor.rest(),
    })
}

pub(super) fn has_topic_alias(properties: Properties<'_>) -> bool {
    properties
        .iter()
        .any(|property| matches!(property, Property::TopicAlias(_)))
}

fn decode_connect<'a>(cursor: &mut Cursor<'a>) -> Result<Connect<'a>, DecodeError> {
    if cursor.binary()? != b"MQTT" {
        return Err(DecodeError::ProtocolName);
    }
    let level = cursor.u8()?;
    if level != 5 {
        return Err(DecodeError::ProtocolLevel(level));
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
    let properties = Properties::read(cursor, Place::of(PacketType::Connect))?;
    let client_id = cursor.string()?;
    let will = if has_will {
        let properties = Properties::read(cursor, Place::WILL)?;
        Some(Will {
            topic: cursor.topic()?,
            payload: cursor.binary()?,
            qos: will_qos,
            retain: flags & 0b0010_0000 != 0,
            properties,
        })
    } else {
        None
    };
    let username = if flags & 0b1000_0000 != 0 {
        Some(cursor.string()?)
    } else {
        None
    };
    let password = if flags & 0b0100_0000 != 0 {
        Some(cursor.binary()?)
    } else {
        None
    };
    let clean_start = flags & 0b0000_0010 != 0;
    Ok(Connect {
        client_id,
        clean_start,
        keep_alive,
        properties,
        will,
        username,
        password,
    })
}

fn decode_connack<'a>(cursor: &mut Cursor<'a>) -> Result<ConnAck<'a>, DecodeError> {
    let flags = cursor.u8()?;
    let reason = ReasonCode::read(cursor, PacketType::ConnAck)?;
    if flags > 1 || (flags == 1 && reason != ReasonCode::SUCCESS) {
        return Err(DecodeError::ConnAckFlags);
    }
    let properties = Properties::read(cursor, Place::of(PacketType::ConnAck))?;
    Ok(ConnAck {
        session_present: flags == 1,
        reason,
        properties,
    })
}

fn decode_ack<'a>(packet_type: PacketType, cursor: &mut Cursor<'a>) -> Result<Ack<'a>, DecodeError> {
    let packet_id = cursor.packet_id()?;
    let (reason, properties) = decode_reason(packet_type, cursor)?;
    Ok(Ack {
        packet_id,
        reason,
        properties,
    })
}

/// Reason and properties, either of which may be left out at the end of a packet (v5 3.4.2.1, 3.14.2.1).
fn decode_reason<'a>(
    packet_type: PacketType,
    cursor: &mut Cursor<'a>,
) -> Result<(ReasonCode, Properties<'a>), DecodeError> {
    if cursor.is_empty() {
        return Ok((ReasonCode::SUCCESS, Properties::default()));
    }
    let reason = ReasonCode::read(cursor, packet_type)?;
    if cursor.is_empty() {
        return Ok((reason, Properties::default()));
    }
    Ok((reason, Properties::read(cursor, Place::of(packet_type))?))
}

fn decode_subscribe<'a>(cursor: &mut Cursor<'a>) -> Result<Subscribe<'a>, DecodeError> {
    let packet_id = cursor.packet_id()?;
    let properties = Properties::read(cursor, Place::of(PacketType::Subscribe))?;
    let raw = cursor.rest();
    if raw.is_empty() {
        return Err(DecodeError::NoFilters);
    }
    while !cursor.is_empty() {
        let filter = cursor.topic()?;
        let byte = cursor.u8()?;
        let options = SubscribeOptions::from_u8(byte)?;
        if options.no_local && filter.starts_with("$share/") {
            return Err(DecodeError::SubscribeOptions(byte));
        }
    }
    Ok(Subscribe {
        packet_id,
        properties,
        raw,
    })
}

fn decode_unsubscribe<'a>(cursor: &mut Cursor<'a>) -> Result<Unsubscribe<'a>, DecodeError> {
    let packet_id = cursor.packet_id()?;
    let properties = Properties::read(cursor, Place::of(PacketType::Unsubscribe))?;
    let raw = cursor.rest();
    if raw.is_empty() {
        return Err(DecodeError::NoFilters);
    }
    while !cursor.is_empty() {
        cursor.topic()?;
    }
    Ok(Unsubscribe {
        packet_id,
        properties,
        raw,
    })
}

fn decode_suback<'a>(packet_type: PacketType, cursor: &mut Cursor<'a>) -> Result<SubAck<'a>, DecodeError> {
    let packet_id = cursor.packet_id()?;
    let properties = Properties::read(cursor, Place::of(packet_type))?;
    let codes = Codes(cursor.take(cursor.rest().len())?);
    if codes.0.is_empty() {
        return Err(DecodeError::NoFilters);
    }
    codes
        .are_allowed_in(packet_type)
        .map_err(|code| DecodeError::ReturnCode(code.0))?;
    Ok(SubAck {
        packet_id,
        properties,
        codes,
    })
}
