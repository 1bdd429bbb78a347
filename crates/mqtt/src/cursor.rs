//! Reading and writing of the field types of section 1.5: integers, strings, binary data, variable length integers.

use crate::codec::PacketId;
use crate::error::{DecodeError, EncodeError};

/// Largest value of a variable length integer (2.2.3).
pub(crate) const VARINT_MAX: usize = 268_435_455;

/// Reads fields off the front of one packet's body.
#[derive(Clone, Copy)]
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    #[inline]
    pub(crate) fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    #[inline]
    pub(crate) fn rest(self) -> &'a [u8] {
        self.rest
    }

    #[inline]
    pub(crate) fn is_empty(self) -> bool {
        self.rest.is_empty()
    }

    #[inline]
    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        let (&first, rest) = self.rest.split_first().ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(first)
    }

    #[inline]
    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        let (bytes, rest) = self.rest.split_first_chunk::<2>().ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(u16::from_be_bytes(*bytes))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        let (bytes, rest) = self.rest.split_first_chunk::<4>().ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(u32::from_be_bytes(*bytes))
    }

    #[inline]
    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (bytes, rest) = self.rest.split_at_checked(len).ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(bytes)
    }

    /// Binary data with a two-byte length.
    #[inline]
    pub(crate) fn binary(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.u16()?;
        self.take(usize::from(len))
    }

    /// A UTF-8 string with a two-byte length.
    #[inline]
    pub(crate) fn string(&mut self) -> Result<&'a str, DecodeError> {
        let bytes = self.binary()?;
        if has_null(bytes) {
            return Err(DecodeError::NullCharacter);
        }
        std::str::from_utf8(bytes).map_err(|_| DecodeError::Utf8)
    }

    #[inline]
    pub(crate) fn topic(&mut self) -> Result<&'a str, DecodeError> {
        let topic = self.string()?;
        if topic.is_empty() {
            return Err(DecodeError::EmptyTopic);
        }
        Ok(topic)
    }

    #[inline]
    pub(crate) fn packet_id(&mut self) -> Result<PacketId, DecodeError> {
        PacketId::new(self.u16()?).ok_or(DecodeError::PacketIdZero)
    }

    /// A variable byte integer of MQTT 5, which must have the shortest form (v5 MQTT-1.5.5-1).
    pub(crate) fn varint(&mut self) -> Result<usize, DecodeError> {
        match peek_varint(self.rest)? {
            None => Err(DecodeError::Truncated),
            Some((value, len)) if len == varint_len(value) => {
                self.take(len)?;
                Ok(value)
            }
            Some(_) => Err(DecodeError::RemainingLength),
        }
    }

    #[inline]
    pub(crate) fn finish(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::TrailingBytes)
        }
    }
}

/// Without early exit: the compiler turns this into vector code, and valid input is read to its end anyway.
#[inline]
fn has_null(bytes: &[u8]) -> bool {
    bytes.iter().fold(false, |found, &byte| found | (byte == 0))
}

/// Value and encoded length of the variable length integer at the front; `None` when more bytes are needed.
#[inline]
pub(crate) fn peek_varint(bytes: &[u8]) -> Result<Option<(usize, usize)>, DecodeError> {
    let mut value = 0usize;
    for (index, &byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(Some((value, index + 1)));
        }
    }
    if bytes.len() >= 4 {
        Err(DecodeError::RemainingLength)
    } else {
        Ok(None)
    }
}

/// Bytes the variable length integer takes.
#[inline]
pub(crate) const fn varint_len(value: usize) -> usize {
    match value {
        0..=127 => 1,
        128..=16_383 => 2,
        16_384..=2_097_151 => 3,
        _ => 4,
    }
}

#[inline]
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: usize) {
    debug_assert!(value <= VARINT_MAX);
    while value > 127 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Starts a packet: reserves its whole size, writes the fixed header.
#[inline]
pub(crate) fn put_header(out: &mut Vec<u8>, first: u8, remaining: usize) -> Result<(), EncodeError> {
    if remaining > VARINT_MAX {
        return Err(EncodeError::PacketTooLong);
    }
    out.reserve(1 + varint_len(remaining) + remaining);
    out.push(first);
    put_varint(out, remaining);
    Ok(())
}

/// Writes a binary field whose length [`check_binary`] has accepted.
#[inline]
pub(crate) fn put_binary(out: &mut Vec<u8>, bytes: &[u8]) {
    debug_assert!(bytes.len() <= usize::from(u16::MAX));
    out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Encoded size of a binary field, if it fits one.
#[inline]
pub(crate) fn check_binary(bytes: &[u8]) -> Result<usize, EncodeError> {
    if bytes.len() > usize::from(u16::MAX) {
        return Err(EncodeError::FieldTooLong);
    }
    Ok(2 + bytes.len())
}

/// Encoded size of a string field, if it fits one.
#[inline]
pub(crate) fn check_string(string: &str) -> Result<usize, EncodeError> {
    if has_null(string.as_bytes()) {
        return Err(EncodeError::NullCharacter);
    }
    check_binary(string.as_bytes())
}

/// Encoded size of a topic field, if it fits one.
#[inline]
pub(crate) fn check_topic(topic: &str) -> Result<usize, EncodeError> {
    if topic.is_empty() {
        return Err(EncodeError::EmptyTopic);
    }
    check_string(topic)
}
