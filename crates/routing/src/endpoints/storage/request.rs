//! From events to the bytes and names of files.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::DeflateEncoder;
use holdfast_model::Timestamp;
use holdfast_ports::endpoint::Outbound;
use holdfast_wire::routed::{storage, time};

use super::config::Encoding;
use super::parquet::ParquetFile;
use crate::endpoints::routed;

/// Schema of Avro files (languages.md 2.8).
const SCHEMA: &str = concat!(
    r#"{"type":"record","name":"Message","namespace":"Microsoft.Azure.Devices","fields":["#,
    r#"{"name":"EnqueuedTimeUtc","type":"string"},"#,
    r#"{"name":"Properties","type":{"type":"map","values":"string"}},"#,
    r#"{"name":"SystemProperties","type":{"type":"map","values":"string"}},"#,
    r#"{"name":"Body","type":["null","bytes"]}]}"#
);
/// Bytes after which a block of an Avro file is closed; a single event may be larger.
const BLOCK_BYTES: usize = 256 << 10;

/// Name of a file: without extension, and without the number of a further file of the minute.
pub(super) fn file_name(format: &str, hub_name: &str, partition: u16, at: Timestamp) -> String {
    let at = at.to_string();
    // Years beyond 9999 do not come.
    let part = |from: usize, to: usize| at.get(from..to).unwrap_or("00");
    format
        .replace("{partition}", &format!("{partition:02}"))
        .replace("{YYYY}", part(0, 4))
        .replace("{MM}", part(5, 7))
        .replace("{DD}", part(8, 10))
        .replace("{HH}", part(11, 13))
        .replace("{mm}", part(14, 16))
        .replace("{iothub}", hub_name)
}

/// A file in the making.
///
/// The Avro files are written here and not by the crate `apache-avro`: its writer turns each record into a tree of
/// values first, and brings big decimals and a schema parser that a single fixed schema does not need.
pub(super) struct Encoder {
    encoding: Encoding,
    out: Vec<u8>,
    /// Records of the open Avro block.
    block: Vec<u8>,
    records: u64,
    /// Stands after each Avro block.
    sync: [u8; 16],
    /// A Parquet file, until something has failed.
    parquet: Result<Option<ParquetFile>, String>,
}

impl Encoder {
    pub(super) fn new(encoding: Encoding) -> Self {
        let mut encoder = Encoder {
            encoding,
            out: Vec::new(),
            block: Vec::new(),
            records: 0,
            sync: *uuid::Uuid::new_v4().as_bytes(),
            parquet: Ok(None),
        };
        let codec = match encoding {
            Encoding::Json => return encoder,
            Encoding::Parquet => {
                encoder.parquet = ParquetFile::new().map(Some).map_err(|error| error.to_string());
                return encoder;
            }
            Encoding::Avro => "null",
            Encoding::AvroDeflate => "deflate",
        };
        let out = &mut encoder.out;
        out.extend_from_slice(b"Obj\x01");
        put_long(2, out);
        put_bytes(b"avro.schema", out);
        put_bytes(SCHEMA.as_bytes(), out);
        put_bytes(b"avro.codec", out);
        put_bytes(codec.as_bytes(), out);
        put_long(0, out);
        out.extend_from_slice(&encoder.sync);
        encoder
    }

    /// Adds an event.
    pub(super) fn add(&mut self, event: &Outbound<'_>) {
        if self.encoding == Encoding::Json {
            storage::write(routed(event), &mut self.out);
            self.out.push(b'\n');
            return;
        }
        if self.encoding == Encoding::Parquet {
            if let Ok(Some(file)) = &mut self.parquet
                && let Err(error) = file.add(event)
            {
                self.parquet = Err(error.to_string());
            }
            return;
        }
        put_record(event, &mut self.block);
        self.records += 1;
        if self.block.len() >= BLOCK_BYTES {
            self.close_block();
        }
    }

    /// The whole file.
    ///
    /// # Errors
    /// Why it cannot be made; only Parquet files can fail.
    pub(super) fn finish(mut self) -> Result<Vec<u8>, String> {
        if let Some(file) = std::mem::replace(&mut self.parquet, Ok(None))? {
            return file.finish().map_err(|error| error.to_string());
        }
        self.close_block();
        Ok(self.out)
    }

    fn close_block(&mut self) {
        if self.records == 0 {
            return;
        }
        put_long(self.records as i64, &mut self.out);
        match self.encoding {
            Encoding::AvroDeflate => put_bytes(&deflated(&self.block), &mut self.out),
            _ => put_bytes(&self.block, &mut self.out),
        }
        self.out.extend_from_slice(&self.sync);
        self.block.clear();
        self.records = 0;
    }
}

fn deflated(block: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::with_capacity(block.len() / 4), Compression::fast());
    encoder
        .write_all(block)
        .and_then(|()| encoder.finish())
        .expect("writing to memory does not fail")
}

fn put_record(event: &Outbound<'_>, out: &mut Vec<u8>) {
    let event = routed(event);
    put_bytes(time(event.event.enqueued_at).as_bytes(), out);
    let properties = event.properties();
    put_map(
        properties
            .iter()
            .map(|(key, value)| (*key, value.unwrap_or_default())),
        out,
    );
    let system = storage::system_properties(event);
    put_map(system.iter().map(|(key, value)| (*key, value.as_ref())), out);
    // The second branch of the union.
    put_long(1, out);
    put_bytes(event.event.body, out);
}

fn put_map<'a>(entries: impl ExactSizeIterator<Item = (&'a str, &'a str)>, out: &mut Vec<u8>) {
    if entries.len() > 0 {
        put_long(entries.len() as i64, out);
        for (key, value) in entries {
            put_bytes(key.as_bytes(), out);
            put_bytes(value.as_bytes(), out);
        }
    }
    put_long(0, out);
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    put_long(bytes.len() as i64, out);
    out.extend_from_slice(bytes);
}

/// Zigzag, then seven bits a byte, lowest first.
fn put_long(value: i64, out: &mut Vec<u8>) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push((rest as u8 & 0x7f) | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}
