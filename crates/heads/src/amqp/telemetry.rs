//! What goes into the log: telemetry of identities, and events of producers (AMQP contract, sections 3.4 and 5.7).
//!
//! Telemetry of one identity that came with one read becomes one `DeviceGateway::send` and one ticket to wait for. Each
//! message of a producer, single or batch, becomes one block of its partition: it is stored whole or not at all.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use holdfast_amqp::connection::Delivery;
use holdfast_amqp::message::BATCH_FORMAT;
use holdfast_amqp::performatives::condition;
use holdfast_amqp::{LinkId, Message, SessionId};
use holdfast_model::Identity;
use holdfast_model::event::{AuthMethod, EventSource, Origin, Records};
use holdfast_ports::event_log::{AppendTicket, LogError};
use holdfast_ports::gateway::IngestError;
use holdfast_ports::service::{Grant, Holder};
use holdfast_wire::annotations::PARTITION_KEY;

use super::Shared;
use super::acks::{Acks, Step};
use super::attach::Link;
use super::core::{Core, Done};
use super::failure::{End, Failure, storage_failed};
use super::members::MemberId;
use super::messages::{Malformed, Source, write_batch, write_record};
use super::scratch::Scratch;

/// How long to wait when the log is full and names no ticket to wait for.
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// Who sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sender {
    Member(MemberId),
    /// With the partition chosen for the message.
    Producer(LinkId, u16),
}

/// Deliveries of one sender whose records are not with the log yet.
#[derive(Debug)]
struct Run {
    sender: Sender,
    /// Unsettled deliveries: link, first, last.
    deliveries: Vec<(LinkId, u32, u32)>,
}

impl Run {
    fn add(&mut self, link: LinkId, delivery: &Delivery<'_>) {
        if delivery.settled {
            return;
        }
        match self.deliveries.last_mut() {
            Some((last_link, _, last)) if *last_link == link && delivery.id == last.wrapping_add(1) => {
                *last = delivery.id;
            }
            _ => self.deliveries.push((link, delivery.id, delivery.id)),
        }
    }
}

/// What a connection has on its way into the log.
#[derive(Default)]
pub(super) struct Uplink {
    run: Option<Run>,
    /// The log had no room. Nothing is read meanwhile.
    blocked: Option<(Run, Records)>,
    /// What the client ended right after that.
    pub(super) then: Option<Ending>,
    /// Bytes that wait for durability.
    pub(super) bytes: usize,
}

/// A link or session that the client ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ending {
    Link(LinkId),
    Session(SessionId),
}

impl Uplink {
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.is_some()
    }
}

/// A sender to the event endpoint.
pub(super) struct Producer {
    partition: Option<u16>,
    origin: Origin,
    pub(super) acks: Acks,
}

impl Producer {
    pub(super) fn new(shared: &Shared, partition: Option<u16>, grant: &Grant) -> Result<Self, Failure> {
        if let Some(partition) = partition.filter(|partition| *partition >= shared.log.partitions()) {
            let text = format!("there is no partition {partition}");
            return Err(Failure::new(condition::NOT_FOUND, text));
        }
        let name = match &grant.holder {
            Holder::Policy { name, .. } => name.as_str(),
            Holder::Identity(identity) => identity.device_id(),
        };
        // A policy's name is made of the characters of ids.
        let identity =
            Identity::device(name).map_err(|error| Failure::new(condition::INTERNAL_ERROR, error.message))?;
        Ok(Producer {
            partition,
            origin: Origin {
                source: EventSource::Producer,
                identity,
                generation_id: 0,
                auth: AuthMethod::PolicyKey,
            },
            acks: Acks::default(),
        })
    }
}

/// Partition of a key. Part of the contract with readers that rely on order by key: it never changes.
fn partition_of_key(key: &str, partitions: u16) -> u16 {
    // FNV-1a, then mixed: its low bits alone spread short keys badly.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in key.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((hash >> 32) % u64::from(partitions.max(1))) as u16
}

fn condition_of(error: &Malformed) -> &'static str {
    match error {
        Malformed::Decode(_) => condition::DECODE_ERROR,
        Malformed::Body | Malformed::Property(_) => condition::NOT_IMPLEMENTED,
    }
}

