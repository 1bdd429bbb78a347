//! The outbox in memory.

use std::collections::VecDeque;

use holdfast_model::job::Job;

use crate::job::JobTelling;
use crate::outbox::{OUTBOX_EVENTS_MAX, OutboxEvent, OutboxStore, Waiting, full};
use crate::{BoxFuture, StoreResult};

/// Oldest first.
#[derive(Default)]
pub(super) struct Outbox {
    waiting: VecDeque<Waiting>,
    last_number: u64,
}

impl Outbox {
    /// Whether there is room for `count` more.
    pub(super) fn check_room(&self, count: usize) -> StoreResult<()> {
        match (self.waiting.len() + count) as u64 <= OUTBOX_EVENTS_MAX {
            true => Ok(()),
            false => Err(full()),
        }
    }

    /// Adds what is told of a job, if there is room for it.
    pub(super) fn tell(&mut self, telling: Option<&JobTelling>, job: &Job) -> StoreResult<()> {
        if let Some(telling) = telling {
            let told = telling(job);
            self.check_room(told.len())?;
            self.add(told);
        }
        Ok(())
    }

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
            state.outbox.check_room(events.len())?;
            state.outbox.add(events);
            Ok(())
        })
    }

    fn outbox(&self, limit: usize, bytes_max: usize) -> BoxFuture<'_, StoreResult<Vec<Waiting>>> {
        self.run(move |state| {
            let mut bytes = 0;
            let fits = |waiting: &&Waiting| {
                let before = bytes;
                bytes += waiting.event.size();
                before < bytes_max
            };
            let waiting = state.outbox.waiting.iter().take(limit);
            Ok(waiting.take_while(fits).cloned().collect())
        })
    }

    fn remove_from_outbox(&self, number: u64) -> BoxFuture<'_, StoreResult<()>> {
        self.run(move |state| {
            state.outbox.waiting.retain(|waiting| waiting.number > number);
            Ok(())
        })
    }
}
