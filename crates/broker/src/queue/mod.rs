//! Store and forward: queues of messages on the disk, one per endpoint and priority (ADR 0074).
//!
//! # What is promised
//!
//! - [`QueueStore::poll_durable`] is ready for an append when all its messages are synced in all queues they go to, and so
//!   is everything that was appended before it.
//! - A queue is read in the order of appending, from durable messages only. A message is given up when
//!   [`QueueStore::consumed`] has passed it; what was not passed is read again after a restart. After a crash up to a
//!   second of passed messages may be read again.
//! - A power cut at any byte, and a kill at any instant, lose nothing of that. Damage to a segment costs the messages it hit
//!   and no others.
//! - All bytes are bounded ([`QueueConfig::bytes_max`]), those in memory too ([`QueueConfig::pending_bytes_max`]). Messages
//!   end at an age ([`age`]) that was fixed when they were appended.
//! - Space is given back: a segment is deleted when it is consumed, and a queue that is empty for a second has no file.
//!
//! # How
//!
//! A directory of segments, each a file of about [`QueueConfig::segment_bytes`] that belongs to one queue and names it in
//! its header ([`format`]). An append copies frames behind what is pending of each queue, under one lock, and gets the next
//! number of the accept sequence. One thread takes all that is pending, writes each queue's part with one call, syncs
//! the files touched side by side, and publishes the accept number as durable. While many append it lets
//! [`QueueConfig::commit_interval`] pass between two syncs.
//!
//! A write that finds the disk full is tried again until there is room, and nobody is told that anything is durable
//! meanwhile. After any other failed write or sync the segment is left behind and the same frames go into a new one: what
//! the kernel has dropped of the old one is not trusted. When that fails too, the store takes nothing more.

pub mod age;
mod clean;
mod format;
mod read;
mod recover;
mod state;
mod sync;
mod wait;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use holdfast_model::Timestamp;
use holdfast_model::event::EventBlock;
use holdfast_ports::clock::Clock;
use holdfast_store::log::disk::Disk;
use parking_lot::Mutex;

pub use age::Age;
pub use format::NAME_BYTES_MAX;
pub use read::ReadError;
use state::{Queue, Shared};

/// What happens to a message for which there is no room.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenFull {
    /// It is not taken, and so not acknowledged: its sender waits and sends it again.
    #[default]
    RefuseNew,
    /// The oldest messages of the least important priority are dropped for it.
    DropOldest,
}

/// Settings of a store.
#[derive(Clone, Debug)]
pub struct QueueConfig {
    /// Directory of the segments; made when missing.
    pub dir: PathBuf,
    /// Most bytes of all segments. Default 1 GiB.
    pub bytes_max: u64,
    /// What happens beyond that.
    pub when_full: WhenFull,
    /// Size at which a segment is closed. Default 1 MiB.
    pub segment_bytes: u64,
    /// Most bytes that wait for the disk in memory. Default 1 MiB.
    pub pending_bytes_max: usize,
    /// Least time between two syncs while many append. Default 1 ms.
    pub commit_interval: Duration,
    /// How long a queue is empty before its last file goes. Default 1 s.
    pub empty_after: Duration,
    /// How often consumed segments are deleted and marks written, while there is reason to. Default 500 ms.
    pub chores_every: Duration,
    /// Pause before a failed write is tried again. Default 200 ms.
    pub retry_after: Duration,
    /// Most files synced at the same time; with 1 everything is done in turn, removing what is consumed too. Default 8.
    pub sync_threads: usize,
}

impl QueueConfig {
    /// The defaults, in a directory.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        QueueConfig {
            dir,
            bytes_max: 1 << 30,
            when_full: WhenFull::RefuseNew,
            segment_bytes: 1 << 20,
            pending_bytes_max: 1 << 20,
            commit_interval: Duration::from_millis(1),
            empty_after: Duration::from_secs(1),
            chores_every: Duration::from_millis(500),
            retry_after: Duration::from_millis(200),
            sync_threads: 8,
        }
    }
}

/// Names a queue.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct QueueKey {
    /// Endpoint, at most [`NAME_BYTES_MAX`] bytes.
    pub name: String,
    /// 0 is served first.
    pub priority: u32,
}

/// A queue of an open store.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct QueueId(pub(crate) u32);

impl QueueId {
    fn index(self) -> usize {
        self.0 as usize
    }
}

/// Messages on their way into a queue: a block as [`EventBlock::data`] holds it, in two parts.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Where they go.
    pub queue: QueueId,
    /// When they end; `None` for never.
    pub expires: Option<Age>,
    /// Their encoded origin.
    pub origin: &'a [u8],
    /// Their encoded records.
    pub records: &'a [u8],
    /// How many there are, at least one.
    pub count: u32,
}

/// Messages as they lie in a queue.
#[derive(Clone, Debug)]
pub struct StoredBlock {
    /// The messages; `first_sequence_number` is their place in the queue.
    pub block: EventBlock,
    /// When they end; `None` for never.
    pub expires: Option<Age>,
}

/// State of a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct QueueInfo {
    /// Sequence number of the first message not consumed.
    pub consumed: u64,
    /// Sequence number after the last durable one.
    pub durable: u64,
    /// Bytes on the disk.
    pub bytes: u64,
    /// Age of the oldest segment: at least that of the oldest message.
    pub oldest: Option<Duration>,
}

impl QueueInfo {
    /// Messages that wait.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.durable.saturating_sub(self.consumed)
    }
}

