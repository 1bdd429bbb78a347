//! Reading messages.

use super::properties::{Header, Properties};
use super::section;
use crate::error::DecodeError;
use crate::performatives::composite;
use crate::types::{List, Map, Reader, Value, code};

/// A message, as a view of the bytes it was read from.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Message<'a> {
    /// How to transfer it.
    pub header: Option<Header>,
    /// Annotations for the next hop.
    pub delivery_annotations: Option<Map<'a>>,
    /// Annotations for the way.
    pub message_annotations: Option<Map<'a>>,
    /// Properties with fixed meaning.
    pub properties: Properties<'a>,
    /// Properties of the application.
    pub application_properties: Option<Map<'a>>,
    /// The content.
    pub body: Body<'a>,
    /// Annotations behind the body.
    pub footer: Option<Map<'a>>,
}

/// The content (AMQP 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Body<'a> {
    /// No body section, as some requests come.
    #[default]
    Empty,
    /// Binary, in one section or more.
    Data(Data<'a>),
    /// Lists, in one section or more.
    Sequences(Sequences<'a>),
    /// One value.
    Value(Value<'a>),
}

impl<'a> Body<'a> {
    /// The content as bytes, if it lies in one piece: a single Data section, a value of type binary or string, or nothing.
    #[must_use]
    pub fn as_bytes(&self) -> Option<&'a [u8]> {
        match self {
            Self::Empty => Some(&[]),
            Self::Data(data) => {
                let first = data.iter().next();
                first.filter(|_| data.count == 1)
            }
            Self::Value(Value::Binary(bytes)) => Some(bytes),
            Self::Value(Value::String(text)) => Some(text.as_bytes()),
            Self::Value(Value::Null) => Some(&[]),
            _ => None,
        }
    }
}

/// Data sections (AMQP 3.2.6). In a batch each holds a message.
#[derive(Debug, Clone, Copy)]
pub struct Data<'a> {
    /// From the first section to the end of the message.
    raw: &'a [u8],
    count: u32,
}

impl<'a> Data<'a> {
    /// Number of sections.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there are none; never so in a message read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The contents.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let sections = Sections::of_kind(self.raw, section::DATA);
        sections.filter_map(|value| match value {
            Value::Binary(bytes) => Some(bytes),
            _ => None,
        })
    }
}

impl PartialEq for Data<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

/// Sequence sections (AMQP 3.2.7).
#[derive(Debug, Clone, Copy)]
pub struct Sequences<'a> {
    raw: &'a [u8],
}

impl<'a> Sequences<'a> {
    /// The lists.
    pub fn iter(&self) -> impl Iterator<Item = List<'a>> + use<'a> {
        let sections = Sections::of_kind(self.raw, section::SEQUENCE);
        sections.filter_map(|value| match value {
            Value::List(list) => Some(list),
            _ => None,
        })
    }
}

impl PartialEq for Sequences<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

/// The values of all sections of one kind, in bytes that were checked before.
struct Sections<'a> {
    reader: Reader<'a>,
    kind: u8,
}

impl<'a> Sections<'a> {
    fn of_kind(raw: &'a [u8], kind: u8) -> Self {
        Self {
            reader: Reader::trusted(raw),
            kind,
        }
    }
}

impl<'a> Iterator for Sections<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        while !self.reader.is_empty() {
            let kind = section_code(&mut self.reader).ok()?;
            let value = self.reader.value().ok()?;
            if kind == self.kind {
                return Some(value);
            }
        }
        None
    }
}

fn section_code(reader: &mut Reader<'_>) -> Result<u8, DecodeError> {
    if reader.u8()? != code::DESCRIBED {
        return Err(DecodeError::NotComposite);
    }
    match reader.u8()? {
        code::SMALL_ULONG => reader.u8(),
        code::ULONG => {
            let number = u64::from_be_bytes(reader.fixed()?);
            u8::try_from(number).map_err(|_| DecodeError::Descriptor(number))
        }
        _ => Err(DecodeError::NotComposite),
    }
}

/// What sections came so far, one bit each.
#[derive(Default)]
struct Seen(u16);

