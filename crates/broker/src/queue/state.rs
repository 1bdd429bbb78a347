//! What appenders, readers and the writer share.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use holdfast_store::log::disk::{Disk, DiskFile};
use parking_lot::{Condvar, Mutex};

use super::age::{Age, AgeClock};
use super::format::{FRAME_HEADER_BYTES, FrameHeader, NEVER, PAYLOAD_BYTES_MAX, SegmentHeader};
use super::recover::Recovered;
use super::wait::WaitList;
use super::{AppendError, Entry, Listener, Loss, QueueConfig, QueueId, QueueInfo, QueueKey, WhenFull};

/// A pending buffer grown beyond this by a burst is given back.
const BUFFER_KEEP_BYTES: usize = 64 << 10;
/// A wall clock that has moved by more than this against the monotonic one is noted on the disk.
const JUMP_MILLIS: i64 = 60_000;

pub(super) struct Shared {
    pub(super) config: QueueConfig,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) listener: Arc<dyn Listener>,
    pub(super) age: AgeClock,
    pub(super) salt: u32,
    pub(super) inner: Mutex<Inner>,
    /// The writer waits here.
    pub(super) work: Condvar,
    pub(super) durable: AtomicU64,
    pub(super) waiting: WaitList,
}

pub(super) struct Inner {
    pub(super) queues: Vec<Queue>,
    by_key: HashMap<QueueKey, QueueId>,
    /// Queues with something pending.
    pub(super) dirty: Vec<QueueId>,
    /// Accept number of the newest append.
    pub(super) accepted: u64,
    /// Appends since the writer took the last batch.
    pub(super) appends: u32,
    /// Bytes not durable yet, those that the writer has taken included.
    pub(super) pending_bytes: usize,
    pub(super) disk_bytes: u64,
    pub(super) bytes_max: u64,
    pub(super) writer: WriterState,
    /// Something was consumed since the writer last looked after the files.
    pub(super) progress: bool,
    /// The clock is to be noted in all queues that have messages.
    pub(super) note_clock: bool,
    pub(super) closing: bool,
    pub(super) failed: Option<String>,
    pub(super) next_number: u64,
    /// Age and wall clock (milliseconds) at the last look, to see jumps.
    last_clock: (Age, i64),
}

/// What the writer thread is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum WriterState {
    /// Waits without end: everything wakes it.
    Idle,
    /// Waits for a while: an append wakes it.
    Resting,
    /// At work: looks again by itself.
    Busy,
}

pub(super) struct Queue {
    pub(super) key: QueueKey,
    /// Oldest first.
    pub(super) segments: VecDeque<Segment>,
    /// Frames, ready to be written.
    pub(super) pending: Vec<u8>,
    /// Sequence number the next message gets.
    pub(super) next: u64,
    /// Sequence number after the last durable message.
    pub(super) durable: u64,
    pub(super) durable_before: u64,
    pub(super) consumed: u64,
    /// What the disk knows of `consumed`.
    pub(super) marked: u64,
    pub(super) last_append: Instant,
    /// The file last read from.
    pub(super) reading: Option<(u64, Arc<dyn DiskFile>)>,
    pub(super) cursor: Option<Cursor>,
}

/// Where the last read ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor {
    pub(super) number: u64,
    pub(super) sequence: u64,
    pub(super) offset: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) first: u64,
    /// Sequence number after its last durable message.
    pub(super) end: u64,
    pub(super) header_bytes: u64,
    /// Durable bytes, header included.
    pub(super) bytes: u64,
    /// Bytes of it that count against the bound: none once it was dropped for lack of room.
    pub(super) counted: u64,
    pub(super) salt: u32,
    pub(super) born: Age,
}

impl Queue {
    pub(super) fn new(key: QueueKey) -> Self {
        Queue {
            key,
            segments: VecDeque::new(),
            pending: Vec::new(),
            next: 0,
            durable: 0,
            durable_before: 0,
            consumed: 0,
            marked: 0,
            last_append: Instant::now(),
            reading: None,
            cursor: None,
        }
    }

    pub(super) fn info(&self, now: Age) -> QueueInfo {
        let waits = self.durable > self.consumed;
        QueueInfo {
            consumed: self.consumed,
            durable: self.durable,
            bytes: self.segments.iter().map(|segment| segment.bytes).sum(),
            oldest: self
                .segments
                .front()
                .filter(|_| waits)
                .map(|segment| Duration::from_millis(now.saturating_sub(segment.born))),
        }
    }

