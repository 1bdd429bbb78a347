//! When each connection wants to be woken: one table for all, swept on a coarse tick, as with the MQTT head's roster.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

use parking_lot::Mutex;

/// No time to wake at.
const NEVER: u64 = u64::MAX;

/// One connection.
struct Entry {
    /// Millisecond of the hub's monotonic clock.
    due: Arc<AtomicU64>,
    waker: Waker,
}

#[derive(Default)]
struct Table {
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
}

/// See the module documentation.
#[derive(Default)]
pub(super) struct Timers {
    table: Mutex<Table>,
}

/// A connection's place in the table.
pub(super) struct Timer {
    due: Arc<AtomicU64>,
    place: usize,
}

impl Timer {
    /// Sets the next time; `None` for never. Costs one store.
    pub(super) fn set(&self, due: Option<u64>) {
        self.due.store(due.unwrap_or(NEVER), Ordering::Relaxed);
    }
}

impl Timers {
    pub(super) fn enter(&self, waker: &Waker) -> Timer {
        let due = Arc::new(AtomicU64::new(NEVER));
        let entry = Some(Entry {
            due: Arc::clone(&due),
            waker: waker.clone(),
        });
        let mut table = self.table.lock();
        let place = table.free.pop().unwrap_or(table.entries.len());
        match table.entries.get_mut(place) {
            Some(slot) => *slot = entry,
            None => table.entries.push(entry),
        }
        Timer { due, place }
    }

    pub(super) fn leave(&self, timer: &Timer) {
        let mut table = self.table.lock();
        let entry = table.entries.get_mut(timer.place).and_then(Option::take);
        if entry.is_some() {
            table.free.push(timer.place);
        }
        // The waker may be the last to hold the task: dropped outside the lock.
        drop(table);
        drop(entry);
    }

    pub(super) fn live(&self) -> usize {
        let table = self.table.lock();
        table.entries.len() - table.free.len()
    }

    /// Wakes the connections whose time has come.
    pub(super) fn sweep(&self, now: u64) {
        self.wake(|due| due <= now);
    }

    /// Wakes every connection.
    pub(super) fn wake_all(&self) {
        self.wake(|_| true);
    }

    fn wake(&self, wanted: impl Fn(u64) -> bool) {
        let wakers: Vec<Waker> = self
            .table
            .lock()
            .entries
            .iter()
            .flatten()
            .filter(|entry| wanted(entry.due.load(Ordering::Relaxed)))
            .map(|entry| entry.waker.clone())
            .collect();
        wakers.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn wakes_who_is_due_and_reuses_places() {
        let timers = Timers::default();
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let (first, second) = (timers.enter(&waker), timers.enter(&waker));
        first.set(Some(10));
        timers.sweep(9);
        assert_eq!(woken.0.load(Ordering::SeqCst), 0);
        timers.sweep(10);
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        timers.leave(&first);
        assert_eq!(timers.live(), 1);
        assert_eq!(timers.enter(&waker).place, first.place);
        second.set(None);
        timers.wake_all();
        assert_eq!(woken.0.load(Ordering::SeqCst), 3);
    }
}
