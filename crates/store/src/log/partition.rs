//! One partition: what appenders, readers and the writer thread share.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll, Waker};

use holdfast_model::Timestamp;
use holdfast_model::event::{Origin, Run};
use holdfast_observe::Event;
use holdfast_ports::event_log::{AppendTicket, LogError, PartitionInfo};
use parking_lot::{Condvar, Mutex, RwLock};

use super::config::LogConfig;
use super::disk::Disk;
use super::events::{LogFailed, Metrics};
use super::format::{FRAME_PAYLOAD_BYTES_MAX, FrameHeader, Mark};
use super::read::Cursors;
use super::recover::Opened;
use super::remove::Remover;
use super::scan::note_mark;
use super::segment::Segment;
use super::wait::WaitList;

/// Bytes waiting at which a writer that gathers stops doing so: the sync is well paid for.
pub(super) const GATHER_BYTES_MAX: usize = 256 << 10;

/// What all partitions of a log share.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) config: LogConfig,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) salt: u32,
    pub(super) metrics: Metrics,
    pub(super) remover: Remover,
    failed: AtomicBool,
    failure: OnceLock<String>,
    partitions: OnceLock<Vec<Weak<Partition>>>,
}

impl Common {
    pub(super) fn new(config: LogConfig, disk: Arc<dyn Disk>, salt: u32, metrics: Metrics) -> Self {
        let remover = Remover::new(Arc::clone(&disk), metrics.clone(), config.segment_bytes);
        Common {
            remover,
            config,
            disk,
            salt,
            metrics,
            failed: AtomicBool::new(false),
            failure: OnceLock::new(),
            partitions: OnceLock::new(),
        }
    }

    /// Why the log takes nothing more, if so.
    pub(super) fn failure(&self) -> Option<LogError> {
        if !self.failed.load(Ordering::Acquire) {
            return None;
        }
        let reason = self.failure.get().map_or("closed", String::as_str);
        Some(LogError::Failed(reason.to_owned()))
    }

    /// Ends the log's taking of events, in all partitions; the first reason stays.
    pub(super) fn fail(&self, reason: String) {
        // Two partitions may fail at once: whoever comes second waits here until the reason is there.
        let reason = self.failure.get_or_init(|| reason);
        if !self.failed.swap(true, Ordering::SeqCst) {
            LogFailed { reason }.emit(&self.metrics);
        }
        for partition in self.partitions.get().into_iter().flatten() {
            if let Some(partition) = partition.upgrade() {
                partition.wake_all();
            }
        }
    }

    /// Makes the partitions known, so that a failure of one reaches all.
    pub(super) fn set_partitions(&self, partitions: &[Arc<Partition>]) {
        // Called once, when the log is opened.
        let _ = self
            .partitions
            .set(partitions.iter().map(Arc::downgrade).collect());
    }
}

/// A partition.
#[derive(Debug)]
pub(super) struct Partition {
    pub(super) index: u16,
    pub(super) common: Arc<Common>,
    pub(super) pending: Mutex<Pending>,
    /// The writer waits here, with `pending`.
    pub(super) work: Condvar,
    /// Bytes the writer has taken and not yet made durable.
    pub(super) in_flight: AtomicUsize,
    /// Sequence number after the last durable event.
    pub(super) durable: AtomicU64,
    pub(super) last_enqueued: AtomicI64,
    /// Oldest first; the last one is active. Never empty.
    pub(super) segments: RwLock<Vec<Arc<Segment>>>,
    pub(super) cursors: Cursors,
    /// Closed segments whose index is in memory, oldest use first.
    pub(super) indexed: Mutex<VecDeque<Arc<Segment>>>,
    appenders: WaitList,
    readers: WaitList,
}

/// What was appended and not yet taken by the writer.
#[derive(Debug)]
pub(super) struct Pending {
    /// Frames, ready to be written.
    pub(super) buffer: Vec<u8>,
    /// Index entries of `buffer`, with offsets in it.
    pub(super) marks: Vec<Mark>,
    /// Number of frames in `buffer`.
    pub(super) blocks: u32,
    /// Every event before this one will have been synced when `buffer` is written.
    pub(super) durable_before: u64,
    /// Sequence number the next event gets.
    pub(super) next: u64,
    /// Enqueued time of the newest event.
    pub(super) enqueued: i64,
    pub(super) writer: WriterState,
    pub(super) closing: bool,
    /// Retention wants the active segment closed.
    pub(super) roll: bool,
}

