use super::*;
use crate::codec::{SubAckCode, decode, encode_suback};

fn id(id: u16) -> PacketId {
    PacketId::new(id).expect("not zero")
}

const ACCEPTED: Packet<'static> = Packet::ConnAck(ConnAck {
    session_present: false,
    code: ConnectCode::Accepted,
});

fn connect(client: &mut ClientSession, clean_session: bool, keep_alive: u16) {
    let connect = Connect {
        client_id: "c",
        clean_session,
        keep_alive,
        ..Connect::default()
    };
    client.connect(&connect, 0, &mut Vec::new()).expect("connect");
    client.handle(ACCEPTED, 0, &mut Vec::new()).expect("accepted");
}

fn open(window: u16) -> ClientSession {
    let mut client = ClientSession::new(window);
    connect(&mut client, true, 0);
    client
}

fn message(token: u64) -> Message<'static> {
    Message {
        topic: "t",
        payload: b"p",
        qos: QoS::AtLeastOnce,
        token,
        ..Message::default()
    }
}

#[test]
fn session_is_small() {
    assert!(
        size_of::<ClientSession>() <= 144,
        "{} bytes",
        size_of::<ClientSession>()
    );
}

#[test]
fn nothing_goes_out_before_connack() {
    let mut client = ClientSession::new(1);
    let mut out = Vec::new();
    assert_eq!(
        client.publish(&message(1), 0, &mut out),
        Err(SendError::NotConnected)
    );
    client.connect(&Connect::default(), 0, &mut out).expect("connect");
    let sent = out.len();
    assert_eq!(
        client.publish(&message(1), 0, &mut out),
        Err(SendError::NotConnected)
    );
    assert_eq!(
        client.subscribe(&[("a", QoS::AtMostOnce)], 0, &mut out),
        Err(SendError::NotConnected)
    );
    assert_eq!(out.len(), sent);
    let error = ClientError::FirstPacket(Packet::PingResp.packet_type());
    assert_eq!(client.handle(Packet::PingResp, 0, &mut out), Err(error));
}

#[test]
fn refusal_leaves_the_client_offline() {
    let mut client = ClientSession::new(1);
    let mut out = Vec::new();
    client.connect(&Connect::default(), 0, &mut out).expect("connect");
    let refusal = ConnAck {
        session_present: false,
        code: ConnectCode::NotAuthorized,
    };
    assert_eq!(
        client.handle(Packet::ConnAck(refusal), 0, &mut out),
        Ok(Event::ConnAck(refusal))
    );
    assert!(!client.is_open());
    assert_eq!(
        client.handle(ACCEPTED, 0, &mut out),
        Err(ClientError::UnexpectedConnAck)
    );
}

#[test]
fn window_and_tokens() {
    let mut client = open(2);
    let mut out = Vec::new();
    assert_eq!(client.publish(&message(10), 0, &mut out), Ok(Some(id(1))));
    assert_eq!(client.publish(&message(11), 0, &mut out), Ok(Some(id(2))));
    assert_eq!(
        client.publish(&message(12), 0, &mut out),
        Err(SendError::WindowFull)
    );
    assert_eq!(
        client.handle(Packet::PubAck(id(1)), 0, &mut out),
        Ok(Event::PubAck { token: 10 })
    );
    assert_eq!(client.publish(&message(12), 0, &mut out), Ok(Some(id(3))));
    let stale = Event::StalePubAck { packet_id: id(1) };
    assert_eq!(client.handle(Packet::PubAck(id(1)), 0, &mut out), Ok(stale));
    let zero = Message {
        qos: QoS::AtMostOnce,
        ..message(0)
    };
    assert_eq!(client.publish(&zero, 0, &mut out), Ok(None));
}

#[test]
fn subscribe_is_matched_with_its_answer() {
    let mut client = open(1);
    let mut out = Vec::new();
    let request = client
        .subscribe(&[("a", QoS::AtMostOnce), ("b", QoS::AtLeastOnce)], 0, &mut out)
        .expect("sent");
    assert_eq!(out, b"\x82\x0a\x00\x01\x00\x01a\x00\x00\x01b\x01");
    let leave = client.unsubscribe(&["a"], 0, &mut out).expect("sent");
    assert_ne!(request, leave);
    let mut answer = Vec::new();
    encode_suback(
        &mut answer,
        request,
        &[SubAckCode::Failure, SubAckCode::GrantedAtLeastOnce],
    )
    .expect("fits");
    let (packet, _) = decode(&answer, 100).expect("valid").expect("complete");
    assert!(matches!(client.handle(packet, 0, &mut out), Ok(Event::SubAck(_))));
    assert_eq!(
        client.handle(packet, 0, &mut out),
        Err(ClientError::UnknownRequest)
    );
    assert_eq!(
        client.handle(Packet::UnsubAck(leave), 0, &mut out),
        Ok(Event::UnsubAck(leave))
    );
    let request = client
        .subscribe(&[("a", QoS::AtMostOnce)], 0, &mut out)
        .expect("sent");
    answer.clear();
    encode_suback(&mut answer, request, &[SubAckCode::Failure; 2]).expect("fits");
    let (packet, _) = decode(&answer, 100).expect("valid").expect("complete");
    assert_eq!(client.handle(packet, 0, &mut out), Err(ClientError::SubAckCount));
    let two = client.subscribe(&[("a", QoS::ExactlyOnce)], 0, &mut out);
    assert_eq!(two, Err(SendError::QosTwo));
}

