//! Live connections, for what must reach all of them: the search for silent clients, and the stop.
//!
//! One table and one task per head take the place of a timer per session. The table is walked once a second; it is
//! contiguous, and a session itself is looked at only when it may have been silent for long enough, so that a walk over
//! 20,000 idle sessions takes some ten microseconds.

use std::sync::Arc;
use std::task::Waker;

use holdfast_ports::session::SessionHandle;
use parking_lot::Mutex;

/// Place of a connection in the roster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place(u32);

impl Place {
    /// Not entered yet.
    pub(super) const NONE: Place = Place(u32::MAX);
}

struct Entry {
    session: Arc<SessionHandle>,
    /// Wakes the connection's task; it finds out itself why.
    waker: Waker,
    /// Seconds of silence allowed.
    silence: u32,
    /// Second before which there is no need to look.
    look_at: u32,
}

enum Slot {
    Live(Entry),
    /// Next free slot.
    Free(Option<u32>),
}

#[derive(Default)]
struct Slots {
    slots: Vec<Slot>,
    free: Option<u32>,
    live: usize,
}

/// See the module documentation.
#[derive(Default)]
pub(super) struct Roster {
    slots: Mutex<Slots>,
}

impl Roster {
    pub(super) fn enter(&self, session: &Arc<SessionHandle>, waker: &Waker, silence: u32) -> Place {
        let entry = Slot::Live(Entry {
            session: Arc::clone(session),
            waker: waker.clone(),
            silence,
            look_at: session.last_activity().saturating_add(silence),
        });
        let mut slots = self.slots.lock();
        slots.live += 1;
        if let Some(place) = slots.free {
            let slot = std::mem::replace(&mut slots.slots[place as usize], entry);
            if let Slot::Free(next) = slot {
                slots.free = next;
            }
            return Place(place);
        }
        slots.slots.push(entry);
        // Connections are bounded by open files, far below the range.
        Place((slots.slots.len() - 1) as u32)
    }

    pub(super) fn leave(&self, place: Place) {
        let mut slots = self.slots.lock();
        let free = Slot::Free(slots.free);
        let Some(slot) = slots.slots.get_mut(place.0 as usize) else {
            return;
        };
        if matches!(slot, Slot::Free(_)) {
            return;
        }
        let entry = std::mem::replace(slot, free);
        slots.free = Some(place.0);
        slots.live -= 1;
        // The waker may be the last to hold the task: dropped outside the lock.
        drop(slots);
        drop(entry);
    }

    pub(super) fn live(&self) -> usize {
        self.slots.lock().live
    }

    /// Wakes the connections whose clients have been silent for too long at `second`.
    pub(super) fn sweep(&self, second: u32) {
        let mut silent = Vec::new();
        for slot in &mut self.slots.lock().slots {
            if let Slot::Live(entry) = slot
                && entry.look_at <= second
            {
                entry.look_at = entry.session.last_activity().saturating_add(entry.silence);
                if entry.look_at < second {
                    silent.push(entry.waker.clone());
                }
            }
        }
        silent.into_iter().for_each(Waker::wake);
    }

    /// Wakes every connection.
    pub(super) fn wake_all(&self) {
        let wakers: Vec<Waker> = self
            .slots
            .lock()
            .slots
            .iter()
            .filter_map(|slot| match slot {
                Slot::Live(entry) => Some(entry.waker.clone()),
                Slot::Free(_) => None,
            })
            .collect();
        wakers.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use holdfast_model::event::{AuthMethod, EventSource, Origin};
    use holdfast_model::subscription::Subscriptions;
    use holdfast_model::{Identity, Timestamp};

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn session() -> Arc<SessionHandle> {
        let origin = Origin {
            source: EventSource::Telemetry,
            identity: Identity::device("d1").expect("an id"),
            generation_id: 1,
            auth: AuthMethod::IdentityKey,
        };
        Arc::new(SessionHandle::new(
            origin,
            0,
            1,
            Timestamp::MAX,
            true,
            Subscriptions::NONE,
        ))
    }

    #[test]
    fn wakes_the_silent_only_and_reuses_places() {
        let roster = Roster::default();
        let (quiet, busy) = (session(), session());
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let place = roster.enter(&quiet, &waker, 10);
        roster.enter(&busy, &waker, 10);
        busy.touch(8);
        roster.sweep(10);
        assert_eq!(woken.0.load(Ordering::SeqCst), 0);
        roster.sweep(11);
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        roster.leave(place);
        roster.leave(place);
        assert_eq!(roster.live(), 1);
        roster.sweep(18);
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        assert_eq!(roster.enter(&quiet, &waker, 10), place);
        roster.wake_all();
        assert_eq!(woken.0.load(Ordering::SeqCst), 3);
    }
}