impl Core {
    /// A message of a device or module.
    pub(super) fn take_telemetry(
        &mut self,
        link: LinkId,
        member: MemberId,
        delivery: &Delivery<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), End> {
        let sender = Sender::Member(member);
        let is_batch = delivery.message_format == BATCH_FORMAT;
        // A batch is taken or refused as a whole, so it has a run to itself.
        if is_batch || self.uplink.run.as_ref().is_some_and(|run| run.sender != sender) {
            self.flush_run(scratch)?;
        }
        let written = match &Message::decode(&delivery.payload) {
            Ok(message) if is_batch => write_batch(message, Source::Device, &mut scratch.records),
            Ok(message) => write_record(message, Source::Device, &mut scratch.records),
            Err(error) => Err(Malformed::from(*error)),
        };
        if let Err(error) = written {
            if is_batch {
                scratch.records.clear();
            }
            let failure = Failure::new(condition_of(&error), error.to_string());
            self.reject(link, delivery.id, &failure, &mut scratch.output);
            return Ok(());
        }
        let run = self.uplink.run.get_or_insert_with(|| Run {
            sender,
            deliveries: Vec::new(),
        });
        run.add(link, delivery);
        if is_batch {
            return self.flush_run(scratch);
        }
        Ok(())
    }

    /// A message of a producer.
    pub(super) fn take_produced(
        &mut self,
        link: LinkId,
        delivery: &Delivery<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), End> {
        self.flush_run(scratch)?;
        let partitions = self.shared.log.partitions();
        let outcome = Message::decode(&delivery.payload)
            .map_err(Malformed::from)
            .and_then(|message| {
                let key = message
                    .message_annotations
                    .and_then(|map| map.get(PARTITION_KEY))
                    .and_then(|value| value.as_str());
                let source = Source::Producer(key);
                match delivery.message_format {
                    BATCH_FORMAT => write_batch(&message, source, &mut scratch.records),
                    _ => write_record(&message, source, &mut scratch.records),
                }?;
                Ok(key.map(|key| partition_of_key(key, partitions)))
            });
        let by_key = match outcome {
            Ok(by_key) if !scratch.records.is_empty() => by_key,
            Ok(_) => {
                // An empty batch stores nothing.
                self.accept(link, delivery.id, delivery.id, &mut scratch.output);
                return Ok(());
            }
            Err(error) => {
                scratch.records.clear();
                let failure = Failure::new(condition_of(&error), error.to_string());
                self.reject(link, delivery.id, &failure, &mut scratch.output);
                return Ok(());
            }
        };
        let fixed = match self.links.get(&link) {
            Some(Link::Producer(producer)) => producer.partition,
            _ => None,
        };
        let partition = fixed.or(by_key).unwrap_or_else(|| {
            let next = self.shared.next_partition.fetch_add(1, Ordering::Relaxed);
            (next % u32::from(partitions.max(1))) as u16
        });
        let mut run = Run {
            sender: Sender::Producer(link, partition),
            deliveries: Vec::new(),
        };
        run.add(link, delivery);
        self.uplink.run = Some(run);
        self.flush_run(scratch)
    }

    /// Hands what was decoded so far to the log.
    pub(super) fn flush_run(&mut self, scratch: &mut Scratch) -> Result<(), End> {
        let Some(run) = self.uplink.run.take() else {
            return Ok(());
        };
        if scratch.records.is_empty() {
            return Ok(());
        }
        let outcome = self.append(run.sender, &scratch.records);
        match outcome {
            Ok(ticket) => {
                self.appended(run, &scratch.records, ticket);
                scratch.records.clear();
                Ok(())
            }
            Err(IngestError::Busy(ticket)) => {
                self.uplink.blocked = Some((run, std::mem::take(&mut scratch.records)));
                self.wait_for_room(ticket);
                Ok(())
            }
            Err(error) => {
                scratch.records.clear();
                self.not_taken(&run, &error, &mut scratch.output)
            }
        }
    }

    fn append(&mut self, sender: Sender, records: &Records) -> Result<AppendTicket, IngestError> {
        match sender {
            Sender::Member(id) => {
                let session = self.members.get(&id).and_then(|member| member.session.as_ref());
                let session = session.ok_or(IngestError::Fenced)?;
                session.touch(u32::try_from(self.now / 1_000).unwrap_or(u32::MAX));
                self.shared.gateway.send(session, records)
            }
            Sender::Producer(link, partition) => {
                let Some(Link::Producer(producer)) = self.links.get(&link) else {
                    return Err(IngestError::Fenced);
                };
                let now = self.shared.clock.now();
                let appended = self.shared.log.append(partition, &producer.origin, records, now);
                appended.map_err(|error| match error {
                    LogError::Busy => IngestError::Busy(producer.acks.oldest()),
                    error => IngestError::Failed(error),
                })
            }
        }
    }

    fn appended(&mut self, run: Run, records: &Records, ticket: AppendTicket) {
        self.shared
            .metrics
            .amqp_events_received
            .add(u64::from(records.count()));
        let steps = run.deliveries.len();
        // What the log holds of it, spread over the deliveries: only the sum matters.
        let share = records.as_bytes().len() / steps.max(1);
        let Some(acks) = self.acks_of(run.sender) else {
            return;
        };
        for (link, first, last) in run.deliveries {
            let step = Step {
                link,
                first,
                last,
                ticket,
            };
            acks.push(step, share);
        }
        self.uplink.bytes += share * steps;
        self.wait_durable(run.sender);
    }

