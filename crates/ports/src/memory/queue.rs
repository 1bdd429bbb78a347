//! Queues of cloud-to-device messages in memory.

use holdfast_model::c2d::{C2dDelivery, C2dMessage, FeedbackBatch, FeedbackStatus, LockToken, Settlement};
use holdfast_model::{Identity, Timestamp};

use super::{MemoryStore, State};
use crate::queue::{C2dLimits, C2dQueue};
use crate::{BoxFuture, StoreError, StoreResult};

/// A waiting message.
pub(super) struct Queued {
    sequence_number: u64,
    message: C2dMessage,
    /// How often it was abandoned.
    delivery_count: u32,
    /// Whether it was ever handed out.
    delivered: bool,
    lock: Option<Lock>,
}

struct Lock {
    nonce: u64,
    owner: u64,
    until: Timestamp,
}

impl Queued {
    fn ready(&self, now: Timestamp) -> bool {
        self.lock.as_ref().is_none_or(|lock| lock.until <= now)
    }

    /// Dead of age; a message that a receiver still holds locked lives until it is settled or its lock ends.
    fn expired(&self, now: Timestamp) -> bool {
        self.ready(now) && self.message.expires_at <= now
    }

    fn locked_by(&self, owner: u64) -> bool {
        self.lock.as_ref().is_some_and(|lock| lock.owner == owner)
    }

    fn named_by(&self, token: LockToken) -> bool {
        self.sequence_number == token.sequence_number
            && self.lock.as_ref().is_some_and(|lock| lock.nonce == token.nonce)
    }
}

impl C2dQueue for MemoryStore {
    fn enqueue(&self, message: C2dMessage, limits: C2dLimits) -> BoxFuture<'_, StoreResult<u64>> {
        self.run(move |state| {
            let entry = state
                .identities
                .get_mut(&message.device)
                .ok_or(StoreError::Missing)?;
            if entry.queue.len() >= limits.depth_max {
                return Err(StoreError::Full);
            }
            state.last_sequence_number += 1;
            entry.queue.push(Queued {
                sequence_number: state.last_sequence_number,
                message,
                delivery_count: 0,
                delivered: false,
                lock: None,
            });
            Ok(state.last_sequence_number)
        })
    }

    fn lock_next<'a>(
        &'a self,
        device: &'a Identity,
        max: usize,
        owner: u64,
        now: Timestamp,
        lock_until: Timestamp,
    ) -> BoxFuture<'a, StoreResult<Vec<C2dDelivery>>> {
        self.run(move |state| {
            let mut deliveries = Vec::new();
            let mut kept = Vec::new();
            for mut queued in state.take_queue(device) {
                if deliveries.len() < max && queued.expired(now) {
                    state.note_outcome(&queued.message, FeedbackStatus::Expired, now);
                    continue;
                }
                if deliveries.len() < max && queued.ready(now) {
                    let nonce = state.nonces.next();
                    deliveries.push(C2dDelivery {
                        lock: LockToken {
                            sequence_number: queued.sequence_number,
                            nonce,
                        },
                        locked_until: lock_until,
                        delivery_count: queued.delivery_count,
                        redelivered: queued.delivered,
                        message: queued.message.clone(),
                    });
                    queued.delivered = true;
                    queued.lock = Some(Lock {
                        nonce,
                        owner,
                        until: lock_until,
                    });
                }
                kept.push(queued);
            }
            state.put_queue(device, kept);
            Ok(deliveries)
        })
    }

    fn settle<'a>(
        &'a self,
        device: &'a Identity,
        lock: LockToken,
        settlement: Settlement,
        limits: C2dLimits,
        now: Timestamp,
    ) -> BoxFuture<'a, StoreResult<()>> {
        self.run(move |state| {
            let mut queue = state.take_queue(device);
            let Some(place) = queue.iter().position(|queued| queued.named_by(lock)) else {
                state.put_queue(device, queue);
                return Err(StoreError::Missing);
            };
            let queued = &mut queue[place];
            queued.lock = None;
            if settlement == Settlement::Abandon {
                queued.delivery_count += 1;
            }
            let outcome = match settlement {
                Settlement::Complete => Some(FeedbackStatus::Success),
                Settlement::Reject => Some(FeedbackStatus::Rejected),
                Settlement::Abandon if queued.delivery_count >= limits.delivery_count_max => {
                    Some(FeedbackStatus::DeliveryCountExceeded)
                }
                Settlement::Abandon | Settlement::Release => None,
            };
            if let Some(outcome) = outcome {
                let ended = queue.remove(place);
                state.note_outcome(&ended.message, outcome, now);
            }
            state.put_queue(device, queue);
            Ok(())
        })
    }

    fn release<'a>(&'a self, device: &'a Identity, owner: u64) -> BoxFuture<'a, StoreResult<()>> {
        self.run(move |state| {
            if let Some(entry) = state.identities.get_mut(device) {
                for queued in entry.queue.iter_mut().filter(|queued| queued.locked_by(owner)) {
                    queued.lock = None;
                }
            }
            Ok(())
        })
    }

    fn purge<'a>(&'a self, device: &'a Identity, now: Timestamp) -> BoxFuture<'a, StoreResult<u64>> {
        self.run(move |state| {
            let queue = state.take_queue(device);
            for queued in &queue {
                state.note_outcome(&queued.message, FeedbackStatus::Purged, now);
            }
            Ok(queue.len() as u64)
        })
    }

    fn depth<'a>(&'a self, device: &'a Identity) -> BoxFuture<'a, StoreResult<u64>> {
        self.run(move |state| {
            Ok(state
                .identities
                .get(device)
                .map_or(0, |entry| entry.queue.len() as u64))
        })
    }

    fn expire(&self, now: Timestamp) -> BoxFuture<'_, StoreResult<u64>> {
        self.run(move |state| {
            let mut expired = Vec::new();
            for entry in state.identities.values_mut() {
                expired.extend(entry.queue.extract_if(.., |queued| queued.expired(now)));
            }
            // Feedback stands in the order in which the messages died, whatever device they were for.
            expired.sort_by_key(|queued| (queued.message.expires_at, queued.sequence_number));
            for queued in &expired {
                state.note_outcome(&queued.message, FeedbackStatus::Expired, now);
            }
            Ok(expired.len() as u64)
        })
    }

    fn lock_feedback(
        &self,
        now: Timestamp,
        lock_until: Timestamp,
        ripe_before: Timestamp,
    ) -> BoxFuture<'_, StoreResult<Option<FeedbackBatch>>> {
        self.run(move |state| Ok(state.lock_feedback(now, lock_until, ripe_before)))
    }

    fn settle_feedback(&self, lock: LockToken, complete: bool) -> BoxFuture<'_, StoreResult<()>> {
        self.run(move |state| state.settle_feedback(lock, complete))
    }
}

impl State {
    fn take_queue(&mut self, device: &Identity) -> Vec<Queued> {
        self.identities
            .get_mut(device)
            .map(|entry| std::mem::take(&mut entry.queue))
            .unwrap_or_default()
    }

    fn put_queue(&mut self, device: &Identity, queue: Vec<Queued>) {
        if let Some(entry) = self.identities.get_mut(device) {
            entry.queue = queue;
        }
    }
}
