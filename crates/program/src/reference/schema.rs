//! JSON schemas as `schemars` makes them, read for people.

use serde_json::Value;

/// The notation in which a reader will write a value: it decides how an object is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notation {
    /// A configuration file.
    Toml,
    /// The body of a request.
    Json,
}

/// The members of an object; none of anything else.
pub fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// What a `$ref` in `value` points to; `value` itself without one.
#[must_use]
pub fn resolve<'a>(schema: &'a Value, value: &'a Value) -> &'a Value {
    let target = value["$ref"]
        .as_str()
        .and_then(|path| schema.pointer(path.strip_prefix('#')?));
    target.unwrap_or(value)
}

/// What a value of this property looks like, in words; empty when nothing is known.
#[must_use]
pub fn kind(schema: &Value, property: &Value, notation: Notation) -> String {
    if let Some(options) = property["anyOf"].as_array() {
        let kinds = options.iter().filter(|option| option["type"] != "null");
        return one_of(kinds.map(|option| kind(schema, option, notation)));
    }
    if let Some(path) = property["$ref"].as_str() {
        let target = resolve(schema, property);
        if let Some(options) = target["oneOf"].as_array() {
            let values = options.iter().filter_map(|option| option["const"].as_str());
            return one_of(values.map(|value| format!("`\"{value}\"`")));
        }
        return path.rsplit('/').next().unwrap_or_default().to_owned();
    }
    let name = |value: &Value| match (value.as_str(), property["format"].as_str()) {
        (Some("string"), Some("ip")) => "IP address",
        (Some("string"), _) => "text",
        (Some("integer"), _) => "number",
        (Some("boolean"), _) => "`true` or `false`",
        (Some("array"), _) => "list",
        (Some("object"), _) if notation == Notation::Toml => "table",
        (Some("object"), _) => "object",
        _ => "",
    };
    match &property["type"] {
        Value::Array(kinds) => {
            let kinds = kinds.iter().map(name).filter(|kind| !kind.is_empty());
            one_of(kinds.map(str::to_owned))
        }
        one if *one == "array" => format!("list of {}", kind(schema, &property["items"], notation)),
        one => name(one).to_owned(),
    }
}

fn one_of(kinds: impl Iterator<Item = String>) -> String {
    kinds.collect::<Vec<_>>().join(" or ")
}

/// A description without its line breaks.
#[must_use]
pub fn one_line(text: Option<&str>) -> String {
    text.unwrap_or_default()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}
