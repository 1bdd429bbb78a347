//! Sockets: TCP, through a proxy or not, TLS, and a WebSocket inside where the protocol asks for one.

mod dial;
mod handshake;
mod link;
mod tls;
mod websocket;

pub(crate) use dial::{Route, Secured, is_silence};
pub(crate) use link::{Link, Step};
pub(crate) use tls::TlsSettings;
