//! Events as the log keeps them: many records of one origin, encoded once on their way in.
//!
//! A protocol head encodes what it received straight into [`Records`]; the event log stores those bytes and the
//! [`Origin`] as one block, and readers walk the block without copying ([`EventBlock::events`]). The encoding is the
//! stored form in every event log, so it changes only together with [`FORMAT_VERSION`].
//!
//! Layout (integers little-endian, `varint` = LEB128):
//!
//! ```text
//! block   := origin record*
//! origin  := version:u8 source:u8 auth:u8 generation:u64 endpoints identity:text
//! endpoints := nothing in version 1, which is for the built-in endpoint alone; u64, bit n for endpoint n, in version 2
//! record  := length:varint fields body          length counts fields and body
//! fields  := (0x01..=0x7f:u8 value:text)*       system property, by its discriminant
//!            (0x80:u8 key:text value:text)*      application property
//!            (0x81:u8 key:text)*                 application property without value
//!            0x00                                end of fields
//! text    := length:varint bytes
//! ```

mod run;
#[cfg(test)]
mod tests;

use bytes::Bytes;
pub use run::{EndpointSet, Run};

use crate::identity::Identity;
use crate::message::SystemProperty;
use crate::time::Timestamp;

/// Version of the block encoding. Blocks for the built-in endpoint alone are written in version 1, all others in this
/// one.
pub const FORMAT_VERSION: u8 = 2;

const FORMAT_VERSION_EVENTS: u8 = 1;

const FIELD_END: u8 = 0x00;
const FIELD_PROPERTY: u8 = 0x80;
const FIELD_PROPERTY_WITHOUT_VALUE: u8 = 0x81;

/// Where an event comes from (languages.md section 3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum EventSource {
    /// Sent by a device.
    Telemetry = 0,
    /// A twin changed.
    TwinChange = 1,
    /// An identity was created or deleted.
    DeviceLifecycle = 2,
    /// A device connected or disconnected.
    ConnectionState = 3,
    /// A job changed state.
    JobLifecycle = 4,
    /// A digital twin changed.
    DigitalTwinChange = 5,
    /// Sent straight to the event endpoint by a producer. The origin's identity is the name of the policy it used; no
    /// device had a part in it.
    Producer = 6,
}

impl EventSource {
    /// Spelling in the annotation `iothub-message-source`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            EventSource::Telemetry => "Telemetry",
            EventSource::TwinChange => "twinChangeEvents",
            EventSource::DeviceLifecycle => "deviceLifecycleEvents",
            EventSource::ConnectionState => "deviceConnectionStateEvents",
            EventSource::JobLifecycle => "deviceJobLifecycleEvents",
            EventSource::DigitalTwinChange => "digitalTwinChangeEvents",
            EventSource::Producer => "Producer",
        }
    }

    /// Whether the origin's identity is a device or module that the event comes from or is about. Of a job it is the job's
    /// id, of a producer the name of its policy.
    #[must_use]
    pub const fn concerns_identity(self) -> bool {
        !matches!(self, EventSource::Producer | EventSource::JobLifecycle)
    }

    /// From the stored form, which is the discriminant.
    #[must_use]
    pub const fn from_stored(value: u8) -> Option<Self> {
        Some(match value {
            0 => EventSource::Telemetry,
            1 => EventSource::TwinChange,
            2 => EventSource::DeviceLifecycle,
            3 => EventSource::ConnectionState,
            4 => EventSource::JobLifecycle,
            5 => EventSource::DigitalTwinChange,
            6 => EventSource::Producer,
            _ => return None,
        })
    }
}

/// How the sender of an event had authenticated; becomes `iothub-connection-auth-method`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum AuthMethod {
    /// Signed with a key of the device or module.
    IdentityKey = 0,
    /// Signed with a key of a shared access policy.
    PolicyKey = 1,
    /// Certificate known by thumbprint.
    Thumbprint = 2,
    /// Certificate of a known CA.
    CertificateAuthority = 3,
    /// The hub itself made the event.
    Hub = 4,
}

