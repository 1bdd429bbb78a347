//! Configurations in SQLite: JSON documents by id. What they show in twins is indexed by triggers (see the schema).

use holdfast_model::Identity;
use holdfast_model::configuration::Configuration;
use holdfast_ports::configuration::{ConfigurationStore, ConfiguredPage, Reach, ReachCounts};
use holdfast_ports::enrollment::Expected;
use holdfast_ports::{BoxFuture, StoreError, StoreResult};
use rusqlite::{OptionalExtension as _, params};

use super::SqliteStore;
use super::fault::Fault;
use super::writer::WriteContext;

impl ConfigurationStore for SqliteStore {
    fn configurations(&self) -> BoxFuture<'_, StoreResult<Vec<Configuration>>> {
        self.read(|db| {
            let mut statement = db.prepare_cached("SELECT document FROM configurations ORDER BY id")?;
            let mut rows = statement.query([])?;
            let mut all = Vec::new();
            while let Some(row) = rows.next()? {
                let text = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
                let read = serde_json::from_str(text);
                all.push(read.map_err(|error| Fault::content("configuration", error))?);
            }
            Ok(all)
        })
    }

    fn put_configuration(
        &self,
        configuration: Configuration,
        expected: Expected,
    ) -> BoxFuture<'_, StoreResult<()>> {
        self.write_single(move |context| {
            expected.check(version(context, &configuration.id)?)?;
            let document = serde_json::to_string(&configuration)
                .map_err(|error| Fault::content("configuration", error))?;
            context
                .db
                .prepare_cached(
                    "INSERT OR REPLACE INTO configurations (id, version, document) VALUES (?1, ?2, ?3)",
                )?
                .execute(params![configuration.id, configuration.version as i64, document])?;
            Ok(())
        })
    }

    fn delete_configuration<'a>(&'a self, id: &'a str, expected: Expected) -> BoxFuture<'a, StoreResult<()>> {
        let id = id.to_owned();
        self.write_single(move |context| {
            let present = version(context, &id)?.ok_or(StoreError::Missing)?;
            expected.check(Some(present))?;
            context
                .db
                .prepare_cached("DELETE FROM configurations WHERE id = ?1")?
                .execute([&id])?;
            Ok(())
        })
    }

    fn configured<'a>(
        &'a self,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<ConfiguredPage>> {
        self.read(move |db| {
            let after: i64 = match after {
                None => 0,
                Some(text) => text
                    .parse()
                    .map_err(|_| Fault::content("page", "it is none of this store"))?,
            };
            let mut statement = db.prepare_cached(
                "SELECT identities.id, device_id, module_id
                 FROM (SELECT DISTINCT id FROM twin_configurations WHERE id > ?1 ORDER BY id LIMIT ?2) AS page
                 JOIN identities ON identities.id = page.id ORDER BY identities.id",
            )?;
            let mut rows = statement.query(params![after, i64::try_from(limit).unwrap_or(i64::MAX)])?;
            let (mut identities, mut last) = (Vec::new(), None);
            while let Some(row) = rows.next()? {
                last = Some(row.get::<_, i64>(0)?);
                identities.push(identity(row, 1)?);
            }
            let next = last
                .filter(|_| identities.len() == limit)
                .map(|id| id.to_string());
            Ok(ConfiguredPage { identities, next })
        })
    }

    fn count_configured<'a>(&'a self, id: &'a str, reach: Reach) -> BoxFuture<'a, StoreResult<ReachCounts>> {
        macro_rules! count {
            ($whose:literal) => {
                concat!(
                    "SELECT count(*), ifnull(sum(shown.status = 'Applied'), 0)
                     FROM twin_configurations AS shown JOIN identities ON identities.id = shown.id
                     WHERE configuration = ?1 AND ",
                    $whose
                )
            };
        }
        let sql = match reach {
            Reach::Devices => count!("module_id = ''"),
            Reach::Modules => count!("module_id <> ''"),
            Reach::EdgeAgents => count!("module_id = '$edgeAgent'"),
        };
        self.read(move |db| {
            db.prepare_cached(sql)?
                .query_row([id], |row| {
                    Ok(ReachCounts {
                        targeted: row.get::<_, i64>(0)? as u64,
                        applied: row.get::<_, i64>(1)? as u64,
                    })
                })
                .map_err(Fault::from)
        })
    }
}

/// The identity in two columns of a row.
pub(super) fn identity(row: &rusqlite::Row<'_>, column: usize) -> Result<Identity, Fault> {
    let text = |column: usize| -> Result<&str, Fault> {
        row.get_ref(column)?
            .as_str()
            .map_err(|error| Fault::content("identity", error))
    };
    let module = Some(text(column + 1)?).filter(|id| !id.is_empty());
    Identity::new(text(column)?, module).map_err(|error| Fault::content("identity", error))
}

fn version(context: &WriteContext, id: &str) -> Result<Option<u64>, Fault> {
    let version: Option<i64> = context
        .db
        .prepare_cached("SELECT version FROM configurations WHERE id = ?1")?
        .query_row([id], |row| row.get(0))
        .optional()?;
    Ok(version.map(|version| version as u64))
}
