//! Desired-property notifications leave in the order of their versions.
//!
//! The store serialises changes of one twin, but the tasks that asked for them go on in any order afterwards. If the
//! older of two patches reached the device last, the device would end with an old value and no reason to ask again. So
//! changes of one twin that overlap in time are collected, and the last one to finish hands them on, sorted.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use foldhash::fast::RandomState;
use holdfast_model::Identity;
use holdfast_model::limits::MAILBOX_ITEMS_MAX;
use holdfast_model::subscription::Channel;
use holdfast_ports::session::Downlink;
use parking_lot::Mutex;

use crate::directory::Directory;
use crate::events::Metrics;
use crate::sessions::push;

pub(crate) struct DesiredOrder {
    sessions: Arc<Directory>,
    metrics: Metrics,
    changing: Mutex<HashMap<Identity, Changing, RandomState>>,
}

#[derive(Default)]
struct Changing {
    /// Changes of this twin under way.
    count: usize,
    /// Finished ones whose notification waits for the others; as many as a mailbox takes, since more would be lost
    /// there.
    finished: Vec<(u64, Bytes)>,
}

/// One change under way. It ends when dropped: a failed or cancelled change must not hold up the others.
pub(crate) struct Change {
    order: Arc<DesiredOrder>,
    identity: Identity,
}

impl DesiredOrder {
    pub(crate) fn new(sessions: Arc<Directory>, metrics: Metrics) -> Self {
        DesiredOrder {
            sessions,
            metrics,
            changing: Mutex::default(),
        }
    }

    pub(crate) fn begin(self: &Arc<Self>, identity: &Identity) -> Change {
        self.changing.lock().entry(identity.clone()).or_default().count += 1;
        Change {
            order: Arc::clone(self),
            identity: identity.clone(),
        }
    }
}

impl Change {
    /// The change was made: the device is to be told of `version`.
    pub(crate) fn finish(self, version: u64, patch: Bytes) {
        {
            let mut all = self.order.changing.lock();
            if let Some(changing) = all.get_mut(&self.identity)
                && changing.finished.len() < MAILBOX_ITEMS_MAX
            {
                changing.finished.push((version, patch));
            }
        }
        // Dropping `self` ends the change.
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        let mut all = self.order.changing.lock();
        let Some(changing) = all.get_mut(&self.identity) else {
            return;
        };
        changing.count -= 1;
        if changing.count > 0 {
            return;
        }
        let mut finished = std::mem::take(&mut changing.finished);
        all.remove(&self.identity);
        finished.sort_unstable_by_key(|(version, _)| *version);
        for (version, patch) in finished {
            // Pushed under the lock, so that the next change cannot overtake; a push never waits.
            push(
                &self.order.sessions,
                &self.order.metrics,
                &self.identity,
                Channel::DesiredProperties,
                "desired properties",
                Downlink::Desired { version, patch },
            );
        }
    }
}
