//! The queues on a machine that stops, or a disk that refuses, at every single operation of a workload in which the files of
//! consumed segments are used again.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast_broker::queue::{QueueConfig, QueueStore};
use holdfast_store::log::disk::{Disk, DiskFile};
use holdfast_store::log::sim::{Random, SimDisk};
use parking_lot::Mutex;

use crate::queue_faults::Model;
use crate::rig::{Process, Seen, append, clock, config, durable, key, numbers, open, read_all, wait_until};

/// What happens at one of the operations that change something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    /// The power fails, before or after it.
    Cut(u64),
    /// The process is killed.
    Kill,
    /// It fails, this time.
    Error,
}

/// A disk as one process sees it, with one fault.
#[derive(Clone, Debug)]
struct Machine {
    disk: SimDisk,
    fault: Fault,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    operations: u64,
    at: u64,
    dead: bool,
    /// Files that were renamed: used again.
    renamed: u64,
}

#[derive(Debug)]
struct MachineFile {
    machine: Machine,
    file: Box<dyn DiskFile>,
}

/// How much of an operation is done.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    All,
    Half,
}

impl Machine {
    fn new(disk: &SimDisk, fault: Fault, at: u64) -> Self {
        let state = State {
            operations: 0,
            at,
            dead: false,
            renamed: 0,
        };
        Machine {
            disk: disk.clone(),
            fault,
            state: Arc::new(Mutex::new(state)),
        }
    }

    fn open(&self, config: QueueConfig) -> (QueueStore, Arc<Seen>) {
        let seen = Arc::new(Seen::default());
        let disk = Arc::new(self.clone());
        let store = QueueStore::open(config, disk, clock(), seen.clone()).expect("opens");
        (store, seen)
    }

    /// Whether the fault has come.
    fn has_failed(&self) -> bool {
        let state = self.state.lock();
        state.operations > state.at
    }

    /// The machine ends where it is, if it has not done so already.
    fn end(&self, end: impl FnOnce(&SimDisk)) {
        let mut state = self.state.lock();
        if !state.dead {
            state.dead = true;
            end(&self.disk);
        }
    }

    fn read<T>(&self, operation: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.state.lock().dead {
            return Err(io::Error::other("the machine is off"));
        }
        operation()
    }

    fn change<T>(&self, operation: impl FnOnce(Part) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state.lock();
        if state.dead {
            return Err(io::Error::other("the machine is off"));
        }
        state.operations += 1;
        if state.operations != state.at + 1 {
            return operation(Part::All);
        }
        match self.fault {
            Fault::Error => {
                let _ = operation(Part::Half);
                return Err(io::Error::other("input/output error"));
            }
            Fault::Kill => {
                let _ = operation(Part::Half);
                self.disk.kill();
            }
            Fault::Cut(seed) => {
                let part = if seed % 3 == 0 { Part::All } else { Part::Half };
                let _ = operation(part);
                self.disk.cut_power(seed);
            }
        }
        state.dead = true;
        Err(io::Error::other("the machine is off"))
    }

    fn file(&self, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        let machine = self.clone();
        Box::new(MachineFile { machine, file })
    }
}

/// Nothing is done by half of an operation that cannot be divided.
fn whole<T>(part: Part, operation: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    match part {
        Part::All => operation(),
        Part::Half => Err(io::Error::other("input/output error")),
    }
}

