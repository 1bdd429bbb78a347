//! Cloud-to-device messages and their settlement (AMQP contract, section 3.5).

use std::sync::Arc;

use holdfast_amqp::connection::Outgoing;
use holdfast_amqp::performatives::DeliveryState;
use holdfast_amqp::{LinkId, SessionId};
use holdfast_model::c2d::{C2dDelivery, LockToken, Settlement};
use holdfast_model::{Error, Timestamp};

use super::attach::Link;
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
    /// A message could not be sent although there was credit; the client has to move first, or it would go round in
    /// circles between queue and link.
    stalled: bool,
    /// Sent and not settled, oldest first.
    in_flight: Vec<Held>,
}

/// A message that the client has not settled.
struct Held {
    /// Number of the delivery.
    number: u32,
    lock: LockToken,
    locked_until: Timestamp,
    /// The lock has ended: the message may come again. A late answer is still heard, and answered.
    overdue: bool,
}

/// Shortest wait for the end of a lock, so that a wall clock that was set cannot make the timer spin.
const LOCK_WAIT_MIN_MS: u64 = 100;

impl C2d {
    pub(super) fn new(link: LinkId, settled: bool) -> Self {
        C2d {
            link,
            settled,
            hint: true,
            receiving: false,
            stalled: false,
            in_flight: Vec::new(),
        }
    }

    /// Messages whose locks are held for this client.
    fn held(&self) -> usize {
        self.in_flight.iter().filter(|held| !held.overdue).count()
    }
}

/// What the client's outcome means for the message.
pub(super) fn settlement_of(state: Option<&DeliveryState<'_>>) -> Settlement {
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
        if credit == 0 && self.machine.credit(c2d.link) > 0 {
            self.machine.notify_window(c2d.link.session());
        }
        let room = credit.min(in_flight_max.saturating_sub(c2d.held()));
        if !c2d.hint || c2d.receiving || c2d.stalled || room == 0 || draining {
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
                        c2d.in_flight.push(Held {
                            number,
                            lock,
                            locked_until: delivery.locked_until,
                            overdue: false,
                        });
                    }
                    self.watch_lock(delivery.locked_until);
                }
                Err(_) => unsent.push(lock),
            }
        }
        if !unsent.is_empty()
            && let Some(c2d) = self.members.get_mut(&id).and_then(|member| member.c2d.as_mut())
        {
            c2d.hint = true;
            c2d.stalled = true;
        }
        for lock in unsent {
            self.settle_lock(id, lock, Settlement::Release, None);
        }
        for lock in complete {
            self.settle_lock(id, lock, Settlement::Complete, None);
        }
        self.receive_c2d(id);
    }

    /// The client has moved: what could not be sent is tried again.
    pub(super) fn resume_c2d(&mut self, id: MemberId) {
        if let Some(c2d) = self.members.get_mut(&id).and_then(|member| member.c2d.as_mut()) {
            c2d.stalled = false;
        }
        self.receive_c2d(id);
    }

    /// As [`Core::resume_c2d`], for all links of a session whose window has opened.
    pub(super) fn resume_c2d_of(&mut self, session: SessionId) {
        let links = self.links.iter().filter(|(link, _)| link.session() == session);
        let members: Vec<MemberId> = links
            .filter_map(|(_, kind)| match kind {
                Link::CloudToDevice { member } => Some(*member),
                _ => None,
            })
            .collect();
        for id in members {
            self.resume_c2d(id);
        }
    }

    /// Looks at the locks when this one ends, at the latest.
    fn watch_lock(&mut self, locked_until: Timestamp) {
        let left = locked_until.as_micros() - self.shared.clock.now().as_micros();
        let wait = u64::try_from(left / 1_000).unwrap_or(0) + 1;
        let due = self.now + wait.max(LOCK_WAIT_MIN_MS);
        self.locks_due = Some(self.locks_due.map_or(due, |earlier| earlier.min(due)));
    }

    /// Looks for locks that have ended; their messages may be in the queue again.
    pub(super) fn tick_c2d(&mut self, out: &mut Vec<u8>) {
        if self.locks_due.is_none_or(|due| self.now < due) {
            return;
        }
        self.locks_due = None;
        let now = self.shared.clock.now();
        let mut next: Option<Timestamp> = None;
        let mut again = Vec::new();
        for (id, member) in &mut self.members {
            let Some(c2d) = &mut member.c2d else { continue };
            let before = c2d.held();
            for held in c2d.in_flight.iter_mut().filter(|held| !held.overdue) {
                if held.locked_until <= now {
                    held.overdue = true;
                } else {
                    next = Some(next.map_or(held.locked_until, |next| next.min(held.locked_until)));
                }
            }
            if c2d.held() < before {
                c2d.hint = true;
                again.push(*id);
            }
        }
        if let Some(next) = next {
            self.watch_lock(next);
        }
        for id in again {
            self.forget_overdue(id, out);
            self.receive_c2d(id);
        }
    }

    /// Gives up waiting for answers to the oldest messages whose locks have ended, so that a client that never answers
    /// costs no more than one that does.
    fn forget_overdue(&mut self, id: MemberId, out: &mut Vec<u8>) {
        let max = self.shared.config.c2d_in_flight_max;
        let Some(c2d) = self.members.get_mut(&id).and_then(|member| member.c2d.as_mut()) else {
            return;
        };
        let mut too_many = (c2d.in_flight.len() - c2d.held()).saturating_sub(max);
        let link = c2d.link;
        let machine = &mut self.machine;
        c2d.in_flight.retain(|held| {
            let forget = held.overdue && too_many > 0;
            if forget {
                too_many -= 1;
                machine.settle_sent(link, held.number, Some(&DeliveryState::Released), out);
            }
            !forget
        });
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
        let Some(place) = c2d.in_flight.iter().position(|held| held.number == delivery) else {
            return;
        };
        c2d.stalled = false;
        let lock = c2d.in_flight.remove(place).lock;
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
        for held in c2d.in_flight.iter().filter(|held| !held.overdue) {
            self.settle_lock(id, held.lock, Settlement::Release, None);
        }
    }
}
