//! Order of rows: one total order over everything that can stand in a document.

use std::cmp::Ordering;

use serde_json::{Value as Json, json};

use super::ast::Order;
use super::evaluate::date;
use super::row::Row;

/// Of longer texts only the first bytes count, so that a continuation token stays small.
const TEXT_BYTES_MAX: usize = 256;

/// A value as it is ordered.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum SortKey {
    Missing,
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    /// An object or an array.
    Other,
}

impl SortKey {
    /// The key of a value.
    #[must_use]
    pub fn of(value: Option<&Json>) -> Self {
        match value {
            None => SortKey::Missing,
            Some(Json::Null) => SortKey::Null,
            Some(Json::Bool(value)) => SortKey::Bool(*value),
            // Adding zero makes one zero of both.
            Some(Json::Number(number)) => number
                .as_f64()
                .map_or(SortKey::Missing, |number| SortKey::Number(number + 0.0)),
            Some(Json::String(text)) => SortKey::Text(cut(text).to_owned()),
            Some(Json::Array(_) | Json::Object(_)) => SortKey::Other,
        }
    }

    fn rank(&self) -> u8 {
        match self {
            SortKey::Missing => 0,
            SortKey::Null => 1,
            SortKey::Bool(_) => 2,
            SortKey::Number(_) => 3,
            SortKey::Text(_) => 4,
            SortKey::Other => 5,
        }
    }

    fn compare(&self, other: &Self) -> Ordering {
        match (self, other) {
            (SortKey::Bool(left), SortKey::Bool(right)) => left.cmp(right),
            (SortKey::Number(left), SortKey::Number(right)) => left.total_cmp(right),
            (SortKey::Text(left), SortKey::Text(right)) => left.cmp(right),
            _ => self.rank().cmp(&other.rank()),
        }
    }

    /// For a continuation token.
    #[must_use]
    pub fn to_json(&self) -> Json {
        match self {
            SortKey::Missing => json!([]),
            SortKey::Null => Json::Null,
            SortKey::Bool(value) => (*value).into(),
            SortKey::Number(number) => (*number).into(),
            SortKey::Text(text) => text.as_str().into(),
            SortKey::Other => json!({}),
        }
    }

    /// The opposite of [`SortKey::to_json`].
    #[must_use]
    pub fn from_json(json: &Json) -> Self {
        match json {
            Json::Array(_) => SortKey::Missing,
            other => SortKey::of(Some(other)),
        }
    }
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The keys of a row under `ORDER BY`.
#[must_use]
pub fn keys(order: &[Order], row: &dyn Row) -> Vec<SortKey> {
    order
        .iter()
        .map(|term| {
            let value = row.get(&term.path);
            match value.as_deref() {
                // As text, a fraction of a second would come before the whole one.
                Some(Json::String(text)) if term.path.is_time() => date(text).map_or_else(
                    || SortKey::Text(text.clone()),
                    |time| SortKey::Number(time.as_micros() as f64),
                ),
                other => SortKey::of(other),
            }
        })
        .collect()
}

/// Compares the keys of two rows as `order` says.
#[must_use]
pub fn compare(order: &[Order], left: &[SortKey], right: &[SortKey]) -> Ordering {
    for (term, (left, right)) in order.iter().zip(left.iter().zip(right)) {
        let ordering = left.compare(right);
        let ordering = if term.descending {
            ordering.reverse()
        } else {
            ordering
        };
        if ordering.is_ne() {
            return ordering;
        }
    }
    Ordering::Equal
}
