//! The thread that writes: takes what is pending in all queues, writes and syncs it, publishes; deletes what is consumed.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use holdfast_store::log::disk::DiskFile;
use parking_lot::MutexGuard;

use super::clean::Cleaner;
use super::format::{SegmentHeader, seal};
use super::state::{Inner, Segment, Shared, WriterState};
use super::sync::Syncers;
use super::{OpenError, QueueId};

/// Space is reserved in such steps, so that a full disk shows before anything of a batch is written.
const RESERVE_BYTES: u64 = 256 << 10;
/// Reserved space that a closed segment keeps: giving back so little is not worth it.
const SLACK_BYTES: u64 = 16 << 10;
/// How long files that may be used again are kept while none is needed: when there are messages, and when there are none.
const SPARES_KEEP: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(2)];
/// Tries of a write that fails for another reason than a full disk.
const TRIES_MAX: u32 = 4;
/// Appends in a batch from which it pays to let more come together.
const GATHER_APPENDS_MIN: u32 = 4;
/// Pending bytes at which gathering ends.
const GATHER_BYTES_MAX: usize = 256 << 10;

pub(super) fn start(shared: Arc<Shared>) -> Result<std::thread::JoinHandle<()>, OpenError> {
    let writer = Writer {
        shared: Arc::clone(&shared),
        active: HashMap::new(),
        last_start: None,
        last_chores: Instant::now(),
        gathering: false,
        stalled: false,
        syncers: Syncers::new(shared.config.sync_threads),
        cleaner: Cleaner::new(
            Arc::clone(&shared.disk),
            shared.config.dir.clone(),
            shared.config.sync_threads > 1,
        ),
    };
    std::thread::Builder::new()
        .name("queue-writer".to_owned())
        .stack_size(256 << 10)
        .spawn(move || writer.run())
        .map_err(|error| OpenError {
            action: "start the writer of",
            path: shared.config.dir.clone(),
            error,
        })
}

pub(super) fn segment_path(shared: &Shared, number: u64) -> PathBuf {
    shared.config.dir.join(super::recover::segment_name(number))
}

/// Where a segment is until its start is synced.
fn begun_path(shared: &Shared, number: u64) -> PathBuf {
    shared.config.dir.join(super::recover::begun_name(number))
}

struct Writer {
    shared: Arc<Shared>,
    active: HashMap<QueueId, Active>,
    last_start: Option<Instant>,
    last_chores: Instant,
    gathering: bool,
    stalled: bool,
    syncers: Syncers,
    cleaner: Cleaner,
}

/// A segment being written.
struct Active {
    number: u64,
    file: Arc<dyn DiskFile>,
    salt: u32,
    header_bytes: u64,
    length: u64,
    reserved: u64,
    /// Its name is not durable, nor is it known to readers.
    fresh: Option<Segment>,
}

/// What a batch has for one queue.
struct Part {
    queue: QueueId,
    bytes: Vec<u8>,
    first: u64,
    end: u64,
    /// Written, not synced.
    written: bool,
}

struct Batch {
    parts: Vec<Part>,
    accepted: u64,
    bytes: usize,
}

/// Makes the store fail when the thread ends by a panic, so that nobody waits for ever.
struct PanicGuard(Arc<Shared>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("the writer of the queues has panicked".to_owned());
        }
    }
}

impl Writer {
    fn run(mut self) {
        let _guard = PanicGuard(Arc::clone(&self.shared));
        while let Some(batch) = self.next_batch() {
            if !batch.parts.is_empty()
                && let Err(reason) = self.commit(batch)
            {
                self.shared.fail(reason);
                return;
            }
            if self.last_chores.elapsed() >= self.shared.config.chores_every {
                self.chores();
            }
        }
        self.chores();
        self.finish();
    }

