//! The writer thread of a partition: takes what was appended, writes it, syncs once, publishes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::{Duration, Instant};

use holdfast_observe::Event;
use parking_lot::MutexGuard;

use super::config::Durability;
use super::disk::{Disk, DiskFile};
use super::events::{Committed, Inconvenience, SegmentCreated};
use super::format::{Mark, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::partition::{Common, GATHER_BYTES_MAX, Partition, Pending, WriterState};
use super::segment::{Segment, segment_name};

/// Space is reserved in such steps: large enough that the reservation costs nothing per event, small enough that an
/// idle hub does not occupy a disk.
const RESERVE_BYTES: u64 = 8 << 20;
/// A buffer grown beyond this by a burst is given back when batches are small again.
const BUFFER_KEEP_BYTES: usize = 1 << 20;
/// Blocks in a batch from which gathering has paid off.
const GATHER_BLOCKS_MIN: u32 = 4;
/// Commits without gathering after it has not paid off, the first time and, doubled each time, at most: few senders,
/// each waiting for its own acknowledgement.
const GATHER_PAUSE_COMMITS: (u32, u32) = (64, 1024);

/// The thread's state.
#[derive(Debug)]
pub(super) struct Writer {
    partition: Arc<Partition>,
    active: Active,
    batch: Batch,
    woken: Vec<Waker>,
    last_start: Option<Instant>,
    /// Commits left without gathering.
    pause: u32,
    next_pause: u32,
}

/// The segment being written.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) segment: Arc<Segment>,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) length: u64,
    pub(super) reserved: u64,
}

/// What one sync makes durable.
#[derive(Default, Debug)]
struct Batch {
    buffer: Vec<u8>,
    marks: Vec<Mark>,
    first: u64,
    end: u64,
    enqueued: i64,
}

enum Work {
    Commit,
    Roll,
    Stop,
}

/// What failed, in words.
#[derive(Debug)]
pub(super) struct WriteFailed(String);

impl WriteFailed {
    fn new(action: &str, segment: &std::path::Path, error: &io::Error) -> Self {
        let hint = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "; free space on the disk and start again"
            }
            _ => "; check the disk and start again",
        };
        WriteFailed(format!("cannot {action} {}: {error}{hint}", segment.display()))
    }
}

/// Makes the log fail when the thread ends by a panic, so that nobody waits for ever.
struct PanicGuard(Arc<Partition>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.common.fail("its writer has panicked".to_owned());
        }
    }
}

impl Writer {
    pub(super) fn new(partition: Arc<Partition>, active: Active) -> Self {
        let batch = Batch {
            end: partition.pending.lock().next,
            ..Batch::default()
        };
        Writer {
            partition,
            active,
            batch,
            woken: Vec::new(),
            last_start: None,
            pause: 0,
            next_pause: GATHER_PAUSE_COMMITS.0,
        }
    }

    /// Works until the log is closed or fails.
    pub(super) fn run(mut self) {
        let _guard = PanicGuard(Arc::clone(&self.partition));
        loop {
            let done = match self.next_work() {
                Work::Commit => self.commit(),
                Work::Roll => self.roll(),
                Work::Stop => break,
            };
            if let Err(WriteFailed(reason)) = done {
                self.partition.common.fail(reason);
                break;
            }
        }
        if self.partition.common.failure().is_none() {
            self.finish();
        }
    }

    /// Waits for something to do and takes it.
    fn next_work(&mut self) -> Work {
        let partition = Arc::clone(&self.partition);
        let mut pending = partition.pending.lock();
        loop {
            if partition.common.failure().is_some() {
                return Work::Stop;
            }
            if !pending.buffer.is_empty() {
                break;
            }
            if pending.roll {
                pending.roll = false;
                return Work::Roll;
            }
            if pending.closing {
                return Work::Stop;
            }
            pending.writer = WriterState::Idle;
            partition.work.wait(&mut pending);
        }
        self.gather(&partition, &mut pending);
        self.take(&partition, &mut pending);
        Work::Commit
    }

    /// Lets more come together before a sync, if the last one was just now and there are many senders: the cost of
    /// a sync is then shared by more events, and nobody waits longer than `commit_interval`.
    fn gather(&mut self, partition: &Partition, pending: &mut MutexGuard<'_, Pending>) {
        if self.pause > 0 {
            self.pause -= 1;
            return;
        }
        let interval = partition.common.config.commit_interval;
        let Some(until) = self.last_start.map(|start| start + interval) else {
            return;
        };
        if interval.is_zero() || Instant::now() >= until {
            return;
        }
        while pending.buffer.len() < GATHER_BYTES_MAX
            && !pending.closing
            && partition.common.failure().is_none()
        {
            pending.writer = WriterState::Gathering;
            if partition.work.wait_until(pending, until).timed_out() {
                break;
            }
        }
        if pending.blocks < GATHER_BLOCKS_MIN {
            self.pause = self.next_pause;
            self.next_pause = (self.next_pause * 2).min(GATHER_PAUSE_COMMITS.1);
        } else {
            self.next_pause = GATHER_PAUSE_COMMITS.0;
        }
    }

    fn take(&mut self, partition: &Partition, pending: &mut Pending) {
        pending.writer = WriterState::Busy;
        std::mem::swap(&mut pending.buffer, &mut self.batch.buffer);
        std::mem::swap(&mut pending.marks, &mut self.batch.marks);
        pending.blocks = 0;
        self.batch.first = self.batch.end;
        self.batch.end = pending.next;
        self.batch.enqueued = pending.enqueued;
        // Without syncs nothing is known to be durable before anything else.
        pending.durable_before = match partition.common.config.durability {
            Durability::Fsync => pending.next,
            Durability::Os => 0,
        };
        partition
            .in_flight
            .store(self.batch.buffer.len(), Ordering::Relaxed);
    }

