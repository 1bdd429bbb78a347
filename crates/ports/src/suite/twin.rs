//! What every [`crate::twin::TwinStore`] does.
#![allow(missing_docs, clippy::missing_panics_doc, reason = "the names say it")]

use std::sync::Arc;

use holdfast_model::twin::{ConfigurationStatus, Managed, PropertyPath, Section, Twin};
use serde_json::{Map, Value, json};

use super::StateStore;
use super::fixtures::{at, count_up, create, id, is_refusal, record, refusal};
use crate::assert_fails;

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("not an object: {other}"),
    }
}

fn rich_twin() -> Twin {
    Twin {
        tags: object(
            json!({"site": "Zürich \u{1f3ed}", "line": {"number": 4, "deep": [1, [2, {"x": null}]]}}),
        ),
        desired: Section {
            properties: object(json!({
                "max": 4_503_599_627_370_495_i64, "min": -4_503_599_627_370_496_i64, "big": u64::MAX,
                "third": 1.0 / 3.0, "tiny": 5e-324, "huge": f64::MAX, "awkward": 0.1 + 0.2,
                "text": "\u{0}\"\\\u{1}\u{7f}", "empty": {}, "list": [], "yes": true,
            })),
            metadata: object(
                json!({"$lastUpdated": "2026-08-01T10:00:00.1234567Z", "$lastUpdatedVersion": 3}),
            ),
            version: 3,
        },
        reported: Section {
            properties: object(json!({"n": 0, "key with space": "kept", "": "an empty key"})),
            metadata: object(json!({"$lastUpdated": "2026-08-01T10:00:00Z"})),
            version: 12,
        },
        version: 5,
        model_id: Some("dtmi:com:example:Thermostat;1".into()),
        configurations: [
            ("a-b".to_owned(), ConfigurationStatus::Applied),
            ("c".to_owned(), ConfigurationStatus::Targeted),
        ]
        .into(),
        managed: Some(Box::new(Managed {
            plan: "a-b@1".into(),
            paths: vec![PropertyPath::parse("properties.desired.max").expect("a path")],
        })),
    }
}

pub async fn twins_are_kept_whole<S: StateStore>(store: Arc<S>) {
    let twin = rich_twin();
    store
        .create(vec![(record(&id("d1")), twin.clone())])
        .await
        .expect("new");
    assert_eq!(store.twin(&id("d1")).await.expect("readable"), Some(twin.clone()));
    create(&*store, &["d2"]).await;
    let wanted = twin.clone();
    let replace = Arc::new(move |twin: &mut Twin| {
        *twin = wanted.clone();
        Ok(())
    });
    let changed = store.mutate_twin(&id("d2"), replace).await.expect("it is there");
    assert_eq!(changed, twin);
    // Reading and writing it again many times must not wear it out.
    for _ in 0..5 {
        let same = store.mutate_twin(&id("d2"), Arc::new(|_| Ok(()))).await;
        assert_eq!(same.expect("it is there"), twin);
    }
    assert_eq!(store.twin(&id("d2")).await.expect("readable"), Some(twin));
}

pub async fn a_mutation_returns_the_new_twin<S: StateStore>(store: Arc<S>) {
    create(&*store, &["d1"]).await;
    let changed = store
        .mutate_twin(&id("d1"), count_up())
        .await
        .expect("it is there");
    let mut expected = Twin::new(at(0));
    expected.reported.properties.insert("n".into(), json!(1));
    expected.reported.version = 2;
    assert_eq!(changed, expected);
    assert_eq!(store.twin(&id("d1")).await.expect("readable"), Some(expected));
}

pub async fn a_refused_mutation_changes_nothing<S: StateStore>(store: Arc<S>) {
    create(&*store, &["d1"]).await;
    let refused = store
        .mutate_twin(
            &id("d1"),
            Arc::new(|twin| {
                twin.version = 99;
                Err(refusal())
            }),
        )
        .await;
    assert!(is_refusal(&refused.expect_err("refused")));
    let kept = store.twin(&id("d1")).await.expect("readable");
    assert_eq!(kept, Some(Twin::new(at(0))));
}

pub async fn a_missing_twin_cannot_be_changed<S: StateStore>(store: Arc<S>) {
    assert_fails!(store.mutate_twin(&id("d1"), count_up()).await, Missing);
    create(&*store, &["d1"]).await;
    assert_fails!(store.mutate_twin(&id("d1/m1"), count_up()).await, Missing);
}

pub async fn twins_are_independent<S: StateStore>(store: Arc<S>) {
    create(&*store, &["d1", "d1/m1", "d2"]).await;
    for _ in 0..3 {
        store
            .mutate_twin(&id("d1/m1"), count_up())
            .await
            .expect("it is there");
    }
    for (key, version) in [("d1", 1), ("d1/m1", 4), ("d2", 1)] {
        let twin = store.twin(&id(key)).await.expect("readable");
        assert_eq!(twin.map(|twin| twin.reported.version), Some(version));
    }
}

pub async fn concurrent_mutations_all_count<S: StateStore>(store: Arc<S>) {
    create(&*store, &["d1"]).await;
    let mut tasks = Vec::new();
    for _ in 0..16 {
        let store = Arc::clone(&store);
        tasks.push(tokio::spawn(async move {
            for _ in 0..25 {
                store
                    .mutate_twin(&id("d1"), count_up())
                    .await
                    .expect("it is there");
            }
        }));
    }
    for task in tasks {
        task.await.expect("no panic");
    }
    let twin = store
        .twin(&id("d1"))
        .await
        .expect("readable")
        .expect("it is there");
    assert_eq!(twin.reported.properties["n"], json!(400));
    assert_eq!(twin.reported.version, 401);
}

pub async fn changes_are_seen_in_the_order_they_returned<S: StateStore>(store: Arc<S>) {
    create(&*store, &["d1"]).await;
    let mut tasks = Vec::new();
    for _ in 0..4 {
        let store = Arc::clone(&store);
        tasks.push(tokio::spawn(async move {
            let mut newest = 0;
            for _ in 0..25 {
                let changed = store.mutate_twin(&id("d1"), count_up()).await;
                let changed = changed.expect("it is there").reported.version;
                let seen = store.twin(&id("d1")).await.expect("readable");
                let seen = seen.expect("it is there").reported.version;
                assert!(changed > newest, "version {changed} came after {newest}");
                assert!(
                    seen >= changed,
                    "version {seen} was read after {changed} returned"
                );
                newest = seen;
            }
        }));
    }
    for task in tasks {
        task.await.expect("no panic");
    }
}
