//! Messages for inputs of modules: handed out in order under locks, several at a time, given up when the module has settled
//! them (edge.md 7.4).
//!
//! A queue's messages are handed out in their order, those of a more important priority first. A message that comes back
//! (abandoned, its lock over, its connection gone) goes out again before any that was not handed out yet. A queue is
//! consumed up to its first message that is not settled.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast_model::c2d::{AckMode, C2dDelivery, C2dMessage, LockToken, ModuleInput, Settlement};
use holdfast_model::event::{BlockCursor, EventBlock, EventField, EventView};
use holdfast_model::message::Message;
use holdfast_model::{Error, ErrorCode, Identity, Timestamp};
use holdfast_observe::{Repeats, tracing};
use holdfast_ports::clock::Clock;
use parking_lot::Mutex;

use crate::metrics::{Family, Metrics};
use crate::queue::{Age, QueueId, QueueStore, StoredBlock};
use crate::routes::output_of;

static UNREADABLE: Repeats = Repeats::new();

/// Bytes read ahead of what is handed out.
const READ_BYTES: usize = 64 << 10;
/// Bytes handed out with one call, unless a single message is longer.
const HAND_OUT_BYTES: usize = 256 << 10;
/// Bits of a lock's number that hold the place in the queue; the others hold the queue.
const SEQUENCE_BITS: u32 = 48;

/// The inputs of all modules of this device.
pub(crate) struct Inputs {
    device_id: String,
    store: Arc<QueueStore>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    lock_time: Duration,
    nonces: AtomicU64,
    modules: Mutex<HashMap<String, Arc<Module>>>,
}

/// Messages handed out, and whether more are waiting.
pub(crate) struct HandedOut {
    pub(crate) deliveries: Vec<C2dDelivery>,
    pub(crate) more: bool,
}

#[derive(Default)]
struct Module {
    /// One call at a time hands out.
    handing_out: tokio::sync::Mutex<()>,
    state: Mutex<Vec<InputQueue>>,
}

/// One queue of an input.
struct InputQueue {
    id: QueueId,
    slot: u64,
    input: String,
    priority: u32,
    /// Sequence number of the next message that was not handed out.
    next: u64,
    /// Read ahead; the first one from `cursor` on.
    blocks: VecDeque<StoredBlock>,
    cursor: BlockCursor,
    /// Handed out and not settled, by sequence number.
    in_flight: VecDeque<InFlight>,
    /// The last sender, since mostly it is the same.
    sender: Option<Identity>,
    /// The place that was found not to be over, and until when it is not.
    fresh: (u64, Age),
}

struct InFlight {
    sequence: u64,
    /// `None` for a message that came back.
    lock: Option<Lock>,
    abandoned: u32,
    block: EventBlock,
    expires: Option<Age>,
}

struct Lock {
    nonce: u64,
    /// Millisecond of the monotonic clock at which it ends.
    until: u64,
    since: u64,
    /// Session that holds it.
    epoch: u64,
}

impl Inputs {
    pub(crate) fn new(
        device_id: &str,
        store: Arc<QueueStore>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
        lock_time: Duration,
    ) -> Self {
        let mut seed = [0; 8];
        // The nonce tells locks of one process apart; it protects nothing.
        let _ = getrandom::fill(&mut seed);
        Inputs {
            device_id: device_id.to_owned(),
            store,
            clock,
            metrics,
            lock_time,
            nonces: AtomicU64::new(u64::from_le_bytes(seed)),
            modules: Mutex::default(),
        }
    }

    /// Makes the queue of an input known.
    pub(crate) fn add(&self, module: &str, input: &str, priority: u32, id: QueueId) {
        let module = Arc::clone(self.modules.lock().entry(module.to_owned()).or_default());
        let mut queues = module.state.lock();
        if queues.iter().any(|queue| queue.id == id) {
            return;
        }
        let slot = queues.len() as u64;
        queues.push(InputQueue {
            id,
            slot,
            input: input.to_owned(),
            priority,
            next: self.store.info(id).consumed,
            blocks: VecDeque::new(),
            cursor: BlockCursor::default(),
            in_flight: VecDeque::new(),
            sender: None,
            fresh: (u64::MAX, 0),
        });
        queues.sort_by_key(|queue| (queue.priority, queue.slot));
    }

