//! Expressions over a row, in memory: the definition of what is right.

use std::borrow::Cow;
use std::cmp::Ordering;

use holdfast_model::Timestamp;
use serde_json::Value as Json;

use super::ast::{CompareOp, Expr, Literal, Path, TextTest, TypeTest};
use super::row::Row;
use crate::value::Value;

/// Whether a filter keeps a row: only if it is true.
#[must_use]
pub fn matches(filter: &Expr, row: &dyn Row) -> bool {
    truth(filter, row) == Some(true)
}

/// True, false, or `None` for undefined and for anything that is no boolean.
#[must_use]
pub fn truth(expr: &Expr, row: &dyn Row) -> Option<bool> {
    match expr {
        Expr::Not(inner) => truth(inner, row).map(|value| !value),
        Expr::And(terms) => all(terms, row, true),
        // `a OR b` is `NOT (NOT a AND NOT b)`.
        Expr::Or(terms) => all(terms, row, false),
        Expr::Compare { op, left, right } => compare_operands(*op, left, right, row),
        Expr::In { value, list, negated } => contains(value, list, row).map(|found| found != *negated),
        Expr::IsDefined(path) => Some(row.get(path).is_some()),
        Expr::IsType(test, inner) => Some(is_type(*test, &value(inner, row))),
        Expr::Text { test, text, part } => text_test(*test, &value(text, row), &value(part, row)),
        Expr::ArrayContains { array, value } => array_contains(array, value, row),
        Expr::Literal(_) | Expr::Path(_) | Expr::Arithmetic { .. } | Expr::Negate(_) => {
            match value(expr, row) {
                Value::Bool(value) => Some(value),
                _ => None,
            }
        }
    }
}

/// Whether every term is `wanted`: `wanted`, or its opposite as soon as one is, or undefined.
fn all(terms: &[Expr], row: &dyn Row, wanted: bool) -> Option<bool> {
    let mut result = Some(wanted);
    for term in terms {
        match truth(term, row) {
            Some(value) if value == wanted => {}
            Some(opposite) => return Some(opposite),
            None => result = None,
        }
    }
    result
}

/// The value of an expression.
fn value<'r>(expr: &'r Expr, row: &'r dyn Row) -> Value<'r> {
    match expr {
        Expr::Literal(literal) => literal.value(),
        Expr::Path(path) => row.get(path).map_or(Value::Undefined, into_value),
        Expr::Arithmetic { op, left, right } => match (value(left, row), value(right, row)) {
            (Value::Number(left), Value::Number(right)) => {
                op.apply(left, right).map_or(Value::Undefined, Value::Number)
            }
            _ => Value::Undefined,
        },
        Expr::Negate(inner) => match value(inner, row) {
            Value::Number(number) => Value::Number(-number),
            _ => Value::Undefined,
        },
        _ => truth(expr, row).map_or(Value::Undefined, Value::Bool),
    }
}

fn into_value(json: Cow<'_, Json>) -> Value<'_> {
    match json {
        Cow::Borrowed(json) => Value::from(json),
        Cow::Owned(Json::String(text)) => Value::String(Cow::Owned(text)),
        Cow::Owned(Json::Null) => Value::Null,
        Cow::Owned(Json::Bool(value)) => Value::Bool(value),
        Cow::Owned(Json::Number(number)) => number.as_f64().map_or(Value::Undefined, Value::Number),
        Cow::Owned(Json::Array(_)) => Value::Array,
        Cow::Owned(Json::Object(_)) => Value::Object,
    }
}

impl Literal {
    /// The constant as a value.
    #[must_use]
    pub fn value(&self) -> Value<'_> {
        match self {
            Literal::Undefined => Value::Undefined,
            Literal::Null => Value::Null,
            Literal::Bool(value) => Value::Bool(*value),
            Literal::Number(number) => Value::Number(*number),
            Literal::String(text) => Value::String(Cow::Borrowed(text)),
        }
    }
}

