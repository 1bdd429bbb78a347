//! Metrics and named events of the engine.
//!
//! INFO lines tell of configuration only; connects and messages are DEBUG or counted. Refused logins are WARN lines,
//! bounded per second (`LineBudget`), because anyone on the network can cause them.

use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_observe::metrics::{Counter, CounterBy, Label, Registry};
use holdfast_observe::{Event, tracing};
use holdfast_ports::gateway::Protocol;

macro_rules! label {
    ($(#[$doc:meta])* $name:ident as $label:literal { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl Label for $name {
            const NAME: &'static str = $label;
            const VALUES: &'static [&'static str] = &[$($text,)*];
            fn index(self) -> usize { self as usize }
        }

        impl $name {
            /// The word used in metrics and log lines.
            #[must_use]
            pub fn as_str(self) -> &'static str { Self::VALUES[self.index()] }
        }
    };
}

label! {
    /// Why somebody was not let in. For the operator; clients are told less.
    Refusal as "reason" {
        /// The ids are not well formed.
        MalformedIdentity = "malformed_identity",
        /// Neither a token nor a certificate.
        NoCredential = "no_credential",
        /// The token does not parse.
        MalformedToken = "malformed_token",
        /// The token's time is over.
        TokenExpired = "token_expired",
        /// The token names another resource or host.
        WrongResource = "wrong_resource",
        /// The signature is not one of the keys in question.
        WrongKey = "wrong_key",
        /// No such device or module.
        UnknownIdentity = "unknown_identity",
        /// The device is disabled.
        Disabled = "disabled",
        /// The identity is not set up for this kind of credential.
        OtherCredentialKind = "other_credential_kind",
        /// The token names a policy that does not exist.
        UnknownPolicy = "unknown_policy",
        /// The policy lacks the right.
        MissingRight = "missing_right",
        /// The certificate does not parse.
        MalformedCertificate = "malformed_certificate",
        /// The certificate's time has not come or is over.
        CertificateNotValidNow = "certificate_not_valid_now",
        /// The certificate is not one of the registered ones.
        WrongThumbprint = "wrong_thumbprint",
        /// The certificate's subject names somebody else.
        WrongCommonName = "wrong_common_name",
        /// No verified authority stands behind the certificate.
        UntrustedChain = "untrusted_chain",
        /// The gateway may not act for the identity.
        BadAuthChain = "bad_auth_chain",
    }
}

label! {
    /// How a session ended.
    SessionEnd as "reason" {
        /// The client said goodbye.
        Clean = "clean",
        /// The connection broke.
        Lost = "lost",
        /// A newer connection took over.
        TakenOver = "taken_over",
        /// The token's time was over.
        TokenExpired = "token_expired",
        /// The identity was disabled, deleted or got new credentials.
        IdentityChanged = "identity_changed",
        /// The hub stopped.
        ShuttingDown = "shutting_down",
        /// The event log failed.
        StorageFailed = "storage_failed",
    }
}

label! {
    /// What became of a direct method call.
    MethodOutcome as "outcome" {
        /// The device answered.
        Answered = "answered",
        /// The call itself was not valid.
        Invalid = "invalid",
        /// The target does not exist.
        NotFound = "not_found",
        /// The target was not connected, or had not subscribed, in time.
        NotOnline = "not_online",
        /// The connection ended before the answer.
        ConnectionClosed = "connection_closed",
        /// The device did not answer in time.
        TimedOut = "timed_out",
        /// The answer was not JSON or too large.
        BadAnswer = "bad_answer",
        /// Too many calls were under way.
        Throttled = "throttled",
        /// The hub could not tell.
        Failed = "failed",
    }
}

label! {
    /// How a cloud-to-device delivery was settled.
    C2dSettled as "settlement" {
        /// Done.
        Completed = "completed",
        /// Back to the queue.
        Abandoned = "abandoned",
        /// Refused for good.
        Rejected = "rejected",
        /// Back to the queue, uncounted.
        Released = "released",
        /// The lock had ended.
        LockLost = "lock_lost",
    }
}

label! {
    /// Who changed a twin.
    TwinWriter as "writer" {
        /// A service: tags or desired properties.
        Service = "service",
        /// The device: reported properties.
        Device = "device",
    }
}

