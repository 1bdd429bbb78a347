//! What is decided once for all connections of a head or a client.

/// Limits and offers. Shared by all connections that use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Largest frame in both directions, in bytes; the peer may want smaller ones (AMQP 2.7.1). Default 65,536.
    pub max_frame_size: u32,
    /// Highest channel the peer may use, so one less than its sessions. Default 4,999.
    pub channel_max: u16,
    /// Highest handle the peer may use in a session. Default 8,191.
    pub handle_max: u16,
    /// Links of one connection, those being detached included. Default 16,384.
    pub max_links: u32,
    /// Milliseconds of silence after which the peer is given up, and told so in our open. 0: never. Default 240,000.
    pub idle_time_out_ms: u32,
    /// Milliseconds a connection may take until it is open. Default 60,000.
    pub open_timeout_ms: u32,
    /// Transfers the peer may have under way in a session (AMQP 2.5.6). Default 2,048.
    pub incoming_window: u32,
    /// Deliveries of a session that are sent and not settled; more are refused. Default 8,192.
    pub max_unsettled: u32,
    /// Deliveries of a session that are received and not settled. The session's window closes before there are more, so a
    /// client with many links on one session, whose windows add up to more, is slowed down. Default 65,536.
    pub max_received: u32,
    /// Bytes that unfinished messages of one connection may hold together. Default 4 MiB.
    pub max_reassembly: u32,
    /// SASL mechanisms a server offers; without any it knows no SASL layer. Default `MSSBCBS`, `ANONYMOUS`, `PLAIN`,
    /// `EXTERNAL`.
    pub mechanisms: &'static [&'static str],
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_frame_size: 65_536,
            channel_max: 4_999,
            handle_max: 8_191,
            max_links: 16_384,
            idle_time_out_ms: 240_000,
            open_timeout_ms: 60_000,
            incoming_window: 2_048,
            max_unsettled: 8_192,
            max_received: 65_536,
            max_reassembly: 4 << 20,
            mechanisms: &["MSSBCBS", "ANONYMOUS", "PLAIN", "EXTERNAL"],
        }
    }
}

impl Config {
    /// The incoming window of a session without unsettled deliveries.
    pub(crate) fn full_window(&self) -> u32 {
        self.incoming_window.min(self.max_received)
    }
}
