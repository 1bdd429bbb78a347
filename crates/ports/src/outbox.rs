//! Events that are stored together with the change they tell of, on their way to the event log.
//!
//! A change that is to be told of and its events are one transaction ([`crate::twin::TwinStore::mutate_twin_telling`],
//! [`crate::registry::RegistryStore::create_telling`] and their likes). One relay reads the events in order, appends
//! them to the log and removes them once they are durable there; so an event may come twice after a crash, but it is
//! never lost and never out of order.

use holdfast_model::event::{EventSource, Records};
use holdfast_model::{Error, ErrorCode, Identity};

use crate::{BoxFuture, StoreError, StoreResult};

/// Most events that wait in an outbox. A change that would make more is refused ([`full`]).
pub const OUTBOX_EVENTS_MAX: u64 = 200_000;

/// What a store answers to a change whose events find no room any more.
#[must_use]
pub fn full() -> StoreError {
    StoreError::Refused(Error::new(
        ErrorCode::ThrottlingException,
        "the change is to be told of, and too many events wait for the event log; try again later",
    ))
}

/// An event that the hub itself has made.
#[derive(Clone, Debug)]
pub struct OutboxEvent {
    /// Kind of event.
    pub source: EventSource,
    /// Whom it is about.
    pub identity: Identity,
    /// One encoded record.
    pub records: Records,
    /// JSON text of the twin that routing conditions may ask for, as it was after the change.
    pub twin: Option<String>,
}

impl OutboxEvent {
    /// Bytes of its record and its twin.
    #[must_use]
    pub fn size(&self) -> usize {
        self.records.as_bytes().len() + self.twin.as_ref().map_or(0, String::len)
    }
}

/// An event with its place in the outbox.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// Grows in the order of the changes, as long as an earlier event is there.
    pub number: u64,
    /// The event.
    pub event: OutboxEvent,
}

/// Store of the outbox.
pub trait OutboxStore: Send + Sync + 'static {
    /// Adds events that belong to no change of this store, after all others.
    ///
    /// # Errors
    /// [`full`]; then none is added.
    fn add_to_outbox(&self, events: Vec<OutboxEvent>) -> BoxFuture<'_, StoreResult<()>>;

    /// Up to `limit` waiting events in the order of the changes, about `bytes_max` of them but at least one if there is
    /// any.
    fn outbox(&self, limit: usize, bytes_max: usize) -> BoxFuture<'_, StoreResult<Vec<Waiting>>>;

    /// Removes events up to and including `number`.
    fn remove_from_outbox(&self, number: u64) -> BoxFuture<'_, StoreResult<()>>;
}
