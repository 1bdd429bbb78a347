//! Laws of the codecs: what is encoded decodes to the same, however the bytes are split or joined.

use holdfast_mqtt::codec::{
    self, ConnAck, Connect, ConnectCode, Packet, PacketId, Publish, QoS, SubAckCode, Will,
};
use holdfast_mqtt::v5::{self, Property, PropertyList, RetainHandling, SubscribeOptions};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

const LIMIT: usize = 1 << 20;

/// A packet with owned fields, to encode from.
#[derive(Debug, Clone)]
enum Owned {
    Connect {
        client_id: String,
        clean: bool,
        keep_alive: u16,
        will: Option<(String, Vec<u8>, QoS, bool)>,
        login: Option<(String, Option<Vec<u8>>)>,
    },
    ConnAck(bool, ConnectCode),
    Publish {
        dup: bool,
        qos: QoS,
        retain: bool,
        topic: String,
        id: PacketId,
        payload: Vec<u8>,
    },
    Ids(u8, PacketId),
    Subscribe(PacketId, Vec<(String, QoS)>),
    SubAck(PacketId, Vec<SubAckCode>),
    Unsubscribe(PacketId, Vec<String>),
    Empty(u8),
}

fn text() -> impl Strategy<Value = String> {
    "[^\u{0}]{0,12}"
}

fn topic() -> impl Strategy<Value = String> {
    "[^\u{0}]{1,40}"
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..300)
}

fn qos() -> impl Strategy<Value = QoS> {
    prop_oneof![
        Just(QoS::AtMostOnce),
        Just(QoS::AtLeastOnce),
        Just(QoS::ExactlyOnce)
    ]
}

fn id() -> impl Strategy<Value = PacketId> {
    any::<PacketId>()
}

fn code() -> impl Strategy<Value = SubAckCode> {
    prop_oneof![qos().prop_map(SubAckCode::from), Just(SubAckCode::Failure)]
}

fn packet() -> impl Strategy<Value = Owned> {
    let will = option::of((topic(), bytes(), qos(), any::<bool>()));
    let login = option::of((text(), option::of(bytes())));
    let publish = (any::<bool>(), qos(), any::<bool>(), topic(), id(), bytes());
    prop_oneof![
        (text(), any::<bool>(), any::<u16>(), will, login).prop_map(
            |(client_id, clean, keep_alive, will, login)| Owned::Connect {
                client_id,
                clean,
                keep_alive,
                will,
                login
            }
        ),
        any::<bool>().prop_map(|present| Owned::ConnAck(present, ConnectCode::Accepted)),
        Just(Owned::ConnAck(false, ConnectCode::NotAuthorized)),
        publish.prop_map(|(dup, qos, retain, topic, id, payload)| Owned::Publish {
            dup: dup && qos != QoS::AtMostOnce,
            qos,
            retain,
            topic,
            id,
            payload
        }),
        (0..5u8, id()).prop_map(|(kind, id)| Owned::Ids(kind, id)),
        (id(), vec((topic(), qos()), 1..5)).prop_map(|(id, filters)| Owned::Subscribe(id, filters)),
        (id(), vec(code(), 1..5)).prop_map(|(id, codes)| Owned::SubAck(id, codes)),
        (id(), vec(topic(), 1..5)).prop_map(|(id, filters)| Owned::Unsubscribe(id, filters)),
        (0..3u8).prop_map(Owned::Empty),
    ]
}

fn encode(packet: &Owned, out: &mut Vec<u8>) {
    match packet {
        Owned::Subscribe(id, filters) => {
            let filters: Vec<_> = filters
                .iter()
                .map(|(filter, qos)| (filter.as_str(), *qos))
                .collect();
            codec::encode_subscribe(out, *id, &filters).expect("fits");
        }
        Owned::SubAck(id, codes) => codec::encode_suback(out, *id, codes).expect("fits"),
        Owned::Unsubscribe(id, filters) => {
            let filters: Vec<_> = filters.iter().map(String::as_str).collect();
            codec::encode_unsubscribe(out, *id, &filters).expect("fits");
        }
        other => {
            let packet = borrow(other);
            let start = out.len();
            packet.encode(out).expect("fits");
            assert_eq!(packet.encoded_len(), Ok(out.len() - start));
        }
    }
}

