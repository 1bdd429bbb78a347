//! The configuration file of `holdfast serve`.
//!
//! The doc comments of the fields are the text of `docs/reference/config.md`. Every value has a default, so an
//! empty file, or none, is a complete configuration. A flag on the command line wins over the file.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use holdfast_program::failure::Failure;
use holdfast_program::logging::LogSection;
use holdfast_program::toml_error;
use holdfast_program::units::{Size, Span};

mod amqp;
pub use amqp::AmqpConfig;

/// Everything that can be configured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Names, addresses and the way the process stops.
    pub server: ServerConfig,
    /// Clocks and tokens, for devices and services alike.
    pub hub: HubSection,
    /// MQTT for devices.
    pub mqtt: MqttConfig,
    /// AMQP for devices, services, and readers and producers of events.
    pub amqp: AmqpConfig,
    /// HTTPS: service API, device API, and WebSockets, all on one port.
    pub https: HttpsConfig,
    /// Certificates of the server. Without this section the hub makes its own certificate authority.
    pub tls: TlsConfig,
    /// The event log, which keeps telemetry and other events.
    pub log: EventLogConfig,
    /// Cloud-to-device messages.
    pub c2d: C2dConfig,
    /// Queries over twins, modules and jobs.
    pub query: QueryConfig,
    /// Scheduled jobs.
    pub jobs: JobsConfig,
    /// Import and export jobs.
    pub transfer: TransferConfig,
    /// The embedded blob store, for file uploads and for the blobs of import and export jobs.
    pub blob: super::files::BlobConfig,
    /// File uploads of devices.
    pub files: super::files::FilesConfig,
    /// Delivery of routed events to endpoints.
    pub routing: super::routing::RoutingConfig,
    /// What the process says about itself on standard error.
    pub observe: LogSection,
}

/// Names, addresses and the way the process stops.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// Host names under which clients reach this hub. The first one goes into connection strings. `localhost`,
    /// 127.0.0.1, ::1 and the machine's own name are always known besides these.
    pub hosts: Vec<String>,
    /// Addresses to listen on. Empty means all addresses, IPv6 and IPv4.
    pub listen: Vec<IpAddr>,
    /// Address of a plain HTTP listener for `/healthz`, `/readyz` and `/metrics`, for a monitoring system that does not
    /// trust the hub's certificate. Loopback unless you protect the address otherwise. Off when empty; the same paths
    /// are always on the HTTPS port.
    pub admin: Option<SocketAddr>,
    /// How long a stopping hub waits for sessions and requests to end.
    pub drain_timeout: Span,
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig {
            hosts: Vec::new(),
            listen: Vec::new(),
            admin: None,
            drain_timeout: Span::seconds(10),
        }
    }
}

/// Clocks and tokens, for devices and services alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HubSection {
    /// Tolerated difference between the clocks of hub and client: a token that has expired no longer ago than this is
    /// still accepted at login.
    pub clock_skew: Span,
    /// How long after its token's expiry a live connection is closed. `0s` closes it at once.
    pub token_grace: Span,
}

impl Default for HubSection {
    fn default() -> Self {
        let hub = holdfast_hub::HubConfig::default();
        HubSection {
            clock_skew: Span(hub.clock_skew),
            token_grace: Span(hub.token_grace),
        }
    }
}

/// MQTT for devices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MqttConfig {
    /// Port of MQTT over TLS. The SDKs know only 8883. 0 takes any free port.
    pub port: u16,
    /// Address of a listener without TLS, for example `127.0.0.1:1883`. Off when empty. Tokens and data cross it in the
    /// clear, so only loopback addresses are taken, unless `plain_anywhere` says otherwise.
    pub plain: Option<SocketAddr>,
    /// Lets `plain` be an address other than loopback.
    pub plain_anywhere: bool,
    /// From accepting a connection to the end of its login, TLS handshake included.
    pub connect_timeout: Span,
    /// Longest silence of a client before it is disconnected: a cap on one and a half times the keep-alive it asks for,
    /// and what counts when it asks for none.
    pub silence_max: Span,
    /// Messages of one connection that may wait for the disk before their acknowledgement; above, nothing more is read
    /// from it until some are acknowledged.
    pub unacknowledged_max: usize,
    /// The same in bytes.
    pub unacknowledged_size: Size,
}

