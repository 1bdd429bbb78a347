//! Goal: the merge laws of rest.md 6.3 and the limits of 6.4. Method: named cases, each limit at its value and one
//! above, and properties over arbitrary JSON against a reference merge that knows nothing of metadata.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::error::ErrorCode;
use crate::limits;

const T1: Timestamp = Timestamp::from_seconds(1_700_000_000);
const T2: Timestamp = Timestamp::from_micros(1_700_000_100_500_000);

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        other => panic!("not an object: {other}"),
    }
}

fn patched(base: Value, patch: Value) -> Twin {
    let mut twin = Twin::new(T1);
    twin.report(&object(base), T1).expect("a valid base");
    twin.report(&object(patch), T2).expect("a valid patch");
    twin
}

/// The error of a desired change.
fn refusal(change: Value) -> String {
    let mut twin = Twin::new(T1);
    let before = twin.clone();
    let change = TwinChange {
        tags: Some(object(json!({"untouched": true}))),
        desired: Some(object(change)),
    };
    let error = twin
        .apply(ChangeMode::Patch, &change, T2)
        .expect_err("must be refused");
    assert_eq!(error.code, ErrorCode::ArgumentInvalid);
    assert_eq!(twin, before, "a refused change changes nothing");
    error.message
}

fn accepts(change: Value) {
    let mut twin = Twin::new(T1);
    twin.report(&object(change), T2).expect("must be accepted");
}

#[test]
fn objects_merge_and_everything_else_replaces() {
    let twin = patched(
        json!({"a": {"x": 1, "y": [1, 2]}, "b": 1, "c": "text"}),
        json!({"a": {"y": [3], "z": {"deep": true}}, "b": {"now": "object"}, "c": null, "d": {"kept": 1, "dropped": null}}),
    );
    assert_eq!(
        Value::Object(twin.reported.properties),
        json!({"a": {"x": 1, "y": [3], "z": {"deep": true}}, "b": {"now": "object"}, "d": {"kept": 1}})
    );
    assert_eq!(twin.reported.version, 3);
    assert_eq!(
        twin.version, 1,
        "reported properties do not change the twin's version"
    );
}

#[test]
fn metadata_mirrors_with_stamps_of_the_change() {
    let mut twin = Twin::new(T1);
    let change = |desired| TwinChange {
        tags: None,
        desired: Some(object(desired)),
    };
    twin.apply(
        ChangeMode::Patch,
        &change(json!({"a": {"x": 1, "y": 2}, "b": [1]})),
        T1,
    )
    .expect("valid");
    twin.apply(ChangeMode::Patch, &change(json!({"a": {"x": 5, "y": null}})), T2)
        .expect("valid");
    let old = json!({"$lastUpdated": "2023-11-14T22:13:20.0000000Z", "$lastUpdatedVersion": 2});
    let (at, version) = ("2023-11-14T22:15:00.5000000Z", 3);
    assert_eq!(
        Value::Object(twin.desired.metadata.clone()),
        json!({
            "$lastUpdated": at, "$lastUpdatedVersion": version,
            "a": {
                "$lastUpdated": at, "$lastUpdatedVersion": version,
                "x": {"$lastUpdated": at, "$lastUpdatedVersion": version}
            },
            "b": old
        })
    );
    let view = twin.desired.to_service_json();
    assert_eq!(view["$version"], 3);
    assert_eq!(view["a"], json!({"x": 5}));
    assert_eq!(view["$metadata"]["b"], old);

    twin.report(&object(json!({"r": 1})), T2).expect("valid");
    assert_eq!(
        twin.reported.metadata["r"],
        json!({ "$lastUpdated": at }),
        "reported metadata has no version"
    );
}

