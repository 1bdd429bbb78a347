//! A live session: the future that runs for as long as a client stays connected.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use holdfast_model::event::Records;
use holdfast_mqtt::codec::encode_pingresp;
use holdfast_mqtt::server::Event as MqttEvent;
use holdfast_mqtt::{ServerSession, decode};
use holdfast_observe::Event as _;
use holdfast_ports::BoxFuture;
use holdfast_ports::event_log::LogError;
use holdfast_ports::gateway::{Disconnect, IngestError};
use holdfast_ports::session::{CloseReason, SessionHandle};
use holdfast_wire::bag;
use tokio::io::ReadBuf;

use super::active::Active;
use super::end::End;
use super::roster::Place;
use super::scratch::{INPUT_BYTES, Scratch, with_scratch};
use super::uplink::Names;
use super::{DRAINING, ENDING, RUNNING, Shared, second_of};
use crate::events::{EndReason, SessionEnded, WillDropped};
use crate::transport::Transport;

/// Reads of one connection before others have their turn.
const READS_PER_TURN: usize = 4;
/// An incomplete packet up to this size is put in front of the next read; a larger one grows in a buffer of its own.
const FRONT_BYTES_MAX: usize = INPUT_BYTES / 4;
/// Output buffers of a slow reader are compacted when this much of them is sent.
const COMPACT_BYTES: usize = 64 * 1024;

/// What the hub publishes when the connection ends without DISCONNECT (mqtt.md section 2.6).
pub(super) struct Will {
    pub(super) bag: Box<str>,
    pub(super) payload: Box<[u8]>,
    pub(super) retain: bool,
}

/// The future of a session. Its size times the number of sessions is most of the hub's memory, and a test holds it.
pub(super) struct Connection {
    pub(super) transport: Transport,
    pub(super) session: Arc<SessionHandle>,
    pub(super) shared: Arc<Shared>,
    pub(super) machine: ServerSession,
    /// Exists while something is in flight.
    pub(super) active: Option<Box<Active>>,
    will: Option<Box<Will>>,
    /// Seconds of silence allowed.
    silence: u32,
    place: Place,
    /// The transport holds bytes it has taken and not sent.
    unflushed: bool,
    /// Nothing more is read; it ends when the outstanding acknowledgements are sent.
    draining: bool,
    ended: bool,
}

impl Connection {
    /// A session that has just been accepted. `answer` is the CONNACK; `rest` is what came after the CONNECT.
    #[allow(clippy::too_many_arguments, reason = "called once, from the log-in")]
    pub(super) fn new(
        shared: &Arc<Shared>,
        transport: Transport,
        session: Arc<SessionHandle>,
        machine: ServerSession,
        will: Option<Box<Will>>,
        silence: u32,
        answer: Vec<u8>,
        rest: &[u8],
    ) -> Self {
        let mut active = Box::new(Active {
            output: answer,
            input: rest.to_vec(),
            input_ready: !rest.is_empty(),
            ..Active::default()
        });
        // A restored subscription is live at once: what waits in the queue flows without a SUBSCRIBE.
        active.c2d.hint = true;
        Connection {
            transport,
            session,
            shared: Arc::clone(shared),
            machine,
            active: Some(active),
            will,
            silence,
            place: Place::NONE,
            unflushed: false,
            draining: false,
            ended: false,
        }
    }

    pub(super) fn active(&mut self) -> &mut Active {
        self.active.get_or_insert_default()
    }

    /// One turn: everything that can be done without waiting.
    fn turn(&mut self, scratch: &mut Scratch, context: &mut Context<'_>) -> Result<(), End> {
        scratch.now = self.shared.clock.monotonic_millis();
        if self.place == Place::NONE {
            self.place = self
                .shared
                .roster
                .enter(&self.session, context.waker(), self.silence);
        }
        self.look_at_state()?;
        self.take_downlinks(scratch, context)?;
        self.work(scratch, context)?;
        let mut reads = 0;
        while self.may_read(scratch) {
            if reads == READS_PER_TURN {
                context.waker().wake_by_ref();
                break;
            }
            reads += 1;
            if self.read(scratch, context)?.is_pending() {
                break;
            }
            self.work(scratch, context)?;
            self.write(scratch, context)?;
        }
        self.end_silent(scratch)
    }

