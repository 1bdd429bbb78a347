//! AMQP over TLS: certificates in place of tokens, and clients that do not get through the handshake.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use holdfast_amqp::Config;
use holdfast_heads::amqp::{AmqpConfig, AmqpHead};
use holdfast_ports::clock::SystemClock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::client::TlsStream;

use crate::amqp_client::{Peer, message, quick};
use crate::amqp_services::FakeServices;
use crate::client::{PATIENCE, metrics, until};
use crate::gateway::FakeGateway;
use crate::tls::{any_settings, certificate, client_config, connect};

struct TlsHub {
    gateway: Arc<FakeGateway>,
    head: AmqpHead,
    address: SocketAddr,
    _stop: watch::Sender<bool>,
}

fn start(config: AmqpConfig) -> TlsHub {
    let gateway = FakeGateway::new();
    let clock = Arc::new(SystemClock::new());
    let head = AmqpHead::new(config, gateway.clone(), FakeServices::new(), clock, metrics());
    let listener =
        holdfast_heads::listener::bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (stop, shutdown) = watch::channel(false);
    tokio::spawn({
        let head = head.clone();
        async move { head.serve(listener, Some(any_settings()), shutdown).await }
    });
    TlsHub {
        gateway,
        head,
        address,
        _stop: stop,
    }
}

impl TlsHub {
    async fn socket(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("the hub listens")
    }

    async fn dial(&self, with_certificate: bool) -> Peer<TlsStream<TcpStream>> {
        let identity = with_certificate.then(|| certificate("d1"));
        let config = client_config(&rustls::version::TLS13, identity);
        let stream = connect(self.socket().await, &config, "hub.test").await;
        let mut peer = Peer::new(stream, Config::default(), false);
        peer.open().await;
        peer
    }
}

#[tokio::test]
async fn a_certificate_stands_for_a_token() {
    let hub = start(quick());
    let mut peer = hub.dial(true).await;
    let link = peer
        .sender("/devices/d1/messages/events")
        .await
        .expect("no token needed");
    let long = message(&vec![5; 200_000]);
    for _ in 0..5 {
        assert_eq!(peer.send(link, &long).await, "accepted");
    }
    // The hub decides whose it is; a service it never is.
    let refused = Err("amqp:unauthorized-access".to_owned());
    assert_eq!(peer.sender("/devices/nobody/messages/events").await, refused);
    assert_eq!(peer.sender("/messages/deviceBound").await, refused);
    assert_eq!(hub.gateway.received().len(), 5);
    // Without it, and without a token, there is nothing.
    let mut peer = hub.dial(false).await;
    assert_eq!(peer.sender("/devices/d1/messages/events").await, refused);
}

#[tokio::test]
async fn a_certificate_that_nobody_knows_is_no_proof() {
    let hub = start(AmqpConfig {
        login_timeout: Duration::from_millis(300),
        ..quick()
    });
    let mut stranger = hub.dial(true).await;
    let refused = Err("amqp:unauthorized-access".to_owned());
    assert_eq!(stranger.sender("/devices/nobody/messages/events").await, refused);
    let mut known = hub.dial(true).await;
    known
        .sender("/devices/d1/messages/events")
        .await
        .expect("attached");
    assert_eq!(stranger.closed().await, "amqp:connection:forced");
    known.is_alive().await;
}

async fn is_ended(tcp: &mut TcpStream) -> bool {
    let read = tokio::time::timeout(PATIENCE, tcp.read_u8());
    read.await.is_ok_and(|byte| byte.is_err())
}

#[tokio::test]
async fn handshakes_that_never_end_yield_and_time_out() {
    const PLACES: usize = 8;
    let hub = start(AmqpConfig {
        logins_pending_max: PLACES,
        ..quick()
    });
    let mut proven = hub.dial(true).await;
    proven
        .sender("/devices/d1/messages/events")
        .await
        .expect("attached");
    // The record of a ClientHello that is never whole.
    let mut hello = vec![22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
    hello.resize(64, 7);
    let mut crowd = Vec::new();
    for number in 0..PLACES * 4 {
        let mut tcp = hub.socket().await;
        if number % 2 == 0 {
            tcp.write_all(&hello).await.expect("taken");
        }
        crowd.push(tcp);
    }
    let mut late = hub.dial(true).await;
    late.sender("/devices/d2/messages/events")
        .await
        .expect("attached");
    proven.is_alive().await;
    let gone = |tcp: &&TcpStream| match tcp.try_read(&mut [0; 1]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    };
    let few = || crowd.iter().filter(gone).count() >= crowd.len() - PLACES;
    until("all but a few were sent away", few).await;

    let hub = start(AmqpConfig {
        handshake_timeout: Duration::from_millis(200),
        ..quick()
    });
    for silent in [true, false] {
        let mut tcp = hub.socket().await;
        if !silent {
            tcp.write_all(&hello).await.expect("taken");
        }
        assert!(is_ended(&mut tcp).await, "{silent}");
    }
}

#[tokio::test]
async fn a_goodbye_reaches_the_client_through_tls() {
    let hub = start(quick());
    let mut peer = hub.dial(true).await;
    peer.sender("/devices/d1/messages/events")
        .await
        .expect("attached");
    peer.machine.close(None, &mut peer.out);
    peer.flush().await;
    assert_eq!(peer.closed().await, "");
    // The end of TLS too: rustls takes a connection cut off for an error.
    let mut rest = Vec::new();
    let end = tokio::time::timeout(PATIENCE, peer.stream.read_to_end(&mut rest));
    assert_eq!(end.await.expect("in time").expect("in order"), 0);
    drop(peer);
    until("the end", || hub.head.connections() == 0).await;
}
