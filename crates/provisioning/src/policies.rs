//! Shared access policies of the provisioning service, cached.

use std::sync::Arc;

use holdfast_model::credential::SymmetricKey;
use holdfast_model::policy::check_policy_name;
use holdfast_model::provisioning::{OWNER_POLICY, ProvisioningPolicy, ProvisioningRights};
use holdfast_model::{Error, ErrorCode};
use holdfast_ports::enrollment::EnrollmentStore;
use holdfast_ports::{StoreError, StoreResult};

use crate::Provisioning;
use crate::failure::invalid;

/// The stored policies; the owner's is made if there is none at all (first start).
pub(crate) async fn ensure(store: &dyn EnrollmentStore) -> StoreResult<Vec<ProvisioningPolicy>> {
    let policies = store.provisioning_policies().await?;
    if !policies.is_empty() {
        return Ok(policies);
    }
    let owner = ProvisioningPolicy {
        name: OWNER_POLICY.to_owned(),
        primary_key: SymmetricKey::generate(),
        secondary_key: SymmetricKey::generate(),
        rights: ProvisioningRights::ALL,
    };
    store.put_provisioning_policy(owner.clone()).await?;
    Ok(vec![owner])
}

impl Provisioning {
    /// All policies by name, with their keys.
    #[must_use]
    pub fn policies(&self) -> Vec<ProvisioningPolicy> {
        self.policies.load().as_ref().clone()
    }

    /// One policy, with its keys.
    ///
    /// # Errors
    /// `ResourceNotFound`.
    pub fn policy(&self, name: &str) -> Result<ProvisioningPolicy, Error> {
        let policies = self.policies.load();
        let found = policies.iter().find(|policy| policy.name == name);
        found.cloned().ok_or_else(|| no_policy(name))
    }

    /// Adds a policy, or replaces one with its rights and keys; keys that are not given are made.
    ///
    /// # Errors
    /// `ArgumentInvalid` for a bad name or no rights.
    pub async fn put_policy(
        &self,
        name: &str,
        rights: ProvisioningRights,
        primary_key: Option<SymmetricKey>,
        secondary_key: Option<SymmetricKey>,
    ) -> Result<ProvisioningPolicy, Error> {
        check_policy_name(name)?;
        if rights == ProvisioningRights::NONE {
            return Err(invalid("a policy must have a right"));
        }
        let policy = ProvisioningPolicy {
            name: name.to_owned(),
            primary_key: primary_key.unwrap_or_else(SymmetricKey::generate),
            secondary_key: secondary_key.unwrap_or_else(SymmetricKey::generate),
            rights,
        };
        let stored = self.drivers.store.put_provisioning_policy(policy.clone()).await;
        stored.map_err(|error| self.store_error("save policy", error))?;
        self.reload_policies().await?;
        Ok(policy)
    }

    /// Deletes a policy.
    ///
    /// # Errors
    /// `ResourceNotFound`.
    pub async fn delete_policy(&self, name: &str) -> Result<(), Error> {
        let deleted = self.drivers.store.delete_provisioning_policy(name).await;
        deleted.map_err(|error| match error {
            StoreError::Missing => no_policy(name),
            other => self.store_error("delete policy", other),
        })?;
        self.reload_policies().await
    }

    /// The cache follows the store: what is read last was stored last, whatever the order of the writers.
    async fn reload_policies(&self) -> Result<(), Error> {
        let policies = self.drivers.store.provisioning_policies().await;
        let policies = policies.map_err(|error| self.store_error("read policies", error))?;
        self.policies.store(Arc::new(policies));
        Ok(())
    }
}

fn no_policy(name: &str) -> Error {
    Error::new(
        ErrorCode::ResourceNotFound,
        format!("there is no policy {name:?}"),
    )
}
