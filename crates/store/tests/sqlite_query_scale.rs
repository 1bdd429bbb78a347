//! Queries over a large fleet. `HOLDFAST_SCALE_DEVICES` sets its size; 1,000,000 is the size that the promises of
//! SPECIFICATION.md are about, 100,000 what every test run can afford.

#![allow(clippy::print_stdout, reason = "the numbers are what one looks for")]

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use holdfast_model::Identity;
use holdfast_model::twin::Twin;
use holdfast_observe::Registry;
use holdfast_ports::query::{Item, Page, PageRequest, QueryStore};
use holdfast_ports::registry::RegistryStore as _;
use holdfast_ports::suite::fixtures::{at, count_up, record};
use holdfast_ports::twin::TwinStore as _;
use holdfast_query::twin::parse;
use holdfast_store::sqlite::{Metrics, SqliteStore};
use serde_json::json;

fn devices() -> u32 {
    std::env::var("HOLDFAST_SCALE_DEVICES")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(100_000)
}

fn device(n: u32) -> Identity {
    Identity::device(&format!("d{n:07}")).expect("an id")
}

fn twin(n: u32) -> Twin {
    let mut twin = Twin::new(at(0));
    let spread = n.wrapping_mul(2_654_435_761);
    let tags =
        json!({"location": {"region": format!("r{}", spread % 50), "plant": format!("p{}", spread % 5_000)}});
    twin.tags = tags.as_object().cloned().expect("an object");
    let status = ["success", "pending", "failed"][(spread / 7 % 3) as usize];
    let reported = json!({
        "telemetryConfig": {"status": status, "interval": spread % 300},
        "firmware": format!("2.{}.{}", spread % 5, spread % 11),
    });
    twin.reported.properties = reported.as_object().cloned().expect("an object");
    twin
}

async fn page(store: &SqliteStore, text: &str) -> (Page, Duration) {
    let select = parse(text).expect("a query");
    let started = Instant::now();
    let request = PageRequest {
        cursor: None,
        limit: 100,
    };
    let page = store.query(&select, request).await.expect("it runs");
    (page, started.elapsed())
}

const BY_TAG: &str = "SELECT * FROM devices WHERE tags.location.region = 'r7'";
const BY_RARE_TAG: &str = "SELECT * FROM devices WHERE tags.location.plant = 'p77'";
const GROUPED: &str = "SELECT properties.reported.telemetryConfig.status AS s, COUNT() AS n FROM devices
                       GROUP BY properties.reported.telemetryConfig.status";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_fleet_answers_in_time() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let metrics = Metrics::register(&mut Registry::new());
    let store = SqliteStore::open(&directory.path().join("state.db"), metrics).expect("a database");
    let started = Instant::now();
    for start in (0..devices()).step_by(1_000) {
        let batch = (start..devices().min(start + 1_000)).map(|n| (record(&device(n)), twin(n)));
        store.create(batch.collect()).await.expect("new");
    }
    println!("{} devices stored in {:?}", devices(), started.elapsed());
    for text in [BY_TAG, BY_RARE_TAG, GROUPED] {
        println!("without an index: {:?} {text}", page(&store, text).await.1);
    }
    make_indexes(&store).await;
    for (text, limit) in [(BY_TAG, 100), (BY_RARE_TAG, 100), (GROUPED, 1_500)] {
        let mut times = Vec::new();
        for _ in 0..9 {
            times.push(page(&store, text).await.1);
        }
        times.sort();
        println!(
            "with an index: median {:?}, slowest {:?} {text}",
            times[4], times[8]
        );
        assert!(times[4] < Duration::from_millis(limit), "{text}: {times:?}");
    }
    let (grouped, _) = page(&store, GROUPED).await;
    let counted: u64 = grouped
        .items
        .iter()
        .map(|item| match item {
            Item::Raw(row) => row["n"].as_u64().expect("a number"),
            other => panic!("{other:?}"),
        })
        .sum();
    assert_eq!((grouped.items.len(), counted), (3, u64::from(devices())));
    pages_while_devices_come(&store).await;
}

/// Asks until the places have indexes; a change of a twin never waits long meanwhile.
async fn make_indexes(store: &SqliteStore) {
    let finished = Arc::new(AtomicBool::new(false));
    let writer = {
        let (store, finished) = (store.clone(), Arc::clone(&finished));
        tokio::spawn(async move {
            let mut times = Vec::new();
            while !finished.load(Ordering::Relaxed) {
                let started = Instant::now();
                store.mutate_twin(&device(1), count_up()).await.expect("there");
                times.push(started.elapsed());
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            times.sort();
            times
        })
    };
    store.want_indexes(true);
    let started = Instant::now();
    while store.indexed_places().await.expect("readable").len() < 3 {
        for text in [BY_TAG, BY_RARE_TAG, GROUPED] {
            page(store, text).await;
        }
        while store.maintain_indexes(at(1)).await.expect("writable") {}
    }
    finished.store(true, Ordering::Relaxed);
    let times = writer.await.expect("no panic");
    println!(
        "indexes made in {:?}; changes meanwhile: {}, median {:?}, slowest {:?}",
        started.elapsed(),
        times.len(),
        times[times.len() / 2],
        times[times.len() - 1]
    );
    assert!(
        times[times.len() - 1] < Duration::from_secs(2),
        "a change waited too long"
    );
}

/// Every device that is there from the first page to the last comes once, whatever is added between the pages.
async fn pages_while_devices_come(store: &SqliteStore) {
    let select =
        parse("SELECT deviceId FROM devices WHERE tags.location.region IN ['r7', 'r8']").expect("a query");
    let expected: HashSet<u32> = (0..devices())
        .filter(|n| [7, 8].contains(&(n.wrapping_mul(2_654_435_761) % 50)))
        .collect();
    let mut seen = HashSet::new();
    let (mut cursor, mut added) = (None, 0);
    loop {
        let page = store
            .query(&select, PageRequest { cursor, limit: 500 })
            .await
            .expect("it runs");
        for item in &page.items {
            let Item::Raw(row) = item else { panic!("{item:?}") };
            let id = row["deviceId"].as_str().expect("an id").to_owned();
            assert!(seen.insert(id.clone()), "{id} came twice");
        }
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
        // Before and after everything in the order of the ids.
        for id in [format!("a{added:04}"), format!("z{added:04}")] {
            let identity = Identity::device(&id).expect("an id");
            store
                .create(vec![(record(&identity), twin(7))])
                .await
                .expect("new");
        }
        added += 1;
    }
    assert!(added > 1, "one page held everything");
    for n in expected {
        assert!(seen.contains(&format!("d{n:07}")), "d{n:07} did not come");
    }
}
