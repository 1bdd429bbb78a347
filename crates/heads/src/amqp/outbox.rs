//! Messages that wait for credit or for the session's window: answers and notifications, few and small.

use std::collections::{BTreeMap, VecDeque};

use holdfast_amqp::connection::Outgoing;
use holdfast_amqp::performatives::Attach;
use holdfast_amqp::{LinkId, SendError};

use super::core::Core;

/// Whether messages of a link are sent settled, as far as the client leaves that to us.
pub(super) fn settles(attach: &Attach<'_>) -> bool {
    attach.snd_settle_mode != holdfast_amqp::performatives::SenderSettleMode::Unsettled
}

/// See the module documentation.
#[derive(Default)]
pub(super) struct Outbox {
    waiting: BTreeMap<LinkId, VecDeque<(Vec<u8>, bool)>>,
    pub(super) bytes: usize,
    /// Delivery tags of all messages without a lock token.
    last_tag: u64,
}

impl Outbox {
    pub(super) fn links(&self) -> Vec<LinkId> {
        self.waiting.keys().copied().collect()
    }

    pub(super) fn is_waiting(&self, link: LinkId) -> bool {
        self.waiting.contains_key(&link)
    }

    pub(super) fn next_tag(&mut self) -> [u8; 8] {
        self.last_tag += 1;
        self.last_tag.to_be_bytes()
    }

    pub(super) fn forget(&mut self, link: LinkId) {
        if let Some(waiting) = self.waiting.remove(&link) {
            self.bytes -= waiting.iter().map(|(message, _)| message.len()).sum::<usize>();
        }
    }
}

impl Core {
    /// Sends a message when link and session allow it, in order.
    pub(super) fn send(&mut self, link: LinkId, message: Vec<u8>, settled: bool, out: &mut Vec<u8>) {
        if !self.outbox.is_waiting(link) {
            match self.send_now(link, &message, settled, out) {
                Ok(()) => return,
                Err(SendError::NotAttached | SendError::TooLarge { .. }) => {
                    holdfast_observe::tracing::debug!(peer = %self.peer, "a message could not be sent");
                    return;
                }
                Err(_) => {}
            }
        }
        self.outbox.bytes += message.len();
        self.outbox
            .waiting
            .entry(link)
            .or_default()
            .push_back((message, settled));
    }

    fn send_now(
        &mut self,
        link: LinkId,
        message: &[u8],
        settled: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), SendError> {
        let tag = self.outbox.next_tag();
        let outgoing = Outgoing {
            tag: &tag,
            settled,
            ..Outgoing::default()
        };
        self.machine.send(link, &outgoing, message, out).map(|_| ())
    }

    /// Sends what waits for a link, as far as it can be.
    pub(super) fn flush_outbox(&mut self, link: LinkId, out: &mut Vec<u8>) {
        let Some(mut waiting) = self.outbox.waiting.remove(&link) else {
            return;
        };
        while let Some((message, settled)) = waiting.pop_front() {
            match self.send_now(link, &message, settled, out) {
                Ok(()) | Err(SendError::TooLarge { .. }) => self.outbox.bytes -= message.len(),
                Err(_) => {
                    waiting.push_front((message, settled));
                    self.outbox.waiting.insert(link, waiting);
                    return;
                }
            }
        }
        self.resume_downlinks(link);
    }
}
