//! PostgreSQL: events become rows of a table. TimescaleDB is an ordinary table here.
//!
//! A batch is one transaction; an event that comes again changes nothing, by the key of partition and sequence number.
//! When the server does not take the data itself, the batch is split until the event is found, and that one goes to the
//! dead letters. Memory: one batch, bounded by `batchBytesMax`, up to three times (as read, by column, as sent).

mod config;
mod request;
mod service;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

pub use config::PostgresConfig;
use holdfast_model::routing::EndpointDefinition;
use holdfast_ports::BoxFuture;
use holdfast_ports::endpoint::{BatchLimits, DeliveryError, Endpoint, Outbound};
use parking_lot::Mutex;
use request::Rows;
use rustls::ClientConfig;
use serde_json::Value;
use service::Connection;
use tokio::time::Instant;

use super::{DELIVERY_TIME_MAX, Environment, Kind, described, socket};

/// The kind's row in the table.
pub(super) const KIND: Kind = Kind {
    name: "postgres",
    secrets: &["password"],
    check: PostgresConfig::check,
    make,
    described: described::<PostgresConfig>,
};

fn make(definition: &EndpointDefinition, _environment: &Environment) -> Result<Arc<dyn Endpoint>, String> {
    Ok(Arc::new(PostgresEndpoint::new(&definition.settings)?))
}

/// A table.
pub(crate) struct PostgresEndpoint {
    config: PostgresConfig,
    tls: Option<Arc<ClientConfig>>,
    /// The connection while nothing is under way on it.
    rest: Mutex<Option<Connection>>,
}

impl PostgresEndpoint {
    pub(crate) fn new(settings: &Value) -> Result<Self, String> {
        let config = PostgresConfig::read(settings)?;
        let tls = socket::tls(config.ca_certificate.as_deref(), None)?;
        Ok(PostgresEndpoint {
            tls: config.tls.then_some(tls),
            config,
            rest: Mutex::new(None),
        })
    }

    async fn deliver_all(&self, batch: &[Outbound<'_>]) -> Result<(), DeliveryError> {
        let end = Instant::now() + DELIVERY_TIME_MAX;
        let mut accepted = 0;
        let mut size = batch.len();
        while accepted < batch.len() {
            let part = &batch[accepted..batch.len().min(accepted + size)];
            let Ok(outcome) = tokio::time::timeout_at(end, self.insert(part)).await else {
                let message = format!(
                    "the server took {accepted} events in {} s",
                    DELIVERY_TIME_MAX.as_secs()
                );
                return Err(DeliveryError::retry(message).after(accepted));
            };
            match outcome {
                Ok(()) => accepted += part.len(),
                Err(failure) if !failure.data => {
                    return Err(DeliveryError::retry(failure.message).after(accepted));
                }
                Err(failure) if part.len() == 1 => {
                    return Err(DeliveryError::refused(failure.message).after(accepted));
                }
                // Somewhere in here is an event that it does not take.
                Err(_) => size = part.len() / 2,
            }
        }
        Ok(())
    }

    async fn insert(&self, events: &[Outbound<'_>]) -> Result<(), service::Failure> {
        let rows = Rows::of(events);
        let rested = self.rest.lock().take();
        if let Some(connection) = rested {
            match connection.insert(&rows).await {
                // The server may have closed it in the meantime; that is not worth a failure.
                Err(failure) if !failure.data => {}
                outcome => {
                    *self.rest.lock() = Some(connection);
                    return outcome;
                }
            }
        }
        let connection = Connection::open(&self.config, self.tls.as_ref()).await?;
        let outcome = connection.insert(&rows).await;
        if outcome.as_ref().err().is_none_or(|failure| failure.data) {
            *self.rest.lock() = Some(connection);
        }
        outcome
    }
}

impl Endpoint for PostgresEndpoint {
    fn limits(&self) -> BatchLimits {
        BatchLimits {
            events_max: self.config.batch_events_max,
            bytes_max: self.config.batch_bytes_max,
            wait_max: Duration::from_millis(self.config.batch_wait_milliseconds),
        }
    }

    fn deliver<'a>(&'a self, batch: &'a [Outbound<'a>]) -> BoxFuture<'a, Result<(), DeliveryError>> {
        Box::pin(self.deliver_all(batch))
    }

    fn idle(&self) -> BoxFuture<'_, ()> {
        self.rest.lock().take();
        Box::pin(std::future::ready(()))
    }
}
