//! One endpoint's way through the log.
//!
//! A dispatcher reads every partition from its own checkpoint, takes the blocks marked for its endpoint, and hands them
//! over batch by batch. What fails is tried again with growing pauses, always the same events first, so the order within
//! a partition holds. The checkpoint follows the deliveries and is saved about once a second: after a crash what was
//! delivered since comes again.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use holdfast_model::Timestamp;
use holdfast_observe::tracing;
use holdfast_ports::clock::Clock;
use holdfast_ports::dead_letters::{DeadLetter, DeadLetterStore};
use holdfast_ports::endpoint::{BatchLimits, DeliveryError, Endpoint, Outbound};
use holdfast_ports::event_log::{EventLog, LogError};
use holdfast_ports::settings::CheckpointStore;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::batch::Batch;
use crate::enrich::Enricher;
use crate::health::Health;

/// Bytes of the log read at once per partition.
const READ_BYTES: usize = 512 * 1024;
/// How often a moving checkpoint is saved.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);

/// How a dispatcher deals with an endpoint that does not take events.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeliveryPolicy {
    /// For one delivery; then it has failed. Default 30 s.
    pub timeout: Duration,
    /// First pause after a failure; each further one is twice as long. Default 500 ms.
    pub backoff: Duration,
    /// Longest pause. Default 60 s.
    pub backoff_max: Duration,
    /// How long events are kept for an endpoint that fails; older ones go to the dead letters. Default 1 day.
    pub patience: Duration,
    /// After how long without events the endpoint may close its connections. Default 60 s.
    pub idle_after: Duration,
}

impl Default for DeliveryPolicy {
    fn default() -> Self {
        DeliveryPolicy {
            timeout: Duration::from_secs(30),
            backoff: Duration::from_millis(500),
            backoff_max: Duration::from_secs(60),
            patience: Duration::from_secs(86_400),
            idle_after: Duration::from_secs(60),
        }
    }
}

/// What a dispatcher works with.
pub struct DispatcherParts {
    /// The endpoint's name.
    pub name: String,
    /// Its number in the blocks' endpoint sets.
    pub number: u8,
    /// The endpoint.
    pub endpoint: Arc<dyn Endpoint>,
    /// Where events come from.
    pub log: Arc<dyn EventLog>,
    /// Where the checkpoint is kept, under [`reader_name`].
    pub checkpoints: Arc<dyn CheckpointStore>,
    /// Where events go that it does not take.
    pub dead_letters: Arc<dyn DeadLetterStore>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Retries and time-outs.
    pub policy: DeliveryPolicy,
    /// Where its health is told.
    pub health: watch::Sender<Health>,
}

/// The name of an endpoint's checkpoint. Apart from those of consumer groups, which cannot begin with a slash.
#[must_use]
pub fn reader_name(endpoint: &str) -> String {
    format!("/endpoint/{}", endpoint.to_lowercase())
}

/// A place in one partition.
#[derive(Debug)]
struct Lane {
    partition: u16,
    /// Next event to read into a batch.
    read: u64,
    /// Next event to deliver: everything before it is delivered, given up or somebody else's.
    next: u64,
    saved: u64,
}

/// See the module's documentation.
pub struct Dispatcher {
    enricher: Enricher,
    course: Course,
}

/// A dispatcher but for its enrichments, which a batch under way borrows from.
struct Course {
    parts: DispatcherParts,
    reader: String,
    limits: BatchLimits,
    lanes: Vec<Lane>,
    /// The lane at which the next batch begins, so that a busy partition does not keep others waiting.
    turn: usize,
    failures: u32,
    last_save: Instant,
}

