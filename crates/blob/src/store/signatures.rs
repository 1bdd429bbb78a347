//! Signatures that ended before their time, and the upkeep of what is kept for a time only.

use holdfast_model::Timestamp;
use rusqlite::{Connection, params};

use super::{Blob, BlobStore, STAGED_SECONDS_MAX, find_blob};
use crate::error::BlobError;

impl BlobStore {
    /// Ends all signatures that name `id` as their `si`, durably; forgotten after `until`, when they have ended anyway.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn revoke(&self, id: &str, until: Timestamp) -> Result<(), BlobError> {
        revoke(&self.inner.db.lock(), id, until)
    }

    /// Looks at a blob and ends the signatures that name `id`, at one moment: what was seen is what stays. `None` when
    /// there is no such blob, and then they go on.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn finish_upload(
        &self,
        container: &str,
        name: &str,
        id: &str,
        until: Timestamp,
    ) -> Result<Option<Blob>, BlobError> {
        self.change(|db, _| {
            let blob = match find_blob(db, container, name) {
                Err(error) if error.status == 404 => None,
                found => found?,
            };
            if blob.is_some() {
                revoke(db, id, until)?;
            }
            Ok(blob)
        })
    }

    /// Whether [`BlobStore::revoke`] was called for `id`.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn is_revoked(&self, id: &str) -> Result<bool, BlobError> {
        is_revoked(&self.inner.db.lock(), id)
    }

    /// Removes blocks that were staged too long ago, and forgets signatures that have ended by themselves. To be called
    /// now and then.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn sweep(&self, now: Timestamp) -> Result<(), BlobError> {
        let staged_before = now.as_seconds() - STAGED_SECONDS_MAX;
        self.change(|db, freed| {
            let mut files = db.prepare_cached("SELECT file FROM staged WHERE at < ?1")?;
            for file in files.query_map([staged_before], |row| row.get(0))? {
                freed.push(file?);
            }
            db.execute("DELETE FROM staged WHERE at < ?1", [staged_before])?;
            db.execute("DELETE FROM revoked WHERE until < ?1", [now.as_seconds()])?;
            Ok(())
        })
    }
}

fn revoke(db: &Connection, id: &str, until: Timestamp) -> Result<(), BlobError> {
    db.execute(
        "INSERT OR REPLACE INTO revoked VALUES (?1, ?2)",
        params![id, until.as_seconds() + 1],
    )?;
    Ok(())
}

fn is_revoked(db: &Connection, id: &str) -> Result<bool, BlobError> {
    let mut known = db.prepare_cached("SELECT EXISTS (SELECT 1 FROM revoked WHERE id = ?1)")?;
    Ok(known.query_row([id], |row| row.get(0))?)
}

/// Refuses a write whose signature has ended while its body came.
///
/// # Errors
/// `AuthenticationFailed`.
pub(super) fn check_alive(db: &Connection, signature: Option<&str>) -> Result<(), BlobError> {
    match signature {
        Some(id) if is_revoked(db, id)? => Err(BlobError::signature_ended()),
        _ => Ok(()),
    }
}
