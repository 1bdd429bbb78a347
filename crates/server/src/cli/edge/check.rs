//! What can be told of a manifest before it is sent: routes that do not compile, `createOptions` that are no JSON. The rest
//! is the device's to judge, and it tells within seconds.

use std::collections::BTreeMap;

use holdfast_program::failure::Failure;
use holdfast_query::route::{EdgeRoute, Symbols};
use serde_json::{Map, Value};

use super::{AGENT, HUB};

const DESIRED: &str = "properties.desired";

/// Looks at the modules of a manifest.
///
/// # Errors
/// With the place of every fault found.
pub(super) fn check(modules: &Value) -> Result<(), Failure> {
    let mut faults = Vec::new();
    routes(&modules[HUB][DESIRED]["routes"], &mut faults);
    let agent = &modules[AGENT][DESIRED];
    for section in ["systemModules", "modules"] {
        for (name, module) in agent[section].as_object().into_iter().flatten() {
            if let Some(fault) = module["settings"].as_object().and_then(create_options) {
                faults.push(format!(
                    "{AGENT}: {section}.{name}.settings.createOptions: {fault}"
                ));
            }
        }
    }
    if faults.is_empty() {
        return Ok(());
    }
    let text = format!(
        "the manifest has faults and was not sent:\n  {}",
        faults.join("\n  ")
    );
    Err(Failure::usage(text).hint("correct it; --no-check sends it as it is, and the device decides"))
}

fn routes(routes: &Value, faults: &mut Vec<String>) {
    let mut symbols = Symbols::default();
    for (name, route) in routes.as_object().into_iter().flatten() {
        let text = route.as_str().or_else(|| route["route"].as_str());
        // An empty one is switched off.
        let Some(text) = text.filter(|text| !text.trim().is_empty()) else {
            continue;
        };
        if let Err(fault) = EdgeRoute::compile(text, &mut symbols) {
            faults.push(format!("{HUB}: route {name}: {fault}"));
        }
    }
}

/// What is wrong with `createOptions`, `createOptions01`, … taken together (edge.md 2.3).
fn create_options(settings: &Map<String, Value>) -> Option<String> {
    let mut pieces = BTreeMap::new();
    for (key, value) in settings {
        let suffix = key
            .strip_prefix("createOptions")
            .or_else(|| key.strip_prefix("createoptions"));
        let number = suffix.and_then(|suffix| match suffix {
            "" => Some(0),
            digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse::<u32>().ok(),
            _ => None,
        });
        if let (Some(number), Some(text)) = (number, value.as_str()) {
            pieces.insert(number, text);
        }
    }
    let text: String = pieces.into_values().collect();
    if text.trim().is_empty() {
        return None;
    }
    match serde_json::from_str(&text) {
        Ok(Value::Object(_) | Value::Null) => None,
        Ok(_) => Some("the text holds no JSON object".to_owned()),
        Err(error) => Some(format!("the text is not JSON: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn manifest(routes: Value, settings: Value) -> Value {
        json!({
            "$edgeHub": {"properties.desired": {"schemaVersion": "1.1", "routes": routes}},
            "$edgeAgent": {"properties.desired": {"modules": {"m": {"settings": settings}}}},
        })
    }

    #[test]
    fn every_fault_has_its_place() {
        let routes = json!({"good": "FROM /* INTO $upstream", "bad": "FROM /* INTO nowhere",
            "worse": {"route": "FROM /* WHERE a = INTO $upstream"}, "off": "", "gone": null});
        let settings = json!({"image": "x", "createOptions": "{\"a\":", "createOptions01": " [1}"});
        let failure = check(&manifest(routes, settings)).expect_err("faults");
        let lines: Vec<&str> = failure.message.lines().collect();
        assert_eq!(lines.len(), 4, "{failure}");
        assert!(
            lines[1].starts_with("  $edgeHub: route bad: ") && lines[1].contains("(line 1, column 14)"),
            "{failure}"
        );
        assert!(lines[2].starts_with("  $edgeHub: route worse: "), "{failure}");
        let place = "  $edgeAgent: modules.m.settings.createOptions: the text is not JSON: ";
        assert!(
            lines[3].starts_with(place) && lines[3].contains("line 1 column 9"),
            "{failure}"
        );
    }

    #[test]
    fn what_is_right_and_what_is_not_there_passes() {
        for settings in [
            json!({"createOptions": "{\"a\":1", "createOptions01": "}"}),
            json!({"createOptions": "null"}),
            json!({"createOptions": ""}),
            json!({"createOptions": {}}),
        ] {
            check(&manifest(json!({}), settings)).expect("no faults");
        }
        check(&json!({"$edgeAgent": {}})).expect("no faults");
    }
}
