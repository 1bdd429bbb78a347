//! JSON Patch (RFC 6902) on a digital twin, as a change of desired properties (languages.md 7.5).
//!
//! `add`, `replace` and `remove` of a property (`/target`), a component (`/thermostat1`) or a property of a component
//! (`/thermostat1/targetTemperature`); nothing below a property, and nothing of `$metadata`.

use serde_json::{Map, Value};

use crate::fault::clip;
use crate::view::is_component;

/// Most operations of one patch.
pub const OPERATIONS_MAX: usize = 500;

/// Why a patch is refused: which operation, counted from 0, and what is wrong with it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("operation {index} of the patch: {why}")]
pub struct BadPatch {
    /// Place of the operation.
    pub index: usize,
    /// What is wrong; no trailing period.
    pub why: String,
}

/// The merge patch of the desired properties that does what a JSON Patch asks for, given what is there: `null` removes.
///
/// # Errors
/// [`BadPatch`] for the first operation that cannot be done.
pub fn desired_change(
    patch: &Value,
    desired: &Map<String, Value>,
    reported: &Map<String, Value>,
) -> Result<Map<String, Value>, BadPatch> {
    let bad = |index, why: String| BadPatch { index, why };
    let Value::Array(operations) = patch else {
        return Err(bad(0, "the patch must be a list of operations".into()));
    };
    if operations.len() > OPERATIONS_MAX {
        return Err(bad(
            OPERATIONS_MAX,
            format!("a patch can have {OPERATIONS_MAX} operations at most"),
        ));
    }
    let mut work = Work {
        now: desired.clone(),
        reported,
    };
    for (index, operation) in operations.iter().enumerate() {
        work.apply(operation).map_err(|why| bad(index, why))?;
    }
    Ok(difference(desired, &work.now))
}

struct Work<'a> {
    /// Desired properties after the operations so far.
    now: Map<String, Value>,
    reported: &'a Map<String, Value>,
}

impl Work<'_> {
    fn apply(&mut self, operation: &Value) -> Result<(), String> {
        let text = |name: &str| operation.get(name).and_then(Value::as_str);
        let op = text("op").ok_or("it has no \"op\"")?;
        let path = text("path").ok_or("it has no \"path\"")?;
        let segments = segments(path)?;
        let value = match op {
            "add" | "replace" => Some(operation.get("value").ok_or("it has no \"value\"")?),
            "remove" => None,
            other => {
                return Err(format!(
                    "{:?} is not supported; add, replace and remove are",
                    clip(other)
                ));
            }
        };
        match (segments.as_slice(), value) {
            ([name], Some(Value::Null)) => Err(format!("null is no value of {name:?}; use remove")),
            ([name], Some(value)) => self.set(name, value),
            ([name], None) => self.remove(name),
            ([component, name], value) => self.change_component(component, name, value),
            _ => Err(format!(
                "{:?} leads below a property; a property is changed whole",
                clip(path)
            )),
        }
    }

    fn set(&mut self, name: &str, value: &Value) -> Result<(), String> {
        let value = match value {
            Value::Object(members) if self.is_component(name) || members.contains_key("$metadata") => {
                component(members)
            }
            value => value.clone(),
        };
        self.now.insert(name.to_owned(), value);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<(), String> {
        let gone = self.now.remove(name);
        gone.map(drop)
            .ok_or_else(|| format!("there is no desired value of {name:?} to remove"))
    }

    fn change_component(&mut self, component: &str, name: &str, value: Option<&Value>) -> Result<(), String> {
        if !self.now.contains_key(component) && value.is_some() {
            if self.reported.contains_key(component) && !self.is_component(component) {
                return Err(format!("{component:?} is a property and no component"));
            }
            let mut empty = Map::new();
            empty.insert("__t".into(), "c".into());
            self.now.insert(component.to_owned(), Value::Object(empty));
        }
        let members = match self.now.get_mut(component) {
            Some(found) if is_component(found) => found.as_object_mut(),
            Some(_) => return Err(format!("{component:?} is a property and no component")),
            None => None,
        };
        let absent = || format!("there is no desired value of \"{component}/{name}\" to remove");
        match (members, value) {
            (Some(_), Some(Value::Null)) => Err(format!("null is no value of {name:?}; use remove")),
            (Some(members), Some(value)) => {
                members.insert(name.to_owned(), value.clone());
                Ok(())
            }
            (Some(members), None) => members.remove(name).map(drop).ok_or_else(absent),
            (None, _) => Err(absent()),
        }
    }

    fn is_component(&self, name: &str) -> bool {
        [self.now.get(name), self.reported.get(name)]
            .into_iter()
            .flatten()
            .any(is_component)
    }
}

/// A component as a twin holds it: with its mark and without metadata.
fn component(members: &Map<String, Value>) -> Value {
    let mut inner: Map<String, Value> = members
        .iter()
        .filter(|(name, _)| !name.starts_with('$'))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    inner.insert("__t".into(), "c".into());
    Value::Object(inner)
}

/// The steps of a JSON pointer.
fn segments(path: &str) -> Result<Vec<String>, String> {
    let bad = |why: &str| Err(format!("the path {:?} {why}", clip(path)));
    let Some(rest) = path.strip_prefix('/') else {
        return bad("must begin with a slash");
    };
    let mut segments = Vec::new();
    for segment in rest.split('/').take(4) {
        let segment = segment.replace("~1", "/").replace("~0", "~");
        if segment.is_empty() {
            return bad("has an empty step");
        }
        if segment.starts_with('$') || segment == "__t" {
            return bad("leads into what the hub keeps itself");
        }
        segments.push(segment);
    }
    Ok(segments)
}