#[test]
fn sections_count_on_their_own_and_the_twin_with_tags_and_desired() {
    let mut twin = Twin::new(T1);
    let mut change = TwinChange {
        tags: Some(object(json!({"site": "north"}))),
        desired: None,
    };
    twin.apply(ChangeMode::Patch, &change, T1).expect("valid");
    assert_eq!(
        (twin.version, twin.desired.version, twin.reported.version),
        (2, 1, 1)
    );
    change.desired = Some(object(json!({"rate": 5})));
    twin.apply(ChangeMode::Patch, &change, T1).expect("valid");
    twin.apply(ChangeMode::Patch, &change, T1).expect("valid");
    assert_eq!(
        (twin.version, twin.desired.version, twin.reported.version),
        (4, 3, 1)
    );
    // Nothing named, nothing in it, or nothing left without `$…` members: no change.
    twin.apply(ChangeMode::Patch, &TwinChange::default(), T2)
        .expect("valid");
    let empty = TwinChange {
        tags: Some(Map::new()),
        desired: Some(object(json!({"$version": 9, "$metadata": {"a b.c$": null}}))),
    };
    twin.apply(ChangeMode::Patch, &empty, T2).expect("valid");
    assert_eq!((twin.version, twin.desired.version), (4, 3));
    twin.apply(ChangeMode::Replace, &empty, T2).expect("valid");
    assert_eq!((twin.version, twin.desired.version), (5, 4));
    assert!(twin.tags.is_empty() && twin.desired.properties.is_empty());
    assert_eq!(twin.desired.metadata.len(), 2, "only the stamps of the root");
}

#[test]
fn devices_see_neither_tags_nor_metadata() {
    let mut twin = Twin::new(T1);
    assert_eq!(
        twin.device_json(),
        r#"{"desired":{"$version":1},"reported":{"$version":1}}"#
    );
    let change = TwinChange {
        tags: Some(object(json!({"secret": 1}))),
        desired: Some(object(json!({"a": {"b": "\u{e4}\""}}))),
    };
    twin.apply(ChangeMode::Patch, &change, T1).expect("valid");
    twin.report(&object(json!({"z": 1})), T1).expect("valid");
    let seen: Value = serde_json::from_slice(&twin.device_json()).expect("JSON");
    assert_eq!(
        seen,
        json!({"desired": {"a": {"b": "ä\""}, "$version": 2}, "reported": {"z": 1, "$version": 2}})
    );
}

#[test]
fn notifications_tell_changes_or_the_whole_content() {
    let before = object(json!({"gone": 1, "a": {"x": 1, "y": 2}, "same": true}));
    let change = object(json!({"a": {"x": 5, "n": null}, "same": true, "$version": 3}));
    let told = |mode| -> Value {
        serde_json::from_slice(&desired_notification(mode, &change, &before, 7)).expect("JSON")
    };
    assert_eq!(
        told(ChangeMode::Patch),
        json!({"a": {"x": 5, "n": null}, "same": true, "$version": 7})
    );
    assert_eq!(
        told(ChangeMode::Replace),
        json!({"a": {"x": 5, "y": null}, "same": true, "gone": null, "$version": 7})
    );
}

#[test]
fn rules_are_named_with_their_path() {
    for (change, expected) in [
        (
            json!({"a": {"b.c": 1}}),
            "properties.desired.a: the member name \"b.c\"",
        ),
        (json!({"a b": 1}), "' '"),
        (json!({"a": {"$version": 1}}), "'$'"),
        (json!({"\u{1}": 1}), "control characters"),
        (json!({"\u{85}": 1}), "control characters"),
        (json!({"": 1}), "an empty name"),
        (json!({"a": [1, null]}), "properties.desired.a[1]: null"),
        (json!({"a": [{"b": null}]}), "properties.desired.a[0].b: null"),
        (
            json!({"n": 4_503_599_627_370_496_i64}),
            "properties.desired.n: the integer",
        ),
        (
            json!({"n": -4_503_599_627_370_497_i64}),
            "properties.desired.n: the integer",
        ),
        (json!({"n": u64::MAX}), "properties.desired.n: the integer"),
    ] {
        let message = refusal(change.clone());
        assert!(message.contains(expected), "{change}: {message}");
    }
    accepts(json!({"n": 4_503_599_627_370_495_i64, "m": -4_503_599_627_370_496_i64, "f": 1e300}));
    accepts(json!({"gone": null, "deep": {"gone": null}, "#x": [[], {}, [true]]}));
}

