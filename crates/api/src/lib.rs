//! The service side of the hub over HTTPS: identities, twins, direct methods, cloud-to-device messages, statistics
//! (IoT Hub's own operations), and Holdfast's operations below `/holdfast/v1` (policies, certificate authorities,
//! consumer groups, sending cloud-to-device messages, reading events). Device provisioning's service side is here too:
//! the same host, with policies and rights of its own.
//!
//! [`Api`] holds what handlers need; [`service`] makes the HTTP service. Every operation is declared in `routes` with the
//! right it needs ([`Operation`]); handlers find the checked caller in the request's extensions. Bodies and errors are
//! `holdfast-wire`'s; this crate only joins them with the engine.

mod certificates;
mod configurations;
mod consumer_groups;
mod digital_twins;
mod events;
mod extract;
mod feedback;
mod identities;
mod jobs;
mod messages;
mod methods;
mod models;
mod openapi;
mod operation;
mod path;
mod policies;
mod provisioning;
mod query;
mod reply;
mod routes;
mod routing;
mod scope;
mod statistics;
mod transfer;
mod twins;

use std::sync::Arc;

use holdfast_fleet::configurations::Configurations;
use holdfast_fleet::jobs::Jobs;
use holdfast_fleet::models::ModelFolder;
use holdfast_fleet::transfer::TransferJobs;
use holdfast_hub::Hub;
use holdfast_ports::event_log::EventLog;
use holdfast_ports::query::QueryStore;
use holdfast_ports::settings::CheckpointStore;
use holdfast_provisioning::Provisioning;
use tokio::sync::watch;

pub use openapi::document;
pub use operation::{Needed, Operation};
pub use routes::{operations, service};
pub use routing::Routing;
pub use transfer::JsonLines;

/// What the handlers share.
#[derive(Clone)]
pub struct Api {
    /// The engine.
    pub hub: Arc<Hub>,
    /// The engine of device provisioning.
    pub provisioning: Arc<Provisioning>,
    /// Import and export.
    pub transfer: Arc<TransferJobs>,
    /// Models of plug and play devices.
    pub models: Arc<ModelFolder>,
    /// Configurations and edge deployments.
    pub configurations: Arc<Configurations>,
    /// Scheduled jobs.
    pub jobs: Arc<Jobs>,
    /// Events, for reading.
    pub log: Arc<dyn EventLog>,
    /// Queries over twins and jobs.
    pub queries: Arc<dyn QueryStore>,
    /// Routes, endpoints and what they did not take.
    pub routing: Routing,
    /// Reading positions.
    pub checkpoints: Arc<dyn CheckpointStore>,
    /// Ends the streams when the hub stops.
    pub closing: Closing,
}

/// Tells streams that the hub is stopping.
#[derive(Clone, Debug)]
pub struct Closing(watch::Receiver<bool>);

impl Closing {
    /// Follows a switch that is set to `true` once, when the hub stops.
    #[must_use]
    pub fn new(switch: watch::Receiver<bool>) -> Self {
        Closing(switch)
    }

    /// Returns when the hub is stopping; never when the switch was dropped without being set.
    pub(crate) async fn wait(mut self) {
        if self.0.wait_for(|closing| *closing).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
