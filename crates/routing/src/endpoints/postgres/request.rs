//! From events to rows.

use std::collections::BTreeMap;

use holdfast_ports::endpoint::Outbound;
use holdfast_wire::routed::storage;
use serde_json::value::RawValue;

use crate::endpoints::{device_of, routed};

/// Makes the table. The key is also what makes repeated deliveries harmless.
pub(super) fn create_table(table: &str) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {table} (
            partition integer NOT NULL,
            sequence_number bigint NOT NULL,
            enqueued_at timestamptz NOT NULL,
            source text NOT NULL,
            device_id text NOT NULL,
            module_id text,
            properties jsonb NOT NULL,
            system_properties jsonb NOT NULL,
            body bytea NOT NULL,
            body_json jsonb,
            PRIMARY KEY (partition, sequence_number)
        )"
    )
}

/// Adds rows in one statement, which is one transaction. No conflict is named: the unique index of a TimescaleDB
/// hypertable has the time in it, too.
pub(super) fn insert(table: &str) -> String {
    format!(
        "INSERT INTO {table} (partition, sequence_number, enqueued_at, source, device_id, module_id, properties,
            system_properties, body, body_json)
        SELECT p, s, timestamptz 'epoch' + t * interval '1 microsecond', o, d, m, a::jsonb, y::jsonb, b, j::jsonb
        FROM unnest($1::int4[], $2::int8[], $3::int8[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
            $9::bytea[], $10::text[]) AS rows (p, s, t, o, d, m, a, y, b, j)
        ON CONFLICT DO NOTHING"
    )
}

/// Rows by column, as the statement takes them.
#[derive(Default)]
pub(super) struct Rows<'a> {
    pub(super) partition: Vec<i32>,
    pub(super) sequence_number: Vec<i64>,
    pub(super) enqueued_at: Vec<i64>,
    pub(super) source: Vec<&'static str>,
    pub(super) device_id: Vec<&'a str>,
    pub(super) module_id: Vec<Option<&'a str>>,
    pub(super) properties: Vec<String>,
    pub(super) system_properties: Vec<String>,
    pub(super) body: Vec<&'a [u8]>,
    pub(super) body_json: Vec<Option<&'a str>>,
}

impl<'a> Rows<'a> {
    pub(super) fn of(events: &'a [Outbound<'a>]) -> Self {
        let mut rows = Rows::default();
        for outbound in events {
            let event = routed(outbound);
            let view = outbound.event;
            rows.partition.push(view.partition.into());
            rows.sequence_number.push(view.sequence_number as i64);
            rows.enqueued_at.push(view.enqueued_at.as_micros());
            rows.source.push(view.source.as_str());
            // Tables that people have made may say NOT NULL, as the one made here does.
            rows.device_id.push(device_of(&view).unwrap_or_default());
            rows.module_id.push(view.module_id());
            rows.properties.push(object(event.properties().into_iter()));
            rows.system_properties
                .push(object(storage::system_properties(event).into_iter()));
            rows.body.push(view.body);
            rows.body_json
                .push(event.says_json().then(|| json(view.body)).flatten());
        }
        rows
    }
}

fn object<K: Ord + serde::Serialize, V: serde::Serialize>(members: impl Iterator<Item = (K, V)>) -> String {
    let members: BTreeMap<K, V> = members.collect();
    serde_json::to_string(&members).expect("maps of texts are JSON")
}

/// The body as JSON. The column cannot hold the character zero; the bytes stand in the other one in any case.
fn json(body: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(body).ok()?;
    serde_json::from_str::<&RawValue>(text).ok()?;
    (!text.contains("\\u0000")).then_some(text)
}
