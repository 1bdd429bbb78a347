//! Goal: a file goes in steps, never while it is read, and wherever the power fails meanwhile the log opens with whole
//! segments only. Method: the steps one by one on [`SimDisk`], with a cut behind each.

use holdfast_model::event::{AuthMethod, EventSource, Origin, Records};
use holdfast_model::{Identity, Timestamp};
use holdfast_ports::event_log::{EventLog, durable};

use super::super::sim::SimDisk;
use super::super::{EmbeddedLog, LogConfig};
use super::*;

const DIR: &str = "/log/p0000";

fn removal(path: &Path, held: Option<Held>) -> Removal {
    Removal {
        path: path.to_owned(),
        due: Instant::now() + REMOVAL_TIME,
        held,
        rest: None,
    }
}

fn file(disk: &SimDisk, bytes: usize) -> PathBuf {
    let dir = Path::new(DIR);
    disk.create_dir(dir).unwrap();
    let path = dir.join("00000000000000000000.seg.removed");
    let file = disk.create(&path).unwrap();
    file.write_all_at(&vec![7; bytes], 0).unwrap();
    path
}

#[test]
fn a_file_goes_in_steps() {
    let disk = SimDisk::new();
    let path = file(&disk, 10_000);
    disk.create(&index_path(&path)).unwrap();
    assert_eq!(disk.paths().len(), 2);
    let mut removal = removal(&path, None);
    let mut lengths = Vec::new();
    while removal.step(&disk, 4_096).unwrap() == Progress::Goes {
        lengths.push(disk.content(&path).len());
    }
    assert_eq!(lengths, [10_000, 5_904, 1_808]);
    assert_eq!(disk.paths(), Vec::<PathBuf>::new());
}

#[test]
fn a_file_is_not_cut_while_it_is_read() {
    let disk = SimDisk::new();
    let path = file(&disk, 10_000);
    let segment = Arc::new(Segment::closed(Path::new(DIR), 0));
    let held = Held {
        segment: Arc::clone(&segment),
        partition: Weak::new(),
    };
    let mut removal = removal(&path, Some(held));
    for _ in 0..3 {
        assert_eq!(removal.step(&disk, 4_096).unwrap(), Progress::Waits);
    }
    assert_eq!(disk.content(&path).len(), 10_000);
    drop(segment);
    while removal.step(&disk, 4_096).unwrap() == Progress::Goes {}
    assert_eq!(disk.paths(), Vec::<PathBuf>::new());
}

#[test]
fn pauses_leave_most_of_the_time_and_end_in_time() {
    let mut state = State::default();
    let (millis, path) = (Duration::from_millis, Path::new("/x"));
    assert_eq!(state.pause(millis(0), 512), PAUSE.0);
    assert_eq!(state.pause(millis(5), 512), millis(45));
    assert_eq!(state.pause(millis(500), 512), PAUSE.1);
    state.removals.push_back(removal(path, None));
    assert_eq!(state.pause(millis(500), 512), PAUSE.1, "one has time");
    state.removals.extend((0..200).map(|_| removal(path, None)));
    let steps = 201 * (STEPS as u32 + 1);
    let pause = state.pause(millis(500), 512);
    assert!(
        pause <= REMOVAL_TIME / steps && pause > REMOVAL_TIME / steps / 2,
        "{pause:?}"
    );
}

fn config() -> LogConfig {
    LogConfig {
        dir: PathBuf::from("/log"),
        partitions: 1,
        segment_bytes: 4_096,
        ..LogConfig::default()
    }
}

fn open(disk: &SimDisk) -> (EmbeddedLog, Metrics) {
    let metrics = Metrics::unattached();
    let log = EmbeddedLog::open_on(Arc::new(disk.clone()), config(), metrics.clone()).unwrap();
    (log, metrics)
}

async fn numbers(log: &EmbeddedLog) -> Vec<u64> {
    let (mut numbers, mut from) = (Vec::new(), 0);
    loop {
        let blocks = log.read(0, from, 1_000).await.unwrap();
        let Some(last) = blocks.last() else {
            return numbers;
        };
        numbers.extend(blocks.iter().map(|block| block.first_sequence_number));
        from = last.end_sequence_number();
    }
}

#[tokio::test]
async fn a_power_cut_at_any_step_leaves_whole_segments() {
    let whole = SimDisk::new();
    let (log, _) = open(&whole);
    let origin = Origin {
        source: EventSource::Telemetry,
        identity: Identity::parse("d1").unwrap(),
        generation_id: 1,
        auth: AuthMethod::IdentityKey,
    };
    let mut records = Records::new();
    let _ = records.record().finish(&[b'x'; 600]);
    for _ in 0..20 {
        let ticket = log
            .append(0, &origin, &records, Timestamp::from_seconds(1))
            .unwrap();
        durable(&log, ticket).await.unwrap();
    }
    drop(log);
    let oldest = Path::new(DIR).join("00000000000000000000.seg");
    let left = removed_path(&oldest);
    let mut kept = 0;
    for steps in 0..12 {
        for seed in 0..20 {
            let disk = whole.copy();
            disk.rename(&oldest, &left).unwrap();
            let mut removal = removal(&left, None);
            for _ in 0..steps {
                if removal.step(&disk, 512).unwrap() == Progress::Gone {
                    break;
                }
            }
            disk.cut_power(seed);
            let (log, metrics) = open(&disk);
            let first = log.info(0).unwrap().first;
            assert!(
                first == 0 || first == 6,
                "{steps} steps, seed {seed}: first is {first}"
            );
            kept += u32::from(first == 0);
            let found = numbers(&log).await;
            assert_eq!(
                found,
                (first..20).collect::<Vec<_>>(),
                "{steps} steps, seed {seed}"
            );
            assert_eq!(metrics.damages_found.get(), 0, "{steps} steps, seed {seed}");
            log.common.remover.hurry();
            assert!(!disk.paths().contains(&left), "{steps} steps, seed {seed}");
        }
    }
    assert!(kept > 0, "no cut has taken a name back");
}
