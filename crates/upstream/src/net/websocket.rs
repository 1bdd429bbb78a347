//! Frames of RFC 6455 as a client writes and reads them. Bytes in, bytes out.

/// Longest frame that is taken from a server. Both protocols inside have smaller packets.
const FRAME_BYTES_MAX: u64 = 1 << 20;
/// Longest payload of a control frame (RFC 6455, 5.5).
const CONTROL_BYTES_MAX: u64 = 125;

const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;

/// Why a server's frames cannot be read on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum FrameError {
    /// Above the bound.
    #[error("a WebSocket frame of {0} bytes is too long")]
    TooLong(u64),
    /// Servers do not mask (RFC 6455, 5.1).
    #[error("a WebSocket frame from the server is masked")]
    Masked,
    /// Not binary, or not a kind of frame at all.
    #[error("a WebSocket frame of kind {0} is not expected")]
    Kind(u8),
    /// A control frame in pieces.
    #[error("a WebSocket control frame is malformed")]
    Control,
}

/// What reading came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Read {
    /// More bytes are needed.
    More,
    /// The server said goodbye.
    Closed,
}

/// Reads frames of a server. Payload of data frames is handed on as it comes, whole frame or not.
#[derive(Default)]
pub(crate) struct FrameReader {
    /// Bytes that are not taken yet: at most a header, or a control frame.
    held: Vec<u8>,
    /// Payload bytes of the current data frame still to come.
    left: u64,
}

impl FrameReader {
    /// Takes `bytes`: appends payload to `into`, and answers to pings to `answers`.
    pub(crate) fn read(
        &mut self,
        bytes: &[u8],
        into: &mut Vec<u8>,
        answers: &mut Vec<u8>,
    ) -> Result<Read, FrameError> {
        // Between frames, `held` has what was not enough for a header or a control frame; it is short.
        let joined;
        let mut rest = bytes;
        if !self.held.is_empty() {
            self.held.extend_from_slice(bytes);
            joined = std::mem::take(&mut self.held);
            rest = &joined;
        }
        loop {
            if self.left > 0 {
                let take = usize::try_from(self.left).unwrap_or(usize::MAX).min(rest.len());
                into.extend_from_slice(&rest[..take]);
                rest = &rest[take..];
                self.left -= take as u64;
            }
            if rest.is_empty() {
                return Ok(Read::More);
            }
            match self.frame(rest, into, answers)? {
                Some(Frame::Closed) => return Ok(Read::Closed),
                Some(Frame::Taken(used)) => rest = &rest[used..],
                None => {
                    self.held = rest.to_vec();
                    return Ok(Read::More);
                }
            }
        }
    }

    fn frame(
        &mut self,
        held: &[u8],
        into: &mut Vec<u8>,
        answers: &mut Vec<u8>,
    ) -> Result<Option<Frame>, FrameError> {
        let Some(header) = Header::read(held)? else {
            return Ok(None);
        };
        let payload = &held[header.len..];
        if header.kind >= CLOSE {
            let Some(payload) = usize::try_from(header.payload)
                .ok()
                .and_then(|len| payload.get(..len))
            else {
                return Ok(None);
            };
            match header.kind {
                CLOSE => {
                    // The code is echoed (RFC 6455, 5.5.1).
                    write_frame(answers, CLOSE, payload.get(..2).unwrap_or_default());
                    return Ok(Some(Frame::Closed));
                }
                PING => write_frame(answers, PONG, payload),
                _ => {}
            }
            return Ok(Some(Frame::Taken(header.len + payload.len())));
        }
        let here = usize::try_from(header.payload)
            .unwrap_or(usize::MAX)
            .min(payload.len());
        into.extend_from_slice(&payload[..here]);
        self.left = header.payload - here as u64;
        Ok(Some(Frame::Taken(header.len + here)))
    }
}

enum Frame {
    Taken(usize),
    Closed,
}

struct Header {
    kind: u8,
    payload: u64,
    /// Bytes of the header itself.
    len: usize,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Option<Header>, FrameError> {
        let [first, second, rest @ ..] = bytes else {
            return Ok(None);
        };
        if second & 0x80 != 0 {
            return Err(FrameError::Masked);
        }
        let (payload, len) = match second & 0x7f {
            126 => match rest.first_chunk::<2>() {
                Some(bytes) => (u64::from(u16::from_be_bytes(*bytes)), 4),
                None => return Ok(None),
            },
            127 => match rest.first_chunk::<8>() {
                Some(bytes) => (u64::from_be_bytes(*bytes), 10),
                None => return Ok(None),
            },
            short => (u64::from(short), 2),
        };
        let kind = first & 0x0f;
        let whole = first & 0x80 != 0;
        match kind {
            CONTINUATION | BINARY => {}
            CLOSE | PING | PONG => {
                if !whole || payload > CONTROL_BYTES_MAX {
                    return Err(FrameError::Control);
                }
            }
            TEXT => return Err(FrameError::Kind(TEXT)),
            other => return Err(FrameError::Kind(other)),
        }
        if payload > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong(payload));
        }
        Ok(Some(Header { kind, payload, len }))
    }
}

