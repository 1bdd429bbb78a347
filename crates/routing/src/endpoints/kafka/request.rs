//! From events to records, and records to batches (format 2, <https://kafka.apache.org/documentation/#recordbatch>).

use std::io::Write as _;

use flate2::write::GzEncoder;
use holdfast_model::message::SystemProperty;
use holdfast_ports::endpoint::Outbound;
use holdfast_wire::routed::storage;

use super::config::{Compression, Payload};
use crate::endpoints::{device_of, routed};

/// Bytes of a batch before its records.
const HEAD_BYTES: usize = 61;
/// Where the part begins that the checksum covers.
const CHECKED_FROM: usize = 21;

/// How events become records.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) payload: Payload,
    pub(super) compression: Compression,
}

/// The key of an event: what keeps the events of a device in one partition, and so in order.
pub(super) fn key<'a>(event: &Outbound<'a>) -> Option<&'a str> {
    let view = &event.event;
    let named = view.system(SystemProperty::PartitionKey);
    // No device had a part in what a producer sent or in what became of a job.
    named.or_else(|| device_of(view))
}

/// The partition of an event. For keys it is the one that Kafka's own clients choose, so that others who write with the
/// same keys agree; without a key the order of the hub's partition is kept.
pub(super) fn partition(event: &Outbound<'_>, partitions: usize) -> usize {
    let hash = match key(event) {
        Some(key) => murmur2(key.as_bytes()) & 0x7fff_ffff,
        None => u32::from(event.event.partition),
    };
    hash as usize % partitions.max(1)
}

/// MurmurHash2 with Kafka's seed.
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
        k = k.wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (at, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * at);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

/// A batch of as many of the events as fit, at least one and at most `events_max`; and how many they are.
pub(super) fn batch(
    events: &[&Outbound<'_>],
    shape: Shape,
    events_max: usize,
    bytes_max: usize,
) -> (Vec<u8>, usize) {
    let base = events
        .first()
        .map_or(0, |event| event.event.enqueued_at.as_millis());
    let (mut records, mut record, mut latest) = (Vec::new(), Vec::new(), base);
    let mut count = 0;
    for event in events.iter().take(events_max) {
        record.clear();
        let at = event.event.enqueued_at.as_millis();
        put_record(event, shape.payload, at - base, count as i64, &mut record);
        if count > 0 && HEAD_BYTES + records.len() + record.len() + 5 > bytes_max {
            break;
        }
        put_varint(record.len() as i64, &mut records);
        records.extend_from_slice(&record);
        latest = latest.max(at);
        count += 1;
    }
    let (attributes, records) = match shape.compression {
        Compression::None => (0, records),
        Compression::Gzip => (1, gzipped(&records)),
    };
    (framed(&records, attributes, count, base, latest), count)
}

fn framed(records: &[u8], attributes: i16, count: usize, first: i64, latest: i64) -> Vec<u8> {
    let count = i32::try_from(count).unwrap_or(i32::MAX);
    let mut out = Vec::with_capacity(HEAD_BYTES + records.len());
    // The broker sets the offset.
    out.extend_from_slice(&0_i64.to_be_bytes());
    let length = i32::try_from(HEAD_BYTES - 12 + records.len()).unwrap_or(i32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    // Epoch of the leader: unknown. Then the format.
    out.extend_from_slice(&(-1_i32).to_be_bytes());
    out.push(2);
    // The checksum follows when there is something to check.
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&attributes.to_be_bytes());
    out.extend_from_slice(&(count - 1).to_be_bytes());
    out.extend_from_slice(&first.to_be_bytes());
    out.extend_from_slice(&latest.to_be_bytes());
    // No producer id, epoch and sequence.
    out.extend_from_slice(&(-1_i64).to_be_bytes());
    out.extend_from_slice(&(-1_i16).to_be_bytes());
    out.extend_from_slice(&(-1_i32).to_be_bytes());
    out.extend_from_slice(&count.to_be_bytes());
    out.extend_from_slice(records);
    let checksum = crc32c::crc32c(&out[CHECKED_FROM..]);
    out[CHECKED_FROM - 4..CHECKED_FROM].copy_from_slice(&checksum.to_be_bytes());
    out
}

fn gzipped(records: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(records.len() / 4), flate2::Compression::fast());
    encoder
        .write_all(records)
        .and_then(|()| encoder.finish())
        .expect("writing to memory does not fail")
}

fn put_record(event: &Outbound<'_>, payload: Payload, delay: i64, number: i64, out: &mut Vec<u8>) {
    // Attributes.
    out.push(0);
    put_varint(delay, out);
    put_varint(number, out);
    match key(event) {
        Some(key) => put_bytes(key.as_bytes(), out),
        None => put_varint(-1, out),
    }
    if payload == Payload::Record {
        let mut record = Vec::with_capacity(event.event.body.len() + 512);
        storage::write(routed(event), &mut record);
        put_bytes(&record, out);
        put_varint(0, out);
        return;
    }
    put_bytes(event.event.body, out);
    let event = routed(event);
    let properties = event.properties();
    let system = storage::system_properties(event);
    put_varint((properties.len() + system.len() + 1) as i64, out);
    for (key, value) in properties {
        put_bytes(key.as_bytes(), out);
        match value {
            Some(value) => put_bytes(value.as_bytes(), out),
            None => put_varint(-1, out),
        }
    }
    put_bytes(b"iothub-message-source", out);
    put_bytes(event.event.source.as_str().as_bytes(), out);
    for (name, value) in system {
        put_varint((name.len() + 7) as i64, out);
        out.extend_from_slice(b"iothub-");
        out.extend_from_slice(name.as_bytes());
        put_bytes(value.as_bytes(), out);
    }
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    put_varint(bytes.len() as i64, out);
    out.extend_from_slice(bytes);
}

/// Zigzag, then seven bits a byte, lowest first.
fn put_varint(value: i64, out: &mut Vec<u8>) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push((rest as u8 & 0x7f) | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of Kafka's own tests (`UtilsTest.testMurmur2`).
    #[test]
    fn hashes_as_kafka_does() {
        for (key, hash) in [
            ("21", -973_932_308_i32),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
    }
}
