//! Encodings one by one; that reading and writing agree for all values is shown in `tests/properties.rs`.

use super::*;
use crate::error::DecodeError;

fn check(value: &Value<'_>, bytes: &[u8]) {
    let mut out = Vec::new();
    encode_value(&mut out, value);
    assert_eq!(out, bytes, "{value:?}");
    assert_eq!(Value::decode(bytes).as_ref(), Ok(value));
}

/// Another encoding of a value: read, never written.
fn reads(bytes: &[u8], value: &Value<'_>) {
    assert_eq!(Value::decode(bytes).as_ref(), Ok(value));
}

fn refused(bytes: &[u8], error: DecodeError) {
    assert_eq!(Value::decode(bytes), Err(error), "{bytes:02x?}");
}

/// AMQP 1.6.1 to 1.6.21.
#[test]
fn primitives() {
    check(&Value::Null, &[0x40]);
    check(&Value::Bool(true), &[0x41]);
    check(&Value::Bool(false), &[0x42]);
    check(&Value::Ubyte(200), &[0x50, 200]);
    check(&Value::Ushort(0x102), &[0x60, 1, 2]);
    check(&Value::Uint(0), &[0x43]);
    check(&Value::Uint(255), &[0x52, 255]);
    check(&Value::Uint(256), &[0x70, 0, 0, 1, 0]);
    check(&Value::Ulong(0), &[0x44]);
    check(&Value::Ulong(9), &[0x53, 9]);
    check(&Value::Ulong(1 << 40), &[0x80, 0, 0, 1, 0, 0, 0, 0, 0]);
    check(&Value::Byte(-1), &[0x51, 0xff]);
    check(&Value::Short(-2), &[0x61, 0xff, 0xfe]);
    check(&Value::Int(-3), &[0x54, 0xfd]);
    check(&Value::Int(200), &[0x71, 0, 0, 0, 200]);
    check(&Value::Long(127), &[0x55, 0x7f]);
    check(
        &Value::Long(-129),
        &[0x81, 255, 255, 255, 255, 255, 255, 255, 0x7f],
    );
    check(&Value::Float(1.0), &[0x72, 0x3f, 0x80, 0, 0]);
    check(&Value::Double(-2.0), &[0x82, 0xc0, 0, 0, 0, 0, 0, 0, 0]);
    check(&Value::Decimal32([1, 2, 3, 4]), &[0x74, 1, 2, 3, 4]);
    check(&Value::Char('é'), &[0x73, 0, 0, 0, 0xe9]);
    check(&Value::Timestamp(1), &[0x83, 0, 0, 0, 0, 0, 0, 0, 1]);
    check(&Value::Binary(b"ab"), &[0xa0, 2, b'a', b'b']);
    check(&Value::String("é"), &[0xa1, 2, 0xc3, 0xa9]);
    check(&Value::Symbol("x"), &[0xa3, 1, b'x']);
}

#[test]
fn other_encodings_are_read() {
    reads(&[0x56, 1], &Value::Bool(true));
    reads(&[0x70, 0, 0, 0, 0], &Value::Uint(0));
    reads(&[0x80, 0, 0, 0, 0, 0, 0, 0, 7], &Value::Ulong(7));
    reads(&[0x71, 0, 0, 0, 1], &Value::Int(1));
    reads(&[0x81, 0, 0, 0, 0, 0, 0, 0, 1], &Value::Long(1));
    reads(&[0xb1, 0, 0, 0, 1, b'a'], &Value::String("a"));
    reads(&[0xd0, 0, 0, 0, 4, 0, 0, 0, 0], &Value::List(List::default()));
    reads(&[0xc1, 1, 0], &Value::Map(Map::default()));
}

#[test]
fn length_takes_four_bytes_from_256() {
    for (len, head) in [(255, 2), (256, 5)] {
        let text = "x".repeat(len);
        let mut out = Vec::new();
        encode_value(&mut out, &Value::String(&text));
        assert_eq!(out.len(), len + head);
        reads(&out, &Value::String(&text));
    }
}

/// AMQP 1.6.22 to 1.6.24, 1.2.
#[test]
fn compound_values() {
    let mut list = ListBuf::new();
    list.push(&Value::Null);
    list.push(&Value::Uint(1));
    check(&Value::List(list.as_list()), &[0xc0, 4, 2, 0x40, 0x52, 1]);
    check(&Value::List(List::default()), &[0x45]);
    let mut map = MapBuf::new();
    map.symbol("k", &Value::Bool(true));
    check(&Value::Map(map.as_map()), &[0xc1, 5, 2, 0xa3, 1, b'k', 0x41]);
    assert_eq!(map.as_map().get("k"), Some(Value::Bool(true)));
    assert_eq!(map.as_map().get("l"), None);
    let array = ArrayBuf::strings(["a", "bc"]);
    let bytes = [0xe0, 13, 2, 0xb1, 0, 0, 0, 1, b'a', 0, 0, 0, 2, b'b', b'c'];
    check(&Value::Array(array.as_array()), &bytes);
    let texts: Vec<_> = array
        .as_array()
        .iter()
        .filter_map(|value| value.as_str())
        .collect();
    assert_eq!(texts, ["a", "bc"]);
    let described = DescribedBuf::new(&Value::Ulong(0x77), &Value::String("x"));
    check(
        &Value::Described(described.as_described()),
        &[0, 0x53, 0x77, 0xa1, 1, b'x'],
    );
}

