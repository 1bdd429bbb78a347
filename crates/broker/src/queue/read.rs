//! Reading a queue.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_model::Timestamp;
use holdfast_model::event::EventBlock;
use holdfast_observe::tracing;
use holdfast_store::log::disk::DiskFile;

use super::format::{FRAME_HEADER_BYTES, FrameHeader, NEVER};
use super::state::{Cursor, Segment, Shared};
use super::writer::segment_path;
use super::{Loss, QueueId, StoredBlock};

/// A queue cannot be read now.
#[derive(Debug, thiserror::Error)]
#[error("cannot read a queue of the edge hub: {0}")]
pub struct ReadError(#[from] io::Error);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// Only what the page cache has.
    Cached,
    Waiting,
}

/// Where to read.
struct Place {
    segment: Segment,
    file: Option<Arc<dyn DiskFile>>,
    offset: u64,
    /// Whether a newer segment follows.
    closed: bool,
}

/// What a chunk gave.
struct Cut {
    blocks: Vec<StoredBlock>,
    /// Bytes used up.
    used: usize,
    /// Bytes needed for one whole frame, when the chunk had none.
    wanted: Option<usize>,
    /// Messages stepped over because they are damaged.
    lost: u64,
    /// Sequence number after what was used up.
    sequence: u64,
}

