//! The outbox in SQLite.
//!
//! Numbers are row numbers: a new row gets one above the highest there is, and the highest row is removed only together
//! with all below it, so they grow in the order of the changes. A row that cannot be read, which this program never
//! writes, would keep all behind it from the log; it is set aside under a number below zero, where somebody can look at it.

use holdfast_model::Identity;
use holdfast_model::event::{EventSource, Records};
use holdfast_observe::Event as _;
use holdfast_ports::outbox::{OUTBOX_EVENTS_MAX, OutboxEvent, OutboxStore, Waiting, full};
use holdfast_ports::{BoxFuture, StoreResult};
use rusqlite::{Connection, Row, params};

use super::SqliteStore;
use super::events::OutboxRowSetAside;
use super::fault::Fault;
use super::writer::WriteContext;

/// Most rows that are kept although they cannot be read.
const ASIDE_MAX: i64 = 1_000;

impl OutboxStore for SqliteStore {
    fn add_to_outbox(&self, events: Vec<OutboxEvent>) -> BoxFuture<'_, StoreResult<()>> {
        self.write(move |context| insert(&context.db, &events))
    }

    fn outbox(&self, limit: usize, bytes_max: usize) -> BoxFuture<'_, StoreResult<Vec<Waiting>>> {
        Box::pin(async move {
            loop {
                let page = self.read(move |db| page(db, limit, bytes_max)).await?;
                if page.unreadable.is_empty() {
                    return Ok(page.waiting);
                }
                let unreadable = page.unreadable;
                self.write(move |context| set_aside(context, &unreadable)).await?;
            }
        })
    }

    fn remove_from_outbox(&self, number: u64) -> BoxFuture<'_, StoreResult<()>> {
        self.write_single(move |context| {
            context
                .db
                .prepare_cached("DELETE FROM outbox WHERE number BETWEEN 1 AND ?1")?
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
            "SELECT coalesce((SELECT max(number) FROM outbox WHERE number > 0)
                - (SELECT min(number) FROM outbox WHERE number > 0) + 1, 0)",
        )?
        .query_row([], |row| row.get(0))?;
    if waiting as u64 + events.len() as u64 > OUTBOX_EVENTS_MAX {
        return Err(full().into());
    }
    for event in events {
        // Numbered here: beside nothing but rows set aside, SQLite's own number would be below zero.
        db.prepare_cached(
            "INSERT INTO outbox (number, source, identity, record, twin)
             VALUES ((SELECT coalesce(max(number), 0) + 1 FROM outbox WHERE number > 0), ?1, ?2, ?3, ?4)",
        )?
        .execute(params![
            event.source as u8,
            event.identity.as_str(),
            event.records.as_bytes(),
            event.twin,
        ])?;
    }
    Ok(())
}

/// What a look at the outbox finds.
#[derive(Default)]
struct Page {
    waiting: Vec<Waiting>,
    /// Numbers of rows that cannot be read, and why.
    unreadable: Vec<(i64, String)>,
}

fn page(db: &Connection, limit: usize, bytes_max: usize) -> Result<Page, Fault> {
    let mut statement = db.prepare_cached(
        "SELECT number, source, identity, record, twin FROM outbox WHERE number > 0 ORDER BY number LIMIT ?1",
    )?;
    let mut rows = statement.query([i64::try_from(limit).unwrap_or(i64::MAX)])?;
    let (mut page, mut bytes) = (Page::default(), 0);
    while bytes < bytes_max
        && let Some(row) = rows.next()?
    {
        match decode(row) {
            Ok(next) => {
                bytes += next.event.size();
                page.waiting.push(next);
            }
            Err(Fault::Content { problem, .. }) => page.unreadable.push((row.get(0)?, problem)),
            Err(other) => return Err(other),
        }
    }
    Ok(page)
}

/// Moves rows below zero, the newest lowest; the oldest of them make room beyond [`ASIDE_MAX`].
fn set_aside(context: &WriteContext, unreadable: &[(i64, String)]) -> Result<(), Fault> {
    let db = &context.db;
    for (number, problem) in unreadable {
        db.prepare_cached(
            "UPDATE outbox SET number = (SELECT min(coalesce(min(number), 0), 0) - 1 FROM outbox) WHERE number = ?1",
        )?
        .execute([number])?;
        OutboxRowSetAside {
            number: *number,
            problem,
        }
        .emit(&context.metrics);
    }
    db.prepare_cached(
        "DELETE FROM outbox WHERE number BETWEEN (SELECT min(number) FROM outbox) + ?1 AND -1",
    )?
    .execute([ASIDE_MAX])?;
    Ok(())
}

fn decode(row: &Row<'_>) -> Result<Waiting, Fault> {
    let unreadable = |problem: &str| Fault::content("event of the outbox", problem);
    let source = u8::try_from(row.get::<_, i64>(1)?).ok();
    let source = source
        .and_then(EventSource::from_stored)
        .ok_or_else(|| unreadable("unknown source"))?;
    let identity: String = row.get(2)?;
    // The log takes no empty ones.
    let records = Records::from_stored(row.get(3)?).filter(|records| !records.is_empty());
    let records = records.ok_or_else(|| unreadable("malformed record"))?;
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