impl AuthMethod {
    const fn from_stored(value: u8) -> Option<Self> {
        Some(match value {
            0 => AuthMethod::IdentityKey,
            1 => AuthMethod::PolicyKey,
            2 => AuthMethod::Thumbprint,
            3 => AuthMethod::CertificateAuthority,
            4 => AuthMethod::Hub,
            _ => return None,
        })
    }
}

/// Common stamps of a run of records.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origin {
    /// Kind of event.
    pub source: EventSource,
    /// Who sent it, or whom it is about.
    pub identity: Identity,
    /// Generation of that identity.
    pub generation_id: u64,
    /// How it had authenticated.
    pub auth: AuthMethod,
}

impl Origin {
    /// Appends the stored form, for records that go to `endpoints`.
    pub fn encode(&self, endpoints: EndpointSet, out: &mut Vec<u8>) {
        let version = match endpoints {
            EndpointSet::EVENTS => FORMAT_VERSION_EVENTS,
            _ => FORMAT_VERSION,
        };
        out.extend_from_slice(&[version, self.source as u8, self.auth as u8]);
        out.extend_from_slice(&self.generation_id.to_le_bytes());
        if version == FORMAT_VERSION {
            out.extend_from_slice(&endpoints.bits().to_le_bytes());
        }
        put_text(out, self.identity.as_str());
    }
}

/// Records of one origin, encoded. Reusable: [`Records::clear`] keeps the buffer.
#[derive(Clone, Default, Debug)]
pub struct Records {
    bytes: Vec<u8>,
    count: u32,
}

impl Records {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        Records {
            bytes: Vec::new(),
            count: 0,
        }
    }

    /// From what [`Records::as_bytes`] gave; `None` when it is malformed.
    #[must_use]
    pub fn from_stored(bytes: Vec<u8>) -> Option<Self> {
        let mut cursor = Cursor { data: &bytes, at: 0 };
        let mut count = 0;
        while cursor.at < bytes.len() {
            let length = cursor.varint()?;
            fields_length(cursor.take(length)?)?;
            count += 1;
        }
        Some(Records { bytes, count })
    }

    /// Number of records.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The encoded records, without an origin.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Size of the largest message, as it counts against the limit: its body, and names and values of its properties.
    #[must_use]
    pub fn largest_message(&self) -> usize {
        let mut cursor = Cursor {
            data: &self.bytes,
            at: 0,
        };
        let mut largest = 0;
        while let Some(record) = cursor.varint().and_then(|length| cursor.take(length)) {
            largest = largest.max(message_size(record).unwrap_or(record.len()));
        }
        largest
    }

    /// These records with one more system property each, before the others. Records that do not decode stay away.
    #[must_use]
    pub fn stamped(&self, property: SystemProperty, value: &str) -> Records {
        let mut stamp = vec![property as u8];
        put_text(&mut stamp, value);
        let mut bytes = Vec::with_capacity(self.bytes.len() + stamp.len() * self.count as usize);
        let mut cursor = Cursor {
            data: &self.bytes,
            at: 0,
        };
        let mut count = 0;
        while let Some(record) = cursor.varint().and_then(|length| cursor.take(length)) {
            bytes.extend_from_slice(&padded_varint(stamp.len() + record.len()));
            bytes.extend_from_slice(&stamp);
            bytes.extend_from_slice(record);
            count += 1;
        }
        Records { bytes, count }
    }

    /// Forgets all records and keeps the buffer.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
    }

    /// Starts a record; finish it with [`RecordWriter::finish`], else it is dropped again.
    pub fn record(&mut self) -> RecordWriter<'_> {
        let start = self.bytes.len();
        // The length is fixed to four bytes here, as a padded varint: the size is not known yet, and moving
        // the record afterwards would copy every payload twice.
        self.bytes.extend_from_slice(&[0; LENGTH_BYTES]);
        RecordWriter {
            records: self,
            start,
            finished: false,
        }
    }
}

const LENGTH_BYTES: usize = 4;

/// Writes the fields of one record, then its body.
#[derive(Debug)]
pub struct RecordWriter<'a> {
    records: &'a mut Records,
    start: usize,
    finished: bool,
}

