//! A device twin as digital twin (languages.md 7.5).

use serde_json::{Map, Value, json};

use crate::twin::unwrap_acknowledgement;

/// One section of a twin with what is known of it.
#[derive(Clone, Copy, Debug)]
pub struct SectionView<'a> {
    /// Properties.
    pub properties: &'a Map<String, Value>,
    /// `$metadata`.
    pub metadata: &'a Map<String, Value>,
    /// `$version`.
    pub version: u64,
}

/// Whether a value of a twin is a component.
#[must_use]
pub fn is_component(value: &Value) -> bool {
    value.get("__t").and_then(Value::as_str) == Some("c")
}

/// The digital twin: `$dtId`, reported values with acknowledgements unwrapped, components, and `$metadata` on each level.
#[must_use]
pub fn digital_twin(
    id: &str,
    model_id: Option<&str>,
    desired: SectionView<'_>,
    reported: SectionView<'_>,
) -> Value {
    let mut view = Map::new();
    view.insert("$dtId".into(), id.into());
    let mut metadata = Map::new();
    metadata.insert("$model".into(), model_id.unwrap_or_default().into());
    fill(&mut view, &mut metadata, desired, reported, true);
    view.insert("$metadata".into(), Value::Object(metadata));
    Value::Object(view)
}

fn fill(
    view: &mut Map<String, Value>,
    metadata: &mut Map<String, Value>,
    desired: SectionView<'_>,
    reported: SectionView<'_>,
    root: bool,
) {
    let mut names: Vec<&String> = reported.properties.keys().collect();
    names.extend(
        desired
            .properties
            .keys()
            .filter(|name| !reported.properties.contains_key(*name)),
    );
    for name in names {
        if name.starts_with('$') || name == "__t" {
            continue;
        }
        let (wanted, told) = (desired.properties.get(name), reported.properties.get(name));
        if root && [wanted, told].into_iter().flatten().any(is_component) {
            let inner = component(name, desired, reported);
            view.insert(name.clone(), inner);
            continue;
        }
        let mut about = Map::new();
        if let Some(told) = told {
            let value = unwrap_acknowledgement(told);
            view.insert(name.clone(), value.unwrap_or(told).clone());
            if value.is_some() {
                acknowledgement(&mut about, told);
            }
            if let Some(time) = stamp(reported.metadata, name, "$lastUpdated") {
                about.insert("lastUpdateTime".into(), time.clone());
            }
        }
        if let Some(wanted) = wanted {
            about.insert("desiredValue".into(), wanted.clone());
            let version = stamp(desired.metadata, name, "$lastUpdatedVersion");
            about.insert(
                "desiredVersion".into(),
                version.cloned().unwrap_or_else(|| desired.version.into()),
            );
        }
        metadata.insert(name.clone(), Value::Object(about));
    }
}

fn acknowledgement(about: &mut Map<String, Value>, told: &Value) {
    for (member, name) in [("av", "ackVersion"), ("ac", "ackCode"), ("ad", "ackDescription")] {
        if let Some(value) = told.get(member) {
            about.insert(name.into(), value.clone());
        }
    }
}

fn component(name: &str, desired: SectionView<'_>, reported: SectionView<'_>) -> Value {
    let empty = Map::new();
    let inner = |section: SectionView<'_>| {
        (
            section.properties.get(name).and_then(Value::as_object).cloned(),
            section.metadata.get(name).and_then(Value::as_object).cloned(),
        )
    };
    let (wanted, told) = (inner(desired), inner(reported));
    let (mut view, mut metadata) = (Map::new(), Map::new());
    fill(
        &mut view,
        &mut metadata,
        SectionView {
            properties: wanted.0.as_ref().unwrap_or(&empty),
            metadata: wanted.1.as_ref().unwrap_or(&empty),
            version: desired.version,
        },
        SectionView {
            properties: told.0.as_ref().unwrap_or(&empty),
            metadata: told.1.as_ref().unwrap_or(&empty),
            version: reported.version,
        },
        false,
    );
    view.insert("$metadata".into(), json!(metadata));
    Value::Object(view)
}

fn stamp<'a>(metadata: &'a Map<String, Value>, name: &str, member: &str) -> Option<&'a Value> {
    metadata.get(name)?.get(member)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(object) => object,
            _ => panic!("an object"),
        }
    }

    #[test]
    fn the_view_of_the_documentation() {
        let desired = object(json!({
            "target": 20,
            "unreported": {"a": 1},
            "thermostat1": {"__t": "c", "targetTemperature": 21.8},
            "only": {"__t": "c", "x": 1},
        }));
        let desired_metadata = object(json!({
            "$lastUpdated": "t0", "$lastUpdatedVersion": 4,
            "target": {"$lastUpdated": "t1", "$lastUpdatedVersion": 3},
            "thermostat1": {"targetTemperature": {"$lastUpdated": "t2", "$lastUpdatedVersion": 4}},
        }));
        let reported = object(json!({
            "serial": "s1",
            "target": {"value": 19, "ac": 200, "av": 3, "ad": "ok"},
            "plain": {"value": 1, "unit": "x"},
            "thermostat1": {"__t": "c", "temperature": 21.3},
        }));
        let reported_metadata = object(json!({
            "serial": {"$lastUpdated": "t3"},
            "target": {"$lastUpdated": "t4"},
            "thermostat1": {"$lastUpdated": "t5", "temperature": {"$lastUpdated": "t6"}},
        }));
        let view = digital_twin(
            "d1",
            Some("dtmi:a;1"),
            SectionView {
                properties: &desired,
                metadata: &desired_metadata,
                version: 4,
            },
            SectionView {
                properties: &reported,
                metadata: &reported_metadata,
                version: 9,
            },
        );
        assert_eq!(
            view,
            json!({
                "$dtId": "d1",
                "serial": "s1",
                "target": 19,
                "plain": {"value": 1, "unit": "x"},
                "thermostat1": {
                    "temperature": 21.3,
                    "$metadata": {
                        "temperature": {"lastUpdateTime": "t6"},
                        "targetTemperature": {"desiredValue": 21.8, "desiredVersion": 4},
                    },
                },
                "only": {"$metadata": {"x": {"desiredValue": 1, "desiredVersion": 4}}},
                "$metadata": {
                    "$model": "dtmi:a;1",
                    "serial": {"lastUpdateTime": "t3"},
                    "target": {
                        "lastUpdateTime": "t4", "desiredValue": 20, "desiredVersion": 3,
                        "ackVersion": 3, "ackCode": 200, "ackDescription": "ok",
                    },
                    "plain": {},
                    "unreported": {"desiredValue": {"a": 1}, "desiredVersion": 4},
                },
            })
        );
    }

    #[test]
    fn an_empty_twin_is_a_view_too() {
        let empty = Map::new();
        let section = SectionView {
            properties: &empty,
            metadata: &empty,
            version: 1,
        };
        assert_eq!(
            digital_twin("d", None, section, section),
            json!({"$dtId": "d", "$metadata": {"$model": ""}})
        );
    }
}
