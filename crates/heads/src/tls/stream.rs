//! A server-side TLS connection that holds no buffer while idle.
//!
//! The buffered connection of `rustls` keeps a 4 KiB read buffer for the life of every connection. Its unbuffered one
//! works on memory of ours, so ciphertext passes through one scratch buffer per thread, and a connection keeps only what
//! does not make up a whole record yet, or what the socket did not take.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use rustls::ServerConfig;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// Room for ciphertext: several records, and the longest handshake message `rustls` takes (64 KiB).
const SCRATCH_BYTES: usize = 96 * 1024;
/// Plaintext sealed in one go.
const SEAL_BYTES_MAX: usize = 64 * 1024;

thread_local! {
    /// Ciphertext on its way in and out. Taken out of its cell for the time of one call.
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

struct Scratch {
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
}

fn with_scratch<T>(work: impl FnOnce(&mut Scratch) -> T) -> T {
    let mut scratch = SCRATCH.take().unwrap_or_else(|| {
        Box::new(Scratch {
            incoming: vec![0; SCRATCH_BYTES],
            outgoing: Vec::with_capacity(SCRATCH_BYTES),
        })
    });
    let result = work(&mut scratch);
    SCRATCH.set(Some(scratch));
    result
}

/// A TLS connection after its handshake.
pub struct TlsStream {
    tcp: TcpStream,
    tls: UnbufferedServerConnection,
    /// What waits; exists only while something does.
    waiting: Option<Box<Waiting>>,
    peer_closed: bool,
    /// `close_notify` was sent, or is part of the waiting output.
    closing: bool,
}

#[derive(Default)]
struct Waiting {
    /// Ciphertext received and not yet processed.
    incoming: Vec<u8>,
    /// `incoming` may hold whole records: processing stopped because the reader's buffer was full.
    unprocessed: bool,
    /// Plaintext that did not fit the reader's buffer, from `plain_at` on.
    plain: Vec<u8>,
    plain_at: usize,
    /// Ciphertext the socket has not taken, from `sent` on.
    outgoing: Vec<u8>,
    sent: usize,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.incoming.is_empty() && self.plain.is_empty() && self.outgoing.is_empty()
    }
}

/// Where decrypted bytes go: the reader's buffer first, the rest is kept.
struct Sink<'a, 'b> {
    buffer: Option<&'a mut ReadBuf<'b>>,
    spilled: Vec<u8>,
}

impl Sink<'_, '_> {
    fn put(&mut self, payload: &[u8]) {
        let rest = match &mut self.buffer {
            Some(buffer) => {
                let (now, later) = payload.split_at(payload.len().min(buffer.remaining()));
                buffer.put_slice(now);
                later
            }
            None => payload,
        };
        self.spilled.extend_from_slice(rest);
    }

    fn is_full(&self) -> bool {
        !self.spilled.is_empty() || self.buffer.as_ref().is_some_and(|buffer| buffer.remaining() == 0)
    }
}

/// How far [`process`] came.
struct Processed {
    /// Bytes of the input that are done with.
    consumed: usize,
    /// It stopped for want of room; more records may be there.
    unprocessed: bool,
    peer_closed: bool,
}

