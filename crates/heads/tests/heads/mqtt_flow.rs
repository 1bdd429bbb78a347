//! Subscriptions, twins, methods and cloud-to-device messages (mqtt.md sections 5 and 6).

use std::time::Duration;

use bytes::Bytes;
use holdfast_heads::mqtt::MqttConfig;
use holdfast_model::Identity;
use holdfast_model::c2d::{ModuleInput, Settlement};
use holdfast_model::message::Message;
use holdfast_model::method::{MethodRequest, MethodResponse};
use holdfast_ports::session::Downlink;
use tokio::io::AsyncWriteExt;

use crate::client::{Got, Hub, publish_packet, subscribe_packet, unsubscribe_packet, until};

const TWIN: &str = "$iothub/twin/res/#";
const DESIRED: &str = "$iothub/twin/PATCH/properties/desired/#";
const METHODS: &str = "$iothub/methods/POST/#";
const C2D: &str = "devices/d1/messages/devicebound/#";

fn published(got: Got) -> (String, Vec<u8>, u8, u16, bool) {
    match got {
        Got::Publish {
            topic,
            payload,
            qos,
            id,
            dup,
        } => (topic, payload, qos, id, dup),
        other => panic!("not a PUBLISH: {other:?}"),
    }
}

fn message(body: &'static [u8]) -> Message {
    Message {
        body: Bytes::from_static(body),
        ..Message::default()
    }
}

#[tokio::test]
async fn known_filters_are_granted_and_remembered() {
    let hub = Hub::start();
    let mut client = hub.log_in("d1").await;
    let codes = client
        .subscribe(
            1,
            &[
                (C2D, 1),
                (TWIN, 0),
                (METHODS, 2),
                ("other/#", 1),
                ("devices/d2/messages/devicebound/#", 1),
            ],
        )
        .await;
    assert_eq!(codes, [1, 0, 1, 0x80, 0x80]);
    client.send(&unsubscribe_packet(2, METHODS)).await;
    assert_eq!(client.next().await, Got::UnsubAck(2));
    client.send(&unsubscribe_packet(3, "never/subscribed")).await;
    assert_eq!(client.next().await, Got::UnsubAck(3));
    drop(client);
    until("the session ends", || hub.gateway.session("d1").is_none()).await;
    let mut again = hub.dial().await;
    assert!(again.connect("d1").await, "session present");
    again.publish("$iothub/twin/GET/?$rid=1", b"", 0).await;
    assert_eq!(published(again.next().await).0, "$iothub/twin/res/200/?$rid=1");
    let mut module = hub.log_in("d1/m1").await;
    let own = [
        ("devices/d1/modules/m1/messages/devicebound/#", 1),
        ("devices/d1/modules/m1/#", 1),
    ];
    assert_eq!(module.subscribe(1, &own).await, [1, 1]);
}

#[tokio::test]
async fn twin_is_read_and_changed() {
    let hub = Hub::start();
    let mut client = hub.log_in("d1").await;
    // Not subscribed to the answers: quietly nothing (Python does this on every connect).
    client.publish("$iothub/twin/GET/?$rid=early", b" ", 1).await;
    assert_eq!(client.next().await, Got::PubAck(1));
    client.expect_silence().await;
    assert_eq!(client.subscribe(1, &[(TWIN, 1)]).await, [1]);
    client.publish("$iothub/twin/GET/?$rid=a-b%20c", b"", 2).await;
    assert_eq!(
        client.next().await,
        Got::PubAck(2),
        "the acknowledgement comes first"
    );
    let (topic, payload, qos, id, _) = published(client.next().await);
    assert_eq!(topic, "$iothub/twin/res/200/?$rid=a-b%20c");
    assert!(payload.starts_with(b"{\"desired\""));
    assert_eq!(qos, 1);
    assert_ne!(id, 0);
    client.send(&[0x40, 2, (id >> 8) as u8, id as u8]).await;
    client
        .publish("$iothub/twin/PATCH/properties/reported/?$rid=7", b"{\"a\":1}", 0)
        .await;
    let (topic, payload, ..) = published(client.next().await);
    assert_eq!(
        (&*topic, &*payload),
        ("$iothub/twin/res/204/?$rid=7&$version=2", &b""[..])
    );
    assert_eq!(hub.gateway.reported("d1"), Some((2, b"{\"a\":1}".to_vec())));
    client
        .publish(
            "$iothub/twin/PATCH/properties/reported/?$rid=8&$version=9",
            b"{}",
            0,
        )
        .await;
    let (topic, payload, ..) = published(client.next().await);
    assert_eq!(topic, "$iothub/twin/res/400/?$rid=8");
    let body = String::from_utf8(payload).expect("text");
    assert!(
        body.contains("\"errorCode\":400004") && body.contains("the patch is bad"),
        "{body}"
    );
}