    fn acks_of(&mut self, sender: Sender) -> Option<&mut Acks> {
        match sender {
            Sender::Member(id) => self.members.get_mut(&id).map(|member| &mut member.acks),
            Sender::Producer(link, _) => match self.links.get_mut(&link) {
                Some(Link::Producer(producer)) => Some(&mut producer.acks),
                _ => None,
            },
        }
    }

    /// Waits for the oldest deliveries of a sender.
    fn wait_durable(&mut self, sender: Sender) {
        let Some(acks) = self.acks_of(sender) else {
            return;
        };
        let Some(ticket) = acks.oldest().filter(|_| !acks.waiting) else {
            return;
        };
        acks.waiting = true;
        let log = Arc::clone(&self.shared.log);
        let gateway = Arc::clone(&self.shared.gateway);
        self.wait(async move {
            let outcome = poll_fn(|context| match sender {
                Sender::Member(_) => gateway.poll_durable(ticket, context),
                Sender::Producer(..) => log.poll_durable(ticket, context),
            })
            .await;
            let done: Done = Box::new(move |core, out| match outcome {
                Ok(()) => {
                    core.accept_durable(sender, ticket, out);
                    Ok(())
                }
                Err(_) => Err(core.close(
                    &storage_failed(),
                    End::storage("the hub cannot store events"),
                    out,
                )),
            });
            done
        });
    }

    fn accept_durable(&mut self, sender: Sender, ticket: AppendTicket, out: &mut Vec<u8>) {
        while let Some(acks) = self.acks_of(sender) {
            acks.waiting = false;
            let Some((step, bytes)) = acks.take_durable(ticket) else {
                break;
            };
            self.uplink.bytes -= bytes;
            self.accept(step.link, step.first, step.last, out);
        }
        self.wait_durable(sender);
    }

    /// Offers records again that the log had no room for.
    fn wait_for_room(&mut self, ticket: Option<AppendTicket>) {
        let gateway = Arc::clone(&self.shared.gateway);
        self.wait(async move {
            match ticket {
                // A log that has failed says so at the next try.
                Some(ticket) => {
                    let _ = poll_fn(|context| gateway.poll_durable(ticket, context)).await;
                }
                None => tokio::time::sleep(BUSY_PAUSE).await,
            }
            let done: Done = Box::new(|core, out| core.send_blocked(out));
            done
        });
    }

    fn send_blocked(&mut self, out: &mut Vec<u8>) -> Result<(), End> {
        let Some((run, records)) = self.uplink.blocked.take() else {
            return Ok(());
        };
        match self.append(run.sender, &records) {
            Ok(ticket) => self.appended(run, &records, ticket),
            Err(IngestError::Busy(ticket)) => {
                self.uplink.blocked = Some((run, records));
                self.wait_for_room(ticket);
                return Ok(());
            }
            Err(error) => self.not_taken(&run, &error, out)?,
        }
        self.take_ending(out)
    }

    fn not_taken(&mut self, run: &Run, error: &IngestError, out: &mut Vec<u8>) -> Result<(), End> {
        let failure = match error {
            IngestError::Failed(LogError::NoSuchPartition(_)) => {
                Failure::new(condition::NOT_FOUND, "there is no such partition")
            }
            IngestError::Failed(_) => {
                return Err(self.close(
                    &storage_failed(),
                    End::storage("the hub cannot store events"),
                    out,
                ));
            }
            IngestError::TooLarge => Failure::new(
                condition::MESSAGE_SIZE_EXCEEDED,
                "a message with its properties is larger than 256 KB",
            ),
            // Its links are detached with the reason, if they are not gone already.
            IngestError::Fenced | IngestError::Busy(_) => return Ok(()),
        };
        for (link, first, last) in &run.deliveries {
            for n in 0..=last.wrapping_sub(*first) {
                self.reject(*link, first.wrapping_add(n), &failure, out);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_their_partitions() {
        for (key, partition) in [("", 0), ("a", 0), ("b", 0), ("device-1", 0)] {
            let of = partition_of_key(key, 1);
            assert_eq!(of, partition, "{key}");
        }
        let mut counts = [0u32; 8];
        for n in 0..8_000 {
            counts[usize::from(partition_of_key(&format!("key-{n}"), 8))] += 1;
        }
        assert!(
            counts.iter().all(|count| (800..1_200).contains(count)),
            "{counts:?}"
        );
    }
}
