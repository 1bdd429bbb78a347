//! File uploads and their notifications in SQLite.

use holdfast_model::c2d::{LockToken, Settlement};
use holdfast_model::file::{FileNotification, FileNotificationDelivery, Upload};
use holdfast_model::{Identity, Timestamp};
use holdfast_ports::file::{EXPIRED_UPLOADS_MAX, FILE_NOTIFICATIONS_MAX, FileStore};
use holdfast_ports::{BoxFuture, StoreError, StoreResult};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::fault::Fault;
use super::writer::WriteContext;
use super::{SqliteStore, identity_row};

impl FileStore for SqliteStore {
    fn add_upload(
        &self,
        upload: Upload,
        active_max: usize,
        now: Timestamp,
    ) -> BoxFuture<'_, StoreResult<()>> {
        self.write(move |context| add(context, &upload, active_max, now))
    }

    fn upload<'a>(
        &'a self,
        device: &'a Identity,
        correlation_id: &'a str,
    ) -> BoxFuture<'a, StoreResult<Option<Upload>>> {
        self.read(move |db| {
            let Some(row) = identity_row(db, device)? else {
                return Ok(None);
            };
            let mut statement = db.prepare_cached(
                "SELECT blob_name, begun_at, expires_at FROM uploads WHERE correlation_id = ?1 AND device = ?2",
            )?;
            let found = statement.query_row(params![correlation_id, row], |row| {
                Ok(Upload {
                    correlation_id: correlation_id.to_owned(),
                    device: device.clone(),
                    blob_name: row.get(0)?,
                    begun_at: Timestamp::from_micros(row.get(1)?),
                    expires_at: Timestamp::from_micros(row.get(2)?),
                })
            });
            Ok(found.optional()?)
        })
    }

    fn end_upload<'a>(
        &'a self,
        device: &'a Identity,
        correlation_id: &'a str,
        notification: Option<FileNotification>,
    ) -> BoxFuture<'a, StoreResult<()>> {
        let (device, correlation_id) = (device.clone(), correlation_id.to_owned());
        self.write(move |context| {
            let row = identity_row(&context.db, &device)?.ok_or(StoreError::Missing)?;
            let removed = context
                .db
                .prepare_cached("DELETE FROM uploads WHERE correlation_id = ?1 AND device = ?2")?
                .execute(params![correlation_id, row])?;
            if removed == 0 {
                return Err(StoreError::Missing.into());
            }
            match &notification {
                Some(notification) => tell(&context.db, notification),
                None => Ok(()),
            }
        })
    }

    fn lock_file_notification(
        &self,
        now: Timestamp,
        lock_until: Timestamp,
    ) -> BoxFuture<'_, StoreResult<Option<FileNotificationDelivery>>> {
        Box::pin(async move {
            // Receivers ask every second, and mostly there is nothing: that costs no write.
            let any = self.read(|db| {
                let mut statement = db.prepare_cached("SELECT EXISTS (SELECT 1 FROM file_notifications)")?;
                Ok(statement.query_row([], |row| row.get::<_, bool>(0))?)
            });
            if !any.await? {
                return Ok(None);
            }
            self.write(move |context| lock(context, now, lock_until)).await
        })
    }

    fn settle_file_notification(
        &self,
        lock: LockToken,
        settlement: Settlement,
        delivery_count_max: u32,
    ) -> BoxFuture<'_, StoreResult<()>> {
        self.write(move |context| settle(context, lock, settlement, delivery_count_max))
    }

    fn expire_files(&self, now: Timestamp, uploads_before: Timestamp) -> BoxFuture<'_, StoreResult<u64>> {
        Box::pin(async move {
            let due = self.read(move |db| {
                let mut statement = db.prepare_cached(
                    "SELECT EXISTS (SELECT 1 FROM uploads WHERE expires_at < ?1)
                         OR EXISTS (SELECT 1 FROM file_notifications WHERE expires_at <= ?2)",
                )?;
                let bounds = [uploads_before.as_micros(), now.as_micros()];
                Ok(statement.query_row(bounds, |row| row.get::<_, bool>(0))?)
            });
            if !due.await? {
                return Ok(0);
            }
            self.write(move |context| {
                context
                    .db
                    .prepare_cached("DELETE FROM uploads WHERE expires_at < ?1")?
                    .execute([uploads_before.as_micros()])?;
                drop_expired(&context.db, now)
            })
            .await
        })
    }
}

fn add(context: &WriteContext, upload: &Upload, active_max: usize, now: Timestamp) -> Result<(), Fault> {
    let db = &context.db;
    let row = identity_row(db, &upload.device)?.ok_or(StoreError::Missing)?;
    let active: i64 = db
        .prepare_cached("SELECT count(*) FROM uploads WHERE device = ?1 AND expires_at > ?2")?
        .query_row(params![row, now.as_micros()], |row| row.get(0))?;
    if active as usize >= active_max {
        return Err(StoreError::Full.into());
    }
    db.prepare_cached(
        "DELETE FROM uploads WHERE correlation_id IN (
             SELECT correlation_id FROM uploads WHERE device = ?1 AND expires_at <= ?2
             ORDER BY expires_at DESC LIMIT -1 OFFSET ?3
         )",
    )?
    .execute(params![row, now.as_micros(), EXPIRED_UPLOADS_MAX as i64])?;
    db.prepare_cached("INSERT INTO uploads VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![
            upload.correlation_id,
            row,
            upload.blob_name,
            upload.begun_at.as_micros(),
            upload.expires_at.as_micros(),
        ])?;
    Ok(())
}

