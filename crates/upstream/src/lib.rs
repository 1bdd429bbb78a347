//! Client of a hub on behalf of an edge device, its modules and the clients behind it.
//!
//! [`port`] is what the edge agent and the edge hub call; the rest implements it over the client roles of our own
//! protocol crates, so it speaks to Holdfast, to a compatible cloud hub and to a parent edge device alike.

pub mod port;