impl Dispatcher {
    /// A dispatcher that goes on where the checkpoint stands; `enricher` adds to its events. In a partition without a
    /// checkpoint it begins at the end.
    ///
    /// # Errors
    /// When checkpoints or the log cannot be read.
    pub async fn start(parts: DispatcherParts, enricher: Enricher) -> Result<Self, String> {
        let reader = reader_name(&parts.name);
        let mut lanes = Vec::new();
        for partition in 0..parts.log.partitions() {
            let saved = parts.checkpoints.checkpoint(&reader, partition).await;
            let info = parts.log.info(partition).map_err(|error| error.to_string())?;
            let saved = saved.map_err(|error| format!("checkpoint: {error}"))?;
            let next = saved.unwrap_or(info.next);
            if saved.is_none() {
                // From here on the end may move while nothing is delivered.
                let written = parts.checkpoints.save_checkpoint(&reader, partition, next).await;
                written.map_err(|error| format!("checkpoint: {error}"))?;
            }
            lanes.push(Lane {
                partition,
                read: next,
                next,
                saved: next,
            });
        }
        let course = Course {
            limits: parts.endpoint.limits(),
            parts,
            reader,
            lanes,
            turn: 0,
            failures: 0,
            last_save: Instant::now(),
        };
        Ok(Dispatcher { enricher, course })
    }

    /// Delivers until `stop` is true or its sender is gone; then saves the checkpoint. A batch under way is given up
    /// then, and comes again with the next start.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let Dispatcher {
            mut enricher,
            mut course,
        } = self;
        // Told or dropped: either way it is over.
        let mut ended = std::pin::pin!(async move {
            let _ = stop.wait_for(|stop| *stop).await;
        });
        let error = tokio::select! {
            () = &mut ended => None,
            error = course.deliver_all(&mut enricher) => Some(error),
        };
        if let Some(error) = error {
            let endpoint = course.parts.name.as_str();
            tracing::error!(endpoint, %error, "no more events are delivered to this endpoint until the hub is started again");
            course.health(|health, now| health.failed(&error.to_string(), now, Duration::MAX));
            course.save().await;
            ended.await;
        }
        course.save().await;
    }
}

impl Course {
    /// Ends only when the log cannot be read.
    async fn deliver_all(&mut self, enricher: &mut Enricher) -> LogError {
        loop {
            let batch = match self.gather().await {
                Ok(batch) => batch,
                Err(error) => return error,
            };
            if batch.events > 0 {
                self.deliver(batch, enricher).await;
            }
            self.note_lag();
            if self.last_save.elapsed() >= SAVE_INTERVAL {
                self.save().await;
            }
        }
    }

    /// Reads until a batch is full, or has waited for long enough since its first event. An empty one when everything
    /// there was is others'.
    async fn gather(&mut self) -> Result<Batch, LogError> {
        let mut batch = Batch::default();
        let mut deadline = None;
        loop {
            let moved = self.read_into(&mut batch).await?;
            if batch.is_full(&self.limits) || (batch.events > 0 && self.limits.wait_max.is_zero()) {
                return Ok(batch);
            }
            if batch.events == 0 && moved {
                self.settle_lanes();
                return Ok(batch);
            }
            if batch.events > 0 {
                let until = *deadline.get_or_insert_with(|| Instant::now() + self.limits.wait_max);
                self.note_lag();
                // A log that is filled all the time is readable all the time.
                let late = Instant::now() >= until;
                if late || tokio::time::timeout_at(until, self.readable()).await.is_err() {
                    return Ok(batch);
                }
            } else {
                self.wait().await?;
            }
        }
    }

    /// Reads from each partition once. True when a lane has moved.
    async fn read_into(&mut self, batch: &mut Batch) -> Result<bool, LogError> {
        let mut moved = false;
        for step in 0..self.lanes.len() {
            let index = (self.turn + step) % self.lanes.len();
            let lane = &mut self.lanes[index];
            let blocks = self.parts.log.read(lane.partition, lane.read, READ_BYTES).await?;
            for block in blocks {
                if batch.is_full(&self.limits) {
                    self.turn = index;
                    return Ok(true);
                }
                if block.first_sequence_number > lane.read {
                    let missing = block.first_sequence_number - lane.read;
                    tracing::warn!(
                        endpoint = self.parts.name,
                        partition = lane.partition,
                        events = missing,
                        "events were deleted by retention before this endpoint took them"
                    );
                }
                moved = true;
                lane.read = if block.endpoints().contains(self.parts.number) {
                    batch.take(index, block, lane.read, &self.limits)
                } else {
                    block.end_sequence_number()
                };
            }
        }
        self.turn = (self.turn + 1) % self.lanes.len().max(1);
        Ok(moved)
    }

