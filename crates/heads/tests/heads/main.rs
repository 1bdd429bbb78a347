//! The heads over real loopback sockets, against a small in-memory gateway.

mod client;
mod gateway;
mod mqtt_flow;
mod mqtt_login;
mod mqtt_telemetry;
