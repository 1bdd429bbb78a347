//! Expensive queries: bounded in time, in number, and stopped when nobody waits any more.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use holdfast_model::ErrorCode;
use holdfast_model::twin::Twin;
use holdfast_observe::Registry;
use holdfast_ports::StoreResult;
use holdfast_ports::query::{Item, Page, PageRequest, QueryStore};
use holdfast_ports::registry::RegistryStore as _;
use holdfast_ports::suite::fixtures::{at, id, is_refusal_of, record};
use holdfast_query::twin::parse;
use holdfast_store::sqlite::query::QueryLimits;
use holdfast_store::sqlite::{Metrics, SqliteStore};
use tempfile::TempDir;

async fn store(limits: QueryLimits, devices: u32) -> (TempDir, SqliteStore) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let metrics = Metrics::register(&mut Registry::new());
    let store =
        SqliteStore::open_with(&directory.path().join("state.db"), metrics, limits).expect("a database");
    let entries = (0..devices).map(|n| {
        let mut twin = Twin::new(at(0));
        twin.tags.insert("n".into(), n.into());
        (record(&id(&format!("d{n}"))), twin)
    });
    store.create(entries.collect()).await.expect("new");
    (directory, store)
}

async fn run(store: &SqliteStore, text: &str) -> StoreResult<Page> {
    let select = parse(text).expect("a query");
    let request = PageRequest {
        cursor: None,
        limit: 100,
    };
    store.query(&select, request).await
}

/// Looks at every twin in memory, since SQL cannot say the sum.
const SLOW: &str = "SELECT * FROM devices WHERE tags.n + 1 < 0 ORDER BY tags.n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_ends_at_its_time() {
    let limits = QueryLimits {
        time_max: Duration::ZERO,
        ..QueryLimits::default()
    };
    let (_directory, store) = store(limits, 2_000).await;
    for text in [
        SLOW,
        "SELECT AVG(tags.n) AS a FROM devices",
        "SELECT * FROM devices WHERE tags.n = -1",
    ] {
        let error = run(&store, text).await.expect_err("too slow");
        assert!(is_refusal_of(&error, ErrorCode::ArgumentInvalid), "{error}");
        assert!(
            error
                .to_string()
                .contains("the query took longer than 0 s; narrow it"),
            "{error}"
        );
    }
    // What was stopped gets an index first of all.
    store.want_indexes(true);
    while store.maintain_indexes(at(1)).await.expect("writable") {}
    assert_eq!(store.indexed_places().await.expect("readable"), ["tags.n"]);
    // The connection is good for another query.
    assert_eq!(
        run(&store, "SELECT COUNT() AS n FROM devices")
            .await
            .expect("quick")
            .items
            .len(),
        1
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_ends_at_its_time_and_the_next_goes_on() {
    let limits = QueryLimits {
        page_time: Duration::ZERO,
        ..QueryLimits::default()
    };
    let (_directory, store) = store(limits, 30).await;
    for text in [
        "SELECT deviceId FROM devices WHERE tags.n + 1 > 20",
        "SELECT deviceId FROM devices WHERE tags.n > 19",
    ] {
        let select = parse(text).expect("a query");
        let mut seen = BTreeSet::new();
        let (mut cursor, mut pages) = (None, 0);
        loop {
            let page = store
                .query(&select, PageRequest { cursor, limit: 100 })
                .await
                .expect("it runs");
            for item in page.items {
                let Item::Raw(row) = item else { panic!("{item:?}") };
                assert!(seen.insert(row["deviceId"].to_string()), "a row came twice");
            }
            cursor = page.next;
            pages += 1;
            if cursor.is_none() {
                break;
            }
        }
        assert!(
            seen.len() >= 10 && pages > 5,
            "{text}: {} rows on {pages} pages",
            seen.len()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_so_many_run_at_once() {
    let limits = QueryLimits {
        running_max: 1,
        waiting_max: 1,
        wait_max: Duration::from_secs(60),
        ..QueryLimits::default()
    };
    let (_directory, store) = store(limits, 2_000).await;
    let answers = join_all((0..5).map(|_| run(&store, SLOW))).await;
    let (good, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert_eq!((good.len(), refused.len()), (2, 3), "one runs, one waits");
    for error in refused.into_iter().filter_map(Result::err) {
        assert!(is_refusal_of(&error, ErrorCode::ThrottlingException), "{error}");
    }
    assert!(run(&store, SLOW).await.is_ok(), "there is room again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_stops_when_nobody_waits_for_it() {
    let limits = QueryLimits {
        running_max: 1,
        ..QueryLimits::default()
    };
    let (_directory, store) = store(limits, 20_000).await;
    let started = Instant::now();
    run(&store, SLOW).await.expect("it runs");
    let whole = started.elapsed();
    let gone = tokio::time::timeout(whole / 20, run(&store, SLOW)).await;
    assert!(gone.is_err(), "the slow query was not slow");
    let started = Instant::now();
    run(&store, "SELECT * FROM devices WHERE deviceId = 'd7'")
        .await
        .expect("it runs");
    let waited = started.elapsed();
    assert!(
        waited < whole / 2,
        "waited {waited:?} for a query of {whole:?} that nobody wants"
    );
}