/// `None` only when `how` is cached and the cache does not have it.
pub(super) fn read(
    shared: &Shared,
    queue: QueueId,
    from: u64,
    bytes_max: usize,
    how: How,
) -> Result<Option<Vec<StoredBlock>>, ReadError> {
    let mut from = from;
    let mut bytes_max = bytes_max.max(FRAME_HEADER_BYTES);
    loop {
        let Some((place, at)) = find(shared, queue, from) else {
            return Ok(Some(Vec::new()));
        };
        from = at;
        let file = match open(shared, queue, &place) {
            Ok(file) => file,
            // Consumed and deleted meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if find(shared, queue, from)
                    .is_some_and(|(again, _)| again.segment.number == place.segment.number)
                {
                    return Err(error.into());
                }
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let left = place.segment.bytes.saturating_sub(place.offset);
        if left == 0 && !place.closed {
            return Ok(Some(Vec::new()));
        }
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(bytes_max);
        let Some(chunk) = read_chunk(&*file, place.offset, length, how)? else {
            return Ok(None);
        };
        // What is consumed meanwhile may be another segment by now.
        if !has(shared, queue, place.segment.number) {
            continue;
        }
        let is_last = chunk.len() as u64 >= left;
        let cut = cut(&chunk, &place.segment, from, is_last);
        if cut.lost > 0 {
            report(shared, queue, &place, cut.lost);
        }
        if let Some(wanted) = cut.wanted.filter(|_| cut.blocks.is_empty() && cut.used == 0) {
            if how == How::Cached && chunk.len() < length {
                return Ok(None);
            }
            if wanted > bytes_max && !is_last {
                bytes_max = wanted;
                continue;
            }
        }
        let progress = cut.used > 0;
        note(shared, queue, &place, &cut);
        if !cut.blocks.is_empty() {
            return Ok(Some(cut.blocks));
        }
        if progress {
            from = from.max(cut.sequence);
            continue;
        }
        if how == How::Cached {
            return Ok(None);
        }
        if place.closed {
            // Nothing sound is left in this one.
            let lost = place.segment.end.saturating_sub(from);
            report(shared, queue, &place, lost);
            from = place.segment.end;
            continue;
        }
        return Ok(Some(Vec::new()));
    }
}

/// The segment that holds `from`, or the next message after it.
fn find(shared: &Shared, queue: QueueId, from: u64) -> Option<(Place, u64)> {
    let inner = shared.inner.lock();
    let queue = inner.queues.get(queue.0 as usize)?;
    let from = from.max(queue.consumed);
    let index = queue.segments.partition_point(|segment| segment.end <= from);
    let segment = queue.segments.get(index)?.clone();
    let from = from.max(segment.first);
    let cursor = queue
        .cursor
        .filter(|cursor| cursor.number == segment.number && cursor.sequence <= from);
    let file = queue
        .reading
        .as_ref()
        .filter(|(number, _)| *number == segment.number)
        .map(|(_, file)| Arc::clone(file));
    let place = Place {
        offset: cursor.map_or(segment.header_bytes, |cursor| cursor.offset),
        closed: index + 1 < queue.segments.len(),
        segment,
        file,
    };
    Some((place, from))
}

/// Whether a segment is still one of the queue's.
fn has(shared: &Shared, queue: QueueId, number: u64) -> bool {
    let inner = shared.inner.lock();
    let queue = inner.queues.get(queue.0 as usize);
    queue.is_some_and(|queue| queue.segments.iter().any(|segment| segment.number == number))
}

fn open(shared: &Shared, queue: QueueId, place: &Place) -> io::Result<Arc<dyn DiskFile>> {
    if let Some(file) = &place.file {
        return Ok(Arc::clone(file));
    }
    let number = place.segment.number;
    let file: Arc<dyn DiskFile> = Arc::from(shared.disk.open(&segment_path(shared, number), false)?);
    let mut inner = shared.inner.lock();
    if let Some(queue) = inner.queues.get_mut(queue.0 as usize)
        && queue.segments.iter().any(|segment| segment.number == number)
    {
        queue.reading = Some((number, Arc::clone(&file)));
    }
    Ok(file)
}

fn read_chunk(file: &dyn DiskFile, offset: u64, length: usize, how: How) -> io::Result<Option<Bytes>> {
    let mut chunk = vec![0; length];
    let read = match how {
        How::Waiting => file.read_at(&mut chunk, offset)?,
        How::Cached => match file.read_cached_at(&mut chunk, offset)? {
            Some(read) => read,
            None => return Ok(None),
        },
    };
    chunk.truncate(read);
    Ok(Some(chunk.into()))
}

/// Cuts whole frames out of a chunk that starts at one.
fn cut(chunk: &Bytes, segment: &Segment, from: u64, is_last: bool) -> Cut {
    let mut cut = Cut {
        blocks: Vec::new(),
        used: 0,
        wanted: None,
        lost: 0,
        sequence: 0,
    };
    let mut expected = None;
    while cut.used < chunk.len() {
        let rest = &chunk[cut.used..];
        let Some((frame, _)) = FrameHeader::whole(rest, segment.salt) else {
            let header = FrameHeader::decode(rest, segment.salt);
            if !is_last
                && header.is_none_or(|header| header.bytes() > rest.len())
                && rest.len() < FRAME_HEADER_BYTES
            {
                cut.wanted = Some(FRAME_HEADER_BYTES + rest.len());
                break;
            }
            if let Some(header) = header.filter(|header| header.bytes() > rest.len() && !is_last) {
                cut.wanted = Some(header.bytes());
                break;
            }
            // Damage: on to the next sound frame in this chunk, if there is one.
            match next_frame(rest, segment.salt, is_last) {
                Some(step) => cut.used += step,
                None if is_last => break,
                // A header may begin in the last bytes.
                None => cut.used = (chunk.len() + 1 - FRAME_HEADER_BYTES).max(cut.used + 1),
            }
            continue;
        };
        // After a failed sync the same messages stand again in the next segment.
        if frame.first >= segment.end && frame.count > 0 {
            cut.used = chunk.len();
            break;
        }
        let payload = cut.used + FRAME_HEADER_BYTES..cut.used + frame.bytes();
        cut.used += frame.bytes();
        if frame.count == 0 {
            continue;
        }
        if let Some(expected) = expected {
            cut.lost += frame.first.saturating_sub(expected);
        }
        expected = Some(frame.end());
        cut.sequence = frame.end();
        if frame.end() <= from {
            continue;
        }
        cut.blocks.push(StoredBlock {
            block: EventBlock {
                partition: 0,
                first_sequence_number: frame.first,
                count: frame.count,
                enqueued_at: Timestamp::from_micros(frame.wall),
                data: chunk.slice(payload),
            },
            expires: (frame.expires != NEVER).then_some(frame.expires),
        });
    }
    cut
}

/// Bytes to the next sound frame after a damaged one; the last of a chunk that is not the segment's end may be cut short.
fn next_frame(rest: &[u8], salt: u32, is_last: bool) -> Option<usize> {
    (1..rest.len()).find(|at| {
        let rest = &rest[*at..];
        let header = FrameHeader::decode(rest, salt);
        header.is_some_and(|header| {
            (header.bytes() > rest.len() && !is_last) || FrameHeader::whole(rest, salt).is_some()
        })
    })
}

/// Remembers where the next read starts.
fn note(shared: &Shared, queue: QueueId, place: &Place, cut: &Cut) {
    if cut.used == 0 {
        return;
    }
    let mut inner = shared.inner.lock();
    if let Some(queue) = inner.queues.get_mut(queue.0 as usize) {
        let known = queue
            .cursor
            .filter(|cursor| cursor.number == place.segment.number)
            .map_or(place.segment.first, |cursor| cursor.sequence);
        queue.cursor = Some(Cursor {
            number: place.segment.number,
            sequence: if cut.sequence > 0 { cut.sequence } else { known },
            offset: place.offset + cut.used as u64,
        });
    }
}

fn report(shared: &Shared, queue: QueueId, place: &Place, lost: u64) {
    let path = segment_path(shared, place.segment.number);
    tracing::error!(file = %path.display(), messages = lost, "a segment of the edge hub's queues is damaged");
    let inner = shared.inner.lock();
    let key = inner.queues.get(queue.0 as usize).map(|queue| queue.key.clone());
    drop(inner);
    if let Some(key) = key {
        shared.listener.lost(&key, lost, Loss::Damage);
    }
}
