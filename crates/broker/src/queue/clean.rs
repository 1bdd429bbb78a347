//! What becomes of segments that are consumed: some files are kept to be used again, the others are removed, both beside
//! the writer.
//!
//! Freeing a mebibyte takes some file systems 10 ms, in which they sync nothing else, and for which no message shall wait. A
//! file that is used again costs neither that nor the reservation of space. Its start is overwritten with an empty one and
//! synced before, so that a power cut at any instant leaves either the segment it was (consumed), or a file that says that it
//! has no header (removed when the store is next opened), or the segment it becomes; what it held behind is not sealed with the
//! new segment's salt and counts for nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use holdfast_store::log::disk::{Disk, DiskFile};
use parking_lot::{Condvar, Mutex};

use super::format::{BLANK_BYTES, REUSE_HEADER_BYTES_MAX, blank};

const STACK_BYTES: usize = 64 << 10;
/// Most files that are kept.
const SPARES_MAX: usize = 16;

/// The thread that removes, started when it is first needed. Dropping it waits until everything is removed.
pub(super) struct Cleaner {
    shared: Arc<Shared>,
    beside: bool,
    thread: Option<JoinHandle<()>>,
    /// When a spare file was last made or taken.
    used: Instant,
}

struct Shared {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    /// Files to be removed, or to be kept if there is a place: no more than there are segments.
    jobs: Vec<Job>,
    spares: Vec<Spare>,
    /// Most bytes of spare files.
    room: u64,
    /// The thread is at work.
    cleaning: bool,
    closing: bool,
}

struct Job {
    path: PathBuf,
    keep: bool,
}

struct Spare {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    length: u64,
}

impl Cleaner {
    /// For files in `dir`; without `beside` everything is done at once, on the caller's thread.
    pub(super) fn new(disk: Arc<dyn Disk>, dir: PathBuf, beside: bool) -> Self {
        let shared = Shared {
            disk,
            dir,
            state: Mutex::default(),
            work: Condvar::new(),
        };
        Cleaner {
            shared: Arc::new(shared),
            beside,
            thread: None,
            used: Instant::now(),
        }
    }

    /// Most bytes of files that are kept; none at the start. Those beyond it go.
    pub(super) fn set_room(&mut self, bytes: u64) {
        let mut state = self.shared.state.lock();
        state.room = bytes;
        let is_over = state.spare_bytes() > bytes;
        drop(state);
        if is_over {
            self.forget(Duration::ZERO);
        }
    }

    /// Removes files, oldest first, soon, or keeps some of them. One that cannot be removed is consumed by its mark, and
    /// removed when the store is next opened.
    pub(super) fn remove(&mut self, paths: Vec<PathBuf>) {
        if paths.is_empty() {
            return;
        }
        let keep = self.shared.state.lock().room > 0;
        self.used = if keep { Instant::now() } else { self.used };
        self.run(paths.into_iter().map(|path| Job { path, keep }).collect());
    }

    /// Whether there are spare files, or will be.
    pub(super) fn holds_any(&self) -> bool {
        let state = self.shared.state.lock();
        state.cleaning || !state.jobs.is_empty() || !state.spares.is_empty()
    }

    /// Removes the spare files when none was needed for so long.
    pub(super) fn forget(&mut self, after: Duration) {
        if self.used.elapsed() < after {
            return;
        }
        let spares = std::mem::take(&mut self.shared.state.lock().spares);
        let job = |spare: Spare| Job {
            path: spare.path,
            keep: false,
        };
        if !spares.is_empty() {
            self.run(spares.into_iter().map(job).collect());
        }
    }

    /// A spare file under a new name, and its length. Its start is empty.
    pub(super) fn take(&mut self, path: &Path, header_bytes: u64) -> Option<(Arc<dyn DiskFile>, u64)> {
        // A longer one would not lie on the empty start alone.
        if header_bytes > REUSE_HEADER_BYTES_MAX as u64 {
            return None;
        }
        let spare = self.shared.state.lock().spares.pop()?;
        self.used = Instant::now();
        if self.shared.disk.rename(&spare.path, path).is_err() {
            let _ = self.shared.disk.remove(&spare.path);
            return None;
        }
        Some((spare.file, spare.length))
    }

    fn run(&mut self, jobs: Vec<Job>) {
        if !self.beside || !self.start() {
            return self.shared.clean(jobs);
        }
        self.shared.state.lock().jobs.extend(jobs);
        self.shared.work.notify_one();
    }

    /// Whether there is a thread.
    fn start(&mut self) -> bool {
        if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new()
                .name("queue-cleaner".to_owned())
                .stack_size(STACK_BYTES);
            self.thread = thread.spawn(move || shared.work()).ok();
        }
        self.thread.is_some()
    }
}

impl Drop for Cleaner {
    fn drop(&mut self) {
        self.shared.state.lock().closing = true;
        self.shared.work.notify_one();
        if let Some(thread) = self.thread.take() {
            // What a panic there has left is removed when the store is next opened.
            let _ = thread.join();
        }
        self.beside = false;
        self.forget(Duration::ZERO);
    }
}

impl State {
    fn spare_bytes(&self) -> u64 {
        self.spares.iter().map(|spare| spare.length).sum()
    }

    fn has_place(&self, length: u64) -> bool {
        !self.closing
            && self.spares.len() < SPARES_MAX
            && self.spare_bytes().saturating_add(length) <= self.room
    }
}

