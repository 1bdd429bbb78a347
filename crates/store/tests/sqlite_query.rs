//! Queries on the SQLite store: the same rows as in memory, over generated twins and queries; indexes, paging, bounds.

use std::sync::Arc;

use holdfast_model::twin::{ConfigurationStatus, Section, Twin};
use holdfast_model::{Identity, Timestamp};
use holdfast_observe::Registry;
use holdfast_ports::memory::MemoryStore;
use holdfast_ports::query::{Item, PageRequest, QueryStore};
use holdfast_ports::registry::RegistryStore;
use holdfast_ports::suite::fixtures::{at, record};
use holdfast_query::twin::parse;
use holdfast_store::sqlite::{Metrics, SqliteStore};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

fn open(directory: &TempDir) -> SqliteStore {
    let metrics = Metrics::register(&mut Registry::new());
    SqliteStore::open(&directory.path().join("state.db"), metrics).expect("a database")
}

/// Every row of a result as text, sorted; pages of `limit`.
async fn all(store: &dyn QueryStore, text: &str, limit: usize) -> Vec<String> {
    let select = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    let mut rows = Vec::new();
    let mut cursor = None;
    loop {
        let request = PageRequest {
            cursor: cursor.take(),
            limit,
        };
        let page = store
            .query(&select, request)
            .await
            .unwrap_or_else(|error| panic!("{text}: {error}"));
        assert!(page.items.len() <= limit, "{text}");
        for item in &page.items {
            rows.push(match item {
                Item::Raw(row) | Item::Job(row) => Value::Object(row.clone()).to_string(),
                Item::Twin(twin) => {
                    let mut twin = (**twin).clone();
                    // Microseconds and generations are the same in both stores.
                    twin.record.connected = false;
                    format!("{} {:?} {}", twin.record.identity, twin.twin, twin.waiting)
                }
            });
        }
        cursor = page.next;
        if cursor.is_none() {
            if select.order_by.is_empty() {
                rows.sort();
            }
            return rows;
        }
    }
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3_i64..4).prop_map(Value::from),
        prop::sample::select(vec![
            0.5,
            1.0,
            2.5,
            -0.0,
            0.1 + 0.2,
            1e300,
            4_503_599_627_370_495.0
        ])
        .prop_map(Value::from),
        prop::sample::select(vec![
            "",
            "a",
            "ab",
            "b",
            "true",
            "1",
            "Zürich",
            "a'b\"c\\d",
            "{}",
            "null",
            "x\u{0}y",
            "ÿ"
        ])
        .prop_map(Value::from),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(2, 6, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            object(inner).prop_map(Value::Object),
        ]
    })
}

const KEYS: &[&str] = &["a", "b", "my key", "$x", "é'", "quo\"te", "group"];

fn object(values: impl Strategy<Value = Value>) -> impl Strategy<Value = Map<String, Value>> {
    prop::collection::btree_map(prop::sample::select(KEYS), values, 0..4).prop_map(|map| {
        map.into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect()
    })
}

fn section() -> impl Strategy<Value = Section> {
    (object(value()), 1_u64..4).prop_map(|(properties, version)| Section {
        properties: properties
            .into_iter()
            .filter(|(key, _)| !key.starts_with('$'))
            .collect(),
        metadata: json!({"$lastUpdated": "2026-08-01T10:00:00Z"})
            .as_object()
            .cloned()
            .unwrap_or_default(),
        version,
    })
}

fn twin() -> impl Strategy<Value = Twin> {
    let statuses = prop::collection::btree_map(
        prop::sample::select(vec!["c-1", "c2"]).prop_map(str::to_owned),
        prop::sample::select(vec![ConfigurationStatus::Targeted, ConfigurationStatus::Applied]),
        0..3,
    );
    let model = prop::option::of(prop::sample::select(vec!["dtmi:a;1", "dtmi:b;1"]));
    (object(value()), section(), section(), 1_u64..4, model, statuses).prop_map(
        |(tags, desired, reported, version, model, configurations)| Twin {
            tags,
            desired,
            reported,
            version,
            model_id: model.map(str::to_owned),
            configurations,
            ..Twin::new(at(0))
        },
    )
}

fn path() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec![
        "a",
        "b",
        "[[my key]]",
        "$x",
        "[[é']]",
        "[[quo\"te]]",
        "[[group]]",
    ]);
    let document = prop::sample::select(vec!["tags", "properties.reported", "properties.desired"]);
    let deep = (
        document,
        prop::collection::vec(name, 1..3),
        prop::option::weighted(0.1, 0_usize..3),
    )
        .prop_map(|(document, names, index)| {
            let index = index.map_or(String::new(), |index| format!("[{index}]"));
            format!("{document}.{}{index}", names.join("."))
        });
    let own = prop::sample::select(vec![
        "deviceId",
        "id",
        "status",
        "statusReason",
        "statusUpdateTime",
        "connectionState",
        "lastActivityTime",
        "cloudToDeviceMessageCount",
        "authenticationType",
        "etag",
        "deviceEtag",
        "version",
        "modelId",
        "deviceScope",
        "parentScopes",
        "capabilities.iotEdge",
        "x509Thumbprint.primaryThumbprint",
        "properties.desired.$version",
        "properties.reported.$version",
        "properties.reported.$metadata.$lastUpdated",
        "properties.desired",
        "tags",
        "configurations.[[c-1]].status",
        "configurations.c2",
        "configurations",
        "properties",
        "capabilities",
    ]);
    prop_oneof![3 => deep, 1 => own.prop_map(str::to_owned)]
}

