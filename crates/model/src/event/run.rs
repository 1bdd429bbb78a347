//! Which endpoints events go to, and runs of records that go to the same ones.

use super::{Cursor, EventField, EventView, Origin, OriginView, Records, decode_field, fields_length};
use crate::time::Timestamp;

/// A set of the hub's endpoints, decided when an event is appended. Endpoints are numbered by the hub; number 0 is the
/// built-in endpoint `events`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct EndpointSet(u64);

impl EndpointSet {
    /// No endpoint.
    pub const NONE: EndpointSet = EndpointSet(0);
    /// The built-in endpoint only.
    pub const EVENTS: EndpointSet = EndpointSet(1);
    /// How many endpoints a hub can have, the built-in one included.
    pub const SIZE: u8 = 64;

    /// The set of one endpoint. `number` is below [`EndpointSet::SIZE`]; another one gives the empty set.
    #[must_use]
    pub const fn of(number: u8) -> Self {
        match 1_u64.checked_shl(number as u32) {
            Some(bit) => EndpointSet(bit),
            None => EndpointSet::NONE,
        }
    }

    /// From the stored form.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        EndpointSet(bits)
    }

    /// The stored form: bit n is endpoint n.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Both sets together.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        EndpointSet(self.0 | other.0)
    }

    /// Whether endpoint `number` is in it.
    #[must_use]
    pub const fn contains(self, number: u8) -> bool {
        number < Self::SIZE && self.0 >> number & 1 == 1
    }

    /// This set but for the built-in endpoint.
    #[must_use]
    pub const fn without_events(self) -> Self {
        EndpointSet(self.0 & !1)
    }

    /// Whether the built-in endpoint is in it.
    #[must_use]
    pub const fn has_events(self) -> bool {
        self.0 & 1 == 1
    }

    /// Whether no endpoint is in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// Records one after the other that go to the same endpoints.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run<'a> {
    /// Where they go.
    pub endpoints: EndpointSet,
    /// How many there are, at least one.
    pub count: u32,
    /// The encoded records.
    pub bytes: &'a [u8],
}

impl Run<'_> {
    /// These records with application properties in place of those of the same names; without those that become longer
    /// than `message_bytes_max` by it, as messages count ([`Records::largest_message`]).
    #[must_use]
    pub fn with_properties(&self, added: &[(&str, String)], message_bytes_max: usize) -> Records {
        let mut records = Records::new();
        let mut cursor = Cursor {
            data: self.bytes,
            at: 0,
        };
        while let Some(record) = cursor.varint().and_then(|length| cursor.take(length)) {
            let Some(end) = fields_length(record) else { break };
            let mut fields = Cursor {
                data: &record[..end],
                at: 0,
            };
            let mut writer = records.record();
            while let Some(field) = decode_field(&mut fields) {
                match field {
                    EventField::Application(key, _) if added.iter().any(|(name, _)| *name == key) => {}
                    EventField::Application(key, value) => writer.property(key, value),
                    EventField::System(property, value) => writer.system(property, value),
                }
            }
            for (name, value) in added {
                writer.property(name, Some(value));
            }
            if writer.message_size(&record[end + 1..]) <= message_bytes_max {
                let _ = writer.finish(&record[end + 1..]);
            }
        }
        records
    }
}

impl Records {
    /// All records as one run.
    #[must_use]
    pub fn run(&self, endpoints: EndpointSet) -> Run<'_> {
        Run {
            endpoints,
            count: self.count(),
            bytes: self.as_bytes(),
        }
    }

    /// Asks `decide` about each record and puts runs of equal answers into `runs`, in order, leaving out those that go
    /// nowhere. The views have no sequence number and no partition yet.
    pub fn split<'a>(
        &'a self,
        origin: &'a Origin,
        now: Timestamp,
        runs: &mut Vec<Run<'a>>,
        mut decide: impl FnMut(&EventView<'a>) -> EndpointSet,
    ) {
        let data = self.as_bytes();
        let origin = OriginView::of(origin);
        let mut cursor = Cursor { data, at: 0 };
        let mut open: Option<(EndpointSet, u32, usize)> = None;
        loop {
            let start = cursor.at;
            let record = cursor.varint().and_then(|length| cursor.take(length));
            let Some((record, fields)) = record.and_then(|record| Some((record, fields_length(record)?)))
            else {
                break;
            };
            let endpoints = decide(&origin.view(record, fields, now));
            match &mut open {
                Some((same, count, _)) if *same == endpoints => *count += 1,
                _ => {
                    close(open.take(), data, start, runs);
                    open = Some((endpoints, 1, start));
                }
            }
        }
        close(open, data, data.len(), runs);
    }
}

fn close<'a>(open: Option<(EndpointSet, u32, usize)>, data: &'a [u8], end: usize, runs: &mut Vec<Run<'a>>) {
    if let Some((endpoints, count, start)) = open
        && !endpoints.is_empty()
    {
        runs.push(Run {
            endpoints,
            count,
            bytes: &data[start..end],
        });
    }
}
