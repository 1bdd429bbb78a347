//! Containers and block blobs in a folder.
//!
//! # On the disk
//! `index.db` (SQLite, synchronous = FULL) knows containers, blobs, staged blocks and the parts of blobs. `data/` holds
//! one file for each part, named by a random number. No name that a client chose becomes a path.
//!
//! # Writing
//! A part is written to its file, which is synced, and so is the folder; then one transaction of the index makes it a
//! block or a blob. That commit is the acknowledgement: a crash before it leaves a file that nobody knows, and the next
//! start removes those. A list of blocks is such a transaction alone, so a blob is whole or not there, and nothing is
//! copied. A blob that is replaced while it is read ends its reader's connection at the next part, and the entity tag tells
//! the client that a second try would read another blob.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_model::Timestamp;
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::error::{BlobError, disk_full};

mod list;
mod signatures;

pub use list::{Entry, Page};
use signatures::check_alive;

/// Most blocks of a blob.
pub const BLOCKS_MAX: usize = 50_000;
/// Most staged blocks of a blob.
pub const STAGED_MAX: i64 = 100_000;
/// Free bytes that an upload must leave on the disk, unless it is said otherwise.
pub const FREE_BYTES_MIN: u64 = 512 << 20;
/// Most entries of a listing.
pub const LIST_MAX: usize = 5_000;
/// How long a staged block is kept without a list that names it, in seconds: a week, as the Blob service does.
pub const STAGED_SECONDS_MAX: i64 = 7 * 86_400;

/// Properties and metadata, stored as JSON: names as they are sent in answers, with their values.
pub type Headers = Vec<(String, String)>;

/// What is known of a blob.
#[derive(Clone, Debug)]
pub struct Blob {
    /// Its name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Entity tag without quotes.
    pub etag: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last written.
    pub modified_at: Timestamp,
    /// Content-Type and its like.
    pub properties: Headers,
    /// `x-ms-meta-…` without the prefix.
    pub metadata: Headers,
    /// Row in the index.
    id: i64,
}

/// What is known of a container.
#[derive(Clone, Debug)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Entity tag without quotes.
    pub etag: String,
    /// When it was last written.
    pub modified_at: Timestamp,
    /// `x-ms-meta-…` without the prefix.
    pub metadata: Headers,
}

/// A block of a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Block {
    /// Base64 as the client wrote it.
    pub id: String,
    /// Bytes.
    pub size: u64,
}

/// A blob, if it exists yet, with its committed and its staged blocks.
pub type Blocks = (Option<Blob>, Vec<Block>, Vec<Block>);

/// Where a list takes a block from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum From {
    /// Blocks of the blob as it is.
    Committed,
    /// Staged blocks.
    Staged,
    /// Staged, else of the blob as it is.
    Latest,
}

/// What is written, when, and with which right.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Container.
    pub container: &'a str,
    /// Name of the blob.
    pub name: &'a str,
    /// Name of the signature that allows it, if it has one: a signature that ends while a body comes ends the write.
    pub signature: Option<&'a str>,
    /// Now.
    pub now: Timestamp,
}

