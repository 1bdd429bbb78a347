//! MQTT brokers: each event is published. At QoS 1 a PUBACK means accepted; at QoS 0 a ping follows the batch, and its
//! answer says that the broker has read everything before it. MQTT 5 reason codes that speak of the message refuse it.

mod config;
mod request;
mod service;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

pub use config::{MqttConfig, Payload, Version};
use holdfast_model::routing::EndpointDefinition;
use holdfast_ports::BoxFuture;
use holdfast_ports::endpoint::{BatchLimits, DeliveryError, Endpoint, Outbound};
use parking_lot::Mutex;
use request::{Shape, Topic};
use serde_json::Value;
use service::{Account, Answer, Client, packet_id};

use super::socket::{self, Address};
use super::{DELIVERY_TIME_MAX, Environment, Kind, described};

/// The kind's row in the table.
pub(super) const KIND: Kind = Kind {
    name: "mqtt",
    secrets: &["password", "clientKey"],
    check: MqttConfig::check,
    make,
    described: described::<MqttConfig>,
};

/// Most events of a batch.
const EVENTS_MAX: usize = 1_000;
/// Most bytes of a batch.
const BYTES_MAX: usize = 1 << 20;
/// Packets are written when there is so much of them.
const WRITE_BYTES: usize = 64 << 10;

fn make(definition: &EndpointDefinition, environment: &Environment) -> Result<Arc<dyn Endpoint>, String> {
    let endpoint = MqttEndpoint::new(&definition.name, &definition.settings, environment)?;
    Ok(Arc::new(endpoint))
}

/// A broker.
pub(crate) struct MqttEndpoint {
    config: MqttConfig,
    client_id: String,
    shape: Shape,
    place: Address,
    /// For one batch; see [`DELIVERY_TIME_MAX`].
    time_max: Duration,
    /// The connection while nothing is under way on it.
    rest: Mutex<Option<Client>>,
}

/// How far a batch has got.
#[derive(Default)]
struct Progress {
    /// Events at the front that the broker has taken.
    accepted: usize,
    /// Taken out of turn.
    ahead: BTreeSet<usize>,
    /// What the broker said of the event after the accepted ones, or of a later one.
    fault: Option<(usize, DeliveryError)>,
}

impl Progress {
    fn take(&mut self, at: usize) {
        self.ahead.insert(at);
        while self.ahead.remove(&self.accepted) {
            self.accepted += 1;
        }
    }

    /// Notes what hinders an event; the first one counts.
    fn hinder(&mut self, at: usize, error: DeliveryError) {
        if self.fault.as_ref().is_none_or(|(known, _)| at < *known) {
            self.fault = Some((at, error));
        }
    }
}

impl MqttEndpoint {
    pub(crate) fn new(name: &str, settings: &Value, environment: &Environment) -> Result<Self, String> {
        let config = MqttConfig::read(settings)?;
        let (tls, host, port) = config.place()?;
        let tls = tls
            .then(|| socket::tls(config.ca_certificate.as_deref(), config.identity()))
            .transpose()?;
        let place = Address {
            host,
            port,
            tls,
            timeout: Duration::from_secs(config.connect_timeout_seconds),
        };
        let shape = Shape {
            version: config.version,
            topic: Topic::parse(&config.topic)?,
            payload: config.payload,
            retain: config.retain,
            hub_name: environment.hub_name.clone(),
        };
        let own_id = || format!("holdfast-{}-{name}", environment.hub_name);
        Ok(MqttEndpoint {
            client_id: config.client_id.clone().unwrap_or_else(own_id),
            config,
            shape,
            place,
            time_max: DELIVERY_TIME_MAX,
            rest: Mutex::new(None),
        })
    }

    async fn connect(&self) -> Result<Client, String> {
        let account = Account {
            version: self.config.version,
            client_id: &self.client_id,
            username: self.config.username.as_deref(),
            password: self.config.password.as_ref().map(|password| password.reveal()),
        };
        let client = Client::connect(&self.place, &account).await?;
        if self.config.qos == 1 && !client.takes_qos1 {
            return Err("the broker takes no QoS 1; set qos to 0".to_owned());
        }
        if self.config.retain && !client.takes_retained {
            return Err("the broker takes no retained messages; set retain to false".to_owned());
        }
        Ok(client)
    }