/// Feeds ciphertext to the connection until it needs more, or until the sink is full. Handshake and alert records to be
/// sent are appended to `out`, also when it fails.
fn process(
    tls: &mut UnbufferedServerConnection,
    incoming: &mut [u8],
    sink: &mut Sink<'_, '_>,
    out: &mut Vec<u8>,
) -> Result<Processed, rustls::Error> {
    let mut processed = Processed {
        consumed: 0,
        unprocessed: false,
        peer_closed: false,
    };
    loop {
        let UnbufferedStatus { mut discard, state } =
            tls.process_tls_records(&mut incoming[processed.consumed..]);
        let mut done = false;
        match state {
            Err(error) => {
                append_alert(tls, out);
                return Err(error);
            }
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    discard += record.discard;
                    sink.put(record.payload);
                }
                if sink.is_full() {
                    processed.unprocessed = true;
                    done = true;
                }
            }
            Ok(ConnectionState::EncodeTlsData(mut data)) => append_encoded(|room| data.encode(room), out)?,
            // The bytes are in `out`; who calls sees to it that they leave before anything later.
            Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
            Ok(ConnectionState::PeerClosed) => processed.peer_closed = true,
            Ok(ConnectionState::Closed) => {
                processed.peer_closed = true;
                done = true;
            }
            Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => done = true,
            // Early data is not enabled; any other state is one this code does not know.
            Ok(_) => {
                return Err(rustls::Error::General(
                    "unexpected state of the TLS connection".into(),
                ));
            }
        }
        processed.consumed += discard;
        if done {
            return Ok(processed);
        }
    }
}

fn append_encoded(
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
    out: &mut Vec<u8>,
) -> Result<(), rustls::Error> {
    let start = out.len();
    let mut room = 1_024;
    loop {
        out.resize(start + room, 0);
        match encode(&mut out[start..]) {
            Ok(length) => {
                out.truncate(start + length);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(short)) if short.required_size > room => {
                room = short.required_size
            }
            Err(error) => {
                out.truncate(start);
                return Err(rustls::Error::General(error.to_string()));
            }
        }
    }
}

/// After an error: the alert that tells the client why, if there is one.
fn append_alert(tls: &mut UnbufferedServerConnection, out: &mut Vec<u8>) {
    // Only while something is to be sent: otherwise the call would look at the input again, which has failed.
    while tls.wants_write() {
        let Ok(ConnectionState::EncodeTlsData(mut data)) = tls.process_tls_records(&mut []).state else {
            return;
        };
        if append_encoded(|room| data.encode(room), out).is_err() {
            return;
        }
    }
}

impl TlsStream {
    /// Performs the handshake on an accepted socket. `budget` is held while there is work to do, not while waiting for
    /// the client: at most that many handshakes stand in the scheduler's queue at any time, so that a storm of them
    /// leaves room for live sessions, and a silent client holds nothing. No time limit here.
    ///
    /// # Errors
    /// What the socket says; `InvalidData` with the TLS error; `UnexpectedEof`.
    pub(crate) async fn accept(
        tcp: TcpStream,
        config: Arc<ServerConfig>,
        budget: &Semaphore,
    ) -> io::Result<Box<Self>> {
        let tls = UnbufferedServerConnection::new(config).map_err(invalid_data)?;
        let mut stream = Box::new(TlsStream {
            tcp,
            tls,
            waiting: None,
            peer_closed: false,
            closing: false,
        });
        loop {
            stream.tcp.readable().await?;
            let outcome = match budget.acquire().await {
                Ok(_permit) => stream.handshake_step(),
                // The budget is never closed.
                Err(_) => return Err(io::ErrorKind::Interrupted.into()),
            };
            // Also after a failure, so that the client gets its alert.
            let flushed = std::future::poll_fn(|context| stream.poll_send(context)).await;
            outcome?;
            flushed?;
            if !stream.tls.is_handshaking() {
                return Ok(stream);
            }
        }
    }

    fn handshake_step(&mut self) -> io::Result<()> {
        with_scratch(|scratch| {
            let have = self.restore_incoming(&mut scratch.incoming);
            let received = match self.tcp.try_read(&mut scratch.incoming[have..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error),
            };
            self.feed(
                &mut scratch.incoming[..have + received],
                None,
                &mut scratch.outgoing,
            )
        })
    }

    /// The client's certificate chain, leaf first; empty without one.
    #[must_use]
    pub fn peer_certificates(&self) -> Vec<Bytes> {
        self.tls
            .peer_certificates()
            .unwrap_or_default()
            .iter()
            .map(|certificate| Bytes::copy_from_slice(certificate))
            .collect()
    }

    /// Whether the handshake resumed an earlier session.
    #[must_use]
    pub fn resumed(&self) -> bool {
        self.tls.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
    }

