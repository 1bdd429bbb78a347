//! Events that the hub makes of what happens in it (languages.md section 3), and their way into the log.
//!
//! ```text
//! change of a twin, an identity or a job ─ one transaction with its events ─┐
//! session began or ended ─ bounded queue in memory ─ in batches ────────────┴▶ outbox ─▶ relay ─▶ event log
//! ```
//!
//! Nothing is made, and nothing is paid, of which no enabled route wants anything. The relay decides by the routes in
//! force where an event goes, appends it to the partition of its device, and removes it from the outbox when it is
//! durable there: an event may come twice after a crash, but none of an acknowledged change is lost. Connection states
//! of the last second before a crash are lost; sessions that were saved as live then are told to have ended at the next
//! start. Each carries a sequence number by which readers tell what is newest.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::event::EventSource;
use holdfast_model::job::Job;
use holdfast_model::twin::ChangeMode;
use holdfast_model::{Error, ErrorCode, Identity, Timestamp};
use holdfast_observe::Event as _;
use holdfast_ports::StoreError;
use holdfast_ports::event_log::{AppendTicket, LogError, durable};
use holdfast_ports::job::JobTelling;
use holdfast_ports::outbox::OutboxEvent;
use holdfast_ports::registry::{Interrupted, LifecycleTelling};
use holdfast_ports::twin::TwinTelling;
use holdfast_routing::sources::{self, Teller};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::Hub;
use crate::events::{ConnectionEventsDropped, RelayStalled};
use crate::ingest::partition_of;

/// Most events taken from the outbox at once.
const BATCH_EVENTS: usize = 1_024;
/// Bytes of them, about.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// Most connection states that wait for the outbox; beyond them the oldest are dropped.
const CONNECTIONS_MAX: usize = 65_536;
/// Connection states that are put into the outbox at once.
const CONNECTIONS_PER_STEP: usize = 1_024;
/// How often the outbox is looked at without a reason.
const POLL: Duration = Duration::from_secs(1);
/// Pause of a change that found no room in the outbox.
const ROOM_PAUSE: Duration = Duration::from_millis(20);
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(1);
/// How long a hub that stops goes on relaying. What is left comes after the next start.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// What the engine holds of its own events.
pub(crate) struct Outgoing {
    pub(crate) hub_name: Arc<str>,
    connections: Mutex<VecDeque<ConnectionState>>,
    wake: Notify,
    /// Held over a whole pass, so that no event is appended by two at once. Nobody but the relay and the drain waits.
    relaying: tokio::sync::Mutex<()>,
}

/// A session that began or ended.
struct ConnectionState {
    identity: Identity,
    epoch: u64,
    connected: bool,
    at: Timestamp,
    twin: Option<Arc<Value>>,
}

/// Why a pass of the relay ended early. Nothing is lost: it begins again with the oldest event.
#[derive(Debug, thiserror::Error)]
enum RelayFault {
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("{0}")]
    Log(#[from] LogError),
}

impl Outgoing {
    pub(crate) fn new(host_name: &str) -> Self {
        Outgoing {
            hub_name: sources::hub_name(host_name).into(),
            connections: Mutex::default(),
            wake: Notify::new(),
            relaying: tokio::sync::Mutex::default(),
        }
    }
}

impl Hub {
    /// Something to make events of what happens now, if an enabled route wants events of one of `sources`.
    fn teller(&self, sources: &[EventSource]) -> Option<Teller> {
        let table = self.routing.table();
        if !sources.iter().any(|source| table.wants(*source)) {
            return None;
        }
        let (table, hub_name) = (Arc::clone(&table), Arc::clone(&self.outgoing.hub_name));
        Some(Teller::new(table, hub_name, self.now()))
    }

    /// What is to be told of a change of this twin.
    pub(crate) fn twin_telling(&self, identity: &Identity, mode: ChangeMode) -> Option<TwinTelling> {
        let teller = self.teller(&[EventSource::TwinChange, EventSource::DigitalTwinChange])?;
        let identity = identity.clone();
        Some(Arc::new(move |before, after| {
            teller.twin_changed(&identity, mode, before, after)
        }))
    }

    /// What is to be told of new identities.
    pub(crate) fn creation_telling(&self) -> Option<LifecycleTelling> {
        let teller = self.teller(&[EventSource::DeviceLifecycle])?;
        Some(Arc::new(move |record, twin| teller.created(record, twin)))
    }

