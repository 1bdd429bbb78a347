//! One test per rule; whole conversations are in `tests/wire/mqtt-*.json`, laws in `tests/properties.rs`.

use super::*;
use crate::error::{DecodeError, EncodeError};

const LIMIT: usize = 1024;

fn check_error(bytes: &[u8], expected: DecodeError) {
    assert_eq!(decode(bytes, LIMIT), Err(expected), "{bytes:02x?}");
}

/// The packet decodes whole, is written back byte for byte, and every shorter prefix asks for more.
fn check_packet<'a>(bytes: &'a [u8]) -> Packet<'a> {
    let (packet, used) = decode(bytes, LIMIT).expect("valid").expect("complete");
    assert_eq!(used, bytes.len());
    let mut out = Vec::new();
    packet.encode(&mut out).expect("encodes");
    assert_eq!(out, bytes);
    assert_eq!(packet.encoded_len(), Ok(bytes.len()));
    for end in 0..bytes.len() {
        assert_eq!(decode(&bytes[..end], LIMIT), Ok(None), "prefix of {end}");
    }
    packet
}

fn id(id: u16) -> PacketId {
    PacketId::new(id).expect("not zero")
}

#[test]
fn simple_packets() {
    assert_eq!(check_packet(b"\xc0\x00"), Packet::PingReq);
    assert_eq!(check_packet(b"\xd0\x00"), Packet::PingResp);
    assert_eq!(check_packet(b"\xe0\x00"), Packet::Disconnect);
    assert_eq!(check_packet(b"\x40\x02\x01\x02"), Packet::PubAck(id(0x102)));
    assert_eq!(check_packet(b"\x50\x02\x00\x01"), Packet::PubRec(id(1)));
    assert_eq!(check_packet(b"\x62\x02\x00\x01"), Packet::PubRel(id(1)));
    assert_eq!(check_packet(b"\x70\x02\x00\x01"), Packet::PubComp(id(1)));
    assert_eq!(check_packet(b"\xb0\x02\xff\xff"), Packet::UnsubAck(id(65_535)));
}

#[test]
fn connect_with_everything() {
    let bytes = b"\x10\x1c\x00\x04MQTT\x04\xee\x00\x3c\x00\x01c\x00\x01t\x00\x02\x00w\x00\x02us\x00\x02p\x00";
    let Packet::Connect(connect) = check_packet(bytes) else {
        panic!("not a connect")
    };
    let will = Will {
        topic: "t",
        payload: b"\x00w",
        qos: QoS::AtLeastOnce,
        retain: true,
    };
    assert_eq!(
        connect,
        Connect {
            client_id: "c",
            clean_session: true,
            keep_alive: 60,
            will: Some(will),
            username: Some("us"),
            password: Some(b"p\x00"),
        }
    );
    assert!(
        !format!("{connect:?}").contains("112"),
        "the password must not be printed"
    );
}

