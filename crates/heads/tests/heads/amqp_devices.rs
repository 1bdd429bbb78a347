//! Messages towards devices: locks, settlement, credit.

use std::time::Duration;

use holdfast_amqp::message::Writer;
use holdfast_amqp::performatives::{Attach, DeliveryState, ReceiverSettleMode, SenderSettleMode};
use holdfast_amqp::types::Value;
use holdfast_amqp::{Config, LinkId};
use holdfast_heads::amqp::AmqpConfig;
use holdfast_model::Identity;
use holdfast_model::c2d::{ModuleInput, Settlement};
use holdfast_model::message::{Message, SystemProperty};
use holdfast_model::subscription::Channel;
use holdfast_ports::session::Downlink;
use tokio::net::TcpStream;

use crate::amqp_client::{Got, Hub, Peer, body, quick};
use crate::client::until;

const C2D: &str = "/devices/d1/messages/deviceBound";

fn text(body: &str) -> Message {
    Message {
        body: body.to_owned().into(),
        ..Message::default()
    }
}

async fn c2d(peer: &mut Peer<TcpStream>, window: u32, second: bool) -> LinkId {
    let session = peer.session().await;
    let attach = Attach {
        snd_settle_mode: SenderSettleMode::Unsettled,
        rcv_settle_mode: match second {
            true => ReceiverSettleMode::Second,
            false => ReceiverSettleMode::First,
        },
        ..Attach::receiver("c2d", C2D)
    };
    peer.attach(session, &attach, window).await.expect("attached")
}

#[tokio::test]
async fn every_outcome_settles_its_message() {
    let hub = Hub::start();
    let mut peer = hub.log_in(&["device:d1"]).await;
    let link = c2d(&mut peer, 10, false).await;
    let modified = DeliveryState::Modified {
        delivery_failed: true,
        undeliverable_here: false,
        message_annotations: None,
    };
    for (state, settlement) in [
        (DeliveryState::Accepted, Settlement::Complete),
        (DeliveryState::Released, Settlement::Abandon),
        (DeliveryState::Rejected(None), Settlement::Reject),
        (modified, Settlement::Abandon),
    ] {
        let number = hub.gateway.enqueue("d1", text("x"), false);
        let (id, settled, _) = peer.received(link).await;
        assert!(!settled);
        peer.settle(link, id, &state, true).await;
        until("settled", || {
            hub.gateway.settled().contains(&(number, settlement))
        })
        .await;
    }
}

#[tokio::test]
async fn who_settles_second_is_told_accepted_or_that_the_lock_is_lost() {
    let hub = Hub::start();
    let mut peer = hub.log_in(&["device:d1"]).await;
    let link = c2d(&mut peer, 10, true).await;
    for state in [
        DeliveryState::Accepted,
        DeliveryState::Released,
        DeliveryState::Rejected(None),
    ] {
        hub.gateway.enqueue("d1", text("x"), false);
        let (id, _, _) = peer.received(link).await;
        peer.settle(link, id, &state, false).await;
        let told = peer
            .wait("the echo", |got| matches!(got, Got::Settled(of, _) if *of == id))
            .await;
        assert_eq!(told, Got::Settled(id, "accepted".to_owned()), "{state:?}");
    }
    let number = hub.gateway.enqueue("d1", text("x"), false);
    let (id, _, _) = peer.received(link).await;
    hub.gateway.complete_elsewhere(number);
    peer.settle(link, id, &DeliveryState::Accepted, false).await;
    let told = peer
        .wait("the echo", |got| matches!(got, Got::Settled(of, _) if *of == id))
        .await;
    let Got::Settled(_, told) = told else {
        panic!("{told:?}")
    };
    assert!(told.starts_with("rejected "), "{told}");
    assert!(told.contains("lock-lost") || told.contains("not-found"), "{told}");
}

