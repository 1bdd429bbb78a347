//! Bytes on the disk.
//!
//! ```text
//! segment := header frame* [reserved space, zeros]
//! header  := magic:8 salt:u32 first:u64 consumed:u64 age:u64 wall:i64 priority:u32 name length:u16 name crc32c:u32
//! frame   := payload length:u32 count:u32 first:u64 expires:u64 age:u64 wall:i64 durable before:u64
//!            crc32c of payload:u32 crc32c of the header before this:u32 payload
//! ```
//!
//! A frame with `count` 0 has no payload and is a mark: everything of the queue before `first` is consumed. Ages are
//! milliseconds of the store's own clock ([`super::age`]); `wall` is the wall clock at the same moment, microseconds.
//! Checksums of frame headers start from the salt of their segment, so that neither something that a sender put into a
//! payload nor what the file held in an earlier life ([`super::clean`]) is taken for a frame. They are put in when a frame
//! is written ([`seal`]). A file that waits for its next life has an empty start with a mark ([`blank`]), by which it is told
//! from one whose header the disk has lost ([`is_spare`]).

/// Never expires.
pub(super) const NEVER: u64 = u64::MAX;

pub(super) const FRAME_HEADER_BYTES: usize = 56;
/// Longest payload of a frame.
pub(super) const PAYLOAD_BYTES_MAX: usize = 4 << 20;
/// Start of a file that is empty ([`blank`]) before it becomes a segment, if it is not new: one sector, which a disk has
/// written whole or not at all.
pub(super) const BLANK_BYTES: usize = 512;
/// Longest header in such a file.
pub(super) const REUSE_HEADER_BYTES_MAX: usize = BLANK_BYTES - SPARE_MARK.len();
/// Longest name of a queue.
pub const NAME_BYTES_MAX: usize = 4_096;

const MAGIC: &[u8; 8] = b"hfqueue1";
/// At the end of an empty start. Nobody but this store writes it there, so a start of zeros without it is a damaged one.
const SPARE_MARK: &[u8; 16] = b"hfqueue1 spare\r\n";
const FIXED_HEADER_BYTES: usize = 8 + 4 + 8 * 4 + 4 + 2;

/// An empty start of a file that was a segment and may become another.
pub(super) fn blank() -> [u8; BLANK_BYTES] {
    let mut start = [0; BLANK_BYTES];
    start[REUSE_HEADER_BYTES_MAX..].copy_from_slice(SPARE_MARK);
    start
}

/// Whether a file without a sound header is one that was to be used again: its start is empty, or a header was begun there,
/// which the power has cut short. Nothing in it counts. Any other has lost its header.
pub(super) fn is_spare(data: &[u8]) -> bool {
    let Some((start, SPARE_MARK)) = data
        .first_chunk::<BLANK_BYTES>()
        .and_then(|start| start.split_last_chunk())
    else {
        return false;
    };
    SegmentHeader::is_unfinished(start)
}

