use super::*;
use crate::codec::{PacketId, QoS};
use crate::error::{DecodeError, EncodeError};

const LIMIT: usize = 1024;

fn check_error(bytes: &[u8], expected: DecodeError) {
    assert_eq!(decode(bytes, LIMIT), Err(expected), "{bytes:02x?}");
}

fn check_packet<'a>(bytes: &'a [u8]) -> Packet<'a> {
    let (packet, used) = decode(bytes, LIMIT).expect("valid").expect("complete");
    assert_eq!(used, bytes.len());
    let mut out = Vec::new();
    packet.encode(&mut out).expect("encodes");
    assert_eq!(out, bytes);
    packet
}

fn id(id: u16) -> PacketId {
    PacketId::new(id).expect("not zero")
}

#[test]
fn publish_with_properties() {
    let bytes = b"\x32\x12\x00\x01t\x00\x01\x0b\x01\x01\x26\x00\x01k\x00\x01v\x0b\x07p";
    let Packet::Publish(publish) = check_packet(bytes) else {
        panic!("not a publish")
    };
    assert_eq!(
        publish.properties.iter().collect::<Vec<_>>(),
        [
            Property::PayloadFormatIndicator(true),
            Property::UserProperty("k", "v"),
            Property::SubscriptionIdentifier(7)
        ]
    );
    assert_eq!(
        (publish.topic, publish.payload, publish.packet_id),
        ("t", &b"p"[..], Some(id(1)))
    );
}

#[test]
fn empty_topic_needs_an_alias() {
    check_packet(b"\x30\x06\x00\x00\x03\x23\x00\x01");
    check_error(b"\x30\x03\x00\x00\x00", DecodeError::EmptyTopic);
}

#[test]
fn property_rules() {
    check_error(b"\x30\x05\x00\x01t\x01\x7f", DecodeError::PropertyUnknown(0x7f));
    check_error(
        b"\x30\x06\x00\x01t\x02\x80\x02",
        DecodeError::PropertyUnknown(0x100),
    );
    check_error(
        b"\x30\x07\x00\x01t\x03\x21\x00\x01",
        DecodeError::PropertyMisplaced(0x21),
    );
    check_error(
        b"\x30\x08\x00\x01t\x04\x01\x00\x01\x00",
        DecodeError::PropertyRepeated(0x01),
    );
    check_error(b"\x30\x06\x00\x01t\x02\x01\x02", DecodeError::PropertyValue(0x01));
    check_error(
        b"\x30\x07\x00\x01t\x03\x23\x00\x00",
        DecodeError::PropertyValue(0x23),
    );
    check_error(b"\x30\x06\x00\x01t\x02\x0b\x00", DecodeError::PropertyValue(0x0b));
    check_error(b"\x30\x05\x00\x01t\x05\x01", DecodeError::Truncated);
    check_error(b"\x30\x05\x00\x01t\x80\x00", DecodeError::RemainingLength);
    check_error(b"\x30\x06\x00\x01t\x02\x23\x00", DecodeError::Truncated);
}

#[test]
fn acknowledgements_have_short_forms() {
    let success = Ack {
        packet_id: id(1),
        reason: ReasonCode::SUCCESS,
        properties: Properties::default(),
    };
    assert_eq!(check_packet(b"\x40\x02\x00\x01"), Packet::PubAck(success));
    for long in [&b"\x40\x03\x00\x01\x00"[..], b"\x40\x04\x00\x01\x00\x00"] {
        assert_eq!(
            decode(long, LIMIT),
            Ok(Some((Packet::PubAck(success), long.len())))
        );
    }
    let Packet::PubAck(ack) = check_packet(b"\x40\x04\x00\x01\x87\x00") else {
        panic!("not a puback")
    };
    assert!(ack.reason.is_error());
    check_error(b"\x40\x03\x00\x01\x01", DecodeError::ReturnCode(1));
    assert_eq!(
        check_packet(b"\xe0\x00"),
        Packet::Disconnect(Disconnect::default())
    );
    check_packet(b"\xe0\x02\x8e\x00");
    check_packet(b"\xf0\x00");
    check_error(b"\xf0\x01\x80", DecodeError::ReturnCode(0x80));
}

