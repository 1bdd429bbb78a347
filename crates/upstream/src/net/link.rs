//! A byte stream over TLS, in a WebSocket or not, read and written by one task.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::Secured;
use super::websocket::{self, FrameReader, Read};

/// Bytes read at a time. On the stack, so that an idle connection holds no buffer.
const CHUNK_BYTES: usize = 8 * 1024;
/// What an empty buffer may keep.
const KEEP_BYTES: usize = 4 * 1024;

/// What happened first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// Everything queued is written.
    Wrote,
    /// Bytes were read.
    Read,
    /// Somebody has work.
    Changed,
    /// The deadline has come.
    Time,
}

/// See the module documentation.
pub(crate) struct Link {
    stream: Secured,
    frames: Option<FrameReader>,
    pending: Vec<u8>,
    written: usize,
    flushed: bool,
    /// The server has said goodbye; what came before it is still to be read.
    closed: bool,
}

impl Link {
    /// The stream as it is.
    pub(crate) fn plain(stream: Secured) -> Self {
        Link {
            stream,
            frames: None,
            pending: Vec::new(),
            written: 0,
            flushed: true,
            closed: false,
        }
    }

    /// The stream after the WebSocket handshake.
    pub(crate) fn websocket(stream: Secured) -> Self {
        Link {
            frames: Some(FrameReader::default()),
            ..Link::plain(stream)
        }
    }

    /// Whether nothing waits to be written; only then give more.
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.flushed
    }

    /// Takes all of `bytes` for writing.
    pub(crate) fn queue(&mut self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        if self.frames.is_some() {
            websocket::write_binary(&mut self.pending, bytes);
            bytes.clear();
        } else if self.pending.is_empty() {
            std::mem::swap(&mut self.pending, bytes);
        } else {
            self.pending.append(bytes);
        }
        if bytes.capacity() > KEEP_BYTES && bytes.is_empty() {
            bytes.shrink_to(KEEP_BYTES);
        }
    }

    /// Writes what is queued; ready when all of it has gone to the socket.
    pub(crate) fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.pending.len() {
            let rest = &self.pending[self.written..];
            let count = ready!(Pin::new(&mut self.stream).poll_write(context, rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
            self.flushed = false;
        }
        self.pending.clear();
        self.pending.shrink_to(KEEP_BYTES);
        self.written = 0;
        if !self.flushed {
            ready!(Pin::new(&mut self.stream).poll_flush(context))?;
            self.flushed = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Appends what has come to `into`; 0 at the end of the stream.
    pub(crate) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        into: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>> {
        loop {
            if self.closed {
                return Poll::Ready(Ok(0));
            }
            let mut chunk = [std::mem::MaybeUninit::<u8>::uninit(); CHUNK_BYTES];
            let mut buffer = ReadBuf::uninit(&mut chunk);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
            let bytes = buffer.filled();
            if bytes.is_empty() {
                return Poll::Ready(Ok(0));
            }
            let Some(frames) = &mut self.frames else {
                into.extend_from_slice(bytes);
                return Poll::Ready(Ok(bytes.len()));
            };
            let before = into.len();
            let read = frames.read(bytes, into, &mut self.pending);
            let read = read.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            self.closed = read == Read::Closed;
            if into.len() > before {
                return Poll::Ready(Ok(into.len() - before));
            }
            // A ping: its answer leaves at once; what is left over leaves with the next write.
            if let Poll::Ready(written) = self.poll_write(context) {
                written?;
            }
        }
    }

    /// Waits for the next thing to happen: written and read by one poll, since both need the stream. Bytes that were read
    /// stand at the end of `input`.
    ///
    /// # Errors
    /// When the stream broke or ended.
    pub(crate) async fn step(
        &mut self,
        input: &mut Vec<u8>,
        changed: &Notify,
        deadline: Instant,
    ) -> io::Result<Step> {
        let mut changed = pin!(changed.notified());
        let mut timer = pin!(sleep_until(deadline));
        std::future::poll_fn(|context| {
            if !self.is_idle()
                && let Poll::Ready(written) = self.poll_write(context)
            {
                return Poll::Ready(written.map(|()| Step::Wrote));
            }
            match self.poll_read(context, input) {
                Poll::Ready(Ok(0)) => {
                    let text = "the hub closed the connection";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, text)));
                }
                Poll::Ready(read) => return Poll::Ready(read.map(|_| Step::Read)),
                Poll::Pending => {}
            }
            if changed.as_mut().poll(context).is_ready() {
                return Poll::Ready(Ok(Step::Changed));
            }
            timer.as_mut().poll(context).map(|()| Ok(Step::Time))
        })
        .await
    }

    /// Writes what is queued and says goodbye.
    pub(crate) async fn close(&mut self) -> io::Result<()> {
        if self.frames.is_some() {
            websocket::write_close(&mut self.pending);
        }
        std::future::poll_fn(|context| self.poll_write(context)).await?;
        std::future::poll_fn(|context| Pin::new(&mut self.stream).poll_shutdown(context)).await
    }
}