    /// Whether it holds nothing and is about to get nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.consumed >= self.next
    }

    /// Puts a frame behind what is pending; its checksum is known.
    fn push(&mut self, entry: &Entry<'_>, payload_crc: u32, now: Age, wall: i64) {
        let header = FrameHeader {
            payload_bytes: (entry.origin.len() + entry.records.len()) as u32,
            count: entry.count,
            first: self.next,
            expires: entry.expires.unwrap_or(NEVER),
            age: now,
            wall,
            durable_before: self.durable_before,
            payload_crc,
        };
        self.pending.extend_from_slice(&header.encode());
        self.pending.extend_from_slice(entry.origin);
        self.pending.extend_from_slice(entry.records);
        self.next = header.end();
        self.last_append = Instant::now();
    }

    /// Puts a mark of what is consumed behind what is pending.
    pub(super) fn push_mark(&mut self, shared: &Shared) {
        let header = FrameHeader {
            payload_bytes: 0,
            count: 0,
            first: self.consumed,
            expires: NEVER,
            age: shared.age.now(),
            wall: shared.age.wall().as_micros(),
            durable_before: self.durable_before,
            payload_crc: crc32c::crc32c(b""),
        };
        self.pending.extend_from_slice(&header.encode());
        self.marked = self.consumed;
    }

    /// Gives the buffer back to be used again, unless a burst has made it large.
    pub(super) fn reuse(&mut self, mut buffer: Vec<u8>) {
        if self.pending.capacity() == 0 && buffer.capacity() <= BUFFER_KEEP_BYTES {
            buffer.clear();
            self.pending = buffer;
        }
    }
}

impl Inner {
    pub(super) fn queue(&mut self, key: &QueueKey) -> QueueId {
        if let Some(id) = self.by_key.get(key) {
            return *id;
        }
        let id = QueueId(self.queues.len() as u32);
        self.queues.push(Queue::new(key.clone()));
        self.by_key.insert(key.clone(), id);
        id
    }

    /// Bytes that writing to a queue may need besides the frames: the header of a segment and a mark.
    fn extra_bytes(&self, queue: QueueId) -> usize {
        match self.queues.get(queue.index()) {
            Some(queue) if queue.pending.is_empty() => {
                SegmentHeader::bytes(queue.key.name.len()) + FRAME_HEADER_BYTES
            }
            _ => 0,
        }
    }

    /// Whether the writer has to look after files soon.
    pub(super) fn has_chores(&self) -> bool {
        self.progress
            || self.note_clock
            || self
                .queues
                .iter()
                .any(|queue| !queue.segments.is_empty() && queue.is_empty())
    }
}

impl Shared {
    pub(super) fn new(
        config: QueueConfig,
        disk: Arc<dyn Disk>,
        listener: Arc<dyn Listener>,
        recovered: Recovered,
    ) -> Self {
        let index = |(index, queue): (usize, &Queue)| (queue.key.clone(), QueueId(index as u32));
        let by_key = recovered.queues.iter().enumerate().map(index).collect();
        let segments = recovered.queues.iter().flat_map(|queue| &queue.segments);
        let disk_bytes = segments.map(|segment| segment.counted).sum();
        let last_clock = (recovered.age.now(), recovered.age.wall().as_millis());
        Shared {
            inner: Mutex::new(Inner {
                by_key,
                queues: recovered.queues,
                dirty: Vec::new(),
                accepted: 0,
                appends: 0,
                pending_bytes: 0,
                disk_bytes,
                bytes_max: config.bytes_max,
                writer: WriterState::Busy,
                progress: true,
                note_clock: false,
                closing: false,
                failed: None,
                next_number: recovered.next_number,
                last_clock,
            }),
            config,
            disk,
            listener,
            age: recovered.age,
            salt: recovered.salt,
            work: Condvar::new(),
            durable: AtomicU64::new(0),
            waiting: WaitList::default(),
        }
    }

