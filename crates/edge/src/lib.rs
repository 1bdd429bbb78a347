//! The edge runtime in one daemon: what `aziot-edged`, the identity, key and certificate services, `edgeAgent` and `edgeHub`
//! are together.
//!
//! This crate holds what is not agent, engine, edge hub or upstream: configuration ([`config`]), keys ([`keys`]),
//! certificates ([`certificates`]), identities ([`identities`]), local APIs ([`http`]), and it is the only one that puts
//! all of them together.

pub mod certificates;
pub mod commands;
pub mod config;
pub mod daemon;
pub mod http;
pub mod identities;
mod journal;
pub mod keys;
mod memory;
pub mod modules;
pub mod provisioning;
pub mod sockets;
pub mod support;
pub mod system;
pub mod time_text;
pub mod upload;
pub mod upstream;
