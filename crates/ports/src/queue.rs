//! Queues of cloud-to-device messages and of their feedback.

use holdfast_model::c2d::{C2dDelivery, C2dMessage, FeedbackBatch, LockToken, Settlement};
use holdfast_model::{Identity, Timestamp};

use crate::{BoxFuture, StoreResult};

/// How a queue handles its messages; from configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct C2dLimits {
    /// Most messages waiting for one device.
    pub depth_max: usize,
    /// Abandons after which a message is dead.
    pub delivery_count_max: u32,
}

/// Per-device first-in first-out queues with locks.
///
/// A message is *ready*, or *locked* by one delivery until that is settled or its lock ends. Wherever a message ends
/// its life (completed, rejected, abandoned too often, expired, purged), a feedback record is written in the same
/// transaction if the message's ack mode asks for it.
pub trait C2dQueue: Send + Sync + 'static {
    /// Adds a message to its device's queue and returns its sequence number (1, 2, … over the whole store).
    ///
    /// # Errors
    /// `Missing` when the device does not exist; `Full` at `limits.depth_max` messages, locked ones included.
    fn enqueue(&self, message: C2dMessage, limits: C2dLimits) -> BoxFuture<'_, StoreResult<u64>>;

    /// Locks up to `max` ready messages, oldest first, until `lock_until`. Expired messages are dead-lettered on the
    /// way and not returned; messages whose lock has ended count as ready. `owner` is the session's epoch, for
    /// [`C2dQueue::release`].
    fn lock_next<'a>(
        &'a self,
        device: &'a Identity,
        max: usize,
        owner: u64,
        now: Timestamp,
        lock_until: Timestamp,
    ) -> BoxFuture<'a, StoreResult<Vec<C2dDelivery>>>;

    /// Settles a delivery.
    ///
    /// # Errors
    /// `Missing` when the token is unknown, or its lock has ended and the message was locked anew.
    fn settle<'a>(
        &'a self,
        device: &'a Identity,
        lock: LockToken,
        settlement: Settlement,
        limits: C2dLimits,
        now: Timestamp,
    ) -> BoxFuture<'a, StoreResult<()>>;

    /// Makes all messages that `owner` holds locked ready again, without raising their delivery count. They keep
    /// their place in the order and come back marked as redelivered.
    fn release<'a>(&'a self, device: &'a Identity, owner: u64) -> BoxFuture<'a, StoreResult<()>>;

    /// Removes all messages of a device; returns how many.
    fn purge<'a>(&'a self, device: &'a Identity, now: Timestamp) -> BoxFuture<'a, StoreResult<u64>>;

    /// Number of messages waiting for a device, locked ones included.
    fn depth<'a>(&'a self, device: &'a Identity) -> BoxFuture<'a, StoreResult<u64>>;

    /// Dead-letters messages that expired before `now` in all queues; returns how many.
    fn expire(&self, now: Timestamp) -> BoxFuture<'_, StoreResult<u64>>;

    /// Locks a batch of up to 64 feedback records until `lock_until`, oldest first, if 64 are ready or the oldest is
    /// from before `ripe_before`.
    fn lock_feedback(
        &self,
        now: Timestamp,
        lock_until: Timestamp,
        ripe_before: Timestamp,
    ) -> BoxFuture<'_, StoreResult<Option<FeedbackBatch>>>;

    /// Removes (`complete`) or returns (otherwise) a locked feedback batch.
    ///
    /// # Errors
    /// `Missing` when the token is unknown or its lock has ended.
    fn settle_feedback(&self, lock: LockToken, complete: bool) -> BoxFuture<'_, StoreResult<()>>;
}
