//! The identity registry in SQLite.

use holdfast_model::credential::{SymmetricKey, Thumbprint};
use holdfast_model::limits::MODULES_PER_DEVICE_MAX;
use holdfast_model::registry::{Authentication, IdentityRecord, RegistryStatistics, Status};
use holdfast_model::twin::Twin;
use holdfast_model::{Identity, Timestamp};
use holdfast_ports::registry::{
    ConnectionUpdate, CreationGroup, Interrupted, LifecycleTelling, RecordMutation, RegistryStore,
};
use holdfast_ports::{BoxFuture, StoreError, StoreResult};
use rusqlite::{Connection, OptionalExtension as _, Row, ToSql, named_params, params};

use super::fault::Fault;
use super::writer::WriteContext;
use super::{SqliteStore, identity_row, module_column, outbox, twin};

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT device_id, module_id, generation_id, version, status, status_reason, status_updated_at,
                    auth_type, auth_primary, auth_secondary, iot_edge, device_scope, parent_scopes, managed_by,
                    connected_boot, connection_updated_at, last_activity_at, id
             FROM identities ",
            $rest
        )
    };
}

const INSERT: &str = "INSERT INTO identities
    (device_id, module_id, generation_id, version, status, status_reason, status_updated_at, auth_type,
     auth_primary, auth_secondary, iot_edge, device_scope, parent_scopes, managed_by, connected_boot,
     connection_updated_at, last_activity_at)
    VALUES (:device_id, :module_id, :generation_id, :version, :status, :status_reason, :status_updated_at,
            :auth_type, :auth_primary, :auth_secondary, :iot_edge, :device_scope, :parent_scopes, :managed_by,
            :connected_boot, :connection_updated_at, :last_activity_at)
    ON CONFLICT DO NOTHING";

const UPDATE: &str = "UPDATE identities SET
    version = :version, status = :status, status_reason = :status_reason, status_updated_at = :status_updated_at,
    auth_type = :auth_type, auth_primary = :auth_primary, auth_secondary = :auth_secondary, iot_edge = :iot_edge,
    device_scope = :device_scope, parent_scopes = :parent_scopes, managed_by = :managed_by,
    connected_boot = :connected_boot, connection_updated_at = :connection_updated_at,
    last_activity_at = :last_activity_at, generation_id = :generation_id
    WHERE device_id = :device_id AND module_id = :module_id";

