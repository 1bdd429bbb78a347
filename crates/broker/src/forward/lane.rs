//! One upstream queue with the window that is read of it.

use std::collections::VecDeque;
use std::sync::Arc;

use holdfast_model::event::EventBlock;
use holdfast_model::message::{Message, SystemProperty};
use holdfast_model::{Identity, Timestamp};
use holdfast_observe::{Repeats, tracing};

use super::Batch;
use crate::Broker;
use crate::inputs::message_of;
use crate::queue::{Age, QueueId, ReadError};
use crate::routes::output_of;

static UNREADABLE: Repeats = Repeats::new();
/// Bytes read with one call.
const READ_BYTES: usize = 64 << 10;
/// Bytes of the window beyond which nothing more is read.
const WINDOW_BYTES: usize = 512 << 10;

pub(super) struct Lane {
    pub(super) queue: QueueId,
    pub(super) priority: u32,
    /// The one sender of a parked queue.
    pub(super) parked: Option<Identity>,
    /// Sequence number from which is read next.
    pub(super) next: u64,
    pub(super) window: VecDeque<Item>,
    window_bytes: usize,
    /// The place that was found not to be over, and until when it is not.
    fresh: (u64, Age),
}

/// A block of one sender.
pub(super) struct Item {
    pub(super) sender: Identity,
    pub(super) block: EventBlock,
    expires: Option<Age>,
    /// Sequence number of its first message that is not settled.
    pub(super) settled: u64,
    /// Messages behind that which are on their way.
    pub(super) in_flight: u32,
    /// All of it is somewhere else, or given up.
    pub(super) done: bool,
}

/// Messages of a batch that are of one block.
pub(super) struct Piece {
    first: u64,
    pub(super) count: u32,
    pub(super) accepted_at: Timestamp,
}

impl Item {
    fn end(&self) -> u64 {
        self.block.end_sequence_number()
    }

    pub(super) fn has_waiting(&self) -> bool {
        !self.done && self.in_flight == 0 && self.settled < self.end()
    }

    pub(super) fn expires(&self) -> Option<Age> {
        self.expires
    }
}

impl Lane {
    pub(super) fn new(queue: QueueId, priority: u32, parked: Option<Identity>, next: u64) -> Self {
        Lane {
            queue,
            priority,
            parked,
            next,
            window: VecDeque::new(),
            window_bytes: 0,
            fresh: (u64::MAX, 0),
        }
    }

    /// Whether its first message was looked at and is not too old yet.
    pub(super) fn is_fresh(&self, now: Age) -> bool {
        self.window.is_empty() && self.fresh.0 == self.next && now < self.fresh.1
    }

    pub(super) fn has_room(&self) -> bool {
        self.window_bytes < WINDOW_BYTES
    }

    pub(super) fn waits(&self, broker: &Broker) -> bool {
        !self.window.is_empty() || self.next < broker.queues.info(self.queue).durable
    }

    /// Reads more. False when there is nothing more.
    pub(super) async fn read(&mut self, broker: &Broker) -> Result<bool, ReadError> {
        let info = broker.queues.info(self.queue);
        self.next = self.next.max(info.consumed);
        if self.next >= info.durable {
            return Ok(false);
        }
        let (id, from) = (self.queue, self.next);
        let blocks = match broker.queues.read_cached(id, from, READ_BYTES)? {
            Some(blocks) => blocks,
            None => {
                let store = Arc::clone(&broker.queues);
                let read = tokio::task::spawn_blocking(move || store.read(id, from, READ_BYTES)).await;
                read.unwrap_or_else(|_| Ok(Vec::new()))?
            }
        };
        for stored in blocks {
            let block = stored.block;
            let end = block.end_sequence_number();
            let sender = block
                .events()
                .next()
                .and_then(Result::ok)
                .map(|event| event.identity.to_owned());
            let sender = sender.and_then(|sender| Identity::parse(&sender).ok());
            let settled = block.first_sequence_number.max(self.next);
            self.next = self.next.max(end);
            let Some(sender) = sender else {
                if let Some(times) = UNREADABLE.happened(super::UPSTREAM) {
                    tracing::error!(
                        first = settled,
                        times,
                        "stored messages cannot be read and are dropped"
                    );
                }
                continue;
            };
            self.window_bytes += block.data.len();
            self.window.push_back(Item {
                sender,
                block,
                expires: stored.expires,
                settled,
                in_flight: 0,
                done: false,
            });
        }
        Ok(self.next > from)
    }

