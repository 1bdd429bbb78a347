use std::collections::BTreeMap;

use holdfast_broker::queue::{Loss, QueueConfig, QueueId, QueueStore};
use holdfast_store::log::sim::{Random, SimDisk};

use crate::rig::{Process, append, config, dir, durable, key, numbers, open, wait_until};

const NAMES: [&str; 3] = ["a", "b", "c"];

/// What the queues must hold.
#[derive(Default)]
pub(crate) struct Model {
    queues: BTreeMap<&'static str, Expected>,
    next: u64,
}

#[derive(Default)]
struct Expected {
    /// All messages that were appended and may be there, in order.
    messages: Vec<u64>,
    /// How many of them are known to be durable.
    durable: usize,
    /// How many of them are consumed; after a crash they may be there again.
    consumed: usize,
    /// How many of them the disk knows to be consumed: a durable message has taken a mark along.
    marked: usize,
}

impl Model {
    pub(crate) fn ids(store: &QueueStore) -> Vec<(&'static str, QueueId)> {
        NAMES
            .iter()
            .map(|name| (*name, store.queue(&key(name))))
            .collect()
    }

    /// Does something at random. False when the disk has failed.
    pub(crate) fn step(&mut self, store: &QueueStore, random: &mut Random) -> bool {
        let ids = Self::ids(store);
        if random.below(5) == 0 {
            let (name, id) = ids[random.below(3)];
            let expected = self.queues.entry(name).or_default();
            let info = store.info(id);
            if info.length() > 0 {
                let count = 1 + random.below(info.length() as usize);
                store.consumed(id, info.consumed + count as u64);
                expected.consumed += count;
            }
            return true;
        }
        let mut last = 0;
        let mut touched = Vec::new();
        for _ in 0..=random.below(4) {
            let chosen: Vec<_> = ids.iter().filter(|_| random.below(2) == 0).copied().collect();
            let number = self.next;
            self.next += 1;
            let queues: Vec<QueueId> = chosen.iter().map(|(_, id)| *id).collect();
            match append(store, &queues, number, random.below(300)) {
                Ok(accepted) => last = last.max(accepted),
                Err(_) => return false,
            }
            for (name, _) in chosen {
                self.queues.entry(name).or_default().messages.push(number);
                touched.push(name);
            }
        }
        if durable(store, last).is_err() {
            return false;
        }
        for name in touched {
            let expected = self.queues.entry(name).or_default();
            expected.durable = expected.messages.len();
            expected.marked = expected.consumed;
        }
        true
    }

    /// After a restart: nothing durable is lost, nothing is out of order, nothing is twice; what was not durable may be there,
    /// but no message without those before it; what was consumed may be there, if the disk may not know.
    pub(crate) fn check(&mut self, store: &QueueStore, seed: u64) {
        for (name, id) in Self::ids(store) {
            let expected = self.queues.entry(name).or_default();
            let found = numbers(store, id);
            let start = match found.first() {
                Some(first) => expected.messages.iter().position(|number| number == first),
                None => Some(
                    expected
                        .messages
                        .len()
                        .min(expected.durable.max(expected.consumed)),
                ),
            };
            let start =
                start.unwrap_or_else(|| panic!("seed {seed}, queue {name}: {found:?} was never appended"));
            let end = start + found.len();
            assert!(
                start >= expected.marked,
                "seed {seed}, queue {name}: {found:?} was consumed up to {}",
                expected.marked
            );
            assert!(
                start <= expected.consumed,
                "seed {seed}, queue {name}: lost before {found:?}, consumed {}",
                expected.consumed
            );
            assert!(
                end >= expected.durable,
                "seed {seed}, queue {name}: durable messages are lost: found {found:?} of {:?}, durable {}, consumed {}, {:?}",
                expected.messages,
                expected.durable,
                expected.consumed,
                store.info(id)
            );
            assert_eq!(found, expected.messages[start..end], "seed {seed}, queue {name}");
            // What was not there is gone for good; its numbers do not come again.
            expected.messages.truncate(end);
            expected.durable = end;
            expected.consumed = start;
        }
    }
}

#[test]
fn a_power_cut_at_every_byte_loses_nothing() {
    let workload = |store: &QueueStore, model: &mut Model| {
        let mut random = Random(7);
        for _ in 0..9 {
            if !model.step(store, &mut random) {
                break;
            }
        }
    };
    let mut at = 0;
    loop {
        let disk = SimDisk::new();
        let mut model = Model::default();
        disk.stop_after_bytes(at);
        let process = Process::start(&disk);
        let (store, _) = process.open(config());
        workload(&store, &mut model);
        let done = model.next > 0 && append(&store, &[], 0, 0).is_ok() && {
            let probe = append(&store, &[store.queue(&key("probe"))], 0, 0);
            probe.is_ok_and(|accepted| durable(&store, accepted).is_ok())
        };
        process.die(|disk| disk.cut_power(at as u64));
        drop(store);
        let (store, seen) = open(&disk, config());
        model.check(&store, at as u64);
        assert!(seen.lost.lock().is_empty(), "byte {at}: torn is not damaged");
        // And it works on.
        let accepted = append(&store, &[store.queue(&key("a"))], 1_000_000, 10).unwrap();
        durable(&store, accepted).unwrap();
        assert_eq!(numbers(&store, store.queue(&key("a"))).last(), Some(&1_000_000));
        if done {
            break;
        }
        at += 1;
    }
    assert!(at > 1_500, "the workload wrote {at} bytes only");
}

