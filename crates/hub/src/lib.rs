//! Hub engine: registry, authentication, sessions, ingest, methods, cloud-to-device, twins.
//!
//! [`Hub`] is the one object of this crate. Protocol heads see it as a
//! [`DeviceGateway`](holdfast_ports::gateway::DeviceGateway); the service API calls its methods directly. Nothing here
//! knows a topic, a frame, an HTTP header or an SQL statement.
//!
//! # How the parts hang together
//!
//! ```text
//! connect ─ auth ─ registry.get + HMAC or certificate ─ sessions (directory, takeover) ─ stored subscriptions
//! send ──── ended? ─ EventLog::append                              (no lock, no allocation, no await)
//! service ─ authorize_service ─ registry | twins | methods | c2d ─ store ─ push to the live session
//! tick ──── expired tokens, connection states in a batch, expired cloud-to-device messages
//! ```
//!
//! # Invariants
//! * Stored state is the truth; what is pushed into a session's mailbox is a hint and may be lost.
//! * A session that was closed or replaced takes no telemetry any more ([`SessionHandle::is_ended`]), in the very next
//!   call of `send`.
//! * A change that takes away a right (disable, delete, new credentials) closes live sessions before the call that
//!   made it returns, and a login that was under way meanwhile is checked again.
//! * No lock is held across an await.
//!
//! [`SessionHandle::is_ended`]: holdfast_ports::session::SessionHandle::is_ended

mod auth;
mod authorities;
mod c2d;
mod changes;
mod config;
mod directory;
pub mod events;
mod failure;
pub mod files;
mod gateway;
mod groups;
mod hub;
mod if_match;
mod ingest;
mod methods;
mod policies;
mod registry;
mod routing;
mod sessions;
mod sources;
mod twins;

pub use auth::ServiceCaller;
pub use c2d::C2dSend;
pub use changes::{CHANGED_IDENTITIES_MAX, Changed, Listening};
pub use config::HubConfig;
pub use hub::{Hub, Stores};
pub use if_match::IfMatch;
pub use ingest::partition_of;
pub use policies::PolicyKeys;
pub use registry::bulk::{BulkEntry, BulkFailure, ImportMode};
pub use registry::import::{ImportEntry, Restored};
pub use registry::scope::ScopePart;
pub use registry::spec::{AuthenticationSpec, IdentitySpec, KeyChoice};
pub use twins::managed::StillWanted;
