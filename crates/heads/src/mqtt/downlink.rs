//! What goes to a client: method calls, desired properties, cloud-to-device messages.

use std::sync::Arc;
use std::task::{Context, Poll};

use holdfast_model::c2d::{C2dDelivery, LockToken, Settlement};
use holdfast_model::subscription::Channel;
use holdfast_mqtt::server::Delivery;
use holdfast_mqtt::{QoS, SendError};
use holdfast_ports::BoxFuture;
use holdfast_ports::gateway::DeviceGateway;
use holdfast_ports::session::{Downlink, SessionHandle};
use holdfast_wire::topics;

use super::active::{C2dDone, InFlight};
use super::connection::Connection;
use super::end::End;
use super::scratch::Scratch;

/// Token of a message whose acknowledgement nobody waits for; the queue's numbers begin at 1.
const NO_TOKEN: u64 = 0;
/// DUP in the first byte of a PUBLISH (MQTT 3.3.1.1).
const DUP: u8 = 0x08;

impl Connection {
    /// Takes what the engine has put into the mailbox.
    pub(super) fn take_downlinks(
        &mut self,
        scratch: &mut Scratch,
        context: &mut Context<'_>,
    ) -> Result<(), End> {
        while let Poll::Ready(item) = self.session.poll_next(context) {
            let mut topic = std::mem::take(&mut scratch.topic);
            topic.clear();
            let outcome = match item {
                Ok(Downlink::Method(call)) => {
                    topics::method_request(&mut topic, &call.name, call.request_id);
                    self.deliver(Channel::Methods, &topic, &call.payload, scratch)
                }
                Ok(Downlink::Desired { version, patch }) => {
                    topics::desired_patch(&mut topic, version);
                    self.deliver(Channel::DesiredProperties, &topic, &patch, scratch)
                }
                Ok(Downlink::CloudToDevice) => {
                    self.active().c2d.hint = true;
                    Ok(())
                }
                Err(reason) => {
                    scratch.topic = topic;
                    // Says so every time it is asked: once is enough.
                    return self.closed(reason, scratch, context);
                }
            };
            scratch.topic = topic;
            outcome?;
        }
        Ok(())
    }

    /// Sends a message on a channel at the granted level, or drops it when the channel is not subscribed.
    pub(super) fn deliver(
        &mut self,
        channel: Channel,
        topic: &str,
        payload: &[u8],
        scratch: &mut Scratch,
    ) -> Result<(), End> {
        let subscriptions = self.session.subscriptions();
        if !subscriptions.contains(channel) {
            return Ok(());
        }
        let delivery = Delivery {
            topic,
            payload,
            qos: granted(subscriptions.at_least_once(channel)),
            token: NO_TOKEN,
            redelivery_of: None,
        };
        match self.machine.publish(&delivery, &mut scratch.output) {
            Ok(_) => Ok(()),
            Err(error) => Err(cannot_send(&error)),
        }
    }

    /// Receives, sends and settles cloud-to-device messages until something has to wait.
    pub(super) fn work_c2d(&mut self, scratch: &mut Scratch, context: &mut Context<'_>) -> Result<(), End> {
        loop {
            let Some(active) = &mut self.active else {
                return Ok(());
            };
            if let Some(future) = &mut active.c2d.running {
                let Poll::Ready(done) = future.as_mut().poll(context) else {
                    return Ok(());
                };
                active.c2d.running = None;
                active.c2d.settling = false;
                self.take_c2d(done, scratch)?;
                continue;
            }
            if !active.c2d.complete.is_empty() {
                self.begin_settling();
                continue;
            }
            let clock = &self.shared.clock;
            active.c2d.watch_locks(|| clock.now(), context);
            if !active.c2d.hint {
                return Ok(());
            }
            if !self.session.subscribed(message_channel(&self.session)) {
                active.c2d.hint = false;
                return Ok(());
            }
            let config = &self.shared.config;
            let room = config.c2d_in_flight_max.saturating_sub(active.c2d.held());
            let unwritten = !active.c2d.written.is_empty();
            if room == 0 || unwritten || self.is_crowded(scratch) || self.is_draining() {
                // An acknowledgement, or the socket taking bytes, brings us back here.
                return Ok(());
            }
            self.begin_receiving(room);
        }
    }

    fn begin_receiving(&mut self, room: usize) {
        let gateway = Arc::clone(&self.shared.gateway);
        let session = Arc::clone(&self.session);
        let c2d = &mut self.active().c2d;
        // A hint that comes while this runs is kept.
        c2d.hint = false;
        c2d.running = Some(Box::pin(async move {
            let received = gateway
                .receive_c2d(session.identity(), Some(&session), room)
                .await;
            C2dDone::Received(received, room)
        }));
    }

    fn begin_settling(&mut self) {
        let gateway = Arc::clone(&self.shared.gateway);
        let session = Arc::clone(&self.session);
        let c2d = &mut self.active().c2d;
        let locks = std::mem::take(&mut c2d.complete);
        c2d.settling = true;
        c2d.running = Some(Box::pin(async move {
            complete(&*gateway, &session, locks).await;
            C2dDone::Settled
        }));
    }