#[test]
fn arrays_of_every_kind() {
    // Of lists, of described values, of values without bytes.
    let Ok(Value::Array(lists)) = Value::decode(&[0xe0, 8, 2, 0xc0, 1, 0, 3, 1, 0x53, 9]) else {
        panic!("an array of lists")
    };
    let lens: Vec<_> = lists
        .iter()
        .map(|value| {
            if let Value::List(list) = value {
                list.len()
            } else {
                9
            }
        })
        .collect();
    assert_eq!(lens, [0, 1]);
    let Ok(Value::Array(described)) = Value::decode(&[0xe0, 7, 2, 0, 0x53, 5, 0x50, 1, 2]) else {
        panic!("an array of described values")
    };
    let values: Vec<_> = described
        .iter()
        .map(|value| match value {
            Value::Described(described) => (described.descriptor(), described.value()),
            _ => (Value::Null, Value::Null),
        })
        .collect();
    let five = Value::Ulong(5);
    assert_eq!(values, [(five, Value::Ubyte(1)), (five, Value::Ubyte(2))]);
    let Ok(Value::Array(empty)) = Value::decode(&[0xe0, 2, 200, 0x41]) else {
        panic!("an array of true")
    };
    assert_eq!(
        empty.iter().filter(|value| *value == Value::Bool(true)).count(),
        200
    );
}

#[test]
fn malformed_values() {
    refused(&[], DecodeError::Truncated);
    refused(&[0x70, 0, 0], DecodeError::Truncated);
    refused(&[0xa1, 3, b'a'], DecodeError::Truncated);
    refused(&[0xb1, 255, 255, 255, 255, b'a'], DecodeError::Truncated);
    refused(&[0x41, 0x41], DecodeError::Size);
    refused(&[0x57], DecodeError::Constructor(0x57));
    refused(&[0x56, 2], DecodeError::Boolean(2));
    refused(&[0xa1, 1, 0xff], DecodeError::Utf8);
    refused(&[0x73, 0, 0, 0xd8, 0], DecodeError::Character);
    refused(&[0xc1, 2, 1, 0x40], DecodeError::OddMap);
    refused(&[0xc0, 3, 1, 0x40, 0x40], DecodeError::Size);
    refused(&[0xc0, 2, 2, 0x40], DecodeError::Truncated);
    refused(&[0xc0, 0], DecodeError::Truncated);
    refused(&[0, 0x53, 1], DecodeError::Truncated);
}

/// What is announced costs nothing: not memory, not time.
#[test]
fn announced_counts_are_bounded() {
    let announced = [0xff; 4];
    let mut bytes = vec![0xf0, 0, 0, 0, 5];
    bytes.extend(announced);
    bytes.push(0x40);
    refused(&bytes, DecodeError::ArrayTooLong(u32::MAX));
    bytes[4] = 6;
    bytes.push(1);
    refused(&bytes, DecodeError::Size);
    let mut list = vec![0xd0, 0, 0, 0, 4];
    list.extend(announced);
    refused(&list, DecodeError::Truncated);
}

#[test]
fn nesting_is_bounded() {
    let nest = |depth: usize| {
        let mut bytes = vec![0x40];
        for _ in 0..depth {
            let size = u32::try_from(bytes.len() + 4).expect("small").to_be_bytes();
            bytes.splice(0..0, [&[0xd0][..], &size, &[0, 0, 0, 1]].concat());
        }
        bytes
    };
    assert!(Value::decode(&nest(DEPTH_MAX.into())).is_ok());
    refused(&nest(usize::from(DEPTH_MAX) + 1), DecodeError::TooDeep);
    let described = [0u8; 10_000];
    refused(&described, DecodeError::TooDeep);
}

#[test]
fn symbols_of_all_forms() {
    let one = Symbols::One("a");
    let slice = Symbols::Slice(&["a"]);
    assert_eq!(one, slice);
    assert!(slice.contains("a") && !slice.contains("b"));
    assert!(Symbols::None.is_empty() && Symbols::Slice(&[]).is_empty());
    let mut out = Vec::new();
    encode::symbols(&mut out, one);
    assert_eq!(
        out,
        [0xf0, 0, 0, 0, 10, 0, 0, 0, 1, 0xb3, 0, 0, 0, 1, b'a'],
        "always an array"
    );
}
