//! The future of a connection: socket and buffers around `core`.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use holdfast_ports::gateway::Protocol;
use tokio::io::ReadBuf;
use tokio::sync::OwnedSemaphorePermit;

use super::core::Core;
use super::failure::End;
use super::scratch::{INPUT_BYTES, Scratch, with_scratch};
use super::timers::Timer;
use super::{DRAINING, ENDING, Shared};
use crate::transport::Transport;

/// Reads of one connection before others have their turn.
const READS_PER_TURN: usize = 4;
/// Rounds of sending events before others have their turn.
const PUMPS_PER_TURN: usize = 4;
/// Output buffers of a slow reader are compacted when this much of them is sent.
const COMPACT_BYTES: usize = 256 * 1024;

/// A live connection.
pub(super) struct Connection {
    transport: Transport,
    core: Box<Core>,
    timer: Option<Timer>,
    /// Input that is no whole frame yet, or, when `input_ready`, frames that wait for an answer or for room.
    rest: Vec<u8>,
    input_ready: bool,
    /// Output the client has not taken, from `sent` on.
    waiting: Vec<u8>,
    sent: usize,
    /// The transport holds bytes it has taken and not sent.
    unflushed: bool,
    /// The end has been said; only output is left.
    closing: Option<End>,
    ended: bool,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    pub(super) fn new(
        shared: &Arc<Shared>,
        transport: Transport,
        certificates: Arc<[Bytes]>,
        protocol: Protocol,
        peer: SocketAddr,
        place: OwnedSemaphorePermit,
    ) -> Self {
        Connection {
            transport,
            core: Box::new(Core::new(shared, certificates, protocol, peer)),
            timer: None,
            rest: Vec::new(),
            input_ready: false,
            waiting: Vec::new(),
            sent: 0,
            unflushed: false,
            closing: None,
            ended: false,
            _place: place,
        }
    }

    fn unsent(&self, scratch: &Scratch) -> usize {
        self.waiting.len() - self.sent + scratch.output.len()
    }

    fn is_crowded(&self, scratch: &Scratch) -> bool {
        self.unsent(scratch) >= self.core.shared.config.output_bytes_pause
    }

    /// One turn: everything that can be done without waiting.
    fn turn(&mut self, scratch: &mut Scratch, context: &mut Context<'_>) -> Result<(), End> {
        self.core.now = self.core.shared.clock.monotonic_millis();
        match self.core.shared.state() {
            DRAINING => self.core.draining = true,
            ENDING => return Err(self.core.stop(&mut scratch.output)),
            _ => {}
        }
        self.core.tick(&mut scratch.output)?;
        self.core.poll_done(scratch, context)?;
        let mut reads = 0;
        loop {
            if !self.core.may_read() || self.is_crowded(scratch) {
                break;
            }
            if reads == READS_PER_TURN {
                context.waker().wake_by_ref();
                break;
            }
            reads += 1;
            if self.read(scratch, context)?.is_pending() {
                break;
            }
            self.core.poll_done(scratch, context)?;
            self.write(scratch, context)?;
        }
        self.pump(scratch, context)
    }

    /// Sends events, and begins to read more of them.
    fn pump(&mut self, scratch: &mut Scratch, context: &mut Context<'_>) -> Result<(), End> {
        for _ in 0..PUMPS_PER_TURN {
            let room = self.core.shared.config.output_bytes_pause;
            let unsent = self.unsent(scratch);
            let more = unsent < room && self.core.pump(room - unsent, &mut scratch.output);
            // What was begun is polled here for the first time.
            let any = self.core.poll_done(scratch, context)?;
            if !more && !any {
                return Ok(());
            }
            self.write(scratch, context)?;
        }
        // There is more; others have their turn first. If the socket is full, it wakes us too.
        context.waker().wake_by_ref();
        Ok(())
    }

    /// Works off frames that wait, or reads once. Pending: there is nothing to be had.
    fn read(&mut self, scratch: &mut Scratch, context: &mut Context<'_>) -> Result<Poll<()>, End> {
        if self.input_ready {
            if self.core.is_held() {
                return Ok(Poll::Pending);
            }
            self.input_ready = false;
            let rest = std::mem::take(&mut self.rest);
            let used = self.take_frames(&rest, scratch)?;
            self.keep(&rest[used..]);
            return Ok(Poll::Ready(()));
        }
        let mut input = std::mem::take(&mut scratch.input);
        let outcome = self.read_socket(&mut input, scratch, context);
        scratch.input = input;
        outcome
    }

