//! The embedded event log on a real disk: appending, reading, reopening, segments, retention, refusals.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use holdfast_model::event::{AuthMethod, EventSource, Origin, Records};
use holdfast_model::{Identity, Timestamp};
use holdfast_ports::event_log::{EventLog, LogError, durable};
use holdfast_store::log::{EmbeddedLog, LogConfig, OpenError};

fn origin() -> Origin {
    Origin {
        source: EventSource::Telemetry,
        identity: Identity::parse("d1").expect("an identity"),
        generation_id: 1,
        auth: AuthMethod::IdentityKey,
    }
}

fn records(count: u32, bytes: usize) -> Records {
    let mut records = Records::new();
    for index in 0..count {
        let _ = records.record().finish(&vec![index as u8; bytes]);
    }
    records
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_seconds(seconds)
}

fn config(dir: &tempfile::TempDir) -> LogConfig {
    LogConfig {
        dir: dir.path().join("events"),
        partitions: 2,
        ..LogConfig::default()
    }
}

async fn put(log: &EmbeddedLog, partition: u16, count: u32, bytes: usize, time: i64) -> u64 {
    let ticket = log
        .append(partition, &origin(), &records(count, bytes), at(time))
        .expect("appended");
    durable(log, ticket).await.expect("durable");
    ticket.end
}

/// Sequence numbers of all events from `from` on.
async fn all(log: &dyn EventLog, partition: u16, mut from: u64) -> Vec<u64> {
    let mut found = Vec::new();
    loop {
        let blocks = log.read(partition, from, 10_000).await.expect("read");
        let Some(last) = blocks.last() else {
            return found;
        };
        for event in blocks.iter().flat_map(|block| block.events()) {
            let number = event.expect("well formed").sequence_number;
            if number >= from {
                found.push(number);
            }
        }
        from = last.end_sequence_number();
    }
}

fn numbers(range: std::ops::Range<u64>) -> Vec<u64> {
    range.collect()
}

/// Waits until nothing is left of deleted segments.
async fn removed(dir: &tempfile::TempDir) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !files(dir, "removed").is_empty() {
        assert!(Instant::now() < deadline, "files of deleted segments stay");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Files of a partition with this extension.
fn files(dir: &tempfile::TempDir, extension: &str) -> Vec<PathBuf> {
    std::fs::read_dir(dir.path().join("events/p0000"))
        .expect("a directory")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension() == Some(extension.as_ref()))
        .collect()
}

#[tokio::test]
async fn what_was_appended_is_read_again_after_reopening() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = EmbeddedLog::open(config(&dir)).expect("opened");
    for round in 0..20 {
        assert_eq!(put(&log, 0, 3, 100, round).await, 3 * (round as u64 + 1));
    }
    put(&log, 1, 1, 100, 50).await;
    assert_eq!(all(&log, 0, 0).await, numbers(0..60));
    assert_eq!(all(&log, 0, 31).await, numbers(31..60));
    assert_eq!(all(&log, 1, 0).await, [0]);
    drop(log);

    let log = EmbeddedLog::open(config(&dir)).expect("opened");
    assert_eq!(all(&log, 0, 0).await, numbers(0..60));
    let info = log.info(0).expect("info");
    assert_eq!((info.first, info.next, info.last_enqueued_at), (0, 60, at(19)));
    // The clock went back meanwhile; the log's time does not.
    assert_eq!(put(&log, 0, 1, 10, 3).await, 61);
    assert_eq!(log.info(0).expect("info").last_enqueued_at, at(19));
}

#[tokio::test]
async fn segments_roll_and_are_read_across() {
    let dir = tempfile::tempdir().expect("a directory");
    let small = LogConfig {
        segment_bytes: 4096,
        ..config(&dir)
    };
    let log = EmbeddedLog::open(small.clone()).expect("opened");
    for round in 0..200 {
        put(&log, 0, 2, 500, round).await;
    }
    log.close().expect("closed");
    let segments = files(&dir, "seg").len();
    assert!(segments > 40, "{segments} segments");
    assert_eq!(files(&dir, "idx").len(), segments - 1);
    let check = async |log: &EmbeddedLog| {
        assert_eq!(all(log, 0, 0).await, numbers(0..400));
        for seconds in (0..200).rev() {
            assert_eq!(log.find(0, at(seconds)).await, Ok(2 * seconds as u64));
        }
        assert_eq!(log.find(0, at(200)).await, Ok(400));
    };
    check(&log).await;
    drop(log);
    // Without any index file all the same.
    for file in files(&dir, "idx") {
        std::fs::remove_file(file).expect("removed");
    }
    let log = EmbeddedLog::open(small).expect("opened");
    check(&log).await;
}

