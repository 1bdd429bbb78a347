//! Endpoints: where routes take events to.

use std::time::Duration;

use holdfast_model::event::EventView;

use crate::BoxFuture;

/// An event on its way to one endpoint.
#[derive(Clone, Debug)]
pub struct Outbound<'a> {
    /// The event as it stands in the log.
    pub event: EventView<'a>,
    /// Application properties that this endpoint's enrichments add. A key that the event has too replaces the event's.
    pub enrichments: Vec<(&'a str, String)>,
}

impl<'a> Outbound<'a> {
    /// Application properties with the enrichments; `None` is a key without a value.
    pub fn properties(&self) -> impl Iterator<Item = (&'a str, Option<&str>)> + '_ {
        let own = self.event.fields().filter_map(|field| match field {
            holdfast_model::event::EventField::Application(key, value) => Some((key, value)),
            holdfast_model::event::EventField::System(..) => None,
        });
        let kept = own.filter(|(key, _)| !self.enrichments.iter().any(|(added, _)| added == key));
        let added = self
            .enrichments
            .iter()
            .map(|(key, value)| (*key, Some(value.as_str())));
        kept.chain(added)
    }
}

/// How much an endpoint takes at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchLimits {
    /// Most events of a batch, at least 1.
    pub events_max: usize,
    /// Bodies and properties of a batch, in bytes; a single event may be larger.
    pub bytes_max: usize,
    /// How long to wait for a batch to fill after its first event. Zero takes what there is.
    pub wait_max: Duration,
}

/// Why a delivery has failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct DeliveryError {
    /// Events at the front of the batch that the endpoint has accepted all the same.
    pub accepted: usize,
    /// Whether the first event that was not accepted will never be: it goes to the dead letters, and the next one is
    /// tried. Otherwise it is tried again.
    pub refused: bool,
    /// How long the endpoint asks to be left alone, if it says so.
    pub retry_after: Option<Duration>,
    /// What happened, for operators: the peer's answer or the failed operation. No secrets.
    pub message: String,
}

impl DeliveryError {
    /// Nothing was accepted, and trying again may help.
    #[must_use]
    pub fn retry(message: impl Into<String>) -> Self {
        DeliveryError {
            accepted: 0,
            refused: false,
            retry_after: None,
            message: message.into(),
        }
    }

    /// The first event will never be accepted.
    #[must_use]
    pub fn refused(message: impl Into<String>) -> Self {
        DeliveryError {
            refused: true,
            ..DeliveryError::retry(message)
        }
    }

    /// The same after `accepted` events have been.
    #[must_use]
    pub fn after(mut self, accepted: usize) -> Self {
        self.accepted = accepted;
        self
    }
}

/// A place that takes events: a queue, a file store, a web service.
///
/// One dispatcher calls it, one batch after the other, in the order of the log within each partition.
pub trait Endpoint: Send + Sync + 'static {
    /// How much it takes at once.
    fn limits(&self) -> BatchLimits;

    /// Hands over a batch, in order. `Ok` means that the endpoint has accepted every event, as durably as its protocol
    /// can say; only then the dispatcher's checkpoint moves. After an error, or a crash, events come again: at least
    /// once, never out of order the first time.
    ///
    /// The dispatcher bounds the call in time and drops the future then, so it has to bear that at every await.
    ///
    /// # Errors
    /// [`DeliveryError`].
    fn deliver<'a>(&'a self, batch: &'a [Outbound<'a>]) -> BoxFuture<'a, Result<(), DeliveryError>>;

    /// Called when nothing has come for a while: connections may be closed, and will be opened again by the next batch.
    fn idle(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}
