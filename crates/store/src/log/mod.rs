//! The embedded event log: segmented, checksummed, append-only, synced in groups.
//!
//! # Limits
//!
//! - 1 to 1024 partitions, fixed when the log is made.
//! - One block (the records of one append) is at most 64 MiB.
//! - At most [`LogConfig::pending_bytes_max`] bytes of a partition wait for the disk; more is refused with
//!   [`LogError::Busy`].
//! - One process per directory. Whoever opens the log makes sure of that with a lock of its own.
//!
//! # Layout
//!
//! ```text
//! meta                              magic, format version, partitions, salt, crc32c
//! p0000/00000000000000000000.seg    a segment: its name is the sequence number of its first event
//! p0000/00000000000000000000.idx    sparse index of a closed segment; made again when missing or damaged
//! p0000/00000000000000041216.seg    the active segment: grows
//! p0000/....seg.removed             what is left of a deleted segment
//! p0001/...
//! ```
//!
//! A segment is a header (64 bytes: magic, format version, partition, first sequence number, enqueued time of the
//! newest event before it, crc32c), then frames, then reserved space, which reads as zeros. A frame is
//!
//! ```text
//! payload length:u32  count:u32  first sequence number:u64  enqueued, microseconds:i64
//! durable before:u64  crc32c of payload:u32  crc32c of the header before this:u32
//! payload: origin and records as in holdfast_model::event
//! ```
//!
//! Header checksums start from the log's salt, so that no sender can put something into a payload that a search for
//! the next frame takes for one. "Durable before" is the sequence number before which everything had been synced when
//! the frame was written.
//!
//! # Writing
//!
//! An append computes the payload's checksum, then, under the partition's lock, takes sequence numbers, stamps the
//! enqueued time and copies the frame behind what is pending. The partition's writer thread swaps the pending buffer
//! for an empty one, writes it with one call, syncs once, publishes the sequence number behind it and wakes who waits
//! for one up to there. While many senders append, it lets [`LogConfig::commit_interval`] pass between two syncs (ADR
//! 0010). Space is reserved in steps ahead of the writing, so that a full disk shows before a batch is written.
//!
//! A write or sync that fails ends it: nothing more is accepted by any partition, nobody is told that something is
//! durable, and nothing is tried again, because the kernel may have dropped the pages that it could not write. What
//! was durable stays readable.
//!
//! # Reading
//!
//! A read finds its segment by name, its place by the sparse index (an entry per 64 KiB) or by where the reader
//! stopped last, reads a chunk, verifies checksums and cuts blocks out of it without copying. It first tries what the
//! page cache has without waiting; only if that is nothing it moves to a thread that may block.
//!
//! Damage (a bad sector, a flipped bit) costs the events it hit and no others. Readers go on with the next good
//! frame, or the next segment; sequence numbers show the gap; each place is logged once as an error, with file and
//! offset, and counted. The file stays as it is.
//!
//! # Removal
//!
//! Retention takes the oldest closed segments of a partition. Their files are renamed, cut shorter a step at a time and
//! then removed, beside the writing, since some file systems sync nothing while they free what was written. A disk
//! that is full has them removed at once.
//!
//! # Recovery
//!
//! Only the newest segment of a partition is looked at when opening: the older ones were synced before it was made.
//! From the first frame that does not check out:
//!
//! - nothing but zeros follows: the end.
//! - no later frame says that the missing events had been durable: the rest of a batch that was cut off by a crash,
//!   never acknowledged. It is cut off and logged as a warning. A power cut keeps any part of what was not synced, so
//!   good frames of that batch may follow the hole; they go as well.
//! - a later frame says that they had been: acknowledged events are damaged. Nothing is cut; the segment is closed as
//!   it is, a new one starts with the sequence number after its last good frame, and an error is logged.
//!
//! What is taken over is synced before anyone can read it. With [`Durability::Os`] no frame vouches for the ones
//! before it, so that after a power cut the log ends at the first hole.

mod config;
pub mod disk;
mod events;
mod format;
mod headless;
mod partition;
mod read;
mod recover;
mod remove;
mod retention;
mod scan;
mod segment;
pub mod sim;
mod wait;
mod writer;

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread::JoinHandle;

use holdfast_model::Timestamp;
use holdfast_model::event::{EventBlock, Origin, Run};
use holdfast_ports::BoxFuture;
use holdfast_ports::event_log::{AppendTicket, EventLog, LogError, PartitionInfo};
use parking_lot::Mutex;

pub use config::{Durability, LogConfig, OpenError};
use disk::{Disk, RealDisk};
pub use events::Metrics;
use partition::{Common, Partition};
use read::{Mode, Stop};
pub use retention::Deleted;
use writer::{Active, Writer};

/// The event log on the local disk. See the [module](self) for how it works.
#[derive(Debug)]
pub struct EmbeddedLog {
    common: Arc<Common>,
    partitions: Vec<Arc<Partition>>,
    writers: Mutex<Vec<JoinHandle<()>>>,
}

