//! Values as conditions see them.

use std::borrow::Cow;

/// A value of either language. Objects and arrays have no value of their own here: conditions compare primitives only.
#[derive(Clone, PartialEq, Debug)]
pub enum Value<'a> {
    /// There is no such thing.
    Undefined,
    /// JSON null.
    Null,
    /// True or false.
    Bool(bool),
    /// IEEE double.
    Number(f64),
    /// Text, compared bytewise.
    String(Cow<'a, str>),
    /// An object.
    Object,
    /// An array.
    Array,
}

impl<'a> From<&'a serde_json::Value> for Value<'a> {
    fn from(json: &'a serde_json::Value) -> Self {
        match json {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(value) => Value::Bool(*value),
            serde_json::Value::Number(number) => number.as_f64().map_or(Value::Undefined, Value::Number),
            serde_json::Value::String(text) => Value::String(Cow::Borrowed(text)),
            serde_json::Value::Array(_) => Value::Array,
            serde_json::Value::Object(_) => Value::Object,
        }
    }
}
