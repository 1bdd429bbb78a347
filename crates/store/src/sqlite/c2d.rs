//! Cloud-to-device queues in SQLite.

use bytes::Bytes;
use holdfast_model::c2d::{
    AckMode, C2dDelivery, C2dMessage, FeedbackBatch, FeedbackStatus, LockToken, Settlement,
};
use holdfast_model::message::{Message, SystemProperty};
use holdfast_model::{Identity, Timestamp};
use holdfast_ports::queue::{C2dLimits, C2dQueue};
use holdfast_ports::{BoxFuture, StoreError, StoreResult};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::fault::Fault;
use super::feedback::{self, Outcome};
use super::writer::WriteContext;
use super::{SqliteStore, identity_row};

/// Messages that one transaction of [`C2dQueue::expire`] dead-letters, so that a sweep does not hold up the others.
const EXPIRE_BATCH: usize = 256;

/// Columns of an [`Ended`] message; shared by every statement that returns one.
macro_rules! ended {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            " messages.sequence_number, messages.ack, messages.system, messages.generation_id,
              (SELECT device_id FROM identities WHERE identities.id = messages.identity) ",
            $after
        )
    };
}

impl C2dQueue for SqliteStore {
    fn enqueue(&self, message: C2dMessage, limits: C2dLimits) -> BoxFuture<'_, StoreResult<u64>> {
        self.write_single(move |context| {
            let row = identity_row(&context.db, &message.device)?.ok_or(StoreError::Missing)?;
            if depth(&context.db, row)? >= limits.depth_max as u64 {
                return Err(StoreError::Full.into());
            }
            insert(&context.db, row, &message)
        })
    }

    fn lock_next<'a>(
        &'a self,
        device: &'a Identity,
        max: usize,
        owner: u64,
        now: Timestamp,
        lock_until: Timestamp,
    ) -> BoxFuture<'a, StoreResult<Vec<C2dDelivery>>> {
        let device = device.clone();
        self.write(move |context| {
            let Some(row) = identity_row(&context.db, &device)? else {
                return Ok(Vec::new());
            };
            let (mut deliveries, expired) = select_ready(context, row, &device, max, now)?;
            for message in &expired {
                end(context, message, FeedbackStatus::Expired, now)?;
            }
            for delivery in &mut deliveries {
                delivery.lock.nonce = context.nonce();
                delivery.locked_until = lock_until;
                context
                    .db
                    .prepare_cached(
                        "UPDATE messages SET delivered = 1, lock_nonce = ?2, lock_owner = ?3, lock_until = ?4,
                                             lock_boot = ?5
                         WHERE sequence_number = ?1",
                    )?
                    .execute(params![
                        delivery.lock.sequence_number as i64,
                        delivery.lock.nonce as i64,
                        owner as i64,
                        lock_until.as_micros(),
                        context.boot,
                    ])?;
            }
            Ok(deliveries)
        })
    }

    fn settle<'a>(
        &'a self,
        device: &'a Identity,
        lock: LockToken,
        settlement: Settlement,
        limits: C2dLimits,
        now: Timestamp,
    ) -> BoxFuture<'a, StoreResult<()>> {
        let device = device.clone();
        self.write(move |context| {
            let row = identity_row(&context.db, &device)?.ok_or(StoreError::Missing)?;
            let (message, delivery_count) = find_locked(context, row, lock)?.ok_or(StoreError::Missing)?;
            let abandons = delivery_count + u32::from(settlement == Settlement::Abandon);
            match settlement {
                Settlement::Complete => end(context, &message, FeedbackStatus::Success, now),
                Settlement::Reject => end(context, &message, FeedbackStatus::Rejected, now),
                Settlement::Abandon if abandons >= limits.delivery_count_max => {
                    end(context, &message, FeedbackStatus::DeliveryCountExceeded, now)
                }
                Settlement::Abandon | Settlement::Release => {
                    context
                        .db
                        .prepare_cached(
                            "UPDATE messages SET delivery_count = ?2, lock_nonce = NULL, lock_owner = NULL,
                                                 lock_until = NULL, lock_boot = NULL
                             WHERE sequence_number = ?1",
                        )?
                        .execute(params![message.sequence_number, abandons])?;
                    Ok(())
                }
            }
        })
    }

    fn release<'a>(&'a self, device: &'a Identity, owner: u64) -> BoxFuture<'a, StoreResult<()>> {
        let device = device.clone();
        self.write_single(move |context| {
            let Some(row) = identity_row(&context.db, &device)? else {
                return Ok(());
            };
            context
                .db
                .prepare_cached(
                    "UPDATE messages SET lock_nonce = NULL, lock_owner = NULL, lock_until = NULL, lock_boot = NULL
                     WHERE identity = ?1 AND lock_owner = ?2",
                )?
                .execute(params![row, owner as i64])?;
            Ok(())
        })
    }

    fn purge<'a>(&'a self, device: &'a Identity, now: Timestamp) -> BoxFuture<'a, StoreResult<u64>> {
        let device = device.clone();
        self.write(move |context| {
            let Some(row) = identity_row(&context.db, &device)? else {
                return Ok(0);
            };
            let sql = ended!(
                "SELECT",
                "FROM messages WHERE identity = ?1 ORDER BY sequence_number"
            );
            let mut statement = context.db.prepare_cached(sql)?;
            let messages = Ended::collect(statement.query([row])?)?;
            for message in &messages {
                end(context, message, FeedbackStatus::Purged, now)?;
            }
            Ok(messages.len() as u64)
        })
    }

    fn depth<'a>(&'a self, device: &'a Identity) -> BoxFuture<'a, StoreResult<u64>> {
        self.read(move |db| match identity_row(db, device)? {
            Some(row) => depth(db, row),
            None => Ok(0),
        })
    }

    fn expire(&self, now: Timestamp) -> BoxFuture<'_, StoreResult<u64>> {
        Box::pin(async move {
            let mut total = 0;
            loop {
                let batch = self.write(move |context| expire_batch(context, now)).await?;
                total += batch as u64;
                if batch < EXPIRE_BATCH {
                    return Ok(total);
                }
            }
        })
    }

    fn lock_feedback(
        &self,
        now: Timestamp,
        lock_until: Timestamp,
        ripe_before: Timestamp,
    ) -> BoxFuture<'_, StoreResult<Option<FeedbackBatch>>> {
        self.write(move |context| feedback::lock_batch(context, now, lock_until, ripe_before))
    }

    fn settle_feedback(&self, lock: LockToken, complete: bool) -> BoxFuture<'_, StoreResult<()>> {
        self.write(move |context| feedback::settle_batch(context, lock, complete))
    }
}

