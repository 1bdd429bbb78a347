//! One device or module: what it should be, and bringing it there.

use std::collections::BTreeSet;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use holdfast_hub::StillWanted;
use holdfast_model::registry::IdentityRecord;
use holdfast_model::twin::{ManagedPlan, Twin};
use holdfast_model::{Error, ErrorCode, Identity};
use holdfast_observe::Event as _;
use holdfast_query::twin::TwinRow;

use super::Configurations;
use super::active::Active;
use super::events::ContentRefused;
use super::plan::{self, EdgePlan};

impl Configurations {
    /// Evaluates an identity after all that was evaluated of its device before. When somebody else is at that device,
    /// they do it. Returns whether it worked out.
    pub(super) async fn evaluate_in_turn(&self, identity: Identity) -> bool {
        let device = identity.owner();
        match self.busy.lock().entry(device.clone()) {
            Entry::Occupied(mut again) => {
                again.get_mut().insert(identity);
                return true;
            }
            Entry::Vacant(free) => {
                free.insert(BTreeSet::new());
            }
        }
        let (mut next, mut worked) = (Some(identity), true);
        while let Some(identity) = next.take() {
            self.metrics.evaluations.inc();
            worked &= match self.evaluate(&identity).await {
                Err(error) => is_gone(&error),
                Ok(()) => true,
            };
            let mut busy = self.busy.lock();
            next = busy.get_mut(&device).and_then(BTreeSet::pop_first);
            if next.is_none() {
                busy.remove(&device);
            }
        }
        worked
    }

    async fn evaluate(&self, identity: &Identity) -> Result<(), Error> {
        let active = self.active();
        let device = identity.owner();
        let (record, twin) = (self.hub.identity(&device).await?, self.hub.twin(&device).await?);
        let waiting = match active.counts_messages() {
            true => self.hub.c2d_depth(&device).await?,
            false => 0,
        };
        let row = TwinRow {
            record: &record,
            twin: &twin,
            waiting,
        };
        let edge = EdgePlan::choose(&active.of_edge_device(&row));
        if identity.is_module() {
            let module = self.hub.identity(identity).await?;
            return self.evaluate_module(&active, &edge, module).await;
        }
        let plan = plan::single(&active.of_device(&row));
        self.carry_out(&active, &device, &twin, plan).await?;
        if !record.iot_edge && !active.has_module_configurations() {
            return Ok(());
        }
        for module in edge.modules() {
            let module = Identity::module(device.device_id(), module)?;
            self.hub.ensure_edge_module(&module).await?;
        }
        // From the back, because the reserved modules come last then: when the agent hears of its modules, their twins
        // are there.
        for module in self.hub.list_modules(&device).await?.into_iter().rev() {
            match self.evaluate_module(&active, &edge, module).await {
                Err(error) if !is_gone(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    async fn evaluate_module(
        &self,
        active: &Active,
        edge: &EdgePlan,
        record: IdentityRecord,
    ) -> Result<(), Error> {
        let twin = self.hub.twin(&record.identity).await?;
        let row = TwinRow {
            record: &record,
            twin: &twin,
            waiting: 0,
        };
        let module_id = record.identity.module_id().unwrap_or_default();
        let plan = edge.module(module_id, &twin, &active.of_module(&row));
        self.carry_out(active, &record.identity, &twin, plan).await
    }

    async fn carry_out(
        &self,
        active: &Active,
        identity: &Identity,
        twin: &Twin,
        plan: ManagedPlan,
    ) -> Result<(), Error> {
        if twin.meets(&plan) {
            return Ok(());
        }
        let still_wanted: StillWanted = {
            let (current, generation) = (Arc::clone(&self.generation), active.generation);
            Arc::new(move || current.load(Ordering::Acquire) == generation)
        };
        let plan = Arc::new(plan);
        let managed = self
            .hub
            .manage_twin(identity, Arc::clone(&plan), Arc::clone(&still_wanted));
        match managed.await {
            Ok(_) => {
                self.metrics.twins_changed.inc();
                Ok(())
            }
            Err(error) if error.code == ErrorCode::ArgumentInvalid => {
                ContentRefused {
                    identity: identity.as_str(),
                    reason: &error.message,
                }
                .emit(&self.metrics);
                let plan = plan::without_content(&plan, twin);
                if twin.meets(&plan) {
                    return Ok(());
                }
                let managed = self.hub.manage_twin(identity, Arc::new(plan), still_wanted);
                managed.await.map(drop)
            }
            Err(error) => Err(error),
        }
    }
}

/// Deleted meanwhile: nothing is left to do.
fn is_gone(error: &Error) -> bool {
    matches!(error.code, ErrorCode::DeviceNotFound | ErrorCode::ModuleNotFound)
}
