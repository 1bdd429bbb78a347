//! Services: cloud-to-device messages and feedback on them (AMQP contract, section 4).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use holdfast_amqp::LinkId;
use holdfast_amqp::connection::{Delivery, Outgoing};
use holdfast_amqp::performatives::DeliveryState;
use holdfast_model::c2d::{FeedbackBatch, LockToken};
use holdfast_model::{Error, Identity, Timestamp};

use super::attach::Link;
use super::core::{Core, Done};
use super::failure::{End, Failure};
use super::login::hub_name;
use super::messages::{C2d, delivery_tag, read_c2d, write_feedback};

/// A message that waits for its turn.
struct Send {
    link: LinkId,
    delivery: u32,
    settled: bool,
    c2d: C2d,
}

/// A batch of feedback that its receiver has not settled.
struct Held {
    link: LinkId,
    /// Number of the delivery.
    number: u32,
    lock: LockToken,
    locked_until: Timestamp,
    /// The lock has ended: the batch may come again. A late answer is still heard, and answered.
    overdue: bool,
}

/// What services have going on a connection.
#[derive(Default)]
pub(super) struct Services {
    /// Paths that the links need rights on.
    pub(super) paths: BTreeMap<LinkId, Box<str>>,
    waiting: VecDeque<Send>,
    /// Devices that a message is being queued for: the next one to the same device waits, so that they keep their order.
    running: Vec<Identity>,
    /// Feedback sent and not settled, oldest first.
    feedback: Vec<Held>,
    receiving: bool,
    look_at: u64,
}

impl Services {
    /// The path that a link needs rights on.
    pub(super) fn path(&self, link: LinkId) -> Option<&str> {
        self.paths.get(&link).map(|path| &**path)
    }

    /// Whether nothing has to be given back.
    pub(super) fn is_idle(&self) -> bool {
        self.feedback.is_empty()
    }
}

impl Core {
    /// A cloud-to-device message of a service.
    pub(super) fn take_service_c2d(
        &mut self,
        link: LinkId,
        delivery: &Delivery<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), End> {
        let Some(message) = self.decode(link, delivery, out) else {
            return Ok(());
        };
        match read_c2d(&message) {
            Ok(c2d) => {
                self.requests += 1;
                self.services.waiting.push_back(Send {
                    link,
                    delivery: delivery.id,
                    settled: delivery.settled,
                    c2d,
                });
                self.next_sends();
            }
            Err(error) => self.reject(link, delivery.id, &Failure::from(error), out),
        }
        Ok(())
    }

    /// Begins what may run: in order for each device, side by side for different ones.
    fn next_sends(&mut self) {
        let mut place = 0;
        while self.services.running.len() < self.shared.config.c2d_sends_concurrent {
            let Some(send) = self.services.waiting.get(place) else {
                return;
            };
            let target = &send.c2d.target;
            let earlier = self.services.waiting.iter().take(place);
            if self.services.running.contains(target)
                || earlier.map(|send| &send.c2d.target).any(|other| other == target)
            {
                place += 1;
                continue;
            }
            if let Some(send) = self.services.waiting.remove(place) {
                self.begin_send(send);
            }
        }
    }

    fn begin_send(&mut self, send: Send) {
        let shared = Arc::clone(&self.shared);
        self.services.running.push(send.c2d.target.clone());
        let Send {
            link,
            delivery,
            settled,
            c2d,
        } = send;
        self.wait(async move {
            let outcome = shared
                .services
                .send_c2d(&c2d.target, c2d.message, c2d.ack, c2d.expires_at)
                .await;
            let target = c2d.target;
            let done: Done = Box::new(move |core, out| {
                core.requests -= 1;
                core.services.running.retain(|other| *other != target);
                match outcome {
                    Ok(_) if settled => {}
                    Ok(_) => core.accept(link, delivery, delivery, out),
                    Err(error) => core.reject(link, delivery, &Failure::from(error), out),
                }
                core.next_sends();
                Ok(())
            });
            done
        });
    }

    /// Locks a batch of feedback for a receiver, if there is one.
    pub(super) fn look_for_feedback(&mut self, link: LinkId) {
        let held = self.services.feedback.iter().filter(|held| !held.overdue);
        let full = held.count() >= self.shared.config.feedback_in_flight_max;
        if self.services.receiving || full || self.draining || self.machine.can_send(link) == 0 {
            return;
        }
        self.services.receiving = true;
        let shared = Arc::clone(&self.shared);
        self.wait_critical(async move {
            let received = shared.services.receive_feedback().await;
            let done: Done = Box::new(move |core, out| {
                core.services.receiving = false;
                core.deliver_feedback(link, received, out);
                Ok(())
            });
            done
        });
    }

