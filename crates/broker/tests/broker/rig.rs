use std::future::poll_fn;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use holdfast_broker::queue::{
    AppendError, Entry, Listener, Loss, QueueConfig, QueueId, QueueKey, QueueStore,
};
use holdfast_model::event::{AuthMethod, EndpointSet, EventSource, Origin, Records};
use holdfast_model::{Identity, Timestamp};
use holdfast_ports::clock::ManualClock;
use holdfast_store::log::disk::{Disk, DiskFile};
use holdfast_store::log::sim::SimDisk;
use parking_lot::{Mutex, RwLock};

/// Longest wait for anything.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread; panics when it takes too long.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let waker: Waker = Arc::new(Unpark(std::thread::current())).into();
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    let until = Instant::now() + DEADLINE;
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        assert!(Instant::now() < until, "nothing happened in time");
        std::thread::park_timeout(Duration::from_millis(100));
    }
}

/// Waits until a condition holds.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < until, "{what} did not come about in time");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) lost: Mutex<Vec<(QueueKey, u64, Loss)>>,
    pub(crate) set_aside: Mutex<u32>,
    pub(crate) stalls: Mutex<u32>,
}

impl Listener for Seen {
    fn readable(&self, _: &[QueueId]) {}

    fn lost(&self, key: &QueueKey, count: u64, why: Loss) {
        self.lost.lock().push((key.clone(), count, why));
    }

    fn set_aside(&self) {
        *self.set_aside.lock() += 1;
    }

    fn stalled(&self, error: Option<&str>) {
        *self.stalls.lock() += u32::from(error.is_some());
    }
}

pub(crate) fn dir() -> PathBuf {
    PathBuf::from("/queues")
}

/// Small segments, quick chores.
pub(crate) fn config() -> QueueConfig {
    QueueConfig {
        segment_bytes: 2 << 10,
        commit_interval: Duration::ZERO,
        empty_after: Duration::ZERO,
        chores_every: Duration::from_millis(1),
        retry_after: Duration::from_millis(1),
        // One after the other, so that a seed means the same each time.
        sync_threads: 1,
        ..QueueConfig::new(dir())
    }
}

pub(crate) fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::at(Timestamp::from_seconds(1_700_000_000)))
}

pub(crate) fn open(disk: &SimDisk, config: QueueConfig) -> (QueueStore, Arc<Seen>) {
    open_at(disk, config, clock())
}

pub(crate) fn open_at(
    disk: &SimDisk,
    config: QueueConfig,
    clock: Arc<ManualClock>,
) -> (QueueStore, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let store = QueueStore::open(config, Arc::new(disk.clone()), clock, seen.clone()).expect("opens");
    (store, seen)
}

/// A disk as one process sees it: nothing of a dead process reaches it any more.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    disk: SimDisk,
    dead: Arc<RwLock<bool>>,
}

impl Process {
    pub(crate) fn start(disk: &SimDisk) -> Self {
        Process {
            disk: disk.clone(),
            dead: Arc::default(),
        }
    }

    /// From now on it does nothing; `end` is what happens to the disk at that moment.
    pub(crate) fn die(&self, end: impl FnOnce(&SimDisk)) {
        let mut dead = self.dead.write();
        *dead = true;
        end(&self.disk);
    }

    pub(crate) fn open(&self, config: QueueConfig) -> (QueueStore, Arc<Seen>) {
        let seen = Arc::new(Seen::default());
        let store = QueueStore::open(config, Arc::new(self.clone()), clock(), seen.clone()).expect("opens");
        (store, seen)
    }

    fn run<T>(&self, operation: impl FnOnce(&SimDisk) -> io::Result<T>) -> io::Result<T> {
        let dead = self.dead.read();
        if *dead {
            return Err(io::Error::other("the process is dead"));
        }
        operation(&self.disk)
    }
}

impl Disk for Process {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.run(|disk| disk.create_dir(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.run(|disk| disk.list(dir))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.run(|disk| disk.create(path))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn DiskFile>> {
        self.run(|disk| disk.open(path, write))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.run(|disk| disk.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.run(|disk| disk.remove(path))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.run(|disk| disk.sync_dir(dir))
    }
}

pub(crate) fn key(name: &str) -> QueueKey {
    QueueKey {
        name: name.to_owned(),
        priority: 0,
    }
}

/// A message that is told by its number.
pub(crate) fn message(number: u64, padding: usize) -> (Vec<u8>, Records) {
    let mut origin = Vec::new();
    Origin {
        source: EventSource::Telemetry,
        identity: Identity::module("edge", "sender").expect("an id"),
        generation_id: 1,
        auth: AuthMethod::IdentityKey,
    }
    .encode(EndpointSet::EVENTS, &mut origin);
    let mut records = Records::new();
    let mut body = number.to_string().into_bytes();
    body.resize(body.len() + padding, b' ');
    let _ = records.record().finish(&body);
    (origin, records)
}

pub(crate) fn append(
    store: &QueueStore,
    queues: &[QueueId],
    number: u64,
    padding: usize,
) -> Result<u64, AppendError> {
    append_until(store, queues, number, padding, None)
}

pub(crate) fn append_until(
    store: &QueueStore,
    queues: &[QueueId],
    number: u64,
    padding: usize,
    expires: Option<u64>,
) -> Result<u64, AppendError> {
    let (origin, records) = message(number, padding);
    let entries: Vec<Entry<'_>> = queues
        .iter()
        .map(|queue| Entry {
            queue: *queue,
            expires,
            origin: &origin,
            records: records.as_bytes(),
            count: 1,
        })
        .collect();
    store.append(&entries)
}

pub(crate) fn durable(store: &QueueStore, accepted: u64) -> Result<(), String> {
    block_on(poll_fn(|context| store.poll_durable(accepted, context)))
}

/// Everything that a queue has from a place on: sequence numbers and numbers of messages.
pub(crate) fn read_all(store: &QueueStore, queue: QueueId, from: u64) -> Vec<(u64, u64)> {
    let mut all = Vec::new();
    let mut next = from;
    loop {
        // As callers do: what needs no waiting first.
        let blocks = match store.read_cached(queue, next, 700).expect("readable") {
            Some(blocks) => blocks,
            None => store.read(queue, next, 700).expect("readable"),
        };
        if blocks.is_empty() {
            return all;
        }
        for stored in blocks {
            for event in stored.block.events() {
                let event = event.expect("sound");
                if event.sequence_number < next {
                    continue;
                }
                let text = std::str::from_utf8(event.body).expect("text");
                all.push((event.sequence_number, text.trim().parse().expect("a number")));
                next = event.sequence_number + 1;
            }
        }
    }
}

/// Numbers of messages only.
pub(crate) fn numbers(store: &QueueStore, queue: QueueId) -> Vec<u64> {
    let from = store.info(queue).consumed;
    read_all(store, queue, from)
        .into_iter()
        .map(|(_, number)| number)
        .collect()
}
