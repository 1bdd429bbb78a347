//! One segment file and what is known of it in memory.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::disk::{Disk, DiskFile};
use super::format::{
    Mark, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentHeaderError, decode_index, encode_index,
};
use super::scan::{Scanner, index_of, mark_due};

/// Length of a closed segment that was not opened yet.
const LENGTH_UNKNOWN: u64 = u64::MAX;

/// A segment. The newest of a partition is *active*: it has its file open and grows.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    /// Sequence number of its first event.
    pub(super) first: u64,
    /// Bytes that may be read: all of a closed one, the durable ones of the active.
    length: AtomicU64,
    base_time: OnceLock<i64>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Of the active segment.
    file: Option<Arc<dyn DiskFile>>,
    marks: Marks,
    /// Where damage was reported; each place is reported once.
    damages: Vec<u64>,
}

#[derive(Debug, Default)]
enum Marks {
    /// Of the active segment.
    Growing(Vec<Mark>),
    Loaded(Arc<[Mark]>),
    #[default]
    Unloaded,
}

pub(super) fn segment_name(first: u64) -> String {
    format!("{first:020}.seg")
}

/// The sequence number in the name of a segment file.
pub(super) fn parse_segment_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    (digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit()))
        .then(|| digits.parse().ok())
        .flatten()
}

impl Segment {
    /// One that will not grow any more; nothing is read yet.
    pub(super) fn closed(dir: &Path, first: u64) -> Self {
        Segment {
            path: dir.join(segment_name(first)),
            first,
            length: AtomicU64::new(LENGTH_UNKNOWN),
            base_time: OnceLock::new(),
            state: Mutex::default(),
        }
    }

    /// The one that grows.
    pub(super) fn active(
        dir: &Path,
        first: u64,
        base_time: i64,
        file: Arc<dyn DiskFile>,
        length: u64,
        marks: Vec<Mark>,
    ) -> Self {
        Segment {
            path: dir.join(segment_name(first)),
            first,
            length: AtomicU64::new(length),
            base_time: OnceLock::from(base_time),
            state: Mutex::new(State {
                file: Some(file),
                marks: Marks::Growing(marks),
                damages: Vec::new(),
            }),
        }
    }

    /// Makes more of the active segment readable. `marks` have offsets relative to what is added.
    pub(super) fn extend(&self, marks: &[Mark], length: u64) {
        let start = self.length.load(Ordering::Acquire);
        if let Marks::Growing(all) = &mut self.state.lock().marks {
            for mark in marks {
                let offset = start + mark.offset;
                // Each batch brings a mark, however small it is.
                if mark_due(all, offset) {
                    all.push(Mark { offset, ..*mark });
                }
            }
        }
        self.length.store(length, Ordering::Release);
    }

    /// The file, if open, and how much of it may be read.
    pub(super) fn opened(&self) -> Option<(Arc<dyn DiskFile>, u64)> {
        let file = self.state.lock().file.clone()?;
        Some((file, self.length.load(Ordering::Acquire)))
    }

    /// Length as far as it is known without looking.
    pub(super) fn known_length(&self) -> Option<u64> {
        Some(self.length.load(Ordering::Acquire)).filter(|length| *length != LENGTH_UNKNOWN)
    }

    /// The file and how much of it may be read; opens it if need be.
    pub(super) fn open(&self, disk: &dyn Disk) -> io::Result<(Arc<dyn DiskFile>, u64)> {
        if let Some(opened) = self.opened() {
            return Ok(opened);
        }
        let file: Arc<dyn DiskFile> = Arc::from(disk.open(&self.path, false)?);
        let length = self.length(file.as_ref())?;
        Ok((file, length))
    }

    fn length(&self, file: &dyn DiskFile) -> io::Result<u64> {
        if let Some(length) = self.known_length() {
            return Ok(length);
        }
        let length = file.length()?;
        self.length.store(length, Ordering::Release);
        Ok(length)
    }

    /// Closes the active segment and writes its index file. What fails here costs time later, no data.
    pub(super) fn close(&self, disk: &dyn Disk) -> io::Result<()> {
        let (file, marks) = {
            let mut state = self.state.lock();
            (state.file.take(), std::mem::take(&mut state.marks))
        };
        let length = self.length.load(Ordering::Acquire);
        if let Some(file) = file {
            file.truncate(length)?;
        }
        match marks {
            Marks::Growing(marks) => self.write_index(disk, length, &marks),
            Marks::Loaded(_) | Marks::Unloaded => Ok(()),
        }
    }

