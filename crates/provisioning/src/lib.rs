//! Device provisioning engine: enrollments, attestation, allocation, registration state (languages.md section 6).
//!
//! [`Provisioning`] is the one object of this crate. Protocol heads see it as a
//! [`ProvisioningGateway`](holdfast_ports::provisioning::ProvisioningGateway); the service API calls its methods
//! directly. Nothing here knows a topic, an HTTP header or an SQL statement.
//!
//! # How a registration runs
//!
//! ```text
//! authenticate ─ enrollment of the id, else group ─ key | derived key | certificate | chain | TPM challenge
//! register ───── under way already? join : start a worker
//! worker ─────── decide (policy, allocation, webhook) ─ store the plan ─ do it on the hubs ─ store the result
//! operation ──── under way? wait a moment : stored result, or go on with a stored plan
//! ```
//!
//! # Invariants
//! * What is answered as assigned or failed is stored.
//! * What will be done on hubs is stored before it is done. Every step may be repeated, so whoever goes on after a crash
//!   ends at the same hub, and no device is on two.
//! * One worker per registration id in this process; on several nodes the version of the stored registration lets one
//!   of them win.
//! * No lock is held across an await.
//! * No key is ever in a log line; refusals name the registration id.

mod allocation;
mod auth;
mod certificate;
mod engine;
mod enrollments;
pub mod events;
mod failure;
mod hubs;
mod latency;
mod policies;
mod register;
mod spec;
mod tpm;

pub use engine::{Drivers, Provisioning, ProvisioningConfig};
pub use enrollments::{BulkFailure, BulkMode};
pub use hubs::LinkedHubSpec;
pub use spec::{AttestationSpec, CertificateSpec, EnrollmentSpec, IndividualSpec};