#[tokio::test]
async fn a_reply_waits_for_the_acknowledgement_of_its_request() {
    let hub = Hub::start();
    let mut client = hub.log_in("d1").await;
    client.subscribe(1, &[(TWIN, 0)]).await;
    hub.gateway.hold_durability();
    let mut bytes = publish_packet("devices/d1/messages/events/", b"x", 1);
    bytes.extend(publish_packet("$iothub/twin/GET/?$rid=1", b"", 2));
    bytes.extend(publish_packet("devices/d1/messages/events/", b"x", 3));
    client.send(&bytes).await;
    until("appended", || hub.gateway.end() == 2).await;
    client.expect_silence().await;
    hub.gateway.make_durable(1);
    assert_eq!(client.next().await, Got::PubAck(1));
    assert_eq!(client.next().await, Got::PubAck(2));
    assert_eq!(published(client.next().await).0, "$iothub/twin/res/200/?$rid=1");
    hub.gateway.make_durable(2);
    assert_eq!(client.next().await, Got::PubAck(3));
}

#[tokio::test]
async fn requests_are_answered_in_order_and_bounded() {
    let hub = Hub::start();
    let mut client = hub.log_in("d1").await;
    let mut bytes = subscribe_packet(1, &[(TWIN, 0)]);
    for rid in 0..100 {
        bytes.extend(publish_packet(&format!("$iothub/twin/GET/?$rid={rid}"), b"", 0));
    }
    client.send(&bytes).await;
    assert_eq!(client.next().await, Got::SubAck(1, vec![0]));
    for rid in 0..100 {
        assert_eq!(
            published(client.next().await).0,
            format!("$iothub/twin/res/200/?$rid={rid}")
        );
    }
}

#[tokio::test]
async fn desired_properties_and_methods_reach_subscribers_only() {
    let hub = Hub::start();
    let mut client = hub.log_in("d1").await;
    let session = hub.gateway.session("d1").expect("live");
    let desired = |version| Downlink::Desired {
        version,
        patch: Bytes::from_static(b"{\"$version\":4}"),
    };
    let method = |request_id| {
        Downlink::Method(MethodRequest {
            request_id,
            name: "reboot".into(),
            payload: Bytes::from_static(b"{}"),
        })
    };
    session.push(desired(3)).expect("room");
    session.push(method(1)).expect("room");
    client.expect_silence().await;
    client.subscribe(1, &[(DESIRED, 1), (METHODS, 0)]).await;
    session.push(desired(4)).expect("room");
    let (topic, payload, qos, ..) = published(client.next().await);
    assert_eq!(topic, "$iothub/twin/PATCH/properties/desired/?$version=4");
    assert_eq!((&*payload, qos), (&b"{\"$version\":4}"[..], 1));
    session.push(method(0xab)).expect("room");
    let (topic, payload, qos, id, _) = published(client.next().await);
    assert_eq!(topic, "$iothub/methods/POST/reboot/?$rid=ab");
    assert_eq!((&*payload, qos, id), (&b"{}"[..], 0, 0));
    client
        .publish("$iothub/methods/res/200/?$rid=ab", b"{\"ok\":1}", 5)
        .await;
    assert_eq!(client.next().await, Got::PubAck(5));
    client
        .publish("$iothub/methods/res/200/?$rid=not-ours", b"", 0)
        .await;
    client.expect_silence().await;
    let expected = MethodResponse {
        status: 200,
        payload: Bytes::from_static(b"{\"ok\":1}"),
    };
    assert_eq!(hub.gateway.method_answers(), [(0xab, expected)]);
}