#[test]
fn lengths_at_their_limit_and_above() {
    let key = |length| json!({ "ä".repeat(length / 2): 1 });
    accepts(key(limits::TWIN_KEY_BYTES_MAX));
    assert!(refusal(key(limits::TWIN_KEY_BYTES_MAX + 2)).contains("1026 bytes"));
    let text = |length| json!({ "t": "x".repeat(length) });
    accepts(text(limits::TWIN_STRING_BYTES_MAX));
    assert!(refusal(text(limits::TWIN_STRING_BYTES_MAX + 1)).contains("4097 bytes"));
}

#[test]
fn depth_at_its_limit_and_above() {
    let nested = |levels: usize, array: bool| {
        let mut value = json!(1);
        for _ in 0..levels {
            value = if array {
                json!([value])
            } else {
                json!({ "n": value })
            };
        }
        json!({ "root": value })
    };
    for array in [false, true] {
        accepts(nested(limits::TWIN_DEPTH_MAX, array));
        assert!(refusal(nested(limits::TWIN_DEPTH_MAX + 1, array)).contains("deeper than 10 levels"));
    }
}

#[test]
fn sizes_at_their_limit_and_above() {
    // Keys of 4 characters and strings that fill up to exactly `size`.
    let filled = |size: usize| {
        let mut content = Map::new();
        let mut left = size;
        while left > 0 {
            let take = left.min(4_000);
            content.insert(format!("k{:03}", content.len()), "x".repeat(take - 4).into());
            left -= take;
        }
        content
    };
    let tags = |size| TwinChange {
        tags: Some(filled(size)),
        desired: None,
    };
    let desired = |size| TwinChange {
        tags: None,
        desired: Some(filled(size)),
    };
    let mut twin = Twin::new(T1);
    for mode in [ChangeMode::Patch, ChangeMode::Replace] {
        twin.apply(mode, &tags(limits::TWIN_TAGS_BYTES_MAX), T1)
            .expect("at the limit");
        twin.apply(mode, &desired(limits::TWIN_SECTION_BYTES_MAX), T1)
            .expect("at the limit");
        for (change, section) in [
            (tags(limits::TWIN_TAGS_BYTES_MAX + 1), "tags would have 8193"),
            (
                desired(limits::TWIN_SECTION_BYTES_MAX + 1),
                "properties.desired would have 32769",
            ),
        ] {
            let error = twin.apply(mode, &change, T2).expect_err("above the limit");
            assert!(error.message.contains(section), "{}", error.message);
        }
    }
    // The limit is about the whole section: one more byte in a further patch is too much.
    twin.report(&filled(limits::TWIN_SECTION_BYTES_MAX), T1)
        .expect("at the limit");
    assert!(twin.report(&object(json!({"zzz": 1})), T2).is_err());
    twin.report(&object(json!({"k000": null, "zzz": 1})), T2)
        .expect("smaller again");
}

#[test]
fn sizes_count_characters_numbers_and_booleans() {
    let size = |value: Value| {
        let mut twin = Twin::new(T1);
        let filler = limits::TWIN_SECTION_BYTES_MAX;
        // The size shows in the message of a section that is too large.
        let mut content = object(value);
        for index in 0..9 {
            content.insert(format!("filler{index}"), "x".repeat(4_000).into());
        }
        let message = twin.report(&content, T1).expect_err("too large").message;
        let shown: usize = message
            .split_whitespace()
            .nth(3)
            .and_then(|size| size.parse().ok())
            .expect("a size");
        assert!(shown > filler);
        shown - 9 * 4_007
    };
    assert_eq!(size(json!({"äö": "\u{1F600}\u{1}\u{90}x"})), 4);
    assert_eq!(size(json!({"n": 1, "f": 2.5, "b": true})), 3 + 8 + 8 + 4);
    assert_eq!(size(json!({"a": [1, [true], {"k": "v"}]})), 1 + 8 + 4 + 2);
}

