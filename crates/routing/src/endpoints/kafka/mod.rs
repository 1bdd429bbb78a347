//! Kafka: each event becomes a record of a topic, with the device id as its key.
//!
//! The producer is our own: it needs four requests of the protocol, and has to say of every single event whether it was
//! accepted (docs/adr/0061). A record is accepted when all replicas in sync have it (`acks=all`). The partition is
//! chosen as Kafka's own clients do; one request at a time is under way to each broker, so the order within a partition
//! holds. Records carry no producer id: an event that comes again is stored again.
//!
//! Memory: a batch as read, and once more as records.

mod config;
mod login;
mod protocol;
mod request;
mod service;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

pub use config::{Compression, KafkaConfig, Mechanism, Payload};
use futures_util::future::join_all;
use holdfast_model::routing::EndpointDefinition;
use holdfast_ports::BoxFuture;
use holdfast_ports::endpoint::{BatchLimits, DeliveryError, Endpoint, Outbound};
use parking_lot::Mutex;
use protocol::Meaning;
use request::Shape;
use rustls::ClientConfig;
use service::Cluster;
use tokio::time::Instant;

use super::socket;
use super::{DELIVERY_TIME_MAX, Environment, Kind, described};

/// The kind's row in the table.
pub(super) const KIND: Kind = Kind {
    name: "kafka",
    secrets: &["password", "clientKey"],
    check: KafkaConfig::check,
    make,
    described: described::<KafkaConfig>,
};

fn make(definition: &EndpointDefinition, _: &Environment) -> Result<Arc<dyn Endpoint>, String> {
    Ok(Arc::new(KafkaEndpoint::new(&definition.settings)?))
}

/// A topic.
pub(crate) struct KafkaEndpoint {
    config: KafkaConfig,
    shape: Shape,
    tls: Option<Arc<ClientConfig>>,
    /// What is known of the cluster, unless something has failed there.
    cluster: Mutex<Option<Arc<Cluster>>>,
    /// Events accepted behind one that was not, by the hub's partition and sequence number; at most those of a batch.
    ahead: Mutex<HashSet<(u16, u64)>>,
}

/// Events of one partition of the topic.
struct Line<'a> {
    partition: i32,
    /// Events not accepted yet, and their places in the batch.
    events: Vec<&'a Outbound<'a>>,
    places: Vec<usize>,
    /// Most events of the next batch; fewer after one was too large or held a record that is not taken.
    most: usize,
    failure: Option<Failure>,
}

/// Why the first event of a line is not accepted.
#[derive(Clone)]
struct Failure {
    refused: bool,
    message: String,
}

impl KafkaEndpoint {
    pub(crate) fn new(settings: &serde_json::Value) -> Result<Self, String> {
        let config = KafkaConfig::read(settings)?;
        let tls = socket::tls(config.ca_certificate.as_deref(), config.identity())?;
        Ok(KafkaEndpoint {
            tls: config.tls.then_some(tls),
            shape: Shape {
                payload: config.payload,
                compression: config.compression,
            },
            config,
            cluster: Mutex::new(None),
            ahead: Mutex::new(HashSet::new()),
        })
    }

