//! The agent on doubles in memory: scenarios with a clock that tests move.
//!
//! Method: tokio's clock is paused, so waiting costs nothing and pauses of minutes are exact; the engine, the hub and the
//! rest of the daemon are [`holdfast_agent::memory`]. A test waits for a condition until a deadline of virtual time.

#![allow(clippy::unwrap_used)]

mod bodies;
mod deployments;
mod edge_hub;
mod faults;
mod methods;
mod offline;
mod restarts;
mod rollback;
mod site;
