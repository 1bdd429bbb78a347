//! What the agent asks of the rest of the daemon.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_agent::host::{BuiltIn, BundleRequest, Host, Put, TemporaryFile, UploadError};
use holdfast_agent::runtime::{ContainerState, LogQuery, LogStream, RuntimeError};
use holdfast_model::Timestamp;
use holdfast_ports::BoxFuture;

use super::hub_module::HubModule;
use crate::journal;
use crate::modules::EDGE_AGENT;
use crate::support::SupportBundle;
use crate::upload::Uploader;

/// The rest of the daemon.
pub(super) struct DaemonHost {
    pub(super) started_at: Timestamp,
    pub(super) hub: Arc<HubModule>,
    pub(super) uploader: Uploader,
    pub(super) bundles: Arc<SupportBundle>,
}

impl Host for DaemonHost {
    fn built_ins(&self) -> Vec<BuiltIn> {
        let agent = BuiltIn {
            state: ContainerState::Running,
            started_at: self.started_at,
            ..BuiltIn::new(EDGE_AGENT)
        };
        vec![agent, self.hub.state()]
    }

    fn start_hub<'a>(&'a self, env: &'a BTreeMap<String, String>) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(self.hub.start(env))
    }

    fn stop_hub(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(self.hub.stop())
    }

    fn restart_hub<'a>(&'a self, env: &'a BTreeMap<String, String>) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(self.hub.restart(env))
    }

    fn hub_changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.hub.changed())
    }

    fn logs<'a>(
        &'a self,
        name: &'a str,
        query: &'a LogQuery,
    ) -> BoxFuture<'a, Result<Box<dyn LogStream>, RuntimeError>> {
        Box::pin(async move { journal::open(name, query) })
    }

    fn put<'a>(&'a self, put: &'a Put) -> BoxFuture<'a, Result<(), UploadError>> {
        Box::pin(self.uploader.put(put))
    }

    fn support_bundle<'a>(
        &'a self,
        request: &'a BundleRequest,
    ) -> BoxFuture<'a, Result<TemporaryFile, String>> {
        Box::pin(self.bundles.make(request))
    }
}
