//! What breaks the rules of AMQP, and silence: defined answers, for this connection only.

use std::time::Duration;

use holdfast_amqp::frame::Protocol;
use holdfast_amqp::performatives::{Close, Detach, Flow, Open, Performative, Role, SaslCode, Transfer};
use holdfast_amqp::{Config, OpenError};
use holdfast_heads::amqp::AmqpConfig;
use holdfast_ports::gateway::Disconnect;
use tokio::io::AsyncWriteExt;

use crate::amqp_client::{
    Got, Hub, Peer, amqp, attach, begin, message, open, quick, with_machine, with_payload,
};
use crate::amqp_services::POLICY_KEY;
use crate::client::until;

fn transfer(handle: u32, id: u32, more: bool) -> Performative<'static> {
    Performative::Transfer(Transfer {
        handle,
        delivery_id: Some(id),
        delivery_tag: Some(b"t"),
        message_format: Some(0),
        more,
        ..Transfer::default()
    })
}

/// After open, these frames; what the connection is closed with.
async fn closed_by(hub: &Hub, frames: &[Vec<u8>]) -> String {
    let mut raw = hub.raw().await;
    raw.open().await;
    raw.send(&frames.concat()).await;
    raw.closed().await
}

#[tokio::test]
async fn frames_out_of_order_close_the_connection_with_a_reason() {
    let hub = Hub::start();
    let not_allowed = "amqp:not-allowed";
    let framing = "amqp:connection:framing-error";
    let begun = amqp(0, &begin());
    let sender = amqp(0, &attach("a", 0, Role::Sender, "$cbs"));
    let receiver = amqp(0, &attach("a", 0, Role::Receiver, "$cbs"));
    for (name, frames, condition) in [
        ("a second open", vec![amqp(0, &open())], not_allowed),
        ("a session twice", vec![begun.clone(), begun.clone()], not_allowed),
        ("attach without session", vec![sender.clone()], framing),
        (
            "transfer without session",
            vec![amqp(0, &transfer(0, 0, false))],
            framing,
        ),
        (
            "transfer without link",
            vec![begun.clone(), amqp(0, &transfer(0, 0, false))],
            "amqp:session:unattached-handle",
        ),
        (
            "transfer on a link that the hub sends on",
            vec![begun.clone(), receiver, amqp(0, &transfer(0, 0, false))],
            not_allowed,
        ),
        (
            "a handle twice",
            vec![
                begun.clone(),
                sender,
                amqp(0, &attach("b", 0, Role::Sender, "$cbs")),
            ],
            "amqp:session:handle-in-use",
        ),
        (
            "detach without link",
            vec![
                begun.clone(),
                amqp(
                    0,
                    &Performative::Detach(Detach {
                        handle: 3,
                        closed: true,
                        error: None,
                    }),
                ),
            ],
            "amqp:session:unattached-handle",
        ),
        ("a SASL frame", vec![vec![0, 0, 0, 8, 2, 1, 0, 0]], framing),
        (
            "a frame of another kind",
            vec![vec![0, 0, 0, 8, 2, 9, 0, 0]],
            framing,
        ),
        ("a frame that ends in its head", vec![vec![0, 0, 0, 4]], framing),
        (
            "an unknown performative",
            vec![vec![0, 0, 0, 12, 2, 0, 0, 0, 0, 0x53, 0x77, 0x45]],
            "amqp:decode-error",
        ),
        (
            "bytes that are no performative",
            vec![vec![0, 0, 0, 10, 2, 0, 0, 0, 0xff, 0xff]],
            "amqp:decode-error",
        ),
    ] {
        assert_eq!(closed_by(&hub, &frames).await, condition, "{name}");
    }
    // Nobody else has noticed.
    hub.dial().await.is_alive().await;
}

#[tokio::test]
async fn attach_before_open_and_other_headers_are_answered() {
    let hub = Hub::start();
    let mut raw = hub.raw().await;
    raw.send(&Protocol::Amqp.header()).await;
    raw.send(&amqp(0, &attach("a", 0, Role::Sender, "$cbs"))).await;
    assert_eq!(raw.header().await, Protocol::Amqp.header());
    assert_eq!(raw.closed().await, "amqp:not-allowed");
    for bytes in [
        b"AMQP\x00\x00\x09\x01".as_slice(),
        b"AMQP\x02\x01\x00\x00",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x10\x0c\x00\x04MQTT",
        b"X",
    ] {
        let mut raw = hub.raw().await;
        raw.send(bytes).await;
        assert_eq!(raw.header().await, Protocol::Amqp.header(), "{bytes:?}");
        raw.hung_up().await;
    }
}