impl EmbeddedLog {
    /// Opens the log in `config.dir`, or makes it, with metrics that nobody scrapes. Blocks for as long as it takes
    /// to read the newest segment of each partition.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(config: LogConfig) -> Result<Self, OpenError> {
        Self::open_with(config, Metrics::unattached())
    }

    /// As [`EmbeddedLog::open`], with metrics of the caller.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_with(config: LogConfig, metrics: Metrics) -> Result<Self, OpenError> {
        Self::open_on(Arc::new(RealDisk), config, metrics)
    }

    /// As [`EmbeddedLog::open_with`], on a disk of the caller.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_on(disk: Arc<dyn Disk>, config: LogConfig, metrics: Metrics) -> Result<Self, OpenError> {
        config.check()?;
        let meta = recover::open_meta(disk.as_ref(), &config)?;
        let common = Arc::new(Common::new(config, disk, meta.salt, metrics));
        let (partitions, actives): (Vec<_>, Vec<_>) = open_partitions(&common, meta.partitions)?
            .into_iter()
            .map(|(partition, active)| (Arc::new(partition), active))
            .unzip();
        common.set_partitions(&partitions);
        let mut log = EmbeddedLog {
            common,
            partitions,
            writers: Mutex::default(),
        };
        for (partition, active) in log.partitions.iter().zip(actives) {
            let writer = Writer::new(Arc::clone(partition), active);
            // If this fails, dropping `log` ends the writers started so far.
            let thread = std::thread::Builder::new()
                .name(format!("event-log-{}", partition.index))
                .spawn(move || writer.run())
                .map_err(OpenError::io("start a writer thread for", &log.common.config.dir))?;
            log.writers.get_mut().push(thread);
        }
        (log.common.remover.start()).map_err(OpenError::io("start a thread for", &log.common.config.dir))?;
        Ok(log)
    }

    /// Writes what is pending, ends the writer threads and gives reserved space back. Later appends are refused.
    /// Blocks. Dropping the log does the same.
    ///
    /// # Errors
    /// [`LogError::Failed`] when the log has failed, now or before: then what was not yet durable may be lost.
    pub fn close(&self) -> Result<(), LogError> {
        for partition in &self.partitions {
            let mut pending = partition.pending.lock();
            pending.closing = true;
            drop(pending);
            partition.work.notify_one();
        }
        for writer in self.writers.lock().drain(..) {
            // A panic has made the log fail, which is what is returned.
            let _ = writer.join();
        }
        self.common.remover.close();
        self.common.failure().map_or(Ok(()), Err)
    }

    /// Deletes closed segments whose events are all older than [`LogConfig::retention_age`], then the oldest ones
    /// until the rest is within [`LogConfig::retention_bytes`]. Also has active segments closed that are older than
    /// [`LogConfig::segment_age`]; a later call can then delete them. What is deleted can be read no more at once; its
    /// space comes back within 30 s, beside the writing, or at once when the disk is full. Blocks; meant to be called
    /// every minute or so.
    pub fn enforce_retention(&self, now: Timestamp) -> Deleted {
        retention::enforce(&self.partitions, now)
    }

    fn partition(&self, index: u16) -> Result<&Arc<Partition>, LogError> {
        self.partitions
            .get(usize::from(index))
            .ok_or(LogError::NoSuchPartition(index))
    }
}

impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        // A failure was logged where it happened.
        let _ = self.close();
    }
}

/// Opens the partitions on as many threads as there are processors.
fn open_partitions(common: &Arc<Common>, partitions: u16) -> Result<Vec<(Partition, Active)>, OpenError> {
    let indexes: Vec<u16> = (0..partitions).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = indexes.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let workers: Vec<_> = indexes
            .chunks(share)
            .map(|share| {
                scope.spawn(move || {
                    let open = |index: &u16| recover::open_partition(common, *index);
                    share.iter().map(open).collect::<Result<Vec<_>, _>>()
                })
            })
            .collect();
        let mut opened = Vec::with_capacity(indexes.len());
        for worker in workers {
            match worker.join() {
                Ok(part) => opened.extend(part?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(opened)
    })
}

/// Runs `work`, which blocks, where that disturbs nobody: on the runtime's threads for it, or here without a runtime.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => runtime
            .spawn_blocking(work)
            .await
            .unwrap_or_else(|error| Err(LogError::Unreadable(format!("the read was given up: {error}")))),
        Err(_) => work(),
    }
}

impl EventLog for EmbeddedLog {
    fn partitions(&self) -> u16 {
        self.partitions.len() as u16
    }

    fn append_runs(
        &self,
        partition: u16,
        origin: &Origin,
        runs: &[Run<'_>],
        now: Timestamp,
    ) -> Result<AppendTicket, LogError> {
        self.partition(partition)?.append_runs(origin, runs, now)
    }

    fn poll_durable(&self, ticket: AppendTicket, context: &mut Context<'_>) -> Poll<Result<(), LogError>> {
        self.partition(ticket.partition)?
            .poll_durable(ticket.end, context)
    }

    fn read(
        &self,
        partition: u16,
        from: u64,
        max_bytes: usize,
    ) -> BoxFuture<'_, Result<Vec<EventBlock>, LogError>> {
        Box::pin(async move {
            let partition = self.partition(partition)?;
            match partition.read_blocks(from, max_bytes, Mode::Cached) {
                Ok(blocks) => Ok(blocks),
                Err(Stop::Failed(error)) => Err(error),
                Err(Stop::WouldWait) => {
                    let partition = Arc::clone(partition);
                    blocking(
                        move || match partition.read_blocks(from, max_bytes, Mode::Waiting) {
                            Ok(blocks) => Ok(blocks),
                            Err(Stop::Failed(error)) => Err(error),
                            Err(Stop::WouldWait) => Err(LogError::Unreadable(
                                io::Error::from(io::ErrorKind::WouldBlock).to_string(),
                            )),
                        },
                    )
                    .await
                }
            }
        })
    }

    fn find(&self, partition: u16, time: Timestamp) -> BoxFuture<'_, Result<u64, LogError>> {
        Box::pin(async move {
            let partition = Arc::clone(self.partition(partition)?);
            blocking(move || partition.find_time(time)).await
        })
    }

    fn info(&self, partition: u16) -> Result<PartitionInfo, LogError> {
        Ok(self.partition(partition)?.info())
    }

    fn poll_readable(
        &self,
        partition: u16,
        from: u64,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), LogError>> {
        self.partition(partition)?.poll_readable(from, context)
    }
}