impl RegistryStore for SqliteStore {
    fn create_telling(
        &self,
        entries: Vec<(IdentityRecord, Twin)>,
        telling: Option<LifecycleTelling>,
    ) -> BoxFuture<'_, StoreResult<()>> {
        self.write(move |context| {
            for (record, twin) in &entries {
                add(context, record, twin, telling.as_ref())?;
            }
            Ok(())
        })
    }

    fn create_many_telling(
        &self,
        groups: Vec<CreationGroup>,
        telling: Option<LifecycleTelling>,
    ) -> BoxFuture<'_, StoreResult<Vec<StoreResult<()>>>> {
        self.write(move |context| {
            let add = |group| add_group(context, group, telling.as_ref());
            groups.iter().map(add).collect()
        })
    }

    fn get<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, StoreResult<Option<IdentityRecord>>> {
        self.read(move |db| find(db, self.shared.boot, identity))
    }

    fn mutate<'a>(
        &'a self,
        identity: &'a Identity,
        mutation: RecordMutation,
    ) -> BoxFuture<'a, StoreResult<IdentityRecord>> {
        let identity = identity.clone();
        self.write_single(move |context| {
            let old = find(&context.db, context.boot, &identity)?.ok_or(StoreError::Missing)?;
            let mut record = old.clone();
            mutation(&mut record)?;
            record.identity = old.identity;
            record.generation_id = old.generation_id;
            record.version = old.version + 1;
            bind(context, UPDATE, &record)?;
            Ok(record)
        })
    }

    fn delete_telling<'a>(
        &'a self,
        identity: &'a Identity,
        version: Option<u64>,
        telling: Option<LifecycleTelling>,
    ) -> BoxFuture<'a, StoreResult<Vec<Identity>>> {
        let identity = identity.clone();
        self.write(move |context| {
            let record = find(&context.db, context.boot, &identity)?.ok_or(StoreError::Missing)?;
            if version.is_some_and(|version| version != record.version) {
                return Err(StoreError::Conflict.into());
            }
            let mut records = vec![record];
            records.extend(modules(&context.db, context.boot, &identity)?);
            if let Some(telling) = &telling {
                tell(&context.db, &records, telling)?;
            }
            let deleted: Vec<Identity> = records.into_iter().map(|record| record.identity).collect();
            // Twins, messages and sessions go with their identity by foreign key.
            let mut statement = context
                .db
                .prepare_cached("DELETE FROM identities WHERE device_id = ?1 AND module_id = ?2")?;
            for identity in &deleted {
                statement.execute((identity.device_id(), module_column(identity)))?;
            }
            Ok(deleted)
        })
    }

    fn list_devices<'a>(
        &'a self,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<IdentityRecord>>> {
        self.read(move |db| {
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            // No id is empty, so every id comes after the empty one.
            let after = after.unwrap_or_default();
            list(
                db,
                self.shared.boot,
                select!("WHERE device_id > ?1 AND module_id = '' ORDER BY device_id LIMIT ?2"),
                &[&after, &limit],
            )
        })
    }

    fn list_with_twins<'a>(
        &'a self,
        after: Option<&'a Identity>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<(IdentityRecord, Twin)>>> {
        self.read(move |db| {
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let (device, module) = after.map_or(("", ""), |after| (after.device_id(), module_column(after)));
            let mut statement = db.prepare_cached(concat!(
                select!(""),
                "WHERE (device_id, module_id) > (?1, ?2) ORDER BY device_id, module_id LIMIT ?3"
            ))?;
            let mut rows = statement.query(params![device, module, limit])?;
            let mut entries = Vec::new();
            while let Some(row) = rows.next()? {
                let record = decode(row, self.shared.boot)?;
                // A second lookup by row number costs less than a join would here, whose rows are much wider.
                entries.push((record, twin::of_row(db, row.get(17)?)?));
            }
            Ok(entries)
        })
    }

    fn list_modules<'a>(&'a self, device: &'a Identity) -> BoxFuture<'a, StoreResult<Vec<IdentityRecord>>> {
        self.read(move |db| modules(db, self.shared.boot, device))
    }

    fn statistics(&self) -> BoxFuture<'_, StoreResult<RegistryStatistics>> {
        self.read(|db| {
            let (enabled, disabled) = db
                .prepare_cached("SELECT devices_enabled, devices_disabled FROM hub")?
                .query_row([], |row| {
                    Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64))
                })?;
            Ok(RegistryStatistics {
                total: enabled + disabled,
                enabled,
                disabled,
            })
        })
    }

    fn find_scope<'a>(&'a self, scope: &'a str) -> BoxFuture<'a, StoreResult<Option<IdentityRecord>>> {
        self.read(move |db| {
            let sql = select!(
                "WHERE device_scope = ?1 AND iot_edge = 1 AND module_id = '' ORDER BY device_id LIMIT 1"
            );
            Ok(list(db, self.shared.boot, sql, &[&scope])?.pop())
        })
    }

    fn list_children<'a>(
        &'a self,
        scope: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<IdentityRecord>>> {
        self.read(move |db| {
            // A device has one parent at most.
            let parents = serde_json::json!([scope]).to_string();
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let sql = select!(
                "WHERE parent_scopes = ?1 AND parent_scopes <> '[]' AND module_id = '' AND device_id > ?2
                 ORDER BY device_id LIMIT ?3"
            );
            list(
                db,
                self.shared.boot,
                sql,
                &[&parents, &after.unwrap_or_default(), &limit],
            )
        })
    }

    fn interrupted(&self, after: u64, limit: usize) -> BoxFuture<'_, StoreResult<Vec<Interrupted>>> {
        self.read(move |db| {
            let mut statement = db.prepare_cached(
                "SELECT id, device_id, module_id FROM identities
                 WHERE id > ?1 AND connected_boot NOT IN (0, ?2) ORDER BY id LIMIT ?3",
            )?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let mut rows = statement.query(params![after as i64, self.shared.boot, limit])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                let (device_id, module_id): (String, String) = (row.get(1)?, row.get(2)?);
                let module_id = Some(module_id.as_str()).filter(|id| !id.is_empty());
                found.push(Interrupted {
                    place: row.get::<_, i64>(0)? as u64,
                    identity: Identity::new(&device_id, module_id)
                        .map_err(|error| Fault::content("id of an identity", error))?,
                });
            }
            Ok(found)
        })
    }

    fn end_interrupted(&self, places: Vec<u64>) -> BoxFuture<'_, StoreResult<()>> {
        self.write(move |context| {
            let mut statement = context.db.prepare_cached(
                "UPDATE identities SET connected_boot = 0 WHERE id = ?1 AND connected_boot <> ?2",
            )?;
            for place in &places {
                statement.execute(params![*place as i64, context.boot])?;
            }
            Ok(())
        })
    }

    fn save_connections(&self, updates: Vec<ConnectionUpdate>) -> BoxFuture<'_, StoreResult<()>> {
        self.write(move |context| {
            let mut statement = context.db.prepare_cached(
                "UPDATE identities SET connected_boot = ?3, connection_updated_at = ?4, last_activity_at = ?5
                 WHERE device_id = ?1 AND module_id = ?2",
            )?;
            for update in &updates {
                statement.execute(params![
                    update.identity.device_id(),
                    module_column(&update.identity),
                    connected_boot(context.boot, update.connected),
                    update.updated_at.as_micros(),
                    update.last_activity_at.as_micros(),
                ])?;
            }
            Ok(())
        })
    }
}

