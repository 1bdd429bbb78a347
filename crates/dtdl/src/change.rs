//! What changed between two views of a digital twin, as JSON Patch (languages.md 7.5).

use serde_json::{Map, Value, json};

/// The members of one level of a view, and which of them are levels of their own. A value of a property is none: it
/// changes as a whole.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Component,
    /// `$metadata` of either.
    Metadata,
    /// What `$metadata` says of one property.
    About,
}

/// The operations that make `after` of `before`, both made by [`crate::view::digital_twin`]; none when they are equal.
#[must_use]
pub fn difference(before: &Value, after: &Value) -> Vec<Value> {
    let mut operations = Vec::new();
    if let (Some(before), Some(after)) = (before.as_object(), after.as_object()) {
        walk("", Level::Root, before, after, &mut operations);
    }
    operations
}

fn walk(
    path: &str,
    level: Level,
    before: &Map<String, Value>,
    after: &Map<String, Value>,
    operations: &mut Vec<Value>,
) {
    // Metadata first, as the contract shows it.
    let metadata = |name: &&String| name.as_str() != "$metadata";
    let mut names: Vec<&String> = after.keys().collect();
    names.sort_by_key(metadata);
    for name in names {
        let place = format!("{path}/{}", escaped(name));
        let new = &after[name];
        let Some(old) = before.get(name) else {
            operations.push(json!({"op": "add", "path": place, "value": new}));
            continue;
        };
        if old == new {
            continue;
        }
        match (inner(level, name, old, new), old, new) {
            (Some(level), Value::Object(old), Value::Object(new)) => {
                walk(&place, level, old, new, operations);
            }
            _ => operations.push(json!({"op": "replace", "path": place, "value": new})),
        }
    }
    for name in before.keys().filter(|name| !after.contains_key(*name)) {
        operations.push(json!({"op": "remove", "path": format!("{path}/{}", escaped(name))}));
    }
}

/// The level that a member is, if it is one on both sides.
fn inner(level: Level, name: &str, old: &Value, new: &Value) -> Option<Level> {
    let is_component = |value: &Value| value.get("$metadata").is_some_and(Value::is_object);
    match level {
        Level::Root | Level::Component if name == "$metadata" => Some(Level::Metadata),
        Level::Root if is_component(old) && is_component(new) => Some(Level::Component),
        Level::Metadata => Some(Level::About),
        Level::Root | Level::Component | Level::About => None,
    }
}

/// A member name in a JSON Pointer (RFC 6901).
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(metadata: Value, values: Value) -> Value {
        let mut component = values;
        component["$metadata"] = metadata;
        component
    }

    #[test]
    fn the_changes_of_the_documentation() {
        let empty = json!({"$dtId": "d", "$metadata": {"$model": "dtmi:a;1"}, "thermostat1": component(json!({}), json!({}))});
        let mut asked = empty.clone();
        asked["thermostat1"]["$metadata"]["targetTemperature"] =
            json!({"desiredValue": 21.8, "desiredVersion": 4});
        assert_eq!(
            difference(&empty, &asked),
            [
                json!({"op": "add", "path": "/thermostat1/$metadata/targetTemperature", "value": {"desiredValue": 21.8, "desiredVersion": 4}})
            ]
        );
        let mut answered = asked.clone();
        answered["thermostat1"] = component(
            json!({"targetTemperature": {"desiredValue": 21.8, "desiredVersion": 4, "ackCode": 200, "ackDescription": "ok",
                "ackVersion": 4, "lastUpdateTime": "t1"}}),
            json!({"targetTemperature": 21.8}),
        );
        assert_eq!(
            difference(&asked, &answered),
            [
                json!({"op": "add", "path": "/thermostat1/$metadata/targetTemperature/ackCode", "value": 200}),
                json!({"op": "add", "path": "/thermostat1/$metadata/targetTemperature/ackDescription", "value": "ok"}),
                json!({"op": "add", "path": "/thermostat1/$metadata/targetTemperature/ackVersion", "value": 4}),
                json!({"op": "add", "path": "/thermostat1/$metadata/targetTemperature/lastUpdateTime", "value": "t1"}),
                json!({"op": "add", "path": "/thermostat1/targetTemperature", "value": 21.8}),
            ]
        );
    }

    #[test]
    fn first_reports_are_added_and_later_ones_replaced() {
        let start = json!({"$dtId": "d", "$metadata": {"$model": ""}});
        let mut first = start.clone();
        first["$metadata"]["serial"] = json!({"lastUpdateTime": "t1"});
        first["serial"] = json!({"a": 1});
        first["c1"] = component(json!({"x": {"lastUpdateTime": "t1"}}), json!({"x": 1}));
        assert_eq!(
            difference(&start, &first),
            [
                json!({"op": "add", "path": "/$metadata/serial", "value": {"lastUpdateTime": "t1"}}),
                json!({"op": "add", "path": "/c1", "value": {"$metadata": {"x": {"lastUpdateTime": "t1"}}, "x": 1}}),
                json!({"op": "add", "path": "/serial", "value": {"a": 1}}),
            ]
        );
        let mut second = first.clone();
        second["$metadata"]["serial"] = json!({"lastUpdateTime": "t2"});
        second["serial"] = json!({"a": 2});
        assert_eq!(
            difference(&first, &second),
            [
                json!({"op": "replace", "path": "/$metadata/serial/lastUpdateTime", "value": "t2"}),
                json!({"op": "replace", "path": "/serial", "value": {"a": 2}}),
            ]
        );
        assert_eq!(
            difference(&first, &start),
            [
                json!({"op": "remove", "path": "/$metadata/serial"}),
                json!({"op": "remove", "path": "/c1"}),
                json!({"op": "remove", "path": "/serial"}),
            ]
        );
        assert!(difference(&first, &first).is_empty());
    }

    #[test]
    fn names_are_escaped() {
        let before = json!({"$metadata": {}});
        let after = json!({"$metadata": {}, "a/b~c": 1});
        assert_eq!(
            difference(&before, &after),
            [json!({"op": "add", "path": "/a~1b~0c", "value": 1})]
        );
    }
}
