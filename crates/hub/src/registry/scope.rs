//! Device scopes: which edge device is whose parent (rest.md 5.1 and 5.3).

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

fn refused(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::InvalidDeviceScope, message)
}
