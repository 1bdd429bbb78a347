//! The embedded event log on a disk that tears, fails and loses power.
//!
//! Goal: whatever happens to the disk, the log holds what it had acknowledged, in order, with the same sequence
//! numbers, and says what it cannot read. Method: [`SimDisk`], with damage at every byte and crashes at random ones.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_model::event::{AuthMethod, EventSource, Origin, Records};
use holdfast_model::{Identity, Timestamp};
use holdfast_ports::event_log::{AppendTicket, EventLog, LogError, durable};
use holdfast_store::log::sim::{Random, SimDisk};
use holdfast_store::log::{Durability, EmbeddedLog, LogConfig, Metrics, OpenError};

const FIRST_SEGMENT: &str = "/data/events/p0000/00000000000000000000.seg";

fn config() -> LogConfig {
    LogConfig {
        dir: PathBuf::from("/data/events"),
        partitions: 1,
        segment_bytes: 4096,
        ..LogConfig::default()
    }
}

fn try_open(disk: &SimDisk, config: LogConfig) -> Result<(EmbeddedLog, Metrics), OpenError> {
    let metrics = Metrics::unattached();
    let log = EmbeddedLog::open_on(Arc::new(disk.clone()), config, metrics.clone())?;
    Ok((log, metrics))
}

fn open(disk: &SimDisk) -> (EmbeddedLog, Metrics) {
    try_open(disk, config()).expect("opened")
}

/// Appends events whose bodies are the given texts.
fn append(log: &EmbeddedLog, partition: u16, bodies: &[String]) -> Result<AppendTicket, LogError> {
    let origin = Origin {
        source: EventSource::Telemetry,
        identity: Identity::parse("d1").expect("an identity"),
        generation_id: 1,
        auth: AuthMethod::IdentityKey,
    };
    let mut records = Records::new();
    for body in bodies {
        let _ = records.record().finish(body.as_bytes());
    }
    log.append(partition, &origin, &records, Timestamp::from_seconds(1))
}

async fn put(log: &EmbeddedLog, bodies: &[String]) -> Result<u64, LogError> {
    let ticket = append(log, 0, bodies)?;
    durable(log, ticket).await?;
    Ok(ticket.end)
}

/// Sequence numbers and bodies of everything that can be read.
async fn all(log: &EmbeddedLog, partition: u16) -> Vec<(u64, String)> {
    let (mut found, mut from) = (Vec::new(), 0);
    loop {
        let blocks = log.read(partition, from, 3_000).await.expect("read");
        let Some(last) = blocks.last() else {
            return found;
        };
        for event in blocks.iter().flat_map(|block| block.events()) {
            let event = event.expect("well formed");
            found.push((
                event.sequence_number,
                String::from_utf8(event.body.to_vec()).expect("a text"),
            ));
        }
        from = last.end_sequence_number();
    }
}

/// A log of `blocks` blocks of two events, each synced by itself. Returns the events and the segment's length before
/// each block and after the last.
async fn sample(disk: &SimDisk, blocks: usize) -> (Vec<(u64, String)>, Vec<usize>) {
    let (log, _) = open(disk);
    let (mut events, mut ends) = (Vec::new(), vec![64]);
    for block in 0..blocks as u64 {
        let bodies = [format!("event {}", 2 * block), format!("event {}", 2 * block + 1)];
        put(&log, &bodies).await.expect("put");
        events.extend((2 * block..).zip(bodies));
    }
    drop(log);
    let end = disk.content(Path::new(FIRST_SEGMENT)).len();
    // All blocks here are of one length.
    ends.extend((1..=blocks).map(|block| 64 + (end - 64) * block / blocks));
    (events, ends)
}

