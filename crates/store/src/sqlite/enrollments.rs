//! Enrollments, registrations, linked hubs and provisioning policies in SQLite: JSON documents by id.

use holdfast_model::provisioning::{
    EnrollmentGroup, IndividualEnrollment, LinkedHub, ProvisioningPolicy, Registration,
};
use holdfast_ports::enrollment::{EnrollmentStore, Expected};
use holdfast_ports::{BoxFuture, StoreError, StoreResult};
use rusqlite::{Connection, OptionalExtension as _, ToSql, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::SqliteStore;
use super::fault::Fault;
use super::writer::WriteContext;

macro_rules! versioned {
    ($table:literal) => {
        Table {
            version: concat!("SELECT version FROM ", $table, " WHERE id = ?1"),
            put: concat!(
                "INSERT OR REPLACE INTO ",
                $table,
                " (id, version, document) VALUES (?1, ?2, ?3)"
            ),
            delete: concat!("DELETE FROM ", $table, " WHERE id = ?1"),
        }
    };
}

/// Statements of a table with versions.
struct Table {
    version: &'static str,
    put: &'static str,
    delete: &'static str,
}

const ENROLLMENTS: Table = versioned!("enrollments");
const GROUPS: Table = versioned!("enrollment_groups");
const REGISTRATIONS: Table = versioned!("registrations");
const PUT_REGISTRATION: &str =
    "INSERT OR REPLACE INTO registrations (id, version, document, group_id) VALUES (?1, ?2, ?3, ?4)";

impl EnrollmentStore for SqliteStore {
    fn enrollment<'a>(&'a self, key: &'a str) -> BoxFuture<'a, StoreResult<Option<IndividualEnrollment>>> {
        self.document("SELECT document FROM enrollments WHERE id = ?1", key)
    }

    fn put_enrollment(
        &self,
        enrollment: IndividualEnrollment,
        expected: Expected,
    ) -> BoxFuture<'_, StoreResult<()>> {
        self.write_single(move |context| {
            let id = enrollment.registration_id.key();
            put(
                context,
                &ENROLLMENTS,
                &id,
                enrollment.enrollment.version,
                &enrollment,
                expected,
            )
        })
    }

    fn delete_enrollment<'a>(&'a self, key: &'a str, expected: Expected) -> BoxFuture<'a, StoreResult<()>> {
        let key = key.to_owned();
        self.write(move |context| {
            delete(context, &ENROLLMENTS, &key, expected)?;
            execute(
                context,
                "DELETE FROM registrations WHERE id = ?1 AND group_id = ''",
                &[&key],
            )
        })
    }

    fn list_enrollments<'a>(
        &'a self,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<IndividualEnrollment>>> {
        self.read(move |db| {
            let sql = "SELECT document FROM enrollments WHERE id > ?1 ORDER BY id LIMIT ?2";
            list(db, sql, &[&after.unwrap_or_default(), &bound(limit)])
        })
    }

    fn group<'a>(&'a self, key: &'a str) -> BoxFuture<'a, StoreResult<Option<EnrollmentGroup>>> {
        self.document("SELECT document FROM enrollment_groups WHERE id = ?1", key)
    }

    fn put_group(&self, group: EnrollmentGroup, expected: Expected) -> BoxFuture<'_, StoreResult<()>> {
        self.write_single(move |context| {
            let id = group.group_id.key();
            put(context, &GROUPS, &id, group.enrollment.version, &group, expected)
        })
    }

    fn delete_group<'a>(&'a self, key: &'a str, expected: Expected) -> BoxFuture<'a, StoreResult<()>> {
        let key = key.to_owned();
        self.write(move |context| {
            delete(context, &GROUPS, &key, expected)?;
            execute(context, "DELETE FROM registrations WHERE group_id = ?1", &[&key])
        })
    }

    fn list_groups<'a>(
        &'a self,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<EnrollmentGroup>>> {
        self.read(move |db| {
            let sql = "SELECT document FROM enrollment_groups WHERE id > ?1 ORDER BY id LIMIT ?2";
            list(db, sql, &[&after.unwrap_or_default(), &bound(limit)])
        })
    }

    fn registration<'a>(&'a self, key: &'a str) -> BoxFuture<'a, StoreResult<Option<Registration>>> {
        self.document("SELECT document FROM registrations WHERE id = ?1", key)
    }

    fn put_registration(
        &self,
        registration: Registration,
        expected: Expected,
    ) -> BoxFuture<'_, StoreResult<()>> {
        self.write_single(move |context| {
            let id = registration.registration_id.key();
            expected.check(version(context, &REGISTRATIONS, &id)?)?;
            let group = registration.group_id.as_ref().map(|group| group.key());
            context.db.prepare_cached(PUT_REGISTRATION)?.execute(params![
                id,
                registration.version as i64,
                encode(&registration)?,
                group.unwrap_or_default()
            ])?;
            Ok(())
        })
    }

    fn delete_registration<'a>(&'a self, key: &'a str, expected: Expected) -> BoxFuture<'a, StoreResult<()>> {
        let key = key.to_owned();
        self.write_single(move |context| delete(context, &REGISTRATIONS, &key, expected))
    }

    fn list_registrations<'a>(
        &'a self,
        group: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<Registration>>> {
        self.read(move |db| {
            let sql = "SELECT document FROM registrations WHERE group_id = ?1 AND group_id <> '' AND id > ?2
                       ORDER BY id LIMIT ?3";
            list(db, sql, &[&group, &after.unwrap_or_default(), &bound(limit)])
        })
    }

    fn linked_hubs(&self) -> BoxFuture<'_, StoreResult<Vec<LinkedHub>>> {
        self.read(|db| list(db, "SELECT document FROM linked_hubs ORDER BY id", &[]))
    }

    fn put_linked_hub(&self, hub: LinkedHub) -> BoxFuture<'_, StoreResult<()>> {
        self.write_single(move |context| {
            let sql = "INSERT OR REPLACE INTO linked_hubs (id, document) VALUES (?1, ?2)";
            execute(context, sql, &[&hub.host, &encode(&hub)?])
        })
    }

    fn delete_linked_hub<'a>(&'a self, host: &'a str) -> BoxFuture<'a, StoreResult<()>> {
        self.delete_row("DELETE FROM linked_hubs WHERE id = ?1", host)
    }

    fn provisioning_policies(&self) -> BoxFuture<'_, StoreResult<Vec<ProvisioningPolicy>>> {
        self.read(|db| list(db, "SELECT document FROM provisioning_policies ORDER BY id", &[]))
    }

    fn put_provisioning_policy(&self, policy: ProvisioningPolicy) -> BoxFuture<'_, StoreResult<()>> {
        self.write_single(move |context| {
            let sql = "INSERT OR REPLACE INTO provisioning_policies (id, document) VALUES (?1, ?2)";
            execute(context, sql, &[&policy.name, &encode(&policy)?])
        })
    }

    fn delete_provisioning_policy<'a>(&'a self, name: &'a str) -> BoxFuture<'a, StoreResult<()>> {
        self.delete_row("DELETE FROM provisioning_policies WHERE id = ?1", name)
    }
}