    fn look_at_state(&mut self) -> Result<(), End> {
        match self.shared.state() {
            RUNNING => {}
            DRAINING => self.draining = true,
            ENDING => return Err(End::stopping()),
            _ => {}
        }
        Ok(())
    }

    /// Everything in flight that can move on.
    fn work(&mut self, scratch: &mut Scratch, context: &mut Context<'_>) -> Result<(), End> {
        if self.active.is_none() {
            return Ok(());
        }
        self.send_unsent(context)?;
        self.acknowledge(scratch, context)?;
        self.work_requests(scratch, context)?;
        self.work_c2d(scratch, context)
    }

    /// Acknowledges what is durable, in order.
    pub(super) fn acknowledge(&mut self, scratch: &mut Scratch, context: &Context<'_>) -> Result<(), End> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        if active.acks.is_empty() {
            return Ok(());
        }
        let ready = active
            .acks
            .take_ready(&*self.shared.gateway, context.waker())
            .map_err(|error: LogError| End::storage(error.to_string()))?;
        if ready > 0 {
            self.machine.acknowledge(ready, &mut scratch.output);
        }
        Ok(())
    }

    /// Whether there is room for what another packet may bring.
    fn may_take(&self, scratch: &Scratch) -> bool {
        let config = &self.shared.config;
        !self.draining
            && !self.is_crowded(scratch)
            && self.active.as_ref().is_none_or(|active| {
                active.unsent.is_none()
                    && active.requests.len() < config.requests_max
                    && active.requests.bytes < config.packet_bytes_max
            })
    }

    fn may_read(&self, scratch: &Scratch) -> bool {
        let config = &self.shared.config;
        self.may_take(scratch)
            && self.active.as_ref().is_none_or(|active| {
                active.acks.ids() < config.unacknowledged_max
                    && active.acks.bytes() < config.unacknowledged_bytes_max
            })
    }

    /// Works off packets that wait, or reads once. Pending: the client has sent nothing more.
    fn read(&mut self, scratch: &mut Scratch, context: &mut Context<'_>) -> Result<Poll<()>, End> {
        let mut rest = Vec::new();
        if let Some(active) = &mut self.active {
            rest = std::mem::take(&mut active.input);
            if std::mem::take(&mut active.input_ready) {
                let used = self.take_packets(&rest, scratch)?;
                rest.drain(..used);
                self.keep_input(rest);
                return Ok(Poll::Ready(()));
            }
        }
        let mut input = std::mem::take(&mut scratch.input);
        let outcome = self.read_socket(&mut input, rest, scratch, context);
        scratch.input = input;
        outcome
    }

    fn read_socket(
        &mut self,
        input: &mut [u8],
        mut rest: Vec<u8>,
        scratch: &mut Scratch,
        context: &mut Context<'_>,
    ) -> Result<Poll<()>, End> {
        let front = if rest.len() <= FRONT_BYTES_MAX {
            rest.len()
        } else {
            0
        };
        input[..front].copy_from_slice(&rest[..front]);
        let mut buffer = ReadBuf::new(&mut input[front..]);
        match self.transport.poll_read(context, &mut buffer) {
            Poll::Pending => {
                self.keep_input(rest);
                return Ok(Poll::Pending);
            }
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(End::protocol(error.to_string()));
            }
            Poll::Ready(Err(error)) => return Err(End::lost(error.to_string())),
            Poll::Ready(Ok(())) => {}
        }
        let received = buffer.filled().len();
        if received == 0 {
            // Half-closed counts as closed: without DISCONNECT the will is due (MQTT-3.1.2-8).
            return Err(End::lost("the client closed the connection"));
        }
        self.session.touch(second_of(scratch.now));
        self.shared.metrics.bytes_received.add(received as u64);
        if front == rest.len() {
            let data = &input[..front + received];
            let used = self.take_packets(data, scratch)?;
            if used < data.len() {
                rest.clear();
                rest.extend_from_slice(&data[used..]);
                self.keep_input(rest);
            }
        } else {
            rest.extend_from_slice(&input[..received]);
            let used = self.take_packets(&rest, scratch)?;
            rest.drain(..used);
            self.keep_input(rest);
        }
        Ok(Poll::Ready(()))
    }

    fn keep_input(&mut self, mut rest: Vec<u8>) {
        if rest.is_empty() {
            return;
        }
        if rest.capacity() > FRONT_BYTES_MAX && rest.capacity() / 4 > rest.len() {
            rest.shrink_to_fit();
        }
        self.active().input = rest;
    }

    /// Takes whole packets from the front of `data` for as long as there is room; returns the bytes used.
    fn take_packets(&mut self, data: &[u8], scratch: &mut Scratch) -> Result<usize, End> {
        let session = Arc::clone(&self.session);
        let names = Names::of(session.identity());
        let packet_bytes_max = self.shared.config.packet_bytes_max;
        let mut used = 0;
        let mut packets = 0;
        let outcome = loop {
            if !self.may_take(scratch) {
                break Ok(true);
            }
            let (packet, length) = match decode(&data[used..], packet_bytes_max) {
                Ok(Some(decoded)) => decoded,
                Ok(None) => break Ok(false),
                Err(error) => break Err(End::protocol(error.to_string())),
            };
            used += length;
            packets += 1;
            let outcome = match self.machine.handle(packet, scratch.now) {
                Ok(event) => self.take_event(event, names, scratch),
                Err(error) => Err(End::protocol(error.to_string())),
            };
            if let Err(end) = outcome {
                break Err(end);
            }
        };
        self.shared.metrics.packets_received.add(packets);
        // What came before an error or a goodbye was received, and counts.
        self.send_records(scratch)?;
        if outcome? && used < data.len() {
            self.active().input_ready = true;
        }
        Ok(used)
    }

    #[inline]
    fn take_event(
        &mut self,
        event: MqttEvent<'_>,
        names: Names<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), End> {
        match event {
            MqttEvent::Publish(publish) => self.take_publish(&publish, names, scratch),
            MqttEvent::Subscribe(subscribe) => self.take_subscribe(&subscribe),
            MqttEvent::Unsubscribe(unsubscribe) => self.take_unsubscribe(&unsubscribe),
            MqttEvent::PubAck { token } => {
                self.complete_c2d(token);
                Ok(())
            }
            MqttEvent::StalePubAck { .. } => Ok(()),
            MqttEvent::PingReq => {
                encode_pingresp(&mut scratch.output);
                Ok(())
            }
            MqttEvent::Disconnect => {
                self.will = None;
                Err(End::goodbye("disconnect packet"))
            }
            // The machine lets no second CONNECT through.
            MqttEvent::Connect(_) => Err(End::protocol("second connect on one connection")),
        }
    }

    /// Writes what this turn produced, after what earlier ones left over.
    fn write(&mut self, scratch: &mut Scratch, context: &mut Context<'_>) -> Result<(), End> {
        self.write_waiting(scratch, context)?;
        let mut sent = 0;
        while sent < scratch.output.len() {
            match self.transport.poll_write(context, &scratch.output[sent..]) {
                Poll::Ready(Ok(0)) => return Err(End::lost("the connection takes no more bytes")),
                Poll::Ready(Ok(more)) => sent += more,
                Poll::Ready(Err(error)) => return Err(End::lost(error.to_string())),
                Poll::Pending => {
                    let rest = &scratch.output[sent..];
                    let active = self.active.get_or_insert_default();
                    active.output.extend_from_slice(rest);
                    break;
                }
            }
        }
        if sent > 0 {
            self.shared.metrics.bytes_sent.add(sent as u64);
            self.unflushed = true;
        }
        scratch.output.clear();
        if self.unflushed {
            match self.transport.poll_flush(context) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => return Err(End::lost(error.to_string())),
                Poll::Pending => {}
            }
        }
        self.settle_written(context);
        match &self.active {
            Some(active) if active.output_waiting() > self.shared.config.output_bytes_max => {
                Err(End::slow("the client does not read"))
            }
            _ => Ok(()),
        }
    }

    fn write_waiting(&mut self, scratch: &mut Scratch, context: &mut Context<'_>) -> Result<(), End> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        if active.output.is_empty() {
            return Ok(());
        }
        active.output.extend_from_slice(&scratch.output);
        scratch.output.clear();
        while active.sent < active.output.len() {
            match self.transport.poll_write(context, &active.output[active.sent..]) {
                Poll::Ready(Ok(0)) => return Err(End::lost("the connection takes no more bytes")),
                Poll::Ready(Ok(more)) => {
                    active.sent += more;
                    self.unflushed = true;
                    self.shared.metrics.bytes_sent.add(more as u64);
                }
                Poll::Ready(Err(error)) => return Err(End::lost(error.to_string())),
                Poll::Pending => break,
            }
        }
        if active.sent == active.output.len() {
            active.output = Vec::new();
            active.sent = 0;
        } else if active.sent > COMPACT_BYTES {
            active.output.drain(..active.sent);
            active.sent = 0;
        }
        Ok(())
    }

    /// Whether everything written has left, as far as we can tell.
    pub(super) fn is_flushed(&self) -> bool {
        !self.unflushed && self.active.as_ref().is_none_or(|active| active.output.is_empty())
    }

    /// Something was received that is not durable yet: telemetry, or the acknowledgement of a message.
    fn waits_for_hub(&self) -> bool {
        self.active
            .as_ref()
            .is_some_and(|active| !active.acks.is_empty() || active.unsent.is_some() || active.c2d.settles())
    }

    fn end_drained(&self) -> Result<(), End> {
        if self.draining && !self.waits_for_hub() && self.is_flushed() {
            return Err(End::stopping());
        }
        Ok(())
    }

    /// Whether so much output waits that nothing new is begun for this client.
    pub(super) fn is_crowded(&self, scratch: &Scratch) -> bool {
        let waiting = self.active.as_ref().map_or(0, |active| active.output_waiting());
        waiting + scratch.output.len() >= self.shared.config.output_bytes_pause
    }

    pub(super) const fn is_draining(&self) -> bool {
        self.draining
    }

    fn end_silent(&self, scratch: &Scratch) -> Result<(), End> {
        if self.waits_for_hub() {
            // We do not read, so the silence is not the client's.
            self.session.touch(second_of(scratch.now));
        }
        let silent_at = self.session.last_activity().saturating_add(self.silence);
        if second_of(scratch.now) > silent_at {
            return Err(End::silent("nothing heard for 1.5 times the keep-alive"));
        }
        Ok(())
    }

    /// The engine has ended the session.
    pub(super) fn closed(
        &mut self,
        reason: CloseReason,
        scratch: &mut Scratch,
        context: &Context<'_>,
    ) -> Result<(), End> {
        if reason == CloseReason::ShuttingDown {
            self.draining = true;
            return Ok(());
        }
        // What is durable was accepted, whatever came after.
        self.acknowledge(scratch, context)?;
        Err(End::closed(reason))
    }

    /// The session is over: will, release, log. Does nothing a second time.
    fn finish(&mut self, end: &End, records: &mut Records) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.shared.roster.leave(self.place);
        SessionEnded {
            identity: self.session.identity().as_str(),
            reason: end.reason,
            detail: &end.detail,
        }
        .emit(&self.shared.metrics);
        // On a takeover the device is connected, so it is not told to be gone (mqtt.md section 7).
        let will = self
            .will
            .take()
            .filter(|_| end.how != Disconnect::Clean && end.reason != EndReason::TakenOver);
        let mut will_waits = false;
        if let Some(will) = will {
            match self.publish_will(&will, records) {
                Ok(()) => {}
                Err(IngestError::Busy(_)) => will_waits = true,
                Err(error) => self.drop_will(&error),
            }
        }
        let settling = self.take_settling();
        if (will_waits || settling.is_some()) && tokio::runtime::Handle::try_current().is_ok() {
            let will = will_waits.then(|| records.clone());
            tokio::spawn(wind_up(
                Arc::clone(&self.shared),
                Arc::clone(&self.session),
                settling,
                will,
                end.how,
            ));
            return;
        }
        if will_waits {
            self.drop_will(&IngestError::Busy(None));
        }
        self.shared.gateway.disconnect(&self.session, end.how);
    }

    fn publish_will(&self, will: &Will, records: &mut Records) -> Result<(), IngestError> {
        records.clear();
        let mut record = records.record();
        bag::write_record(&will.bag, &mut record);
        let (key, value) = bag::WILL_PROPERTY;
        record.property(key, Some(value));
        if will.retain {
            let (key, value) = bag::RETAIN_PROPERTY;
            record.property(key, Some(value));
        }
        let _ = record.finish(&will.payload);
        self.shared.gateway.send(&self.session, records).map(|_| ())
    }

    fn drop_will(&self, error: &IngestError) {
        WillDropped {
            identity: self.session.identity().as_str(),
            error,
        }
        .emit(&self.shared.metrics);
    }
}

