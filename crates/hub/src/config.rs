//! Settings of the engine.

use std::time::Duration;

use holdfast_model::limits;

/// Settings of a [`crate::Hub`]. [`HubConfig::default`] has the figures of IoT Hub.
#[derive(Clone, Debug)]
pub struct HubConfig {
    /// Host names under which clients address this hub, without port, compared without regard to case. Tokens for
    /// another host are refused. Default: `localhost`.
    pub host_names: Vec<String>,
    /// Tolerated difference between the clocks of hub and client when a token's expiry is checked at login.
    /// Default: 5 minutes.
    pub clock_skew: Duration,
    /// How long after its token's expiry a live session is closed. Default: 10 minutes, as observed at IoT Hub
    /// (mqtt.md 7.1); zero closes at once.
    pub token_grace: Duration,
    /// Most cloud-to-device messages waiting for one device. Default: 50.
    pub c2d_depth_max: usize,
    /// Abandons after which a cloud-to-device message is dead. Default: 10.
    pub c2d_delivery_count_max: u32,
    /// Life of a cloud-to-device message whose sender set none. Default: 1 hour.
    pub c2d_ttl: Duration,
    /// Longest life of a cloud-to-device message; a later expiry is cut to it. Default: 2 days.
    pub c2d_ttl_max: Duration,
    /// How long a delivered cloud-to-device message stays locked. Default: 60 seconds.
    pub c2d_lock: Duration,
    /// How long a change that is to be told of waits for room in the outbox before it is refused. Default: 5 seconds.
    pub outbox_wait: Duration,
    /// How often queues are searched for expired messages. Default: 10 seconds.
    pub c2d_expiry_interval: Duration,
    /// How long a feedback batch stays locked. Default: 60 seconds.
    pub feedback_lock: Duration,
    /// Age of the oldest record at which an unfilled feedback batch is handed out. Default: 15 seconds.
    pub feedback_ripe_after: Duration,
    /// Most direct method calls under way at once, waiting for a connection or for an answer. Default: 10,000.
    pub methods_pending_max: usize,
    /// How much earlier than its timeout a method call is answered, so that callers whose socket timeout is the sum
    /// of both timeouts (Node SDK) still read the answer. Default: 100 milliseconds.
    pub method_answer_margin: Duration,
    /// Most log lines about refused logins per second; the others are counted only. Default: 20.
    pub refusal_lines_per_second: u32,
    /// Most sessions looked at for expired tokens in one `tick`; bounds the time a tick takes in a hub with very many
    /// sessions. Default: 50,000.
    pub expiry_scan_max: usize,
}

impl Default for HubConfig {
    fn default() -> Self {
        HubConfig {
            host_names: vec!["localhost".to_owned()],
            clock_skew: Duration::from_secs(limits::CLOCK_SKEW_SECONDS),
            token_grace: Duration::from_secs(600),
            c2d_depth_max: limits::C2D_QUEUE_MAX,
            c2d_delivery_count_max: limits::C2D_DELIVERY_COUNT_MAX,
            c2d_ttl: Duration::from_secs(limits::C2D_TTL_DEFAULT_SECONDS),
            c2d_ttl_max: Duration::from_secs(limits::C2D_TTL_MAX_SECONDS),
            c2d_lock: Duration::from_secs(limits::C2D_LOCK_SECONDS),
            outbox_wait: Duration::from_secs(5),
            c2d_expiry_interval: Duration::from_secs(10),
            feedback_lock: Duration::from_secs(60),
            feedback_ripe_after: Duration::from_secs(limits::FEEDBACK_BATCH_SECONDS),
            methods_pending_max: 10_000,
            method_answer_margin: Duration::from_millis(100),
            refusal_lines_per_second: 20,
            expiry_scan_max: 50_000,
        }
    }
}
