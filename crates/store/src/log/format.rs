//! Bytes of `meta`, segment headers, frame headers and index files. Integers are little-endian.

use std::sync::Arc;

/// Newest format this version reads, and the one it writes.
pub(super) const FORMAT_VERSION: u32 = 1;

pub(super) const META_BYTES: usize = 40;
const META_MAGIC: &[u8; 8] = b"HFEVLOG\0";

pub(super) const SEGMENT_HEADER_BYTES: usize = 64;
const SEGMENT_MAGIC: &[u8; 8] = b"HFSEGMNT";

pub(super) const FRAME_HEADER_BYTES: usize = 40;
/// Largest payload of a frame; also what a damaged length may make a reader allocate.
pub(super) const FRAME_PAYLOAD_BYTES_MAX: usize = 64 << 20;

const INDEX_MAGIC: &[u8; 8] = b"HFINDEX\0";
const MARK_BYTES: usize = 24;

/// What `meta` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Meta {
    pub(super) partitions: u16,
    /// Start value of every header checksum of this log. It is random, so that a payload which looks like a frame
    /// is not taken for one when a reader searches for the next valid frame behind damage.
    pub(super) salt: u32,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum MetaError {
    Newer(u32),
    Malformed,
}

impl Meta {
    pub(super) fn encode(self) -> [u8; META_BYTES] {
        let mut bytes = [0; META_BYTES];
        bytes[..8].copy_from_slice(META_MAGIC);
        put_u32(&mut bytes, 8, FORMAT_VERSION);
        put_u32(&mut bytes, 12, u32::from(self.partitions));
        put_u32(&mut bytes, 16, self.salt);
        let crc = crc32c::crc32c(&bytes[..META_BYTES - 4]);
        put_u32(&mut bytes, META_BYTES - 4, crc);
        bytes
    }

    /// The version is looked at first: a newer one may have any layout behind it.
    pub(super) fn decode(bytes: &[u8]) -> Result<Meta, MetaError> {
        if bytes.len() < 12 || &bytes[..8] != META_MAGIC {
            return Err(MetaError::Malformed);
        }
        let version = get_u32(bytes, 8);
        if version > FORMAT_VERSION {
            return Err(MetaError::Newer(version));
        }
        if bytes.len() != META_BYTES
            || crc32c::crc32c(&bytes[..META_BYTES - 4]) != get_u32(bytes, META_BYTES - 4)
        {
            return Err(MetaError::Malformed);
        }
        match u16::try_from(get_u32(bytes, 12)) {
            Ok(partitions) if partitions > 0 => Ok(Meta {
                partitions,
                salt: get_u32(bytes, 16),
            }),
            _ => Err(MetaError::Malformed),
        }
    }
}

/// First bytes of a segment file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SegmentHeader {
    pub(super) partition: u16,
    pub(super) first: u64,
    /// Enqueued time of the newest event before this segment: nothing in it is older.
    pub(super) base_time: i64,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum SegmentHeaderError {
    Newer(u32),
    Malformed,
}

impl SegmentHeader {
    pub(super) fn encode(self, salt: u32) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[..8].copy_from_slice(SEGMENT_MAGIC);
        put_u32(&mut bytes, 8, FORMAT_VERSION);
        put_u32(&mut bytes, 12, u32::from(self.partition));
        put_u64(&mut bytes, 16, self.first);
        put_u64(&mut bytes, 24, self.base_time as u64);
        let crc = crc32c::crc32c_append(salt, &bytes[..SEGMENT_HEADER_BYTES - 4]);
        put_u32(&mut bytes, SEGMENT_HEADER_BYTES - 4, crc);
        bytes
    }

    /// A newer version counts only when the checksum holds, since here the rest of the layout is agreed on: else one
    /// flipped bit would keep the log from opening.
    pub(super) fn decode(bytes: &[u8], salt: u32) -> Result<SegmentHeader, SegmentHeaderError> {
        let malformed = SegmentHeaderError::Malformed;
        if bytes.len() < SEGMENT_HEADER_BYTES || &bytes[..8] != SEGMENT_MAGIC {
            return Err(malformed);
        }
        let bytes = &bytes[..SEGMENT_HEADER_BYTES];
        let crc = crc32c::crc32c_append(salt, &bytes[..SEGMENT_HEADER_BYTES - 4]);
        if crc != get_u32(bytes, SEGMENT_HEADER_BYTES - 4) {
            return Err(malformed);
        }
        if get_u32(bytes, 8) > FORMAT_VERSION {
            return Err(SegmentHeaderError::Newer(get_u32(bytes, 8)));
        }
        Ok(SegmentHeader {
            partition: u16::try_from(get_u32(bytes, 12)).map_err(|_| malformed)?,
            first: get_u64(bytes, 16),
            base_time: get_u64(bytes, 24) as i64,
        })
    }
}

/// Header of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FrameHeader {
    pub(super) payload_bytes: u32,
    pub(super) count: u32,
    pub(super) first: u64,
    pub(super) enqueued: i64,
    /// Every event before this one had been synced when the frame was written. Recovery tells by it whether a hole
    /// was never acknowledged (a batch cut off by a crash) or is damage.
    pub(super) durable_before: u64,
    pub(super) payload_crc: u32,
}

