//! Structured messages: bodies in segments with a CRC-64 each, as newer clients send them when they shall check content
//! (`x-ms-structured-body: XSM/1.0; properties=crc64`).
//!
//! ```text
//! message  version 1 (1 byte), length of the message (8), properties (2), number of segments (2)
//! segment  number from 1 (2), length of the content (8), content, CRC-64 of the content (8)
//! end      CRC-64 of all content (8)
//! ```
//! Numbers are little endian. The checksums are there if bit 0 of the properties is set.

use axum::body::{Body, BodyDataStream};
use bytes::Bytes;
use futures_util::StreamExt as _;

use crate::checksum::Crc64;
use crate::error::BlobError;

/// Header that names the form of a structured body.
pub(crate) const HEADER: &str = "x-ms-structured-body";
/// Header of the length of what a structured body holds.
pub(crate) const LENGTH_HEADER: &str = "x-ms-structured-content-length";
/// The one form that is known.
pub(crate) const FORM: &str = "XSM/1.0; properties=crc64";
/// Longest that frames can be besides their content.
pub(crate) const OVERHEAD_BYTES_MAX: u64 = 13 + 65_535 * 18 + 8;

enum Stage {
    Message,
    Segment,
    Content(u64),
    SegmentEnd,
    MessageEnd,
    Done,
}

/// Takes the content out of a structured message.
pub(crate) struct Structured {
    stage: Stage,
    /// Bytes of a header that has not come whole.
    held: Vec<u8>,
    /// Length of the whole body.
    length: u64,
    /// Content that is still to come.
    content: u64,
    segments: u16,
    segment: u16,
    checked: bool,
    segment_crc: Crc64,
    message_crc: Crc64,
}

fn invalid(why: &str) -> BlobError {
    BlobError::new(
        400,
        "InvalidStructuredMessage",
        format!("The structured body is not valid: {why}."),
    )
}

impl Structured {
    /// A message of `length` bytes that holds `content` of them.
    pub(crate) fn new(length: u64, content: u64) -> Self {
        Structured {
            stage: Stage::Message,
            held: Vec::with_capacity(13),
            length,
            content,
            segments: 0,
            segment: 0,
            checked: false,
            segment_crc: Crc64::new(),
            message_crc: Crc64::new(),
        }
    }

    /// The next piece of content; what was looked at is taken off `bytes`. `None`: all of them.
    ///
    /// # Errors
    /// `InvalidStructuredMessage`, `Crc64Mismatch`.
    pub(crate) fn next<'b>(&mut self, bytes: &mut &'b [u8]) -> Result<Option<&'b [u8]>, BlobError> {
        loop {
            let header = match self.stage {
                Stage::Content(0) => {
                    self.stage = Stage::SegmentEnd;
                    continue;
                }
                Stage::Content(left) => {
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    let (piece, rest) = bytes.split_at(take);
                    *bytes = rest;
                    if piece.is_empty() {
                        return Ok(None);
                    }
                    self.stage = Stage::Content(left - take as u64);
                    if self.checked {
                        self.segment_crc.update(piece);
                        self.message_crc.update(piece);
                    }
                    return Ok(Some(piece));
                }
                Stage::Message => 13,
                Stage::Segment => 10,
                Stage::SegmentEnd | Stage::MessageEnd if self.checked => 8,
                Stage::SegmentEnd | Stage::MessageEnd => 0,
                Stage::Done if bytes.is_empty() => return Ok(None),
                Stage::Done => return Err(invalid("it goes on behind its end")),
            };
            let take = (header - self.held.len()).min(bytes.len());
            let (piece, rest) = bytes.split_at(take);
            *bytes = rest;
            self.held.extend_from_slice(piece);
            if self.held.len() < header {
                return Ok(None);
            }
            let held = std::mem::take(&mut self.held);
            self.stage = self.advance(&held)?;
            self.held = held;
            self.held.clear();
        }
    }

    /// A whole header has come.
    fn advance(&mut self, header: &[u8]) -> Result<Stage, BlobError> {
        let number = |range: std::ops::Range<usize>| {
            header[range]
                .iter()
                .rev()
                .fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
        };
        match self.stage {
            Stage::Message => {
                if header[0] != 1 || number(1..9) != self.length || number(9..11) > 1 {
                    return Err(invalid("its version, length or properties are wrong"));
                }
                self.checked = number(9..11) == 1;
                self.segments = number(11..13) as u16;
                self.next_segment()
            }
            Stage::Segment => {
                self.segment += 1;
                let length = number(2..10);
                if number(0..2) != u64::from(self.segment) || length > self.content {
                    return Err(invalid("a segment is out of order or too long"));
                }
                self.content -= length;
                self.segment_crc = Crc64::new();
                Ok(Stage::Content(length))
            }
            Stage::SegmentEnd => {
                self.check(header, self.segment_crc)?;
                self.next_segment()
            }
            _ => {
                self.check(header, self.message_crc)?;
                Ok(Stage::Done)
            }
        }
    }

    fn next_segment(&self) -> Result<Stage, BlobError> {
        match (self.segment < self.segments, self.content) {
            (true, _) => Ok(Stage::Segment),
            (false, 0) => Ok(Stage::MessageEnd),
            (false, _) => Err(invalid("it holds less than its x-ms-structured-content-length")),
        }
    }

    fn check(&self, told: &[u8], found: Crc64) -> Result<(), BlobError> {
        if self.checked && told != found.finish() {
            let message = "A segment of the body is not the one whose CRC-64 it carries: send it again.";
            return Err(BlobError::new(400, "Crc64Mismatch", message));
        }
        Ok(())
    }

    /// Whether the message has come whole.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }
}