fn literal() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => scalar().prop_map(|value| match value {
            Value::String(text) => quoted(&text),
            other => other.to_string(),
        }),
        1 => prop::sample::select(vec![
            "undefined", "'enabled'", "'Connected'", "'Disconnected'", "'sas'", "'d3'", "'2026-08-01'", "'Applied'",
            "'1970-01-01T00:00:00Z'", "'dtmi:a;1'", "'Targeted'",
        ]).prop_map(str::to_owned),
    ]
}

fn quoted(text: &str) -> String {
    let mut out = String::from("'");
    for c in text.chars() {
        match c {
            '\'' | '\\' => out.extend(['\\', c]),
            '\0' => out.push_str("\\u0000"),
            other => out.push(other),
        }
    }
    out.push('\'');
    out
}

fn condition() -> impl Strategy<Value = String> {
    let op = prop::sample::select(vec!["=", "!=", "<>", "<", "<=", ">", ">="]);
    let function = prop::sample::select(vec![
        "IS_NULL",
        "IS_BOOL",
        "IS_NUMBER",
        "IS_STRING",
        "IS_OBJECT",
        "IS_ARRAY",
        "IS_PRIMITIVE",
        "IS_DEFINED",
    ]);
    let text = prop::sample::select(vec!["STARTSWITH", "ENDSWITH", "CONTAINS"]);
    let part = prop::sample::select(vec!["", "a", "b", "x", "d", "1", "En", "\u{0}y"]);
    let membership =
        (path(), any::<bool>(), prop::collection::vec(literal(), 0..4)).prop_map(|(path, nin, list)| {
            format!("{path} {} [{}]", if nin { "NIN" } else { "IN" }, list.join(", "))
        });
    let leaf = prop_oneof![
        4 => (path(), op.clone(), literal()).prop_map(|(path, op, literal)| format!("{path} {op} {literal}")),
        1 => (literal(), op.clone(), path()).prop_map(|(literal, op, path)| format!("{literal} {op} {path}")),
        2 => (path(), op, path()).prop_map(|(left, op, right)| format!("{left} {op} {right}")),
        1 => membership,
        1 => (function, path()).prop_map(|(function, path)| format!("{function}({path})")),
        1 => (text, path(), part).prop_map(|(function, path, part)| format!("{function}({path}, {})", quoted(part))),
        1 => (path(), literal()).prop_map(|(path, literal)| format!("ARRAY_CONTAINS({path}, {literal})")),
        1 => path(),
        1 => (path(), 0..3, literal()).prop_map(|(path, add, literal)| format!("{path} + {add} >= {literal}")),
    ];
    leaf.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|term| format!("NOT ({term})")),
            prop::collection::vec(inner.clone(), 2..4).prop_map(|terms| format!("({})", terms.join(" AND "))),
            prop::collection::vec(inner, 2..4).prop_map(|terms| format!("({})", terms.join(" OR "))),
        ]
    })
}

fn query() -> impl Strategy<Value = String> {
    let source = prop::sample::select(vec!["devices", "devices", "devices.modules"]);
    let rows = prop_oneof![
        3 => Just(("SELECT *".to_owned(), String::new())),
        1 => path().prop_map(|path| (format!("SELECT deviceId, {path} AS x"), String::new())),
        1 => path().prop_map(|path| (format!("SELECT deviceId, {path} AS x"), format!(" ORDER BY {path} DESC, deviceId"))),
        1 => Just(("SELECT COUNT() AS n".to_owned(), String::new())),
        1 => (path(), path()).prop_map(|(group, of)| (
            format!("SELECT {group} AS g, COUNT() AS n, SUM({of}) AS s, MIN({of}) AS a, MAX({of}) AS z"),
            format!(" GROUP BY {group}"),
        )),
    ];
    (rows, source, prop::option::weighted(0.85, condition())).prop_map(
        |((select, tail), source, condition)| {
            let filter = condition.map_or(String::new(), |condition| format!(" WHERE {condition}"));
            format!("{select} FROM {source}{filter}{tail}")
        },
    )
}