    /// Waits for something to do and takes it; an empty batch when it is only time for chores, `None` at the end.
    fn next_batch(&mut self) -> Option<Batch> {
        let shared = Arc::clone(&self.shared);
        let mut inner = shared.inner.lock();
        while inner.dirty.is_empty() {
            if inner.closing || inner.failed.is_some() {
                return None;
            }
            if inner.has_chores() || self.cleaner.holds_any() {
                inner.writer = WriterState::Resting;
                let until = self.last_chores + shared.config.chores_every;
                if shared.work.wait_until(&mut inner, until).timed_out() {
                    inner.writer = WriterState::Busy;
                    return Some(Batch::empty());
                }
            } else {
                inner.writer = WriterState::Idle;
                shared.work.wait(&mut inner);
            }
        }
        inner.writer = WriterState::Busy;
        self.gather(&shared, &mut inner);
        Some(Batch::take(&shared, &mut inner))
    }

    /// Lets more come together while many append, so that the cost of a sync is shared.
    fn gather(&mut self, shared: &Shared, inner: &mut MutexGuard<'_, Inner>) {
        let interval = shared.config.commit_interval;
        let until = self.last_start.map(|start| start + interval);
        if let Some(until) = until.filter(|until| self.gathering && *until > Instant::now()) {
            while inner.pending_bytes < GATHER_BYTES_MAX && !inner.closing {
                // Nobody wakes a writer that is busy: this is a pause.
                if shared.work.wait_until(inner, until).timed_out() {
                    break;
                }
            }
        }
        self.gathering = inner.appends >= GATHER_APPENDS_MIN;
        inner.appends = 0;
    }

    /// Tries until everything is durable, or it is clear that it will not be.
    fn commit(&mut self, mut batch: Batch) -> Result<(), String> {
        self.last_start = Some(Instant::now());
        let mut tries = 0;
        while let Err(error) = self.write_and_sync(&mut batch) {
            tries += u32::from(!is_full(&error));
            if tries >= TRIES_MAX {
                return Err(format!(
                    "cannot write {}: {error}; check the disk and start again",
                    self.shared.config.dir.display()
                ));
            }
            self.stall(&error);
            if !self.pause() {
                return Err("the edge hub stopped before the disk took what was pending".to_owned());
            }
            // What is consumed meanwhile makes room.
            self.chores();
        }
        if self.stalled {
            self.stalled = false;
            self.shared.listener.stalled(None);
        }
        let mut inner = self.shared.inner.lock();
        inner.pending_bytes = inner.pending_bytes.saturating_sub(batch.bytes);
        drop(inner);
        self.shared.durable.store(batch.accepted, Ordering::SeqCst);
        self.shared.waiting.wake(batch.accepted);
        Ok(())
    }

    fn stall(&mut self, error: &io::Error) {
        // Those may be what is missing.
        self.cleaner.set_room(0);
        if !self.stalled {
            self.stalled = true;
            self.shared.listener.stalled(Some(&error.to_string()));
        }
    }

    /// Waits before another try; false when the store is closing.
    fn pause(&self) -> bool {
        let mut inner = self.shared.inner.lock();
        let until = Instant::now() + self.shared.config.retry_after;
        while !inner.closing {
            if self.shared.work.wait_until(&mut inner, until).timed_out() {
                return true;
            }
        }
        false
    }

    /// One try: writes what is not written, syncs, publishes what succeeded. Those parts leave the batch.
    fn write_and_sync(&mut self, batch: &mut Batch) -> io::Result<()> {
        let mut failure = None;
        for part in &mut batch.parts {
            match self.write(part) {
                Ok(()) => part.written = true,
                Err(error) => {
                    // A full disk has written nothing of the segment that the next try does not write again.
                    if !is_full(&error) {
                        self.leave(part.queue);
                    }
                    failure = Some(error);
                }
            }
        }
        if let Some(error) = self.sync(batch) {
            failure = Some(error);
        }
        if let Some(error) = self.name(batch) {
            failure = Some(error);
        }
        let named = batch
            .parts
            .iter()
            .any(|part| part.written && self.is_fresh(part.queue));
        if named && let Err(error) = self.shared.disk.sync_dir(&self.shared.config.dir) {
            for part in &mut batch.parts {
                if part.written && self.is_fresh(part.queue) {
                    part.written = false;
                    self.leave(part.queue);
                }
            }
            failure = Some(error);
        }
        self.publish(batch);
        failure.map_or(Ok(()), Err)
    }

