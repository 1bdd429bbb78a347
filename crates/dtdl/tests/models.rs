//! Models, good and bad: what is taken, and which rule a bad one is told.

use holdfast_dtdl::{Dtmi, ModelSet, parse_document};
use serde_json::{Value, json};

fn v2(id: &str, contents: Value) -> Value {
    json!({"@context": "dtmi:dtdl:context;2", "@id": id, "@type": "Interface", "contents": contents})
}

fn v3(id: &str, contents: Value) -> Value {
    json!({
        "@context": ["dtmi:dtdl:context;3", "dtmi:dtdl:extension:quantitativeTypes;1"],
        "@id": id, "@type": "Interface", "contents": contents,
    })
}

fn telemetry(schema: Value) -> Value {
    json!([{"@type": "Telemetry", "name": "t", "schema": schema}])
}

fn property(schema: Value) -> Value {
    json!([{"@type": "Property", "name": "p", "schema": schema}])
}

fn nested_arrays(depth: usize) -> Value {
    (0..depth).fold(
        json!("double"),
        |inner, _| json!({"@type": "Array", "elementSchema": inner}),
    )
}

/// All faults of a document alone and in a set of its own.
fn faults(document: &Value) -> Vec<String> {
    let mut set = ModelSet::default();
    let found = match set.add_document(&document.to_string()) {
        Err(faults) => faults,
        Ok(_) => set.check(),
    };
    found.iter().map(ToString::to_string).collect()
}

const THERMOSTAT: &str = r#"{
  "@context": "dtmi:dtdl:context;2",
  "@id": "dtmi:com:example:Thermostat;1",
  "@type": "Interface",
  "displayName": {"en": "Thermostat", "de": "Thermostat"},
  "description": "Reports current temperature and provides desired temperature control.",
  "contents": [
    {"@type": ["Telemetry", "Temperature"], "name": "temperature", "schema": "double", "unit": "degreeCelsius"},
    {"@type": ["Property", "Temperature"], "name": "targetTemperature", "schema": "double", "unit": "degreeCelsius",
     "writable": true},
    {"@type": "Property", "name": "maxTempSinceLastReboot", "schema": "double"},
    {"@type": "Command", "name": "getMaxMinReport", "commandType": "synchronous",
     "request": {"name": "since", "schema": "dateTime"},
     "response": {"name": "tempReport", "schema": {"@type": "Object", "fields": [
        {"name": "maxTemp", "schema": "double"}, {"name": "startTime", "schema": "dateTime"}]}}}
  ]
}"#;

