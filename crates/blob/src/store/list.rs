//! Listings: containers and blobs, page by page.

use rusqlite::{OptionalExtension as _, params};

use super::{Blob, BlobStore, Container, find_container, read_blob, read_container};
use crate::error::BlobError;

/// A page of a listing: names in order, and the marker of the next page.
#[derive(Debug)]
pub struct Page<T> {
    /// Entries.
    pub items: Vec<T>,
    /// Where the next page begins.
    pub next: Option<String>,
}

/// An entry of a listing of blobs.
#[derive(Debug)]
pub enum Entry {
    /// A blob.
    Blob(Box<Blob>),
    /// Everything that begins so.
    Prefix(String),
}

impl BlobStore {
    /// Containers whose names begin with `prefix`, from `marker` on.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn containers(&self, prefix: &str, marker: &str, max: usize) -> Result<Page<Container>, BlobError> {
        let db = self.inner.db.lock();
        let mut rows = db.prepare_cached(
            "SELECT name, etag, modified_at, metadata FROM containers
             WHERE name >= ?1 AND substr(name, 1, length(?2)) = ?2 ORDER BY name LIMIT ?3",
        )?;
        let from = marker.max(prefix);
        let mut items: Vec<Container> = rows
            .query_map(params![from, prefix, max as i64 + 1], read_container)?
            .collect::<Result<_, _>>()?;
        let next = (items.len() > max)
            .then(|| items.pop().map(|last| last.name))
            .flatten();
        Ok(Page { items, next })
    }

    /// Blobs whose names begin with `prefix`, from `marker` on; names that hold `delimiter` behind the prefix are one
    /// entry up to it.
    ///
    /// # Errors
    /// `ContainerNotFound`.
    pub fn blobs(
        &self,
        container: &str,
        prefix: &str,
        delimiter: &str,
        marker: &str,
        max: usize,
    ) -> Result<Page<Entry>, BlobError> {
        let db = self.inner.db.lock();
        find_container(&db, container)?;
        let mut first = db.prepare_cached(
            "SELECT id, name, size, etag, created_at, modified_at, properties, metadata FROM blobs
             WHERE container = ?1 AND name >= ?2 AND substr(name, 1, length(?3)) = ?3 ORDER BY name LIMIT 1",
        )?;
        let mut items = Vec::new();
        let mut from = marker.max(prefix).to_owned();
        loop {
            let found = first
                .query_row(params![container, from, prefix], read_blob)
                .optional()?;
            let Some(blob) = found else {
                return Ok(Page { items, next: None });
            };
            if items.len() >= max {
                return Ok(Page {
                    items,
                    next: Some(blob.name),
                });
            }
            let rest = &blob.name[prefix.len()..];
            match rest.find(delimiter).filter(|_| !delimiter.is_empty()) {
                Some(place) => {
                    let common = blob.name[..prefix.len() + place + delimiter.len()].to_owned();
                    from = behind(&common).ok_or_else(|| BlobError::query("delimiter"))?;
                    items.push(Entry::Prefix(common));
                }
                None => {
                    from = format!("{}\u{1}", blob.name);
                    items.push(Entry::Blob(Box::new(blob)));
                }
            }
        }
    }
}

/// The first text that sorts behind all that begin with `prefix`.
fn behind(prefix: &str) -> Option<String> {
    let mut chars = prefix.chars();
    let last = chars.next_back()?;
    // Surrogates are no characters.
    let next = (last as u32 + 1..=last as u32 + 0x801).find_map(char::from_u32)?;
    Some(format!("{}{next}", chars.as_str()))
}
