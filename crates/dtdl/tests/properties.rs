//! Nothing that anybody writes makes the reader panic, and what is read once is read the same again.
//!
//! Method: texts at random, and JSON made of the language's own words, which comes far deeper into the rules. The seed is
//! printed when a case fails; `PROPTEST_CASES` sets the number of cases.

use holdfast_dtdl::twin::check_twin;
use holdfast_dtdl::{Dtmi, ModelSet, parse_document, patch, repository};
use proptest::prelude::*;
use serde_json::{Map, Value};

const WORDS: &[&str] = &[
    "dtmi:dtdl:context;2",
    "dtmi:dtdl:context;3",
    "dtmi:dtdl:extension:quantitativeTypes;1",
    "Interface",
    "Telemetry",
    "Property",
    "Command",
    "Component",
    "Relationship",
    "Array",
    "Enum",
    "Map",
    "Object",
    "Temperature",
    "kelvin",
    "double",
    "integer",
    "string",
    "point",
    "dtmi:a;1",
    "dtmi:b;1",
    "dtmi:b:c;2",
    "name",
    "x",
    "",
    "ü",
    "add",
    "remove",
    "/x/name",
];

const MEMBERS: &[&str] = &[
    "@context",
    "@id",
    "@type",
    "contents",
    "extends",
    "schemas",
    "name",
    "schema",
    "unit",
    "writable",
    "request",
    "response",
    "elementSchema",
    "valueSchema",
    "enumValues",
    "enumValue",
    "mapKey",
    "mapValue",
    "fields",
    "target",
    "minMultiplicity",
    "properties",
    "displayName",
    "op",
    "path",
    "value",
    "__t",
];

fn word() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => prop::sample::select(WORDS).prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => any::<bool>().prop_map(Value::from),
        1 => Just(Value::Null),
        1 => "[\\PC]{0,6}".prop_map(Value::from),
    ]
}

fn json() -> impl Strategy<Value = Value> {
    word().prop_recursive(6, 96, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::Array),
            prop::collection::vec((prop::sample::select(MEMBERS), inner), 0..8).prop_map(|members| {
                Value::Object(
                    members
                        .into_iter()
                        .map(|(name, value)| (name.to_owned(), value))
                        .collect(),
                )
            }),
        ]
    })
}

/// An interface, so that the rules below it are met.
fn interface() -> impl Strategy<Value = Value> {
    (json(), json(), json(), prop::sample::select(&["dtmi:dtdl:context;2", "dtmi:dtdl:context;3"][..])).prop_map(
        |(contents, extends, schemas, context)| {
            serde_json::json!({"@context": context, "@id": "dtmi:a;1", "@type": "Interface", "contents": [contents],
                "extends": extends, "schemas": schemas})
        },
    )
}

fn read(document: &Value, twin: &Map<String, Value>) {
    let text = document.to_string();
    let first = parse_document(&text);
    assert_eq!(first, parse_document(&text));
    let mut set = ModelSet::default();
    if let Ok(id) = set.add_document(&text) {
        let _ = (set.check(), set.missing(), set.contents(&id));
        let _ = check_twin(&set, &id, twin, twin);
    }
}

proptest! {
    #[test]
    fn texts_are_read_without_panic(text in "\\PC{0,80}") {
        let _ = parse_document(&text);
        if let Ok(id) = Dtmi::parse(&text) {
            let path = repository::path_of(&id);
            prop_assert!(!path.contains(".."), "{}", path);
        }
    }

    #[test]
    fn ids_are_read_without_panic(text in "dtmi:[a-zA-Z0-9_:;.ü]{0,30}") {
        if let Ok(id) = Dtmi::parse(&text) {
            prop_assert_eq!(id.as_str(), &text);
            prop_assert!(repository::path_of(&id).ends_with(".json"));
        }
    }

    #[test]
    fn documents_are_read_without_panic(document in json(), twin in json()) {
        read(&document, twin.as_object().unwrap_or(&Map::new()));
    }

    #[test]
    fn interfaces_are_read_without_panic(document in interface(), twin in json()) {
        read(&document, twin.as_object().unwrap_or(&Map::new()));
    }

    #[test]
    fn patches_are_read_without_panic(change in json(), twin in json()) {
        let twin = twin.as_object().cloned().unwrap_or_default();
        let _ = patch::desired_change(&change, &twin, &twin);
    }
}