    /// What is to be told of identities that go.
    pub(crate) fn deletion_telling(&self) -> Option<LifecycleTelling> {
        let teller = self.teller(&[EventSource::DeviceLifecycle])?;
        Some(Arc::new(move |record, twin| teller.deleted(record, twin)))
    }

    /// When a change that begins now gives up waiting for room in the outbox.
    #[must_use]
    pub fn room_deadline(&self) -> Instant {
        Instant::now() + self.config.outbox_wait
    }

    /// Whether a change is to be tried again: it found no room for its events, and there was time to wait a little.
    pub async fn waited_for_room(&self, error: &StoreError, deadline: Instant) -> bool {
        let full =
            matches!(error, StoreError::Refused(error) if error.code == ErrorCode::ThrottlingException);
        if !full || Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(ROOM_PAUSE).await;
        true
    }

    /// A change was stored, with what is to be told of it if anything.
    pub fn told(&self) {
        if self.routing.table().wants_hub_events() {
            self.outgoing.wake.notify_one();
        }
    }

    /// A session began or ended.
    pub(crate) fn tell_connection(&self, identity: &Identity, epoch: u64, connected: bool) {
        if !self.routing.table().wants(EventSource::ConnectionState) {
            return;
        }
        let state = ConnectionState {
            identity: identity.clone(),
            epoch,
            connected,
            at: self.now(),
            twin: self.routing.senders.twin(identity),
        };
        let mut dropped = 0;
        {
            let mut waiting = self.outgoing.connections.lock();
            waiting.push_back(state);
            while waiting.len() > CONNECTIONS_MAX {
                waiting.pop_front();
                dropped += 1;
            }
        }
        if dropped > 0 {
            ConnectionEventsDropped { count: dropped }.emit(&self.metrics);
        }
        self.outgoing.wake.notify_one();
    }

    /// What is to be told of a new job.
    #[must_use]
    pub fn job_creation_telling(&self) -> Option<JobTelling> {
        let teller = self.teller(&[EventSource::JobLifecycle])?;
        Some(Arc::new(move |job| vec![teller.job_created(job)]))
    }

    /// What is to be told of a job that began or ended.
    #[must_use]
    pub fn job_change_telling(&self) -> Option<JobTelling> {
        let teller = self.teller(&[EventSource::JobLifecycle])?;
        Some(Arc::new(move |job| vec![teller.job_changed(job)]))
    }

    /// Tells of an ended job once more, whose counts have changed since; durable on return.
    ///
    /// # Errors
    /// `ServiceUnavailable`; `ThrottlingException` when too many events wait.
    pub async fn tell_job_changed(&self, job: &Job) -> Result<(), Error> {
        let Some(telling) = self.job_change_telling() else {
            return Ok(());
        };
        let added = self.stores.outbox.add_to_outbox(telling(job)).await;
        added.map_err(|error| self.store_error("tell of a job", error))?;
        self.told();
        Ok(())
    }