#[test]
fn acknowledges_at_once_or_by_hand() {
    let publish = Publish {
        topic: "t",
        qos: QoS::AtLeastOnce,
        packet_id: Some(id(5)),
        ..Publish::default()
    };
    let mut out = Vec::new();
    assert_eq!(
        open(1).handle(Packet::Publish(publish), 0, &mut out),
        Ok(Event::Publish(publish))
    );
    assert_eq!(out, b"\x40\x02\x00\x05");
    let mut client = ClientSession::new(1).acknowledge_by_hand();
    connect(&mut client, true, 0);
    out.clear();
    assert_eq!(
        client.handle(Packet::Publish(publish), 0, &mut out),
        Ok(Event::Publish(publish))
    );
    assert!(out.is_empty());
    client.acknowledge(id(5), 0, &mut out);
    assert_eq!(out, b"\x40\x02\x00\x05");
}

#[test]
fn kept_session_resends_in_order_with_dup() {
    let mut client = ClientSession::new(4);
    connect(&mut client, false, 0);
    let mut out = Vec::new();
    for token in [1, 2, 3] {
        client.publish(&message(token), 0, &mut out).expect("room");
    }
    client.handle(Packet::PubAck(id(2)), 0, &mut out).expect("puback");
    client.connection_lost();
    assert!(!client.is_open());
    connect(&mut client, false, 0);
    out.clear();
    assert_eq!(client.resend(0, &mut out), 2);
    assert_eq!(out, b"\x3a\x06\x00\x01t\x00\x01p\x3a\x06\x00\x01t\x00\x03p");
    assert_eq!(client.resend(0, &mut out), 0, "once per connection");
    assert_eq!(client.publish(&message(4), 0, &mut out), Ok(Some(id(4))));
    assert_eq!(
        client.handle(Packet::PubAck(id(3)), 0, &mut out),
        Ok(Event::PubAck { token: 3 })
    );
}

#[test]
fn clean_session_forgets() {
    let mut client = ClientSession::new(4);
    connect(&mut client, false, 0);
    client.publish(&message(1), 0, &mut Vec::new()).expect("room");
    connect(&mut client, true, 0);
    assert_eq!(client.in_flight(), 0);
    client.publish(&message(2), 0, &mut Vec::new()).expect("room");
    connect(&mut client, false, 0);
    assert_eq!(
        client.in_flight(),
        0,
        "a clean session's messages do not pass into a kept one"
    );
}

#[test]
fn pings_when_either_side_is_silent() {
    let mut client = ClientSession::new(1);
    assert_eq!(client.next_tick(), None);
    connect(&mut client, true, 10);
    let mut out = Vec::new();
    assert_eq!(client.next_tick(), Some(10_000));
    client.tick(9_999, &mut out).expect("nothing due");
    assert!(out.is_empty());
    client.tick(10_000, &mut out).expect("ping");
    assert_eq!(out, b"\xc0\x00");
    client.handle(Packet::PingResp, 10_500, &mut out).expect("answer");
    assert_eq!(client.next_tick(), Some(20_000));
    let zero = Message {
        qos: QoS::AtMostOnce,
        ..message(0)
    };
    client.publish(&zero, 19_000, &mut out).expect("open");
    assert_eq!(
        client.next_tick(),
        Some(20_500),
        "the server was heard last at 10,500"
    );
    client.tick(20_500, &mut out).expect("ping");
    client.tick(30_499, &mut out).expect("still waiting");
    assert_eq!(client.tick(30_500, &mut out), Err(ClientError::PingTimeout));
}

#[test]
fn client_packets_and_qos_two_are_errors() {
    let mut out = Vec::new();
    let error = ClientError::ClientPacket(Packet::PingReq.packet_type());
    assert_eq!(open(1).handle(Packet::PingReq, 0, &mut out), Err(error));
    assert_eq!(
        open(1).handle(Packet::PubRel(id(1)), 0, &mut out),
        Err(ClientError::QosTwo)
    );
    let two = Publish {
        topic: "t",
        qos: QoS::ExactlyOnce,
        packet_id: Some(id(1)),
        ..Publish::default()
    };
    assert_eq!(
        open(1).handle(Packet::Publish(two), 0, &mut out),
        Err(ClientError::QosTwo)
    );
    assert_eq!(
        open(1).handle(ACCEPTED, 0, &mut out),
        Err(ClientError::UnexpectedConnAck)
    );
}

#[test]
fn disconnect_goes_offline() {
    let mut client = open(1);
    let mut out = Vec::new();
    client.disconnect(&mut out);
    client.disconnect(&mut out);
    assert_eq!(out, b"\xe0\x00");
    assert!(!client.is_open());
}

#[test]
fn a_caller_that_resends_itself_finds_nothing_in_flight_after_a_reconnect() {
    let mut session = ClientSession::new(4).without_copies();
    let mut out = Vec::new();
    let connect = Connect {
        client_id: "d1",
        ..Connect::default()
    };
    let accepted = Packet::ConnAck(ConnAck {
        session_present: true,
        code: ConnectCode::Accepted,
    });
    session.connect(&connect, 0, &mut out).expect("fits");
    session.handle(accepted, 0, &mut out).expect("accepted");
    let message = Message {
        topic: "t",
        qos: QoS::AtLeastOnce,
        token: 9,
        ..Message::default()
    };
    session.publish(&message, 0, &mut out).expect("room");
    session.connection_lost();
    // Still told, so that the caller knows what was not acknowledged.
    assert_eq!(
        session
            .in_flight_tokens()
            .map(|(_, token)| token)
            .collect::<Vec<_>>(),
        [9]
    );
    session.connect(&connect, 1, &mut out).expect("fits");
    session.handle(accepted, 1, &mut out).expect("accepted");
    assert_eq!(session.resend(1, &mut out), 0);
    assert_eq!(session.in_flight(), 0);
}
