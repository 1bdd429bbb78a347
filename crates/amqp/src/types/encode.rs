//! Writing values, in their shortest encoding where that is free.

use super::code;
use super::value::{Array, Described, List, Map, Symbols, Value};

/// Appends a value.
pub fn encode_value(out: &mut Vec<u8>, value: &Value<'_>) {
    match *value {
        Value::Null => out.push(code::NULL),
        Value::Bool(value) => boolean(out, value),
        Value::Ubyte(value) => ubyte(out, value),
        Value::Ushort(value) => fixed(out, code::USHORT, &value.to_be_bytes()),
        Value::Uint(value) => uint(out, value),
        Value::Ulong(value) => ulong(out, value),
        Value::Byte(value) => fixed(out, code::BYTE, &value.to_be_bytes()),
        Value::Short(value) => fixed(out, code::SHORT, &value.to_be_bytes()),
        Value::Int(value) => match i8::try_from(value) {
            Ok(small) => fixed(out, code::SMALL_INT, &small.to_be_bytes()),
            Err(_) => fixed(out, code::INT, &value.to_be_bytes()),
        },
        Value::Long(value) => match i8::try_from(value) {
            Ok(small) => fixed(out, code::SMALL_LONG, &small.to_be_bytes()),
            Err(_) => fixed(out, code::LONG, &value.to_be_bytes()),
        },
        Value::Float(value) => fixed(out, code::FLOAT, &value.to_be_bytes()),
        Value::Double(value) => fixed(out, code::DOUBLE, &value.to_be_bytes()),
        Value::Decimal32(value) => fixed(out, code::DECIMAL32, &value),
        Value::Decimal64(value) => fixed(out, code::DECIMAL64, &value),
        Value::Decimal128(value) => fixed(out, code::DECIMAL128, &value),
        Value::Char(value) => fixed(out, code::CHAR, &u32::from(value).to_be_bytes()),
        Value::Timestamp(value) => fixed(out, code::TIMESTAMP, &value.to_be_bytes()),
        Value::Uuid(value) => fixed(out, code::UUID, &value),
        Value::Binary(value) => binary(out, value),
        Value::String(value) => string(out, value),
        Value::Symbol(value) => symbol(out, value),
        Value::List(value) => list_view(out, value),
        Value::Map(value) => map(out, value),
        Value::Array(value) => array(out, value),
        Value::Described(value) => described(out, value),
    }
}

#[inline]
fn fixed(out: &mut Vec<u8>, code: u8, bytes: &[u8]) {
    out.push(code);
    out.extend_from_slice(bytes);
}

#[inline]
pub(crate) fn null(out: &mut Vec<u8>) {
    out.push(code::NULL);
}

#[inline]
pub(crate) fn boolean(out: &mut Vec<u8>, value: bool) {
    out.push(if value { code::TRUE } else { code::FALSE });
}

#[inline]
pub(crate) fn ubyte(out: &mut Vec<u8>, value: u8) {
    out.extend_from_slice(&[code::UBYTE, value]);
}

#[inline]
pub(crate) fn ushort(out: &mut Vec<u8>, value: u16) {
    fixed(out, code::USHORT, &value.to_be_bytes());
}

#[inline]
pub(crate) fn uint(out: &mut Vec<u8>, value: u32) {
    match u8::try_from(value) {
        Ok(0) => out.push(code::UINT0),
        Ok(small) => out.extend_from_slice(&[code::SMALL_UINT, small]),
        Err(_) => fixed(out, code::UINT, &value.to_be_bytes()),
    }
}

#[inline]
pub(crate) fn ulong(out: &mut Vec<u8>, value: u64) {
    match u8::try_from(value) {
        Ok(0) => out.push(code::ULONG0),
        Ok(small) => out.extend_from_slice(&[code::SMALL_ULONG, small]),
        Err(_) => fixed(out, code::ULONG, &value.to_be_bytes()),
    }
}

#[inline]
fn variable(out: &mut Vec<u8>, short: u8, long: u8, bytes: &[u8]) {
    match u8::try_from(bytes.len()) {
        Ok(len) => out.extend_from_slice(&[short, len]),
        Err(_) => fixed(out, long, &length(bytes.len()).to_be_bytes()),
    }
    out.extend_from_slice(bytes);
}