/// What is left to do for a session that is over, before its end is told: a client that acknowledged and left must not
/// get the same messages again, and a will is offered for some seconds to a log that was full.
async fn wind_up(
    shared: Arc<Shared>,
    session: Arc<SessionHandle>,
    settling: Option<BoxFuture<'static, ()>>,
    will: Option<Records>,
    how: Disconnect,
) {
    if let Some(settling) = settling {
        settling.await;
    }
    if let Some(records) = will {
        retry_will(&shared, &session, &records).await;
    }
    shared.gateway.disconnect(&session, how);
}

async fn retry_will(shared: &Shared, session: &Arc<SessionHandle>, records: &Records) {
    const TRIES: usize = 100;
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(50);
    let mut outcome = Err(IngestError::Busy(None));
    for _ in 0..TRIES {
        tokio::time::sleep(PAUSE).await;
        outcome = shared.gateway.send(session, records);
        if !matches!(outcome, Err(IngestError::Busy(_))) {
            break;
        }
    }
    if let Err(error) = outcome {
        WillDropped {
            identity: session.identity().as_str(),
            error: &error,
        }
        .emit(&shared.metrics);
    }
}

impl Future for Connection {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        with_scratch(|scratch| {
            let outcome = this.turn(scratch, context);
            let crowded = this.is_crowded(scratch);
            // Also at the end: acknowledgements that are due, and nothing after them.
            let outcome = match (outcome, this.write(scratch, context)) {
                (Err(end), _) | (Ok(()), Err(end)) => Err(end),
                (Ok(()), Ok(())) => this.end_drained(),
            };
            if crowded && !this.is_crowded(scratch) {
                // What was held back for want of room may go on; nothing else would wake us for it.
                context.waker().wake_by_ref();
            }
            match outcome {
                Ok(()) => {
                    if this.active.as_ref().is_some_and(|active| active.is_idle()) {
                        this.active = None;
                    }
                    Poll::Pending
                }
                Err(end) => {
                    this.finish(&end, &mut scratch.records);
                    // Whether the client hears the goodbye of TLS or WebSocket does not matter.
                    let _ = this.transport.poll_shutdown(context);
                    Poll::Ready(())
                }
            }
        })
    }
}

impl Drop for Connection {
    /// A task that is dropped with its runtime ends its session too.
    fn drop(&mut self) {
        if !self.ended {
            self.finish(&End::stopping(), &mut Records::new());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokio adds about 100 bytes and rounds up to 128: 152 is the most that fits a task of 256.
    #[test]
    fn stays_small() {
        assert!(size_of::<ServerSession>() <= 64);
        assert!(size_of::<Transport>() <= 40, "{}", size_of::<Transport>());
        assert!(size_of::<Connection>() <= 120, "{}", size_of::<Connection>());
    }
}
