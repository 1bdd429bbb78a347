//! Telemetry: acknowledged when durable, in order, with bounds (mqtt.md sections 3, 4 and 7).

use std::time::Duration;

use holdfast_heads::mqtt::MqttConfig;
use holdfast_mqtt::codec::{Connect, QoS, Will, encode_connect};
use holdfast_ports::gateway::Disconnect;
use holdfast_ports::session::CloseReason;

use crate::client::{Got, Hub, publish_packet, until};

const EVENTS: &str = "devices/d1/messages/events/";

#[tokio::test]
async fn properties_and_body_arrive() {
    let hub = Hub::start();
    let mut client = hub.log_in("d1").await;
    client
        .publish("devices/d1/messages/events/%24.ct=a%2Fb&level=3&flag", b"{}", 7)
        .await;
    assert_eq!(client.next().await, Got::PubAck(7));
    let mut retained = publish_packet("devices/d1/messages/events", b"", 8);
    retained[0] |= 1;
    client.send(&retained).await;
    assert_eq!(client.next().await, Got::PubAck(8));
    let received = hub.gateway.received();
    assert_eq!(received[0].properties, ["ContentType=a/b", "level=3", "flag=-"]);
    assert_eq!(received[0].body, b"{}");
    assert_eq!(received[1].properties, ["mqtt-retain=true"]);
}

#[tokio::test]
async fn acknowledged_only_when_durable_and_in_order() {
    let hub = Hub::start();
    hub.gateway.hold_durability();
    let mut client = hub.log_in("d1").await;
    let mut bytes = Vec::new();
    for id in 1..=10 {
        bytes.extend(publish_packet(EVENTS, &[id as u8], id));
    }
    client.send(&bytes).await;
    until("all are appended", || hub.gateway.end() == 10).await;
    client.expect_silence().await;
    for id in 11..=20 {
        client.publish(EVENTS, &[id as u8], id).await;
        until("appended", || hub.gateway.end() == u64::from(id)).await;
    }
    client.expect_silence().await;
    hub.gateway.make_durable(15);
    for id in 1..=15 {
        assert_eq!(client.next().await, Got::PubAck(id));
    }
    client.expect_silence().await;
    hub.gateway.make_durable(20);
    for id in 16..=20 {
        assert_eq!(client.next().await, Got::PubAck(id));
    }
    let bodies: Vec<u8> = hub
        .gateway
        .received()
        .iter()
        .map(|message| message.body[0])
        .collect();
    assert_eq!(bodies, (1..=20).collect::<Vec<u8>>());
    assert!(
        hub.gateway.appends() <= 11,
        "one append per read: {}",
        hub.gateway.appends()
    );
}

#[tokio::test]
async fn one_waker_per_connection_waits_for_the_log() {
    let hub = Hub::start();
    hub.gateway.hold_durability();
    let mut client = hub.log_in("d1").await;
    for id in 1..=20 {
        client.publish(EVENTS, b"x", id).await;
        client.expect_silence().await;
    }
    assert_eq!((hub.gateway.waiting(), hub.gateway.registrations()), (1, 1));
    hub.gateway.make_durable(20);
    for id in 1..=20 {
        assert_eq!(client.next().await, Got::PubAck(id));
    }
}

#[tokio::test]
async fn at_most_once_is_not_acknowledged() {
    let hub = Hub::start();
    let mut client = hub.log_in("d1").await;
    client.publish(EVENTS, b"x", 0).await;
    client.expect_silence().await;
    assert_eq!(hub.gateway.received().len(), 1);
}

