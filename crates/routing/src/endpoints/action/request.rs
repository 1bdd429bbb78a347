//! Templates: JSON with places for values of an event.

use holdfast_ports::endpoint::Outbound;
use serde_json::{Map, Value};

use crate::endpoints::{device_of, routed};

/// Deepest nesting of a template.
const DEPTH_MAX: usize = 32;

/// A JSON value whose texts may name values of an event.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Template(Value);

/// The values of one event.
pub(super) struct Values {
    root: Value,
}

impl Values {
    pub(super) fn of(outbound: &Outbound<'_>) -> Self {
        let event = &outbound.event;
        let routed = routed(outbound);
        let text = |text: &str| Value::String(text.to_owned());
        let properties = routed.properties().into_iter();
        let properties: Map<String, Value> = properties
            .map(|(key, value)| (key.to_owned(), value.map_or(Value::Null, text)))
            .collect();
        let body = if routed.says_json() {
            serde_json::from_slice(event.body).unwrap_or(Value::Null)
        } else {
            std::str::from_utf8(event.body).map_or(Value::Null, text)
        };
        let mut root = Map::new();
        root.insert("deviceId".to_owned(), device_of(event).map_or(Value::Null, text));
        root.insert("moduleId".to_owned(), event.module_id().map_or(Value::Null, text));
        root.insert("source".to_owned(), text(event.source.as_str()));
        root.insert("enqueuedTime".to_owned(), text(&event.enqueued_at.to_string()));
        root.insert("properties".to_owned(), Value::Object(properties));
        root.insert("body".to_owned(), body);
        Values {
            root: Value::Object(root),
        }
    }

    /// The version in the body of a twin change.
    pub(super) fn twin_version(&self) -> Option<u64> {
        self.root["body"]["version"].as_u64()
    }

    fn get(&self, path: &str) -> Value {
        // Names of properties may hold dots.
        if let Some(name) = path.strip_prefix("properties.") {
            return self.root["properties"].get(name).cloned().unwrap_or_default();
        }
        let mut value = &self.root;
        for segment in path.split('.') {
            let next = match value {
                Value::Array(items) => segment.parse().ok().and_then(|at: usize| items.get(at)),
                other => other.get(segment),
            };
            match next {
                Some(next) => value = next,
                None => return Value::Null,
            }
        }
        value.clone()
    }
}

impl Template {
    /// Takes a template.
    ///
    /// # Errors
    /// Which place is not one.
    pub(super) fn parse(value: &Value) -> Result<Self, String> {
        check(value, 0)?;
        Ok(Template(value.clone()))
    }

    /// The value for an event.
    pub(super) fn fill(&self, values: &Values) -> Value {
        filled(&self.0, values)
    }
}

fn check(value: &Value, depth: usize) -> Result<(), String> {
    if depth > DEPTH_MAX {
        return Err(format!("nested deeper than {DEPTH_MAX}"));
    }
    match value {
        Value::String(text) => check_text(text),
        Value::Array(items) => items.iter().try_for_each(|item| check(item, depth + 1)),
        Value::Object(members) => members.values().try_for_each(|member| check(member, depth + 1)),
        _ => Ok(()),
    }
}

fn check_text(text: &str) -> Result<(), String> {
    let mut rest = text;
    while let Some((_, behind)) = rest.split_once("{{") {
        let (path, behind) = behind
            .split_once("}}")
            .ok_or_else(|| format!("{text:?} has {{{{ without }}}}"))?;
        let path = path.trim();
        let first = path.split('.').next().unwrap_or_default();
        let alone = matches!(path, "deviceId" | "moduleId" | "source" | "enqueuedTime" | "body");
        if !alone && (!matches!(first, "body" | "properties") || path.len() <= first.len() + 1) {
            return Err(format!(
                "{{{{{path}}}}} is not known; there are deviceId, moduleId, source, enqueuedTime, body, body.<path> and properties.<name>"
            ));
        }
        rest = behind;
    }
    Ok(())
}

fn filled(template: &Value, values: &Values) -> Value {
    match template {
        Value::String(text) => filled_text(text, values),
        Value::Array(items) => items.iter().map(|item| filled(item, values)).collect(),
        Value::Object(members) => {
            let filled = |(name, member): (&String, &Value)| (name.clone(), filled(member, values));
            Value::Object(members.iter().map(filled).collect())
        }
        other => other.clone(),
    }
}

fn filled_text(text: &str, values: &Values) -> Value {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("{{") {
        let Some((path, behind)) = behind.split_once("}}") else {
            break;
        };
        let value = values.get(path.trim());
        if before.is_empty() && behind.is_empty() && out.is_empty() {
            return value;
        }
        out.push_str(before);
        match value {
            Value::Null => {}
            Value::String(text) => out.push_str(&text),
            other => out.push_str(&other.to_string()),
        }
        rest = behind;
    }
    out.push_str(rest);
    Value::String(out)
}
