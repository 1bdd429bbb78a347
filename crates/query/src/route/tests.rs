use serde_json::json;

use super::*;

fn decide(text: &str, sample: &Sample, place: Place) -> Outcome {
    let mut symbols = Symbols::default();
    let condition = Condition::compile(text, &mut symbols, place).expect("compiles");
    condition.decide(&sample.with(&symbols))
}

fn fault(text: &str) -> QueryError {
    Condition::compile(text, &mut Symbols::default(), Place::default()).expect_err("does not compile")
}

#[test]
fn references_are_shared_between_conditions() {
    let mut symbols = Symbols::default();
    for text in [
        "level = 'a' AND $body.x = 1",
        "LEVEL = 'b'",
        "$body.x = 2 AND $contentType = 'x'",
    ] {
        let _ = Condition::compile(text, &mut symbols, Place::default()).expect("compiles");
    }
    assert_eq!(symbols.properties(), ["level", "$body.x", "$contenttype"]);
    assert_eq!(symbols.property_slot("Level"), Some(0));
    assert_eq!((symbols.body_paths().len(), symbols.systems().len()), (1, 1));
}

#[test]
fn bodies_are_asked_only_as_json_objects_in_a_known_encoding() {
    let utf16 = |text: &str| {
        text.encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect::<Vec<u8>>()
    };
    let utf32 = |text: &str| {
        text.chars()
            .flat_map(|c| u32::from(c).to_le_bytes())
            .collect::<Vec<u8>>()
    };
    let object = r#"{"a":"ü"}"#;
    let json = Some("application/json");
    for (content_type, encoding, body, expected) in [
        (json, Some("utf-8"), object.as_bytes().to_vec(), Ok(())),
        (
            Some("APPLICATION/json"),
            Some("UTF-8"),
            object.as_bytes().to_vec(),
            Ok(()),
        ),
        (
            json,
            Some("utf-8"),
            format!("\u{feff}{object}").into_bytes(),
            Ok(()),
        ),
        (json, Some("utf-16"), utf16(object), Ok(())),
        (json, Some("utf-16"), utf16(&format!("\u{feff}{object}")), Ok(())),
        (json, Some("utf-32"), utf32(object), Ok(())),
        (
            Some("application/json; charset=utf-8"),
            Some("utf-8"),
            b"{}".to_vec(),
            Err(BodyFault::ContentType),
        ),
        (None, Some("utf-8"), b"{}".to_vec(), Err(BodyFault::ContentType)),
        (json, None, b"{}".to_vec(), Err(BodyFault::ContentEncoding)),
        (
            json,
            Some("latin-1"),
            b"{}".to_vec(),
            Err(BodyFault::ContentEncoding),
        ),
        (json, Some("utf-8"), b"[1]".to_vec(), Err(BodyFault::NotAnObject)),
        (json, Some("utf-8"), b"{".to_vec(), Err(BodyFault::Json)),
        (json, Some("utf-8"), b"\xff".to_vec(), Err(BodyFault::Json)),
        (json, Some("utf-16"), b"{}\0".to_vec(), Err(BodyFault::Text)),
        (json, Some("utf-16"), vec![0, 0xd8], Err(BodyFault::Text)),
        (json, Some("utf-32"), vec![0, 0xd8, 0, 0], Err(BodyFault::Text)),
    ] {
        let found = parse_body(content_type, encoding, &body).map(|_| ());
        assert_eq!(found, expected, "{content_type:?} {encoding:?} {body:?}");
    }
}

#[test]
fn twin_changes_are_looked_into() {
    let place = Place {
        twin_changes: true,
        ..Place::default()
    };
    let change = json!({"version": 3, "properties": {"reported": {"firmware": {"version": null}}}});
    let sample = Sample {
        system: vec![
            (SystemName::ContentType, "application/json".to_owned()),
            (SystemName::ContentEncoding, "utf-8".to_owned()),
        ],
        body: change.to_string().into_bytes(),
        ..Sample::default()
    };
    for (text, expected) in [
        (
            "twin_change_includes(properties.reported.firmware.version)",
            Outcome::True,
        ),
        (
            "twin_change_includes('properties.reported.firmware')",
            Outcome::True,
        ),
        ("NOT twin_change_includes(tags.site)", Outcome::True),
        (
            "twin_change_includes(properties.desired.firmware)",
            Outcome::False,
        ),
    ] {
        assert_eq!(decide(text, &sample, place), expected, "{text}");
    }
    for text in [
        "twin_change_includes(x.y)",
        "twin_change_includes()",
        "twin_change_includes(tags.x, tags.y)",
    ] {
        assert!(
            Condition::compile(text, &mut Symbols::default(), place).is_err(),
            "{text}"
        );
    }
}

#[test]
fn edge_conditions_have_no_twin() {
    let place = Place {
        no_twin: true,
        ..Place::default()
    };
    assert!(Condition::compile("$twin.tags.x = 1", &mut Symbols::default(), place).is_err());
}

#[test]
fn constants_are_known_beforehand() {
    let constant = |text| {
        let condition = Condition::compile(text, &mut Symbols::default(), Place::default());
        condition.expect("compiles").constant()
    };
    assert_eq!(constant("true"), Some(Outcome::True));
    assert_eq!(constant("(false)"), Some(Outcome::False));
    assert_eq!(constant("  "), Some(Outcome::Undefined));
    assert_eq!(constant("a = 'b'"), None);
}

#[test]
fn deep_and_long_conditions_are_refused_and_bounded_ones_evaluate() {
    let nested = |depth: usize| format!("{}true{}", "(".repeat(depth), ")".repeat(depth));
    assert_eq!(
        decide(&nested(50), &Sample::default(), Place::default()),
        Outcome::True
    );
    assert!(fault(&nested(51)).message.contains("nested"));
    assert!(fault(&"NOT ".repeat(51)).message.contains("nested"));
    let chained = |length: usize| vec!["1"; length - 1].join(" + ") + " > 0";
    assert_eq!(
        decide(&chained(501), &Sample::default(), Place::default()),
        Outcome::True
    );
    assert!(fault(&chained(503)).message.contains("operators"));
    assert!(
        fault(&" ".repeat(CONDITION_BYTES_MAX + 1))
            .message
            .contains("longer")
    );
}

#[test]
fn places_are_counted_in_lines_and_characters() {
    let error = fault("a = 'ü' AND\n  b > 3");
    assert_eq!((error.start.line, error.start.column), (2, 3));
    assert_eq!((error.end.line, error.end.column), (2, 8));
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,60}") {
            let _ = Condition::compile(&text, &mut Symbols::default(), Place::default());
        }

        #[test]
        fn no_soup_of_tokens_panics(
            words in prop::collection::vec(
                prop::sample::select(vec![
                    "a", "$body.x", "$twin.tags.y", "{", "}", "$contentType", "(", ")", ",", "=", "!=", "<", "+", "-",
                    "NOT", "AND", "or", "??", "||", "1", "-2.5", "'s'", "true", "null", "undefined", "length(",
                    "concat(", "as_number(", "substring(", "is_defined(", "power(",
                ]),
                0..14,
            )
        ) {
            let text = words.join(" ");
            let mut symbols = Symbols::default();
            if let Ok(condition) = Condition::compile(&text, &mut symbols, Place::default()) {
                let sample = Sample {
                    properties: [("a".to_owned(), "1".to_owned())].into(),
                    twin: json!({"tags": {"y": 2}}),
                    ..Sample::default()
                };
                let _ = condition.decide(&sample.with(&symbols));
            }
        }
    }
}
