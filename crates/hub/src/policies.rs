//! Shared access policies, cached.

use std::sync::Arc;

use holdfast_model::credential::SymmetricKey;
use holdfast_model::event::AuthMethod;
use holdfast_model::policy::{DEFAULT_POLICIES, Policy, Rights, check_policy_name};
use holdfast_model::{Error, ErrorCode};
use holdfast_ports::StoreError;

use crate::Hub;
use crate::failure::invalid;
use crate::registry::spec::KeyChoice;

/// All policies, by name. There are few.
#[derive(Debug, Default)]
pub(crate) struct PolicySet(Vec<Policy>);

impl PolicySet {
    pub(crate) fn new(mut policies: Vec<Policy>) -> Self {
        policies.sort_by(|a, b| a.name.cmp(&b.name));
        PolicySet(policies)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Policy> {
        self.0.iter().find(|policy| policy.name == name)
    }
}

/// Keys for a policy.
#[derive(Clone, Debug, Default)]
pub struct PolicyKeys {
    /// First key; made by the hub when `None`.
    pub primary_key: Option<SymmetricKey>,
    /// Second key; made by the hub when `None`.
    pub secondary_key: Option<SymmetricKey>,
}

impl Hub {
    /// Creates the policies of rest.md 2.2 with random keys if the hub has none at all (first start).
    ///
    /// # Errors
    /// `ServiceUnavailable`.
    pub async fn ensure_policies(&self) -> Result<(), Error> {
        let _changing = self.settings_changes.lock().await;
        if !self.policies.load().0.is_empty() {
            return Ok(());
        }
        for (name, rights) in DEFAULT_POLICIES {
            let policy = Policy {
                name: (*name).to_owned(),
                primary_key: SymmetricKey::generate(),
                secondary_key: SymmetricKey::generate(),
                rights: *rights,
            };
            self.stores
                .settings
                .put_policy(policy)
                .await
                .map_err(|error| self.store_error("save policy", error))?;
        }
        self.reload_policies().await
    }

    /// All policies by name, with their keys.
    #[must_use]
    pub fn policies(&self) -> Vec<Policy> {
        self.policies.load().0.clone()
    }

    /// One policy, with its keys.
    ///
    /// # Errors
    /// `ResourceNotFound`.
    pub fn policy(&self, name: &str) -> Result<Policy, Error> {
        let policies = self.policies.load();
        policies.get(name).cloned().ok_or_else(|| no_policy(name))
    }

    /// Adds a policy, or replaces one with its rights and keys.
    ///
    /// # Errors
    /// `ArgumentInvalid` for a bad name or no rights.
    pub async fn put_policy(&self, name: &str, rights: Rights, keys: PolicyKeys) -> Result<Policy, Error> {
        check_policy_name(name)?;
        if rights == Rights::NONE {
            return Err(invalid("a policy must have a right"));
        }
        let policy = Policy {
            name: name.to_owned(),
            primary_key: keys.primary_key.unwrap_or_else(SymmetricKey::generate),
            secondary_key: keys.secondary_key.unwrap_or_else(SymmetricKey::generate),
            rights,
        };
        let _changing = self.settings_changes.lock().await;
        self.save_policy(policy.clone()).await?;
        Ok(policy)
    }

    /// Makes new keys for a policy.
    ///
    /// # Errors
    /// `ResourceNotFound`.
    pub async fn regenerate_policy_keys(&self, name: &str, choice: KeyChoice) -> Result<Policy, Error> {
        let _changing = self.settings_changes.lock().await;
        let mut policy = self.policy(name)?;
        if choice != KeyChoice::Secondary {
            policy.primary_key = SymmetricKey::generate();
        }
        if choice != KeyChoice::Primary {
            policy.secondary_key = SymmetricKey::generate();
        }
        self.save_policy(policy.clone()).await?;
        Ok(policy)
    }

    /// Deletes a policy.
    ///
    /// # Errors
    /// `ResourceNotFound`.
    pub async fn delete_policy(&self, name: &str) -> Result<(), Error> {
        let _changing = self.settings_changes.lock().await;
        self.stores
            .settings
            .delete_policy(name)
            .await
            .map_err(|error| match error {
                StoreError::Missing => no_policy(name),
                other => self.store_error("delete policy", other),
            })?;
        self.reload_policies().await?;
        self.end_trusted_sessions(AuthMethod::PolicyKey);
        Ok(())
    }

    async fn save_policy(&self, policy: Policy) -> Result<(), Error> {
        self.stores
            .settings
            .put_policy(policy)
            .await
            .map_err(|error| self.store_error("save policy", error))?;
        self.reload_policies().await?;
        self.end_trusted_sessions(AuthMethod::PolicyKey);
        Ok(())
    }

    async fn reload_policies(&self) -> Result<(), Error> {
        let policies = self
            .stores
            .settings
            .policies()
            .await
            .map_err(|error| self.store_error("read policies", error))?;
        self.policies.store(Arc::new(PolicySet::new(policies)));
        Ok(())
    }
}

fn no_policy(name: &str) -> Error {
    Error::new(
        ErrorCode::ResourceNotFound,
        format!("there is no policy {name:?}"),
    )
}
