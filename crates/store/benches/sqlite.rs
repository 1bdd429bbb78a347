//! Throughput, opening time and memory of the SQLite store.
//!
//! `cargo bench -p holdfast-store --bench sqlite -- [--identities 1000000] [--directory DIR]
//! [--only TEXT]`
//!
//! Every write is durable (fsync before it returns), so the directory decides: by default it is the build's, not a
//! memory file system.
#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use holdfast_model::Identity;
use holdfast_model::c2d::Settlement;
use holdfast_model::twin::Twin;
use holdfast_observe::{Registry, process};
use holdfast_ports::queue::C2dQueue as _;
use holdfast_ports::registry::RegistryStore as _;
use holdfast_ports::suite::fixtures::{LIMITS, at, message, record};
use holdfast_ports::twin::TwinStore as _;
use holdfast_store::sqlite::{Metrics, SqliteStore};
use serde_json::json;

/// The server's allocator, so that the figures are the server's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Part of the name of the measurements to make; all if not set.
static ONLY: OnceLock<String> = OnceLock::new();

/// How long each measurement lasts.
const DURATION: Duration = Duration::from_secs(4);

fn main() {
    let mut identities = 100_000;
    let mut parent = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--identities" => {
                let text = arguments.next().expect("--identities takes a number");
                identities = text.parse().expect("--identities takes a number");
            }
            "--directory" => parent = arguments.next().expect("--directory takes a path").into(),
            "--only" => {
                let text = arguments.next().expect("--only takes a text");
                ONLY.get_or_init(|| text);
            }
            // cargo adds --bench.
            _ => {}
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(run(identities, &parent));
}

struct Bench {
    store: Arc<SqliteStore>,
    metrics: Metrics,
}

impl Bench {
    /// Groups committed so far, their operations, and the seconds they took.
    fn groups(&self) -> (u64, f64, f64) {
        (
            self.metrics.group_size.count(),
            self.metrics.group_size.sum(),
            self.metrics.commit_seconds.sum(),
        )
    }
}

async fn run(identities: u64, parent: &std::path::Path) {
    let directory = tempfile::tempdir_in(parent).expect("a temporary directory");
    let path = directory.path().join("state.db");
    let metrics = Metrics::register(&mut Registry::new());
    let open = || Arc::new(SqliteStore::open(&path, metrics.clone()).expect("it opens"));

    let before = rss();
    let store = open();
    println!(
        "open, empty: RSS {:.1} MiB (+{:.1})",
        mib(rss()),
        mib(rss() - before)
    );

    let bench = Bench {
        store,
        metrics: metrics.clone(),
    };
    let created = measure(
        "create identity, 256 callers",
        256,
        &bench,
        |store, number| async move {
            let twin = twin();
            let record = record(&device(number));
            store.create(vec![(record, twin)]).await.expect("new");
        },
    )
    .await;
    fill(&bench.store, created, identities).await;

    drop(bench);
    let started = Instant::now();
    let store = open();
    println!(
        "open, {identities} identities: {:.1} ms, RSS {:.1} MiB; file {} MiB",
        started.elapsed().as_secs_f64() * 1e3,
        mib(rss()),
        std::fs::metadata(&path).map_or(0, |meta| meta.len()) >> 20
    );
    let bench = Bench { store, metrics };

    let some = move |number: u64| device(scatter(number) % identities);
    measure("registry get", 8, &bench, move |store, number| async move {
        let found = store.get(&some(number)).await.expect("readable");
        assert!(found.is_some());
    })
    .await;
    measure("twin read", 8, &bench, move |store, number| async move {
        let found = store.twin(&some(number)).await.expect("readable");
        assert!(found.is_some());
    })
    .await;
    for callers in [1, 64, 256, 1_024] {
        let name = format!("reported update, {callers} callers");
        measure(&name, callers, &bench, move |store, number| async move {
            store
                .mutate_twin(&some(number), update(number))
                .await
                .expect("it is there");
        })
        .await;
    }
    measure(
        "enqueue, lock, complete one message, 256 callers",
        256,
        &bench,
        move |store, number| async move { send_and_receive(&store, &some(number)).await },
    )
    .await;
    println!("at the end: RSS {:.1} MiB", mib(rss()));
}