/// Start of a segment file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct SegmentHeader {
    pub(super) salt: u32,
    /// Sequence number of the first message.
    pub(super) first: u64,
    /// Everything before it was consumed when the segment was made.
    pub(super) consumed: u64,
    pub(super) age: u64,
    pub(super) wall: i64,
    pub(super) priority: u32,
    pub(super) name: String,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FIXED_HEADER_BYTES + self.name.len() + 4);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&self.salt.to_le_bytes());
        out.extend_from_slice(&self.first.to_le_bytes());
        out.extend_from_slice(&self.consumed.to_le_bytes());
        out.extend_from_slice(&self.age.to_le_bytes());
        out.extend_from_slice(&self.wall.to_le_bytes());
        out.extend_from_slice(&self.priority.to_le_bytes());
        out.extend_from_slice(&(self.name.len() as u16).to_le_bytes());
        out.extend_from_slice(self.name.as_bytes());
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        out
    }

    /// The header and its length; `None` when it is none, or is damaged.
    pub(super) fn decode(data: &[u8]) -> Option<(Self, usize)> {
        let mut fields = Fields { data, at: 0 };
        if fields.take::<8>()? != *MAGIC {
            return None;
        }
        let salt = u32::from_le_bytes(fields.take()?);
        let first = u64::from_le_bytes(fields.take()?);
        let consumed = u64::from_le_bytes(fields.take()?);
        let age = u64::from_le_bytes(fields.take()?);
        let wall = i64::from_le_bytes(fields.take()?);
        let priority = u32::from_le_bytes(fields.take()?);
        let name_bytes = usize::from(u16::from_le_bytes(fields.take()?));
        let name = fields.slice(name_bytes)?;
        let end = fields.at;
        if u32::from_le_bytes(fields.take()?) != crc32c::crc32c(data.get(..end)?) {
            return None;
        }
        let header = SegmentHeader {
            salt,
            first,
            consumed,
            age,
            wall,
            priority,
            name: std::str::from_utf8(name).ok()?.to_owned(),
        };
        Some((header, fields.at))
    }

    /// Whether `start` is where a header was begun, or none at all: it ends before the header does, and zeros follow.
    fn is_unfinished(start: &[u8]) -> bool {
        let name = start.get(FIXED_HEADER_BYTES - 2..FIXED_HEADER_BYTES);
        let name = name.map_or(0, |name| usize::from(u16::from_le_bytes([name[0], name[1]])));
        let written = start
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        // Names have no zeros in them; the frames have that stand there when the name is said to be too long.
        let named = start.get(FIXED_HEADER_BYTES..written).unwrap_or_default();
        written < Self::bytes(name) && !named.contains(&0)
    }

    /// Bytes of a header with a name of so many.
    pub(super) const fn bytes(name: usize) -> usize {
        FIXED_HEADER_BYTES + name + 4
    }

    /// Most bytes a header has.
    pub(super) const BYTES_MAX: usize = FIXED_HEADER_BYTES + NAME_BYTES_MAX + 4;
}

/// Start of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FrameHeader {
    pub(super) payload_bytes: u32,
    /// Messages in the payload; 0 for a mark.
    pub(super) count: u32,
    pub(super) first: u64,
    /// Age at which the messages end; [`NEVER`].
    pub(super) expires: u64,
    pub(super) age: u64,
    pub(super) wall: i64,
    /// Everything of the queue before this had been synced when the frame was written.
    pub(super) durable_before: u64,
    pub(super) payload_crc: u32,
}

impl FrameHeader {
    /// Without its checksum.
    pub(super) fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut out = [0; FRAME_HEADER_BYTES];
        out[0..4].copy_from_slice(&self.payload_bytes.to_le_bytes());
        out[4..8].copy_from_slice(&self.count.to_le_bytes());
        out[8..16].copy_from_slice(&self.first.to_le_bytes());
        out[16..24].copy_from_slice(&self.expires.to_le_bytes());
        out[24..32].copy_from_slice(&self.age.to_le_bytes());
        out[32..40].copy_from_slice(&self.wall.to_le_bytes());
        out[40..48].copy_from_slice(&self.durable_before.to_le_bytes());
        out[48..52].copy_from_slice(&self.payload_crc.to_le_bytes());
        out
    }

    pub(super) fn decode(data: &[u8], salt: u32) -> Option<Self> {
        let data = data.get(..FRAME_HEADER_BYTES)?;
        let mut fields = Fields { data, at: 0 };
        let header = FrameHeader {
            payload_bytes: u32::from_le_bytes(fields.take()?),
            count: u32::from_le_bytes(fields.take()?),
            first: u64::from_le_bytes(fields.take()?),
            expires: u64::from_le_bytes(fields.take()?),
            age: u64::from_le_bytes(fields.take()?),
            wall: i64::from_le_bytes(fields.take()?),
            durable_before: u64::from_le_bytes(fields.take()?),
            payload_crc: u32::from_le_bytes(fields.take()?),
        };
        let crc = u32::from_le_bytes(fields.take()?);
        let sound = crc == crc32c::crc32c_append(salt, &data[..52])
            && header.payload_bytes as usize <= PAYLOAD_BYTES_MAX
            && (header.count > 0) == (header.payload_bytes > 0)
            && header.first.checked_add(u64::from(header.count)).is_some();
        sound.then_some(header)
    }

    /// Sequence number after its last message.
    pub(super) fn end(&self) -> u64 {
        self.first + u64::from(self.count)
    }

    /// Bytes with the payload.
    pub(super) fn bytes(&self) -> usize {
        FRAME_HEADER_BYTES + self.payload_bytes as usize
    }

    /// The frame at the start of `data` with its payload, if both are whole and sound.
    pub(super) fn whole(data: &[u8], salt: u32) -> Option<(Self, &[u8])> {
        let header = FrameHeader::decode(data, salt)?;
        let payload = data.get(FRAME_HEADER_BYTES..header.bytes())?;
        (crc32c::crc32c(payload) == header.payload_crc).then_some((header, payload))
    }
}

