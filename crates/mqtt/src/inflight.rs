//! Messages sent at QoS 1 and not yet acknowledged, with their packet identifiers. Used by both roles.
//!
//! Identifiers are handed out in a cycle of 65,535. Entries stay in the order of sending, so the common case, a peer that
//! acknowledges in order, is a look at the front; an identifier can be in use only if the oldest entry is a whole cycle
//! old, so that the common case of issuing one needs no search either.

use std::collections::VecDeque;

use crate::codec::PacketId;

/// Identifiers in one cycle: all of `u16` but 0 (MQTT-2.3.1-1).
const CYCLE: u64 = 65_535;

pub(crate) struct InFlight<T> {
    entries: VecDeque<Entry<T>>,
    /// Identifier handed out last; 0 before the first.
    last_id: u16,
    /// Identifiers stepped over since the beginning, those in use included.
    steps: u64,
    /// Some entry took its identifier out of turn, so its place in the cycle says nothing.
    reused: bool,
}

struct Entry<T> {
    item: T,
    step: u64,
    id: PacketId,
}

/// An identifier that is free, not yet taken.
pub(crate) struct Candidate {
    pub(crate) id: PacketId,
    steps: u64,
}

impl<T> InFlight<T> {
    /// `last_id` is the identifier after which to go on.
    pub(crate) fn new(last_id: u16) -> Self {
        Self {
            entries: VecDeque::new(),
            last_id,
            steps: 0,
            reused: false,
        }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn last_id(&self) -> u16 {
        self.last_id
    }

    pub(crate) fn set_last_id(&mut self, last_id: u16) {
        self.last_id = last_id;
        // Entries no longer stand in one cycle with what follows.
        self.reused |= !self.entries.is_empty();
    }

    /// Items, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (PacketId, &T)> {
        self.entries.iter().map(|entry| (entry.id, &entry.item))
    }

    /// The next identifier that is neither in flight nor `taken` otherwise; `None` if there is none.
    #[inline]
    pub(crate) fn candidate(&self, taken: impl Fn(PacketId) -> bool) -> Option<Candidate> {
        let mut steps = self.steps;
        let mut id = self.last_id;
        for _ in 0..CYCLE {
            steps += 1;
            id = id.wrapping_add(1);
            let candidate = match PacketId::new(id) {
                Some(candidate) => candidate,
                None => {
                    id = 1;
                    PacketId::MIN
                }
            };
            if !self.may_be_in_use(steps, candidate) && !taken(candidate) {
                return Some(Candidate { id: candidate, steps });
            }
        }
        None
    }

    #[inline]
    fn may_be_in_use(&self, step: u64, id: PacketId) -> bool {
        match self.entries.front() {
            None => false,
            Some(front) if !self.reused && step - front.step < CYCLE => false,
            Some(_) => self.contains(id),
        }
    }

    /// Takes the identifier for something that is not kept here, such as a SUBSCRIBE.
    pub(crate) fn advance(&mut self, candidate: &Candidate) {
        self.steps = candidate.steps;
        self.last_id = candidate.id.get();
    }

    /// Takes the identifier for `item`.
    #[inline]
    pub(crate) fn push(&mut self, candidate: &Candidate, item: T) {
        self.advance(candidate);
        self.entries.push_back(Entry {
            item,
            step: candidate.steps,
            id: candidate.id,
        });
    }

    /// Takes an identifier of the caller's choice, which must not be in use.
    pub(crate) fn push_reused(&mut self, id: PacketId, item: T) {
        self.reused = true;
        self.entries.push_back(Entry {
            item,
            step: self.steps,
            id,
        });
    }

    pub(crate) fn contains(&self, id: PacketId) -> bool {
        self.position(id).is_some()
    }

    /// Removes the entry of an acknowledged identifier.
    #[inline]
    pub(crate) fn remove(&mut self, id: PacketId) -> Option<T> {
        let entry = if self.entries.front()?.id == id {
            self.entries.pop_front()?
        } else {
            let position = self.position(id)?;
            self.entries.remove(position)?
        };
        if self.entries.is_empty() {
            self.reused = false;
        }
        Some(entry.item)
    }

    fn position(&self, id: PacketId) -> Option<usize> {
        let front = self.entries.front()?;
        // Without gaps an entry stands as far from the front as its identifier is; gaps only move it nearer.
        let guess = usize::from(id.get().wrapping_sub(front.id.get()));
        if self.entries.get(guess).is_some_and(|entry| entry.id == id) {
            return Some(guess);
        }
        self.entries.iter().position(|entry| entry.id == id)
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.reused = false;
    }

    /// Gives memory of a past burst back.
    pub(crate) fn shrink(&mut self) {
        self.entries.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(flight: &mut InFlight<u64>, item: u64) -> u16 {
        let candidate = flight.candidate(|_| false).expect("a free identifier");
        flight.push(&candidate, item);
        candidate.id.get()
    }

    fn id(id: u16) -> PacketId {
        PacketId::new(id).expect("not zero")
    }

    #[test]
    fn identifiers_go_round_without_zero() {
        let mut flight = InFlight::new(65_534);
        assert_eq!(push(&mut flight, 0), 65_535);
        assert_eq!(push(&mut flight, 1), 1);
        assert_eq!(flight.remove(id(1)), Some(1));
        assert_eq!(flight.remove(id(1)), None);
        assert_eq!(flight.remove(id(65_535)), Some(0));
    }

    /// An entry that is never acknowledged must keep its identifier for any number of cycles.
    #[test]
    fn identifier_in_use_is_stepped_over() {
        let mut flight = InFlight::new(0);
        assert_eq!(push(&mut flight, 7), 1);
        assert_eq!(push(&mut flight, 8), 2);
        for round in 0..200_000u64 {
            let issued = push(&mut flight, round);
            assert!(issued > 2, "identifier {issued} is in use");
            assert_eq!(flight.remove(id(issued)), Some(round));
        }
        assert_eq!(flight.remove(id(1)), Some(7));
        assert_eq!(flight.remove(id(2)), Some(8));
    }

    #[test]
    fn all_identifiers_can_be_in_use() {
        let mut flight = InFlight::new(0);
        for item in 0..65_535 {
            push(&mut flight, item);
        }
        assert!(flight.candidate(|_| false).is_none());
        assert_eq!(flight.remove(id(40_000)), Some(39_999));
        assert_eq!(push(&mut flight, 1), 40_000);
    }

    #[test]
    fn reused_identifiers_are_stepped_over_too() {
        let mut flight = InFlight::new(0);
        flight.push_reused(id(2), 20);
        assert_eq!(push(&mut flight, 1), 1);
        assert_eq!(push(&mut flight, 3), 3);
        assert_eq!(flight.remove(id(3)), Some(3));
        assert_eq!(flight.remove(id(2)), Some(20));
    }
}
