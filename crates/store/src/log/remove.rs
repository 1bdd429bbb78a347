//! Removing the files of deleted segments a piece at a time.
//!
//! A file system that discards what is freed, or is merely slow at freeing, syncs nothing meanwhile: at 1 to 10 ms a
//! mebibyte every append waits for as long as it takes to remove a segment of 64 MiB. So retention only renames the
//! file, and a thread of the log cuts it shorter in [`STEPS`] steps with pauses and then removes the rest.
//!
//! The new name is made durable before the first cut: a power cut leaves the whole segment under its own name, or a
//! file under a name that stands for no segment, which the next start goes on to remove. Nor is a file cut
//! while anybody can read it: a reader that was in it meets the next segment, never a hole.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use holdfast_observe::Event;
use parking_lot::{Condvar, Mutex};

use super::disk::{Disk, DiskFile};
use super::events::{Inconvenience, Metrics};
use super::partition::Partition;
use super::segment::Segment;

/// Steps in which a full segment goes.
const STEPS: u64 = 64;
/// Least and most bytes of a step.
const STEP_BYTES: (u64, u64) = (512, 1 << 20);
/// A pause is so many times as long as the step before it took, so that most of the time is left to syncs.
const PAUSE_FACTOR: u32 = 9;
/// Least and most time between two steps, unless time is short.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(100));
/// Time in which a file is to be gone: half of the time between two rounds of retention.
const REMOVAL_TIME: Duration = Duration::from_secs(30);
/// Most files under way; more are removed at once.
const REMOVALS_MAX: usize = 1024;
const SUFFIX: &str = ".seg.removed";

/// The name of a segment's file that is to be removed.
fn removed_path(segment: &Path) -> PathBuf {
    segment.with_extension(&SUFFIX[1..])
}

/// The index of a segment, by the path of its file under either name.
fn index_path(path: &Path) -> PathBuf {
    match path.extension() {
        Some(extension) if extension == "removed" => path.with_extension("").with_extension("idx"),
        _ => path.with_extension("idx"),
    }
}

/// Whether a file has such a name.
pub(super) fn is_removed_name(name: &str) -> bool {
    name.ends_with(SUFFIX)
}

/// The thread that removes. Files that are under way when it ends are removed after the next start.
#[derive(Debug)]
pub(super) struct Remover {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    disk: Arc<dyn Disk>,
    metrics: Metrics,
    step_bytes: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default, Debug)]
struct State {
    removals: VecDeque<Removal>,
    /// The thread has taken one out.
    busy: bool,
    /// So many wait for everything to be gone.
    in_hurry: usize,
    closing: bool,
}

/// A file on its way out.
#[derive(Debug)]
struct Removal {
    path: PathBuf,
    due: Instant,
    /// Until nobody can read the file any more.
    held: Option<Held>,
    /// What is left of it, once it may be cut.
    rest: Option<(Box<dyn DiskFile>, u64)>,
}

/// Whoever has the file open, or is about to write its index, has the segment as well.
#[derive(Debug)]
struct Held {
    segment: Arc<Segment>,
    partition: Weak<Partition>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Progress {
    /// A reader is in the file.
    Waits,
    Goes,
    Gone,
}

impl Remover {
    pub(super) fn new(disk: Arc<dyn Disk>, metrics: Metrics, segment_bytes: u64) -> Self {
        Remover {
            shared: Arc::new(Shared {
                disk,
                metrics,
                step_bytes: (segment_bytes / STEPS).clamp(STEP_BYTES.0, STEP_BYTES.1),
                state: Mutex::default(),
                changed: Condvar::new(),
            }),
            thread: Mutex::default(),
        }
    }

    /// Starts the thread.
    pub(super) fn start(&self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name("event-log-clean".to_owned());
        *self.thread.lock() = Some(thread.spawn(move || shared.work())?);
        Ok(())
    }

    /// Removes the file of a segment that `partition` has no more.
    pub(super) fn remove(&self, segment: Arc<Segment>, partition: &Arc<Partition>) {
        let path = removed_path(&segment.path);
        if self.shared.disk.rename(&segment.path, &path).is_err() {
            return self.shared.remove(&segment.path);
        }
        let partition = Arc::downgrade(partition);
        self.add(path, Some(Held { segment, partition }));
    }

    /// Goes on with a file that an earlier process has left.
    pub(super) fn resume(&self, path: PathBuf) {
        self.add(path, None);
    }