    /// Syncs what was written; what fails is no longer taken for written. Tells the last failure.
    fn sync(&mut self, batch: &mut Batch) -> Option<io::Error> {
        let mut failure = None;
        let mut files = Vec::with_capacity(batch.parts.len());
        for part in batch.parts.iter_mut().filter(|part| part.written) {
            match self.active.get(&part.queue) {
                Some(active) => files.push(Arc::clone(&active.file)),
                None => {
                    part.written = false;
                    failure = Some(io::Error::other("the segment is gone"));
                }
            }
        }
        let results = self.syncers.sync(files);
        for (part, result) in batch.parts.iter_mut().filter(|part| part.written).zip(results) {
            if let Err(error) = result {
                // What the kernel could not write it may have dropped: never synced again, written anew elsewhere.
                part.written = false;
                self.leave(part.queue);
                failure = Some(error);
            }
        }
        failure
    }

    /// Gives new segments their names, now that their start is synced: what has that name and no sound start is damaged. Tells
    /// the last failure.
    fn name(&mut self, batch: &mut Batch) -> Option<io::Error> {
        let mut failure = None;
        for part in batch.parts.iter_mut().filter(|part| part.written) {
            let fresh = self
                .active
                .get(&part.queue)
                .filter(|active| active.fresh.is_some());
            let Some(number) = fresh.map(|active| active.number) else {
                continue;
            };
            let (from, to) = (
                begun_path(&self.shared, number),
                segment_path(&self.shared, number),
            );
            if let Err(error) = self.shared.disk.rename(&from, &to) {
                part.written = false;
                self.leave(part.queue);
                failure = Some(error);
            }
        }
        failure
    }

    fn is_fresh(&self, queue: QueueId) -> bool {
        self.active
            .get(&queue)
            .is_some_and(|active| active.fresh.is_some())
    }

    /// Leaves a segment behind: what is durable in it stays, the next write goes into a new one.
    fn leave(&mut self, queue: QueueId) {
        let Some(active) = self.active.remove(&queue) else {
            return;
        };
        if active.fresh.is_some() {
            let removed = self.shared.disk.remove(&begun_path(&self.shared, active.number));
            if removed.is_err() {
                // It had its name already.
                let _ = self
                    .shared
                    .disk
                    .remove(&segment_path(&self.shared, active.number));
            }
        } else {
            let _ = active.file.truncate(active.length);
        }
    }

    fn write(&mut self, part: &mut Part) -> io::Result<()> {
        if part.written {
            return Ok(());
        }
        let more = part.bytes.len() as u64;
        let segment_bytes = self.shared.config.segment_bytes;
        let full =
            |active: &Active| active.length > active.header_bytes && active.length + more > segment_bytes;
        if self.active.get(&part.queue).is_some_and(full) {
            self.close_active(part.queue);
        }
        if !self.active.contains_key(&part.queue) {
            let active = self.create(part)?;
            self.active.insert(part.queue, active);
        }
        let Some(active) = self.active.get_mut(&part.queue) else {
            return Ok(());
        };
        let end = active.length + more;
        if end > active.reserved {
            let reserved = end.next_multiple_of(RESERVE_BYTES.min(segment_bytes.max(1)));
            active.file.allocate(reserved)?;
            active.reserved = reserved;
        }
        seal(&mut part.bytes, active.salt);
        active.file.write_all_at(&part.bytes, active.length)
    }

