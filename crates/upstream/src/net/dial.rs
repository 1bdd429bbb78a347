//! Opening connections.

use std::io;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
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

/// How to get to a host.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    host: String,
    proxy: Option<Proxy>,
}

impl Route {
    /// To the hub of that configuration.
    pub(crate) fn to_hub(config: &UpstreamConfig) -> Self {
        Route::new(config.connect_host(), config.proxy.clone())
    }

    pub(crate) fn new(host: &str, proxy: Option<Proxy>) -> Self {
        Route {
            host: host.to_owned(),
            proxy,
        }
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// TCP and TLS. The caller bounds the time.
    pub(crate) async fn connect(&self, port: u16, tls: Arc<ClientConfig>) -> io::Result<Secured> {
        let tcp = match &self.proxy {
            None => TcpStream::connect((self.host.as_str(), port)).await?,
            Some(proxy) => {
                let mut tcp = TcpStream::connect((proxy.host.as_str(), proxy.port)).await?;
                let authority = self.authority(port);
                handshake::tunnel(&mut tcp, &authority, proxy.credentials.as_deref()).await?;
                tcp
            }
        };
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from(self.host.clone())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the host is no host name"))?;
        TlsConnector::from(tls).connect(name, tcp).await
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
