//! Walking the frames of a segment file with blocking reads: for recovery, index files and the way around damage.
//! Readers of events have a path of their own ([`super::read`]).

use std::io;

use super::disk::DiskFile;
use super::format::{FRAME_HEADER_BYTES, FrameHeader, Mark};

const WINDOW_BYTES: usize = 1 << 20;
/// Distance between two entries of the sparse index.
pub(super) const MARK_DISTANCE_BYTES: u64 = 64 << 10;

/// A window that moves over the first `end` bytes of a file.
pub(super) struct Scanner<'a> {
    file: &'a dyn DiskFile,
    salt: u32,
    end: u64,
    window: Vec<u8>,
    window_at: u64,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(file: &'a dyn DiskFile, salt: u32, end: u64) -> Self {
        Scanner {
            file,
            salt,
            end,
            window: Vec::new(),
            window_at: 0,
        }
    }

    /// `length` bytes at `offset`, fewer at the end of the file.
    fn bytes_at(&mut self, offset: u64, length: usize) -> io::Result<&[u8]> {
        let length = length.min(usize::try_from(self.end.saturating_sub(offset)).unwrap_or(usize::MAX));
        let inside =
            offset >= self.window_at && offset + length as u64 <= self.window_at + self.window.len() as u64;
        if !inside {
            let rest = usize::try_from(self.end.saturating_sub(offset)).unwrap_or(usize::MAX);
            self.window.resize(length.max(WINDOW_BYTES).min(rest), 0);
            let read = self.file.read_at(&mut self.window, offset)?;
            self.window.truncate(read);
            self.window_at = offset;
        }
        let at = (offset - self.window_at) as usize;
        let end = (at + length).min(self.window.len());
        Ok(&self.window[at.min(end)..end])
    }

    /// The header of the frame at `offset`, if it checks out and the frame fits into the file.
    pub(super) fn header_at(&mut self, offset: u64) -> io::Result<Option<FrameHeader>> {
        let (salt, end) = (self.salt, self.end);
        let header = FrameHeader::decode(self.bytes_at(offset, FRAME_HEADER_BYTES)?, salt);
        Ok(header.filter(|header| offset + header.frame_bytes() as u64 <= end))
    }

    /// Whether the payload of the frame at `offset` is undamaged.
    pub(super) fn payload_holds(&mut self, offset: u64, header: &FrameHeader) -> io::Result<bool> {
        let payload = self.bytes_at(offset + FRAME_HEADER_BYTES as u64, header.payload_bytes as usize)?;
        Ok(payload.len() == header.payload_bytes as usize && header.payload_holds(payload))
    }

    /// Whether there is nothing but zeros from `offset` on: reserved space.
    pub(super) fn zeros_from(&mut self, mut offset: u64) -> io::Result<bool> {
        while offset < self.end {
            let bytes = self.bytes_at(offset, WINDOW_BYTES)?;
            if bytes.is_empty() {
                break;
            }
            if bytes.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            offset += bytes.len() as u64;
        }
        Ok(true)
    }

    /// The first undamaged frame at or after `offset` whose first sequence number is at least `first`.
    pub(super) fn next_valid(
        &mut self,
        mut offset: u64,
        first: u64,
    ) -> io::Result<Option<(u64, FrameHeader)>> {
        let salt = self.salt;
        while offset + (FRAME_HEADER_BYTES as u64) < self.end {
            let bytes = self.bytes_at(offset, WINDOW_BYTES)?;
            let Some(last) = bytes.len().checked_sub(FRAME_HEADER_BYTES) else {
                break;
            };
            let found = (0..=last).find_map(|at| {
                let header = FrameHeader::decode(&bytes[at..], salt)?;
                (header.first >= first).then_some((at, header))
            });
            let Some((at, header)) = found else {
                offset += last as u64 + 1;
                continue;
            };
            offset += at as u64;
            if offset + header.frame_bytes() as u64 <= self.end && self.payload_holds(offset, &header)? {
                return Ok(Some((offset, header)));
            }
            offset += 1;
        }
        Ok(None)
    }
}

/// Whether the last mark is far enough behind.
pub(super) fn mark_due(marks: &[Mark], offset: u64) -> bool {
    marks
        .last()
        .is_none_or(|last| offset - last.offset >= MARK_DISTANCE_BYTES)
}

/// Adds a mark when it is due.
pub(super) fn note_mark(marks: &mut Vec<Mark>, header: &FrameHeader, offset: u64) {
    if mark_due(marks, offset) {
        marks.push(Mark {
            first: header.first,
            enqueued: header.enqueued,
            offset,
        });
    }
}

/// The sparse index of a segment, by its frame headers. Goes around damage.
pub(super) fn index_of(file: &dyn DiskFile, salt: u32, start: u64, first: u64) -> io::Result<Vec<Mark>> {
    let mut scanner = Scanner::new(file, salt, file.length()?);
    let mut marks = Vec::new();
    let (mut offset, mut expected) = (start, first);
    loop {
        let header = scanner
            .header_at(offset)?
            .filter(|header| header.first >= expected);
        let header = match header {
            Some(header) => header,
            None => match scanner.next_valid(offset, expected)? {
                Some((at, header)) => {
                    offset = at;
                    header
                }
                None => return Ok(marks),
            },
        };
        note_mark(&mut marks, &header, offset);
        expected = header.end();
        offset += header.frame_bytes() as u64;
    }
}
