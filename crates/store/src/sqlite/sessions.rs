//! Stored device sessions in SQLite.

use holdfast_model::Identity;
use holdfast_model::subscription::Subscriptions;
use holdfast_ports::settings::SessionStore;
use holdfast_ports::{BoxFuture, StoreResult};
use rusqlite::{OptionalExtension as _, params};

use super::{SqliteStore, identity_row, module_column};

impl SessionStore for SqliteStore {
    fn session<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, StoreResult<Option<Subscriptions>>> {
        self.read(move |db| {
            Ok(db
                .prepare_cached(
                    "SELECT subscriptions FROM identities JOIN sessions ON sessions.id = identities.id
                     WHERE device_id = ?1 AND module_id = ?2",
                )?
                .query_row((identity.device_id(), module_column(identity)), |row| {
                    row.get(0).map(Subscriptions::from_bits)
                })
                .optional()?)
        })
    }

    fn save_session<'a>(
        &'a self,
        identity: &'a Identity,
        subscriptions: Subscriptions,
    ) -> BoxFuture<'a, StoreResult<()>> {
        let identity = identity.clone();
        self.write_single(move |context| {
            let Some(row) = identity_row(&context.db, &identity)? else {
                return Ok(());
            };
            // A device that reconnects mostly says what it said before; then nothing has to reach the disk.
            context
                .db
                .prepare_cached(
                    "INSERT INTO sessions (id, subscriptions) VALUES (?1, ?2)
                     ON CONFLICT DO UPDATE SET subscriptions = excluded.subscriptions
                     WHERE subscriptions <> excluded.subscriptions",
                )?
                .execute(params![row, subscriptions.bits()])?;
            Ok(())
        })
    }

    fn delete_session<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, StoreResult<()>> {
        let identity = identity.clone();
        self.write_single(move |context| {
            if let Some(row) = identity_row(&context.db, &identity)? {
                context
                    .db
                    .prepare_cached("DELETE FROM sessions WHERE id = ?1")?
                    .execute([row])?;
            }
            Ok(())
        })
    }
}
