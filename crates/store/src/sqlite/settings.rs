//! Policies, certificate authorities and free-form values in SQLite.

use bytes::Bytes;
use holdfast_model::Timestamp;
use holdfast_model::credential::SymmetricKey;
use holdfast_model::policy::{Policy, Rights};
use holdfast_ports::settings::{CertificateAuthority, SettingsStore};
use holdfast_ports::{BoxFuture, StoreError, StoreResult};
use rusqlite::{OptionalExtension as _, Row, params};

use super::SqliteStore;
use super::fault::Fault;

impl SettingsStore for SqliteStore {
    fn policies(&self) -> BoxFuture<'_, StoreResult<Vec<Policy>>> {
        self.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT name, primary_key, secondary_key, rights FROM policies ORDER BY name",
            )?;
            let mut rows = statement.query([])?;
            let mut policies = Vec::new();
            while let Some(row) = rows.next()? {
                policies.push(decode_policy(row)?);
            }
            Ok(policies)
        })
    }

    fn put_policy(&self, policy: Policy) -> BoxFuture<'_, StoreResult<()>> {
        self.write_single(move |context| {
            context
                .db
                .prepare_cached(
                    "INSERT OR REPLACE INTO policies (name, primary_key, secondary_key, rights)
                     VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute(params![
                    policy.name,
                    policy.primary_key.reveal(),
                    policy.secondary_key.reveal(),
                    policy.rights.names(),
                ])?;
            Ok(())
        })
    }

    fn delete_policy<'a>(&'a self, name: &'a str) -> BoxFuture<'a, StoreResult<()>> {
        self.delete_row("DELETE FROM policies WHERE name = ?1", name)
    }

    fn authorities(&self) -> BoxFuture<'_, StoreResult<Vec<CertificateAuthority>>> {
        self.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT name, certificate, verified, verification_code, created_at, updated_at, version
                 FROM authorities ORDER BY name",
            )?;
            let mut rows = statement.query([])?;
            let mut authorities = Vec::new();
            while let Some(row) = rows.next()? {
                authorities.push(decode_authority(row)?);
            }
            Ok(authorities)
        })
    }

    fn put_authority(&self, authority: CertificateAuthority) -> BoxFuture<'_, StoreResult<()>> {
        self.write_single(move |context| {
            context
                .db
                .prepare_cached(
                    "INSERT OR REPLACE INTO authorities
                     (name, certificate, verified, verification_code, created_at, updated_at, version)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                )?
                .execute(params![
                    authority.name,
                    &authority.certificate[..],
                    authority.verified,
                    authority.verification_code,
                    authority.created_at.as_micros(),
                    authority.updated_at.as_micros(),
                    authority.version as i64,
                ])?;
            Ok(())
        })
    }

    fn delete_authority<'a>(&'a self, name: &'a str) -> BoxFuture<'a, StoreResult<()>> {
        self.delete_row("DELETE FROM authorities WHERE name = ?1", name)
    }

    fn value<'a>(&'a self, key: &'a str) -> BoxFuture<'a, StoreResult<Option<String>>> {
        self.read(move |db| {
            Ok(db
                .prepare_cached("SELECT value FROM settings WHERE key = ?1")?
                .query_row([key], |row| row.get(0))
                .optional()?)
        })
    }

    fn set_value<'a>(&'a self, key: &'a str, value: &'a str) -> BoxFuture<'a, StoreResult<()>> {
        let (key, value) = (key.to_owned(), value.to_owned());
        self.write_single(move |context| {
            context
                .db
                .prepare_cached("INSERT OR REPLACE INTO settings (key, value) VALUES (?1, ?2)")?
                .execute([key, value])?;
            Ok(())
        })
    }
}

impl SqliteStore {
    /// Deletes the row that `sql` names; `Missing` when there is none.
    pub(super) fn delete_row(&self, sql: &'static str, name: &str) -> BoxFuture<'_, StoreResult<()>> {
        let name = name.to_owned();
        self.write_single(
            move |context| match context.db.prepare_cached(sql)?.execute([name])? {
                0 => Err(StoreError::Missing.into()),
                _ => Ok(()),
            },
        )
    }
}

fn decode_policy(row: &Row<'_>) -> Result<Policy, Fault> {
    let key = |index| -> Result<SymmetricKey, Fault> {
        SymmetricKey::parse(&row.get::<_, String>(index)?)
            .map_err(|error| Fault::content("policy key", error))
    };
    let rights: String = row.get(3)?;
    Ok(Policy {
        name: row.get(0)?,
        primary_key: key(1)?,
        secondary_key: key(2)?,
        rights: Rights::parse(&rights).ok_or_else(|| Fault::content("policy rights", rights))?,
    })
}

fn decode_authority(row: &Row<'_>) -> Result<CertificateAuthority, Fault> {
    Ok(CertificateAuthority {
        name: row.get(0)?,
        certificate: Bytes::from(row.get::<_, Vec<u8>>(1)?),
        verified: row.get(2)?,
        verification_code: row.get(3)?,
        created_at: Timestamp::from_micros(row.get(4)?),
        updated_at: Timestamp::from_micros(row.get(5)?),
        version: row.get::<_, i64>(6)? as u64,
    })
}
