//! Forwarding to the hub above (edge.md 7.3): each sender's messages in their order and as that sender, important ones first,
//! several senders side by side.
//!
//! One task reads the upstream queues into a window and sends batches out of it, at most one per sender at a time. What the
//! hub acknowledged leaves the window from the front, and with it the queue. A sender that the hub refuses, or that alone
//! cannot be reached, is parked: its messages move to a queue of its own, so that nobody waits behind it.

mod lane;
mod parking;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use holdfast_model::Identity;
use holdfast_model::message::Message;
use holdfast_observe::{Repeats, tracing};
use holdfast_ports::BoxFuture;
use holdfast_upstream::port::{CloudError, Reach, SendFailure};
use tokio::time::Instant;

use crate::Broker;
use crate::metrics::Family;
use crate::queue::QueueId;
use lane::{Lane, Piece};

/// The name of the upstream queues.
pub const UPSTREAM: &str = "$upstream";
/// Before the identity in the name of a parked sender's queues.
const PARKED: &str = "parked/";
/// Bytes of one batch, unless a single message is larger.
const BATCH_BYTES_MAX: usize = 256 << 10;
/// How long one batch may take, whatever the connection does.
const SEND_TIMEOUT: Duration = Duration::from_secs(120);
/// Pauses of a sender that cannot send: first and longest, milliseconds.
const PAUSE_MILLIS: (u64, u64) = (500, 30_000);
/// Longest pause of a sender that the hub refuses. Trying costs nothing as long as its conversation rests, and ends early
/// when that is open.
const REFUSED_PAUSE_MILLIS: u64 = 15_000;
/// Failures in a row of one sender, while the hub can be reached, after which it is parked.
const FAILURES_TO_PARK: u32 = 3;
/// How often a single batch is tried while the hub is known to be out of reach.
const PROBE_EVERY_MILLIS: u64 = 15_000;
/// Longest sleep while something waits.
const LOOK_EVERY: Duration = Duration::from_secs(1);

static UNREADABLE: Repeats = Repeats::new();

/// Messages of one sender on their way.
struct Batch {
    lane: QueueId,
    sender: Identity,
    pieces: Vec<Piece>,
    messages: Vec<Message>,
    /// Outputs that the messages were sent to, in runs: they are not the hub's business.
    outputs: Vec<(String, u32)>,
    bytes: usize,
    begun: u64,
}

impl Batch {
    /// The output of one of its messages.
    fn output_of(&self, at: usize) -> &str {
        let mut end = 0;
        let found = self.outputs.iter().find(|(_, count)| {
            end += *count as usize;
            at < end
        });
        found.map_or("", |(output, _)| output)
    }
}

struct Sent {
    batch: Batch,
    outcome: Result<(), SendFailure>,
}

/// What is known of a sender.
#[derive(Default)]
struct Sender {
    busy: bool,
    retry_at: u64,
    failures: u32,
    /// The hub does not let it in.
    refused: bool,
    /// Why it could not send when it was last tried.
    cause: String,
}

impl Sender {
    fn works(&mut self) {
        (self.failures, self.retry_at, self.refused) = (0, 0, false);
        self.cause = String::new();
    }

    /// Whether less important messages of others wait for this one's: not for one that cannot send for longer.
    fn holds_others(&self) -> bool {
        !self.refused && self.failures < FAILURES_TO_PARK
    }
}

struct Forwarder {
    broker: Arc<Broker>,
    started: Instant,
    /// By priority; parked queues before the common one of their priority.
    lanes: Vec<Lane>,
    senders: HashMap<Identity, Sender>,
    /// Senders to be parked when there is room for it.
    to_park: Vec<(QueueId, Identity)>,
    /// When the bandwidth allows the next batch.
    send_at: u64,
    probed_at: u64,
    sends: FuturesUnordered<BoxFuture<'static, Sent>>,
}

/// Forwards until the edge hub stops.
pub(crate) async fn run(broker: Arc<Broker>) {
    let Some(mut reach) = broker.links.watch() else {
        // Without a hub above the queues only age.
        let mut forwarder = Forwarder::new(broker);
        loop {
            forwarder.find_lanes();
            forwarder.expire().await;
            tokio::time::sleep(LOOK_EVERY * 5).await;
        }
    };
    let mut forwarder = Forwarder::new(Arc::clone(&broker));
    loop {
        forwarder.find_lanes();
        forwarder.start().await;
        let pause = forwarder.pause();
        tokio::select! {
            Some(sent) = forwarder.sends.next(), if !forwarder.sends.is_empty() => forwarder.finish(sent).await,
            () = broker.upstream_ready.notified() => {}
            changed = reach.changed() => {
                if changed.is_err() {
                    return;
                }
                let online = *reach.borrow_and_update() == Reach::Online;
                forwarder.reach_changed(online);
            }
            () = tokio::time::sleep(pause) => {}
        }
    }
}

