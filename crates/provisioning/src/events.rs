//! Metrics and named events of the engine. Refusals are WARN lines, bounded per second, because anyone on the network
//! can cause them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_model::provisioning::REGISTRATION_ID_LEN_MAX;
use holdfast_observe::metrics::{Counter, Registry};
use holdfast_observe::{Event, tracing};

/// Lines about refused devices and failed registrations in one second.
const LINES_PER_SECOND: u64 = 20;

/// Metrics of provisioning.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Registrations that ended with a hub.
    pub assigned: Counter,
    /// Registrations that failed.
    pub failed: Counter,
    /// Registrations that could not be completed, to be tried again.
    pub delayed: Counter,
    /// Devices that did not prove themselves.
    pub refused: Counter,
    /// Challenges made for TPMs.
    pub challenges: Counter,
    /// Webhooks that failed.
    pub webhooks_failed: Counter,
    /// Operations a store or hub could not serve.
    pub unavailable: Counter,
    /// Measurements of linked hubs without an answer.
    pub hubs_unreachable: Counter,
    /// The second of the last lines, and how many.
    lines: Arc<AtomicU64>,
}

impl Metrics {
    /// Registers the metrics of provisioning.
    pub fn register(registry: &mut Registry) -> Self {
        Metrics {
            assigned: registry.counter(
                "holdfast_registrations_assigned_total",
                "Device registrations that ended with a hub",
            ),
            failed: registry.counter(
                "holdfast_registrations_failed_total",
                "Device registrations that failed",
            ),
            delayed: registry.counter(
                "holdfast_registrations_delayed_total",
                "Device registrations that a hub or the store held up",
            ),
            refused: registry.counter(
                "holdfast_registrations_refused_total",
                "Devices that did not prove themselves to provisioning",
            ),
            challenges: registry.counter(
                "holdfast_tpm_challenges_total",
                "Challenges that provisioning made for TPMs",
            ),
            webhooks_failed: registry.counter(
                "holdfast_allocation_webhooks_failed_total",
                "Allocation webhooks that failed or answered nonsense",
            ),
            unavailable: registry.counter(
                "holdfast_provisioning_unavailable_total",
                "Provisioning operations that a store or hub could not serve",
            ),
            hubs_unreachable: registry.counter(
                "holdfast_linked_hub_probes_failed_total",
                "Latency measurements that a linked hub did not answer",
            ),
            lines: Arc::default(),
        }
    }

    /// Whether another line may be written in this second.
    fn line(&self, second: u64) -> bool {
        let before = self.lines.load(Ordering::Relaxed);
        let next = match before / 1_024 == second {
            true => before + 1,
            false => second * 1_024 + 1,
        };
        // Lost updates let a few lines more through.
        self.lines.store(next, Ordering::Relaxed);
        next % 1_024 <= LINES_PER_SECOND && (next / 1_024 == second)
    }
}

/// A device did not prove itself.
pub(crate) struct AccessRefused<'a> {
    pub(crate) registration_id: &'a str,
    pub(crate) reason: &'static str,
    pub(crate) second: u64,
}

impl Event for AccessRefused<'_> {
    type Metrics = Metrics;

    fn emit(self, metrics: &Metrics) {
        metrics.refused.inc();
        if metrics.line(self.second) {
            tracing::warn!(
                registration = self.registration_id,
                reason = self.reason,
                "device refused by provisioning"
            );
        }
    }
}

/// As much of a text of a client as a line of the log may hold: the length of an id.
pub(crate) fn shown(text: &str) -> &str {
    let mut end = text.len().min(REGISTRATION_ID_LEN_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A head has refused a request.
pub(crate) struct RequestRefused<'a> {
    pub(crate) registration_id: &'a str,
    pub(crate) reason: &'a str,
    pub(crate) second: u64,
}

impl Event for RequestRefused<'_> {
    type Metrics = Metrics;

    fn emit(self, metrics: &Metrics) {
        metrics.refused.inc();
        if metrics.line(self.second) {
            tracing::warn!(
                registration = self.registration_id,
                reason = self.reason,
                "provisioning request refused"
            );
        }
    }
}

/// A device has proven itself, but its entry lets it not register.
pub(crate) struct NotAdmitted<'a> {
    pub(crate) registration_id: &'a str,
    pub(crate) reason: &'static str,
    pub(crate) second: u64,
}

impl Event for NotAdmitted<'_> {
    type Metrics = Metrics;

    fn emit(self, metrics: &Metrics) {
        metrics.refused.inc();
        if metrics.line(self.second) {
            tracing::warn!(
                registration = self.registration_id,
                reason = self.reason,
                "device not admitted by provisioning"
            );
        }
    }
}

/// A linked hub does not answer the request that measures its latency.
pub(crate) struct HubUnreachable<'a> {
    pub(crate) hub: &'a str,
    pub(crate) reason: &'a str,
    /// Whether it did the last time: one line, not one a round.
    pub(crate) is_new: bool,
}

impl Event for HubUnreachable<'_> {
    type Metrics = Metrics;

    fn emit(self, metrics: &Metrics) {
        metrics.hubs_unreachable.inc();
        if self.is_new {
            tracing::warn!(hub = self.hub, reason = self.reason, "linked hub does not answer");
        } else {
            tracing::debug!(hub = self.hub, reason = self.reason, "linked hub does not answer");
        }
    }
}

/// A registration ended with a hub.
pub(crate) struct Assigned<'a> {
    pub(crate) registration_id: &'a str,
    pub(crate) hub: &'a str,
}

impl Event for Assigned<'_> {
    type Metrics = Metrics;

    fn emit(self, metrics: &Metrics) {
        metrics.assigned.inc();
        tracing::debug!(
            registration = self.registration_id,
            hub = self.hub,
            "device assigned"
        );
    }
}

/// A registration could not be completed; the device asks again.
pub(crate) struct RegistrationDelayed<'a> {
    pub(crate) registration_id: &'a str,
    pub(crate) reason: &'a str,
    pub(crate) second: u64,
}

impl Event for RegistrationDelayed<'_> {
    type Metrics = Metrics;

    fn emit(self, metrics: &Metrics) {
        metrics.delayed.inc();
        if metrics.line(self.second) {
            tracing::warn!(
                registration = self.registration_id,
                reason = self.reason,
                "registration delayed"
            );
        }
    }
}

/// A registration failed for good.
pub(crate) struct RegistrationFailed<'a> {
    pub(crate) registration_id: &'a str,
    pub(crate) number: u32,
    pub(crate) reason: &'a str,
    pub(crate) second: u64,
}

impl Event for RegistrationFailed<'_> {
    type Metrics = Metrics;

    fn emit(self, metrics: &Metrics) {
        metrics.failed.inc();
        if metrics.line(self.second) {
            tracing::warn!(
                registration = self.registration_id,
                number = self.number,
                reason = self.reason,
                "registration failed"
            );
        }
    }
}

/// A store or hub could not serve.
pub(crate) struct Unavailable<'a> {
    pub(crate) operation: &'static str,
    pub(crate) reason: &'a str,
}

impl Event for Unavailable<'_> {
    type Metrics = Metrics;

    fn emit(self, metrics: &Metrics) {
        metrics.unavailable.inc();
        tracing::error!(
            operation = self.operation,
            reason = self.reason,
            "provisioning cannot go on"
        );
    }
}
