//! Services: cloud-to-device messages, feedback on them, and notifications of file uploads (AMQP contract, section 4).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use holdfast_amqp::LinkId;
use holdfast_amqp::connection::{Delivery, Outgoing};
use holdfast_amqp::performatives::DeliveryState;
use holdfast_model::c2d::{FeedbackBatch, LockToken, Settlement};
use holdfast_model::file::FileNotificationDelivery;
use holdfast_model::{Error, Identity, Timestamp};

use super::Shared;
use super::attach::Link;
use super::c2d::settlement_of;
use super::core::{Core, Done};
use super::failure::{End, Failure};
use super::login::hub_name;
use super::messages::{C2d, delivery_tag, read_c2d, write_feedback, write_file_notification};

/// A message that waits for its turn.
struct Send {
    link: LinkId,
    delivery: u32,
    settled: bool,
    c2d: C2d,
}

/// What services receive and settle.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Queue {
    /// Batches of feedback.
    Feedback,
    /// Notifications of file uploads.
    Files,
}

/// Something of a queue, under a lock.
enum Locked {
    Feedback(FeedbackBatch),
    File(FileNotificationDelivery),
}

impl Locked {
    fn lock(&self) -> (LockToken, Timestamp) {
        match self {
            Locked::Feedback(batch) => (batch.lock, batch.locked_until),
            Locked::File(delivery) => (delivery.lock, delivery.locked_until),
        }
    }
}

/// A delivery of a queue that its receiver has not settled.
struct Held {
    queue: Queue,
    link: LinkId,
    /// Number of the delivery.
    number: u32,
    lock: LockToken,
    locked_until: Timestamp,
    /// The lock has ended: the same may come again. A late answer is still heard, and answered.
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
    /// Sent and not settled, oldest first.
    held: Vec<Held>,
    /// Queues that are being asked.
    receiving: Vec<Queue>,
    look_at: u64,
}

impl Services {
    /// The path that a link needs rights on.
    pub(super) fn path(&self, link: LinkId) -> Option<&str> {
        self.paths.get(&link).map(|path| &**path)
    }

