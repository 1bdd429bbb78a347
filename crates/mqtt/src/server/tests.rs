use super::*;
use crate::codec::{PacketType, decode};

fn id(id: u16) -> PacketId {
    PacketId::new(id).expect("not zero")
}

fn connect(keep_alive: u16) -> Packet<'static> {
    Packet::Connect(Connect {
        client_id: "d1",
        keep_alive,
        ..Connect::default()
    })
}

fn publish(qos: QoS, packet_id: u16) -> Packet<'static> {
    Packet::Publish(Publish {
        topic: "t",
        qos,
        packet_id: PacketId::new(packet_id),
        ..Publish::default()
    })
}

/// A session whose CONNECT was accepted at time 0.
fn open(limits: ServerLimits) -> ServerSession {
    let mut session = ServerSession::new(&limits, 0);
    session.handle(connect(60), 0).expect("connect");
    session.accept(false, &mut Vec::new());
    session
}

fn delivery(token: u64) -> Delivery<'static> {
    Delivery {
        topic: "t",
        payload: b"p",
        qos: QoS::AtLeastOnce,
        token,
        redelivery_of: None,
    }
}

/// Identifiers of the PUBACKs in `out`.
fn pubacks(mut out: &[u8]) -> Vec<u16> {
    let mut ids = Vec::new();
    while let Some((packet, used)) = decode(out, 1024).expect("own output") {
        let Packet::PubAck(id) = packet else {
            panic!("not a puback")
        };
        ids.push(id.get());
        out = &out[used..];
    }
    ids
}

/// A hub keeps fifteen thousand of these in a budget of 1 KiB per connection.
#[test]
fn session_is_small() {
    assert!(
        size_of::<ServerSession>() <= 64,
        "{} bytes",
        size_of::<ServerSession>()
    );
}

#[test]
fn first_packet_must_be_connect() {
    for packet in [Packet::PingReq, Packet::Disconnect, publish(QoS::AtMostOnce, 0)] {
        let mut session = ServerSession::new(&ServerLimits::default(), 0);
        let error = ProtocolError::FirstPacket(packet.packet_type());
        assert_eq!(session.handle(packet, 0), Err(error));
    }
}

#[test]
fn connect_comes_once() {
    let mut session = open(ServerLimits::default());
    assert_eq!(session.handle(connect(0), 0), Err(ProtocolError::SecondConnect));
    let mut session = ServerSession::new(&ServerLimits::default(), 0);
    session.handle(connect(0), 0).expect("connect");
    assert_eq!(session.handle(connect(0), 0), Err(ProtocolError::SecondConnect));
}

#[test]
fn unsupported_level_is_named() {
    let mut session = ServerSession::new(&ServerLimits::default(), 0);
    let packet = Packet::UnsupportedConnect { level: 5 };
    assert_eq!(
        session.handle(packet, 0),
        Err(ProtocolError::UnsupportedLevel { level: 5 })
    );
}

#[test]
fn packets_wait_for_accept() {
    let mut session = ServerSession::new(&ServerLimits::default(), 0);
    session.handle(connect(0), 0).expect("connect");
    assert_eq!(
        session.handle(Packet::PingReq, 0),
        Err(ProtocolError::NotAccepted)
    );
    assert_eq!(
        session.publish(&delivery(0), &mut Vec::new()),
        Err(SendError::NotConnected)
    );
}

#[test]
fn refused_session_is_over() {
    let mut session = ServerSession::new(&ServerLimits::default(), 0);
    session.handle(connect(0), 0).expect("connect");
    let mut out = Vec::new();
    session.refuse(ConnectCode::NotAuthorized, &mut out);
    session.accept(true, &mut out);
    assert_eq!(out, b"\x20\x02\x00\x05");
    assert!(!session.is_open() && !session.ended_cleanly());
    assert_eq!(
        session.handle(Packet::PingReq, 0),
        Err(ProtocolError::AfterDisconnect)
    );
}

#[test]
fn qos_two_and_its_handshake_are_errors() {
    for packet in [
        publish(QoS::ExactlyOnce, 1),
        Packet::PubRec(id(1)),
        Packet::PubRel(id(1)),
        Packet::PubComp(id(1)),
    ] {
        assert_eq!(
            open(ServerLimits::default()).handle(packet, 0),
            Err(ProtocolError::QosTwo)
        );
    }
    let two = Delivery {
        qos: QoS::ExactlyOnce,
        ..delivery(1)
    };
    assert_eq!(
        open(ServerLimits::default()).publish(&two, &mut Vec::new()),
        Err(SendError::QosTwo)
    );
}

#[test]
fn server_packets_are_errors() {
    let connack = ConnAck {
        session_present: false,
        code: ConnectCode::Accepted,
    };
    for packet in [
        Packet::ConnAck(connack),
        Packet::PingResp,
        Packet::UnsubAck(id(1)),
    ] {
        let error = ProtocolError::ServerPacket(packet.packet_type());
        assert_eq!(open(ServerLimits::default()).handle(packet, 0), Err(error));
    }
}

#[test]
fn acknowledgements_keep_the_order_received() {
    let mut session = open(ServerLimits::default());
    let mut out = Vec::new();
    for packet_id in [7, 3, 9, 9] {
        session
            .handle(publish(QoS::AtLeastOnce, packet_id), 0)
            .expect("publish");
        session.handle(publish(QoS::AtMostOnce, 0), 0).expect("publish");
    }
    assert_eq!(session.unacknowledged(), 4);
    assert_eq!(session.acknowledge(2, &mut out), 2);
    assert_eq!(session.acknowledge(0, &mut out), 0);
    assert_eq!(
        session.acknowledge(9, &mut out),
        2,
        "a resent identifier is acknowledged again"
    );
    assert_eq!(pubacks(&out), [7, 3, 9, 9]);
    assert_eq!(session.acknowledge(1, &mut out), 0);
    assert!(session.active.is_none(), "nothing in flight costs nothing");
}