/// What is left of a message whose life ends.
struct Ended {
    sequence_number: i64,
    ack: AckMode,
    message_id: String,
    generation_id: i64,
    device_id: String,
}

impl Ended {
    /// Reads the columns of [`ended!`].
    fn decode(row: &Row<'_>) -> Result<Self, Fault> {
        Ok(Ended {
            sequence_number: row.get(0)?,
            ack: decode_ack(row, 1)?,
            message_id: decode_system(row, 2)?
                .into_iter()
                .find(|(property, _)| *property == SystemProperty::MessageId)
                .map(|(_, value)| value)
                .unwrap_or_default(),
            generation_id: row.get(3)?,
            device_id: row.get(4)?,
        })
    }

    fn collect(mut rows: rusqlite::Rows<'_>) -> Result<Vec<Self>, Fault> {
        let mut messages = Vec::new();
        while let Some(row) = rows.next()? {
            messages.push(Self::decode(row)?);
        }
        Ok(messages)
    }
}

pub(super) fn depth(db: &Connection, row: i64) -> Result<u64, Fault> {
    let count: i64 = db
        .prepare_cached("SELECT count(*) FROM messages WHERE identity = ?1")?
        .query_row([row], |row| row.get(0))?;
    Ok(count as u64)
}

fn insert(db: &Connection, row: i64, message: &C2dMessage) -> Result<u64, Fault> {
    let system: Vec<(u8, &str)> = message
        .message
        .system
        .iter()
        .map(|(property, value)| (*property as u8, value.as_str()))
        .collect();
    let encode = |result: serde_json::Result<String>| {
        result.map_err(|error| Fault::content("message properties", error))
    };
    db.prepare_cached(
        "INSERT INTO messages (identity, generation_id, ack, enqueued_at, expires_at, system, properties, body)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?
    .execute(params![
        row,
        message.generation_id as i64,
        message.ack.as_str(),
        message.enqueued_at.as_micros(),
        message.expires_at.as_micros(),
        encode(serde_json::to_string(&system))?,
        encode(serde_json::to_string(&message.message.properties))?,
        &message.message.body[..],
    ])?;
    Ok(db.last_insert_rowid() as u64)
}

/// Up to `max` ready messages, oldest first, and the expired ones met on the way. Nothing is changed; the nonces and
/// lock times of the deliveries are still to be set.
fn select_ready(
    context: &WriteContext,
    row: i64,
    device: &Identity,
    max: usize,
    now: Timestamp,
) -> Result<(Vec<C2dDelivery>, Vec<Ended>), Fault> {
    let (mut deliveries, mut expired) = (Vec::new(), Vec::new());
    // The lock of an earlier process is void.
    let sql = ended!(
        "SELECT",
        ", expires_at, delivery_count, delivered, enqueued_at, properties, body
         FROM messages
         WHERE identity = ?1 AND (lock_nonce IS NULL OR lock_boot <> ?2 OR lock_until <= ?3)
         ORDER BY sequence_number"
    );
    let mut statement = context.db.prepare_cached(sql)?;
    let mut rows = statement.query(params![row, context.boot, now.as_micros()])?;
    while deliveries.len() < max
        && let Some(row) = rows.next()?
    {
        let expires_at = Timestamp::from_micros(row.get(5)?);
        if expires_at <= now {
            expired.push(Ended::decode(row)?);
            continue;
        }
        deliveries.push(C2dDelivery {
            lock: LockToken {
                sequence_number: row.get::<_, i64>(0)? as u64,
                nonce: 0,
            },
            locked_until: now,
            delivery_count: row.get(6)?,
            redelivered: row.get(7)?,
            message: C2dMessage {
                device: device.clone(),
                generation_id: row.get::<_, i64>(3)? as u64,
                message: Message {
                    system: decode_system(row, 2)?,
                    properties: decode_properties(row, 9)?,
                    body: Bytes::from(row.get::<_, Vec<u8>>(10)?),
                },
                ack: decode_ack(row, 1)?,
                enqueued_at: Timestamp::from_micros(row.get(8)?),
                expires_at,
                input: None,
            },
        });
    }
    Ok((deliveries, expired))
}

/// The message that a token names, and how often it was abandoned.
fn find_locked(context: &WriteContext, row: i64, lock: LockToken) -> Result<Option<(Ended, u32)>, Fault> {
    let sql = ended!(
        "SELECT",
        ", delivery_count FROM messages
         WHERE sequence_number = ?1 AND identity = ?2 AND lock_nonce = ?3 AND lock_boot = ?4"
    );
    context
        .db
        .prepare_cached(sql)?
        .query_row(
            params![lock.sequence_number as i64, row, lock.nonce as i64, context.boot],
            |row| Ok(Ended::decode(row).and_then(|message| Ok((message, row.get(5)?)))),
        )
        .optional()?
        .transpose()
}

fn expire_batch(context: &WriteContext, now: Timestamp) -> Result<usize, Fault> {
    // A message that a receiver holds locked lives until it is settled or its lock ends.
    let sql = ended!(
        "SELECT",
        "FROM messages
         WHERE expires_at <= ?1 AND (lock_nonce IS NULL OR lock_boot <> ?2 OR lock_until <= ?1)
         ORDER BY expires_at, sequence_number LIMIT ?3"
    );
    let mut statement = context.db.prepare_cached(sql)?;
    let messages =
        Ended::collect(statement.query(params![now.as_micros(), context.boot, EXPIRE_BATCH as i64])?)?;
    for message in &messages {
        end(context, message, FeedbackStatus::Expired, now)?;
    }
    Ok(messages.len())
}

/// Removes a message and writes the feedback its sender wants.
fn end(context: &WriteContext, message: &Ended, status: FeedbackStatus, now: Timestamp) -> Result<(), Fault> {
    context
        .db
        .prepare_cached("DELETE FROM messages WHERE sequence_number = ?1")?
        .execute([message.sequence_number])?;
    if message.ack.wants(status) {
        feedback::add(
            context,
            &Outcome {
                status,
                at: now,
                message_id: &message.message_id,
                device_id: &message.device_id,
                generation_id: message.generation_id,
            },
        )?;
    }
    Ok(())
}

fn text<'r>(row: &'r Row<'_>, column: usize, what: &'static str) -> Result<&'r str, Fault> {
    row.get_ref(column)?
        .as_str()
        .map_err(|error| Fault::content(what, error))
}

fn decode_ack(row: &Row<'_>, column: usize) -> Result<AckMode, Fault> {
    AckMode::parse(text(row, column, "ack mode")?).ok_or_else(|| Fault::content("ack mode", "unknown"))
}

fn decode_system(row: &Row<'_>, column: usize) -> Result<Vec<(SystemProperty, String)>, Fault> {
    let stored: Vec<(u8, String)> = serde_json::from_str(text(row, column, "system properties")?)
        .map_err(|error| Fault::content("system properties", error))?;
    stored
        .into_iter()
        .map(|(number, value)| {
            SystemProperty::from_stored(number)
                .map(|property| (property, value))
                .ok_or_else(|| Fault::content("system properties", format!("unknown number {number}")))
        })
        .collect()
}

fn decode_properties(row: &Row<'_>, column: usize) -> Result<Vec<(String, Option<String>)>, Fault> {
    serde_json::from_str(text(row, column, "message properties")?)
        .map_err(|error| Fault::content("message properties", error))
}
