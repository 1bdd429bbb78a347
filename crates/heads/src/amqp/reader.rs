//! Receivers of events (AMQP contract, sections 5.4 to 5.6).

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{AbortHandle, Abortable};
use holdfast_amqp::connection::Outgoing;
use holdfast_amqp::performatives::{Attach, Performative, condition};
use holdfast_amqp::{LinkId, SendError};
use holdfast_model::event::{BlockCursor, EventBlock};
use holdfast_model::{Error, ErrorCode, Timestamp};
use holdfast_ports::event_log::LogError;
use holdfast_wire::links::{SelectorError, StartPosition, parse_selector};

use super::Shared;
use super::attach::Link;
use super::core::{Core, Done};
use super::failure::{End, Failure, storage_failed};
use super::messages::{Runtime, write_event};
use super::readers::{ReaderPlace, Taken};

/// Events put into the output for one reader before others of the connection have their turn, in bytes.
const TURN_BYTES: usize = 64 * 1024;
/// Asked for by readers that want to know how far behind they are.
const RUNTIME_METRIC: &str = "com.microsoft:enable-receiver-runtime-metric";

/// A receiver of one partition's events.
pub(super) struct Reader {
    partition: u16,
    /// Sequence number of the next event to send.
    next: u64,
    blocks: VecDeque<EventBlock>,
    /// Where `next` is in the first of them, or before it.
    cursor: BlockCursor,
    reading: bool,
    /// Tells the partition's state with each event.
    runtime: bool,
    /// The client wants what there is, and its credit back.
    pub(super) drain: bool,
    _place: ReaderPlace,
    /// Ends what waits for this reader.
    waits: AbortHandle,
    stolen: AbortHandle,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.waits.abort();
        self.stolen.abort();
    }
}

/// Where a reader begins, and what it said.
struct Wanted {
    group: String,
    partition: u16,
    attach: Vec<u8>,
}

impl Core {
    /// A client wants events: looks up its consumer group and position first.
    pub(super) fn attach_reader(
        &mut self,
        link: LinkId,
        group: &str,
        partition: u16,
        attach: &Attach<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), End> {
        let selector = attach.source.and_then(|source| source.selector());
        let start = match selector.map_or(Ok(StartPosition::From(0)), parse_selector) {
            Ok(start) => start,
            Err(error) => {
                let condition = match error {
                    SelectorError::Malformed(_) => "com.microsoft:argument-error",
                    SelectorError::OutOfRange(_) => "com.microsoft:argument-out-of-range",
                };
                let failure = Failure::new(condition, error.to_string());
                return self.turn_away(link, attach, &failure, out);
            }
        };
        let mut bytes = Vec::new();
        attach.encode(&mut bytes);
        let wanted = Wanted {
            group: group.to_owned(),
            partition,
            attach: bytes,
        };
        let shared = Arc::clone(&self.shared);
        self.requests += 1;
        self.wait(async move {
            let outcome = find_start(&shared, &wanted, start).await;
            let done: Done = Box::new(move |core, out| {
                core.requests -= 1;
                core.begin_reader(link, &wanted, outcome, out)
            });
            done
        });
        Ok(())
    }

    fn begin_reader(
        &mut self,
        link: LinkId,
        wanted: &Wanted,
        outcome: Result<u64, Failure>,
        out: &mut Vec<u8>,
    ) -> Result<(), End> {
        // Without its path the link has been given up meanwhile.
        if self.services.path(link).is_none() {
            return Ok(());
        }
        let Ok((Performative::Attach(attach), _)) = Performative::decode(&wanted.attach) else {
            // It was encoded by us.
            return Ok(());
        };
        let next = match outcome {
            Ok(next) => next,
            Err(failure) => return self.turn_away(link, &attach, &failure, out),
        };
        let epoch = attach
            .properties
            .and_then(|map| map.get("com.microsoft:epoch"))
            .and_then(|value| value.as_i64());
        let entered = self.shared.readers.enter(
            &wanted.group,
            wanted.partition,
            epoch,
            self.shared.config.readers_max,
        );
        let (place, stolen) = match entered {
            Ok(entered) => entered,
            Err(taken) => {
                let failure = match taken {
                    Taken::Owned => Failure::new(
                        condition::STOLEN,
                        "a receiver with a higher owner level reads this partition",
                    ),
                    Taken::Full => Failure::new(
                        condition::RESOURCE_LIMIT_EXCEEDED,
                        "too many receivers without owner level read this partition",
                    ),
                };
                return self.turn_away(link, &attach, &failure, out);
            }
        };
        // Replaced with each read.
        let (waits, _) = AbortHandle::new_pair();
        let (stolen_abort, stolen_registration) = AbortHandle::new_pair();
        let stolen = Abortable::new(stolen, stolen_registration);
        self.wait(async move {
            let outcome = stolen.await;
            let done: Done = Box::new(move |core, out| match outcome {
                Ok(Ok(())) => core.reader_stolen(link, out),
                // The reader itself is gone.
                _ => Ok(()),
            });
            done
        });
        let reader = Reader {
            partition: wanted.partition,
            next,
            blocks: VecDeque::new(),
            cursor: BlockCursor::default(),
            reading: false,
            runtime: attach.desired_capabilities.contains(RUNTIME_METRIC),
            drain: false,
            _place: place,
            waits,
            stolen: stolen_abort,
        };
        let bytes_max = self.shared.config.producer_bytes_max;
        self.accept_attach(link, Link::Reader(Box::new(reader)), &attach, bytes_max, out);
        self.readers.push_back(link);
        Ok(())
    }

