//! What can be set about the MQTT head. Defaults are the contract's (mqtt.md sections 2.5 and 7) or chosen for memory.

use std::time::Duration;

use holdfast_model::limits;
use holdfast_mqtt::server::ServerLimits;

/// Longest topic: an MQTT string.
const TOPIC_BYTES_MAX: usize = 65_535;
/// Fixed header, topic length and packet identifier.
const PUBLISH_OVERHEAD: usize = 5 + 2 + 2;

/// Settings of a [`super::MqttHead`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MqttConfig {
    /// From accept to the end of the log-in, TLS handshake included. Default 60 s.
    pub connect_timeout: Duration,
    /// Longest silence of a client: a cap on 1.5 times its keep-alive, and what counts when it has none. Default
    /// 1,767 s; the edge hub uses 600 s.
    pub silence_max: Duration,
    /// Largest packet taken, in bytes. Default: a message of 256 KiB with the longest topic.
    pub packet_bytes_max: usize,
    /// QoS 1 publishes of one connection that may wait for durability; above, nothing is read from it. Default 1,024.
    pub unacknowledged_max: usize,
    /// Bytes of them. Default 1 MiB.
    pub unacknowledged_bytes_max: usize,
    /// Twin and subscription requests of one connection that may wait; above, nothing is read from it. Default 16.
    pub requests_max: usize,
    /// Cloud-to-device messages of one connection that may wait for its PUBACK. Default 16.
    pub c2d_in_flight_max: usize,
    /// Messages of any kind that may wait for a PUBACK before the connection is closed. Default 256.
    pub outbound_window: u16,
    /// Output of one connection its client has not taken, above which nothing is read from it and no request is begun.
    /// Default 64 KiB.
    pub output_bytes_pause: usize,
    /// The same, above which it is closed. Default 2 MiB: the cloud-to-device messages of one round and more.
    pub output_bytes_max: usize,
    /// Connections that may be between accept and the end of their log-in, and as many WebSockets; above, a new one takes
    /// the place of the one that has waited longest without a whole CONNECT. Default 4,096. Beyond half of it, clients
    /// get [`MqttConfig::connect_timeout_crowded`].
    pub logins_pending_max: usize,
    /// Replaces the connect timeout while many log-ins are pending, so that silent clients cannot lock others out for
    /// long. Default 10 s.
    pub connect_timeout_crowded: Duration,
    /// TLS handshakes worked on at once; the others wait for their turn, and live sessions run in between. Default 2.
    pub handshakes_concurrent: usize,
    /// Publishes on unknown topics are dropped and acknowledged, and unknown filters are granted, as the edge hub does
    /// (mqtt.md sections 4.1 and 4.2); a hub closes the connection and refuses the filter. Default off.
    pub tolerant: bool,
    /// How long a stop waits for outstanding acknowledgements. Default 5 s.
    pub drain_timeout: Duration,
    /// How often silent clients are looked for. Default 1 s, which is also the precision of keep-alive.
    pub sweep_interval: Duration,
}

impl Default for MqttConfig {
    fn default() -> Self {
        MqttConfig {
            connect_timeout: Duration::from_secs(60),
            silence_max: Duration::from_secs(1_767),
            packet_bytes_max: limits::D2C_BYTES_MAX + TOPIC_BYTES_MAX + PUBLISH_OVERHEAD,
            unacknowledged_max: 1_024,
            unacknowledged_bytes_max: 1024 * 1024,
            requests_max: 16,
            c2d_in_flight_max: 16,
            outbound_window: 256,
            output_bytes_pause: 64 * 1024,
            output_bytes_max: 2 * 1024 * 1024,
            logins_pending_max: 4_096,
            connect_timeout_crowded: Duration::from_secs(10),
            handshakes_concurrent: 2,
            tolerant: false,
            drain_timeout: Duration::from_secs(5),
            sweep_interval: Duration::from_secs(1),
        }
    }
}

impl MqttConfig {
    pub(super) fn limits(&self) -> ServerLimits {
        let millis = |duration: Duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
        ServerLimits {
            outbound_window: self.outbound_window,
            connect_timeout_ms: millis(self.connect_timeout),
            silence_max_ms: millis(self.silence_max),
        }
    }

    /// Seconds of silence after which a client with this keep-alive is given up, rounded up.
    pub(super) fn silence_seconds(&self, keep_alive: u16) -> u32 {
        let cap = u32::try_from(self.silence_max.as_secs()).unwrap_or(u32::MAX);
        match keep_alive {
            0 => cap,
            seconds => (u32::from(seconds) * 3).div_ceil(2).min(cap),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_half_as_long_again_and_capped() {
        let config = MqttConfig::default();
        for (keep_alive, seconds) in [
            (0, 1_767),
            (1, 2),
            (60, 90),
            (1_177, 1_766),
            (1_178, 1_767),
            (65_535, 1_767),
        ] {
            assert_eq!(config.silence_seconds(keep_alive), seconds, "{keep_alive}");
        }
    }
}
