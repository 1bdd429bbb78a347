//! What endpoints of the kind `action` ask of the engine: direct methods and twin patches in answer to events.

use holdfast_model::method::{MethodCall, MethodResponse};
use holdfast_model::twin::TwinChange;
use holdfast_model::{Error, Identity};
use holdfast_query::twin::Condition;

use crate::BoxFuture;

/// Acts on devices and modules with the rights of the hub itself; implemented over the engine.
pub trait DeviceActions: Send + Sync + 'static {
    /// Calls a direct method and waits for its answer. Made at most once by each call.
    ///
    /// # Errors
    /// Those of direct methods, such as `DeviceNotFound`, `DeviceNotOnline`, `GatewayTimeout`, `ArgumentInvalid`.
    fn call<'a>(
        &'a self,
        identity: &'a Identity,
        call: MethodCall,
    ) -> BoxFuture<'a, Result<MethodResponse, Error>>;

    /// Patches tags and desired properties, durably; returns the twin's version after the change.
    ///
    /// # Errors
    /// `DeviceNotFound`, `ModuleNotFound`, `ArgumentInvalid`, `ServiceUnavailable`.
    fn patch<'a>(&'a self, identity: &'a Identity, change: TwinChange) -> BoxFuture<'a, Result<u64, Error>>;

    /// Identities that a condition on twins selects, at most `limit`.
    ///
    /// # Errors
    /// `ArgumentInvalid`, `ThrottlingException`, `ServiceUnavailable`.
    fn select<'a>(
        &'a self,
        condition: &'a Condition,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Identity>, Error>>;
}
