//! Fleet engine: what an operator does to many devices at once.
//!
//! * [`configurations`]: automatic device management and edge deployments.
//! * [`jobs`]: scheduled twin updates and direct methods over a query.
//! * [`models`]: models of plug and play devices.
//! * [`transfer`]: bulk import and export.
//!
//! It calls the hub engine for every change, so nothing of twins or methods is written twice, and reaches its own
//! records through `ports`.

pub mod configurations;
pub mod jobs;
pub mod models;
pub mod transfer;
