//! Goal: random sequences of operations have the same observable results on the SQLite store and on the in-memory
//! double, restarts of the SQLite store included.
//!
//! Method: a few ids, names and round times, so that operations meet each other, also at the very instant at which
//! something ends; every result is printed and compared. Lock tokens are named by the place at which they were handed
//! out, since their nonces are random. A restart voids locks and connection states; the model is told so through the
//! ports. The seed is printed when a case fails; `HOLDFAST_SEED` sets it, `HOLDFAST_MODEL_CASES` sets the number of
//! sequences.

use std::fmt::Debug;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use holdfast_model::c2d::{AckMode, C2dDelivery, FeedbackBatch, LockToken, Settlement};
use holdfast_model::registry::{IdentityRecord, Status};
use holdfast_model::subscription::Subscriptions;
use holdfast_model::twin::Twin;
use holdfast_observe::Registry;
use holdfast_ports::memory::MemoryStore;
use holdfast_ports::registry::ConnectionUpdate;
use holdfast_ports::suite::StateStore;
use holdfast_ports::suite::fixtures::{at, count_up, id, message, record, refusal, set_reason};
use holdfast_ports::{StoreResult, queue::C2dLimits};
use holdfast_store::sqlite::{Metrics, SqliteStore};
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, RngSeed, TestRunner};

const KEYS: &[&str] = &["a", "A", "b", "a/m", "a/$edgeHub", "b/m", "B/x"];
const DEVICES: &[&str] = &["a", "A", "b"];
const NAMES: &[&str] = &["$Default", "g1", "g2"];
const LIMITS: C2dLimits = C2dLimits {
    depth_max: 4,
    delivery_count_max: 2,
};

#[derive(Clone, Debug)]
enum Step {
    Create(Vec<usize>, bool),
    Get(usize),
    Mutate(usize, Option<bool>),
    Delete(usize, Option<u64>),
    List(Option<usize>, usize),
    Modules(usize),
    Counts,
    Connections(Vec<(usize, bool)>),
    Twin(usize),
    MutateTwin(usize, bool),
    Enqueue(usize, usize, i64),
    Lock(usize, usize, u64),
    /// Settles the token handed out at this place, counted from the latest.
    Settle(usize, usize),
    Release(usize, u64),
    Purge(usize),
    Depth(usize),
    Expire,
    TakeFeedback(i64),
    SettleFeedback(usize, bool),
    SaveSession(usize, u16),
    Session(usize),
    DeleteSession(usize),
    CreateGroup(usize),
    DeleteGroup(usize),
    Groups,
    SaveCheckpoint(usize, u16, u64),
    Checkpoint(usize, u16),
    /// Lets time go by, in seconds.
    Wait(i64),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let key = || 0..KEYS.len();
    let device = || 0..DEVICES.len();
    let name = || 0..NAMES.len();
    let registry = prop_oneof![
        (prop::collection::vec(key(), 1..3), any::<bool>()).prop_map(|(keys, edge)| Step::Create(keys, edge)),
        key().prop_map(Step::Get),
        (key(), any::<Option<bool>>()).prop_map(|(key, how)| Step::Mutate(key, how)),
        (key(), prop::option::of(1..3u64)).prop_map(|(key, version)| Step::Delete(key, version)),
        (prop::option::of(key()), 0..4usize).prop_map(|(after, limit)| Step::List(after, limit)),
        key().prop_map(Step::Modules),
        Just(Step::Counts),
        prop::collection::vec((key(), any::<bool>()), 0..4).prop_map(Step::Connections),
        key().prop_map(Step::Twin),
        (key(), any::<bool>()).prop_map(|(key, refuse)| Step::MutateTwin(key, refuse)),
    ];
    let queue = prop_oneof![
        4 => (device(), 0..4usize, 0..20i64).prop_map(|(d, ack, life)| Step::Enqueue(d, ack, life * 10)),
        4 => (device(), 0..4usize, 0..3u64).prop_map(|(d, max, owner)| Step::Lock(d, max, owner)),
        4 => (0..6usize, 0..4usize).prop_map(|(place, how)| Step::Settle(place, how)),
        1 => (device(), 0..3u64).prop_map(|(d, owner)| Step::Release(d, owner)),
        1 => device().prop_map(Step::Purge),
        1 => device().prop_map(Step::Depth),
        1 => Just(Step::Expire),
        1 => (0..10i64).prop_map(|age| Step::TakeFeedback(age * 10)),
        1 => (0..3usize, any::<bool>()).prop_map(|(place, complete)| Step::SettleFeedback(place, complete)),
    ];
    let settings = prop_oneof![
        (key(), any::<u16>()).prop_map(|(key, bits)| Step::SaveSession(key, bits)),
        key().prop_map(Step::Session),
        key().prop_map(Step::DeleteSession),
        name().prop_map(Step::CreateGroup),
        name().prop_map(Step::DeleteGroup),
        Just(Step::Groups),
        (name(), 0..2u16, any::<u64>()).prop_map(|(n, p, next)| Step::SaveCheckpoint(n, p, next)),
        (name(), 0..2u16).prop_map(|(n, p)| Step::Checkpoint(n, p)),
    ];
    prop_oneof![
        10 => registry,
        14 => queue,
        4 => settings,
        3 => (0..7i64).prop_map(|wait| Step::Wait(wait * 10)),
        1 => Just(Step::Restart),
    ]
}

