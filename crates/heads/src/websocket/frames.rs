//! A byte stream over WebSocket frames (RFC 6455), server side.
//!
//! Clients split and join MQTT packets over frames as they like (mqtt.md section 1), so frame boundaries mean nothing
//! here: payloads are unmasked in place in the reader's buffer, and between two reads a connection keeps a header of a
//! few bytes at most. A ready-made WebSocket library holds message buffers of many KiB per connection.
//!
//! Extensions are not negotiated. Text frames, reserved bits, unmasked frames and oversized control frames close the
//! connection with the status of RFC 6455 section 7.4.1.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// 2 bytes, up to 8 of length, 4 of mask.
const HEADER_BYTES_MAX: usize = 14;
/// RFC 6455 section 5.5.
const CONTROL_BYTES_MAX: u64 = 125;
/// Output taken while earlier output waits: a client that pings and does not read is cut off.
const WAITING_BYTES_MAX: usize = 64 * 1024;
/// Application bytes put into one frame.
const FRAME_BYTES_MAX: usize = 64 * 1024;

const STATUS_NORMAL: u16 = 1000;
const STATUS_PROTOCOL_ERROR: u16 = 1002;
const STATUS_UNSUPPORTED_DATA: u16 = 1003;

/// Kind of the frame being received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Opcode {
    Data,
    Close,
    Ping,
    Pong,
}

/// A byte stream in the binary frames of a WebSocket over `S`.
#[derive(Debug)]
pub struct FrameStream<S> {
    inner: S,
    /// Bytes of the frame's payload still to come.
    remaining: u64,
    mask: [u8; 4],
    /// Place in the mask.
    mask_at: u8,
    opcode: Opcode,
    header: [u8; HEADER_BYTES_MAX],
    header_len: u8,
    /// A close frame was sent or waits to be.
    closing: bool,
    /// The client's close frame came, or it broke the rules: nothing more is read.
    ended: bool,
    /// Exists only while something waits.
    waiting: Option<Box<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Bytes that came with the upgrade request.
    incoming: Vec<u8>,
    /// Payload of a control frame that is not complete.
    control: Vec<u8>,
    /// Frames the socket has not taken, from `sent` on.
    outgoing: Vec<u8>,
    sent: usize,
}