    /// Refuses a reader by agreeing and detaching at once: azure-eventhub for Python takes an attach without termini for a
    /// fault of its own and never looks at the reason.
    fn turn_away(
        &mut self,
        link: LinkId,
        attach: &Attach<'_>,
        failure: &Failure,
        out: &mut Vec<u8>,
    ) -> Result<(), End> {
        self.services.paths.remove(&link);
        self.machine.accept_link(link, &attach.agree(), 0, out);
        self.refuse(link, failure, out)
    }

    fn reader_stolen(&mut self, link: LinkId, out: &mut Vec<u8>) -> Result<(), End> {
        if !self.links.contains_key(&link) {
            return Ok(());
        }
        let failure = Failure::new(
            condition::STOLEN,
            "a receiver with the same or a higher owner level has taken over",
        );
        self.detach(link, &failure, out)
    }

    /// Sends events to readers with credit, in turns, until `room` bytes of output are used. True when there may be more
    /// to send at once.
    pub(super) fn pump(&mut self, room: usize, out: &mut Vec<u8>) -> bool {
        if self.readers.is_empty() || self.draining {
            return false;
        }
        let start = out.len();
        loop {
            let mut any = false;
            for _ in 0..self.readers.len() {
                self.readers.rotate_left(1);
                let Some(link) = self.readers.back().copied() else {
                    return false;
                };
                any |= self.pump_reader(link, out);
                if out.len() - start >= room {
                    return true;
                }
            }
            if !any {
                return false;
            }
        }
    }

    /// One turn of a reader. True when it sent something and could send more.
    fn pump_reader(&mut self, link: LinkId, out: &mut Vec<u8>) -> bool {
        let Some(Link::Reader(reader)) = self.links.get_mut(&link) else {
            return false;
        };
        let turn_end = out.len() + TURN_BYTES;
        let before = reader.next;
        let (mut blocked, mut too_large) = (false, false);
        while !blocked && out.len() < turn_end && self.machine.credit(link) > 0 {
            let Some(block) = reader.blocks.front() else { break };
            if !block.endpoints().has_events() {
                // Routed elsewhere: its numbers are missing here.
                reader.next = reader.next.max(block.end_sequence_number());
                reader.blocks.pop_front();
                reader.cursor = BlockCursor::default();
                continue;
            }
            // What is no longer kept is passed over.
            reader.next = reader.next.max(block.first_sequence_number);
            let runtime = runtime_of(&self.shared, reader);
            let mut events = block.events_from(reader.cursor);
            events.skip_to(reader.next);
            while out.len() < turn_end {
                reader.cursor = events.cursor();
                let Some(event) = events.next() else { break };
                let Ok(event) = event else {
                    holdfast_observe::tracing::error!(
                        partition = reader.partition,
                        sequence_number = reader.next,
                        "a stored event cannot be read and is passed over"
                    );
                    reader.next = block.end_sequence_number();
                    break;
                };
                let tag = event.sequence_number.to_be_bytes();
                let outgoing = Outgoing {
                    tag: &tag,
                    settled: true,
                    ..Outgoing::default()
                };
                let sent = self.machine.send_with(
                    link,
                    &outgoing,
                    |out| write_event(&event, runtime.as_ref(), out),
                    out,
                );
                if let Err(error) = sent {
                    blocked = true;
                    too_large = matches!(error, SendError::TooLarge { .. });
                    break;
                }
                reader.next = event.sequence_number + 1;
            }
            if reader.next >= block.end_sequence_number() {
                reader.blocks.pop_front();
                reader.cursor = BlockCursor::default();
            }
        }
        let progress = reader.next > before;
        let sent = reader.next - before;
        let more = progress && !blocked && !reader.blocks.is_empty();
        self.shared.metrics.amqp_events_sent.add(sent);
        if too_large {
            let failure = Failure::new(
                condition::MESSAGE_SIZE_EXCEEDED,
                "an event is larger than the receiver takes",
            );
            // The end of a reader ends nothing else.
            let _ = self.detach(link, &failure, out);
            return false;
        }
        self.read_on(link, out);
        more
    }

