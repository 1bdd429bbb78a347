//! Sections and their order; that reading and writing agree is shown in `tests/properties.rs`.

use super::*;
use crate::error::DecodeError;
use crate::types::{ListBuf, Value};

fn written(write: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut Writer::new(&mut out));
    out
}

#[test]
fn telemetry() {
    let bytes = written(|writer| {
        writer
            .properties(&Properties {
                message_id: Some(MessageId::String("m1")),
                content_type: Some("application/json"),
                ..Properties::default()
            })
            .application_properties(|map| {
                map.string("level", &Value::String("storm"));
            })
            .data(b"{}");
    });
    let message = Message::decode(&bytes).expect("a message");
    assert_eq!(message.properties.message_id, Some(MessageId::String("m1")));
    assert_eq!(message.properties.content_type, Some("application/json"));
    let properties = message.application_properties.expect("properties");
    assert_eq!(properties.get("level"), Some(Value::String("storm")));
    assert_eq!(message.body.as_bytes(), Some(&b"{}"[..]));
    let mut again = Vec::new();
    message.encode(&mut again);
    assert_eq!(again, bytes);
}

/// azure-iot-sdk-c writes properties, application properties, data, annotations.
#[test]
fn sections_in_any_order() {
    let bytes = written(|writer| {
        writer.properties(&Properties::default()).data(b"1");
        writer.message_annotations(|map| {
            map.symbol("x", &Value::Int(1));
        });
        writer.data(b"2");
    });
    let message = Message::decode(&bytes).expect("a message");
    assert!(message.message_annotations.is_some());
    let Body::Data(data) = message.body else {
        panic!("{:?}", message.body)
    };
    assert_eq!(data.iter().collect::<Vec<_>>(), [b"1", b"2"]);
    assert_eq!((data.len(), message.body.as_bytes()), (2, None));
}

/// amqp.md 3.4: each Data section of a batch is a message.
#[test]
fn batch() {
    let bytes = written(|writer| {
        for text in ["a", "b"] {
            writer.data_message(|inner| {
                inner
                    .properties(&Properties {
                        message_id: Some(MessageId::String(text)),
                        ..Properties::default()
                    })
                    .data(text.as_bytes());
            });
        }
    });
    let message = Message::decode(&bytes).expect("a batch");
    let Body::Data(data) = message.body else {
        panic!("{:?}", message.body)
    };
    let bodies: Vec<_> = data
        .iter()
        .map(|inner| {
            Message::decode(inner)
                .expect("a message")
                .body
                .as_bytes()
                .map(<[u8]>::to_vec)
        })
        .collect();
    assert_eq!(bodies, [Some(b"a".to_vec()), Some(b"b".to_vec())]);
}

#[test]
fn bodies() {
    assert_eq!(Message::decode(b"").expect("no section").body, Body::Empty);
    let value = written(|writer| {
        writer.value(&Value::String("token"));
    });
    let message = Message::decode(&value).expect("a message");
    assert_eq!(message.body, Body::Value(Value::String("token")));
    assert_eq!(message.body.as_bytes(), Some(&b"token"[..]));
    let mut list = ListBuf::new();
    list.push(&Value::Int(1));
    let sequences = written(|writer| {
        writer.sequence(list.as_list()).sequence(list.as_list());
    });
    let Body::Sequences(lists) = Message::decode(&sequences).expect("a message").body else {
        panic!("not sequences")
    };
    assert_eq!(lists.iter().map(|list| list.len()).collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn malformed_messages() {
    let twice = written(|writer| {
        writer
            .properties(&Properties::default())
            .properties(&Properties::default());
    });
    assert_eq!(Message::decode(&twice), Err(DecodeError::Section(0x73)));
    let mixed = written(|writer| {
        writer.data(b"").value(&Value::Null);
    });
    assert_eq!(Message::decode(&mixed), Err(DecodeError::Section(0x77)));
    assert_eq!(Message::decode(b"x"), Err(DecodeError::NotComposite));
    assert_eq!(
        Message::decode(b"\x00\x53\x79\x40"),
        Err(DecodeError::Descriptor(0x79))
    );
    assert_eq!(
        Message::decode(b"\x00\x53\x75\xa1\x00"),
        Err(DecodeError::NotComposite),
        "data must be binary"
    );
    assert_eq!(
        Message::decode(b"\x00\x53\x75\xa0\x05"),
        Err(DecodeError::Truncated)
    );
}

/// Answers repeat an id with its type (amqp.md 2.3).
#[test]
fn ids_keep_their_type() {
    for id in [
        MessageId::Ulong(7),
        MessageId::Uuid([9; 16]),
        MessageId::Binary(b"b"),
        MessageId::String("s"),
    ] {
        let properties = Properties {
            correlation_id: Some(id),
            ..Properties::default()
        };
        let bytes = written(|writer| {
            writer.properties(&properties);
        });
        assert_eq!(Message::decode(&bytes).expect("a message").properties, properties);
        assert_eq!(id.to_buf().as_id(), id);
    }
}

/// Scripts write integers for times, and strings for symbols.
#[test]
fn lenient_fields() {
    let fields = b"\x40\x40\x40\x40\x40\x40\xa1\x02ct\x40\x81\x00\x00\x00\x00\x00\x00\x00\x05";
    let size = u8::try_from(fields.len() + 1).expect("short");
    let bytes = [&[0x00, 0x53, 0x73, 0xc0, size, 9], &fields[..]].concat();
    let properties = Message::decode(&bytes).expect("a message").properties;
    assert_eq!(properties.content_type, Some("ct"));
    assert_eq!(properties.absolute_expiry_time, Some(5));
}

#[test]
fn header() {
    let header = Header {
        durable: true,
        ttl: Some(9),
        delivery_count: 2,
        ..Header::default()
    };
    let bytes = written(|writer| {
        writer.header(&header).footer(|map| {
            map.symbol("f", &Value::Null);
        });
    });
    let message = Message::decode(&bytes).expect("a message");
    assert_eq!(message.header, Some(header));
    assert!(message.footer.is_some());
    let short = Message::decode(b"\x00\x53\x70\x45").expect("a message");
    assert_eq!(short.header, Some(Header::default()));
}
