//! What devices publish and subscribe to.

use holdfast_model::Identity;
use holdfast_model::subscription::Channel;

/// A topic a device or module publishes to, taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceTopic<'a> {
    /// A telemetry message, or an output message of a module.
    Telemetry {
        /// The property bag as sent; give it to [`crate::bag`].
        bag: &'a str,
    },
    /// Wants its twin.
    TwinGet {
        /// Request id, to be echoed byte for byte.
        rid: &'a str,
    },
    /// Changes its reported properties.
    TwinPatchReported {
        /// Request id, to be echoed byte for byte.
        rid: &'a str,
        /// The version the change is based on, when the sender wants it checked.
        version: Option<u64>,
    },
    /// Answers a direct method.
    MethodResponse {
        /// Status chosen by the device; 400 when its text is no integer.
        status: i64,
        /// Request id; see [`parse_method_request_id`].
        rid: &'a str,
    },
}

/// Why a topic is not one the identity may publish to.
///
/// The hub closes the connection on each of them; the edge hub drops the message and acknowledges it for
/// [`TopicError::Unknown`] and [`TopicError::MethodResponse`] (MQTT contract, section 4.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TopicError {
    /// A well-formed telemetry topic of another device or module.
    #[error("the topic belongs to another identity")]
    OtherIdentity,
    /// Below `$iothub/twin/`, but not a twin request, or one without a usable `$rid` or `$version`.
    #[error("the twin topic is malformed")]
    Twin,
    /// Below `$iothub/methods/res/`, but without a status or `$rid`.
    #[error("the method response topic is malformed")]
    MethodResponse,
    /// No topic that devices publish to.
    #[error("the topic is unknown")]
    Unknown,
}

const TWIN: &str = "$iothub/twin/";
const METHOD_RESPONSE: &str = "$iothub/methods/res/";
const EVENTS: &str = "/messages/events";
/// Answered to the caller when a device's method status is no number (MQTT contract, section 6.3).
const STATUS_NOT_A_NUMBER: i64 = 400;

/// Takes apart the topic of a PUBLISH by the given device, or module of it.
///
/// Telemetry is the hot path: a comparison with the identity's own prefix, no allocation, no search. Both
/// `…/messages/events/` and `…/messages/events` are telemetry with an empty bag.
///
/// # Errors
/// [`TopicError`].
///
/// ```
/// use holdfast_wire::topics::{DeviceTopic, parse_publish};
/// let topic = parse_publish("devices/d1/messages/events/%24.ct=text&a=1", "d1", None)?;
/// assert_eq!(topic, DeviceTopic::Telemetry { bag: "%24.ct=text&a=1" });
/// # Ok::<(), holdfast_wire::topics::TopicError>(())
/// ```
#[inline]
pub fn parse_publish<'a>(
    topic: &'a str,
    identity_device: &str,
    identity_module: Option<&str>,
) -> Result<DeviceTopic<'a>, TopicError> {
    match own_bag(topic, identity_device, identity_module) {
        Some(bag) => Ok(DeviceTopic::Telemetry { bag }),
        None => parse_other(topic),
    }
}

/// The property bag of a will's topic; `None` when the topic is not the identity's own telemetry topic, in which
/// case the will is dropped and the connection accepted (MQTT contract, section 2.6).
#[must_use]
pub fn parse_will<'a>(
    topic: &'a str,
    identity_device: &str,
    identity_module: Option<&str>,
) -> Option<&'a str> {
    own_bag(topic, identity_device, identity_module)
}

/// The request id inside a method response's `rid`, as [`super::method_request`] wrote it; `None` for any other
/// text, which answers no call of ours.
#[must_use]
pub fn parse_method_request_id(rid: &str) -> Option<u64> {
    // `from_str_radix` alone would take a sign as well.
    let digits = !rid.is_empty() && rid.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits.then(|| u64::from_str_radix(rid, 16).ok()).flatten()
}