#[test]
fn content_that_counts_nothing_is_bounded_too() {
    let message = refusal(json!({ "a": vec![Value::Array(Vec::new()); 50_000] }));
    assert!(message.contains("as JSON text"), "{message}");
    let controls: Map<String, Value> = (0..40)
        .map(|index| (format!("k{index}"), "\u{1}".repeat(4_000).into()))
        .collect();
    assert!(refusal(Value::Object(controls)).contains("as JSON text"));
}

#[test]
fn only_objects_parse() {
    for (text, expected) in [
        (&b"[1]"[..], "must be a JSON object, not an array"),
        (b"\"x\"", "not a string"),
        (b"", "not valid JSON"),
        (b"{\"a\":1", "not valid JSON"),
        (b"{} x", "not valid JSON"),
        (b"{\"a\":\"\xff\"}", "not valid JSON"),
    ] {
        let error = parse_object(text, "the patch").expect_err("must be refused");
        assert_eq!(error.code, ErrorCode::ArgumentInvalid);
        assert!(error.message.contains(expected), "{}", error.message);
    }
    let deep = format!("{}1{}", "{\"a\":".repeat(100_000), "}".repeat(100_000));
    assert!(parse_object(deep.as_bytes(), "the patch").is_err());
    assert_eq!(
        parse_object(b" {\"a\":null} ", "the patch")
            .expect("an object")
            .len(),
        1
    );
}

