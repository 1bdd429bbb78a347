//! Who has changed: the way from the engine to automatic device management.
//!
//! Identities are noted here after a change of theirs is stored, and taken out by the one listener. The set is bounded:
//! when it is full the listener is told that something was left out and looks at everybody. Nothing is noted while
//! nobody listens, so a hub without configurations pays one load of an atomic for a change.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

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

#[derive(Default)]
pub(crate) struct Changes {
    listening: AtomicBool,
    changed: Mutex<Changed>,
    wake: Notify,
}

impl Changes {
    /// Notes an identity whose record or twin has changed.
    pub(crate) fn note(&self, identity: &Identity) {
        if !self.listening.load(Ordering::Acquire) {
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
    /// Begins or ends the noting of changes. What was noted before the end is forgotten.
    pub fn listen_to_changes(&self, listening: bool) {
        self.changes.listening.store(listening, Ordering::Release);
        if !listening {
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
        changes.listening.store(true, Ordering::Release);
        changes.note(&id(1));
        changes.note(&id(1));
        assert_eq!(changes.changed.lock().identities.len(), 1);
    }

    #[test]
    fn the_set_is_bounded_and_says_when_it_is_full() {
        let changes = Changes::default();
        changes.listening.store(true, Ordering::Release);
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
