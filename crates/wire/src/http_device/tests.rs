//! Table tests from the REST contract, sections 15.1 to 15.3.

use holdfast_model::c2d::{AckMode, C2dDelivery, C2dMessage, LockToken};
use holdfast_model::event::{EventBlock, EventField, EventSource, Origin, Records};
use holdfast_model::{ErrorCode, Identity, Timestamp, limits};
use proptest::prelude::*;

use super::*;

fn block(records: &Records) -> EventBlock {
    let origin = Origin {
        source: EventSource::Telemetry,
        identity: Identity::device("d1").expect("an identity"),
        generation_id: 1,
        auth: holdfast_model::event::AuthMethod::IdentityKey,
    };
    let mut data = Vec::new();
    origin.encode(holdfast_model::event::EndpointSet::EVENTS, &mut data);
    data.extend_from_slice(records.as_bytes());
    EventBlock {
        partition: 0,
        first_sequence_number: 0,
        count: records.count(),
        enqueued_at: Timestamp::NEVER,
        data: data.into(),
    }
}

#[test]
fn every_header_name() {
    for (name, property) in SYSTEM_HEADERS {
        assert_eq!(header_key(name), Some(HeaderKey::System(*property)), "{name}");
        assert_eq!(
            header_key(&name.to_uppercase()),
            Some(HeaderKey::System(*property)),
            "{name}"
        );
    }
    assert_eq!(
        header_key("IoTHub-App-Level"),
        Some(HeaderKey::Application("Level"))
    );
    for other in [
        "iothub-app-",
        "content-type",
        "authorization",
        "iothub-",
        "",
        "ä",
        "iothub-äpp-x",
    ] {
        assert_eq!(header_key(other), None, "{other}");
    }
}

#[test]
fn headers_become_a_message() {
    let headers = [
        ("iothub-messageid", "m-1"),
        ("iothub-to", "/devices/d1/messages/events"),
        ("dt-subject", "thermo"),
        ("content-type", "binary/octet-stream"),
        ("iothub-app-Level", "3"),
        ("iothub-app-Level", "4"),
        ("IOTHUB-MESSAGEID", "m-2"),
    ];
    let message = read_message(headers, bytes::Bytes::from_static(b"x"));
    assert_eq!(message.system(SystemProperty::MessageId), Some("m-2"));
    assert_eq!(message.system(SystemProperty::Subject), Some("thermo"));
    assert_eq!(message.system(SystemProperty::ContentType), None);
    assert_eq!(message.properties, [("Level".to_owned(), Some("4".to_owned()))]);

    let mut records = Records::new();
    let mut record = records.record();
    write_record(headers, &mut record);
    let _ = record.finish(b"x");
    let block = block(&records);
    let event = block.events().next().expect("an event").expect("well formed");
    assert_eq!(event.fields().count(), 4);
    assert_eq!(event.system(SystemProperty::MessageId), Some("m-2"));
    assert!(
        event
            .fields()
            .any(|f| f == EventField::Application("Level", Some("4")))
    );
}

#[test]
fn batches_of_every_sdk() {
    // C: text bodies; C#: no flag; Java: flag true; Node: no properties.
    let body = r#"[
        {"body":"plain {text}","base64Encoded":false,"properties":{"iothub-app-a":"1"}},
        {"body":"aGVsbG8=","properties":{"iothub-messageid":"m","IoTHub-MessageId":"m2","other":"x"}},
        {"body":"aGVsbG8=","base64Encoded":true,"properties":{"iothub-app-n":5,"iothub-app-b":true,"iothub-app-z":null}},
        {"body":""}
    ]"#;
    let mut records = Records::new();
    assert_eq!(parse_batch(body.as_bytes(), &mut records), Ok(4));
    let block = block(&records);
    let events: Vec<_> = block.events().collect::<Result<_, _>>().expect("well formed");
    assert_eq!(events[0].body, b"plain {text}");
    assert_eq!(events[1].body, b"hello");
    assert_eq!(events[1].fields().count(), 1);
    let fields: Vec<_> = events[2].fields().collect();
    assert_eq!(
        fields,
        [
            EventField::Application("b", Some("true")),
            EventField::Application("n", Some("5")),
            EventField::Application("z", None),
        ]
    );
    assert_eq!(events[3].body, b"");
}