impl RecordWriter<'_> {
    /// Adds a system property.
    pub fn system(&mut self, property: SystemProperty, value: &str) {
        self.records.bytes.push(property as u8);
        put_text(&mut self.records.bytes, value);
    }

    /// Adds an application property.
    pub fn property(&mut self, key: &str, value: Option<&str>) {
        let out = &mut self.records.bytes;
        out.push(if value.is_some() {
            FIELD_PROPERTY
        } else {
            FIELD_PROPERTY_WITHOUT_VALUE
        });
        put_text(out, key);
        if let Some(value) = value {
            put_text(out, value);
        }
    }

    /// Size of the message so far and with this body, as it counts against the limit.
    fn message_size(&self, body: &[u8]) -> usize {
        let fields = &self.records.bytes[self.start + LENGTH_BYTES..];
        fields_size(fields).map_or(usize::MAX, |size| size + body.len())
    }

    /// Adds the body and keeps the record. Returns the record's size in bytes.
    #[must_use = "the size counts against the message limit"]
    pub fn finish(mut self, body: &[u8]) -> usize {
        let out = &mut self.records.bytes;
        out.push(FIELD_END);
        out.extend_from_slice(body);
        let length = out.len() - self.start - LENGTH_BYTES;
        out[self.start..self.start + LENGTH_BYTES].copy_from_slice(&padded_varint(length));
        self.records.count += 1;
        self.finished = true;
        length
    }
}

impl Drop for RecordWriter<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.records.bytes.truncate(self.start);
        }
    }
}

/// A stored run of events of one origin, as an event log returns it.
#[derive(Clone, Debug)]
pub struct EventBlock {
    /// Partition it stands in.
    pub partition: u16,
    /// Sequence number of the first record; the others follow without gaps.
    pub first_sequence_number: u64,
    /// Number of records.
    pub count: u32,
    /// When the log took it; never goes back within a partition.
    pub enqueued_at: Timestamp,
    /// Origin and records, encoded.
    pub data: Bytes,
}

/// One event, borrowed from its block.
#[derive(Clone, Copy, Debug)]
pub struct EventView<'a> {
    /// Partition it stands in.
    pub partition: u16,
    /// Its place in the partition, without gaps.
    pub sequence_number: u64,
    /// When the log took it.
    pub enqueued_at: Timestamp,
    /// Kind of event.
    pub source: EventSource,
    /// How its sender had authenticated.
    pub auth: AuthMethod,
    /// Generation of the identity.
    pub generation_id: u64,
    /// `device` or `device/module`.
    pub identity: &'a str,
    /// Where it goes.
    pub endpoints: EndpointSet,
    /// Payload.
    pub body: &'a [u8],
    fields: &'a [u8],
}

/// One property of an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventField<'a> {
    /// Set by the sender, known to the hub.
    System(SystemProperty, &'a str),
    /// Set by the sender, free.
    Application(&'a str, Option<&'a str>),
}

/// A block that does not decode: written by a newer version, or damaged in a way the log's checksum cannot see.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the event block is malformed at byte {at}")]
pub struct MalformedBlock {
    /// Where decoding stopped.
    pub at: usize,
}

impl EventBlock {
    /// Walks the events. A malformed block yields the events before the fault, then one error.
    #[must_use]
    pub fn events(&self) -> Events<'_> {
        let mut cursor = Cursor {
            data: &self.data,
            at: 0,
        };
        let origin = decode_origin(&mut cursor);
        Events {
            block: self,
            cursor,
            origin,
            index: 0,
        }
    }

    /// Walks the events from where an earlier walk over this block stood ([`Events::cursor`]), without reading those
    /// before. A cursor of another block gives other events, or the error of a malformed one.
    #[must_use]
    pub fn events_from(&self, cursor: BlockCursor) -> Events<'_> {
        let mut events = self.events();
        if cursor.index > 0 {
            events.index = cursor.index;
            events.cursor.at = cursor.offset as usize;
        }
        events
    }

    /// Where the block's events go. For a malformed block the built-in endpoint, so that a reader comes upon the fault.
    #[must_use]
    pub fn endpoints(&self) -> EndpointSet {
        let mut cursor = Cursor {
            data: &self.data,
            at: 0,
        };
        decode_origin(&mut cursor).map_or(EndpointSet::EVENTS, |origin| origin.endpoints)
    }

    /// The sequence number after the last record.
    #[must_use]
    pub fn end_sequence_number(&self) -> u64 {
        self.first_sequence_number + u64::from(self.count)
    }
}