#[tokio::test]
async fn floods_of_channels_handles_and_links_are_ended() {
    let config = Config {
        channel_max: 3,
        handle_max: 5,
        max_links: 8,
        ..Config::default()
    };
    let hub = Hub::start_with(with_machine(config));
    let channels: Vec<Vec<u8>> = (0..5).map(|channel| amqp(channel, &begin())).collect();
    assert_eq!(closed_by(&hub, &channels).await, "amqp:connection:framing-error");

    let names: Vec<String> = (0..20).map(|number| format!("link {number}")).collect();
    let mut handles = vec![amqp(0, &begin())];
    handles
        .extend((0..7).map(|handle| amqp(0, &attach(&names[handle as usize], handle, Role::Sender, "$cbs"))));
    assert_eq!(closed_by(&hub, &handles).await, "amqp:invalid-field");

    let mut links: Vec<Vec<u8>> = (0..3).map(|channel| amqp(channel, &begin())).collect();
    links.extend((0..9).map(|number| {
        let link = attach(
            &names[usize::from(number)],
            u32::from(number % 3),
            Role::Sender,
            "$cbs",
        );
        amqp(number / 3, &link)
    }));
    assert_eq!(closed_by(&hub, &links).await, "amqp:resource-limit-exceeded");

    // A client that looks at what the hub allows does not even try.
    let mut peer = hub.dial().await;
    peer.session().await;
    for _ in 0..3 {
        peer.begin().await;
    }
    assert_eq!(peer.machine.begin(&mut peer.out), Err(OpenError::Limit));
    peer.is_alive().await;
}

#[tokio::test]
async fn a_frame_that_is_too_large_is_refused_by_its_length() {
    let hub = Hub::start();
    let mut raw = hub.raw().await;
    raw.open().await;
    // Nothing of it need be there.
    raw.send(&0x7fff_ffff_u32.to_be_bytes()).await;
    assert_eq!(raw.closed().await, "amqp:connection:framing-error");
    // Before open there is less room.
    let mut raw = hub.raw().await;
    raw.send(&Protocol::Amqp.header()).await;
    raw.send(&9_000_u32.to_be_bytes()).await;
    assert_eq!(raw.header().await, Protocol::Amqp.header());
    assert_eq!(raw.closed().await, "amqp:connection:framing-error");
}

#[tokio::test]
async fn sasl_lets_in_who_proves_something_and_asks_the_others_for_tokens() {
    let hub = Hub::start();
    for mechanism in ["ANONYMOUS", "MSSBCBS", "EXTERNAL"] {
        let mut peer = Peer::new(hub.socket().await, Config::default(), true);
        assert_eq!(peer.sasl(mechanism, b"").await, SaslCode::Ok, "{mechanism}");
        peer.open().await;
        let refused = peer.sender("/messages/deviceBound").await;
        assert_eq!(refused, Err("amqp:unauthorized-access".to_owned()), "{mechanism}");
    }
    for (response, address) in [
        (format!("\0service\0{POLICY_KEY}"), "/messages/deviceBound"),
        (
            "\0service@sas.root.hub\0policy:service".to_owned(),
            "/messages/deviceBound",
        ),
        (
            "\0d1@sas.hub\0device:d1".to_owned(),
            "/devices/d1/messages/events",
        ),
    ] {
        let mut peer = Peer::new(hub.socket().await, Config::default(), true);
        assert_eq!(
            peer.sasl("PLAIN", response.as_bytes()).await,
            SaslCode::Ok,
            "{response}"
        );
        peer.open().await;
        assert!(peer.sender(address).await.is_ok(), "{response}");
    }
    for (mechanism, response) in [
        ("PLAIN", "".to_owned()),
        ("PLAIN", "no zeros".to_owned()),
        ("PLAIN", "\0service\0wrong key".to_owned()),
        ("PLAIN", "\0nosuch\0wrong key".to_owned()),
        // Somebody else's token.
        ("PLAIN", "\0d1@sas.hub\0device:d2".to_owned()),
        ("PLAIN", "\0device@sas.root.hub\0policy:service".to_owned()),
        ("PLAIN", "\0\u{fffd}@\u{fffd}\0x".to_owned()),
        ("SCRAM-SHA-256", "".to_owned()),
        ("", "".to_owned()),
    ] {
        let mut peer = Peer::new(hub.socket().await, Config::default(), true);
        let code = peer.sasl(mechanism, response.as_bytes()).await;
        assert_eq!(code, SaslCode::Auth, "{mechanism} {response:?}");
        peer.wait("the end", |got| *got == Got::Gone).await;
    }
}

