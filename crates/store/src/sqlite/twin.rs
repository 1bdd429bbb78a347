//! Twins in SQLite.

use std::borrow::Cow;
use std::collections::BTreeMap;

use holdfast_model::Identity;
use holdfast_model::twin::{ConfigurationStatus, Managed, Section, Twin};
use holdfast_ports::twin::{TwinMutation, TwinStore, TwinTelling};
use holdfast_ports::{BoxFuture, StoreError, StoreResult};
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde_json::{Map, Value};

use super::fault::Fault;
use super::{SqliteStore, module_column, outbox};

const INSERT: &str = "INSERT INTO twins
    (id, version, desired_version, reported_version, model_id, tags, reported, desired, reported_metadata,
     desired_metadata, configurations, managed)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)";

const UPDATE: &str = "UPDATE twins SET
    version = ?2, desired_version = ?3, reported_version = ?4, model_id = ?5, tags = ?6, reported = ?7,
    desired = ?8, reported_metadata = ?9, desired_metadata = ?10, configurations = ?11, managed = ?12
    WHERE id = ?1";

const SELECT: &str =
    "SELECT twins.version, desired_version, reported_version, model_id, tags, reported, desired,
        reported_metadata, desired_metadata, configurations, managed, twins.id
    FROM identities JOIN twins ON twins.id = identities.id
    WHERE device_id = ?1 AND module_id = ?2";

impl TwinStore for SqliteStore {
    fn twin<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, StoreResult<Option<Twin>>> {
        self.read(move |db| Ok(find(db, identity)?.map(|(_, twin)| twin)))
    }

    fn mutate_twin_telling<'a>(
        &'a self,
        identity: &'a Identity,
        mutation: TwinMutation,
        telling: Option<TwinTelling>,
    ) -> BoxFuture<'a, StoreResult<Twin>> {
        let identity = identity.clone();
        if let Some(telling) = telling {
            return self.write(move |context| {
                let (row, before) = find(&context.db, &identity)?.ok_or(StoreError::Missing)?;
                let mut twin = before.clone();
                mutation(&mut twin)?;
                bind(&context.db, UPDATE, row, &twin)?;
                outbox::insert(&context.db, &telling(&before, &twin))?;
                Ok(twin)
            });
        }
        self.write_single(move |context| {
            let (row, mut twin) = find(&context.db, &identity)?.ok_or(StoreError::Missing)?;
            mutation(&mut twin)?;
            bind(&context.db, UPDATE, row, &twin)?;
            Ok(twin)
        })
    }
}

/// Adds the twin of a new identity.
pub(super) fn insert(db: &Connection, row: i64, twin: &Twin) -> Result<(), Fault> {
    bind(db, INSERT, row, twin)
}

/// The twin of the identity in this row.
pub(super) fn of_row(db: &Connection, row: i64) -> Result<Twin, Fault> {
    db.prepare_cached(
        "SELECT version, desired_version, reported_version, model_id, tags, reported, desired, reported_metadata,
                desired_metadata, configurations, managed
         FROM twins WHERE id = ?1",
    )?
    .query_row([row], |row| Ok(decode(row)))?
}

fn find(db: &Connection, identity: &Identity) -> Result<Option<(i64, Twin)>, Fault> {
    db.prepare_cached(SELECT)?
        .query_row((identity.device_id(), module_column(identity)), |row| {
            Ok(decode(row).and_then(|twin| Ok((row.get(11)?, twin))))
        })
        .optional()?
        .transpose()
}

fn bind(db: &Connection, sql: &str, row: i64, twin: &Twin) -> Result<(), Fault> {
    db.prepare_cached(sql)?.execute(params![
        row,
        twin.version as i64,
        twin.desired.version as i64,
        twin.reported.version as i64,
        twin.model_id,
        encode_json(&twin.tags)?,
        encode_json(&twin.reported.properties)?,
        encode_json(&twin.desired.properties)?,
        encode_json(&twin.reported.metadata)?,
        encode_json(&twin.desired.metadata)?,
        encode_configurations(&twin.configurations)?,
        encode_managed(twin.managed.as_deref())?,
    ])?;
    Ok(())
}

fn decode(row: &Row<'_>) -> Result<Twin, Fault> {
    Ok(Twin {
        version: row.get::<_, i64>(0)? as u64,
        model_id: row.get(3)?,
        tags: decode_json(row, 4)?,
        desired: Section {
            properties: decode_json(row, 6)?,
            metadata: decode_json(row, 8)?,
            version: row.get::<_, i64>(1)? as u64,
        },
        reported: Section {
            properties: decode_json(row, 5)?,
            metadata: decode_json(row, 7)?,
            version: row.get::<_, i64>(2)? as u64,
        },
        configurations: decode_configurations(row, 9)?,
        managed: decode_managed(row, 10)?,
    })
}

/// The member of the twin document: queries look into it.
fn encode_configurations(all: &BTreeMap<String, ConfigurationStatus>) -> Result<Cow<'static, str>, Fault> {
    if all.is_empty() {
        return Ok(Cow::Borrowed("{}"));
    }
    let shown: Map<String, Value> = all
        .iter()
        .map(|(id, status)| (id.clone(), serde_json::json!({ "status": status.name() })))
        .collect();
    encode_json(&shown).map(Cow::Owned)
}

fn decode_configurations(
    row: &Row<'_>,
    column: usize,
) -> Result<BTreeMap<String, ConfigurationStatus>, Fault> {
    #[derive(serde::Deserialize)]
    struct Shown {
        status: ConfigurationStatus,
    }
    let unreadable = |problem: &dyn std::fmt::Display| Fault::content("configurations of a twin", problem);
    let text = row
        .get_ref(column)?
        .as_str()
        .map_err(|error| unreadable(&error))?;
    if text == "{}" {
        return Ok(BTreeMap::new());
    }
    let shown: BTreeMap<String, Shown> = serde_json::from_str(text).map_err(|error| unreadable(&error))?;
    Ok(shown.into_iter().map(|(id, shown)| (id, shown.status)).collect())
}

fn encode_managed(managed: Option<&Managed>) -> Result<Option<String>, Fault> {
    managed
        .map(serde_json::to_string)
        .transpose()
        .map_err(|error| Fault::content("managed content of a twin", error))
}

fn decode_managed(row: &Row<'_>, column: usize) -> Result<Option<Box<Managed>>, Fault> {
    let unreadable = |problem: &dyn std::fmt::Display| Fault::content("managed content of a twin", problem);
    let text = row
        .get_ref(column)?
        .as_str_or_null()
        .map_err(|error| unreadable(&error))?;
    text.map(serde_json::from_str)
        .transpose()
        .map_err(|error| unreadable(&error))
}

fn encode_json(map: &Map<String, Value>) -> Result<String, Fault> {
    serde_json::to_string(map).map_err(|error| Fault::content("twin section", error))
}

fn decode_json(row: &Row<'_>, column: usize) -> Result<Map<String, Value>, Fault> {
    let unreadable = |problem: &dyn std::fmt::Display| Fault::content("twin section", problem);
    let text = row
        .get_ref(column)?
        .as_str()
        .map_err(|error| unreadable(&error))?;
    serde_json::from_str(text).map_err(|error| unreadable(&error))
}
