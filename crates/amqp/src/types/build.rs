//! Compound values to be written.

use super::code;
use super::decode::Reader;
use super::encode::{self, encode_value, length};
use super::value::{Array, Described, List, Map, Value};

/// A list under construction.
#[derive(Debug, Clone, Default)]
pub struct ListBuf {
    bytes: Vec<u8>,
    count: u32,
}

impl ListBuf {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends an element.
    pub fn push(&mut self, value: &Value<'_>) {
        encode_value(&mut self.bytes, value);
        self.count += 1;
    }

    /// The list as a value.
    #[must_use]
    pub fn as_list(&self) -> List<'_> {
        List {
            body: &self.bytes,
            count: self.count,
        }
    }
}

/// A map under construction.
#[derive(Debug, Clone, Default)]
pub struct MapBuf {
    bytes: Vec<u8>,
    count: u32,
}

impl MapBuf {
    /// An empty map.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends an entry. The caller sees to it that keys are different (AMQP 1.6.23).
    pub fn push(&mut self, key: &Value<'_>, value: &Value<'_>) {
        encode_value(&mut self.bytes, key);
        encode_value(&mut self.bytes, value);
        self.count += 2;
    }

    /// Appends an entry with a symbol for its key, as annotations, link properties and error information have.
    pub fn symbol(&mut self, key: &str, value: &Value<'_>) {
        self.push(&Value::Symbol(key), value);
    }

    /// Appends an entry with a string for its key, as application properties have.
    pub fn string(&mut self, key: &str, value: &Value<'_>) {
        self.push(&Value::String(key), value);
    }

    /// The map as a value.
    #[must_use]
    pub fn as_map(&self) -> Map<'_> {
        Map {
            body: &self.bytes,
            count: self.count,
        }
    }
}

/// An array under construction. Only the element types that someone needs.
#[derive(Debug, Clone)]
pub struct ArrayBuf {
    bytes: Vec<u8>,
    count: u32,
}

impl ArrayBuf {
    /// An array of strings.
    #[must_use]
    pub fn strings<'s>(texts: impl IntoIterator<Item = &'s str>) -> Self {
        Self::texts(code::STRING32, texts)
    }

    /// An array of symbols.
    #[must_use]
    pub fn symbols<'s>(texts: impl IntoIterator<Item = &'s str>) -> Self {
        Self::texts(code::SYMBOL32, texts)
    }

    fn texts<'s>(constructor: u8, texts: impl IntoIterator<Item = &'s str>) -> Self {
        let mut bytes = vec![constructor];
        let mut count = 0;
        for text in texts {
            bytes.extend_from_slice(&length(text.len()).to_be_bytes());
            bytes.extend_from_slice(text.as_bytes());
            count += 1;
        }
        Self { bytes, count }
    }

    /// The array as a value.
    #[must_use]
    pub fn as_array(&self) -> Array<'_> {
        let (constructor, body) = self.bytes.split_at(1);
        Array {
            constructor,
            body,
            count: self.count,
        }
    }
}

/// A described value to be written.
#[derive(Debug, Clone)]
pub struct DescribedBuf {
    bytes: Vec<u8>,
    descriptor_len: usize,
}

impl DescribedBuf {
    /// `value` with its descriptor.
    #[must_use]
    pub fn new(descriptor: &Value<'_>, value: &Value<'_>) -> Self {
        let mut bytes = Vec::new();
        encode_value(&mut bytes, descriptor);
        let descriptor_len = bytes.len();
        encode_value(&mut bytes, value);
        Self {
            bytes,
            descriptor_len,
        }
    }

    /// As a value.
    #[must_use]
    pub fn as_described(&self) -> Described<'_> {
        let (descriptor, value) = self.bytes.split_at(self.descriptor_len);
        Described {
            descriptor,
            code: value.first().copied().unwrap_or(code::NULL),
            body: value.get(1..).unwrap_or_default(),
        }
    }
}

/// Appends the entries of a map to an output buffer directly; made by [`crate::message::Writer`].
#[derive(Debug)]
pub struct MapWriter<'o> {
    out: &'o mut Vec<u8>,
    start: usize,
    count: u32,
}

impl<'o> MapWriter<'o> {
    /// Begins a map. Its length takes four bytes, so that nothing has to move at the end.
    pub(crate) fn new(out: &'o mut Vec<u8>) -> Self {
        let start = out.len();
        out.extend_from_slice(&[code::MAP32, 0, 0, 0, 0, 0, 0, 0, 0]);
        Self { out, start, count: 0 }
    }

    /// Appends an entry with a symbol for its key.
    pub fn symbol(&mut self, key: &str, value: &Value<'_>) -> &mut Self {
        encode::symbol(self.out, key);
        encode_value(self.out, value);
        self.count += 2;
        self
    }

    /// Appends an entry with a string for its key.
    pub fn string(&mut self, key: &str, value: &Value<'_>) -> &mut Self {
        encode::string(self.out, key);
        encode_value(self.out, value);
        self.count += 2;
        self
    }

    /// Appends an entry with any key.
    pub fn entry(&mut self, key: &Value<'_>, value: &Value<'_>) -> &mut Self {
        encode_value(self.out, key);
        encode_value(self.out, value);
        self.count += 2;
        self
    }

    /// Appends all entries of another map as they are.
    pub fn entries(&mut self, map: Map<'_>) -> &mut Self {
        self.out.extend_from_slice(map.body);
        self.count += map.count;
        self
    }

    pub(crate) fn finish(self) {
        encode::patch_compound32(self.out, self.start, self.count);
    }
}

impl<'a> Value<'a> {
    /// Reads the one value that `bytes` hold.
    ///
    /// # Errors
    /// [`DecodeError`](crate::DecodeError), also if something follows the value.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, crate::DecodeError> {
        let mut reader = Reader::new(bytes);
        let value = reader.value()?;
        if reader.is_empty() {
            Ok(value)
        } else {
            Err(crate::DecodeError::Size)
        }
    }
}