#[test]
fn good_models() {
    let deep = nested_arrays(5);
    let goods = [
        serde_json::from_str(THERMOSTAT).expect("JSON"),
        v2("dtmi:a;1", json!([])),
        json!({"@context": "dtmi:dtdl:context;3", "@id": "dtmi:a", "@type": "Interface"}),
        v3(
            "dtmi:a;1.2",
            property(json!({"@type": "Array", "elementSchema": "point"})),
        ),
        v2("dtmi:a;1", telemetry(deep)),
        v2("dtmi:a;1", telemetry(json!("multiPolygon"))),
        v2(
            "dtmi:a;1",
            property(
                json!({"@type": "Map", "mapKey": {"name": "k", "schema": "string"},
                "mapValue": {"name": "v", "schema": {"@type": "Enum", "valueSchema": "integer",
                    "enumValues": [{"name": "on", "enumValue": 1}, {"name": "off", "enumValue": 2}]}}}),
            ),
        ),
        v2(
            "dtmi:a;1",
            json!([{"@type": "Relationship", "name": "rooms", "target": "dtmi:far:away;1", "minMultiplicity": 0,
                "maxMultiplicity": 5, "properties": [{"@type": "Property", "name": "since", "schema": "date"}]}]),
        ),
        // An interface in place of a reference.
        v2(
            "dtmi:a;1",
            json!([{"@type": "Component", "name": "c",
                "schema": {"@id": "dtmi:b;1", "@type": "Interface", "contents": telemetry(json!("long"))}}]),
        ),
        // Schemas with ids.
        json!({"@context": "dtmi:dtdl:context;2", "@id": "dtmi:a;1", "@type": "Interface",
            "schemas": [{"@id": "dtmi:a:state;1", "@type": "Object", "fields": [{"name": "x", "schema": "float"}]}],
            "contents": property(json!("dtmi:a:state;1"))}),
        // A list of interfaces that refer to each other.
        json!([
            v2(
                "dtmi:a;1",
                json!([{"@type": "Component", "name": "c", "schema": "dtmi:b;1"}])
            ),
            v2("dtmi:b;1", telemetry(json!("boolean")))
        ]),
        v3(
            "dtmi:a;1",
            json!([{"@type": "Telemetry", "name": "n".repeat(512), "schema": "string"}]),
        ),
        v3(
            "dtmi:a;1",
            telemetry(json!({"@type": "Enum", "valueSchema": "string"})),
        ),
        v3(
            "dtmi:a;1",
            json!([{"@type": "Command", "name": "c",
            "request": {"@type": "CommandRequest", "name": "r", "schema": "integer"}}]),
        ),
        // Whatever another extension brings.
        json!({"@context": ["dtmi:dtdl:context;3", "dtmi:iotoperations:extension:other;1"], "@id": "dtmi:a;1",
            "@type": "Interface", "contents": [{"@type": ["Telemetry", "Special"], "name": "t", "schema": "double",
                "extra": 1}]}),
    ];
    for document in goods {
        assert_eq!(faults(&document), [""; 0], "{document}");
    }
}