#[tokio::test]
async fn delivery_tags_are_the_lock_of_sixteen_bytes() {
    let hub = Hub::start();
    let mut peer = hub.log_in(&["device:d1"]).await;
    let link = c2d(&mut peer, 10, false).await;
    hub.gateway.enqueue("d1", text("x"), false);
    let got = peer
        .wait(
            "a message",
            |got| matches!(got, Got::Transfer { link: of, .. } if *of == link),
        )
        .await;
    let Got::Transfer { tag, .. } = got else {
        panic!("{got:?}")
    };
    assert_eq!(tag.len(), 16);
}

#[tokio::test]
async fn a_receiver_that_never_settles_holds_few_messages_and_they_come_again() {
    let config = AmqpConfig {
        c2d_in_flight_max: 4,
        ..quick()
    };
    let hub = Hub::start_with(config);
    let mut never = hub.log_in(&["device:d1"]).await;
    let link = c2d(&mut never, 1_000, true).await;
    for number in 0..20 {
        hub.gateway.enqueue("d1", text(&number.to_string()), false);
    }
    let mut first = Vec::new();
    for round in 0..5 {
        for number in 0..4 {
            let (id, _, message) = never.received(link).await;
            assert_eq!(body(&message), number.to_string().as_bytes(), "round {round}");
            first.push(id);
        }
        // Credit or not: no more than four.
        never.is_alive().await;
        let more = never.queue.iter().any(|got| matches!(got, Got::Transfer { .. }));
        assert!(!more, "{:?}", never.queue);
        // After their locks have ended they come again, first of all.
        hub.clock.advance(Duration::from_secs(61));
    }
    // Of those that are overdue few are remembered: the older ones are settled by the hub.
    let told = never.wait("the end", |got| matches!(got, Got::Settled(..))).await;
    assert_eq!(told, Got::Settled(first[0], "released".to_owned()));
    // A late answer to one that is remembered is answered: somebody else may have it.
    for _ in 0..4 {
        never.received(link).await;
    }
    never
        .settle(link, first[19], &DeliveryState::Accepted, false)
        .await;
    let told = never
        .wait(
            "an answer",
            |got| matches!(got, Got::Settled(of, _) if *of == first[19]),
        )
        .await;
    let Got::Settled(_, told) = told else {
        panic!("{told:?}")
    };
    assert!(told.starts_with("rejected "), "{told}");
    drop(never);
    // Nothing was lost: somebody who settles gets them all.
    until("the end", || hub.gateway.live() == 0).await;
    hub.clock.advance(Duration::from_secs(61));
    let mut other = hub.log_in(&["device:d1"]).await;
    let link = c2d(&mut other, 1_000, false).await;
    let mut seen = Vec::new();
    while seen.len() < 20 {
        let (id, _, message) = other.received(link).await;
        let text = String::from_utf8(body(&message)).expect("text");
        other.settle(link, id, &DeliveryState::Accepted, true).await;
        seen.push(text.parse::<u32>().expect("a number"));
    }
    assert_eq!(seen, (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_closed_window_delays_messages_and_opens_them_again() {
    let hub = Hub::start();
    // The client takes three transfers at a time.
    let few = Config {
        incoming_window: 3,
        ..Config::default()
    };
    let mut peer = hub.log_in_with(few, &["device:d1"]).await;
    let link = c2d(&mut peer, 1_000, false).await;
    for number in 0..50 {
        hub.gateway.enqueue("d1", text(&number.to_string()), false);
    }
    for number in 0..50u32 {
        let (id, _, message) = peer.received(link).await;
        assert_eq!(body(&message), number.to_string().as_bytes());
        // Some stay unsettled, fewer than may.
        if number % 4 != 0 {
            peer.settle(link, id, &DeliveryState::Accepted, true).await;
        }
    }
}

#[tokio::test]
async fn a_lost_link_gives_its_messages_back() {
    let hub = Hub::start();
    for way in 0..3 {
        let mut peer = hub.log_in(&["device:d1"]).await;
        let link = c2d(&mut peer, 10, false).await;
        let number = hub.gateway.enqueue("d1", text("x"), false);
        peer.received(link).await;
        match way {
            0 => peer.machine.detach(link, None, &mut peer.out),
            1 => peer.machine.end(link.session(), None, &mut peer.out),
            _ => drop(std::mem::take(&mut peer.out)),
        }
        peer.flush().await;
        if way == 2 {
            // Settled messages are not touched by the end; this one is locked until its time is over.
            drop(peer);
            until("the end", || hub.head.connections() <= 2).await;
            break;
        }
        let released = (number, Settlement::Release);
        until("given back", || hub.gateway.settled().contains(&released)).await;
    }
}

#[tokio::test]
async fn credit_is_kept_to_and_a_drain_uses_or_returns_it() {
    let hub = Hub::start();
    let mut peer = hub.log_in(&["device:d1", "policy:service"]).await;
    let link = c2d(&mut peer, 0, false).await;
    for number in 0..5 {
        hub.gateway.enqueue("d1", text(&number.to_string()), false);
    }
    peer.is_alive().await;
    assert!(!peer.queue.iter().any(|got| matches!(got, Got::Transfer { .. })));
    peer.machine.set_credit(link, 2, &mut peer.out);
    peer.flush().await;
    for _ in 0..2 {
        let (id, _, _) = peer.received(link).await;
        peer.settle(link, id, &DeliveryState::Accepted, true).await;
    }
    peer.is_alive().await;
    assert!(!peer.queue.iter().any(|got| matches!(got, Got::Transfer { .. })));
    // The events of an empty partition: the credit comes back.
    let events = peer
        .receiver("events/ConsumerGroups/$Default/Partitions/0", 0)
        .await
        .expect("attached");
    peer.machine.drain(events, 7, &mut peer.out);
    peer.flush().await;
    peer.wait("the credit back", |got| *got == Got::Drained(events))
        .await;
    assert_eq!(peer.machine.credit(events), 0);
    // Messages that are there come first.
    let sends = peer.sender("events/Partitions/0").await.expect("attached");
    for number in 0..3u8 {
        let event = crate::amqp_client::message(&[number]);
        assert_eq!(peer.send(sends, &event).await, "accepted");
    }
    peer.machine.drain(events, 7, &mut peer.out);
    peer.flush().await;
    for number in 0..3u8 {
        let (_, _, event) = peer.received(events).await;
        assert_eq!(body(&event), [number]);
    }
    peer.wait("the credit back", |got| *got == Got::Drained(events))
        .await;
}

#[tokio::test]
async fn pushes_wait_for_credit_within_the_mailbox() {
    let hub = Hub::start();
    let mut peer = hub.log_in(&["device:d1"]).await;
    let session = peer.session().await;
    let requests = peer.sender("/devices/d1/twin").await.expect("attached");
    let answers = peer
        .attach(session, &Attach::receiver("twin", "/devices/d1/twin"), 0)
        .await
        .expect("attached");
    let mut observe = Vec::new();
    Writer::new(&mut observe)
        .message_annotations(|map| {
            map.symbol("operation", &Value::String("PUT"));
            map.symbol(
                "resource",
                &Value::String("/notifications/twin/properties/desired"),
            );
        })
        .data(b"");
    assert_eq!(peer.send(requests, &observe).await, "accepted");
    let handle = hub.gateway.session("d1").expect("a session");
    let patch = |version: u64| Downlink::Desired {
        version,
        patch: format!("{{\"$version\":{version}}}").into(),
    };
    let mut pushed = 0;
    // Without credit the mailbox fills up, and says so.
    until("the answer is there", || {
        handle.subscribed(Channel::DesiredProperties)
    })
    .await;
    while handle.push(patch(pushed)).is_ok() {
        pushed += 1;
        tokio::task::yield_now().await;
        assert!(pushed < 10_000, "no bound");
    }
    peer.machine.set_credit(answers, 100_000, &mut peer.out);
    peer.flush().await;
    // The answer to the request, and then all that was taken, in order.
    peer.received(answers).await;
    for version in 0..pushed {
        let (_, _, message) = peer.received(answers).await;
        assert_eq!(body(&message), format!("{{\"$version\":{version}}}").into_bytes());
    }
}

#[tokio::test]
async fn services_send_to_devices_and_hear_why_not() {
    let hub = Hub::start();
    let mut peer = hub.log_in(&["policy:service"]).await;
    let link = peer.sender("/messages/deviceBound").await.expect("attached");
    let to = |device: &str| {
        let mut message = Vec::new();
        let to = format!("/devices/{device}/messages/deviceBound");
        Writer::new(&mut message)
            .properties(&holdfast_amqp::message::Properties {
                to: Some(&to),
                ..Default::default()
            })
            .data(b"hello");
        message
    };
    assert_eq!(peer.send(link, &to("d1")).await, "accepted");
    assert_eq!(peer.send(link, &to("nobody")).await, "rejected amqp:not-found");
    assert_eq!(
        peer.send(link, &to("full")).await,
        "rejected amqp:resource-limit-exceeded"
    );
    let nowhere = crate::amqp_client::message(b"x");
    assert!(peer.send(link, &nowhere).await.starts_with("rejected "));
    // More at once than run at once: all are answered, and those of one device keep their order.
    let tokens: Vec<u64> = (0..200)
        .map(|n| peer.post(link, &to(&format!("d{}", n % 7)), false))
        .collect();
    peer.flush().await;
    for token in tokens {
        assert_eq!(peer.outcome(token).await, "accepted");
    }
    assert_eq!(hub.services.sent().len(), 201);
}

#[tokio::test]
async fn a_reader_that_never_settles_reads_on() {
    // As azure-eventhub for Python does, for hours.
    const EVENTS: u32 = 20_000;
    let hub = Hub::start();
    let mut peer = hub.log_in(&["policy:service"]).await;
    let sends = peer.sender("events/Partitions/0").await.expect("attached");
    let session = peer.begin().await;
    let address = "events/ConsumerGroups/$Default/Partitions/0";
    let attach = Attach {
        snd_settle_mode: SenderSettleMode::Unsettled,
        ..Attach::receiver("reader", address)
    };
    let reads = peer.attach(session, &attach, 0).await.expect("attached");
    let mut next = 0u32;
    let mut sent = 0u32;
    while next < EVENTS {
        while sent < (next + 500).min(EVENTS) && peer.machine.can_send(sends) > 0 {
            peer.post(sends, &crate::amqp_client::message(&sent.to_be_bytes()), true);
            sent += 1;
        }
        // Its whole prefetch anew when it has used up what it had.
        if peer.machine.credit(reads) == 0 {
            peer.machine.set_credit(reads, 300, &mut peer.out);
        }
        peer.flush().await;
        let (_, _, event) = peer.received(reads).await;
        assert_eq!(body(&event), next.to_be_bytes());
        next += 1;
    }
}

#[tokio::test]
async fn events_larger_than_the_reader_takes_end_it_with_a_reason() {
    let hub = Hub::start();
    let mut peer = hub.log_in(&["policy:service"]).await;
    let sends = peer.sender("events/Partitions/0").await.expect("attached");
    for size in [10, 5_000] {
        let event = crate::amqp_client::message(&vec![1; size]);
        assert_eq!(peer.send(sends, &event).await, "accepted");
    }
    let session = peer.session().await;
    let attach = Attach {
        max_message_size: Some(1_000),
        ..Attach::receiver("reader", "events/ConsumerGroups/$Default/Partitions/0")
    };
    let reads = peer.attach(session, &attach, 10).await.expect("attached");
    let (_, _, event) = peer.received(reads).await;
    assert_eq!(body(&event).len(), 10);
    assert_eq!(peer.detached(reads).await, "amqp:link:message-size-exceeded");
    peer.is_alive().await;
}

#[tokio::test]
async fn feedback_that_is_never_settled_comes_again_and_is_bounded() {
    let config = AmqpConfig {
        feedback_in_flight_max: 3,
        ..quick()
    };
    let hub = Hub::start_with(config);
    hub.services.make_feedback(10);
    let mut never = hub.log_in(&["policy:service"]).await;
    let feedback = "/messages/serviceBound/feedback";
    let session = never.session().await;
    let attach = Attach {
        rcv_settle_mode: ReceiverSettleMode::Second,
        ..Attach::receiver("feedback", feedback)
    };
    let link = never.attach(session, &attach, 1_000).await.expect("attached");
    let mut first = Vec::new();
    for _ in 0..3 {
        for _ in 0..3 {
            first.push(never.received(link).await.0);
        }
        never.is_alive().await;
        assert!(!never.queue.iter().any(|got| matches!(got, Got::Transfer { .. })));
        hub.clock.advance(Duration::from_secs(61));
    }
    // Few of those that are overdue are remembered, and a late answer to one of them is answered.
    let told = never.wait("the end", |got| matches!(got, Got::Settled(..))).await;
    assert_eq!(told, Got::Settled(first[0], "released".to_owned()));
    never
        .settle(link, first[8], &DeliveryState::Accepted, false)
        .await;
    let told = never
        .wait(
            "an answer",
            |got| matches!(got, Got::Settled(of, _) if *of == first[8]),
        )
        .await;
    assert!(
        matches!(&told, Got::Settled(_, told) if told.starts_with("rejected ")),
        "{told:?}"
    );
    drop(never);
    until("the end", || hub.head.connections() == 0).await;
    // Whoever settles gets all of it.
    let mut other = hub.log_in(&["policy:service"]).await;
    let session = other.session().await;
    let link = other.attach(session, &attach, 1_000).await.expect("attached");
    for _ in 0..10 {
        let (id, _, _) = other.received(link).await;
        other.settle(link, id, &DeliveryState::Accepted, true).await;
        hub.clock.advance(Duration::from_secs(2));
    }
    until("all is complete", || hub.services.feedback_complete() == 10).await;
}

#[tokio::test]
async fn a_module_of_an_edge_hub_gets_what_is_for_its_inputs() {
    let hub = Hub::start_with(AmqpConfig {
        module_inputs: true,
        ..quick()
    });
    let mut peer = hub.log_in(&["device:e1/m1"]).await;
    let link = peer
        .receiver("/devices/e1/modules/m1/messages/events", 10)
        .await
        .expect("agreed");
    let input = ModuleInput {
        input: "in1".to_owned(),
        sender: Identity::parse("e1/sender").expect("an identity"),
    };
    let mut sent = text("22.5");
    sent.set_system(SystemProperty::MessageSchema, "s1");
    sent.set_property("unit", Some("C".to_owned()));
    let number = hub.gateway.enqueue_input("e1/m1", sent, input);
    let (id, settled, bytes) = peer.received(link).await;
    assert!(!settled);
    let message = holdfast_amqp::Message::decode(&bytes).expect("a message");
    let annotation = |name: &str| {
        let map = message.message_annotations.expect("annotations");
        map.get(name).and_then(|value| value.as_str()).map(str::to_owned)
    };
    assert_eq!(annotation("x-opt-input-name").as_deref(), Some("in1"));
    assert_eq!(annotation("iothub-connection-device-id").as_deref(), Some("e1"));
    assert_eq!(
        annotation("iothub-connection-module-id").as_deref(),
        Some("sender")
    );
    assert_eq!(message.properties.to, None);
    let application = message.application_properties.expect("properties");
    for (name, value) in [("iothub-message-schema", "s1"), ("unit", "C")] {
        let got = application
            .get(name)
            .and_then(|value| value.as_str().map(str::to_owned));
        assert_eq!(got.as_deref(), Some(value), "{name}");
    }
    peer.settle(link, id, &DeliveryState::Accepted, true).await;
    until("settled", || {
        hub.gateway.settled().contains(&(number, Settlement::Complete))
    })
    .await;
}