#[inline]
fn own_bag<'a>(topic: &'a str, device: &str, module: Option<&str>) -> Option<&'a str> {
    let mut rest = topic.strip_prefix("devices/")?.strip_prefix(device)?;
    if let Some(module) = module {
        rest = rest.strip_prefix("/modules/")?.strip_prefix(module)?;
    }
    bag_after_events(rest)
}

#[inline]
fn bag_after_events(rest: &str) -> Option<&str> {
    let rest = rest.strip_prefix(EVENTS)?;
    if rest.is_empty() {
        return Some(rest);
    }
    rest.strip_prefix('/')
}

#[cold]
fn parse_other(topic: &str) -> Result<DeviceTopic<'_>, TopicError> {
    if let Some(rest) = topic.strip_prefix(TWIN) {
        return parse_twin(rest).ok_or(TopicError::Twin);
    }
    if let Some(rest) = topic.strip_prefix(METHOD_RESPONSE) {
        return parse_method_response(rest).ok_or(TopicError::MethodResponse);
    }
    if is_telemetry_of_anyone(topic) {
        return Err(TopicError::OtherIdentity);
    }
    Err(TopicError::Unknown)
}

fn is_telemetry_of_anyone(topic: &str) -> bool {
    let Some(rest) = topic.strip_prefix("devices/") else {
        return false;
    };
    let Some((_device, rest)) = split_segment(rest) else {
        return false;
    };
    if bag_after_events(rest).is_some() {
        return true;
    }
    rest.strip_prefix("/modules/")
        .and_then(split_segment)
        .is_some_and(|(_module, rest)| bag_after_events(rest).is_some())
}

/// The first, non-empty segment, and the rest with its leading slash.
fn split_segment(text: &str) -> Option<(&str, &str)> {
    let end = text.find('/')?;
    (end > 0).then(|| text.split_at(end))
}

fn parse_twin(rest: &str) -> Option<DeviceTopic<'_>> {
    if let Some(query) = rest.strip_prefix("GET/?") {
        let rid = parameter(query, "$rid")?;
        return Some(DeviceTopic::TwinGet { rid });
    }
    let query = rest.strip_prefix("PATCH/properties/reported/?")?;
    let rid = parameter(query, "$rid")?;
    let version = match parameter(query, "$version") {
        None => None,
        Some(text) => Some(text.parse().ok()?),
    };
    Some(DeviceTopic::TwinPatchReported { rid, version })
}

fn parse_method_response(rest: &str) -> Option<DeviceTopic<'_>> {
    let (status, query) = rest.split_once("/?")?;
    if status.is_empty() || status.contains('/') {
        return None;
    }
    Some(DeviceTopic::MethodResponse {
        status: status.parse().unwrap_or(STATUS_NOT_A_NUMBER),
        rid: parameter(query, "$rid")?,
    })
}

/// The raw value of a query parameter; an empty one counts as missing.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find_map(|(key, value)| (key == name && !value.is_empty()).then_some(value))
}

/// The channel a SUBSCRIBE or UNSUBSCRIBE filter names, `None` for any other filter (answer SUBACK 0x80).
///
/// Wildcards have no meaning of their own: these seven filters are all there are (MQTT contract, section 5).
#[must_use]
pub fn parse_filter(filter: &str, identity: &Identity) -> Option<Channel> {
    match filter {
        "$iothub/twin/res/#" => return Some(Channel::TwinResponses),
        "$iothub/twin/PATCH/properties/desired/#" => return Some(Channel::DesiredProperties),
        "$iothub/methods/POST/#" => return Some(Channel::Methods),
        _ => {}
    }
    let rest = filter
        .strip_prefix("devices/")?
        .strip_prefix(identity.device_id())?;
    let Some(module_id) = identity.module_id() else {
        return (rest == "/messages/devicebound/#").then_some(Channel::CloudToDevice);
    };
    match rest.strip_prefix("/modules/")?.strip_prefix(module_id)? {
        "/messages/devicebound/#" => Some(Channel::ModuleCloudToDevice),
        "/inputs/#" | "/#" => Some(Channel::Inputs),
        _ => None,
    }
}