    /// Whether nothing has to be given back.
    pub(super) fn is_idle(&self) -> bool {
        self.held.is_empty()
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

    /// Locks what waits in a queue for a receiver, if anything does.
    pub(super) fn look_for(&mut self, queue: Queue, link: LinkId) {
        let held = self.services.held.iter();
        let held = held.filter(|held| held.queue == queue && !held.overdue);
        let full = held.count() >= self.shared.config.feedback_in_flight_max;
        let asked = self.services.receiving.contains(&queue);
        if asked || full || self.draining || self.machine.can_send(link) == 0 {
            return;
        }
        self.services.receiving.push(queue);
        let shared = Arc::clone(&self.shared);
        self.wait_critical(async move {
            let received = receive(&shared, queue).await;
            let done: Done = Box::new(move |core, out| {
                core.services.receiving.retain(|other| *other != queue);
                core.deliver(queue, link, received, out);
                Ok(())
            });
            done
        });
    }

    fn deliver(
        &mut self,
        queue: Queue,
        link: LinkId,
        received: Result<Option<Locked>, Error>,
        out: &mut Vec<u8>,
    ) {
        let interval = self.shared.config.feedback_interval.as_millis() as u64;
        self.services.look_at = self.now + interval;
        let locked = match received {
            Ok(Some(locked)) => locked,
            Ok(None) => return,
            Err(error) => {
                holdfast_observe::tracing::debug!(%error, "nothing can be received for a service");
                return;
            }
        };
        let (hub, now) = (hub_name(&self.shared), self.shared.clock.now());
        let (lock, locked_until) = locked.lock();
        let tag = delivery_tag(lock);
        let outgoing = Outgoing {
            tag: &tag,
            token: lock.sequence_number,
            ..Outgoing::default()
        };
        let write = |out: &mut Vec<u8>| match &locked {
            Locked::Feedback(batch) => write_feedback(&batch.records, &hub, now, out),
            Locked::File(delivery) => write_file_notification(delivery, &hub, out),
        };
        match self.machine.send_with(link, &outgoing, write, out) {
            Ok(number) => {
                self.services.held.push(Held {
                    queue,
                    link,
                    number,
                    lock,
                    locked_until,
                    overdue: false,
                });
                self.look_for(queue, link);
            }
            Err(_) => self.finish_held(queue, lock, Settlement::Release, None),
        }
    }

    /// The client has settled a delivery, or its link has ended.
    pub(super) fn settle_held(
        &mut self,
        link: LinkId,
        delivery: u32,
        state: Option<&DeliveryState<'_>>,
        settled: bool,
    ) {
        let held = &mut self.services.held;
        let place = held
            .iter()
            .position(|held| held.link == link && held.number == delivery);
        let Some(place) = place else { return };
        let Held { queue, lock, .. } = held.remove(place);
        self.finish_held(
            queue,
            lock,
            settlement_of(state),
            (!settled).then_some((link, delivery)),
        );
        // There is room for another.
        self.look_for(queue, link);
    }

    fn finish_held(
        &mut self,
        queue: Queue,
        lock: LockToken,
        settlement: Settlement,
        answer: Option<(LinkId, u32)>,
    ) {
        let shared = Arc::clone(&self.shared);
        self.wait_critical(async move {
            let outcome = settle(&shared, queue, lock, settlement).await;
            let done: Done = Box::new(move |core, out| {
                if let Some((link, delivery)) = answer {
                    core.confirm(link, delivery, outcome, out);
                    core.look_for(queue, link);
                }
                Ok(())
            });
            done
        });
    }

    /// A link that receives from a queue is gone: what was not settled is given back.
    pub(super) fn receiver_gone(&mut self, link: LinkId) {
        let held = std::mem::take(&mut self.services.held);
        let (gone, kept): (Vec<_>, Vec<_>) = held.into_iter().partition(|held| held.link == link);
        self.services.held = kept;
        self.return_held(gone);
    }

    /// The connection is gone: all that was not settled is given back.
    pub(super) fn give_back_held(&mut self) {
        let held = std::mem::take(&mut self.services.held);
        self.return_held(held);
    }

    fn return_held(&mut self, held: Vec<Held>) {
        for held in held.into_iter().filter(|held| !held.overdue) {
            self.finish_held(held.queue, held.lock, Settlement::Release, None);
        }
    }

    /// Notes the locks that have ended, and gives up waiting for answers to the oldest of those, so that a receiver that
    /// never answers costs no more than one that does.
    fn tick_held(&mut self, out: &mut Vec<u8>) {
        let now = self.shared.clock.now();
        let held = &mut self.services.held;
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

    fn receivers(&self) -> impl Iterator<Item = (Queue, LinkId)> + '_ {
        let links = self.links.iter();
        links.filter_map(|(link, kind)| Some((Queue::of(kind)?, *link)))
    }

    /// Looks again, while someone wants something.
    pub(super) fn tick_services(&mut self, out: &mut Vec<u8>) {
        if self.services.paths.is_empty() || self.now < self.services.look_at {
            return;
        }
        self.services.look_at = self.now + self.shared.config.feedback_interval.as_millis() as u64;
        self.tick_held(out);
        let receivers: Vec<_> = self.receivers().collect();
        for (queue, link) in receivers {
            self.look_for(queue, link);
        }
    }

    pub(super) fn next_service_tick(&self) -> Option<u64> {
        if self.services.paths.is_empty() {
            // Nearly always, and there may be thousands of links of devices.
            return None;
        }
        self.receivers()
            .any(|(_, link)| self.machine.credit(link) > 0)
            .then_some(self.services.look_at)
    }
}

impl Queue {
    /// What a link receives from.
    pub(super) fn of(link: &Link) -> Option<Self> {
        match link {
            Link::Feedback => Some(Queue::Feedback),
            Link::FileNotifications => Some(Queue::Files),
            _ => None,
        }
    }
}

async fn receive(shared: &Shared, queue: Queue) -> Result<Option<Locked>, Error> {
    match (queue, &shared.files) {
        (Queue::Feedback, _) => Ok(shared.services.receive_feedback().await?.map(Locked::Feedback)),
        (Queue::Files, Some(files)) => Ok(files.receive_notification().await?.map(Locked::File)),
        (Queue::Files, None) => Ok(None),
    }
}

async fn settle(shared: &Shared, queue: Queue, lock: LockToken, settlement: Settlement) -> Result<(), Error> {
    match (queue, &shared.files) {
        (Queue::Feedback, _) => {
            let complete = matches!(settlement, Settlement::Complete | Settlement::Reject);
            shared.services.settle_feedback(lock, complete).await
        }
        (Queue::Files, Some(files)) => files.settle_notification(lock, settlement).await,
        (Queue::Files, None) => Ok(()),
    }
}