/// The packet types that can be built from public fields.
fn borrow(packet: &Owned) -> Packet<'_> {
    match packet {
        Owned::Connect {
            client_id,
            clean,
            keep_alive,
            will,
            login,
        } => Packet::Connect(Connect {
            client_id,
            clean_session: *clean,
            keep_alive: *keep_alive,
            will: will.as_ref().map(|(topic, payload, qos, retain)| Will {
                topic,
                payload,
                qos: *qos,
                retain: *retain,
            }),
            username: login.as_ref().map(|(name, _)| name.as_str()),
            password: login.as_ref().and_then(|(_, password)| password.as_deref()),
        }),
        Owned::ConnAck(present, code) => Packet::ConnAck(ConnAck {
            session_present: *present,
            code: *code,
        }),
        Owned::Publish {
            dup,
            qos,
            retain,
            topic,
            id,
            payload,
        } => Packet::Publish(Publish {
            dup: *dup,
            qos: *qos,
            retain: *retain,
            topic,
            packet_id: (*qos != QoS::AtMostOnce).then_some(*id),
            payload,
        }),
        Owned::Ids(kind, id) => match kind {
            0 => Packet::PubAck(*id),
            1 => Packet::PubRec(*id),
            2 => Packet::PubRel(*id),
            3 => Packet::PubComp(*id),
            _ => Packet::UnsubAck(*id),
        },
        Owned::Empty(0) => Packet::PingReq,
        Owned::Empty(1) => Packet::PingResp,
        Owned::Empty(_) => Packet::Disconnect,
        _ => unreachable!("encoded by its own function"),
    }
}

fn check_same(decoded: Packet<'_>, packet: &Owned) {
    match (decoded, packet) {
        (Packet::Subscribe(decoded), Owned::Subscribe(id, filters)) => {
            assert_eq!(decoded.packet_id, *id);
            assert!(
                decoded
                    .filters()
                    .eq(filters.iter().map(|(filter, qos)| (filter.as_str(), *qos)))
            );
        }
        (Packet::SubAck(decoded), Owned::SubAck(id, codes)) => {
            assert_eq!(decoded.packet_id, *id);
            assert!(decoded.codes().eq(codes.iter().copied()));
        }
        (Packet::Unsubscribe(decoded), Owned::Unsubscribe(id, filters)) => {
            assert_eq!(decoded.packet_id, *id);
            assert!(decoded.filters().eq(filters.iter().map(String::as_str)));
        }
        (decoded, packet) => assert_eq!(decoded, borrow(packet)),
    }
}

/// A v5 property from a kind and raw material; `None` for a kind the packet may not carry is never produced.
fn message_properties(seed: &[(u8, u32, String)]) -> PropertyList {
    let mut list = PropertyList::new();
    let mut seen = [false; 8];
    for (kind, number, text) in seed {
        let kind = usize::from(kind % 8);
        if std::mem::replace(&mut seen[kind], true) && kind < 6 {
            continue;
        }
        let property = match kind {
            0 => Property::PayloadFormatIndicator(number % 2 == 1),
            1 => Property::MessageExpiryInterval(*number),
            2 => Property::ContentType(text),
            3 => Property::ResponseTopic(text),
            4 => Property::CorrelationData(text.as_bytes()),
            5 => Property::TopicAlias((*number as u16).max(1)),
            6 => Property::SubscriptionIdentifier((*number).clamp(1, 268_435_455)),
            _ => Property::UserProperty(text, "value"),
        };
        list.push(&property).expect("in range");
    }
    list
}

