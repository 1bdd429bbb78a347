//! The twins' store.

use std::sync::Arc;

use holdfast_model::twin::Twin;
use holdfast_model::{Error, Identity};

use crate::{BoxFuture, StoreResult};

/// Changes a twin in place or refuses. May run more than once when a store retries; must not have side effects.
pub type TwinMutation = Arc<dyn Fn(&mut Twin) -> Result<(), Error> + Send + Sync>;

/// Store of device and module twins. Twins come and go with their identity
/// ([`crate::registry::RegistryStore::create`]).
pub trait TwinStore: Send + Sync + 'static {
    /// The twin of an identity.
    fn twin<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, StoreResult<Option<Twin>>>;

    /// Applies `mutation`; changes of one twin are serialised. The mutation sets versions itself. Returns the new
    /// twin.
    ///
    /// # Errors
    /// `Missing`; `Refused` with the mutation's error, and then nothing has changed.
    fn mutate_twin<'a>(
        &'a self,
        identity: &'a Identity,
        mutation: TwinMutation,
    ) -> BoxFuture<'a, StoreResult<Twin>>;
}
