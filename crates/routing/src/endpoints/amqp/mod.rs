//! AMQP 1.0 brokers, Event Hubs and Service Bus: events are sent unsettled, and what the peer says becomes the outcome.
//! Accepted is accepted; rejected is refused, unless the condition speaks of the peer's own state; released and
//! modified are tried again. A batch is pipelined as far as the peer's credit goes.

mod config;
mod request;
mod service;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

pub use config::AmqpConfig;
use config::Target;
use holdfast_model::routing::EndpointDefinition;
use holdfast_ports::BoxFuture;
use holdfast_ports::clock::Clock;
use holdfast_ports::endpoint::{BatchLimits, DeliveryError, Endpoint, Outbound};
use parking_lot::Mutex;
use serde_json::Value;
use service::{Client, Outcome};

use super::socket::{self, Address};
use super::{DELIVERY_TIME_MAX, Environment, Kind, described};

/// The kind's row in the table.
pub(super) const KIND: Kind = Kind {
    name: "amqp",
    secrets: &["connectionString", "password", "clientKey"],
    check: AmqpConfig::check,
    make,
    described: described::<AmqpConfig>,
};

fn make(definition: &EndpointDefinition, environment: &Environment) -> Result<Arc<dyn Endpoint>, String> {
    let endpoint = AmqpEndpoint::new(&definition.settings, environment)?;
    Ok(Arc::new(endpoint))
}

/// A node of an AMQP 1.0 peer.
pub(crate) struct AmqpEndpoint {
    config: AmqpConfig,
    target: Target,
    place: Address,
    clock: Arc<dyn Clock>,
    /// For one batch; see [`DELIVERY_TIME_MAX`].
    time_max: Duration,
    /// The connection while nothing is under way on it.
    rest: Mutex<Option<Client>>,
}

impl AmqpEndpoint {
    pub(crate) fn new(settings: &Value, environment: &Environment) -> Result<Self, String> {
        let config = AmqpConfig::read(settings)?;
        let target = config.target()?;
        let tls = target
            .tls
            .then(|| socket::tls(config.ca_certificate.as_deref(), config.identity()))
            .transpose()?;
        let place = Address {
            host: target.host.clone(),
            port: target.port,
            tls,
            timeout: Duration::from_secs(config.connect_timeout_seconds),
        };
        Ok(AmqpEndpoint {
            config,
            target,
            place,
            clock: environment.clock.clone(),
            time_max: DELIVERY_TIME_MAX,
            rest: Mutex::new(None),
        })
    }

    /// Sends the batch, over a connection that rested if there is one.
    async fn send(&self, batch: &[Outbound<'_>], outcomes: &mut Vec<Option<Outcome>>) -> Result<(), String> {
        let write = |at: usize, out: &mut Vec<u8>| request::write(&batch[at], out);
        let rested = self.rest.lock().take().filter(|client| !client.is_old());
        if let Some(mut client) = rested {
            match client.send(batch.len(), write, outcomes).await {
                Ok(()) => {
                    *self.rest.lock() = Some(client);
                    return Ok(());
                }
                // A peer may close a connection that rests; then nothing of the batch was taken.
                Err(error) if outcomes.iter().any(Option::is_some) => return Err(error),
                Err(_) => {}
            }
        }
        let mut client = Client::connect(&self.place, &self.target, self.clock.now()).await?;
        client.send(batch.len(), write, outcomes).await?;
        *self.rest.lock() = Some(client);
        Ok(())
    }

    async fn deliver_all(&self, batch: &[Outbound<'_>]) -> Result<(), DeliveryError> {
        let mut outcomes = Vec::new();
        let sent = tokio::time::timeout(self.time_max, self.send(batch, &mut outcomes)).await;
        let failure = match sent {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(_) => Some(format!("no outcome within {} s", self.time_max.as_secs_f64())),
        };
        let accepted = outcomes
            .iter()
            .take_while(|outcome| **outcome == Some(Outcome::Accepted))
            .count();
        match outcomes.get(accepted) {
            Some(Some(Outcome::Refused(message))) => {
                Err(DeliveryError::refused(message.clone()).after(accepted))
            }
            Some(Some(Outcome::Retry(message))) => Err(DeliveryError::retry(message.clone()).after(accepted)),
            _ => match failure {
                None => Ok(()),
                Some(message) => Err(DeliveryError::retry(message).after(accepted)),
            },
        }
    }
}

impl Endpoint for AmqpEndpoint {
    fn limits(&self) -> BatchLimits {
        BatchLimits {
            events_max: self.config.batch_events_max,
            bytes_max: self.config.batch_bytes_max,
            wait_max: Duration::ZERO,
        }
    }

    fn deliver<'a>(&'a self, batch: &'a [Outbound<'a>]) -> BoxFuture<'a, Result<(), DeliveryError>> {
        Box::pin(self.deliver_all(batch))
    }

    fn idle(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let rested = self.rest.lock().take();
            if let Some(client) = rested {
                client.close().await;
            }
        })
    }
}
