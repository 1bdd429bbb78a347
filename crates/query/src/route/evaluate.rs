//! What a condition says about a message (languages.md 2.4, 2.5).
//!
//! Three-valued: what is not there is undefined, and only a condition that is true routes. Where the edge engine and the
//! documentation of the cloud differ (a body path without a value, `IS_NULL`, texts that look like times) this follows the
//! documentation.

use std::borrow::Cow;
use std::cmp::Ordering;

use super::expression::{Expression, Function, Operator};
use super::path::JsonPath;
use super::symbols::Slot;
use crate::value::Value;

/// Values of one message for the references of a [`super::Symbols`].
pub trait Lookup {
    /// The value of an application property.
    fn property(&self, slot: Slot) -> Option<&str>;
    /// The value of a system property.
    fn system(&self, slot: Slot) -> Option<&str>;
    /// The value at a path of the body; undefined when there is none, or the body cannot be asked.
    fn body(&self, slot: Slot) -> Value<'_>;
    /// The value at a path of the sender's twin; undefined when there is none.
    fn twin(&self, slot: Slot) -> Value<'_>;
    /// Whether the twin change that the message tells of contains a path.
    fn change_includes(&self, path: &JsonPath) -> bool;
}

pub(super) fn evaluate<'a>(expression: &'a Expression, message: &'a dyn Lookup) -> Value<'a> {
    match expression {
        Expression::String(value) => Value::String(Cow::Borrowed(value)),
        Expression::Number(value) => Value::Number(*value),
        Expression::Bool(value) => Value::Bool(*value),
        Expression::Null => Value::Null,
        Expression::Undefined => Value::Undefined,
        Expression::Property(slot) => text(message.property(*slot)),
        Expression::Sigil(slot, meant) => match message.property(*slot) {
            Some(value) => text(Some(value)),
            None => evaluate(meant, message),
        },
        Expression::System(slot) => text(message.system(*slot)),
        Expression::Body(slot) => message.body(*slot),
        Expression::Twin(slot) => message.twin(*slot),
        Expression::Not(_) => truth(expression, message).into(),
        Expression::Negate(operand) => match evaluate(operand, message) {
            Value::Number(value) => Value::Number(-value),
            _ => Value::Undefined,
        },
        Expression::Binary(operator, ..) if operator.gives_truth() => truth(expression, message).into(),
        Expression::Binary(operator, left, right) => binary(*operator, left, right, message),
        Expression::Call(function, arguments) => call(*function, arguments, message),
        Expression::ChangeIncludes(path) => Value::Bool(message.change_includes(path)),
    }
}

fn text(value: Option<&str>) -> Value<'_> {
    value.map_or(Value::Undefined, |value| Value::String(Cow::Borrowed(value)))
}

/// A number, or undefined when it is none (`3 % 0`).
fn number<'a>(value: f64) -> Value<'a> {
    if value.is_nan() {
        Value::Undefined
    } else {
        Value::Number(value)
    }
}

/// What an expression says as a condition. Apart from [`evaluate`], because most conditions are comparisons of a
/// property with a text, and these need no value to be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Truth {
    True,
    False,
    Null,
    Undefined,
    /// A value that is none, which only a body or a twin can bring here.
    Other,
}

impl From<Truth> for Value<'_> {
    fn from(truth: Truth) -> Self {
        match truth {
            Truth::True => Value::Bool(true),
            Truth::False => Value::Bool(false),
            Truth::Null => Value::Null,
            Truth::Undefined | Truth::Other => Value::Undefined,
        }
    }
}

impl From<bool> for Truth {
    fn from(value: bool) -> Self {
        if value { Truth::True } else { Truth::False }
    }
}

pub(super) fn truth(expression: &Expression, message: &dyn Lookup) -> Truth {
    match expression {
        Expression::Binary(Operator::And, left, right) => match truth(left, message) {
            left @ (Truth::False | Truth::Null) => left,
            left => and(left, truth(right, message)),
        },
        Expression::Binary(Operator::Or, left, right) => match truth(left, message) {
            Truth::True => Truth::True,
            left => or(left, truth(right, message)),
        },
        Expression::Binary(operator, left, right) if operator.gives_truth() => {
            match compare_sides(left, right, message) {
                Some(order) => operator.holds(order).into(),
                None => Truth::Undefined,
            }
        }
        Expression::Not(operand) => match truth(operand, message) {
            Truth::True => Truth::False,
            Truth::False | Truth::Null => Truth::True,
            Truth::Undefined | Truth::Other => Truth::Undefined,
        },
        _ => match evaluate(expression, message) {
            Value::Bool(value) => value.into(),
            Value::Null => Truth::Null,
            Value::Undefined => Truth::Undefined,
            _ => Truth::Other,
        },
    }
}

