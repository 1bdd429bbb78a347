//! What the heads have to say: metrics, and the log lines that go with them.
//!
//! INFO never scales with connections, so what happens to a single one is DEBUG; the counters show how often.

use std::io;
use std::net::SocketAddr;

use holdfast_observe::metrics::{Counter, CounterBy, Label, Registry};
use holdfast_observe::{Event, tracing};
use holdfast_ports::gateway::Protocol;

/// Protocol of a connection, as a label.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProtocolLabel(pub Protocol);

impl Label for ProtocolLabel {
    const NAME: &'static str = "protocol";
    const VALUES: &'static [&'static str] = &["mqtt", "mqtt_websocket", "https", "amqp", "amqp_websocket"];

    fn index(self) -> usize {
        match self.0 {
            Protocol::Mqtt => 0,
            Protocol::MqttWebSocket => 1,
            Protocol::Https => 2,
            Protocol::Amqp => 3,
            Protocol::AmqpWebSocket => 4,
        }
    }
}

/// Why a session ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EndReason {
    /// The client said goodbye.
    Goodbye,
    /// The client closed the connection, or the network broke.
    ConnectionLost,
    /// Nothing was heard for longer than the keep-alive allows.
    KeepAlive,
    /// A packet was malformed, too large, or against the protocol.
    ProtocolError,
    /// A publish to a topic the identity may not publish to.
    ForeignTopic,
    /// The client does not read, or does not acknowledge.
    SlowReader,
    /// A newer connection of the identity.
    TakenOver,
    /// The token's time has come.
    TokenExpired,
    /// The identity was disabled, deleted, or its credentials changed.
    IdentityChanged,
    /// The hub stops.
    ShuttingDown,
    /// The hub cannot store.
    StorageFailed,
}

impl Label for EndReason {
    const NAME: &'static str = "reason";
    const VALUES: &'static [&'static str] = &[
        "goodbye",
        "connection_lost",
        "keep_alive",
        "protocol_error",
        "foreign_topic",
        "slow_reader",
        "taken_over",
        "token_expired",
        "identity_changed",
        "shutting_down",
        "storage_failed",
    ];

    fn index(self) -> usize {
        self as usize
    }
}

/// Why a connection never became a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RefusalReason {
    /// The TLS handshake failed.
    Tls,
    /// Nothing, or not enough, came in time.
    Timeout,
    /// The connection ended first.
    ConnectionLost,
    /// What came is not a CONNECT.
    ProtocolError,
    /// A CONNECT of another protocol level.
    ProtocolLevel,
    /// User name or client id are malformed or do not fit together.
    Malformed,
    /// The credential does not prove the identity.
    Unauthorized,
    /// The hub cannot tell.
    Unavailable,
    /// All places were taken, and this one had waited longest without making itself known.
    Evicted,
}

impl Label for RefusalReason {
    const NAME: &'static str = "reason";
    const VALUES: &'static [&'static str] = &[
        "tls",
        "timeout",
        "connection_lost",
        "protocol_error",
        "protocol_level",
        "malformed",
        "unauthorized",
        "unavailable",
        "evicted",
    ];

    fn index(self) -> usize {
        self as usize
    }
}

/// Metrics of all heads.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Connections accepted, not yet logged in.
    pub connections_accepted: Counter,
    /// Accepts that failed for want of files or memory.
    pub accepts_failed: Counter,
    /// Sessions that began.
    pub sessions_started: CounterBy<ProtocolLabel>,
    /// Sessions that ended.
    pub sessions_ended: CounterBy<EndReason>,
    /// Connections that never became a session.
    pub logins_refused: CounterBy<RefusalReason>,
    /// TLS handshakes that resumed an earlier session.
    pub tls_resumed: Counter,
    /// Application bytes received by MQTT.
    pub bytes_received: Counter,
    /// Application bytes sent by MQTT.
    pub bytes_sent: Counter,
    /// MQTT packets received.
    pub packets_received: Counter,
    /// Telemetry messages handed to the hub by MQTT.
    pub telemetry_messages: Counter,
    /// Application bytes received by AMQP.
    pub amqp_bytes_received: Counter,
    /// Application bytes sent by AMQP.
    pub amqp_bytes_sent: Counter,
    /// Telemetry messages and producers' events handed to the log by AMQP.
    pub amqp_events_received: Counter,
    /// Events sent to readers.
    pub amqp_events_sent: Counter,
    /// Wills that could not be published.
    pub wills_dropped: Counter,
    /// Device HTTPS requests that failed.
    pub requests_failed: Counter,
}