fn fleet() -> impl Strategy<Value = Vec<(Identity, Twin)>> {
    prop::collection::vec((twin(), prop::option::weighted(0.4, twin())), 1..14).prop_map(|twins| {
        let mut fleet = Vec::new();
        for (at, (device, module)) in twins.into_iter().enumerate() {
            // Not in the order of the ids.
            let id = format!("d{}", (at * 7) % 15);
            fleet.push((Identity::device(&id).expect("an id"), device));
            if let Some(module) = module {
                fleet.push((Identity::module(&id, "m1").expect("an id"), module));
            }
        }
        fleet
    })
}

async fn fill(store: &dyn RegistryStore, fleet: &[(Identity, Twin)]) {
    for (at, (identity, twin)) in fleet.iter().enumerate() {
        let mut record = record(identity);
        record.status_reason = at.is_multiple_of(3).then(|| "a".to_owned());
        record.iot_edge = at.is_multiple_of(4);
        record.parent_scopes = if at.is_multiple_of(5) {
            vec!["a".into(), "b".into()]
        } else {
            Vec::new()
        };
        record.last_activity_at = Timestamp::from_seconds(at as i64 % 3 * 1_000_000_000);
        store.create(vec![(record, twin.clone())]).await.expect("new");
    }
}

/// Makes indexes for what the queries named, as if they had scanned for long.
async fn index_all(store: &SqliteStore) {
    for step in 0..2_000 {
        if !store.maintain_indexes(at(step)).await.expect("writable") {
            return;
        }
    }
    panic!("the upkeep does not come to an end");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    /// The definition and SQL agree: on all rows, in pages, and with indexes.
    #[test]
    fn sql_and_memory_agree(fleet in fleet(), queries in prop::collection::vec(query(), 1..12), limit in 1_usize..9) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let directory = tempfile::tempdir().expect("a temporary directory");
            let store = open(&directory);
            let memory = MemoryStore::new();
            fill(&store, &fleet).await;
            fill(&memory, &fleet).await;
            store.want_indexes(true);
            for round in 0..2 {
                for text in &queries {
                    let expected = all(&memory, text, limit).await;
                    let found = all(&store, text, limit).await;
                    assert_eq!(found, expected, "{text} (round {round})");
                }
                index_all(&store).await;
            }
        });
    }
}

/// `HOLDFAST_QUERY_CASES` asks for more.
fn cases() -> u32 {
    std::env::var("HOLDFAST_QUERY_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(192)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_follows_every_change() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = Arc::new(open(&directory));
    store.want_indexes(true);
    let id = |at: usize| Identity::device(&format!("d{at}")).expect("an id");
    let tagged = |site: &str| {
        let mut twin = Twin::new(at(0));
        twin.tags.insert("site".into(), site.into());
        twin
    };
    for at in 0..20 {
        store
            .create(vec![(record(&id(at)), tagged("a"))])
            .await
            .expect("new");
    }
    let text = "SELECT deviceId FROM devices WHERE tags.site = 'b'";
    assert_eq!(all(&*store, text, 5).await.len(), 0);
    index_all(&store).await;
    assert_eq!(store.indexed_places().await.expect("readable"), ["tags.site"]);
    holdfast_ports::twin::TwinStore::mutate_twin(
        &*store,
        &id(3),
        Arc::new(|twin| {
            twin.tags.insert("site".into(), "b".into());
            Ok(())
        }),
    )
    .await
    .expect("there");
    store
        .create(vec![(record(&id(20)), tagged("b"))])
        .await
        .expect("new");
    store.delete(&id(4), None).await.expect("there");
    assert_eq!(all(&*store, text, 5).await.len(), 2);
    store.delete(&id(20), None).await.expect("there");
    assert_eq!(all(&*store, text, 5).await.len(), 1);
    // It is there again after a restart, and goes when nobody uses it.
    drop(store);
    let store = open(&directory);
    assert_eq!(store.indexed_places().await.expect("readable"), ["tags.site"]);
    assert_eq!(all(&store, text, 5).await.len(), 1);
    let week = 8 * 24 * 3_600;
    store.maintain_indexes(at(week)).await.expect("writable");
    for step in 0..10 {
        store
            .maintain_indexes(at(week * 3 + step))
            .await
            .expect("writable");
    }
    assert_eq!(
        store.indexed_places().await.expect("readable"),
        Vec::<String>::new()
    );
    assert_eq!(all(&store, text, 5).await.len(), 1);
}

proptest! {
    /// SQLite reads numbers out of JSON as this program writes them.
    #[test]
    fn numbers_survive_json(numbers in prop::collection::vec(prop::num::f64::NORMAL | prop::num::f64::ZERO, 64)) {
        let db = rusqlite::Connection::open_in_memory().expect("memory");
        for number in numbers {
            let text = json!({ "a": number }).to_string();
            let found: f64 = db
                .query_row("SELECT json_extract(?1, '$.a')", [&text], |row| row.get(0))
                .expect("a number");
            prop_assert_eq!(found, number, "{}", text);
        }
    }
}
