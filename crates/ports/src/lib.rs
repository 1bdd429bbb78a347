//! Ports: the traits through which protocol heads, engines and stores meet.
//!
//! *Driving* ports are called by protocol heads and implemented by engines ([`gateway`], [`service`],
//! [`session`], [`provisioning`]). *Driven* ports
//! are called by engines and implemented by stores ([`registry`], [`twin`], [`event_log`], [`queue`], [`settings`],
//! [`enrollment`], [`configuration`], [`job`], [`outbox`], [`file`], [`clock`]). [`memory`] has an in-memory double of every
//! driven port; [`suite`] is the behaviour suite that each implementation passes. [`method_calls`] is what every engine of
//! sessions does with them for a direct method.
//!
//! Contract of every driven port: a method that returns `Ok` has made its change durable, unless its documentation
//! says otherwise. Methods of one store see each other's changes in the order in which they returned. Nothing here
//! assumes that all callers live in one process.

pub mod action;
pub mod clock;
pub mod configuration;
pub mod dead_letters;
pub mod endpoint;
pub mod enrollment;
pub mod event_log;
pub mod file;
pub mod gateway;
pub mod job;
pub mod memory;
pub mod method_calls;
pub mod outbox;
pub mod provisioning;
pub mod query;
pub mod queue;
pub mod registry;
pub mod service;
pub mod session;
pub mod settings;
pub mod store_error;
pub mod suite;
pub mod twin;

pub use futures_util::future::BoxFuture;
pub use store_error::{StoreError, StoreResult};