    /// At the end of the session: completes what the client has acknowledged.
    pub(super) fn take_settling(&mut self) -> Option<BoxFuture<'static, ()>> {
        let c2d = &mut self.active.as_mut()?.c2d;
        if !c2d.settles() {
            return None;
        }
        let locks = std::mem::take(&mut c2d.complete);
        let running = c2d.running.take().filter(|_| c2d.settling);
        let gateway = Arc::clone(&self.shared.gateway);
        let session = Arc::clone(&self.session);
        Some(Box::pin(async move {
            if let Some(running) = running {
                running.await;
            }
            complete(&*gateway, &session, locks).await;
        }))
    }

    fn take_c2d(&mut self, done: C2dDone, scratch: &mut Scratch) -> Result<(), End> {
        match done {
            C2dDone::Settled => Ok(()),
            C2dDone::Received(Err(error), _) => Err(End::storage(error.message)),
            C2dDone::Received(Ok(deliveries), asked) => {
                // As many as asked for: there may be more.
                self.active().c2d.hint |= !deliveries.is_empty() && deliveries.len() >= asked;
                deliveries
                    .iter()
                    .try_for_each(|delivery| self.deliver_c2d(delivery, scratch))
            }
        }
    }

    fn deliver_c2d(&mut self, delivery: &C2dDelivery, scratch: &mut Scratch) -> Result<(), End> {
        let subscriptions = self.session.subscriptions();
        let at_least_once = subscriptions.at_least_once(message_channel(&self.session));
        let mut topic = std::mem::take(&mut scratch.topic);
        topic.clear();
        topics::delivery(&mut topic, delivery);
        let start = scratch.output.len();
        let number = delivery.lock.sequence_number;
        let earlier = self.active().c2d.place_of(number);
        let redelivery_of = earlier.map(|place| self.active().c2d.in_flight[place].packet_id);
        let outcome = self.machine.publish(
            &Delivery {
                topic: &topic,
                payload: &delivery.message.message.body,
                qos: granted(at_least_once),
                token: number,
                redelivery_of,
            },
            &mut scratch.output,
        );
        scratch.topic = topic;
        let packet_id = outcome.map_err(|error| cannot_send(&error))?;
        let c2d = &mut self.active().c2d;
        let Some(packet_id) = packet_id else {
            c2d.written.push(delivery.lock);
            return Ok(());
        };
        let message = InFlight {
            lock: delivery.lock,
            locked_until: delivery.locked_until,
            lapsed: false,
            packet_id,
        };
        match earlier {
            // Its lock ended before the client answered: from now on either PUBACK completes the newer delivery.
            Some(place) => c2d.in_flight[place] = message,
            None => c2d.in_flight.push(message),
        }
        if delivery.redelivered {
            // The identifier of an earlier connection is not known, and in MQTT 3.1.1 clients do not compare it.
            scratch.output[start] |= DUP;
        }
        Ok(())
    }

    /// The client has acknowledged the message with that token.
    pub(super) fn complete_c2d(&mut self, token: u64) {
        let Some(active) = &mut self.active else { return };
        let c2d = &mut active.c2d;
        if let Some(place) = c2d.place_of(token) {
            let message = c2d.in_flight.remove(place);
            c2d.complete.push(message.lock);
        }
    }

    /// Messages sent at most once are complete when written (mqtt.md section 6.1).
    pub(super) fn settle_written(&mut self, context: &Context<'_>) {
        if !self.is_flushed() {
            return;
        }
        if let Some(active) = &mut self.active
            && !active.c2d.written.is_empty()
        {
            let written = std::mem::take(&mut active.c2d.written);
            active.c2d.complete.extend(written);
            context.waker().wake_by_ref();
        }
    }
}

/// What the messages of `DeviceGateway::receive_c2d` come by: a module has inputs, at an edge hub.
fn message_channel(session: &SessionHandle) -> Channel {
    match session.identity().is_module() {
        true => Channel::Inputs,
        false => Channel::CloudToDevice,
    }
}

async fn complete(gateway: &dyn DeviceGateway, session: &SessionHandle, locks: Vec<LockToken>) {
    for lock in locks {
        let settled = gateway
            .settle_c2d(session.identity(), lock, Settlement::Complete)
            .await;
        // The lock ended before the client answered: the message comes again.
        if let Err(error) = settled {
            holdfast_observe::tracing::debug!(
                identity = session.identity().as_str(),
                %error,
                "cloud-to-device message not completed"
            );
        }
    }
}

fn granted(at_least_once: bool) -> QoS {
    match at_least_once {
        true => QoS::AtLeastOnce,
        false => QoS::AtMostOnce,
    }
}

fn cannot_send(error: &SendError) -> End {
    match error {
        SendError::WindowFull => End::slow("the client does not acknowledge"),
        other => End::protocol(other.to_string()),
    }
}
