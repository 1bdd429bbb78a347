//! What every [`crate::query::QueryStore`] does. That each query has the right rows is shown by property tests against
//! the memory double.
#![allow(missing_docs, clippy::missing_panics_doc, reason = "the names say it")]

use std::collections::BTreeSet;
use std::sync::Arc;

use holdfast_model::twin::{ConfigurationStatus, Twin};
use holdfast_query::twin::{Cursor, Position, parse, parse_condition};
use serde_json::{Value, json};

use super::StateStore;
use super::fixtures::{LIMITS, at, create, id, is_refusal_of, message, record};
use crate::query::{Item, Page, PageRequest};

async fn page<S: StateStore>(store: &S, text: &str, cursor: Option<Cursor>, limit: usize) -> Page {
    let select = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    let page = store.query(&select, PageRequest { cursor, limit }).await;
    page.unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// All rows, in pages of two; a token between any two of them.
async fn rows<S: StateStore>(store: &S, text: &str) -> Vec<Value> {
    let mut rows = Vec::new();
    let mut cursor = None;
    loop {
        let found = page(store, text, cursor, 2).await;
        assert!(found.items.len() <= 2, "{text}");
        rows.extend(found.items.into_iter().map(|item| match item {
            Item::Raw(row) | Item::Job(row) => Value::Object(row),
            Item::Twin(twin) => twin.record.identity.as_str().into(),
        }));
        match found.next {
            None => return rows,
            Some(next) => cursor = Some(Cursor::from_token(&next.to_token()).expect("its own token")),
        }
    }
}

fn sorted(mut rows: Vec<Value>) -> Vec<Value> {
    rows.sort_by_key(Value::to_string);
    rows
}

async fn fleet<S: StateStore>(store: &S) {
    for (key, site, number) in [
        ("d5", "a", 5),
        ("d1", "b", 1),
        ("d3", "a", 3),
        ("d3/m", "a", 9),
        ("d2", "b", 2),
    ] {
        let mut twin = Twin::new(at(0));
        twin.tags.insert("site".into(), site.into());
        twin.reported.properties.insert("n".into(), number.into());
        if key == "d1" {
            twin.configurations
                .insert("c-1".into(), ConfigurationStatus::Applied);
        }
        store.create(vec![(record(&id(key)), twin)]).await.expect("new");
    }
}

pub async fn queries_find_devices_and_modules_apart<S: StateStore>(store: Arc<S>) {
    assert_eq!(rows(&*store, "SELECT * FROM devices").await, Vec::<Value>::new());
    fleet(&*store).await;
    assert_eq!(
        sorted(rows(&*store, "SELECT * FROM devices").await),
        ["d1", "d2", "d3", "d5"]
    );
    assert_eq!(rows(&*store, "SELECT * FROM devices.modules").await, ["d3/m"]);
    let text = "SELECT * FROM devices WHERE tags.site = 'a' AND properties.reported.n > 3";
    assert_eq!(rows(&*store, text).await, ["d5"]);
    let text = "SELECT deviceId, moduleId FROM devices.modules WHERE deviceId = 'd3'";
    assert_eq!(
        rows(&*store, text).await,
        [json!({"deviceId": "d3", "moduleId": "m"})]
    );
    let text = "SELECT deviceId FROM devices WHERE configurations.[[c-1]].status = 'Applied'";
    assert_eq!(rows(&*store, text).await, [json!({"deviceId": "d1"})]);
}

pub async fn a_page_ends_where_it_is_full<S: StateStore>(store: Arc<S>) {
    fleet(&*store).await;
    let all = page(&*store, "SELECT * FROM devices", None, 4).await;
    assert_eq!((all.items.len(), all.next), (4, None));
    let first = page(&*store, "SELECT * FROM devices", None, 3).await;
    assert_eq!(first.items.len(), 3);
    let rest = page(&*store, "SELECT * FROM devices", first.next, 3).await;
    assert_eq!((rest.items.len(), rest.next), (1, None));
}

pub async fn top_bounds_the_whole_result<S: StateStore>(store: Arc<S>) {
    fleet(&*store).await;
    assert_eq!(rows(&*store, "SELECT TOP 3 * FROM devices").await.len(), 3);
    assert_eq!(rows(&*store, "SELECT TOP 9 * FROM devices").await.len(), 4);
    let full = page(&*store, "SELECT TOP 2 deviceId FROM devices", None, 2).await;
    assert_eq!((full.items.len(), full.next), (2, None));
    let text = "SELECT TOP 1 tags.site, COUNT() AS n FROM devices GROUP BY tags.site";
    assert_eq!(rows(&*store, text).await.len(), 1);
}

pub async fn figures_come_in_pages<S: StateStore>(store: Arc<S>) {
    fleet(&*store).await;
    assert_eq!(
        rows(&*store, "SELECT COUNT() AS n FROM devices").await,
        [json!({"n": 4})]
    );
    let text = "SELECT COUNT() AS n, SUM(properties.reported.n) AS s FROM devices WHERE tags.site = 'a'";
    assert_eq!(rows(&*store, text).await, [json!({"n": 2, "s": 8})]);
    let text = "SELECT properties.reported.n AS n, COUNT() AS c FROM devices GROUP BY properties.reported.n";
    let found = rows(&*store, text).await;
    assert_eq!(sorted(found), [1, 2, 3, 5].map(|n| json!({"n": n, "c": 1})));
}

pub async fn rows_come_in_the_order_asked_for<S: StateStore>(store: Arc<S>) {
    fleet(&*store).await;
    let text = "SELECT * FROM devices ORDER BY tags.site DESC, properties.reported.n";
    assert_eq!(rows(&*store, text).await, ["d1", "d2", "d3", "d5"]);
}

pub async fn pages_do_not_double_or_lose_rows<S: StateStore>(store: Arc<S>) {
    create(&*store, &["m1", "m2", "m3", "m4", "m5", "m6"]).await;
    let mut seen = BTreeSet::new();
    let mut cursor = None;
    for round in 0_u32.. {
        let found = page(&*store, "SELECT * FROM devices", cursor, 2).await;
        for item in found.items {
            let Item::Twin(twin) = item else {
                panic!("{item:?}")
            };
            assert!(
                seen.insert(twin.record.identity.clone()),
                "{} came twice",
                twin.record.identity
            );
        }
        cursor = found.next;
        if cursor.is_none() {
            break;
        }
        if round < 3 {
            create(&*store, &[&format!("a{round}"), &format!("z{round}")]).await;
        }
        if round == 0 {
            // One that came, or has still to come, goes.
            store.delete(&id("m1"), None).await.expect("there");
        }
    }
    for key in ["m2", "m3", "m4", "m5", "m6"] {
        assert!(seen.contains(&id(key)), "{key} did not come");
    }
}

pub async fn a_cursor_belongs_to_its_query<S: StateStore>(store: Arc<S>) {
    fleet(&*store).await;
    let first = page(&*store, "SELECT * FROM devices", None, 1).await;
    let cursor = first.next.expect("more");
    let mut wrong = vec![Cursor {
        fingerprint: cursor.fingerprint ^ 1,
        ..cursor.clone()
    }];
    for position in [Position::Group(vec![1]), Position::Ordered(vec![], "x".into())] {
        let of_other = Cursor {
            position,
            ..cursor.clone()
        };
        wrong.push(of_other);
    }
    let select = parse("SELECT * FROM devices").expect("a query");
    for cursor in wrong {
        let cursor = Some(cursor);
        let answer = store.query(&select, PageRequest { cursor, limit: 1 }).await;
        assert!(is_refusal_of(
            &answer.expect_err("refused"),
            holdfast_model::ErrorCode::ArgumentInvalid
        ));
    }
}

pub async fn too_many_groups_are_refused<S: StateStore>(store: Arc<S>) {
    let most = holdfast_query::twin::aggregate::GROUPS_MAX;
    let entries = (0..=most).map(|n| (record(&id(&format!("d{n}"))), Twin::new(at(0))));
    store.create(entries.collect()).await.expect("new");
    let select = parse("SELECT deviceId, COUNT() AS n FROM devices GROUP BY deviceId").expect("a query");
    let request = PageRequest {
        cursor: None,
        limit: 1,
    };
    let answer = store.query(&select, request).await;
    assert!(is_refusal_of(
        &answer.expect_err("refused"),
        holdfast_model::ErrorCode::ArgumentInvalid
    ));
}

pub async fn documents_show_waiting_messages<S: StateStore>(store: Arc<S>) {
    create(&*store, &["d1", "d2"]).await;
    store.enqueue(message("d1", "1"), LIMITS).await.expect("room");
    let found = page(
        &*store,
        "SELECT * FROM devices WHERE cloudToDeviceMessageCount = 1",
        None,
        9,
    )
    .await;
    let [Item::Twin(twin)] = found.items.as_slice() else {
        panic!("{found:?}")
    };
    assert_eq!((twin.record.identity.as_str(), twin.waiting), ("d1", 1));
}

pub async fn conditions_target_identities<S: StateStore>(store: Arc<S>) {
    fleet(&*store).await;
    for (text, expected) in [
        ("", &[][..]),
        ("*", &["d1", "d2", "d3", "d5"]),
        ("tags.site = 'a'", &["d3", "d5"]),
        ("FROM devices.modules WHERE tags.site = 'a'", &["d3/m"]),
    ] {
        let condition = parse_condition(text).expect("a condition");
        let mut found = Vec::new();
        let mut cursor = None;
        loop {
            let page = store.find_targets(&condition, cursor, 1).await.expect("it runs");
            found.extend(page.identities);
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        found.sort();
        assert_eq!(
            found,
            expected.iter().map(|key| id(key)).collect::<Vec<_>>(),
            "{text}"
        );
        assert_eq!(
            store.count_targets(&condition).await.expect("it runs"),
            expected.len() as u64,
            "{text}"
        );
    }
}