fn tell(db: &Connection, notification: &FileNotification) -> Result<(), Fault> {
    db.prepare_cached(
        "INSERT INTO file_notifications
             (device_id, blob_uri, blob_name, blob_size, blob_updated_at, enqueued_at, expires_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute(params![
        notification.device_id,
        notification.blob_uri,
        notification.blob_name,
        notification.blob_size as i64,
        notification.blob_updated_at.as_micros(),
        notification.enqueued_at.as_micros(),
        notification.expires_at.as_micros(),
    ])?;
    // Numbers have no gaps except where notifications were removed, so this keeps at most the bound.
    db.prepare_cached("DELETE FROM file_notifications WHERE number <= ?1")?
        .execute([db.last_insert_rowid() - FILE_NOTIFICATIONS_MAX as i64])?;
    Ok(())
}

fn drop_expired(db: &Connection, now: Timestamp) -> Result<u64, Fault> {
    let dropped = db
        .prepare_cached("DELETE FROM file_notifications WHERE expires_at <= ?1")?
        .execute([now.as_micros()])?;
    Ok(dropped as u64)
}

fn lock(
    context: &WriteContext,
    now: Timestamp,
    lock_until: Timestamp,
) -> Result<Option<FileNotificationDelivery>, Fault> {
    let db = &context.db;
    drop_expired(db, now)?;
    // A lock that has ended is void from here on, whether or not its notification is locked anew.
    db.prepare_cached(
        "UPDATE file_notifications SET lock_nonce = NULL, lock_until = NULL
         WHERE lock_nonce IS NOT NULL AND lock_until <= ?1",
    )?
    .execute([now.as_micros()])?;
    let found = db
        .prepare_cached(
            "SELECT number, delivery_count, device_id, blob_uri, blob_name, blob_size, blob_updated_at, enqueued_at,
                    expires_at
             FROM file_notifications WHERE lock_nonce IS NULL ORDER BY number LIMIT 1",
        )?
        .query_row([], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, u32>(1)?, decode(row)?))
        })
        .optional()?;
    let Some((number, delivery_count, notification)) = found else {
        return Ok(None);
    };
    let lock = LockToken {
        sequence_number: number as u64,
        nonce: context.nonce(),
    };
    db.prepare_cached("UPDATE file_notifications SET lock_nonce = ?2, lock_until = ?3 WHERE number = ?1")?
        .execute(params![number, lock.nonce as i64, lock_until.as_micros()])?;
    Ok(Some(FileNotificationDelivery {
        lock,
        locked_until: lock_until,
        delivery_count,
        notification,
    }))
}

fn settle(
    context: &WriteContext,
    lock: LockToken,
    settlement: Settlement,
    delivery_count_max: u32,
) -> Result<(), Fault> {
    let db = &context.db;
    let key = [lock.sequence_number as i64, lock.nonce as i64];
    let remove = "DELETE FROM file_notifications WHERE number = ?1 AND lock_nonce = ?2";
    let settled = match settlement {
        Settlement::Complete | Settlement::Reject => db.prepare_cached(remove)?.execute(key)?,
        Settlement::Release => db
            .prepare_cached(
                "UPDATE file_notifications SET lock_nonce = NULL, lock_until = NULL
                 WHERE number = ?1 AND lock_nonce = ?2",
            )?
            .execute(key)?,
        Settlement::Abandon => {
            let over = db
                .prepare_cached(&format!("{remove} AND delivery_count + 1 >= ?3"))?
                .execute(params![key[0], key[1], delivery_count_max])?;
            over + db
                .prepare_cached(
                    "UPDATE file_notifications
                     SET lock_nonce = NULL, lock_until = NULL, delivery_count = delivery_count + 1
                     WHERE number = ?1 AND lock_nonce = ?2",
                )?
                .execute(key)?
        }
    };
    match settled {
        0 => Err(StoreError::Missing.into()),
        _ => Ok(()),
    }
}

fn decode(row: &Row<'_>) -> rusqlite::Result<FileNotification> {
    Ok(FileNotification {
        device_id: row.get(2)?,
        blob_uri: row.get(3)?,
        blob_name: row.get(4)?,
        blob_size: row.get::<_, i64>(5)? as u64,
        blob_updated_at: Timestamp::from_micros(row.get(6)?),
        enqueued_at: Timestamp::from_micros(row.get(7)?),
        expires_at: Timestamp::from_micros(row.get(8)?),
    })
}
