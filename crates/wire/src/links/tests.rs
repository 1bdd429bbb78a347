use super::*;

fn device(id: &str) -> Identity {
    Identity::parse(id).expect("an identity")
}

#[test]
fn addresses_in_every_spelling() {
    let partition = |group: &str, partition| Address::Partition {
        consumer_group: group.to_owned(),
        partition,
    };
    let redirected = |rest: &str| Address::Redirected {
        rest: rest.to_owned(),
    };
    for (text, expected) in [
        ("/devices/d1/messages/events", Address::Events(device("d1"))),
        ("devices/d1/messages/events/", Address::Events(device("d1"))),
        (
            "amqps://hub.test/devices/d1/messages/events",
            Address::Events(device("d1")),
        ),
        (
            "amqps://hub.test:5671/devices/d%401/messages/events",
            Address::Events(device("d@1")),
        ),
        (
            "/devices/d1/modules/m%241/messages/events",
            Address::Events(device("d1/m$1")),
        ),
        ("/Devices/D1/Messages/Events", Address::Events(device("D1"))),
        (
            "/devices/d1/messages/devicebound",
            Address::CloudToDevice(device("d1")),
        ),
        (
            "/devices/d1/messages/deviceBound",
            Address::CloudToDevice(device("d1")),
        ),
        (
            "/devices/d1/modules/m1/messages/devicebound",
            Address::CloudToDevice(device("d1/m1")),
        ),
        ("/devices/d1/methods/devicebound", Address::Methods(device("d1"))),
        (
            "amqps://hub.test:5671/devices/d1/modules/m1/methods/deviceBound",
            Address::Methods(device("d1/m1")),
        ),
        ("/devices/d1/twin", Address::Twin(device("d1"))),
        ("devices/d1/modules/m1/twin", Address::Twin(device("d1/m1"))),
        // A device that is called like a literal.
        ("/devices/modules/twin", Address::Twin(device("modules"))),
        ("/messages/devicebound", Address::ServiceCloudToDevice),
        (
            "amqps://hub.test/messages/deviceBound",
            Address::ServiceCloudToDevice,
        ),
        ("/messages/serviceBound/feedback", Address::ServiceFeedback),
        ("/messages/servicebound/Feedback", Address::ServiceFeedback),
        (
            "/messages/serviceBound/filenotifications",
            Address::ServiceFileNotifications,
        ),
        ("messages/events/", redirected("")),
        ("/messages/events/$management", redirected("/$management")),
        (
            "amqps://hub.test/messages/events/$management",
            redirected("/$management"),
        ),
        (
            "/messages/events/ConsumerGroups/$Default/Partitions/3",
            redirected("/ConsumerGroups/$Default/Partitions/3"),
        ),
        (
            "events/ConsumerGroups/$Default/Partitions/0",
            partition("$Default", 0),
        ),
        ("/events/consumergroups/a%20b/partitions/31", partition("a b", 31)),
        (
            "amqps://hub.test/events/ConsumerGroups/$Default/Partitions/1",
            partition("$Default", 1),
        ),
        ("events", Address::Publish { partition: None }),
        ("/events", Address::Publish { partition: None }),
        ("amqps://hub.test/events", Address::Publish { partition: None }),
        (
            "amqps://hub.test/events/Partitions/2",
            Address::Publish { partition: Some(2) },
        ),
        ("$management", Address::Management),
        ("events/$management", Address::Management),
        ("$cbs", Address::Cbs),
        ("amqps://hub.test/$cbs", Address::Cbs),
    ] {
        assert_eq!(Address::parse(text), Ok(expected), "{text}");
    }
}

#[test]
fn other_addresses_are_unknown() {
    for text in [
        "",
        "/",
        "amqps://hub.test",
        "/devices",
        "/devices//twin",
        "/devices/d 1/twin",
        "/devices/d1/messages",
        "/devices/d1/messages/events/more",
        "/devices/d1/modules/m1",
        "/messages",
        "/messages/eventsandmore",
        "/messages/serviceBound/other",
        "events/ConsumerGroups/$Default/Partitions/65536",
        "events/ConsumerGroups/$Default/Partitions/x",
        "events/ConsumerGroups/$Default",
        "other",
        "other/$management",
        "$cbs/x",
        "scope/registrations/r1",
    ] {
        assert_eq!(Address::parse(text), Err(UnknownAddress), "{text}");
    }
}

#[test]
fn services_need_rights_on_the_path() {
    for (text, path) in [
        ("$cbs", None),
        ("/devices/d1/twin", None),
        ("$management", Some("events/$management")),
        ("events", Some("events")),
        ("events/Partitions/1", Some("events/Partitions/1")),
        (
            "events/consumergroups/g/partitions/1",
            Some("events/ConsumerGroups/g/Partitions/1"),
        ),
        (
            "/messages/events/$management",
            Some("messages/events/$management"),
        ),
        ("/messages/devicebound", Some("messages/deviceBound")),
    ] {
        let address = Address::parse(text).expect("an address");
        assert_eq!(address.service_path().as_deref(), path, "{text}");
    }
}