/// Content of a segment that is sent, unless there would be too many.
const SEGMENT_BYTES: u64 = 4 << 20;

/// Size of the segments of a message that is sent, and their number.
fn segments(content: u64) -> (u64, u64) {
    let size = SEGMENT_BYTES.max(content.div_ceil(65_535));
    (size, content.div_ceil(size).max(1))
}

/// Length of a message that holds so much content.
pub(crate) fn encoded_length(content: u64) -> u64 {
    13 + segments(content).1 * 18 + content + 8
}

/// Puts a body into frames, piece by piece as it is read.
struct Encoder {
    body: BodyDataStream,
    /// Read, not sent yet.
    rest: Bytes,
    /// Headers and checksums to be sent next.
    frame: Vec<u8>,
    segment_bytes: u64,
    segment: u16,
    /// Content of the segment that is to come.
    segment_left: u64,
    /// Content of later segments.
    content_left: u64,
    segment_crc: Crc64,
    message_crc: Crc64,
    finished: bool,
}

/// A message with `content` bytes of a body.
pub(crate) fn encode(body: Body, content: u64) -> Body {
    let (segment_bytes, number) = segments(content);
    let mut encoder = Encoder {
        body: body.into_data_stream(),
        rest: Bytes::new(),
        frame: vec![1],
        segment_bytes,
        segment: 0,
        segment_left: 0,
        content_left: content,
        segment_crc: Crc64::new(),
        message_crc: Crc64::new(),
        finished: false,
    };
    encoder
        .frame
        .extend_from_slice(&encoded_length(content).to_le_bytes());
    encoder.frame.extend_from_slice(&1_u16.to_le_bytes());
    // At most 65,535: that is what their size is chosen for.
    encoder.frame.extend_from_slice(&(number as u16).to_le_bytes());
    encoder.begin_segment();
    Body::from_stream(futures_util::stream::try_unfold(
        encoder,
        |mut encoder| async move {
            let piece = encoder.next().await?;
            Ok::<_, std::io::Error>(piece.map(|piece| (piece, encoder)))
        },
    ))
}

impl Encoder {
    fn begin_segment(&mut self) {
        self.segment += 1;
        self.segment_left = self.content_left.min(self.segment_bytes);
        self.content_left -= self.segment_left;
        self.segment_crc = Crc64::new();
        self.frame.extend_from_slice(&self.segment.to_le_bytes());
        self.frame.extend_from_slice(&self.segment_left.to_le_bytes());
    }

