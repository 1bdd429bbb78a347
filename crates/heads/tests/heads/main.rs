//! The heads over real loopback sockets, against a small in-memory gateway.

mod amqp_client;
mod amqp_crowd;
mod amqp_devices;
mod amqp_files;
mod amqp_noise;
mod amqp_protocol;
mod amqp_provisioning;
mod amqp_rights;
mod amqp_services;
mod amqp_telemetry;
mod amqp_tls;
mod client;
mod crowd;
mod dps_gateway;
mod dps_https;
mod dps_mqtt;
mod gateway;
mod https_device;
mod mqtt_flow;
mod mqtt_login;
mod mqtt_telemetry;
mod tls;
mod websocket;
