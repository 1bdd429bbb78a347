//! CONNECT: who gets in, who does not, and what they are told (mqtt.md sections 1, 2 and 2.7).

use std::time::Duration;

use holdfast_heads::mqtt::MqttConfig;
use holdfast_mqtt::codec::{Connect, encode_connect};
use holdfast_ports::gateway::Disconnect;
use tokio::io::AsyncWriteExt;

use crate::client::{Got, Hub, connect_packet, until};

#[tokio::test]
async fn good_credentials_get_in_and_goodbye_is_clean() {
    let hub = Hub::start();
    let mut client = hub.dial().await;
    let user = "hub.test/d1/m1/?model-id=dtmi:a:b;1&api-version=2021-04-12&DeviceClientType=py%2F2";
    let mut packet = Vec::new();
    let connect = Connect {
        client_id: "d1/m1",
        username: Some(user),
        password: Some(b"good"),
        ..Connect::default()
    };
    encode_connect(&mut packet, &connect).expect("fits");
    client.send(&packet).await;
    assert_eq!(client.next().await, Got::ConnAck(false, 0));
    assert_eq!(
        hub.gateway.connects(),
        [("d1/m1".into(), Some("dtmi:a:b;1".into()), Some("py/2".into()))]
    );
    client.expect_silence().await;
    client.send(&[0xe0, 0]).await;
    client.expect_closed().await;
    until("the session ends", || !hub.gateway.disconnects().is_empty()).await;
    assert_eq!(hub.gateway.disconnects(), [("d1/m1".into(), Disconnect::Clean)]);
}