    /// Everything that was read is settled.
    fn settle_lanes(&mut self) {
        for lane in &mut self.lanes {
            lane.next = lane.read;
        }
    }

    /// Waits for new events; lets the endpoint rest and saves the checkpoint while there are none.
    async fn wait(&mut self) -> Result<(), LogError> {
        if let Ok(result) = tokio::time::timeout(SAVE_INTERVAL, self.readable()).await {
            return result;
        }
        self.save().await;
        if let Ok(result) = tokio::time::timeout(self.parts.policy.idle_after, self.readable()).await {
            return result;
        }
        self.parts.endpoint.idle().await;
        self.readable().await
    }

    /// Ready when a partition has something behind what was read.
    async fn readable(&self) -> Result<(), LogError> {
        std::future::poll_fn(|context| {
            for lane in &self.lanes {
                if let Poll::Ready(result) = self.parts.log.poll_readable(lane.partition, lane.read, context)
                {
                    return Poll::Ready(result);
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Delivers a batch to its end: what is not taken is tried again, refused or too old.
    async fn deliver(&mut self, batch: Batch, enricher: &mut Enricher) {
        let senders: Vec<&str> = batch.views().map(|(_, event)| event.identity).collect();
        let now = self.parts.clock.now();
        enricher.prepare(senders.into_iter(), now).await;
        let mut done = 0;
        while done < batch.events {
            let outbound = batch.outbound(done, enricher);
            if outbound.is_empty() {
                break;
            }
            let pause = match self.bounded(self.parts.endpoint.deliver(&outbound)).await {
                Ok(()) => {
                    self.failures = 0;
                    self.health(|health, now| health.succeeded(outbound.len() as u64, now));
                    break;
                }
                Err(error) => {
                    let (settled, pause) = self.failed(&outbound, error).await;
                    done += settled;
                    pause
                }
            };
            drop(outbound);
            self.settle(&batch, done);
            if let Some(pause) = pause {
                self.noting_lag(pause, std::future::pending::<()>()).await;
            }
        }
        // Everything that was read is delivered, given up or others'.
        self.settle_lanes();
    }

    /// A delivery that fails when its time is over.
    async fn bounded(
        &self,
        delivery: impl Future<Output = Result<(), DeliveryError>>,
    ) -> Result<(), DeliveryError> {
        let limit = self.parts.policy.timeout;
        let outcome = self.noting_lag(limit, delivery).await;
        outcome.unwrap_or_else(|| {
            let message = format!("no answer within {} s", limit.as_secs_f64());
            Err(DeliveryError::retry(message))
        })
    }

    /// Waits for `awaited`, at the most `limit`. Meanwhile the lag is told: with an endpoint that hangs, is slow or
    /// rests there is no other place that is passed.
    async fn noting_lag<T>(&self, limit: Duration, awaited: impl Future<Output = T>) -> Option<T> {
        let end = Instant::now() + limit;
        let mut awaited = std::pin::pin!(awaited);
        loop {
            self.note_lag();
            let next = end.min(Instant::now() + SAVE_INTERVAL);
            if let Ok(outcome) = tokio::time::timeout_at(next, &mut awaited).await {
                return Some(outcome);
            }
            if Instant::now() >= end {
                return None;
            }
        }
    }

    /// What a failed delivery means: how many events at the front are settled by it, and how long to wait.
    async fn failed(&mut self, outbound: &[Outbound<'_>], error: DeliveryError) -> (usize, Option<Duration>) {
        let accepted = error.accepted.min(outbound.len());
        if accepted > 0 {
            self.failures = 0;
            self.health(|health, now| health.succeeded(accepted as u64, now));
        }
        let patience = self.parts.policy.patience;
        let now = self.parts.clock.now();
        let rest = &outbound[accepted..];
        let first_line = self.failures == 0;
        let given_up = if error.refused {
            rest.len().min(1)
        } else {
            self.health(|health, now| health.failed(&error.message, now, patience));
            rest.iter()
                .take_while(|outbound| now.since(outbound.event.enqueued_at) > patience)
                .count()
        };
        if first_line || given_up > 0 {
            tracing::warn!(
                endpoint = self.parts.name,
                error = error.message,
                given_up,
                "an endpoint does not take events"
            );
        }
        if given_up > 0 && !self.bury(&rest[..given_up], &error.message, now).await {
            // They are tried again, together with their burial.
            return (accepted, Some(self.pause(None)));
        }
        if error.refused {
            return (accepted + given_up, None);
        }
        (accepted + given_up, Some(self.pause(error.retry_after)))
    }

    /// Grows with each failure, with some chance in it, so that many hubs do not come back at the same instant.
    fn pause(&mut self, asked: Option<Duration>) -> Duration {
        let policy = &self.parts.policy;
        let doubled = policy.backoff.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        let pause = doubled.min(policy.backoff_max);
        // Spread over the second half, by the name and the count: random enough for this.
        let seed = self.reader.bytes().fold(self.failures, |seed, byte| {
            seed.wrapping_mul(31).wrapping_add(u32::from(byte))
        });
        let pause = pause / 2 + pause.mul_f64(f64::from(seed % 1_000) / 2_000.0);
        pause.max(asked.unwrap_or_default().min(policy.backoff_max))
    }

    async fn bury(&self, events: &[Outbound<'_>], reason: &str, now: Timestamp) -> bool {
        let letter = |outbound: &Outbound<'_>| DeadLetter {
            endpoint: self.parts.name.clone(),
            partition: outbound.event.partition,
            sequence_number: outbound.event.sequence_number,
            identity: outbound.event.identity.to_owned(),
            at: now,
            reason: reason.to_owned(),
        };
        match self
            .parts
            .dead_letters
            .bury(events.iter().map(letter).collect())
            .await
        {
            Ok(()) => {
                self.health(|health, _| health.dead_lettered += events.len() as u64);
                true
            }
            Err(error) => {
                tracing::error!(endpoint = self.parts.name, %error, "dead letters cannot be stored");
                false
            }
        }
    }

    /// Moves the lanes behind the first `done` events of a batch.
    fn settle(&mut self, batch: &Batch, done: usize) {
        for (lane, event) in batch.views().take(done) {
            self.lanes[lane].next = event.sequence_number + 1;
        }
    }

    fn note_lag(&self) {
        let behind = |lane: &Lane| {
            let end = self
                .parts
                .log
                .info(lane.partition)
                .map_or(lane.next, |info| info.next);
            end.saturating_sub(lane.next)
        };
        let lag = self.lanes.iter().map(behind).sum();
        self.parts.health.send_if_modified(|health| {
            let changed = health.lag != lag;
            health.lag = lag;
            changed
        });
    }

    fn health(&self, change: impl FnOnce(&mut Health, Timestamp)) {
        let now = self.parts.clock.now();
        self.parts.health.send_modify(|health| change(health, now));
    }

    async fn save(&mut self) {
        for lane in &mut self.lanes {
            if lane.next == lane.saved {
                continue;
            }
            let saved = self
                .parts
                .checkpoints
                .save_checkpoint(&self.reader, lane.partition, lane.next)
                .await;
            match saved {
                Ok(()) => lane.saved = lane.next,
                Err(error) => {
                    tracing::warn!(endpoint = self.parts.name, %error, "a checkpoint cannot be saved; it is tried again");
                }
            }
        }
        self.last_save = Instant::now();
    }
}
