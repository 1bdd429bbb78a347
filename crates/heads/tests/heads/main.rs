//! The heads over real loopback sockets, against a small in-memory gateway.

mod client;
mod crowd;
mod gateway;
mod https_device;
mod mqtt_flow;
mod mqtt_login;
mod mqtt_telemetry;
mod tls;
mod websocket;
