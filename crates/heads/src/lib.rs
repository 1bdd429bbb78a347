//! Protocol heads: MQTT, AMQP, device HTTPS, WebSocket; sockets, TLS and tasks.
//!
//! A head owns sockets and time, translates between its protocol (`holdfast-mqtt`, `holdfast-amqp`, `hyper`) in Azure's spelling
//! (`holdfast-wire`) and the words of `holdfast-model`, and calls [`holdfast_ports::gateway::DeviceGateway`]. It knows
//! no engine and no store.
//!
//! | Entry point | What it serves |
//! |---|---|
//! | [`mqtt::MqttHead`] | MQTT 3.1.1 devices and modules over TCP or TLS, and the byte streams of WebSockets |
//! | [`amqp::AmqpHead`] | AMQP 1.0 devices, services, readers and producers of the event endpoint; the same streams |
//! | [`https::HttpsHead`] | one HTTPS port: the router of the caller, [`https::DeviceHttps`], WebSocket upgrades |
//! | [`dps::ProvisioningHttps`] | provisioning devices over HTTPS; over MQTT they log in to the same MQTT head |
//! | [`tls::TlsSettings`] | certificates and session tickets, shared by all listeners, reloadable |
//! | [`listener::bind`] | a listening socket with the options all heads want |

pub mod amqp;
pub mod dps;
mod end;
pub mod events;
pub mod https;
pub mod listener;
mod lobby;
pub mod mqtt;
pub mod tls;
mod tracking;
mod transport;
pub mod websocket;

/// Becomes `true` when the process is to stop: listeners close, sessions drain, `serve` functions return.
pub type Shutdown = tokio::sync::watch::Receiver<bool>;

/// Waits for the shutdown; a dropped sender counts as one.
pub(crate) async fn stopped(shutdown: &mut Shutdown) {
    // An error means that the sender is gone, and with it whoever could say otherwise.
    let _ = shutdown.wait_for(|stop| *stop).await;
}