    fn module(&self, identity: &Identity) -> Option<Arc<Module>> {
        let module = identity
            .module_id()
            .filter(|_| identity.device_id() == self.device_id)?;
        self.modules.lock().get(module).cloned()
    }

    /// Locks up to `max` messages for the session of `epoch`.
    pub(crate) async fn hand_out(&self, identity: &Identity, epoch: u64, max: usize) -> HandedOut {
        let mut out = HandedOut {
            deliveries: Vec::new(),
            more: false,
        };
        let Some(module) = self.module(identity) else {
            return out;
        };
        let _one = module.handing_out.lock().await;
        let mut bytes = 0;
        loop {
            let wanted = {
                let mut queues = module.state.lock();
                self.take(&mut queues, identity, epoch, max, &mut bytes, &mut out)
            };
            let Some((id, from)) = wanted else { return out };
            let blocks = match self.read(id, from).await {
                Ok(blocks) => blocks,
                Err(error) => {
                    if let Some(times) = UNREADABLE.happened(identity.as_str()) {
                        tracing::error!(module = identity.as_str(), %error, times, "messages of a module's input cannot be read");
                    }
                    return out;
                }
            };
            let mut queues = module.state.lock();
            if let Some(queue) = queues
                .iter_mut()
                .find(|queue| queue.id == id && queue.next == from)
            {
                let Some(first) = blocks.first() else {
                    // Said to be there, and not: the next message wakes us again.
                    return out;
                };
                // What is gone was dropped for lack of room, or damaged.
                queue.next = queue.next.max(first.block.first_sequence_number);
                queue.cursor = BlockCursor::default();
                queue.blocks = blocks.into();
            }
        }
    }

    async fn read(&self, id: QueueId, from: u64) -> Result<Vec<StoredBlock>, crate::queue::ReadError> {
        if let Some(blocks) = self.store.read_cached(id, from, READ_BYTES)? {
            return Ok(blocks);
        }
        let store = Arc::clone(&self.store);
        let read = tokio::task::spawn_blocking(move || store.read(id, from, READ_BYTES)).await;
        read.unwrap_or_else(|_| Ok(Vec::new()))
    }

    /// Hands out what is in memory. Returns the place that has to be read to go on.
    fn take(
        &self,
        queues: &mut [InputQueue],
        identity: &Identity,
        epoch: u64,
        max: usize,
        bytes: &mut usize,
        out: &mut HandedOut,
    ) -> Option<(QueueId, u64)> {
        let now = self.store.now();
        let millis = self.clock.monotonic_millis();
        for queue in queues.iter_mut() {
            queue.end_locks(millis);
            loop {
                if out.deliveries.len() >= max || *bytes >= HAND_OUT_BYTES {
                    out.more = out.deliveries.len() < max;
                    return None;
                }
                if let Some(at) = queue.in_flight.iter().position(|message| message.lock.is_none()) {
                    if queue.in_flight[at].is_over(now) {
                        let message = queue.in_flight.remove(at);
                        self.count_expired(message.iter().filter_map(|message| message.event()));
                        self.advance(queue);
                        continue;
                    }
                    let delivery = self.lock(queue, at, identity, epoch, true);
                    *bytes += delivery.message.message.body.len();
                    out.deliveries.push(delivery);
                    continue;
                }
                match self.next_message(queue, now) {
                    Next::Message(message) => {
                        queue.in_flight.push_back(message);
                        let at = queue.in_flight.len() - 1;
                        let delivery = self.lock(queue, at, identity, epoch, false);
                        *bytes += delivery.message.message.body.len();
                        out.deliveries.push(delivery);
                    }
                    Next::Read(from) => return Some((queue.id, from)),
                    Next::Nothing => break,
                }
            }
        }
        None
    }

