//! Import and export of identities with their twins, one JSON document a line (rest.md 5.4 and 11).
//!
//! * [`Transfer`] moves lines between a stream of bytes and the hub: [`Transfer::import`], [`Transfer::export`].
//! * [`TransferJobs`] does that in the background, between the hub and blob containers: import and export jobs.
//! * [`LineFormat`] spells the lines; [`TransferFiles`] reads and writes blobs. Both are given from outside, since this
//!   crate knows neither the wire nor sockets.
//!
//! # Rules of an import
//! * Lines take effect in their order. A line that is bad or cannot be carried out is noted with its number and reason,
//!   and the import goes on. It ends early only when the hub cannot store, the input breaks off, or it is cancelled.
//! * A line may name a parent or a device that comes later in the input (an export is ordered by id): it is put aside, in a
//!   file without a name, and tried again at the end until nothing changes any more.
//! * Memory is bounded by a few batches of [`BATCH_LINES_MAX`] lines and [`BATCH_BYTES_MAX`] bytes, whatever the size of
//!   the input; a line of more than [`LINE_BYTES_MAX`] is noted as bad without being kept.
//! * What was imported before an import ends early stays imported. Repeating it is safe with the modes that create or
//!   update.
//!
//! # Rules of an export
//! Identities come by device id, each as it stands when its page is read: it is no snapshot of one moment.

mod errors;
pub mod events;
mod export;
mod files;
mod import;
mod job;
mod jobs;
mod lines;
mod parse;
mod progress;
mod spool;

use std::path::PathBuf;
use std::sync::Arc;

use holdfast_hub::{Hub, ImportEntry};
use holdfast_model::registry::IdentityRecord;
use holdfast_model::twin::Twin;
use holdfast_model::{Error, ErrorCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use errors::ImportErrors;
pub use events::Metrics;
pub use files::{BlobPlace, BlobReader, BlobWriter, TransferFiles};
pub use import::{ImportOutcome, ImportStopped};
pub use job::{JobKind, JobRequest, JobStatus, TransferJob};
pub use jobs::TransferJobs;
pub use progress::Progress;

/// Most lines in one step of the store.
pub const BATCH_LINES_MAX: usize = 1_000;
/// Most bytes of lines in one step of the store.
pub const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest line: a twin of the greatest size with all its metadata fits in.
pub const LINE_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Most bytes of lines put aside, on the disk; a line beyond is noted as failed.
pub const ASIDE_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;
/// Most bytes of noted errors, on the disk; those beyond are counted only.
pub const ERROR_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Most imports and exports at once that clients ask for directly.
pub const AT_ONCE_MAX: usize = 4;

/// How lines are spelled.
pub trait LineFormat: Send + Sync + 'static {
    /// Reads a line of an import.
    ///
    /// # Errors
    /// Why it is none, for the person who repairs the file.
    fn read(&self, line: &[u8]) -> Result<ImportEntry, BadLine>;

    /// Appends the line of an identity, with its end. Without keys if `exclude_keys`.
    fn write(&self, out: &mut Vec<u8>, record: &IdentityRecord, twin: &Twin, exclude_keys: bool);

    /// Appends the line, with its end, that tells of a bad line of an import.
    fn write_error(&self, out: &mut Vec<u8>, error: &LineError<'_>);
}

/// A line that cannot be read, with as much of it as could be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadLine {
    /// Device id.
    pub device_id: Option<String>,
    /// Module id of a module.
    pub module_id: Option<String>,
    /// Why.
    pub error: Error,
}

impl From<Error> for BadLine {
    fn from(error: Error) -> Self {
        BadLine {
            device_id: None,
            module_id: None,
            error,
        }
    }
}

/// A line of an import that was not carried out.
#[derive(Clone, Copy, Debug)]
pub struct LineError<'a> {
    /// Number of the line, from 1.
    pub line: u64,
    /// Device id, when the line could be read.
    pub device_id: Option<&'a str>,
    /// Module id of a module.
    pub module_id: Option<&'a str>,
    /// Why.
    pub error: &'a Error,
}

/// Moves identities in and out of a hub. Cheap to clone.
#[derive(Clone)]
pub struct Transfer {
    hub: Arc<Hub>,
    format: Arc<dyn LineFormat>,
    work_dir: Arc<PathBuf>,
    metrics: Metrics,
    places: Arc<Semaphore>,
}

impl Transfer {
    /// `work_dir` is an existing directory for files without names: lines put aside and noted errors.
    #[must_use]
    pub fn new(hub: Arc<Hub>, format: Arc<dyn LineFormat>, work_dir: PathBuf, metrics: Metrics) -> Self {
        Transfer {
            hub,
            format,
            work_dir: Arc::new(work_dir),
            metrics,
            places: Arc::new(Semaphore::new(AT_ONCE_MAX)),
        }
    }

    /// A place for a transfer that a client asks for directly; hold it while that runs. Jobs need none, since only one
    /// runs at a time.
    ///
    /// # Errors
    /// `ThrottlingException` when [`AT_ONCE_MAX`] are under way.
    pub fn place(&self) -> Result<OwnedSemaphorePermit, Error> {
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            Error::new(
                ErrorCode::ThrottlingException,
                format!("{AT_ONCE_MAX} imports and exports are under way; try again when one has ended"),
            )
        })
    }
}

impl std::fmt::Debug for Transfer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transfer")
            .field("work_dir", &self.work_dir)
            .finish_non_exhaustive()
    }
}
