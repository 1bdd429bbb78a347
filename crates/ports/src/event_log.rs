//! The event log: partitions of events, appended in order, acknowledged when durable.

use std::task::{Context, Poll};

use holdfast_model::Timestamp;
use holdfast_model::event::{EndpointSet, EventBlock, Origin, Records, Run};

use crate::BoxFuture;

/// Where an append ended. Cheap to keep: a session remembers only the newest ticket and acknowledges everything up to
/// it once [`EventLog::poll_durable`] says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AppendTicket {
    /// Partition of the records.
    pub partition: u16,
    /// Sequence number after the last appended record.
    pub end: u64,
}

/// State of a partition, durable events only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartitionInfo {
    /// Sequence number of the oldest event still kept; equal to `next` when there is none.
    pub first: u64,
    /// Sequence number the next event will get.
    pub next: u64,
    /// Enqueued time of the newest event; [`Timestamp::NEVER`] when there was none.
    pub last_enqueued_at: Timestamp,
}

/// Failure of the event log.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LogError {
    /// The partition holds as much unwritten data as it may; wait for a ticket of it and try again.
    #[error("the partition's write buffer is full")]
    Busy,
    /// There is no such partition.
    #[error("there is no partition {0}")]
    NoSuchPartition(u16),
    /// The log could not write or sync. It takes nothing more until the process is started again: after a failed
    /// sync nobody knows what is on the disk. What was acknowledged before stays readable.
    #[error("the event log has failed and takes no more events: {0}")]
    Failed(String),
    /// Stored data is damaged or cannot be read.
    #[error("the event log cannot be read: {0}")]
    Unreadable(String),
}

/// An append-only log of events in a fixed number of partitions.
///
/// Within a partition, sequence numbers start at 0 and have no gaps, enqueued times never go back, and events become
/// durable and readable in order. After a crash the log holds a prefix of what was appended that includes everything
/// that [`EventLog::poll_durable`] had reported.
pub trait EventLog: Send + Sync + 'static {
    /// Number of partitions, fixed when the log was made.
    fn partitions(&self) -> u16;

    /// Appends each run (at least one, none empty) as a block: all of a block survives a crash, or none, and no block
    /// without those before it. Not yet durable on return. Never blocks on I/O.
    ///
    /// # Errors
    /// [`LogError::Busy`], [`LogError::NoSuchPartition`], [`LogError::Failed`]; nothing is appended then.
    fn append_runs(
        &self,
        partition: u16,
        origin: &Origin,
        runs: &[Run<'_>],
        now: Timestamp,
    ) -> Result<AppendTicket, LogError>;

    /// Appends `records` (at least one) as one block for the built-in endpoint, otherwise as
    /// [`EventLog::append_runs`].
    ///
    /// # Errors
    /// As [`EventLog::append_runs`].
    fn append(
        &self,
        partition: u16,
        origin: &Origin,
        records: &Records,
        now: Timestamp,
    ) -> Result<AppendTicket, LogError> {
        self.append_runs(partition, origin, &[records.run(EndpointSet::EVENTS)], now)
    }

    /// Ready once everything before `ticket.end` is durable; wakes the task of the latest call with each waker.
    ///
    /// # Errors
    /// [`LogError::Failed`] when it will never be.
    fn poll_durable(&self, ticket: AppendTicket, context: &mut Context<'_>) -> Poll<Result<(), LogError>>;

    /// Durable blocks that hold events from sequence number `from` on, oldest first, about `max_bytes` of them but at
    /// least one block if there is any. The first block may start before `from`; skip within it. A `from` older than
    /// what is kept starts at the oldest. Empty when there is nothing newer.
    fn read(
        &self,
        partition: u16,
        from: u64,
        max_bytes: usize,
    ) -> BoxFuture<'_, Result<Vec<EventBlock>, LogError>>;

    /// Sequence number of the first durable event enqueued at or after `time`; the next one's when there is none.
    fn find(&self, partition: u16, time: Timestamp) -> BoxFuture<'_, Result<u64, LogError>>;

    /// Current extent of a partition.
    ///
    /// # Errors
    /// [`LogError::NoSuchPartition`].
    fn info(&self, partition: u16) -> Result<PartitionInfo, LogError>;

    /// Ready when the partition's durable end is beyond `from`, i.e. [`EventLog::read`] would return something.
    fn poll_readable(
        &self,
        partition: u16,
        from: u64,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), LogError>>;
}

/// Waits until `ticket` is durable.
///
/// # Errors
/// [`LogError::Failed`].
pub async fn durable(log: &dyn EventLog, ticket: AppendTicket) -> Result<(), LogError> {
    std::future::poll_fn(|context| log.poll_durable(ticket, context)).await
}