    fn deliver_feedback(
        &mut self,
        link: LinkId,
        received: Result<Option<FeedbackBatch>, Error>,
        out: &mut Vec<u8>,
    ) {
        let interval = self.shared.config.feedback_interval.as_millis() as u64;
        self.services.look_at = self.now + interval;
        let batch = match received {
            Ok(Some(batch)) => batch,
            Ok(None) => return,
            Err(error) => {
                holdfast_observe::tracing::debug!(%error, "feedback cannot be received");
                return;
            }
        };
        let (hub, now) = (hub_name(&self.shared), self.shared.clock.now());
        let tag = delivery_tag(batch.lock);
        let outgoing = Outgoing {
            tag: &tag,
            token: batch.lock.sequence_number,
            ..Outgoing::default()
        };
        let sent = self.machine.send_with(
            link,
            &outgoing,
            |out| write_feedback(&batch.records, &hub, now, out),
            out,
        );
        match sent {
            Ok(number) => {
                self.services.feedback.push(Held {
                    link,
                    number,
                    lock: batch.lock,
                    locked_until: batch.locked_until,
                    overdue: false,
                });
                self.look_for_feedback(link);
            }
            Err(_) => self.finish_feedback(batch.lock, false, None),
        }
    }

    /// The client has settled a batch, or its link has ended.
    pub(super) fn settle_feedback(
        &mut self,
        link: LinkId,
        delivery: u32,
        _token: u64,
        state: Option<&DeliveryState<'_>>,
        settled: bool,
    ) {
        let held = &mut self.services.feedback;
        let place = held
            .iter()
            .position(|held| held.link == link && held.number == delivery);
        let Some(place) = place else { return };
        let lock = held.remove(place).lock;
        let complete = matches!(state, Some(DeliveryState::Accepted | DeliveryState::Rejected(_)));
        self.finish_feedback(lock, complete, (!settled).then_some((link, delivery)));
        // There is room for another.
        self.look_for_feedback(link);
    }

    fn finish_feedback(&mut self, lock: LockToken, complete: bool, answer: Option<(LinkId, u32)>) {
        let shared = Arc::clone(&self.shared);
        self.wait_critical(async move {
            let outcome = shared.services.settle_feedback(lock, complete).await;
            let done: Done = Box::new(move |core, out| {
                if let Some((link, delivery)) = answer {
                    core.confirm(link, delivery, outcome, out);
                    core.look_for_feedback(link);
                }
                Ok(())
            });
            done
        });
    }

    /// A feedback link is gone: what was not settled is given back.
    pub(super) fn feedback_gone(&mut self, link: LinkId) {
        let held = std::mem::take(&mut self.services.feedback);
        let (gone, kept): (Vec<_>, Vec<_>) = held.into_iter().partition(|held| held.link == link);
        self.services.feedback = kept;
        self.return_feedback(gone);
    }

    /// The connection is gone: all that was not settled is given back.
    pub(super) fn give_back_feedback(&mut self) {
        let held = std::mem::take(&mut self.services.feedback);
        self.return_feedback(held);
    }

    fn return_feedback(&mut self, held: Vec<Held>) {
        for held in held.into_iter().filter(|held| !held.overdue) {
            self.finish_feedback(held.lock, false, None);
        }
    }

    /// Notes the locks that have ended, and gives up waiting for answers to the oldest of those, so that a receiver that
    /// never answers costs no more than one that does.
    fn tick_feedback(&mut self, out: &mut Vec<u8>) {
        let now = self.shared.clock.now();
        let held = &mut self.services.feedback;
        for held in held.iter_mut().filter(|held| held.locked_until <= now) {
            held.overdue = true;
        }
        let overdue = held.iter().filter(|held| held.overdue).count();
        let mut too_many = overdue.saturating_sub(self.shared.config.feedback_in_flight_max);
        let machine = &mut self.machine;
        held.retain(|held| {
            let forget = held.overdue && too_many > 0;
            if forget {
                too_many -= 1;
                machine.settle_sent(held.link, held.number, Some(&DeliveryState::Released), out);
            }
            !forget
        });
    }

    fn feedback_links(&self) -> impl Iterator<Item = LinkId> + '_ {
        self.links
            .iter()
            .filter(|(_, kind)| matches!(kind, Link::Feedback))
            .map(|(link, _)| *link)
    }

    /// Looks for feedback again, while someone wants it.
    pub(super) fn tick_services(&mut self, out: &mut Vec<u8>) {
        if self.services.paths.is_empty() || self.now < self.services.look_at {
            return;
        }
        self.services.look_at = self.now + self.shared.config.feedback_interval.as_millis() as u64;
        self.tick_feedback(out);
        let links: Vec<LinkId> = self.feedback_links().collect();
        for link in links {
            self.look_for_feedback(link);
        }
    }

    pub(super) fn next_service_tick(&self) -> Option<u64> {
        if self.services.paths.is_empty() {
            // Nearly always, and there may be thousands of links of devices.
            return None;
        }
        self.feedback_links()
            .any(|link| self.machine.credit(link) > 0)
            .then_some(self.services.look_at)
    }
}
