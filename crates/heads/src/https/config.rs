//! What can be set about an HTTPS port.

use std::time::Duration;

/// Settings of a [`super::HttpsHead`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpsConfig {
    /// For a TLS handshake. Default 20 s.
    pub handshake_timeout: Duration,
    /// For the head of a request, and how long a connection may be idle between two requests. Default 60 s.
    pub head_timeout: Duration,
    /// Largest request head, and the read buffer's bound. Default 64 KiB: messages carry their properties in headers.
    pub head_bytes_max: usize,
    /// Most headers of a request. Default 256.
    pub headers_max: usize,
    /// For the body of a request. A body that goes to the router may take a second more for each 1,024 bytes received.
    /// Default 60 s.
    pub body_timeout: Duration,
    /// Connections open at once, WebSockets not counted; above, a new one takes the place of one that has not sent a
    /// whole request yet, or is idle. Default 4,096.
    pub connections_max: usize,
    /// TLS handshakes worked on at once. Default 2.
    pub handshakes_concurrent: usize,
    /// How long a device's message waits for a full log before it is refused. Default 20 s.
    pub ingest_timeout: Duration,
    /// How long a stop waits for requests that are being answered. Default 5 s.
    pub drain_timeout: Duration,
}

impl Default for HttpsConfig {
    fn default() -> Self {
        HttpsConfig {
            handshake_timeout: Duration::from_secs(20),
            head_timeout: Duration::from_secs(60),
            head_bytes_max: 64 * 1024,
            headers_max: 256,
            body_timeout: Duration::from_secs(60),
            connections_max: 4_096,
            handshakes_concurrent: 2,
            ingest_timeout: Duration::from_secs(20),
            drain_timeout: Duration::from_secs(5),
        }
    }
}
