//! Removes segments that are consumed, beside the writer: freeing a mebibyte takes some file systems 10 ms, for which no
//! message shall wait.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use holdfast_store::log::disk::Disk;
use parking_lot::{Condvar, Mutex};

const STACK_BYTES: usize = 64 << 10;

/// The thread that removes, started when it is first needed. Dropping it waits until everything is removed.
pub(super) struct Cleaner {
    shared: Arc<Shared>,
    beside: bool,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    /// Files to be removed: no more than there are segments.
    paths: Vec<PathBuf>,
    closing: bool,
}

impl Cleaner {
    /// For files in `dir`; without `beside` they are removed at once, on the caller's thread.
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
        }
    }

    /// Removes files, soon. One that cannot be removed is consumed by its mark, and removed when the store is next opened.
    pub(super) fn remove(&mut self, paths: Vec<PathBuf>) {
        if paths.is_empty() {
            return;
        }
        if !self.beside || !self.start() {
            return remove(&*self.shared.disk, &self.shared.dir, &paths);
        }
        self.shared.state.lock().paths.extend(paths);
        self.shared.work.notify_one();
    }

    /// Whether there is a thread.
    fn start(&mut self) -> bool {
        if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new()
                .name("queue-cleaner".to_owned())
                .stack_size(STACK_BYTES);
            self.thread = thread.spawn(move || shared.run()).ok();
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
    }
}

impl Shared {
    fn run(&self) {
        let mut state = self.state.lock();
        loop {
            if !state.paths.is_empty() {
                let paths = std::mem::take(&mut state.paths);
                drop(state);
                remove(&*self.disk, &self.dir, &paths);
                state = self.state.lock();
            } else if state.closing {
                return;
            } else {
                self.work.wait(&mut state);
            }
        }
    }
}

fn remove(disk: &dyn Disk, dir: &Path, paths: &[PathBuf]) {
    for path in paths {
        let _ = disk.remove(path);
    }
    let _ = disk.sync_dir(dir);
}