    async fn deliver_all(&self, batch: &[Outbound<'_>]) -> Result<(), DeliveryError> {
        let end = Instant::now() + DELIVERY_TIME_MAX;
        let known = self.cluster.lock().clone();
        let cluster = match known {
            Some(cluster) => cluster,
            None => {
                let found = Cluster::discover(&self.config, self.tls.as_ref()).await;
                let found = Arc::new(found.map_err(DeliveryError::retry)?);
                *self.cluster.lock() = Some(found.clone());
                found
            }
        };
        let mut led: BTreeMap<i32, Vec<Line<'_>>> = BTreeMap::new();
        for (leader, line) in self.lines(batch, &cluster) {
            led.entry(leader).or_default().push(line);
        }
        let sending = led
            .into_iter()
            .map(|(leader, lines)| self.send(&cluster, leader, lines, end));
        let lines: Vec<Line<'_>> = join_all(sending).await.into_iter().flatten().collect();
        self.judge(batch, &lines)
    }

    /// The events by partition, with the leader of each, without what was accepted before.
    fn lines<'a>(&self, batch: &'a [Outbound<'a>], cluster: &Cluster) -> Vec<(i32, Line<'a>)> {
        let ahead = self.ahead.lock();
        let mut lines: BTreeMap<usize, Line<'a>> = BTreeMap::new();
        for (place, event) in batch.iter().enumerate() {
            let number = (event.event.partition, event.event.sequence_number);
            if !ahead.is_empty() && ahead.contains(&number) {
                continue;
            }
            let partition = request::partition(event, cluster.leaders.len());
            let line = lines.entry(partition).or_insert_with(|| Line {
                partition: i32::try_from(partition).unwrap_or(i32::MAX),
                events: Vec::new(),
                places: Vec::new(),
                most: usize::MAX,
                failure: None,
            });
            line.events.push(event);
            line.places.push(place);
        }
        // A partition without a leader is -1's, whom nobody knows.
        let leader = |partition: usize| cluster.leaders.get(partition).copied().flatten().unwrap_or(-1);
        lines
            .into_iter()
            .map(|(partition, line)| (leader(partition), line))
            .collect()
    }

    /// Sends the lines of one leader until each is at its end or has failed.
    async fn send<'a>(
        &self,
        cluster: &Cluster,
        leader: i32,
        mut lines: Vec<Line<'a>>,
        end: Instant,
    ) -> Vec<Line<'a>> {
        loop {
            let (mut batches, mut counts) = (Vec::new(), Vec::new());
            for (at, line) in lines.iter().enumerate() {
                if line.events.is_empty() || line.failure.is_some() {
                    continue;
                }
                let (batch, count) =
                    request::batch(&line.events, self.shape, line.most, self.config.batch_bytes_max);
                batches.push((line.partition, batch));
                counts.push((at, count));
            }
            if batches.is_empty() {
                return lines;
            }
            let time = end.saturating_duration_since(Instant::now());
            let outcomes = cluster.produce(leader, &self.config, &batches, time).await;
            for (at, count) in counts {
                let line = &mut lines[at];
                match &outcomes {
                    Ok(outcomes) => {
                        let outcome = outcomes
                            .iter()
                            .find(|(partition, _)| *partition == line.partition);
                        line.settle(count, outcome.map(|(_, code)| *code));
                    }
                    Err(message) => line.fail(false, message.clone()),
                }
            }
        }
    }

    /// What the lines come to. What was accepted behind the first event that was not is remembered.
    fn judge(&self, batch: &[Outbound<'_>], lines: &[Line<'_>]) -> Result<(), DeliveryError> {
        let open = |line: &Line<'_>| line.places.first().copied();
        let first = lines
            .iter()
            .filter_map(|line| Some((open(line)?, line.failure.clone()?)))
            .min_by_key(|(place, _)| *place);
        let mut ahead = self.ahead.lock();
        let Some((place, failure)) = first else {
            ahead.clear();
            return Ok(());
        };
        let pending: HashSet<usize> = lines
            .iter()
            .flat_map(|line| line.places.iter().copied())
            .collect();
        let accepted = batch.iter().enumerate().skip(place);
        *ahead = accepted
            .filter(|(place, _)| !pending.contains(place))
            .map(|(_, event)| (event.event.partition, event.event.sequence_number))
            .collect();
        if lines
            .iter()
            .any(|line| line.failure.as_ref().is_some_and(|failure| !failure.refused))
        {
            // The partition may have another leader now.
            self.cluster.lock().take();
        }
        let error = if failure.refused {
            DeliveryError::refused(failure.message)
        } else {
            DeliveryError::retry(failure.message)
        };
        Err(error.after(place))
    }
}

impl Line<'_> {
    /// After a batch of its first `count` events.
    fn settle(&mut self, count: usize, outcome: Option<i16>) {
        match outcome {
            Some(0) => {
                self.events.drain(..count);
                self.places.drain(..count);
                self.most = self.most.saturating_mul(2);
            }
            None => self.fail(false, "the answer does not tell of the partition".to_owned()),
            Some(code) => {
                let (name, meaning) = protocol::error(code);
                let message = format!("partition {}: {name}", self.partition);
                match meaning {
                    Meaning::Refusal if count > 1 => self.most = count / 2,
                    meaning => self.fail(meaning == Meaning::Refusal, message),
                }
            }
        }
    }

    fn fail(&mut self, refused: bool, message: String) {
        self.failure = Some(Failure { refused, message });
    }
}

impl Endpoint for KafkaEndpoint {
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
        self.cluster.lock().take();
        Box::pin(std::future::ready(()))
    }
}
