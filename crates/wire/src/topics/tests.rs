//! Table tests from the MQTT contract, sections 2.6 and 3 to 6.

use std::time::Duration;

use holdfast_model::c2d::{AckMode, C2dDelivery, C2dMessage, LockToken};
use holdfast_model::message::{Message, SystemProperty};
use holdfast_model::subscription::Channel;
use holdfast_model::{Identity, Timestamp};
use proptest::prelude::*;

use super::*;

fn identity(key: &str) -> Identity {
    Identity::parse(key).expect("an identity")
}

fn publish<'a>(topic: &'a str, key: &str) -> Result<DeviceTopic<'a>, TopicError> {
    let identity = identity(key);
    parse_publish(topic, identity.device_id(), identity.module_id())
}

#[test]
fn telemetry_of_devices_and_modules() {
    for (key, topic, bag) in [
        ("d1", "devices/d1/messages/events/", ""),
        ("d1", "devices/d1/messages/events", ""),
        ("d1", "devices/d1/messages/events/a=b/c", "a=b/c"),
        ("d1", "devices/d1/messages/events/?a=b", "?a=b"),
        (
            "d1/m1",
            "devices/d1/modules/m1/messages/events/%24.on=x/",
            "%24.on=x/",
        ),
        ("d1/m1", "devices/d1/modules/m1/messages/events", ""),
        ("a+b#c", "devices/a+b#c/messages/events/x", "x"),
        ("modules", "devices/modules/messages/events/x", "x"),
    ] {
        assert_eq!(publish(topic, key), Ok(DeviceTopic::Telemetry { bag }), "{topic}");
        let identity = identity(key);
        let will = parse_will(topic, identity.device_id(), identity.module_id());
        assert_eq!(will, Some(bag), "{topic}");
    }
}

#[test]
fn twin_and_method_topics() {
    for (topic, expected) in [
        ("$iothub/twin/GET/?$rid=1", DeviceTopic::TwinGet { rid: "1" }),
        (
            "$iothub/twin/GET/?x=y&$rid=4d1e-b0",
            DeviceTopic::TwinGet { rid: "4d1e-b0" },
        ),
        (
            "$iothub/twin/PATCH/properties/reported/?$rid=a%20b",
            DeviceTopic::TwinPatchReported {
                rid: "a%20b",
                version: None,
            },
        ),
        (
            "$iothub/twin/PATCH/properties/reported/?$rid=7&$version=12",
            DeviceTopic::TwinPatchReported {
                rid: "7",
                version: Some(12),
            },
        ),
        (
            "$iothub/methods/res/200/?$rid=1f",
            DeviceTopic::MethodResponse {
                status: 200,
                rid: "1f",
            },
        ),
        (
            "$iothub/methods/res/-1/?$rid=1",
            DeviceTopic::MethodResponse { status: -1, rid: "1" },
        ),
        (
            "$iothub/methods/res/done/?$rid=1",
            DeviceTopic::MethodResponse {
                status: 400,
                rid: "1",
            },
        ),
    ] {
        assert_eq!(publish(topic, "d1"), Ok(expected), "{topic}");
        assert_eq!(publish(topic, "d1/m1"), Ok(expected), "{topic}");
    }
}

#[test]
fn wrong_topics_are_told_apart() {
    for (key, topic, error) in [
        ("d1", "devices/d2/messages/events/", TopicError::OtherIdentity),
        ("d1", "devices/d10/messages/events/", TopicError::OtherIdentity),
        ("d1", "devices/D1/messages/events/", TopicError::OtherIdentity),
        (
            "d1",
            "devices/d1/modules/m1/messages/events/",
            TopicError::OtherIdentity,
        ),
        ("d1/m1", "devices/d1/messages/events/", TopicError::OtherIdentity),
        (
            "d1/m1",
            "devices/d1/modules/m2/messages/events/a=b",
            TopicError::OtherIdentity,
        ),
        ("d1", "devices/d1/messages/eventsx", TopicError::Unknown),
        ("d1", "devices/d1/messages/devicebound/", TopicError::Unknown),
        ("d1", "devices//messages/events/", TopicError::Unknown),
        ("d1", "devices/d1", TopicError::Unknown),
        ("d1", "telemetry", TopicError::Unknown),
        ("d1", "", TopicError::Unknown),
        ("d1", "$iothub/other", TopicError::Unknown),
        ("d1", "$iothub/methods/POST/x/?$rid=1", TopicError::Unknown),
        ("d1", "$iothub/twin/GET/", TopicError::Twin),
        ("d1", "$iothub/twin/GET/?$rid=", TopicError::Twin),
        ("d1", "$iothub/twin/GET/x/?$rid=1", TopicError::Twin),
        (
            "d1",
            "$iothub/twin/PATCH/properties/desired/?$rid=1",
            TopicError::Twin,
        ),
        ("d1", "$iothub/twin/PATCH/properties/reported/", TopicError::Twin),
        (
            "d1",
            "$iothub/twin/PATCH/properties/reported/?$rid=1&$version=x",
            TopicError::Twin,
        ),
        ("d1", "$iothub/twin/res/200/?$rid=1", TopicError::Twin),
        ("d1", "$iothub/methods/res/", TopicError::MethodResponse),
        ("d1", "$iothub/methods/res/200", TopicError::MethodResponse),
        ("d1", "$iothub/methods/res/200/", TopicError::MethodResponse),
        ("d1", "$iothub/methods/res/200/?rid=1", TopicError::MethodResponse),
        (
            "d1",
            "$iothub/methods/res/200/x/?$rid=1",
            TopicError::MethodResponse,
        ),
    ] {
        assert_eq!(publish(topic, key), Err(error), "{topic} by {key}");
    }
    assert_eq!(parse_will("devices/d2/messages/events/", "d1", None), None);
    assert_eq!(parse_will("$iothub/twin/GET/?$rid=1", "d1", None), None);
}

