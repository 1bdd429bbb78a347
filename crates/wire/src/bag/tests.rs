//! Table tests from the rows of the MQTT contract, section 3; property tests for the round trip.

use holdfast_model::Identity;
use holdfast_model::Timestamp;
use holdfast_model::event::{AuthMethod, EventBlock, EventField, EventSource, Origin, Records};
use holdfast_model::message::Message;
use proptest::prelude::*;

use super::*;

type Fields = (Vec<(SystemProperty, String)>, Vec<(String, Option<String>)>);

/// What a bag leaves in an event record, read back from the record.
fn recorded(bag: &str) -> Fields {
    let mut records = Records::new();
    let mut record = records.record();
    write_record(bag, &mut record);
    let _ = record.finish(b"body");
    let origin = Origin {
        source: EventSource::Telemetry,
        identity: Identity::device("d1").expect("an identity"),
        generation_id: 1,
        auth: AuthMethod::IdentityKey,
    };
    let mut data = Vec::new();
    origin.encode(holdfast_model::event::EndpointSet::EVENTS, &mut data);
    data.extend_from_slice(records.as_bytes());
    let block = EventBlock {
        partition: 0,
        first_sequence_number: 0,
        count: 1,
        enqueued_at: Timestamp::NEVER,
        data: data.into(),
    };
    let event = block.events().next().expect("an event").expect("well formed");
    assert_eq!(event.body, b"body");
    let (mut system, mut application) = (Vec::new(), Vec::new());
    for field in event.fields() {
        match field {
            EventField::System(property, value) => system.push((property, value.to_owned())),
            EventField::Application(key, value) => {
                application.push((key.to_owned(), value.map(str::to_owned)));
            }
        }
    }
    (system, application)
}

fn check(bag: &str, system: &[(SystemProperty, &str)], application: &[(&str, Option<&str>)]) {
    let expected: Fields = (
        system.iter().map(|(p, v)| (*p, (*v).to_owned())).collect(),
        application
            .iter()
            .map(|(k, v)| ((*k).to_owned(), v.map(str::to_owned)))
            .collect(),
    );
    assert_eq!(recorded(bag), expected, "{bag:?}");
    let message = read_message(bag, bytes::Bytes::new());
    assert_eq!((message.system, message.properties), expected, "{bag:?}");
}

#[test]
fn bags_of_the_five_sdks() {
    use SystemProperty as S;
    // Python: encoded keys, system properties first.
    check(
        "%24.mid=m-1&%24.cid=c&%24.uid=u&%24.ct=application%2Fjson&%24.ce=utf-8&%24.exp=2026-08-01T10%3A00%3A00&level=3",
        &[
            (S::MessageId, "m-1"),
            (S::CorrelationId, "c"),
            (S::UserId, "u"),
            (S::ContentType, "application/json"),
            (S::ContentEncoding, "utf-8"),
            (S::ExpiryTimeUtc, "2026-08-01T10:00:00"),
        ],
        &[("level", Some("3"))],
    );
    // Node: `dt-subject` as `%24.sub`; an output message without other properties ends in a slash.
    check("%24.on=x/", &[(S::OutputName, "x")], &[]);
    check(
        "%24.sub=thermo&%24.to=t",
        &[(S::Subject, "thermo"), (S::To, "t")],
        &[],
    );
    // C: application properties first, nothing encoded.
    check(
        "path=/a/b c:d&k=v&%24.mid=1&%24.ctime=2026-08-01T10:00:00Z&%24.diagid=ab&%24.diagctx=creationtimeutc%3D1",
        &[
            (S::MessageId, "1"),
            (S::CreationTimeUtc, "2026-08-01T10:00:00Z"),
            (S::DiagnosticId, "ab"),
            (S::DiagnosticContext, "creationtimeutc=1"),
        ],
        &[("path", Some("/a/b c:d")), ("k", Some("v"))],
    );
    // Java: system keys not encoded, connection ids from the message object, a trailing slash on modules.
    check(
        "$.mid=1&$.cdid=evil&$.cmid=evil&$.on=out&$.ct=text%2Fplain&my+key=a+b/",
        &[
            (S::MessageId, "1"),
            (S::OutputName, "out"),
            (S::ContentType, "text/plain"),
        ],
        &[("my+key", Some("a+b"))],
    );
    check("/", &[], &[]);
    // C#: trailing slash, `iothub-ack`, `iothub-operation`, schema, interface id.
    check(
        "%24.mid=1&%24.schema=s&%24.ifid=urn%3Aazureiot%3ASecurity%3ASecurityAgent%3A1&iothub-ack=full&iothub-operation=d2c&a=b/",
        &[
            (S::MessageId, "1"),
            (S::MessageSchema, "s"),
            (S::InterfaceId, "urn:azureiot:Security:SecurityAgent:1"),
            (S::Ack, "full"),
            (S::Operation, "d2c"),
        ],
        &[("a", Some("b"))],
    );
}

