//! What keeps actions from answering each other for ever.
//!
//! The [`Trail`] knows which twin versions actions have made, so the twin change that tells of one is recognised: it
//! carries the hops of the event that caused it and one more. It is kept in memory, shared by all actions of a hub and
//! bounded; what it has forgotten (after a restart, or when another endpoint is quicker than the answer of the twin
//! store), and loops through a device's own telemetry, are held by the [`Rate`] of each target.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::Timestamp;
use holdfast_ports::action::DeviceActions;
use parking_lot::Mutex;

/// Twin versions that are remembered.
const TRAIL_MAX: usize = 10_000;
/// Targets whose rate is counted at once.
const TARGETS_MAX: usize = 10_000;
/// Over how long a rate is counted.
const WINDOW: Duration = Duration::from_secs(60);

/// The engine, and what its actions have left behind. Clones share both.
#[derive(Clone)]
pub struct Actions {
    pub(super) port: Arc<dyn DeviceActions>,
    pub(super) trail: Arc<Trail>,
}

impl Actions {
    /// Actions on the devices of one hub.
    #[must_use]
    pub fn new(port: Arc<dyn DeviceActions>) -> Self {
        Actions {
            port,
            trail: Arc::default(),
        }
    }
}

/// Twin versions that actions have made.
#[derive(Default)]
pub(super) struct Trail {
    made: Mutex<Made>,
}

#[derive(Default)]
struct Made {
    hops: HashMap<(String, u64), u8>,
    order: VecDeque<(String, u64)>,
}

impl Trail {
    /// Notes that an action made this version of a twin.
    pub(super) fn note(&self, identity: &str, version: u64, hops: u8) {
        let mut made = self.made.lock();
        let key = (identity.to_owned(), version);
        if made.hops.insert(key.clone(), hops).is_none() {
            made.order.push_back(key);
        }
        if made.order.len() > TRAIL_MAX
            && let Some(oldest) = made.order.pop_front()
        {
            made.hops.remove(&oldest);
        }
    }

    /// How many actions led to this version of a twin.
    pub(super) fn hops(&self, identity: &str, version: u64) -> u8 {
        let key = (identity.to_owned(), version);
        self.made.lock().hops.get(&key).copied().unwrap_or(0)
    }
}

/// Actions per target and minute.
pub(super) struct Rate {
    most: u32,
    /// Beginning of the window, and actions in it.
    counts: Mutex<HashMap<String, (Timestamp, u32)>>,
}

impl Rate {
    pub(super) fn new(most: u32) -> Self {
        Rate {
            most,
            counts: Mutex::default(),
        }
    }

    /// Counts an action on a target; false when it is one too many.
    pub(super) fn admit(&self, identity: &str, now: Timestamp) -> bool {
        let mut counts = self.counts.lock();
        let over = |begun: Timestamp| now.since(begun) >= WINDOW;
        if let Some((begun, count)) = counts.get_mut(identity) {
            if over(*begun) {
                (*begun, *count) = (now, 0);
            }
            *count += 1;
            return *count <= self.most;
        }
        if counts.len() >= TARGETS_MAX {
            counts.retain(|_, (begun, _)| !over(*begun));
            if counts.len() >= TARGETS_MAX {
                return false;
            }
        }
        counts.insert(identity.to_owned(), (now, 1));
        true
    }
}
