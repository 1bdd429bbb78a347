//! Opening a database file: what it is, which version it has, and bringing it up to date.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};

/// Marks a file as ours: "Hold" in ASCII.
const APPLICATION_ID: i32 = 0x486f_6c64;

/// Every version of the schema, oldest first; the place in this list (from 1) is the `user_version`. A released entry
/// is never edited, only followed by another one.
const MIGRATIONS: &[&str] = &[
    include_str!("migrations/0001_first.sql"),
    include_str!("migrations/0002_provisioning.sql"),
    include_str!("migrations/0003_fleet.sql"),
    include_str!("migrations/0004_routing.sql"),
    include_str!("migrations/0005_messages_out.sql"),
    include_str!("migrations/0006_children.sql"),
];

/// Page cache of one connection, KiB. Small on purpose: the operating system's cache serves the rest, and the memory
/// of an idle hub is a promise.
const PAGE_CACHE_KIB: i64 = 2_048;

/// Pages in the write-ahead log after which a commit moves them into the database file (16 MiB).
const WAL_PAGES: i64 = 4_096;

/// How long a connection waits for a lock of the file: only while a neighbour recovers the log or makes a backup.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a database file could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("{} is in use by another process; stop that one first", path.display())]
    InUse {
        /// The database file.
        path: PathBuf,
    },
    /// The file or its lock file could not be made or opened.
    #[error("cannot open {}; check that the directory exists and may be written", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// Not a SQLite file, or a damaged one.
    #[error(
        "{} is damaged or is not a database; move it away together with its -wal and -shm files and restore a backup",
        path.display()
    )]
    Damaged {
        /// The database file.
        path: PathBuf,
        /// Cause.
        source: rusqlite::Error,
    },
    /// A SQLite file of another program.
    #[error("{} belongs to another program (application id {application_id:#x}); choose another file", path.display())]
    Foreign {
        /// The database file.
        path: PathBuf,
        /// What it says it is.
        application_id: i32,
    },
    /// Written by a later release. Nothing was changed.
    #[error(
        "{} was written by a newer release (schema {found}, this one knows {known}); start that release, or restore a \
         backup made before the upgrade",
        path.display()
    )]
    NewerVersion {
        /// The database file.
        path: PathBuf,
        /// Its schema version.
        found: i32,
        /// The newest this program knows.
        known: i32,
    },
    /// A step of setting up or upgrading failed; the file is as it was before the step.
    #[error("cannot set up {}", path.display())]
    SetUp {
        /// The database file.
        path: PathBuf,
        /// Cause.
        source: rusqlite::Error,
    },
}

impl OpenError {
    fn sqlite(path: &Path, source: rusqlite::Error) -> Self {
        let path = path.to_owned();
        match source.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => OpenError::Damaged { path, source },
            _ => OpenError::SetUp { path, source },
        }
    }
}

/// Takes the file's lock for as long as the returned file lives, so that two hubs never write one database. A lock
/// file of its own, because SQLite drops its locks when any descriptor of the database file is closed.
pub(super) fn lock(path: &Path) -> Result<File, OpenError> {
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let lock_path = PathBuf::from(lock_path);
    let failed = |source| OpenError::File {
        path: lock_path.clone(),
        source,
    };
    let file = private().open(&lock_path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(OpenError::InUse {
            path: path.to_owned(),
        }),
        Err(std::fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// The database holds keys, so only its owner may read it; SQLite gives its side files the same permissions.
pub(super) fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600);
    options
}

/// Switches SQLite's bookkeeping of its memory off: it takes a lock of the whole process around every allocation, which
/// readers and writer would contend for, and nobody asks for the figures.
fn configure_process() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // SAFETY: takes one int by value, as documented for this option. If the process has used SQLite already, the
        // call is refused and everything stays as it was.
        let _ = unsafe { ffi::sqlite3_config(ffi::SQLITE_CONFIG_MEMSTATUS, 0) };
    });
}

/// Opens the one writing connection, with the newest schema. The caller holds [`lock`].
pub(super) fn open_writer(path: &Path) -> Result<Connection, OpenError> {
    configure_process();
    drop(private().open(path).map_err(|source| OpenError::File {
        path: path.to_owned(),
        source,
    })?);
    inspect(path)?;
    let failed = |source| OpenError::sqlite(path, source);
    let mut connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )
    .map_err(failed)?;
    configure(&connection).map_err(failed)?;
    connection
        .execute_batch(&format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;
             PRAGMA wal_autocheckpoint = {WAL_PAGES}; PRAGMA journal_size_limit = 67108864;"
        ))
        .map_err(failed)?;
    migrate(&mut connection).map_err(failed)?;
    Ok(connection)
}

/// Opens a reading connection to a database that a writer has opened before.
pub(super) fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    configure(&connection)?;
    Ok(connection)
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(96);
    connection.execute_batch(&format!(
        "PRAGMA cache_size = -{PAGE_CACHE_KIB}; PRAGMA mmap_size = 0; PRAGMA temp_store = MEMORY;"
    ))
}

/// Looks at the file without being able to change it, so that one we cannot serve stays untouched.
fn inspect(path: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::sqlite(path, source);
    let connection = open_reader(path).map_err(failed)?;
    let (application_id, version) = (|| {
        Ok((
            connection.query_row("PRAGMA application_id", [], |row| row.get::<_, i32>(0))?,
            user_version(&connection)?,
        ))
    })()
    .map_err(failed)?;
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(failed)?;
    let empty = tables == 0 && application_id == 0 && version == 0;
    if application_id != APPLICATION_ID && !empty {
        return Err(OpenError::Foreign {
            path: path.to_owned(),
            application_id,
        });
    }
    let known = MIGRATIONS.len() as i32;
    if version > known {
        return Err(OpenError::NewerVersion {
            path: path.to_owned(),
            found: version,
            known,
        });
    }
    Ok(())
}

fn user_version(connection: &Connection) -> rusqlite::Result<i32> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// Runs the missing migrations, each in a transaction of its own.
fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    let present = user_version(connection)?;
    let missing = MIGRATIONS
        .iter()
        .zip(1..)
        .skip(usize::try_from(present).unwrap_or(0));
    for (sql, version) in missing {
        let transaction = connection.transaction()?;
        transaction.execute_batch(sql)?;
        transaction.execute_batch(&format!(
            "PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {version};"
        ))?;
        transaction.commit()?;
    }
    Ok(())
}

/// Counts this opening of the file and voids what was only valid in the earlier ones; returns the count.
pub(super) fn begin_boot(connection: &mut Connection) -> rusqlite::Result<i64> {
    let transaction = connection.transaction()?;
    let boot = transaction.query_row("UPDATE hub SET boot = boot + 1 RETURNING boot", [], |row| {
        row.get(0)
    })?;
    transaction.execute(
        "UPDATE feedback SET lock_batch = NULL, lock_nonce = NULL, lock_until = NULL
         WHERE lock_nonce IS NOT NULL",
        [],
    )?;
    transaction.execute(
        "UPDATE file_notifications SET lock_nonce = NULL, lock_until = NULL WHERE lock_nonce IS NOT NULL",
        [],
    )?;
    transaction.commit()?;
    Ok(boot)
}
