//! Power cuts, as far as a process can have them (kill -9 at random instants), and a full disk.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::c2d::Settlement;
use holdfast_observe::Registry;
use holdfast_ports::StoreError;
use holdfast_ports::queue::{C2dLimits, C2dQueue as _};
use holdfast_ports::registry::RegistryStore as _;
use holdfast_ports::suite::fixtures::{LIMITS, at, count_up, create, id, message, message_id, record};
use holdfast_ports::twin::TwinStore as _;
use holdfast_store::sqlite::{Metrics, SqliteStore};

const DEVICES: usize = 8;
const WIDE: C2dLimits = C2dLimits {
    depth_max: 1_000_000,
    ..LIMITS
};

fn open(path: &Path) -> SqliteStore {
    SqliteStore::open(path, Metrics::register(&mut Registry::new())).expect("it opens")
}

/// Goal: what was acknowledged is there after a kill at any instant, and the file opens again each time.
///
/// Method: a child process (this test binary again, running [`child`]) changes twins and queues from several tasks at
/// once and prints each acknowledgement. We kill it after a random while, open the database here and compare with what
/// we read from it. More may be there than was acknowledged, less may not. All cuts work on one file, so damage would
/// add up. `HOLDFAST_CUTS` sets their number, `HOLDFAST_SEED` the instants.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_changes_survive_kill_9() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let cuts = number("HOLDFAST_CUTS").unwrap_or(25);
    let seed = number("HOLDFAST_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("HOLDFAST_SEED={seed}");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("state.db");
    {
        let store = open(&path);
        for device in 0..DEVICES {
            create(&store, &[&format!("d{device}")]).await;
        }
    }
    let mut random = seed;
    let mut changes = 0;
    for cut in 0..cuts {
        // splitmix64
        random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (random ^ (random >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let pause = Duration::from_micros(mixed % 120_000);
        let acknowledged = run_and_kill(&path, pause);
        // Versions go on from cut to cut.
        changes = changes.max(acknowledged.versions.values().sum());
        check(&path, &acknowledged, cut).await;
    }
    assert!(
        changes > cuts,
        "the children worked: {changes} changes in {cuts} cuts"
    );
}

/// What a child was told is durable.
#[derive(Default)]
struct Acknowledged {
    /// Newest reported version by device.
    versions: BTreeMap<String, u64>,
    /// Newest message of each device still queued, by sequence number.
    queued: BTreeMap<u64, String>,
    completed: Vec<u64>,
}

fn run_and_kill(path: &Path, pause: Duration) -> Acknowledged {
    let mut child = Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env("HOLDFAST_STATE", path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the child starts");
    let output = child.stdout.take().expect("it is piped");
    let reader = std::thread::spawn(move || {
        let mut acknowledged = Acknowledged::default();
        // A last line without its end was cut off and says nothing.
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["twin", device, version, "."] => {
                    let version = version.parse().expect("a number");
                    acknowledged.versions.insert(device.to_owned(), version);
                }
                ["queued", device, number, "."] => {
                    let number = number.parse().expect("a number");
                    acknowledged.queued.insert(number, device.to_owned());
                }
                ["completed", number, "."] => {
                    acknowledged.completed.push(number.parse().expect("a number"));
                }
                _ => {}
            }
        }
        acknowledged
    });
    std::thread::sleep(Duration::from_millis(30) + pause);
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    reader.join().expect("no panic")
}

async fn check(path: &Path, acknowledged: &Acknowledged, cut: u64) {
    let store = open(path);
    for (device, version) in &acknowledged.versions {
        let twin = store.twin(&id(device)).await.expect("readable");
        let twin = twin.expect("it is there");
        assert!(
            twin.reported.version >= *version,
            "cut {cut}: {device} had version {version} acknowledged and has {}",
            twin.reported.version
        );
        let n = twin.reported.properties["n"].as_u64();
        assert_eq!(
            n,
            Some(twin.reported.version - 1),
            "cut {cut}: a whole change or none"
        );
    }
    let mut queued = BTreeMap::new();
    for device in 0..DEVICES {
        let device = format!("d{device}");
        let deliveries = store
            .lock_next(&id(&device), usize::MAX, 1, at(0), at(60))
            .await
            .expect("readable");
        for delivery in deliveries {
            assert_eq!(message_id(&delivery.message), "kept");
            queued.insert(delivery.lock.sequence_number, device.clone());
        }
    }
    for (number, device) in &acknowledged.queued {
        // A completion may have been stored without our having heard of it; only the child's newest message can be
        // in that state, so the others must be there unless they were completed.
        let completed = acknowledged.completed.contains(number);
        if completed {
            assert!(!queued.contains_key(number), "cut {cut}: {number} came back");
        } else if number % 2 == 0 {
            assert_eq!(queued.get(number), Some(device), "cut {cut}: {number} is lost");
        }
    }
    // Leave the next child a short queue.
    for device in 0..DEVICES {
        store
            .purge(&id(&format!("d{device}")), at(0))
            .await
            .expect("purged");
    }
}

/// The child of [`acknowledged_changes_survive_kill_9`]. Completes messages with odd numbers, keeps the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs as a child process"]
async fn child() {
    let Some(path) = std::env::var_os("HOLDFAST_STATE") else {
        return;
    };
    let store = Arc::new(open(Path::new(&path)));
    // println! would go through the test harness; one write per line cannot be mixed with another.
    let say = |text: String| {
        let written = std::io::stdout().lock().write_all(text.as_bytes());
        written.expect("the parent reads");
    };
    let mut tasks = Vec::new();
    for device in 0..DEVICES {
        let (store, device) = (Arc::clone(&store), format!("d{device}"));
        tasks.push(tokio::spawn(async move {
            let identity = id(&device);
            loop {
                let twin = store
                    .mutate_twin(&identity, count_up())
                    .await
                    .expect("it is there");
                say(format!("\ntwin {device} {} .\n", twin.reported.version));
                let number = store.enqueue(message(&device, "kept"), WIDE).await.expect("room");
                say(format!("\nqueued {device} {number} .\n"));
                if number % 2 == 1 {
                    complete(&store, &device, number).await;
                    say(format!("\ncompleted {number} .\n"));
                }
            }
        }));
    }
    // Each goes on until the kill.
    futures_util::future::join_all(tasks).await;
}

async fn complete(store: &SqliteStore, device: &str, number: u64) {
    let deliveries = store
        .lock_next(&id(device), usize::MAX, 1, at(0), at(60))
        .await
        .expect("readable");
    for delivery in deliveries {
        let settlement = if delivery.lock.sequence_number == number {
            Settlement::Complete
        } else {
            Settlement::Release
        };
        store
            .settle(&id(device), delivery.lock, settlement, WIDE, at(1))
            .await
            .expect("held");
    }
}

/// Goal: a full disk refuses changes and harms nothing, and the store goes on when there is room again.
///
/// Method: a bound on the number of pages, which SQLite answers as it answers a full disk.
#[tokio::test]
async fn a_full_disk_refuses_and_recovers() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("state.db");
    let store = open(&path);
    create(&store, &["d1"]).await;
    store.limit_size(Some(80 * 4_096)).await.expect("set");
    let mut created = 0;
    let error = loop {
        let device = id(&format!("filler-{created}"));
        let twin = holdfast_model::twin::Twin::new(at(0));
        match store.create(vec![(record(&device), twin)]).await {
            Ok(()) => created += 1,
            Err(error) => break error,
        }
        assert!(created < 10_000, "the bound works");
    };
    let StoreError::Unavailable(text) = error else {
        panic!("{error}");
    };
    assert!(text.contains("disk is full"), "{text}");

    // Nothing half done, readers go on, and many refusals do not wear the writer out.
    let statistics = store.statistics().await.expect("readable");
    assert_eq!(statistics.total, created + 1);
    let half = store.get(&id(&format!("filler-{created}"))).await;
    assert_eq!(half.expect("readable"), None);
    for number in 0..100 {
        let mut large = message("d1", "large");
        large.message.body = vec![7; 60_000].into();
        let refused = store.enqueue(large, WIDE).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{number}");
    }
    assert_eq!(store.depth(&id("d1")).await.expect("readable"), 0);

    // What needs no new page, and what gives pages back, works.
    store
        .delete(&id("filler-0"), None)
        .await
        .expect("deletion makes room");
    store.limit_size(None).await.expect("set");
    create(&store, &["after"]).await;
    let number = store.enqueue(message("d1", "m"), WIDE).await;
    assert_eq!(number.expect("room"), 1, "refused messages took no number");
    drop(store);
    let statistics = open(&path).statistics().await.expect("readable");
    assert_eq!(statistics.total, created + 1);
}
