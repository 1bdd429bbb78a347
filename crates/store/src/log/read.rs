//! Reading events: one large read, sliced into blocks without copying.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use holdfast_model::Timestamp;
use holdfast_model::event::EventBlock;
use holdfast_observe::Event;
use holdfast_ports::event_log::LogError;
use parking_lot::Mutex;

use super::disk::DiskFile;
use super::events::Damaged;
use super::format::{FRAME_HEADER_BYTES, FrameHeader, SEGMENT_HEADER_BYTES};
use super::partition::Partition;
use super::scan::Scanner;
use super::segment::Segment;

/// Least and most bytes of one read, unless a single frame is larger.
const CHUNK_BYTES: (usize, usize) = (4 << 10, 4 << 20);
/// Positions remembered per partition: about as many readers follow it at a time.
const CURSORS: usize = 16;
/// Closed segments of a partition whose index stays in memory, about 24 KiB each.
const INDEXES_MAX: usize = 8;

/// Whether a read may wait for the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    /// Only what is in memory.
    Cached,
    /// Blocks the thread.
    Waiting,
}

/// Why a read has no result.
#[derive(Debug)]
pub(super) enum Stop {
    /// It would have to wait: try again with [`Mode::Waiting`].
    WouldWait,
    Failed(LogError),
}

/// Where readers stopped, so that one that follows needs no index, and an old segment is not opened for each read.
#[derive(Debug, Default)]
pub(super) struct Cursors(Mutex<(usize, Vec<Cursor>)>);

#[derive(Debug)]
struct Cursor {
    /// Sequence number of the frame at `place.offset`.
    at: u64,
    place: Place,
}

/// A position in a segment.
#[derive(Clone, Debug)]
struct Place {
    segment: Arc<Segment>,
    file: Arc<dyn DiskFile>,
    /// How far the segment may be read.
    end: u64,
    offset: u64,
    /// Least sequence number the frame at `offset` can have.
    expected: u64,
}

/// What the frames of a chunk came to.
enum Parsed {
    /// The end of the chunk, or enough.
    Done,
    /// The next frame does not fit into the chunk and is this long.
    Longer(usize),
    /// There is no frame where one should be.
    NoFrame,
}

impl Cursors {
    fn get(&self, at: u64) -> Option<Place> {
        let cursors = self.0.lock();
        let cursor = cursors.1.iter().find(|cursor| cursor.at == at)?;
        Some(cursor.place.clone())
    }

    fn put(&self, at: u64, place: Place) {
        let (turn, cursors) = &mut *self.0.lock();
        let cursor = Cursor { at, place };
        if let Some(same) = cursors.iter_mut().find(|other| other.at == at) {
            *same = cursor;
        } else if cursors.len() < CURSORS {
            cursors.push(cursor);
        } else {
            cursors[*turn] = cursor;
            *turn = (*turn + 1) % CURSORS;
        }
    }

    /// Forgets positions in segments that are gone, so that their files are closed.
    pub(super) fn forget_before(&self, first: u64) {
        let (turn, cursors) = &mut *self.0.lock();
        cursors.retain(|cursor| cursor.place.segment.first >= first);
        *turn = 0;
    }
}

impl Partition {
    /// See [`EventLog::read`](holdfast_ports::event_log::EventLog::read).
    pub(super) fn read_blocks(
        &self,
        from: u64,
        max_bytes: usize,
        mode: Mode,
    ) -> Result<Vec<EventBlock>, Stop> {
        loop {
            let first = self.first();
            match self.try_read(from.max(first), max_bytes, mode) {
                // Retention took the segment meanwhile.
                Err(Stop::Failed(_)) if self.first() != first => {}
                result => return result,
            }
        }
    }

    fn try_read(&self, from: u64, max_bytes: usize, mode: Mode) -> Result<Vec<EventBlock>, Stop> {
        let mut blocks = Vec::new();
        let durable = self.durable.load(Ordering::Acquire);
        if from >= durable {
            return Ok(blocks);
        }
        let mut place = match self.cursors.get(from) {
            Some(place) => refresh(place),
            None => self.locate(from, mode)?,
        };
        let mut want = max_bytes.clamp(CHUNK_BYTES.0, CHUNK_BYTES.1);
        while blocks.is_empty() {
            if place.offset >= place.end {
                place = self.next_segment(&place, mode)?;
                continue;
            }
            let asked = want.min(available(&place));
            let chunk = self.read_chunk(&place, asked, mode)?;
            let parsed = self.parse(&chunk, &mut place, from, max_bytes, &mut blocks);
            if !blocks.is_empty() {
                break;
            }
            match parsed {
                Parsed::Done if !chunk.is_empty() => {}
                Parsed::Longer(length)
                    if chunk.len() == asked && place.offset + length as u64 <= place.end =>
                {
                    want = want.max(length);
                }
                // What was cached ends inside a frame; or there is damage, which takes a while to search.
                _ if mode == Mode::Cached => return Err(Stop::WouldWait),
                _ => self.skip_damage(&mut place, durable)?,
            }
        }
        let events = blocks.iter().map(|block| u64::from(block.count)).sum();
        self.common.metrics.events_read.add(events);
        self.cursors.put(place.expected, place);
        Ok(blocks)
    }