    pub(super) fn append(&self, entries: &[Entry<'_>]) -> Result<u64, AppendError> {
        if entries.is_empty() {
            return Ok(0);
        }
        // Checksums of payloads before the lock is taken; mostly there is one entry.
        let mut crcs = smallvec::SmallVec::<[u32; 4]>::new();
        let mut bytes = 0;
        for entry in entries {
            let payload = entry.origin.len() + entry.records.len();
            if payload > PAYLOAD_BYTES_MAX || entry.count == 0 {
                return Err(AppendError::TooLarge);
            }
            crcs.push(crc32c::crc32c_append(crc32c::crc32c(entry.origin), entry.records));
            bytes += payload + FRAME_HEADER_BYTES;
        }
        let (now, wall) = (self.age.now(), self.age.wall().as_micros());
        let mut inner = self.inner.lock();
        // A queue that was clean may need a new segment, and takes a mark along.
        let extra: usize = entries.iter().map(|entry| inner.extra_bytes(entry.queue)).sum();
        self.check_room(&mut inner, bytes + extra)?;
        for (entry, crc) in entries.iter().zip(crcs) {
            let extra = inner.extra_bytes(entry.queue);
            let Some(queue) = inner.queues.get_mut(entry.queue.index()) else {
                continue;
            };
            let clean = queue.pending.is_empty();
            queue.push(entry, crc, now, wall);
            if clean {
                bytes += extra;
                inner.dirty.push(entry.queue);
            }
        }
        inner.pending_bytes += bytes;
        inner.accepted += 1;
        inner.appends += 1;
        let accepted = inner.accepted;
        self.wake(inner, |writer| writer != WriterState::Busy);
        Ok(accepted)
    }

    fn check_room(&self, inner: &mut Inner, bytes: usize) -> Result<(), AppendError> {
        if let Some(reason) = &inner.failed {
            return Err(AppendError::Failed(reason.clone()));
        }
        if inner.closing {
            return Err(AppendError::Failed("the edge hub is stopping".to_owned()));
        }
        if inner.pending_bytes > 0 && inner.pending_bytes + bytes > self.config.pending_bytes_max {
            return Err(AppendError::Busy(self.durable.load(Ordering::Acquire) + 1));
        }
        while inner.disk_bytes + (inner.pending_bytes + bytes) as u64 > inner.bytes_max {
            if self.config.when_full == WhenFull::RefuseNew || !self.drop_oldest(inner) {
                return Err(AppendError::Full);
            }
        }
        Ok(())
    }

    /// Gives up the oldest segment of the least important priority that has any. Its file goes when the writer next looks
    /// after files; its bytes are counted off now.
    fn drop_oldest(&self, inner: &mut Inner) -> bool {
        let waits = |queue: &&mut Queue| queue.durable > queue.consumed && !queue.segments.is_empty();
        let weight = |queue: &&mut Queue| (queue.key.priority, queue.durable - queue.consumed);
        let Some(queue) = inner.queues.iter_mut().filter(waits).max_by_key(weight) else {
            return false;
        };
        let before = queue.consumed;
        let dropped = queue.segments.iter().find(|segment| segment.end > before);
        let Some(segment) = dropped else { return false };
        queue.consumed = segment.end.max(before);
        let (freed, count, key) = (segment.counted, queue.consumed - before, queue.key.clone());
        if let Some(segment) = queue.segments.iter_mut().find(|segment| segment.end > before) {
            segment.counted = 0;
        }
        if freed == 0 || count == 0 {
            return false;
        }
        inner.disk_bytes = inner.disk_bytes.saturating_sub(freed);
        inner.progress = true;
        self.listener.lost(&key, count, Loss::Full);
        true
    }

    fn wake(&self, mut inner: parking_lot::MutexGuard<'_, Inner>, wanted: impl Fn(WriterState) -> bool) {
        let wake = wanted(inner.writer);
        if wake {
            inner.writer = WriterState::Busy;
        }
        drop(inner);
        if wake {
            self.work.notify_one();
        }
    }

    pub(super) fn consumed(&self, id: QueueId, sequence: u64) {
        let mut inner = self.inner.lock();
        let Some(queue) = inner.queues.get_mut(id.index()) else {
            return;
        };
        let sequence = sequence.min(queue.durable);
        if sequence <= queue.consumed {
            return;
        }
        queue.consumed = sequence;
        inner.progress = true;
        self.wake(inner, |writer| writer == WriterState::Idle);
    }

    pub(super) fn poll_durable(&self, accepted: u64, context: &mut Context<'_>) -> Poll<Result<(), String>> {
        let reached = || self.durable.load(Ordering::SeqCst) >= accepted;
        let failed = || self.inner.lock().failed.clone();
        if reached() {
            return Poll::Ready(Ok(()));
        }
        if let Some(reason) = failed() {
            return Poll::Ready(Err(reason));
        }
        if !self.waiting.register(accepted, context.waker(), reached) {
            // A failure between asking and noting.
            return match failed() {
                Some(reason) if !reached() => Poll::Ready(Err(reason)),
                _ => Poll::Pending,
            };
        }
        Poll::Ready(Ok(()))
    }

    /// Nothing is taken any more; who waits learns it.
    pub(super) fn fail(&self, reason: String) {
        self.inner.lock().failed.get_or_insert(reason);
        self.waiting.wake(u64::MAX);
    }

    pub(super) fn tick(&self) {
        let (age, wall) = (self.age.now(), self.age.wall().as_millis());
        let mut inner = self.inner.lock();
        let passed = i64::try_from(age.saturating_sub(inner.last_clock.0)).unwrap_or(i64::MAX);
        let jumped = (wall - inner.last_clock.1).saturating_sub(passed).abs() > JUMP_MILLIS;
        inner.last_clock = (age, wall);
        if jumped {
            inner.note_clock = true;
            self.wake(inner, |writer| writer == WriterState::Idle);
        }
    }

    pub(super) fn close(&self) {
        let mut inner = self.inner.lock();
        inner.closing = true;
        drop(inner);
        self.work.notify_one();
    }
}
