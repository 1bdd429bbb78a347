//! What the hub, the edge hub and clients of ours publish to.
//!
//! Every function appends to `out`, so that a session can reuse one buffer.

use std::fmt::Write as _;

use holdfast_model::Identity;
use holdfast_model::c2d::{AckMode, C2dDelivery};
use holdfast_model::message::{Message, SystemProperty};

use crate::bag::BagWriter;

/// Who sent the message that reaches a module input.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InputOrigin<'a> {
    /// Device of the sender.
    pub device_id: &'a str,
    /// Module of the sender, when a module sent it.
    pub module_id: Option<&'a str>,
}

/// Appends the topic of a delivery: a module's input at an edge hub, else cloud-to-device.
pub fn delivery(out: &mut String, delivery: &C2dDelivery) {
    let message = &delivery.message;
    let Some(to) = &message.input else {
        return cloud_to_device(out, delivery);
    };
    let origin = InputOrigin {
        device_id: to.sender.device_id(),
        module_id: to.sender.module_id(),
    };
    module_input(out, &message.device, &to.input, origin, &message.message);
}

/// Appends the topic of a cloud-to-device message (MQTT contract, section 3.2):
/// `devices/{d}/messages/devicebound/%24.mid=…&%24.to=…[&…][&iothub-ack=…]&{properties}`.
///
/// System properties stand before application properties, `%24.to` is always there, and a feedback mode other than
/// "none" is told as `iothub-ack`.
pub fn cloud_to_device(out: &mut String, delivery: &C2dDelivery) {
    let message = &delivery.message;
    let device_id = message.device.device_id();
    push_all(out, &["devices/", device_id, "/messages/devicebound/"]);
    let mut bag = BagWriter::new(out);
    for (property, value) in own_system(&message.message) {
        bag.system(property, value);
    }
    bag.system(
        SystemProperty::To,
        &format!("/devices/{device_id}/messages/deviceBound"),
    );
    if message.expires_at != holdfast_model::Timestamp::MAX {
        bag.system(SystemProperty::ExpiryTimeUtc, &message.expires_at.to_string());
    }
    if message.ack != AckMode::None {
        bag.system(SystemProperty::Ack, message.ack.as_str());
    }
    bag.applications(&message.message);
}

/// System properties other than those that [`holdfast_model::c2d::C2dMessage`] keeps in fields of its own.
fn own_system(message: &Message) -> impl Iterator<Item = (SystemProperty, &str)> {
    message.system.iter().filter_map(|(property, value)| {
        let in_a_field = matches!(
            property,
            SystemProperty::To | SystemProperty::Ack | SystemProperty::ExpiryTimeUtc
        );
        (!in_a_field).then_some((*property, value.as_str()))
    })
}

/// Appends the topic of a message for a module input (MQTT contract, sections 3.2 and 6.4):
/// `devices/{d}/modules/{m}/inputs/{input}/%24.cdid={sender}[&%24.cmid={module}]&…`. For the edge hub; the hub
/// itself never sends inputs. A device as `target` is written as such and matches no filter.
pub fn module_input(
    out: &mut String,
    target: &Identity,
    input: &str,
    origin: InputOrigin<'_>,
    message: &Message,
) {
    push_identity(out, target);
    push_all(out, &["/inputs/", input, "/"]);
    let mut bag = BagWriter::new(out);
    bag.connection(origin.device_id, origin.module_id);
    for (property, value) in &message.system {
        // The output the message came from means nothing to its receiver.
        if *property != SystemProperty::OutputName {
            bag.system(*property, value);
        }
    }
    bag.applications(message);
}

/// Appends the topic a client of ours publishes telemetry to, for the client role: `…/messages/events/{bag}`.
pub fn telemetry(out: &mut String, identity: &Identity, message: &Message) {
    push_identity(out, identity);
    out.push_str("/messages/events/");
    BagWriter::new(out).message(message);
}

/// Appends the topic of an answer to a twin request (MQTT contract, section 6.2):
/// `$iothub/twin/res/{status}/?$rid={rid}[&$version={n}]`.
///
/// `rid` is echoed as it came. `$version` is last, as the Java SDK needs it; it belongs to the answer of a change of
/// reported properties (status 204).
pub fn twin_response(out: &mut String, status: u16, rid: &str, version: Option<u64>) {
    // Writing to a string cannot fail.
    let _ = write!(out, "$iothub/twin/res/{status:03}/?$rid={rid}");
    if let Some(version) = version {
        let _ = write!(out, "&$version={version}");
    }
}

/// Appends the topic of a desired-property change: `$iothub/twin/PATCH/properties/desired/?$version={n}`.
pub fn desired_patch(out: &mut String, version: u64) {
    let _ = write!(out, "$iothub/twin/PATCH/properties/desired/?$version={version}");
}

/// Appends the topic of a direct method call: `$iothub/methods/POST/{name}/?$rid={r}`.
///
/// The name is not encoded: [`holdfast_model::method::check_method_name`] lets nothing pass that would need it. The
/// request id is written in hexadecimal; [`super::parse_method_request_id`] reads it back.
pub fn method_request(out: &mut String, name: &str, request_id: u64) {
    let _ = write!(out, "$iothub/methods/POST/{name}/?$rid={request_id:x}");
}

fn push_identity(out: &mut String, identity: &Identity) {
    push_all(out, &["devices/", identity.device_id()]);
    if let Some(module_id) = identity.module_id() {
        push_all(out, &["/modules/", module_id]);
    }
}

fn push_all(out: &mut String, parts: &[&str]) {
    for part in parts {
        out.push_str(part);
    }
}
