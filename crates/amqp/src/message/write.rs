//! Writing messages, section by section.

use super::properties::{Header, Properties};
use super::section;
use crate::types::encode::{self, descriptor_code, encode_value};
use crate::types::{List, MapWriter, Value};

/// Appends sections. Call its functions in the order of the sections (AMQP 3.2).
#[derive(Debug)]
pub struct Writer<'o> {
    out: &'o mut Vec<u8>,
}

impl<'o> Writer<'o> {
    /// Begins a message at the end of `out`.
    pub fn new(out: &'o mut Vec<u8>) -> Self {
        Self { out }
    }

    /// Appends the header.
    pub fn header(&mut self, header: &Header) -> &mut Self {
        header.encode(self.out);
        self
    }

    /// Appends delivery annotations, keyed by symbols.
    pub fn delivery_annotations(&mut self, fill: impl FnOnce(&mut MapWriter<'_>)) -> &mut Self {
        self.map(section::DELIVERY_ANNOTATIONS, fill)
    }

    /// Appends message annotations, keyed by symbols.
    pub fn message_annotations(&mut self, fill: impl FnOnce(&mut MapWriter<'_>)) -> &mut Self {
        self.map(section::MESSAGE_ANNOTATIONS, fill)
    }

    /// Appends properties.
    pub fn properties(&mut self, properties: &Properties<'_>) -> &mut Self {
        properties.encode(self.out);
        self
    }

    /// Appends application properties, keyed by strings.
    pub fn application_properties(&mut self, fill: impl FnOnce(&mut MapWriter<'_>)) -> &mut Self {
        self.map(section::APPLICATION_PROPERTIES, fill)
    }

    /// Appends a Data section.
    pub fn data(&mut self, bytes: &[u8]) -> &mut Self {
        descriptor_code(self.out, section::DATA);
        encode::binary(self.out, bytes);
        self
    }

    /// Appends a Data section that holds a message: one entry of a batch. Its length takes four bytes, so that nothing has
    /// to move.
    pub fn data_message(&mut self, write: impl FnOnce(&mut Writer<'_>)) -> &mut Self {
        descriptor_code(self.out, section::DATA);
        let start = self.out.len();
        self.out
            .extend_from_slice(&[crate::types::code::BINARY32, 0, 0, 0, 0]);
        write(&mut Writer::new(self.out));
        let size = encode::length(self.out.len() - start - 5);
        self.out[start + 1..start + 5].copy_from_slice(&size.to_be_bytes());
        self
    }

    /// Appends a sequence section.
    pub fn sequence(&mut self, list: List<'_>) -> &mut Self {
        descriptor_code(self.out, section::SEQUENCE);
        encode_value(self.out, &Value::List(list));
        self
    }

    /// Appends a value section.
    pub fn value(&mut self, value: &Value<'_>) -> &mut Self {
        descriptor_code(self.out, section::VALUE);
        encode_value(self.out, value);
        self
    }

    /// Appends the footer.
    pub fn footer(&mut self, fill: impl FnOnce(&mut MapWriter<'_>)) -> &mut Self {
        self.map(section::FOOTER, fill)
    }

    /// Appends sections that are encoded already.
    pub fn raw(&mut self, sections: &[u8]) -> &mut Self {
        self.out.extend_from_slice(sections);
        self
    }

    fn map(&mut self, kind: u8, fill: impl FnOnce(&mut MapWriter<'_>)) -> &mut Self {
        descriptor_code(self.out, kind);
        let mut map = MapWriter::new(self.out);
        fill(&mut map);
        map.finish();
        self
    }
}
