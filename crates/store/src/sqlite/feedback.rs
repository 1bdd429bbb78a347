//! Feedback of cloud-to-device messages in SQLite.

use holdfast_model::Timestamp;
use holdfast_model::c2d::{FeedbackBatch, FeedbackRecord, FeedbackStatus, LockToken};
use holdfast_model::limits::FEEDBACK_BATCH_MAX;
use holdfast_observe::Event as _;
use holdfast_ports::StoreError;
use rusqlite::{Row, params};

use super::events::FeedbackDropped;
use super::fault::Fault;
use super::writer::WriteContext;

/// Most feedback records kept. Nobody is obliged to fetch feedback, so the oldest make room.
const FEEDBACK_RECORDS_MAX: i64 = 100_000;

/// How a message ended.
pub(super) struct Outcome<'a> {
    pub(super) status: FeedbackStatus,
    pub(super) at: Timestamp,
    pub(super) message_id: &'a str,
    pub(super) device_id: &'a str,
    pub(super) generation_id: i64,
}

/// Writes a feedback record.
pub(super) fn add(context: &WriteContext, outcome: &Outcome<'_>) -> Result<(), Fault> {
    context
        .db
        .prepare_cached(
            "INSERT INTO feedback (enqueued_at, status, message_id, device_id, generation_id)
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            outcome.at.as_micros(),
            name(outcome.status),
            outcome.message_id,
            outcome.device_id,
            outcome.generation_id,
        ])?;
    // Numbers have no gaps except where records were removed, so this keeps at most the bound.
    let dropped = context
        .db
        .prepare_cached("DELETE FROM feedback WHERE number <= ?1")?
        .execute([context.db.last_insert_rowid() - FEEDBACK_RECORDS_MAX])?;
    if dropped > 0 {
        FeedbackDropped { records: dropped }.emit(&context.metrics);
    }
    Ok(())
}

/// Locks the next batch, if it is full or ripe.
pub(super) fn lock_batch(
    context: &WriteContext,
    now: Timestamp,
    lock_until: Timestamp,
    ripe_before: Timestamp,
) -> Result<Option<FeedbackBatch>, Fault> {
    // A lock that has ended is void from here on, whether or not its records are locked anew.
    context
        .db
        .prepare_cached(
            "UPDATE feedback SET lock_batch = NULL, lock_nonce = NULL, lock_until = NULL
             WHERE lock_nonce IS NOT NULL AND lock_until <= ?1",
        )?
        .execute([now.as_micros()])?;
    let ready = ready(context)?;
    let Some((first, oldest)) = ready.first() else {
        return Ok(None);
    };
    if ready.len() < FEEDBACK_BATCH_MAX && oldest.enqueued_time_utc >= ripe_before {
        return Ok(None);
    }
    let lock = LockToken {
        sequence_number: *first as u64,
        nonce: context.nonce(),
    };
    let mut statement = context.db.prepare_cached(
        "UPDATE feedback SET lock_batch = ?2, lock_nonce = ?3, lock_until = ?4 WHERE number = ?1",
    )?;
    for (number, _) in &ready {
        statement.execute(params![number, first, lock.nonce as i64, lock_until.as_micros()])?;
    }
    Ok(Some(FeedbackBatch {
        lock,
        locked_until: lock_until,
        records: ready.into_iter().map(|(_, record)| record).collect(),
    }))
}

/// Removes or returns a locked batch.
pub(super) fn settle_batch(context: &WriteContext, lock: LockToken, complete: bool) -> Result<(), Fault> {
    let sql = if complete {
        "DELETE FROM feedback WHERE lock_nonce = ?1 AND lock_batch = ?2"
    } else {
        "UPDATE feedback SET lock_batch = NULL, lock_nonce = NULL, lock_until = NULL
         WHERE lock_nonce = ?1 AND lock_batch = ?2"
    };
    let settled = context
        .db
        .prepare_cached(sql)?
        .execute([lock.nonce as i64, lock.sequence_number as i64])?;
    if settled == 0 {
        return Err(StoreError::Missing.into());
    }
    Ok(())
}

/// The oldest records that nobody holds, a batch at most, with their numbers.
fn ready(context: &WriteContext) -> Result<Vec<(i64, FeedbackRecord)>, Fault> {
    let mut statement = context.db.prepare_cached(
        "SELECT number, enqueued_at, status, message_id, device_id, generation_id FROM feedback
         WHERE lock_nonce IS NULL ORDER BY number LIMIT ?1",
    )?;
    let mut rows = statement.query([FEEDBACK_BATCH_MAX as i64])?;
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        records.push((row.get(0)?, decode(row)?));
    }
    Ok(records)
}

fn decode(row: &Row<'_>) -> Result<FeedbackRecord, Fault> {
    let stored: String = row.get(2)?;
    let status_code = STATUSES
        .into_iter()
        .find(|status| name(*status) == stored)
        .ok_or_else(|| Fault::content("feedback status", format!("unknown status {stored}")))?;
    Ok(FeedbackRecord {
        original_message_id: row.get(3)?,
        enqueued_time_utc: Timestamp::from_micros(row.get(1)?),
        status_code,
        // IoT Hub repeats the status code as the description.
        description: stored,
        device_id: row.get(4)?,
        device_generation_id: (row.get::<_, i64>(5)? as u64).to_string(),
    })
}

const STATUSES: [FeedbackStatus; 5] = [
    FeedbackStatus::Success,
    FeedbackStatus::Expired,
    FeedbackStatus::DeliveryCountExceeded,
    FeedbackStatus::Rejected,
    FeedbackStatus::Purged,
];

fn name(status: FeedbackStatus) -> &'static str {
    match status {
        FeedbackStatus::Success => "Success",
        FeedbackStatus::Expired => "Expired",
        FeedbackStatus::DeliveryCountExceeded => "DeliveryCountExceeded",
        FeedbackStatus::Rejected => "Rejected",
        FeedbackStatus::Purged => "Purged",
    }
}
