//! AMQP 1.0 types, frames, SASL, connection, session and link machine, both roles. No I/O, no clock.
//!
//! Layers, each usable alone:
//!
//! * [`types`]: values. Reading gives views, copies nothing and is bounded in depth and size.
//! * [`performatives`]: the frame bodies, their termini, states and errors. Written at full length, always.
//! * [`message`]: message sections and Azure's batches.
//! * [`frame`]: protocol headers and frames.
//! * [`connection`]: [`Connection`], one end of a connection with its sessions and links: the same machine for server and
//!   client.
//!
//! The machine is deterministic. The caller owns the socket, the buffers and the time: it hands over what it read together
//! with the current time in milliseconds (any epoch, never going back), acts on the events, and calls verbs that append
//! bytes to an output buffer.
//!
//! Numbers such as AMQP 2.6.7 name the parts and sections of the OASIS AMQP 1.0 text: 1 types, 2 transport, 3 messaging,
//! 5 security.

pub mod connection;
mod error;
pub mod frame;
pub mod message;
pub mod performatives;
pub mod types;

pub use connection::{Config, Connection, Event, LinkId, SessionId};
pub use error::{ConnectionError, DecodeError, FrameError, LinkError, OpenError, SendError};
pub use message::Message;
pub use types::Value;
