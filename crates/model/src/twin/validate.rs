//! Rules for the content of a twin (rest.md 6.4).

use std::fmt::Write as _;

use serde_json::{Map, Number, Value};

use crate::error::{Error, ErrorCode};
use crate::limits;

/// Longest JSON text of a section as a multiple of its size limit.
///
/// The size of rest.md 6.4 counts neither brackets nor control characters, so that alone would let a section of
/// size zero (`[[],[],…]`) fill the disk. Numbers are the worst honest case: up to 25 bytes that count 8.
const TEXT_FACTOR: usize = 4;

/// What a null member of an object means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Nulls {
    /// Removes the member.
    Remove,
    /// Is refused: inside arrays there is nothing to remove.
    Refuse,
}

/// Parses a JSON object out of untrusted bytes. `what` names it in messages.
///
/// serde_json bounds the nesting (at 128) before any recursion of ours; the twin's own limit of ten is checked when
/// the object is applied.
///
/// # Errors
/// `ArgumentInvalid` for anything but a JSON object in UTF-8.
pub fn parse_object(json: &[u8], what: &str) -> Result<Map<String, Value>, Error> {
    match serde_json::from_slice::<Value>(json) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(invalid(format!(
            "{what} must be a JSON object, not {}",
            kind(&other)
        ))),
        Err(error) => Err(invalid(format!("{what} is not valid JSON: {error}"))),
    }
}

/// Checks a change of the section at `path` and returns it without the `$…` members of its root, which round trips
/// of whole twins bring along.
pub(super) fn check(change: &Map<String, Value>, path: &str) -> Result<Map<String, Value>, Error> {
    let change: Map<String, Value> = change
        .iter()
        .filter(|(key, _)| !key.starts_with('$'))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let mut path = Path(path.to_owned());
    check_object(&change, &mut path, 0, Nulls::Remove)?;
    Ok(change)
}

/// Checks the size of a whole section after a change.
pub(super) fn check_size(section: &Map<String, Value>, path: &str, limit: usize) -> Result<(), Error> {
    let size = object_size(section);
    let text = object_text_len(section);
    if size <= limit && text <= limit * TEXT_FACTOR {
        return Ok(());
    }
    Err(invalid(format!(
        "{path} would have {size} bytes ({text} as JSON text); at most {limit} ({} as JSON text) are allowed",
        limit * TEXT_FACTOR
    )))
}

/// Where in the document the check stands, for messages.
struct Path(String);

impl Path {
    /// Runs `check` one step deeper.
    fn within(
        &mut self,
        step: std::fmt::Arguments<'_>,
        check: impl FnOnce(&mut Self) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let length = self.0.len();
        // Writing to a string does not fail.
        let _ = self.0.write_fmt(step);
        let result = check(self);
        self.0.truncate(length);
        result
    }

    fn refuse(&self, why: impl std::fmt::Display) -> Error {
        invalid(format!("{}: {why}", clip(&self.0)))
    }
}

fn check_object(
    object: &Map<String, Value>,
    path: &mut Path,
    depth: usize,
    nulls: Nulls,
) -> Result<(), Error> {
    for (key, value) in object {
        check_key(key, path)?;
        path.within(format_args!(".{key}"), |path| {
            check_value(value, path, depth, nulls)
        })?;
    }
    Ok(())
}

fn check_value(value: &Value, path: &mut Path, depth: usize, nulls: Nulls) -> Result<(), Error> {
    match value {
        Value::Null if nulls == Nulls::Remove => Ok(()),
        Value::Null => Err(path.refuse("null is not allowed inside an array")),
        Value::Bool(_) => Ok(()),
        Value::Number(number) => check_number(number, path),
        Value::String(text) if text.len() <= limits::TWIN_STRING_BYTES_MAX => Ok(()),
        Value::String(text) => Err(path.refuse(format_args!(
            "the string has {} bytes; at most {} are allowed",
            text.len(),
            limits::TWIN_STRING_BYTES_MAX
        ))),
        Value::Object(_) | Value::Array(_) if depth >= limits::TWIN_DEPTH_MAX => Err(path.refuse(
            format_args!("nested deeper than {} levels", limits::TWIN_DEPTH_MAX),
        )),
        Value::Object(inner) => check_object(inner, path, depth + 1, nulls),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                path.within(format_args!("[{index}]"), |path| {
                    check_value(item, path, depth + 1, Nulls::Refuse)
                })?;
            }
            Ok(())
        }
    }
}

fn check_key(key: &str, path: &Path) -> Result<(), Error> {
    if key.is_empty() {
        return Err(path.refuse("a member has an empty name"));
    }
    if key.len() > limits::TWIN_KEY_BYTES_MAX {
        return Err(path.refuse(format_args!(
            "the member name {:?} has {} bytes; at most {} are allowed",
            clip(key),
            key.len(),
            limits::TWIN_KEY_BYTES_MAX
        )));
    }
    match key
        .chars()
        .find(|c| c.is_control() || matches!(c, '.' | '$' | ' '))
    {
        None => Ok(()),
        Some(bad) => Err(path.refuse(format_args!(
            "the member name {:?} has the character {bad:?}; control characters, '.', '$' and space are not allowed",
            clip(key)
        ))),
    }
}

/// Integers have a range of their own; a number with fraction or exponent is a double and may be anything finite.
fn check_number(number: &Number, path: &Path) -> Result<(), Error> {
    let (least, most) = limits::TWIN_INTEGER_RANGE;
    let fits = match (number.as_i64(), number.as_u64()) {
        (Some(integer), _) => (least..=most).contains(&integer),
        (None, Some(_)) => false,
        (None, None) => true,
    };
    if fits {
        Ok(())
    } else {
        Err(path.refuse(format_args!("the integer {number} is outside {least} to {most}")))
    }
}

/// Size as rest.md 6.4 counts it.
fn object_size(object: &Map<String, Value>) -> usize {
    object
        .iter()
        .map(|(key, value)| text_size(key) + value_size(value))
        .sum()
}

fn value_size(value: &Value) -> usize {
    match value {
        Value::Null => 0,
        Value::Bool(_) => 4,
        Value::Number(_) => 8,
        Value::String(text) => text_size(text),
        Value::Array(items) => items.iter().map(value_size).sum(),
        Value::Object(inner) => object_size(inner),
    }
}

fn text_size(text: &str) -> usize {
    text.chars().filter(|c| !c.is_control()).count()
}

/// Length of the JSON text, counted without making it.
fn object_text_len(object: &Map<String, Value>) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // A map of JSON values into a counter: neither side can fail.
    let _ = serde_json::to_writer(&mut count, object);
    count.0
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The start of a text that may be long, for messages.
fn clip(text: &str) -> String {
    const CHARS_MAX: usize = 200;
    match text.char_indices().nth(CHARS_MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

fn invalid(message: String) -> Error {
    Error::new(ErrorCode::ArgumentInvalid, message)
}