/// JSON that breaks the rules now and then.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".*".prop_map(Value::from),
    ];
    leaf.prop_recursive(14, 64, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::Array),
            btree_map(".{0,4}", inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Patches that keep the rules. Few keys, so that patches meet.
fn valid_patch() -> impl Strategy<Value = Map<String, Value>> {
    let leaf = prop_oneof![
        2 => Just(Value::Null),
        2 => (-9..9i64).prop_map(Value::from),
        1 => any::<bool>().prop_map(Value::Bool),
        1 => "[a-z]{0,3}".prop_map(Value::from),
        1 => vec((0..9i64).prop_map(Value::from), 0..3).prop_map(Value::Array),
    ];
    let value = leaf.prop_recursive(4, 24, 3, |inner| {
        btree_map("[a-c]", inner, 0..3).prop_map(|map| Value::Object(map.into_iter().collect()))
    });
    btree_map("[a-d]", value, 0..4).prop_map(|map| map.into_iter().collect())
}

/// RFC 7396 for objects: the merge as rest.md 6.3 words it, without metadata.
fn reference_merge(target: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (key, value) in patch {
        match value {
            Value::Null => {
                target.remove(key);
            }
            Value::Object(patch) => {
                let mut inner = match target.remove(key) {
                    Some(Value::Object(inner)) => inner,
                    _ => Map::new(),
                };
                reference_merge(&mut inner, patch);
                target.insert(key.clone(), Value::Object(inner));
            }
            other => {
                target.insert(key.clone(), other.clone());
            }
        }
    }
}

/// Metadata has the same keys as the properties, plus stamps on every level.
fn assert_mirrors(properties: &Map<String, Value>, metadata: &Value, desired: bool) {
    let metadata = metadata.as_object().expect("metadata is an object");
    assert!(metadata["$lastUpdated"].is_string());
    assert_eq!(metadata.contains_key("$lastUpdatedVersion"), desired);
    let named: Vec<&String> = metadata.keys().filter(|key| !key.starts_with('$')).collect();
    assert_eq!(named, properties.keys().collect::<Vec<_>>());
    for (key, value) in properties {
        match value {
            Value::Object(inner) => assert_mirrors(inner, &metadata[key], desired),
            Value::Null => panic!("{key} is null"),
            _ => assert_eq!(
                metadata[key].as_object().map(Map::len),
                Some(1 + usize::from(desired))
            ),
        }
    }
}

proptest! {
    #[test]
    fn merging_agrees_with_the_reference(patches in vec(valid_patch(), 1..6)) {
        let mut twin = Twin::new(T1);
        let mut expected = Map::new();
        let mut changes = 0;
        for patch in &patches {
            twin.report(patch, T1).expect("valid");
            let change = TwinChange { tags: Some(patch.clone()), desired: Some(patch.clone()) };
            twin.apply(ChangeMode::Patch, &change, T2).expect("valid");
            reference_merge(&mut expected, patch);
            changes += u64::from(!patch.is_empty());
        }
        prop_assert_eq!(&twin.reported.properties, &expected);
        prop_assert_eq!(&twin.desired.properties, &expected);
        prop_assert_eq!(&twin.tags, &expected);
        prop_assert_eq!(twin.reported.version, 1 + changes);
        prop_assert_eq!(twin.desired.version, 1 + changes);
        prop_assert_eq!(twin.version, 1 + changes);
        // The sections of a new twin have no version in their metadata (rest.md 6.1).
        let stamped = changes > 0;
        assert_mirrors(&expected, &Value::Object(twin.desired.metadata.clone()), stamped);
        assert_mirrors(&expected, &Value::Object(twin.reported.metadata.clone()), false);
    }

    #[test]
    fn a_patch_twice_is_a_patch_once(base in valid_patch(), patch in valid_patch()) {
        let mut twin = Twin::new(T1);
        twin.report(&base, T1).expect("valid");
        twin.report(&patch, T1).expect("valid");
        let once = twin.reported.properties.clone();
        twin.report(&patch, T2).expect("valid");
        prop_assert_eq!(once, twin.reported.properties);
    }

    #[test]
    fn a_replacement_forgets_what_was(base in valid_patch(), content in valid_patch()) {
        let change = |desired: &Map<String, Value>| TwinChange { tags: None, desired: Some(desired.clone()) };
        let (mut twin, mut fresh) = (Twin::new(T1), Twin::new(T1));
        twin.apply(ChangeMode::Replace, &change(&base), T1).expect("valid");
        let before = twin.desired.properties.clone();
        twin.apply(ChangeMode::Replace, &change(&content), T2).expect("valid");
        fresh.apply(ChangeMode::Replace, &change(&content), T2).expect("valid");
        prop_assert_eq!(&twin.desired.properties, &fresh.desired.properties);
        assert_mirrors(&twin.desired.properties, &Value::Object(twin.desired.metadata.clone()), true);

        // A device that merges the notification into what it had ends with the new content.
        let told = desired_notification(ChangeMode::Replace, &content, &before, twin.desired.version);
        let mut told = parse_object(&told, "told").expect("an object");
        told.remove("$version");
        let mut device = before;
        reference_merge(&mut device, &told);
        prop_assert_eq!(device, twin.desired.properties);
    }

    #[test]
    fn arbitrary_json_never_panics(content in btree_map(".{0,6}", any_json(), 0..6)) {
        let content: Map<String, Value> = content.into_iter().collect();
        let mut twin = Twin::new(T1);
        for mode in [ChangeMode::Patch, ChangeMode::Replace] {
            let before = twin.clone();
            let change = TwinChange { tags: Some(content.clone()), desired: Some(content.clone()) };
            match twin.apply(mode, &change, T2) {
                Err(_) => prop_assert_eq!(&twin, &before),
                Ok(()) => assert_mirrors(
                    &twin.desired.properties,
                    &Value::Object(twin.desired.metadata.clone()),
                    twin.desired.version > 1,
                ),
            }
        }
        let _ = twin.report(&content, T2);
        prop_assert!(serde_json::from_slice::<Value>(&twin.device_json()).is_ok());
        let told = desired_notification(ChangeMode::Replace, &content, &twin.desired.properties, 2);
        prop_assert!(serde_json::from_slice::<Value>(&told).is_ok());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..200)) {
        let _ = parse_object(&bytes, "the patch");
    }
}
