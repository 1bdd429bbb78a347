//! Frames of a log: eight bytes (stream, three zeroes, length in big-endian order), then that many bytes.

use bytes::{Buf, Bytes, BytesMut};

const HEADER_BYTES: usize = 8;

/// Which stream a frame is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    /// Standard input or output.
    Out,
    /// Standard error.
    Err,
    /// The engine's own words about a failure.
    Engine,
}

/// Takes frames apart, in whatever pieces they come. A frame's bytes are handed on as they arrive: nothing but a header is
/// ever kept.
#[derive(Debug, Default)]
pub struct Frames {
    header: BytesMut,
    stream: Option<Stream>,
    left: usize,
}

impl Frames {
    /// The next part of a frame in `bytes`, which is advanced past it; `None` when more bytes are needed.
    ///
    /// # Errors
    /// When a header is none.
    pub fn next(&mut self, bytes: &mut Bytes) -> Result<Option<(Stream, Bytes)>, String> {
        loop {
            if let (Some(stream), true) = (self.stream, self.left > 0) {
                if bytes.is_empty() {
                    return Ok(None);
                }
                let part = bytes.split_to(self.left.min(bytes.len()));
                self.left -= part.len();
                return Ok(Some((stream, part)));
            }
            let missing = HEADER_BYTES - self.header.len();
            let part = bytes.split_to(missing.min(bytes.len()));
            self.header.extend_from_slice(&part);
            if self.header.len() < HEADER_BYTES {
                return Ok(None);
            }
            self.begin_frame()?;
        }
    }

    /// Whether the stream may end here.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.header.is_empty() && self.left == 0
    }

    fn begin_frame(&mut self) -> Result<(), String> {
        let mut header = std::mem::take(&mut self.header);
        let kind = header.get_u8();
        let zeroes = header.get_uint(3);
        self.left = usize::try_from(header.get_u32()).unwrap_or(usize::MAX);
        self.stream = match kind {
            _ if zeroes != 0 => None,
            0 | 1 => Some(Stream::Out),
            2 => Some(Stream::Err),
            3 => Some(Stream::Engine),
            _ => None,
        };
        match self.stream {
            Some(_) => Ok(()),
            None => Err("the engine's log is not in frames".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[&[u8]]) -> Result<Vec<(Stream, String)>, String> {
        let mut frames = Frames::default();
        let mut read: Vec<(Stream, String)> = Vec::new();
        for piece in pieces {
            let mut bytes = Bytes::copy_from_slice(piece);
            while let Some((stream, part)) = frames.next(&mut bytes)? {
                let text = String::from_utf8_lossy(&part).into_owned();
                match read.last_mut() {
                    Some((last, all)) if *last == stream => all.push_str(&text),
                    _ => read.push((stream, text)),
                }
            }
            assert!(bytes.is_empty());
        }
        assert!(frames.complete());
        Ok(read)
    }

    #[test]
    fn reads_frames_in_any_pieces() {
        let text = b"\x01\0\0\0\0\0\0\x03abc\x02\0\0\0\0\0\0\x02xy\x01\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\x04oops";
        let expected = [
            (Stream::Out, "abc".to_owned()),
            (Stream::Err, "xy".to_owned()),
            (Stream::Engine, "oops".to_owned()),
        ];
        for step in 1..=text.len() {
            let pieces: Vec<&[u8]> = text.chunks(step).collect();
            assert_eq!(read(&pieces).unwrap(), expected, "{step}");
        }
    }

    #[test]
    fn garbage_is_refused() {
        assert!(read(&[b"plain text of a terminal"]).is_err());
        assert!(read(&[b"\x01\0\x01\0\0\0\0\x01a"]).is_err());
    }

    #[test]
    fn an_early_end_is_seen() {
        let mut frames = Frames::default();
        let mut bytes = Bytes::from_static(b"\x01\0\0\0\0\0\0\x09abc");
        assert!(frames.next(&mut bytes).unwrap().is_some());
        assert!(frames.next(&mut bytes).unwrap().is_none());
        assert!(!frames.complete());
    }
}