/// Tells of identities that are about to be deleted.
fn tell(db: &Connection, records: &[IdentityRecord], telling: &LifecycleTelling) -> Result<(), Fault> {
    for record in records {
        let row = identity_row(db, &record.identity)?.ok_or(StoreError::Missing)?;
        outbox::insert(db, &telling(record, &twin::of_row(db, row)?))?;
    }
    Ok(())
}

fn add(
    context: &WriteContext,
    record: &IdentityRecord,
    twin: &Twin,
    telling: Option<&LifecycleTelling>,
) -> Result<(), Fault> {
    if record.identity.is_module() {
        may_add_module(&context.db, &record.identity)?;
    }
    if bind(context, INSERT, record)? == 0 {
        return Err(StoreError::Exists.into());
    }
    twin::insert(&context.db, context.db.last_insert_rowid(), twin)?;
    match telling {
        Some(telling) => outbox::insert(&context.db, &telling(record, twin)),
        None => Ok(()),
    }
}

/// Adds a group all or none; what the store refuses is a result, what the database fails at is an error.
fn add_group(
    context: &WriteContext,
    group: &CreationGroup,
    telling: Option<&LifecycleTelling>,
) -> Result<StoreResult<()>, Fault> {
    // An identity alone is refused before anything of it is written.
    if let [(record, twin)] = group.as_slice() {
        return refusal(add(context, record, twin, telling));
    }
    context.db.execute_batch("SAVEPOINT creation")?;
    let added = group
        .iter()
        .try_for_each(|(record, twin)| add(context, record, twin, telling));
    if added.is_err() && !context.db.is_autocommit() {
        context.db.execute_batch("ROLLBACK TO creation")?;
    }
    if !context.db.is_autocommit() {
        context.db.execute_batch("RELEASE creation")?;
    }
    refusal(added)
}

fn refusal(added: Result<(), Fault>) -> Result<StoreResult<()>, Fault> {
    match added {
        Ok(()) => Ok(Ok(())),
        Err(Fault::Store(error @ (StoreError::Exists | StoreError::Missing | StoreError::Full))) => {
            Ok(Err(error))
        }
        Err(fault) => Err(fault),
    }
}

fn may_add_module(db: &Connection, module: &Identity) -> Result<(), Fault> {
    if identity_row(db, module)?.is_some() {
        return Err(StoreError::Exists.into());
    }
    let (devices, modules): (i64, i64) = db
        .prepare_cached(
            "SELECT count(*) FILTER (WHERE module_id = ''),
                    count(*) FILTER (WHERE module_id NOT IN ('', '$edgeAgent', '$edgeHub'))
             FROM identities WHERE device_id = ?1",
        )?
        .query_row([module.device_id()], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if devices == 0 {
        return Err(StoreError::Missing.into());
    }
    if modules >= MODULES_PER_DEVICE_MAX as i64 && !module.is_system_module() {
        return Err(StoreError::Full.into());
    }
    Ok(())
}

fn find(db: &Connection, boot: i64, identity: &Identity) -> Result<Option<IdentityRecord>, Fault> {
    db.prepare_cached(select!("WHERE device_id = ?1 AND module_id = ?2"))?
        .query_row((identity.device_id(), module_column(identity)), |row| {
            Ok(decode(row, boot))
        })
        .optional()?
        .transpose()
}

/// The record in this row.
pub(super) fn of_row(db: &Connection, boot: i64, row: i64) -> Result<Option<IdentityRecord>, Fault> {
    db.prepare_cached(select!("WHERE id = ?1"))?
        .query_row([row], |row| Ok(decode(row, boot)))
        .optional()?
        .transpose()
}

fn modules(db: &Connection, boot: i64, device: &Identity) -> Result<Vec<IdentityRecord>, Fault> {
    list(
        db,
        boot,
        select!("WHERE device_id = ?1 AND module_id > '' ORDER BY module_id"),
        // A module's key is no device id, so a module has no modules.
        &[&device.as_str()],
    )
}

fn list(db: &Connection, boot: i64, sql: &str, values: &[&dyn ToSql]) -> Result<Vec<IdentityRecord>, Fault> {
    let mut statement = db.prepare_cached(sql)?;
    let mut rows = statement.query(values)?;
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        records.push(decode(row, boot)?);
    }
    Ok(records)
}

/// `connected_boot` of a connection state. No boot has the number 0.
fn connected_boot(boot: i64, connected: bool) -> i64 {
    if connected { boot } else { 0 }
}