/// Metrics of the engine.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Sessions that began.
    pub sessions_started: Counter,
    /// Sessions that ended, by reason.
    pub sessions_ended: CounterBy<SessionEnd>,
    /// Requests and connections refused, by reason.
    pub refusals: CounterBy<Refusal>,
    /// Telemetry messages handed to the log.
    pub telemetry_messages: Counter,
    /// Their bytes, properties included.
    pub telemetry_bytes: Counter,
    /// Times the log asked a sender to wait.
    pub telemetry_waits: Counter,
    /// Messages that took no route and were dropped.
    pub telemetry_unrouted: Counter,
    /// Messages that did not go to the built-in endpoint because they became too long by its enrichments.
    pub enriched_too_large: Counter,
    /// Messages for which a route's condition was undefined.
    pub routes_undefined: Counter,
    /// Direct method calls, by outcome.
    pub methods: CounterBy<MethodOutcome>,
    /// Cloud-to-device messages queued.
    pub c2d_enqueued: Counter,
    /// Cloud-to-device deliveries handed to devices.
    pub c2d_delivered: Counter,
    /// Cloud-to-device deliveries settled.
    pub c2d_settled: CounterBy<C2dSettled>,
    /// Cloud-to-device messages that died of age in a sweep.
    pub c2d_expired: Counter,
    /// Twin changes, by writer.
    pub twin_changes: CounterBy<TwinWriter>,
    /// Items that found a session's mailbox full and were dropped.
    pub downlinks_dropped: Counter,
    /// Events that the hub itself made and the relay took out of the outbox.
    pub hub_events: Counter,
    /// Connection states that found too many others waiting and were dropped.
    pub connection_events_dropped: Counter,
    /// Store operations that failed.
    pub store_failures: Counter,
}

impl Metrics {
    /// Registers the metrics of this crate.
    pub fn register(registry: &mut Registry) -> Self {
        Metrics {
            sessions_started: registry
                .counter("holdfast_sessions_started_total", "Device sessions that began"),
            sessions_ended: registry
                .counter_by("holdfast_sessions_ended_total", "Device sessions that ended"),
            refusals: registry.counter_by(
                "holdfast_access_refusals_total",
                "Connections and requests refused for their credential",
            ),
            telemetry_messages: registry.counter(
                "holdfast_telemetry_messages_total",
                "Telemetry messages handed to the event log",
            ),
            telemetry_bytes: registry.counter(
                "holdfast_telemetry_bytes_total",
                "Bytes of telemetry handed to the event log, properties included",
            ),
            telemetry_unrouted: registry.counter(
                "holdfast_telemetry_messages_unrouted_total",
                "Messages that took no route and were dropped",
            ),
            enriched_too_large: registry.counter(
                "holdfast_enriched_messages_too_large_total",
                "Messages that were too long for the built-in endpoint with its enrichments",
            ),
            routes_undefined: registry.counter(
                "holdfast_route_evaluations_undefined_total",
                "Messages for which a route's condition was undefined",
            ),
            telemetry_waits: registry.counter(
                "holdfast_telemetry_waits_total",
                "Times a sender of telemetry was told to wait for the event log",
            ),
            methods: registry.counter_by("holdfast_method_calls_total", "Direct method calls"),
            c2d_enqueued: registry.counter(
                "holdfast_c2d_messages_enqueued_total",
                "Cloud-to-device messages queued",
            ),
            c2d_delivered: registry.counter(
                "holdfast_c2d_deliveries_total",
                "Cloud-to-device deliveries handed to devices",
            ),
            c2d_settled: registry.counter_by(
                "holdfast_c2d_settlements_total",
                "Cloud-to-device deliveries settled by devices",
            ),
            c2d_expired: registry.counter(
                "holdfast_c2d_messages_expired_total",
                "Cloud-to-device messages found expired in a sweep of the queues",
            ),
            twin_changes: registry.counter_by("holdfast_twin_changes_total", "Changes of twins"),
            downlinks_dropped: registry.counter(
                "holdfast_downlinks_dropped_total",
                "Method calls and desired-property changes dropped because a session did not keep up",
            ),
            hub_events: registry.counter(
                "holdfast_hub_events_total",
                "Events of the hub itself (twin changes, lifecycle, connections, jobs) taken to the event log",
            ),
            connection_events_dropped: registry.counter(
                "holdfast_connection_events_dropped_total",
                "Connection states that were not told of because too many waited",
            ),
            store_failures: registry.counter("holdfast_store_failures_total", "Store operations that failed"),
        }
    }
}

/// The relay of the hub's own events cannot go on for now. Emitted once per interruption.
#[derive(Debug)]
pub(crate) struct RelayStalled<'a> {
    pub(crate) reason: &'a str,
}

impl Event for RelayStalled<'_> {
    type Metrics = Metrics;
    fn emit(self, metrics: &Metrics) {
        metrics.store_failures.inc();
        tracing::warn!(
            reason = self.reason,
            "events of the hub wait: they cannot be taken to the event log; it is tried again"
        );
    }
}

/// More connection states wait than may.
#[derive(Debug)]
pub(crate) struct ConnectionEventsDropped {
    pub(crate) count: u64,
}

impl Event for ConnectionEventsDropped {
    type Metrics = Metrics;
    fn emit(self, metrics: &Metrics) {
        metrics.connection_events_dropped.add(self.count);
    }
}

/// A session began.
#[derive(Debug)]
pub(crate) struct SessionStarted<'a> {
    pub(crate) identity: &'a str,
    pub(crate) protocol: Protocol,
    pub(crate) client_type: Option<&'a str>,
    pub(crate) epoch: u64,
}

