//! Files in the format Parquet, with the fields of the Avro files; the time is a timestamp and bodies stay bytes.
//!
//! Columns gather in memory until a row group is full: at most [`GROUP_EVENTS`] events or about [`GROUP_BYTES`].

use std::sync::Arc;

use bytes::Bytes;
use holdfast_ports::endpoint::Outbound;
use holdfast_wire::routed::storage;
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;

use crate::endpoints::routed;

/// Schema of the files. Maps look as the format's specification wants them.
const SCHEMA: &str = "message Message {
    required int64 EnqueuedTimeUtc (TIMESTAMP(MICROS, true));
    required group Properties (MAP) {
        repeated group key_value { required binary key (STRING); optional binary value (STRING); }
    }
    required group SystemProperties (MAP) {
        repeated group key_value { required binary key (STRING); required binary value (STRING); }
    }
    required binary Body;
}";
/// Most events of a row group.
const GROUP_EVENTS: usize = 65_536;
/// Bytes of values after which a row group is closed; a single event may be larger.
const GROUP_BYTES: usize = 16 << 20;

/// A file in the making.
pub(super) struct ParquetFile {
    writer: SerializedFileWriter<Vec<u8>>,
    times: Vec<i64>,
    properties: Map,
    system: Map,
    bodies: Texts,
}

impl ParquetFile {
    pub(super) fn new() -> Result<Self, ParquetError> {
        let body = ColumnPath::from("Body");
        let properties = WriterProperties::builder()
            .set_created_by(concat!("holdfast ", env!("CARGO_PKG_VERSION")).to_owned())
            .set_compression(Compression::SNAPPY)
            .set_statistics_enabled(EnabledStatistics::None)
            .set_column_statistics_enabled(ColumnPath::from("EnqueuedTimeUtc"), EnabledStatistics::Chunk)
            // Names and values of properties repeat; bodies hardly do.
            .set_column_dictionary_enabled(body, false)
            .build();
        let schema = Arc::new(parse_message_type(SCHEMA)?);
        Ok(ParquetFile {
            writer: SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties))?,
            times: Vec::new(),
            properties: Map::default(),
            system: Map::default(),
            bodies: Texts::default(),
        })
    }

    pub(super) fn add(&mut self, event: &Outbound<'_>) -> Result<(), ParquetError> {
        let event = routed(event);
        self.times.push(event.event.enqueued_at.as_micros());
        self.properties.add(event.properties().into_iter());
        let system = storage::system_properties(event);
        self.system
            .add(system.iter().map(|(key, value)| (*key, Some(value.as_ref()))));
        self.bodies.add(event.event.body);
        let bytes = self.bodies.bytes.len() + self.properties.bytes() + self.system.bytes();
        if self.times.len() >= GROUP_EVENTS || bytes >= GROUP_BYTES {
            self.close_group()?;
        }
        Ok(())
    }

    /// The whole file.
    pub(super) fn finish(mut self) -> Result<Vec<u8>, ParquetError> {
        self.close_group()?;
        self.writer.into_inner()
    }

    fn close_group(&mut self) -> Result<(), ParquetError> {
        if self.times.is_empty() {
            return Ok(());
        }
        let mut group = self.writer.next_row_group()?;
        let mut times = column(&mut group)?;
        times.typed::<Int64Type>().write_batch(&self.times, None, None)?;
        times.close()?;
        self.times.clear();
        std::mem::take(&mut self.properties).write(&mut group, true)?;
        std::mem::take(&mut self.system).write(&mut group, false)?;
        let mut bodies = column(&mut group)?;
        let values = std::mem::take(&mut self.bodies).values();
        bodies.typed::<ByteArrayType>().write_batch(&values, None, None)?;
        bodies.close()?;
        group.close()?;
        Ok(())
    }
}

type Group<'a> = SerializedRowGroupWriter<'a, Vec<u8>>;

fn column<'g>(
    group: &'g mut Group<'_>,
) -> Result<parquet::file::writer::SerializedColumnWriter<'g>, ParquetError> {
    let column = group.next_column()?;
    column.ok_or_else(|| ParquetError::General("the schema has too few columns".to_owned()))
}

/// Texts, one behind the other.
#[derive(Default)]
struct Texts {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Texts {
    fn add(&mut self, text: &[u8]) {
        self.bytes.extend_from_slice(text);
        self.ends.push(self.bytes.len());
    }

    /// Slices of one allocation.
    fn values(self) -> Vec<ByteArray> {
        let bytes = Bytes::from(self.bytes);
        let mut start = 0;
        let slice = |end: usize| {
            let value = ByteArray::from(bytes.slice(start..end));
            start = end;
            value
        };
        self.ends.into_iter().map(slice).collect()
    }
}

/// A column of keys and one of values, with the levels by which readers tell maps apart.
#[derive(Default)]
struct Map {
    keys: Texts,
    values: Texts,
    /// 0 for an empty map, else 1.
    key_definitions: Vec<i16>,
    /// The same, and one more for a value that is there.
    value_definitions: Vec<i16>,
    /// 0 at the beginning of a map.
    repetitions: Vec<i16>,
}

impl Map {
    fn bytes(&self) -> usize {
        self.keys.bytes.len() + self.values.bytes.len()
    }

    fn add<'a>(&mut self, entries: impl Iterator<Item = (&'a str, Option<&'a str>)>) {
        let mut repetition = 0;
        for (key, value) in entries {
            self.keys.add(key.as_bytes());
            self.key_definitions.push(1);
            if let Some(value) = value {
                self.values.add(value.as_bytes());
            }
            self.value_definitions.push(if value.is_some() { 2 } else { 1 });
            self.repetitions.push(repetition);
            repetition = 1;
        }
        if repetition == 0 {
            self.key_definitions.push(0);
            self.value_definitions.push(0);
            self.repetitions.push(0);
        }
    }

    fn write(self, group: &mut Group<'_>, optional: bool) -> Result<(), ParquetError> {
        // A value that must be there has no level of its own.
        let value_definitions = if optional {
            &self.value_definitions
        } else {
            &self.key_definitions
        };
        for (texts, definitions) in [
            (self.keys, &self.key_definitions),
            (self.values, value_definitions),
        ] {
            let mut column = column(group)?;
            column.typed::<ByteArrayType>().write_batch(
                &texts.values(),
                Some(definitions),
                Some(&self.repetitions),
            )?;
            column.close()?;
        }
        Ok(())
    }
}