#[test]
fn filters() {
    for (key, filter, channel) in [
        (
            "d1",
            "devices/d1/messages/devicebound/#",
            Some(Channel::CloudToDevice),
        ),
        ("d1", "devices/d2/messages/devicebound/#", None),
        ("d1", "devices/d1/messages/devicebound/+", None),
        ("d1", "devices/d1/messages/devicebound", None),
        ("d1", "devices/d1/#", None),
        ("d1", "#", None),
        ("d1", "$iothub/#", None),
        ("d1/m1", "devices/d1/messages/devicebound/#", None),
        (
            "d1/m1",
            "devices/d1/modules/m1/messages/devicebound/#",
            Some(Channel::ModuleCloudToDevice),
        ),
        ("d1/m1", "devices/d1/modules/m1/inputs/#", Some(Channel::Inputs)),
        ("d1/m1", "devices/d1/modules/m1/#", Some(Channel::Inputs)),
        ("d1/m1", "devices/d1/modules/m2/#", None),
        ("d1", "devices/d1/modules/m1/#", None),
    ] {
        assert_eq!(parse_filter(filter, &identity(key)), channel, "{filter} by {key}");
    }
    for key in ["d1", "d1/m1"] {
        for (filter, channel) in [
            ("$iothub/twin/res/#", Channel::TwinResponses),
            (
                "$iothub/twin/PATCH/properties/desired/#",
                Channel::DesiredProperties,
            ),
            ("$iothub/methods/POST/#", Channel::Methods),
        ] {
            assert_eq!(parse_filter(filter, &identity(key)), Some(channel), "{filter}");
        }
    }
}

fn delivery(message: Message) -> C2dDelivery {
    C2dDelivery {
        lock: LockToken {
            sequence_number: 1,
            nonce: 2,
        },
        locked_until: Timestamp::from_seconds(1_800_000_000),
        delivery_count: 0,
        redelivered: false,
        message: C2dMessage {
            device: identity("d1"),
            generation_id: 1,
            message,
            ack: AckMode::None,
            enqueued_at: Timestamp::from_seconds(0),
            expires_at: Timestamp::MAX,
            input: None,
        },
    }
}

fn c2d_topic(delivery: &C2dDelivery) -> String {
    let mut out = String::new();
    cloud_to_device(&mut out, delivery);
    out
}

#[test]
fn cloud_to_device_topics() {
    let mut delivery = delivery(Message::default());
    assert_eq!(
        c2d_topic(&delivery),
        "devices/d1/messages/devicebound/%24.to=%2Fdevices%2Fd1%2Fmessages%2FdeviceBound"
    );
    let message = &mut delivery.message.message;
    message.set_property("key1", Some("value1".into()));
    message.set_system(SystemProperty::MessageId, "m 1");
    assert_eq!(
        c2d_topic(&delivery),
        "devices/d1/messages/devicebound/%24.mid=m%201&%24.to=%2Fdevices%2Fd1%2Fmessages%2FdeviceBound&key1=value1"
    );
    delivery.message.ack = AckMode::Full;
    delivery.message.expires_at = Timestamp::from_seconds(0).plus(Duration::from_secs(60));
    assert_eq!(
        c2d_topic(&delivery),
        "devices/d1/messages/devicebound/%24.mid=m%201&%24.to=%2Fdevices%2Fd1%2Fmessages%2FdeviceBound\
         &%24.exp=1970-01-01T00%3A01%3A00Z&iothub-ack=full&key1=value1"
    );
}

