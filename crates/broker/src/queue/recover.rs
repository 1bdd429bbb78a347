//! What is in the directory when a store is opened.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use holdfast_observe::tracing;
use holdfast_ports::clock::Clock;
use holdfast_store::log::disk::{Disk, DiskFile};

use super::age::{Age, AgeClock};
use super::format::{FRAME_HEADER_BYTES, FrameHeader, SegmentHeader, is_spare};
use super::state::{Queue, Segment};
use super::{Listener, Loss, OpenError, QueueConfig, QueueKey};

const SUFFIX: &str = "q";
/// Of a segment of which nothing is synced yet: it gets its name with its first messages.
const BEGUN: &str = "new";
/// Of a segment whose start is damaged.
const DAMAGED: &str = "damaged";

pub(super) struct Recovered {
    pub(super) queues: Vec<Queue>,
    pub(super) age: AgeClock,
    pub(super) salt: u32,
    pub(super) next_number: u64,
}

struct Found {
    number: u64,
    header: SegmentHeader,
    header_bytes: u64,
    bytes: u64,
}

pub(super) fn segment_name(number: u64) -> String {
    format!("{number:016x}.{SUFFIX}")
}

/// Its name until its start is synced.
pub(super) fn begun_name(number: u64) -> String {
    format!("{number:016x}.{BEGUN}")
}

pub(super) fn recover(
    config: &QueueConfig,
    disk: &dyn Disk,
    clock: Arc<dyn Clock>,
    listener: &dyn Listener,
) -> Result<Recovered, OpenError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |error| OpenError { action, path, error }
    };
    disk.create_dir(&config.dir)
        .map_err(failed("make", &config.dir))?;
    let names = disk.list(&config.dir).map_err(failed("list", &config.dir))?;
    let mut next_number = 0;
    let mut found: HashMap<QueueKey, Vec<Found>> = HashMap::new();
    for name in names {
        let Some((stem, end)) = name
            .split_once('.')
            .filter(|(_, end)| [SUFFIX, BEGUN, DAMAGED].contains(end))
        else {
            continue;
        };
        let Ok(number) = u64::from_str_radix(stem, 16) else {
            continue;
        };
        // Also that of a damaged one is not given again: another damaged one would replace it.
        next_number = next_number.max(number.saturating_add(1));
        if end == DAMAGED {
            continue;
        }
        let path = config.dir.join(&name);
        if end == BEGUN {
            // Nothing of it was acknowledged.
            if let Err(error) = disk.remove(&path) {
                tracing::warn!(file = %path.display(), %error, "a segment that was begun cannot be removed");
            }
            continue;
        }
        match read_header(disk, &path, number).map_err(failed("read", &path))? {
            Some(segment) => {
                let key = QueueKey {
                    name: segment.header.name.clone(),
                    priority: segment.header.priority,
                };
                found.entry(key).or_default().push(segment);
            }
            None => set_aside(disk, &path, listener),
        }
    }
    let mut newest: Option<(Age, i64)> = None;
    let mut queues = Vec::new();
    for (key, mut segments) in found {
        // Not by number alone: the new name of a file that had another use may be lost when the power is cut.
        segments.sort_by_key(|segment| (segment.header.first, segment.number));
        let queue = recover_queue(config, disk, key, &segments, &mut newest, listener)
            .map_err(failed("read", &config.dir))?;
        queues.push(queue);
    }
    queues.sort_by(|left, right| left.key.cmp(&right.key));
    if !queues.is_empty() {
        disk.sync_dir(&config.dir).map_err(failed("sync", &config.dir))?;
    }
    let mut random = [0; 4];
    if getrandom::fill(&mut random).is_err() {
        // Other than last time at least: by it what files held before is told from what they hold.
        random = (clock.now().as_micros() as u32).to_le_bytes();
    }
    Ok(Recovered {
        queues,
        age: AgeClock::resume(clock, newest),
        salt: u32::from_le_bytes(random),
        next_number,
    })
}

fn read_header(disk: &dyn Disk, path: &Path, number: u64) -> io::Result<Option<Found>> {
    let file = disk.open(path, false)?;
    let bytes = file.length()?;
    let mut start = vec![0; SegmentHeader::BYTES_MAX.min(usize::try_from(bytes).unwrap_or(usize::MAX))];
    let read = file.read_at(&mut start, 0)?;
    let header = SegmentHeader::decode(&start[..read]);
    Ok(header.map(|(header, header_bytes)| Found {
        number,
        header,
        header_bytes: header_bytes as u64,
        bytes,
    }))
}

/// A file without a sound header: one that was to be used again goes, a damaged one is kept for whoever wants to look at it.
fn set_aside(disk: &dyn Disk, path: &Path, listener: &dyn Listener) {
    let content = disk.open(path, false).and_then(|file| whole(&*file, u64::MAX));
    let outcome = if content.is_ok_and(|content| is_spare(&content)) {
        disk.remove(path)
    } else {
        let file = path.display();
        tracing::error!(%file, "a segment of the edge hub's queues is damaged at its start and was set aside; messages in it are lost");
        listener.set_aside();
        disk.rename(path, &path.with_extension(DAMAGED))
    };
    if let Err(error) = outcome {
        tracing::warn!(file = %path.display(), %error, "a segment without a header cannot be put out of the way");
    }
}

