//! Opening connections.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use holdfast_observe::tracing;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::handshake;
use super::link::Link;
use crate::config::{Proxy, UpstreamConfig};

/// A TLS connection.
pub(crate) type Secured = TlsStream<TcpStream>;

/// Path of WebSockets at a hub (mqtt.md section 1).
const WEBSOCKET_PATH: &str = "/$iothub/websocket";

/// Between two questions of TCP that were not answered.
const PROBE_INTERVAL: Duration = Duration::from_secs(3);
/// So many of them, and the other end is gone.
const PROBES: u32 = 3;

/// How to get to a host.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    host: String,
    proxy: Option<Proxy>,
    probe_after: Duration,
}

impl Route {
    /// To the hub of that configuration.
    pub(crate) fn to_hub(config: &UpstreamConfig) -> Self {
        let probe_after = config.tuning.probe_after;
        Route::new(config.connect_host(), config.proxy.clone(), probe_after)
    }

    /// `probe_after`: see [`Tuning::probe_after`](crate::config::Tuning::probe_after).
    pub(crate) fn new(host: &str, proxy: Option<Proxy>, probe_after: Duration) -> Self {
        Route {
            host: host.to_owned(),
            proxy,
            probe_after,
        }
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// TCP and TLS. The caller bounds the time.
    pub(crate) async fn connect(&self, port: u16, tls: Arc<ClientConfig>) -> io::Result<Secured> {
        let tcp = match &self.proxy {
            None => self.dial(&self.host, port).await?,
            Some(proxy) => {
                let mut tcp = self.dial(&proxy.host, proxy.port).await?;
                let authority = self.authority(port);
                handshake::tunnel(&mut tcp, &authority, proxy.credentials.as_deref()).await?;
                tcp
            }
        };
        let name = ServerName::try_from(self.host.clone())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the host is no host name"))?;
        TlsConnector::from(tls).connect(name, tcp).await
    }

    async fn dial(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let tcp = TcpStream::connect((host, port)).await?;
        tcp.set_nodelay(true)?;
        if let Err(error) = probe_when_idle(&tcp, self.probe_after) {
            tracing::debug!(host, %error, "TCP cannot be told to notice that the other end is gone");
        }
        Ok(tcp)
    }

    /// As [`connect`](Self::connect), with a WebSocket of `protocol` inside.
    pub(crate) async fn connect_websocket(
        &self,
        port: u16,
        tls: Arc<ClientConfig>,
        protocol: &str,
        with_certificate: bool,
    ) -> io::Result<Link> {
        let mut secured = self.connect(port, tls).await?;
        // The cloud hub asks for no certificate then, as it does for one SDK (mqtt.md section 1).
        let query = if with_certificate {
            ""
        } else {
            "?iothub-no-client-cert=true"
        };
        let path = format!("{WEBSOCKET_PATH}{query}");
        let host = if port == 443 {
            self.host.clone()
        } else {
            self.authority(port)
        };
        handshake::upgrade(&mut secured, &host, &path, protocol).await?;
        Ok(Link::websocket(secured))
    }

    fn authority(&self, port: u16) -> String {
        if self.host.contains(':') {
            format!("[{}]:{port}", self.host)
        } else {
            format!("{}:{port}", self.host)
        }
    }
}

/// Has the operating system ask the other end whether it is there, `after` so long a silence and again every
/// [`PROBE_INTERVAL`]; after [`PROBES`] questions without an answer the connection breaks with
/// [`TimedOut`](io::ErrorKind::TimedOut). What was written and is not acknowledged breaks it about as soon.
fn probe_when_idle(tcp: &TcpStream, after: Duration) -> io::Result<()> {
    let socket = SockRef::from(tcp);
    let probes = TcpKeepalive::new()
        .with_time(after)
        .with_interval(PROBE_INTERVAL)
        .with_retries(PROBES);
    socket.set_tcp_keepalive(&probes)?;
    // Where there is this time, it counts instead of the number of probes: a second before the end of the last one.
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(after + PROBE_INTERVAL * PROBES - Duration::from_secs(1)))?;
    Ok(())
}

/// Whether a connection broke because the other end did not answer TCP's questions, or nobody on the way knew it any more.
pub(crate) fn is_silence(error: &io::Error) -> bool {
    use io::ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut};
    matches!(error.kind(), TimedOut | HostUnreachable | NetworkUnreachable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tcp_asks_an_idle_peer_whether_it_is_there() {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .expect("a port");
        let port = listener.local_addr().expect("an address").port();
        for seconds in [1, 10, 3_600] {
            let after = Duration::from_secs(seconds);
            let tcp = Route::new("127.0.0.1", None, after)
                .dial("127.0.0.1", port)
                .await
                .expect("a connection");
            let socket = SockRef::from(&tcp);
            assert!(socket.keepalive().expect("an option"));
            assert_eq!(socket.tcp_keepalive_time().expect("an option"), after);
            assert_eq!(
                socket.tcp_keepalive_interval().expect("an option"),
                PROBE_INTERVAL
            );
            assert_eq!(socket.tcp_keepalive_retries().expect("an option"), PROBES);
            #[cfg(target_os = "linux")]
            assert_eq!(
                socket.tcp_user_timeout().expect("an option"),
                Some(after + Duration::from_secs(8))
            );
        }
    }
}
