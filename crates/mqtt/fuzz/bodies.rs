//! What the fuzz targets do, as ordinary functions: `tests/fuzz_bodies.rs` runs them with a stable compiler too.

use std::collections::VecDeque;

use holdfast_mqtt::codec::{self, Packet, PacketId, QoS};
use holdfast_mqtt::server::{Delivery, Event, ServerLimits};
use holdfast_mqtt::{DecodeError, ServerSession, v5};

/// Small enough that random lengths hit it.
pub(crate) const LIMIT: usize = 4096;

/// Any stream: what decodes stays in bounds, and written back it decodes to the same.
pub(crate) fn v4_decode(data: &[u8]) {
    let mut rest = data;
    while let Ok(Some((packet, used))) = codec::decode(rest, LIMIT) {
        assert!(used >= 2 && used <= rest.len() && used <= LIMIT);
        assert_eq!(codec::packet_len(rest, LIMIT), Ok(Some(used)));
        assert_eq!(
            codec::decode(&rest[..used - 1], LIMIT),
            Ok(None),
            "a part is never a packet"
        );
        if !matches!(packet, Packet::UnsupportedConnect { .. }) {
            let mut again = Vec::new();
            packet
                .encode(&mut again)
                .expect("a decoded packet can be encoded");
            assert_eq!(packet.encoded_len(), Ok(again.len()));
            assert_eq!(codec::decode(&again, LIMIT), Ok(Some((packet, again.len()))));
        }
        match packet {
            Packet::Subscribe(subscribe) => assert!(subscribe.filters().count() > 0),
            Packet::Unsubscribe(unsubscribe) => assert!(unsubscribe.filters().count() > 0),
            Packet::SubAck(suback) => assert_eq!(suback.codes().len(), suback.codes().count()),
            _ => {}
        }
        rest = &rest[used..];
    }
    if let Err(DecodeError::TooLarge { size, limit }) = codec::decode(rest, LIMIT) {
        assert!(size > limit && limit == LIMIT);
    }
}

/// The same for MQTT 5.
pub(crate) fn v5_decode(data: &[u8]) {
    let mut rest = data;
    while let Ok(Some((packet, used))) = v5::decode(rest, LIMIT) {
        assert!(used >= 2 && used <= rest.len() && used <= LIMIT);
        assert_eq!(
            v5::decode(&rest[..used - 1], LIMIT),
            Ok(None),
            "a part is never a packet"
        );
        let mut again = Vec::new();
        packet
            .encode(&mut again)
            .expect("a decoded packet can be encoded");
        assert_eq!(v5::decode(&again, LIMIT), Ok(Some((packet, again.len()))));
        let _ = format!("{packet:?}");
        rest = &rest[used..];
    }
}

/// A stream into a server session that accepts every client, delivers a message per event and acknowledges in steps taken
/// from the data. The model is two plain lists.
pub(crate) fn server_session(data: &[u8]) {
    let limits = ServerLimits {
        outbound_window: 5,
        ..ServerLimits::default()
    };
    let mut session = ServerSession::new(&limits, 0);
    let mut received: VecDeque<PacketId> = VecDeque::new();
    let mut sent: Vec<(PacketId, u64)> = Vec::new();
    let mut now = 0;
    let mut rest = data;
    while let Ok(Some((packet, used))) = codec::decode(rest, LIMIT) {
        let choice = rest[used - 1];
        rest = &rest[used..];
        now += u64::from(choice);
        let Ok(event) = session.handle(packet, now) else {
            break;
        };
        assert!(session.deadline() > now);
        match event {
            Event::Connect(_) => session.accept(false, &mut Vec::new()),
            Event::Publish(publish) if publish.qos == QoS::AtLeastOnce => received.extend(publish.packet_id),
            Event::PubAck { token } => {
                let Packet::PubAck(packet_id) = packet else {
                    panic!("an event for another packet")
                };
                let position = sent.iter().position(|entry| *entry == (packet_id, token));
                sent.remove(position.expect("the token belongs to the identifier"));
            }
            Event::StalePubAck { packet_id } => assert!(sent.iter().all(|(id, _)| *id != packet_id)),
            Event::Disconnect => assert!(session.ended_cleanly()),
            _ => {}
        }
        deliver(&mut session, now, &mut sent);
        acknowledge(&mut session, usize::from(choice % 4), &mut received);
        assert_eq!(session.unacknowledged(), received.len());
        assert_eq!(session.in_flight_tokens().collect::<Vec<_>>(), sent);
    }
}

fn deliver(session: &mut ServerSession, token: u64, sent: &mut Vec<(PacketId, u64)>) {
    let delivery = Delivery {
        topic: "t",
        payload: b"",
        qos: QoS::AtLeastOnce,
        token,
        redelivery_of: None,
    };
    match session.publish(&delivery, &mut Vec::new()) {
        Ok(id) => {
            let id = id.expect("an identifier at QoS 1");
            assert!(
                sent.iter().all(|(used, _)| *used != id),
                "an identifier in use was issued"
            );
            sent.push((id, token));
        }
        Err(_) => assert!(!session.is_open() || sent.len() == 5),
    }
}

fn acknowledge(session: &mut ServerSession, count: usize, received: &mut VecDeque<PacketId>) {
    let mut out = Vec::new();
    let done = session.acknowledge(count, &mut out);
    assert_eq!(done, count.min(received.len()));
    let mut expected = Vec::new();
    for id in received.drain(..done) {
        codec::encode_puback(&mut expected, id);
    }
    assert_eq!(out, expected);
}