#[tokio::test]
async fn a_tail_cut_at_any_byte_is_cut_to_the_last_whole_block() {
    let disk = SimDisk::new();
    let (events, ends) = sample(&disk, 3).await;
    for cut in ends[2]..ends[3] {
        for zeros in [0, 1, 600] {
            let disk = disk.copy();
            disk.damage(Path::new(FIRST_SEGMENT), |content| {
                content.truncate(cut);
                content.resize(cut + zeros, 0);
            });
            let (log, metrics) = open(&disk);
            assert_eq!(all(&log, 0).await, events[..4], "cut at {cut}");
            let torn = disk.content(Path::new(FIRST_SEGMENT)).len() < cut;
            assert_eq!(
                metrics.recovery_truncations.get(),
                u64::from(torn && cut > ends[2]),
                "cut at {cut}"
            );
            assert_eq!(metrics.damages_found.get(), 0);
            assert_eq!(put(&log, &["again".to_owned()]).await, Ok(5));
            drop(log);
            let (log, metrics) = open(&disk);
            assert_eq!(all(&log, 0).await.last(), Some(&(4, "again".to_owned())));
            assert_eq!(metrics.recovery_truncations.get(), 0);
        }
    }
}

#[tokio::test]
async fn a_flipped_bit_costs_one_block_and_no_number() {
    let disk = SimDisk::new();
    let (events, ends) = sample(&disk, 4).await;
    for at in 0..ends[4] {
        let disk = disk.copy();
        disk.damage(Path::new(FIRST_SEGMENT), |content| content[at] ^= 1 << (at % 8));
        let (log, metrics) = open(&disk);
        let hit = ends[1..].iter().position(|end| at < *end).filter(|_| at >= 64);
        let left: Vec<_> = match hit {
            Some(block) => [&events[..2 * block], &events[2 * block + 2..]].concat(),
            None => events.clone(),
        };
        assert_eq!(all(&log, 0).await, left, "byte {at}");
        // The last block cannot be told from one that was never acknowledged.
        let next = if hit == Some(3) { 6 } else { 8 };
        assert_eq!(log.info(0).expect("info").next, next, "byte {at}");
        let (torn, damaged) = (metrics.recovery_truncations.get(), metrics.damages_found.get());
        assert_eq!(torn, u64::from(hit == Some(3)), "byte {at}");
        if hit != Some(3) {
            assert!(
                (1..=2).contains(&damaged),
                "byte {at} was reported {damaged} times"
            );
        }
        assert_eq!(put(&log, &["again".to_owned()]).await, Ok(next + 1), "byte {at}");
        drop(log);
        let (log, _) = open(&disk);
        assert_eq!(
            all(&log, 0).await,
            [left, vec![(next, "again".to_owned())]].concat(),
            "byte {at}"
        );
    }
}

#[tokio::test]
async fn damage_in_an_older_segment_is_skipped_and_reported_once() {
    let disk = SimDisk::new();
    let (log, _) = open(&disk);
    let body = "x".repeat(500);
    for _ in 0..40 {
        put(&log, std::slice::from_ref(&body)).await.expect("put");
    }
    drop(log);
    let whole = disk.content(Path::new(FIRST_SEGMENT));
    let frame = 40 + 14 + 505;
    for (from, to) in [
        (64, 65),
        (64 + frame, 64 + 2 * frame),
        (64, whole.len()),
        (3000, 3001),
        (0, 64),
    ] {
        let disk = disk.copy();
        for path in disk
            .paths()
            .iter()
            .filter(|path| path.extension() == Some("idx".as_ref()))
        {
            disk.damage(path, |content| content[3] ^= 1);
        }
        disk.damage(Path::new(FIRST_SEGMENT), |content| content[from..to].fill(0));
        let (log, metrics) = open(&disk);
        let first = all(&log, 0).await;
        let lost = 40 - first.len();
        assert!(
            lost <= (to - from) / frame + 2,
            "{from}..{to} costs {lost} events"
        );
        assert!(first.iter().all(|(_, text)| *text == body));
        assert_eq!(first.last().map(|(number, _)| *number), Some(39));
        assert_eq!(metrics.damages_found.get(), u64::from(lost > 0), "{from}..{to}");
        assert_eq!(all(&log, 0).await, first, "reading again");
        assert_eq!(metrics.damages_found.get(), u64::from(lost > 0), "reported once");
        assert!(log.find(0, Timestamp::from_seconds(1)).await.expect("found") <= first[0].0);
    }
}