#[test]
fn bad_models() {
    let many = |count: usize| -> Vec<Value> {
        (0..count)
            .map(|n| json!({"@type": "Telemetry", "name": format!("t{n}"), "schema": "double"}))
            .collect()
    };
    let fields = |count: usize| -> Vec<Value> {
        (0..count)
            .map(|n| json!({"name": format!("f{n}"), "schema": "double"}))
            .collect()
    };
    let bads = [
        (json!(5), "must be a JSON object"),
        (json!([]), "list of interfaces is empty"),
        (
            json!({"@id": "dtmi:a;1", "@type": "Interface"}),
            "@context is missing",
        ),
        (
            json!({"@context": "dtmi:dtdl:context;9", "@id": "dtmi:a;1", "@type": "Interface"}),
            "@context must hold",
        ),
        (
            json!({"@context": ["dtmi:dtdl:extension:quantitativeTypes;1", "dtmi:dtdl:context;3"], "@id": "dtmi:a;1",
                "@type": "Interface"}),
            "before all extensions",
        ),
        (
            json!({"@context": "dtmi:dtdl:context;2", "@type": "Interface"}),
            "@id is missing",
        ),
        (
            json!({"@context": "dtmi:dtdl:context;2", "@id": "dtmi:a;1"}),
            "@type is missing",
        ),
        (
            json!({"@context": "dtmi:dtdl:context;2", "@id": "dtmi:a;1", "@type": "Telemetry"}),
            "allowed here: Interface",
        ),
        (v2("dtmi:a", json!([])), "needs a version"),
        (v2("dtmi:a;1.1", json!([])), "no minor versions"),
        (v2("dtmi:dtdl:a;1", json!([])), "reserved"),
        (v2("dtmi:_a;1", json!([])), "reserved"),
        (
            v2(&format!("dtmi:{};1", "a".repeat(128)), json!([])),
            "at most 128",
        ),
        (
            v2("dtmi:a;1", json!([{"name": "x", "schema": "double"}])),
            "@type is missing",
        ),
        (
            v2("dtmi:a;1", json!([{"@type": "Telemetry", "schema": "double"}])),
            "name is missing",
        ),
        (
            v2("dtmi:a;1", json!([{"@type": "Telemetry", "name": "x"}])),
            "schema is missing",
        ),
        (
            v2(
                "dtmi:a;1",
                json!([{"@type": "Telemetry", "name": "1x", "schema": "double"}]),
            ),
            "begin with a letter",
        ),
        (
            v2(
                "dtmi:a;1",
                json!([{"@type": "Telemetry", "name": "x_", "schema": "double"}]),
            ),
            "end with a letter",
        ),
        (
            v2(
                "dtmi:a;1",
                json!([{"@type": "Telemetry", "name": "x".repeat(65), "schema": "double"}]),
            ),
            "at most 64",
        ),
        (v2("dtmi:a;1", telemetry(json!("number"))), "no schema \"number\""),
        (
            v2("dtmi:a;1", telemetry(json!("dtmi:nowhere;1"))),
            "dtmi:nowhere;1 is not there",
        ),
        (v2("dtmi:a;1", telemetry(nested_arrays(6))), "more than 5 deep"),
        (v2("dtmi:a;1", property(nested_arrays(1))), "may have no Array"),
        (v2("dtmi:a;1", property(json!("point"))), "geospatial"),
        (
            json!({"@context": "dtmi:dtdl:context;2", "@id": "dtmi:a;1", "@type": "Interface",
                "schemas": [{"@id": "dtmi:a:list;1", "@type": "Array", "elementSchema": "double"}],
                "contents": property(json!("dtmi:a:list;1"))}),
            "may have no Array",
        ),
        (v2("dtmi:a;1", json!(many(301))), "at most 300"),
        (
            v2(
                "dtmi:a;1",
                json!([{"@type": "Telemetry", "name": "x", "schema": "double"},
                {"@type": "Property", "name": "x", "schema": "double"}]),
            ),
            "two contents are called \"x\"",
        ),
        (
            v2(
                "dtmi:a;1",
                telemetry(json!({"@type": "Object", "fields": fields(31)})),
            ),
            "DTDL v2 allows 30",
        ),
        (
            v2("dtmi:a;1", telemetry(json!({"@type": "Object"}))),
            "fields is missing",
        ),
        (
            v2("dtmi:a;1", telemetry(json!({"@type": "Enum", "enumValues": []}))),
            "valueSchema",
        ),
        (
            v2(
                "dtmi:a;1",
                telemetry(json!({"@type": "Enum", "valueSchema": "string"})),
            ),
            "enumValues is missing",
        ),
        (
            v2(
                "dtmi:a;1",
                telemetry(json!({"@type": "Enum", "valueSchema": "integer",
                "enumValues": [{"name": "a", "enumValue": "1"}]})),
            ),
            "an integer of 4 bytes",
        ),
        (
            v2(
                "dtmi:a;1",
                telemetry(json!({"@type": "Enum", "valueSchema": "integer",
                "enumValues": [{"name": "a", "enumValue": 1}, {"name": "b", "enumValue": 1}]})),
            ),
            "the value 1 twice",
        ),
        (
            v2(
                "dtmi:a;1",
                telemetry(
                    json!({"@type": "Map", "mapKey": {"name": "k", "schema": "integer"},
                "mapValue": {"name": "v", "schema": "double"}}),
                ),
            ),
            "mapKey must be string",
        ),
        (
            v2(
                "dtmi:a;1",
                json!([{"@type": ["Telemetry", "Temperature"], "name": "t", "schema": "double",
                "unit": "metre"}]),
            ),
            "\"metre\" is no unit of Temperature",
        ),
        (
            v2(
                "dtmi:a;1",
                json!([{"@type": ["Telemetry", "Warmth"], "name": "t", "schema": "double"}]),
            ),
            "no semantic type \"Warmth\"",
        ),
        (
            v2(
                "dtmi:a;1",
                json!([{"@type": ["Telemetry", "Temperature"], "name": "t", "schema": "string"}]),
            ),
            "needs a schema of numbers",
        ),
        (
            v2(
                "dtmi:a;1",
                json!([{"@type": "Telemetry", "name": "t", "schema": "double", "unit": "kelvin"}]),
            ),
            "unit needs a semantic type",
        ),
        (
            json!({"@context": "dtmi:dtdl:context;3", "@id": "dtmi:a;1", "@type": "Interface",
                "contents": [{"@type": ["Telemetry", "Temperature"], "name": "t", "schema": "double"}]}),
            "need the extension",
        ),
        (
            v2(
                "dtmi:a;1",
                json!([{"@type": "Telemetry", "name": "t", "schema": "double", "writable": true}]),
            ),
            "no member \"writable\"",
        ),
        (
            v2(
                "dtmi:a;1",
                json!([{"@type": "Property", "name": "t", "schema": "double", "writable": "yes"}]),
            ),
            "true or false",
        ),
        (
            v2(
                "dtmi:a;1",
                json!([{"@type": "Command", "name": "c", "commandType": "later"}]),
            ),
            "commandType must be",
        ),
        (
            v3(
                "dtmi:a;1",
                json!([{"@type": "Command", "name": "c", "commandType": "synchronous"}]),
            ),
            "not part of DTDL v3",
        ),
        (
            v2(
                "dtmi:a;1",
                json!([{"@type": "Command", "name": "c", "request": {"schema": "double"}}]),
            ),
            "request: name is missing",
        ),
        (
            v2("dtmi:a;1", json!([{"@type": "Component", "name": "c"}])),
            "schema is missing",
        ),
        (
            v2(
                "dtmi:a;1",
                json!([{"@type": "Component", "name": "c", "schema": "dtmi:b;1"}]),
            ),
            "dtmi:b;1 is not there",
        ),
        (
            json!([
                v2(
                    "dtmi:a;1",
                    json!([{"@type": "Component", "name": "c", "schema": "dtmi:b;1"}])
                ),
                v2(
                    "dtmi:b;1",
                    json!([{"@type": "Component", "name": "d", "schema": "dtmi:c;1"}])
                ),
                v2("dtmi:c;1", json!([]))
            ]),
            "no components itself",
        ),
        (
            v2(
                "dtmi:a;1",
                json!([{"@type": "Relationship", "name": "r", "minMultiplicity": 1}]),
            ),
            "must be 0",
        ),
        (
            v2(
                "dtmi:a;1",
                json!([{"@type": "Relationship", "name": "r", "maxMultiplicity": 501}]),
            ),
            "1 to 500",
        ),
        (
            v3(
                "dtmi:a;1",
                json!([{"@type": "Relationship", "name": "r", "minMultiplicity": 3, "maxMultiplicity": 2}]),
            ),
            "not below minMultiplicity",
        ),
        (
            v2(
                "dtmi:a;1",
                json!([{"@type": "Relationship", "name": "r", "properties": telemetry(json!("double"))}]),
            ),
            "properties only",
        ),
        (
            json!([v2("dtmi:a;1", json!([])), v2("dtmi:a;1", json!([]))]),
            "defines this interface twice",
        ),
        (
            json!({"@context": "dtmi:dtdl:context;2", "@id": "dtmi:a;1", "@type": "Interface",
                "extends": ["dtmi:b;1", "dtmi:c;1", "dtmi:d;1"]}),
            "DTDL v2 allows 2",
        ),
        (
            json!({"@context": "dtmi:dtdl:context;2", "@id": "dtmi:a;1", "@type": "Interface", "extends": "dtmi:a;1"}),
            "extends itself",
        ),
        (
            json!({"@context": "dtmi:dtdl:context;2", "@id": "dtmi:a;1", "@type": "Interface",
                "displayName": "n".repeat(65)}),
            "at most 64",
        ),
        (
            json!({"@context": "dtmi:dtdl:context;2", "@id": "dtmi:a;1", "@type": "Interface",
                "description": {"not a tag!": "x"}}),
            "no language tag",
        ),
        (
            json!({"@context": "dtmi:dtdl:context;2", "@id": "dtmi:a;1", "@type": "Interface",
                "schemas": [{"@type": "Array", "elementSchema": "double"}]}),
            "@id is missing",
        ),
        (
            json!({"@context": "dtmi:dtdl:context;2", "@id": "dtmi:a;1", "@type": "Interface",
                "schemas": [{"@id": "dtmi:a:x;1", "@type": "Array", "elementSchema": "dtmi:a:x;1"}]}),
            "part of itself",
        ),
    ];
    for (document, rule) in bads {
        let found = faults(&document);
        assert!(
            found.iter().any(|fault| fault.contains(rule)),
            "{rule}: {found:#?}\n{document}"
        );
    }
}

