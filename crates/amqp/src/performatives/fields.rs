//! Reading the fields of a described list one after the other (AMQP 1.4). Fields that are not there are null.

use crate::error::DecodeError;
use crate::types::{Map, Reader, Symbols, Value, code};

/// The fields of a composite type.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a> {
    reader: Reader<'a>,
    left: u32,
    next: u8,
    of: &'static str,
}

/// Reads the descriptor of a composite type and finds its fields.
#[inline]
pub(crate) fn composite<'a>(reader: &mut Reader<'a>) -> Result<(u8, Fields<'a>), DecodeError> {
    if reader.u8()? != code::DESCRIBED {
        return Err(DecodeError::NotComposite);
    }
    let number = match reader.u8()? {
        code::SMALL_ULONG => reader.u8()?,
        code::ULONG => {
            let number = u64::from_be_bytes(reader.fixed()?);
            u8::try_from(number).map_err(|_| DecodeError::Descriptor(number))?
        }
        format @ (code::SYMBOL8 | code::SYMBOL32) => {
            let name = reader.text(format == code::SYMBOL32)?;
            number_of(name).ok_or(DecodeError::Descriptor(0))?
        }
        _ => return Err(DecodeError::NotComposite),
    };
    let (left, body) = match reader.u8()? {
        code::LIST0 => (0, &[][..]),
        format @ (code::LIST8 | code::LIST32) => reader.compound(format == code::LIST32)?,
        _ => return Err(DecodeError::NotComposite),
    };
    let fields = Fields {
        reader: Reader::new(body),
        left,
        next: 0,
        of: "performative",
    };
    Ok((number, fields))
}

/// The symbolic descriptors. No known client sends them; the text allows them (AMQP 1.4).
fn number_of(name: &str) -> Option<u8> {
    const NAMES: [(u8, &str); 29] = [
        (0x10, "open"),
        (0x11, "begin"),
        (0x12, "attach"),
        (0x13, "flow"),
        (0x14, "transfer"),
        (0x15, "disposition"),
        (0x16, "detach"),
        (0x17, "end"),
        (0x18, "close"),
        (0x1d, "error"),
        (0x23, "received"),
        (0x24, "accepted"),
        (0x25, "rejected"),
        (0x26, "released"),
        (0x27, "modified"),
        (0x28, "source"),
        (0x29, "target"),
        (0x30, "coordinator"),
        (0x40, "sasl-mechanisms"),
        (0x41, "sasl-init"),
        (0x42, "sasl-challenge"),
        (0x43, "sasl-response"),
        (0x44, "sasl-outcome"),
        (0x70, "header"),
        (0x71, "delivery-annotations"),
        (0x72, "message-annotations"),
        (0x73, "properties"),
        (0x74, "application-properties"),
        (0x78, "footer"),
    ];
    let name = name.strip_prefix("amqp:")?;
    let name = name.strip_suffix(":list").or_else(|| name.strip_suffix(":map"))?;
    NAMES
        .iter()
        .find(|(_, known)| *known == name)
        .map(|(number, _)| *number)
}

impl<'a> Fields<'a> {
    /// Names the type, for errors.
    #[inline]
    pub(crate) fn of(mut self, of: &'static str) -> Self {
        self.of = of;
        self
    }

    #[cold]
    fn wrong_type(&self) -> DecodeError {
        DecodeError::FieldType {
            of: self.of,
            field: self.next.wrapping_sub(1),
        }
    }

    /// That the last field read has an impossible value.
    #[cold]
    pub(crate) fn invalid(&self) -> DecodeError {
        DecodeError::FieldValue {
            of: self.of,
            field: self.next.wrapping_sub(1),
        }
    }

    /// Demands the field just read.
    #[inline]
    pub(crate) fn must<T>(&self, field: Option<T>) -> Result<T, DecodeError> {
        field.ok_or(DecodeError::FieldMissing {
            of: self.of,
            field: self.next.wrapping_sub(1),
        })
    }

    /// The format code of the next field, `None` when it is null or absent.
    #[inline]
    fn format(&mut self) -> Result<Option<u8>, DecodeError> {
        self.next = self.next.wrapping_add(1);
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let format = self.reader.u8()?;
        Ok((format != code::NULL).then_some(format))
    }

    #[inline]
    pub(crate) fn boolean(&mut self) -> Result<Option<bool>, DecodeError> {
        Ok(match self.format()? {
            None => None,
            Some(code::TRUE) => Some(true),
            Some(code::FALSE) => Some(false),
            Some(code::BOOLEAN) => Some(match self.reader.u8()? {
                0 => false,
                1 => true,
                other => return Err(DecodeError::Boolean(other)),
            }),
            Some(_) => return Err(self.wrong_type()),
        })
    }