    /// Begins to read when a reader has credit and nothing to send.
    fn read_on(&mut self, link: LinkId, out: &mut Vec<u8>) {
        let shared = Arc::clone(&self.shared);
        let credit = self.machine.credit(link);
        let Some(Link::Reader(reader)) = self.links.get_mut(&link) else {
            return;
        };
        if !reader.blocks.is_empty() || credit == 0 {
            return;
        }
        if reader.drain {
            let waiting = shared
                .log
                .info(reader.partition)
                .is_ok_and(|info| info.next > reader.next);
            if !waiting {
                reader.drain = false;
                self.machine.drained(link, out);
                return;
            }
        }
        if reader.reading {
            return;
        }
        reader.reading = true;
        let (partition, from) = (reader.partition, reader.next);
        let (waits, registration) = AbortHandle::new_pair();
        reader.waits = waits;
        let read = async move {
            poll_fn(|context| shared.log.poll_readable(partition, from, context)).await?;
            shared.log.read(partition, from, shared.config.read_bytes).await
        };
        let read = Abortable::new(read, registration);
        self.wait(async move {
            let outcome = read.await;
            let done: Done = Box::new(move |core, out| match outcome {
                Ok(outcome) => core.take_blocks(link, outcome, out),
                // The reader is gone.
                Err(_) => Ok(()),
            });
            done
        });
    }

    fn take_blocks(
        &mut self,
        link: LinkId,
        outcome: Result<Vec<EventBlock>, LogError>,
        out: &mut Vec<u8>,
    ) -> Result<(), End> {
        let Some(Link::Reader(reader)) = self.links.get_mut(&link) else {
            return Ok(());
        };
        reader.reading = false;
        match outcome {
            Ok(blocks) => {
                reader.blocks.extend(blocks);
                Ok(())
            }
            Err(error) => {
                holdfast_observe::tracing::error!(%error, "events cannot be read");
                self.detach(link, &storage_failed(), out)
            }
        }
    }
}

fn runtime_of(shared: &Shared, reader: &Reader) -> Option<Runtime> {
    if !reader.runtime {
        return None;
    }
    let info = shared.log.info(reader.partition).ok()?;
    Some(Runtime {
        info,
        now: shared.clock.now(),
    })
}

/// The sequence number that a reader begins with.
async fn find_start(shared: &Shared, wanted: &Wanted, start: StartPosition) -> Result<u64, Failure> {
    let groups = shared.services.consumer_groups().await.map_err(Failure::from)?;
    if !groups
        .iter()
        .any(|group| group.eq_ignore_ascii_case(&wanted.group))
    {
        let text = format!("there is no consumer group {}", wanted.group);
        return Err(Failure::new(condition::NOT_FOUND, text));
    }
    let missing = || {
        let text = format!("there is no partition {}", wanted.partition);
        Failure::new(condition::NOT_FOUND, text)
    };
    let info = shared.log.info(wanted.partition).map_err(|_| missing())?;
    let find = async |time: Timestamp| {
        shared.log.find(wanted.partition, time).await.map_err(|error| {
            holdfast_observe::tracing::error!(%error, "a position cannot be found");
            Failure::from(Error::new(ErrorCode::ServiceUnavailable, "events cannot be read"))
        })
    };
    match start {
        StartPosition::From(number) => Ok(number),
        StartPosition::Latest => Ok(info.next),
        StartPosition::EnqueuedAt(time) => find(time).await,
        // Clients know whole milliseconds: an event that shows this one is not after it.
        StartPosition::EnqueuedAfter(time) => find(time.plus(Duration::from_millis(1))).await,
    }
}
