//! The SQL of the dialects, as text: what changes here changes what a store does. SQLite's is also run against the
//! definition (store crate); PostgreSQL's stands here for review.

use std::fmt::Write as _;

use super::postgres::Postgres;
use super::sqlite::Sqlite;
use super::{Dialect, Params, condition};
use crate::twin::{Plan, Source, parse};

const QUERIES: &[&str] = &[
    "SELECT * FROM devices",
    "SELECT * FROM devices WHERE tags.location.region = 'US' AND properties.reported.interval >= 60",
    "SELECT * FROM devices WHERE NOT (tags.a = 'x' OR tags.[[b c]] != 1.5)",
    "SELECT * FROM devices WHERE properties.reported.connectivity IN ['wired', 1, true, null]",
    "SELECT * FROM devices WHERE status NIN ['disabled']",
    "SELECT * FROM devices WHERE is_defined(tags.a) AND NOT is_defined(tags.b)",
    "SELECT * FROM devices WHERE STARTSWITH(id, 'prefix') OR ENDSWITH(tags.a, 'ü') OR CONTAINS(tags.a, '')",
    "SELECT * FROM devices WHERE array_contains(parentScopes, 'ms-azure-iot-edge://p-1')",
    "SELECT * FROM devices.modules WHERE moduleId = '$edgeAgent' AND configurations.[[my-config]].status = 'Applied'
        AND properties.desired.$version = properties.reported.lastDesiredVersion",
    "SELECT * FROM devices WHERE lastActivityTime > '2026-08-01' AND connectionState = 'Connected'",
    "SELECT * FROM devices WHERE tags.a = tags.b OR NOT tags.c OR capabilities.iotEdge = true",
    "SELECT * FROM devices WHERE tags.a = null OR tags.b != null OR IS_NUMBER(tags.c)",
    "SELECT * FROM devices WHERE tags.a + 1 = 2 AND tags.b = 'kept'",
    "SELECT * FROM devices WHERE etag = 'x' OR tags.b = 'lost'",
    "SELECT * FROM devices WHERE tags.[[it's]].[[x\"y]] = 1",
    "SELECT * FROM devices.jobs WHERE jobId = 'j' AND error.code = 'x' AND createdTimeUtc > '2016-09-01'",
];

fn snapshot(dialect: &dyn Fn(Source) -> Box<dyn Dialect>) -> String {
    let mut out = String::new();
    for text in QUERIES {
        let select = parse(text).expect("a query");
        let dialect = dialect(select.source);
        let plan = Plan::of(select.filter.as_ref(), &|test| dialect.can(test));
        let mut params = Params::default();
        let sql = condition(&*dialect, &plan.predicate, &mut params);
        let exact = if plan.exact { "" } else { " (and in memory)" };
        writeln!(out, "{text}\n    {sql}{exact}").expect("memory");
        writeln!(out, "    {:?}\n", params.0).expect("memory");
    }
    out
}

fn check(name: &str, found: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(name);
    if std::env::var_os("HOLDFAST_UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, found).expect("writable");
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        found, kept,
        "{name} differs; HOLDFAST_UPDATE_SNAPSHOTS=1 writes it anew"
    );
}

#[test]
fn sqlite() {
    check(
        "sql_sqlite.txt",
        &snapshot(&|source| Box::new(Sqlite { source, boot: 7 })),
    );
}

#[test]
fn postgres() {
    check(
        "sql_postgres.txt",
        &snapshot(&|source| Box::new(Postgres { source })),
    );
}

#[test]
fn a_prefix_ends_where_the_next_begins() {
    for (prefix, end) in [
        ("a", Some("b")),
        ("a\u{D7FF}", Some("a\u{E000}")),
        ("a\u{10FFFF}", Some("b")),
        ("\u{10FFFF}", None),
        ("", None),
    ] {
        assert_eq!(super::after_prefix(prefix).as_deref(), end);
    }
}