    /// The sequence number of the first durable event enqueued at or after `time`. Blocks the thread.
    pub(super) fn find_time(&self, time: Timestamp) -> Result<u64, LogError> {
        let time = time.as_micros();
        let durable = self.durable.load(Ordering::Acquire);
        let segments = self.segments.read().clone();
        let common = &self.common;
        // The last segment before which all events are older than `time`: the event is not before it.
        let (mut low, mut high) = (0, segments.len());
        while low < high {
            let middle = low.midpoint(high);
            let base = segments[middle]
                .base_time(common.disk.as_ref(), common.salt)
                .map_err(|error| unreadable(&segments[middle], 0, &error))?;
            // A segment without a readable event cannot tell; what is after it can.
            if base.is_some_and(|base| base < time) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        for segment in &segments[low.saturating_sub(1)..] {
            if let Some(found) = self.find_in(segment, time)? {
                return Ok(found.min(durable));
            }
        }
        Ok(durable)
    }

    fn find_in(&self, segment: &Arc<Segment>, time: i64) -> Result<Option<u64>, LogError> {
        let common = &self.common;
        let failed = |error: io::Error| unreadable(segment, 0, &error);
        self.load_marks(segment).map_err(failed)?;
        let (file, end) = segment.open(common.disk.as_ref()).map_err(failed)?;
        let (mut offset, mut expected) = segment.seek(|mark| mark.enqueued < time);
        let mut scanner = Scanner::new(file.as_ref(), common.salt, end);
        loop {
            let header = scanner.header_at(offset).map_err(failed)?;
            let header = match header.filter(|header| header.first >= expected) {
                Some(header) => header,
                None => match scanner.next_valid(offset, expected).map_err(failed)? {
                    Some((at, header)) => {
                        offset = at;
                        header
                    }
                    None => return Ok(None),
                },
            };
            if header.enqueued >= time {
                return Ok(Some(header.first));
            }
            expected = header.end();
            offset += header.frame_bytes() as u64;
        }
    }

    /// A place at or before the event `from`.
    fn locate(&self, from: u64, mode: Mode) -> Result<Place, Stop> {
        let segment = {
            let segments = self.segments.read();
            let index = segments.partition_point(|segment| segment.first <= from);
            segments.get(index.saturating_sub(1)).map(Arc::clone)
        };
        let Some(segment) = segment else {
            return Err(Stop::Failed(LogError::Unreadable(
                "there is no segment".to_owned(),
            )));
        };
        if mode == Mode::Cached && !segment.has_marks() {
            return Err(Stop::WouldWait);
        }
        self.load_marks(&segment)
            .map_err(|error| Stop::Failed(unreadable(&segment, 0, &error)))?;
        let (offset, expected) = segment.seek(|mark| mark.first <= from);
        Ok(Place {
            offset,
            expected,
            ..self.start_of(segment, mode)?
        })
    }

    fn start_of(&self, segment: Arc<Segment>, mode: Mode) -> Result<Place, Stop> {
        let (file, end) = match segment.opened() {
            Some(opened) => opened,
            None if mode == Mode::Cached => return Err(Stop::WouldWait),
            None => segment
                .open(self.common.disk.as_ref())
                .map_err(|error| Stop::Failed(unreadable(&segment, 0, &error)))?,
        };
        Ok(Place {
            file,
            end,
            offset: SEGMENT_HEADER_BYTES as u64,
            expected: segment.first,
            segment,
        })
    }

    fn load_marks(&self, segment: &Arc<Segment>) -> io::Result<()> {
        if segment.has_marks() {
            return Ok(());
        }
        segment.load_marks(self.common.disk.as_ref(), self.common.salt)?;
        let mut indexed = self.indexed.lock();
        indexed.push_back(Arc::clone(segment));
        if indexed.len() > INDEXES_MAX
            && let Some(oldest) = indexed.pop_front()
        {
            oldest.unload_marks();
        }
        Ok(())
    }

    /// The segment after the one that was read to its end.
    fn next_segment(&self, place: &Place, mode: Mode) -> Result<Place, Stop> {
        let next = {
            let segments = self.segments.read();
            let index = segments.partition_point(|segment| segment.first <= place.segment.first);
            segments.get(index).map(Arc::clone)
        };
        match next {
            Some(next) => {
                if place.expected < next.first {
                    self.report_damage(place, Some(next.first));
                }
                self.start_of(next, mode)
            }
            None => Err(Stop::Failed(LogError::Unreadable(format!(
                "{} has no readable event from sequence number {} on",
                place.segment.path.display(),
                place.expected
            )))),
        }
    }

    fn read_chunk(&self, place: &Place, want: usize, mode: Mode) -> Result<Bytes, Stop> {
        let mut buffer = vec![0; want.min(available(place))];
        let read = match mode {
            Mode::Cached => place.file.read_cached_at(&mut buffer, place.offset),
            Mode::Waiting => place.file.read_at(&mut buffer, place.offset).map(Some),
        };
        let read = read.map_err(|error| Stop::Failed(unreadable(&place.segment, place.offset, &error)))?;
        match read {
            None => Err(Stop::WouldWait),
            Some(0) if mode == Mode::Cached => Err(Stop::WouldWait),
            Some(read) => {
                // A file shorter than it was: the rest reads as no frame.
                buffer.truncate(read);
                Ok(Bytes::from(buffer))
            }
        }
    }

    /// Takes the frames of `chunk`, which starts at `place`, and moves `place` behind them.
    fn parse(
        &self,
        chunk: &Bytes,
        place: &mut Place,
        from: u64,
        max_bytes: usize,
        blocks: &mut Vec<EventBlock>,
    ) -> Parsed {
        let (mut at, mut taken) = (0, 0);
        while at < chunk.len() && taken < max_bytes.max(1) {
            let rest = &chunk[at..];
            if rest.len() < FRAME_HEADER_BYTES {
                return Parsed::Longer(FRAME_HEADER_BYTES);
            }
            let header = FrameHeader::decode(rest, self.common.salt);
            let Some(header) = header.filter(|header| header.first >= place.expected) else {
                return Parsed::NoFrame;
            };
            let length = header.frame_bytes();
            if header.end() > from {
                let Some(payload) = rest.get(FRAME_HEADER_BYTES..length) else {
                    return Parsed::Longer(length);
                };
                if !header.payload_holds(payload) {
                    return Parsed::NoFrame;
                }
                blocks.push(EventBlock {
                    partition: self.index,
                    first_sequence_number: header.first,
                    count: header.count,
                    enqueued_at: Timestamp::from_micros(header.enqueued),
                    data: chunk.slice(at + FRAME_HEADER_BYTES..at + length),
                });
                taken += length;
            }
            // May be behind the chunk: then the next read starts there.
            at += length;
            place.offset += length as u64;
            place.expected = header.end();
        }
        Parsed::Done
    }

    /// Moves `place` to the next good frame. What is in between is reported once and stays as it is.
    fn skip_damage(&self, place: &mut Place, durable: u64) -> Result<(), Stop> {
        let failed = |error: io::Error| Stop::Failed(unreadable(&place.segment, place.offset, &error));
        let mut scanner = Scanner::new(place.file.as_ref(), self.common.salt, place.end);
        let next = match scanner.header_at(place.offset).map_err(failed)? {
            // Only the payload is damaged: the header, whose checksum holds, says where the next frame is.
            Some(header) if header.first >= place.expected => {
                let behind = place.offset + header.frame_bytes() as u64;
                scanner.next_valid(behind, header.end()).map_err(failed)?
            }
            _ => scanner.next_valid(place.offset, place.expected).map_err(failed)?,
        };
        match next {
            Some((offset, header)) => {
                self.report_damage(place, Some(header.first));
                place.offset = offset;
                place.expected = header.first;
            }
            None => {
                // The rest of a closed segment; whether events are missing shows at the next one.
                if place.expected < durable && self.is_active(&place.segment) {
                    self.report_damage(place, None);
                }
                place.offset = place.end;
            }
        }
        Ok(())
    }

    fn is_active(&self, segment: &Arc<Segment>) -> bool {
        self.segments
            .read()
            .last()
            .is_some_and(|last| Arc::ptr_eq(last, segment))
    }

    fn report_damage(&self, place: &Place, next: Option<u64>) {
        if place.segment.note_damage(place.offset) {
            Damaged {
                file: &place.segment.path,
                offset: place.offset,
                first: place.expected,
                next,
            }
            .emit(&self.common.metrics);
        }
    }
}

/// A remembered place, with what has been added to its segment since.
fn refresh(mut place: Place) -> Place {
    if let Some(length) = place.segment.known_length() {
        place.end = length;
    }
    place
}

fn available(place: &Place) -> usize {
    usize::try_from(place.end.saturating_sub(place.offset)).unwrap_or(usize::MAX)
}

fn unreadable(segment: &Segment, offset: u64, error: &io::Error) -> LogError {
    LogError::Unreadable(format!("{} at byte {offset}: {error}", segment.path.display()))
}