/// Appends one binary frame with `payload`.
pub(crate) fn write_binary(out: &mut Vec<u8>, payload: &[u8]) {
    write_frame(out, BINARY, payload);
}

/// Appends a close frame: going away.
pub(crate) fn write_close(out: &mut Vec<u8>) {
    write_frame(out, CLOSE, &1000u16.to_be_bytes());
}

fn write_frame(out: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    // The mask keeps a page's script from writing bytes of its choice past proxies (RFC 6455, 10.3); nothing here is a
    // script's, so that any mask does, but servers want one.
    let mask = getrandom::u32().unwrap_or(0x5a5a_5a5a).to_be_bytes();
    out.reserve(payload.len() + 14);
    out.push(0x80 | kind);
    match payload.len() {
        short @ 0..=125 => out.push(0x80 | short as u8),
        medium @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&mask);
    out.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server_frame(kind: u8, whole: bool, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![kind | if whole { 0x80 } else { 0 }];
        match payload.len() {
            short @ 0..=125 => out.push(short as u8),
            medium @ 126..=0xffff => {
                out.push(126);
                out.extend_from_slice(&(medium as u16).to_be_bytes());
            }
            long => {
                out.push(127);
                out.extend_from_slice(&(long as u64).to_be_bytes());
            }
        }
        out.extend_from_slice(payload);
        out
    }

    #[test]
    fn frames_are_read_however_they_are_cut() {
        let long: Vec<u8> = (0..70_000u32).map(|n| n as u8).collect();
        let mut stream = server_frame(BINARY, false, b"ab");
        stream.extend(server_frame(PING, true, b"are you there"));
        stream.extend(server_frame(CONTINUATION, true, b"cd"));
        stream.extend(server_frame(BINARY, true, &[]));
        stream.extend(server_frame(BINARY, true, &[7; 300]));
        stream.extend(server_frame(BINARY, true, &long));
        let mut expected = b"abcd".to_vec();
        expected.extend([7; 300]);
        expected.extend(&long);
        for step in [1, 2, 3, 7, 1000, stream.len()] {
            let (mut reader, mut read, mut answers) = (FrameReader::default(), Vec::new(), Vec::new());
            for piece in stream.chunks(step) {
                assert_eq!(reader.read(piece, &mut read, &mut answers), Ok(Read::More));
            }
            assert_eq!(read, expected, "in steps of {step}");
            assert_eq!(answers[0], 0x80 | PONG);
            assert_eq!(answers.len(), 2 + 4 + 13);
        }
    }

    #[test]
    fn what_a_server_must_not_send_is_refused() {
        let read = |bytes: &[u8]| FrameReader::default().read(bytes, &mut Vec::new(), &mut Vec::new());
        assert_eq!(read(&[0x82, 0x80, 0, 0, 0, 0]), Err(FrameError::Masked));
        assert_eq!(read(&server_frame(TEXT, true, b"x")), Err(FrameError::Kind(TEXT)));
        assert_eq!(read(&server_frame(PING, false, b"x")), Err(FrameError::Control));
        let mut huge = vec![0x82, 127];
        huge.extend((1u64 << 40).to_be_bytes());
        assert_eq!(read(&huge), Err(FrameError::TooLong(1 << 40)));
        assert_eq!(read(&server_frame(CLOSE, true, &[3, 232])), Ok(Read::Closed));
    }

    #[test]
    fn frames_written_are_masked() {
        for len in [0, 125, 126, 65_535, 65_536] {
            let payload: Vec<u8> = (0..len).map(|n: usize| n as u8).collect();
            let mut out = Vec::new();
            write_binary(&mut out, &payload);
            let start = out.len() - len;
            let mask: Vec<u8> = out[start - 4..start].to_vec();
            let read: Vec<u8> = out[start..]
                .iter()
                .enumerate()
                .map(|(at, byte)| byte ^ mask[at % 4])
                .collect();
            assert_eq!(read, payload);
            assert_eq!(out[0], 0x82);
            assert_ne!(out[1] & 0x80, 0);
        }
    }
}