/// A part in writing: a file that nobody knows yet. Dropped, it is removed.
pub struct Part {
    file: i64,
    path: PathBuf,
    size: u64,
    kept: bool,
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.kept {
            // A file that stays is removed at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The store. Cheap to clone; its calls block.
#[derive(Clone)]
pub struct BlobStore {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    free_bytes_min: u64,
    /// One looks for room at a time, so that two do not take the same.
    room: Mutex<()>,
    db: Mutex<Connection>,
}

const SCHEMA: &str = include_str!("schema.sql");

impl BlobStore {
    /// Opens or makes a store in `dir`; removes what a crash has left, and blocks staged too long ago. Uploads leave
    /// `free_bytes_min` on the disk.
    ///
    /// # Errors
    /// When the folder or its index cannot be used.
    pub fn open(dir: &Path, free_bytes_min: u64, now: Timestamp) -> Result<Self, BlobError> {
        use std::os::unix::fs::DirBuilderExt as _;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir.join("data"))?;
        File::open(dir)?.sync_all()?;
        let db = Connection::open(dir.join("index.db"))?;
        db.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")?;
        db.execute_batch(SCHEMA)?;
        let store = BlobStore {
            inner: Arc::new(Inner {
                dir: dir.to_owned(),
                free_bytes_min,
                room: Mutex::new(()),
                db: Mutex::new(db),
            }),
        };
        store.sweep(now)?;
        store.remove_orphans()?;
        Ok(store)
    }

    fn remove_orphans(&self) -> Result<(), BlobError> {
        let db = self.inner.db.lock();
        let mut known = db.prepare("SELECT file FROM parts UNION SELECT file FROM staged")?;
        let known: HashSet<i64> = known.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        for entry in fs::read_dir(self.inner.dir.join("data"))? {
            let entry = entry?;
            let name = entry.file_name();
            let file = name.to_str().and_then(|name| u64::from_str_radix(name, 16).ok());
            if file.is_some_and(|file| !known.contains(&file.cast_signed())) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn path(&self, file: i64) -> PathBuf {
        self.inner
            .dir
            .join("data")
            .join(format!("{:016x}", file.cast_unsigned()))
    }

    /// Begins a part of `size` bytes, if the disk has room for them.
    ///
    /// # Errors
    /// `InsufficientStorage`; those of the disk.
    pub fn begin(&self, size: u64) -> Result<(Part, File), BlobError> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).map_err(|error| std::io::Error::other(error.to_string()))?;
        let file = i64::from_ne_bytes(bytes);
        let path = self.path(file);
        let _room = self.inner.room.lock();
        let disk = rustix::fs::statvfs(&self.inner.dir).map_err(std::io::Error::from)?;
        let wanted = size.saturating_add(self.inner.free_bytes_min);
        if disk.f_bavail.saturating_mul(disk.f_frsize) < wanted {
            return Err(disk_full());
        }
        let opened = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        let part = Part {
            file,
            path,
            size: 0,
            kept: false,
        };
        if size > 0 {
            // The space is taken now, so that uploads side by side see what the others will need.
            match rustix::fs::fallocate(&opened, FallocateFlags::KEEP_SIZE, 0, size) {
                // Not every file system can.
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
                Err(error) => return Err(std::io::Error::from(error).into()),
            }
        }
        Ok((part, opened))
    }

    /// Syncs a part that has been written.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn seal(&self, part: &mut Part, file: &File, size: u64) -> Result<(), BlobError> {
        file.sync_all()?;
        File::open(self.inner.dir.join("data"))?.sync_all()?;
        part.size = size;
        Ok(())
    }