#[tokio::test]
async fn a_full_log_is_waited_for() {
    let hub = Hub::start();
    hub.gateway.set_busy(true);
    let mut client = hub.log_in("d1").await;
    let mut bytes = Vec::new();
    for id in 1..=5 {
        bytes.extend(publish_packet(EVENTS, &[id as u8], id));
    }
    bytes.extend(publish_packet("$iothub/methods/res/200/?$rid=1", b"{}", 6));
    client.send(&bytes).await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert!(hub.gateway.received().is_empty());
    hub.gateway.set_busy(false);
    for id in 1..=6 {
        assert_eq!(client.next().await, Got::PubAck(id));
    }
    let bodies: Vec<u8> = hub
        .gateway
        .received()
        .iter()
        .map(|message| message.body[0])
        .collect();
    assert_eq!(bodies, [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn a_failed_log_closes_without_acknowledging() {
    let hub = Hub::start();
    hub.gateway.hold_durability();
    let mut client = hub.log_in("d1").await;
    client.publish(EVENTS, b"x", 1).await;
    until("appended", || hub.gateway.end() == 1).await;
    hub.gateway.fail();
    client.expect_closed().await;
}

#[tokio::test]
async fn reading_stops_at_the_window() {
    let hub = Hub::start_with(MqttConfig {
        unacknowledged_max: 8,
        ..MqttConfig::default()
    });
    hub.gateway.hold_durability();
    let mut client = hub.log_in("d1").await;
    for id in 1..=8 {
        client.publish(EVENTS, b"x", id).await;
        until("appended", || hub.gateway.end() == u64::from(id)).await;
    }
    client.publish(EVENTS, b"x", 9).await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert_eq!(hub.gateway.end(), 8, "not read");
    hub.gateway.make_durable(1);
    assert_eq!(client.next().await, Got::PubAck(1));
    until("read again", || hub.gateway.end() == 9).await;
}

#[tokio::test]
async fn largest_message_fits_and_larger_closes() {
    let hub = Hub::start();
    let mut client = hub.log_in("d1").await;
    let largest = vec![b'x'; 256 * 1024];
    client.publish(EVENTS, &largest, 1).await;
    assert_eq!(client.next().await, Got::PubAck(1));
    assert_eq!(hub.gateway.received()[0].body.len(), 256 * 1024);
    // One byte more, and a packet whose header alone is too much.
    client.publish(EVENTS, &vec![b'x'; 256 * 1024 + 1], 2).await;
    client.expect_closed().await;
    let mut client = hub.log_in("d1").await;
    client.send(&[0x32, 0xff, 0xff, 0xff, 0x01]).await;
    client.expect_closed().await;
    assert_eq!(hub.gateway.received().len(), 1);
}

#[tokio::test]
async fn forbidden_publishes_close_but_what_came_before_counts() {
    let hub = Hub::start();
    for (topic, payload) in [
        ("devices/d2/messages/events/", &b"x"[..]),
        ("devices/d1/modules/m1/messages/events/", b"x"),
        ("some/topic", b"x"),
        ("$iothub/twin/GET/", b""),
        ("$iothub/twin/GET/deeper/?$rid=1", b""),
        ("$iothub/methods/res/", b""),
    ] {
        let before = hub.gateway.received().len();
        let mut client = hub.log_in("d1").await;
        let mut bytes = publish_packet(EVENTS, b"before", 1);
        bytes.extend(publish_packet(topic, payload, 2));
        bytes.extend(publish_packet(EVENTS, b"after", 3));
        client.send(&bytes).await;
        while let Some(got) = client.try_next().await {
            assert_eq!(got, Got::PubAck(1), "{topic}");
        }
        assert_eq!(hub.gateway.received().len(), before + 1, "{topic}");
    }
}

#[tokio::test]
async fn qos_two_bad_utf8_and_reserved_bits_close() {
    let hub = Hub::start();
    for packet in [
        &b"\x34\x05\x00\x01a\x00\x01"[..],
        b"\x36\x05\x00\x01a\x00\x01",
        b"\x30\x04\x00\x02\xff\xfe",
        b"\x62\x02\x00\x01",
        b"\x32\x05\x00\x01a\x00\x00",
        b"\x80\x06\x00\x01\x00\x01a\x00",
    ] {
        let mut client = hub.log_in("d1").await;
        client.send(packet).await;
        client.expect_closed().await;
    }
}

fn connect_with_will(topic: &str, retain: bool) -> Vec<u8> {
    let mut packet = Vec::new();
    let connect = Connect {
        client_id: "d1",
        username: Some("hub.test/d1/?api-version=2021-04-12"),
        password: Some(b"good"),
        will: Some(Will {
            topic,
            payload: b"gone",
            qos: QoS::AtLeastOnce,
            retain,
        }),
        ..Connect::default()
    };
    encode_connect(&mut packet, &connect).expect("fits");
    packet
}

#[tokio::test]
async fn the_will_is_published_unless_the_client_says_goodbye_or_is_taken_over() {
    let hub = Hub::start();
    for (topic, end, published) in [
        ("devices/d1/messages/events/a=1", &b""[..], true),
        (
            "devices/d1/messages/events/a=1",
            b"\x34\x05\x00\x01a\x00\x01",
            true,
        ),
        ("devices/d1/messages/events/a=1", b"\xe0\x00", false),
        ("devices/d2/messages/events/a=1", b"", false),
    ] {
        let (before, ends) = (hub.gateway.received().len(), hub.gateway.disconnects().len());
        let mut client = hub.dial().await;
        client.send(&connect_with_will(topic, true)).await;
        assert_eq!(client.next().await, Got::ConnAck(false, 0));
        client.send(end).await;
        drop(client);
        until("the session ends", || hub.gateway.disconnects().len() > ends).await;
        let received = hub.gateway.received();
        assert_eq!(received.len(), before + usize::from(published), "{topic} {end:?}");
        if published {
            let will = received.last().expect("the will");
            assert_eq!(
                will.properties,
                ["a=1", "iothub-MessageType=Will", "mqtt-retain=true"]
            );
            assert_eq!(will.body, b"gone");
        }
    }
    let before = hub.gateway.received().len();
    let mut old = hub.dial().await;
    old.send(&connect_with_will("devices/d1/messages/events/", false))
        .await;
    assert_eq!(old.next().await, Got::ConnAck(false, 0));
    hub.log_in("d1").await;
    old.expect_closed().await;
    assert_eq!(hub.gateway.received().len(), before);
}

#[tokio::test]
async fn a_will_waits_for_a_full_log() {
    let hub = Hub::start();
    let mut client = hub.dial().await;
    client
        .send(&connect_with_will("devices/d1/messages/events/", false))
        .await;
    assert_eq!(client.next().await, Got::ConnAck(false, 0));
    hub.gateway.set_busy(true);
    drop(client);
    until("the connection is gone", || hub.head.sessions() == 0).await;
    assert!(
        hub.gateway.disconnects().is_empty(),
        "the session lives until its will is settled"
    );
    hub.gateway.set_busy(false);
    until("the session ends", || !hub.gateway.disconnects().is_empty()).await;
    assert_eq!(hub.gateway.received()[0].body, b"gone");
}

#[tokio::test]
async fn a_closed_session_acknowledges_what_is_durable() {
    let hub = Hub::start();
    hub.gateway.hold_durability();
    for reason in [CloseReason::TokenExpired, CloseReason::IdentityChanged] {
        let mut client = hub.log_in("d1").await;
        client.publish(EVENTS, b"x", 1).await;
        let before = hub.gateway.end();
        until("appended", || {
            hub.gateway.waiting() > 0 && hub.gateway.end() >= before
        })
        .await;
        let session = hub.gateway.session("d1").expect("live");
        session.close(reason);
        client.expect_closed().await;
        assert!(matches!(
            hub.gateway.disconnects().last(),
            Some((_, Disconnect::Closed))
        ));
        hub.gateway.make_durable(hub.gateway.end());
    }
}

#[tokio::test]
async fn a_stop_waits_for_outstanding_acknowledgements() {
    let hub = Hub::start();
    hub.gateway.hold_durability();
    let mut client = hub.log_in("d1").await;
    client.publish(EVENTS, b"x", 1).await;
    until("appended", || hub.gateway.end() == 1).await;
    hub.stop.send(true).expect("served");
    tokio::time::sleep(Duration::from_millis(50)).await;
    client.publish(EVENTS, b"late", 2).await;
    hub.gateway.make_durable(1);
    assert_eq!(client.next().await, Got::PubAck(1));
    client.expect_closed().await;
    hub.served.await.expect("no panic");
    assert_eq!(hub.gateway.received().len(), 1);
}

#[tokio::test]
async fn a_stop_does_not_wait_for_ever() {
    let hub = Hub::start_with(MqttConfig {
        drain_timeout: Duration::from_millis(50),
        ..MqttConfig::default()
    });
    hub.gateway.hold_durability();
    let mut client = hub.log_in("d1").await;
    client.publish(EVENTS, b"x", 1).await;
    until("appended", || hub.gateway.end() == 1).await;
    hub.stop.send(true).expect("served");
    client.expect_closed().await;
    hub.served.await.expect("no panic");
}
