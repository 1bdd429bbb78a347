//! Messages towards the log: limits, pieces, and that nothing is accepted before it is durable.

use std::time::Duration;

use holdfast_amqp::performatives::{Attach, Performative, Role, Transfer};
use holdfast_amqp::{Config, SendError};
use holdfast_heads::amqp::AmqpConfig;
use holdfast_ports::gateway::Disconnect;

use crate::amqp_client::{
    Got, Hub, Raw, amqp, attach, begin, body, message, quick, with_machine, with_payload,
};
use crate::client::until;

const TELEMETRY: &str = "/devices/d1/messages/events";

/// A raw client that has put its token by way of a rule-keeping one would be somebody else: so the first frames are made
/// here, with SASL PLAIN for the proof.
async fn telemetry(hub: &Hub) -> Raw {
    use holdfast_amqp::frame::{self, FrameType, Protocol};
    use holdfast_amqp::performatives::{Sasl, SaslInit};
    let mut raw = hub.raw().await;
    raw.send(&Protocol::Sasl.header()).await;
    let mut init = Vec::new();
    frame::encode(&mut init, FrameType::Sasl, 0, |out| {
        Sasl::Init(SaslInit {
            mechanism: "PLAIN",
            initial_response: Some(b"\0d1@sas.hub\0device:d1"),
            hostname: None,
        })
        .encode(out);
    });
    raw.send(&init).await;
    assert_eq!(raw.header().await, Protocol::Sasl.header());
    raw.until("outcome Ok").await;
    raw.open().await;
    raw.send(&amqp(0, &begin())).await;
    raw.send(&amqp(0, &attach("t", 0, Role::Sender, TELEMETRY))).await;
    raw.until("flow Some(0)").await;
    raw
}

fn transfer(id: u32, more: bool) -> Transfer<'static> {
    Transfer {
        handle: 0,
        delivery_id: Some(id),
        delivery_tag: Some(b"tag"),
        message_format: Some(0),
        more,
        ..Transfer::default()
    }
}

fn piece(transfer: Transfer<'_>, payload: &[u8]) -> Vec<u8> {
    with_payload(0, &Performative::Transfer(transfer), payload)
}

#[tokio::test]
async fn more_transfers_than_credit_detach_the_link() {
    let config = AmqpConfig {
        link_window: 10,
        ..quick()
    };
    let hub = Hub::start_with(config);
    hub.gateway.hold_durability();
    let mut raw = telemetry(&hub).await;
    let x = message(b"x");
    let frames: Vec<u8> = (0..11).flat_map(|id| piece(transfer(id, false), &x)).collect();
    raw.send(&frames).await;
    raw.until("detach amqp:link:transfer-limit-exceeded").await;
    // Its session went with its only link; what it had sent is kept, and the connection goes on.
    let ended = || hub.gateway.disconnects().iter().any(|(id, _)| id == "d1");
    until("the session's end", ended).await;
    assert_eq!(hub.gateway.received().len(), 10);
    raw.send(&amqp(0, &attach("again", 1, Role::Sender, TELEMETRY)))
        .await;
    raw.until("attach again true").await;
}

#[tokio::test]
async fn more_transfers_than_the_sessions_window_close_the_connection() {
    let config = Config {
        incoming_window: 8,
        ..Config::default()
    };
    let hub = Hub::start_with(AmqpConfig {
        link_window: 1_000,
        ..with_machine(config)
    });
    let mut raw = telemetry(&hub).await;
    // One message in many pieces: the window counts each, and is opened again as they come.
    let mut frames = Vec::new();
    for _ in 0..100 {
        frames.extend(piece(transfer(0, true), b""));
    }
    raw.send(&frames).await;
    // Sent without looking, yet always within the window, because it is opened every few frames.
    raw.send(&piece(transfer(0, false), &message(b"x"))).await;
    raw.until("disposition 0..0 accepted").await;
    // Unsettled messages close it for good.
    hub.gateway.hold_durability();
    let config = Config {
        incoming_window: 8,
        max_received: 8,
        ..Config::default()
    };
    let hub = Hub::start_with(with_machine(config));
    hub.gateway.hold_durability();
    let mut raw = telemetry(&hub).await;
    let x = message(b"x");
    let frames: Vec<u8> = (0..9).flat_map(|id| piece(transfer(id, false), &x)).collect();
    raw.send(&frames).await;
    assert_eq!(raw.closed().await, "amqp:session:window-violation");
    assert_eq!(hub.gateway.received().len(), 8, "what came before it counts");
}

