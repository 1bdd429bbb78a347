//! Opening a partition whose newest segment has no good header: its making was cut off by a crash, or it is damaged.
//!
//! The header says nothing that is not known otherwise: the name carries the first sequence number, the directory the
//! partition, and each frame has numbers and checks of its own. So a damaged header costs no event. What must not
//! happen in any case is that a sequence number is given out twice: readers with a checkpoint would skip events.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_model::Timestamp;
use holdfast_observe::Event;

use super::config::OpenError;
use super::disk::DiskFile;
use super::events::{HeaderDamaged, SegmentLost};
use super::format::{FRAME_PAYLOAD_BYTES_MAX, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::partition::Common;
use super::recover::{LastGood, Opened, last_good, rewrite, start_segment};
use super::scan::Scanner;
use super::segment::{Segment, segment_name};
use super::writer::Active;

/// Bytes of a header that are known without reading it: magic, version, partition, first sequence number.
const KNOWN_BYTES: usize = 24;

/// A newest segment without a good header.
pub(super) struct Headless<'a> {
    pub(super) common: &'a Arc<Common>,
    pub(super) dir: &'a Path,
    pub(super) index: u16,
    /// Sequence number in its name.
    pub(super) first: u64,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) length: u64,
}

impl Headless<'_> {
    /// Goes on in it if it is unfinished, else in a new segment behind it; it joins the `older` if it has events.
    pub(super) fn open(self, older: &mut Vec<u64>) -> Result<Opened, OpenError> {
        let last = last_good(&mut self.scanner(), SEGMENT_HEADER_BYTES as u64, self.first);
        if let Some(last) = last.map_err(self.failed("read"))? {
            let opened = self.keep(&last)?;
            older.push(self.first);
            return Ok(opened);
        }
        let before = self.last_before(older)?;
        let enqueued = before
            .as_ref()
            .map_or(Timestamp::NEVER.as_micros(), |last| last.enqueued);
        let mut opened = match self.is_unfinished().map_err(self.failed("read"))? {
            true => self.finish(enqueued).map_err(self.failed("create"))?,
            false => self.put_aside(enqueued)?,
        };
        if let Some(before) = before {
            opened.durable = before.next.min(opened.next);
        }
        Ok(opened)
    }

    fn path(&self) -> PathBuf {
        self.dir.join(segment_name(self.first))
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(io::Error) -> OpenError {
        OpenError::io(action, self.path())
    }

    fn scanner(&self) -> Scanner<'_> {
        Scanner::new(self.file.as_ref(), self.common.salt, self.length)
    }

    /// Leaves it as a closed segment, of which readers get every good frame, and starts one behind its last.
    fn keep(&self, last: &LastGood) -> Result<Opened, OpenError> {
        let rest = self
            .scanner()
            .zeros_from(last.offset)
            .map_err(self.failed("read"))?;
        // What stands behind may be damaged events as well, each of a byte at least.
        let next = match rest {
            true => last.next,
            false => last.next + (self.length - last.offset),
        };
        HeaderDamaged {
            file: &self.path(),
            next,
        }
        .emit(&self.common.metrics);
        let take_over = || {
            rewrite(self.file.as_ref(), SEGMENT_HEADER_BYTES as u64, last.offset)?;
            self.file.sync()?;
            self.common.disk.sync_dir(self.dir)
        };
        take_over().map_err(self.failed("sync"))?;
        let opened = start_segment(self.common, self.dir, self.index, next, last.enqueued)?;
        Ok(Opened {
            durable: last.next,
            ..opened
        })
    }

    /// Whether a crash may have left it so while it was made: the header is synced before anything is put behind it,
    /// so there is nothing but a part of the header, in any order.
    fn is_unfinished(&self) -> io::Result<bool> {
        if self.length > SEGMENT_HEADER_BYTES as u64 {
            return Ok(false);
        }
        let mut found = [0; SEGMENT_HEADER_BYTES];
        self.file.read_at(&mut found, 0)?;
        let made = self.header(0).encode(self.common.salt);
        let known = found.iter().zip(&made).take(KNOWN_BYTES);
        Ok(known
            .into_iter()
            .all(|(found, made)| *found == 0 || found == made))
    }

    fn header(&self, base_time: i64) -> SegmentHeader {
        SegmentHeader {
            partition: self.index,
            first: self.first,
            base_time,
        }
    }

    /// Completes it, in place: without it, the numbers would go on behind the segment before, which may have lost its
    /// end.
    fn finish(&self, base_time: i64) -> io::Result<Opened> {
        let length = SEGMENT_HEADER_BYTES as u64;
        let header = self.header(base_time).encode(self.common.salt);
        self.file.write_all_at(&header, 0)?;
        self.file.sync()?;
        self.common.disk.sync_dir(self.dir)?;
        let file = Arc::clone(&self.file);
        let segment = Segment::active(self.dir, self.first, base_time, file, length, Vec::new());
        let active = Active {
            segment: Arc::new(segment),
            file: Arc::clone(&self.file),
            length,
            reserved: length,
        };
        Ok(Opened {
            active,
            durable: self.first,
            next: self.first,
            enqueued: base_time,
        })
    }

    /// Nothing in it can be read: starts a segment behind all numbers it can have held, and renames it.
    fn put_aside(&self, enqueued: i64) -> Result<Opened, OpenError> {
        let config = &self.common.config;
        // A segment is closed at its size or holds one batch, and an event takes a byte at least. The file's own
        // length is no bound: it may have been cut.
        let batch = (config.pending_bytes_max + FRAME_PAYLOAD_BYTES_MAX) as u64;
        let next = self.first + self.length.max(config.segment_bytes).max(batch);
        // This first: without either, the numbers would be given out again.
        let opened = start_segment(self.common, self.dir, self.index, next, enqueued)?;
        let disk = self.common.disk.as_ref();
        let names = disk
            .list(self.dir)
            .map_err(OpenError::io("list directory", self.dir))?;
        let name = segment_name(self.first);
        let aside = (0..)
            .map(|number| format!("{name}.corrupt-{number}"))
            .find(|name| !names.contains(name))
            .unwrap_or_default();
        let aside = self.dir.join(aside);
        disk.rename(&self.path(), &aside)
            .map_err(self.failed("move aside"))?;
        disk.sync_dir(self.dir)
            .map_err(OpenError::io("sync directory", self.dir))?;
        SegmentLost {
            file: &self.path(),
            aside: &aside,
            first: self.first,
            next,
        }
        .emit(&self.common.metrics);
        Ok(opened)
    }

    /// The newest readable event before this segment.
    fn last_before(&self, older: &[u64]) -> Result<Option<LastGood>, OpenError> {
        let disk = self.common.disk.as_ref();
        for first in older.iter().rev() {
            let path = self.dir.join(segment_name(*first));
            let last = || {
                let file = disk.open(&path, false)?;
                let mut scanner = Scanner::new(file.as_ref(), self.common.salt, file.length()?);
                last_good(&mut scanner, SEGMENT_HEADER_BYTES as u64, *first)
            };
            let last = last().map_err(OpenError::io("read", &path))?;
            if last.is_some() {
                return Ok(last);
            }
        }
        Ok(None)
    }
}