/// What one store has handed out, and how its clock stands.
#[derive(Default)]
struct Driver {
    now: i64,
    locks: Vec<(usize, LockToken)>,
    batches: Vec<LockToken>,
}

fn show<T: Debug>(result: StoreResult<T>) -> String {
    format!("{result:?}")
}

impl Driver {
    async fn run<S: StateStore>(&mut self, store: &S, step: &Step) -> String {
        match step {
            Step::Wait(seconds) => {
                self.now += seconds;
                String::new()
            }
            Step::Restart => String::new(),
            Step::Create(..)
            | Step::Get(_)
            | Step::Mutate(..)
            | Step::Delete(..)
            | Step::List(..)
            | Step::Modules(_)
            | Step::Counts
            | Step::Connections(_)
            | Step::Twin(_)
            | Step::MutateTwin(..) => self.registry(store, step).await,
            Step::SaveSession(..)
            | Step::Session(_)
            | Step::DeleteSession(_)
            | Step::CreateGroup(_)
            | Step::DeleteGroup(_)
            | Step::Groups
            | Step::SaveCheckpoint(..)
            | Step::Checkpoint(..) => settings(store, step).await,
            _ => self.queue(store, step).await,
        }
    }

    async fn registry<S: StateStore>(&self, store: &S, step: &Step) -> String {
        let now = at(self.now);
        match step {
            Step::Create(keys, edge) => {
                let entry = |key: &usize| {
                    let record = IdentityRecord {
                        iot_edge: *edge,
                        ..record(&id(KEYS[*key]))
                    };
                    (record, Twin::new(now))
                };
                show(store.create(keys.iter().map(entry).collect()).await)
            }
            Step::Get(key) => show(store.get(&id(KEYS[*key])).await),
            Step::Mutate(key, None) => show(store.mutate(&id(KEYS[*key]), set_reason("why")).await),
            Step::Mutate(key, Some(enable)) => {
                let status = if *enable {
                    Status::Enabled
                } else {
                    Status::Disabled
                };
                let mutation = Arc::new(move |record: &mut IdentityRecord| {
                    record.status = status;
                    if record.version > 5 {
                        Err(refusal())
                    } else {
                        Ok(())
                    }
                });
                show(store.mutate(&id(KEYS[*key]), mutation).await)
            }
            Step::Delete(key, version) => show(store.delete(&id(KEYS[*key]), *version).await),
            Step::List(after, limit) => show(store.list_devices(after.map(|key| KEYS[key]), *limit).await),
            Step::Modules(key) => show(store.list_modules(&id(KEYS[*key])).await),
            Step::Counts => show(store.statistics().await),
            Step::Connections(updates) => {
                let update = |(key, connected): &(usize, bool)| ConnectionUpdate {
                    identity: id(KEYS[*key]),
                    connected: *connected,
                    updated_at: now,
                    last_activity_at: now,
                };
                show(store.save_connections(updates.iter().map(update).collect()).await)
            }
            Step::Twin(key) => show(store.twin(&id(KEYS[*key])).await),
            Step::MutateTwin(key, false) => show(store.mutate_twin(&id(KEYS[*key]), count_up()).await),
            Step::MutateTwin(key, true) => {
                let refuse = Arc::new(|twin: &mut Twin| {
                    twin.version += 1;
                    Err(refusal())
                });
                show(store.mutate_twin(&id(KEYS[*key]), refuse).await)
            }
            other => panic!("{other:?} is not of the registry"),
        }
    }

    async fn queue<S: StateStore>(&mut self, store: &S, step: &Step) -> String {
        let now = at(self.now);
        match step {
            Step::Enqueue(device, ack, life) => {
                let mut message = message(DEVICES[*device], &format!("sent at {}", self.now));
                message.ack = [AckMode::None, AckMode::Positive, AckMode::Negative, AckMode::Full][*ack];
                message.enqueued_at = now;
                message.expires_at = at(self.now + life);
                show(store.enqueue(message, LIMITS).await)
            }
            Step::Lock(device, max, owner) => {
                let result = store
                    .lock_next(&id(DEVICES[*device]), *max, *owner, now, at(self.now + 60))
                    .await;
                show(result.map(|deliveries| self.note(*device, deliveries)))
            }
            Step::Settle(place, how) => {
                let Some((device, lock)) = self.locks.iter().rev().nth(*place).copied() else {
                    return String::new();
                };
                let settlement = [
                    Settlement::Complete,
                    Settlement::Abandon,
                    Settlement::Reject,
                    Settlement::Release,
                ][*how];
                show(
                    store
                        .settle(&id(DEVICES[device]), lock, settlement, LIMITS, now)
                        .await,
                )
            }
            Step::Release(device, owner) => show(store.release(&id(DEVICES[*device]), *owner).await),
            Step::Purge(device) => show(store.purge(&id(DEVICES[*device]), now).await),
            Step::Depth(device) => show(store.depth(&id(DEVICES[*device])).await),
            Step::Expire => show(store.expire(now).await),
            Step::TakeFeedback(age) => {
                let result = store
                    .lock_feedback(now, at(self.now + 60), at(self.now - age))
                    .await;
                show(result.map(|batch| batch.map(|batch| self.note_batch(batch))))
            }
            Step::SettleFeedback(place, complete) => match self.batches.iter().rev().nth(*place) {
                Some(lock) => show(store.settle_feedback(*lock, *complete).await),
                None => String::new(),
            },
            other => panic!("{other:?} is not of the queue"),
        }
    }