impl Metrics {
    /// Registers the metrics of the heads.
    pub fn register(registry: &mut Registry) -> Self {
        Metrics {
            connections_accepted: registry
                .counter("holdfast_connections_accepted_total", "Connections accepted"),
            accepts_failed: registry.counter(
                "holdfast_accepts_failed_total",
                "Accepts that failed for want of files or memory",
            ),
            sessions_started: registry.counter_by(
                "holdfast_device_sessions_started_total",
                "Device sessions that began",
            ),
            sessions_ended: registry.counter_by(
                "holdfast_device_sessions_ended_total",
                "Device sessions that ended",
            ),
            logins_refused: registry.counter_by(
                "holdfast_device_logins_refused_total",
                "Connections that never became a session",
            ),
            tls_resumed: registry.counter(
                "holdfast_tls_handshakes_resumed_total",
                "TLS handshakes that resumed an earlier session",
            ),
            bytes_received: registry.counter("holdfast_mqtt_received_bytes_total", "Bytes received by MQTT"),
            bytes_sent: registry.counter("holdfast_mqtt_sent_bytes_total", "Bytes sent by MQTT"),
            packets_received: registry
                .counter("holdfast_mqtt_received_packets_total", "MQTT packets received"),
            telemetry_messages: registry.counter(
                "holdfast_mqtt_telemetry_messages_total",
                "Telemetry messages handed to the hub by MQTT",
            ),
            amqp_bytes_received: registry
                .counter("holdfast_amqp_received_bytes_total", "Bytes received by AMQP"),
            amqp_bytes_sent: registry.counter("holdfast_amqp_sent_bytes_total", "Bytes sent by AMQP"),
            amqp_events_received: registry.counter(
                "holdfast_amqp_received_events_total",
                "Telemetry messages and producers' events handed to the log by AMQP",
            ),
            amqp_events_sent: registry.counter(
                "holdfast_amqp_sent_events_total",
                "Events sent to readers of the event endpoint",
            ),
            wills_dropped: registry.counter(
                "holdfast_mqtt_wills_dropped_total",
                "Wills that could not be published",
            ),
            requests_failed: registry.counter(
                "holdfast_device_requests_failed_total",
                "Device HTTPS requests that failed",
            ),
        }
    }
}

/// A listener cannot accept for want of files or memory; said once until it can again.
pub(crate) struct AcceptFailed<'a> {
    pub(crate) error: &'a io::Error,
}

impl Event for AcceptFailed<'_> {
    type Metrics = Metrics;

    fn emit(self, metrics: &Metrics) {
        metrics.accepts_failed.inc();
        tracing::warn!(
            error = %self.error,
            "cannot accept connections; trying again until it works. Too many open files: raise the limit (ulimit -n, LimitNOFILE)"
        );
    }
}

/// A listener accepts again.
pub(crate) struct AcceptResumed;

impl Event for AcceptResumed {
    type Metrics = Metrics;

    fn emit(self, _metrics: &Metrics) {
        tracing::info!("accepting connections again");
    }
}

/// A connection never became a session.
pub(crate) struct LoginRefused<'a> {
    pub(crate) peer: SocketAddr,
    pub(crate) client_id: &'a str,
    pub(crate) reason: RefusalReason,
    pub(crate) detail: &'a dyn std::fmt::Display,
}

impl Event for LoginRefused<'_> {
    type Metrics = Metrics;

    fn emit(self, metrics: &Metrics) {
        metrics.logins_refused.of(self.reason).inc();
        tracing::debug!(
            peer = %self.peer,
            client_id = self.client_id,
            reason = RefusalReason::VALUES[self.reason.index()],
            detail = %self.detail,
            "log-in refused"
        );
    }
}

/// A session began.
pub(crate) struct SessionStarted<'a> {
    pub(crate) peer: SocketAddr,
    pub(crate) identity: &'a str,
    pub(crate) protocol: Protocol,
}

impl Event for SessionStarted<'_> {
    type Metrics = Metrics;

    fn emit(self, metrics: &Metrics) {
        metrics.sessions_started.of(ProtocolLabel(self.protocol)).inc();
        tracing::debug!(peer = %self.peer, identity = self.identity, protocol = ?self.protocol, "session started");
    }
}

/// A session ended.
pub(crate) struct SessionEnded<'a> {
    pub(crate) identity: &'a str,
    pub(crate) reason: EndReason,
    pub(crate) detail: &'a dyn std::fmt::Display,
}

impl Event for SessionEnded<'_> {
    type Metrics = Metrics;

    fn emit(self, metrics: &Metrics) {
        metrics.sessions_ended.of(self.reason).inc();
        tracing::debug!(
            identity = self.identity,
            reason = EndReason::VALUES[self.reason.index()],
            detail = %self.detail,
            "session ended"
        );
    }
}

/// A will was lost: the log took nothing more, or the session was fenced.
pub(crate) struct WillDropped<'a> {
    pub(crate) identity: &'a str,
    pub(crate) error: &'a dyn std::fmt::Display,
}

impl Event for WillDropped<'_> {
    type Metrics = Metrics;

    fn emit(self, metrics: &Metrics) {
        metrics.wills_dropped.inc();
        tracing::debug!(identity = self.identity, error = %self.error, "will not published");
    }
}
