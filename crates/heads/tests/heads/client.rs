//! A client that says exactly what a test wants said.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use holdfast_heads::events::Metrics;
use holdfast_heads::mqtt::{MqttConfig, MqttHead};
use holdfast_mqtt::codec::{Connect, Packet, PacketId, Publish, QoS, encode_connect, encode_publish};
use holdfast_observe::Registry;
use holdfast_ports::clock::SystemClock;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::gateway::FakeGateway;

/// No test waits longer for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A head on a loopback port.
pub(crate) struct Hub {
    pub(crate) gateway: Arc<FakeGateway>,
    pub(crate) head: MqttHead,
    pub(crate) address: SocketAddr,
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) served: tokio::task::JoinHandle<()>,
}

pub(crate) fn metrics() -> Metrics {
    Metrics::register(&mut Registry::new())
}

impl Hub {
    pub(crate) fn start() -> Self {
        Self::start_with(MqttConfig::default())
    }

    pub(crate) fn start_with(config: MqttConfig) -> Self {
        let gateway = FakeGateway::new();
        let head = MqttHead::new(config, gateway.clone(), Arc::new(SystemClock::new()), metrics());
        let listener =
            holdfast_heads::listener::bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (stop, shutdown) = watch::channel(false);
        let served = tokio::spawn({
            let head = head.clone();
            async move { head.serve(listener, None, shutdown).await }
        });
        Hub {
            gateway,
            head,
            address,
            stop,
            served,
        }
    }

    pub(crate) async fn dial(&self) -> Client<TcpStream> {
        Client::new(TcpStream::connect(self.address).await.expect("the hub listens"))
    }

    /// Logged in, CleanSession 0.
    pub(crate) async fn log_in(&self, identity: &str) -> Client<TcpStream> {
        let mut client = self.dial().await;
        client.connect(identity).await;
        client
    }
}

/// A packet of the server, owned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Got {
    ConnAck(bool, u8),
    PubAck(u16),
    SubAck(u16, Vec<u8>),
    UnsubAck(u16),
    PingResp,
    Publish {
        topic: String,
        payload: Vec<u8>,
        qos: u8,
        id: u16,
        dup: bool,
    },
}

pub(crate) struct Client<S> {
    pub(crate) stream: S,
    input: Vec<u8>,
}

pub(crate) fn connect_packet(identity: &str, password: Option<&str>) -> Vec<u8> {
    let user = format!("hub.test/{identity}/?api-version=2021-04-12&DeviceClientType=test");
    let mut out = Vec::new();
    let connect = Connect {
        client_id: identity,
        keep_alive: 60,
        username: Some(&user),
        password: password.map(str::as_bytes),
        ..Connect::default()
    };
    encode_connect(&mut out, &connect).expect("fits");
    out
}

pub(crate) fn publish_packet(topic: &str, payload: &[u8], id: u16) -> Vec<u8> {
    let mut out = Vec::new();
    let packet_id = PacketId::new(id);
    let publish = Publish {
        topic,
        payload,
        qos: if packet_id.is_some() {
            QoS::AtLeastOnce
        } else {
            QoS::AtMostOnce
        },
        packet_id,
        ..Publish::default()
    };
    encode_publish(&mut out, &publish).expect("fits");
    out
}

pub(crate) fn subscribe_packet(id: u16, filters: &[(&str, u8)]) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    for (filter, qos) in filters {
        body.extend_from_slice(&(filter.len() as u16).to_be_bytes());
        body.extend_from_slice(filter.as_bytes());
        body.push(*qos);
    }
    packet(0x82, &body)
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    assert!(body.len() < 16_384, "two bytes of length");
    let mut out = vec![first, (body.len() % 128) as u8 | 0x80, (body.len() / 128) as u8];
    out.extend_from_slice(body);
    out
}

pub(crate) fn unsubscribe_packet(id: u16, filter: &str) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    body.extend_from_slice(&(filter.len() as u16).to_be_bytes());
    body.extend_from_slice(filter.as_bytes());
    packet(0xa2, &body)
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(crate) fn new(stream: S) -> Self {
        Client {
            stream,
            input: Vec::new(),
        }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("the hub takes it");
        self.stream.flush().await.expect("the hub takes it");
    }

    pub(crate) async fn connect(&mut self, identity: &str) -> bool {
        self.send(&connect_packet(identity, Some("good"))).await;
        match self.next().await {
            Got::ConnAck(present, 0) => present,
            other => panic!("no log-in: {other:?}"),
        }
    }

    pub(crate) async fn publish(&mut self, topic: &str, payload: &[u8], id: u16) {
        self.send(&publish_packet(topic, payload, id)).await;
    }

    pub(crate) async fn subscribe(&mut self, id: u16, filters: &[(&str, u8)]) -> Vec<u8> {
        self.send(&subscribe_packet(id, filters)).await;
        match self.next().await {
            Got::SubAck(got, codes) if got == id => codes,
            other => panic!("no SUBACK: {other:?}"),
        }
    }

    /// The next packet.
    pub(crate) async fn next(&mut self) -> Got {
        self.try_next().await.expect("the hub closed the connection")
    }

    /// The next packet; `None` when the hub closed the connection.
    pub(crate) async fn try_next(&mut self) -> Option<Got> {
        loop {
            if let Some((packet, length)) =
                holdfast_mqtt::decode(&self.input, usize::MAX).expect("a well-formed packet")
            {
                let got = owned(packet);
                self.input.drain(..length);
                return Some(got);
            }
            let mut chunk = [0; 4096];
            let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut chunk))
                .await
                .expect("the hub answers in time");
            match read {
                Ok(0) | Err(_) => return None,
                Ok(length) => self.input.extend_from_slice(&chunk[..length]),
            }
        }
    }

    pub(crate) async fn expect_closed(&mut self) {
        assert_eq!(self.try_next().await, None, "the hub closes");
    }

    /// Nothing comes: proven by a ping that is answered first.
    pub(crate) async fn expect_silence(&mut self) {
        self.send(&[0xc0, 0]).await;
        assert_eq!(self.next().await, Got::PingResp);
    }
}

fn owned(packet: Packet<'_>) -> Got {
    match packet {
        Packet::ConnAck(ack) => Got::ConnAck(ack.session_present, ack.code as u8),
        Packet::PubAck(id) => Got::PubAck(id.get()),
        Packet::SubAck(ack) => Got::SubAck(ack.packet_id.get(), ack.codes().map(|code| code as u8).collect()),
        Packet::UnsubAck(id) => Got::UnsubAck(id.get()),
        Packet::PingResp => Got::PingResp,
        Packet::Publish(publish) => {
            assert!(!publish.retain, "the hub never sets RETAIN");
            Got::Publish {
                topic: publish.topic.to_owned(),
                payload: publish.payload.to_vec(),
                qos: publish.qos as u8,
                id: publish.packet_id.map_or(0, PacketId::get),
                dup: publish.dup,
            }
        }
        other => panic!("the hub never sends {other:?}"),
    }
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(
        tokio::time::timeout(PATIENCE, waited).await.is_ok(),
        "waited in vain: {what}"
    );
}
