//! Domain words of Holdfast: identities, credentials, messages, events, twins, methods, error codes, limits.
//!
//! This crate has no I/O, no clock and no own-crate dependency. Its types say nothing about MQTT, AMQP, HTTP or
//! SQL: protocol spellings live in `holdfast-wire`, storage spellings in `holdfast-store`.

pub mod audience;
pub mod c2d;
pub mod configuration;
pub mod credential;
pub mod error;
pub mod event;
pub mod file;
pub mod identity;
pub mod job;
pub mod limits;
pub mod message;
pub mod method;
pub mod policy;
pub mod provisioning;
pub mod registry;
pub mod routing;
pub mod subscription;
pub mod time;
pub mod twin;

pub use error::{Error, ErrorCode, Result};
pub use identity::Identity;
pub use time::Timestamp;