#[tokio::test]
async fn sasl_that_is_none_is_ended() {
    let hub = Hub::start();
    for bytes in [
        // A response without a challenge; an open; noise.
        b"\x00\x00\x00\x10\x02\x01\x00\x00\x00\x53\x43\xc0\x03\x01\xa0\x00".to_vec(),
        amqp(0, &open()),
        vec![0x55; 64],
    ] {
        let mut raw = hub.raw().await;
        raw.send(&Protocol::Sasl.header()).await;
        assert_eq!(raw.header().await, Protocol::Sasl.header());
        assert_eq!(raw.next().await.expect("an offer").text, "mechanisms");
        raw.send(&bytes).await;
        raw.hung_up().await;
    }
    let mut peer = hub.dial().await;
    peer.is_alive().await;
}

#[tokio::test]
async fn heartbeats_go_both_ways() {
    let machine = Config {
        idle_time_out_ms: 60_000,
        ..Config::default()
    };
    let hub = Hub::start_with(with_machine(machine));
    let client = Config {
        idle_time_out_ms: 20_000,
        ..Config::default()
    };
    let mut peer = hub.log_in_with(client, &["device:d1"]).await;
    let link = peer
        .sender("/devices/d1/messages/events")
        .await
        .expect("attached");
    // As long as the client is heard, the connection stays, and the hub is heard at least twice in the client's time.
    for _ in 0..20 {
        hub.clock.advance(Duration::from_secs(9));
        assert_eq!(peer.send(link, &message(b"x")).await, "accepted");
    }
    // It is silent now, and hears the hub until that gives it up.
    let mut raw = hub.raw().await;
    raw.send(&Protocol::Amqp.header()).await;
    let asks = Performative::Open(Box::new(Open {
        container_id: "raw",
        idle_time_out: Some(20_000),
        ..Open::default()
    }));
    raw.send(&amqp(0, &asks)).await;
    raw.header().await;
    raw.until("open").await;
    for _ in 0..4 {
        raw.send(&[0, 0, 0, 8, 2, 0, 0, 0]).await;
        let mut steps = 0;
        let said = loop {
            // A quarter of the time it can bear; the hub looks at each, or at several at once.
            hub.clock.advance(Duration::from_secs(5));
            let heard = tokio::time::timeout(Duration::from_millis(50), raw.next()).await;
            if let Ok(heard) = heard {
                break heard.expect("still there");
            }
            steps += 1;
            assert!(steps < 10, "no heartbeat");
        };
        assert_eq!(said.text, "heartbeat");
        assert_eq!(peer.send(link, &message(b"x")).await, "accepted");
    }
    drop(raw);
    hub.clock.advance(Duration::from_secs(61));
    assert_eq!(peer.closed().await, "amqp:connection:forced");
    let lost = ("d1".to_owned(), Disconnect::Lost);
    until("the session's end", || hub.gateway.disconnects().contains(&lost)).await;
}

#[tokio::test]
async fn who_does_not_get_on_is_ended() {
    let hub = Hub::start();
    // Nothing; half a header; no open; open, and then nothing that proves anything.
    let mut silent = hub.raw().await;
    let mut half = hub.raw().await;
    half.send(b"AMQ").await;
    let mut unopened = hub.raw().await;
    unopened.send(&Protocol::Amqp.header()).await;
    unopened.header().await;
    let mut idle = hub.raw().await;
    idle.open().await;
    let mut proven = hub.log_in(&["device:d1"]).await;
    until("all are known", || hub.head.connections() == 5).await;
    hub.clock.advance(Duration::from_secs(61));
    silent.hung_up().await;
    half.hung_up().await;
    assert_eq!(unopened.closed().await, "amqp:connection:forced");
    assert_eq!(idle.until("close").await.text, "close amqp:connection:forced");
    proven.is_alive().await;
}

#[tokio::test]
async fn failed_proofs_are_no_proof() {
    let hub = Hub::start();
    let mut peer = hub.dial().await;
    assert_eq!(peer.put_token("device:d1@x").await, 401);
    let refused = peer.sender("/devices/d1/messages/events").await;
    assert_eq!(refused, Err("amqp:unauthorized-access".to_owned()));
    hub.clock.advance(Duration::from_secs(61));
    assert_eq!(peer.closed().await, "amqp:connection:forced");
}

