//! MQTT 3.1.1 and 5 codec and session machine, client and server role. No I/O, no clock.
//!
//! Three layers, each usable alone:
//!
//! * [`codec`]: bytes to borrowed MQTT 3.1.1 packets and back. Decoding copies and allocates nothing, and refuses a packet
//!   that is too large from its fixed header alone. [`v5`] is the same for MQTT 5.
//! * [`server`]: [`ServerSession`], the server's side of one connection: packet order, acknowledgement order, packet
//!   identifiers, keep-alive. It knows nothing of topics, users or storage.
//! * [`client`]: [`ClientSession`], the client's side: in-flight window, pings, resending after a reconnect.
//!
//! Both machines are deterministic. The caller owns the socket, the buffers and the time: it decodes packets from what it
//! read, passes each to `handle` together with the current time in milliseconds (any epoch, never going back), and calls
//! verbs that append bytes to an output buffer.
//!
//! Clause numbers such as MQTT-3.1.0-1 name the conformance statements of the OASIS MQTT 3.1.1 text; those marked "v5" are
//! of the MQTT 5.0 text.

pub mod client;
pub mod codec;
mod cursor;
mod error;
mod inflight;
pub mod server;
pub mod v5;

pub use client::ClientSession;
pub use codec::{Packet, PacketId, PacketType, QoS, decode};
pub use error::{ClientError, DecodeError, EncodeError, ProtocolError, SendError};
pub use server::ServerSession;