    /// Runs a transaction; the files that it freed are removed after it.
    fn change<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>, &mut Vec<i64>) -> Result<T, BlobError>,
    ) -> Result<T, BlobError> {
        let mut freed = Vec::new();
        let mut db = self.inner.db.lock();
        let transaction = db.transaction()?;
        let done = work(&transaction, &mut freed)?;
        let mut used = Vec::new();
        for file in freed {
            let still: bool = transaction
                .prepare_cached(
                    "SELECT EXISTS (SELECT 1 FROM parts WHERE file = ?1)
                         OR EXISTS (SELECT 1 FROM staged WHERE file = ?1)",
                )?
                .query_row([file], |row| row.get(0))?;
            if !still {
                used.push(file);
            }
        }
        transaction.commit()?;
        drop(db);
        for file in used {
            let _ = fs::remove_file(self.path(file));
        }
        Ok(done)
    }

    /// Makes a container, or says that it exists.
    ///
    /// # Errors
    /// `ContainerAlreadyExists`.
    pub fn create_container(
        &self,
        name: &str,
        metadata: &Headers,
        now: Timestamp,
    ) -> Result<Container, BlobError> {
        let container = Container {
            name: name.to_owned(),
            etag: new_etag()?,
            modified_at: now,
            metadata: metadata.clone(),
        };
        let made = self.inner.db.lock().execute(
            "INSERT OR IGNORE INTO containers VALUES (?1, ?2, ?3, ?4)",
            params![name, container.etag, now.as_seconds(), text(metadata)],
        )?;
        if made == 0 {
            let message = "The specified container already exists.";
            return Err(BlobError::new(409, "ContainerAlreadyExists", message));
        }
        Ok(container)
    }

    /// A container.
    ///
    /// # Errors
    /// `ContainerNotFound`.
    pub fn container(&self, name: &str) -> Result<Container, BlobError> {
        let db = self.inner.db.lock();
        find_container(&db, name)
    }

    /// Replaces the metadata of a container.
    ///
    /// # Errors
    /// `ContainerNotFound`.
    pub fn set_container_metadata(
        &self,
        name: &str,
        metadata: &Headers,
        now: Timestamp,
    ) -> Result<Container, BlobError> {
        self.change(|db, _| {
            db.execute(
                "UPDATE containers SET metadata = ?2, etag = ?3, modified_at = ?4 WHERE name = ?1",
                params![name, text(metadata), new_etag()?, now.as_seconds()],
            )?;
            find_container(db, name)
        })
    }

    /// Removes a container with all that is in it.
    ///
    /// # Errors
    /// `ContainerNotFound`.
    pub fn delete_container(&self, name: &str) -> Result<(), BlobError> {
        self.change(|db, freed| {
            for sql in [
                "SELECT file FROM parts JOIN blobs ON blobs.id = parts.blob WHERE container = ?1",
                "SELECT file FROM staged WHERE container = ?1",
            ] {
                let mut files = db.prepare(sql)?;
                for file in files.query_map([name], |row| row.get(0))? {
                    freed.push(file?);
                }
            }
            match db.execute("DELETE FROM containers WHERE name = ?1", [name])? {
                0 => Err(BlobError::container_missing()),
                _ => Ok(()),
            }
        })
    }

    /// A blob.
    ///
    /// # Errors
    /// `ContainerNotFound`, `BlobNotFound`.
    pub fn blob(&self, container: &str, name: &str) -> Result<Blob, BlobError> {
        let db = self.inner.db.lock();
        require_blob(&db, container, name)
    }

    /// A blob with its opened parts, in order: file and bytes.
    ///
    /// # Errors
    /// `ContainerNotFound`, `BlobNotFound`.
    pub fn read(&self, container: &str, name: &str) -> Result<(Blob, Vec<(PathBuf, u64)>), BlobError> {
        let db = self.inner.db.lock();
        let blob = require_blob(&db, container, name)?;
        let mut rows = db.prepare_cached("SELECT file, size FROM parts WHERE blob = ?1 ORDER BY place")?;
        let parts = rows
            .query_map([blob.id], |row| {
                Ok((self.path(row.get(0)?), row.get::<_, i64>(1)? as u64))
            })?
            .collect::<Result<_, _>>()?;
        Ok((blob, parts))
    }

    /// Makes one part a blob. `check` sees what is replaced and may refuse.
    ///
    /// # Errors
    /// `ContainerNotFound`; those of `check`.
    pub fn put(
        &self,
        target: Target<'_>,
        mut part: Part,
        described: (&Headers, &Headers),
        check: impl FnOnce(Option<&Blob>) -> Result<(), BlobError>,
    ) -> Result<Blob, BlobError> {
        let parts = [(String::new(), part.file, part.size)];
        let blob = self.change(|db, freed| {
            check_alive(db, target.signature)?;
            check(find_blob(db, target.container, target.name)?.as_ref())?;
            replace(db, target, &parts, described, freed)
        });
        let blob = blob.map_err(|error| keep_on_failure(&mut part, error))?;
        part.kept = true;
        Ok(blob)
    }

    /// Stages a part as a block.
    ///
    /// # Errors
    /// `ContainerNotFound`, `InvalidBlobOrBlock` for an id of another length, `BlockCountExceedsLimit`.
    pub fn stage(&self, target: Target<'_>, block: &str, mut part: Part) -> Result<(), BlobError> {
        let Target {
            container, name, now, ..
        } = target;
        let staged = self.change(|db, freed| {
            check_alive(db, target.signature)?;
            find_container(db, container)?;
            let (count, other): (i64, Option<i64>) = db
                .prepare_cached(
                    "SELECT count(*), max(length(block)) FROM staged WHERE container = ?1 AND name = ?2",
                )?
                .query_row([container, name], |row| Ok((row.get(0)?, row.get(1)?)))?;
            if count >= STAGED_MAX {
                let message = "The blob has as many uncommitted blocks as it may.";
                return Err(BlobError::new(409, "BlockCountExceedsLimit", message));
            }
            if other.is_some_and(|length| length != block.len() as i64) {
                let message = "All block ids of a blob must have the same length.";
                return Err(BlobError::new(400, "InvalidBlobOrBlock", message));
            }
            let key = [container, name, block];
            let old: Option<i64> = db
                .query_row(
                    "SELECT file FROM staged WHERE container = ?1 AND name = ?2 AND block = ?3",
                    key,
                    |row| row.get(0),
                )
                .optional()?;
            freed.extend(old);
            db.execute(
                "INSERT OR REPLACE INTO staged VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![
                    container,
                    name,
                    block,
                    part.file,
                    part.size as i64,
                    now.as_seconds()
                ],
            )?;
            Ok(())
        });
        staged.map_err(|error| keep_on_failure(&mut part, error))?;
        part.kept = true;
        Ok(())
    }

    /// Makes a list of blocks the blob; blocks that are not in it are dropped.
    ///
    /// # Errors
    /// `ContainerNotFound`, `InvalidBlockList`; those of `check`.
    pub fn commit(
        &self,
        target: Target<'_>,
        list: &[(From, String)],
        described: (&Headers, &Headers),
        check: impl FnOnce(Option<&Blob>) -> Result<(), BlobError>,
    ) -> Result<Blob, BlobError> {
        let Target { container, name, .. } = target;
        self.change(|db, freed| {
            check_alive(db, target.signature)?;
            let old = find_blob(db, container, name)?;
            check(old.as_ref())?;
            let id = old.as_ref().map_or(-1, |blob| blob.id);
            let mut staged = db.prepare_cached(
                "SELECT file, size FROM staged WHERE container = ?1 AND name = ?2 AND block = ?3",
            )?;
            let mut committed =
                db.prepare_cached("SELECT file, size FROM parts WHERE blob = ?1 AND block = ?2 LIMIT 1")?;
            let mut parts = Vec::new();
            for (from, block) in list {
                let pair = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64));
                let mut found: Option<(i64, u64)> = None;
                if *from != From::Committed {
                    found = staged.query_row([container, name, block], pair).optional()?;
                }
                if found.is_none() && *from != From::Staged && !block.is_empty() {
                    found = committed.query_row(params![id, block], pair).optional()?;
                }
                let Some((file, size)) = found else {
                    let message = "The specified block list is invalid: a block of it is not there.";
                    return Err(BlobError::new(400, "InvalidBlockList", message));
                };
                parts.push((block.clone(), file, size));
            }
            drop((staged, committed));
            replace(db, target, &parts, described, freed)
        })
    }

    /// Committed and staged blocks of a blob; with `None` it does not exist yet.
    ///
    /// # Errors
    /// `ContainerNotFound`; `BlobNotFound` when there is neither a blob nor a block.
    pub fn blocks(&self, container: &str, name: &str) -> Result<Blocks, BlobError> {
        let db = self.inner.db.lock();
        let blob = find_blob(&db, container, name)?;
        let read = |row: &rusqlite::Row<'_>| {
            Ok(Block {
                id: row.get(0)?,
                size: row.get::<_, i64>(1)? as u64,
            })
        };
        let id = blob.as_ref().map_or(-1, |blob| blob.id);
        let mut parts = db
            .prepare_cached("SELECT block, size FROM parts WHERE blob = ?1 AND block <> '' ORDER BY place")?;
        let committed: Vec<Block> = parts.query_map([id], read)?.collect::<Result<_, _>>()?;
        let mut rows = db.prepare_cached(
            "SELECT block, size FROM staged WHERE container = ?1 AND name = ?2 ORDER BY block",
        )?;
        let staged: Vec<Block> = rows
            .query_map([container, name], read)?
            .collect::<Result<_, _>>()?;
        if blob.is_none() && staged.is_empty() {
            return Err(BlobError::blob_missing());
        }
        Ok((blob, committed, staged))
    }

    /// Replaces properties or metadata (what is `None` stays).
    ///
    /// # Errors
    /// `ContainerNotFound`, `BlobNotFound`; those of `check`.
    pub fn describe(
        &self,
        target: Target<'_>,
        properties: Option<&Headers>,
        metadata: Option<&Headers>,
        check: impl FnOnce(Option<&Blob>) -> Result<(), BlobError>,
    ) -> Result<Blob, BlobError> {
        let Target {
            container, name, now, ..
        } = target;
        self.change(|db, _| {
            check_alive(db, target.signature)?;
            let blob = require_blob(db, container, name)?;
            check(Some(&blob))?;
            db.execute(
                "UPDATE blobs SET properties = ?2, metadata = ?3, etag = ?4, modified_at = ?5 WHERE id = ?1",
                params![
                    blob.id,
                    text(properties.unwrap_or(&blob.properties)),
                    text(metadata.unwrap_or(&blob.metadata)),
                    new_etag()?,
                    now.as_seconds()
                ],
            )?;
            require_blob(db, container, name)
        })
    }

    /// Removes a blob.
    ///
    /// # Errors
    /// `ContainerNotFound`, `BlobNotFound`; those of `check`.
    pub fn delete(
        &self,
        target: Target<'_>,
        check: impl FnOnce(Option<&Blob>) -> Result<(), BlobError>,
    ) -> Result<(), BlobError> {
        self.change(|db, freed| {
            check_alive(db, target.signature)?;
            let blob = require_blob(db, target.container, target.name)?;
            check(Some(&blob))?;
            free_parts(db, blob.id, freed)?;
            db.execute("DELETE FROM blobs WHERE id = ?1", [blob.id])?;
            Ok(())
        })
    }
}