#[tokio::test]
async fn a_close_is_answered_and_the_client_may_hang_up_first() {
    let hub = Hub::start();
    let mut raw = hub.raw().await;
    raw.open().await;
    raw.send(&amqp(0, &Performative::Close(Close { error: None })))
        .await;
    assert_eq!(raw.closed().await, "in order");
    until("the end", || hub.head.connections() == 1).await;
    drop(raw);
    until("the end", || hub.head.connections() == 0).await;
}

#[tokio::test]
async fn the_hubs_close_waits_for_its_answer_but_not_for_ever() {
    let hub = Hub::start();
    let mut patient = hub.raw().await;
    patient.open().await;
    let mut mute = hub.raw().await;
    mute.open().await;
    hub.clock.advance(Duration::from_secs(61));
    // What is on its way when the hub closes does no harm.
    for raw in [&mut patient, &mut mute] {
        raw.send(&amqp(0, &begin())).await;
        assert_eq!(raw.until("close").await.text, "close amqp:connection:forced");
        raw.send(&amqp(1, &begin())).await;
    }
    assert_eq!(hub.head.connections(), 2);
    patient
        .send(&amqp(0, &Performative::Close(Close { error: None })))
        .await;
    patient.hung_up().await;
    drop(patient);
    until("one is gone", || hub.head.connections() == 1).await;
    hub.clock.advance(Duration::from_secs(3));
    mute.hung_up().await;
    until("both are gone", || hub.head.connections() == 0).await;
}

#[tokio::test]
async fn what_is_written_when_a_connection_breaks_is_read() {
    // The reason must get through although the client goes on sending what nobody reads.
    let hub = Hub::start();
    for _ in 0..20 {
        let mut raw = hub.raw().await;
        raw.open().await;
        let mut bytes = amqp(0, &open());
        for _ in 0..2_000 {
            bytes.extend_from_slice(&with_payload(0, &transfer(0, 0, true), &[0; 1_000]));
        }
        raw.send(&bytes).await;
        assert_eq!(raw.closed().await, "amqp:not-allowed");
    }
}

#[tokio::test]
async fn half_open_and_vanished_clients_leave_nothing() {
    let hub = Hub::start();
    let mut peer = hub.log_in(&["device:d1"]).await;
    let link = peer
        .sender("/devices/d1/messages/events")
        .await
        .expect("attached");
    // Half a message, then half a frame, then nothing: the write side is shut.
    let big = message(&[7; 100_000]);
    peer.post(link, &big, false);
    let half = peer.out.len() / 2;
    peer.out.truncate(half);
    peer.flush().await;
    peer.stream.shutdown().await.expect("shut");
    let lost = ("d1".to_owned(), Disconnect::Lost);
    until("the session's end", || hub.gateway.disconnects().contains(&lost)).await;
    until("the connection's end", || hub.head.connections() == 0).await;
    assert!(hub.gateway.received().is_empty());
}

#[tokio::test]
async fn a_client_that_does_not_read_is_not_read_either_and_ends() {
    let config = AmqpConfig {
        output_bytes_pause: 16 * 1024,
        output_bytes_max: 64 * 1024,
        ..quick()
    };
    let hub = Hub::start_with(config);
    let mut peer = hub.log_in(&["device:d1"]).await;
    peer.sender("/devices/d1/messages/events")
        .await
        .expect("attached");
    // From here on nothing is read: frames that the hub must answer, until it takes no more.
    let mut begun = Vec::new();
    for _ in 0..64 {
        begun.extend(amqp(
            0,
            &Performative::Flow(Flow {
                next_incoming_id: Some(0),
                incoming_window: 1_000,
                outgoing_window: 1_000,
                echo: true,
                ..Flow::default()
            }),
        ));
    }
    let mut written = 0;
    while let Ok(Ok(more)) = tokio::time::timeout(Duration::from_millis(300), peer.stream.write(&begun)).await
    {
        written += more;
        assert!(written < 64 << 20, "it would take for ever");
    }
    hub.clock.advance(Duration::from_secs(241));
    tokio::time::sleep(Duration::from_millis(50)).await;
    hub.clock.advance(Duration::from_secs(3));
    let lost = ("d1".to_owned(), Disconnect::Lost);
    until("the session's end", || hub.gateway.disconnects().contains(&lost)).await;
    until("the connection's end", || hub.head.connections() == 0).await;
}