impl Disk for Machine {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.read(|| self.disk.create_dir(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.read(|| self.disk.list(dir))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = self.change(|part| whole(part, || self.disk.create(path)))?;
        Ok(self.file(file))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn DiskFile>> {
        let file = if write {
            self.change(|part| whole(part, || self.disk.open(path, write)))
        } else {
            self.read(|| self.disk.open(path, write))
        };
        Ok(self.file(file?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(|part| whole(part, || self.disk.rename(from, to)))?;
        // Not those that get their names.
        self.state.lock().renamed += u64::from(from.extension().is_some_and(|end| end == "q"));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change(|part| whole(part, || self.disk.remove(path)))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.change(|part| whole(part, || self.disk.sync_dir(dir)))
    }
}

impl DiskFile for MachineFile {
    fn length(&self) -> io::Result<u64> {
        self.machine.read(|| self.file.length())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.machine.read(|| self.file.read_at(buffer, offset))
    }

    fn read_cached_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        self.machine.read(|| self.file.read_cached_at(buffer, offset))
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.machine.change(|part| match part {
            Part::All => self.file.write_all_at(bytes, offset),
            // One whole sector gets there or not.
            Part::Half if offset.is_multiple_of(512) && bytes.len() == 512 => {
                Err(io::Error::other("input/output error"))
            }
            Part::Half => self.file.write_all_at(&bytes[..bytes.len() / 2], offset),
        })
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.machine
            .change(|part| whole(part, || self.file.allocate(len)))
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.machine
            .change(|part| whole(part, || self.file.truncate(len)))
    }

    fn sync(&self) -> io::Result<()> {
        self.machine.change(|part| {
            // One that fails and one that a kill comes before are two things: the first makes the kernel forget what to write.
            if part == Part::Half && self.machine.fault == Fault::Error {
                self.machine.disk.fail_sync_after(0);
                return self.file.sync();
            }
            whole(part, || self.file.sync())
        })
    }
}

fn settings(sync_threads: usize) -> QueueConfig {
    QueueConfig {
        segment_bytes: 900,
        chores_every: Duration::from_micros(100),
        sync_threads,
        ..config()
    }
}

/// Appends and consumes; false when the store takes nothing more.
fn work(store: &QueueStore, model: &mut Model, random: &mut Random, steps: usize) -> bool {
    (0..steps).all(|_| {
        let goes_on = model.step(store, random);
        if random.below(3) == 0 {
            // Chores come in between.
            std::thread::sleep(Duration::from_micros(300));
        }
        goes_on
    })
}

/// The power fails again and again while the queues are being opened.
fn open_in_vain(disk: &SimDisk, seed: u64) {
    for at in 0..5 {
        let machine = Machine::new(disk, Fault::Cut(seed + at), at);
        let seen = Arc::new(Seen::default());
        let opened = QueueStore::open(settings(1), Arc::new(machine.clone()), clock(), seen.clone());
        machine.end(|disk| disk.cut_power(seed));
        drop(opened);
        assert!(seen.lost.lock().is_empty(), "seed {seed}: torn is not damaged");
    }
}

/// What is there after a fault is right, the store works on, survives a second end, and gives all space back.
fn check(disk: &SimDisk, model: &mut Model, seed: u64) {
    let mut random = Random(seed);
    for _ in 0..2 {
        if random.below(2) == 0 {
            open_in_vain(disk, seed);
        }
        let process = Process::start(disk);
        let (store, seen) = process.open(settings(1 + random.below(4)));
        model.check(&store, seed);
        assert!(seen.lost.lock().is_empty(), "seed {seed}: torn is not damaged");
        assert!(work(&store, model, &mut random, 5), "seed {seed}");
        match random.below(3) {
            0 => process.die(|disk| disk.cut_power(seed)),
            1 => process.die(SimDisk::kill),
            _ => {}
        }
    }
    let (store, seen) = open(disk, settings(1 + random.below(4)));
    model.check(&store, seed);
    assert!(seen.lost.lock().is_empty(), "seed {seed}: torn is not damaged");
    for (_, queue) in Model::ids(&store) {
        let accepted = append(&store, &[queue], 1_000_000, 10).unwrap();
        durable(&store, accepted).unwrap();
        store.consumed(queue, u64::MAX);
    }
    drop(store);
    assert!(disk.paths().is_empty(), "seed {seed}: {:?} is left", disk.paths());
}

/// Runs the workload with a fault at every operation, until it ends before the fault comes.
fn at_every_operation(fault: impl Fn(u64) -> Fault) {
    let base: u64 = std::env::var("HOLDFAST_SEED").map_or(0, |seed| seed.parse().expect("a number"));
    for sync_threads in [1, 4] {
        let mut renamed = 0;
        let mut at = 0;
        loop {
            let seed = base + at;
            let disk = SimDisk::new();
            let mut model = Model::default();
            let fault = fault(seed);
            let machine = Machine::new(&disk, fault, at);
            let (store, _) = machine.open(settings(sync_threads));
            let goes_on = work(&store, &mut model, &mut Random(base), 45);
            let failed = machine.has_failed();
            if fault == Fault::Error {
                assert!(goes_on, "operation {at}: one failure does not end the store");
                match seed % 4 {
                    0 => machine.end(|disk| disk.cut_power(seed)),
                    1 => machine.end(SimDisk::kill),
                    _ => {}
                }
            }
            if !failed {
                machine.end(|disk| disk.cut_power(seed));
            }
            drop(store);
            renamed = machine.state.lock().renamed.max(renamed);
            disk.clear_faults();
            check(&disk, &mut model, seed);
            if !failed {
                break;
            }
            at += 1;
        }
        assert!(
            at > 150 && renamed > 5,
            "{at} operations, {renamed} files used again"
        );
    }
}

#[test]
fn a_power_cut_at_every_operation_loses_nothing() {
    at_every_operation(|seed| Fault::Cut(seed.wrapping_mul(7_919)));
}

#[test]
fn a_kill_at_every_operation_loses_nothing() {
    at_every_operation(|_| Fault::Kill);
}

#[test]
fn an_operation_that_fails_loses_nothing() {
    at_every_operation(|_| Fault::Error);
}

#[test]
fn what_was_consumed_before_an_orderly_end_is_not_read_again() {
    for sync_threads in [1, 4] {
        let disk = SimDisk::new();
        let settings = QueueConfig {
            empty_after: Duration::from_secs(3_600),
            chores_every: Duration::from_secs(3_600),
            ..settings(sync_threads)
        };
        let (store, _) = open(&disk, settings.clone());
        let (empty, rest) = (store.queue(&key("empty")), store.queue(&key("rest")));
        for number in 0..50 {
            let accepted = append(&store, &[empty, rest], number, 50).unwrap();
            durable(&store, accepted).unwrap();
        }
        store.consumed(empty, 50);
        store.consumed(rest, 49);
        drop(store);
        let (store, _) = open(&disk, settings);
        assert_eq!(numbers(&store, store.queue(&key("empty"))), [0; 0]);
        assert_eq!(numbers(&store, store.queue(&key("rest"))), [49]);
    }
}

#[test]
fn a_mark_that_failed_is_written_later() {
    for fault in [0, 1] {
        let disk = SimDisk::new();
        let (store, _) = open(&disk, settings(1));
        let a = store.queue(&key("a"));
        let accepted = (0..4).map(|number| append(&store, &[a], number, 0).unwrap());
        durable(&store, accepted.last().unwrap()).unwrap();
        let paths = disk.paths();
        match fault {
            0 => disk.fail_sync_after(0),
            _ => disk.set_read_only(true),
        }
        store.consumed(a, 3);
        std::thread::sleep(Duration::from_millis(5));
        disk.set_read_only(false);
        // What could not be synced is left behind.
        wait_until("another segment", || disk.paths().len() > paths.len());
        wait_until("a mark", || {
            let (store, _) = open(&disk.copy(), settings(1));
            numbers(&store, store.queue(&key("a"))) == [3]
        });
        let (copy, _) = open(&disk.copy(), settings(1));
        assert_eq!(numbers(&copy, copy.queue(&key("a"))), [3]);
        drop(store);
    }
}

#[test]
fn spare_files_and_segments_are_within_the_bound_of_bytes() {
    for sync_threads in [1, 4] {
        let disk = SimDisk::new();
        let bytes_max = 12_000;
        let settings = QueueConfig {
            bytes_max,
            ..settings(sync_threads)
        };
        let (store, _) = open(&disk, settings);
        let a = store.queue(&key("a"));
        for round in 0..40 {
            for number in 0..10 + round {
                if let Ok(accepted) = append(&store, &[a], number, 100) {
                    durable(&store, accepted).unwrap();
                }
            }
            store.consumed(a, u64::MAX);
            wait_until("room", || store.bytes() < bytes_max / 2);
            wait_until("fewer files", || {
                let used: usize = disk.paths().iter().map(|path| disk.content(path).len()).sum();
                // The file that is being written has more than it counts.
                used as u64 <= bytes_max / 2 + 1_800
            });
        }
    }
}

#[test]
fn spare_files_make_room_on_a_full_disk() {
    for sync_threads in [1, 4] {
        let disk = SimDisk::new();
        let (store, _) = open(&disk, settings(sync_threads));
        // Too long for a file that is used again.
        let queues = [key("a"), key("b"), key(&"n".repeat(600))].map(|key| store.queue(&key));
        disk.set_capacity(Some(20_000));
        for number in 0..300 {
            let queue = queues[number as usize / 10 % 3];
            let accepted = append(&store, &[queue], number, 150).unwrap();
            durable(&store, accepted).unwrap();
            assert_eq!(numbers(&store, queue).last(), Some(&number));
            if number % 10 == 9 {
                store.consumed(queue, u64::MAX);
            }
        }
    }
}

#[test]
fn who_reads_while_files_are_used_again_sees_no_other_segment() {
    const MESSAGES: u64 = 6_000;
    let disk = SimDisk::new();
    let (store, seen) = open(&disk, settings(4));
    let queues = [store.queue(&key("a")), store.queue(&key("b"))];
    let consumed_up_to = AtomicU64::new(0);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            for number in 0..MESSAGES {
                // Not so far ahead that nothing is used again.
                while number > consumed_up_to.load(Ordering::SeqCst) + 40 {
                    std::thread::yield_now();
                }
                // Numbers of messages are those of their places, a million apart in the two queues.
                append(&store, &queues[..1], number, 100).unwrap();
                let accepted = append(&store, &queues[1..], 1_000_000 + number, 100).unwrap();
                durable(&store, accepted).unwrap();
            }
        });
        // Reads what another is about to consume.
        for (index, queue) in queues.into_iter().enumerate() {
            let (store, consumed_up_to) = (&store, &consumed_up_to);
            threads.spawn(move || {
                while consumed_up_to.load(Ordering::SeqCst) < MESSAGES {
                    for (place, number) in read_all(store, queue, 0) {
                        assert_eq!(number, index as u64 * 1_000_000 + place);
                    }
                }
            });
        }
        while consumed_up_to.load(Ordering::SeqCst) < MESSAGES {
            let durable = store.info(queues[1]).durable;
            queues.iter().for_each(|queue| store.consumed(*queue, durable));
            consumed_up_to.store(durable, Ordering::SeqCst);
            std::thread::yield_now();
        }
    });
    assert!(seen.lost.lock().is_empty(), "{:?}", seen.lost.lock());
}

