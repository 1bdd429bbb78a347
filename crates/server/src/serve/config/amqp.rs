//! The section `[amqp]`.

use std::net::SocketAddr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use holdfast_program::failure::Failure;
use holdfast_program::units::{Size, Span};

/// AMQP for devices, services, and readers and producers of events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AmqpConfig {
    /// Port of AMQP over TLS. The SDKs know only 5671. 0 takes any free port.
    pub port: u16,
    /// Address of a listener without TLS, for example `127.0.0.1:5672`: Event Hubs clients with
    /// `UseDevelopmentEmulator=true` in their connection string go there. Off when empty. Tokens and data cross it in
    /// the clear, so only loopback addresses are taken.
    pub plain: Option<SocketAddr>,
    /// Longest TLS handshake.
    pub handshake_timeout: Span,
    /// From the end of the handshake to the first token or link that proves who the client is.
    pub login_timeout: Span,
    /// Longest silence of a client before it is disconnected. It is told so when it connects, and sends heartbeats.
    pub silence_max: Span,
    /// Largest frame in both directions, 4 KiB to 64 KiB; larger messages are cut into several.
    pub frame_size_max: Size,
    /// Sessions of one connection. SDKs that share a connection open one for each device.
    pub sessions_max: u16,
    /// Links of one connection.
    pub links_max: u32,
    /// Messages that a client may have under way on one link before they are acknowledged.
    pub link_window: u32,
    /// Bytes of one connection that may wait for the disk before their acknowledgement; above, nothing more is read from
    /// it until some are acknowledged.
    pub unacknowledged_size: Size,
    /// Bytes that messages of one connection may hold while more of their frames are to come.
    pub unfinished_size: Size,
    /// Requests of one connection (tokens, links, twins, cloud-to-device messages) that may wait; above, nothing more is
    /// read from it.
    pub requests_max: usize,
    /// Output of one connection that its client has not taken, above which it is disconnected.
    pub output_size_max: Size,
    /// Largest message or batch of a producer at the event endpoint.
    pub event_size_max: Size,
    /// Tokens that one connection may hold.
    pub tokens_max: usize,
    /// Connections that may be between accept and their first proof, and as many WebSockets; above, a new one takes the
    /// place of the oldest.
    pub logins_pending_max: usize,
    /// Connections that have proven something.
    pub connections_max: usize,
}

impl Default for AmqpConfig {
    fn default() -> Self {
        let head = holdfast_heads::amqp::AmqpConfig::default();
        let machine = &head.machine;
        AmqpConfig {
            port: 5671,
            plain: None,
            handshake_timeout: Span(head.handshake_timeout),
            login_timeout: Span(head.login_timeout),
            silence_max: Span(Duration::from_millis(machine.idle_time_out_ms.into())),
            frame_size_max: Size(machine.max_frame_size.into()),
            sessions_max: machine.channel_max.saturating_add(1),
            links_max: machine.max_links,
            link_window: head.link_window,
            unacknowledged_size: Size(head.unacknowledged_bytes_max as u64),
            unfinished_size: Size(machine.max_reassembly.into()),
            requests_max: head.requests_max,
            output_size_max: Size(head.output_bytes_max as u64),
            event_size_max: Size(head.producer_bytes_max),
            tokens_max: head.grants_max,
            logins_pending_max: head.logins_pending_max,
            connections_max: head.connections_max,
        }
    }
}

impl AmqpConfig {
    /// Ranges outside which no client could connect, or a value has no place in the protocol.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let sizes = [
            ("amqp.frame_size_max", self.frame_size_max, 4 << 10, 64 << 10),
            ("amqp.unacknowledged_size", self.unacknowledged_size, 1, 1 << 30),
            ("amqp.unfinished_size", self.unfinished_size, 1 << 20, 1 << 30),
            ("amqp.output_size_max", self.output_size_max, 1 << 20, 1 << 30),
            ("amqp.event_size_max", self.event_size_max, 64 << 10, 1 << 20),
        ];
        for (key, value, least, most) in sizes {
            if !(least..=most).contains(&value.0) {
                let (least, most) = (Size(least), Size(most));
                return Err(Failure::usage(format!(
                    "configuration: {key} = {value}: must be {least} to {most}"
                ))
                .hint("leave it out for the default")
                .into());
            }
        }
        let silence = Duration::from_secs(10)..=Duration::from_secs(24 * 3600);
        if !silence.contains(&self.silence_max.0) {
            let value = self.silence_max;
            return Err(Failure::usage(format!(
                "configuration: amqp.silence_max = {value}: must be 10s to 1d"
            ))
            .hint("the default is 4m; some clients take less than a minute for an error")
            .into());
        }
        let counts = [
            ("amqp.sessions_max", u64::from(self.sessions_max)),
            ("amqp.links_max", self.links_max.into()),
            ("amqp.link_window", self.link_window.into()),
            ("amqp.requests_max", self.requests_max as u64),
            ("amqp.tokens_max", self.tokens_max as u64),
            ("amqp.logins_pending_max", self.logins_pending_max as u64),
            ("amqp.connections_max", self.connections_max as u64),
        ];
        match counts.iter().find(|(_, count)| !(1..=10_000_000).contains(count)) {
            Some((key, count)) => Err(Failure::usage(format!(
                "configuration: {key} = {count}: must be 1 to 10000000"
            ))
            .hint("leave it out for the default")
            .into()),
            None => Ok(()),
        }
    }
}
