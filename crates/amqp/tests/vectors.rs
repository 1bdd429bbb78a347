//! Reads `tests/wire/amqp-vectors.json`: values and messages that other implementations wrote (`vectors.py` makes the
//! file). What is read must be what they were given to write, and must come out the same when it is written and read
//! again.

use std::fmt::Write;
use std::path::Path;

use holdfast_amqp::message::{Body, MessageId};
use holdfast_amqp::types::encode_value;
use holdfast_amqp::{Message, Value};
use serde::Deserialize;
use serde_json::Value as Json;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    name: String,
    by: String,
    kind: String,
    bytes: String,
    shows: Json,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string");
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("ascii"), 16).expect("hex"))
        .collect()
}

fn show(value: &Value<'_>) -> String {
    let list = |items: Vec<String>| items.join(", ");
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => format!("bool:{value}"),
        Value::Ubyte(value) => format!("ubyte:{value}"),
        Value::Ushort(value) => format!("ushort:{value}"),
        Value::Uint(value) => format!("uint:{value}"),
        Value::Ulong(value) => format!("ulong:{value}"),
        Value::Byte(value) => format!("byte:{value}"),
        Value::Short(value) => format!("short:{value}"),
        Value::Int(value) => format!("int:{value}"),
        Value::Long(value) => format!("long:{value}"),
        Value::Float(value) => format!("float:{value}"),
        Value::Double(value) => format!("double:{value}"),
        Value::Char(value) => format!("char:{value}"),
        Value::Timestamp(value) => format!("timestamp:{value}"),
        Value::Uuid(value) => format!("uuid:{}", hex(value)),
        Value::Binary(value) => format!("binary:{}", hex(value)),
        Value::String(value) => format!("string:{value}"),
        Value::Symbol(value) => format!("symbol:{value}"),
        Value::List(items) => format!("list[{}]", list(items.iter().map(|item| show(&item)).collect())),
        Value::Array(items) => format!("array[{}]", list(items.iter().map(|item| show(&item)).collect())),
        Value::Map(map) => {
            let entries = map
                .iter()
                .map(|(key, value)| format!("{}={}", show(&key), show(&value)));
            format!("map{{{}}}", list(entries.collect()))
        }
        Value::Described(described) => {
            format!(
                "described({}, {})",
                show(&described.descriptor()),
                show(&described.value())
            )
        }
        other => format!("{other:?}"),
    }
}

fn value(vector: &Vector, bytes: &[u8]) {
    let value = Value::decode(bytes).expect("a value");
    assert_eq!(show(&value), vector.shows.as_str().expect("text"));
    let mut again = Vec::new();
    encode_value(&mut again, &value);
    assert_eq!(Value::decode(&again), Ok(value));
    assert!(again.len() <= bytes.len(), "not longer than theirs");
}

/// A field of a message by the name it has in the vectors.
fn field(message: &Message<'_>, name: &str) -> Json {
    let properties = &message.properties;
    let id = |id: Option<MessageId<'_>>| id.map(|id| show(&id.to_value())).into();
    let map = |map: Option<holdfast_amqp::types::Map<'_>>| map.map(|map| show(&Value::Map(map))).into();
    match name {
        "header" => message
            .header
            .map(|header| {
                format!(
                    "durable={} priority={} ttl={} first={} count={}",
                    header.durable,
                    header.priority,
                    header.ttl.map_or("none".to_owned(), |ttl| ttl.to_string()),
                    header.first_acquirer,
                    header.delivery_count
                )
            })
            .into(),
        "message_id" => id(properties.message_id),
        "correlation_id" => id(properties.correlation_id),
        "user_id" => properties.user_id.map(hex).into(),
        "to" => properties.to.into(),
        "subject" => properties.subject.into(),
        "reply_to" => properties.reply_to.into(),
        "content_type" => properties.content_type.into(),
        "content_encoding" => properties.content_encoding.into(),
        "expiry" => properties.absolute_expiry_time.into(),
        "creation" => properties.creation_time.into(),
        "group_id" => properties.group_id.into(),
        "group_sequence" => properties.group_sequence.into(),
        "reply_to_group_id" => properties.reply_to_group_id.into(),
        "application_properties" => map(message.application_properties),
        "annotations" => map(message.message_annotations),
        "body" => match &message.body {
            Body::Data(data) => data
                .iter()
                .fold("data".to_owned(), |text, bytes| text + " " + &hex(bytes))
                .into(),
            Body::Value(value) => format!("value {}", show(value)).into(),
            other => format!("{other:?}").into(),
        },
        other => panic!("no field {other}"),
    }
}

fn message(vector: &Vector, bytes: &[u8]) {
    let message = Message::decode(bytes).expect("a message");
    for (name, expected) in vector.shows.as_object().expect("fields") {
        assert_eq!(field(&message, name), *expected, "{name}");
    }
    let mut again = Vec::new();
    message.encode(&mut again);
    assert_eq!(Message::decode(&again), Ok(message));
}

#[test]
fn vectors_of_others() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/wire/amqp-vectors.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let vectors: Vec<Vector> = serde_json::from_str(&text).expect("vectors");
    assert!(!vectors.is_empty());
    for vector in &vectors {
        eprintln!("{} by {}: {}", vector.name, vector.by, vector.bytes);
        let bytes = unhex(&vector.bytes);
        match vector.kind.as_str() {
            "value" => value(vector, &bytes),
            "message" => message(vector, &bytes),
            other => panic!("no kind {other}"),
        }
    }
}