#[test]
fn bad_batches_leave_nothing_behind() {
    let many = format!("[{}]", vec![r#"{"body":""}"#; 501].join(","));
    let large = format!(r#"[{{"body":"{}"}}]"#, "A".repeat(limits::D2C_BYTES_MAX));
    for (body, code) in [
        ("", ErrorCode::IotHubFormatError),
        ("{}", ErrorCode::IotHubFormatError),
        (r#"[{"properties":{}}]"#, ErrorCode::IotHubFormatError),
        (r#"[{"body":5}]"#, ErrorCode::IotHubFormatError),
        ("[]", ErrorCode::ArgumentInvalid),
        (many.as_str(), ErrorCode::ArgumentInvalid),
        (
            r#"[{"body":""},{"body":"not base64"}]"#,
            ErrorCode::ArgumentInvalid,
        ),
        (
            r#"[{"body":"","properties":{"iothub-app-a":{}}}]"#,
            ErrorCode::ArgumentInvalid,
        ),
        (large.as_str(), ErrorCode::MessageTooLarge),
    ] {
        let mut records = Records::new();
        let error = parse_batch(body.as_bytes(), &mut records).expect_err("a bad batch");
        assert_eq!(error.code, code, "{}", body.get(..40).unwrap_or(body));
        assert!(records.is_empty());
    }
}

fn delivery() -> C2dDelivery {
    let mut message = Message::default();
    message.set_system(SystemProperty::MessageId, "m-1");
    message.set_system(SystemProperty::ContentType, "application/json");
    message.set_property("level", Some("3".into()));
    message.set_property("flag", None);
    message.set_property("not a name", Some("x".into()));
    message.set_property("evil", Some("a\r\nset-cookie: ä ".into()));
    C2dDelivery {
        lock: LockToken {
            sequence_number: 5,
            nonce: 1,
        },
        locked_until: Timestamp::from_seconds(1_800_000_000),
        delivery_count: 2,
        redelivered: false,
        message: C2dMessage {
            device: Identity::device("d1").expect("an identity"),
            generation_id: 1,
            message,
            ack: AckMode::Full,
            enqueued_at: Timestamp::from_seconds(0),
            expires_at: Timestamp::from_seconds(60),
            input: None,
        },
    }
}

#[test]
fn delivery_becomes_headers() {
    let headers = delivery_headers(&delivery());
    let expected = [
        ("ETag", "\"00000000-0000-0005-0000-000000000001\""),
        ("iothub-sequencenumber", "5"),
        ("iothub-to", "/devices/d1/messages/devicebound"),
        ("iothub-expiry", "1970-01-01T00:01:00Z"),
        ("iothub-ack", "full"),
        ("iothub-enqueuedtime", "1970-01-01T00:00:00Z"),
        ("iothub-deliverycount", "2"),
        ("iothub-messageid", "m-1"),
        ("ContentType", "application/json"),
        ("iothub-app-level", "3"),
        ("iothub-app-flag", ""),
        ("iothub-app-evil", "a%0D%0Aset-cookie: %C3%A4%20"),
    ];
    let headers: Vec<_> = headers.iter().map(|(n, v)| (n.as_ref(), v.as_str())).collect();
    assert_eq!(headers, expected);
}

#[test]
fn lock_token_is_read_from_the_etag() {
    let delivery = delivery();
    let headers = delivery_headers(&delivery);
    assert_eq!(LockToken::parse(&headers[0].1), Some(delivery.lock));
}

proptest! {
    #[test]
    fn any_property_makes_a_safe_header(key in any::<String>(), value in any::<String>()) {
        let mut delivery = delivery();
        delivery.message.message.set_property(key, Some(value));
        for (name, value) in delivery_headers(&delivery) {
            prop_assert!(name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':'));
            prop_assert!(value.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '));
        }
    }

    #[test]
    fn any_batch_is_read_or_refused(body in any::<Vec<u8>>()) {
        crate::fuzzing::batch_json(&body);
    }
}