#[test]
fn connect_with_everything() {
    let bytes = b"\x10\x27\x00\x04MQTT\x05\xee\x00\x3c\x05\x11\x00\x00\x00\x0a\x00\x01c\
        \x05\x18\x00\x00\x00\x01\x00\x01t\x00\x01w\x00\x02us\x00\x02pw";
    let Packet::Connect(connect) = check_packet(bytes) else {
        panic!("not a connect")
    };
    assert!(connect.clean_start);
    assert_eq!(
        connect.properties.iter().collect::<Vec<_>>(),
        [Property::SessionExpiryInterval(10)]
    );
    let will = connect.will.expect("will");
    assert_eq!((will.qos, will.retain, will.topic), (QoS::AtLeastOnce, true, "t"));
    assert_eq!(
        will.properties.iter().collect::<Vec<_>>(),
        [Property::WillDelayInterval(1)]
    );
}

#[test]
fn connect_rules() {
    check_error(
        b"\x10\x0c\x00\x04MQTT\x04\x00\x00\x00\x00\x00",
        DecodeError::ProtocolLevel(4),
    );
    check_error(
        b"\x10\x0d\x00\x04MQTT\x05\x01\x00\x00\x00\x00\x00",
        DecodeError::ReservedConnectFlag,
    );
    check_error(
        b"\x10\x0d\x00\x04MQTT\x05\x08\x00\x00\x00\x00\x00",
        DecodeError::WillFlags,
    );
    // A password without user name is allowed here (v5 3.1.2.9).
    check_packet(b"\x10\x10\x00\x04MQTT\x05\x40\x00\x00\x00\x00\x00\x00\x01p");
}

#[test]
fn subscribe_options() {
    let options = SubscribeOptions {
        qos: QoS::AtLeastOnce,
        no_local: true,
        retain_as_published: true,
        retain_handling: RetainHandling::DoNotSend,
    };
    let mut out = Vec::new();
    encode_subscribe(&mut out, id(1), Properties::default(), &[("a", options)]).expect("fits");
    assert_eq!(out, b"\x82\x07\x00\x01\x00\x00\x01a\x2d");
    let Packet::Subscribe(subscribe) = check_packet(&out) else {
        panic!("not a subscribe")
    };
    assert_eq!(subscribe.filters().collect::<Vec<_>>(), [("a", options)]);
    check_error(
        b"\x82\x07\x00\x01\x00\x00\x01a\x30",
        DecodeError::SubscribeOptions(0x30),
    );
    check_error(
        b"\x82\x07\x00\x01\x00\x00\x01a\x40",
        DecodeError::SubscribeOptions(0x40),
    );
    check_error(b"\x82\x03\x00\x01\x00", DecodeError::NoFilters);
    let shared = encode_subscribe(&mut out, id(1), Properties::default(), &[("$share/g/a", options)]);
    assert_eq!(shared, Err(EncodeError::SharedNoLocal));
}

#[test]
fn encode_refuses_what_decode_would() {
    let mut list = PropertyList::new();
    assert_eq!(
        list.push(&Property::TopicAlias(0)).map(drop),
        Err(EncodeError::Property)
    );
    assert_eq!(
        list.push(&Property::SubscriptionIdentifier(u32::MAX)).map(drop),
        Err(EncodeError::Property)
    );
    list.push(&Property::ReceiveMaximum(1)).expect("in range");
    let mut out = Vec::new();
    let publish = Publish {
        topic: "t",
        properties: list.as_properties(),
        ..Publish::default()
    };
    assert_eq!(
        Packet::Publish(publish).encode(&mut out),
        Err(EncodeError::Property)
    );
    let auth = Auth {
        reason: ReasonCode::UNSPECIFIED_ERROR,
        ..Auth::default()
    };
    assert_eq!(Packet::Auth(auth).encode(&mut out), Err(EncodeError::ReasonCode));
    assert!(out.is_empty());
}
