//! Who has changed: the way from the engine to automatic device management.
//!
//! Identities are noted here after a change of theirs is stored, and taken out by the one listener. The set is bounded:
//! when it is full the listener is told that something was left out and looks at everybody. Nothing is noted while
//! nobody listens, so a hub without configurations pays one load of an atomic for a change.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU8, Ordering};

use foldhash::fast::RandomState;
use holdfast_model::Identity;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::Hub;

/// Most changed identities that wait for the listener.
pub const CHANGED_IDENTITIES_MAX: usize = 65_536;

/// Who has changed since the listener last asked.
#[derive(Debug, Default)]
pub struct Changed {
    /// Devices and modules that were created or changed, each once.
    pub identities: HashSet<Identity, RandomState>,
    /// Whether there were more than [`CHANGED_IDENTITIES_MAX`], so that some are missing here.
    pub overflowed: bool,
}

/// Which changes are noted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Listening {
    /// None.
    Off = 0,
    /// All but those of reported properties, which may be very many.
    WithoutReports = 1,
    /// All.
    Everything = 2,
}

#[derive(Default)]
pub(crate) struct Changes {
    /// A [`Listening`].
    listening: AtomicU8,
    changed: Mutex<Changed>,
    wake: Notify,
}

impl Changes {
    /// Notes an identity whose record or twin has changed.
    pub(crate) fn note(&self, identity: &Identity) {
        self.note_for(Listening::WithoutReports, identity);
    }

    /// Notes an identity whose reported properties have changed.
    pub(crate) fn note_report(&self, identity: &Identity) {
        self.note_for(Listening::Everything, identity);
    }

    fn note_for(&self, least: Listening, identity: &Identity) {
        if self.listening.load(Ordering::Acquire) < least as u8 {
            return;
        }
        {
            let mut changed = self.changed.lock();
            if changed.identities.len() < CHANGED_IDENTITIES_MAX {
                changed.identities.insert(identity.clone());
            } else if !changed.identities.contains(identity) {
                changed.overflowed = true;
            }
        }
        self.wake.notify_one();
    }
}

impl Hub {
    /// Says which changes are noted from now on. What was noted before the end is forgotten.
    pub fn listen_to_changes(&self, listening: Listening) {
        self.changes.listening.store(listening as u8, Ordering::Release);
        if listening == Listening::Off {
            *self.changes.changed.lock() = Changed::default();
        }
    }

    /// Waits until somebody has changed and takes out all who have. For one listener.
    pub async fn changed(&self) -> Changed {
        loop {
            let taken = std::mem::take(&mut *self.changes.changed.lock());
            if taken.overflowed || !taken.identities.is_empty() {
                return taken;
            }
            self.changes.wake.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> Identity {
        Identity::device(&format!("d{number}")).expect("an id")
    }

    #[test]
    fn nothing_is_noted_while_nobody_listens() {
        let changes = Changes::default();
        changes.note(&id(1));
        assert!(changes.changed.lock().identities.is_empty());
        let listen = |listening: Listening| changes.listening.store(listening as u8, Ordering::Release);
        listen(Listening::WithoutReports);
        changes.note(&id(1));
        changes.note(&id(1));
        changes.note_report(&id(2));
        assert_eq!(changes.changed.lock().identities.len(), 1);
        listen(Listening::Everything);
        changes.note_report(&id(2));
        assert_eq!(changes.changed.lock().identities.len(), 2);
    }

    #[test]
    fn the_set_is_bounded_and_says_when_it_is_full() {
        let changes = Changes::default();
        changes
            .listening
            .store(Listening::WithoutReports as u8, Ordering::Release);
        for number in 0..CHANGED_IDENTITIES_MAX {
            changes.note(&id(number));
        }
        assert!(!changes.changed.lock().overflowed);
        changes.note(&id(0));
        assert!(!changes.changed.lock().overflowed, "it is in the set");
        changes.note(&id(CHANGED_IDENTITIES_MAX));
        let changed = changes.changed.lock();
        assert!(changed.overflowed);
        assert_eq!(changed.identities.len(), CHANGED_IDENTITIES_MAX);
    }
}