    fn waiting(&mut self) -> &mut Waiting {
        self.waiting.get_or_insert_default()
    }

    fn release_waiting(&mut self) {
        if self.waiting.as_ref().is_some_and(|waiting| waiting.is_empty()) {
            self.waiting = None;
        }
    }

    /// Puts ciphertext kept from before in front; returns its length.
    fn restore_incoming(&mut self, scratch: &mut [u8]) -> usize {
        let Some(waiting) = &mut self.waiting else {
            return 0;
        };
        let incoming = std::mem::take(&mut waiting.incoming);
        scratch[..incoming.len()].copy_from_slice(&incoming);
        incoming.len()
    }

    /// Processes `incoming` and keeps what is not done with; answers go to the output.
    fn feed(
        &mut self,
        incoming: &mut [u8],
        buffer: Option<&mut ReadBuf<'_>>,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        out.clear();
        let mut sink = Sink {
            buffer,
            spilled: Vec::new(),
        };
        let processed = process(&mut self.tls, incoming, &mut sink, out);
        if !out.is_empty() {
            self.waiting().outgoing.extend_from_slice(out);
        }
        if !sink.spilled.is_empty() {
            let waiting = self.waiting();
            waiting.plain.extend_from_slice(&sink.spilled);
        }
        let processed = processed.map_err(invalid_data)?;
        self.peer_closed |= processed.peer_closed;
        if processed.consumed < incoming.len() {
            let waiting = self.waiting();
            waiting.incoming = incoming[processed.consumed..].to_vec();
            waiting.unprocessed = processed.unprocessed;
        }
        self.release_waiting();
        Ok(())
    }

    /// Hands out plaintext kept from before; whether there was any.
    fn take_plain(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let Some(waiting) = &mut self.waiting else {
            return false;
        };
        if waiting.plain.is_empty() {
            return false;
        }
        let rest = &waiting.plain[waiting.plain_at..];
        let now = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..now]);
        waiting.plain_at += now;
        if waiting.plain_at == waiting.plain.len() {
            waiting.plain = Vec::new();
            waiting.plain_at = 0;
            self.release_waiting();
        }
        true
    }

    /// Sends ciphertext that waits.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(waiting) = &mut self.waiting {
            if waiting.sent == waiting.outgoing.len() {
                waiting.outgoing = Vec::new();
                waiting.sent = 0;
                break;
            }
            let rest = &waiting.outgoing[waiting.sent..];
            let sent = ready!(Pin::new(&mut self.tcp).poll_write(context, rest))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            waiting.sent += sent;
        }
        self.release_waiting();
        Poll::Ready(Ok(()))
    }

    /// Appends `data` as records to `out`, after whatever the connection itself has to say first.
    fn seal(&mut self, data: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        let mut incoming = self
            .waiting
            .as_mut()
            .map(|waiting| std::mem::take(&mut waiting.incoming))
            .unwrap_or_default();
        let mut used = 0;
        let sealed = loop {
            let UnbufferedStatus { mut discard, state } = self.tls.process_tls_records(&mut incoming[used..]);
            match state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    used += discard;
                    break append_sealed(|room| traffic.encrypt(data, room), data.len(), out);
                }
                Ok(ConnectionState::EncodeTlsData(mut record)) => {
                    append_encoded(|room| record.encode(room), out).map_err(invalid_data)?;
                }
                Ok(ConnectionState::TransmitTlsData(record)) => record.done(),
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(invalid_data)?;
                        discard += record.discard;
                        let waiting = self.waiting.get_or_insert_default();
                        waiting.plain.extend_from_slice(record.payload);
                    }
                }
                Ok(ConnectionState::PeerClosed) => self.peer_closed = true,
                Ok(_) => break Err(io::ErrorKind::BrokenPipe.into()),
                Err(error) => break Err(invalid_data(error)),
            }
            used += discard;
        };
        if used < incoming.len() {
            incoming.drain(..used);
            self.waiting().incoming = incoming;
        }
        sealed
    }
}