    pub(super) fn index_path(&self) -> PathBuf {
        self.path.with_extension("idx")
    }

    fn write_index(&self, disk: &dyn Disk, length: u64, marks: &[Mark]) -> io::Result<()> {
        let path = self.index_path();
        let temporary = self.path.with_extension("idx.tmp");
        // One left over by a crash.
        let _ = disk.remove(&temporary);
        disk.create(&temporary)?
            .write_all_at(&encode_index(self.first, length, marks), 0)?;
        // Not synced: a damaged index is noticed by its checksum and made again.
        disk.rename(&temporary, &path)
    }

    /// Offset and first sequence number of the last mark that `before` holds for, else of the start of the segment.
    pub(super) fn seek(&self, before: impl Fn(&Mark) -> bool) -> (u64, u64) {
        let state = self.state.lock();
        let marks = match &state.marks {
            Marks::Growing(marks) => marks.as_slice(),
            Marks::Loaded(marks) => marks,
            // Unloaded between load and use: from the start it takes longer, that is all.
            Marks::Unloaded => &[],
        };
        let index = marks.partition_point(before).checked_sub(1);
        index
            .and_then(|index| marks.get(index))
            .map_or((SEGMENT_HEADER_BYTES as u64, self.first), |mark| {
                (mark.offset, mark.first)
            })
    }

    /// Enqueued time of the first event of the active segment.
    pub(super) fn first_enqueued(&self) -> Option<i64> {
        match &self.state.lock().marks {
            Marks::Growing(marks) => marks.first().map(|mark| mark.enqueued),
            Marks::Loaded(_) | Marks::Unloaded => None,
        }
    }

    /// Whether [`Segment::seek`] would find its marks in memory.
    pub(super) fn has_marks(&self) -> bool {
        !matches!(self.state.lock().marks, Marks::Unloaded)
    }

    /// Brings the marks of a closed segment into memory: from the index file, else from the segment itself.
    pub(super) fn load_marks(&self, disk: &dyn Disk, salt: u32) -> io::Result<()> {
        if self.has_marks() {
            return Ok(());
        }
        let stored = read_all(disk, &self.index_path()).ok();
        let marks = match stored.and_then(|bytes| decode_index(&bytes, self.first)) {
            Some(marks) => marks,
            None => {
                let (file, length) = self.open(disk)?;
                let marks = index_of(file.as_ref(), salt, SEGMENT_HEADER_BYTES as u64, self.first)?;
                // Where it cannot be written, the next start makes it again.
                let _ = self.write_index(disk, length, &marks);
                marks.into()
            }
        };
        let mut state = self.state.lock();
        if matches!(state.marks, Marks::Unloaded) {
            state.marks = Marks::Loaded(marks);
        }
        Ok(())
    }

    /// Forgets the marks of a closed segment.
    pub(super) fn unload_marks(&self) {
        let mut state = self.state.lock();
        if matches!(state.marks, Marks::Loaded(_)) {
            state.marks = Marks::Unloaded;
        }
    }

    /// Enqueued time of the newest event before this segment, or of its first readable event when its header is
    /// damaged; `None` when there is neither.
    pub(super) fn base_time(&self, disk: &dyn Disk, salt: u32) -> io::Result<Option<i64>> {
        if let Some(time) = self.base_time.get() {
            return Ok(Some(*time));
        }
        let (file, length) = self.open(disk)?;
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        let read = file.read_at(&mut bytes, 0)?;
        let time = match SegmentHeader::decode(&bytes[..read], salt) {
            Ok(header) => Some(header.base_time),
            Err(SegmentHeaderError::Newer(_) | SegmentHeaderError::Malformed) => {
                Scanner::new(file.as_ref(), salt, length)
                    .next_valid(SEGMENT_HEADER_BYTES as u64, self.first)?
                    .map(|(_, header)| header.enqueued)
            }
        };
        if let Some(time) = time {
            // Another thread may have been first, with the same result.
            let _ = self.base_time.set(time);
        }
        Ok(time)
    }

    /// Whether damage at `offset` is new. Remembers it.
    pub(super) fn note_damage(&self, offset: u64) -> bool {
        let mut state = self.state.lock();
        let new = !state.damages.contains(&offset);
        if new {
            state.damages.push(offset);
        }
        new
    }
}

pub(super) fn read_all(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path, false)?;
    let mut bytes = vec![0; usize::try_from(file.length()?).unwrap_or(0)];
    let read = file.read_at(&mut bytes, 0)?;
    bytes.truncate(read);
    Ok(bytes)
}
