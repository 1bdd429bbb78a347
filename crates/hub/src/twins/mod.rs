//! Twins: reading, changing, telling devices (rest.md section 6, mqtt.md 6.2).

pub(crate) mod managed;
pub(crate) mod order;

use std::sync::Arc;

use bytes::Bytes;
use holdfast_model::twin::{ChangeMode, Twin, TwinChange, desired_notification, parse_object};
use holdfast_model::{Error, ErrorCode, Identity};
use holdfast_ports::twin::TwinMutation;
use holdfast_ports::{StoreError, StoreResult};
use parking_lot::Mutex;

use crate::Hub;
use crate::auth::ServiceCaller;
use crate::events::TwinWriter;
use crate::failure::{invalid, not_found};
use crate::if_match::IfMatch;

impl Hub {
    /// The twin of a device or module.
    ///
    /// # Errors
    /// `DeviceNotFound`, `ModuleNotFound`.
    pub async fn twin(&self, identity: &Identity) -> Result<Twin, Error> {
        self.stores
            .twins
            .twin(identity)
            .await
            .map_err(|error| self.store_error("read twin", error))?
            .ok_or_else(|| not_found(identity))
    }

    /// Patches or replaces tags and desired properties, durably, and tells the device of changed desired properties.
    /// `if_match` is about the twin's version. Returns the new twin.
    ///
    /// # Errors
    /// `ArgumentInvalid` with the path of the member that breaks a rule; `PreconditionFailed`; `DeviceNotFound`,
    /// `ModuleNotFound`; `SystemModuleModifyUnauthorizedAccess` for `$edgeAgent` and `$edgeHub`, which change with
    /// deployments only.
    pub async fn change_twin(
        &self,
        caller: &ServiceCaller,
        identity: &Identity,
        mode: ChangeMode,
        change: TwinChange,
        if_match: IfMatch,
    ) -> Result<Twin, Error> {
        if identity.is_system_module() && !matches!(caller, ServiceCaller::Local) {
            return Err(reserved_module());
        }
        let order = change
            .desired
            .as_ref()
            .map(|_| self.desired_order.begin(identity));
        let change = Arc::new(change);
        let before = Arc::new(Mutex::new((0, serde_json::Map::new())));
        let now = self.now();
        let mutation: TwinMutation = {
            let (change, before) = (Arc::clone(&change), Arc::clone(&before));
            Arc::new(move |twin| {
                if_match.check(twin.version)?;
                if mode == ChangeMode::Replace && change.desired.is_some() {
                    before.lock().1 = twin.desired.properties.clone();
                }
                before.lock().0 = twin.desired.version;
                twin.apply(mode, &change, now)
            })
        };
        let twin = self
            .mutate_twin(identity, mode, mutation)
            .await
            .map_err(|error| self.twin_error(identity, error))?;
        self.metrics.twin_changes.of(TwinWriter::Service).inc();
        self.changes.note(identity);
        if let (Some(order), Some(desired)) = (order, &change.desired) {
            let (version_before, before) = std::mem::take(&mut *before.lock());
            if twin.desired.version != version_before {
                let patch = desired_notification(mode, desired, &before, twin.desired.version);
                order.finish(twin.desired.version, patch);
            }
        }
        Ok(twin)
    }

    /// See `DeviceGateway::device_twin`.
    pub(crate) async fn read_device_twin(&self, identity: &Identity) -> Result<Bytes, Error> {
        Ok(self.twin(identity).await?.device_json())
    }

    /// See `DeviceGateway::patch_reported`.
    pub(crate) async fn report(
        &self,
        identity: &Identity,
        patch: &[u8],
        expected_version: Option<u64>,
    ) -> Result<u64, Error> {
        let patch = parse_object(patch, "the reported patch")?;
        let now = self.now();
        let mutation: TwinMutation = Arc::new(move |twin| {
            if expected_version.is_some_and(|expected| expected != twin.reported.version) {
                return Err(invalid(format!(
                    "the reported properties are at version {}, not {}",
                    twin.reported.version,
                    expected_version.unwrap_or_default()
                )));
            }
            twin.report(&patch, now).map(drop)
        });
        let twin = self
            .mutate_twin(identity, ChangeMode::Patch, mutation)
            .await
            .map_err(|error| self.twin_error(identity, error))?;
        self.metrics.twin_changes.of(TwinWriter::Device).inc();
        self.changes.note_report(identity);
        Ok(twin.reported.version)
    }

    /// Stores the model id that a device announces at its login, if it is another one than before. A login without one
    /// leaves what an earlier login announced.
    pub(crate) async fn note_model_id(
        &self,
        identity: &Identity,
        model_id: Option<&str>,
    ) -> Result<(), Error> {
        let Some(model_id) = model_id.filter(|id| !id.is_empty()) else {
            return Ok(());
        };
        let known = self
            .stores
            .twins
            .twin(identity)
            .await
            .map_err(|error| self.store_error("read twin", error))?;
        if known.is_none_or(|twin| twin.model_id.as_deref() == Some(model_id)) {
            return Ok(());
        }
        let model_id = model_id.to_owned();
        let mutation: TwinMutation = Arc::new(move |twin| {
            twin.model_id = Some(model_id.clone());
            Ok(())
        });
        match self.mutate_twin(identity, ChangeMode::Patch, mutation).await {
            Ok(_) => {
                self.changes.note(identity);
                Ok(())
            }
            Err(StoreError::Missing) => Ok(()),
            Err(error) => Err(self.store_error("save model id", error)),
        }
    }

    /// Changes a twin in the store, and tells of it in the form that `mode` says; the one way there.
    pub(crate) async fn mutate_twin(
        &self,
        identity: &Identity,
        mode: ChangeMode,
        mutation: TwinMutation,
    ) -> StoreResult<Twin> {
        let telling = self.twin_telling(identity, mode);
        let deadline = self.room_deadline();
        let twin = loop {
            let (mutation, telling) = (Arc::clone(&mutation), telling.clone());
            let changed = self.stores.twins.mutate_twin_telling(identity, mutation, telling);
            match changed.await {
                Err(error) if self.waited_for_room(&error, deadline).await => {}
                other => break other?,
            }
        };
        self.told();
        self.routing.senders.changed(identity, &twin);
        Ok(twin)
    }

    pub(crate) fn twin_error(&self, identity: &Identity, error: StoreError) -> Error {
        match error {
            StoreError::Missing => not_found(identity),
            other => self.store_error("change twin", other),
        }
    }
}

pub(crate) fn reserved_module() -> Error {
    Error::new(
        ErrorCode::SystemModuleModifyUnauthorizedAccess,
        "Unauthorized to modify reserved module.",
    )
}
