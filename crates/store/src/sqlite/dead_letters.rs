//! Dead letters in SQLite.

use holdfast_model::Timestamp;
use holdfast_ports::dead_letters::{DEAD_LETTERS_MAX, DeadLetter, DeadLetterStore};
use holdfast_ports::{BoxFuture, StoreResult};
use rusqlite::params;

use super::SqliteStore;

impl DeadLetterStore for SqliteStore {
    fn bury(&self, letters: Vec<DeadLetter>) -> BoxFuture<'_, StoreResult<()>> {
        self.write(move |context| {
            let mut replace = context.db.prepare_cached(
                "INSERT OR REPLACE INTO dead_letters (endpoint, partition, sequence_number, identity, at, reason)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?;
            let mut forget = context.db.prepare_cached(
                "DELETE FROM dead_letters WHERE endpoint = ?1 AND number <= (
                     SELECT number FROM dead_letters WHERE endpoint = ?1 ORDER BY number DESC LIMIT 1 OFFSET ?2
                 )",
            )?;
            for letter in &letters {
                replace.execute(params![
                    letter.endpoint,
                    letter.partition,
                    letter.sequence_number as i64,
                    letter.identity,
                    letter.at.as_micros(),
                    letter.reason,
                ])?;
            }
            let mut endpoints: Vec<&str> = letters.iter().map(|letter| letter.endpoint.as_str()).collect();
            endpoints.sort_unstable();
            endpoints.dedup();
            for endpoint in endpoints {
                forget.execute(params![endpoint, DEAD_LETTERS_MAX as i64])?;
            }
            Ok(())
        })
    }

    fn dead_letters<'a>(
        &'a self,
        endpoint: &'a str,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<DeadLetter>>> {
        self.read(move |db| {
            let mut statement = db.prepare_cached(
                "SELECT partition, sequence_number, identity, at, reason FROM dead_letters
                 WHERE endpoint = ?1 ORDER BY number DESC LIMIT ?2",
            )?;
            let letters = statement.query_map(params![endpoint, limit as i64], |row| {
                Ok(DeadLetter {
                    endpoint: endpoint.to_owned(),
                    partition: row.get(0)?,
                    sequence_number: row.get::<_, i64>(1)? as u64,
                    identity: row.get(2)?,
                    at: Timestamp::from_micros(row.get(3)?),
                    reason: row.get(4)?,
                })
            })?;
            Ok(letters.collect::<Result<_, _>>()?)
        })
    }

    fn count_dead_letters<'a>(&'a self, endpoint: &'a str) -> BoxFuture<'a, StoreResult<u64>> {
        self.read(move |db| {
            let count: i64 = db
                .prepare_cached("SELECT count(*) FROM dead_letters WHERE endpoint = ?1")?
                .query_row([endpoint], |row| row.get(0))?;
            Ok(count as u64)
        })
    }

    fn remove_dead_letters<'a>(
        &'a self,
        endpoint: &'a str,
        events: Vec<(u16, u64)>,
    ) -> BoxFuture<'a, StoreResult<u64>> {
        let endpoint = endpoint.to_owned();
        self.write(move |context| {
            let mut remove = context.db.prepare_cached(
                "DELETE FROM dead_letters WHERE endpoint = ?1 AND partition = ?2 AND sequence_number = ?3",
            )?;
            let mut removed = 0;
            for (partition, sequence_number) in &events {
                removed += remove.execute(params![endpoint, partition, *sequence_number as i64])?;
            }
            Ok(removed as u64)
        })
    }

    fn clear_dead_letters<'a>(&'a self, endpoint: &'a str) -> BoxFuture<'a, StoreResult<u64>> {
        let endpoint = endpoint.to_owned();
        self.write(move |context| {
            let cleared = context
                .db
                .prepare_cached("DELETE FROM dead_letters WHERE endpoint = ?1")?
                .execute([endpoint])?;
            Ok(cleared as u64)
        })
    }
}
