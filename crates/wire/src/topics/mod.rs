//! The MQTT topic grammar of hub devices and modules (MQTT contract, sections 2.6 and 3 to 6).
//!
//! | Topic | Direction | Here |
//! |---|---|---|
//! | `devices/{d}[/modules/{m}]/messages/events[/{bag}]` | from the device | [`DeviceTopic::Telemetry`] |
//! | `$iothub/twin/GET/?$rid={r}` | from the device | [`DeviceTopic::TwinGet`] |
//! | `$iothub/twin/PATCH/properties/reported/?$rid={r}[&$version={n}]` | from the device | [`DeviceTopic::TwinPatchReported`] |
//! | `$iothub/methods/res/{status}/?$rid={r}` | from the device | [`DeviceTopic::MethodResponse`] |
//! | `devices/{d}/messages/devicebound/{bag}` | to the device | [`cloud_to_device`] |
//! | `devices/{d}/modules/{m}/inputs/{name}/{bag}` | to the module | [`module_input`] |
//! | `$iothub/twin/res/{status}/?$rid={r}[&$version={n}]` | to the device | [`twin_response`] |
//! | `$iothub/twin/PATCH/properties/desired/?$version={n}` | to the device | [`desired_patch`] |
//! | `$iothub/methods/POST/{name}/?$rid={r}` | to the device | [`method_request`] |
//!
//! Ids stand in topics as they are, never percent-encoded. Parsing borrows from the topic and allocates nothing.

mod client;
mod inbound;
mod outbound;

#[cfg(test)]
mod tests;

pub use client::{
    DESIRED_FILTER, HubTopic, METHODS_FILTER, TWIN_RESPONSES_FILTER, cloud_to_device_filter, method_response,
    parse_delivery, twin_get, twin_patch_reported,
};
pub use inbound::{
    DeviceTopic, TopicError, parse_filter, parse_method_request_id, parse_publish, parse_will,
};
pub use outbound::{
    InputOrigin, cloud_to_device, delivery, desired_patch, method_request, module_input, telemetry,
    twin_response,
};