/// A place in a block, before one of its records or at its end; the default is its start.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct BlockCursor {
    /// Records before it.
    index: u32,
    /// Bytes before it. Meaningless while `index` is 0.
    offset: u32,
}

/// Common stamps of a block, borrowed from it.
#[derive(Clone, Copy, Debug)]
struct OriginView<'a> {
    source: EventSource,
    auth: AuthMethod,
    generation_id: u64,
    identity: &'a str,
    endpoints: EndpointSet,
}

impl<'a> OriginView<'a> {
    fn of(origin: &'a Origin) -> Self {
        OriginView {
            source: origin.source,
            auth: origin.auth,
            generation_id: origin.generation_id,
            identity: origin.identity.as_str(),
            endpoints: EndpointSet::NONE,
        }
    }

    /// An event of a record whose fields end at `fields_end`; it has no place in a log yet.
    fn view(&self, record: &'a [u8], fields_end: usize, enqueued_at: Timestamp) -> EventView<'a> {
        EventView {
            partition: 0,
            sequence_number: 0,
            enqueued_at,
            source: self.source,
            auth: self.auth,
            generation_id: self.generation_id,
            identity: self.identity,
            endpoints: self.endpoints,
            fields: &record[..fields_end],
            body: &record[fields_end + 1..],
        }
    }
}

/// Iterator over the events of a block.
#[derive(Debug)]
pub struct Events<'a> {
    block: &'a EventBlock,
    cursor: Cursor<'a>,
    origin: Option<OriginView<'a>>,
    index: u32,
}

impl<'a> Iterator for Events<'a> {
    type Item = Result<EventView<'a>, MalformedBlock>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.index >= self.block.count {
            return None;
        }
        let at = self.cursor.at;
        let Some(event) = self.decode_next() else {
            self.index = self.block.count;
            return Some(Err(MalformedBlock { at }));
        };
        self.index += 1;
        Some(Ok(event))
    }
}

impl<'a> Events<'a> {
    /// Where this walk stands: before the event that comes next.
    #[must_use]
    pub fn cursor(&self) -> BlockCursor {
        BlockCursor {
            index: self.index,
            // A block is far below 4 GiB; a cursor that does not fit is one of a malformed block.
            offset: u32::try_from(self.cursor.at).unwrap_or(u32::MAX),
        }
    }

    /// Steps over the events before `sequence_number`. Their content is not looked at.
    pub fn skip_to(&mut self, sequence_number: u64) {
        let wanted = sequence_number.saturating_sub(self.block.first_sequence_number);
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX).min(self.block.count);
        while self.index < wanted && self.origin.is_some() {
            let at = self.cursor.at;
            let length = self.cursor.varint();
            if length.and_then(|length| self.cursor.take(length)).is_none() {
                // The walk finds the fault again and tells it.
                self.cursor.at = at;
                return;
            }
            self.index += 1;
        }
    }

    fn decode_next(&mut self) -> Option<EventView<'a>> {
        let origin = self.origin?;
        let length = self.cursor.varint()?;
        let record = self.cursor.take(length)?;
        let event = origin.view(record, fields_length(record)?, self.block.enqueued_at);
        Some(EventView {
            partition: self.block.partition,
            sequence_number: self.block.first_sequence_number + u64::from(self.index),
            ..event
        })
    }
}

impl<'a> EventView<'a> {
    /// The properties in their stored form: two events with the same bytes here differ in their bodies only.
    #[must_use]
    pub fn encoded_fields(&self) -> &'a [u8] {
        self.fields
    }

    /// The properties, in the order they were set.
    pub fn fields(&self) -> impl Iterator<Item = EventField<'a>> + 'a {
        let mut cursor = Cursor {
            data: self.fields,
            at: 0,
        };
        std::iter::from_fn(move || decode_field(&mut cursor))
    }

    /// The value of a system property.
    #[must_use]
    pub fn system(&self, property: SystemProperty) -> Option<&'a str> {
        self.fields().find_map(|field| match field {
            EventField::System(known, value) if known == property => Some(value),
            _ => None,
        })
    }

    /// The device id.
    #[must_use]
    pub fn device_id(&self) -> &'a str {
        self.identity
            .split_once('/')
            .map_or(self.identity, |(device_id, _)| device_id)
    }

    /// The module id, when a module sent it.
    #[must_use]
    pub fn module_id(&self) -> Option<&'a str> {
        self.identity.split_once('/').map(|(_, module_id)| module_id)
    }
}

