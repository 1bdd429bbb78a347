//! Sending reported properties that the hub above does not know.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_model::Identity;
use holdfast_observe::{Repeats, tracing};
use holdfast_upstream::port::{CloudError, Reach};
use serde_json::{Map, Value};

use super::{is_final, patch, split_version};
use crate::Broker;
use crate::metrics::Family;

/// How long one call may take.
const SEND_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause after a round in which something could not be sent.
const RETRY_AFTER: Duration = Duration::from_secs(5);

static NOT_TAKEN: Repeats = Repeats::new();
static GIVEN_UP: Repeats = Repeats::new();

/// Sends, until the edge hub stops.
pub(crate) async fn run(broker: Arc<Broker>) {
    loop {
        broker.twins.sync.notified().await;
        // What is reported meanwhile goes along.
        tokio::time::sleep(broker.config.reported_sync_after).await;
        let waiting: Vec<Identity> = broker.twins.unsent.lock().iter().cloned().collect();
        let mut failed = false;
        for identity in waiting {
            if matches!(broker.reach(), Reach::Offline { .. }) {
                // The reconnection wakes this task.
                failed = false;
                break;
            }
            failed |= !broker.send_reported(&identity).await;
        }
        failed |= !broker.read_unread().await;
        if failed {
            tokio::time::sleep(RETRY_AFTER).await;
            broker.twins.sync.notify_one();
        }
    }
}

impl Broker {
    /// Reads the twins that could not be read when they were wanted. False when some have to be tried again: nothing else
    /// may tell that the hub above answers again, since a connection can survive a cut.
    async fn read_unread(&self) -> bool {
        let unread: Vec<Identity> = self.twins.unread.lock().iter().cloned().collect();
        for identity in &unread {
            if !self.wants_desired(identity) {
                self.twins.unread.lock().remove(identity);
            } else if !matches!(self.reach(), Reach::Offline { .. }) {
                self.read_twin_again(identity).await;
            }
        }
        self.twins.unread.lock().is_empty()
    }

    /// Sends what is unsent of one twin. False when it has to be tried again.
    async fn send_reported(&self, identity: &Identity) -> bool {
        let Some(link) = self.link(identity) else {
            // Not in the scope any more: nobody is left to report for.
            if self.scope.get(identity).is_none() && *identity != self.own && self.scope.has_registry() {
                self.twins.forget(identity);
            }
            return true;
        };
        let Some(sending) = self.begin_sending(identity).await else {
            return true;
        };
        let body = Bytes::from(Value::Object(sending).to_string());
        let begun = self.clock.monotonic_millis();
        let outcome = tokio::time::timeout(SEND_TIMEOUT, link.client.patch_reported(body)).await;
        let outcome =
            outcome.unwrap_or_else(|_| Err(CloudError::Unreachable("no answer in time".to_owned())));
        let took = Duration::from_millis(self.clock.monotonic_millis().saturating_sub(begun));
        let labels = ["upstream", identity.as_str()];
        match &outcome {
            Ok(_) => {
                self.metrics.count(Family::ReportedProperties, &labels, 1);
                self.metrics
                    .observe_duration(Family::ReportedDuration, &labels, took);
                if let Some(more) = NOT_TAKEN.over(identity.as_str()) {
                    let identity = identity.as_str();
                    tracing::info!(identity, more, "reported properties are taken above again");
                }
            }
            Err(error) => {
                self.metrics.count(
                    Family::OperationRetry,
                    &[identity.as_str(), "reported_properties"],
                    1,
                );
                if let Some(times) = NOT_TAKEN.happened(identity.as_str()) {
                    tracing::warn!(identity = identity.as_str(), %error, times, "reported properties were not taken above");
                }
            }
        }
        self.end_sending(identity, outcome).await
    }

    /// Marks what is unsent as being sent, durably: reports that come meanwhile are kept apart.
    async fn begin_sending(&self, identity: &Identity) -> Option<Map<String, Value>> {
        let _one = self.twins.lock(identity).await;
        let mut record = self.twins.load(identity)?;
        if !record.unsent() {
            self.twins.unsent.lock().remove(identity);
            return None;
        }
        let pending = std::mem::take(&mut record.pending);
        let known = record.synced.clone();
        patch::merge(&mut record.sending, &pending, &known);
        self.twins.save(identity, &record).await.ok()?;
        Some(record.sending)
    }

    async fn end_sending(&self, identity: &Identity, outcome: Result<u64, CloudError>) -> bool {
        let _one = self.twins.lock(identity).await;
        let Some(mut record) = self.twins.load(identity) else {
            return true;
        };
        let sent = match outcome {
            Ok(version) => {
                let (sending, _) = split_version(std::mem::take(&mut record.sending));
                patch::apply(&mut record.synced, &sending);
                record.reported_version = record.reported_version.max(version);
                true
            }
            Err(error) if is_final(&error) => {
                // The hub will never take it; what it has counts.
                if let Some(times) = GIVEN_UP.happened(identity.as_str()) {
                    tracing::error!(identity = identity.as_str(), %error, times, "reported properties were refused above and are given up");
                }
                record.sending = Map::new();
                true
            }
            // Kept as being sent: it goes again with what was reported meanwhile.
            Err(_) => return false,
        };
        let more = record.unsent();
        let saved = self.twins.save(identity, &record).await.is_ok();
        if more {
            self.twins.sync.notify_one();
        }
        sent && saved
    }
}
