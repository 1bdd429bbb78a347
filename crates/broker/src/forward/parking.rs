//! Queues of their own for senders that cannot send, so that others do not wait behind them.

use std::future::poll_fn;

use holdfast_model::Identity;
use holdfast_model::event::{EndpointSet, EventField, Origin, Records};
use holdfast_observe::{Repeats, tracing};

use super::lane::{Item, Lane};
use super::{Forwarder, PARKED};
use crate::queue::{Entry, QueueKey};

static IN_THE_WAY: Repeats = Repeats::new();
/// Of senders whose messages are put aside.
static PUT_ASIDE: Repeats = Repeats::new();

impl Forwarder {
    /// Moves what the window has of a sender, if that is due.
    pub(super) async fn park_pending(&mut self) {
        for (queue, sender) in std::mem::take(&mut self.to_park) {
            let Some(lane) = self.lane(queue) else { continue };
            if !self.park(lane, &sender).await {
                self.park_later(lane, sender);
            }
        }
    }

    /// Moves what was just read of senders that are parked already: their older messages go first.
    pub(super) async fn park_of_lane(&mut self, index: usize) {
        if self.lanes[index].parked.is_some() {
            return;
        }
        let lane = &self.lanes[index];
        let mut senders: Vec<Identity> = lane.window.iter().map(|item| item.sender.clone()).collect();
        senders.dedup();
        senders.retain(|sender| self.has_parked(lane.priority, sender));
        for sender in senders {
            if !self.park(index, &sender).await {
                self.park_later(index, sender);
            }
        }
    }

    /// Whether older messages of a sender are parked.
    pub(super) fn has_parked(&self, priority: u32, sender: &Identity) -> bool {
        self.lanes.iter().any(|lane| {
            lane.priority == priority && lane.parked.as_ref() == Some(sender) && lane.waits(&self.broker)
        })
    }

    /// A sender can send again.
    pub(super) fn tell_working(sender: &Identity) {
        if PUT_ASIDE.over(sender.as_str()).is_some() {
            tracing::info!(
                sender = sender.as_str(),
                "messages of a sender are sent again, those put aside first"
            );
        }
    }

    pub(super) fn park_later(&mut self, index: usize, sender: Identity) {
        let entry = (self.lanes[index].queue, sender);
        if !self.to_park.contains(&entry) {
            self.to_park.push(entry);
        }
    }

    /// Moves a sender's messages that are not on their way to its own queue. False when there is no room for that now.
    async fn park(&mut self, index: usize, sender: &Identity) -> bool {
        let lane = &self.lanes[index];
        let moves = |item: &&Item| item.sender == *sender && item.has_waiting();
        if lane
            .window
            .iter()
            .any(|item| item.sender == *sender && item.in_flight > 0)
        {
            return false;
        }
        if !lane.window.iter().any(|item| moves(&item)) {
            return true;
        }
        let broker = &self.broker;
        let queue = broker.queues.queue(&QueueKey {
            name: format!("{PARKED}{sender}"),
            priority: lane.priority,
        });
        let mut accepted = 0;
        let mut moved = Vec::new();
        for item in lane.window.iter().filter(moves) {
            let Some((origin, records)) = rest_of(item) else {
                continue;
            };
            let entry = Entry {
                queue,
                expires: item.expires(),
                origin: &origin,
                records: records.as_bytes(),
                count: records.count(),
            };
            match broker.queues.append(&[entry]) {
                Ok(number) => accepted = number,
                Err(error) => {
                    if let Some(times) = IN_THE_WAY.happened(sender.as_str()) {
                        tracing::warn!(sender = sender.as_str(), %error, times, "messages of a sender that cannot send are in the way of others");
                    }
                    break;
                }
            }
            moved.push(item.block.first_sequence_number);
        }
        if moved.is_empty() {
            return false;
        }
        // Given up here only when they are safe there.
        if poll_fn(|context| broker.queues.poll_durable(accepted, context))
            .await
            .is_err()
        {
            return false;
        }
        if let Some(times) = PUT_ASIDE.happened(sender.as_str()) {
            let cause = self.senders.get(sender).map_or("", |state| &state.cause);
            let sender = sender.as_str();
            tracing::info!(
                sender,
                cause,
                times,
                "messages of a sender that cannot send are put aside"
            );
        }
        let priority = self.lanes[index].priority;
        let all = {
            let lane = &mut self.lanes[index];
            for item in &mut lane.window {
                item.done |= item.sender == *sender && moved.contains(&item.block.first_sequence_number);
            }
            lane.advance(&self.broker);
            !lane.window.iter().any(|item| moves(&item))
        };
        if self.lanes.iter().all(|lane| lane.queue != queue) {
            let consumed = self.broker.queues.info(queue).consumed;
            // Behind the others, to be sorted in at the next look: places of lanes are in use here.
            self.lanes
                .push(Lane::new(queue, priority, Some(sender.clone()), consumed));
            self.broker
                .lanes_changed
                .store(true, std::sync::atomic::Ordering::Release);
        }
        all
    }
}

/// The messages of a block that are not settled, encoded anew.
fn rest_of(item: &Item) -> Option<(Vec<u8>, Records)> {
    let mut events = item.block.events();
    events.skip_to(item.settled);
    let mut records = Records::new();
    let mut origin = Vec::new();
    for event in events.filter_map(Result::ok) {
        if origin.is_empty() {
            let stamps = Origin {
                source: event.source,
                identity: item.sender.clone(),
                generation_id: event.generation_id,
                auth: event.auth,
            };
            stamps.encode(EndpointSet::EVENTS, &mut origin);
        }
        let mut record = records.record();
        for field in event.fields() {
            match field {
                EventField::System(property, value) => record.system(property, value),
                EventField::Application(key, value) => record.property(key, value),
            }
        }
        let _ = record.finish(event.body);
    }
    (!records.is_empty()).then_some((origin, records))
}
