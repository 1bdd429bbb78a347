//! The twins' store.

use std::sync::Arc;

use holdfast_model::twin::Twin;
use holdfast_model::{Error, Identity};

use crate::outbox::OutboxEvent;
use crate::{BoxFuture, StoreResult};

/// Changes a twin in place or refuses. May run more than once when a store retries; must not have side effects.
pub type TwinMutation = Arc<dyn Fn(&mut Twin) -> Result<(), Error> + Send + Sync>;

/// What is to be told of a change, given the twin before and after it. As a mutation it may run more than once.
pub type TwinTelling = Arc<dyn Fn(&Twin, &Twin) -> Vec<OutboxEvent> + Send + Sync>;

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
    ) -> BoxFuture<'a, StoreResult<Twin>> {
        self.mutate_twin_telling(identity, mutation, None)
    }

    /// As [`TwinStore::mutate_twin`]; what `telling` says goes into the outbox in the same transaction.
    ///
    /// # Errors
    /// As [`TwinStore::mutate_twin`]; then nothing is told either.
    fn mutate_twin_telling<'a>(
        &'a self,
        identity: &'a Identity,
        mutation: TwinMutation,
        telling: Option<TwinTelling>,
    ) -> BoxFuture<'a, StoreResult<Twin>>;
}