/// Why messages were not taken.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AppendError {
    /// As much waits for the disk as may: try again when this accept number is durable.
    #[error("the disk does not keep up")]
    Busy(u64),
    /// The queues hold as many bytes as they may.
    #[error("the queues hold as many bytes as they may")]
    Full,
    /// Larger than a frame can be.
    #[error("the messages are too large")]
    TooLarge,
    /// The store takes nothing more.
    #[error("the queues cannot be written: {0}")]
    Failed(String),
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}: {error}", path = path.display())]
pub struct OpenError {
    action: &'static str,
    path: PathBuf,
    error: std::io::Error,
}

/// What the store tells, from its own thread; must return at once.
pub trait Listener: Send + Sync + 'static {
    /// These queues have new durable messages.
    fn readable(&self, queues: &[QueueId]);
    /// So many messages were dropped because there was no room, or were lost by damage.
    fn lost(&self, key: &QueueKey, count: u64, why: Loss);
    /// A segment is so damaged that nobody knows what it held; its file is kept under another name.
    fn set_aside(&self);
    /// The disk refuses; `None` when it works again.
    fn stalled(&self, error: Option<&str>);
}

/// Why messages are gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loss {
    /// [`WhenFull::DropOldest`].
    Full,
    /// The disk gave back something else than was written.
    Damage,
}

/// The queues.
pub struct QueueStore {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl QueueStore {
    /// Opens a directory and reads what is in it: headers of all segments, and of the newest of each queue everything.
    ///
    /// # Errors
    /// When the directory cannot be made, listed or read.
    pub fn open(
        config: QueueConfig,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        listener: Arc<dyn Listener>,
    ) -> Result<Self, OpenError> {
        let recovered = recover::recover(&config, disk.as_ref(), clock, listener.as_ref())?;
        let shared = Arc::new(Shared::new(config, disk, listener, recovered));
        let thread = writer::start(Arc::clone(&shared))?;
        Ok(QueueStore {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// The queue of a name and priority; made when it is new.
    ///
    /// # Panics
    /// Never for fewer than 2^32 queues.
    #[must_use]
    pub fn queue(&self, key: &QueueKey) -> QueueId {
        self.shared.inner.lock().queue(key)
    }

    /// All queues that were ever named, or found on the disk.
    #[must_use]
    pub fn queues(&self) -> Vec<(QueueId, QueueKey, QueueInfo)> {
        let now = self.now();
        let inner = self.shared.inner.lock();
        let info =
            |(index, queue): (usize, &Queue)| (QueueId(index as u32), queue.key.clone(), queue.info(now));
        inner.queues.iter().enumerate().map(info).collect()
    }

    /// State of a queue.
    #[must_use]
    pub fn info(&self, queue: QueueId) -> QueueInfo {
        let now = self.now();
        let inner = self.shared.inner.lock();
        inner
            .queues
            .get(queue.index())
            .map_or_else(QueueInfo::default, |queue| queue.info(now))
    }

    /// Bytes of all segments, what waits for the disk included.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let inner = self.shared.inner.lock();
        inner.disk_bytes + inner.pending_bytes as u64
    }

    /// The store's clock.
    #[must_use]
    pub fn now(&self) -> Age {
        self.shared.age.now()
    }

    /// Changes the bound of bytes.
    pub fn set_bytes_max(&self, bytes_max: u64) {
        self.shared.inner.lock().bytes_max = bytes_max;
    }

    /// Appends all entries or none; they are durable when [`QueueStore::poll_durable`] says so of the number returned.
    ///
    /// # Errors
    /// [`AppendError`]; nothing is appended then.
    pub fn append(&self, entries: &[Entry<'_>]) -> Result<u64, AppendError> {
        self.shared.append(entries)
    }

    /// Ready when everything up to the accept number is durable.
    ///
    /// # Errors
    /// When it will never be, with the reason.
    pub fn poll_durable(&self, accepted: u64, context: &mut Context<'_>) -> Poll<Result<(), String>> {
        self.shared.poll_durable(accepted, context)
    }

    /// Accept number before which everything is durable.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.shared.durable.load(Ordering::Acquire)
    }

    /// Everything of the queue before `sequence` is given up. Never goes back.
    pub fn consumed(&self, queue: QueueId, sequence: u64) {
        self.shared.consumed(queue, sequence);
    }

    /// Durable blocks from `from` on, about `bytes_max` of them but at least one if there is any. The first may start
    /// before `from`. Only what is in memory already: `None` when the disk would have to be waited for.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read_cached(
        &self,
        queue: QueueId,
        from: u64,
        bytes_max: usize,
    ) -> Result<Option<Vec<StoredBlock>>, ReadError> {
        read::read(&self.shared, queue, from, bytes_max, read::How::Cached)
    }

    /// As [`QueueStore::read_cached`], waiting for the disk. Empty only when nothing is there.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read(&self, queue: QueueId, from: u64, bytes_max: usize) -> Result<Vec<StoredBlock>, ReadError> {
        Ok(read::read(&self.shared, queue, from, bytes_max, read::How::Waiting)?.unwrap_or_default())
    }

    /// Looks after the clock and the files; to be called every few seconds.
    pub fn tick(&self) {
        self.shared.tick();
    }

    /// Writes what is pending and ends; nothing is taken afterwards.
    pub fn close(&self) {
        self.shared.close();
        if let Some(thread) = self.thread.lock().take() {
            // A panic there has made the store fail already.
            let _ = thread.join();
        }
    }

    /// Wall clock time.
    #[must_use]
    pub fn wall(&self) -> Timestamp {
        self.shared.age.wall()
    }
}

impl Drop for QueueStore {
    fn drop(&mut self) {
        self.close();
    }
}
