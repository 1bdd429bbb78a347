//! The live sessions of this node, by identity.
//!
//! One entry is one pointer: the key is read through it. A million sessions take about ten megabytes here. Entries are
//! spread over shards by a keyed hash, each shard behind its own short lock; nothing is awaited under one.

use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use foldhash::quality::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use holdfast_model::Timestamp;
use holdfast_ports::session::SessionHandle;
use parking_lot::Mutex;

const SHARDS: usize = 256;

/// A session with a higher epoch is in the directory already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Outdated;

pub(crate) struct Directory {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    devices: AtomicUsize,
    modules: AtomicUsize,
    /// Shard at which the next scan for expired tokens starts.
    scan_from: AtomicUsize,
}

struct Shard {
    sessions: HashTable<Arc<SessionHandle>>,
    /// No session in here expires before this; a lower bound that a scan makes exact.
    earliest_expiry: Timestamp,
}

impl Directory {
    pub(crate) fn new() -> Self {
        let empty = || {
            Mutex::new(Shard {
                sessions: HashTable::new(),
                earliest_expiry: Timestamp::MAX,
            })
        };
        Directory {
            shards: std::iter::repeat_with(empty).take(SHARDS).collect(),
            hasher: RandomState::default(),
            devices: AtomicUsize::new(0),
            modules: AtomicUsize::new(0),
            scan_from: AtomicUsize::new(0),
        }
    }

    /// Puts a session in; returns the one whose place it takes. The newer epoch wins, whatever the order of arrival.
    pub(crate) fn insert(
        &self,
        session: &Arc<SessionHandle>,
    ) -> Result<Option<Arc<SessionHandle>>, Outdated> {
        let (hash, mut shard) = self.shard(session.identity().as_str());
        let key = session.identity();
        let entry = shard.sessions.entry(
            hash,
            |other| other.identity() == key,
            |other| self.hasher.hash_one(other.identity().as_str()),
        );
        let replaced = match entry {
            Entry::Occupied(entry) if entry.get().epoch > session.epoch => return Err(Outdated),
            Entry::Occupied(mut entry) => Some(std::mem::replace(entry.get_mut(), Arc::clone(session))),
            Entry::Vacant(entry) => {
                entry.insert(Arc::clone(session));
                self.counter(session).fetch_add(1, Ordering::Relaxed);
                None
            }
        };
        shard.earliest_expiry = shard.earliest_expiry.min(session.expires_at());
        Ok(replaced)
    }

    /// The live session of an identity.
    pub(crate) fn get(&self, identity: &str) -> Option<Arc<SessionHandle>> {
        let (hash, shard) = self.shard(identity);
        shard
            .sessions
            .find(hash, |other| other.identity().as_str() == identity)
            .map(Arc::clone)
    }

    /// Takes this very session out; false when a newer one is in its place or none.
    pub(crate) fn remove(&self, session: &SessionHandle) -> bool {
        let (hash, mut shard) = self.shard(session.identity().as_str());
        let found = shard.sessions.find_entry(hash, |other| {
            other.epoch == session.epoch && other.identity() == session.identity()
        });
        match found {
            Ok(entry) => {
                entry.remove();
                if shard.sessions.len() < shard.sessions.capacity() / 8 {
                    shard
                        .sessions
                        .shrink_to_fit(|other| self.hasher.hash_one(other.identity().as_str()));
                }
                self.counter(session).fetch_sub(1, Ordering::Relaxed);
                true
            }
            Err(_) => false,
        }
    }

    /// Sessions that expire at or before `deadline`. Looks at about `scan_max` sessions at most and goes on from there
    /// next time. Shards in which nothing can have expired are passed over with one comparison.
    pub(crate) fn expired(&self, deadline: Timestamp, scan_max: usize) -> Vec<Arc<SessionHandle>> {
        let mut expired = Vec::new();
        let mut scanned = 0;
        let start = self.scan_from.load(Ordering::Relaxed);
        for step in 0..SHARDS {
            let index = (start + step) % SHARDS;
            let mut shard = self.shards[index].lock();
            if shard.earliest_expiry > deadline {
                continue;
            }
            if scanned >= scan_max {
                self.scan_from.store(index, Ordering::Relaxed);
                break;
            }
            scanned += shard.sessions.len();
            let mut earliest = Timestamp::MAX;
            for session in &shard.sessions {
                if session.expires_at() <= deadline {
                    expired.push(Arc::clone(session));
                } else {
                    earliest = earliest.min(session.expires_at());
                }
            }
            shard.earliest_expiry = earliest;
        }
        expired
    }

    /// All sessions that `wanted` picks.
    pub(crate) fn select(&self, wanted: impl Fn(&SessionHandle) -> bool) -> Vec<Arc<SessionHandle>> {
        let mut selected = Vec::new();
        for shard in &self.shards {
            selected.extend(
                shard
                    .lock()
                    .sessions
                    .iter()
                    .filter(|session| wanted(session))
                    .map(Arc::clone),
            );
        }
        selected
    }

    /// Live sessions: devices, modules.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (
            self.devices.load(Ordering::Relaxed),
            self.modules.load(Ordering::Relaxed),
        )
    }

    fn counter(&self, session: &SessionHandle) -> &AtomicUsize {
        if session.identity().is_module() {
            &self.modules
        } else {
            &self.devices
        }
    }

    fn shard(&self, identity: &str) -> (u64, parking_lot::MutexGuard<'_, Shard>) {
        let hash = self.hasher.hash_one(identity);
        // The table itself uses the lowest and the seven highest bits.
        let index = (hash >> 32) as usize % SHARDS;
        (hash, self.shards[index].lock())
    }
}

#[cfg(test)]
mod tests;