/// Puts the checksums into the headers of whole frames.
pub(super) fn seal(mut frames: &mut [u8], salt: u32) {
    while let Some((header, rest)) = frames.split_at_mut_checked(FRAME_HEADER_BYTES) {
        let (fields, checksum) = header.split_at_mut(FRAME_HEADER_BYTES - 4);
        checksum.copy_from_slice(&crc32c::crc32c_append(salt, fields).to_le_bytes());
        let payload = u32::from_le_bytes([fields[0], fields[1], fields[2], fields[3]]) as usize;
        frames = rest.get_mut(payload..).unwrap_or_default();
    }
}

struct Fields<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn slice(&mut self, length: usize) -> Option<&'a [u8]> {
        let bytes = self.data.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(bytes)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.slice(N)?.try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str) -> SegmentHeader {
        SegmentHeader {
            salt: 7,
            first: 9,
            consumed: 4,
            age: 5,
            wall: -3,
            priority: 2,
            name: name.to_owned(),
        }
    }

    /// The start of a file that has another life, with what it held before behind it.
    fn used_again(start: &[u8]) -> Vec<u8> {
        let mut file = [blank().to_vec(), vec![9; 3_000]].concat();
        file[..start.len()].copy_from_slice(start);
        file
    }

    #[test]
    fn a_file_to_be_used_again_is_told_from_one_whose_header_is_lost() {
        let whole = header("input/filter/in").encode();
        assert!(is_spare(&blank()));
        for at in 0..whole.len() {
            assert!(is_spare(&used_again(&whole[..at])), "{at}");
        }
        let zeroed = [vec![0; BLANK_BYTES], vec![9; 3_000]].concat();
        assert!(!is_spare(&zeroed) && !is_spare(&[0; BLANK_BYTES]) && !is_spare(b""));
    }

    #[test]
    fn a_damaged_header_before_a_single_message_is_not_taken_for_an_unfinished_one() {
        let frame = FrameHeader {
            payload_bytes: 3,
            count: 1,
            first: 9,
            expires: NEVER,
            age: 6,
            wall: 1,
            durable_before: 8,
            payload_crc: 7,
        };
        let mut frames = [frame.encode().to_vec(), b"abc".to_vec()].concat();
        seal(&mut frames, 7);
        // So little that the mark of the last life is still there.
        let whole = used_again(&[header("upstream").encode(), frames].concat());
        for at in 0..SegmentHeader::bytes(8) {
            for bit in 0..8 {
                let mut damaged = whole.clone();
                damaged[at] ^= 1 << bit;
                assert!(!is_spare(&damaged), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn headers_round_trip_and_damage_is_seen() {
        let header = header("input/filter/in");
        let bytes = header.encode();
        assert_eq!(SegmentHeader::decode(&bytes), Some((header, bytes.len())));
        let frame = FrameHeader {
            payload_bytes: 3,
            count: 1,
            first: 9,
            expires: NEVER,
            age: 6,
            wall: 1,
            durable_before: 8,
            payload_crc: crc32c::crc32c(b"abc"),
        };
        let mut whole = frame.encode().to_vec();
        whole.extend_from_slice(b"abc");
        let mut two = [whole.clone(), whole.clone()].concat();
        seal(&mut whole, 7);
        seal(&mut two, 7);
        assert_eq!(two, [whole.clone(), whole.clone()].concat());
        assert_eq!(FrameHeader::whole(&whole, 7), Some((frame, &b"abc"[..])));
        assert_eq!(FrameHeader::whole(&whole, 8), None, "another segment's frame");
        for bit in 0..8 {
            for at in 0..bytes.len() {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                assert_eq!(SegmentHeader::decode(&flipped), None, "bit {bit} of byte {at}");
            }
            for at in 0..whole.len() {
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << bit;
                assert_eq!(FrameHeader::whole(&flipped, 7), None, "bit {bit} of byte {at}");
            }
        }
        assert_eq!(
            FrameHeader::whole(&[0; 200], 0),
            None,
            "reserved space is no frame"
        );
    }
}
