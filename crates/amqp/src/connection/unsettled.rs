//! Deliveries that are not settled, by their number within the session. Used for both directions.
//!
//! Entries stay in the order of their numbers, which wrap around (AMQP 2.8.9). The common case, a peer that settles in
//! order, is a look at the front; others are found by their distance from the front or by halving.

use std::collections::VecDeque;

/// Room for so many entries is kept when the last one is gone.
const ROOM_KEPT: usize = 32;

#[derive(Debug)]
pub(crate) struct Unsettled<T> {
    entries: VecDeque<Entry<T>>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry<T> {
    pub(crate) item: T,
    pub(crate) id: u32,
    pub(crate) handle: u16,
}

impl<T: Copy> Unsettled<T> {
    pub(crate) fn new() -> Self {
        Self {
            entries: VecDeque::new(),
        }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Appends an entry; its number comes after all others.
    #[inline]
    pub(crate) fn push(&mut self, id: u32, handle: u16, item: T) {
        self.entries.push_back(Entry { item, id, handle });
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry<T>> {
        self.entries.iter()
    }

    /// Place of the first entry that is not before `id`.
    #[inline]
    fn lower_bound(&self, id: u32) -> usize {
        let Some(front) = self.entries.front().map(|entry| entry.id) else {
            return 0;
        };
        let distance = id.wrapping_sub(front);
        if distance == 0 || distance > i32::MAX as u32 {
            return 0;
        }
        let guess = distance as usize;
        if self.entries.get(guess).is_some_and(|entry| entry.id == id) {
            return guess;
        }
        self.entries
            .partition_point(|entry| entry.id.wrapping_sub(front) < distance)
    }

    fn position(&self, id: u32) -> Option<usize> {
        let at = self.lower_bound(id);
        (self.entries.get(at)?.id == id).then_some(at)
    }

    pub(crate) fn contains(&self, id: u32) -> bool {
        self.position(id).is_some()
    }

    /// The first entry from `first` to `last`, both included.
    pub(crate) fn first_in(&self, first: u32, last: u32) -> Option<Entry<T>> {
        let entry = self.entries.get(self.lower_bound(first))?;
        (entry.id.wrapping_sub(first) <= last.wrapping_sub(first)).then_some(*entry)
    }

    #[inline]
    pub(crate) fn remove(&mut self, id: u32) -> Option<Entry<T>> {
        let entry = if self.entries.front()?.id == id {
            self.entries.pop_front()
        } else {
            self.position(id).and_then(|at| self.entries.remove(at))
        };
        self.trim();
        entry
    }

    /// Takes the first entry of a link.
    pub(crate) fn take_of(&mut self, handle: u16) -> Option<Entry<T>> {
        let at = self.entries.iter().position(|entry| entry.handle == handle)?;
        let entry = self.entries.remove(at);
        self.trim();
        entry
    }

    /// Takes the first entry of all.
    pub(crate) fn pop(&mut self) -> Option<Entry<T>> {
        self.entries.pop_front()
    }

    /// Forgets the entries of a link.
    pub(crate) fn forget(&mut self, handle: u16) {
        self.entries.retain(|entry| entry.handle != handle);
        self.trim();
    }

    /// Gives memory of a past burst back.
    #[inline]
    fn trim(&mut self) {
        if self.entries.is_empty() && self.entries.capacity() > ROOM_KEPT {
            self.entries = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(list: &Unsettled<()>) -> Vec<u32> {
        list.iter().map(|entry| entry.id).collect()
    }

    #[test]
    fn found_across_the_wrap() {
        let mut list = Unsettled::new();
        for id in [u32::MAX - 2, u32::MAX - 1, 0, 2, 3] {
            list.push(id, (id % 2) as u16, ());
        }
        assert!(list.contains(2) && !list.contains(1) && !list.contains(u32::MAX));
        assert_eq!(list.first_in(u32::MAX, 5).map(|entry| entry.id), Some(0));
        assert_eq!(list.first_in(1, 1).map(|entry| entry.id), None);
        assert_eq!(list.first_in(4, 1_000).map(|entry| entry.id), None);
        assert_eq!(
            list.first_in(u32::MAX - 50, 1).map(|entry| entry.id),
            Some(u32::MAX - 2)
        );
        assert!(list.remove(0).is_some() && list.remove(0).is_none());
        assert_eq!(ids(&list), [u32::MAX - 2, u32::MAX - 1, 2, 3]);
        assert_eq!(list.take_of(0).map(|entry| entry.id), Some(u32::MAX - 1));
        list.forget(1);
        assert_eq!(ids(&list), [2]);
    }

    #[test]
    fn memory_of_a_burst_is_given_back() {
        let mut list = Unsettled::new();
        for id in 0..1_000 {
            list.push(id, 0, ());
        }
        for id in 0..1_000 {
            assert!(list.remove(id).is_some());
        }
        assert_eq!(list.entries.capacity(), 0);
    }

    #[test]
    fn entries_are_small() {
        assert_eq!(size_of::<Entry<u64>>(), 16);
        assert_eq!(size_of::<Entry<()>>(), 8);
    }
}
