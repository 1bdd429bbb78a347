//! All state of a hub in one SQLite file: registry, twins, cloud-to-device queues, sessions, settings, checkpoints,
//! enrollments.
//!
//! - [`writer`]: one thread commits the changes of all callers in groups; `Ok` means synced to the disk.
//! - `readers`: read-only connections, used inline on the calling thread.
//! - `schema`: opening, versions, migrations (`migrations/`); the tables are described there.
//! - one file per port: `registry`, `twin`, `c2d` with `feedback`, `settings`, `sessions`, `checkpoints`,
//!   `enrollments`, `files`, `configurations`, `jobs`, `query`.
//!
//! The file belongs to one process at a time (a lock file beside it says so); anyone may read it with the `sqlite3`
//! tool meanwhile. Why it is built like this, with measurements: `docs/adr/0011-embedded-store.md`.

mod c2d;
mod checkpoints;
mod configurations;
mod dead_letters;
mod enrollments;
pub mod events;
mod fault;
mod feedback;
mod files;
mod jobs;
mod outbox;
pub mod query;
mod readers;
mod registry;
mod schema;
mod sessions;
mod settings;
mod twin;
pub mod writer;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_observe::Event as _;
use holdfast_ports::{BoxFuture, StoreError, StoreResult};
use rusqlite::Connection;

pub use events::Metrics;
pub use schema::OpenError;

use events::Opened;
use fault::Fault;
use readers::Readers;
use writer::{Shape, WriteContext, Writer};

/// The embedded store of state. Cheap to clone; the file is closed when the last clone is dropped, which waits for
/// the changes handed in before.
#[derive(Clone)]
pub struct SqliteStore {
    shared: Arc<Shared>,
}

/// Fields are dropped in this order: the readers close, the writer drains and, as the last connection, folds the
/// write-ahead log into the file (a read-only connection could not), then the file is free for another process.
struct Shared {
    queries: query::Connections,
    usage: query::Usage,
    readers: Readers,
    writer: Writer,
    boot: i64,
    path: PathBuf,
    _lock: File,
}

impl SqliteStore {
    /// Opens the database at `path`, making or upgrading it if need be. Its directory must exist. Does not depend on
    /// the number of identities stored.
    ///
    /// # Errors
    /// [`OpenError`]; a file that this program cannot serve is left as it was.
    pub fn open(path: &Path, metrics: Metrics) -> Result<Self, OpenError> {
        Self::open_with(path, metrics, query::QueryLimits::default())
    }

    /// As [`SqliteStore::open`], with bounds of queries.
    ///
    /// # Errors
    /// As [`SqliteStore::open`].
    pub fn open_with(path: &Path, metrics: Metrics, limits: query::QueryLimits) -> Result<Self, OpenError> {
        let lock = schema::lock(path)?;
        let mut connection = schema::open_writer(path)?;
        let set_up = |source| OpenError::SetUp {
            path: path.to_owned(),
            source,
        };
        let boot = schema::begin_boot(&mut connection).map_err(set_up)?;
        Opened { path, boot }.emit(&metrics);
        let readers = Readers::new(path.to_owned(), metrics.clone());
        let queries = query::Connections::new(path.to_owned(), metrics.clone(), limits);
        let writer = Writer::start(WriteContext::new(connection, boot, metrics)).map_err(|source| {
            OpenError::File {
                path: path.to_owned(),
                source,
            }
        })?;
        Ok(SqliteStore {
            shared: Arc::new(Shared {
                queries,
                usage: query::Usage::default(),
                writer,
                readers,
                boot,
                path: path.to_owned(),
                _lock: lock,
            }),
        })
    }

    /// Where the epochs of this process's sessions start: greater than every epoch of earlier processes on this file,
    /// with room for 2^32 sessions.
    #[must_use]
    pub fn next_epoch_base(&self) -> u64 {
        (self.shared.boot as u64) << 32
    }

    /// The database file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Writes a compact copy of the state as of now to a new file, while the store goes on working. Blocks for as
    /// long as that takes: call it on a thread that may wait.
    ///
    /// # Errors
    /// `Unavailable`, also when `target` exists.
    pub fn backup_to(&self, target: &Path) -> StoreResult<()> {
        let unavailable =
            |error: std::io::Error| StoreError::Unavailable(format!("cannot write the backup: {error}"));
        // SQLite fills an empty file; made here, it has the permissions that keys need, and nothing is overwritten.
        let file = schema::private()
            .create_new(true)
            .open(target)
            .map_err(unavailable)?;
        let copied = self.shared.readers.read(|db| {
            let target = target
                .to_str()
                .ok_or_else(|| Fault::content("backup path", "it is not UTF-8"))?;
            db.execute("VACUUM INTO ?1", [target])?;
            Ok(())
        });
        let synced = copied.and_then(|()| file.sync_all().map_err(unavailable));
        if synced.is_err() {
            // Half a backup is worse than none; that it cannot be removed either changes nothing for the caller.
            let _ = std::fs::remove_file(target);
        }
        synced
    }

    /// Bounds the size of the database file (`None`: what the disk has). Changes that need more are refused as on a
    /// full disk; the log beside the file, which comes and goes, is not counted.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn limit_size(&self, bytes: Option<u64>) -> StoreResult<()> {
        self.write(move |context| {
            let page_size: i64 = context.db.query_row("PRAGMA page_size", [], |row| row.get(0))?;
            // 2^32 - 2 is SQLite's own bound.
            let pages = bytes.map_or(0xffff_fffe, |bytes| {
                (bytes / page_size as u64).clamp(1, 0xffff_fffe)
            });
            context
                .db
                .query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))?;
            Ok(())
        })
        .await
    }

    /// Runs a read on the calling thread when the future is polled.
    fn read<'a, T: Send + 'a>(
        &'a self,
        read: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'a,
    ) -> BoxFuture<'a, StoreResult<T>> {
        Box::pin(async move { self.shared.readers.read(read) })
    }

    /// Runs an operation of several statements on the writer.
    fn write<'a, T: Send + 'static>(
        &'a self,
        operation: impl FnOnce(&WriteContext) -> Result<T, Fault> + Send + 'static,
    ) -> BoxFuture<'a, StoreResult<T>> {
        Box::pin(self.shared.writer.write(Shape::Compound, operation))
    }

    /// Runs an operation on the writer that changes something with its last statement only.
    fn write_single<'a, T: Send + 'static>(
        &'a self,
        operation: impl FnOnce(&WriteContext) -> Result<T, Fault> + Send + 'static,
    ) -> BoxFuture<'a, StoreResult<T>> {
        Box::pin(self.shared.writer.write(Shape::SingleStatement, operation))
    }
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteStore")
            .field("path", &self.shared.path)
            .finish_non_exhaustive()
    }
}

/// The rowid of an identity.
fn identity_row(db: &Connection, identity: &holdfast_model::Identity) -> Result<Option<i64>, Fault> {
    use rusqlite::OptionalExtension as _;
    Ok(db
        .prepare_cached("SELECT id FROM identities WHERE device_id = ?1 AND module_id = ?2")?
        .query_row((identity.device_id(), module_column(identity)), |row| row.get(0))
        .optional()?)
}

/// The module id as stored: empty for a device.
fn module_column(identity: &holdfast_model::Identity) -> &str {
    identity.module_id().unwrap_or_default()
}