impl Event for SessionStarted<'_> {
    type Metrics = Metrics;
    fn emit(self, metrics: &Metrics) {
        metrics.sessions_started.inc();
        tracing::debug!(
            identity = self.identity,
            protocol = ?self.protocol,
            client_type = self.client_type,
            epoch = self.epoch,
            "session started"
        );
    }
}

/// A session ended.
#[derive(Debug)]
pub(crate) struct SessionEnded<'a> {
    pub(crate) identity: &'a str,
    pub(crate) epoch: u64,
    pub(crate) reason: SessionEnd,
}

impl Event for SessionEnded<'_> {
    type Metrics = Metrics;
    fn emit(self, metrics: &Metrics) {
        metrics.sessions_ended.of(self.reason).inc();
        tracing::debug!(
            identity = self.identity,
            epoch = self.epoch,
            reason = self.reason.as_str(),
            "session ended"
        );
    }
}

/// Somebody was not let in. `identity` is what the client claimed: untrusted text, cut and escaped.
#[derive(Debug)]
pub(crate) struct AccessRefused<'a> {
    pub(crate) identity: &'a str,
    pub(crate) protocol: Protocol,
    pub(crate) reason: Refusal,
    /// What the budget says: lines left out since the last one, or no line now.
    pub(crate) line: Option<u64>,
}

impl Event for AccessRefused<'_> {
    type Metrics = Metrics;
    fn emit(self, metrics: &Metrics) {
        metrics.refusals.of(self.reason).inc();
        if let Some(suppressed) = self.line {
            let shown: String = self.identity.chars().take(257).collect();
            tracing::warn!(
                identity = ?shown,
                protocol = ?self.protocol,
                reason = self.reason.as_str(),
                suppressed,
                "access refused"
            );
        }
    }
}

/// A store operation failed; the client was told to try later.
#[derive(Debug)]
pub(crate) struct StoreFailed<'a> {
    pub(crate) operation: &'static str,
    pub(crate) reason: &'a str,
}

impl Event for StoreFailed<'_> {
    type Metrics = Metrics;
    fn emit(self, metrics: &Metrics) {
        metrics.store_failures.inc();
        tracing::warn!(
            operation = self.operation,
            reason = self.reason,
            "store operation failed"
        );
    }
}

/// The event log takes no more events. Emitted once.
#[derive(Debug)]
pub(crate) struct LogFailed<'a> {
    pub(crate) reason: &'a str,
}

impl Event for LogFailed<'_> {
    type Metrics = Metrics;
    fn emit(self, metrics: &Metrics) {
        metrics.store_failures.inc();
        tracing::error!(
            reason = self.reason,
            "the event log has failed: every device is disconnected until the hub is started again"
        );
    }
}

/// A mailbox was full.
#[derive(Debug)]
pub(crate) struct DownlinkDropped<'a> {
    pub(crate) identity: &'a str,
    pub(crate) what: &'static str,
}

impl Event for DownlinkDropped<'_> {
    type Metrics = Metrics;
    fn emit(self, metrics: &Metrics) {
        metrics.downlinks_dropped.inc();
        tracing::debug!(
            identity = self.identity,
            what = self.what,
            "session does not keep up"
        );
    }
}

/// How many lines of a kind may be written per second.
#[derive(Debug)]
pub(crate) struct LineBudget {
    per_second: u32,
    /// Second in the high 32 bits, lines written in it in the low ones.
    window: AtomicU64,
    suppressed: AtomicU64,
}

impl LineBudget {
    pub(crate) fn new(per_second: u32) -> Self {
        LineBudget {
            per_second,
            window: AtomicU64::new(0),
            suppressed: AtomicU64::new(0),
        }
    }

    /// `Some(lines left out since the last one)` when a line may be written now.
    pub(crate) fn take(&self, second: u64) -> Option<u64> {
        let second = second & 0xffff_ffff;
        let granted = self
            .window
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |window| {
                let used = if window >> 32 == second {
                    window & 0xffff_ffff
                } else {
                    0
                };
                (used < u64::from(self.per_second)).then_some(second << 32 | (used + 1))
            })
            .is_ok();
        if granted {
            Some(self.suppressed.swap(0, Ordering::Relaxed))
        } else {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded_per_second() {
        let budget = LineBudget::new(2);
        assert_eq!(budget.take(5), Some(0));
        assert_eq!(budget.take(5), Some(0));
        assert_eq!(budget.take(5), None);
        assert_eq!(budget.take(5), None);
        assert_eq!(budget.take(6), Some(2));
    }

    #[test]
    fn metrics_register_once_with_valid_names() {
        let mut registry = Registry::new();
        let metrics = Metrics::register(&mut registry);
        metrics.refusals.of(Refusal::BadAuthChain).inc();
        assert!(registry.render().contains("bad_auth_chain"));
    }
}