fn and(left: Truth, right: Truth) -> Truth {
    match (left, right) {
        (Truth::Other, _) | (_, Truth::Other) => Truth::Undefined,
        (_, Truth::False) => Truth::False,
        (Truth::Undefined, _) | (_, Truth::Undefined) => Truth::Undefined,
        (_, Truth::Null) => Truth::Null,
        _ => Truth::True,
    }
}

fn or(left: Truth, right: Truth) -> Truth {
    match (left, right) {
        (Truth::Other, _) | (_, Truth::Other) => Truth::Undefined,
        (_, Truth::True) => Truth::True,
        (Truth::Undefined, _) | (_, Truth::Undefined) => Truth::Undefined,
        (Truth::Null, _) | (_, Truth::Null) => Truth::Null,
        _ => Truth::False,
    }
}

fn compare_sides(left: &Expression, right: &Expression, message: &dyn Lookup) -> Option<Ordering> {
    if let (Some(left), Expression::String(right)) = (property(left), right) {
        return message.property(left).map(|value| value.cmp(right));
    }
    compare(&evaluate(left, message), &evaluate(right, message))
}

fn property(expression: &Expression) -> Option<Slot> {
    match expression {
        Expression::Property(slot) => Some(*slot),
        _ => None,
    }
}

fn binary<'a>(
    operator: Operator,
    left: &'a Expression,
    right: &'a Expression,
    message: &'a dyn Lookup,
) -> Value<'a> {
    let left = evaluate(left, message);
    match operator {
        Operator::Coalesce if left != Value::Undefined => return left,
        Operator::Coalesce => return evaluate(right, message),
        _ => {}
    }
    match (operator, left, evaluate(right, message)) {
        (Operator::Concatenate, Value::String(left), Value::String(right)) => {
            Value::String(Cow::Owned(format!("{left}{right}")))
        }
        (Operator::Concatenate, ..) => Value::Undefined,
        (_, Value::Number(left), Value::Number(right)) => arithmetic(operator, left, right),
        _ => Value::Undefined,
    }
}

fn arithmetic<'a>(operator: Operator, left: f64, right: f64) -> Value<'a> {
    number(match operator {
        Operator::Add => left + right,
        Operator::Subtract => left - right,
        Operator::Multiply => left * right,
        Operator::Divide => left / right,
        _ => left % right,
    })
}

/// Order of two primitives; those of different types are ordered by type (Boolean, number, string, null), never
/// converted. `None` when one is undefined, an object or an array.
fn compare(left: &Value<'_>, right: &Value<'_>) -> Option<Ordering> {
    let rank = |value: &Value<'_>| match value {
        Value::Bool(_) => Some(0),
        Value::Number(_) => Some(1),
        Value::String(_) => Some(2),
        Value::Null => Some(3),
        Value::Undefined | Value::Object | Value::Array => None,
    };
    let ranks = (rank(left)?, rank(right)?);
    match (left, right) {
        (Value::Bool(left), Value::Bool(right)) => Some(left.cmp(right)),
        (Value::Number(left), Value::Number(right)) => left.partial_cmp(right),
        (Value::String(left), Value::String(right)) => Some(left.cmp(right)),
        _ => Some(ranks.0.cmp(&ranks.1)),
    }
}

fn call<'a>(function: Function, arguments: &'a [Expression], message: &'a dyn Lookup) -> Value<'a> {
    let first = arguments
        .first()
        .map_or(Value::Undefined, |first| evaluate(first, message));
    match function {
        Function::IsBool
        | Function::IsNumber
        | Function::IsString
        | Function::IsNull
        | Function::IsDefined
        | Function::IsArray
        | Function::IsObject
        | Function::IsPrimitive => kind(function, &first, arguments),
        Function::Concat => concat(first, &arguments[1..], message),
        Function::Length | Function::Lower | Function::Upper => {
            let Value::String(value) = first else {
                return Value::Undefined;
            };
            match function {
                // Units of UTF-16, as the original counts.
                #[allow(clippy::cast_precision_loss)]
                Function::Length => Value::Number(value.encode_utf16().count() as f64),
                Function::Lower => Value::String(Cow::Owned(value.to_lowercase())),
                _ => Value::String(Cow::Owned(value.to_uppercase())),
            }
        }
        Function::Substring => substring(&first, &arguments[1..], message),
        Function::IndexOf | Function::StartsWith | Function::EndsWith | Function::Contains => {
            match (first, evaluate(&arguments[1], message)) {
                (Value::String(value), Value::String(wanted)) => search(function, &value, &wanted),
                _ => Value::Undefined,
            }
        }
        Function::AsNumber => match first {
            Value::Number(_) => first,
            Value::String(value) => value.trim().parse().map_or(Value::Undefined, number),
            _ => Value::Undefined,
        },
        _ => match first {
            Value::Number(value) => mathematics(function, value, &arguments[1..], message),
            _ => Value::Undefined,
        },
    }
}