    #[inline]
    pub(crate) fn ubyte(&mut self) -> Result<Option<u8>, DecodeError> {
        match self.format()? {
            None => Ok(None),
            Some(code::UBYTE) => self.reader.u8().map(Some),
            Some(_) => Err(self.wrong_type()),
        }
    }

    pub(crate) fn ushort(&mut self) -> Result<Option<u16>, DecodeError> {
        match self.format()? {
            None => Ok(None),
            Some(code::USHORT) => Ok(Some(u16::from_be_bytes(self.reader.fixed()?))),
            Some(_) => Err(self.wrong_type()),
        }
    }

    #[inline]
    pub(crate) fn uint(&mut self) -> Result<Option<u32>, DecodeError> {
        Ok(match self.format()? {
            None => None,
            Some(code::UINT0) => Some(0),
            Some(code::SMALL_UINT) => Some(self.reader.u8()?.into()),
            Some(code::UINT) => Some(self.reader.u32()?),
            Some(_) => return Err(self.wrong_type()),
        })
    }

    pub(crate) fn ulong(&mut self) -> Result<Option<u64>, DecodeError> {
        Ok(match self.format()? {
            None => None,
            Some(code::ULONG0) => Some(0),
            Some(code::SMALL_ULONG) => Some(self.reader.u8()?.into()),
            Some(code::ULONG) => Some(u64::from_be_bytes(self.reader.fixed()?)),
            Some(_) => return Err(self.wrong_type()),
        })
    }

    /// A timestamp, or any whole number in its place: scripts put plain integers there.
    pub(crate) fn timestamp(&mut self) -> Result<Option<i64>, DecodeError> {
        match self.value()? {
            Value::Null => Ok(None),
            value => value.as_i64().map(Some).ok_or_else(|| self.wrong_type()),
        }
    }

    #[inline]
    pub(crate) fn binary(&mut self) -> Result<Option<&'a [u8]>, DecodeError> {
        match self.format()? {
            None => Ok(None),
            Some(format @ (code::BINARY8 | code::BINARY32)) => {
                self.reader.variable(format == code::BINARY32).map(Some)
            }
            Some(_) => Err(self.wrong_type()),
        }
    }

    /// A string or a symbol: clients mix them up, and nothing depends on the difference.
    pub(crate) fn text(&mut self) -> Result<Option<&'a str>, DecodeError> {
        match self.format()? {
            None => Ok(None),
            Some(code::STRING8 | code::SYMBOL8) => self.reader.text(false).map(Some),
            Some(code::STRING32 | code::SYMBOL32) => self.reader.text(true).map(Some),
            Some(_) => Err(self.wrong_type()),
        }
    }

    pub(crate) fn symbols(&mut self) -> Result<Symbols<'a>, DecodeError> {
        match self.value()? {
            Value::Null => Ok(Symbols::None),
            Value::Symbol(symbol) | Value::String(symbol) => Ok(Symbols::One(symbol)),
            Value::Array(array) => Ok(Symbols::Array(array)),
            _ => Err(self.wrong_type()),
        }
    }

    pub(crate) fn map(&mut self) -> Result<Option<Map<'a>>, DecodeError> {
        match self.value()? {
            Value::Null => Ok(None),
            Value::Map(map) => Ok(Some(map)),
            _ => Err(self.wrong_type()),
        }
    }

    /// Any value.
    pub(crate) fn value(&mut self) -> Result<Value<'a>, DecodeError> {
        match self.format()? {
            None => Ok(Value::Null),
            Some(format) => self.reader.value_of(format),
        }
    }

    /// Steps over the next field if it is null or absent.
    #[inline]
    pub(crate) fn skip_null(&mut self) -> bool {
        let null = self.left == 0 || self.reader.rest().first() == Some(&code::NULL);
        if null && self.left > 0 {
            self.left -= 1;
            self.reader = self.reader.after_first();
        }
        self.next = self.next.wrapping_add(u8::from(null));
        null
    }

    /// A composite value.
    #[inline]
    pub(crate) fn composite(&mut self) -> Result<Option<(u8, Fields<'a>)>, DecodeError> {
        let before = self.reader;
        match self.format()? {
            None => Ok(None),
            Some(_) => {
                self.reader = before;
                composite(&mut self.reader).map(Some)
            }
        }
    }
}
