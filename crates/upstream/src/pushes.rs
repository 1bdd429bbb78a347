//! What the hub told a client and nobody has taken yet.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::port::{CloudError, CloudEvent, EVENTS_MAX};

/// Events for [`crate::port::CloudClient::next`], at most [`EVENTS_MAX`].
#[derive(Default)]
pub(crate) struct Pushes {
    waiting: Mutex<VecDeque<CloudEvent>>,
    arrived: Notify,
}

impl Pushes {
    /// Adds what the hub pushed; `false` when too many wait, in which case it is not added.
    #[must_use]
    pub(crate) fn push(&self, event: CloudEvent) -> bool {
        {
            let mut waiting = self.waiting.lock();
            if waiting.len() >= EVENTS_MAX {
                return false;
            }
            waiting.push_back(event);
        }
        self.arrived.notify_one();
        true
    }

    /// The connection is there (again).
    pub(crate) fn connected(&self) {
        let mut waiting = self.waiting.lock();
        // What an older connection brought can neither be answered nor settled, and pushes of desired properties are
        // behind the twin that is fetched now.
        waiting.retain(|event| matches!(event, CloudEvent::Disconnected(_)));
        waiting.push_back(CloudEvent::Connected);
        drop(waiting);
        self.arrived.notify_one();
    }

    /// The connection is gone, or cannot be opened.
    pub(crate) fn disconnected(&self, cause: CloudError) {
        let mut waiting = self.waiting.lock();
        waiting.clear();
        waiting.push_back(CloudEvent::Disconnected(cause));
        drop(waiting);
        self.arrived.notify_one();
    }

    pub(crate) async fn next(&self) -> CloudEvent {
        loop {
            let arrived = self.arrived.notified();
            if let Some(event) = self.take() {
                return event;
            }
            arrived.await;
        }
    }

    fn take(&self) -> Option<CloudEvent> {
        let mut waiting = self.waiting.lock();
        let event = waiting.pop_front();
        if waiting.is_empty() {
            // An idle client keeps nothing of a past burst.
            waiting.shrink_to(4);
        }
        event
    }
}
