//! Cloud-to-device messages and their settlement (AMQP contract, section 3.5).

use std::sync::Arc;

use holdfast_amqp::LinkId;
use holdfast_amqp::connection::Outgoing;
use holdfast_amqp::performatives::DeliveryState;
use holdfast_model::Error;
use holdfast_model::c2d::{C2dDelivery, LockToken, Settlement};

use super::core::{Core, Done};
use super::failure::Failure;
use super::members::MemberId;
use super::messages::{delivery_tag, write_c2d};

/// The receiving link of a device.
pub(super) struct C2d {
    pub(super) link: LinkId,
    /// Deliveries are complete when they are sent.
    settled: bool,
    /// Messages may wait in the queue.
    pub(super) hint: bool,
    receiving: bool,
    /// Sent and not settled: number of the delivery, and its lock.
    in_flight: Vec<(u32, LockToken)>,
}

impl C2d {
    pub(super) fn new(link: LinkId, settled: bool) -> Self {
        C2d {
            link,
            settled,
            hint: true,
            receiving: false,
            in_flight: Vec::new(),
        }
    }
}

/// What the client's outcome means for the message.
fn settlement_of(state: Option<&DeliveryState<'_>>) -> Settlement {
    match state {
        Some(DeliveryState::Accepted) => Settlement::Complete,
        Some(DeliveryState::Rejected(_)) => Settlement::Reject,
        Some(DeliveryState::Modified {
            undeliverable_here: true,
            ..
        }) => Settlement::Reject,
        Some(DeliveryState::Released | DeliveryState::Modified { .. }) => Settlement::Abandon,
        // The link has ended, or was settled without a word.
        _ => Settlement::Release,
    }
}

impl Core {
    /// Locks waiting messages for a device as far as credit allows.
    pub(super) fn receive_c2d(&mut self, id: MemberId) {
        let draining = self.draining;
        let in_flight_max = self.shared.config.c2d_in_flight_max;
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        let (Some(c2d), Some(session)) = (&mut member.c2d, &member.session) else {
            return;
        };
        let credit = self.machine.can_send(c2d.link) as usize;
        let room = credit.min(in_flight_max.saturating_sub(c2d.in_flight.len()));
        if !c2d.hint || c2d.receiving || room == 0 || draining {
            return;
        }
        // A hint that comes while this runs is kept.
        c2d.hint = false;
        c2d.receiving = true;
        let (gateway, session) = (Arc::clone(&self.shared.gateway), Arc::clone(session));
        self.wait(async move {
            let received = gateway
                .receive_c2d(session.identity(), Some(&session), room)
                .await;
            let done: Done = Box::new(move |core, out| {
                core.deliver_c2d(id, received, room, out);
                Ok(())
            });
            done
        });
    }

    fn deliver_c2d(
        &mut self,
        id: MemberId,
        received: Result<Vec<C2dDelivery>, Error>,
        asked: usize,
        out: &mut Vec<u8>,
    ) {
        let deliveries = match received {
            Ok(deliveries) => deliveries,
            Err(error) => {
                holdfast_observe::tracing::debug!(%error, "cloud-to-device messages cannot be received");
                Vec::new()
            }
        };
        let mut unsent = Vec::new();
        let mut complete = Vec::new();
        let link = self.members.get_mut(&id).and_then(|member| {
            let c2d = member.c2d.as_mut()?;
            c2d.receiving = false;
            // As many as asked for: there may be more.
            c2d.hint |= !deliveries.is_empty() && deliveries.len() >= asked;
            Some((c2d.link, c2d.settled))
        });
        for delivery in &deliveries {
            let lock = delivery.lock;
            let Some((link, settled)) = link else {
                unsent.push(lock);
                continue;
            };
            let tag = delivery_tag(lock);
            let outgoing = Outgoing {
                tag: &tag,
                settled,
                token: lock.sequence_number,
                ..Outgoing::default()
            };
            let sent = self
                .machine
                .send_with(link, &outgoing, |out| write_c2d(delivery, out), out);
            match sent {
                Ok(_) if settled => complete.push(lock),
                Ok(number) => {
                    if let Some(c2d) = self.members.get_mut(&id).and_then(|member| member.c2d.as_mut()) {
                        c2d.in_flight.push((number, lock));
                    }
                }
                Err(_) => unsent.push(lock),
            }
        }
        for lock in unsent {
            self.settle_lock(id, lock, Settlement::Release, None);
        }
        for lock in complete {
            self.settle_lock(id, lock, Settlement::Complete, None);
        }
        self.receive_c2d(id);
    }

    /// The client has settled a message, or its link has ended.
    pub(super) fn settle_c2d(
        &mut self,
        link: LinkId,
        id: MemberId,
        delivery: u32,
        state: Option<&DeliveryState<'_>>,
        settled: bool,
    ) {
        let Some(c2d) = self.members.get_mut(&id).and_then(|member| member.c2d.as_mut()) else {
            return;
        };
        let Some(place) = c2d.in_flight.iter().position(|(number, _)| *number == delivery) else {
            return;
        };
        let (_, lock) = c2d.in_flight.remove(place);
        self.settle_lock(
            id,
            lock,
            settlement_of(state),
            (!settled).then_some((link, delivery)),
        );
    }

    /// Tells the queue; then the client, if it waits for that (receiver-settles-second).
    fn settle_lock(
        &mut self,
        id: MemberId,
        lock: LockToken,
        settlement: Settlement,
        answer: Option<(LinkId, u32)>,
    ) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        member.settling += 1;
        let device = member.identity.clone();
        let gateway = Arc::clone(&self.shared.gateway);
        self.wait_critical(async move {
            let outcome = gateway.settle_c2d(&device, lock, settlement).await;
            let done: Done = Box::new(move |core, out| {
                if let Err(error) = &outcome {
                    // The lock ended before the client answered: the message comes again.
                    holdfast_observe::tracing::debug!(identity = device.as_str(), %error, "message not settled");
                }
                if let Some((link, delivery)) = answer {
                    core.confirm(link, delivery, outcome, out);
                }
                if let Some(member) = core.members.get_mut(&id) {
                    member.settling -= 1;
                }
                core.end_if_settled(id);
                core.receive_c2d(id);
                Ok(())
            });
            done
        });
    }

    /// Settles a message at the sender's end: Accepted whatever the client chose, because .NET takes nothing else.
    pub(super) fn confirm(
        &mut self,
        link: LinkId,
        delivery: u32,
        outcome: Result<(), Error>,
        out: &mut Vec<u8>,
    ) {
        let machine = &mut self.machine;
        match outcome {
            Ok(()) => machine.settle_sent(link, delivery, Some(&DeliveryState::Accepted), out),
            Err(error) => Failure::from(error).tell(self.shared.clock.now(), |error| {
                let state = DeliveryState::Rejected(Some(*error));
                machine.settle_sent(link, delivery, Some(&state), out);
            }),
        }
    }

    /// The link is gone: what was not settled returns to the queue.
    pub(super) fn release_c2d(&mut self, id: MemberId, c2d: &C2d) {
        for (_, lock) in &c2d.in_flight {
            self.settle_lock(id, *lock, Settlement::Release, None);
        }
    }
}