fn replace(
    db: &Connection,
    target: Target<'_>,
    parts: &[(String, i64, u64)],
    (properties, metadata): (&Headers, &Headers),
    freed: &mut Vec<i64>,
) -> Result<Blob, BlobError> {
    let Target {
        container, name, now, ..
    } = target;
    find_container(db, container)?;
    let mut created_at = now;
    if let Some(old) = find_blob(db, container, name)? {
        created_at = old.created_at;
        free_parts(db, old.id, freed)?;
        db.execute("DELETE FROM blobs WHERE id = ?1", [old.id])?;
    }
    let mut staged = db.prepare_cached("SELECT file FROM staged WHERE container = ?1 AND name = ?2")?;
    for file in staged.query_map([container, name], |row| row.get(0))? {
        freed.push(file?);
    }
    db.execute(
        "DELETE FROM staged WHERE container = ?1 AND name = ?2",
        [container, name],
    )?;
    let size: u64 = parts.iter().map(|(_, _, size)| size).sum();
    db.execute(
        "INSERT INTO blobs (container, name, size, etag, created_at, modified_at, properties, metadata)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            container,
            name,
            size as i64,
            new_etag()?,
            created_at.as_seconds(),
            now.as_seconds(),
            text(properties),
            text(metadata)
        ],
    )?;
    let id = db.last_insert_rowid();
    let mut insert = db.prepare_cached("INSERT INTO parts VALUES (?1, ?2, ?3, ?4, ?5)")?;
    for (place, (block, file, size)) in parts.iter().enumerate() {
        insert.execute(params![id, place as i64, block, file, *size as i64])?;
    }
    require_blob(db, container, name)
}