#[tokio::test]
async fn refusals_have_their_code() {
    let hub = Hub::start();
    let mut mismatch = connect_packet("d1", Some("good"));
    // The client id is the first field after the fixed part.
    let place = mismatch
        .windows(2)
        .position(|pair| pair == b"d1")
        .expect("the id");
    mismatch[place + 1] = b'2';
    for (packet, code) in [
        (connect_packet("d1", Some("bad")), 5),
        (connect_packet("d1", None), 5),
        (connect_packet("nobody", Some("good")), 5),
        (connect_packet("a b", Some("good")), 5),
        (connect_packet("stopping", Some("good")), 3),
        (mismatch, 5),
        (
            b"\x10\x1c\x00\x04MQTT\x04\xc2\x00\x3c\x00\x02d1\x00\x06nohost\x00\x04good".to_vec(),
            5,
        ),
        (b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02d1".to_vec(), 5),
        (b"\x10\x12\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x04test".to_vec(), 1),
    ] {
        let mut client = hub.dial().await;
        client.send(&packet).await;
        assert_eq!(client.next().await, Got::ConnAck(false, code), "{packet:?}");
        client.expect_closed().await;
    }
    assert_eq!(hub.head.sessions(), 0);
}

#[tokio::test]
async fn level_five_is_told_in_its_own_words() {
    use tokio::io::AsyncReadExt;
    let hub = Hub::start();
    let mut client = hub.dial().await;
    client
        .send(b"\x10\x0f\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x02d1")
        .await;
    let mut answer = Vec::new();
    client.stream.read_to_end(&mut answer).await.expect("an answer");
    assert_eq!(answer, [0x20, 3, 0, 0x84, 0]);
}

#[tokio::test]
async fn what_is_no_connect_is_told_nothing() {
    let hub = Hub::start();
    for packet in [
        &b"\xc0\x00"[..],
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"\x10\xff\xff\xff\x7f",
        b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02\xff\xfe",
        b"\x30\xff\xff\x03",
    ] {
        let mut client = hub.dial().await;
        client.send(packet).await;
        client.expect_closed().await;
    }
    until("the pending log-ins end", || hub.head.sessions() == 0).await;
}

#[tokio::test]
async fn a_silent_client_is_closed() {
    let hub = Hub::start_with(MqttConfig {
        connect_timeout: Duration::from_millis(100),
        ..MqttConfig::default()
    });
    let mut silent = hub.dial().await;
    let mut slow = hub.dial().await;
    slow.send(&connect_packet("d1", Some("good"))[..20]).await;
    silent.expect_closed().await;
    slow.expect_closed().await;
}

#[tokio::test]
async fn every_split_of_the_bytes_works() {
    let hub = Hub::start();
    let mut bytes = connect_packet("d1", Some("good"));
    bytes.extend(crate::client::publish_packet(
        "devices/d1/messages/events/a=1",
        b"x",
        1,
    ));
    bytes.extend([0xc0, 0]);
    for step in [1, 2, 3, 7, 50] {
        let mut client = hub.dial().await;
        for piece in bytes.chunks(step) {
            client.send(piece).await;
            tokio::task::yield_now().await;
        }
        assert_eq!(client.next().await, Got::ConnAck(false, 0), "step {step}");
        let mut rest = [client.next().await, client.next().await];
        rest.sort_by_key(|got| matches!(got, Got::PingResp));
        assert_eq!(rest, [Got::PubAck(1), Got::PingResp], "step {step}");
    }
}

#[tokio::test]
async fn a_second_connect_and_server_packets_close() {
    let hub = Hub::start();
    for packet in [
        &connect_packet("d1", Some("good"))[..],
        b"\xd0\x00",
        b"\x20\x02\x00\x00",
        b"\x00\x00",
    ] {
        let mut client = hub.log_in("d1").await;
        client.send(packet).await;
        client.expect_closed().await;
    }
}

#[tokio::test]
async fn a_newer_connection_takes_over_only_when_it_is_let_in() {
    let hub = Hub::start();
    let mut old = hub.log_in("d1").await;
    let mut intruder = hub.dial().await;
    intruder.send(&connect_packet("d1", Some("bad"))).await;
    assert_eq!(intruder.next().await, Got::ConnAck(false, 5));
    old.expect_silence().await;
    let mut new = hub.log_in("d1").await;
    old.expect_closed().await;
    new.expect_silence().await;
    assert_eq!(hub.gateway.disconnects(), [("d1".into(), Disconnect::Closed)]);
}

#[tokio::test]
async fn half_closed_is_closed_and_lost() {
    let hub = Hub::start();
    let mut client = hub.log_in("d1").await;
    client.stream.shutdown().await.expect("half closed");
    client.expect_closed().await;
    assert_eq!(hub.gateway.disconnects(), [("d1".into(), Disconnect::Lost)]);
}

#[tokio::test]
async fn a_client_beyond_its_keep_alive_is_lost() {
    let hub = Hub::start_with(MqttConfig {
        sweep_interval: Duration::from_millis(50),
        ..MqttConfig::default()
    });
    let mut client = hub.dial().await;
    let mut packet = connect_packet("d1", Some("good"));
    // Keep-alive: the two bytes after protocol name, level and flags.
    packet[2 + 6 + 2 + 1] = 0;
    let place = packet
        .windows(5)
        .position(|window| window == b"MQTT\x04")
        .expect("the name")
        + 6;
    packet[place..place + 2].copy_from_slice(&[0, 1]);
    client.send(&packet).await;
    assert_eq!(client.next().await, Got::ConnAck(false, 0));
    client.expect_closed().await;
    assert_eq!(hub.gateway.disconnects(), [("d1".into(), Disconnect::Lost)]);
}

#[tokio::test]
async fn a_stop_closes_sessions_and_refuses_new_ones() {
    let hub = Hub::start();
    let mut client = hub.log_in("d1").await;
    let mut late = hub.dial().await;
    late.send(&connect_packet("d2", Some("good"))[..5]).await;
    // Accepted before the stop: the next client is served only after it.
    drop(hub.log_in("d3").await);
    until("the other session ends", || hub.head.sessions() == 1).await;
    hub.stop.send(true).expect("served");
    client.expect_closed().await;
    // Does not wait for the client that has said nothing.
    tokio::time::timeout(Duration::from_secs(3), hub.served)
        .await
        .expect("stopped in time")
        .expect("no panic");
    late.send(&connect_packet("d2", Some("good"))[5..]).await;
    assert_eq!(late.next().await, Got::ConnAck(false, 3));
    assert_eq!(hub.head.sessions(), 0);
    let ends = [("d3".into(), Disconnect::Lost), ("d1".into(), Disconnect::Closed)];
    assert_eq!(hub.gateway.disconnects(), ends);
    assert!(tokio::net::TcpStream::connect(hub.address).await.is_err());
}
