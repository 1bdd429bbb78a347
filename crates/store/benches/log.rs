//! Rates of the event log: durable appends of closed-loop senders, and reading.
//!
//! `cargo bench -p holdfast-store --bench log` runs all; words after `--` choose: `append`, `interval`, `single`, `paced`, `removal`, `read`, `open`.
//! The directory is `HOLDFAST_BENCH_DIR`, else a temporary one; it should be on a real disk.

#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_model::event::{AuthMethod, EventSource, Origin, Records};
use holdfast_model::{Identity, Timestamp};
use holdfast_observe::Registry;
use holdfast_observe::process::own_usage;
use holdfast_ports::clock::{Clock, SystemClock};
use holdfast_ports::event_log::{EventLog, LogError, durable};
use holdfast_store::log::{Durability, EmbeddedLog, LogConfig, Metrics};

const BODY_BYTES: usize = 256;
const RUN: Duration = Duration::from_secs(3);
const PARTITIONS: u16 = 4;
const REMOVAL_PARTITIONS: u16 = 8;
const REMOVAL_ROUNDS: u32 = 3;
/// Segments that go in one phase of [`removal`].
const REMOVAL_SEGMENTS: u64 = 8;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let wanted = |name: &str| arguments.is_empty() || arguments.iter().any(|a| a == name);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let default = LogConfig::default().commit_interval;
    if wanted("append") {
        println!("durable appends, {PARTITIONS} partitions, {BODY_BYTES} B, commit interval {default:?}");
        for (senders, block) in [(1, 1), (8, 1), (200, 1), (200, 10), (200, 32), (1000, 32)] {
            runtime.block_on(append(senders, block, default, Durability::Fsync));
        }
        println!("the same without sync");
        runtime.block_on(append(200, 10, default, Durability::Os));
    }
    if wanted("interval") {
        for micros in [0, 200, 500, 1000, 2000] {
            println!("commit interval {micros} us");
            for (senders, block) in [(1, 1), (8, 1), (200, 1), (200, 10), (200, 32)] {
                let interval = Duration::from_micros(micros);
                runtime.block_on(append(senders, block, interval, Durability::Fsync));
            }
        }
    }
    if wanted("single") {
        for micros in [0, 500, 1000, 0, 500, 1000] {
            print!("interval {micros:4} us");
            runtime.block_on(append(1, 1, Duration::from_micros(micros), Durability::Fsync));
        }
    }
    if wanted("paced") {
        for micros in [0, 200, 500, 1000, 2000] {
            for blocks_per_second in [2_000, 10_000, 40_000, 80_000] {
                paced(Duration::from_micros(micros), blocks_per_second);
            }
        }
    }
    if wanted("removal") {
        for round in 1..=REMOVAL_ROUNDS {
            println!("removal of segments of 64 MiB, {REMOVAL_PARTITIONS} partitions, round {round}");
            runtime.block_on(removal());
        }
    }
    if wanted("read") {
        runtime.block_on(read());
    }
    if wanted("open") {
        open(&runtime);
    }
}

fn directory() -> tempfile::TempDir {
    match std::env::var("HOLDFAST_BENCH_DIR") {
        Ok(dir) => tempfile::tempdir_in(dir).unwrap(),
        Err(_) => tempfile::tempdir().unwrap(),
    }
}

fn origin(device: usize) -> Origin {
    Origin {
        source: EventSource::Telemetry,
        identity: Identity::parse(&format!("device-{device}")).unwrap(),
        generation_id: 1,
        auth: AuthMethod::IdentityKey,
    }
}

fn records(count: u32) -> Records {
    let mut records = Records::new();
    for _ in 0..count {
        let _ = records.record().finish(&[b'x'; BODY_BYTES]);
    }
    records
}

fn config(dir: &Path) -> LogConfig {
    LogConfig {
        dir: dir.to_owned(),
        partitions: PARTITIONS,
        ..LogConfig::default()
    }
}