proptest! {
    #[test]
    fn encode_then_decode_is_identity(packet in packet()) {
        let mut out = Vec::new();
        encode(&packet, &mut out);
        let (decoded, used) = codec::decode(&out, LIMIT).expect("valid").expect("complete");
        prop_assert_eq!(used, out.len());
        check_same(decoded, &packet);
        let mut again = Vec::new();
        decoded.encode(&mut again).expect("fits");
        prop_assert_eq!(again, out);
    }

    /// A reader that gets the stream in arbitrary pieces sees the same packets.
    #[test]
    fn splits_do_not_matter(packets in vec(packet(), 1..12), cuts in vec(1..200usize, 1..40)) {
        let mut stream = Vec::new();
        for packet in &packets {
            encode(packet, &mut stream);
        }
        let mut expected = packets.iter();
        let mut buffer = Vec::new();
        let mut cuts = cuts.iter().cycle();
        let mut rest = &stream[..];
        while !rest.is_empty() {
            let (piece, later) = rest.split_at((*cuts.next().expect("endless")).min(rest.len()));
            rest = later;
            buffer.extend_from_slice(piece);
            let mut start = 0;
            while let Some((packet, used)) = codec::decode(&buffer[start..], LIMIT).expect("valid") {
                check_same(packet, expected.next().expect("not more packets than were sent"));
                start += used;
            }
            buffer.drain(..start);
        }
        prop_assert!(buffer.is_empty() && expected.next().is_none());
    }

    #[test]
    fn random_bytes_never_panic(data in vec(any::<u8>(), 0..200), limit in 0..300usize) {
        for result in [codec::decode(&data, limit).map(|p| p.map(|p| p.1)), v5::decode(&data, limit).map(|p| p.map(|p| p.1))] {
            if let Ok(Some(used)) = result {
                prop_assert!(used <= data.len() && used <= limit);
            }
        }
    }

    #[test]
    fn v5_publish_is_identity(
        seed in vec((any::<u8>(), any::<u32>(), text()), 0..10),
        (qos, id, topic, payload) in (qos(), id(), topic(), bytes()),
        (dup, retain) in any::<(bool, bool)>(),
    ) {
        let list = message_properties(&seed);
        let packet = v5::Packet::Publish(v5::Publish {
            dup: dup && qos != QoS::AtMostOnce,
            qos,
            retain,
            topic: &topic,
            packet_id: (qos != QoS::AtMostOnce).then_some(id),
            properties: list.as_properties(),
            payload: &payload,
        });
        let mut out = Vec::new();
        packet.encode(&mut out).expect("fits");
        prop_assert_eq!(v5::decode(&out, LIMIT), Ok(Some((packet, out.len()))));
        for end in 0..out.len().min(30) {
            prop_assert_eq!(v5::decode(&out[..end], LIMIT), Ok(None));
        }
    }

    #[test]
    fn v5_connect_is_identity(
        (client_id, username) in (text(), option::of(text())),
        (password, will) in (option::of(bytes()), option::of((topic(), bytes(), qos(), any::<bool>()))),
        (expiry, maximum, delay) in (any::<u32>(), 1..u16::MAX, any::<u32>()),
        (keep_alive, clean_start) in any::<(u16, bool)>(),
    ) {
        let mut properties = PropertyList::new();
        properties.push(&Property::SessionExpiryInterval(expiry)).expect("in range");
        properties.push(&Property::ReceiveMaximum(maximum)).expect("in range");
        properties.push(&Property::RequestProblemInformation(false)).expect("in range");
        properties.push(&Property::UserProperty(&client_id, "")).expect("in range");
        let mut of_will = PropertyList::new();
        of_will.push(&Property::WillDelayInterval(delay)).expect("in range");
        let packet = v5::Packet::Connect(v5::Connect {
            client_id: &client_id,
            clean_start,
            keep_alive,
            properties: properties.as_properties(),
            will: will.as_ref().map(|(topic, payload, qos, retain)| v5::Will {
                topic,
                payload,
                qos: *qos,
                retain: *retain,
                properties: of_will.as_properties(),
            }),
            username: username.as_deref(),
            password: password.as_deref(),
        });
        let mut out = Vec::new();
        packet.encode(&mut out).expect("fits");
        prop_assert_eq!(v5::decode(&out, LIMIT), Ok(Some((packet, out.len()))));
    }

    #[test]
    fn v5_requests_and_answers_are_identity(
        (id, identifier, text) in (id(), 1..268_435_455u32, text()),
        filters in vec((topic(), qos(), any::<(bool, bool)>(), 0..3u8), 1..5),
        codes in vec(prop_oneof![Just(0u8), Just(0x80), Just(0x87)], 1..5),
        kind in 0..6u8,
    ) {
        let filters: Vec<_> = filters.iter().map(|(filter, qos, flags, handling)| {
            let retain_handling = [RetainHandling::Send, RetainHandling::SendIfNew, RetainHandling::DoNotSend][usize::from(*handling)];
            let no_local = flags.0 && !filter.starts_with("$share/");
            (filter.as_str(), SubscribeOptions { qos: *qos, no_local, retain_as_published: flags.1, retain_handling })
        }).collect();
        let mut list = PropertyList::new();
        list.push(&Property::SubscriptionIdentifier(identifier)).expect("in range");
        let mut out = Vec::new();
        v5::encode_subscribe(&mut out, id, list.as_properties(), &filters).expect("fits");
        let (packet, _) = v5::decode(&out, LIMIT).expect("valid").expect("complete");
        let v5::Packet::Subscribe(subscribe) = packet else { panic!("not a subscribe") };
        prop_assert!(subscribe.filters().eq(filters.iter().copied()));

        let mut list = PropertyList::new();
        list.push(&Property::ReasonString(&text)).expect("in range");
        let properties = list.as_properties();
        let reason = v5::ReasonCode::NOT_AUTHORIZED;
        let ack = v5::Ack { packet_id: id, reason, properties };
        let suback = v5::SubAck { packet_id: id, properties, codes: v5::Codes(&codes) };
        let packet = match kind {
            0 => v5::Packet::PubAck(ack),
            1 => v5::Packet::PubRec(ack),
            2 => v5::Packet::PubRel(v5::Ack { reason: v5::ReasonCode::SUCCESS, ..ack }),
            3 => v5::Packet::SubAck(suback),
            4 => v5::Packet::UnsubAck(suback),
            _ => v5::Packet::Disconnect(v5::Disconnect { reason, properties }),
        };
        out.clear();
        packet.encode(&mut out).expect("fits");
        prop_assert_eq!(v5::decode(&out, LIMIT), Ok(Some((packet, out.len()))));
    }
}
