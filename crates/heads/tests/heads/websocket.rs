//! MQTT over WebSocket (mqtt.md section 1).

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::{connect_packet, publish_packet, until};
use crate::https_device::Port;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// Asks for an upgrade; returns the status line and headers.
pub(crate) async fn upgrade(stream: &mut TcpStream, path: &str, protocol: &str, early: &[u8]) -> String {
    let mut request = format!(
        "GET {path} HTTP/1.1\r\nHost: hub.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: {protocol}\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    )
    .into_bytes();
    request.extend_from_slice(early);
    stream.write_all(&request).await.expect("sent");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("an answer"));
    }
    String::from_utf8(head).expect("text")
}

/// A masked frame.
pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [9, 8, 7, 6];
    let mut out = vec![first, 0x80 | 126];
    out.extend_from_slice(&(payload.len() as u16).to_be_bytes());
    out.extend_from_slice(&mask);
    out.extend(
        payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, key)| byte ^ key),
    );
    out
}

/// Reads a frame of the server.
pub(crate) async fn read_frame(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let first = stream.read_u8().await.expect("a frame");
    let length = match stream.read_u8().await.expect("a frame") {
        126 => usize::from(stream.read_u16().await.expect("a frame")),
        127 => panic!("no test asks for that much"),
        short => usize::from(short),
    };
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await.expect("a frame");
    (first, payload)
}

#[tokio::test]
async fn every_path_and_spelling_is_upgraded() {
    let port = Port::start(None);
    for path in [
        "/$iothub/websocket",
        "/$iothub/websocket?iothub-no-client-cert=true",
        "/mqtt",
        "/",
        "/$IoTHub/WebSocket",
    ] {
        for (offered, chosen) in [("mqtt", "mqtt"), ("MQTT", "MQTT"), ("other, Mqtt", "Mqtt")] {
            let mut stream = port.dial().await;
            let head = upgrade(&mut stream, path, offered, b"").await;
            assert!(head.starts_with("HTTP/1.1 101 "), "{path} {head}");
            assert!(
                head.contains("sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"),
                "{head}"
            );
            assert!(
                head.contains(&format!("sec-websocket-protocol: {chosen}\r\n")),
                "{head}"
            );
            assert!(!head.contains("extensions"), "{head}");
            // As paho-python looks at it.
            for line in head
                .lines()
                .filter(|line| line.to_lowercase().contains("connection"))
            {
                assert!(line.to_lowercase().contains("upgrade"), "{line}");
            }
        }
    }
}

#[tokio::test]
async fn packets_and_frames_are_independent() {
    let port = Port::start(None);
    let mut packets = connect_packet("d1", Some("good"));
    packets.extend(publish_packet("devices/d1/messages/events/", b"hello", 7));
    packets.extend([0xc0, 0]);
    for step in [1, 5, packets.len()] {
        let mut stream = port.dial().await;
        // What follows the request at once is not lost.
        let early: Vec<u8> = packets
            .chunks(step)
            .flat_map(|piece| frame(0x82, piece))
            .collect();
        upgrade(&mut stream, "/$iothub/websocket", "mqtt", &early).await;
        let mut answers = Vec::new();
        while answers.len() < 10 {
            let (first, payload) = read_frame(&mut stream).await;
            assert_eq!(first, 0x82, "binary frames");
            answers.extend(payload);
        }
        assert_eq!(answers[..4], [0x20, 2, 0, 0]);
        let mut rest = answers[4..].to_vec();
        rest.sort_unstable();
        let mut expected = vec![0x40, 2, 0, 7, 0xd0, 0];
        expected.sort_unstable();
        assert_eq!(rest, expected);
        stream
            .write_all(&frame(0x89, b"are you there"))
            .await
            .expect("sent");
        assert_eq!(read_frame(&mut stream).await, (0x8a, b"are you there".to_vec()));
        stream.write_all(&frame(0x88, &[])).await.expect("sent");
        assert_eq!(read_frame(&mut stream).await.0, 0x88);
        assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
    }
    assert_eq!(port.gateway.received().len(), 3);
    until("the sessions end", || port.head.sessions() == 0).await;
}

#[tokio::test]
async fn text_frames_close() {
    let port = Port::start(None);
    let mut stream = port.dial().await;
    upgrade(
        &mut stream,
        "/mqtt",
        "mqtt",
        &frame(0x82, &connect_packet("d1", Some("good"))),
    )
    .await;
    assert_eq!(read_frame(&mut stream).await, (0x82, vec![0x20, 2, 0, 0]));
    stream.write_all(&frame(0x81, b"text")).await.expect("sent");
    assert_eq!(
        read_frame(&mut stream).await,
        (0x88, 1003u16.to_be_bytes().to_vec())
    );
    assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn bad_upgrades_are_refused_and_other_protocols_go_on() {
    let port = Port::start(None);
    let mut stream = port.dial().await;
    let request = format!(
        "GET /mqtt HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 8\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 400");
    let mut stream = port.dial().await;
    let head = upgrade(&mut stream, "/$iothub/websocket", "AMQPWSB10", b"").await;
    assert!(head.starts_with("HTTP/1.1 418 "), "the router decides: {head}");
}

#[tokio::test]
async fn a_ready_made_client_agrees() {
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::client::IntoClientRequest;

    let port = Port::start(None);
    let mut request = format!("ws://{}/$iothub/websocket", port.address)
        .into_client_request()
        .expect("a request");
    request
        .headers_mut()
        .insert("sec-websocket-protocol", "mqtt".parse().expect("a value"));
    let (mut socket, _) = tokio_tungstenite::client_async(request, port.dial().await)
        .await
        .expect("an upgrade");
    use futures_util::{SinkExt as _, StreamExt as _};
    let large = publish_packet("devices/d1/messages/events/", &vec![b'x'; 200_000], 9);
    for packet in [connect_packet("d1", Some("good")), large] {
        socket.send(Message::binary(packet)).await.expect("sent");
    }
    let mut answers = Vec::new();
    while answers.len() < 8 {
        answers.extend(
            socket
                .next()
                .await
                .expect("a frame")
                .expect("no error")
                .into_data(),
        );
    }
    assert_eq!(answers, [0x20, 2, 0, 0, 0x40, 2, 0, 9]);
    socket.close(None).await.expect("closed");
    until("the session ends", || port.head.sessions() == 0).await;
}

#[tokio::test]
async fn the_session_is_that_of_the_mqtt_head() {
    let port = Port::start(None);
    let mut stream = port.dial().await;
    upgrade(
        &mut stream,
        "/",
        "mqtt",
        &frame(0x82, &connect_packet("d1", Some("bad"))),
    )
    .await;
    assert_eq!(read_frame(&mut stream).await, (0x82, vec![0x20, 2, 0, 5]));
    let mut stream = port.dial().await;
    upgrade(
        &mut stream,
        "/",
        "mqtt",
        &frame(0x82, &connect_packet("d1", Some("good"))),
    )
    .await;
    assert_eq!(read_frame(&mut stream).await, (0x82, vec![0x20, 2, 0, 0]));
    until("the session lives", || port.head.sessions() == 1).await;
    port.stop.send(true).expect("served");
    assert_eq!(read_frame(&mut stream).await.0, 0x88);
    port.served.await.expect("no panic");
    assert!(TcpStream::connect(port.address).await.is_err());
}
