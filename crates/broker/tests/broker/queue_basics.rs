use std::time::Duration;

use holdfast_broker::queue::{AppendError, Loss, QueueConfig, QueueKey, WhenFull};
use holdfast_store::log::sim::SimDisk;

use crate::rig::{
    append, append_until, clock, config, durable, key, numbers, open, open_at, read_all, wait_until,
};

#[test]
fn messages_come_back_in_order_and_after_a_restart() {
    let disk = SimDisk::new();
    let (store, _) = open(&disk, config());
    let (a, b) = (store.queue(&key("a")), store.queue(&key("b")));
    let mut last = 0;
    for number in 0..300 {
        let queues = match number % 3 {
            0 => vec![a],
            1 => vec![b],
            _ => vec![a, b],
        };
        last = append(&store, &queues, number, 50).unwrap();
    }
    durable(&store, last).unwrap();
    let expected = |rest: u64| -> Vec<u64> {
        (0..300)
            .filter(|number| number % 3 == rest || number % 3 == 2)
            .collect()
    };
    assert_eq!(numbers(&store, a), expected(0));
    assert_eq!(numbers(&store, b), expected(1));
    // Any place can be read from, and a place before the consumed ones is not.
    assert_eq!(read_all(&store, a, 150).first().map(|entry| entry.0), Some(150));
    store.consumed(a, 100);
    assert_eq!(read_all(&store, a, 7).first().map(|entry| entry.0), Some(100));
    drop(store);
    let (store, seen) = open(&disk, config());
    let (a, b) = (store.queue(&key("a")), store.queue(&key("b")));
    assert_eq!(store.info(a).consumed, 100);
    assert_eq!(numbers(&store, a), expected(0)[100..]);
    assert_eq!(numbers(&store, b), expected(1));
    assert!(seen.lost.lock().is_empty());
}

#[test]
fn an_empty_queue_has_no_file() {
    for sync_threads in [1, 4] {
        let disk = SimDisk::new();
        let settings = QueueConfig {
            sync_threads,
            ..config()
        };
        let (store, _) = open(&disk, settings);
        let a = store.queue(&key("a"));
        for round in 0..5 {
            for number in 0..200 {
                append(&store, &[a], round * 200 + number, 100).unwrap();
            }
            let last = append(&store, &[a], 0, 0).unwrap();
            durable(&store, last).unwrap();
            assert!(store.bytes() > 20_000, "{}", store.bytes());
            store.consumed(a, store.info(a).durable);
            wait_until("an empty directory", || {
                disk.paths().is_empty() && store.bytes() == 0
            });
        }
        drop(store);
        assert_eq!(disk.paths(), Vec::<std::path::PathBuf>::new());
    }
}

#[test]
fn consumed_segments_go_while_others_stay() {
    let disk = SimDisk::new();
    let (store, _) = open(&disk, config());
    let (slow, fast) = (store.queue(&key("slow")), store.queue(&key("fast")));
    let last = (0..500)
        .map(|number| append(&store, &[slow, fast], number, 100).unwrap())
        .last();
    durable(&store, last.unwrap()).unwrap();
    let before = store.bytes();
    store.consumed(fast, 500);
    wait_until("half of the bytes", || store.bytes() < before * 6 / 10);
    assert_eq!(numbers(&store, slow).len(), 500);
}

#[test]
fn the_bound_of_bytes_refuses_or_drops() {
    let disk = SimDisk::new();
    let bounded = |when_full| QueueConfig {
        bytes_max: 20_000,
        when_full,
        ..config()
    };
    let (store, _) = open(&disk, bounded(WhenFull::RefuseNew));
    let a = store.queue(&key("a"));
    let mut taken = 0;
    let refused = loop {
        match append(&store, &[a], taken, 200) {
            Ok(accepted) => durable(&store, accepted).unwrap(),
            Err(error) => break error,
        }
        taken += 1;
    };
    assert_eq!(refused, AppendError::Full);
    assert!(store.bytes() <= 20_000 && taken > 50, "{taken}");
    assert_eq!(numbers(&store, a), (0..taken).collect::<Vec<_>>());
    store.consumed(a, 40);
    wait_until("room", || append(&store, &[a], taken, 200).is_ok());
    drop(store);

    let disk = SimDisk::new();
    let (store, seen) = open(&disk, bounded(WhenFull::DropOldest));
    let low = store.queue(&QueueKey {
        name: "a".to_owned(),
        priority: 9,
    });
    let high = store.queue(&key("a"));
    let mut last = 0;
    for number in 0..400 {
        let queue = if number % 10 == 0 { high } else { low };
        last = append(&store, &[queue], number, 200).unwrap();
        durable(&store, last).unwrap();
        // Marks of what is consumed are written apart, a few a second at most.
        assert!(store.bytes() <= 21_000, "{}", store.bytes());
    }
    durable(&store, last).unwrap();
    assert_eq!(numbers(&store, high), (0..400).step_by(10).collect::<Vec<_>>());
    let kept = numbers(&store, low);
    assert_eq!(kept.last(), Some(&399));
    assert!(kept.is_sorted());
    let dropped: u64 = seen.lost.lock().iter().map(|(_, count, _)| count).sum();
    assert_eq!(dropped as usize + kept.len(), 360);
    assert!(
        seen.lost
            .lock()
            .iter()
            .all(|(key, _, why)| key.priority == 9 && *why == Loss::Full)
    );
}

#[test]
fn memory_that_waits_for_the_disk_is_bounded() {
    let disk = SimDisk::new();
    let settings = QueueConfig {
        pending_bytes_max: 4_000,
        retry_after: Duration::from_millis(5),
        ..config()
    };
    let (store, seen) = open(&disk, settings);
    let a = store.queue(&key("a"));
    disk.set_capacity(Some(0));
    let mut taken = 0;
    let busy = loop {
        match append(&store, &[a], taken, 100) {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
    };
    assert!(
        matches!(busy, AppendError::Busy(_)) && taken < 40,
        "{busy:?} after {taken}"
    );
    wait_until("a stall", || *seen.stalls.lock() == 1);
    disk.set_capacity(None);
    durable(&store, taken).unwrap();
    assert_eq!(numbers(&store, a), (0..taken).collect::<Vec<_>>());
}

#[test]
fn ages_go_on_over_a_restart_and_not_with_a_clock_that_was_set() {
    let disk = SimDisk::new();
    let time = clock();
    let (store, _) = open_at(&disk, config(), time.clone());
    let a = store.queue(&key("a"));
    let accepted = append_until(&store, &[a], 1, 0, Some(store.now() + 60_000)).unwrap();
    durable(&store, accepted).unwrap();
    drop(store);
    time.advance(Duration::from_secs(50));
    let (store, _) = open_at(&disk, config(), time.clone());
    let blocks = store.read(a, 0, 1_000).unwrap();
    let left = blocks[0].expires.unwrap() - store.now();
    assert_eq!(left, 10_000);
    drop(store);
    // A machine that does not know the time at all.
    let lost = std::sync::Arc::new(holdfast_ports::clock::ManualClock::at(
        holdfast_model::Timestamp::from_seconds(0),
    ));
    let (store, _) = open_at(&disk, config(), lost);
    let left = store.read(a, 0, 1_000).unwrap()[0].expires.unwrap() - store.now();
    assert!(left >= 10_000, "{left}");
}
