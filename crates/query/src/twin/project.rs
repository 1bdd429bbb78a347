//! Rows of results that are not aggregated.

use std::borrow::Cow;

use serde_json::{Map, Value as Json};

use super::ast::{Column, ColumnValue};
use super::row::Row;

/// The result of one row: what is missing has no key.
#[must_use]
pub fn project(columns: &[Column], row: &dyn Row) -> Map<String, Json> {
    let mut out = Map::new();
    for column in columns {
        if let ColumnValue::Path(path) = &column.value
            && let Some(value) = row.get(path).map(Cow::into_owned)
        {
            out.insert(column.name.clone(), value);
        }
    }
    out
}