/// What the writer thread is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum WriterState {
    /// Nothing to do: each append wakes it.
    Idle,
    /// Waiting for more to come: only much data wakes it.
    Gathering,
    /// At work: looks at `pending` again by itself.
    Busy,
}

thread_local! {
    /// Reused, so that an append allocates nothing.
    static ENCODED: RefCell<Encoded> = const { RefCell::new(Encoded::new()) };
}

/// What is made of the runs of an append before the lock is taken: encoded origins, and the long checksums. Only the
/// short one of the frame header is left for inside.
struct Encoded {
    bytes: Vec<u8>,
    /// End of each block's origin in `bytes`, and the checksum of its payload.
    origins: Vec<(usize, u32)>,
    payload_bytes: usize,
}

impl Encoded {
    const fn new() -> Self {
        Encoded {
            bytes: Vec::new(),
            origins: Vec::new(),
            payload_bytes: 0,
        }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.origins.clear();
        self.payload_bytes = 0;
    }

    fn add(&mut self, origin: &Origin, run: &Run<'_>) -> Result<(), LogError> {
        debug_assert!(run.count > 0, "a run has at least one record");
        let start = self.bytes.len();
        origin.encode(run.endpoints, &mut self.bytes);
        let origin = &self.bytes[start..];
        let payload_bytes = origin.len() + run.bytes.len();
        if payload_bytes > FRAME_PAYLOAD_BYTES_MAX {
            return Err(LogError::Failed(format!(
                "a block of {payload_bytes} bytes is larger than {FRAME_PAYLOAD_BYTES_MAX}"
            )));
        }
        let crc = crc32c::crc32c_append(crc32c::crc32c(origin), run.bytes);
        self.origins.push((self.bytes.len(), crc));
        self.payload_bytes += payload_bytes;
        Ok(())
    }

    /// Encoded origin and checksum of each block.
    fn blocks(&self) -> impl Iterator<Item = (&[u8], u32)> {
        let mut start = 0;
        self.origins.iter().map(move |(end, crc)| {
            let origin = &self.bytes[start..*end];
            start = *end;
            (origin, *crc)
        })
    }
}

impl Partition {
    pub(super) fn new(index: u16, common: Arc<Common>, segments: Vec<Arc<Segment>>, opened: &Opened) -> Self {
        let (next, enqueued) = (opened.next, opened.enqueued);
        Partition {
            index,
            common,
            pending: Mutex::new(Pending {
                buffer: Vec::new(),
                marks: Vec::new(),
                blocks: 0,
                durable_before: next,
                next,
                enqueued,
                writer: WriterState::Busy,
                closing: false,
                roll: false,
            }),
            work: Condvar::new(),
            in_flight: AtomicUsize::new(0),
            durable: AtomicU64::new(opened.durable),
            last_enqueued: AtomicI64::new(enqueued),
            segments: RwLock::new(segments),
            cursors: Cursors::default(),
            indexed: Mutex::default(),
            appenders: WaitList::new(),
            readers: WaitList::new(),
        }
    }