impl Default for MqttConfig {
    fn default() -> Self {
        let head = holdfast_heads::mqtt::MqttConfig::default();
        MqttConfig {
            port: 8883,
            plain: None,
            plain_anywhere: false,
            connect_timeout: Span(head.connect_timeout),
            silence_max: Span(head.silence_max),
            unacknowledged_max: head.unacknowledged_max,
            unacknowledged_size: Size(head.unacknowledged_bytes_max as u64),
        }
    }
}

/// HTTPS: service API, device API, and WebSockets, all on one port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HttpsConfig {
    /// Port of HTTPS. The SDKs know only 443. 0 takes any free port.
    pub port: u16,
    /// Longest TLS handshake.
    pub handshake_timeout: Span,
    /// Longest wait for the head of a request; also how long a connection may be idle between two requests.
    pub head_timeout: Span,
    /// Longest wait for the body of a device's request.
    pub body_timeout: Span,
    /// How long a device's message waits while the disk is behind, before it is refused with 503.
    pub ingest_timeout: Span,
}

impl Default for HttpsConfig {
    fn default() -> Self {
        let head = holdfast_heads::https::HttpsConfig::default();
        HttpsConfig {
            port: 443,
            handshake_timeout: Span(head.handshake_timeout),
            head_timeout: Span(head.head_timeout),
            body_timeout: Span(head.body_timeout),
            ingest_timeout: Span(head.ingest_timeout),
        }
    }
}

/// Certificates of the server. Without this section the hub makes its own certificate authority.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// Certificate chain to use instead of the hub's own, PEM, leaf first. SIGHUP reads it again.
    pub certificate: Option<PathBuf>,
    /// Private key of `certificate`, PEM, not encrypted.
    pub key: Option<PathBuf>,
    /// A second chain with an RSA key, for clients that do not know the kind of the first.
    pub rsa_certificate: Option<PathBuf>,
    /// Private key of `rsa_certificate`.
    pub rsa_key: Option<PathBuf>,
    /// CA certificate that clients need in order to trust `certificate`, PEM; goes into `connection.env`. Empty when
    /// clients trust it anyway.
    pub ca: Option<PathBuf>,
}

/// When an acknowledgement is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// After the event is synced to the disk: it survives a power cut.
    #[default]
    Fsync,
    /// After the operating system has it: it survives a crash of the hub, not one of the machine.
    Os,
}

/// The event log, which keeps telemetry and other events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EventLogConfig {
    /// When an event is acknowledged to its device. `fsync`: after it is synced to the disk, so that it survives a power
    /// cut. `os`: after the operating system has it, so that it survives a crash of the hub, but not one of the machine.
    pub durability: Durability,
    /// Number of partitions. Taken at the first start; later changes have no effect.
    pub partitions: u16,
    /// How long events are kept.
    pub retention: Span,
    /// How many bytes of events are kept over all partitions; the oldest go first. Empty means no bound but the disk.
    pub retention_size: Option<Size>,
    /// Size at which a new segment file is begun. Events are deleted by whole segments.
    pub segment_size: Size,
}

impl Default for EventLogConfig {
    fn default() -> Self {
        EventLogConfig {
            durability: Durability::Fsync,
            partitions: 4,
            retention: Span::seconds(7 * 24 * 3600),
            retention_size: None,
            segment_size: Size(64 << 20),
        }
    }
}

/// Cloud-to-device messages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct C2dConfig {
    /// Most messages waiting for one device.
    pub queue_depth: usize,
    /// How often a message may be abandoned before it is dead, 1 to 100.
    pub delivery_count: u32,
    /// How long a message lives when its sender sets no expiry, up to two days.
    pub default_ttl: Span,
    /// How long a delivered message waits for its answer before it is delivered again.
    pub lock_timeout: Span,
}

impl Default for C2dConfig {
    fn default() -> Self {
        use holdfast_model::limits;
        C2dConfig {
            queue_depth: limits::C2D_QUEUE_MAX,
            delivery_count: limits::C2D_DELIVERY_COUNT_MAX,
            default_ttl: Span::seconds(limits::C2D_TTL_DEFAULT_SECONDS),
            lock_timeout: Span::seconds(limits::C2D_LOCK_SECONDS),
        }
    }
}