    /// The next message that was not handed out, and whose time is not over.
    fn next_message(&self, queue: &mut InputQueue, now: Age) -> Next {
        loop {
            let Some(stored) = queue.blocks.front() else {
                let info = self.store.info(queue.id);
                queue.next = queue.next.max(info.consumed);
                return match queue.next < info.durable {
                    true => Next::Read(queue.next),
                    false => Next::Nothing,
                };
            };
            let block = &stored.block;
            let expired = stored.expires.is_some_and(|expires| expires <= now);
            let mut events = block.events_from(queue.cursor);
            events.skip_to(queue.next);
            if expired {
                self.count_expired(events.filter_map(Result::ok));
                queue.next = queue.next.max(block.end_sequence_number());
                queue.pop_block();
                self.advance(queue);
                continue;
            }
            match events.next() {
                Some(Ok(event)) => {
                    let message = InFlight {
                        sequence: event.sequence_number,
                        lock: None,
                        abandoned: 0,
                        block: block.clone(),
                        expires: stored.expires,
                    };
                    queue.cursor = events.cursor();
                    queue.next = message.sequence + 1;
                    return Next::Message(message);
                }
                Some(Err(error)) => {
                    if let Some(times) = UNREADABLE.happened(&queue.input) {
                        tracing::error!(%error, input = queue.input, times, "stored messages cannot be read and are dropped");
                    }
                    queue.next = queue.next.max(block.end_sequence_number());
                    queue.pop_block();
                }
                None => queue.pop_block(),
            }
        }
    }

