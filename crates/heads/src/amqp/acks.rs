//! Which deliveries may be accepted: in the order received, and only when durable.

use std::collections::VecDeque;

use holdfast_amqp::LinkId;
use holdfast_ports::event_log::AppendTicket;

/// Deliveries of one link that follow each other, and what they wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Step {
    pub(super) link: LinkId,
    pub(super) first: u32,
    pub(super) last: u32,
    pub(super) ticket: AppendTicket,
}

/// The deliveries of one sender (an identity, or a producer) that are not accepted yet.
#[derive(Default, Debug)]
pub(super) struct Acks {
    steps: VecDeque<(Step, usize)>,
    /// A future waits for the oldest.
    pub(super) waiting: bool,
}

impl Acks {
    /// Adds deliveries with the bytes they stand for.
    pub(super) fn push(&mut self, step: Step, bytes: usize) {
        self.steps.push_back((step, bytes));
    }

    /// What the oldest wait for.
    pub(super) fn oldest(&self) -> Option<AppendTicket> {
        self.steps.front().map(|(step, _)| step.ticket)
    }

    /// Takes the oldest if it is durable, now that everything before `ticket` is.
    pub(super) fn take_durable(&mut self, ticket: AppendTicket) -> Option<(Step, usize)> {
        let step = self.steps.pop_front_if(|(step, _)| {
            step.ticket.partition == ticket.partition && step.ticket.end <= ticket.end
        });
        if self.steps.is_empty() {
            // A sender that has become quiet keeps no room.
            self.steps = VecDeque::new();
        }
        step
    }

    /// Bytes of all; they are forgotten with it.
    pub(super) fn forget(&mut self) -> usize {
        self.steps.drain(..).map(|(_, bytes)| bytes).sum()
    }
}