impl Forwarder {
    fn new(broker: Arc<Broker>) -> Self {
        broker.lanes_changed.store(true, Ordering::Release);
        Forwarder {
            broker,
            started: Instant::now(),
            lanes: Vec::new(),
            senders: HashMap::new(),
            to_park: Vec::new(),
            send_at: 0,
            probed_at: 0,
            sends: FuturesUnordered::new(),
        }
    }

    /// Milliseconds since the start: pauses are those of this process, whatever any clock says.
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn online(&self) -> bool {
        !matches!(self.broker.reach(), Reach::Offline { .. })
    }

    /// Takes up queues that are new since the last look.
    fn find_lanes(&mut self) {
        if !self.broker.lanes_changed.swap(false, Ordering::AcqRel) {
            return;
        }
        for (id, key, info) in self.broker.queues.queues() {
            let parked = match key.name.strip_prefix(PARKED).map(Identity::parse) {
                Some(Ok(sender)) => Some(sender),
                Some(Err(_)) => continue,
                None if key.name == UPSTREAM => None,
                None => continue,
            };
            if self.lanes.iter().all(|lane| lane.queue != id) {
                self.lanes
                    .push(Lane::new(id, key.priority, parked, info.consumed));
            }
        }
        self.lanes
            .sort_by_key(|lane| (lane.priority, lane.parked.is_none()));
    }

    fn lane(&mut self, queue: QueueId) -> Option<usize> {
        self.lanes.iter().position(|lane| lane.queue == queue)
    }

    /// Starts as many batches as may be on their way.
    async fn start(&mut self) {
        for sender in std::mem::take(&mut *self.broker.opened.lock()) {
            if let Some(sender) = self.senders.get_mut(&sender) {
                sender.retry_at = 0;
            }
        }
        self.park_pending().await;
        let now = self.now();
        if !self.online() {
            if self.sends.is_empty() {
                self.expire().await;
            }
            if now.saturating_sub(self.probed_at) < PROBE_EVERY_MILLIS || !self.sends.is_empty() {
                return;
            }
            self.probed_at = now;
            if let Some(batch) = self.next_batch().await {
                self.send(batch);
            }
            return;
        }
        while self.sends.len() < self.broker.config.fan_out && self.now() >= self.send_at {
            let Some(batch) = self.next_batch().await else {
                return;
            };
            self.send(batch);
        }
    }

    /// The next batch of the most important lane that has one. A lane whose messages are on their way, or about to be, keeps
    /// the less important ones waiting; one whose senders all cannot send does not.
    async fn next_batch(&mut self) -> Option<Batch> {
        let mut index = 0;
        while index < self.lanes.len() {
            self.fill(index).await;
            if let Some(batch) = self.cut_batch(index) {
                return Some(batch);
            }
            let blocks = self.blocks_others(index);
            let priority = self.lanes[index].priority;
            index += 1;
            if blocks {
                // The others of the same priority may go on.
                while index < self.lanes.len() && self.lanes[index].priority == priority {
                    self.fill(index).await;
                    if let Some(batch) = self.cut_batch(index) {
                        return Some(batch);
                    }
                    index += 1;
                }
                return None;
            }
        }
        None
    }

    /// Whether messages of this lane are on their way, or will be soon.
    fn blocks_others(&self, index: usize) -> bool {
        self.lanes[index]
            .window
            .iter()
            .any(|item| item.in_flight > 0 || self.senders.get(&item.sender).is_none_or(Sender::holds_others))
    }

