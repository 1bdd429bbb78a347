//! Consumer groups and checkpoints in SQLite.

use holdfast_ports::settings::{CheckpointStore, DEFAULT_CONSUMER_GROUP};
use holdfast_ports::{BoxFuture, StoreError, StoreResult};
use rusqlite::{OptionalExtension as _, params};

use super::SqliteStore;

/// Most consumer groups, the default one included.
const CONSUMER_GROUPS_MAX: i64 = 20;

impl CheckpointStore for SqliteStore {
    fn consumer_groups(&self) -> BoxFuture<'_, StoreResult<Vec<String>>> {
        self.read(|db| {
            let mut statement =
                db.prepare_cached("SELECT name FROM consumer_groups ORDER BY name <> ?1, name")?;
            let names = statement.query_map([DEFAULT_CONSUMER_GROUP], |row| row.get(0))?;
            Ok(names.collect::<Result<_, _>>()?)
        })
    }

    fn create_consumer_group<'a>(&'a self, name: &'a str) -> BoxFuture<'a, StoreResult<()>> {
        let name = name.to_owned();
        self.write_single(move |context| {
            let (same, all): (i64, i64) = context
                .db
                .prepare_cached("SELECT count(*) FILTER (WHERE name = ?1), count(*) FROM consumer_groups")?
                .query_row([&name], |row| Ok((row.get(0)?, row.get(1)?)))?;
            if same > 0 {
                return Err(StoreError::Exists.into());
            }
            if all >= CONSUMER_GROUPS_MAX {
                return Err(StoreError::Full.into());
            }
            context
                .db
                .prepare_cached("INSERT INTO consumer_groups (name) VALUES (?1)")?
                .execute([name])?;
            Ok(())
        })
    }

    fn delete_consumer_group<'a>(&'a self, name: &'a str) -> BoxFuture<'a, StoreResult<()>> {
        let name = name.to_owned();
        self.write(move |context| {
            let deleted = context
                .db
                .prepare_cached("DELETE FROM consumer_groups WHERE name = ?1 AND name <> ?2")?
                .execute([name.as_str(), DEFAULT_CONSUMER_GROUP])?;
            if deleted == 0 {
                return Err(StoreError::Missing.into());
            }
            context
                .db
                .prepare_cached("DELETE FROM checkpoints WHERE reader = ?1")?
                .execute([name])?;
            Ok(())
        })
    }

    fn checkpoint<'a>(&'a self, reader: &'a str, partition: u16) -> BoxFuture<'a, StoreResult<Option<u64>>> {
        self.read(move |db| {
            let next: Option<i64> = db
                .prepare_cached("SELECT next FROM checkpoints WHERE reader = ?1 AND partition = ?2")?
                .query_row(params![reader, partition], |row| row.get(0))
                .optional()?;
            Ok(next.map(|next| next as u64))
        })
    }

    fn save_checkpoint<'a>(
        &'a self,
        reader: &'a str,
        partition: u16,
        next: u64,
    ) -> BoxFuture<'a, StoreResult<()>> {
        let reader = reader.to_owned();
        self.write_single(move |context| {
            context
                .db
                .prepare_cached(
                    "INSERT OR REPLACE INTO checkpoints (reader, partition, next) VALUES (?1, ?2, ?3)",
                )?
                .execute(params![reader, partition, next as i64])?;
            Ok(())
        })
    }

    fn delete_checkpoints<'a>(&'a self, reader: &'a str) -> BoxFuture<'a, StoreResult<()>> {
        let reader = reader.to_owned();
        self.write_single(move |context| {
            context
                .db
                .prepare_cached("DELETE FROM checkpoints WHERE reader = ?1")?
                .execute([reader])?;
            Ok(())
        })
    }
}
