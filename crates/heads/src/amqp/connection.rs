//! The future of a connection: socket and buffers around `core`.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use holdfast_ports::gateway::Protocol;
use tokio::io::ReadBuf;

use super::core::Core;
use super::entrance::{Entrance, evicted};
use super::failure::End;
use super::scratch::{INPUT_BYTES, Scratch, with_scratch};
use super::timers::Timer;
use super::{DRAINING, ENDING, Shared};
use crate::lobby::Guest;
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
    /// The sessions are over; the last words are being exchanged.
    farewell: Option<Farewell>,
    ended: bool,
    /// The client has sent something.
    heard: bool,
    entrance: Entrance,
}

/// The end of a connection that could still be spoken to: what is written leaves, the client may answer our close and
/// hang up first, so that nothing it has not read is lost to a reset. All within a time.
struct Farewell {
    until: u64,
    /// Our side of the socket is closed.
    shut: bool,
    /// So is the client's.
    hung_up: bool,
}

impl Connection {
    pub(super) fn new(
        shared: &Arc<Shared>,
        transport: Transport,
        certificates: Arc<[Bytes]>,
        protocol: Protocol,
        peer: SocketAddr,
        guest: Guest,
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
            farewell: None,
            ended: false,
            heard: false,
            entrance: Entrance::new(guest),
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
        self.heard = true;
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
            return Err(End::slow("the client does not read"));
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

    /// Runs until the connection is over and the client knows it.
    fn run(&mut self, scratch: &mut Scratch, context: &mut Context<'_>) -> Poll<()> {
        if self.farewell.is_none() {
            let Err(end) = self.live(scratch, context) else {
                return Poll::Pending;
            };
            self.entrance.count_refusal(&end, &self.core);
            self.finish(&end);
            if !end.can_be_told() {
                return Poll::Ready(());
            }
            self.begin_farewell(&end, scratch);
        }
        self.poll_farewell(scratch, context)
    }

    fn live(&mut self, scratch: &mut Scratch, context: &mut Context<'_>) -> Result<(), End> {
        let was_crowded = self.is_crowded(scratch);
        let outcome = if self.entrance.poll_evicted(context) {
            self.entrance.leave();
            Err(evicted(&mut self.core, &mut scratch.output))
        } else {
            self.turn(scratch, context)
        };
        let outcome = outcome.and_then(|()| {
            self.entrance
                .update(&mut self.core, self.heard, &mut scratch.output)
        });
        let crowded = self.is_crowded(scratch);
        // Also at the end: acknowledgements that are due, and the reason.
        let written = self.write(scratch, context);
        outcome.and(written)?;
        if (crowded || was_crowded) && !self.is_crowded(scratch) {
            // What was held back for want of room may go on; nothing else would wake us for it.
            context.waker().wake_by_ref();
        }
        if self.core.draining && !self.core.waits_for_hub() {
            return Err(self.core.stop(&mut scratch.output));
        }
        Ok(())
    }

    fn begin_farewell(&mut self, end: &End, scratch: &mut Scratch) {
        let time = self.core.shared.config.farewell_timeout.as_millis() as u64;
        self.farewell = Some(Farewell {
            until: self.core.now + time,
            shut: false,
            hung_up: false,
        });
        self.entrance.step_back();
        // The machine has said it already in most cases.
        if !self.core.silent {
            self.core.say_farewell(&end.detail, &mut scratch.output);
        }
        // What came before the end was judged before it.
        let rest = std::mem::take(&mut self.rest);
        self.look_for_close(&rest, scratch);
    }

    /// Takes the client's answer to our close from `data`; nothing else matters any more.
    fn look_for_close(&mut self, data: &[u8], scratch: &mut Scratch) {
        let rest = self.core.take_farewell(data, &mut scratch.output);
        self.keep(rest);
    }

    fn poll_farewell(&mut self, scratch: &mut Scratch, context: &mut Context<'_>) -> Poll<()> {
        self.core.now = self.core.shared.clock.monotonic_millis();
        let Some(farewell) = &self.farewell else {
            return Poll::Ready(());
        };
        let late = self.core.now >= farewell.until || self.core.shared.state() == ENDING;
        if self.write(scratch, context).is_err() || late || self.entrance.poll_evicted(context) {
            return Poll::Ready(());
        }
        let mut input = std::mem::take(&mut scratch.input);
        let hung_up = self.hear_out(&mut input, scratch, context);
        scratch.input = input;
        let written = self.write(scratch, context);
        let flushed = self.is_flushed();
        let Some(farewell) = &mut self.farewell else {
            return Poll::Ready(());
        };
        farewell.hung_up |= hung_up;
        // Nobody answers any more.
        let said = self.core.is_farewell_said() || self.core.silent || farewell.hung_up;
        if written.is_err() || (flushed && farewell.hung_up && farewell.shut) {
            return Poll::Ready(());
        }
        if flushed && said && !farewell.shut {
            match self.transport.poll_shutdown(context) {
                Poll::Ready(Ok(())) if !farewell.hung_up => farewell.shut = true,
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => {}
            }
        }
        Poll::Pending
    }

    /// Reads what still comes. True when the client has hung up.
    fn hear_out(&mut self, input: &mut [u8], scratch: &mut Scratch, context: &mut Context<'_>) -> bool {
        if self.farewell.as_ref().is_some_and(|farewell| farewell.hung_up) {
            return true;
        }
        for _ in 0..READS_PER_TURN {
            let front = self.rest.len().min(INPUT_BYTES / 2);
            input[..front].copy_from_slice(&self.rest[..front]);
            let mut buffer = ReadBuf::new(&mut input[front..]);
            match self.transport.poll_read(context, &mut buffer) {
                Poll::Pending => return false,
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                Poll::Ready(_) => return true,
            }
            let received = buffer.filled().len();
            self.look_for_close(&input[..front + received], scratch);
        }
        context.waker().wake_by_ref();
        false
    }

    /// Ends the sessions.
    fn finish(&mut self, end: &End) {
        if !std::mem::replace(&mut self.ended, true) {
            self.core.finish(end);
        }
    }

    fn leave(&mut self) {
        self.entrance.leave();
        if let Some(timer) = self.timer.take() {
            self.core.shared.timers.leave(&timer);
        }
    }

    fn next_tick(&self) -> Option<u64> {
        match &self.farewell {
            Some(farewell) => Some(farewell.until),
            None => self.core.next_tick(),
        }
    }
}

impl Future for Connection {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if this.timer.is_none() {
            this.timer = Some(this.core.shared.timers.enter(context.waker()));
        }
        with_scratch(|scratch| {
            let outcome = this.run(scratch, context);
            if outcome.is_ready() {
                // Whether the client hears the goodbye of TLS or WebSocket does not matter any more.
                let _ = this.transport.poll_shutdown(context);
                this.leave();
            } else if let Some(timer) = &this.timer {
                timer.set(this.next_tick());
            }
            outcome
        })
    }
}

impl Drop for Connection {
    /// A task that is dropped with its runtime ends its sessions too.
    fn drop(&mut self) {
        self.finish(&End::stopping());
        self.leave();
    }
}
