//! Actions on devices over the hub's engine, for endpoints of the kind `action`.

use std::sync::Arc;

use holdfast_hub::{Hub, IfMatch, ServiceCaller};
use holdfast_model::method::{MethodCall, MethodResponse};
use holdfast_model::twin::{ChangeMode, TwinChange};
use holdfast_model::{Error, ErrorCode, Identity};
use holdfast_ports::action::DeviceActions;
use holdfast_ports::query::QueryStore;
use holdfast_ports::{BoxFuture, StoreError};
use holdfast_query::twin::Condition;

/// The engine, and where conditions are looked up.
pub(super) struct HubActions {
    pub(super) hub: Arc<Hub>,
    pub(super) queries: Arc<dyn QueryStore>,
}

/// Pages of a search that are looked at: a page may be empty with more to follow.
const PAGES_MAX: usize = 1_000;

impl DeviceActions for HubActions {
    fn call<'a>(
        &'a self,
        identity: &'a Identity,
        call: MethodCall,
    ) -> BoxFuture<'a, Result<MethodResponse, Error>> {
        Box::pin(self.hub.invoke_method(identity, call))
    }

    fn patch<'a>(&'a self, identity: &'a Identity, change: TwinChange) -> BoxFuture<'a, Result<u64, Error>> {
        Box::pin(async move {
            // As an operator's program would: the twins of `$edgeAgent` and `$edgeHub` belong to deployments.
            if identity.is_system_module() {
                return Err(Error::new(
                    ErrorCode::ArgumentInvalid,
                    "the twins of $edgeAgent and $edgeHub change with deployments only",
                ));
            }
            let caller = ServiceCaller::Local;
            let twin = self
                .hub
                .change_twin(&caller, identity, ChangeMode::Patch, change, IfMatch::Any)
                .await?;
            Ok(twin.version)
        })
    }

    fn select<'a>(
        &'a self,
        condition: &'a Condition,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Identity>, Error>> {
        Box::pin(async move {
            let mut found = Vec::new();
            let mut cursor = None;
            for _ in 0..PAGES_MAX {
                let page = self.queries.find_targets(condition, cursor, limit - found.len());
                let page = page.await.map_err(|error| match error {
                    StoreError::Refused(error) => error,
                    error => Error::new(
                        ErrorCode::ServiceUnavailable,
                        format!("the twins cannot be searched: {error}"),
                    ),
                })?;
                found.extend(page.identities);
                cursor = page.next;
                if found.len() >= limit || cursor.is_none() {
                    break;
                }
            }
            found.truncate(limit);
            Ok(found)
        })
    }
}