/// The client broke RFC 6455: the status to close with, and what it did.
struct Violation(u16, &'static str);

impl<S> FrameStream<S> {
    /// After the upgrade; `early` is what the HTTP layer had read beyond its request.
    pub fn new(inner: S, early: &[u8]) -> Self {
        FrameStream {
            inner,
            remaining: 0,
            mask: [0; 4],
            mask_at: 0,
            opcode: Opcode::Data,
            header: [0; HEADER_BYTES_MAX],
            header_len: 0,
            closing: false,
            ended: false,
            waiting: (!early.is_empty()).then(|| {
                Box::new(Waiting {
                    incoming: early.to_vec(),
                    ..Waiting::default()
                })
            }),
        }
    }

    fn waiting(&mut self) -> &mut Waiting {
        self.waiting.get_or_insert_default()
    }

    fn release_waiting(&mut self) {
        if let Some(waiting) = &self.waiting
            && waiting.incoming.is_empty()
            && waiting.control.is_empty()
            && waiting.outgoing.is_empty()
        {
            self.waiting = None;
        }
    }

    /// Removes headers and masks from `raw`, in place; returns how many bytes of application data stand at its front.
    fn unframe(&mut self, raw: &mut [u8]) -> Result<usize, Violation> {
        let mut from = 0;
        let mut to = 0;
        while from < raw.len() && !self.ended {
            if self.remaining == 0 {
                from += self.take_header(&raw[from..])?;
                continue;
            }
            let length = usize::try_from(self.remaining)
                .unwrap_or(usize::MAX)
                .min(raw.len() - from);
            self.unmask(&mut raw[from..from + length]);
            self.remaining -= length as u64;
            if self.opcode == Opcode::Data {
                raw.copy_within(from..from + length, to);
                to += length;
            } else {
                let part = raw[from..from + length].to_vec();
                self.waiting().control.extend_from_slice(&part);
                if self.remaining == 0 {
                    self.end_control()?;
                }
            }
            from += length;
        }
        Ok(to)
    }

    /// Takes bytes of a frame header; returns how many.
    fn take_header(&mut self, raw: &[u8]) -> Result<usize, Violation> {
        let have = usize::from(self.header_len);
        let taken = raw.len().min(HEADER_BYTES_MAX - have);
        self.header[have..have + taken].copy_from_slice(&raw[..taken]);
        let header = &self.header[..have + taken];
        let Some((head, length)) = parse_header(header)? else {
            self.header_len += taken as u8;
            return Ok(taken);
        };
        self.opcode = head.opcode;
        self.remaining = head.length;
        self.mask = head.mask;
        self.mask_at = 0;
        self.header_len = 0;
        if self.remaining == 0 && self.opcode != Opcode::Data {
            self.end_control()?;
        }
        Ok(length - have)
    }

    fn unmask(&mut self, data: &mut [u8]) {
        // Turned so that the first byte meets the place in the mask; then whole words at a time.
        let mut mask = self.mask;
        mask.rotate_left(usize::from(self.mask_at));
        let mut chunks = data.chunks_exact_mut(4);
        for chunk in &mut chunks {
            for (byte, key) in chunk.iter_mut().zip(mask) {
                *byte ^= key;
            }
        }
        for (byte, key) in chunks.into_remainder().iter_mut().zip(mask) {
            *byte ^= key;
        }
        self.mask_at = ((usize::from(self.mask_at) + data.len()) % 4) as u8;
    }

    /// A control frame is complete.
    fn end_control(&mut self) -> Result<(), Violation> {
        let payload = self
            .waiting
            .as_mut()
            .map(|waiting| std::mem::take(&mut waiting.control))
            .unwrap_or_default();
        match self.opcode {
            Opcode::Ping => self.queue_frame(0x8a, &payload),
            Opcode::Close => {
                self.ended = true;
                self.queue_close(STATUS_NORMAL);
            }
            Opcode::Pong | Opcode::Data => {}
        }
        let flooded = self
            .waiting
            .as_ref()
            .is_some_and(|waiting| waiting.outgoing.len() - waiting.sent > WAITING_BYTES_MAX);
        if flooded {
            return Err(Violation(
                STATUS_PROTOCOL_ERROR,
                "pings without reading the answers",
            ));
        }
        Ok(())
    }

    fn queue_close(&mut self, status: u16) {
        if !self.closing {
            self.closing = true;
            self.queue_frame(0x88, &status.to_be_bytes());
        }
    }

    fn queue_frame(&mut self, first: u8, payload: &[u8]) {
        let out = &mut self.waiting().outgoing;
        out.push(first);
        match payload.len() {
            short @ 0..=125 => out.push(short as u8),
            middle @ 126..=65_535 => {
                out.push(126);
                out.extend_from_slice(&(middle as u16).to_be_bytes());
            }
            long => {
                out.push(127);
                out.extend_from_slice(&(long as u64).to_be_bytes());
            }
        }
        out.extend_from_slice(payload);
    }
}

struct Header {
    opcode: Opcode,
    length: u64,
    mask: [u8; 4],
}

/// Reads a frame header; `None` when bytes are missing. Returns its length too.
fn parse_header(bytes: &[u8]) -> Result<Option<(Header, usize)>, Violation> {
    let [first, second, rest @ ..] = bytes else {
        return Ok(None);
    };
    if first & 0x70 != 0 {
        return Err(Violation(STATUS_PROTOCOL_ERROR, "reserved bits are set"));
    }
    if second & 0x80 == 0 {
        return Err(Violation(
            STATUS_PROTOCOL_ERROR,
            "a frame of the client is not masked",
        ));
    }
    let opcode = match first & 0x0f {
        // Continuations: the stream does not care where messages end.
        0x0 | 0x2 => Opcode::Data,
        0x1 => return Err(Violation(STATUS_UNSUPPORTED_DATA, "text frame")),
        0x8 => Opcode::Close,
        0x9 => Opcode::Ping,
        0xa => Opcode::Pong,
        _ => return Err(Violation(STATUS_PROTOCOL_ERROR, "unknown opcode")),
    };
    let (length, rest, extra) = match second & 0x7f {
        126 => match rest.split_first_chunk::<2>() {
            Some((length, rest)) => (u64::from(u16::from_be_bytes(*length)), rest, 2),
            None => return Ok(None),
        },
        127 => match rest.split_first_chunk::<8>() {
            Some((length, rest)) => (u64::from_be_bytes(*length), rest, 8),
            None => return Ok(None),
        },
        short => (u64::from(short), rest, 0),
    };
    if opcode != Opcode::Data && (length > CONTROL_BYTES_MAX || first & 0x80 == 0) {
        return Err(Violation(
            STATUS_PROTOCOL_ERROR,
            "control frame is too long or fragmented",
        ));
    }
    let Some(mask) = rest.first_chunk::<4>() else {
        return Ok(None);
    };
    let header = Header {
        opcode,
        length,
        mask: *mask,
    };
    Ok(Some((header, 2 + extra + 4)))
}

impl<S: AsyncRead + AsyncWrite + Unpin> FrameStream<S> {
    /// Sends frames that wait.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(waiting) = &mut self.waiting {
            if waiting.sent == waiting.outgoing.len() {
                waiting.outgoing = Vec::new();
                waiting.sent = 0;
                break;
            }
            let rest = &waiting.outgoing[waiting.sent..];
            let sent = ready!(Pin::new(&mut self.inner).poll_write(context, rest))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            waiting.sent += sent;
        }
        self.release_waiting();
        Pin::new(&mut self.inner).poll_flush(context)
    }

    /// Fills `buffer` with raw bytes: those of the upgrade first, then from the socket.
    fn poll_raw(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(waiting) = &mut self.waiting
            && !waiting.incoming.is_empty()
        {
            let length = waiting.incoming.len().min(buffer.remaining());
            buffer.put_slice(&waiting.incoming[..length]);
            waiting.incoming.drain(..length);
            if waiting.incoming.is_empty() {
                waiting.incoming = Vec::new();
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for FrameStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while !this.ended {
            let mut raw = ReadBuf::new(buffer.initialize_unfilled());
            ready!(this.poll_raw(context, &mut raw))?;
            let received = raw.filled().len();
            if received == 0 {
                return Poll::Ready(Ok(()));
            }
            let unframed = this.unframe(&mut buffer.initialize_unfilled()[..received]);
            if let Err(Violation(status, _)) = unframed {
                this.ended = true;
                this.queue_close(status);
            }
            // Pongs and close frames leave now or with the next write.
            if let Poll::Ready(Err(error)) = this.poll_send(context) {
                return Poll::Ready(Err(error));
            }
            match unframed {
                Ok(0) => {}
                Ok(length) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Err(Violation(_, what)) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, what)));
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for FrameStream<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_send(context))?;
        if this.closing {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let data = &data[..data.len().min(FRAME_BYTES_MAX)];
        this.queue_frame(0x82, data);
        match this.poll_send(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(data.len())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.queue_close(STATUS_NORMAL);
        ready!(this.poll_send(context))?;
        Pin::new(&mut this.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
