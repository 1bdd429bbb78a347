//! Ranges and bodies of downloads.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use axum::body::Body;
use bytes::Bytes;

use crate::error::BlobError;

/// What a download holds in memory at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// `bytes=a-b` or `bytes=a-`; anything else is no range, as HTTP says.
pub(crate) fn parse_range(text: &str) -> Option<(u64, u64)> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let first = first.parse().ok()?;
    let last = match last {
        "" => u64::MAX,
        last => last.parse().ok()?,
    };
    (first <= last).then_some((first, last))
}

/// A body of `length` bytes from `first` on. Files are opened as their turn comes, except the first.
pub(crate) async fn stream(parts: Vec<(PathBuf, u64)>, first: u64, length: u64) -> Result<Body, BlobError> {
    let mut wanted = Vec::new();
    let (mut skip, mut left) = (first, length);
    for (path, size) in parts {
        if skip >= size {
            skip -= size;
            continue;
        }
        let take = (size - skip).min(left);
        if take > 0 {
            wanted.push((path, skip, take));
        }
        skip = 0;
        left -= take;
    }
    wanted.reverse();
    let chunks = futures_util::stream::try_unfold((wanted, None), |(mut wanted, mut open)| async move {
        let step = tokio::task::spawn_blocking(move || -> std::io::Result<_> {
            let (mut file, left): (std::fs::File, u64) = match open.take() {
                Some(open) => open,
                None => match wanted.pop() {
                    None => return Ok(None),
                    Some((path, skip, take)) => {
                        let mut file = std::fs::File::open(path)?;
                        file.seek(SeekFrom::Start(skip))?;
                        (file, take)
                    }
                },
            };
            let mut chunk = vec![0; usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES)];
            file.read_exact(&mut chunk)?;
            let left = left - chunk.len() as u64;
            open = (left > 0).then_some((file, left));
            Ok(Some((Bytes::from(chunk), (wanted, open))))
        });
        step.await.map_err(std::io::Error::other)?
    });
    Ok(Body::from_stream(chunks))
}
