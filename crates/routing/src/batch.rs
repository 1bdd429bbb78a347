//! What a dispatcher has read and not delivered yet.

use holdfast_model::event::{EventBlock, EventView};
use holdfast_ports::endpoint::{BatchLimits, Outbound};

use crate::enrich::Enricher;

/// Events of several blocks, in the order of the log within each partition.
#[derive(Default, Debug)]
pub(crate) struct Batch {
    parts: Vec<Part>,
    pub(crate) events: usize,
    bytes: usize,
    /// An event was left out because it would have been too much.
    closed: bool,
}

/// Consecutive events of one block, `from` included, `to` not.
#[derive(Debug)]
struct Part {
    lane: usize,
    block: EventBlock,
    from: u64,
    to: u64,
}

impl Batch {
    pub(crate) fn is_full(&self, limits: &BatchLimits) -> bool {
        self.closed || self.events >= limits.events_max || self.bytes >= limits.bytes_max
    }

    /// Takes events of a block from sequence number `from` on until the batch is full. Returns where it stopped, which
    /// is the block's end if all were taken; what cannot be read is passed over.
    pub(crate) fn take(&mut self, lane: usize, block: EventBlock, from: u64, limits: &BatchLimits) -> u64 {
        let from = from.max(block.first_sequence_number);
        let mut to = from;
        let mut events = block.events();
        events.skip_to(from);
        for event in events {
            let Ok(event) = event else {
                to = block.end_sequence_number();
                break;
            };
            let bytes = event.body.len() + event.encoded_fields().len();
            let full = self.events > 0
                && (self.bytes + bytes > limits.bytes_max || self.events >= limits.events_max);
            if full {
                self.closed = true;
                break;
            }
            self.bytes += bytes;
            self.events += 1;
            to = event.sequence_number + 1;
        }
        if to > from {
            self.parts.push(Part {
                lane,
                block,
                from,
                to,
            });
        }
        to
    }

    /// The events, with the number of their lane.
    pub(crate) fn views(&self) -> impl Iterator<Item = (usize, EventView<'_>)> {
        self.parts.iter().flat_map(|part| {
            let mut events = part.block.events();
            events.skip_to(part.from);
            events
                .map_while(Result::ok)
                .take_while(|event| event.sequence_number < part.to)
                .map(|event| (part.lane, event))
        })
    }

    /// The events from number `skip` of the batch on, ready for the endpoint.
    pub(crate) fn outbound<'a>(&'a self, skip: usize, enricher: &'a Enricher) -> Vec<Outbound<'a>> {
        self.views()
            .skip(skip)
            .map(|(_, event)| Outbound {
                event,
                enrichments: enricher.enrich(&event),
            })
            .collect()
    }
}