#[tokio::test]
async fn messages_that_are_too_large_are_refused_before_they_are_held() {
    let hub = Hub::start();
    let mut peer = hub.log_in(&["device:d1"]).await;
    let session = peer.session().await;
    let link = peer
        .attach(session, &Attach::sender("t", TELEMETRY), 0)
        .await
        .expect("attached");
    peer.wait("credit", |got| matches!(got, Got::Credit(..))).await;
    // A client that looks does not send it.
    let big = message(&vec![1; 300 * 1024]);
    let sent = peer.machine.send(link, &Default::default(), &big, &mut peer.out);
    assert_eq!(
        sent,
        Err(SendError::TooLarge {
            size: big.len(),
            limit: 256 * 1024
        })
    );
    // The largest that goes.
    let largest = 256 * 1024 - (message(&vec![1; 70_000]).len() - 70_000);
    assert_eq!(
        peer.send(link, &message(&vec![1; largest - 64])).await,
        "accepted"
    );
    // One that does not look, whole or in pieces, loses the link.
    let mut raw = telemetry(&hub).await;
    let mut sent = 0;
    while sent <= 256 * 1024 {
        raw.send(&piece(transfer(0, true), &[0; 60_000])).await;
        sent += 60_000;
    }
    raw.until("detach amqp:link:message-size-exceeded").await;
    assert_eq!(hub.gateway.received().len(), 1);
}

