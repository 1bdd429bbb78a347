//! Events that an endpoint did not take.

use holdfast_model::Timestamp;

use crate::{BoxFuture, StoreResult};

/// Most dead letters kept of one endpoint; above, the oldest go.
pub const DEAD_LETTERS_MAX: usize = 10_000;

/// An event that an endpoint has refused, or did not take in time. The event itself stays in the log for as long as the
/// log keeps it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeadLetter {
    /// Name of the endpoint.
    pub endpoint: String,
    /// Partition of the event.
    pub partition: u16,
    /// Its place there.
    pub sequence_number: u64,
    /// Who sent it: `device` or `device/module`.
    pub identity: String,
    /// When it was given up.
    pub at: Timestamp,
    /// What the endpoint said.
    pub reason: String,
}

/// Store of dead letters.
pub trait DeadLetterStore: Send + Sync + 'static {
    /// Adds letters. One that is there already (same endpoint, partition and number) is replaced, since deliveries are
    /// repeated after a crash.
    fn bury(&self, letters: Vec<DeadLetter>) -> BoxFuture<'_, StoreResult<()>>;

    /// Up to `limit` letters of an endpoint, newest first.
    fn dead_letters<'a>(
        &'a self,
        endpoint: &'a str,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<DeadLetter>>>;

    /// Number of letters of an endpoint.
    fn count_dead_letters<'a>(&'a self, endpoint: &'a str) -> BoxFuture<'a, StoreResult<u64>>;

    /// Removes the letters of an endpoint for these events, given as partition and sequence number; returns how many
    /// there were.
    fn remove_dead_letters<'a>(
        &'a self,
        endpoint: &'a str,
        events: Vec<(u16, u64)>,
    ) -> BoxFuture<'a, StoreResult<u64>>;

    /// Removes all letters of an endpoint; returns how many.
    fn clear_dead_letters<'a>(&'a self, endpoint: &'a str) -> BoxFuture<'a, StoreResult<u64>>;
}
