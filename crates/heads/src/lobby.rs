//! Places for connections, and who yields when there are none left.
//!
//! Places bound the memory of clients that have proved nothing yet. They must not let silent ones keep the others out, so
//! a newcomer to a full lobby takes the place of the one that has waited longest: of those that have sent nothing if
//! there is one, then of those that have not made themselves known, then of those idle between two requests. Who is
//! being served keeps its place; if all are, newcomers wait.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// How far a connection that may be evicted has come. In the order in which they yield.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    /// Has sent nothing.
    Silent,
    /// Has sent something, but no whole first request.
    Speaking,
    /// Has been served, and may ask again.
    Idle,
}

/// Number of stages.
const STAGES: usize = 3;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// May be evicted; with its key among those of its stage.
    Waiting(Stage, u64),
    /// Is being served.
    Kept,
    /// Its place is somebody else's.
    Evicted,
}

struct Seat {
    /// Changed only under the lock of the lobby.
    standing: Mutex<Standing>,
    evicted: Notify,
}

#[derive(Default)]
struct Inner {
    taken: usize,
    next_key: u64,
    /// Per stage, oldest first.
    waiting: [BTreeMap<u64, Arc<Seat>>; STAGES],
}

/// See the module documentation.
pub(crate) struct Lobby {
    places: usize,
    inner: Mutex<Inner>,
    /// A place is free, or may be taken from somebody.
    changed: Notify,
}

/// A place, given back when dropped.
pub(crate) struct Guest {
    lobby: Arc<Lobby>,
    seat: Arc<Seat>,
}

impl Lobby {
    pub(crate) fn new(places: usize) -> Arc<Self> {
        Arc::new(Lobby {
            places: places.max(1),
            inner: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// A free place, or that of the first to yield; `None` while everybody is being served.
    pub(crate) fn try_enter(self: &Arc<Self>) -> Option<Guest> {
        let mut inner = self.inner.lock();
        if inner.taken < self.places {
            inner.taken += 1;
        } else {
            let (_, seat) = inner.waiting.iter_mut().find_map(BTreeMap::pop_first)?;
            *seat.standing.lock() = Standing::Evicted;
            seat.evicted.notify_one();
        }
        let key = inner.next_key();
        let seat = Arc::new(Seat {
            standing: Mutex::new(Standing::Waiting(Stage::Silent, key)),
            evicted: Notify::new(),
        });
        inner.waiting[Stage::Silent as usize].insert(key, Arc::clone(&seat));
        Some(Guest {
            lobby: Arc::clone(self),
            seat,
        })
    }

    /// As [`Lobby::try_enter`], but waits.
    pub(crate) async fn enter(self: &Arc<Self>) -> Guest {
        loop {
            let changed = self.changed.notified();
            if let Some(guest) = self.try_enter() {
                return guest;
            }
            changed.await;
        }
    }

    /// Number of places that are taken.
    pub(crate) fn taken(&self) -> usize {
        self.inner.lock().taken
    }

    /// Waits until no place is taken.
    pub(crate) async fn emptied(&self) {
        loop {
            let changed = self.changed.notified();
            if self.taken() == 0 {
                return;
            }
            changed.await;
        }
    }
}

impl Inner {
    fn next_key(&mut self) -> u64 {
        self.next_key += 1;
        self.next_key
    }
}

impl Guest {
    pub(crate) fn lobby(&self) -> &Lobby {
        &self.lobby
    }

    /// From now on this place may be taken as one of that stage; among its equals it is the youngest.
    pub(crate) fn wait_as(&self, stage: Stage) {
        let mut inner = self.lobby.inner.lock();
        let mut standing = self.seat.standing.lock();
        match *standing {
            Standing::Evicted => return,
            Standing::Waiting(earlier, key) => {
                inner.waiting[earlier as usize].remove(&key);
            }
            Standing::Kept => {}
        }
        let key = inner.next_key();
        inner.waiting[stage as usize].insert(key, Arc::clone(&self.seat));
        *standing = Standing::Waiting(stage, key);
        drop(standing);
        drop(inner);
        self.lobby.changed.notify_waiters();
    }

    /// From now on this place is not taken from its owner. False if it already was.
    pub(crate) fn keep(&self) -> bool {
        let mut inner = self.lobby.inner.lock();
        let mut standing = self.seat.standing.lock();
        match *standing {
            Standing::Evicted => return false,
            Standing::Waiting(stage, key) => {
                inner.waiting[stage as usize].remove(&key);
            }
            Standing::Kept => {}
        }
        *standing = Standing::Kept;
        true
    }

    /// Ends when the place was given to somebody else. For one task at a time.
    pub(crate) async fn evicted(&self) {
        self.seat.evicted.notified().await;
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut inner = self.lobby.inner.lock();
        match *self.seat.standing.lock() {
            Standing::Evicted => return,
            Standing::Waiting(stage, key) => {
                inner.waiting[stage as usize].remove(&key);
            }
            Standing::Kept => {}
        }
        inner.taken -= 1;
        drop(inner);
        self.lobby.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_evicted(guest: &Guest) -> bool {
        *guest.seat.standing.lock() == Standing::Evicted
    }

    #[tokio::test]
    async fn the_first_to_yield_is_the_oldest_of_the_least_known() {
        let lobby = Lobby::new(4);
        let guests: Vec<Guest> = (0..4).filter_map(|_| lobby.try_enter()).collect();
        guests[0].wait_as(Stage::Speaking);
        guests[1].wait_as(Stage::Idle);
        assert!(guests[2].keep());
        let mut newcomers = Vec::new();
        for evicted in [3, 0, 1] {
            let newcomer = lobby.try_enter().expect("a place");
            assert!(newcomer.keep());
            newcomers.push(newcomer);
            assert!(is_evicted(&guests[evicted]), "{evicted}");
            guests[evicted].evicted().await;
            assert!(!guests[evicted].keep());
            guests[evicted].wait_as(Stage::Idle);
        }
        assert!(!is_evicted(&guests[2]));
        assert!(lobby.try_enter().is_none(), "everybody is being served");
        assert_eq!(lobby.taken(), 4);
        drop(guests);
        assert_eq!(lobby.taken(), 3, "whoever was evicted had no place to give back");
        drop(newcomers);
        lobby.emptied().await;
    }

    #[tokio::test]
    async fn a_full_lobby_is_waited_for() {
        let lobby = Lobby::new(1);
        let first = lobby.enter().await;
        first.keep();
        let second = tokio::spawn({
            let lobby = Arc::clone(&lobby);
            async move { lobby.enter().await }
        });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        first.wait_as(Stage::Idle);
        let second = second.await.expect("no panic");
        assert!(is_evicted(&first) && !is_evicted(&second));
    }
}