    fn count_expired<'a>(&self, events: impl Iterator<Item = EventView<'a>>) {
        for event in events {
            let labels = [
                "ttl_expiry",
                event.identity,
                output_of(&event).unwrap_or_default(),
            ];
            self.metrics.count(Family::MessagesDropped, &labels, 1);
        }
    }

    fn lock(
        &self,
        queue: &mut InputQueue,
        at: usize,
        identity: &Identity,
        epoch: u64,
        again: bool,
    ) -> C2dDelivery {
        let nonce = self.nonces.fetch_add(1, Ordering::Relaxed);
        let since = self.clock.monotonic_millis();
        let message = &mut queue.in_flight[at];
        message.lock = Some(Lock {
            nonce,
            until: since + self.lock_time.as_millis() as u64,
            since,
            epoch,
        });
        let token = LockToken {
            sequence_number: queue.slot << SEQUENCE_BITS | message.sequence,
            nonce,
        };
        let now = self.clock.now();
        let expires_at = message.expires.map_or(Timestamp::MAX, |expires| {
            now.plus(Duration::from_millis(expires.saturating_sub(self.store.now())))
        });
        let (content, sender) = match message.event() {
            Some(event) => {
                let known = queue
                    .sender
                    .take()
                    .filter(|known| known.as_str() == event.identity);
                let sender = known.or_else(|| Identity::parse(event.identity).ok());
                (message_of(&event, &message.block), sender)
            }
            None => (Message::default(), None),
        };
        queue.sender.clone_from(&sender);
        C2dDelivery {
            lock: token,
            locked_until: now.plus(self.lock_time),
            delivery_count: message.abandoned,
            redelivered: again,
            message: C2dMessage {
                device: identity.clone(),
                generation_id: 0,
                message: content,
                ack: AckMode::None,
                enqueued_at: message.block.enqueued_at,
                expires_at,
                input: Some(Box::new(ModuleInput {
                    input: queue.input.clone(),
                    sender: sender.unwrap_or_else(|| identity.clone()),
                })),
            },
        }
    }

    /// Settles a delivery. True when the message is to be handed out again.
    pub(crate) fn settle(
        &self,
        identity: &Identity,
        lock: LockToken,
        settlement: Settlement,
    ) -> Result<bool, Error> {
        let module = self.module(identity).ok_or_else(lock_lost)?;
        let mut queues = module.state.lock();
        let slot = lock.sequence_number >> SEQUENCE_BITS;
        let sequence = lock.sequence_number & ((1 << SEQUENCE_BITS) - 1);
        let queue = queues
            .iter_mut()
            .find(|queue| queue.slot == slot)
            .ok_or_else(lock_lost)?;
        let at = queue
            .in_flight
            .binary_search_by_key(&sequence, |message| message.sequence)
            .map_err(|_| lock_lost())?;
        let message = &mut queue.in_flight[at];
        let held = message
            .lock
            .as_ref()
            .filter(|held| held.nonce == lock.nonce)
            .ok_or_else(lock_lost)?;
        let took = Duration::from_millis(self.clock.monotonic_millis().saturating_sub(held.since));
        match settlement {
            Settlement::Abandon | Settlement::Release => {
                message.lock = None;
                message.abandoned += u32::from(settlement == Settlement::Abandon);
                self.metrics
                    .count(Family::OperationRetry, &[identity.as_str(), "deliver"], 1);
                return Ok(true);
            }
            Settlement::Complete => self.count_sent(queue.priority, &queue.input, message, identity, took),
            Settlement::Reject => {
                if let Some(event) = message.event() {
                    let labels = ["rejected", event.identity, output_of(&event).unwrap_or_default()];
                    self.metrics.count(Family::MessagesDropped, &labels, 1);
                }
            }
        }
        queue.in_flight.remove(at);
        self.advance(queue);
        Ok(false)
    }

    fn count_sent(&self, priority: u32, input: &str, message: &InFlight, to: &Identity, took: Duration) {
        let Some(event) = message.event() else { return };
        let output = output_of(&event).unwrap_or_default();
        let priority = priority.to_string();
        let (from, to) = (event.identity, to.as_str());
        self.metrics
            .count(Family::MessagesSent, &[from, to, output, input, &priority], 1);
        self.metrics
            .observe_duration(Family::SendDuration, &[from, to, output, input], took);
        let since_accepted = self.clock.now().since(message.block.enqueued_at);
        self.metrics
            .observe_duration(Family::ProcessDuration, &[from, to, &priority], since_accepted);
    }

    /// Gives up what is settled from the front on.
    fn advance(&self, queue: &InputQueue) {
        let upto = queue
            .in_flight
            .front()
            .map_or(queue.next, |message| message.sequence);
        self.store.consumed(queue.id, upto);
    }

    /// Gives back what an ended session holds.
    pub(crate) fn release(&self, identity: &Identity, epoch: u64) {
        let Some(module) = self.module(identity) else {
            return;
        };
        for queue in module.state.lock().iter_mut() {
            for message in &mut queue.in_flight {
                if message.lock.as_ref().is_some_and(|lock| lock.epoch == epoch) {
                    message.lock = None;
                }
            }
        }
    }

    /// Gives back what is locked for too long, and gives up what nobody has fetched in its time. Returns the modules that
    /// have something to fetch again.
    pub(crate) async fn expire(&self) -> Vec<Identity> {
        let now = self.clock.monotonic_millis();
        let modules: Vec<(String, Arc<Module>)> = {
            let modules = self.modules.lock();
            modules
                .iter()
                .map(|(id, module)| (id.clone(), Arc::clone(module)))
                .collect()
        };
        let mut returned = Vec::new();
        for (id, module) in modules {
            let mut some = false;
            for queue in module.state.lock().iter_mut() {
                some |= queue.end_locks(now);
            }
            if some && let Ok(identity) = Identity::module(&self.device_id, &id) {
                self.metrics
                    .count(Family::OperationRetry, &[identity.as_str(), "deliver"], 1);
                returned.push(identity);
            }
            self.expire_unfetched(&module).await;
        }
        returned
    }

    /// Reads the head of each queue and gives up what is expired there.
    async fn expire_unfetched(&self, module: &Module) {
        let _one = module.handing_out.lock().await;
        let count = module.state.lock().len();
        for index in 0..count {
            loop {
                let wanted = {
                    let mut queues = module.state.lock();
                    let queue = &mut queues[index];
                    let now = self.store.now();
                    let is_over = |message: &InFlight| message.lock.is_none() && message.is_over(now);
                    let over = queue.in_flight.iter().filter(|message| is_over(message));
                    self.count_expired(over.filter_map(|message| message.event()));
                    queue.in_flight.retain(|message| !is_over(message));
                    while let Some(front) = queue.blocks.front()
                        && front.expires.is_some_and(|expires| expires <= now)
                    {
                        let mut events = front.block.events_from(queue.cursor);
                        events.skip_to(queue.next);
                        self.count_expired(events.filter_map(Result::ok));
                        queue.next = queue.next.max(front.block.end_sequence_number());
                        queue.pop_block();
                    }
                    self.advance(queue);
                    let info = self.store.info(queue.id);
                    let old = info.oldest.is_some_and(|age| age >= Duration::from_secs(1));
                    let from = queue.next.max(info.consumed);
                    let looked_at = queue.fresh.0 == from && now < queue.fresh.1;
                    let wanted = queue.blocks.is_empty() && from < info.durable && old && !looked_at;
                    wanted.then_some((queue.id, from))
                };
                let Some((id, from)) = wanted else { break };
                let Ok(blocks) = self.read(id, from).await else {
                    break;
                };
                let now = self.store.now();
                let first_is_over = blocks
                    .first()
                    .is_some_and(|block| block.expires.is_some_and(|expires| expires <= now));
                let mut queues = module.state.lock();
                let queue = &mut queues[index];
                if !first_is_over {
                    // Nothing is kept in memory for a module that is not there, but when to look again.
                    let until = blocks.first().and_then(|block| block.expires);
                    queue.fresh = (from, until.unwrap_or(Age::MAX));
                    break;
                }
                queue.next = queue.next.max(from);
                queue.cursor = BlockCursor::default();
                queue.blocks = blocks.into();
            }
            let mut queues = module.state.lock();
            let queue = &mut queues[index];
            if queue.in_flight.is_empty() {
                (queue.blocks, queue.cursor) = (VecDeque::new(), BlockCursor::default());
            }
        }
    }
}