    /// Publishes the batch, over a connection that rested if there is one.
    async fn publish_all(&self, batch: &[Outbound<'_>], progress: &mut Progress) -> Result<(), String> {
        let rested = self.rest.lock().take();
        if let Some(mut client) = rested {
            match self.publish(&mut client, batch, progress).await {
                Ok(()) => {
                    *self.rest.lock() = Some(client);
                    return Ok(());
                }
                // A broker may close a connection that rests; then it has taken nothing of the batch.
                Err(error) if progress.accepted > 0 => return Err(error),
                Err(_) => *progress = Progress::default(),
            }
        }
        let mut client = self.connect().await?;
        self.publish(&mut client, batch, progress).await?;
        *self.rest.lock() = Some(client);
        Ok(())
    }

    async fn publish(
        &self,
        client: &mut Client,
        batch: &[Outbound<'_>],
        progress: &mut Progress,
    ) -> Result<(), String> {
        let window = usize::from(self.config.in_flight_max.min(client.receive_max));
        let (mut next, mut waiting) = (0, 0);
        let mut packets = Vec::new();
        loop {
            while next < batch.len()
                && waiting < window
                && progress.fault.is_none()
                && packets.len() < WRITE_BYTES
            {
                let start = packets.len();
                let id = if self.config.qos == 1 {
                    packet_id(next)
                } else {
                    None
                };
                let written = self.shape.write(&batch[next], id, &mut packets);
                let size = packets.len() - start;
                let fault = match written {
                    Err(error) => Some(error),
                    Ok(()) if size > client.packet_max => Some(format!(
                        "a packet of {size} bytes is over the broker's limit of {}",
                        client.packet_max
                    )),
                    Ok(()) => None,
                };
                if let Some(fault) = fault {
                    packets.truncate(start);
                    progress.hinder(next, DeliveryError::refused(fault));
                    break;
                }
                next += 1;
                waiting += usize::from(id.is_some());
            }
            if !packets.is_empty() {
                client.write(&packets).await?;
                packets.clear();
                if self.config.qos == 0 {
                    continue;
                }
            }
            if waiting == 0 {
                break;
            }
            let (id, answer) = match client.answer().await? {
                Answer::Pong => continue,
                Answer::Taken(id) => (id, None),
                Answer::Refused(id, text) => (id, Some(DeliveryError::refused(text))),
                Answer::Busy(id, text) => (id, Some(DeliveryError::retry(text))),
            };
            let at = usize::from(id).wrapping_sub(1);
            if at >= next || at < progress.accepted || progress.ahead.contains(&at) {
                return Err("the broker acknowledged a message that it was not sent".to_owned());
            }
            waiting -= 1;
            match answer {
                None => progress.take(at),
                Some(error) => progress.hinder(at, error),
            }
        }
        if self.config.qos == 0 && next > 0 {
            client.ping().await?;
            while client.answer().await? != Answer::Pong {}
            progress.accepted = next;
        }
        Ok(())
    }

    async fn deliver_all(&self, batch: &[Outbound<'_>]) -> Result<(), DeliveryError> {
        let mut progress = Progress::default();
        let published = tokio::time::timeout(self.time_max, self.publish_all(batch, &mut progress)).await;
        let accepted = progress.accepted;
        let failure = match published {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(_) => Some(format!(
                "no acknowledgement within {} s",
                self.time_max.as_secs_f64()
            )),
        };
        match (progress.fault, failure) {
            (Some((at, error)), _) if at == accepted => Err(error.after(accepted)),
            (_, Some(message)) => Err(DeliveryError::retry(message).after(accepted)),
            (Some((_, error)), None) => Err(DeliveryError::retry(error.message).after(accepted)),
            (None, None) => Ok(()),
        }
    }
}

impl Endpoint for MqttEndpoint {
    fn limits(&self) -> BatchLimits {
        BatchLimits {
            events_max: EVENTS_MAX,
            bytes_max: BYTES_MAX,
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
