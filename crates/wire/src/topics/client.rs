//! What the hub publishes to its clients, read by clients of ours, and what those subscribe to.

use std::fmt::Write as _;

use holdfast_model::Identity;

/// Filter of answers to twin requests.
pub const TWIN_RESPONSES_FILTER: &str = "$iothub/twin/res/#";
/// Filter of desired-property changes.
pub const DESIRED_FILTER: &str = "$iothub/twin/PATCH/properties/desired/#";
/// Filter of direct methods.
pub const METHODS_FILTER: &str = "$iothub/methods/POST/#";

/// The filter of a device's cloud-to-device messages; `None` for modules, which have none.
#[must_use]
pub fn cloud_to_device_filter(identity: &Identity) -> Option<String> {
    let device_id = identity.device_id();
    (!identity.is_module()).then(|| format!("devices/{device_id}/messages/devicebound/#"))
}

/// A topic the hub publishes to one of its clients, taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HubTopic<'a> {
    /// A cloud-to-device message.
    CloudToDevice {
        /// Its property bag.
        bag: &'a str,
    },
    /// The answer to a twin request.
    TwinResponse {
        /// Status as in HTTP.
        status: u16,
        /// The request's id.
        rid: &'a str,
        /// Version of the reported properties after a change; an edge hub of the original does not tell it.
        version: Option<u64>,
    },
    /// Desired properties changed.
    Desired {
        /// Their version; an edge hub may leave it to the body.
        version: Option<u64>,
    },
    /// A direct method call.
    Method {
        /// The method.
        name: &'a str,
        /// Id for the answer, to be echoed byte for byte.
        rid: &'a str,
    },
}

/// Takes apart the topic of a message from the hub to `identity`; `None` for a topic this identity did not ask for.
///
/// ```
/// use holdfast_model::Identity;
/// use holdfast_wire::topics::{HubTopic, parse_delivery};
/// let device = Identity::device("d1").expect("an id");
/// assert_eq!(
///     parse_delivery("$iothub/twin/res/204/?$rid=7&$version=3", &device),
///     Some(HubTopic::TwinResponse { status: 204, rid: "7", version: Some(3) }),
/// );
/// ```
#[must_use]
pub fn parse_delivery<'a>(topic: &'a str, identity: &Identity) -> Option<HubTopic<'a>> {
    if let Some(rest) = topic.strip_prefix("$iothub/") {
        return parse_reserved(rest);
    }
    if identity.is_module() {
        return None;
    }
    let rest = topic
        .strip_prefix("devices/")?
        .strip_prefix(identity.device_id())?
        .strip_prefix("/messages/devicebound")?;
    let bag = if rest.is_empty() {
        rest
    } else {
        rest.strip_prefix('/')?
    };
    Some(HubTopic::CloudToDevice { bag })
}

fn parse_reserved(rest: &str) -> Option<HubTopic<'_>> {
    if let Some(rest) = rest.strip_prefix("twin/res/") {
        let (status, query) = rest.split_once("/?")?;
        return Some(HubTopic::TwinResponse {
            status: status.parse().ok()?,
            rid: parameter(query, "$rid")?,
            version: parameter(query, "$version").and_then(|text| text.parse().ok()),
        });
    }
    if let Some(rest) = rest.strip_prefix("twin/PATCH/properties/desired/") {
        let query = rest.strip_prefix('?').unwrap_or_default();
        let version = parameter(query, "$version").and_then(|text| text.parse().ok());
        return Some(HubTopic::Desired { version });
    }
    let (name, query) = rest.strip_prefix("methods/POST/")?.split_once("/?")?;
    let rid = parameter(query, "$rid")?;
    (!name.is_empty() && !name.contains('/')).then_some(HubTopic::Method { name, rid })
}

fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find_map(|(key, value)| (key == name && !value.is_empty()).then_some(value))
}

/// Appends the topic of a request for the twin.
pub fn twin_get(out: &mut String, rid: u32) {
    // Writing to a string cannot fail.
    let _ = write!(out, "$iothub/twin/GET/?$rid={rid}");
}

/// Appends the topic of a change of reported properties.
pub fn twin_patch_reported(out: &mut String, rid: u32) {
    let _ = write!(out, "$iothub/twin/PATCH/properties/reported/?$rid={rid}");
}

/// Appends the topic of an answer to a direct method.
pub fn method_response(out: &mut String, status: i64, rid: &str) {
    let _ = write!(out, "$iothub/methods/res/{status}/?$rid={rid}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_of_the_hub_are_taken_apart() {
        let device = Identity::device("d1").expect("an id");
        let module = Identity::module("d1", "m1").expect("ids");
        let cases = [
            (
                "devices/d1/messages/devicebound/%24.mid=1",
                Some(HubTopic::CloudToDevice { bag: "%24.mid=1" }),
            ),
            (
                "devices/d1/messages/devicebound",
                Some(HubTopic::CloudToDevice { bag: "" }),
            ),
            ("devices/d2/messages/devicebound/a=1", None),
            ("devices/d11/messages/devicebound/a=1", None),
            (
                "$iothub/twin/res/200/?$rid=r-1",
                Some(HubTopic::TwinResponse {
                    status: 200,
                    rid: "r-1",
                    version: None,
                }),
            ),
            ("$iothub/twin/res/200/?$rid=", None),
            ("$iothub/twin/res/x/?$rid=1", None),
            (
                "$iothub/twin/PATCH/properties/desired/?$version=12",
                Some(HubTopic::Desired { version: Some(12) }),
            ),
            (
                "$iothub/twin/PATCH/properties/desired/",
                Some(HubTopic::Desired { version: None }),
            ),
            (
                "$iothub/methods/POST/reboot/?$rid=a-b",
                Some(HubTopic::Method {
                    name: "reboot",
                    rid: "a-b",
                }),
            ),
            ("$iothub/methods/POST//?$rid=1", None),
            ("$iothub/methods/POST/a/b/?$rid=1", None),
            ("$iothub/other", None),
            ("", None),
        ];
        for (topic, expected) in cases {
            assert_eq!(parse_delivery(topic, &device), expected, "{topic}");
        }
        assert_eq!(
            parse_delivery("devices/d1/messages/devicebound/a=1", &module),
            None
        );
        assert_eq!(cloud_to_device_filter(&module), None);
    }

    #[test]
    fn what_clients_write_is_what_the_hub_reads() {
        use super::super::{DeviceTopic, parse_publish};
        let read = |write: &dyn Fn(&mut String)| {
            let mut topic = String::new();
            write(&mut topic);
            topic
        };
        let get = read(&|out| twin_get(out, 7));
        assert_eq!(
            parse_publish(&get, "d1", None),
            Ok(DeviceTopic::TwinGet { rid: "7" })
        );
        let patch = read(&|out| twin_patch_reported(out, 8));
        let expected = DeviceTopic::TwinPatchReported {
            rid: "8",
            version: None,
        };
        assert_eq!(parse_publish(&patch, "d1", None), Ok(expected));
        let answer = read(&|out| method_response(out, -3, "x1"));
        let expected = DeviceTopic::MethodResponse {
            status: -3,
            rid: "x1",
        };
        assert_eq!(parse_publish(&answer, "d1", None), Ok(expected));
    }
}
