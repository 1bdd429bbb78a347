//! The IoT Hub wire contract on top of the protocols: topics, property bags, headers, DTOs, connection strings,
//! API versions, error table.
//!
//! Everything here turns text or bytes into `holdfast-model` words, or back. There is no I/O, no clock and no
//! random source: tracking ids, times and keys come from the caller. The section numbers in the docs are those of
//! the MQTT contract ("MQTT contract, section 3.2") and of the HTTPS contract ("REST contract, section 15.1").

pub mod annotations;
pub mod api_version;
pub mod bag;
pub mod connection_string;
pub mod dto;
pub mod error;
pub mod etag;
pub mod event_json;
#[doc(hidden)]
pub mod fuzzing;
pub mod headers;
pub mod http_device;
pub mod hub_event;
pub mod links;
mod percent;
pub mod provisioning;
pub mod routed;
pub mod topics;
pub mod username;