#[tokio::test]
async fn an_unreadable_file_is_named() {
    let disk = SimDisk::new();
    sample(&disk, 3).await;
    let (log, _) = open(&disk);
    disk.make_unreadable(Path::new(FIRST_SEGMENT));
    let error = log.read(0, 0, 1000).await.expect_err("unreadable").to_string();
    assert!(
        error.contains(FIRST_SEGMENT) && error.contains("at byte 64"),
        "{error}"
    );
}

#[tokio::test]
async fn a_failed_sync_ends_the_log_and_nothing_unsynced_is_acknowledged() {
    let disk = SimDisk::new();
    let two = LogConfig {
        partitions: 2,
        ..config()
    };
    let (log, metrics) = try_open(&disk, two.clone()).expect("opened");
    put(&log, &["kept".to_owned()]).await.expect("put");
    disk.fail_sync_after(0);
    let failed = put(&log, &["lost".to_owned()]).await.expect_err("failed");
    assert!(
        matches!(&failed, LogError::Failed(reason) if reason.contains("cannot sync")),
        "{failed}"
    );
    // For good, in every partition, for readers who would wait for more as well.
    assert_eq!(put(&log, &["late".to_owned()]).await, Err(failed.clone()));
    assert_eq!(append(&log, 1, &["late".to_owned()]), Err(failed.clone()));
    let waiting = std::future::poll_fn(|context| log.poll_readable(0, 1, context));
    assert_eq!(waiting.await, Err(failed.clone()));
    assert_eq!(metrics.failures.get(), 1);
    assert_eq!(log.info(0).expect("info").next, 1);
    assert_eq!(all(&log, 0).await, [(0, "kept".to_owned())]);
    assert_eq!(log.close(), Err(failed));
    drop(log);
    disk.cut_power(1);
    let (log, _) = try_open(&disk, two).expect("opened");
    assert_eq!(all(&log, 0).await[0], (0, "kept".to_owned()));
}

#[tokio::test]
async fn a_full_disk_ends_the_log_and_says_so() {
    let disk = SimDisk::new();
    let (log, _) = open(&disk);
    put(&log, &["kept".to_owned()]).await.expect("put");
    disk.set_capacity(Some(10_000));
    let mut acknowledged = 1;
    let failed = loop {
        match put(&log, &["x".repeat(1000)]).await {
            Ok(end) => acknowledged = end,
            Err(error) => break error,
        }
    };
    assert!(failed.to_string().contains("free space on the disk"), "{failed}");
    assert_eq!(
        all(&log, 0).await.len() as u64,
        acknowledged,
        "what was durable stays readable"
    );
    drop(log);
    disk.set_capacity(None);
    let (log, metrics) = open(&disk);
    assert_eq!(all(&log, 0).await.len() as u64, acknowledged);
    assert_eq!(metrics.damages_found.get(), 0);
    put(&log, &["more".to_owned()]).await.expect("room again");
}

fn removed(disk: &SimDisk) -> usize {
    let paths = disk.paths();
    let removed = paths
        .iter()
        .filter(|path| path.extension() == Some("removed".as_ref()));
    removed.count()
}