    fn read_socket(
        &mut self,
        input: &mut [u8],
        scratch: &mut Scratch,
        context: &mut Context<'_>,
    ) -> Result<Poll<()>, End> {
        // An unfinished frame is at most as large as we allow, which is half of the buffer.
        let front = self.rest.len().min(INPUT_BYTES / 2);
        input[..front].copy_from_slice(&self.rest[..front]);
        let mut buffer = ReadBuf::new(&mut input[front..]);
        match self.transport.poll_read(context, &mut buffer) {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(End::protocol(error.to_string()));
            }
            Poll::Ready(Err(error)) => return Err(End::lost(error.to_string())),
            Poll::Ready(Ok(())) => {}
        }
        let received = buffer.filled().len();
        if received == 0 {
            return Err(End::lost("the client closed the connection"));
        }
        self.core.shared.metrics.amqp_bytes_received.add(received as u64);
        let data = &input[..front + received];
        let used = self.take_frames(data, scratch)?;
        self.keep(&data[used..]);
        Ok(Poll::Ready(()))
    }

    /// Takes whole frames from the front of `data` for as long as there is room; returns the bytes used.
    fn take_frames(&mut self, data: &[u8], scratch: &mut Scratch) -> Result<usize, End> {
        let mut rest = data;
        let outcome = self.core.take_input(&mut rest, scratch);
        // What came before an error was received, and counts.
        let flushed = self.core.flush_run(scratch);
        let paused = outcome?;
        flushed?;
        self.input_ready = paused && !rest.is_empty();
        Ok(data.len() - rest.len())
    }

    fn keep(&mut self, rest: &[u8]) {
        self.rest.clear();
        if rest.is_empty() {
            self.rest = Vec::new();
        } else {
            self.rest.extend_from_slice(rest);
        }
    }

    /// Writes what this turn produced, after what earlier ones left over.
    fn write(&mut self, scratch: &mut Scratch, context: &mut Context<'_>) -> Result<(), End> {
        if !self.waiting.is_empty() {
            self.waiting.extend_from_slice(&scratch.output);
            scratch.output.clear();
            self.sent += self.write_some_waiting(context)?;
            if self.sent == self.waiting.len() {
                self.waiting = Vec::new();
                self.sent = 0;
            } else if self.sent > COMPACT_BYTES {
                self.waiting.drain(..self.sent);
                self.sent = 0;
            }
        } else if !scratch.output.is_empty() {
            let sent = self.write_some(&scratch.output, context)?;
            self.waiting.extend_from_slice(&scratch.output[sent..]);
            scratch.output.clear();
        }
        if self.unflushed {
            match self.transport.poll_flush(context) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => return Err(End::lost(error.to_string())),
                Poll::Pending => {}
            }
        }
        if self.waiting.len() - self.sent + self.core.outbox_bytes()
            > self.core.shared.config.output_bytes_max
        {
            return Err(End::slow());
        }
        Ok(())
    }

    fn write_some_waiting(&mut self, context: &mut Context<'_>) -> Result<usize, End> {
        let waiting = std::mem::take(&mut self.waiting);
        let outcome = self.write_some(&waiting[self.sent..], context);
        self.waiting = waiting;
        outcome
    }

    fn write_some(&mut self, data: &[u8], context: &mut Context<'_>) -> Result<usize, End> {
        let mut sent = 0;
        while sent < data.len() {
            match self.transport.poll_write(context, &data[sent..]) {
                Poll::Ready(Ok(0)) => return Err(End::lost("the connection takes no more bytes")),
                Poll::Ready(Ok(more)) => sent += more,
                Poll::Ready(Err(error)) => return Err(End::lost(error.to_string())),
                Poll::Pending => break,
            }
        }
        if sent > 0 {
            self.unflushed = true;
            self.core.shared.metrics.amqp_bytes_sent.add(sent as u64);
        }
        Ok(sent)
    }

    fn is_flushed(&self) -> bool {
        !self.unflushed && self.waiting.is_empty()
    }

    fn run(&mut self, scratch: &mut Scratch, context: &mut Context<'_>) -> Result<(), End> {
        if let Some(end) = self.closing.take() {
            self.write(scratch, context)?;
            let late = self.core.tick_closing();
            if self.is_flushed() || late {
                return Err(end);
            }
            self.closing = Some(end);
            return Ok(());
        }
        let was_crowded = self.is_crowded(scratch);
        let outcome = self.turn(scratch, context);
        let crowded = self.is_crowded(scratch);
        // Also at the end: acknowledgements that are due, and the reason.
        let written = self.write(scratch, context);
        match (outcome, written) {
            (Err(end), Ok(())) if !self.is_flushed() => {
                self.core.begin_closing();
                self.closing = Some(end);
                Ok(())
            }
            (Err(end), _) | (Ok(()), Err(end)) => Err(end),
            (Ok(()), Ok(())) => {
                if (crowded || was_crowded) && !self.is_crowded(scratch) {
                    // What was held back for want of room may go on; nothing else would wake us for it.
                    context.waker().wake_by_ref();
                }
                if self.core.draining && !self.core.waits_for_hub() {
                    let end = self.core.stop(&mut scratch.output);
                    self.write(scratch, context)?;
                    return Err(end);
                }
                Ok(())
            }
        }
    }

    fn finish(&mut self, end: &End) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        if let Some(timer) = self.timer.take() {
            self.core.shared.timers.leave(&timer);
        }
        self.core.finish(end);
    }
}

impl Future for Connection {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if this.timer.is_none() {
            this.timer = Some(this.core.shared.timers.enter(context.waker()));
        }
        with_scratch(|scratch| match this.run(scratch, context) {
            Ok(()) => {
                if let Some(timer) = &this.timer {
                    timer.set(this.core.next_tick());
                }
                Poll::Pending
            }
            Err(end) => {
                this.finish(&end);
                // Whether the client hears the goodbye of TLS or WebSocket does not matter.
                let _ = this.transport.poll_shutdown(context);
                Poll::Ready(())
            }
        })
    }
}

impl Drop for Connection {
    /// A task that is dropped with its runtime ends its sessions too.
    fn drop(&mut self) {
        if !self.ended {
            self.finish(&End::stopping());
        }
    }
}
