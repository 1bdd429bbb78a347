//! Reading values. Nothing is allocated; nesting and element counts are bounded.

use super::code;
use super::value::{Array, Described, List, Map, Value};
use crate::error::DecodeError;

/// Deepest nesting of lists, maps, arrays and descriptions that is read.
pub const DEPTH_MAX: u8 = 16;

/// Most elements of an array whose elements take no bytes at all (such as an array of `true`): their number is not
/// bounded by the size of the input.
pub const EMPTY_ELEMENTS_MAX: u32 = 1024;

/// A position in encoded values.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    /// The bytes were checked before: views can be made without looking into them again.
    trusted: bool,
}

impl<'a> Reader<'a> {
    /// Starts at the first of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            trusted: false,
        }
    }

    pub(crate) fn trusted(bytes: &'a [u8]) -> Self {
        Self { bytes, trusted: true }
    }

    /// What is not read yet.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whether all is read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Behind the first byte that is left.
    #[inline]
    pub(crate) fn after_first(self) -> Self {
        Self {
            bytes: self.bytes.get(1..).unwrap_or_default(),
            ..self
        }
    }

    #[inline]
    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.bytes.split_at_checked(len).ok_or(DecodeError::Truncated)?;
        self.bytes = rest;
        Ok(head)
    }

    #[inline]
    pub(crate) fn fixed<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self
            .bytes
            .split_first_chunk::<N>()
            .ok_or(DecodeError::Truncated)?;
        self.bytes = rest;
        Ok(*head)
    }

    #[inline]
    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        let (first, rest) = self.bytes.split_first().ok_or(DecodeError::Truncated)?;
        self.bytes = rest;
        Ok(*first)
    }

    #[inline]
    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.fixed().map(u32::from_be_bytes)
    }

    /// Bytes with a length of one or four bytes before them.
    #[inline]
    pub(crate) fn variable(&mut self, wide: bool) -> Result<&'a [u8], DecodeError> {
        let len = if wide {
            self.u32()? as usize
        } else {
            usize::from(self.u8()?)
        };
        self.take(len)
    }

    #[inline]
    pub(crate) fn text(&mut self, wide: bool) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.variable(wide)?).map_err(|_| DecodeError::Utf8)
    }

    /// Reads the next value and checks it to its last element.
    ///
    /// # Errors
    /// [`DecodeError`]; the position is then undefined.
    pub fn value(&mut self) -> Result<Value<'a>, DecodeError> {
        self.nested(DEPTH_MAX)
    }

    fn nested(&mut self, depth: u8) -> Result<Value<'a>, DecodeError> {
        let code = self.u8()?;
        self.nested_of(code, depth)
    }

    /// Reads the value whose format code was read already.
    pub(crate) fn value_of(&mut self, code: u8) -> Result<Value<'a>, DecodeError> {
        self.nested_of(code, DEPTH_MAX)
    }

    fn nested_of(&mut self, format: u8, depth: u8) -> Result<Value<'a>, DecodeError> {
        Ok(match format {
            code::DESCRIBED => Value::Described(self.described(depth)?),
            code::NULL => Value::Null,
            code::TRUE => Value::Bool(true),
            code::FALSE => Value::Bool(false),
            code::BOOLEAN => Value::Bool(boolean(self.u8()?)?),
            code::UINT0 => Value::Uint(0),
            code::ULONG0 => Value::Ulong(0),
            code::UBYTE => Value::Ubyte(self.u8()?),
            code::BYTE => Value::Byte(i8::from_be_bytes(self.fixed()?)),
            code::SMALL_UINT => Value::Uint(self.u8()?.into()),
            code::SMALL_ULONG => Value::Ulong(self.u8()?.into()),
            code::SMALL_INT => Value::Int(i8::from_be_bytes(self.fixed()?).into()),
            code::SMALL_LONG => Value::Long(i8::from_be_bytes(self.fixed()?).into()),
            code::USHORT => Value::Ushort(u16::from_be_bytes(self.fixed()?)),
            code::SHORT => Value::Short(i16::from_be_bytes(self.fixed()?)),
            code::UINT => Value::Uint(self.u32()?),
            code::INT => Value::Int(i32::from_be_bytes(self.fixed()?)),
            code::FLOAT => Value::Float(f32::from_be_bytes(self.fixed()?)),
            code::CHAR => Value::Char(char::from_u32(self.u32()?).ok_or(DecodeError::Character)?),
            code::DECIMAL32 => Value::Decimal32(self.fixed()?),
            code::ULONG => Value::Ulong(u64::from_be_bytes(self.fixed()?)),
            code::LONG => Value::Long(i64::from_be_bytes(self.fixed()?)),
            code::DOUBLE => Value::Double(f64::from_be_bytes(self.fixed()?)),
            code::TIMESTAMP => Value::Timestamp(i64::from_be_bytes(self.fixed()?)),
            code::DECIMAL64 => Value::Decimal64(self.fixed()?),
            code::DECIMAL128 => Value::Decimal128(self.fixed()?),
            code::UUID => Value::Uuid(self.fixed()?),
            code::BINARY8 | code::BINARY32 => Value::Binary(self.variable(format == code::BINARY32)?),
            code::STRING8 | code::STRING32 => Value::String(self.text(format == code::STRING32)?),
            code::SYMBOL8 | code::SYMBOL32 => Value::Symbol(self.text(format == code::SYMBOL32)?),
            code::LIST0 => Value::List(List::default()),
            code::LIST8 | code::LIST32 => Value::List(self.list(format == code::LIST32, depth)?),
            code::MAP8 | code::MAP32 => Value::Map(self.map(format == code::MAP32, depth)?),
            code::ARRAY8 | code::ARRAY32 => Value::Array(self.array(format == code::ARRAY32, depth)?),
            other => return Err(DecodeError::Constructor(other)),
        })
    }

    /// Size, count and body of a list, map or array. The size counts the count (AMQP 1.2, compound encodings).
    #[inline]
    pub(crate) fn compound(&mut self, wide: bool) -> Result<(u32, &'a [u8]), DecodeError> {
        let mut inner = Self::new(self.variable(wide)?);
        let count = if wide { inner.u32()? } else { inner.u8()?.into() };
        Ok((count, inner.bytes))
    }

    fn list(&mut self, wide: bool, depth: u8) -> Result<List<'a>, DecodeError> {
        let (count, body) = self.compound(wide)?;
        self.check(body, count, depth)?;
        Ok(List { body, count })
    }

    pub(crate) fn map(&mut self, wide: bool, depth: u8) -> Result<Map<'a>, DecodeError> {
        let (count, body) = self.compound(wide)?;
        if count % 2 != 0 {
            return Err(DecodeError::OddMap);
        }
        self.check(body, count, depth)?;
        Ok(Map { body, count })
    }

    /// That `body` is exactly `count` values. Each takes a byte at least, so the loop is bounded by the input.
    fn check(&self, body: &'a [u8], count: u32, depth: u8) -> Result<(), DecodeError> {
        if self.trusted {
            return Ok(());
        }
        let depth = depth.checked_sub(1).ok_or(DecodeError::TooDeep)?;
        let mut inner = Self::new(body);
        for _ in 0..count {
            inner.nested(depth)?;
        }
        if inner.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::Size)
        }
    }

    fn array(&mut self, wide: bool, depth: u8) -> Result<Array<'a>, DecodeError> {
        let (count, content) = self.compound(wide)?;
        let mut inner = Self {
            bytes: content,
            trusted: self.trusted,
        };
        let depth = depth.checked_sub(1).ok_or(DecodeError::TooDeep)?;
        if inner.u8()? == code::DESCRIBED {
            inner.nested(depth)?;
            // A description of a description as element type is legal and pointless; it is refused as unknown.
            if inner.u8()? == code::DESCRIBED {
                return Err(DecodeError::Constructor(code::DESCRIBED));
            }
        }
        let body = inner.bytes;
        let constructor = &content[..content.len() - body.len()];
        if !self.trusted {
            if body.is_empty() && count > EMPTY_ELEMENTS_MAX {
                return Err(DecodeError::ArrayTooLong(count));
            }
            for _ in 0..count {
                let before = inner.bytes.len();
                inner.element_nested(constructor, depth)?;
                if inner.bytes.len() == before {
                    break; // Elements without bytes: one stands for all.
                }
            }
            if !inner.is_empty() {
                return Err(DecodeError::Size);
            }
        }
        Ok(Array {
            constructor,
            body,
            count,
        })
    }

    /// Reads an array element whose constructor stands at the head of the array.
    pub(crate) fn element(&mut self, constructor: &'a [u8]) -> Result<Value<'a>, DecodeError> {
        self.element_nested(constructor, DEPTH_MAX)
    }

    fn element_nested(&mut self, constructor: &'a [u8], depth: u8) -> Result<Value<'a>, DecodeError> {
        match constructor {
            [code] => self.nested_of(*code, depth),
            [code::DESCRIBED, descriptor @ .., code] => {
                let before = self.bytes;
                let depth = depth.checked_sub(1).ok_or(DecodeError::TooDeep)?;
                self.nested_of(*code, depth)?;
                let body = &before[..before.len() - self.bytes.len()];
                Ok(Value::Described(Described {
                    descriptor,
                    code: *code,
                    body,
                }))
            }
            _ => Err(DecodeError::Truncated),
        }
    }

    fn described(&mut self, depth: u8) -> Result<Described<'a>, DecodeError> {
        let depth = depth.checked_sub(1).ok_or(DecodeError::TooDeep)?;
        let before = self.bytes;
        self.nested(depth)?;
        let descriptor = &before[..before.len() - self.bytes.len()];
        let code = self.u8()?;
        let before = self.bytes;
        self.nested_of(code, depth)?;
        let body = &before[..before.len() - self.bytes.len()];
        Ok(Described {
            descriptor,
            code,
            body,
        })
    }
}

pub(crate) fn boolean(byte: u8) -> Result<bool, DecodeError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(DecodeError::Boolean(other)),
    }
}