#[test]
fn module_input_topics() {
    let mut message = Message::default();
    message.set_system(SystemProperty::OutputName, "out1");
    message.set_system(SystemProperty::ContentType, "text/plain");
    message.set_property("a", Some("b".into()));
    let mut out = String::new();
    let origin = InputOrigin {
        device_id: "e1",
        module_id: Some("sender"),
    };
    module_input(&mut out, &identity("e1/m1"), "in1", origin, &Message::default());
    assert_eq!(
        out,
        "devices/e1/modules/m1/inputs/in1/%24.cdid=e1&%24.cmid=sender"
    );
    out.clear();
    let origin = InputOrigin {
        device_id: "leaf",
        module_id: None,
    };
    module_input(&mut out, &identity("e1/m1"), "in1", origin, &message);
    assert_eq!(
        out,
        "devices/e1/modules/m1/inputs/in1/%24.cdid=leaf&%24.ct=text%2Fplain&a=b"
    );
}

#[test]
fn reply_and_request_topics() {
    let mut out = String::new();
    twin_response(&mut out, 200, "4d1e", None);
    assert_eq!(out, "$iothub/twin/res/200/?$rid=4d1e");
    out.clear();
    twin_response(&mut out, 204, "7", Some(3));
    assert_eq!(out, "$iothub/twin/res/204/?$rid=7&$version=3");
    out.clear();
    desired_patch(&mut out, 9);
    assert_eq!(out, "$iothub/twin/PATCH/properties/desired/?$version=9");
    out.clear();
    method_request(&mut out, "reboot", 255);
    assert_eq!(out, "$iothub/methods/POST/reboot/?$rid=ff");
    out.clear();
    telemetry(&mut out, &identity("d1/m1"), &Message::default());
    assert_eq!(out, "devices/d1/modules/m1/messages/events/");
}

#[test]
fn method_request_ids_round_trip() {
    for id in [0, 1, 255, u64::MAX] {
        let mut out = String::new();
        method_request(&mut out, "m", id);
        let (_, rid) = out.split_once("?$rid=").expect("a request id");
        assert_eq!(parse_method_request_id(rid), Some(id));
        assert_eq!(parse_method_request_id(&rid.to_uppercase()), Some(id));
    }
    for bad in ["", "+1", "-1", "x", "1ffffffffffffffff"] {
        assert_eq!(parse_method_request_id(bad), None, "{bad}");
    }
}

/// What the regular expressions and splits of the five SDKs take from a cloud-to-device topic.
fn as_java_reads(topic: &str) -> Vec<(&str, &str)> {
    let at = topic.find("%24").expect("a system property");
    topic[at..]
        .split('&')
        .map(|pair| {
            let mut halves = pair.split('=');
            let key = halves.next().expect("a key");
            (key, halves.next().expect("a value"))
        })
        .collect()
}

proptest! {
    #[test]
    fn every_sdk_can_split_a_topic(
        id in "[!-~]{1,20}",
        properties in proptest::collection::btree_map("\\PC{1,10}", "\\PC{1,10}", 0..6),
    ) {
        let properties = properties
            .into_iter()
            .filter(|(key, _)| !key.starts_with("$.") && !key.starts_with("iothub-"));
        let mut message = Message::default();
        message.set_system(SystemProperty::MessageId, id);
        message.properties = properties.map(|(key, value)| (key, Some(value))).collect();
        let count = message.properties.len();
        let topic = c2d_topic(&delivery(message));
        // C#: five non-empty segments, nothing behind the bag.
        prop_assert_eq!(topic.split('/').count(), 5);
        prop_assert!(topic.split('/').all(|segment| !segment.is_empty()));
        prop_assert_eq!(as_java_reads(&topic).len(), count + 2);
        prop_assert_eq!(topic.matches('=').count(), count + 2);
    }

    #[test]
    fn any_topic_is_parsed_or_refused(topic in any::<String>(), filter in any::<String>()) {
        let _ = publish(&topic, "d1");
        let _ = publish(&topic, "d1/m1");
        let _ = parse_filter(&filter, &identity("d1/m1"));
    }

    #[test]
    fn own_telemetry_is_always_recognised(device in "[A-Za-z0-9:.+%_#*?!(),=@;$'-]{1,30}", bag in "\\PC{0,40}") {
        let topic = format!("devices/{device}/messages/events/{bag}");
        prop_assert_eq!(publish(&topic, &device), Ok(DeviceTopic::Telemetry { bag: &bag }));
        let topic = format!("devices/{device}/modules/{device}/messages/events/{bag}");
        prop_assert_eq!(publish(&topic, &format!("{device}/{device}")), Ok(DeviceTopic::Telemetry { bag: &bag }));
        prop_assert_eq!(publish(&topic, &device), Err(TopicError::OtherIdentity));
    }
}