#[tokio::test]
async fn a_full_disk_waits_for_the_space_of_deleted_segments() {
    let disk = SimDisk::new();
    let bounded = LogConfig {
        segment_bytes: 64 << 10,
        retention_bytes: Some(128 << 10),
        ..config()
    };
    let (log, metrics) = try_open(&disk, bounded).expect("opened");
    let body = ["x".repeat(10_000)];
    for _ in 0..40 {
        put(&log, &body).await.expect("put");
    }
    // No more space than there is now.
    let used = disk.paths().iter().map(|path| disk.content(path).len()).sum();
    disk.set_capacity(Some(used));
    assert!(log.enforce_retention(Timestamp::from_seconds(1)).segments >= 4);
    for _ in 0..20 {
        put(&log, &body).await.expect("put");
    }
    assert_eq!(metrics.failures.get(), 0);
    // What is left is no use to a disk that is full all the same.
    let failed = loop {
        if let Err(error) = put(&log, &body).await {
            break error;
        }
    };
    assert!(failed.to_string().contains("free space on the disk"), "{failed}");
    assert_eq!(removed(&disk), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_meet_no_hole_while_segments_go() {
    let disk = SimDisk::new();
    let bounded = LogConfig {
        retention_bytes: Some(30_000),
        ..config()
    };
    let (log, metrics) = try_open(&disk, bounded).expect("opened");
    let log = Arc::new(log);
    let reader = |max_bytes: usize| {
        let log = Arc::clone(&log);
        tokio::spawn(async move {
            let mut from = 0;
            while from < 300 {
                std::future::poll_fn(|context| log.poll_readable(0, from, context))
                    .await
                    .expect("readable");
                for block in log.read(0, from, max_bytes).await.expect("read") {
                    assert!(block.first_sequence_number >= from);
                    for event in block.events() {
                        let event = event.expect("well formed");
                        let expected = format!("{}/{}", event.sequence_number, "z".repeat(600));
                        assert!(event.body[..] == *expected.as_bytes());
                    }
                    from = block.end_sequence_number();
                }
                tokio::task::yield_now().await;
            }
        })
    };
    let readers = [reader(1), reader(3_000), reader(20_000)];
    for number in 0..300 {
        put(&log, &[format!("{number}/{}", "z".repeat(600))])
            .await
            .expect("put");
        log.enforce_retention(Timestamp::from_seconds(1));
    }
    for reader in readers {
        reader.await.expect("a reader");
    }
    assert_eq!(metrics.damages_found.get(), 0);
    assert!(metrics.segments_deleted.get() > 30);
}

#[tokio::test]
async fn a_read_only_disk_is_refused_with_the_reason() {
    let disk = SimDisk::new();
    sample(&disk, 1).await;
    disk.set_read_only(true);
    let error = try_open(&disk, config()).expect_err("refused");
    let source = std::error::Error::source(&error).expect("a reason").to_string();
    assert!(error.to_string().contains("/data/events"), "{error}");
    assert!(source.contains("read-only"), "{source}");
}

#[tokio::test]
async fn a_payload_that_looks_like_a_frame_is_not_taken_for_one() {
    // What another log would take for a frame with numbers far ahead; the salt of this log differs.
    let foreign = SimDisk::new();
    sample(&foreign, 3).await;
    let forged = foreign.content(Path::new(FIRST_SEGMENT))[64..].to_vec();
    let disk = SimDisk::new();
    let (log, _) = open(&disk);
    let origin = Origin {
        source: EventSource::Telemetry,
        identity: Identity::parse("evil").expect("an identity"),
        generation_id: 1,
        auth: AuthMethod::IdentityKey,
    };
    let mut records = Records::new();
    let _ = records.record().finish(&forged);
    let ticket = log
        .append(0, &origin, &records, Timestamp::from_seconds(1))
        .expect("appended");
    durable(&log, ticket).await.expect("durable");
    drop(log);
    // The frame around it is torn.
    disk.damage(Path::new(FIRST_SEGMENT), |content| content[70] ^= 1);
    let (log, _) = open(&disk);
    assert_eq!(all(&log, 0).await, []);
}

#[tokio::test]
async fn a_segment_whose_making_was_cut_off_is_made_again() {
    for length in [0, 10, 64] {
        let disk = SimDisk::new();
        sample(&disk, 2).await;
        let next = Path::new("/data/events/p0000/00000000000000000004.seg");
        let (log, _) = open(&disk);
        drop(log);
        holdfast_store::log::disk::Disk::create(&disk, next).expect("made");
        disk.damage(next, |content| content.resize(length, 0));
        let (log, metrics) = open(&disk);
        assert_eq!(metrics.damages_found.get(), 0);
        assert_eq!(put(&log, &["more".to_owned()]).await, Ok(5), "length {length}");
        assert_eq!(all(&log, 0).await.len(), 5);
    }
}

/// Damages the newest segment, whose name says 4, and returns the log, its metrics and where numbering goes on.
async fn damage_newest(
    keep_older: bool,
    change: impl Fn(&mut Vec<u8>),
) -> (SimDisk, EmbeddedLog, Metrics, u64) {
    let disk = SimDisk::new();
    sample(&disk, 2).await;
    let (log, _) = open(&disk);
    let body = "x".repeat(4_000);
    // It fills a segment by itself, so that the next begins one.
    put(&log, std::slice::from_ref(&body)).await.expect("put");
    put(&log, &["a".to_owned()]).await.expect("put");
    put(&log, &["b".to_owned()]).await.expect("put");
    drop(log);
    let segments: Vec<_> = (disk.paths().into_iter())
        .filter(|path| path.extension() == Some("seg".as_ref()))
        .collect();
    let [older @ .., newest] = segments.as_slice() else {
        panic!("{segments:?}");
    };
    assert!(newest.ends_with("00000000000000000005.seg"), "{segments:?}");
    if !keep_older {
        for path in older {
            holdfast_store::log::disk::Disk::remove(&disk, path).expect("removed");
        }
    }
    disk.damage(newest, change);
    let (log, metrics) = open(&disk);
    // A reader of everything waits, whatever is lost at the end, and does not turn in circles.
    let end = all(&log, 0).await.last().map_or(0, |(number, _)| number + 1);
    let info = log.info(0).expect("info");
    assert!(end == info.next || info.first == info.next, "{end}, {info:?}");
    let next = append(&log, 0, &["more".to_owned()]).expect("appended").end - 1;
    (disk, log, metrics, next)
}

#[tokio::test]
async fn no_number_is_given_out_twice_when_nothing_of_the_newest_segment_can_be_read() {
    type Change = fn(&mut Vec<u8>);
    let changes: [(&str, Change); 4] = [
        ("garbage", |content| content.fill(0xaa)),
        ("zeros", |content| content.fill(0)),
        ("garbage, reserved space", |content| {
            content.fill(0xaa);
            content.resize(9_000, 0);
        }),
        ("cut and overwritten", |content| {
            content.truncate(64);
            content.fill(0xaa);
        }),
    ];
    for (what, change) in changes {
        for keep_older in [true, false] {
            let (disk, log, metrics, next) = damage_newest(keep_older, change).await;
            assert!(next >= 7, "{what}: goes on at {next}");
            assert_eq!(metrics.damages_found.get(), 1, "{what}");
            let asides = disk
                .paths()
                .into_iter()
                .filter(|path| path.ends_with("00000000000000000005.seg.corrupt-0"));
            assert_eq!(asides.count(), 1, "{what}: the file is kept aside");
            drop(log);
            disk.cut_power(1);
            let (log, metrics) = open(&disk);
            assert_eq!(metrics.damages_found.get(), 0, "{what}");
            let found = all(&log, 0).await;
            assert_eq!(found.last(), Some(&(next, "more".to_owned())), "{what}");
            assert_eq!(found.len(), if keep_older { 6 } else { 1 }, "{what}");
            let time = Timestamp::from_seconds(1);
            assert_eq!(
                log.find(0, time).await,
                Ok(found[0].0),
                "{what}: times stay in order"
            );
        }
    }
}

#[tokio::test]
async fn a_segment_keeps_its_number_when_its_making_was_cut_off_and_nothing_is_before_it() {
    for length in [0, 10, 64] {
        let (_, log, metrics, next) = damage_newest(false, |content| {
            content.clear();
            content.resize(length, 0);
        })
        .await;
        assert_eq!((next, metrics.damages_found.get()), (5, 0), "length {length}");
        drop(log);
    }
}

#[tokio::test]
async fn a_damaged_header_costs_nothing_and_damaged_first_frames_only_themselves() {
    for (until, left) in [(64, vec!["a", "b"]), (70, vec!["b"])] {
        for keep_older in [true, false] {
            let (disk, log, metrics, next) =
                damage_newest(keep_older, |content| content[..until].fill(0xaa)).await;
            assert_eq!(next, 7);
            assert_eq!(put(&log, &["again".to_owned()]).await, Ok(9));
            let found = all(&log, 0).await;
            let newer = found.iter().filter(|(number, _)| *number >= 5);
            let bodies: Vec<_> = newer.map(|(_, body)| body.as_str()).collect();
            assert_eq!(bodies, [&left[..], &["more", "again"]].concat());
            assert!(metrics.damages_found.get() >= 1);
            drop(log);
            disk.cut_power(1);
            let (log, _) = open(&disk);
            assert_eq!(all(&log, 0).await, found);
        }
    }
}

#[tokio::test]
async fn behind_a_damaged_header_a_damaged_end_counts_as_events() {
    let (_, log, _, next) = damage_newest(true, |content| {
        content[..64].fill(0xaa);
        *content.last_mut().expect("a byte") ^= 1;
    })
    .await;
    assert!(next >= 7, "number 6 was acknowledged, and {next} is given out");
    assert_eq!(put(&log, &["again".to_owned()]).await, Ok(next + 2));
    let found = all(&log, 0).await;
    let numbers: Vec<_> = found.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4, 5, next, next + 1]);
}