enum Next {
    Message(InFlight),
    /// Has to be read from here on.
    Read(u64),
    Nothing,
}

impl InputQueue {
    /// Takes back what is locked for too long; true when there is something.
    fn end_locks(&mut self, now: u64) -> bool {
        let mut some = false;
        for message in &mut self.in_flight {
            if message.lock.as_ref().is_some_and(|lock| lock.until <= now) {
                message.lock = None;
                some = true;
            }
        }
        some
    }

    fn pop_block(&mut self) {
        self.blocks.pop_front();
        self.cursor = BlockCursor::default();
    }
}

impl InFlight {
    fn is_over(&self, now: Age) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }

    fn event(&self) -> Option<EventView<'_>> {
        let mut events = self.block.events();
        events.skip_to(self.sequence);
        events.next()?.ok()
    }
}

/// The message of an event; its body shares the block's memory.
pub(crate) fn message_of(event: &EventView<'_>, block: &EventBlock) -> Message {
    let mut message = Message {
        body: block.data.slice_ref(event.body),
        ..Message::default()
    };
    for field in event.fields() {
        match field {
            EventField::System(property, value) => message.system.push((property, value.to_owned())),
            EventField::Application(key, value) => {
                message
                    .properties
                    .push((key.to_owned(), value.map(str::to_owned)));
            }
        }
    }
    message
}

fn lock_lost() -> Error {
    Error::new(
        ErrorCode::DeviceMessageLockLost,
        "the lock token is unknown or its lock has ended",
    )
}
