//! Object storage: events are written to files in a local folder, a container of Azure Blob Storage or a bucket of S3.
//!
//! The dispatcher gathers a batch for as long, and as large, as a file may become; each partition in it becomes one
//! file, and is accepted when the file is stored. When a later file of the batch fails, the earlier ones are not
//! written again, unless the hub is started again in between: then their events come twice, but never half a file.
//!
//! Memory: what waits for a file is bounded by [`BYTES_MAX`] and [`EVENTS_MAX`], and while it is written stands there
//! once more in its encoding; base64 and the names in JSON can make that up to three times as large.

mod config;
mod connector;
mod parquet;
mod request;
mod service;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
pub use config::{Encoding, Provider, StorageConfig};
use holdfast_model::Timestamp;
use holdfast_model::routing::EndpointDefinition;
use holdfast_ports::BoxFuture;
use holdfast_ports::clock::Clock;
use holdfast_ports::endpoint::{BatchLimits, DeliveryError, Endpoint, Outbound};
use parking_lot::Mutex;
use request::{Encoder, file_name};
use service::{Place, Stored};
use tokio::time::Instant;

use super::{DELIVERY_TIME_MAX, Environment, Kind, described};

/// The kind's row in the table.
pub(super) const KIND: Kind = Kind {
    name: "storage",
    secrets: &["connectionString", "secretAccessKey", "sessionToken"],
    check: StorageConfig::check,
    make,
    described: described::<StorageConfig>,
};

/// Most bytes of bodies and properties that wait for a file.
pub const BYTES_MAX: usize = 64 << 20;
/// Most events that wait for a file.
pub const EVENTS_MAX: usize = 250_000;
/// Events after which other tasks get their turn.
const YIELD_EVERY: usize = 512;
/// Most files of one partition in one minute.
const FILES_A_MINUTE_MAX: u32 = 9_999;

fn make(definition: &EndpointDefinition, environment: &Environment) -> Result<Arc<dyn Endpoint>, String> {
    Ok(Arc::new(StorageEndpoint::new(definition, environment)?))
}

/// Where files of one partition stand.
#[derive(Clone, Debug, Default)]
struct Written {
    /// Last event that is stored.
    sequence_number: Option<u64>,
    /// The minute's name of the last file, and the number after the last one tried.
    name: String,
    next: u32,
}

/// Object storage.
pub struct StorageEndpoint {
    config: StorageConfig,
    hub_name: String,
    place: Place,
    clock: Arc<dyn Clock>,
    written: Mutex<HashMap<u16, Written>>,
    /// Most events of a file; less than [`EVENTS_MAX`] after a place was too slow for larger ones.
    file_events_max: AtomicUsize,
}

impl StorageEndpoint {
    /// An endpoint of checked settings. Nothing is written before the first batch.
    ///
    /// # Errors
    /// Which setting is wrong.
    pub fn new(definition: &EndpointDefinition, environment: &Environment) -> Result<Self, String> {
        let config = StorageConfig::read(&definition.settings)?;
        Ok(StorageEndpoint {
            place: Place::open(&config, &definition.name, environment)?,
            config,
            hub_name: environment.hub_name.clone(),
            clock: environment.clock.clone(),
            written: Mutex::new(HashMap::new()),
            file_events_max: AtomicUsize::new(EVENTS_MAX),
        })
    }

    async fn deliver_all(&self, batch: &[Outbound<'_>]) -> Result<(), DeliveryError> {
        let end = Instant::now() + DELIVERY_TIME_MAX;
        let mut partitions: Vec<u16> = batch.iter().map(|event| event.event.partition).collect();
        partitions.sort_unstable();
        partitions.dedup();
        for partition in partitions {
            let stored = self
                .written
                .lock()
                .get(&partition)
                .and_then(|written| written.sequence_number);
            let open: Vec<&Outbound<'_>> = batch
                .iter()
                .filter(|event| event.event.partition == partition)
                .filter(|event| stored.is_none_or(|stored| event.event.sequence_number > stored))
                .collect();
            let mut rest = open.as_slice();
            while !rest.is_empty() {
                let most = self.file_events_max.load(Ordering::Relaxed);
                let (file, later) = rest.split_at(rest.len().min(most));
                match tokio::time::timeout_at(end, self.write(partition, file)).await {
                    Ok(written) => written.map_err(DeliveryError::retry)?,
                    Err(_) => {
                        self.file_events_max
                            .store((file.len() / 2).max(1), Ordering::Relaxed);
                        return Err(DeliveryError::retry(format!(
                            "a file of {} events was not stored in {} s; the next ones are smaller",
                            file.len(),
                            DELIVERY_TIME_MAX.as_secs()
                        )));
                    }
                }
                rest = later;
            }
        }
        let most = self.file_events_max.load(Ordering::Relaxed);
        self.file_events_max
            .store((most * 2).min(EVENTS_MAX), Ordering::Relaxed);
        Ok(())
    }

    /// Writes one file.
    async fn write(&self, partition: u16, events: &[&Outbound<'_>]) -> Result<(), String> {
        let mut encoder = Encoder::new(self.config.encoding);
        for (at, event) in events.iter().enumerate() {
            encoder.add(event);
            if at % YIELD_EVERY == YIELD_EVERY - 1 {
                tokio::task::yield_now().await;
            }
        }
        let content = encoder
            .finish()
            .map_err(|error| format!("cannot make a file: {error}"))?;
        let content = Bytes::from(content);
        let name = self.name(partition, self.clock.now());
        loop {
            let number = self.number(partition, &name)?;
            let suffix = if number == 0 {
                String::new()
            } else {
                format!("_{number:02}")
            };
            let full = format!("{name}{suffix}.{}", self.config.encoding.extension());
            if self.place.store(&full, content.clone()).await? == Stored::Yes {
                break;
            }
        }
        let last = events.last().map(|event| event.event.sequence_number);
        if let Some(written) = self.written.lock().get_mut(&partition) {
            written.sequence_number = last;
        }
        Ok(())
    }

    fn name(&self, partition: u16, at: Timestamp) -> String {
        file_name(&self.config.file_name_format, &self.hub_name, partition, at)
    }

    /// The number of the next file of this name. What is counted here is not asked for again, so that a crowded minute
    /// costs one request a file.
    fn number(&self, partition: u16, name: &str) -> Result<u32, String> {
        let mut all = self.written.lock();
        let written = all.entry(partition).or_default();
        if written.name != name {
            name.clone_into(&mut written.name);
            written.next = 0;
        }
        let number = written.next;
        if number > FILES_A_MINUTE_MAX {
            written.next = 0;
            return Err(format!(
                "there are {FILES_A_MINUTE_MAX} files of the minute {name} already"
            ));
        }
        written.next += 1;
        Ok(number)
    }
}

impl Endpoint for StorageEndpoint {
    fn limits(&self) -> BatchLimits {
        let bytes_max = usize::try_from(self.config.max_chunk_size_in_bytes).unwrap_or(BYTES_MAX);
        BatchLimits {
            events_max: EVENTS_MAX,
            bytes_max: bytes_max.min(BYTES_MAX),
            wait_max: Duration::from_secs(self.config.batch_frequency_in_seconds),
        }
    }

    fn deliver<'a>(&'a self, batch: &'a [Outbound<'a>]) -> BoxFuture<'a, Result<(), DeliveryError>> {
        Box::pin(self.deliver_all(batch))
    }
}
