//! The outbox in SQLite.
//!
//! Numbers are row numbers: a new row gets one above the highest there is, and the highest row is removed only together
//! with all below it, so they grow in the order of the changes.

use holdfast_model::Identity;
use holdfast_model::event::{EventSource, Records};
use holdfast_ports::outbox::{OUTBOX_EVENTS_MAX, OutboxEvent, OutboxStore, Waiting, full};
use holdfast_ports::{BoxFuture, StoreResult};
use rusqlite::{Connection, Row, params};

use super::SqliteStore;
use super::fault::Fault;

impl OutboxStore for SqliteStore {
    fn add_to_outbox(&self, events: Vec<OutboxEvent>) -> BoxFuture<'_, StoreResult<()>> {
        self.write(move |context| insert(&context.db, &events))
    }

    fn outbox(&self, limit: usize, bytes_max: usize) -> BoxFuture<'_, StoreResult<Vec<Waiting>>> {
        self.read(move |db| {
            let mut statement = db.prepare_cached(
                "SELECT number, source, identity, record, twin FROM outbox ORDER BY number LIMIT ?1",
            )?;
            let mut rows = statement.query([i64::try_from(limit).unwrap_or(i64::MAX)])?;
            let (mut waiting, mut bytes) = (Vec::new(), 0);
            while bytes < bytes_max
                && let Some(row) = rows.next()?
            {
                let next = decode(row)?;
                bytes += next.event.size();
                waiting.push(next);
            }
            Ok(waiting)
        })
    }

    fn remove_from_outbox(&self, number: u64) -> BoxFuture<'_, StoreResult<()>> {
        self.write_single(move |context| {
            context
                .db
                .prepare_cached("DELETE FROM outbox WHERE number <= ?1")?
                .execute([number as i64])?;
            Ok(())
        })
    }
}

/// Adds events in the transaction that is under way.
pub(super) fn insert(db: &Connection, events: &[OutboxEvent]) -> Result<(), Fault> {
    if events.is_empty() {
        return Ok(());
    }
    // Two looks at the ends of the table, since one for both would read all of it.
    let waiting: i64 = db
        .prepare_cached(
            "SELECT coalesce((SELECT max(number) FROM outbox) - (SELECT min(number) FROM outbox) + 1, 0)",
        )?
        .query_row([], |row| row.get(0))?;
    if waiting as u64 + events.len() as u64 > OUTBOX_EVENTS_MAX {
        return Err(full().into());
    }
    for event in events {
        db.prepare_cached("INSERT INTO outbox (source, identity, record, twin) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![
                event.source as u8,
                event.identity.as_str(),
                event.records.as_bytes(),
                event.twin,
            ])?;
    }
    Ok(())
}

fn decode(row: &Row<'_>) -> Result<Waiting, Fault> {
    let unreadable = |problem: &str| Fault::content("event of the outbox", problem);
    let source = EventSource::from_stored(row.get(1)?).ok_or_else(|| unreadable("unknown source"))?;
    let identity: String = row.get(2)?;
    let records = Records::from_stored(row.get(3)?).ok_or_else(|| unreadable("malformed record"))?;
    Ok(Waiting {
        number: row.get::<_, i64>(0)? as u64,
        event: OutboxEvent {
            source,
            identity: Identity::parse(&identity).map_err(|error| unreadable(&error.message))?,
            records,
            twin: row.get(4)?,
        },
    })
}
