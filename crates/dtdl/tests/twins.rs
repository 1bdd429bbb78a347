//! Twins against models.

use holdfast_dtdl::twin::check_twin;
use holdfast_dtdl::{Dtmi, ModelSet};
use serde_json::{Value, json};

fn models() -> (ModelSet, Dtmi) {
    let document = json!([
        {"@context": "dtmi:dtdl:context;2", "@id": "dtmi:ex:Controller;1", "@type": "Interface", "contents": [
            {"@type": "Property", "name": "serial", "schema": "string"},
            {"@type": "Property", "name": "interval", "schema": "integer", "writable": true},
            {"@type": "Property", "name": "mode", "writable": true, "schema": {"@type": "Enum", "valueSchema": "string",
                "enumValues": [{"name": "eco", "enumValue": "eco"}, {"name": "full", "enumValue": "full"}]}},
            {"@type": "Property", "name": "wrapped", "writable": true, "schema": {"@type": "Object", "fields": [
                {"name": "value", "schema": "double"}, {"name": "ac", "schema": "double"},
                {"name": "av", "schema": "double"}]}},
            {"@type": "Telemetry", "name": "load", "schema": "double"},
            {"@type": "Command", "name": "reboot"},
            {"@type": "Component", "name": "thermostat1", "schema": "dtmi:ex:Thermostat;1"}]},
        {"@context": "dtmi:dtdl:context;2", "@id": "dtmi:ex:Thermostat;1", "@type": "Interface", "contents": [
            {"@type": "Property", "name": "targetTemperature", "schema": "double", "writable": true},
            {"@type": "Property", "name": "maxTemp", "schema": "double"}]}
    ]);
    let mut set = ModelSet::default();
    let id = set.add_document(&document.to_string()).expect("good models");
    assert_eq!(set.check(), []);
    (set, id)
}

fn faults(desired: &Value, reported: &Value) -> Vec<String> {
    let (set, id) = models();
    let object = |value: &Value| value.as_object().cloned().expect("an object");
    let found = check_twin(&set, &id, &object(desired), &object(reported));
    found.iter().map(ToString::to_string).collect()
}

#[test]
fn a_twin_that_follows_its_model() {
    let desired = json!({"interval": 5, "mode": "eco", "thermostat1": {"__t": "c", "targetTemperature": 21},
        "$version": 3});
    let reported = json!({
        "serial": "s1",
        "interval": {"value": 5, "ac": 200, "av": 3, "ad": "done"},
        "mode": "full",
        "wrapped": {"value": 1, "ac": 2, "av": 3},
        "thermostat1": {"__t": "c", "maxTemp": 30.5, "targetTemperature": {"value": 21, "ac": 202, "av": 2}},
    });
    assert_eq!(faults(&desired, &reported), [""; 0]);
    assert_eq!(faults(&json!({}), &json!({})), [""; 0]);
}

#[test]
fn every_departure_is_named_with_its_place() {
    for (desired, reported, expected) in [
        (
            json!({"interval": "5"}),
            json!({}),
            "desired.interval: must be a whole number of 4 bytes (integer), not \"5\"",
        ),
        (
            json!({"serial": "x"}),
            json!({}),
            "desired.serial: the property is read-only",
        ),
        (
            json!({"mode": "off"}),
            json!({}),
            "desired.mode: \"off\" is not one of \"eco\", \"full\"",
        ),
        (
            json!({"speed": 1}),
            json!({}),
            "desired.speed: the model dtmi:ex:Controller;1 has no property",
        ),
        (
            json!({}),
            json!({"load": 1}),
            "reported.load: this is a Telemetry",
        ),
        (
            json!({}),
            json!({"reboot": 1}),
            "reported.reboot: this is a Command",
        ),
        (
            json!({}),
            json!({"interval": {"value": "x", "ac": 200, "av": 1}}),
            "reported.interval.value: must be a whole",
        ),
        (
            json!({}),
            json!({"interval": {"value": 1, "ac": "200", "av": 1}}),
            "reported.interval: the code",
        ),
        (
            json!({}),
            json!({"interval": {"value": 1, "ac": 200, "av": 1, "ad": 5}}),
            "must be a text",
        ),
        (
            json!({}),
            json!({"serial": {"value": "x", "ac": 200, "av": 1}}),
            "reported.serial: must be a text (string)",
        ),
        (
            json!({"thermostat1": {"targetTemperature": 1}}),
            json!({}),
            "must carry \"__t\":\"c\"",
        ),
        (
            json!({"thermostat1": 5}),
            json!({}),
            "a component must be an object",
        ),
        (
            json!({}),
            json!({"thermostat1": {"__t": "c", "maxTemp": "hot"}}),
            "reported.thermostat1.maxTemp: must be a number",
        ),
        (
            json!({}),
            json!({"thermostat1": {"__t": "c", "other": 1}}),
            "the model dtmi:ex:Thermostat;1 has no",
        ),
    ] {
        let found = faults(&desired, &reported);
        assert!(
            found.len() == 1 && found[0].contains(expected),
            "{expected}: {found:?}"
        );
    }
}
