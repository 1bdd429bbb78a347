//! Protocol headers (AMQP 2.2) and frames (AMQP 2.3).
//!
//! ```text
//! +0       +4     +5     +6        +8
//! | size   | doff | type | channel | extended header (doff * 4 - 8) | performative | payload
//! ```

use crate::error::FrameError;
use crate::types::encode::length;

/// Length of a protocol header.
pub const HEADER_LEN: usize = 8;

/// Every peer takes frames of this size (AMQP 2.3.1); also the limit before open.
pub const MIN_MAX_FRAME_SIZE: u32 = 512;

/// What a protocol header asks for (AMQP 2.2, 5.2.1, 5.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// AMQP itself.
    Amqp,
    /// The TLS layer. Not used: TLS comes before AMQP on port 5671.
    Tls,
    /// The SASL layer.
    Sasl,
}

impl Protocol {
    /// The eight bytes, for version 1.0.0.
    #[must_use]
    pub const fn header(self) -> [u8; HEADER_LEN] {
        let id = match self {
            Self::Amqp => 0,
            Self::Tls => 2,
            Self::Sasl => 3,
        };
        [b'A', b'M', b'Q', b'P', id, 1, 0, 0]
    }

    /// Recognises a header of version 1.0.0.
    #[must_use]
    pub fn from_header(header: [u8; HEADER_LEN]) -> Option<Self> {
        [Self::Amqp, Self::Tls, Self::Sasl]
            .into_iter()
            .find(|protocol| protocol.header() == header)
    }
}

/// Kind of a frame (AMQP 2.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameType {
    /// An AMQP frame.
    Amqp = 0,
    /// A SASL frame; the channel bytes mean nothing.
    Sasl = 1,
}

/// A frame, borrowed from the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// AMQP or SASL.
    pub frame_type: FrameType,
    /// Channel of an AMQP frame.
    pub channel: u16,
    /// Performative and payload; empty in a heartbeat (AMQP 2.4.5).
    pub body: &'a [u8],
}

/// Size of the frame that begins `input`, once four bytes are there: how much room to make for it.
///
/// # Errors
/// [`FrameError`] if it is over the limit or smaller than its header.
#[inline]
pub fn frame_len(input: &[u8], max_frame_size: u32) -> Result<Option<usize>, FrameError> {
    let Some(size) = input.first_chunk::<4>() else {
        return Ok(None);
    };
    let size = u32::from_be_bytes(*size) as usize;
    if size < 8 {
        return Err(FrameError::TooSmall(size));
    }
    let limit = max_frame_size as usize;
    if size > limit {
        return Err(FrameError::TooLarge { size, limit });
    }
    Ok(Some(size))
}

/// Reads the first frame of `input` and returns it with the bytes it took, or `None` if it is not all there.
///
/// # Errors
/// [`FrameError`]; the stream is then of no use any more.
#[inline]
pub fn decode(input: &[u8], max_frame_size: u32) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
    let Some(size) = frame_len(input, max_frame_size)? else {
        return Ok(None);
    };
    let Some(frame) = input.get(..size) else {
        return Ok(None);
    };
    let offset = frame[4];
    let start = usize::from(offset) * 4;
    if start < 8 {
        return Err(FrameError::DataOffset(offset));
    }
    let body = frame.get(start..).ok_or(FrameError::DataOffset(offset))?;
    let frame_type = match frame[5] {
        0 => FrameType::Amqp,
        1 => FrameType::Sasl,
        other => return Err(FrameError::Type(other)),
    };
    let channel = u16::from_be_bytes([frame[6], frame[7]]);
    Ok(Some((
        Frame {
            frame_type,
            channel,
            body,
        },
        size,
    )))
}

/// Appends a frame whose body `write` appends.
#[inline]
pub fn encode(out: &mut Vec<u8>, frame_type: FrameType, channel: u16, write: impl FnOnce(&mut Vec<u8>)) {
    let start = begin(out, frame_type, channel);
    write(out);
    finish(out, start);
}

/// Appends an empty frame (AMQP 2.4.5).
pub fn encode_heartbeat(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0, 0, 0, 8, 2, 0, 0, 0]);
}

#[inline]
pub(crate) fn begin(out: &mut Vec<u8>, frame_type: FrameType, channel: u16) -> usize {
    let start = out.len();
    let [high, low] = channel.to_be_bytes();
    out.extend_from_slice(&[0, 0, 0, 0, 2, frame_type as u8, high, low]);
    start
}

#[inline]
pub(crate) fn finish(out: &mut [u8], start: usize) {
    let size = length(out.len() - start);
    out[start..start + 4].copy_from_slice(&size.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        assert_eq!(Protocol::Sasl.header(), *b"AMQP\x03\x01\x00\x00");
        assert_eq!(
            Protocol::from_header(*b"AMQP\x00\x01\x00\x00"),
            Some(Protocol::Amqp)
        );
        assert_eq!(
            Protocol::from_header(*b"AMQP\x02\x01\x00\x00"),
            Some(Protocol::Tls)
        );
        assert_eq!(Protocol::from_header(*b"AMQP\x00\x00\x09\x01"), None);
    }

    #[test]
    fn size_is_judged_from_four_bytes() {
        assert_eq!(decode(b"\x00\x00\x00", 512), Ok(None));
        assert_eq!(decode(b"\x00\x00\x02\x00", 512), Ok(None));
        assert_eq!(
            decode(b"\x00\x00\x02\x01", 512),
            Err(FrameError::TooLarge {
                size: 513,
                limit: 512
            })
        );
        assert_eq!(decode(b"\x00\x00\x00\x07", 512), Err(FrameError::TooSmall(7)));
    }

    #[test]
    fn data_offset_and_type() {
        let frame = |doff: u8, kind: u8| [0, 0, 0, 12, doff, kind, 0, 5, 1, 2, 3, 4];
        assert_eq!(
            decode(&frame(2, 0), 512),
            Ok(Some((
                Frame {
                    frame_type: FrameType::Amqp,
                    channel: 5,
                    body: &[1, 2, 3, 4]
                },
                12
            )))
        );
        let extended = frame(3, 0);
        let (extended, _) = decode(&extended, 512).expect("valid").expect("whole");
        assert_eq!(
            extended.body, b"",
            "the extended header is stepped over (AMQP 2.3.1)"
        );
        assert_eq!(decode(&frame(1, 0), 512), Err(FrameError::DataOffset(1)));
        assert_eq!(decode(&frame(4, 0), 512), Err(FrameError::DataOffset(4)));
        assert_eq!(decode(&frame(2, 2), 512), Err(FrameError::Type(2)));
    }

    #[test]
    fn written_frames_are_read_back() {
        let mut out = Vec::new();
        encode(&mut out, FrameType::Sasl, 0, |out| out.push(7));
        encode_heartbeat(&mut out);
        let (frame, used) = decode(&out, 512).expect("valid").expect("whole");
        assert_eq!((frame.frame_type, frame.body), (FrameType::Sasl, &[7][..]));
        let (frame, rest) = decode(&out[used..], 512).expect("valid").expect("whole");
        assert_eq!((frame.body, rest), (&[][..], 8));
    }
}
