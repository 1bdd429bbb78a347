//! A query or target condition of anybody: parsed, planned for every dialect, evaluated; errors point into the text.
#![no_main]

use holdfast_query::twin::sql::postgres::Postgres;
use holdfast_query::twin::sql::sqlite::Sqlite;
use holdfast_query::twin::sql::{Dialect, Params, condition};
use holdfast_query::twin::{JobRow, Plan, parse, parse_condition, truth};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let document = json!({"jobId": "j", "deviceId": "d", "status": "failed", "error": {"code": 1}});
    let Some(document) = document.as_object() else { return };
    for error in [parse(text).err(), parse_condition(text).err()].into_iter().flatten() {
        assert!(error.start.offset <= error.end.offset && error.end.offset <= text.len());
    }
    if let Ok(condition) = parse_condition(text) {
        let _ = condition.matches(&JobRow(document));
    }
    let Ok(select) = parse(text) else { return };
    let Some(filter) = &select.filter else { return };
    let _ = truth(filter, &JobRow(document));
    let source = select.source;
    let dialects: [&dyn Dialect; 2] = [&Sqlite { source, boot: 1 }, &Postgres { source }];
    for dialect in dialects {
        let plan = Plan::of(Some(filter), &|test| dialect.can(test));
        condition(dialect, &plan.predicate, &mut Params::default());
    }
});