/// Queries over twins, modules and jobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct QueryConfig {
    /// Most queries that run at once, 1 to 64; each may keep one core busy. 64 more wait for up to 10 seconds, further
    /// ones are refused.
    pub running_max: usize,
    /// Time after which a page is closed with the items found so far; the next page goes on from there.
    pub page_time: Span,
    /// Time after which a query is stopped with an error.
    pub time_max: Span,
}

impl Default for QueryConfig {
    fn default() -> Self {
        let limits = holdfast_store::sqlite::query::QueryLimits::default();
        QueryConfig {
            running_max: limits.running_max,
            page_time: Span(limits.page_time),
            time_max: Span(limits.time_max),
        }
    }
}

/// Scheduled jobs: twin updates and direct methods over many devices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JobsConfig {
    /// Most jobs that run at once, 1 to 1000; others wait for their turn.
    pub running_max: usize,
    /// How long an ended job is kept with what came of it at each device.
    pub history: Span,
}

impl Default for JobsConfig {
    fn default() -> Self {
        let config = holdfast_fleet::jobs::JobsConfig::default();
        JobsConfig {
            running_max: config.concurrent,
            history: Span(config.history),
        }
    }
}

/// Import and export jobs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TransferConfig {
    /// Folder below which jobs may read and write files, as containers `file:///path/below/it`. Whoever may start a job
    /// then may read and replace every file in it. Off when empty.
    pub folder: Option<PathBuf>,
    /// Hosts of blob stores that jobs may ask, without port. Empty means all: whoever may start a job can then let the hub
    /// send requests to any host that it reaches.
    pub hosts: Vec<String>,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, a key is unknown, a value is wrong or values do not go together. The text names file,
    /// line, key and value and says what to do.
    pub fn load(path: &Path) -> anyhow::Result<Config> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Failure::usage(format!(
                "cannot read the configuration file {}: {error}",
                path.display()
            ))
            .hint("check the path given with --config; without --config the hub runs on its defaults")
        })?;
        let config = Self::parse(&text, &path.display().to_string())?;
        config.check()?;
        Ok(config)
    }

    /// Parses the text of a file called `name`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, name: &str) -> anyhow::Result<Config> {
        toml::from_str(text).map_err(|error| describe(text, name, &error).into())
    }

    /// Rules across values, and ranges.
    ///
    /// # Errors
    /// Naming key, value and remedy.
    pub fn check(&self) -> anyhow::Result<()> {
        let bad = |key: &str, value: &dyn std::fmt::Display, why: &str, remedy: &str| {
            Err(Failure::usage(format!("configuration: {key} = {value}: {why}"))
                .hint(remedy)
                .into())
        };
        if let Some(plain) = self.mqtt.plain
            && !plain.ip().is_loopback()
            && !self.mqtt.plain_anywhere
        {
            return bad(
                "mqtt.plain",
                &plain,
                "tokens and data would cross the network unencrypted",
                "use a loopback address such as 127.0.0.1:1883, or say it twice: --mqtt-plain-anywhere (mqtt.plain_anywhere = true)",
            );
        }
        if let Some(plain) = self.amqp.plain.filter(|plain| !plain.ip().is_loopback()) {
            return bad(
                "amqp.plain",
                &plain,
                "tokens and data would cross the network unencrypted",
                "use a loopback address such as 127.0.0.1:5672",
            );
        }
        if !(1..=1_000).contains(&self.jobs.running_max) {
            return bad(
                "jobs.running_max",
                &self.jobs.running_max,
                "as many jobs cannot run",
                "choose 1 to 1000; 10 is the default",
            );
        }
        if !(1..=32).contains(&self.log.partitions) {
            return bad(
                "log.partitions",
                &self.log.partitions,
                "must be 1 to 32",
                "4 is a good start",
            );
        }
        if self.log.segment_size.0 < 1 << 20 {
            return bad(
                "log.segment_size",
                &self.log.segment_size,
                "must be at least 1 MiB",
                "64 MiB is a good size",
            );
        }
        if !(1..=64).contains(&self.query.running_max) {
            return bad(
                "query.running_max",
                &self.query.running_max,
                "must be 1 to 64",
                "the default is 4",
            );
        }
        if !(1..=100).contains(&self.c2d.delivery_count) {
            return bad(
                "c2d.delivery_count",
                &self.c2d.delivery_count,
                "must be 1 to 100",
                "the default is 10",
            );
        }
        let ttl_max = holdfast_model::limits::C2D_TTL_MAX_SECONDS;
        if self.c2d.default_ttl > Span::seconds(ttl_max) {
            return bad(
                "c2d.default_ttl",
                &self.c2d.default_ttl,
                "must be at most two days",
                "the default is 1h",
            );
        }
        for (what, certificate, key) in [
            ("tls.certificate", &self.tls.certificate, &self.tls.key),
            (
                "tls.rsa_certificate",
                &self.tls.rsa_certificate,
                &self.tls.rsa_key,
            ),
        ] {
            if certificate.is_some() != key.is_some() {
                let given = certificate.as_ref().or(key.as_ref());
                return bad(
                    what,
                    &given.map_or(String::new(), |path| path.display().to_string()),
                    "certificate and key go together",
                    "set both, or neither to let the hub make its own",
                );
            }
        }
        self.check_timeouts()?;
        self.amqp.check()?;
        self.blob.check()?;
        self.files.check()?;
        for host in &self.server.hosts {
            check_host(host)?;
        }
        Ok(())
    }

    /// Limits that would lock everybody out.
    fn check_timeouts(&self) -> anyhow::Result<()> {
        let default = Config::default();
        for (key, value, default) in [
            (
                "mqtt.connect_timeout",
                self.mqtt.connect_timeout,
                default.mqtt.connect_timeout,
            ),
            (
                "mqtt.silence_max",
                self.mqtt.silence_max,
                default.mqtt.silence_max,
            ),
            (
                "amqp.handshake_timeout",
                self.amqp.handshake_timeout,
                default.amqp.handshake_timeout,
            ),
            (
                "amqp.login_timeout",
                self.amqp.login_timeout,
                default.amqp.login_timeout,
            ),
            ("query.time_max", self.query.time_max, default.query.time_max),
            (
                "https.handshake_timeout",
                self.https.handshake_timeout,
                default.https.handshake_timeout,
            ),
            (
                "https.head_timeout",
                self.https.head_timeout,
                default.https.head_timeout,
            ),
            (
                "https.body_timeout",
                self.https.body_timeout,
                default.https.body_timeout,
            ),
            (
                "https.ingest_timeout",
                self.https.ingest_timeout,
                default.https.ingest_timeout,
            ),
        ] {
            if value < Span::seconds(1) {
                return Err(
                    Failure::usage(format!("configuration: {key} = {value}: must be at least 1s"))
                        .hint(format!("the default is {default}"))
                        .into(),
                );
            }
        }
        let bounds = [
            ("mqtt.unacknowledged_max", self.mqtt.unacknowledged_max == 0),
            (
                "mqtt.unacknowledged_size",
                self.mqtt.unacknowledged_size == Size(0),
            ),
        ];
        match bounds.iter().find(|(_, zero)| *zero) {
            Some((key, _)) => Err(Failure::usage(format!(
                "configuration: {key} = 0: no message could ever be taken"
            ))
            .hint("leave it out for the default")
            .into()),
            None => Ok(()),
        }
    }
}

