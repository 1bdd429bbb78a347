//! Settings of the event log, and why it cannot be opened.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// When an append counts as durable.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Durability {
    /// After `fdatasync`: survives a power cut.
    #[default]
    Fsync,
    /// After `write`: survives the end of the process, not of the operating system. For those who choose it.
    Os,
}

/// Settings of an [`EmbeddedLog`](super::EmbeddedLog).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogConfig {
    /// Directory of the log, made when missing. Default: `events`; a server puts its data directory in front.
    pub dir: PathBuf,
    /// Number of partitions of a log that is made now, 1 to 1024; an existing log keeps the number it was made with.
    /// Default: 4.
    pub partitions: u16,
    /// Size at which a segment is closed, bytes. Least 4 KiB. Default: 64 MiB.
    pub segment_bytes: u64,
    /// Age of its first event at which a segment is closed, so that retention can take it. Default: 6 hours.
    pub segment_age: Duration,
    /// How long events are kept at least. Default: 7 days (IoT Hub keeps 1 day unless told otherwise, and 7 at most).
    pub retention_age: Duration,
    /// Size of all partitions together above which the oldest closed segments go, even before their time. Bytes.
    /// Default: `None`, no such bound.
    pub retention_bytes: Option<u64>,
    /// When an append counts as durable. Default: [`Durability::Fsync`].
    pub durability: Durability,
    /// Bytes of one partition that may wait for the disk before an append is refused with `Busy`. Default: 16 MiB.
    pub pending_bytes_max: usize,
    /// Least time between the starts of two syncs of one partition while many senders append; a partition with few
    /// senders, or at rest, syncs at once (ADR 0010). Zero switches it off. Default: 500 µs.
    pub commit_interval: Duration,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig {
            dir: PathBuf::from("events"),
            partitions: 4,
            segment_bytes: 64 << 20,
            segment_age: Duration::from_secs(6 * 3600),
            retention_age: Duration::from_secs(7 * 24 * 3600),
            retention_bytes: None,
            durability: Durability::Fsync,
            pending_bytes_max: 16 << 20,
            commit_interval: Duration::from_micros(500),
        }
    }
}

impl LogConfig {
    pub(super) fn check(&self) -> Result<(), OpenError> {
        if !(1..=1024).contains(&self.partitions) {
            return Err(OpenError::Config("partitions must be 1 to 1024"));
        }
        if self.segment_bytes < 4096 {
            return Err(OpenError::Config("segment_bytes must be at least 4096"));
        }
        if self.pending_bytes_max == 0 {
            return Err(OpenError::Config("pending_bytes_max must not be 0"));
        }
        Ok(())
    }
}

/// Why the event log cannot be opened. Nothing on the disk was changed, except that missing files may have been made.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A setting is out of range.
    #[error("the settings of the event log are wrong: {0}")]
    Config(&'static str),
    /// A file or directory cannot be used.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A newer version of Holdfast has written this log.
    #[error(
        "{} has event log format {found}, this version reads up to {supported}: start the newer version again",
        path.display()
    )]
    NewerFormat {
        /// The file that says so.
        path: PathBuf,
        /// Its format version.
        found: u32,
        /// The newest this version knows.
        supported: u32,
    },
    /// The file `meta` is not one of ours, or damaged.
    #[error("{} is damaged or no event log: restore it from a backup", path.display())]
    MalformedMeta {
        /// The file.
        path: PathBuf,
    },
    /// There are segments, but no `meta`.
    #[error("{} holds segments but no file meta: restore it from a backup", path.display())]
    MissingMeta {
        /// The log's directory.
        path: PathBuf,
    },
}

impl OpenError {
    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> OpenError {
        let path = path.into();
        move |source| OpenError::Io { action, path, source }
    }
}