#[test]
fn inbound_is_bounded() {
    let mut session = open(ServerLimits::default());
    for _ in 0..INBOUND_MAX {
        session
            .handle(publish(QoS::AtLeastOnce, 1), 0)
            .expect("below the bound");
    }
    let next = session.handle(publish(QoS::AtLeastOnce, 1), 0);
    assert_eq!(next, Err(ProtocolError::TooManyUnacknowledged));
}

#[test]
fn tokens_come_back_in_any_order() {
    let mut session = open(ServerLimits {
        outbound_window: 3,
        ..ServerLimits::default()
    });
    let mut out = Vec::new();
    for token in [100, 101, 102] {
        session.publish(&delivery(token), &mut out).expect("room");
    }
    let len = out.len();
    assert_eq!(
        session.publish(&delivery(103), &mut out),
        Err(SendError::WindowFull)
    );
    assert_eq!(out.len(), len);
    assert_eq!(
        session.handle(Packet::PubAck(id(2)), 0),
        Ok(Event::PubAck { token: 101 })
    );
    let stale = Event::StalePubAck { packet_id: id(2) };
    assert_eq!(session.handle(Packet::PubAck(id(2)), 0), Ok(stale));
    assert_eq!(
        session.in_flight_tokens().collect::<Vec<_>>(),
        [(id(1), 100), (id(3), 102)]
    );
    assert_eq!(session.publish(&delivery(103), &mut out), Ok(Some(id(4))));
    for (packet_id, token) in [(4, 103), (1, 100), (3, 102)] {
        assert_eq!(
            session.handle(Packet::PubAck(id(packet_id)), 0),
            Ok(Event::PubAck { token })
        );
    }
    assert!(session.active.is_none());
    assert_eq!(
        session.publish(&delivery(1), &mut out),
        Ok(Some(id(5))),
        "identifiers go on"
    );
}

#[test]
fn redelivery_keeps_its_identifier_and_sets_dup() {
    let mut session = open(ServerLimits::default());
    let mut out = Vec::new();
    let again = Delivery {
        redelivery_of: Some(id(7)),
        ..delivery(70)
    };
    assert_eq!(session.publish(&again, &mut out), Ok(Some(id(7))));
    assert_eq!(out, b"\x3a\x06\x00\x01t\x00\x07p");
    assert_eq!(
        session.publish(&again, &mut out),
        Ok(Some(id(7))),
        "again on the same connection"
    );
    assert_eq!((out.len(), session.in_flight()), (16, 1));
    let other = Delivery { token: 71, ..again };
    assert_eq!(session.publish(&other, &mut out), Err(SendError::PacketIdInUse));
    session.continue_packet_ids(6);
    assert_eq!(
        session.publish(&delivery(80), &mut out),
        Ok(Some(id(8))),
        "7 is in use"
    );
    assert_eq!(session.last_packet_id(), 8);
    assert_eq!(
        session.handle(Packet::PubAck(id(7)), 0),
        Ok(Event::PubAck { token: 70 })
    );
}

#[test]
fn qos_zero_needs_no_room() {
    let mut session = open(ServerLimits {
        outbound_window: 0,
        ..ServerLimits::default()
    });
    let mut out = Vec::new();
    let zero = Delivery {
        qos: QoS::AtMostOnce,
        ..delivery(1)
    };
    assert_eq!(session.publish(&zero, &mut out), Ok(None));
    assert_eq!(out, b"\x30\x04\x00\x01tp");
    assert!(session.active.is_none());
}

#[test]
fn message_that_cannot_be_encoded_leaves_no_trace() {
    let mut session = open(ServerLimits::default());
    let mut out = Vec::new();
    let bad = Delivery {
        topic: "",
        ..delivery(1)
    };
    assert!(matches!(
        session.publish(&bad, &mut out),
        Err(SendError::Encode(_))
    ));
    assert!(out.is_empty() && session.active.is_none());
    assert_eq!(session.publish(&delivery(1), &mut out), Ok(Some(id(1))));
}

#[test]
fn deadline_follows_keep_alive() {
    let limits = ServerLimits {
        connect_timeout_ms: 10_000,
        silence_max_ms: 600_000,
        ..ServerLimits::default()
    };
    let mut session = ServerSession::new(&limits, 1_000);
    assert_eq!(session.deadline(), 11_000);
    session.handle(connect(60), 2_000).expect("connect");
    session.accept(false, &mut Vec::new());
    assert_eq!(session.deadline(), 92_000);
    session.handle(Packet::PingReq, 50_000).expect("ping");
    assert_eq!(session.deadline(), 140_000);
    for (keep_alive, silence) in [(0, 600_000), (65_535, 600_000), (400, 600_000), (399, 598_500)] {
        let mut session = ServerSession::new(&limits, 0);
        session.handle(connect(keep_alive), 0).expect("connect");
        assert_eq!(session.deadline(), silence, "keep-alive {keep_alive}");
    }
}

#[test]
fn only_disconnect_ends_cleanly() {
    let mut session = open(ServerLimits::default());
    assert!(!session.ended_cleanly());
    assert_eq!(session.handle(Packet::Disconnect, 0), Ok(Event::Disconnect));
    assert!(session.ended_cleanly() && !session.is_open());
    assert_eq!(
        session.handle(Packet::PingReq, 0),
        Err(ProtocolError::AfterDisconnect)
    );
}

#[test]
fn errors_read_well() {
    let error = ProtocolError::FirstPacket(PacketType::Publish);
    assert_eq!(error.to_string(), "first packet is publish, not connect");
}