fn mathematics<'a>(
    function: Function,
    value: f64,
    more: &'a [Expression],
    message: &'a dyn Lookup,
) -> Value<'a> {
    number(match function {
        Function::Abs => value.abs(),
        Function::Exp => value.exp(),
        Function::Square => value * value,
        Function::Sqrt => value.sqrt(),
        Function::Ceiling => value.ceil(),
        Function::Floor => value.floor(),
        Function::Sign if value == 0.0 => 0.0,
        Function::Sign => value.signum(),
        _ => match more.first().map(|more| evaluate(more, message)) {
            Some(Value::Number(exponent)) => value.powf(exponent),
            _ => return Value::Undefined,
        },
    })
}

fn kind<'a>(function: Function, value: &Value<'_>, arguments: &[Expression]) -> Value<'a> {
    let asked = match arguments.first() {
        Some(Expression::Sigil(_, meant)) => Some(&**meant),
        other => other,
    };
    let dynamic = matches!(asked, Some(Expression::Body(_) | Expression::Twin(_)));
    if *value == Value::Undefined && dynamic && !matches!(function, Function::IsDefined) {
        return Value::Undefined;
    }
    Value::Bool(match function {
        Function::IsBool => matches!(value, Value::Bool(_)),
        Function::IsNumber => matches!(value, Value::Number(_)),
        Function::IsString => matches!(value, Value::String(_)),
        Function::IsNull => matches!(value, Value::Null),
        Function::IsArray => matches!(value, Value::Array),
        Function::IsObject => matches!(value, Value::Object),
        Function::IsPrimitive => !matches!(value, Value::Undefined | Value::Object | Value::Array),
        _ => *value != Value::Undefined,
    })
}

/// Joins texts; null counts as empty, anything else that is no text makes the whole undefined.
fn concat<'a>(first: Value<'a>, others: &'a [Expression], message: &'a dyn Lookup) -> Value<'a> {
    let mut joined = String::new();
    let others = others.iter().map(|other| evaluate(other, message));
    for value in std::iter::once(first).chain(others) {
        match value {
            Value::String(value) => joined.push_str(&value),
            Value::Null => {}
            _ => return Value::Undefined,
        }
    }
    Value::String(Cow::Owned(joined))
}

/// Part of a text, counted in units of UTF-16 as the original does; undefined when it is not wholly inside.
fn substring<'a>(value: &Value<'_>, range: &'a [Expression], message: &'a dyn Lookup) -> Value<'a> {
    let Value::String(value) = value else {
        return Value::Undefined;
    };
    let count = |expression: &'a Expression| match evaluate(expression, message) {
        // Fractions are cut off; what is negative or beyond every text is out of range.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Value::Number(number) if (0.0..9e15).contains(&number) => Some(number as usize),
        _ => None,
    };
    let units: Vec<u16> = value.encode_utf16().collect();
    let Some(start) = count(&range[0]).filter(|start| *start <= units.len()) else {
        return Value::Undefined;
    };
    let end = match range.get(1) {
        None => Some(units.len()),
        Some(length) => count(length).map(|length| start + length),
    };
    match end.and_then(|end| units.get(start..end)) {
        Some(part) => Value::String(Cow::Owned(String::from_utf16_lossy(part))),
        None => Value::Undefined,
    }
}

fn search<'a>(function: Function, value: &str, wanted: &str) -> Value<'a> {
    match function {
        #[allow(clippy::cast_precision_loss)]
        Function::IndexOf => Value::Number(
            value
                .find(wanted)
                .map_or(-1.0, |at| value[..at].encode_utf16().count() as f64),
        ),
        Function::StartsWith => Value::Bool(value.starts_with(wanted)),
        Function::EndsWith => Value::Bool(value.ends_with(wanted)),
        _ => Value::Bool(value.contains(wanted)),
    }
}