fn decode_origin<'a>(cursor: &mut Cursor<'a>) -> Option<OriginView<'a>> {
    let version = cursor.byte()?;
    if !matches!(version, FORMAT_VERSION | FORMAT_VERSION_EVENTS) {
        return None;
    }
    let source = EventSource::from_stored(cursor.byte()?)?;
    let auth = AuthMethod::from_stored(cursor.byte()?)?;
    let generation_id = u64::from_le_bytes(cursor.take(8)?.try_into().ok()?);
    let endpoints = match version {
        FORMAT_VERSION_EVENTS => EndpointSet::EVENTS,
        _ => EndpointSet::from_bits(u64::from_le_bytes(cursor.take(8)?.try_into().ok()?)),
    };
    Some(OriginView {
        source,
        auth,
        generation_id,
        identity: cursor.text()?,
        endpoints,
    })
}

/// Length of the fields before their end mark; `None` when malformed.
fn fields_length(record: &[u8]) -> Option<usize> {
    let mut cursor = Cursor { data: record, at: 0 };
    loop {
        let at = cursor.at;
        match cursor.byte()? {
            FIELD_END => return Some(at),
            FIELD_PROPERTY => {
                cursor.text()?;
                cursor.text()?;
            }
            FIELD_PROPERTY_WITHOUT_VALUE => {
                cursor.text()?;
            }
            _ => {
                cursor.text()?;
            }
        }
    }
}

/// Bytes of body, names and values of a record; `None` when malformed.
fn message_size(record: &[u8]) -> Option<usize> {
    let end = fields_length(record)?;
    Some(fields_size(&record[..end])? + record.len() - end - 1)
}

/// Bytes of names and values; `None` when malformed.
fn fields_size(fields: &[u8]) -> Option<usize> {
    let mut cursor = Cursor { data: fields, at: 0 };
    let mut size = 0;
    while cursor.at < fields.len() {
        match cursor.byte()? {
            FIELD_PROPERTY => size += cursor.text()?.len() + cursor.text()?.len(),
            // Not the sender's.
            stamp if stamp == SystemProperty::DataSchema as u8 => {
                cursor.text()?;
            }
            _ => size += cursor.text()?.len(),
        }
    }
    Some(size)
}

fn decode_field<'a>(cursor: &mut Cursor<'a>) -> Option<EventField<'a>> {
    loop {
        match cursor.byte()? {
            FIELD_PROPERTY => return Some(EventField::Application(cursor.text()?, Some(cursor.text()?))),
            FIELD_PROPERTY_WITHOUT_VALUE => return Some(EventField::Application(cursor.text()?, None)),
            known => {
                let value = cursor.text()?;
                // A property of a newer version: skipped, the rest stays readable.
                if let Some(property) = SystemProperty::from_stored(known) {
                    return Some(EventField::System(property, value));
                }
            }
        }
    }
}

#[derive(Debug)]
struct Cursor<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.data.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(length)?;
        let bytes = self.data.get(self.at..end)?;
        self.at = end;
        Some(bytes)
    }

    fn varint(&mut self) -> Option<usize> {
        let mut value = 0usize;
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            value |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = self.varint()?;
        std::str::from_utf8(self.take(length)?).ok()
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let mut length = text.len();
    debug_assert!(length < 1 << 28, "texts are bounded by the message size");
    while length >= 0x80 {
        out.push((length as u8 & 0x7f) | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(text.as_bytes());
}

fn padded_varint(length: usize) -> [u8; LENGTH_BYTES] {
    debug_assert!(length < 1 << 28, "records are bounded by the message size");
    [
        (length & 0x7f) as u8 | 0x80,
        ((length >> 7) & 0x7f) as u8 | 0x80,
        ((length >> 14) & 0x7f) as u8 | 0x80,
        ((length >> 21) & 0x7f) as u8,
    ]
}