#[test]
fn damage_costs_what_it_hit_in_files_that_are_used_again() {
    for seed in 0..100 {
        let mut random = Random(seed);
        let disk = SimDisk::new();
        let machine = Machine::new(&disk, Fault::Error, u64::MAX - 1);
        let settings = QueueConfig {
            segment_bytes: 4 << 10,
            ..settings(1 + random.below(4))
        };
        let (store, _) = machine.open(settings.clone());
        let (a, b) = (store.queue(&key("a")), store.queue(&key("b")));
        let fill = |numbers: std::ops::Range<u64>, padding| {
            for number in numbers {
                let last = append(&store, &[a, b], number, padding).unwrap();
                durable(&store, last).unwrap();
            }
        };
        fill(0..60, 60 + random.below(200));
        store.consumed(a, 60);
        store.consumed(b, 60);
        let is_spare = |path: &std::path::PathBuf| disk.content(path).starts_with(&[0; 8]);
        wait_until("files to be used again", || {
            store.bytes() == 0 && disk.paths().iter().any(is_spare)
        });
        fill(60..120, 60);
        drop(store);
        assert!(
            machine.state.lock().renamed > 0,
            "seed {seed}: nothing was used again"
        );
        let paths = disk.paths();
        let path = &paths[random.below(paths.len())];
        let length = disk.content(path).len();
        // A bit, or a sector behind the one with the header.
        match random.below(2) {
            0 => {
                let at = 120 + random.below(length - 120);
                disk.damage(path, |content| content[at] ^= 1 << (seed % 8));
            }
            _ => {
                let at = 512 * (1 + random.below(length.div_ceil(512) - 1));
                disk.damage(path, |content| content[at..length.min(at + 512)].fill(0));
            }
        }
        let (store, seen) = open(&disk, settings);
        let found = [a, b].map(|queue| numbers(&store, queue));
        assert!(
            found.iter().any(|found| *found == (60..120).collect::<Vec<_>>()),
            "seed {seed}"
        );
        for found in &found {
            assert!(
                found.is_sorted() && found.iter().all(|number| *number >= 60),
                "seed {seed}: {found:?}"
            );
            // A sector touches five messages of about 180 bytes.
            assert!(found.len() >= 55, "seed {seed}: {found:?}");
        }
        let told: u64 = seen.lost.lock().iter().map(|(_, count, _)| *count).sum();
        assert!(told <= 5, "seed {seed}: {told}");
        let accepted = append(&store, &[a, b], 1_000, 0).unwrap();
        durable(&store, accepted).unwrap();
        assert_eq!(numbers(&store, a).last(), Some(&1_000), "seed {seed}");
    }
}
