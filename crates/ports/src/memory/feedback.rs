//! Feedback of cloud-to-device messages in memory.

use holdfast_model::Timestamp;
use holdfast_model::c2d::{C2dMessage, FeedbackBatch, FeedbackRecord, FeedbackStatus, LockToken};
use holdfast_model::limits::FEEDBACK_BATCH_MAX;
use holdfast_model::message::SystemProperty;

use super::State;
use crate::{StoreError, StoreResult};

/// A waiting feedback record.
pub(super) struct Queued {
    number: u64,
    record: FeedbackRecord,
    lock: Option<(LockToken, Timestamp)>,
}

impl State {
    /// Writes the feedback record of a message that has ended, if its sender wants it.
    pub(super) fn note_outcome(&mut self, message: &C2dMessage, status: FeedbackStatus, now: Timestamp) {
        if !message.ack.wants(status) {
            return;
        }
        self.last_feedback_number += 1;
        self.feedback.push(Queued {
            number: self.last_feedback_number,
            record: FeedbackRecord {
                original_message_id: message
                    .message
                    .system(SystemProperty::MessageId)
                    .unwrap_or_default()
                    .to_owned(),
                enqueued_time_utc: now,
                status_code: status,
                description: description(status).to_owned(),
                device_id: message.device.device_id().to_owned(),
                device_generation_id: message.generation_id.to_string(),
            },
            lock: None,
        });
    }

    pub(super) fn lock_feedback(
        &mut self,
        now: Timestamp,
        lock_until: Timestamp,
        ripe_before: Timestamp,
    ) -> Option<FeedbackBatch> {
        // A lock that has ended is void from here on, whether or not its records are locked anew.
        for queued in &mut self.feedback {
            if queued.lock.is_some_and(|(_, until)| until <= now) {
                queued.lock = None;
            }
        }
        let nonce = self.nonces.next();
        let mut ready: Vec<&mut Queued> = self
            .feedback
            .iter_mut()
            .filter(|queued| queued.lock.is_none())
            .take(FEEDBACK_BATCH_MAX)
            .collect();
        let oldest = ready.first()?;
        if ready.len() < FEEDBACK_BATCH_MAX && oldest.record.enqueued_time_utc >= ripe_before {
            return None;
        }
        let lock = LockToken {
            sequence_number: oldest.number,
            nonce,
        };
        for queued in &mut ready {
            queued.lock = Some((lock, lock_until));
        }
        Some(FeedbackBatch {
            lock,
            locked_until: lock_until,
            records: ready.into_iter().map(|queued| queued.record.clone()).collect(),
        })
    }

    pub(super) fn settle_feedback(&mut self, lock: LockToken, complete: bool) -> StoreResult<()> {
        let held = |queued: &Queued| queued.lock.is_some_and(|(token, _)| token == lock);
        if !self.feedback.iter().any(held) {
            return Err(StoreError::Missing);
        }
        if complete {
            self.feedback.retain(|queued| !held(queued));
        } else {
            for queued in self.feedback.iter_mut().filter(|queued| held(queued)) {
                queued.lock = None;
            }
        }
        Ok(())
    }
}

/// IoT Hub repeats the status code as the description.
fn description(status: FeedbackStatus) -> &'static str {
    match status {
        FeedbackStatus::Success => "Success",
        FeedbackStatus::Expired => "Expired",
        FeedbackStatus::DeliveryCountExceeded => "DeliveryCountExceeded",
        FeedbackStatus::Rejected => "Rejected",
        FeedbackStatus::Purged => "Purged",
    }
}
