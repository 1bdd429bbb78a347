//! Store of configurations and edge deployments.

use holdfast_model::Identity;
use holdfast_model::configuration::Configuration;

use crate::enrollment::Expected;
use crate::{BoxFuture, StoreResult};

/// Whose twins count, when what a configuration has reached is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// Devices.
    Devices,
    /// Modules.
    Modules,
    /// `$edgeAgent` modules: one for each edge device.
    EdgeAgents,
}

/// How many twins show a configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReachCounts {
    /// With any status.
    pub targeted: u64,
    /// With the status `Applied`.
    pub applied: u64,
}

/// Identities whose twins show configurations.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ConfiguredPage {
    /// Devices and modules, in an order of the store's own.
    pub identities: Vec<Identity>,
    /// Where the next page begins; `None` at the end.
    pub next: Option<String>,
}

/// Store of configurations and deployments. What they have done to twins is kept with the twins
/// ([`holdfast_model::twin::Twin::configurations`]); this port finds it by configuration.
pub trait ConfigurationStore: Send + Sync + 'static {
    /// All configurations and deployments in the order of their ids.
    fn configurations(&self) -> BoxFuture<'_, StoreResult<Vec<Configuration>>>;

    /// Stores a configuration as it is, its version included.
    ///
    /// # Errors
    /// `Exists`, `Missing`, `Conflict` as `expected` says.
    fn put_configuration(
        &self,
        configuration: Configuration,
        expected: Expected,
    ) -> BoxFuture<'_, StoreResult<()>>;

    /// Deletes a configuration. What it has done to twins stays.
    ///
    /// # Errors
    /// As [`ConfigurationStore::put_configuration`].
    fn delete_configuration<'a>(&'a self, id: &'a str, expected: Expected) -> BoxFuture<'a, StoreResult<()>>;

    /// Up to `limit` identities whose twins show any configuration, from `after` (a [`ConfiguredPage::next`]). Every
    /// identity that shows one from the first page to the last is on one of them, whatever changes meanwhile.
    fn configured<'a>(
        &'a self,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<ConfiguredPage>>;

    /// Counts the twins that show a configuration.
    fn count_configured<'a>(&'a self, id: &'a str, reach: Reach) -> BoxFuture<'a, StoreResult<ReachCounts>>;
}