/// Lets go of a part after a refusal. When the disk failed nobody knows whether the index names it: it stays, and the
/// next start decides.
fn keep_on_failure(part: &mut Part, error: BlobError) -> BlobError {
    part.kept = error.status >= 500;
    error
}

fn free_parts(db: &Connection, blob: i64, freed: &mut Vec<i64>) -> Result<(), BlobError> {
    let mut files = db.prepare_cached("SELECT DISTINCT file FROM parts WHERE blob = ?1")?;
    for file in files.query_map([blob], |row| row.get(0))? {
        freed.push(file?);
    }
    Ok(())
}

fn find_container(db: &Connection, name: &str) -> Result<Container, BlobError> {
    let mut rows =
        db.prepare_cached("SELECT name, etag, modified_at, metadata FROM containers WHERE name = ?1")?;
    rows.query_row([name], read_container)
        .optional()?
        .ok_or_else(BlobError::container_missing)
}

fn find_blob(db: &Connection, container: &str, name: &str) -> Result<Option<Blob>, BlobError> {
    find_container(db, container)?;
    let mut rows = db.prepare_cached(
        "SELECT id, name, size, etag, created_at, modified_at, properties, metadata FROM blobs
         WHERE container = ?1 AND name = ?2",
    )?;
    Ok(rows.query_row([container, name], read_blob).optional()?)
}

fn require_blob(db: &Connection, container: &str, name: &str) -> Result<Blob, BlobError> {
    find_blob(db, container, name)?.ok_or_else(BlobError::blob_missing)
}

fn read_container(row: &rusqlite::Row<'_>) -> rusqlite::Result<Container> {
    Ok(Container {
        name: row.get(0)?,
        etag: row.get(1)?,
        modified_at: Timestamp::from_seconds(row.get(2)?),
        metadata: headers(&row.get::<_, String>(3)?),
    })
}

fn read_blob(row: &rusqlite::Row<'_>) -> rusqlite::Result<Blob> {
    Ok(Blob {
        id: row.get(0)?,
        name: row.get(1)?,
        size: row.get::<_, i64>(2)? as u64,
        etag: row.get(3)?,
        created_at: Timestamp::from_seconds(row.get(4)?),
        modified_at: Timestamp::from_seconds(row.get(5)?),
        properties: headers(&row.get::<_, String>(6)?),
        metadata: headers(&row.get::<_, String>(7)?),
    })
}

fn text(headers: &Headers) -> String {
    serde_json::to_string(headers).expect("pairs of texts are JSON")
}

fn headers(text: &str) -> Headers {
    serde_json::from_str(text).unwrap_or_default()
}

fn new_etag() -> Result<String, BlobError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| std::io::Error::other(error.to_string()))?;
    Ok(format!("0x{:016X}", u64::from_ne_bytes(bytes)))
}