/// Runs [`INSERT`] or [`UPDATE`], which have the same parameters; returns the number of rows changed.
fn bind(context: &WriteContext, sql: &str, record: &IdentityRecord) -> Result<usize, Fault> {
    let (auth_type, primary, secondary) = match &record.authentication {
        Authentication::Sas {
            primary_key,
            secondary_key,
        } => ("sas", Some(primary_key.reveal()), Some(secondary_key.reveal())),
        Authentication::SelfSigned {
            primary_thumbprint,
            secondary_thumbprint,
        } => (
            "selfSigned",
            primary_thumbprint.as_ref().map(Thumbprint::as_str),
            secondary_thumbprint.as_ref().map(Thumbprint::as_str),
        ),
        Authentication::CertificateAuthority => ("certificateAuthority", None, None),
        Authentication::None => ("none", None, None),
    };
    let parent_scopes = serde_json::Value::from(record.parent_scopes.as_slice()).to_string();
    Ok(context.db.prepare_cached(sql)?.execute(named_params! {
        ":device_id": record.identity.device_id(),
        ":module_id": module_column(&record.identity),
        ":generation_id": record.generation_id as i64,
        ":version": record.version as i64,
        ":status": match record.status {
            Status::Enabled => "enabled",
            Status::Disabled => "disabled",
        },
        ":status_reason": record.status_reason,
        ":status_updated_at": record.status_updated_at.as_micros(),
        ":auth_type": auth_type,
        ":auth_primary": primary,
        ":auth_secondary": secondary,
        ":iot_edge": record.iot_edge,
        ":device_scope": record.device_scope,
        ":parent_scopes": parent_scopes,
        ":managed_by": record.managed_by,
        ":connected_boot": connected_boot(context.boot, record.connected),
        ":connection_updated_at": record.connection_updated_at.as_micros(),
        ":last_activity_at": record.last_activity_at.as_micros(),
    })?)
}

/// Reads a row of [`select!`].
fn decode(row: &Row<'_>, boot: i64) -> Result<IdentityRecord, Fault> {
    let unreadable = |problem: &str| Fault::content("identity", problem);
    let text = |index| -> Result<Option<String>, Fault> { Ok(row.get(index)?) };
    let time = |index| -> Result<Timestamp, Fault> { Ok(Timestamp::from_micros(row.get(index)?)) };
    let module_id = row.get_ref(1)?.as_str().map_err(|_| unreadable("module id"))?;
    let device_id = row.get_ref(0)?.as_str().map_err(|_| unreadable("device id"))?;
    let identity = Identity::new(device_id, Some(module_id).filter(|id| !id.is_empty()))
        .map_err(|error| Fault::content("identity", error))?;
    let status = match row.get_ref(4)?.as_str() {
        Ok("enabled") => Status::Enabled,
        Ok("disabled") => Status::Disabled,
        _ => return Err(unreadable("status")),
    };
    let parent_scopes = row
        .get_ref(12)?
        .as_str()
        .map_err(|_| unreadable("parent scopes"))?;
    Ok(IdentityRecord {
        identity,
        generation_id: row.get::<_, i64>(2)? as u64,
        version: row.get::<_, i64>(3)? as u64,
        status,
        status_reason: text(5)?,
        status_updated_at: time(6)?,
        authentication: decode_authentication(row)?,
        iot_edge: row.get(10)?,
        device_scope: text(11)?,
        parent_scopes: match parent_scopes {
            "[]" => Vec::new(),
            text => serde_json::from_str(text).map_err(|error| Fault::content("parent scopes", error))?,
        },
        managed_by: text(13)?,
        connected: row.get::<_, i64>(14)? == boot,
        connection_updated_at: time(15)?,
        last_activity_at: time(16)?,
    })
}

fn decode_authentication(row: &Row<'_>) -> Result<Authentication, Fault> {
    let text = |index: usize| row.get_ref(index).ok().and_then(|value| value.as_str().ok());
    let key = |index| {
        SymmetricKey::parse(text(index).unwrap_or_default())
            .map_err(|error| Fault::content("symmetric key", error))
    };
    let thumbprint = |index| match text(index) {
        None => Ok(None),
        Some(text) => Thumbprint::parse(text)
            .map(Some)
            .ok_or_else(|| Fault::content("thumbprint", "not 40 or 64 hex digits")),
    };
    match text(7) {
        Some("sas") => Ok(Authentication::Sas {
            primary_key: key(8)?,
            secondary_key: key(9)?,
        }),
        Some("selfSigned") => Ok(Authentication::SelfSigned {
            primary_thumbprint: thumbprint(8)?,
            secondary_thumbprint: thumbprint(9)?,
        }),
        Some("certificateAuthority") => Ok(Authentication::CertificateAuthority),
        Some("none") => Ok(Authentication::None),
        other => Err(Fault::content(
            "authentication",
            format!("unknown type {other:?}"),
        )),
    }
}
