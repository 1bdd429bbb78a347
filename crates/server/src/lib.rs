//! Composition root of the hub and the operator's command line.
//!
//! [`cli`] parses the command line and talks to a hub over its REST API, as any other client would. [`serve`] chooses
//! the implementations behind the ports, opens listeners and shuts down in order. [`simulate`] and [`bench`] are MQTT
//! clients that share one load engine, [`bench::mqtt_load`].
//!
//! Architecture invariant: this is the only crate of the hub that names stores, engines and heads together.

pub mod bench;
mod blobs;
pub mod cli;
pub mod serve;
pub mod simulate;