#[test]
fn random_faults_and_restarts_lose_nothing() {
    let rounds = std::env::var("HOLDFAST_ROUNDS").map_or(60, |rounds| rounds.parse().expect("a number"));
    let base: u64 = std::env::var("HOLDFAST_SEED").map_or_else(
        |_| std::process::id().into(),
        |seed| seed.parse().expect("a number"),
    );
    println!("seeds from {base}");
    for seed in base..base + rounds {
        let mut random = Random(seed);
        let disk = SimDisk::new();
        let mut model = Model::default();
        let mut stopped = false;
        for _ in 0..6 {
            let settings = QueueConfig {
                segment_bytes: 500 << random.below(4),
                sync_threads: 1 + random.below(4),
                ..config()
            };
            let process = Process::start(&disk);
            let (store, seen) = process.open(settings);
            model.check(&store, seed);
            assert!(seen.lost.lock().is_empty(), "seed {seed}: {:?}", seen.lost.lock());
            assert!(
                stopped || *seen.set_aside.lock() == 0,
                "seed {seed}: torn is not damaged"
            );
            let fault = random.below(4);
            // In the middle of a sector perhaps, which a disk does not do: what stood there is damaged then.
            stopped |= fault == 1;
            println!("seed {seed}: fault {fault}");
            match fault {
                0 => disk.fail_sync_after(random.below(20) as u32),
                1 => disk.stop_after_bytes(random.below(8_000)),
                2 => disk.fail_sync_after(0),
                _ => {}
            }
            for _ in 0..random.below(40) {
                if !model.step(&store, &mut random) {
                    break;
                }
            }
            let end = random.below(3);
            println!("seed {seed}: end {end}");
            match end {
                0 => process.die(|disk| disk.cut_power(seed)),
                1 => process.die(SimDisk::kill),
                // An orderly end.
                _ => {}
            }
            drop(store);
            process.die(SimDisk::kill);
        }
    }
}

#[test]
fn a_full_disk_stalls_and_goes_on() {
    let disk = SimDisk::new();
    let (store, seen) = open(&disk, config());
    let (a, b) = (store.queue(&key("a")), store.queue(&key("b")));
    let first = (0..20)
        .map(|number| append(&store, &[a], number, 100).unwrap())
        .last()
        .unwrap();
    durable(&store, first).unwrap();
    let used: usize = disk.paths().iter().map(|path| disk.content(path).len()).sum();
    disk.set_capacity(Some(used));
    let second = (20..60)
        .map(|number| append(&store, &[a, b], number, 100).unwrap())
        .last()
        .unwrap();
    wait_until("a stall", || *seen.stalls.lock() > 0);
    assert!(store.durable() < second);
    // What is there can be fetched, and that makes room.
    assert!(numbers(&store, a).len() >= 20);
    disk.set_capacity(None);
    durable(&store, second).unwrap();
    assert_eq!(numbers(&store, a), (0..60).collect::<Vec<_>>());
    assert_eq!(numbers(&store, b), (20..60).collect::<Vec<_>>());
    drop(store);
    let (store, _) = open(&disk, config());
    assert_eq!(
        numbers(&store, store.queue(&key("a"))),
        (0..60).collect::<Vec<_>>()
    );
}

#[test]
fn a_disk_that_is_read_only_ends_the_taking() {
    let disk = SimDisk::new();
    let (store, _) = open(&disk, config());
    let a = store.queue(&key("a"));
    let accepted = append(&store, &[a], 1, 0).unwrap();
    durable(&store, accepted).unwrap();
    disk.set_read_only(true);
    let accepted = append(&store, &[a], 2, 0).unwrap();
    assert!(durable(&store, accepted).is_err());
    assert!(append(&store, &[a], 3, 0).is_err());
    assert_eq!(numbers(&store, a), [1], "what was durable stays readable");
}