    async fn next(&mut self) -> std::io::Result<Option<Bytes>> {
        loop {
            if !self.frame.is_empty() {
                return Ok(Some(Bytes::from(std::mem::take(&mut self.frame))));
            }
            if self.segment_left > 0 {
                if self.rest.is_empty() {
                    let chunk = self.body.next().await.ok_or(std::io::ErrorKind::UnexpectedEof)?;
                    self.rest = chunk.map_err(std::io::Error::other)?;
                }
                let left = usize::try_from(self.segment_left).unwrap_or(usize::MAX);
                let piece = self.rest.split_to(left.min(self.rest.len()));
                self.segment_left -= piece.len() as u64;
                self.segment_crc.update(&piece);
                self.message_crc.update(&piece);
                return Ok(Some(piece));
            }
            if self.finished {
                return Ok(None);
            }
            self.frame.extend_from_slice(&self.segment_crc.finish());
            if self.content_left > 0 {
                self.begin_segment();
            } else {
                self.frame.extend_from_slice(&self.message_crc.finish());
                self.finished = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crc(bytes: &[u8]) -> [u8; 8] {
        let mut crc = Crc64::new();
        crc.update(bytes);
        crc.finish()
    }

    fn message(segments: &[&[u8]]) -> Vec<u8> {
        let mut out = vec![1; 1];
        let content: usize = segments.iter().map(|segment| segment.len()).sum();
        let length = 13 + segments.len() * 18 + content + 8;
        out.extend_from_slice(&(length as u64).to_le_bytes());
        out.extend_from_slice(&1_u16.to_le_bytes());
        out.extend_from_slice(&(segments.len() as u16).to_le_bytes());
        for (number, segment) in segments.iter().enumerate() {
            out.extend_from_slice(&(number as u16 + 1).to_le_bytes());
            out.extend_from_slice(&(segment.len() as u64).to_le_bytes());
            out.extend_from_slice(segment);
            out.extend_from_slice(&crc(segment));
        }
        out.extend_from_slice(&crc(&segments.concat()));
        out
    }

    /// Reads in pieces of `step` bytes.
    fn read(message: &[u8], content: usize, step: usize) -> Result<Vec<u8>, BlobError> {
        let mut structured = Structured::new(message.len() as u64, content as u64);
        let mut found = Vec::new();
        for chunk in message.chunks(step) {
            let mut rest = chunk;
            while let Some(piece) = structured.next(&mut rest)? {
                found.extend_from_slice(piece);
            }
        }
        // What needs no more bytes is done at the end.
        assert!(structured.next(&mut &[][..])?.is_none());
        match structured.is_done() {
            true => Ok(found),
            false => Err(invalid("it is not whole")),
        }
    }

    #[test]
    fn content_comes_out_however_it_is_cut() {
        let message = message(&[b"one-", b"", b"three"]);
        for step in 1..message.len() {
            assert_eq!(read(&message, 9, step).expect("valid"), b"one-three", "{step}");
        }
        assert_eq!(read(&self::message(&[b""]), 0, 64).expect("valid"), b"");
    }

    #[tokio::test]
    async fn what_is_sent_can_be_read() {
        for size in [0, 1, 300, SEGMENT_BYTES, SEGMENT_BYTES + 1, 3 * SEGMENT_BYTES - 5] {
            let content: Vec<u8> = (0..251).cycle().take(size as usize).collect();
            let pieces: Vec<_> = content.chunks(100_000).map(Bytes::copy_from_slice).collect();
            let pieces = pieces.into_iter().map(Ok::<_, std::io::Error>);
            let body = Body::from_stream(futures_util::stream::iter(pieces));
            let message = axum::body::to_bytes(encode(body, size), usize::MAX);
            let message = message.await.expect("encoded");
            assert_eq!(message.len() as u64, encoded_length(size));
            assert_eq!(
                read(&message, content.len(), 70_001).expect("valid"),
                content,
                "{size}"
            );
        }
        let short = encode(Body::from("abc"), 4);
        assert!(axum::body::to_bytes(short, usize::MAX).await.is_err());
        assert_eq!(segments(u64::from(u32::MAX) << 10).1, 65_535);
    }

    #[test]
    fn damage_is_seen() {
        let good = message(&[b"one-", b"two"]);
        for place in 0..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 0x10;
            assert!(read(&bad, 7, 64).is_err(), "byte {place}");
        }
        assert!(read(&good, 6, 64).is_err() && read(&good, 8, 64).is_err());
        assert!(read(&good[..good.len() - 1], 7, 64).is_err());
    }
}