#[test]
fn connect_rules() {
    let name = |name: &[u8], level: u8| {
        let mut bytes = vec![0x10, (name.len() + 9) as u8, 0, name.len() as u8];
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(&[level, 0, 0, 0, 0, 0, 0]);
        bytes
    };
    assert_eq!(
        decode(&name(b"MQTT", 5), LIMIT)
            .expect("readable")
            .expect("complete")
            .0,
        Packet::UnsupportedConnect { level: 5 }
    );
    assert_eq!(
        decode(&name(b"MQIsdp", 3), LIMIT)
            .expect("readable")
            .expect("complete")
            .0,
        Packet::UnsupportedConnect { level: 3 }
    );
    check_error(&name(b"HTTP", 4), DecodeError::ProtocolName);
    check_error(
        b"\x10\x0c\x00\x04MQTT\x04\x01\x00\x00\x00\x00",
        DecodeError::ReservedConnectFlag,
    );
    check_error(
        b"\x10\x0c\x00\x04MQTT\x04\x20\x00\x00\x00\x00",
        DecodeError::WillFlags,
    );
    check_error(
        b"\x10\x0c\x00\x04MQTT\x04\x08\x00\x00\x00\x00",
        DecodeError::WillFlags,
    );
    check_error(b"\x10\x0c\x00\x04MQTT\x04\x1c\x00\x00\x00\x00", DecodeError::Qos);
    check_error(
        b"\x10\x0e\x00\x04MQTT\x04\x40\x00\x00\x00\x00\x00\x00",
        DecodeError::PasswordWithoutUsername,
    );
    check_error(
        b"\x10\x0c\x00\x04MQTT\x04\x80\x00\x00\x00\x00",
        DecodeError::Truncated,
    );
    check_error(
        b"\x10\x0d\x00\x04MQTT\x04\x00\x00\x00\x00\x00x",
        DecodeError::TrailingBytes,
    );
    check_error(
        b"\x10\x10\x00\x04MQTT\x04\x04\x00\x00\x00\x00\x00\x00\x00\x00",
        DecodeError::EmptyTopic,
    );
}

#[test]
fn publish_forms() {
    let Packet::Publish(publish) = check_packet(b"\x3b\x06\x00\x01t\x00\x07p") else {
        panic!("not a publish")
    };
    assert!(publish.dup && publish.retain);
    assert_eq!((publish.qos, publish.packet_id), (QoS::AtLeastOnce, Some(id(7))));
    assert_eq!((publish.topic, publish.payload), ("t", &b"p"[..]));
    check_packet(b"\x30\x03\x00\x01t");
    check_packet(b"\x34\x05\x00\x01t\x00\x01");
}

#[test]
fn publish_rules() {
    check_error(b"\x36", DecodeError::Qos);
    check_error(b"\x38", DecodeError::DupAtQosZero);
    check_error(b"\x32\x05\x00\x01t\x00\x00", DecodeError::PacketIdZero);
    check_error(b"\x30\x02\x00\x00", DecodeError::EmptyTopic);
    check_error(b"\x30\x03\x00\x01\xff", DecodeError::Utf8);
    check_error(b"\x30\x05\x00\x03\xed\xa0\x80", DecodeError::Utf8);
    check_error(b"\x30\x05\x00\x03a\x00b", DecodeError::NullCharacter);
    check_error(b"\x30\x03\x00\x02t", DecodeError::Truncated);
    check_error(b"\x32\x04\x00\x01t\x00", DecodeError::Truncated);
    check_error(b"\x30\x00", DecodeError::Truncated);
}

#[test]
fn fixed_header_rules() {
    check_error(b"\x00", DecodeError::PacketType(0));
    check_error(b"\xf0", DecodeError::PacketType(15));
    check_error(
        b"\x80",
        DecodeError::HeaderFlags {
            packet_type: PacketType::Subscribe,
            flags: 0,
        },
    );
    check_error(
        b"\xa0",
        DecodeError::HeaderFlags {
            packet_type: PacketType::Unsubscribe,
            flags: 0,
        },
    );
    check_error(
        b"\x60",
        DecodeError::HeaderFlags {
            packet_type: PacketType::PubRel,
            flags: 0,
        },
    );
    check_error(
        b"\xc1",
        DecodeError::HeaderFlags {
            packet_type: PacketType::PingReq,
            flags: 1,
        },
    );
    check_error(b"\x30\x80\x80\x80\x80", DecodeError::RemainingLength);
    check_error(b"\xc0\x01\x00", DecodeError::TrailingBytes);
    check_error(b"\x40\x03\x00\x01\x00", DecodeError::TrailingBytes);
    check_error(b"\x40\x02\x00\x00", DecodeError::PacketIdZero);
}