#[test]
fn damage_costs_what_it_hit() {
    for seed in 0..200 {
        let mut random = Random(seed);
        let disk = SimDisk::new();
        let settings = QueueConfig {
            segment_bytes: 4 << 10,
            ..config()
        };
        let (store, _) = open(&disk, settings.clone());
        let (a, b) = (store.queue(&key("a")), store.queue(&key("b")));
        for number in 0..100 {
            let accepted = append(&store, &[a, b], number, 60).unwrap();
            durable(&store, accepted).unwrap();
        }
        drop(store);
        let paths = disk.paths();
        let path = &paths[random.below(paths.len())];
        let length = disk.content(path).len();
        // Behind the header.
        let at = 120 + random.below(length - 120);
        disk.damage(path, |content| content[at] ^= 1 << (seed % 8));
        let (store, seen) = open(&disk, settings);
        let found = [numbers(&store, a), numbers(&store, b)];
        let whole = found.iter().filter(|found| found.len() == 100).count();
        assert!(whole >= 1, "seed {seed}: another queue was hit");
        for found in found {
            assert!(
                found.is_sorted() && found.len() >= 98,
                "seed {seed}: {} left",
                found.len()
            );
        }
        let told: u64 = seen.lost.lock().iter().map(|(_, count, _)| *count).sum();
        assert!(
            told <= 2 && seen.lost.lock().iter().all(|(.., why)| *why == Loss::Damage),
            "seed {seed}"
        );
        // It works on.
        let accepted = append(&store, &[a, b], 1_000, 0).unwrap();
        durable(&store, accepted).unwrap();
        assert_eq!(numbers(&store, a).last(), Some(&1_000), "seed {seed}");
    }
}

#[test]
fn a_damaged_header_is_set_aside() {
    let disk = SimDisk::new();
    let (store, _) = open(&disk, config());
    let (a, b) = (store.queue(&key("a")), store.queue(&key("b")));
    let accepted = append(&store, &[a, b], 1, 10).unwrap();
    durable(&store, accepted).unwrap();
    drop(store);
    disk.damage(&disk.paths()[0], |content| content[0] ^= 1);
    let (store, _) = open(&disk, config());
    let left = numbers(&store, store.queue(&key("a"))).len() + numbers(&store, store.queue(&key("b"))).len();
    assert_eq!(left, 1);
    assert!(
        disk.paths()
            .iter()
            .any(|path| path.starts_with(dir()) && path.extension().is_some_and(|end| end == "damaged"))
    );
}

#[test]
fn a_segment_whose_first_sector_is_zeroed_is_no_spare_file() {
    let disk = SimDisk::new();
    let process = Process::start(&disk);
    let settings = QueueConfig {
        segment_bytes: 2_000,
        ..config()
    };
    let (store, _) = process.open(settings.clone());
    let (a, b) = (store.queue(&key("a")), store.queue(&key("b")));
    for number in 0..20 {
        let accepted = append(&store, &[a, b], number, 300).unwrap();
        durable(&store, accepted).unwrap();
    }
    // What is consumed of one queue is kept to be used again, ...
    store.consumed(a, 18);
    let is_spare = |content: &[u8]| content[..8] == [0; 8];
    let spares = || {
        disk.paths()
            .iter()
            .filter(|path| is_spare(&disk.content(path)))
            .count()
    };
    wait_until("spare files", || spares() > 0);
    // ... also by the other, in files that are the next ones then.
    for number in 20..25 {
        let accepted = append(&store, &[b], number, 300).unwrap();
        durable(&store, accepted).unwrap();
    }
    wait_until("spare files", || spares() > 0);
    process.die(SimDisk::kill);
    drop(store);
    let files = disk.paths();
    let oldest = files.iter().filter(|path| !is_spare(&disk.content(path))).min();
    let oldest = oldest.expect("segments").clone();
    disk.damage(&oldest, |content| content[..512].fill(0));
    let process = Process::start(&disk);
    let (store, seen) = process.open(settings);
    assert_eq!(*seen.set_aside.lock(), 1, "the damaged one and no spare");
    let kept = |end: &str| {
        let is_so = |path: &&std::path::PathBuf| path.extension().is_some_and(|other| other == end);
        disk.paths().iter().filter(is_so).count()
    };
    assert_eq!(kept("damaged"), 1);
    assert!(disk.paths().iter().all(|path| {
        path.extension().is_some_and(|end| end == "damaged") || !is_spare(&disk.content(path))
    }));
    let found = numbers(&store, store.queue(&key("b")));
    assert!(
        found.is_sorted() && found.last() == Some(&24) && found.len() >= 20,
        "{found:?}"
    );
}

#[test]
fn each_damaged_segment_is_kept() {
    let disk = SimDisk::new();
    for count in 1..4 {
        let (store, _) = open(&disk, config());
        let accepted = append(&store, &[store.queue(&key("a"))], count, 10).unwrap();
        durable(&store, accepted).unwrap();
        drop(store);
        let segment = disk
            .paths()
            .into_iter()
            .find(|path| path.extension().is_some_and(|end| end == "q"));
        disk.damage(&segment.unwrap(), |content| content[0] ^= 1);
        drop(open(&disk, config()));
        assert_eq!(disk.paths().len(), count as usize, "{:?}", disk.paths());
    }
}
