//! Syncs several files side by side.
//!
//! Syncs that run one after the other each wait for the disk, and on a busy machine for a processor as well; the kernel
//! answers many that run at the same time with one flush of the disk (ADR 0074).

use std::io;
use std::sync::Arc;

use holdfast_store::log::disk::DiskFile;
use parking_lot::{Condvar, Mutex};

const STACK_BYTES: usize = 64 << 10;

/// Threads that help the writer; started when they are first needed, ended with the writer.
pub(super) struct Syncers {
    threads_max: usize,
    threads: usize,
    shared: Arc<Jobs>,
}

#[derive(Default)]
struct Jobs {
    state: Mutex<State>,
    /// The helpers wait here.
    work: Condvar,
    /// The writer waits here.
    done: Condvar,
}

#[derive(Default)]
struct State {
    /// Not begun.
    files: Vec<(usize, Arc<dyn DiskFile>)>,
    results: Vec<io::Result<()>>,
    /// Not done.
    outstanding: usize,
    closing: bool,
}

impl Syncers {
    /// `threads_max` is the most files synced at a time, the calling thread's included; with 1 they are synced in order.
    pub(super) fn new(threads_max: usize) -> Self {
        Syncers {
            threads_max,
            threads: 1,
            shared: Arc::default(),
        }
    }

    /// Syncs all files, and says of each how that went.
    pub(super) fn sync(&mut self, files: Vec<Arc<dyn DiskFile>>) -> Vec<io::Result<()>> {
        if files.len() < 2 || self.threads_max < 2 {
            return files.iter().map(|file| file.sync()).collect();
        }
        self.start(files.len());
        let mut state = self.shared.state.lock();
        let unknown = |_| Err(io::Error::other("the sync has panicked"));
        state.results = (0..files.len()).map(unknown).collect();
        state.outstanding = files.len();
        state.files.extend(files.into_iter().enumerate());
        self.shared.work.notify_all();
        while let Some((index, file)) = state.files.pop() {
            drop(state);
            self.shared.run(index, &*file);
            state = self.shared.state.lock();
        }
        while state.outstanding > 0 {
            self.shared.done.wait(&mut state);
        }
        std::mem::take(&mut state.results)
    }

    /// Sees to it that there are threads for so many files. Without a helper the writer syncs alone.
    fn start(&mut self, files: usize) {
        while self.threads < files.min(self.threads_max) {
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new()
                .name("queue-sync".to_owned())
                .stack_size(STACK_BYTES)
                .spawn(move || shared.help());
            if thread.is_err() {
                return;
            }
            self.threads += 1;
        }
    }
}

impl Drop for Syncers {
    fn drop(&mut self) {
        self.shared.state.lock().closing = true;
        self.shared.work.notify_all();
    }
}

impl Jobs {
    fn help(&self) {
        let mut state = self.state.lock();
        while !state.closing {
            match state.files.pop() {
                Some((index, file)) => {
                    drop(state);
                    self.run(index, &*file);
                    drop(file);
                    state = self.state.lock();
                }
                None => self.work.wait(&mut state),
            }
        }
    }

    fn run(&self, index: usize, file: &dyn DiskFile) {
        /// Counts the file as done, also when its sync panics.
        struct Done<'a>(&'a Jobs);
        impl Drop for Done<'_> {
            fn drop(&mut self) {
                let mut state = self.0.state.lock();
                state.outstanding -= 1;
                if state.outstanding == 0 {
                    self.0.done.notify_one();
                }
            }
        }
        let _done = Done(self);
        let result = file.sync();
        self.state.lock().results[index] = result;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[derive(Debug)]
    enum Kind {
        Works,
        Fails,
        Panics,
        /// Returns when as many as the barrier wants sync at the same time.
        Meets(Arc<Barrier>),
    }

    #[derive(Debug)]
    struct Double(Kind);

    impl DiskFile for Double {
        fn length(&self) -> io::Result<u64> {
            unreachable!()
        }
        fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
            unreachable!()
        }
        fn read_cached_at(&self, _: &mut [u8], _: u64) -> io::Result<Option<usize>> {
            unreachable!()
        }
        fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
            unreachable!()
        }
        fn allocate(&self, _: u64) -> io::Result<()> {
            unreachable!()
        }
        fn truncate(&self, _: u64) -> io::Result<()> {
            unreachable!()
        }
        fn sync(&self) -> io::Result<()> {
            match &self.0 {
                Kind::Works => Ok(()),
                Kind::Fails => Err(io::Error::other("no")),
                Kind::Panics => panic!("a file that panics"),
                Kind::Meets(barrier) => {
                    barrier.wait();
                    Ok(())
                }
            }
        }
    }

    fn file(kind: Kind) -> Arc<dyn DiskFile> {
        Arc::new(Double(kind))
    }

    #[test]
    fn each_file_gets_its_own_result() {
        for threads in 1..6 {
            let mut syncers = Syncers::new(threads);
            for round in 0..200 {
                let fails = |index: usize| (index + round).is_multiple_of(3);
                let kind = |index| if fails(index) { Kind::Fails } else { Kind::Works };
                let results = syncers.sync((0..round % 20).map(|index| file(kind(index))).collect());
                assert_eq!(results.len(), round % 20);
                for (index, result) in results.iter().enumerate() {
                    assert_eq!(
                        result.is_err(),
                        fails(index),
                        "file {index} with {threads} threads"
                    );
                }
            }
        }
    }

    #[test]
    fn files_are_synced_at_the_same_time() {
        let barrier = Arc::new(Barrier::new(4));
        let files = (0..8).map(|_| file(Kind::Meets(Arc::clone(&barrier)))).collect();
        assert!(Syncers::new(4).sync(files).iter().all(Result::is_ok));
    }

    #[test]
    fn a_panic_of_a_helper_is_a_failed_sync() {
        let barrier = Arc::new(Barrier::new(2));
        // The last is taken first, by the caller or a helper; both then meet, so that each has one of the first two.
        let files = vec![
            file(Kind::Works),
            file(Kind::Meets(Arc::clone(&barrier))),
            file(Kind::Meets(barrier)),
        ];
        let mut syncers = Syncers::new(2);
        assert!(syncers.sync(files).iter().all(Result::is_ok));
        let helper = Arc::clone(&syncers.shared);
        helper.state.lock().results = vec![Err(io::Error::other("the sync has panicked"))];
        helper.state.lock().outstanding = 1;
        let panics = std::thread::spawn(move || helper.run(0, &Double(Kind::Panics)));
        assert!(panics.join().is_err());
        let state = syncers.shared.state.lock();
        assert_eq!(state.outstanding, 0, "nobody waits for ever");
        assert!(state.results[0].is_err());
    }
}