/// The limit holds for the whole packet and is judged before the body is there.
#[test]
fn too_large_is_refused_from_the_header() {
    let too_large = DecodeError::TooLarge {
        size: 1 + 2 + 1022,
        limit: 1024,
    };
    check_error(b"\x30\xfe\x07", too_large);
    assert_eq!(decode(b"\x30\xfd\x07", LIMIT), Ok(None));
    assert_eq!(packet_len(b"\x30\xfd\x07", LIMIT), Ok(Some(1024)));
    assert_eq!(packet_len(b"\x30\xfd", LIMIT), Ok(None));
    let size = 5 + 268_435_455;
    check_error(
        b"\x30\xff\xff\xff\x7f",
        DecodeError::TooLarge { size, limit: LIMIT },
    );
}

/// 3.1.1 does not ask for the shortest form of the remaining length; MQTT 5 does (v5 MQTT-1.5.5-1).
#[test]
fn longer_remaining_length_is_read() {
    assert_eq!(decode(b"\xc0\x80\x00", LIMIT), Ok(Some((Packet::PingReq, 3))));
    assert_eq!(
        crate::v5::decode(b"\xc0\x80\x00", LIMIT),
        Err(DecodeError::RemainingLength)
    );
}

#[test]
fn subscribe_forms_and_rules() {
    let Packet::Subscribe(subscribe) = check_packet(b"\x82\x0b\x00\x01\x00\x01a\x01\x00\x02b#\x02") else {
        panic!("not a subscribe")
    };
    let filters: Vec<_> = subscribe.filters().collect();
    assert_eq!(filters, [("a", QoS::AtLeastOnce), ("b#", QoS::ExactlyOnce)]);
    check_error(b"\x82\x02\x00\x01", DecodeError::NoFilters);
    check_error(b"\x82\x06\x00\x00\x00\x01a\x01", DecodeError::PacketIdZero);
    check_error(b"\x82\x06\x00\x01\x00\x01a\x03", DecodeError::Qos);
    check_error(
        b"\x82\x06\x00\x01\x00\x01a\x81",
        DecodeError::SubscribeOptions(0x81),
    );
    check_error(b"\x82\x05\x00\x01\x00\x00\x01", DecodeError::EmptyTopic);
    check_error(b"\x82\x05\x00\x01\x00\x01a", DecodeError::Truncated);
    check_error(b"\x82\x08\x00\x01\x00\x01a\x00\x00\x09", DecodeError::Truncated);
}

#[test]
fn unsubscribe_and_acknowledgements() {
    let Packet::Unsubscribe(unsubscribe) = check_packet(b"\xa2\x08\x00\x01\x00\x01a\x00\x01b") else {
        panic!("not an unsubscribe")
    };
    assert_eq!(unsubscribe.filters().collect::<Vec<_>>(), ["a", "b"]);
    check_error(b"\xa2\x02\x00\x01", DecodeError::NoFilters);
    let Packet::SubAck(suback) = check_packet(b"\x90\x05\x00\x01\x00\x01\x80") else {
        panic!("not a suback")
    };
    let codes = [
        SubAckCode::GrantedAtMostOnce,
        SubAckCode::GrantedAtLeastOnce,
        SubAckCode::Failure,
    ];
    assert_eq!(suback.codes().collect::<Vec<_>>(), codes);
    check_error(b"\x90\x02\x00\x01", DecodeError::NoFilters);
    check_error(b"\x90\x03\x00\x01\x03", DecodeError::ReturnCode(3));
}

#[test]
fn connack_rules() {
    let connack = ConnAck {
        session_present: true,
        code: ConnectCode::Accepted,
    };
    assert_eq!(check_packet(b"\x20\x02\x01\x00"), Packet::ConnAck(connack));
    check_error(b"\x20\x02\x02\x00", DecodeError::ConnAckFlags);
    check_error(b"\x20\x02\x01\x05", DecodeError::ConnAckFlags);
    check_error(b"\x20\x02\x00\x06", DecodeError::ReturnCode(6));
    let mut out = Vec::new();
    encode_connack(
        &mut out,
        ConnAck {
            session_present: true,
            code: ConnectCode::NotAuthorized,
        },
    );
    assert_eq!(
        out, b"\x20\x02\x00\x05",
        "a refusal never carries session present"
    );
}