#[test]
fn every_rule_of_reading() {
    use SystemProperty as S;
    check("", &[], &[]);
    check("?a=b", &[], &[("a", Some("b"))]);
    check("a", &[], &[("a", None)]);
    check("a=", &[], &[("a", Some(""))]);
    check("a=b=c", &[], &[("a", Some("b=c"))]);
    check("a=b//", &[], &[("a", Some("b/"))]);
    check("a=1&b=2&a=3", &[], &[("b", Some("2")), ("a", Some("3"))]);
    check("a=1&%61=2", &[], &[("a", Some("2"))]);
    check("%24.mid=1&$.mid=2", &[(S::MessageId, "2")], &[]);
    check("%24.mid=1&%24.mid", &[], &[]);
    check("%24%2Emid=1", &[(S::MessageId, "1")], &[]);
    check("%24.cdid=x&%24.cmid=y&%24%2ecdid=z", &[], &[]);
    check(
        "%24.new=1&$.other=2",
        &[],
        &[("$.new", Some("1")), ("$.other", Some("2"))],
    );
    check("&&a=b&&", &[], &[("a", Some("b"))]);
    check("=x&a=b", &[], &[("a", Some("b"))]);
    check(
        "a=100%&b=%zz&%=1",
        &[],
        &[("a", Some("100%")), ("b", Some("%zz")), ("%", Some("1"))],
    );
    check("a=%ff%fe", &[], &[("a", Some("%ff%fe"))]);
    check("a=%c3%a4&ä=ö", &[], &[("a", Some("ä")), ("ä", Some("ö"))]);
    check("A=1&a=2", &[], &[("A", Some("1")), ("a", Some("2"))]);
}

#[test]
fn plain_bags_are_borrowed() {
    for entry in parse("%24.mid=1&level=3&flag&ä=ö") {
        assert!(
            !matches!(&entry.key, BagKey::Application(Cow::Owned(_))),
            "{entry:?}"
        );
        assert!(!matches!(&entry.value, Some(Cow::Owned(_))), "{entry:?}");
    }
}

/// The whole of a topic's 65,535 bytes as duplicates: found by hashing, so that no sender can make the hub compare
/// all pairs with all pairs.
#[test]
fn thousands_of_duplicates_are_cheap() {
    let bag = "a=1&b=2&".repeat(65_535 / 8);
    let started = std::time::Instant::now();
    check(&bag, &[], &[("a", Some("1")), ("b", Some("2"))]);
    assert!(started.elapsed().as_secs() < 5);
    let many: String = (0..5_000).map(|n| format!("k{n}={n}&")).collect();
    assert_eq!(recorded(&many).1.len(), 5_000);
}

fn written(message: &Message) -> String {
    let mut out = String::from("x/");
    BagWriter::new(&mut out).message(message);
    out.split_off(2)
}

#[test]
fn every_rule_of_writing() {
    let mut message = Message::default();
    assert_eq!(written(&message), "");
    message.set_system(SystemProperty::MessageId, "a b+c");
    message.set_system(SystemProperty::CorrelationId, "");
    message.set_system(SystemProperty::DataSchema, "dtmi:x;1");
    message.set_system(SystemProperty::Ack, "full");
    message.set_property("k=1&/", Some("=&/+%ä".into()));
    message.set_property("null", None);
    message.set_property("empty", Some(String::new()));
    message.set_property("$.mid", Some("forged".into()));
    message.set_property("$.cdid", Some("forged".into()));
    message.set_property("iothub-ack", Some("forged".into()));
    message.set_property("", Some("x".into()));
    assert_eq!(
        written(&message),
        "%24.mid=a%20b%2Bc&iothub-ack=full&k%3D1%26%2F=%3D%26%2F%2B%25%C3%A4&null&empty="
    );
}

#[test]
fn every_system_key_round_trips() {
    for property in SystemProperty::ALL {
        let mut message = Message::default();
        message.set_system(*property, "v/1 ä");
        let read = read_message(&written(&message), bytes::Bytes::new());
        // Stamped by the hub, or by a producer of the event endpoint: no device sends them.
        if matches!(
            property,
            SystemProperty::DataSchema | SystemProperty::PartitionKey
        ) {
            assert!(read.system.is_empty());
        } else {
            assert_eq!(read, message, "{property:?}");
        }
    }
}

fn key() -> impl Strategy<Value = String> {
    any::<String>().prop_filter("not a system key", |key| {
        !key.is_empty() && matches!(meaning(key), Meaning::Application)
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        system in proptest::collection::btree_map(0..16usize, "\\PC{1,20}", 0..6),
        properties in proptest::collection::btree_map(key(), proptest::option::of(any::<String>()), 0..40),
    ) {
        let mut message = Message::default();
        for (index, value) in system {
            message.set_system(SystemProperty::ALL[index], value);
        }
        message.properties = properties.into_iter().collect();
        let text = written(&message);
        prop_assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.~%=&".contains(&byte)));
        prop_assert_eq!(&read_message(&text, bytes::Bytes::new()), &message);
        prop_assert_eq!(recorded(&text), (message.system, message.properties));
    }

    #[test]
    fn any_text_is_read(text in any::<String>()) {
        let fields = recorded(&text);
        let message = read_message(&text, bytes::Bytes::new());
        prop_assert_eq!(fields, (message.system, message.properties));
    }

    /// The duplicate rule against a plain model: of equal keys the last one counts.
    #[test]
    fn the_last_of_equal_keys_counts(pairs in proptest::collection::vec(("[a-c]{1,2}", "[a-z]{0,3}"), 0..60)) {
        let text = pairs.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join("&");
        let expected: std::collections::BTreeMap<_, _> = pairs.into_iter().collect();
        let read: std::collections::BTreeMap<_, _> = recorded(&text)
            .1
            .into_iter()
            .map(|(key, value)| (key, value.unwrap_or_default()))
            .collect();
        prop_assert_eq!(read, expected);
    }
}