fn recover_queue(
    config: &QueueConfig,
    disk: &dyn Disk,
    key: QueueKey,
    found: &[Found],
    newest: &mut Option<(Age, i64)>,
    listener: &dyn Listener,
) -> io::Result<Queue> {
    let mut queue = Queue::new(key);
    for (index, segment) in found.iter().enumerate() {
        let header = &segment.header;
        note_clock(newest, header.age, header.wall);
        queue.consumed = queue.consumed.max(header.consumed);
        let next = found.get(index + 1);
        let (end, bytes) = match next {
            // What a failed sync left behind here stands again in the next one.
            Some(next) => (next.header.first, segment.bytes),
            None => {
                let path = config.dir.join(segment_name(segment.number));
                let scan = scan(&*disk.open(&path, false)?, segment)?;
                if let Some((age, wall)) = scan.clocks {
                    note_clock(newest, age, wall);
                }
                queue.consumed = queue.consumed.max(scan.consumed);
                if scan.lost > 0 {
                    tracing::error!(file = %path.display(), messages = scan.lost, "a segment of the edge hub's queues is damaged");
                    listener.lost(&queue.key, scan.lost, Loss::Damage);
                }
                // What a killed process wrote and did not sync is served from now on, so it has to stay.
                let file = disk.open(&path, true)?;
                if scan.bytes < segment.bytes {
                    file.truncate(scan.bytes)?;
                }
                file.sync()?;
                (scan.end, scan.bytes)
            }
        };
        queue.segments.push_back(Segment {
            number: segment.number,
            first: header.first,
            end: end.max(header.first),
            header_bytes: segment.header_bytes,
            bytes,
            counted: bytes,
            salt: header.salt,
            born: header.age,
        });
        queue.next = end.max(header.first);
    }
    // The older segments are consumed that were deleted, though their mark may be lost.
    let first = queue.segments.front().map_or(0, |segment| segment.first);
    queue.consumed = queue.consumed.max(first).min(queue.next);
    queue.marked = queue.consumed;
    (queue.durable, queue.durable_before) = (queue.next, queue.next);
    Ok(queue)
}

fn note_clock(newest: &mut Option<(Age, i64)>, age: Age, wall: i64) {
    if newest.is_none_or(|(known, _)| age >= known) {
        *newest = Some((age, wall));
    }
}

#[derive(Default)]
struct Scan {
    end: u64,
    bytes: u64,
    consumed: u64,
    lost: u64,
    /// The newest clock only, if any.
    clocks: Option<(Age, i64)>,
}

/// Walks the newest segment of a queue to the end of what is sound.
///
/// What is not sound in the middle is damage if a later frame says that the place had been synced before it; the messages
/// there are lost and the rest is kept. Otherwise it is the end of what was written when the power failed: nothing behind
/// it was acknowledged, and keeping it would put it before messages that are sent again.
fn scan(file: &dyn DiskFile, segment: &Found) -> io::Result<Scan> {
    let data = whole(file, segment.bytes)?;
    let salt = segment.header.salt;
    let mut scan = Scan {
        end: segment.header.first,
        bytes: segment.header_bytes,
        ..Scan::default()
    };
    let mut at = segment.header_bytes as usize;
    while let Some(rest) = data.get(at..).filter(|rest| !rest.is_empty()) {
        let Some((frame, _)) = FrameHeader::whole(rest, salt) else {
            let Some(next) = resume(&data, at + 1, salt, scan.end) else {
                break;
            };
            at = next;
            continue;
        };
        if frame.count == 0 {
            scan.consumed = scan.consumed.max(frame.first);
        } else {
            scan.lost += frame.first.saturating_sub(scan.end);
            scan.end = scan.end.max(frame.end());
        }
        scan.clocks = scan.clocks.max(Some((frame.age, frame.wall)));
        at += frame.bytes();
        scan.bytes = at as u64;
    }
    Ok(scan)
}

/// The next sound frame after damage; `None` when what comes was not synced before anything else.
fn resume(data: &[u8], from: usize, salt: u32, end: u64) -> Option<usize> {
    let mut first = None;
    let mut at = from;
    while at + FRAME_HEADER_BYTES <= data.len() {
        match FrameHeader::whole(&data[at..], salt) {
            Some((frame, _)) if frame.first >= end || frame.count == 0 => {
                first = first.or(Some(at));
                if frame.durable_before > end {
                    return first;
                }
                at += frame.bytes();
            }
            _ => at += 1,
        }
    }
    None
}

fn whole(file: &dyn DiskFile, bytes: u64) -> io::Result<Vec<u8>> {
    let length = file.length()?.min(bytes);
    let mut data = vec![0; usize::try_from(length).map_err(|_| io::ErrorKind::FileTooLarge)?];
    let read = file.read_at(&mut data, 0)?;
    data.truncate(read);
    Ok(data)
}