#[test]
fn a_fault_says_where() {
    let document = v2(
        "dtmi:com:example:Pump;1",
        json!([{"@type": "Telemetry", "name": "ok", "schema": "double"},
            {"@type": "Property", "name": "mode", "schema": {"@type": "Object",
                "fields": [{"name": "speed", "schema": "fast"}]}}]),
    );
    assert_eq!(
        faults(&document),
        [
            "dtmi:com:example:Pump;1 contents[1] \"mode\" schema fields[0] schema: there is no schema \"fast\"; others need \
          an id"
        ]
    );
}

#[test]
fn inheritance_counts_over_the_whole_hierarchy() {
    let mut set = ModelSet::default();
    let link = |id: usize, extends: &Value| {
        json!({"@context": "dtmi:dtdl:context;3", "@id": format!("dtmi:l{id};1"), "@type": "Interface",
            "extends": extends,
            "contents": [{"@type": "Telemetry", "name": format!("t{id}"), "schema": "double"}]})
    };
    for id in 0..11 {
        let document = link(id, &json!(format!("dtmi:l{};1", id + 1)));
        set.add_document(&document.to_string()).expect("a good document");
    }
    let last = link(11, &json!([]));
    set.add_document(&last.to_string()).expect("a good document");
    assert_eq!(set.missing().len(), 0);
    let id = |n: usize| Dtmi::parse(&format!("dtmi:l{n};1")).expect("an id");
    assert_eq!(set.contents(&id(0)).len(), 12);
    assert!(set.content(&id(0), "t11").is_some());
    let found: Vec<String> = set.check().iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        ["dtmi:l0;1: extends is 11 levels deep; at most 10 are allowed"]
    );

    // A name of the hierarchy twice, and two that meet from two sides.
    let mut set = ModelSet::default();
    for (id, extends) in [
        ("a", json!(["dtmi:b;1", "dtmi:c;1"])),
        ("b", json!([])),
        ("c", json!([])),
    ] {
        let document = json!({"@context": "dtmi:dtdl:context;2", "@id": format!("dtmi:{id};1"), "@type": "Interface",
            "extends": extends,
            "contents": [{"@type": "Telemetry", "name": "same", "schema": "double"}]});
        set.add_document(&document.to_string()).expect("a good document");
    }
    let found = set.check();
    assert!(
        found
            .iter()
            .all(|fault| fault.place == "dtmi:a;1" && fault.rule.contains("\"same\"")),
        "{found:?}"
    );
    assert_eq!(found.len(), 2);

    // A diamond is no double.
    let mut set = ModelSet::default();
    for (id, extends, contents) in [
        ("a", json!(["dtmi:b;1", "dtmi:c;1"]), json!([])),
        ("b", json!("dtmi:top;1"), json!([])),
        ("c", json!("dtmi:top;1"), json!([])),
        ("top", json!([]), telemetry(json!("double"))),
    ] {
        let document = json!({"@context": "dtmi:dtdl:context;2", "@id": format!("dtmi:{id};1"), "@type": "Interface",
            "extends": extends, "contents": contents});
        set.add_document(&document.to_string()).expect("a good document");
    }
    assert_eq!(set.check(), []);
}

#[test]
fn large_documents_are_refused_unread() {
    let text = format!("[{}]", " ".repeat(2 << 20));
    let error = parse_document(&text).expect_err("too large");
    assert!(error[0].rule.contains("at most 1048576"), "{error:?}");
    let deep = "[".repeat(100_000);
    assert!(parse_document(&deep).is_err());
}
