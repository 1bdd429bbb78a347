//! The outbox in memory.

use std::collections::VecDeque;

use crate::outbox::{OutboxEvent, OutboxStore, Waiting};
use crate::{BoxFuture, StoreResult};

/// Oldest first.
#[derive(Default)]
pub(super) struct Outbox {
    waiting: VecDeque<Waiting>,
    last_number: u64,
}

impl Outbox {
    pub(super) fn add(&mut self, events: Vec<OutboxEvent>) {
        for event in events {
            self.last_number += 1;
            self.waiting.push_back(Waiting {
                number: self.last_number,
                event,
            });
        }
    }
}

impl OutboxStore for super::MemoryStore {
    fn add_to_outbox(&self, events: Vec<OutboxEvent>) -> BoxFuture<'_, StoreResult<()>> {
        self.run(move |state| {
            state.outbox.add(events);
            Ok(())
        })
    }

    fn outbox(&self, limit: usize) -> BoxFuture<'_, StoreResult<Vec<Waiting>>> {
        self.run(move |state| Ok(state.outbox.waiting.iter().take(limit).cloned().collect()))
    }

    fn remove_from_outbox(&self, number: u64) -> BoxFuture<'_, StoreResult<()>> {
        self.run(move |state| {
            state.outbox.waiting.retain(|waiting| waiting.number > number);
            Ok(())
        })
    }
}