#[tokio::test]
async fn retention_deletes_by_age() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = EmbeddedLog::open(LogConfig {
        retention_age: Duration::from_secs(100),
        segment_age: Duration::from_secs(10),
        ..config(&dir)
    })
    .expect("opened");
    for time in 0..50 {
        put(&log, 0, 1, 10, time).await;
    }
    assert_eq!(log.enforce_retention(at(60)).segments, 0);
    let deleted = log.enforce_retention(at(125));
    assert!(deleted.segments >= 1 && deleted.bytes > 0, "{deleted:?}");
    let first = log.info(0).expect("info").first;
    assert!((11..=25).contains(&first), "first is {first}");
    assert_eq!(all(&log, 0, 0).await, numbers(first..50));
    // In the end even the active segment goes, and neither numbers nor times start again.
    let deadline = Instant::now() + Duration::from_secs(10);
    while log.info(0).expect("info").first < 50 {
        log.enforce_retention(at(1000));
        assert!(Instant::now() < deadline, "the active segment stays");
        tokio::task::yield_now().await;
    }
    drop(log);
    let log = EmbeddedLog::open(config(&dir)).expect("opened");
    let info = log.info(0).expect("info");
    assert_eq!((info.first, info.next, info.last_enqueued_at), (50, 50, at(49)));
    assert_eq!(put(&log, 0, 1, 10, 0).await, 51);
    assert_eq!(log.info(0).expect("info").last_enqueued_at, at(49));
    // Indexes go with their segments.
    removed(&dir).await;
    assert_eq!(files(&dir, "idx").len(), 0);
}

#[tokio::test]
async fn retention_deletes_by_size() {
    let dir = tempfile::tempdir().expect("a directory");
    let small = || LogConfig {
        segment_bytes: 4096,
        retention_bytes: Some(40_000),
        ..config(&dir)
    };
    let log = EmbeddedLog::open(small()).expect("opened");
    for time in 0..100 {
        put(&log, (time % 2) as u16, 1, 1000, time).await;
    }
    assert!(log.enforce_retention(at(100)).segments > 10);
    let kept: Vec<_> = (0..2)
        .map(|partition| log.info(partition).expect("info"))
        .collect();
    assert!(
        kept[0].first.abs_diff(kept[1].first) <= 4,
        "the oldest go: {kept:?}"
    );
    let left = 100 - kept[0].first - kept[1].first;
    assert!((25..=40).contains(&left), "{left} events left: {kept:?}");
    assert_eq!(log.enforce_retention(at(100)).segments, 0);
    // The files go as well, even if it is closed meanwhile.
    drop(log);
    let log = EmbeddedLog::open(small()).expect("opened");
    removed(&dir).await;
    let bytes: u64 = files(&dir, "seg")
        .iter()
        .map(|path| path.metadata().expect("a file").len())
        .sum();
    assert!(bytes <= 40_000, "{bytes} bytes are left");
    drop(log);
}

#[tokio::test]
async fn a_full_buffer_refuses_until_it_is_written() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = EmbeddedLog::open(LogConfig {
        pending_bytes_max: 100_000,
        ..config(&dir)
    })
    .expect("opened");
    let block = records(1, 60_000);
    let mut last = None;
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match log.append(0, &origin(), &block, at(1)) {
            Ok(ticket) => last = Some(ticket),
            Err(LogError::Busy) => break,
            Err(other) => panic!("{other}"),
        }
        assert!(Instant::now() < deadline, "never busy");
    }
    durable(&log, last.expect("a ticket")).await.expect("durable");
    log.append(0, &origin(), &block, at(1)).expect("room again");
}