    fn commit(&mut self) -> Result<(), WriteFailed> {
        let start = Instant::now();
        self.last_start = Some(start);
        if self.is_full(self.batch.buffer.len() as u64) {
            self.roll()?;
        }
        self.write()?;
        let bytes = self.batch.buffer.len() as u64;
        self.active.length += bytes;
        self.active.segment.extend(&self.batch.marks, self.active.length);
        let events = self.batch.end - self.batch.first;
        self.partition.in_flight.store(0, Ordering::Relaxed);
        Committed {
            events,
            bytes,
            took: start.elapsed(),
        }
        .emit(&self.partition.common.metrics);
        self.partition
            .publish(self.batch.end, self.batch.enqueued, &mut self.woken);
        self.clear_batch();
        Ok(())
    }

    /// Whether the active segment has to be closed before `more` bytes.
    fn is_full(&self, more: u64) -> bool {
        let config = &self.partition.common.config;
        let Some(first_enqueued) = self.active.segment.first_enqueued() else {
            return false;
        };
        let age = self.batch.enqueued.saturating_sub(first_enqueued);
        self.active.length + more > config.segment_bytes || age > micros(config.segment_age)
    }

    fn write(&mut self) -> Result<(), WriteFailed> {
        let common = &self.partition.common;
        let active = &mut self.active;
        let failed = |action| {
            let path = &active.segment.path;
            move |error: io::Error| WriteFailed::new(action, path, &error)
        };
        let end = active.length + self.batch.buffer.len() as u64;
        if end > active.reserved {
            // A full disk shows here, before anything of the batch is written.
            let step = RESERVE_BYTES.min(common.config.segment_bytes);
            let reserved = end.next_multiple_of(step);
            with_room(common, || active.file.allocate(reserved)).map_err(failed("reserve space for"))?;
            active.reserved = reserved;
        }
        active
            .file
            .write_all_at(&self.batch.buffer, active.length)
            .map_err(failed("write"))?;
        if common.config.durability == Durability::Fsync {
            // Never tried twice: after a failed sync the kernel may have dropped the pages and report success.
            active.file.sync().map_err(failed("sync"))?;
        }
        Ok(())
    }

    /// Closes the active segment and starts the next one.
    fn roll(&mut self) -> Result<(), WriteFailed> {
        if self.active.length <= SEGMENT_HEADER_BYTES as u64 {
            return Ok(());
        }
        let partition = &self.partition;
        let common = &partition.common;
        let first = partition.durable.load(Ordering::Relaxed);
        let base_time = partition.last_enqueued.load(Ordering::Relaxed);
        let dir = self.active.segment.path.parent().unwrap_or(&common.config.dir);
        let header = SegmentHeader {
            partition: partition.index,
            first,
            base_time,
        };
        let disk = common.disk.as_ref();
        let mut again = false;
        let create = || {
            if std::mem::replace(&mut again, true) {
                // What the full disk had room for.
                let _ = disk.remove(&dir.join(segment_name(first)));
            }
            create_segment(disk, dir, header, common.salt)
        };
        let next = with_room(common, create)
            .map_err(|error| WriteFailed::new("create", &dir.join(segment_name(first)), &error))?;
        SegmentCreated {
            file: &next.segment.path,
        }
        .emit(&common.metrics);
        let old = std::mem::replace(&mut self.active, next);
        partition.segments.write().push(Arc::clone(&self.active.segment));
        self.close_segment(&old.segment);
        Ok(())
    }

    fn close_segment(&self, segment: &Segment) {
        let common = &self.partition.common;
        if let Err(error) = segment.close(common.disk.as_ref()) {
            Inconvenience {
                action: "close a segment of the event log",
                file: &segment.path,
                error: &error,
            }
            .emit(&common.metrics);
        }
    }

    fn clear_batch(&mut self) {
        let used = self.batch.buffer.len();
        self.batch.buffer.clear();
        self.batch.marks.clear();
        if self.batch.buffer.capacity() > BUFFER_KEEP_BYTES && used < BUFFER_KEEP_BYTES / 8 {
            self.batch.buffer.shrink_to(BUFFER_KEEP_BYTES);
        }
    }

    /// Gives reserved space back at the end.
    fn finish(&self) {
        if let Err(error) = self.active.file.truncate(self.active.length) {
            Inconvenience {
                action: "give reserved space back",
                file: &self.active.segment.path,
                error: &error,
            }
            .emit(&self.partition.common.metrics);
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Tries once more on a full disk when there are deleted segments whose space is still to come back.
fn with_room<T>(common: &Common, mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    match work() {
        Err(error) if is_full(&error) && common.remover.hurry() => work(),
        result => result,
    }
}

/// Makes a segment file durable: content first, then its name.
pub(super) fn create_segment(
    disk: &dyn Disk,
    dir: &std::path::Path,
    header: SegmentHeader,
    salt: u32,
) -> io::Result<Active> {
    let path = dir.join(segment_name(header.first));
    let file: Arc<dyn DiskFile> = Arc::from(disk.create(&path)?);
    file.write_all_at(&header.encode(salt), 0)?;
    file.sync()?;
    disk.sync_dir(dir)?;
    let length = SEGMENT_HEADER_BYTES as u64;
    let segment = Segment::active(
        dir,
        header.first,
        header.base_time,
        Arc::clone(&file),
        length,
        Vec::new(),
    );
    Ok(Active {
        segment: Arc::new(segment),
        file,
        length,
        reserved: length,
    })
}

pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