async fn send_and_receive(store: &SqliteStore, device: &Identity) {
    let message = message(device.as_str(), "m");
    store.enqueue(message, LIMITS).await.expect("room");
    let deliveries = store
        .lock_next(device, 1, 1, at(0), at(60))
        .await
        .expect("readable");
    for delivery in deliveries {
        store
            .settle(device, delivery.lock, Settlement::Complete, LIMITS, at(1))
            .await
            .expect("held");
    }
}

/// Lets `callers` tasks repeat `operation` and prints how often it was done per second; returns how often in all.
async fn measure<F, R>(name: &str, callers: u64, bench: &Bench, operation: F) -> u64
where
    F: Fn(Arc<SqliteStore>, u64) -> R + Clone + Send + 'static,
    R: Future<Output = ()> + Send,
{
    if ONLY.get().is_some_and(|text| !name.contains(text.as_str())) {
        return 0;
    }
    let next = Arc::new(AtomicU64::new(0));
    let before = (cpu_seconds(), bench.groups());
    let started = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..callers {
        let (store, operation, next) = (Arc::clone(&bench.store), operation.clone(), Arc::clone(&next));
        tasks.push(tokio::spawn(async move {
            while started.elapsed() < DURATION {
                let number = next.fetch_add(1, Ordering::Relaxed);
                operation(Arc::clone(&store), number).await;
                // Reads never wait, and the others want their turn.
                if number.is_multiple_of(64) {
                    tokio::task::yield_now().await;
                }
            }
        }));
    }
    for task in tasks {
        task.await.expect("no panic");
    }
    let done = next.load(Ordering::Relaxed);
    let (cpu, (groups, operations, seconds)) = (cpu_seconds() - before.0, bench.groups());
    let groups = (groups - before.1.0) as f64;
    print!(
        "{name}: {:.0}/s, {:.1} µs of CPU each",
        done as f64 / started.elapsed().as_secs_f64(),
        cpu * 1e6 / done as f64
    );
    if groups > 0.0 {
        print!(
            ", groups of {:.0} in {:.2} ms",
            (operations - before.1.1) / groups,
            (seconds - before.1.2) * 1e3 / groups
        );
    }
    println!();
    done
}

/// Creates the identities from `present` up to `wanted`, many in one call.
async fn fill(store: &SqliteStore, present: u64, wanted: u64) {
    if present >= wanted {
        return;
    }
    let started = Instant::now();
    let mut number = present;
    while number < wanted {
        let end = wanted.min(number + 1_000);
        let entries = (number..end).map(|number| (record(&device(number)), twin()));
        store.create(entries.collect()).await.expect("new");
        number = end;
    }
    let rate = (wanted - present) as f64 / started.elapsed().as_secs_f64();
    println!("create identities, 1000 in a call: {rate:.0}/s");
}

fn device(number: u64) -> Identity {
    Identity::device(&format!("plant-7-device-{number:08}")).expect("a valid id")
}

/// Spreads consecutive numbers over all identities, so that the page cache does not flatter.
fn scatter(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20
}

/// About 700 bytes of JSON: three tags, three desired and eight reported properties with their metadata.
fn twin() -> Twin {
    let mut twin = Twin::new(at(0));
    for (key, value) in [
        ("site", json!("zurich")),
        ("line", json!(4)),
        ("kind", json!("press")),
    ] {
        twin.tags.insert(key.into(), value);
    }
    for key in ["interval", "threshold", "mode"] {
        twin.desired.properties.insert(key.into(), json!(30));
        let metadata = json!({"$lastUpdated": "2026-08-01T10:00:00.0000000Z", "$lastUpdatedVersion": 1});
        twin.desired.metadata.insert(key.into(), metadata);
    }
    for key in ["firmware", "state", "a", "b", "c", "d", "e", "f"] {
        twin.reported.properties.insert(key.into(), json!("1.2.3"));
        let metadata = json!({"$lastUpdated": "2026-08-01T10:00:00.0000000Z"});
        twin.reported.metadata.insert(key.into(), metadata);
    }
    twin
}

fn update(number: u64) -> holdfast_ports::twin::TwinMutation {
    Arc::new(move |twin| {
        twin.reported.properties.insert("state".into(), json!(number));
        twin.reported.version += 1;
        Ok(())
    })
}

fn rss() -> u64 {
    process::own_usage().map_or(0, |usage| usage.rss_bytes)
}

fn cpu_seconds() -> f64 {
    process::own_usage().map_or(0.0, |usage| usage.cpu_seconds())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