    pub(super) fn append_runs(
        &self,
        origin: &Origin,
        runs: &[Run<'_>],
        now: Timestamp,
    ) -> Result<AppendTicket, LogError> {
        ENCODED.with_borrow_mut(|encoded| {
            encoded.clear();
            encoded.origins.reserve(runs.len());
            for run in runs {
                encoded.add(origin, run)?;
            }
            self.append_encoded(encoded, runs, now)
        })
    }

    fn append_encoded(
        &self,
        encoded: &Encoded,
        runs: &[Run<'_>],
        now: Timestamp,
    ) -> Result<AppendTicket, LogError> {
        let mut pending = self.pending.lock();
        if let Some(failure) = self.common.failure() {
            return Err(failure);
        }
        if pending.closing {
            return Err(LogError::Failed("it is closed".to_owned()));
        }
        let waiting = pending.buffer.len() + self.in_flight.load(Ordering::Relaxed);
        if waiting > 0 && waiting + encoded.payload_bytes > self.common.config.pending_bytes_max {
            self.common.metrics.appends_refused.inc();
            return Err(LogError::Busy);
        }
        let blocks = runs.iter().zip(encoded.blocks());
        for (run, (origin, crc)) in blocks.filter(|(run, _)| run.count > 0) {
            pending.push(origin, run, now, crc, self.common.salt);
        }
        let end = pending.next;
        let wake = match pending.writer {
            WriterState::Idle => true,
            WriterState::Gathering => pending.buffer.len() >= GATHER_BYTES_MAX,
            WriterState::Busy => false,
        };
        if wake {
            pending.writer = WriterState::Busy;
        }
        drop(pending);
        if wake {
            self.work.notify_one();
        }
        Ok(AppendTicket {
            partition: self.index,
            end,
        })
    }

    pub(super) fn poll_durable(&self, end: u64, context: &mut Context<'_>) -> Poll<Result<(), LogError>> {
        self.poll(&self.appenders, end, context)
    }

    pub(super) fn poll_readable(&self, from: u64, context: &mut Context<'_>) -> Poll<Result<(), LogError>> {
        self.poll(&self.readers, from.saturating_add(1), context)
    }

    fn poll(&self, list: &WaitList, end: u64, context: &mut Context<'_>) -> Poll<Result<(), LogError>> {
        let reached = || self.durable.load(Ordering::SeqCst) >= end;
        let over = || reached() || self.common.failed.load(Ordering::SeqCst);
        if !reached() && !list.register(end, context.waker(), over) {
            return Poll::Pending;
        }
        if reached() {
            return Poll::Ready(Ok(()));
        }
        let closed = || LogError::Failed("it is closed".to_owned());
        Poll::Ready(Err(self.common.failure().unwrap_or_else(closed)))
    }

    /// Publishes `end` as durable and wakes who waited for it.
    pub(super) fn publish(&self, end: u64, enqueued: i64, woken: &mut Vec<Waker>) {
        self.last_enqueued.store(enqueued, Ordering::Release);
        self.durable.store(end, Ordering::SeqCst);
        self.appenders.take(end, woken);
        self.readers.take(end, woken);
        woken.drain(..).for_each(Waker::wake);
    }

    /// Wakes everybody, the writer too: the log has failed.
    fn wake_all(&self) {
        let mut woken = Vec::new();
        self.appenders.take(u64::MAX, &mut woken);
        self.readers.take(u64::MAX, &mut woken);
        woken.drain(..).for_each(Waker::wake);
        let mut pending = self.pending.lock();
        pending.writer = WriterState::Busy;
        drop(pending);
        self.work.notify_one();
    }

    pub(super) fn info(&self) -> PartitionInfo {
        let next = self.durable.load(Ordering::Acquire);
        PartitionInfo {
            first: self.first().min(next),
            next,
            last_enqueued_at: Timestamp::from_micros(self.last_enqueued.load(Ordering::Acquire)),
        }
    }

    /// Sequence number of the oldest event kept.
    pub(super) fn first(&self) -> u64 {
        self.segments.read().first().map_or(0, |segment| segment.first)
    }
}

impl Pending {
    fn push(&mut self, origin: &[u8], run: &Run<'_>, now: Timestamp, payload_crc: u32, salt: u32) {
        self.enqueued = self.enqueued.max(now.as_micros());
        let header = FrameHeader {
            payload_bytes: (origin.len() + run.bytes.len()) as u32,
            count: run.count,
            first: self.next,
            enqueued: self.enqueued,
            durable_before: self.durable_before,
            payload_crc,
        };
        note_mark(&mut self.marks, &header, self.buffer.len() as u64);
        self.buffer.extend_from_slice(&header.encode(salt));
        self.buffer.extend_from_slice(origin);
        self.buffer.extend_from_slice(run.bytes);
        self.blocks += 1;
        self.next = header.end();
    }
}
