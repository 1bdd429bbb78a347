//! Tasks that wait for an accept number.

use std::task::Waker;

use parking_lot::Mutex;

/// Tasks beyond which all are woken, so that those that are gone leave; the others come back.
const TASKS_MAX: usize = 1_024;

#[derive(Default)]
pub(super) struct WaitList(Mutex<Vec<(u64, Waker)>>);

impl WaitList {
    /// Notes that `waker` waits for `end`, unless `ready` already, asked under the list's lock so that no wake-up between is
    /// lost. Of each waker only the newest note counts.
    pub(super) fn register(&self, end: u64, waker: &Waker, ready: impl Fn() -> bool) -> bool {
        let mut stale = Vec::new();
        {
            let mut entries = self.0.lock();
            if ready() {
                return true;
            }
            match entries.iter_mut().rev().find(|(_, known)| known.will_wake(waker)) {
                Some(entry) => entry.0 = end,
                None => entries.push((end, waker.clone())),
            }
            if entries.len() > TASKS_MAX {
                stale = std::mem::take(&mut *entries);
            }
        }
        stale.into_iter().for_each(|(_, waker)| waker.wake());
        false
    }

    /// Wakes who waits for something up to `reached`.
    pub(super) fn wake(&self, reached: u64) {
        let mut woken = Vec::new();
        {
            let mut entries = self.0.lock();
            let mut index = 0;
            while index < entries.len() {
                if entries[index].0 <= reached {
                    woken.push(entries.swap_remove(index).1);
                } else {
                    index += 1;
                }
            }
            if entries.is_empty() && entries.capacity() > 64 {
                entries.shrink_to_fit();
            }
        }
        woken.into_iter().for_each(Waker::wake);
    }
}
