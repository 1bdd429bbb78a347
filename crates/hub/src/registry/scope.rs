//! Device scopes: which edge device is whose parent (rest.md 5.1 and 5.3).

use holdfast_model::limits::DEVICES_PER_LIST_MAX;
use holdfast_model::registry::IdentityRecord;
use holdfast_model::{Error, ErrorCode, Identity};

use crate::Hub;
use crate::registry::spec::IdentitySpec;

/// Levels of edge devices above one another.
const EDGE_LEVELS_MAX: usize = 5;

impl Hub {
    /// The scope of the parent that `spec` asks for, checked.
    pub(crate) async fn resolve_parent(
        &self,
        identity: &Identity,
        spec: &IdentitySpec,
    ) -> Result<Option<String>, Error> {
        let Some(scope) = spec.parent_scope(identity.is_module())? else {
            return Ok(None);
        };
        let parent = self.edge_with_scope(scope).await?;
        if spec.iot_edge {
            self.check_nesting(identity, parent).await?;
        }
        Ok(Some(scope.to_owned()))
    }

    async fn edge_with_scope(&self, scope: &str) -> Result<IdentityRecord, Error> {
        self.stores
            .registry
            .find_scope(scope)
            .await
            .map_err(|error| self.store_error("find device scope", error))?
            .ok_or_else(|| refused(format!("no edge device has the scope {scope:?}")))
    }

    /// An edge device below itself would be authenticated by whoever it authenticates.
    async fn check_nesting(&self, child: &Identity, parent: IdentityRecord) -> Result<(), Error> {
        let mut above = parent;
        for _ in 1..EDGE_LEVELS_MAX {
            if above.identity == *child {
                return Err(refused("an edge device cannot be its own parent or grandparent"));
            }
            let Some(scope) = above.parent_scopes.first() else {
                return Ok(());
            };
            above = self.edge_with_scope(scope).await?;
        }
        Err(refused(format!(
            "edge devices can be nested {EDGE_LEVELS_MAX} levels deep at most"
        )))
    }
}

/// A part of what is in the scope of an edge device.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ScopePart {
    /// Devices: on the first page the edge device itself before its children.
    pub devices: Vec<IdentityRecord>,
    /// Modules of the edge device and of its leaf children.
    pub modules: Vec<IdentityRecord>,
    /// What the next page comes after; `None` when this is the last.
    pub next: Option<String>,
}

impl Hub {
    /// What is in the scope of an edge device: itself, its modules, its children, and the modules of those children that
    /// are no edge devices (rest.md 14.1). At most `limit` children (1 to 1000, anything else means 1000) come at a
    /// time, starting after `after`.
    ///
    /// # Errors
    /// `DeviceNotFound`; `ServiceUnavailable`.
    pub async fn scope_of(
        &self,
        edge: &Identity,
        after: Option<&str>,
        limit: usize,
    ) -> Result<ScopePart, Error> {
        let record = self.stored_identity(edge).await?;
        let limit = if (1..=DEVICES_PER_LIST_MAX).contains(&limit) {
            limit
        } else {
            DEVICES_PER_LIST_MAX
        };
        let mut part = ScopePart::default();
        let scope = record.device_scope.clone().filter(|_| record.iot_edge);
        if after.is_none() {
            part.modules = self.list_modules(edge).await?;
            part.devices.push(record);
        }
        let Some(scope) = scope else {
            return Ok(part);
        };
        let listed = self.stores.registry.list_children(&scope, after, limit).await;
        let children = listed.map_err(|error| self.store_error("list children", error))?;
        if children.len() == limit {
            part.next = children.last().map(|child| child.identity.device_id().to_owned());
        }
        for child in children {
            if !child.iot_edge {
                let modules = self.stores.registry.list_modules(&child.identity).await;
                part.modules
                    .extend(modules.map_err(|error| self.store_error("list modules", error))?);
            }
            part.devices.push(child);
        }
        Ok(part)
    }

    /// One identity of the scope of `edge`: a device, or a module with its device. Empty when it is not in the scope.
    ///
    /// # Errors
    /// `ServiceUnavailable`.
    pub async fn in_scope_of(&self, edge: &IdentityRecord, target: &Identity) -> Result<ScopePart, Error> {
        let read = async |identity: &Identity| {
            let read = self.stores.registry.get(identity).await;
            read.map_err(|error| self.store_error("read identity", error))
        };
        let device = read(&target.owner()).await?.filter(|device| {
            let is_child = edge.iot_edge
                && edge
                    .device_scope
                    .as_ref()
                    .is_some_and(|scope| device.parent_scopes.contains(scope));
            device.identity == edge.identity || is_child
        });
        let Some(device) = device else {
            return Ok(ScopePart::default());
        };
        let mut part = ScopePart::default();
        if target.is_module() {
            let Some(module) = read(target).await? else {
                return Ok(part);
            };
            part.modules.push(module);
        }
        part.devices.push(device);
        Ok(part)
    }
}

fn refused(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::InvalidDeviceScope, message)
}