#[tokio::test]
async fn cloud_to_device_is_completed_by_puback() {
    let hub = Hub::start();
    for _ in 0..3 {
        hub.gateway.enqueue("d1", message(b"waiting"), false);
    }
    hub.gateway.enqueue("d1", message(b"again"), true);
    let mut client = hub.log_in("d1").await;
    assert_eq!(client.subscribe(1, &[(C2D, 1)]).await, [1]);
    let mut ids = Vec::new();
    for number in 1..=4u64 {
        let (topic, payload, qos, id, dup) = published(client.next().await);
        assert!(
            topic.starts_with(
                "devices/d1/messages/devicebound/%24.to=%2Fdevices%2Fd1%2Fmessages%2FdeviceBound"
            ),
            "{topic}"
        );
        assert_eq!(qos, 1);
        assert_eq!(
            (dup, &*payload),
            (number == 4, if number == 4 { b"again" } else { &b"waiting"[..] })
        );
        ids.push(id);
    }
    assert!(hub.gateway.settled().is_empty());
    // Out of order, as a client may.
    for id in [ids[1], ids[0], ids[3], ids[2]] {
        client.send(&[0x40, 2, (id >> 8) as u8, id as u8]).await;
    }
    until("all are completed", || hub.gateway.settled().len() == 4).await;
    let mut settled = hub.gateway.settled();
    settled.sort_by_key(|(number, _)| *number);
    assert_eq!(settled, [1, 2, 3, 4].map(|number| (number, Settlement::Complete)));
    // One that was never in flight means nothing.
    client.send(&[0x40, 2, 0x12, 0x34]).await;
    client.expect_silence().await;
}

#[tokio::test]
async fn in_flight_messages_are_bounded_and_go_on() {
    let hub = Hub::start();
    let mut client = hub.log_in("d1").await;
    client.subscribe(1, &[(C2D, 1)]).await;
    for _ in 0..40 {
        hub.gateway.enqueue("d1", message(b"x"), false);
    }
    let mut ids: Vec<u16> = Vec::new();
    for _ in 0..16 {
        ids.push(published(client.next().await).3);
    }
    client.expect_silence().await;
    for seen in 0..40 {
        let id = ids[seen];
        client.send(&[0x40, 2, (id >> 8) as u8, id as u8]).await;
        if ids.len() < 40 {
            ids.push(published(client.next().await).3);
        }
    }
    until("all are completed", || hub.gateway.settled().len() == 40).await;
}

fn puback(id: u16) -> [u8; 4] {
    [0x40, 2, (id >> 8) as u8, id as u8]
}

#[tokio::test]
async fn a_message_comes_again_when_its_lock_ends() {
    let hub = Hub::start();
    hub.gateway.set_lock_time(Duration::from_millis(150));
    let mut client = hub.log_in("d1").await;
    client.subscribe(1, &[(C2D, 1)]).await;
    hub.gateway.enqueue("d1", message(b"x"), false);
    let (_, _, _, first, dup) = published(client.next().await);
    assert!(!dup);
    for _ in 0..3 {
        let (_, payload, qos, id, dup) = published(client.next().await);
        assert_eq!((&*payload, qos, id, dup), (&b"x"[..], 1, first, true));
    }
    client.send(&puback(first)).await;
    until("it is completed", || {
        hub.gateway.settled() == [(1, Settlement::Complete)]
    })
    .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    client.expect_silence().await;
}

#[tokio::test]
async fn unanswered_messages_do_not_block_the_queue() {
    let hub = Hub::start_with(MqttConfig {
        c2d_in_flight_max: 4,
        ..MqttConfig::default()
    });
    hub.gateway.set_lock_time(Duration::from_millis(300));
    let mut client = hub.log_in("d1").await;
    client.subscribe(1, &[(C2D, 1)]).await;
    for _ in 0..6 {
        hub.gateway.enqueue("d1", message(b"x"), false);
    }
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(published(client.next().await).3);
    }
    client.expect_silence().await;
    // Another receiver settles two of them while the client says nothing.
    hub.gateway.complete_elsewhere(1);
    hub.gateway.complete_elsewhere(2);
    let mut again = Vec::new();
    for _ in 0..4 {
        let (_, _, _, id, dup) = published(client.next().await);
        again.push((id, dup));
    }
    assert_eq!(again[..2], [(ids[2], true), (ids[3], true)]);
    assert!(
        again[2..].iter().all(|(id, dup)| !dup && !ids.contains(id)),
        "{again:?}"
    );
    for (id, _) in again {
        client.send(&puback(id)).await;
    }
    // One whose message is gone harms nobody.
    client.send(&puback(ids[0])).await;
    until("the rest is completed", || hub.gateway.settled().len() == 6).await;
}

#[tokio::test]
async fn at_most_once_messages_are_complete_when_written() {
    let hub = Hub::start();
    let mut client = hub.log_in("d1").await;
    client.subscribe(1, &[(C2D, 0)]).await;
    for _ in 0..40 {
        hub.gateway.enqueue("d1", message(b"x"), true);
    }
    for _ in 0..40 {
        let (_, _, qos, id, dup) = published(client.next().await);
        assert_eq!((qos, id, dup), (0, 0, false));
    }
    until("all are completed", || hub.gateway.settled().len() == 40).await;
}