/// Appends the records that `encrypt` writes.
fn append_sealed(
    mut encrypt: impl FnMut(&mut [u8]) -> Result<usize, EncryptError>,
    plain: usize,
    out: &mut Vec<u8>,
) -> io::Result<()> {
    /// More than any suite adds to a record.
    const RECORD_OVERHEAD: usize = 64;
    const RECORD_BYTES: usize = 16 * 1024;
    let start = out.len();
    let mut room = plain + (plain / RECORD_BYTES + 1) * RECORD_OVERHEAD;
    loop {
        out.resize(start + room, 0);
        match encrypt(&mut out[start..]) {
            Ok(length) => {
                out.truncate(start + length);
                return Ok(());
            }
            Err(EncryptError::InsufficientSize(short)) if short.required_size > room => {
                room = short.required_size
            }
            Err(error) => {
                out.truncate(start);
                return Err(io::Error::other(error.to_string()));
            }
        }
    }
}

fn invalid_data(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl AsyncRead for TlsStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.take_plain(buffer) || buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        with_scratch(|scratch| {
            let before = buffer.filled().len();
            let mut unprocessed = this.waiting.as_ref().is_some_and(|waiting| waiting.unprocessed);
            loop {
                let mut have = this.restore_incoming(&mut scratch.incoming);
                if !unprocessed && !this.peer_closed {
                    let mut raw = ReadBuf::new(&mut scratch.incoming[have..]);
                    let read = Pin::new(&mut this.tcp).poll_read(context, &mut raw);
                    let received = raw.filled().len();
                    if !matches!(read, Poll::Ready(Ok(()))) || received == 0 {
                        if have > 0 && read.is_pending() {
                            this.waiting().incoming = scratch.incoming[..have].to_vec();
                        }
                        // Without `close_notify` the stream may have been cut; both protocols above frame their
                        // messages, so a cut one is never taken for a whole one.
                        return read;
                    }
                    have += received;
                }
                unprocessed = false;
                let fed = this.feed(&mut scratch.incoming[..have], Some(buffer), &mut scratch.outgoing);
                // Answers of the connection itself (key updates, alerts) leave with the next chance.
                if this.poll_send(context).is_ready() {
                    this.release_waiting();
                }
                fed?;
                if buffer.filled().len() > before || this.peer_closed {
                    return Poll::Ready(Ok(()));
                }
            }
        })
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_send(context))?;
        if this.closing {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let data = &data[..data.len().min(SEAL_BYTES_MAX)];
        with_scratch(|scratch| {
            let out = &mut scratch.outgoing;
            out.clear();
            this.seal(data, out)?;
            let mut sent = 0;
            while sent < out.len() {
                match Pin::new(&mut this.tcp).poll_write(context, &out[sent..]) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(more)) => sent += more,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {
                        this.waiting().outgoing.extend_from_slice(&out[sent..]);
                        break;
                    }
                }
            }
            Poll::Ready(Ok(data.len()))
        })
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.closing {
            this.closing = true;
            let mut notice = Vec::new();
            let mut incoming = this
                .waiting
                .as_mut()
                .map(|waiting| std::mem::take(&mut waiting.incoming))
                .unwrap_or_default();
            if let Ok(ConnectionState::WriteTraffic(mut traffic)) =
                this.tls.process_tls_records(&mut incoming).state
            {
                // A connection that cannot say goodbye any more is closed without it.
                let _ = append_sealed(|room| traffic.queue_close_notify(room), 0, &mut notice);
            }
            if !notice.is_empty() {
                this.waiting().outgoing.extend_from_slice(&notice);
            }
        }
        ready!(this.poll_send(context))?;
        Pin::new(&mut this.tcp).poll_shutdown(context)
    }
}

impl std::fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsStream")
            .field("tcp", &self.tcp)
            .finish_non_exhaustive()
    }
}
