//! Latencies of linked hubs for the lowest-latency policy: what the operator configured, else what was measured.
//!
//! What is measured is the time of one cheap request from this process, since devices tell nothing of their own way to a
//! hub. One round at a time, a few hubs at once, each within [`PROBE_TIMEOUT`]; a hub that does not answer counts as the
//! farthest. Measured times jump, so hubs within [`TOLERANCE_MS`] of the nearest count as equally near.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use holdfast_model::provisioning::LinkedHub;
use holdfast_observe::Event as _;
use holdfast_ports::enrollment::HubRegistry;
use tokio::task::JoinSet;

use crate::Provisioning;
use crate::events::HubUnreachable;

/// Longest wait for one hub.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Measured times closer than this are equal.
const TOLERANCE_MS: u32 = 10;
/// Hubs asked at once.
const PROBES_AT_ONCE: usize = 8;

/// Measured latencies by stored host; bounded by the number of linked hubs.
pub(crate) type Latencies = HashMap<String, u32>;

impl Provisioning {
    /// Measures now, when a hub is linked, and every `interval`, for as long as the engine lives.
    pub fn watch_latencies(self: &Arc<Self>, interval: Duration) {
        let this = Arc::downgrade(self);
        let linked = Arc::clone(&self.hub_linked);
        tokio::spawn(async move {
            while let Some(engine) = Weak::upgrade(&this) {
                engine.measure_latencies().await;
                drop(engine);
                // Either is a reason to measure again.
                let _ = tokio::time::timeout(interval, linked.notified()).await;
            }
        });
    }

    /// Measures every linked hub once whose latency is not configured.
    pub async fn measure_latencies(&self) {
        let Ok(hubs) = self.linked_hubs().await else {
            return;
        };
        let wanted: Vec<LinkedHub> = hubs
            .into_iter()
            .filter(|hub| !hub.is_own() && hub.latency_ms.is_none())
            .collect();
        self.latencies
            .lock()
            .retain(|host, _| wanted.iter().any(|hub| hub.host == *host));
        let mut waiting = wanted.into_iter();
        let mut probes = JoinSet::new();
        loop {
            while probes.len() < PROBES_AT_ONCE
                && let Some(hub) = waiting.next()
            {
                if let Ok(registry) = self.drivers.connector.connect(&hub) {
                    probes.spawn(probe(hub.host, registry));
                }
            }
            match probes.join_next().await {
                None => return,
                Some(Ok((host, outcome))) => self.note_latency(&host, outcome),
                // It panicked or was cut off; the next round tries again.
                Some(Err(_)) => {}
            }
        }
    }

    fn note_latency(&self, host: &str, outcome: Result<u32, String>) {
        match outcome {
            Ok(milliseconds) => {
                self.latencies.lock().insert(host.to_owned(), milliseconds);
            }
            Err(reason) => {
                let known = self.latencies.lock().remove(host).is_some();
                HubUnreachable {
                    hub: host,
                    reason: &reason,
                    is_new: known,
                }
                .emit(&self.metrics);
            }
        }
    }

    /// The measured latency of a hub, as stored.
    #[must_use]
    pub fn measured_latency(&self, stored: &str) -> Option<u32> {
        self.latencies.lock().get(stored).copied()
    }

    /// The hubs that count as nearest.
    pub(crate) fn nearest<'a>(&self, hubs: &'a [LinkedHub]) -> Vec<&'a LinkedHub> {
        let latencies = self.latencies.lock();
        nearest(hubs, |hub| latencies.get(&hub.host).copied())
    }
}

async fn probe(host: String, registry: Arc<dyn HubRegistry>) -> (String, Result<u32, String>) {
    let begun = Instant::now();
    let outcome = match tokio::time::timeout(PROBE_TIMEOUT, registry.probe()).await {
        Ok(Ok(())) => Ok(u32::try_from(begun.elapsed().as_millis()).unwrap_or(u32::MAX)),
        Ok(Err(error)) => Err(error.message),
        Err(_) => Err("no answer in time".to_owned()),
    };
    (host, outcome)
}

/// The own hub is near, and one that is neither configured nor measured far.
fn nearest(hubs: &[LinkedHub], measured: impl Fn(&LinkedHub) -> Option<u32>) -> Vec<&LinkedHub> {
    let latency = |hub: &LinkedHub| match (hub.latency_ms, hub.is_own()) {
        (Some(configured), _) => configured,
        (None, true) => 0,
        (None, false) => measured(hub).unwrap_or(u32::MAX),
    };
    let Some(least) = hubs.iter().map(latency).min() else {
        return Vec::new();
    };
    let near = |hub: &&LinkedHub| {
        let is_measured = hub.latency_ms.is_none() && !hub.is_own() && measured(hub).is_some();
        let tolerance = if is_measured { TOLERANCE_MS } else { 0 };
        latency(hub) <= least.saturating_add(tolerance)
    };
    hubs.iter().filter(near).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(host: &str, latency_ms: Option<u32>) -> LinkedHub {
        LinkedHub {
            host: host.to_owned(),
            latency_ms,
            ..LinkedHub::own()
        }
    }

    #[test]
    fn configured_latencies_win_over_measured_ones() {
        let names = |hubs: &[LinkedHub], measured: &[(&str, u32)]| -> Vec<String> {
            let measured = |hub: &LinkedHub| {
                measured
                    .iter()
                    .find(|(host, _)| *host == hub.host)
                    .map(|(_, ms)| *ms)
            };
            nearest(hubs, measured)
                .iter()
                .map(|hub| hub.host.clone())
                .collect()
        };
        let hubs = [hub("a", Some(30)), hub("b", None), hub("c", None)];
        assert_eq!(names(&hubs, &[]), ["a"]);
        assert_eq!(names(&hubs, &[("b", 12), ("c", 90)]), ["b"]);
        // Measured ones that are nearly the same are the same, configured ones are what they say.
        assert_eq!(names(&hubs, &[("b", 12), ("c", 20)]), ["b", "c"]);
        assert_eq!(names(&hubs, &[("b", 25), ("c", 90)]), ["b"]);
        // Nobody has answered: all are equally far.
        assert_eq!(names(&hubs[1..], &[]), ["b", "c"]);
        assert_eq!(
            names(&[LinkedHub::own(), hub("c", None)], &[("c", 5)]),
            ["$own", "c"]
        );
    }
}
