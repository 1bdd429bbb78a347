//! Desired properties of `$edgeHub` (edge.md 6.1): read as far as they are right, with a list of what is not.

use std::time::Duration;

use serde_json::{Map, Value};

/// Priority of a route without one: below all others.
pub(crate) const PRIORITY_DEFAULT: u32 = 2_000_000_000;
const PRIORITY_MAX: u64 = 9;

/// What an edge hub is told to do.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Definition {
    /// Routes, by name.
    pub routes: Vec<RouteDefinition>,
    /// How long messages live whose route does not say; `None` for ever.
    pub time_to_live: Option<Duration>,
    /// Most bytes of the queues, if the manifest says.
    pub bytes_max: Option<u64>,
}

/// A route as it is written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouteDefinition {
    /// Its name.
    pub name: String,
    /// Its text.
    pub text: String,
    /// 0 is served first.
    pub priority: u32,
    /// How long its messages live; `None` for the common time.
    pub time_to_live: Option<Duration>,
}

impl Definition {
    /// Reads desired properties. What is wrong with a single route leaves that route out; what is wrong with the document as
    /// a whole is an error.
    ///
    /// # Errors
    /// The schema version, or the shape of the document.
    pub fn read(desired: &Map<String, Value>) -> Result<(Self, Vec<String>), String> {
        let version = desired.get("schemaVersion").and_then(Value::as_str);
        let strings_only = match version
            .map(|version| version.splitn(3, '.').collect::<Vec<_>>())
            .as_deref()
        {
            Some(["1", "0", ..]) => true,
            Some(["1", "1" | "2" | "3", ..]) => false,
            _ => {
                let found = version.unwrap_or("none");
                return Err(format!("schemaVersion is {found}; expected 1.0, 1.1, 1.2 or 1.3"));
            }
        };
        let mut definition = Definition::default();
        let mut faults = Vec::new();
        match desired.get("routes") {
            None | Some(Value::Null) => {}
            Some(Value::Object(routes)) => {
                for (name, value) in routes.iter().filter(|(name, _)| !name.starts_with('$')) {
                    match RouteDefinition::read(name, value, strings_only) {
                        Ok(Some(route)) => definition.routes.push(route),
                        Ok(None) => {}
                        Err(fault) => faults.push(format!("route {name}: {fault}")),
                    }
                }
            }
            Some(_) => return Err("routes must be an object".to_owned()),
        }
        definition.read_store(desired.get("storeAndForwardConfiguration"))?;
        Ok((definition, faults))
    }

    fn read_store(&mut self, store: Option<&Value>) -> Result<(), String> {
        let store = match store {
            None | Some(Value::Null) => return Ok(()),
            Some(Value::Object(store)) => store,
            Some(_) => return Err("storeAndForwardConfiguration must be an object".to_owned()),
        };
        match store.get("timeToLiveSecs") {
            None | Some(Value::Null) => {}
            Some(value) => {
                let seconds = value
                    .as_i64()
                    .ok_or("storeAndForwardConfiguration.timeToLiveSecs must be a whole number")?;
                self.time_to_live = u64::try_from(seconds).ok().map(Duration::from_secs);
            }
        }
        if let Some(limit) = store
            .get("storeLimits")
            .and_then(|limits| limits.get("maxSizeBytes"))
        {
            let bytes = limit
                .as_u64()
                .ok_or("storeAndForwardConfiguration.storeLimits.maxSizeBytes must be a whole number")?;
            self.bytes_max = Some(bytes);
        }
        Ok(())
    }
}

impl RouteDefinition {
    /// `None` for a route that is switched off by an empty text.
    fn read(name: &str, value: &Value, strings_only: bool) -> Result<Option<Self>, String> {
        let mut route = RouteDefinition {
            name: name.to_owned(),
            text: String::new(),
            priority: PRIORITY_DEFAULT,
            time_to_live: None,
        };
        match value {
            Value::Null => return Ok(None),
            Value::String(text) => route.text.clone_from(text),
            Value::Object(_) if strings_only => {
                return Err("a route of schema version 1.0 is a text".to_owned());
            }
            Value::Object(object) => {
                let text = object.get("route").and_then(Value::as_str);
                text.ok_or("it has no member route with a text")?
                    .clone_into(&mut route.text);
                if let Some(priority) = object.get("priority").filter(|value| !value.is_null()) {
                    route.priority = priority
                        .as_u64()
                        .filter(|priority| {
                            *priority <= PRIORITY_MAX || *priority == u64::from(PRIORITY_DEFAULT)
                        })
                        .and_then(|priority| u32::try_from(priority).ok())
                        .ok_or("priority must be a whole number from 0 to 9")?;
                }
                if let Some(seconds) = object.get("timeToLiveSecs").filter(|value| !value.is_null()) {
                    let seconds = seconds
                        .as_u64()
                        .and_then(|seconds| u32::try_from(seconds).ok())
                        .ok_or("timeToLiveSecs must be a whole number from 0 to 4294967295")?;
                    route.time_to_live = Some(seconds)
                        .filter(|seconds| *seconds > 0)
                        .map(|seconds| Duration::from_secs(u64::from(seconds)));
                }
            }
            _ => return Err("a route is a text or an object".to_owned()),
        }
        Ok(Some(route).filter(|route| !route.text.trim().is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<(Definition, Vec<String>), String> {
        match value {
            Value::Object(object) => Definition::read(&object),
            _ => panic!("an object"),
        }
    }

    #[test]
    fn both_forms_of_routes() {
        let (definition, faults) = read(json!({
            "schemaVersion": "1.1",
            "routes": {
                "a": "FROM /* INTO $upstream",
                "b": {"route": "FROM /* INTO $upstream", "priority": 3, "timeToLiveSecs": 60},
                "c": {"route": "FROM /* INTO $upstream", "priority": 10},
                "d": {"priority": 1}, "e": 7, "f": "", "g": null,
                "h": {"route": "x", "timeToLiveSecs": 0},
            },
            "storeAndForwardConfiguration": {"timeToLiveSecs": 7200, "storeLimits": {"maxSizeBytes": 1000}},
            "mqttBroker": {"authorizations": []},
        }))
        .unwrap();
        let routes: Vec<_> = definition
            .routes
            .iter()
            .map(|route| (route.name.as_str(), route.priority, route.time_to_live))
            .collect();
        assert_eq!(
            routes,
            [
                ("a", PRIORITY_DEFAULT, None),
                ("b", 3, Some(Duration::from_secs(60))),
                ("h", PRIORITY_DEFAULT, None)
            ]
        );
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert_eq!(definition.time_to_live, Some(Duration::from_secs(7200)));
        assert_eq!(definition.bytes_max, Some(1000));
    }

    #[test]
    fn schema_versions() {
        for good in ["1.0", "1.1", "1.2", "1.3", "1.1.0"] {
            assert!(read(json!({ "schemaVersion": good })).is_ok(), "{good}");
        }
        for bad in [json!("1.4"), json!("2.0"), json!("1"), json!(1.1), Value::Null] {
            assert!(read(json!({ "schemaVersion": bad })).is_err(), "{bad}");
        }
        let (definition, faults) =
            read(json!({"schemaVersion": "1.0", "routes": {"a": {"route": "x"}}})).unwrap();
        assert!(definition.routes.is_empty() && faults.len() == 1);
        let (definition, _) =
            read(json!({"schemaVersion": "1.0", "storeAndForwardConfiguration": {"timeToLiveSecs": -1}}))
                .unwrap();
        assert_eq!(definition.time_to_live, None);
        assert!(read(json!({"schemaVersion": "1.0", "routes": []})).is_err());
    }
}