#[test]
fn refusals_speak_the_clients_level() {
    let mut out = Vec::new();
    encode_unsupported_level(&mut out, 3);
    assert_eq!(out, b"\x20\x02\x00\x01");
    out.clear();
    encode_unsupported_level(&mut out, 5);
    let (packet, _) = crate::v5::decode(&out, LIMIT).expect("valid").expect("complete");
    let crate::v5::Packet::ConnAck(connack) = packet else {
        panic!("not a connack")
    };
    assert_eq!(
        connack.reason,
        crate::v5::ReasonCode::UNSUPPORTED_PROTOCOL_VERSION
    );
}

/// Nothing is written when a packet cannot be.
#[test]
fn encode_rules() {
    let mut out = Vec::new();
    let long = "x".repeat(65_536);
    let publish = Publish {
        topic: "t",
        ..Publish::default()
    };
    let cases = [
        (Publish { topic: "", ..publish }, EncodeError::EmptyTopic),
        (
            Publish {
                topic: &long,
                ..publish
            },
            EncodeError::FieldTooLong,
        ),
        (
            Publish {
                topic: "a\0",
                ..publish
            },
            EncodeError::NullCharacter,
        ),
        (Publish { dup: true, ..publish }, EncodeError::PacketId),
        (
            Publish {
                packet_id: Some(id(1)),
                ..publish
            },
            EncodeError::PacketId,
        ),
        (
            Publish {
                qos: QoS::AtLeastOnce,
                ..publish
            },
            EncodeError::PacketId,
        ),
    ];
    for (publish, error) in cases {
        assert_eq!(encode_publish(&mut out, &publish), Err(error));
        assert_eq!(publish_len(&publish), Err(error));
    }
    assert_eq!(
        encode_publish_header(&mut out, &publish, 268_435_455),
        Err(EncodeError::PacketTooLong)
    );
    let connect = Connect {
        password: Some(b"p"),
        ..Connect::default()
    };
    assert_eq!(
        encode_connect(&mut out, &connect),
        Err(EncodeError::PasswordWithoutUsername)
    );
    assert_eq!(
        encode_subscribe(&mut out, id(1), &[]),
        Err(EncodeError::NoFilters)
    );
    assert_eq!(
        encode_subscribe(&mut out, id(1), &[("", QoS::AtMostOnce)]),
        Err(EncodeError::EmptyTopic)
    );
    assert_eq!(
        encode_unsubscribe(&mut out, id(1), &[]),
        Err(EncodeError::NoFilters)
    );
    assert_eq!(encode_suback(&mut out, id(1), &[]), Err(EncodeError::NoFilters));
    assert_eq!(
        Packet::UnsupportedConnect { level: 5 }.encode(&mut out),
        Err(EncodeError::UnsupportedLevel)
    );
    assert!(out.is_empty());
}

#[test]
fn publish_header_leaves_room_for_the_payload() {
    let publish = Publish {
        topic: "t",
        qos: QoS::AtLeastOnce,
        packet_id: Some(id(9)),
        ..Publish::default()
    };
    let mut parts = Vec::new();
    encode_publish_header(&mut parts, &publish, 3).expect("fits");
    assert!(parts.capacity() >= parts.len() + 3);
    parts.extend_from_slice(b"abc");
    let mut whole = Vec::new();
    encode_publish(
        &mut whole,
        &Publish {
            payload: b"abc",
            ..publish
        },
    )
    .expect("fits");
    assert_eq!(parts, whole);
}

#[test]
fn wildcards_are_the_callers_to_judge() {
    assert!(has_wildcard("a/+"));
    assert!(has_wildcard("#"));
    assert!(!has_wildcard("devices/d1/messages/events/"));
    check_packet(b"\x30\x05\x00\x03t=+");
}