#[test]
fn targets_of_service_messages() {
    for (to, identity) in [
        ("/devices/d%401/messages/devicebound", "d@1"),
        ("/devices/d1/messages/deviceBound", "d1"),
        ("/devices/d1/modules/m1/messages/devicebound", "d1/m1"),
    ] {
        assert_eq!(parse_to(to), Ok(device(identity)), "{to}");
        assert_eq!(parse_to(&to_of(&device(identity))), Ok(device(identity)));
    }
    assert_eq!(parse_to("/devices/d1/messages/events"), Err(UnknownAddress));
    assert_eq!(to_of(&device("d@1")), "/devices/d%401/messages/devicebound");
}

#[test]
fn redirects_as_the_clients_parse_them() {
    for (rest, address) in [
        ("", "amqps://hub.test:5671/events/$management"),
        ("/$management", "amqps://hub.test:5671/events/$management"),
        (
            "/ConsumerGroups/$Default/Partitions/0",
            "amqps://hub.test:5671/events/ConsumerGroups/$Default/Partitions/0",
        ),
    ] {
        assert_eq!(redirect_address("hub.test", rest), address);
    }
}

#[test]
fn user_names_of_sasl_plain() {
    for (text, expected) in [
        (
            "service@sas.root.hub",
            Ok(PlainUser::Policy("service".to_owned())),
        ),
        ("d1@sas.hub", Ok(PlainUser::Identity(device("d1")))),
        ("d%401@sas.hub", Ok(PlainUser::Identity(device("d@1")))),
        ("d@1@sas.hub", Ok(PlainUser::Identity(device("d@1")))),
        ("d1/modules/m1@sas.hub", Ok(PlainUser::Identity(device("d1/m1")))),
        ("d1@hub", Ok(PlainUser::Identity(device("d1")))),
        ("iothubowner", Ok(PlainUser::PolicyKey("iothubowner".to_owned()))),
        ("0ne/registrations/r1", Err(UnknownAddress)),
        ("d1/twins/m1@sas.hub", Err(UnknownAddress)),
        ("@sas.root.hub", Err(UnknownAddress)),
        ("", Err(UnknownAddress)),
    ] {
        assert_eq!(PlainUser::parse(text), expected, "{text}");
    }
}

#[test]
fn selectors_of_all_clients() {
    use StartPosition::{EnqueuedAfter, EnqueuedAt, From, Latest};
    let time = holdfast_model::Timestamp::from_seconds(1_700_000_000);
    for (text, expected) in [
        ("amqp.annotation.x-opt-offset > '-1'", From(0)),
        ("amqp.annotation.x-opt-offset >= '-1'", From(0)),
        ("amqp.annotation.x-opt-offset > '@latest'", Latest),
        ("amqp.annotation.x-opt-offset >= '@latest'", Latest),
        ("amqp.annotation.x-opt-offset > '7'", From(8)),
        ("amqp.annotation.x-opt-offset >='7'", From(7)),
        ("amqp.annotation.x-opt-sequence-number > '-1'", From(0)),
        ("amqp.annotation.x-opt-sequence-number > 41", From(42)),
        ("amqp.annotation.x-opt-sequence-number >= '41'", From(41)),
        (
            "amqp.annotation.x-opt-enqueued-time > '1700000000000'",
            EnqueuedAfter(time),
        ),
        (
            "amqp.annotation.x-opt-enqueued-time >= '1700000000000'",
            EnqueuedAt(time),
        ),
        (
            "amqp.annotation.x-opt-enqueuedtimeutc > 1700000000000",
            EnqueuedAfter(time),
        ),
        (
            "amqp.annotation.x-opt-enqueuedtimeutc > '1700000000000'",
            EnqueuedAfter(time),
        ),
    ] {
        assert_eq!(parse_selector(text), Ok(expected), "{text}");
    }
}

#[test]
fn broken_selectors() {
    for text in [
        "",
        "x-opt-offset > '1'",
        "amqp.annotation.x-opt-offset < '1'",
        "amqp.annotation.x-opt-offset > '1",
        "amqp.annotation.x-opt-offset > 'one'",
        "amqp.annotation.x-opt-other > '1'",
        "amqp.annotation.x-opt-offset > ''",
    ] {
        assert!(
            matches!(parse_selector(text), Err(SelectorError::Malformed(_))),
            "{text}"
        );
    }
    for text in [
        "amqp.annotation.x-opt-sequence-number > '-2'",
        "amqp.annotation.x-opt-offset > '99999999999999999999'",
        "amqp.annotation.x-opt-enqueued-time > '9223372036854775807'",
    ] {
        assert!(
            matches!(parse_selector(text), Err(SelectorError::OutOfRange(_))),
            "{text}"
        );
    }
}