    fn close_active(&mut self, queue: QueueId) {
        if let Some(active) = self.active.remove(&queue)
            && active.reserved - active.length > SLACK_BYTES
        {
            // Readers stop at the durable end anyway; this gives the space back.
            let _ = active.file.truncate(active.length);
        }
    }

    /// Makes a segment. Its header is synced with its first frames.
    fn create(&mut self, part: &Part) -> io::Result<Active> {
        let shared = Arc::clone(&self.shared);
        let (number, header) = {
            let mut inner = shared.inner.lock();
            let number = inner.next_number;
            inner.next_number += 1;
            let queue = &inner.queues[part.queue.0 as usize];
            let header = SegmentHeader {
                // Other than that of any segment before, for what was written into the same file then.
                salt: crc32c::crc32c_append(shared.salt, &number.to_le_bytes()),
                first: part.first,
                consumed: queue.consumed,
                age: shared.age.now(),
                wall: shared.age.wall().as_micros(),
                priority: queue.key.priority,
                name: queue.key.name.clone(),
            };
            (number, header)
        };
        let path = begun_path(&shared, number);
        let bytes = header.encode();
        let header_bytes = bytes.len() as u64;
        let (file, length) = match self.cleaner.take(&path, header_bytes) {
            Some(spare) => spare,
            None => (Arc::from(shared.disk.create(&path)?), 0),
        };
        if let Err(error) = file.write_all_at(&bytes, 0) {
            let _ = shared.disk.remove(&path);
            return Err(error);
        }
        Ok(Active {
            number,
            file,
            salt: header.salt,
            header_bytes,
            length: header_bytes,
            reserved: header_bytes.max(length),
            fresh: Some(Segment {
                number,
                first: part.first,
                end: part.first,
                header_bytes,
                bytes: header_bytes,
                counted: 0,
                salt: header.salt,
                born: header.age,
            }),
        })
    }

    /// Makes the parts that are durable visible and takes them out of the batch.
    fn publish(&mut self, batch: &mut Batch) {
        let mut readable = Vec::new();
        let mut inner = self.shared.inner.lock();
        for part in batch.parts.extract_if(.., |part| part.written) {
            let Some(active) = self.active.get_mut(&part.queue) else {
                continue;
            };
            let bytes = part.bytes.len() as u64;
            active.length += bytes;
            let mut counted = bytes;
            let queue = &mut inner.queues[part.queue.0 as usize];
            if let Some(segment) = active.fresh.take() {
                counted += segment.header_bytes;
                queue.segments.push_back(segment);
            }
            if let Some(segment) = queue.segments.back_mut() {
                segment.end = part.end;
                segment.bytes = active.length;
                segment.counted += counted;
            }
            if part.end > queue.durable {
                queue.durable = part.end;
                readable.push(part.queue);
            }
            queue.reuse(part.bytes);
            inner.disk_bytes += counted;
        }
        drop(inner);
        if !readable.is_empty() {
            self.shared.listener.readable(&readable);
        }
    }