    /// Reads ahead. Messages of parked senders move to their queues instead.
    async fn fill(&mut self, index: usize) {
        while self.lanes[index].has_room() {
            let read = self.lanes[index].read(&self.broker).await;
            match read {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    if let Some(times) = UNREADABLE.happened(UPSTREAM) {
                        tracing::error!(%error, times, "messages for the hub above cannot be read");
                    }
                    return;
                }
            }
            self.drop_expired(index);
            self.park_of_lane(index).await;
        }
    }

    /// A batch of the first sender of the lane that may send.
    fn cut_batch(&mut self, index: usize) -> Option<Batch> {
        self.drop_expired(index);
        let now = self.now();
        let ready = |sender: &Identity| {
            self.senders
                .get(sender)
                .is_none_or(|sender| !sender.busy && sender.retry_at <= now)
        };
        let lane = &self.lanes[index];
        // What is parked of a sender is older.
        let parked = |sender: &Identity| lane.parked.is_none() && self.has_parked(lane.priority, sender);
        let sender = lane
            .window
            .iter()
            .find(|item| item.has_waiting() && ready(&item.sender) && !parked(&item.sender))
            .map(|item| item.sender.clone())?;
        let (count, bytes) = (self.broker.config.batch_messages_max, BATCH_BYTES_MAX);
        let batch = self.lanes[index].cut(sender, count, bytes, now)?;
        self.senders.entry(batch.sender.clone()).or_default().busy = true;
        Some(batch)
    }

    fn send(&mut self, batch: Batch) {
        if let Some(rate) = self
            .broker
            .config
            .upstream_bytes_per_second
            .filter(|rate| *rate > 0)
        {
            let cost = batch.bytes as u64 * 1_000 / rate;
            self.send_at = self.send_at.max(self.now()) + cost;
        }
        let link = self.broker.link(&batch.sender);
        let gone = link.is_none() && self.is_gone(&batch.sender);
        self.sends.push(Box::pin(async move {
            let failed = |cause| Err(SendFailure { accepted: 0, cause });
            let outcome = match link {
                Some(link) => {
                    let sending = link.client.send(&batch.messages);
                    tokio::time::timeout(SEND_TIMEOUT, sending)
                        .await
                        .unwrap_or_else(|_| failed(CloudError::Unreachable("no answer in time".to_owned())))
                }
                None if gone => failed(CloudError::Refused {
                    status: 404,
                    message: "the sender is not in the scope any more".to_owned(),
                }),
                None => failed(CloudError::Unauthorized("the sender is not known".to_owned())),
            };
            Sent { batch, outcome }
        }));
    }

    /// Whether the hub has said that the sender does not exist any more. A scope that was never read proves nothing.
    fn is_gone(&self, sender: &Identity) -> bool {
        self.broker.scope_fresh.load(Ordering::Acquire) && self.broker.scope.get(sender).is_none()
    }

    async fn finish(&mut self, sent: Sent) {
        let Sent { batch, outcome } = sent;
        let accepted = match &outcome {
            Ok(()) => batch.messages.len(),
            Err(failure) => failure.accepted.min(batch.messages.len()),
        };
        self.count(&batch, accepted);
        let mut done = accepted;
        let now = self.now();
        let online = self.online();
        let state = self.senders.entry(batch.sender.clone()).or_default();
        state.busy = false;
        let mut park = false;
        match &outcome {
            Ok(()) => {
                Self::tell_working(&batch.sender);
                state.works();
            }
            Err(SendFailure { cause, .. }) => {
                tracing::debug!(sender = batch.sender.as_str(), %cause, "messages were not taken above");
                state.cause = cause.to_string();
                match cause {
                    CloudError::Refused { .. } => {
                        // That one message will never be taken; those behind it may be.
                        done += usize::from(done < batch.messages.len());
                        state.works();
                    }
                    CloudError::Unauthorized(_) => {
                        state.refused = true;
                        state.failures += 1;
                        state.retry_at = now + pause_millis(state.failures + 3, REFUSED_PAUSE_MILLIS);
                        park = true;
                    }
                    CloudError::Unreachable(_) => {
                        state.failures += u32::from(online);
                        state.retry_at = now + pause_millis(state.failures, PAUSE_MILLIS.1);
                        park = online && state.failures >= FAILURES_TO_PARK;
                    }
                }
            }
        }
        if let Err(SendFailure { cause, .. }) = &outcome {
            self.tell_failure(&batch, accepted, cause);
        }
        if let Some(index) = self.lane(batch.lane) {
            let lane = &mut self.lanes[index];
            lane.settle(&batch.pieces, done);
            lane.advance(&self.broker);
            if park && lane.parked.is_none() {
                self.park_later(index, batch.sender.clone());
            }
        }
        if matches!(
            &outcome,
            Err(SendFailure {
                cause: CloudError::Unauthorized(_),
                ..
            })
        ) {
            let (broker, sender) = (Arc::clone(&self.broker), batch.sender);
            tokio::spawn(async move { broker.look_up(&sender).await });
        }
    }

    fn count(&self, batch: &Batch, accepted: usize) {
        if accepted == 0 {
            return;
        }
        let metrics = &self.broker.metrics;
        let priority = self.lanes.iter().find(|lane| lane.queue == batch.lane);
        let priority = priority.map_or(0, |lane| lane.priority).to_string();
        let from = batch.sender.as_str();
        let took = Duration::from_millis(self.now().saturating_sub(batch.begun)).as_secs_f64();
        let mut left = accepted as u32;
        for (output, count) in &batch.outputs {
            let count = left.min(*count);
            left -= count;
            let labels = [from, "upstream", output, "", &priority];
            metrics.count(Family::MessagesSent, &labels, u64::from(count));
            if count > 0 {
                metrics.observe_many(Family::SendDuration, &labels[..4], took, count);
            }
        }
        let now = self.broker.clock.now();
        for piece in &batch.pieces {
            let labels = [from, "upstream", &priority];
            let since = now.since(piece.accepted_at).as_secs_f64();
            metrics.observe_many(Family::ProcessDuration, &labels, since, piece.count);
        }
    }

    fn tell_failure(&self, batch: &Batch, accepted: usize, cause: &CloudError) {
        let from = batch.sender.as_str();
        match cause {
            CloudError::Refused { status, message } => {
                let labels = ["refused_upstream", from, batch.output_of(accepted)];
                self.broker.metrics.count(Family::MessagesDropped, &labels, 1);
                tracing::debug!(
                    sender = from,
                    status,
                    message,
                    "the hub above refused a message for good; it is dropped"
                );
            }
            _ => self
                .broker
                .metrics
                .count(Family::OperationRetry, &[from, "send"], 1),
        }
    }

    /// The network is back, or gone. When it is back nobody pauses any longer.
    fn reach_changed(&mut self, online: bool) {
        if online {
            for sender in self.senders.values_mut() {
                sender.works();
            }
        } else {
            self.probed_at = self.now();
        }
        // Who has nothing on its way and nothing to answer for is forgotten.
        self.senders
            .retain(|_, sender| sender.busy || sender.failures > 0);
    }

    /// How long there is nothing to do unless something happens.
    fn pause(&self) -> Duration {
        let now = self.now();
        let waiting = self.lanes.iter().any(|lane| lane.waits(&self.broker));
        if !waiting && self.sends.is_empty() && self.to_park.is_empty() {
            return Duration::from_secs(3_600);
        }
        let retry = self
            .senders
            .values()
            .filter(|sender| !sender.busy && sender.retry_at > now)
            .map(|sender| sender.retry_at - now);
        let bandwidth = Some(self.send_at.saturating_sub(now)).filter(|wait| *wait > 0);
        let next = retry
            .chain(bandwidth)
            .min()
            .map_or(LOOK_EVERY, Duration::from_millis);
        next.clamp(Duration::from_millis(5), LOOK_EVERY)
    }

    /// Gives up what is too old, from the front of each lane, and keeps nothing in memory.
    async fn expire(&mut self) {
        for index in 0..self.lanes.len() {
            if self.lanes[index].is_fresh(self.broker.queues.now()) {
                continue;
            }
            loop {
                let before = self.lanes[index].next;
                if self.lanes[index].window.is_empty() {
                    match self.lanes[index].read(&self.broker).await {
                        Ok(true) => {}
                        Ok(false) | Err(_) => break,
                    }
                }
                self.drop_expired(index);
                if !self.lanes[index].window.is_empty() || self.lanes[index].next == before {
                    break;
                }
            }
            self.lanes[index].rewind();
        }
    }

    fn drop_expired(&mut self, index: usize) {
        let dropped = self.lanes[index].drop_expired(&self.broker);
        for (sender, output, count) in dropped {
            let labels = ["ttl_expiry", sender.as_str(), &output];
            self.broker.metrics.count(Family::MessagesDropped, &labels, count);
        }
    }
}

/// Doubled with each failure, with a little chance in it, so that senders do not come all at once.
fn pause_millis(failures: u32, most: u64) -> u64 {
    let pause = (PAUSE_MILLIS.0 << failures.min(10)).min(most);
    let mut random = [0; 2];
    let _ = getrandom::fill(&mut random);
    pause - pause * u64::from(u16::from_le_bytes(random)) / u64::from(u16::MAX) / 4
}
