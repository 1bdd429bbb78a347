//! Opening: the file `meta`, and the end of each partition's newest segment.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_model::Timestamp;
use holdfast_observe::Event;

use super::config::{LogConfig, OpenError};
use super::disk::{Disk, DiskFile};
use super::events::{Damaged, TornTail};
use super::format::{
    FORMAT_VERSION, Mark, Meta, MetaError, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentHeaderError,
};
use super::headless::Headless;
use super::partition::{Common, Partition};
use super::remove::is_removed_name;
use super::scan::{Scanner, note_mark};
use super::segment::{Segment, parse_segment_name, read_all, segment_name};
use super::writer::{Active, create_segment};

const META: &str = "meta";
const META_NEW: &str = "meta.new";
const REWRITE_BYTES: usize = 1 << 20;

/// Reads `meta`, or makes a new log. Checks the version before anything is changed.
pub(super) fn open_meta(disk: &dyn Disk, config: &LogConfig) -> Result<Meta, OpenError> {
    let dir = &config.dir;
    disk.create_dir(dir)
        .map_err(OpenError::io("create directory", dir))?;
    let names = disk.list(dir).map_err(OpenError::io("list directory", dir))?;
    let path = dir.join(META);
    if !names.iter().any(|name| name == META) {
        return create_meta(disk, config, &names);
    }
    let bytes = read_all(disk, &path).map_err(OpenError::io("read", &path))?;
    let meta = Meta::decode(&bytes).map_err(|error| match error {
        MetaError::Newer(found) => OpenError::NewerFormat {
            path,
            found,
            supported: FORMAT_VERSION,
        },
        MetaError::Malformed => OpenError::MalformedMeta { path },
    })?;
    // Directories missing after a crash while the log was made, or lost: then their events are gone as well, and the
    // other partitions should still work.
    create_partition_dirs(disk, dir, meta.partitions)?;
    Ok(meta)
}

fn create_meta(disk: &dyn Disk, config: &LogConfig, names: &[String]) -> Result<Meta, OpenError> {
    let dir = &config.dir;
    for name in names.iter().filter(|name| is_partition_dir(name)) {
        let path = dir.join(name);
        let files = disk.list(&path).map_err(OpenError::io("list directory", &path))?;
        if files.iter().any(|name| parse_segment_name(name).is_some()) {
            return Err(OpenError::MissingMeta { path: dir.clone() });
        }
    }
    let meta = Meta {
        partitions: config.partitions,
        salt: random_u32(),
    };
    create_partition_dirs(disk, dir, meta.partitions)?;
    let (temporary, path) = (dir.join(META_NEW), dir.join(META));
    if names.iter().any(|name| name == META_NEW) {
        disk.remove(&temporary)
            .map_err(OpenError::io("remove", &temporary))?;
    }
    let write = || {
        let file = disk.create(&temporary)?;
        file.write_all_at(&meta.encode(), 0)?;
        file.sync()?;
        disk.rename(&temporary, &path)?;
        disk.sync_dir(dir)?;
        dir.parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .map_or(Ok(()), |parent| disk.sync_dir(parent))
    };
    write().map_err(OpenError::io("create", &path))?;
    Ok(meta)
}

fn create_partition_dirs(disk: &dyn Disk, dir: &Path, partitions: u16) -> Result<(), OpenError> {
    for index in 0..partitions {
        let path = partition_dir(dir, index);
        disk.create_dir(&path)
            .map_err(OpenError::io("create directory", &path))?;
    }
    disk.sync_dir(dir).map_err(OpenError::io("sync directory", dir))
}

fn partition_dir(dir: &Path, index: u16) -> PathBuf {
    dir.join(format!("p{index:04}"))
}

