//! From an accepted socket to a connection: the TLS handshake.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_observe::Event as _;
use holdfast_ports::gateway::Protocol;
use rustls::ServerConfig;
use tokio::net::TcpStream;

use super::Shared;
use super::connection::Connection;
use super::entrance::refused_for_others;
use crate::events::{LoginRefused, RefusalReason};
use crate::lobby::{Guest, Stage};
use crate::tls::TlsStream;
use crate::transport::Transport;

/// The task of a connection until its handshake is done.
pub(super) async fn run(
    shared: Arc<Shared>,
    tcp: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    peer: SocketAddr,
    guest: Guest,
) {
    let Some(config) = tls else {
        let none: Arc<[Bytes]> = Arc::from([]);
        spawn(&shared, Transport::Tcp(tcp), none, Protocol::Amqp, peer, guest);
        return;
    };
    let accept = async {
        // Not `readable`, which may be wrong.
        tcp.peek(&mut [0; 1]).await?;
        guest.wait_as(Stage::Speaking);
        TlsStream::accept(tcp, config, &shared.handshakes).await
    };
    let outcome = tokio::select! {
        biased;
        () = guest.evicted() => return refused_for_others(&shared.metrics, peer),
        outcome = tokio::time::timeout(shared.config.handshake_timeout, accept) => outcome,
    };
    let (reason, detail) = match outcome {
        Ok(Ok(stream)) => {
            if stream.resumed() {
                shared.metrics.tls_resumed.inc();
            }
            let certificates: Arc<[Bytes]> = stream.peer_certificates().into();
            let transport = Transport::Tls(stream);
            spawn(&shared, transport, certificates, Protocol::Amqp, peer, guest);
            return;
        }
        Ok(Err(error)) => (RefusalReason::Tls, error.to_string()),
        Err(_) => (RefusalReason::Timeout, "no TLS handshake in time".to_owned()),
    };
    LoginRefused {
        peer,
        client_id: "",
        reason,
        detail: &detail,
    }
    .emit(&shared.metrics);
}

/// Starts the connection as a task of its own, so that the memory of the handshake's is given back.
pub(super) fn spawn(
    shared: &Arc<Shared>,
    transport: Transport,
    certificates: Arc<[Bytes]>,
    protocol: Protocol,
    peer: SocketAddr,
    guest: Guest,
) {
    tokio::spawn(Connection::new(
        shared,
        transport,
        certificates,
        protocol,
        peer,
        guest,
    ));
}
