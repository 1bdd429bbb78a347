//! Messages on their way in: where each goes is decided once, then all copies are handed to the queues in one append. The
//! client is told of it when every copy is durable.

use std::sync::atomic::Ordering;

use holdfast_model::event::{EndpointSet, EventSource, Origin, Records, Run};
use holdfast_model::limits::D2C_BYTES_MAX;
use holdfast_model::message::SystemProperty;
use holdfast_ports::event_log::{AppendTicket, LogError};
use holdfast_ports::gateway::IngestError;
use smallvec::SmallVec;

use crate::Broker;
use crate::metrics::Family;
use crate::queue::{AppendError, Entry};
use crate::routes::{Targets, output_of, path_of};

/// Bytes of records that stand in one block of a queue, unless a single one is longer: a reader has a block in memory whole.
const BLOCK_BYTES_MAX: usize = 64 << 10;

/// Decisions about the records of one call. Records of the same decision, one after the other, become one block.
#[derive(Default)]
struct Decisions {
    known: SmallVec<[Targets; 4]>,
}

impl Decisions {
    /// The number of a decision, in the form that [`Records::split`] takes; 0 is for those that go nowhere.
    fn number(&mut self, targets: Targets) -> u32 {
        if targets.is_empty() {
            return 0;
        }
        let at = self.known.iter().position(|known| *known == targets);
        let at = at.unwrap_or_else(|| {
            self.known.push(targets);
            self.known.len() - 1
        });
        at as u32 + 1
    }
}

/// What is counted while records are decided, one entry for each output.
#[derive(Default)]
struct Tally {
    outputs: SmallVec<[(String, u64, u64); 2]>,
}

impl Tally {
    fn add(&mut self, output: &str, routed: bool) {
        let at = self.outputs.iter().position(|(known, ..)| known == output);
        let at = at.unwrap_or_else(|| {
            self.outputs.push((output.to_owned(), 0, 0));
            self.outputs.len() - 1
        });
        self.outputs[at].1 += 1;
        self.outputs[at].2 += u64::from(!routed);
    }
}

impl Broker {
    /// Takes records of one sender. Nothing is appended when this fails.
    pub(crate) fn ingest(
        &self,
        origin: &Origin,
        data_schema: Option<&str>,
        records: &Records,
    ) -> Result<AppendTicket, IngestError> {
        // Only a run longer than one message may be can hold a message that is too long.
        if records.as_bytes().len() > D2C_BYTES_MAX && records.largest_message() > D2C_BYTES_MAX {
            return Err(IngestError::TooLarge);
        }
        let stamped = data_schema.map(|model_id| records.stamped(SystemProperty::DataSchema, model_id));
        let records = stamped.as_ref().unwrap_or(records);
        let mut decisions = Decisions::default();
        let mut runs = Vec::new();
        let tally = self.decide(origin, records, &mut decisions, &mut runs);
        let result = self.append(origin, &decisions, &runs);
        let identity = origin.identity.as_str();
        match &result {
            Ok(_) => {
                for (output, count, unrouted) in &tally.outputs {
                    self.metrics
                        .count(Family::MessagesReceived, &[output, identity], *count);
                    self.metrics.count(
                        Family::MessagesDropped,
                        &["no_route", identity, output],
                        *unrouted,
                    );
                }
                if records.count() > 0 {
                    let mean = records.as_bytes().len() as f64 / f64::from(records.count());
                    self.metrics
                        .observe_many(Family::MessageSize, &[identity], mean, records.count());
                }
            }
            Err(IngestError::Busy(Some(_))) => {}
            Err(_) => {
                let output = tally.outputs.first().map_or("", |(output, ..)| output);
                let labels = ["storage_failure", identity, output];
                self.metrics.count(Family::MessagesUnacknowledged, &labels, 1);
            }
        }
        result
    }

    fn decide<'a>(
        &self,
        origin: &'a Origin,
        records: &'a Records,
        decisions: &mut Decisions,
        runs: &mut Vec<Run<'a>>,
    ) -> Tally {
        let table = self.routes.load();
        let module = origin.identity.module_id();
        let internal = origin.identity.device_id() == self.scope.device_id() && module.is_some();
        let base = self
            .message_numbers
            .fetch_add(u64::from(records.count()), Ordering::Relaxed);
        let mut tally = Tally::default();
        let mut path = String::new();
        // The last record's output and decision, if that holds for every message of the output.
        let mut last: Option<(Option<&str>, u32)> = None;
        let (mut index, mut block, mut block_bytes) = (0, 0_u64, 0);
        records.split(origin, self.clock.now(), runs, |event| {
            index += 1;
            let output = output_of(event);
            let number = match last {
                Some((known, number)) if known == output => number,
                _ => {
                    path_of(origin.source, module, output, &mut path);
                    let id = self.message_id_seed ^ u128::from(base + index);
                    let (targets, constant) = table.decide(event, &path, id, internal);
                    let number = decisions.number(targets);
                    last = constant.then_some((output, number));
                    number
                }
            };
            if origin.source == EventSource::Telemetry {
                tally.add(output.unwrap_or_default(), number > 0);
            }
            if number == 0 {
                return EndpointSet::NONE;
            }
            // A new number of the block makes a new run.
            let bytes = event.encoded_fields().len() + event.body.len() + 8;
            if block_bytes > 0 && block_bytes + bytes > BLOCK_BYTES_MAX {
                block += 1;
                block_bytes = 0;
            }
            block_bytes += bytes;
            EndpointSet::from_bits(block << 32 | u64::from(number))
        });
        tally
    }

    fn append(
        &self,
        origin: &Origin,
        decisions: &Decisions,
        runs: &[Run<'_>],
    ) -> Result<AppendTicket, IngestError> {
        let mut encoded = Vec::with_capacity(64);
        origin.encode(EndpointSet::EVENTS, &mut encoded);
        let now = self.queues.now();
        let mut entries: SmallVec<[Entry<'_>; 8]> = SmallVec::new();
        for run in runs {
            let number = run.endpoints.bits() as u32 as usize;
            for target in decisions.known.get(number.wrapping_sub(1)).into_iter().flatten() {
                let life = target.time_to_live.map(|life| life.as_millis() as u64);
                entries.push(Entry {
                    queue: target.queue,
                    expires: life.map(|life| now.saturating_add(life)),
                    origin: &encoded,
                    records: run.bytes,
                    count: run.count,
                });
            }
        }
        let ticket = |end| AppendTicket { partition: 0, end };
        match self.queues.append(&entries) {
            Ok(accepted) => Ok(ticket(accepted)),
            Err(AppendError::Busy(accepted)) => Err(IngestError::Busy(Some(ticket(accepted)))),
            Err(AppendError::Full) => Err(IngestError::Busy(None)),
            Err(AppendError::TooLarge) => Err(IngestError::TooLarge),
            Err(AppendError::Failed(reason)) => Err(IngestError::Failed(LogError::Failed(reason))),
        }
    }
}