    /// Deletes what is consumed, and notes on the disk what is consumed of the rest.
    fn chores(&mut self) {
        self.last_chores = Instant::now();
        let mut gone = Vec::new();
        let mut marks = Vec::new();
        let (room, empty, note_clock);
        {
            let mut inner = self.shared.inner.lock();
            inner.progress = false;
            note_clock = std::mem::take(&mut inner.note_clock);
            let closing = inner.closing;
            let empty_after = self.shared.config.empty_after;
            let mut freed = 0;
            for (index, queue) in inner.queues.iter_mut().enumerate() {
                let id = QueueId(index as u32);
                let idle = queue.is_empty() && (closing || queue.last_append.elapsed() >= empty_after);
                while let Some(segment) = queue.segments.front()
                    && segment.end <= queue.consumed
                    && (idle || queue.segments.len() > 1)
                {
                    freed += segment.counted;
                    gone.push((id, segment.number));
                    // A file that is open is not freed.
                    queue.reading.take_if(|(reading, _)| *reading == segment.number);
                    queue.segments.pop_front();
                }
                if queue.segments.is_empty() {
                    queue.marked = queue.consumed;
                    (queue.cursor, queue.reading) = (None, None);
                    if idle {
                        queue.pending = Vec::new();
                    }
                } else if (queue.marked < queue.consumed && !queue.is_empty()) || note_clock {
                    marks.push(id);
                }
            }
            inner.disk_bytes = inner.disk_bytes.saturating_sub(freed);
            empty = inner.queues.iter().all(|queue| queue.segments.is_empty());
            // Spare files are not counted, so there are none when room may be short.
            let most = if self.stalled { 0 } else { inner.bytes_max / 2 };
            room = most.saturating_sub(inner.disk_bytes);
        }
        self.cleaner.set_room(room);
        self.remove(&gone);
        self.cleaner.forget(SPARES_KEEP[usize::from(empty)]);
        if !self.mark(&marks) {
            let mut inner = self.shared.inner.lock();
            inner.progress = true;
            inner.note_clock |= note_clock;
        }
    }

    fn remove(&mut self, gone: &[(QueueId, u64)]) {
        for (queue, number) in gone {
            let is_active = |active: &Active| active.number == *number;
            if self.active.get(queue).is_some_and(is_active) {
                self.active.remove(queue);
            }
        }
        let path = |(_, number): &(QueueId, u64)| segment_path(&self.shared, *number);
        self.cleaner.remove(gone.iter().map(path).collect());
    }

    /// Writes marks. What fails is tried again with the next chores; false then.
    fn mark(&mut self, queues: &[QueueId]) -> bool {
        let mut batch = {
            let mut inner = self.shared.inner.lock();
            let parts = queues.iter().filter_map(|id| {
                let queue = inner.queues.get_mut(id.0 as usize)?;
                // What is pending takes a mark along when it is taken; while the disk refuses a batch, nothing may be written
                // behind it.
                if !queue.pending.is_empty() || queue.durable < queue.next {
                    return None;
                }
                queue.push_mark(&self.shared);
                Some(Part {
                    queue: *id,
                    bytes: std::mem::take(&mut queue.pending),
                    first: queue.next,
                    end: queue.next,
                    written: false,
                })
            });
            Batch {
                parts: parts.collect(),
                accepted: 0,
                bytes: 0,
            }
        };
        if self.write_and_sync(&mut batch).is_ok() {
            return true;
        }
        self.cleaner.set_room(0);
        for part in &batch.parts {
            // Nothing may ever come that would make a segment of it.
            if self.is_fresh(part.queue) {
                self.leave(part.queue);
            }
            self.shared.inner.lock().queues[part.queue.0 as usize].marked = 0;
        }
        false
    }

    /// Gives reserved space back at the end.
    fn finish(&mut self) {
        for active in self.active.values() {
            let _ = active.file.truncate(active.length);
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

impl Batch {
    fn empty() -> Self {
        Batch {
            parts: Vec::new(),
            accepted: 0,
            bytes: 0,
        }
    }

    fn take(shared: &Shared, inner: &mut Inner) -> Self {
        let mut batch = Batch {
            parts: Vec::with_capacity(inner.dirty.len()),
            accepted: inner.accepted,
            bytes: inner.pending_bytes,
        };
        for id in std::mem::take(&mut inner.dirty) {
            let queue = &mut inner.queues[id.0 as usize];
            if queue.marked < queue.consumed {
                queue.push_mark(shared);
            }
            batch.parts.push(Part {
                queue: id,
                bytes: std::mem::take(&mut queue.pending),
                first: queue.durable,
                end: queue.next,
                written: false,
            });
            queue.durable_before = queue.next;
        }
        batch
    }
}