/// The merge patch from one object to another.
fn difference(before: &Map<String, Value>, after: &Map<String, Value>) -> Map<String, Value> {
    let mut patch = Map::new();
    for (name, value) in after {
        match (before.get(name), value) {
            (Some(old), new) if old == new => {}
            (Some(Value::Object(old)), Value::Object(new)) => {
                patch.insert(name.clone(), Value::Object(difference(old, new)));
            }
            (_, new) => {
                patch.insert(name.clone(), new.clone());
            }
        }
    }
    for name in before.keys().filter(|name| !after.contains_key(*name)) {
        patch.insert(name.clone(), Value::Null);
    }
    patch
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: &Value) -> Map<String, Value> {
        value.as_object().cloned().expect("an object")
    }

    fn change(patch: Value) -> Result<Value, String> {
        let desired = object(&json!({
            "target": 20,
            "config": {"a": 1, "b": 2},
            "t1": {"__t": "c", "limit": 5, "mode": "x"},
        }));
        let reported = object(&json!({"t2": {"__t": "c", "temp": 1}, "serial": 1}));
        let change = desired_change(&patch, &desired, &reported);
        change.map(Value::Object).map_err(|error| error.to_string())
    }

    #[test]
    fn operations_become_desired_properties() {
        for (patch, expected) in [
            (
                json!([{"op": "add", "path": "/new", "value": 1}]),
                json!({"new": 1}),
            ),
            (
                json!([{"op": "replace", "path": "/target", "value": 21}]),
                json!({"target": 21}),
            ),
            (
                json!([{"op": "replace", "path": "/target", "value": 20}]),
                json!({}),
            ),
            (
                json!([{"op": "remove", "path": "/target"}]),
                json!({"target": null}),
            ),
            // The whole value takes the place of the old one.
            (
                json!([{"op": "replace", "path": "/config", "value": {"a": 3}}]),
                json!({"config": {"a": 3, "b": null}}),
            ),
            (
                json!([{"op": "add", "path": "/t1/limit", "value": 6}, {"op": "remove", "path": "/t1/mode"}]),
                json!({"t1": {"limit": 6, "mode": null}}),
            ),
            (
                json!([{"op": "add", "path": "/t2/limit", "value": 6}]),
                json!({"t2": {"__t": "c", "limit": 6}}),
            ),
            (
                json!([{"op": "replace", "path": "/t1", "value": {"limit": 7, "$metadata": {}}}]),
                json!({"t1": {"limit": 7, "mode": null}}),
            ),
            (
                json!([{"op": "add", "path": "/t3", "value": {"$metadata": {}, "x": 1}}]),
                json!({"t3": {"__t": "c", "x": 1}}),
            ),
            (
                json!([{"op": "add", "path": "/a~1b~0c", "value": 1}]),
                json!({"a/b~c": 1}),
            ),
            (json!([]), json!({})),
        ] {
            assert_eq!(change(patch.clone()).unwrap(), expected, "{patch}");
        }
    }

    #[test]
    fn wrong_operations_are_named() {
        for (patch, why) in [
            (json!({"op": "add"}), "list"),
            (json!([1]), "no \"op\""),
            (json!([{"op": "add"}]), "no \"path\""),
            (json!([{"op": "add", "path": "/x"}]), "no \"value\""),
            (
                json!([{"op": "move", "path": "/x", "from": "/y"}]),
                "not supported",
            ),
            (json!([{"op": "test", "path": "/x", "value": 1}]), "not supported"),
            (json!([{"op": "add", "path": "x", "value": 1}]), "slash"),
            (json!([{"op": "add", "path": "", "value": 1}]), "slash"),
            (json!([{"op": "add", "path": "/", "value": 1}]), "empty"),
            (
                json!([{"op": "add", "path": "/$metadata/x", "value": 1}]),
                "keeps itself",
            ),
            (
                json!([{"op": "add", "path": "/t1/__t", "value": 1}]),
                "keeps itself",
            ),
            (
                json!([{"op": "add", "path": "/a/b/c", "value": 1}]),
                "below a property",
            ),
            (
                json!([{"op": "add", "path": "/target/x", "value": 1}]),
                "no component",
            ),
            (
                json!([{"op": "add", "path": "/serial/x", "value": 1}]),
                "no component",
            ),
            (json!([{"op": "add", "path": "/x", "value": null}]), "remove"),
            (json!([{"op": "remove", "path": "/nothing"}]), "no desired value"),
            (json!([{"op": "remove", "path": "/t2/temp"}]), "no desired value"),
        ] {
            let error = change(patch.clone()).unwrap_err();
            assert!(error.contains(why), "{patch}: {error}");
        }
        let second = json!([{"op": "remove", "path": "/target"}, {"op": "remove", "path": "/target"}]);
        assert!(change(second).unwrap_err().starts_with("operation 1 "));
        let many = json!(vec![
            json!({"op": "add", "path": "/x", "value": 1});
            OPERATIONS_MAX + 1
        ]);
        assert!(change(many).is_err());
    }
}
