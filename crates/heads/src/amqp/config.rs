//! What can be set about the AMQP head. Defaults are the contract's (amqp.md sections 1, 3 and 5) or chosen for memory.

use std::time::Duration;

use holdfast_amqp::Config as MachineConfig;
use holdfast_model::limits;

/// Settings of an [`super::AmqpHead`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AmqpConfig {
    /// Frames, sessions, links, windows and silence, as the protocol machine knows them. The connect timeout is
    /// `open_timeout_ms` here.
    pub machine: MachineConfig,
    /// For a TLS handshake. Default 20 s.
    pub handshake_timeout: Duration,
    /// From the begin of a connection to its first token or link; one that proves nothing is closed. Default 60 s.
    pub login_timeout: Duration,
    /// How long after its expiry a token still allows new links: the hub's tolerance of clocks. Default 5 minutes.
    pub clock_skew: Duration,
    /// How long after their token's expiry links of services are detached; those of identities are ended by the hub.
    /// Default 10 minutes.
    pub token_grace: Duration,
    /// How often tokens are looked at for their end. Default 5 s.
    pub token_interval: Duration,
    /// How long a connection that is over waits for its client to take the last words and to hang up. Default 2 s.
    pub farewell_timeout: Duration,
    /// Largest message of a device, in bytes; announced on telemetry links. Default 256 KiB.
    pub telemetry_bytes_max: u64,
    /// Largest message of a producer at the event endpoint; clients make their batches of it. Default 1 MiB.
    pub producer_bytes_max: u64,
    /// Largest message on every other link. Default 256 KiB: method answers and twins with room for properties.
    pub request_bytes_max: u64,
    /// Messages a sender may have under way on one link. Default 1,000.
    pub link_window: u32,
    /// Bytes of one connection that may wait for durability; above, nothing is read from it. Default 1 MiB.
    pub unacknowledged_bytes_max: usize,
    /// Requests of one connection (tokens, twins, attaches, cloud-to-device sends) that may wait; above, nothing is read
    /// from it. Default 256.
    pub requests_max: usize,
    /// Cloud-to-device sends of one connection that run at once. Default 32.
    pub c2d_sends_concurrent: usize,
    /// Cloud-to-device messages of one device that may wait for its answer, and as many whose lock has ended. Default 16.
    pub c2d_in_flight_max: usize,
    /// Receivers on a module's `messages/events` get the messages for its inputs, as at an edge hub; a hub accepts them and
    /// stays silent. Default off.
    pub module_inputs: bool,
    /// Feedback batches of one connection that may wait for their answer, and as many notifications of file uploads.
    /// Default 16.
    pub feedback_in_flight_max: usize,
    /// How often feedback and notifications are looked for while a receiver has credit. Default 1 s.
    pub feedback_interval: Duration,
    /// Tokens kept for one connection; one more is refused. Default 4,096.
    pub grants_max: usize,
    /// Receivers without owner level on one partition and consumer group. Default 5.
    pub readers_max: usize,
    /// Bytes read from the log at once for one reader. Default 256 KiB.
    pub read_bytes: usize,
    /// Output of one connection its client has not taken, above which no event is sent to it and no request is begun.
    /// Default 256 KiB.
    pub output_bytes_pause: usize,
    /// The same, with messages that wait for credit, above which it is closed. Default 4 MiB.
    pub output_bytes_max: usize,
    /// Connections that may be between accept and their first proven token or link, and as many WebSockets; above, a new
    /// one takes the place of the one that has waited longest without having said anything, then of the one that has
    /// proven nothing. Default 4,096.
    pub logins_pending_max: usize,
    /// Connections that have proven something; one more is closed as it does. Default 100,000.
    pub connections_max: usize,
    /// TLS handshakes worked on at once. Default 2.
    pub handshakes_concurrent: usize,
    /// How long a stop waits for outstanding acknowledgements. Default 5 s.
    pub drain_timeout: Duration,
    /// Precision of all time-outs. Default 1 s.
    pub sweep_interval: Duration,
}

impl Default for AmqpConfig {
    fn default() -> Self {
        AmqpConfig {
            machine: MachineConfig::default(),
            handshake_timeout: Duration::from_secs(20),
            login_timeout: Duration::from_secs(60),
            clock_skew: Duration::from_secs(limits::CLOCK_SKEW_SECONDS),
            token_grace: Duration::from_secs(600),
            token_interval: Duration::from_secs(5),
            farewell_timeout: Duration::from_secs(2),
            telemetry_bytes_max: limits::D2C_BYTES_MAX as u64,
            producer_bytes_max: 1024 * 1024,
            request_bytes_max: 256 * 1024,
            link_window: 1_000,
            unacknowledged_bytes_max: 1024 * 1024,
            requests_max: 256,
            c2d_sends_concurrent: 32,
            c2d_in_flight_max: 16,
            module_inputs: false,
            feedback_in_flight_max: 16,
            feedback_interval: Duration::from_secs(1),
            grants_max: 4_096,
            readers_max: 5,
            read_bytes: 256 * 1024,
            output_bytes_pause: 256 * 1024,
            output_bytes_max: 4 * 1024 * 1024,
            logins_pending_max: 4_096,
            connections_max: 100_000,
            handshakes_concurrent: 2,
            drain_timeout: Duration::from_secs(5),
            sweep_interval: Duration::from_secs(1),
        }
    }
}
