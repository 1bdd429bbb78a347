//! Tasks that wait for a sequence number.

use std::task::Waker;

use parking_lot::Mutex;

/// Length at which a list is first cleaned of tasks that polled twice or are gone.
const CLEAN_AT_LEAST: usize = 256;
/// Length beyond which a list never grows without being cleaned.
const CLEAN_AT_MOST: usize = 1 << 16;

/// Wakers, each with the sequence number it waits for. Bounded: polling again and again, or polling and being
/// dropped, does not make it grow for ever.
#[derive(Debug)]
pub(super) struct WaitList(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    entries: Vec<(u64, Waker)>,
    clean_at: usize,
}

impl WaitList {
    pub(super) fn new() -> Self {
        WaitList(Mutex::new(Inner {
            entries: Vec::new(),
            clean_at: CLEAN_AT_LEAST,
        }))
    }

    /// Notes that `waker` waits for `end`, unless `ready` already; returns `ready`, asked under the list's lock, so
    /// that a wake-up between asking and noting is not lost. The last note of each waker counts.
    pub(super) fn register(&self, end: u64, waker: &Waker, ready: impl Fn() -> bool) -> bool {
        let mut stale = Vec::new();
        {
            let mut inner = self.0.lock();
            if ready() {
                return true;
            }
            match inner.entries.last_mut() {
                // A session that polls after each message, with nobody in between.
                Some((last_end, last)) if last.will_wake(waker) => *last_end = end,
                _ => inner.entries.push((end, waker.clone())),
            }
            if inner.entries.len() >= inner.clean_at {
                inner.clean(&mut stale);
            }
        }
        stale.drain(..).for_each(Waker::wake);
        false
    }

    /// Moves the wakers of everything up to `reached` into `woken`; the caller wakes them without a lock held.
    pub(super) fn take(&self, reached: u64, woken: &mut Vec<Waker>) {
        let mut inner = self.0.lock();
        let mut index = 0;
        while index < inner.entries.len() {
            if inner.entries[index].0 <= reached {
                woken.push(inner.entries.swap_remove(index).1);
            } else {
                index += 1;
            }
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.0.lock().entries.len()
    }
}

impl Inner {
    /// Keeps the last note of each task. If that leaves the list long, wakes all: those that are alive come back.
    fn clean(&mut self, woken: &mut Vec<Waker>) {
        // Stable, so that of equal ones the last stays the last.
        self.entries.sort_by_key(|(_, waker)| waker.data() as usize);
        self.entries.reverse();
        self.entries.dedup_by(|later, kept| later.1.will_wake(&kept.1));
        if self.entries.len() > self.clean_at / 2 {
            woken.extend(self.entries.drain(..).map(|(_, waker)| waker));
            // The next time later, else many live tasks would wake each other for ever.
            self.clean_at = (self.clean_at * 2).min(CLEAN_AT_MOST);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn wakes_what_was_reached_and_nothing_else() {
        let (list, early, late) = (
            WaitList::new(),
            Arc::new(Count::default()),
            Arc::new(Count::default()),
        );
        assert!(!list.register(5, &Arc::clone(&early).into(), || false));
        assert!(!list.register(9, &Arc::clone(&late).into(), || false));
        assert!(list.register(9, &Arc::clone(&late).into(), || true));
        let mut woken = Vec::new();
        list.take(8, &mut woken);
        woken.drain(..).for_each(Waker::wake);
        assert_eq!(
            (early.0.load(Ordering::Relaxed), late.0.load(Ordering::Relaxed)),
            (1, 0)
        );
        list.take(9, &mut woken);
        assert_eq!(woken.len(), 1);
    }

    #[test]
    fn stays_bounded_when_two_tasks_poll_in_turn() {
        let list = WaitList::new();
        let wakers: [Waker; 2] = [
            Arc::new(Count::default()).into(),
            Arc::new(Count::default()).into(),
        ];
        for round in 0..10_000 {
            list.register(round, &wakers[round as usize % 2], || false);
        }
        assert!(list.len() <= CLEAN_AT_LEAST);
        let mut woken = Vec::new();
        list.take(9_997, &mut woken);
        assert_eq!(list.len(), 2, "the last note of each counts");
    }

    #[test]
    fn stays_bounded_when_tasks_come_and_go() {
        let list = WaitList::new();
        for _ in 0..300_000 {
            list.register(1, &Arc::new(Count::default()).into(), || false);
        }
        assert!(list.len() <= CLEAN_AT_MOST);
    }
}