#[tokio::test]
async fn a_restored_subscription_flows_without_subscribe() {
    let hub = Hub::start();
    let mut client = hub.log_in("d1").await;
    client.subscribe(1, &[(C2D, 1)]).await;
    drop(client);
    until("the session ends", || hub.gateway.session("d1").is_none()).await;
    hub.gateway.enqueue("d1", message(b"offline"), false);
    let mut client = hub.dial().await;
    assert!(client.connect("d1").await);
    assert_eq!(published(client.next().await).1, b"offline");
}

#[tokio::test]
async fn a_client_that_does_not_read_is_bounded() {
    let hub = Hub::start_with(MqttConfig {
        output_bytes_max: 256 * 1024,
        ..MqttConfig::default()
    });
    let mut client = hub.log_in("d1").await;
    client.subscribe(1, &[(DESIRED, 0)]).await;
    let session = hub.gateway.session("d1").expect("live");
    let patch = Bytes::from(vec![b'x'; 32 * 1024]);
    until("the hub gives up", || {
        let full = session.push(Downlink::Desired {
            version: 1,
            patch: patch.clone(),
        });
        full.is_err() && session.is_ended()
    })
    .await;
    drop(client);
}

#[tokio::test]
async fn a_client_that_asks_and_does_not_read_is_paused() {
    let hub = Hub::start();
    let mut client = hub.log_in("d1").await;
    client.subscribe(1, &[(TWIN, 0)]).await;
    let request = publish_packet("$iothub/twin/GET/?$rid=1", b"", 0).repeat(1_000);
    // Far more answers than the sockets hold: at some point the hub stops reading, and the client cannot write.
    let mut written = 0u64;
    let blocked = tokio::time::timeout(std::time::Duration::from_millis(1_500), async {
        loop {
            client.stream.write_all(&request).await.expect("still connected");
            written += 1;
        }
    })
    .await;
    assert!(blocked.is_err() && written > 0);
    let mut seen = 0;
    while seen < 1_000 {
        published(client.next().await);
        seen += 1;
    }
}

#[tokio::test]
async fn a_module_gets_what_is_for_its_inputs() {
    let hub = Hub::start();
    let mut client = hub.log_in("e1/m1").await;
    let codes = client
        .subscribe(1, &[("devices/e1/modules/m1/inputs/#", 1)])
        .await;
    assert_eq!(codes, [1]);
    for (sender, origin) in [
        ("e1/sender", "%24.cdid=e1&%24.cmid=sender"),
        ("leaf", "%24.cdid=leaf"),
    ] {
        let input = ModuleInput {
            input: "in1".to_owned(),
            sender: Identity::parse(sender).expect("an identity"),
        };
        let number = hub.gateway.enqueue_input("e1/m1", message(b"22.5"), input);
        let (topic, payload, qos, id, _) = published(client.next().await);
        assert_eq!(topic, format!("devices/e1/modules/m1/inputs/in1/{origin}"));
        assert_eq!((payload.as_slice(), qos), (&b"22.5"[..], 1));
        client.send(&[0x40, 2, (id >> 8) as u8, id as u8]).await;
        until("completed", || {
            hub.gateway.settled().contains(&(number, Settlement::Complete))
        })
        .await;
    }
}

#[tokio::test]
async fn a_tolerant_head_acknowledges_what_it_drops_and_grants_what_it_does_not_know() {
    let hub = Hub::start_with(MqttConfig {
        tolerant: true,
        ..MqttConfig::default()
    });
    let mut client = hub.log_in("e1/m1").await;
    assert_eq!(client.subscribe(1, &[("other/#", 1), ("more", 0)]).await, [1, 0]);
    client
        .publish("devices/e1/modules/m1/messages/events/", b"1", 7)
        .await;
    client.publish("no/such/topic", b"2", 8).await;
    client
        .publish("devices/e1/modules/m1/messages/events/", b"3", 9)
        .await;
    for id in [7, 8, 9] {
        assert_eq!(client.next().await, Got::PubAck(id));
    }
    let bodies: Vec<Vec<u8>> = hub.gateway.received().into_iter().map(|got| got.body).collect();
    assert_eq!(bodies, [b"1".to_vec(), b"3".to_vec()]);
}
