//! Message routing: from an event to the endpoints that take it.
//!
//! ```text
//! append ── decision (pure) ── EndpointSet of the block ── event log
//!                                                            │ one dispatcher per endpoint, own checkpoint
//!                                                            └─ enrichments ── Endpoint::deliver ── retry, dead letters
//! ```
//!
//! The decision is made once, when an event is appended; a dispatcher only takes the blocks that are marked for its
//! endpoint, so a slow endpoint delays itself only.

mod batch;
pub mod dispatcher;
pub mod dispatchers;
pub mod endpoints;
pub mod enrich;
pub mod health;
mod message;
pub mod sources;
pub mod table;

pub use dispatcher::{DeliveryPolicy, Dispatcher, DispatcherParts};
pub use table::{Decider, Decision, RouteFault, RouteTable};