#[tokio::test]
async fn a_reader_is_woken_by_a_write() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = Arc::new(EmbeddedLog::open(config(&dir)).expect("opened"));
    let reader = tokio::spawn({
        let log = Arc::clone(&log);
        async move {
            std::future::poll_fn(|context| log.poll_readable(0, 1, context)).await?;
            log.read(0, 1, 1000).await
        }
    });
    put(&log, 0, 1, 10, 1).await;
    tokio::task::yield_now().await;
    assert!(!reader.is_finished());
    put(&log, 0, 1, 10, 1).await;
    let blocks = reader.await.expect("no panic").expect("read");
    assert_eq!(blocks[0].first_sequence_number, 1);
}

#[tokio::test]
async fn closing_writes_what_is_pending_and_then_nothing_is_taken() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = EmbeddedLog::open(config(&dir)).expect("opened");
    let ticket = log
        .append(0, &origin(), &records(1, 10), at(1))
        .expect("appended");
    log.close().expect("closed");
    assert_eq!(durable(&log, ticket).now_or_never(), Some(Ok(())));
    let refused = log.append(0, &origin(), &records(1, 10), at(1));
    assert!(matches!(refused, Err(LogError::Failed(_))), "{refused:?}");
    assert_eq!(all(&log, 0, 0).await, [0]);
    let length = std::fs::metadata(&files(&dir, "seg")[0]).expect("a file").len();
    assert!(length < 200, "reserved space is given back, {length} bytes left");
}

#[test]
fn the_stored_number_of_partitions_counts() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(EmbeddedLog::open(config(&dir)).expect("opened"));
    let more = LogConfig {
        partitions: 9,
        ..config(&dir)
    };
    let log = EmbeddedLog::open(more).expect("opened");
    assert_eq!(log.partitions(), 2);
    assert_eq!(log.info(2), Err(LogError::NoSuchPartition(2)));
    let refused = log.append(2, &origin(), &records(1, 1), at(1));
    assert_eq!(refused, Err(LogError::NoSuchPartition(2)));
}

/// Every file below `dir` with its content.
fn snapshot(dir: &Path) -> BTreeSet<(PathBuf, Vec<u8>)> {
    let mut all = BTreeSet::new();
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            all.extend(snapshot(&path));
        } else {
            all.insert((path.clone(), std::fs::read(path).expect("a file")));
        }
    }
    all
}

#[tokio::test]
async fn a_newer_format_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = EmbeddedLog::open(config(&dir)).expect("opened");
    put(&log, 0, 1, 10, 1).await;
    drop(log);
    let meta = dir.path().join("events/meta");
    let mut bytes = std::fs::read(&meta).expect("meta");
    bytes[8] = 2;
    std::fs::write(&meta, &bytes).expect("written");
    let before = snapshot(dir.path());
    let error = EmbeddedLog::open(config(&dir)).expect_err("refused");
    assert!(
        matches!(
            error,
            OpenError::NewerFormat {
                found: 2,
                supported: 1,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("format 2"), "{error}");
    assert_eq!(snapshot(dir.path()), before);
}

#[tokio::test]
async fn a_damaged_or_missing_meta_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = EmbeddedLog::open(config(&dir)).expect("opened");
    put(&log, 0, 1, 10, 1).await;
    drop(log);
    let meta = dir.path().join("events/meta");
    let bytes = std::fs::read(&meta).expect("meta");
    std::fs::write(&meta, &bytes[..20]).expect("written");
    let error = EmbeddedLog::open(config(&dir)).expect_err("refused");
    assert!(matches!(error, OpenError::MalformedMeta { .. }), "{error}");
    std::fs::remove_file(&meta).expect("removed");
    let error = EmbeddedLog::open(config(&dir)).expect_err("refused");
    assert!(matches!(error, OpenError::MissingMeta { .. }), "{error}");
}

#[test]
fn an_unusable_directory_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("events"), "a file in the way").expect("written");
    let error = EmbeddedLog::open(config(&dir)).expect_err("refused");
    let text = error.to_string();
    assert!(
        text.contains("cannot create directory") && text.contains("events"),
        "{text}"
    );
    assert!(std::error::Error::source(&error).is_some());
}

#[test]
fn settings_out_of_range_are_refused() {
    let default = LogConfig::default;
    let wrong = [
        LogConfig {
            partitions: 0,
            ..default()
        },
        LogConfig {
            segment_bytes: 1,
            ..default()
        },
        LogConfig {
            pending_bytes_max: 0,
            ..default()
        },
    ];
    for config in wrong {
        assert!(matches!(EmbeddedLog::open(config), Err(OpenError::Config(_))));
    }
}
