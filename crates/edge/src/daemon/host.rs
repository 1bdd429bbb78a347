//! What the agent asks of the rest of the daemon.

use std::sync::{Arc, OnceLock};

use holdfast_agent::host::{BuiltIn, BundleRequest, Host, Put, TemporaryFile, UploadError};
use holdfast_agent::runtime::{LogQuery, LogStream, RuntimeError};
use holdfast_model::Timestamp;
use holdfast_ports::BoxFuture;

use super::hub::EdgeHub;
use crate::journal;
use crate::modules::{EDGE_AGENT, EDGE_HUB};
use crate::support::SupportBundle;
use crate::upload::Uploader;

/// The rest of the daemon.
pub(super) struct DaemonHost {
    pub(super) started_at: Timestamp,
    /// Empty while the daemon is being put together.
    pub(super) hub: Arc<OnceLock<Arc<EdgeHub>>>,
    pub(super) uploader: Uploader,
    pub(super) bundles: Arc<SupportBundle>,
}

impl Host for DaemonHost {
    fn built_ins(&self) -> Vec<BuiltIn> {
        vec![
            BuiltIn {
                name: EDGE_AGENT,
                running: true,
                description: None,
                started_at: self.started_at,
            },
            BuiltIn {
                name: EDGE_HUB,
                running: self.hub.get().is_some(),
                description: None,
                started_at: self.started_at,
            },
        ]
    }

    fn restart_built_in<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            match name {
                EDGE_AGENT => Ok(()),
                EDGE_HUB => match self.hub.get() {
                    Some(hub) => {
                        hub.refresh();
                        Ok(())
                    }
                    None => Err("the edge hub has not been started yet".to_owned()),
                },
                other => Err(format!("{other} is not part of the daemon")),
            }
        })
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