/// Nothing this crate writes comes near 4 GiB: frames and messages are bounded long before.
#[inline]
pub(crate) fn length(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[inline]
pub(crate) fn binary(out: &mut Vec<u8>, value: &[u8]) {
    variable(out, code::BINARY8, code::BINARY32, value);
}

#[inline]
pub(crate) fn string(out: &mut Vec<u8>, value: &str) {
    variable(out, code::STRING8, code::STRING32, value.as_bytes());
}

#[inline]
pub(crate) fn symbol(out: &mut Vec<u8>, value: &str) {
    variable(out, code::SYMBOL8, code::SYMBOL32, value.as_bytes());
}

/// An optional field: the value, or `null`.
#[inline]
pub(crate) fn optional<T>(out: &mut Vec<u8>, value: Option<T>, write: impl FnOnce(&mut Vec<u8>, T)) {
    match value {
        Some(value) => write(out, value),
        None => null(out),
    }
}

/// Always an array when there is more than nothing: azure-uamqp-c reads mechanisms in no other form.
pub(crate) fn symbols(out: &mut Vec<u8>, value: Symbols<'_>) {
    if value.is_empty() {
        return null(out);
    }
    let start = out.len();
    out.extend_from_slice(&[code::ARRAY32, 0, 0, 0, 0, 0, 0, 0, 0, code::SYMBOL32]);
    let mut count = 0;
    for symbol in value.iter() {
        count += 1;
        out.extend_from_slice(&length(symbol.len()).to_be_bytes());
        out.extend_from_slice(symbol.as_bytes());
    }
    patch_compound32(out, start, count);
}

/// Fills in size and count of a compound value in its wide form that begins at `start`.
pub(crate) fn patch_compound32(out: &mut [u8], start: usize, count: u32) {
    let size = length(out.len() - start - 5);
    out[start + 1..start + 5].copy_from_slice(&size.to_be_bytes());
    out[start + 5..start + 9].copy_from_slice(&count.to_be_bytes());
}

/// A list whose fields `write` appends; it returns their number. Short lists take the short form.
#[inline]
pub(crate) fn list(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> u8) {
    let start = out.len();
    out.extend_from_slice(&[code::LIST8, 0, 0]);
    let count = write(out);
    match u8::try_from(out.len() - start - 2) {
        Ok(size) => {
            out[start + 1] = size;
            out[start + 2] = count;
        }
        Err(_) => widen(out, start, code::LIST32, count.into()),
    }
}

/// Makes room for the long form of what was begun in the short one.
#[cold]
fn widen(out: &mut Vec<u8>, start: usize, code: u8, count: u32) {
    let from = start + 3;
    let end = out.len();
    out.extend_from_slice(&[0; 6]);
    out.copy_within(from..end, from + 6);
    out[start] = code;
    patch_compound32(out, start, count);
}

/// A described list: a performative, a section, a state (AMQP 1.4). The descriptor is always a smallulong, because
/// azure-eventhub for Python reads it at a fixed place.
#[inline]
pub(crate) fn described_list(out: &mut Vec<u8>, descriptor: u8, write: impl FnOnce(&mut Vec<u8>) -> u8) {
    descriptor_code(out, descriptor);
    list(out, write);
}

#[inline]
pub(crate) fn descriptor_code(out: &mut Vec<u8>, descriptor: u8) {
    out.extend_from_slice(&[code::DESCRIBED, code::SMALL_ULONG, descriptor]);
}

fn compound(out: &mut Vec<u8>, short: u8, long: u8, count: u32, parts: [&[u8]; 2]) {
    let len = parts[0].len() + parts[1].len();
    match (u8::try_from(len + 1), u8::try_from(count)) {
        (Ok(size), Ok(count)) => out.extend_from_slice(&[short, size, count]),
        _ => {
            fixed(out, long, &length(len + 4).to_be_bytes());
            out.extend_from_slice(&count.to_be_bytes());
        }
    }
    out.extend_from_slice(parts[0]);
    out.extend_from_slice(parts[1]);
}

fn list_view(out: &mut Vec<u8>, value: List<'_>) {
    if value.count == 0 {
        out.push(code::LIST0);
    } else {
        compound(out, code::LIST8, code::LIST32, value.count, [value.body, &[]]);
    }
}

pub(crate) fn map(out: &mut Vec<u8>, value: Map<'_>) {
    compound(out, code::MAP8, code::MAP32, value.count, [value.body, &[]]);
}

fn array(out: &mut Vec<u8>, value: Array<'_>) {
    compound(
        out,
        code::ARRAY8,
        code::ARRAY32,
        value.count,
        [value.constructor, value.body],
    );
}

pub(crate) fn described(out: &mut Vec<u8>, value: Described<'_>) {
    out.push(code::DESCRIBED);
    out.extend_from_slice(value.descriptor);
    out.push(value.code);
    out.extend_from_slice(value.body);
}
