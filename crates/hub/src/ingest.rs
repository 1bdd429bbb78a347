//! Telemetry on its way into the log.
//!
//! The whole path is: is the session alive (one atomic load), hand the encoded records to the log, count. No lock
//! besides the log's own, no allocation, no await; enrichments of the built-in endpoint cost one copy.

use std::sync::Arc;

use holdfast_model::event::{EndpointSet, Origin, Records, Run};
use holdfast_model::limits::D2C_BYTES_MAX;
use holdfast_model::message::SystemProperty;
use holdfast_model::{Identity, Timestamp};
use holdfast_ports::event_log::{AppendTicket, LogError};
use holdfast_ports::gateway::{Admitted, IngestError};
use holdfast_ports::session::SessionHandle;
use holdfast_routing::{Decider, RouteTable};
use serde_json::Value;

use crate::Hub;

/// The partition of a device's telemetry, the same for its modules.
///
/// FNV-1a (64 bit) over the id's bytes, one multiplication to mix (FNV's low bits are weak), then the remainder of the
/// high half. Stored data depends on it: readers expect a device in one partition for ever, so it never changes.
///
/// ```
/// assert_eq!(holdfast_hub::partition_of("d1", 4), holdfast_hub::partition_of("d1", 4));
/// assert!(holdfast_hub::partition_of("press-4", 7) < 7);
/// ```
#[must_use]
pub fn partition_of(device_id: &str, partitions: u16) -> u16 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in device_id.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((hash >> 32) % u64::from(partitions.max(1))) as u16
}

impl Hub {
    pub(crate) fn ingest(
        &self,
        session: &SessionHandle,
        records: &Records,
    ) -> Result<AppendTicket, IngestError> {
        if session.is_ended() {
            return Err(IngestError::Fenced);
        }
        match session.data_schema() {
            None => self.append(session.partition, &session.origin, records),
            // One copy of the run, for plug and play devices only.
            Some(model_id) => {
                let stamped = records.stamped(SystemProperty::DataSchema, model_id);
                self.append(session.partition, &session.origin, &stamped)
            }
        }
    }

    pub(crate) fn ingest_admitted(
        &self,
        admitted: &Admitted,
        records: &Records,
    ) -> Result<AppendTicket, IngestError> {
        self.append(admitted.partition, &admitted.origin, records)
    }

    fn append(
        &self,
        partition: u16,
        origin: &Origin,
        records: &Records,
    ) -> Result<AppendTicket, IngestError> {
        // Only a run longer than one message may be can hold a message that is too long.
        if records.as_bytes().len() > D2C_BYTES_MAX && records.largest_message() > D2C_BYTES_MAX {
            return Err(IngestError::TooLarge);
        }
        match self.route(partition, origin, records) {
            Ok(ticket) => {
                self.metrics.telemetry_messages.add(u64::from(records.count()));
                self.metrics.telemetry_bytes.add(records.as_bytes().len() as u64);
                Ok(ticket)
            }
            Err(LogError::Busy) => {
                self.metrics.telemetry_waits.inc();
                Err(IngestError::Busy(self.next_progress(partition)))
            }
            Err(error) => {
                self.note_log_failure(&error);
                Err(IngestError::Failed(error))
            }
        }
    }

    /// Decides where each message goes and appends those that go somewhere; a hub whose routes ask for nothing decides
    /// once for all of them.
    fn route(&self, partition: u16, origin: &Origin, records: &Records) -> Result<AppendTicket, LogError> {
        let now = self.now();
        let table = self.routing.table();
        let (mut runs, mut twin) = (Vec::new(), None);
        match table.constant(origin.source) {
            Some(endpoints) if !endpoints.is_empty() => {
                let twin = self.twin_to_add(&table, &origin.identity);
                let runs = [records.run(endpoints)];
                return self.append_routed(&table, (partition, origin), &runs, twin.as_deref(), now);
            }
            Some(_) => {}
            None => {
                twin = self.routing.senders.twin(&origin.identity);
                let mut decider = Decider::new(&table, twin.as_deref());
                let mut undefined = 0;
                records.split(origin, now, &mut runs, |event| {
                    let decision = decider.decide(event);
                    undefined += u64::from(decision.undefined);
                    decision.endpoints
                });
                self.metrics.routes_undefined.add(undefined);
            }
        }
        let routed: u32 = runs.iter().map(|run| run.count).sum();
        self.metrics
            .telemetry_unrouted
            .add(u64::from(records.count().saturating_sub(routed)));
        if runs.is_empty() {
            // Accepted and dropped, as the operator defined it; there is nothing to wait for.
            return Ok(AppendTicket { partition, end: 0 });
        }
        self.append_routed(&table, (partition, origin), &runs, twin.as_deref(), now)
    }

    /// The sender's twin, if an enrichment of the built-in endpoint asks for it.
    fn twin_to_add(&self, table: &RouteTable, sender: &Identity) -> Option<Arc<Value>> {
        match table.asks_for_twins() {
            true => self.routing.senders.twin(sender),
            false => None,
        }
    }

    /// Appends runs at the end of the way. What goes to the built-in endpoint gets its enrichments there, in a block of
    /// its own; what becomes too long by it does not go there.
    pub(crate) fn append_routed(
        &self,
        table: &RouteTable,
        (partition, origin): (u16, &Origin),
        runs: &[Run<'_>],
        twin: Option<&Value>,
        now: Timestamp,
    ) -> Result<AppendTicket, LogError> {
        let hub_name = &self.outgoing.hub_name;
        let added = table.built_in().added(origin.source, hub_name, twin);
        if added.is_empty() {
            return self.stores.log.append_runs(partition, origin, runs, now);
        }
        let enriched = |run: &Run<'_>| match run.endpoints.has_events() {
            true => Some(run.with_properties(&added, D2C_BYTES_MAX)),
            false => None,
        };
        let enriched: Vec<Option<Records>> = runs.iter().map(enriched).collect();
        let mut all = Vec::with_capacity(2 * runs.len());
        for (run, enriched) in runs.iter().zip(&enriched) {
            let Some(enriched) = enriched else {
                all.push(*run);
                continue;
            };
            self.metrics
                .enriched_too_large
                .add(u64::from(run.count - enriched.count()));
            if !enriched.is_empty() {
                all.push(enriched.run(EndpointSet::EVENTS));
            }
            let endpoints = run.endpoints.without_events();
            if !endpoints.is_empty() {
                all.push(Run { endpoints, ..*run });
            }
        }
        if all.is_empty() {
            return Ok(AppendTicket { partition, end: 0 });
        }
        self.stores.log.append_runs(partition, origin, &all, now)
    }

    /// A ticket that is ready as soon as the partition has written anything more. A full buffer holds unwritten events,
    /// so one more event will become durable.
    pub(crate) fn next_progress(&self, partition: u16) -> Option<AppendTicket> {
        let info = self.stores.log.info(partition).ok()?;
        Some(AppendTicket {
            partition,
            end: info.next + 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_never_change() {
        // Stored data depends on these figures.
        let of = |id| (partition_of(id, 4), partition_of(id, 32));
        assert_eq!(
            [of("d1"), of("d2"), of("press-7"), of("sensor")],
            [(0, 12), (2, 14), (1, 21), (0, 4)]
        );
    }

    #[test]
    fn similar_ids_spread_evenly() {
        let mut counts = [0u32; 4];
        for number in 0..10_000 {
            counts[usize::from(partition_of(&format!("device-{number:06}"), 4))] += 1;
        }
        assert!(
            counts.iter().all(|count| (2_300..2_700).contains(count)),
            "{counts:?}"
        );
    }
}
