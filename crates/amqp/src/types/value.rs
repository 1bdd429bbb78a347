//! Borrowed values and views of compound ones.

use std::fmt;

use super::decode::Reader;

/// Any AMQP value (AMQP 1.6). Copying one copies at most a pointer, a length and a count.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Value<'a> {
    /// `null`
    Null,
    /// `boolean`
    Bool(bool),
    /// `ubyte`
    Ubyte(u8),
    /// `ushort`
    Ushort(u16),
    /// `uint`
    Uint(u32),
    /// `ulong`
    Ulong(u64),
    /// `byte`
    Byte(i8),
    /// `short`
    Short(i16),
    /// `int`
    Int(i32),
    /// `long`
    Long(i64),
    /// `float`
    Float(f32),
    /// `double`
    Double(f64),
    /// `decimal32`, passed through as encoded.
    Decimal32([u8; 4]),
    /// `decimal64`, passed through as encoded.
    Decimal64([u8; 8]),
    /// `decimal128`, passed through as encoded.
    Decimal128([u8; 16]),
    /// `char`
    Char(char),
    /// `timestamp`: milliseconds since 1970.
    Timestamp(i64),
    /// `uuid`
    Uuid([u8; 16]),
    /// `binary`
    Binary(&'a [u8]),
    /// `string`
    String(&'a str),
    /// `symbol`
    Symbol(&'a str),
    /// `list`
    List(List<'a>),
    /// `map`
    Map(Map<'a>),
    /// `array`
    Array(Array<'a>),
    /// A described type (AMQP 1.2).
    Described(Described<'a>),
}

impl<'a> Value<'a> {
    /// The text of a string or a symbol.
    #[must_use]
    pub fn as_str(&self) -> Option<&'a str> {
        match self {
            Self::String(text) | Self::Symbol(text) => Some(text),
            _ => None,
        }
    }

    /// Any whole number that fits.
    #[must_use]
    pub fn as_i64(&self) -> Option<i64> {
        Some(match *self {
            Self::Ubyte(n) => n.into(),
            Self::Ushort(n) => n.into(),
            Self::Uint(n) => n.into(),
            Self::Ulong(n) => i64::try_from(n).ok()?,
            Self::Byte(n) => n.into(),
            Self::Short(n) => n.into(),
            Self::Int(n) => n.into(),
            Self::Long(n) | Self::Timestamp(n) => n,
            _ => return None,
        })
    }

    /// Whether this is `null`.
    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }
}

/// A list (AMQP 1.6.22): checked elements that are still encoded.
#[derive(Clone, Copy, Default)]
pub struct List<'a> {
    pub(crate) body: &'a [u8],
    pub(crate) count: u32,
}

impl<'a> List<'a> {
    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The elements.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let mut reader = Reader::trusted(self.body);
        (0..self.count).map_while(move |_| reader.value().ok())
    }
}

/// A map (AMQP 1.6.23): checked keys and values that are still encoded, in their order.
#[derive(Clone, Copy, Default)]
pub struct Map<'a> {
    pub(crate) body: &'a [u8],
    /// Keys and values together, so always even.
    pub(crate) count: u32,
}

impl<'a> Map<'a> {
    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count as usize / 2
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The entries.
    pub fn iter(&self) -> impl Iterator<Item = (Value<'a>, Value<'a>)> + use<'a> {
        let mut reader = Reader::trusted(self.body);
        (0..self.count / 2).map_while(move |_| Some((reader.value().ok()?, reader.value().ok()?)))
    }

    /// The value of the first key with this text, be it a string or a symbol: clients differ.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        self.iter()
            .find(|(name, _)| name.as_str() == Some(key))
            .map(|(_, value)| value)
    }
}

/// An array (AMQP 1.6.24): elements of one type.
#[derive(Clone, Copy)]
pub struct Array<'a> {
    /// The constructor all elements share.
    pub(crate) constructor: &'a [u8],
    pub(crate) body: &'a [u8],
    pub(crate) count: u32,
}

impl<'a> Array<'a> {
    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The elements.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let mut reader = Reader::trusted(self.body);
        let constructor = self.constructor;
        (0..self.count).map_while(move |_| reader.element(constructor).ok())
    }
}

/// A value with a descriptor that says what it means (AMQP 1.2).
#[derive(Clone, Copy)]
pub struct Described<'a> {
    pub(crate) descriptor: &'a [u8],
    /// Format code of the value.
    pub(crate) code: u8,
    /// What follows the format code.
    pub(crate) body: &'a [u8],
}

impl<'a> Described<'a> {
    /// The descriptor: a symbol or a ulong.
    #[must_use]
    pub fn descriptor(&self) -> Value<'a> {
        Reader::trusted(self.descriptor).value().unwrap_or(Value::Null)
    }

    /// The value described.
    #[must_use]
    pub fn value(&self) -> Value<'a> {
        Reader::trusted(self.body)
            .value_of(self.code)
            .unwrap_or(Value::Null)
    }
}

/// A field of type `symbol` with `multiple="true"` (AMQP 1.4): nothing, one symbol, or an array of them.
#[derive(Clone, Copy, Default)]
pub enum Symbols<'a> {
    /// `null`
    #[default]
    None,
    /// A single symbol.
    One(&'a str),
    /// As read.
    Array(Array<'a>),
    /// To be written.
    Slice(&'a [&'a str]),
}

impl<'a> Symbols<'a> {
    /// The symbols.
    pub fn iter(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let (one, array, slice) = match *self {
            Self::None => (None, None, &[][..]),
            Self::One(symbol) => (Some(symbol), None, &[][..]),
            Self::Array(array) => (None, Some(array), &[][..]),
            Self::Slice(slice) => (None, None, slice),
        };
        let array = array.into_iter().flat_map(|array| array.iter());
        one.into_iter()
            .chain(array.filter_map(|value| value.as_str()))
            .chain(slice.iter().copied())
    }

    /// Whether the symbol is among them.
    #[must_use]
    pub fn contains(&self, symbol: &str) -> bool {
        self.iter().any(|other| other == symbol)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }
}

// Equality and output go by content: the same list may be encoded with one or four bytes of length.

impl PartialEq for List<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.count == other.count && self.iter().eq(other.iter())
    }
}

impl PartialEq for Map<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.count == other.count && self.iter().eq(other.iter())
    }
}

impl PartialEq for Array<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.count == other.count && self.iter().eq(other.iter())
    }
}

impl PartialEq for Described<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.descriptor() == other.descriptor() && self.value() == other.value()
    }
}

impl PartialEq for Symbols<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl fmt::Debug for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl fmt::Debug for Map<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl fmt::Debug for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{:?} {:?}", self.descriptor(), self.value())
    }
}

impl fmt::Debug for Symbols<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