    /// Keeps the tokens, and leaves of the deliveries what is not random.
    fn note(&mut self, device: usize, deliveries: Vec<C2dDelivery>) -> Vec<String> {
        let describe = |mut delivery: C2dDelivery| {
            self.locks.push((device, delivery.lock));
            delivery.lock.nonce = 0;
            format!("{delivery:?}")
        };
        deliveries.into_iter().map(describe).collect()
    }

    fn note_batch(&mut self, batch: FeedbackBatch) -> String {
        self.batches.push(batch.lock);
        format!("{:?}", batch.records)
    }
}

async fn settings<S: StateStore>(store: &S, step: &Step) -> String {
    match step {
        Step::SaveSession(key, bits) => {
            let subscriptions = Subscriptions::from_bits(*bits);
            show(store.save_session(&id(KEYS[*key]), subscriptions).await)
        }
        Step::Session(key) => show(store.session(&id(KEYS[*key])).await),
        Step::DeleteSession(key) => show(store.delete_session(&id(KEYS[*key])).await),
        Step::CreateGroup(name) => show(store.create_consumer_group(NAMES[*name]).await),
        Step::DeleteGroup(name) => show(store.delete_consumer_group(NAMES[*name]).await),
        Step::Groups => show(store.consumer_groups().await),
        Step::SaveCheckpoint(name, partition, next) => {
            show(store.save_checkpoint(NAMES[*name], *partition, *next).await)
        }
        Step::Checkpoint(name, partition) => show(store.checkpoint(NAMES[*name], *partition).await),
        other => panic!("{other:?} is not of the settings"),
    }
}

/// Does to the model what a restart does to the embedded store: locks end, connections are gone, times stay.
async fn restart_model(model: &MemoryStore, driver: &Driver) {
    use holdfast_ports::queue::C2dQueue as _;
    use holdfast_ports::registry::RegistryStore as _;
    for device in DEVICES {
        for owner in 0..3 {
            model.release(&id(device), owner).await.expect("the model works");
        }
    }
    for lock in &driver.batches {
        // Those already settled are unknown.
        let _ = model.settle_feedback(*lock, false).await;
    }
    let mut updates = Vec::new();
    for key in KEYS {
        if let Some(record) = model.get(&id(key)).await.expect("the model works") {
            updates.push(ConnectionUpdate {
                identity: record.identity,
                connected: false,
                updated_at: record.connection_updated_at,
                last_activity_at: record.last_activity_at,
            });
        }
    }
    model.save_connections(updates).await.expect("the model works");
}

async fn compare(steps: &[Step]) -> Result<(), TestCaseError> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("state.db");
    let metrics = Metrics::register(&mut Registry::new());
    let open = || SqliteStore::open(&path, metrics.clone()).expect("it opens");
    let mut real = open();
    let model = MemoryStore::new();
    let (mut real_driver, mut model_driver) = (Driver::default(), Driver::default());
    // Most cases should have something to work on from the start.
    let begin = [Step::Create(vec![0, 3], false), Step::Create(vec![2], true)];
    for (number, step) in begin.iter().chain(steps).enumerate() {
        let expected = model_driver.run(&model, step).await;
        let found = real_driver.run(&real, step).await;
        prop_assert_eq!(found, expected, "step {} of the case: {:?}", number, step);
        if matches!(step, Step::Restart) {
            drop(real);
            real = open();
            restart_model(&model, &model_driver).await;
        }
    }
    Ok(())
}

#[test]
fn sqlite_behaves_as_the_memory_store() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let cases = number("HOLDFAST_MODEL_CASES").unwrap_or(60) as u32;
    let seed = number("HOLDFAST_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let config = Config {
        cases,
        max_shrink_iters: 2_000,
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        rng_seed: RngSeed::Fixed(seed),
        ..Config::default()
    };
    let mut runner = TestRunner::new(config);
    if let Err(failure) = runner.run(&prop::collection::vec(step(), 1..120), |steps| {
        runtime.block_on(compare(&steps))
    }) {
        panic!("{failure}\nrun it again with HOLDFAST_SEED={seed}");
    }
}