/// A name that can stand in a connection string, a certificate and a SAS token.
///
/// # Errors
/// When it cannot.
pub fn check_host(host: &str) -> anyhow::Result<()> {
    if host.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    let fits = !host.is_empty()
        && host.len() <= 253
        && host.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        });
    if fits {
        return Ok(());
    }
    Err(Failure::usage(format!("{host:?} is not a host name"))
        .hint("give a name such as hub.example.org, or an IP address, without scheme and port")
        .into())
}

/// Turns a parser's error into one that names line, key, value and remedy. No value of this file is a secret.
fn describe(text: &str, name: &str, error: &toml::de::Error) -> Failure {
    let source = toml_error::Source {
        name,
        text,
        reference: "docs/reference/config.md",
        show_values: true,
    };
    source.describe(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        match Config::parse(text, "holdfast.toml").and_then(|config| config.check()) {
            Ok(()) => panic!("accepted: {text}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(Config::parse("", "x").unwrap(), Config::default());
        Config::default().check().unwrap();
        let text = toml::to_string(&Config::default()).unwrap();
        assert_eq!(Config::parse(&text, "x").unwrap(), Config::default());
    }

    #[test]
    fn errors_name_file_line_key_and_value() {
        assert_eq!(
            error("[log]\nretention = \"7 weeks\"\n"),
            "holdfast.toml, line 2: log.retention = \"7 weeks\": \"7 weeks\" is not a duration; write for example \"250ms\", \"30s\", \"5m\", \"12h\" or \"7d\""
        );
        let unknown = error("[mqtt]\nport = 1\nprot = 2\n");
        assert!(
            unknown.starts_with("holdfast.toml, line 3: mqtt.prot = 2: unknown field `prot`"),
            "{unknown}"
        );
        assert!(
            error("[mqt]\n").contains("line 1: [mqt]: unknown field"),
            "{}",
            error("[mqt]\n")
        );
        assert!(error("[mqtt]\nport = 70000\n").contains("mqtt.port = 70000"));
    }

    #[test]
    fn limits_that_lock_everybody_out_are_refused() {
        for (text, key) in [
            (
                "[mqtt]\nconnect_timeout = \"999ms\"\n",
                "mqtt.connect_timeout = 999ms",
            ),
            ("[mqtt]\nsilence_max = \"0s\"\n", "mqtt.silence_max = 0"),
            ("[mqtt]\nunacknowledged_max = 0\n", "mqtt.unacknowledged_max = 0"),
            (
                "[mqtt]\nunacknowledged_size = \"0 B\"\n",
                "mqtt.unacknowledged_size = 0",
            ),
            ("[amqp]\nlogin_timeout = \"0s\"\n", "amqp.login_timeout = 0"),
            ("[amqp]\nsilence_max = \"5s\"\n", "amqp.silence_max = 5s"),
            (
                "[amqp]\nframe_size_max = \"1 MiB\"\n",
                "amqp.frame_size_max = 1 MiB",
            ),
            ("[amqp]\nsessions_max = 0\n", "amqp.sessions_max = 0"),
            ("[amqp]\nlink_window = 0\n", "amqp.link_window = 0"),
            ("[https]\nbody_timeout = \"10ms\"\n", "https.body_timeout = 10ms"),
            ("[hub]\ntoken_graze = \"1s\"\n", "unknown field `token_graze`"),
        ] {
            let error = error(text);
            assert!(error.contains(key), "{error}");
        }
        let text = "[hub]\ntoken_grace = \"0s\"\nclock_skew = \"0s\"\n";
        Config::parse(text, "x").unwrap().check().unwrap();
    }

    #[test]
    fn plain_listeners_elsewhere_must_be_said_twice() {
        assert!(error("[mqtt]\nplain = \"0.0.0.0:1883\"\n").contains("mqtt.plain = 0.0.0.0:1883"));
        let text = "[mqtt]\nplain = \"0.0.0.0:1883\"\nplain_anywhere = true\n";
        Config::parse(text, "x").unwrap().check().unwrap();
        Config::parse("[mqtt]\nplain = \"127.0.0.1:1883\"\n", "x")
            .unwrap()
            .check()
            .unwrap();
    }

    #[test]
    fn plain_amqp_stays_on_this_machine() {
        let config = Config::parse("[amqp]\nplain = \"0.0.0.0:5672\"\n", "x").unwrap();
        assert!(config.check().is_err());
        Config::parse("[amqp]\nplain = \"127.0.0.1:5672\"\n", "x")
            .unwrap()
            .check()
            .unwrap();
    }

    #[test]
    fn host_names_are_checked() {
        for good in ["hub.example.org", "localhost", "10.0.0.1", "::1", "plant_4"] {
            check_host(good).unwrap();
        }
        for bad in ["", "https://x", "a:443", "a b", ".a"] {
            assert!(check_host(bad).is_err(), "{bad}");
        }
    }
}