    /// Takes messages of a sender out of the window, in order; `None` when there is none.
    pub(super) fn cut(
        &mut self,
        sender: Identity,
        count_max: usize,
        bytes_max: usize,
        now: u64,
    ) -> Option<Batch> {
        let mut batch = Batch {
            lane: self.queue,
            sender: sender.clone(),
            pieces: Vec::new(),
            messages: Vec::new(),
            outputs: Vec::new(),
            bytes: 0,
            begun: now,
        };
        for item in self.window.iter_mut().filter(|item| item.sender == sender) {
            if item.done || item.settled >= item.end() {
                continue;
            }
            let before = batch.messages.len();
            let mut events = item.block.events();
            events.skip_to(item.settled);
            let mut full = false;
            for event in events {
                if batch.messages.len() >= count_max
                    || (batch.bytes >= bytes_max && !batch.messages.is_empty())
                {
                    full = true;
                    break;
                }
                let message =
                    event.map_or_else(|_| Message::default(), |event| message_of(&event, &item.block));
                batch.push(message);
            }
            item.in_flight = (batch.messages.len() - before) as u32;
            if item.in_flight > 0 {
                batch.pieces.push(Piece {
                    first: item.settled,
                    count: item.in_flight,
                    accepted_at: item.block.enqueued_at,
                });
            }
            if full {
                break;
            }
        }
        (!batch.messages.is_empty()).then_some(batch)
    }

    /// The first `done` messages of a batch are settled; the others wait again.
    pub(super) fn settle(&mut self, pieces: &[Piece], mut done: usize) {
        for piece in pieces {
            let now = done.min(piece.count as usize);
            done -= now;
            let found = self
                .window
                .iter_mut()
                .find(|item| item.settled == piece.first && item.in_flight > 0);
            if let Some(item) = found {
                item.in_flight = 0;
                item.settled += now as u64;
            }
        }
    }

    /// Gives up what is settled from the front on.
    pub(super) fn advance(&mut self, broker: &Broker) {
        while let Some(item) = self.window.front()
            && item.in_flight == 0
            && (item.done || item.settled >= item.end())
        {
            self.window_bytes = self.window_bytes.saturating_sub(item.block.data.len());
            self.window.pop_front();
        }
        let upto = self.window.front().map_or(self.next, |item| item.settled);
        broker.queues.consumed(self.queue, upto);
        if self.window.is_empty() {
            self.window.shrink_to(0);
        }
    }

    /// Forgets what is read and not on its way; it is read again.
    pub(super) fn rewind(&mut self) {
        if self.window.iter().any(|item| item.in_flight > 0) {
            return;
        }
        let until = self.window.front().map(|item| item.expires.unwrap_or(Age::MAX));
        // Only from the first that is not settled: those behind may be settled already, and are sent again otherwise.
        while let Some(last) = self.window.back()
            && !last.done
            && last.settled == last.block.first_sequence_number
        {
            self.window_bytes = self.window_bytes.saturating_sub(last.block.data.len());
            self.next = last.settled;
            self.window.pop_back();
        }
        self.window.shrink_to_fit();
        if let Some(until) = until.filter(|_| self.window.is_empty()) {
            self.fresh = (self.next, until);
        }
    }

    /// Gives up what is too old and not on its way. Returns what was dropped, by sender and output.
    pub(super) fn drop_expired(&mut self, broker: &Broker) -> Vec<(Identity, String, u64)> {
        let now = broker.queues.now();
        let mut dropped: Vec<(Identity, String, u64)> = Vec::new();
        for item in self.window.iter_mut().filter(|item| item.has_waiting()) {
            if item.expires.is_none_or(|expires| expires > now) {
                continue;
            }
            let mut events = item.block.events();
            events.skip_to(item.settled);
            for event in events.filter_map(Result::ok) {
                let output = output_of(&event).unwrap_or_default();
                match dropped
                    .iter_mut()
                    .find(|(sender, known, _)| *sender == item.sender && known == output)
                {
                    Some(entry) => entry.2 += 1,
                    None => dropped.push((item.sender.clone(), output.to_owned(), 1)),
                }
            }
            item.done = true;
        }
        if !dropped.is_empty() {
            self.advance(broker);
        }
        dropped
    }
}

impl Batch {
    /// Adds a message, without what the hub above stamps itself and what is none of its business.
    fn push(&mut self, mut message: Message) {
        let mut output = String::new();
        message.system.retain_mut(|(property, value)| match property {
            SystemProperty::OutputName => {
                output = std::mem::take(value);
                false
            }
            SystemProperty::DataSchema | SystemProperty::PartitionKey => false,
            _ => true,
        });
        match self.outputs.last_mut() {
            Some((known, count)) if *known == output => *count += 1,
            _ => self.outputs.push((output, 1)),
        }
        self.bytes += message.size();
        self.messages.push(message);
    }
}