impl Shared {
    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            if !state.jobs.is_empty() {
                let jobs = std::mem::take(&mut state.jobs);
                state.cleaning = true;
                drop(state);
                self.clean(jobs);
                state = self.state.lock();
                state.cleaning = false;
            } else if state.closing {
                return;
            } else {
                self.work.wait(&mut state);
            }
        }
    }

    fn clean(&self, jobs: Vec<Job>) {
        if self.clear(jobs) {
            let _ = self.disk.sync_dir(&self.dir);
        }
    }

    /// Whether names are gone, which is not durable yet.
    fn clear(&self, jobs: Vec<Job>) -> bool {
        let mut removed = false;
        for job in jobs {
            // A power cut may bring back what is removed until the directory is synced. A newer segment of the same queue that
            // is gone by then would look like damage.
            if removed || !job.keep || !self.keep(&job.path) {
                let _ = self.disk.remove(&job.path);
                removed = true;
            }
        }
        removed
    }

    /// Makes a spare file; false when there are enough, or the disk refuses.
    fn keep(&self, path: &Path) -> bool {
        let blank = || {
            let file: Arc<dyn DiskFile> = Arc::from(self.disk.open(path, true)?);
            let length = file.length()?;
            // A start that is longer than the file would not get there in one piece.
            if length < BLANK_BYTES as u64 || !self.state.lock().has_place(length) {
                return Ok(None);
            }
            file.write_all_at(&blank(), 0)?;
            file.sync()?;
            Ok::<_, std::io::Error>(Some((file, length)))
        };
        let Ok(Some((file, length))) = blank() else {
            return false;
        };
        self.state.lock().spares.push(Spare {
            path: path.to_owned(),
            file,
            length,
        });
        true
    }
}

#[cfg(test)]
mod tests {
    use holdfast_store::log::sim::SimDisk;

    use super::*;

    fn disk_with(names: &[&str]) -> (SimDisk, Vec<PathBuf>) {
        let disk = SimDisk::new();
        disk.create_dir(Path::new("/q")).unwrap();
        let path = |name: &&str| {
            let path = Path::new("/q").join(name);
            let file = disk.create(&path).unwrap();
            file.write_all_at(&[7; 2_000], 0).unwrap();
            file.sync().unwrap();
            path
        };
        let paths = names.iter().map(path).collect();
        disk.sync_dir(Path::new("/q")).unwrap();
        (disk, paths)
    }

    fn cleaner(disk: &SimDisk, beside: bool) -> Cleaner {
        let mut cleaner = Cleaner::new(Arc::new(disk.clone()), PathBuf::from("/q"), beside);
        cleaner.set_room(1 << 20);
        cleaner
    }

    #[test]
    fn a_file_is_used_again_with_an_empty_start() {
        let (disk, paths) = disk_with(&["1", "2"]);
        let mut cleaner = cleaner(&disk, false);
        cleaner.remove(paths.clone());
        assert!(cleaner.holds_any());
        let new = Path::new("/q/3");
        assert!(
            cleaner.take(new, REUSE_HEADER_BYTES_MAX as u64 + 1).is_none(),
            "a header that is too long"
        );
        let (file, length) = cleaner.take(new, 100).unwrap();
        assert_eq!(length, 2_000);
        let mut content = vec![1; 2_000];
        file.read_at(&mut content, 0).unwrap();
        assert_eq!(content, [blank().to_vec(), vec![7; 2_000 - BLANK_BYTES]].concat());
        // Whatever the disk has lost of that, the old content has no start.
        disk.cut_power(1);
        for path in disk.paths() {
            assert_eq!(disk.content(&path)[..BLANK_BYTES], blank(), "{}", path.display());
        }
    }

    #[test]
    fn nothing_is_left_at_the_end() {
        for beside in [false, true] {
            let (disk, paths) = disk_with(&["1", "2", "3"]);
            let mut cleaner = cleaner(&disk, beside);
            cleaner.remove(paths[1..].to_vec());
            cleaner.set_room(0);
            cleaner.remove(paths[..1].to_vec());
            drop(cleaner);
            assert_eq!(disk.paths(), Vec::<PathBuf>::new());
        }
    }

    #[test]
    fn a_disk_that_does_not_sync_keeps_no_file() {
        let (disk, paths) = disk_with(&["1"]);
        let mut cleaner = cleaner(&disk, false);
        disk.fail_sync_after(0);
        cleaner.remove(paths);
        assert!(!cleaner.holds_any());
        assert_eq!(disk.paths(), Vec::<PathBuf>::new());
    }

    #[test]
    fn no_more_is_kept_than_there_is_room_for() {
        let (disk, paths) = disk_with(&["1", "2", "3", "4"]);
        let mut cleaner = cleaner(&disk, false);
        cleaner.set_room(4_500);
        cleaner.remove(paths);
        assert_eq!(disk.paths().len(), 2);
        cleaner.set_room(4_000);
        assert_eq!(disk.paths().len(), 2);
        cleaner.set_room(3_999);
        assert_eq!(disk.paths(), Vec::<PathBuf>::new());
        assert!(!cleaner.holds_any());
    }

    #[test]
    fn what_a_power_cut_leaves_of_consumed_segments_is_the_newest_of_them() {
        for seed in 0..200 {
            let (disk, paths) = disk_with(&["1", "2", "3", "4"]);
            let cleaner = cleaner(&disk, false);
            // The second finds no place, the others would.
            disk.damage(&paths[1], |content| content.resize(2 << 20, 7));
            let job = |path: &PathBuf| Job {
                path: path.clone(),
                keep: true,
            };
            assert!(cleaner.shared.clear(paths.iter().map(job).collect()));
            disk.cut_power(seed);
            let names = disk.paths();
            let is_whole = |path: &PathBuf| names.contains(path) && disk.content(path)[0] == 7;
            let whole: Vec<bool> = paths.iter().map(is_whole).collect();
            assert!(whole.is_sorted(), "seed {seed}: {whole:?}");
        }
    }
}