/// What was appended to a partition, and how much of it was acknowledged.
#[derive(Default)]
struct Model {
    appended: Vec<String>,
    acknowledged: usize,
}

/// Random appends and waits on two partitions until the disk stops working or the steps are over.
async fn run(log: &EmbeddedLog, models: &mut [Model; 2], random: &mut Random, steps: usize) {
    let mut tickets = Vec::new();
    for _ in 0..steps {
        let partition = random.below(2);
        let model = &mut models[partition];
        let count = 1 + random.below(4);
        let bodies: Vec<_> = (0..count)
            .map(|index| {
                let number = model.appended.len() + index;
                format!("{partition}/{number}/{}", "y".repeat(random.below(1500)))
            })
            .collect();
        match append(log, partition as u16, &bodies) {
            Ok(ticket) => {
                model.appended.extend(bodies);
                assert_eq!(ticket.end as usize, model.appended.len());
                tickets.push(ticket);
            }
            Err(LogError::Failed(_)) => return,
            Err(error) => panic!("{error}"),
        }
        if random.below(3) == 0 {
            let ticket = tickets.swap_remove(random.below(tickets.len()));
            match durable(log, ticket).await {
                Ok(()) => {
                    let acknowledged = &mut models[usize::from(ticket.partition)].acknowledged;
                    *acknowledged = (*acknowledged).max(ticket.end as usize);
                }
                Err(LogError::Failed(_)) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// The log holds a prefix of what was appended that includes all that was acknowledged.
async fn check(log: &EmbeddedLog, models: &mut [Model; 2]) {
    for (partition, model) in models.iter_mut().enumerate() {
        let found = all(log, partition as u16).await;
        assert!(
            found.len() >= model.acknowledged,
            "{} of {}",
            found.len(),
            model.acknowledged
        );
        assert!(found.len() <= model.appended.len());
        for (index, (number, body)) in found.iter().enumerate() {
            assert_eq!(*number as usize, index, "partition {partition}");
            assert!(
                *body == model.appended[index],
                "partition {partition}, event {index}"
            );
        }
        let info = log.info(partition as u16).expect("info");
        assert_eq!((info.first, info.next as usize), (0, found.len()));
        // What was taken over counts as acknowledged: a reader may have seen it.
        model.appended.truncate(found.len());
        model.acknowledged = found.len();
    }
}

async fn crash_and_recover(seed: u64, durability: Durability) {
    let mut random = Random(seed);
    let disk = SimDisk::new();
    let two = || LogConfig {
        partitions: 2,
        durability,
        commit_interval: std::time::Duration::ZERO,
        ..config()
    };
    let mut models = [Model::default(), Model::default()];
    for _ in 0..5 {
        // A crash while opening is one as well: try again then.
        if random.below(4) == 0 {
            disk.stop_after_bytes(random.below(200));
        }
        let opened = try_open(&disk, two());
        let Ok((log, metrics)) = opened else {
            match durability {
                Durability::Fsync => disk.cut_power(random.next_u64()),
                Durability::Os => disk.kill(),
            }
            continue;
        };
        disk.clear_faults();
        assert_eq!(metrics.damages_found.get(), 0, "a crash was taken for damage");
        check(&log, &mut models).await;
        match random.below(3) {
            0 => disk.stop_after_bytes(random.below(20_000)),
            1 => disk.fail_sync_after(random.below(10) as u32),
            _ => {}
        }
        let steps = random.below(60);
        run(&log, &mut models, &mut random, steps).await;
        match random.below(4) {
            0 => log.close().unwrap_or_default(),
            1 => disk.kill(),
            _ if durability == Durability::Os => disk.kill(),
            _ => disk.cut_power(random.next_u64()),
        }
        drop(log);
        // A close on a stopped machine is one that did not happen.
        disk.kill();
    }
    let (log, metrics) = try_open(&disk, two()).expect("opened");
    check(&log, &mut models).await;
    assert_eq!(metrics.damages_found.get(), 0);
}

/// As [`crash_and_recover`], of one partition, with retention.
async fn crash_while_deleting(seed: u64) {
    let mut random = Random(seed);
    let disk = SimDisk::new();
    let bounded = || LogConfig {
        retention_bytes: Some(12_000),
        ..config()
    };
    let body = |number: u64| format!("{number}/{}", "y".repeat(700));
    let mut acknowledged = 0;
    for _ in 0..5 {
        let (log, metrics) = try_open(&disk, bounded()).expect("opened");
        let found = all(&log, 0).await;
        assert_eq!(
            metrics.damages_found.get(),
            0,
            "a deleted segment was taken for damage"
        );
        let info = log.info(0).expect("info");
        let numbers: Vec<_> = found.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, (info.first..info.next).collect::<Vec<_>>());
        assert!(found.iter().all(|(number, text)| *text == body(*number)));
        assert_eq!(info.next, acknowledged);
        for _ in 0..random.below(40) {
            acknowledged = put(&log, &[body(acknowledged)]).await.expect("put");
            if random.below(8) == 0 {
                log.enforce_retention(Timestamp::from_seconds(1));
            }
        }
        match random.below(3) {
            0 => log.close().expect("closed"),
            1 => disk.kill(),
            _ => disk.cut_power(random.next_u64()),
        }
        drop(log);
        disk.kill();
    }
}

#[tokio::test]
async fn crashes_while_segments_go_lose_no_other() {
    for seed in 0..100 {
        if let Err(error) = tokio::spawn(crash_while_deleting(seed)).await {
            panic!("seed {seed} fails: {error}");
        }
    }
}

async fn crash_many(durability: Durability) {
    let only = std::env::var("HOLDFAST_SEED").ok();
    let seeds = match &only {
        Some(seed) => vec![seed.parse().expect("HOLDFAST_SEED is a number")],
        None => (0..400).collect::<Vec<u64>>(),
    };
    for seed in seeds {
        let run = tokio::spawn(crash_and_recover(seed, durability));
        if let Err(error) = run.await {
            panic!("HOLDFAST_SEED={seed} fails: {error}");
        }
    }
}

#[tokio::test]
async fn crashes_lose_nothing_that_was_acknowledged() {
    crash_many(Durability::Fsync).await;
}

#[tokio::test]
async fn without_syncs_a_killed_process_loses_nothing() {
    crash_many(Durability::Os).await;
}
