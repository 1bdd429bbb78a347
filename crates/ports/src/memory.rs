//! In-memory doubles of the driven ports.
//!
//! [`MemoryStore`] keeps everything in ordered maps behind one mutex. It is meant to be obviously right rather than
//! fast: the engine's tests run on it, and the property tests of the real stores compare themselves with it. Nothing
//! is durable, and a call either happens as a whole or not at all because the mutex is held throughout.

mod configuration;
mod dead_letters;
mod enrollment;
pub mod event_log;
mod feedback;
mod file;
mod job;
mod outbox;
mod query;
mod queue;
mod registry;
mod settings;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use holdfast_model::Identity;
use holdfast_model::policy::Policy;
use holdfast_model::registry::IdentityRecord;
use holdfast_model::subscription::Subscriptions;
use holdfast_model::twin::Twin;
use parking_lot::Mutex;

use crate::settings::{CertificateAuthority, DEFAULT_CONSUMER_GROUP};
use crate::{BoxFuture, StoreError, StoreResult};

/// All stores of state in one, in memory. Cheap to clone; clones share their content.
#[derive(Clone)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
}

/// What belongs to one identity and goes with it.
struct Entry {
    record: IdentityRecord,
    /// With the configurations that it shows (`twin.configurations`).
    twin: Twin,
    session: Option<Subscriptions>,
    /// Waiting messages, oldest first.
    queue: Vec<queue::Queued>,
}

struct State {
    identities: BTreeMap<Identity, Entry>,
    last_sequence_number: u64,
    /// Oldest first.
    feedback: Vec<feedback::Queued>,
    last_feedback_number: u64,
    files: file::Files,
    policies: BTreeMap<String, Policy>,
    authorities: BTreeMap<String, CertificateAuthority>,
    values: BTreeMap<String, String>,
    consumer_groups: BTreeSet<String>,
    checkpoints: BTreeMap<(String, u16), u64>,
    dead_letters: dead_letters::DeadLetters,
    outbox: outbox::Outbox,
    provisioning: enrollment::Provisioning,
    configurations: configuration::Configurations,
    /// Jobs, and what came of them at each target (`devices.jobs`).
    jobs: job::Jobs,
    nonces: Nonces,
    unavailable: bool,
}

/// Random parts of lock tokens.
struct Nonces {
    random: RandomState,
    count: u64,
}

impl Nonces {
    fn next(&mut self) -> u64 {
        self.count += 1;
        self.random.hash_one(self.count)
    }
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        MemoryStore {
            state: Arc::new(Mutex::new(State {
                identities: BTreeMap::new(),
                last_sequence_number: 0,
                feedback: Vec::new(),
                last_feedback_number: 0,
                files: file::Files::default(),
                policies: BTreeMap::new(),
                authorities: BTreeMap::new(),
                values: BTreeMap::new(),
                consumer_groups: BTreeSet::from([DEFAULT_CONSUMER_GROUP.to_owned()]),
                checkpoints: BTreeMap::new(),
                dead_letters: dead_letters::DeadLetters::new(),
                outbox: outbox::Outbox::default(),
                provisioning: enrollment::Provisioning::default(),
                configurations: configuration::Configurations::new(),
                jobs: job::Jobs::default(),
                nonces: Nonces {
                    random: RandomState::new(),
                    count: 0,
                },
                unavailable: false,
            })),
        }
    }

    /// Where session epochs start; as the embedded store counts its openings, with the first one.
    #[must_use]
    pub fn next_epoch_base(&self) -> u64 {
        1 << 32
    }

    /// Lets every call fail with [`StoreError::Unavailable`], or work again: for tests of what the engine does then.
    pub fn set_unavailable(&self, unavailable: bool) {
        self.state.lock().unavailable = unavailable;
    }

    /// Runs `operation` on the state when the future is first polled.
    fn run<'a, T: Send + 'a>(
        &'a self,
        operation: impl FnOnce(&mut State) -> StoreResult<T> + Send + 'a,
    ) -> BoxFuture<'a, StoreResult<T>> {
        Box::pin(async move {
            let mut state = self.state.lock();
            if state.unavailable {
                return Err(StoreError::Unavailable("switched off by the test".into()));
            }
            operation(&mut state)
        })
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}