    /// Takes the hub's own events from the outbox to the log until the future is dropped. The composition root runs it
    /// once, as long as the hub lives; what it leaves comes after the next start.
    pub async fn relay_events(&self) {
        if let Err(error) = self.tell_interrupted().await {
            let _ = self.store_error("tell of sessions that ended with the last process", error);
        }
        let mut stalled = false;
        loop {
            match self.relay_batch().await {
                Ok(taken) => {
                    stalled = false;
                    if taken < BATCH_EVENTS {
                        let _ = tokio::time::timeout(POLL, self.outgoing.wake.notified()).await;
                    }
                }
                Err(fault) => {
                    if !stalled {
                        RelayStalled {
                            reason: &fault.to_string(),
                        }
                        .emit(&self.metrics);
                    }
                    stalled = true;
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Tells that sessions have ended whose process died before it could tell.
    async fn tell_interrupted(&self) -> Result<(), StoreError> {
        let mut after = 0;
        while let Some(teller) = self.teller(&[EventSource::ConnectionState]) {
            let found = self
                .stores
                .registry
                .interrupted(after, CONNECTIONS_PER_STEP)
                .await?;
            let Some(last) = found.last() else { break };
            after = last.place;
            // Later than all that the dead process has told, earlier than what this one tells.
            let ended = |who: &Interrupted| teller.connection(&who.identity, self.epoch_base, false, None);
            let events = found.iter().map(ended).collect();
            self.stores.outbox.add_to_outbox(events).await?;
            let places = found.iter().map(|who| who.place).collect();
            self.stores.registry.end_interrupted(places).await?;
            while self.relay_batch().await.is_ok_and(|taken| taken > 0) {}
        }
        Ok(())
    }

    /// Relays what waits while the hub stops: the ends of all sessions are told of by now.
    pub(crate) async fn drain_events(&self) {
        let relay = async {
            // A batch may be cut short by its bytes, so only an empty one is the end.
            while self.relay_batch().await.is_ok_and(|taken| taken > 0) {}
        };
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, relay).await;
    }

    /// One pass; returns how many events it took from the outbox.
    async fn relay_batch(&self) -> Result<usize, RelayFault> {
        let _one = self.outgoing.relaying.lock().await;
        let stored = self.store_connection_states().await;
        let batch = self.stores.outbox.outbox(BATCH_EVENTS, BATCH_BYTES).await?;
        let Some(last) = batch.last().map(|waiting| waiting.number) else {
            return Ok(stored.map(|()| 0)?);
        };
        // Those that found no room find it after this batch.
        let mut ends: Vec<Option<AppendTicket>> = vec![None; usize::from(self.stores.log.partitions())];
        for waiting in &batch {
            if let Some(ticket) = self.append_told(&waiting.event).await? {
                ends[usize::from(ticket.partition)] = Some(ticket);
            }
        }
        for ticket in ends.into_iter().flatten() {
            self.durable(ticket).await?;
        }
        self.stores.outbox.remove_from_outbox(last).await?;
        self.metrics.hub_events.add(batch.len() as u64);
        Ok(batch.len())
    }

    /// Puts the connection states that were noted into the outbox.
    async fn store_connection_states(&self) -> Result<(), StoreError> {
        loop {
            let states: Vec<ConnectionState> = {
                let mut waiting = self.outgoing.connections.lock();
                let count = waiting.len().min(CONNECTIONS_PER_STEP);
                waiting.drain(..count).collect()
            };
            if states.is_empty() {
                return Ok(());
            }
            let table = Arc::clone(&self.routing.table());
            let event = |state: &ConnectionState| {
                let hub_name = Arc::clone(&self.outgoing.hub_name);
                Teller::new(Arc::clone(&table), hub_name, state.at).connection(
                    &state.identity,
                    state.epoch,
                    state.connected,
                    state.twin.as_deref(),
                )
            };
            let events = states.iter().map(event).collect();
            if let Err(error) = self.stores.outbox.add_to_outbox(events).await {
                // In front of what came meanwhile.
                let mut waiting = self.outgoing.connections.lock();
                for state in states.into_iter().rev() {
                    waiting.push_front(state);
                }
                return Err(error);
            }
        }
    }

    /// Appends an event where it goes, by the routes in force; waits while the log has no room.
    async fn append_told(&self, event: &OutboxEvent) -> Result<Option<AppendTicket>, LogError> {
        let partition = partition_of(event.identity.device_id(), self.stores.log.partitions());
        loop {
            let now = self.now();
            let table = self.routing.table();
            let twin = sources::twin_of(&table, event);
            let decision = sources::decide(&table, event, twin.as_ref(), now);
            self.metrics.routes_undefined.add(u64::from(decision.undefined));
            if decision.endpoints.is_empty() {
                return Ok(None);
            }
            let origin = sources::origin(event.source, event.identity.clone());
            let run = event.records.run(decision.endpoints);
            let appended = self.append_routed(&table, (partition, &origin), &[run], twin.as_ref(), now);
            drop(table);
            match appended {
                Ok(ticket) => return Ok(Some(ticket)),
                Err(LogError::Busy) => {
                    let progress = async {
                        match self.next_progress(partition) {
                            Some(ticket) => self.durable(ticket).await,
                            None => std::future::pending().await,
                        }
                    };
                    if let Ok(failed) = tokio::time::timeout(RETRY, progress).await {
                        failed?;
                    }
                }
                Err(error) => {
                    self.note_log_failure(&error);
                    return Err(error);
                }
            }
        }
    }

    async fn durable(&self, ticket: AppendTicket) -> Result<(), LogError> {
        let done = durable(self.stores.log.as_ref(), ticket).await;
        done.inspect_err(|error| self.note_log_failure(error))
    }
}