impl SqliteStore {
    fn document<'a, T: DeserializeOwned + Send + 'a>(
        &'a self,
        sql: &'static str,
        id: &'a str,
    ) -> BoxFuture<'a, StoreResult<Option<T>>> {
        self.read(move |db| {
            let text: Option<String> = db
                .prepare_cached(sql)?
                .query_row([id], |row| row.get(0))
                .optional()?;
            text.map(|text| decode(&text)).transpose()
        })
    }
}

fn version(context: &WriteContext, table: &Table, id: &str) -> Result<Option<u64>, Fault> {
    let version: Option<i64> = context
        .db
        .prepare_cached(table.version)?
        .query_row([id], |row| row.get(0))
        .optional()?;
    Ok(version.map(|version| version as u64))
}

fn put<T: Serialize>(
    context: &WriteContext,
    table: &Table,
    id: &str,
    new: u64,
    item: &T,
    expected: Expected,
) -> Result<(), Fault> {
    expected.check(version(context, table, id)?)?;
    execute(context, table.put, &[&id, &(new as i64), &encode(item)?])
}

fn delete(context: &WriteContext, table: &Table, id: &str, expected: Expected) -> Result<(), Fault> {
    let present = version(context, table, id)?.ok_or(StoreError::Missing)?;
    expected.check(Some(present))?;
    execute(context, table.delete, &[&id])
}

fn execute(context: &WriteContext, sql: &str, parameters: &[&dyn ToSql]) -> Result<(), Fault> {
    context.db.prepare_cached(sql)?.execute(parameters)?;
    Ok(())
}

fn list<T: DeserializeOwned>(db: &Connection, sql: &str, parameters: &[&dyn ToSql]) -> Result<Vec<T>, Fault> {
    let mut statement = db.prepare_cached(sql)?;
    let mut rows = statement.query(parameters)?;
    let mut items = Vec::new();
    while let Some(row) = rows.next()? {
        items.push(decode(row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?)?);
    }
    Ok(items)
}

fn bound(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

fn encode<T: Serialize>(item: &T) -> Result<String, Fault> {
    serde_json::to_string(item).map_err(|error| Fault::content("document", error))
}

fn decode<T: DeserializeOwned>(text: &str) -> Result<T, Fault> {
    serde_json::from_str(text).map_err(|error| Fault::content("document", error))
}