/// Senders that each append a block, wait until it is durable, and go on.
async fn append(senders: usize, block: u32, commit_interval: Duration, durability: Durability) {
    let dir = directory();
    let metrics = Metrics::register(&mut Registry::new());
    let config = LogConfig {
        commit_interval,
        durability,
        ..config(dir.path())
    };
    let log = Arc::new(EmbeddedLog::open_with(config, metrics.clone()).unwrap());
    let clock = Arc::new(SystemClock::new());
    let before = own_usage().unwrap().cpu_seconds();
    let start = Instant::now();
    let tasks: Vec<_> = (0..senders)
        .map(|sender| {
            let (log, clock) = (Arc::clone(&log), Arc::clone(&clock));
            tokio::spawn(async move {
                let (origin, records) = (origin(sender), records(block));
                let partition = (sender % usize::from(PARTITIONS)) as u16;
                let mut latencies = Vec::new();
                while start.elapsed() < RUN {
                    let sent = Instant::now();
                    match log.append(partition, &origin, &records, clock.now()) {
                        Ok(ticket) => durable(log.as_ref(), ticket).await.unwrap(),
                        Err(LogError::Busy) => tokio::task::yield_now().await,
                        Err(error) => panic!("{error}"),
                    }
                    latencies.push(sent.elapsed());
                }
                latencies
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await.unwrap());
    }
    let seconds = start.elapsed().as_secs_f64();
    let cpu = own_usage().unwrap().cpu_seconds() - before;
    let events = metrics.events_appended.get() as f64;
    latencies.sort_unstable();
    let part = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    println!(
        "  {senders:5} senders x {block:2}: {:9.0} events/s  {:6.3} us CPU/event  {:6.0} commits/s  p50 {:7.0?}  p99 {:7.0?}",
        events / seconds,
        cpu * 1e6 / events,
        metrics.commit_seconds.count() as f64 / seconds,
        part(0.5),
        part(0.99),
    );
}

/// CPU time of the writer threads so far.
fn writer_cpu() -> Duration {
    let mut nanos = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap().path();
        let read = |name: &str| std::fs::read_to_string(task.join(name)).unwrap_or_default();
        if read("comm").starts_with("event-log-") {
            let run = read("schedstat");
            nanos += run.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        }
    }
    Duration::from_nanos(nanos)
}

/// Blocks of five events that come at a steady rate whatever the log does: half load. The cost is that of the writer
/// threads alone.
fn paced(commit_interval: Duration, blocks_per_second: u64) {
    let dir = directory();
    let metrics = Metrics::register(&mut Registry::new());
    let config = LogConfig {
        commit_interval,
        ..config(dir.path())
    };
    let log = EmbeddedLog::open_with(config, metrics.clone()).unwrap();
    let (origin, records) = (origin(1), records(5));
    let (start, clock, before) = (Instant::now(), SystemClock::new(), writer_cpu());
    let mut blocks = 0;
    while start.elapsed() < RUN {
        let due = (start.elapsed().as_secs_f64() * blocks_per_second as f64) as u64;
        while blocks < due {
            let partition = (blocks % u64::from(PARTITIONS)) as u16;
            match log.append(partition, &origin, &records, clock.now()) {
                Ok(_) => blocks += 1,
                Err(error) => assert_eq!(error, LogError::Busy),
            }
        }
        std::hint::spin_loop();
    }
    let cpu = writer_cpu() - before;
    let commits = metrics.commit_seconds.count();
    println!(
        "paced {blocks_per_second:5} blocks/s of 5, interval {:4} us: {:6.0} commits/s, writers {:6.3} us CPU/event, {:4.1} us/commit, {:4.1} % of a core, write and sync {:.0?}",
        commit_interval.as_micros(),
        commits as f64 / RUN.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / (blocks * 5) as f64,
        cpu.as_secs_f64() * 1e6 / commits as f64,
        cpu.as_secs_f64() * 100.0 / RUN.as_secs_f64(),
        Duration::from_secs_f64(metrics.commit_seconds.sum() / commits as f64),
    );
}

/// Time from append to durable of 2,000 single events a second while nothing is removed, while a segment is removed each
/// second, and after several at once. The last one waits for what the one before has left.
async fn removal() {
    let dir = directory();
    let keep = Duration::from_secs(1_000);
    let log = EmbeddedLog::open(LogConfig {
        partitions: REMOVAL_PARTITIONS,
        retention_age: keep,
        ..config(dir.path())
    });
    let log = Arc::new(log.unwrap());
    let filled = Arc::clone(&log);
    // One second of the log's time to each segment, so that a second more makes one more go.
    let fill = std::thread::spawn(move || {
        for second in 0..2 * REMOVAL_SEGMENTS {
            fill_segment(&filled, second);
        }
    });
    fill.join().unwrap();
    // What the file system does behind filling.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let expire = |segments: u64| {
        let now = Timestamp::from_micros(((keep.as_secs() + segments) * 1_000_000 + 1) as i64);
        let log = Arc::clone(&log);
        tokio::task::spawn_blocking(move || {
            let start = Instant::now();
            let gone = log.enforce_retention(now).segments;
            (gone, start.elapsed())
        })
    };
    steady(&log, "none").await;
    let (_, gone) = tokio::join!(steady(&log, "one a second"), async {
        let mut gone = Vec::new();
        for second in 0..REMOVAL_SEGMENTS {
            gone.push(expire(second).await.unwrap());
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        gone
    });
    let (_, more) = tokio::join!(steady(&log, "all at once"), expire(2 * REMOVAL_SEGMENTS - 1));
    println!(
        "    segments removed, and how long that took: {gone:.1?}, {:.1?}",
        more.unwrap()
    );
}

/// A segment and a bit for one partition, whichever's turn it is, so that the segment is closed.
fn fill_segment(log: &EmbeddedLog, second: u64) {
    let (origin, records) = (origin(1), records(100));
    let partition = (second % u64::from(REMOVAL_PARTITIONS)) as u16;
    let now = Timestamp::from_micros(second as i64 * 1_000_000);
    let mut left = 66 << 20;
    while left > 0 {
        match log.append(partition, &origin, &records, now) {
            Ok(_) => left -= 100 * BODY_BYTES as i64,
            Err(error) => {
                assert_eq!(error, LogError::Busy);
                std::thread::sleep(Duration::from_micros(100));
            }
        }
    }
}

async fn steady(log: &Arc<EmbeddedLog>, name: &str) {
    let time = Duration::from_secs(REMOVAL_SEGMENTS + 1);
    let (origin, records, start) = (origin(1), records(1), Instant::now());
    let mut waiting = Vec::new();
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    while start.elapsed() < time {
        ticks.tick().await;
        let due = start.elapsed().as_millis() as usize * 2;
        while waiting.len() < due {
            let partition = (waiting.len() % usize::from(REMOVAL_PARTITIONS)) as u16;
            let (log, sent) = (Arc::clone(log), Instant::now());
            let now = Timestamp::from_micros(500_000_000);
            let ticket = log.append(partition, &origin, &records, now).unwrap();
            waiting.push(tokio::spawn(async move {
                durable(log.as_ref(), ticket).await.unwrap();
                sent.elapsed()
            }));
        }
    }
    let mut latencies = Vec::with_capacity(waiting.len());
    for task in waiting {
        latencies.push(task.await.unwrap());
    }
    latencies.sort_unstable();
    let part = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    let late = latencies
        .iter()
        .filter(|latency| latency.as_millis() >= 20)
        .count();
    println!(
        "  {name:14} p50 {:6.2?}  p99 {:6.2?}  p99.9 {:6.2?}  max {:6.2?}  20 ms and more: {late} of {}",
        part(0.5),
        part(0.99),
        part(0.999),
        part(1.0),
        latencies.len(),
    );
}

fn fill(log: &EmbeddedLog, events: u64, block: u32) {
    let (origin, records) = (origin(1), records(block));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for index in 0..events / u64::from(block) {
        let partition = (index % u64::from(PARTITIONS)) as u16;
        while let Err(error) = log.append(partition, &origin, &records, Timestamp::from_micros(index as i64))
        {
            assert_eq!(error, LogError::Busy);
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    for partition in 0..PARTITIONS {
        let ticket = log.append(partition, &origin, &records, Timestamp::MAX).unwrap();
        runtime.block_on(durable(log, ticket)).unwrap();
    }
}

/// One reader over all partitions, decoding every event, from memory.
async fn read() {
    for block in [1, 10, 32] {
        let dir = directory();
        let log = Arc::new(EmbeddedLog::open(config(dir.path())).unwrap());
        let filled = Arc::clone(&log);
        std::thread::spawn(move || fill(&filled, 4_000_000, block))
            .join()
            .unwrap();
        let before = own_usage().unwrap().cpu_seconds();
        let start = Instant::now();
        let (mut events, mut bytes) = (0u64, 0);
        for partition in 0..PARTITIONS {
            let mut from = 0;
            loop {
                let blocks = log.read(partition, from, 256 << 10).await.unwrap();
                let Some(last) = blocks.last() else { break };
                from = last.end_sequence_number();
                for event in blocks.iter().flat_map(|block| block.events()) {
                    events += 1;
                    bytes += event.unwrap().body.len();
                }
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        let cpu = own_usage().unwrap().cpu_seconds() - before;
        println!(
            "read, blocks of {block:2}: {:9.0} events/s, {:9.0} per CPU-second ({events} events, {} MB of bodies)",
            events as f64 / seconds,
            events as f64 / cpu,
            bytes / 1_000_000
        );
    }
}

/// Opening a log of 2 GB, its files in the page cache.
fn open(runtime: &tokio::runtime::Runtime) {
    let dir = directory();
    let log = EmbeddedLog::open(config(dir.path())).unwrap();
    fill(&log, 7_000_000, 10);
    drop(log);
    let start = Instant::now();
    let log = EmbeddedLog::open(config(dir.path())).unwrap();
    let opened = start.elapsed();
    let start = Instant::now();
    let found = runtime
        .block_on(log.find(0, Timestamp::from_micros(350_000)))
        .unwrap();
    println!(
        "open: {opened:.1?}; find by time: {:.1?} (number {found})",
        start.elapsed()
    );
}
