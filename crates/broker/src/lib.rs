//! Edge hub: what modules and downstream devices see as their hub.
//!
//! Implements `ports::gateway::DeviceGateway` for the same protocol heads as the hub's, routes messages between modules and
//! upstream, and keeps them on disk until they are delivered.

pub mod queue;