impl Seen {
    fn once(&mut self, kind: u8) -> Result<(), DecodeError> {
        let bit = 1 << (kind & 0xf);
        if self.0 & bit != 0 {
            return Err(DecodeError::Section(kind.into()));
        }
        self.0 |= bit;
        Ok(())
    }
}

impl<'a> Message<'a> {
    /// Reads the message that `bytes` hold.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        // Filled in the place of the result: a message is large, and moving it shows.
        let mut result = Ok(Self::default());
        if let Ok(message) = &mut result
            && let Err(error) = message.read(bytes)
        {
            return Err(error);
        }
        result
    }

    #[inline]
    fn read(&mut self, bytes: &'a [u8]) -> Result<(), DecodeError> {
        let mut seen = Seen::default();
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            let start = reader;
            let kind = section_code(&mut reader)?;
            match kind {
                section::DATA | section::SEQUENCE | section::VALUE => {
                    self.body_section(kind, start, &mut reader)?;
                }
                section::HEADER..=section::APPLICATION_PROPERTIES | section::FOOTER => {
                    seen.once(kind)?;
                    self.section(kind, start, &mut reader)?;
                }
                other => return Err(DecodeError::Descriptor(other.into())),
            }
        }
        Ok(())
    }

    fn section(&mut self, kind: u8, start: Reader<'a>, reader: &mut Reader<'a>) -> Result<(), DecodeError> {
        match kind {
            section::HEADER | section::PROPERTIES => {
                *reader = start;
                let (_, fields) = composite(reader)?;
                if kind == section::HEADER {
                    self.header = Some(Header::read(fields)?);
                } else {
                    self.properties = Properties::read(fields)?;
                }
                return Ok(());
            }
            _ => {}
        }
        let map = match reader.value()? {
            Value::Map(map) => Some(map),
            Value::Null => None,
            _ => return Err(DecodeError::NotComposite),
        };
        match kind {
            section::DELIVERY_ANNOTATIONS => self.delivery_annotations = map,
            section::MESSAGE_ANNOTATIONS => self.message_annotations = map,
            section::APPLICATION_PROPERTIES => self.application_properties = map,
            _ => self.footer = map,
        }
        Ok(())
    }

    fn body_section(
        &mut self,
        kind: u8,
        start: Reader<'a>,
        reader: &mut Reader<'a>,
    ) -> Result<(), DecodeError> {
        let value = reader.value()?;
        match (&mut self.body, kind, value) {
            (body @ Body::Empty, section::DATA, Value::Binary(_)) => {
                *body = Body::Data(Data {
                    raw: start.rest(),
                    count: 1,
                });
            }
            (Body::Data(data), section::DATA, Value::Binary(_)) => data.count += 1,
            (body @ Body::Empty, section::SEQUENCE, Value::List(_)) => {
                *body = Body::Sequences(Sequences { raw: start.rest() });
            }
            (Body::Sequences(_), section::SEQUENCE, Value::List(_)) => {}
            (body @ Body::Empty, section::VALUE, value) => *body = Body::Value(value),
            (Body::Empty, ..) => return Err(DecodeError::NotComposite),
            _ => return Err(DecodeError::Section(kind.into())),
        }
        Ok(())
    }

    /// Appends the message.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut writer = super::Writer::new(out);
        if let Some(header) = &self.header {
            writer.header(header);
        }
        if let Some(map) = self.delivery_annotations {
            writer.delivery_annotations(|entries| {
                entries.entries(map);
            });
        }
        if let Some(map) = self.message_annotations {
            writer.message_annotations(|entries| {
                entries.entries(map);
            });
        }
        if self.properties != Properties::default() {
            writer.properties(&self.properties);
        }
        if let Some(map) = self.application_properties {
            writer.application_properties(|entries| {
                entries.entries(map);
            });
        }
        match self.body {
            Body::Empty => {}
            Body::Data(data) => {
                for bytes in data.iter() {
                    writer.data(bytes);
                }
            }
            Body::Sequences(lists) => {
                for list in lists.iter() {
                    writer.sequence(list);
                }
            }
            Body::Value(value) => {
                writer.value(&value);
            }
        }
        if let Some(map) = self.footer {
            writer.footer(|entries| {
                entries.entries(map);
            });
        }
    }
}
