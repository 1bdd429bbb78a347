//! Twins as automatic device management changes them (rest.md section 12).

use std::sync::Arc;

use holdfast_model::twin::{ChangeMode, ManagedPlan, Twin, TwinChange, desired_notification};
use holdfast_model::{Error, Identity};
use holdfast_ports::twin::TwinMutation;
use parking_lot::Mutex;
use serde_json::{Map, Value};

use crate::Hub;
use crate::auth::ServiceCaller;
use crate::events::TwinWriter;
use crate::registry::spec::IdentitySpec;

/// Whether a plan is still the one to carry out; asked at the moment of the change.
pub type StillWanted = Arc<dyn Fn() -> bool + Send + Sync>;

impl Hub {
    /// Brings a twin to a plan, durably, and tells the device of changed desired properties. Nothing is changed when
    /// `still_wanted` says no, or when the twin is there already. Returns whether desired properties changed.
    ///
    /// # Errors
    /// `ArgumentInvalid` when the content breaks a rule of twins; `DeviceNotFound`, `ModuleNotFound`.
    pub async fn manage_twin(
        &self,
        identity: &Identity,
        plan: Arc<ManagedPlan>,
        still_wanted: StillWanted,
    ) -> Result<bool, Error> {
        let order = self.desired_order.begin(identity);
        let patch = Arc::new(Mutex::new(None));
        let now = self.now();
        let mutation: TwinMutation = {
            let patch = Arc::clone(&patch);
            Arc::new(move |twin| {
                if still_wanted() {
                    *patch.lock() = twin.manage(&plan, now)?;
                }
                Ok(())
            })
        };
        let changed = self.mutate_twin(identity, ChangeMode::Patch, mutation).await;
        let twin = changed.map_err(|error| self.twin_error(identity, error))?;
        let Some(patch) = patch.lock().take() else {
            return Ok(false);
        };
        self.metrics.twin_changes.of(TwinWriter::Service).inc();
        let version = twin.desired.version;
        order.finish(
            version,
            desired_notification(ChangeMode::Patch, &patch, &Map::new(), version),
        );
        Ok(true)
    }

    /// Replaces the desired properties of a device or module, the reserved edge modules included, durably, and tells
    /// the device. What automatic management has written there is no longer known as its own: it writes again if it
    /// wants to. Returns the new twin.
    ///
    /// # Errors
    /// As [`Hub::manage_twin`].
    pub async fn replace_desired(
        &self,
        identity: &Identity,
        desired: Map<String, Value>,
    ) -> Result<Twin, Error> {
        let order = self.desired_order.begin(identity);
        let before = Arc::new(Mutex::new(Map::new()));
        let now = self.now();
        let change = TwinChange {
            tags: None,
            desired: Some(desired.clone()),
        };
        let mutation: TwinMutation = {
            let before = Arc::clone(&before);
            Arc::new(move |twin| {
                *before.lock() = twin.desired.properties.clone();
                twin.managed = None;
                twin.apply(ChangeMode::Replace, &change, now)
            })
        };
        let changed = self.mutate_twin(identity, ChangeMode::Replace, mutation).await;
        let twin = changed.map_err(|error| self.twin_error(identity, error))?;
        self.metrics.twin_changes.of(TwinWriter::Service).inc();
        let version = twin.desired.version;
        let patch = desired_notification(ChangeMode::Replace, &desired, &before.lock(), version);
        order.finish(version, patch);
        self.changes.note(identity);
        Ok(twin)
    }

    /// Makes sure that a module of an edge device exists: a deployment has content for it.
    ///
    /// # Errors
    /// `DeviceNotFound`, `TooManyModulesOnDevice`.
    pub async fn ensure_edge_module(&self, module: &Identity) -> Result<(), Error> {
        use holdfast_model::ErrorCode;
        match self.check_exists(module).await {
            Err(error) if error.code == ErrorCode::ModuleNotFound => {}
            other => return other,
        }
        let spec = IdentitySpec {
            managed_by: Some("IotEdge".to_owned()),
            ..IdentitySpec::default()
        };
        let created = self.create_identity(&ServiceCaller::Local, module, &spec).await;
        match created {
            Err(error) if error.code != ErrorCode::ModuleAlreadyExistsOnDevice => Err(error),
            _ => Ok(()),
        }
    }
}