    fn add(&self, path: PathBuf, held: Option<Held>) {
        let mut state = self.shared.state.lock();
        if state.removals.len() >= REMOVALS_MAX {
            drop(state);
            return self.shared.remove(&path);
        }
        state.removals.push_back(Removal {
            path,
            due: Instant::now() + REMOVAL_TIME,
            held,
            rest: None,
        });
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Has everything removed now, for a disk that is full; waits for that. False when there was nothing.
    pub(super) fn hurry(&self) -> bool {
        let mut state = self.shared.state.lock();
        if state.is_idle() || state.closing {
            return false;
        }
        state.in_hurry += 1;
        self.shared.changed.notify_all();
        let waits = |state: &mut State| !state.is_idle() && !state.closing;
        self.shared
            .changed
            .wait_while_for(&mut state, waits, REMOVAL_TIME);
        state.in_hurry -= 1;
        true
    }

    /// Ends the thread.
    pub(super) fn close(&self) {
        self.shared.state.lock().closing = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.lock().take() {
            // What a panic there has left is removed after the next start.
            let _ = thread.join();
        }
        self.shared.state.lock().removals.clear();
    }
}

impl State {
    fn is_idle(&self) -> bool {
        self.removals.is_empty() && !self.busy
    }

    /// Time to wait after a step.
    fn pause(&self, took: Duration, step_bytes: u64) -> Duration {
        let pause = (took * PAUSE_FACTOR).clamp(PAUSE.0, PAUSE.1);
        let Some(last) = self.removals.back() else {
            return pause;
        };
        let steps: u64 = (self.removals.iter())
            .map(|removal| removal.steps_left(step_bytes))
            .sum();
        let left = last.due.saturating_duration_since(Instant::now());
        pause.min(left / u32::try_from(steps).unwrap_or(u32::MAX).max(1))
    }
}

impl Shared {
    fn work(&self) {
        let mut state = self.state.lock();
        while !state.closing {
            let Some(mut removal) = state.removals.pop_front() else {
                self.changed.wait(&mut state);
                continue;
            };
            state.busy = true;
            let in_hurry = state.in_hurry > 0;
            drop(state);
            let start = Instant::now();
            let progress = self.advance(&mut removal, in_hurry);
            let took = start.elapsed();
            state = self.state.lock();
            state.busy = false;
            if progress != Progress::Gone {
                state.removals.push_front(removal);
            } else if state.removals.is_empty() {
                self.changed.notify_all();
            }
            let pause = state.pause(took, self.step_bytes);
            let rests = |state: &mut State| state.in_hurry == 0 && !state.closing;
            self.changed.wait_while_for(&mut state, rests, pause);
        }
    }

    fn advance(&self, removal: &mut Removal, in_hurry: bool) -> Progress {
        let step = match in_hurry {
            true => None,
            false => removal.step(self.disk.as_ref(), self.step_bytes).ok(),
        };
        match step {
            Some(Progress::Waits) if Instant::now() < removal.due => Progress::Waits,
            Some(Progress::Goes) => Progress::Goes,
            Some(Progress::Gone) => Progress::Gone,
            // Whole: whoever still reads it keeps what is open.
            Some(Progress::Waits) | None => {
                self.remove(&removal.path);
                Progress::Gone
            }
        }
    }

    /// Removes a segment at once.
    fn remove(&self, path: &Path) {
        for path in [&index_path(path), path] {
            if let Err(error) = remove_file(self.disk.as_ref(), path) {
                Inconvenience {
                    action: "delete an old file of the event log",
                    file: path,
                    error: &error,
                }
                .emit(&self.metrics);
            }
        }
    }
}

/// Removes a file, if it is there.
fn remove_file(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    match disk.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl Removal {
    /// Does the next part of the work.
    fn step(&mut self, disk: &dyn Disk, step_bytes: u64) -> io::Result<Progress> {
        if self.held.as_ref().is_some_and(Held::is_read) {
            return Ok(Progress::Waits);
        }
        self.held = None;
        let Some((file, length)) = &mut self.rest else {
            // Before the segment, or it would stay for ever; and not before the writer and the readers have left the
            // segment, which may make one.
            remove_file(disk, &index_path(&self.path))?;
            // Else a power cut could take back the name and not the cut.
            disk.sync_dir(self.path.parent().unwrap_or(Path::new(".")))?;
            let file = disk.open(&self.path, true)?;
            let length = file.length()?;
            self.rest = Some((file, length));
            return Ok(Progress::Goes);
        };
        if *length > step_bytes {
            *length -= step_bytes;
            file.truncate(*length)?;
            return Ok(Progress::Goes);
        }
        self.rest = None;
        disk.remove(&self.path)?;
        Ok(Progress::Gone)
    }

    /// About as many as there are.
    fn steps_left(&self, step_bytes: u64) -> u64 {
        let length = (self.rest.as_ref()).map_or(STEPS * step_bytes, |(_, length)| *length);
        length / step_bytes + 1
    }
}

impl Held {
    fn is_read(&self) -> bool {
        // A reader that was under way may have put it there again.
        if let Some(partition) = self.partition.upgrade() {
            partition.forget_removed();
        }
        Arc::strong_count(&self.segment) > 1
    }
}

#[cfg(test)]
mod tests;