#[tokio::test]
async fn unfinished_messages_are_bounded_together() {
    let config = Config {
        max_reassembly: 100_000,
        ..Config::default()
    };
    let hub = Hub::start_with(with_machine(config));
    let mut raw = telemetry(&hub).await;
    let names: Vec<String> = (1..4).map(|number| format!("t{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        let handle = u32::try_from(number).expect("few") + 1;
        raw.send(&amqp(0, &attach(name, handle, Role::Sender, TELEMETRY)))
            .await;
        raw.until(&format!("flow Some({handle})")).await;
    }
    for id in 0..4 {
        let unfinished = Transfer {
            handle: id,
            ..transfer(id, true)
        };
        raw.send(&piece(unfinished, &[0; 40_000])).await;
    }
    // The third and the fourth did not fit.
    for _ in 0..2 {
        raw.until("detach amqp:resource-limit-exceeded").await;
    }
    let last = Transfer {
        handle: 0,
        delivery_id: None,
        delivery_tag: None,
        ..transfer(0, false)
    };
    raw.send(&piece(last, b"")).await;
    raw.until("disposition 0..0 rejected amqp:decode-error").await;
}

#[tokio::test]
async fn messages_are_cut_to_the_peers_frames_in_both_directions() {
    // Ours: small frames.
    let config = Config {
        max_frame_size: 512,
        ..Config::default()
    };
    let hub = Hub::start_with(with_machine(config));
    let mut peer = hub.log_in(&["device:d1", "policy:service"]).await;
    let link = peer.sender(TELEMETRY).await.expect("attached");
    let long: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
    assert_eq!(peer.send(link, &message(&long)).await, "accepted");
    assert_eq!(hub.gateway.received()[0].body, long);

    // The client's: Java's 4 KiB, read by bytes.
    let hub = Hub::start();
    let produced = {
        let mut peer = hub.log_in(&["policy:service"]).await;
        let link = peer.sender("events/Partitions/0").await.expect("attached");
        for _ in 0..3 {
            assert_eq!(peer.send(link, &message(&long)).await, "accepted");
        }
        3
    };
    let small = Config {
        max_frame_size: 4_096,
        ..Config::default()
    };
    let mut peer = hub.log_in_with(small, &["policy:service"]).await;
    let link = peer
        .receiver("events/ConsumerGroups/$Default/Partitions/0", 10)
        .await
        .expect("attached");
    for _ in 0..produced {
        // The machine would take a larger frame for a violation.
        let (_, _, event) = peer.received(link).await;
        assert_eq!(body(&event), long);
    }
}

#[tokio::test]
async fn nothing_is_accepted_before_it_is_durable_and_all_in_order() {
    let hub = Hub::start();
    hub.gateway.hold_durability();
    let mut peer = hub.log_in(&["device:d1"]).await;
    let link = peer.sender(TELEMETRY).await.expect("attached");
    let tokens: Vec<u64> = (0..20)
        .map(|number: u8| peer.post(link, &message(&[number]), false))
        .collect();
    peer.flush().await;
    until("all are appended", || hub.gateway.received().len() == 20).await;
    peer.is_alive().await;
    let told = |peer: &crate::amqp_client::Peer<_>| {
        peer.queue
            .iter()
            .filter(|got| matches!(got, Got::Outcome(..)))
            .count()
    };
    assert_eq!(told(&peer), 0);
    hub.gateway.make_durable_from_now_on();
    for token in tokens {
        let place = peer
            .wait("an outcome", |got| matches!(got, Got::Outcome(..)))
            .await;
        assert_eq!(place, Got::Outcome(token, "accepted".to_owned(), true));
    }
}

#[tokio::test]
async fn a_full_log_holds_messages_back_and_loses_none() {
    let hub = Hub::start();
    let mut peer = hub.log_in(&["device:d1", "policy:service"]).await;
    let device = peer.sender(TELEMETRY).await.expect("attached");
    let producer = peer.sender("events/Partitions/1").await.expect("attached");
    hub.gateway.set_busy(true);
    let held = peer.post(device, &message(b"held"), false);
    peer.flush().await;
    // Nothing more of this connection is read, so nothing is answered; another's is.
    let mut other = hub.log_in(&["device:d2"]).await;
    other.is_alive().await;
    let quiet = tokio::time::timeout(Duration::from_millis(100), peer.read_more()).await;
    assert!(quiet.is_err(), "{:?}", peer.queue);
    hub.gateway.set_busy(false);
    assert_eq!(peer.outcome(held).await, "accepted");
    hub.services.log.set_busy(true);
    let held = peer.post(producer, &message(b"held"), false);
    peer.flush().await;
    let quiet = tokio::time::timeout(Duration::from_millis(100), peer.read_more()).await;
    assert!(quiet.is_err(), "{:?}", peer.queue);
    hub.services.log.set_busy(false);
    assert_eq!(peer.outcome(held).await, "accepted");
    assert_eq!(hub.gateway.received().len(), 1);
}

#[tokio::test]
async fn a_failed_log_accepts_nothing_and_closes_the_connection() {
    let hub = Hub::start();
    hub.gateway.hold_durability();
    let mut peer = hub.log_in(&["device:d1"]).await;
    let link = peer.sender(TELEMETRY).await.expect("attached");
    let token = peer.post(link, &message(b"lost"), false);
    peer.flush().await;
    until("it is appended", || hub.gateway.appends() == 1).await;
    hub.gateway.fail();
    peer.closed().await;
    assert_ne!(peer.outcome_or_lost(token), "accepted");
    // What comes later is refused in the same way.
    let mut peer = hub.log_in(&["device:d1"]).await;
    let link = peer.sender(TELEMETRY).await.expect("attached");
    let token = peer.post(link, &message(b"lost"), false);
    peer.flush().await;
    peer.closed().await;
    assert_ne!(peer.outcome_or_lost(token), "accepted");
}

#[tokio::test]
async fn a_connection_that_ends_in_a_message_loses_only_that() {
    let hub = Hub::start();
    let mut raw = telemetry(&hub).await;
    let x = message(b"whole");
    let mut frames = piece(transfer(0, false), &x);
    frames.extend(piece(transfer(1, false), &x));
    frames.extend(piece(transfer(2, true), &x[..3]));
    raw.send(&frames).await;
    let mut accepted = 0;
    while accepted < 2 {
        let said = raw.until("disposition").await;
        accepted += if said.text.starts_with("disposition 0..1") {
            2
        } else {
            1
        };
        assert!(said.text.ends_with("accepted"), "{}", said.text);
    }
    drop(raw);
    let lost = ("d1".to_owned(), Disconnect::Lost);
    until("the session's end", || hub.gateway.disconnects().contains(&lost)).await;
    assert_eq!(hub.gateway.received().len(), 2);
}

#[tokio::test]
async fn a_stopping_hub_accepts_what_becomes_durable() {
    let hub = Hub::start();
    hub.gateway.hold_durability();
    let mut peer = hub.log_in(&["device:d1"]).await;
    let link = peer.sender(TELEMETRY).await.expect("attached");
    let mut reader = hub.log_in(&["policy:service"]).await;
    reader
        .receiver("events/ConsumerGroups/$Default/Partitions/0", 1)
        .await
        .expect("attached");
    let token = peer.post(link, &message(b"x"), false);
    peer.flush().await;
    until("it is appended", || hub.gateway.appends() == 1).await;
    hub.stop.send_replace(true);
    tokio::time::sleep(Duration::from_millis(20)).await;
    hub.gateway.make_durable_from_now_on();
    assert_eq!(peer.outcome(token).await, "accepted");
    // Without a close: the SDK for Node.js takes one for a lasting error.
    peer.hung_up().await;
    // Readers are told.
    assert_eq!(reader.closed().await, "amqp:connection:forced");
    drop((peer, reader));
    hub.served.await.expect("in order");
    assert_eq!(hub.gateway.disconnects(), [("d1".to_owned(), Disconnect::Closed)]);
}

#[tokio::test]
async fn what_is_settled_and_followed_by_a_detach_is_kept() {
    let hub = Hub::start();
    let mut peer = hub.log_in(&["device:d1"]).await;
    let link = peer.sender(TELEMETRY).await.expect("attached");
    // All in one write, and with the connection's end behind it.
    for number in 0..10u8 {
        peer.post(link, &message(&[number]), true);
    }
    peer.machine.detach(link, None, &mut peer.out);
    peer.machine.close(None, &mut peer.out);
    peer.flush().await;
    assert_eq!(peer.closed().await, "");
    assert_eq!(hub.gateway.received().len(), 10);
    assert_eq!(hub.gateway.disconnects(), [("d1".to_owned(), Disconnect::Clean)]);
}

#[tokio::test]
async fn what_is_settled_and_followed_by_a_detach_is_kept_while_the_log_is_full() {
    let hub = Hub::start();
    let mut peer = hub.log_in(&["device:d1"]).await;
    let link = peer.sender(TELEMETRY).await.expect("attached");
    hub.gateway.set_busy(true);
    for number in 0..10u8 {
        peer.post(link, &message(&[number]), true);
    }
    peer.machine.end(link.session(), None, &mut peer.out);
    peer.flush().await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert!(hub.gateway.disconnects().is_empty());
    hub.gateway.set_busy(false);
    let clean = [("d1".to_owned(), Disconnect::Clean)];
    until("the session's end", || hub.gateway.disconnects() == clean).await;
    assert_eq!(hub.gateway.received().len(), 10);
}

#[tokio::test]
async fn malformed_messages_are_rejected_one_by_one() {
    let hub = Hub::start();
    let mut peer = hub.log_in(&["device:d1", "policy:service"]).await;
    let device = peer.sender(TELEMETRY).await.expect("attached");
    let producer = peer.sender("events").await.expect("attached");
    for link in [device, producer] {
        for bad in [
            b"\x00\x53\x75".as_slice(),
            b"\xff\xff\xff\xff",
            b"\x00\x53\x75\xb0\xff\xff\xff\xff",
        ] {
            assert_eq!(
                peer.send(link, bad).await,
                "rejected amqp:decode-error",
                "{bad:?}"
            );
        }
        assert_eq!(peer.send(link, &message(b"good")).await, "accepted");
    }
    assert_eq!(hub.gateway.received().len(), 1);
}