impl FrameHeader {
    pub(super) fn encode(&self, salt: u32) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        put_u32(&mut bytes, 0, self.payload_bytes);
        put_u32(&mut bytes, 4, self.count);
        put_u64(&mut bytes, 8, self.first);
        put_u64(&mut bytes, 16, self.enqueued as u64);
        put_u64(&mut bytes, 24, self.durable_before);
        put_u32(&mut bytes, 32, self.payload_crc);
        let crc = crc32c::crc32c_append(salt, &bytes[..36]);
        put_u32(&mut bytes, 36, crc);
        bytes
    }

    /// `None` unless the header checks out; zeros never do.
    pub(super) fn decode(bytes: &[u8], salt: u32) -> Option<FrameHeader> {
        let bytes = bytes.get(..FRAME_HEADER_BYTES)?;
        let header = FrameHeader {
            payload_bytes: get_u32(bytes, 0),
            count: get_u32(bytes, 4),
            first: get_u64(bytes, 8),
            enqueued: get_u64(bytes, 16) as i64,
            durable_before: get_u64(bytes, 24),
            payload_crc: get_u32(bytes, 32),
        };
        // Cheap tests first: a search tries this at every byte.
        let plausible = header.payload_bytes > 0
            && header.payload_bytes as usize <= FRAME_PAYLOAD_BYTES_MAX
            && header.count > 0
            && header.durable_before <= header.first
            && header.first.checked_add(u64::from(header.count)).is_some();
        (plausible && crc32c::crc32c_append(salt, &bytes[..36]) == get_u32(bytes, 36)).then_some(header)
    }

    pub(super) fn end(&self) -> u64 {
        self.first + u64::from(self.count)
    }

    /// Length of the whole frame.
    pub(super) fn frame_bytes(&self) -> usize {
        FRAME_HEADER_BYTES + self.payload_bytes as usize
    }

    pub(super) fn payload_holds(&self, payload: &[u8]) -> bool {
        crc32c::crc32c(payload) == self.payload_crc
    }
}

/// An entry of the sparse index: where a frame starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mark {
    pub(super) first: u64,
    pub(super) enqueued: i64,
    pub(super) offset: u64,
}

/// The index file of a closed segment.
pub(super) fn encode_index(segment_first: u64, segment_bytes: u64, marks: &[Mark]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(32 + marks.len() * MARK_BYTES);
    bytes.extend_from_slice(INDEX_MAGIC);
    bytes.extend_from_slice(&segment_first.to_le_bytes());
    bytes.extend_from_slice(&segment_bytes.to_le_bytes());
    for mark in marks {
        bytes.extend_from_slice(&mark.first.to_le_bytes());
        bytes.extend_from_slice(&mark.enqueued.to_le_bytes());
        bytes.extend_from_slice(&mark.offset.to_le_bytes());
    }
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// `None` when the index is damaged or of another segment: it is then made again from the segment.
pub(super) fn decode_index(bytes: &[u8], segment_first: u64) -> Option<Arc<[Mark]>> {
    let (body, crc) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
    if body.len() < 24
        || &body[..8] != INDEX_MAGIC
        || crc32c::crc32c(body) != get_u32(crc, 0)
        || get_u64(body, 8) != segment_first
    {
        return None;
    }
    let marks = body[24..].chunks_exact(MARK_BYTES).map(|mark| Mark {
        first: get_u64(mark, 0),
        enqueued: get_u64(mark, 8) as i64,
        offset: get_u64(mark, 16),
    });
    Some(marks.collect())
}

fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn get_u32(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

fn get_u64(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meta_round_trips_and_damage_is_seen() {
        let meta = Meta {
            partitions: 7,
            salt: 0xdead_beef,
        };
        let bytes = meta.encode();
        assert_eq!(Meta::decode(&bytes), Ok(meta));
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes;
                flipped[at] ^= 1 << bit;
                assert!(Meta::decode(&flipped).is_err(), "bit {bit} of byte {at}");
            }
            assert!(Meta::decode(&bytes[..at]).is_err());
        }
        let mut newer = bytes;
        newer[8] = 2;
        assert_eq!(Meta::decode(&newer), Err(MetaError::Newer(2)));
    }

    #[test]
    fn headers_round_trip_and_damage_is_seen() {
        let frame = FrameHeader {
            payload_bytes: 100,
            count: 3,
            first: 10,
            enqueued: -5,
            durable_before: 9,
            payload_crc: 77,
        };
        let bytes = frame.encode(1234);
        assert_eq!(FrameHeader::decode(&bytes, 1234), Some(frame));
        assert_eq!(FrameHeader::decode(&bytes, 1235), None, "another log's frame");
        assert_eq!(FrameHeader::decode(&[0; 64], 1234), None);
        let segment = SegmentHeader {
            partition: 2,
            first: 99,
            base_time: 5,
        };
        let segment_bytes = segment.encode(1234);
        assert_eq!(SegmentHeader::decode(&segment_bytes, 1234), Ok(segment));
        for bit in 0..8 {
            for at in 0..bytes.len() {
                let mut flipped = bytes;
                flipped[at] ^= 1 << bit;
                assert_eq!(
                    FrameHeader::decode(&flipped, 1234),
                    None,
                    "bit {bit} of byte {at}"
                );
            }
            for at in 0..segment_bytes.len() {
                let mut flipped = segment_bytes;
                flipped[at] ^= 1 << bit;
                assert!(SegmentHeader::decode(&flipped, 1234).is_err());
            }
        }
    }

    #[test]
    fn index_round_trips() {
        let marks = [
            Mark {
                first: 1,
                enqueued: 2,
                offset: 64,
            },
            Mark {
                first: 5,
                enqueued: 3,
                offset: 640,
            },
        ];
        let bytes = encode_index(1, 700, &marks);
        assert_eq!(decode_index(&bytes, 1).as_deref(), Some(&marks[..]));
        assert_eq!(decode_index(&bytes, 2), None);
        for at in 0..bytes.len() {
            assert_eq!(decode_index(&bytes[..at], 1), None);
        }
    }
}