fn compare_operands(op: CompareOp, left: &Expr, right: &Expr, row: &dyn Row) -> Option<bool> {
    let by_time = is_time(left) || is_time(right);
    let (left, right) = (value(left, row), value(right, row));
    if by_time
        && let (Value::String(left), Value::String(right)) = (&left, &right)
        && let (Some(left), Some(right)) = (date(left), date(right))
    {
        return Some(op.holds(left.cmp(&right)));
    }
    compare(op, &left, &right)
}

fn is_time(expr: &Expr) -> bool {
    matches!(expr, Expr::Path(path) if path.is_time())
}

/// Two values under a comparison operator.
#[must_use]
pub fn compare(op: CompareOp, left: &Value<'_>, right: &Value<'_>) -> Option<bool> {
    let equality = matches!(op, CompareOp::Equal | CompareOp::NotEqual);
    let ordering = match (left, right) {
        (Value::String(left), Value::String(right)) => left.as_bytes().cmp(right.as_bytes()),
        (Value::Number(left), Value::Number(right)) => left.partial_cmp(right)?,
        (Value::Bool(left), Value::Bool(right)) if equality => left.cmp(right),
        (Value::Null, Value::Null) if equality => Ordering::Equal,
        (Value::Null, Value::Bool(_) | Value::Number(_) | Value::String(_))
        | (Value::Bool(_) | Value::Number(_) | Value::String(_), Value::Null)
            if equality =>
        {
            Ordering::Less
        }
        _ => return None,
    };
    Some(op.holds(ordering))
}

/// Whether `list` has the value. Undefined for a missing place, an object or an array; values of other types than its
/// own are simply not equal.
fn contains(expr: &Expr, list: &[Literal], row: &dyn Row) -> Option<bool> {
    let found = value(expr, row);
    if matches!(found, Value::Undefined | Value::Object | Value::Array) {
        return None;
    }
    let by_time = is_time(expr);
    Some(list.iter().any(|literal| {
        let other = literal.value();
        if by_time
            && let (Value::String(left), Value::String(right)) = (&found, &other)
            && let (Some(left), Some(right)) = (date(left), date(right))
        {
            return left == right;
        }
        compare(CompareOp::Equal, &found, &other) == Some(true)
    }))
}

fn is_type(test: TypeTest, value: &Value<'_>) -> bool {
    match test {
        TypeTest::Null => matches!(value, Value::Null),
        TypeTest::Bool => matches!(value, Value::Bool(_)),
        TypeTest::Number => matches!(value, Value::Number(_)),
        TypeTest::String => matches!(value, Value::String(_)),
        TypeTest::Object => matches!(value, Value::Object),
        TypeTest::Array => matches!(value, Value::Array),
        TypeTest::Primitive => {
            matches!(
                value,
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)
            )
        }
    }
}

fn text_test(test: TextTest, text: &Value<'_>, part: &Value<'_>) -> Option<bool> {
    let (Value::String(text), Value::String(part)) = (text, part) else {
        return None;
    };
    Some(match test {
        TextTest::StartsWith => text.starts_with(&**part),
        TextTest::EndsWith => text.ends_with(&**part),
        TextTest::Contains => text.contains(&**part),
    })
}

/// Undefined unless there is an array and the value is a primitive.
fn array_contains(array: &Path, wanted: &Expr, row: &dyn Row) -> Option<bool> {
    let array = row.get(array)?;
    let wanted = value(wanted, row);
    if matches!(wanted, Value::Undefined | Value::Object | Value::Array) {
        return None;
    }
    let elements = array.as_array()?;
    Some(
        elements
            .iter()
            .any(|element| compare(CompareOp::Equal, &Value::from(element), &wanted) == Some(true)),
    )
}

/// The time that a text means: a date, or a date with a time of day, UTC unless it says otherwise.
#[must_use]
pub fn date(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    if text.len() == 10 {
        return Timestamp::parse(&format!("{text}T00:00:00Z"));
    }
    Timestamp::parse(text)
}