fn is_partition_dir(name: &str) -> bool {
    name.strip_prefix('p')
        .is_some_and(|digits| digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// Random enough that a sender cannot guess it. The standard library seeds its hash maps from the operating system.
fn random_u32() -> u32 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let random = RandomState::new().build_hasher().finish();
    (random ^ (random >> 32)) as u32
}

/// The end of a segment, as found.
#[derive(Debug)]
struct Tail {
    /// Behind the last good frame before the first fault.
    offset: u64,
    next: u64,
    enqueued: i64,
    marks: Vec<Mark>,
    /// Start of the last batch: what is before had been synced.
    batch_offset: u64,
    fault: Fault,
}

#[derive(Debug)]
enum Fault {
    None,
    /// What follows was never acknowledged.
    Torn,
    /// Events that had been acknowledged are damaged; good ones follow, up to here.
    Damaged {
        first_good: u64,
        next: u64,
        enqueued: i64,
    },
}

/// A partition's end, ready for appending.
pub(super) struct Opened {
    pub(super) active: Active,
    /// Behind the last event that can be read. Less than `next` when what was between is lost: readers then wait here
    /// until there is something behind the gap.
    pub(super) durable: u64,
    /// Sequence number the next event gets.
    pub(super) next: u64,
    pub(super) enqueued: i64,
}

/// Opens partition `index`. Looks at its newest segment only, unless that is beyond reading.
pub(super) fn open_partition(common: &Arc<Common>, index: u16) -> Result<(Partition, Active), OpenError> {
    let dir = partition_dir(&common.config.dir, index);
    let names = (common.disk.list(&dir)).map_err(OpenError::io("list directory", &dir))?;
    for name in names.iter().filter(|name| is_removed_name(name)) {
        common.remover.resume(dir.join(name));
    }
    let mut older: Vec<u64> = names.iter().filter_map(|name| parse_segment_name(name)).collect();
    older.sort_unstable();
    let opened = match older.pop() {
        Some(first) => open_newest(common, &dir, index, first, &mut older)?,
        None => start_segment(common, &dir, index, 0, Timestamp::NEVER.as_micros())?,
    };
    let mut segments: Vec<_> = older
        .into_iter()
        .map(|first| Arc::new(Segment::closed(&dir, first)))
        .collect();
    segments.push(Arc::clone(&opened.active.segment));
    let partition = Partition::new(index, Arc::clone(common), segments, &opened);
    Ok((partition, opened.active))
}

/// Opens the newest segment for appending, or starts one behind it when it is damaged; then it joins the `older`.
fn open_newest(
    common: &Arc<Common>,
    dir: &Path,
    index: u16,
    first: u64,
    older: &mut Vec<u64>,
) -> Result<Opened, OpenError> {
    let disk = common.disk.as_ref();
    let path = dir.join(segment_name(first));
    let file: Arc<dyn DiskFile> = Arc::from(disk.open(&path, true).map_err(OpenError::io("open", &path))?);
    let read_failed = |error| OpenError::io("read", &path)(error);
    let length = file.length().map_err(read_failed)?;
    let mut scanner = Scanner::new(file.as_ref(), common.salt, length);
    let header = read_header(file.as_ref(), common.salt, index, first, &path)?;
    let Some(header) = header else {
        let newest = Headless {
            common,
            dir,
            index,
            first,
            file,
            length,
        };
        return newest.open(older);
    };
    let tail = find_tail(&mut scanner, header.first, header.base_time).map_err(read_failed)?;
    let take_over = |end: u64| {
        rewrite(file.as_ref(), 0, SEGMENT_HEADER_BYTES as u64)?;
        rewrite(file.as_ref(), tail.batch_offset, end)?;
        file.sync()?;
        disk.sync_dir(dir)
    };
    match tail.fault {
        Fault::None => {}
        Fault::Torn => {
            TornTail {
                file: &path,
                offset: tail.offset,
                bytes: length - tail.offset,
            }
            .emit(&common.metrics);
            file.truncate(tail.offset)
                .map_err(OpenError::io("truncate", &path))?;
        }
        Fault::Damaged {
            first_good,
            next,
            enqueued,
        } => {
            Damaged {
                file: &path,
                offset: tail.offset,
                first: tail.next,
                next: Some(first_good),
            }
            .emit(&common.metrics);
            take_over(length).map_err(OpenError::io("sync", &path))?;
            older.push(first);
            return start_segment(common, dir, index, next, enqueued);
        }
    }
    take_over(tail.offset).map_err(OpenError::io("sync", &path))?;
    let segment = Segment::active(
        dir,
        first,
        header.base_time,
        Arc::clone(&file),
        tail.offset,
        tail.marks,
    );
    let reserved = file.length().map_err(read_failed)?;
    let active = Active {
        segment: Arc::new(segment),
        file,
        length: tail.offset,
        reserved,
    };
    Ok(Opened {
        active,
        durable: tail.next,
        next: tail.next,
        enqueued: tail.enqueued,
    })
}

fn read_header(
    file: &dyn DiskFile,
    salt: u32,
    partition: u16,
    first: u64,
    path: &Path,
) -> Result<Option<SegmentHeader>, OpenError> {
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    let read = file.read_at(&mut bytes, 0).map_err(OpenError::io("read", path))?;
    match SegmentHeader::decode(&bytes[..read], salt) {
        Ok(header) => Ok(Some(header).filter(|h| h.first == first && h.partition == partition)),
        Err(SegmentHeaderError::Malformed) => Ok(None),
        Err(SegmentHeaderError::Newer(found)) => Err(OpenError::NewerFormat {
            path: path.to_owned(),
            found,
            supported: FORMAT_VERSION,
        }),
    }
}

/// A partition that goes on in a new segment.
pub(super) fn start_segment(
    common: &Common,
    dir: &Path,
    partition: u16,
    first: u64,
    base_time: i64,
) -> Result<Opened, OpenError> {
    let header = SegmentHeader {
        partition,
        first,
        base_time,
    };
    let active = create_segment(common.disk.as_ref(), dir, header, common.salt)
        .map_err(OpenError::io("create", dir.join(segment_name(first))))?;
    Ok(Opened {
        active,
        durable: first,
        next: first,
        enqueued: base_time,
    })
}

/// Writes what is there once more, so that the next sync covers it.
///
/// A killed process may have left what it had not synced; that is taken over, and must not vanish after it was read.
/// A sync alone is not enough: if the last one has failed, the pages count as clean although they are on no disk.
pub(super) fn rewrite(file: &dyn DiskFile, mut from: u64, to: u64) -> std::io::Result<()> {
    let mut buffer = vec![0; REWRITE_BYTES.min(to.saturating_sub(from) as usize)];
    while from < to {
        let wanted = REWRITE_BYTES.min((to - from) as usize);
        let read = file.read_at(&mut buffer[..wanted], from)?;
        if read == 0 {
            break;
        }
        file.write_all_at(&buffer[..read], from)?;
        from += read as u64;
    }
    Ok(())
}

/// Follows the frames of the newest segment to their end.
///
/// Payloads are verified only where a crash can have hurt them: in the last batch, that is from the `durable_before`
/// of the last frame on. Readers verify the others, and starting takes no longer than reading one segment.
fn find_tail(scanner: &mut Scanner<'_>, first: u64, base_time: i64) -> std::io::Result<Tail> {
    let mut tail = Tail {
        offset: SEGMENT_HEADER_BYTES as u64,
        next: first,
        enqueued: base_time,
        marks: Vec::new(),
        batch_offset: SEGMENT_HEADER_BYTES as u64,
        fault: Fault::None,
    };
    let mut durable_before = first;
    while let Some(header) = scanner.header_at(tail.offset)? {
        if header.first != tail.next {
            break;
        }
        durable_before = durable_before.max(header.durable_before);
        tail.advance(&header);
    }
    // Again over the last batch, this time with payloads.
    let end = tail.offset;
    tail.rewind(durable_before, first, base_time);
    tail.batch_offset = tail.offset;
    while tail.offset < end
        && let Some(header) = scanner.header_at(tail.offset)?
    {
        if header.first >= durable_before && !scanner.payload_holds(tail.offset, &header)? {
            break;
        }
        tail.advance(&header);
        if header.end() <= durable_before {
            tail.batch_offset = tail.offset;
        }
    }
    tail.fault = find_fault(scanner, &tail)?;
    Ok(tail)
}

impl Tail {
    fn advance(&mut self, header: &super::format::FrameHeader) {
        note_mark(&mut self.marks, header, self.offset);
        self.enqueued = header.enqueued;
        self.next = header.end();
        self.offset += header.frame_bytes() as u64;
    }

    /// Back to a mark at or before the event `to`.
    fn rewind(&mut self, to: u64, first: u64, base_time: i64) {
        let keep = self.marks.partition_point(|mark| mark.first <= to);
        self.marks.truncate(keep);
        match self.marks.pop() {
            Some(mark) => {
                self.offset = mark.offset;
                self.next = mark.first;
                self.enqueued = mark.enqueued;
            }
            None => {
                self.offset = SEGMENT_HEADER_BYTES as u64;
                self.next = first;
                self.enqueued = base_time;
            }
        }
    }
}

/// What stands behind the last good frame. A later frame that was written when the missing events had been synced
/// proves damage; one of the same batch does not, since a power cut may keep any part of what was not synced.
fn find_fault(scanner: &mut Scanner<'_>, tail: &Tail) -> std::io::Result<Fault> {
    if scanner.zeros_from(tail.offset)? {
        return Ok(Fault::None);
    }
    let (mut offset, mut first_good) = (tail.offset, None);
    while let Some((at, header)) = scanner.next_valid(offset, tail.next)? {
        first_good.get_or_insert(header.first);
        if header.durable_before > tail.next {
            let last = last_good(scanner, at, header.first)?.unwrap_or(LastGood::of(at, &header));
            return Ok(Fault::Damaged {
                first_good: first_good.unwrap_or(header.first),
                next: last.next,
                enqueued: last.enqueued,
            });
        }
        offset = at + header.frame_bytes() as u64;
    }
    Ok(Fault::Torn)
}

/// Where a segment's last good frame ends.
pub(super) struct LastGood {
    /// Behind it in the file.
    pub(super) offset: u64,
    /// Sequence number behind it.
    pub(super) next: u64,
    pub(super) enqueued: i64,
}

impl LastGood {
    fn of(offset: u64, header: &super::format::FrameHeader) -> Self {
        LastGood {
            offset: offset + header.frame_bytes() as u64,
            next: header.end(),
            enqueued: header.enqueued,
        }
    }
}

/// The last good frame from `offset` on, going around damage.
pub(super) fn last_good(
    scanner: &mut Scanner<'_>,
    mut offset: u64,
    mut expected: u64,
) -> std::io::Result<Option<LastGood>> {
    let mut last = None;
    while let Some((at, header)) = scanner.next_valid(offset, expected)? {
        let found = LastGood::of(at, &header);
        (offset, expected) = (found.offset, found.next);
        last = Some(found);
    }
    Ok(last)
}
