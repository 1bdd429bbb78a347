//! NATS: each event is a message, with or without JetStream.
//!
//! With JetStream an event is accepted when a stream has stored it, and carries an id by which the stream drops
//! repeats. Without, it is accepted when the server has read it, which is all that core NATS can tell. Memory: a batch
//! of at most 4 MiB as read, as sent and in the connection's buffer.

mod config;
mod request;
mod service;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
pub use config::NatsConfig;
use holdfast_model::routing::EndpointDefinition;
use holdfast_ports::BoxFuture;
use holdfast_ports::endpoint::{BatchLimits, DeliveryError, Endpoint, Outbound};
use parking_lot::Mutex;
use rustls::ClientConfig;
use service::Connection;

use super::socket::{self, told};
use super::{DELIVERY_TIME_MAX, Environment, Kind, described};

/// The kind's row in the table.
pub(super) const KIND: Kind = Kind {
    name: "nats",
    secrets: &["password", "token"],
    check: NatsConfig::check,
    make,
    described: described::<NatsConfig>,
};

/// Most bytes of a batch.
const BATCH_BYTES_MAX: usize = 4 << 20;

fn make(definition: &EndpointDefinition, environment: &Environment) -> Result<Arc<dyn Endpoint>, String> {
    Ok(Arc::new(NatsEndpoint::new(&definition.settings, environment)?))
}

/// A subject.
pub(crate) struct NatsEndpoint {
    config: NatsConfig,
    hub_name: String,
    tls: Option<Arc<ClientConfig>>,
    /// The connection, unless something has failed on it.
    rest: Mutex<Option<Connection>>,
}

impl NatsEndpoint {
    pub(crate) fn new(settings: &serde_json::Value, environment: &Environment) -> Result<Self, String> {
        let config = NatsConfig::read(settings)?;
        let tls = socket::tls(config.ca_certificate.as_deref(), None)?;
        Ok(NatsEndpoint {
            tls: config.tls.then_some(tls),
            config,
            hub_name: environment.hub_name.clone(),
            rest: Mutex::new(None),
        })
    }

    async fn deliver_all(&self, batch: &[Outbound<'_>]) -> Result<(), DeliveryError> {
        let rested = self.rest.lock().take().filter(Connection::is_first);
        let connection = match rested {
            Some(connection) => connection,
            None => Connection::open(&self.config, self.tls.as_ref())
                .await
                .map_err(DeliveryError::retry)?,
        };
        let sending = async {
            if self.config.jet_stream {
                self.store(&connection, batch).await
            } else {
                self.publish(&connection, batch).await
            }
        };
        let outcome = tokio::time::timeout(DELIVERY_TIME_MAX, sending)
            .await
            .unwrap_or_else(|_| {
                let message = format!("no answer within {} s", DELIVERY_TIME_MAX.as_secs());
                Err(DeliveryError::retry(message))
            });
        // A message that the server refuses says nothing against the connection.
        if outcome.as_ref().err().is_none_or(|error| error.refused) {
            *self.rest.lock() = Some(connection);
        }
        outcome
    }

    async fn publish(&self, connection: &Connection, batch: &[Outbound<'_>]) -> Result<(), DeliveryError> {
        for (at, event) in batch.iter().enumerate() {
            let payload = request::payload(event);
            let most = connection.client.max_payload();
            if payload.len() > most {
                connection.settle().await.map_err(DeliveryError::retry)?;
                let message = format!(
                    "the event has {} bytes, and the server takes {most}",
                    payload.len()
                );
                return Err(DeliveryError::refused(message).after(at));
            }
            let subject = request::subject(&self.config.subject, &self.hub_name, event);
            let sent = connection.client.publish(subject, payload).await;
            sent.map_err(|error| DeliveryError::retry(told(&error.to_string())))?;
        }
        connection.settle().await.map_err(DeliveryError::retry)
    }

    /// All are sent before the first answer is waited for. What is accepted after the first failure comes again, and
    /// the stream drops it by its id.
    async fn store(&self, connection: &Connection, batch: &[Outbound<'_>]) -> Result<(), DeliveryError> {
        let mut answers = Vec::with_capacity(batch.len());
        let mut failed = None;
        for event in batch {
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Msg-Id", super::routed(event).id());
            let subject = request::subject(&self.config.subject, &self.hub_name, event);
            let payload = request::payload(event);
            match connection
                .stream
                .publish_with_headers(subject, headers, payload)
                .await
            {
                Ok(answer) => answers.push(answer),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        let sent = answers.len();
        for (at, answer) in answers.into_iter().enumerate() {
            answer.await.map_err(|error| failure(&error).after(at))?;
        }
        failed.map_or(Ok(()), |error| Err(failure(&error).after(sent)))
    }
}

fn failure(error: &PublishError) -> DeliveryError {
    let message = told(&error.to_string());
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => DeliveryError::refused(message),
        PublishErrorKind::StreamNotFound => {
            DeliveryError::retry(format!("{message}: no stream has this subject"))
        }
        _ => DeliveryError::retry(message),
    }
}

impl Endpoint for NatsEndpoint {
    fn limits(&self) -> BatchLimits {
        BatchLimits {
            events_max: self.config.batch_events_max,
            bytes_max: BATCH_BYTES_MAX,
            wait_max: Duration::ZERO,
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
