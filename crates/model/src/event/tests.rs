use super::*;

#[test]
fn the_largest_message_counts_as_its_sender_counts() {
    let mut records = Records::new();
    assert_eq!(records.largest_message(), 0);
    let _ = records.record().finish(&[0; 10]);
    let mut record = records.record();
    record.system(SystemProperty::MessageId, "12");
    record.property("name", Some("value"));
    record.property("flag", None);
    let _ = record.finish(&[0; 40_000]);
    let _ = records.record().finish(&[]);
    assert_eq!(records.largest_message(), 40_000 + 2 + 9 + 4);
}

fn block(records: &Records, identity: &str) -> EventBlock {
    let origin = Origin {
        source: EventSource::Telemetry,
        identity: Identity::parse(identity).expect("an identity"),
        generation_id: 7,
        auth: AuthMethod::IdentityKey,
    };
    let mut data = Vec::new();
    origin.encode(EndpointSet::EVENTS, &mut data);
    data.extend_from_slice(records.as_bytes());
    EventBlock {
        partition: 3,
        first_sequence_number: 10,
        count: records.count(),
        enqueued_at: Timestamp::from_seconds(5),
        data: data.into(),
    }
}

#[test]
fn properties_are_added_in_place_of_those_with_their_names() {
    let mut records = Records::new();
    let mut record = records.record();
    record.system(SystemProperty::MessageId, "m");
    record.property("a", Some("1"));
    record.property("b", None);
    record.property("a", Some("2"));
    let _ = record.finish(b"body");
    // 8 bytes of properties: one fits, the other does not.
    let _ = records.record().finish(&[7; 92]);
    let _ = records.record().finish(&[8; 93]);
    let added = [("a", "north".to_owned()), ("x", "!".to_owned())];
    let enriched = records.run(EndpointSet::EVENTS).with_properties(&added, 100);
    assert_eq!(enriched.count(), 2);
    let block = block(&enriched, "d1");
    let events: Vec<_> = block.events().map(|event| event.expect("well formed")).collect();
    let fields: Vec<_> = events[0].fields().collect();
    assert_eq!(
        fields,
        [
            EventField::System(SystemProperty::MessageId, "m"),
            EventField::Application("b", None),
            EventField::Application("a", Some("north")),
            EventField::Application("x", Some("!")),
        ]
    );
    assert_eq!((events[0].body, events[1].body), (&b"body"[..], &[7; 92][..]));
    let nothing = records.run(EndpointSet::EVENTS).with_properties(&[], 100);
    assert_eq!(nothing.as_bytes(), records.as_bytes());
}

#[test]
fn a_walk_goes_on_where_another_stood() {
    let mut records = Records::new();
    for number in 0..20u8 {
        let mut record = records.record();
        record.property("n", Some(&number.to_string()));
        let _ = record.finish(&vec![number; usize::from(number) * 20]);
    }
    let block = block(&records, "d1");
    let numbers = |events: Events<'_>| -> Vec<u64> {
        let all: Result<Vec<_>, _> = events
            .map(|event| event.map(|event| event.sequence_number))
            .collect();
        all.expect("well formed")
    };
    let mut walk = block.events();
    for stopped in 10..=30 {
        let cursor = walk.cursor();
        assert_eq!(numbers(block.events_from(cursor)), Vec::from_iter(stopped..30));
        // Backwards nothing is skipped; forwards it does not matter where a walk comes from.
        for to in [0, stopped, 25, 30, u64::MAX] {
            let mut events = block.events_from(cursor);
            events.skip_to(to);
            assert_eq!(
                numbers(events),
                Vec::from_iter(to.max(stopped)..30),
                "{stopped} to {to}"
            );
        }
        if let Some(event) = walk.next() {
            let event = event.expect("well formed");
            assert_eq!(event.body.len() as u64, (event.sequence_number - 10) * 20);
        }
    }
}

#[test]
fn a_damaged_block_ends_a_walk_that_skips() {
    let mut records = Records::new();
    for _ in 0..3 {
        let _ = records.record().finish(b"body");
    }
    let mut block = block(&records, "d1");
    block.data = block.data.slice(..block.data.len() - 6);
    let mut events = block.events();
    events.skip_to(13);
    assert!(events.next().is_some_and(|event| event.is_err()));
    assert!(events.next().is_none());
    let elsewhere = BlockCursor {
        index: 1,
        offset: 4_000,
    };
    assert!(
        block
            .events_from(elsewhere)
            .next()
            .is_some_and(|event| event.is_err())
    );
}

#[test]
fn records_round_trip() {
    let mut records = Records::new();
    let mut record = records.record();
    record.system(SystemProperty::MessageId, "m-1");
    record.property("level", Some(&"x".repeat(300)));
    record.property("empty", Some(""));
    record.property("null", None);
    assert!(record.finish(b"body") > 300);
    drop(records.record());
    assert!(records.record().finish(b"") > 0);
    assert_eq!(records.count(), 2);

    let block = block(&records, "d1/m1");
    let events: Vec<_> = block.events().collect::<Result<_, _>>().expect("well formed");
    assert_eq!(events.len(), 2);
    assert_eq!((events[0].device_id(), events[0].module_id()), ("d1", Some("m1")));
    assert_eq!((events[0].sequence_number, events[1].sequence_number), (10, 11));
    assert_eq!(events[0].body, b"body");
    assert_eq!(events[0].system(SystemProperty::MessageId), Some("m-1"));
    assert_eq!(events[0].fields().count(), 4);
    assert!(
        events[0]
            .fields()
            .any(|f| f == EventField::Application("null", None))
    );
    assert_eq!(events[1].body, b"");
}

#[test]
fn damage_is_an_error_and_never_a_panic() {
    let mut records = Records::new();
    let mut record = records.record();
    record.property("key", Some("value"));
    let _ = record.finish(b"0123456789");
    let whole = block(&records, "d1");
    for cut in 0..whole.data.len() {
        let mut torn = whole.clone();
        torn.data = whole.data.slice(..cut);
        assert!(torn.events().any(|event| event.is_err()), "cut at {cut}");
        for bit in 0..8 {
            let mut bytes = whole.data.to_vec();
            bytes[cut] ^= 1 << bit;
            let flipped = EventBlock {
                data: bytes.into(),
                ..whole.clone()
            };
            for event in flipped.events().flatten() {
                let _ = event.fields().count();
            }
        }
    }
}

#[test]
fn records_are_split_by_where_they_go() {
    let mut records = Records::new();
    for body in ["a", "a", "b", "none", "none", "a", "c"] {
        let mut record = records.record();
        record.property("to", Some(body));
        let _ = record.finish(body.as_bytes());
    }
    let origin = Origin {
        source: EventSource::Telemetry,
        identity: Identity::parse("d1/m1").expect("an identity"),
        generation_id: 7,
        auth: AuthMethod::IdentityKey,
    };
    let now = Timestamp::from_seconds(9);
    let mut runs = Vec::new();
    records.split(&origin, now, &mut runs, |event| {
        assert_eq!((event.identity, event.enqueued_at), ("d1/m1", now));
        match event.body {
            b"a" => EndpointSet::EVENTS,
            b"b" => EndpointSet::of(5),
            b"c" => EndpointSet::of(63).union(EndpointSet::EVENTS),
            _ => EndpointSet::NONE,
        }
    });
    let mut found = Vec::new();
    for run in &runs {
        let mut data = Vec::new();
        origin.encode(run.endpoints, &mut data);
        data.extend_from_slice(run.bytes);
        let block = EventBlock {
            partition: 0,
            first_sequence_number: 0,
            count: run.count,
            enqueued_at: now,
            data: data.into(),
        };
        assert_eq!(block.endpoints(), run.endpoints);
        let bodies: Vec<_> = block
            .events()
            .map(|event| event.expect("well formed"))
            .inspect(|event| assert_eq!(event.endpoints, run.endpoints))
            .map(|event| String::from_utf8_lossy(event.body).into_owned())
            .collect();
        found.push((run.endpoints.bits(), bodies.concat()));
    }
    let text = |text: &str| text.to_owned();
    assert_eq!(
        found,
        [
            (1, text("aa")),
            (1 << 5, text("b")),
            (1, text("a")),
            (1 << 63 | 1, text("c"))
        ]
    );
    assert_eq!(EndpointSet::of(64), EndpointSet::NONE);
    assert!(!EndpointSet::from_bits(u64::MAX).contains(64));
}

#[test]
fn records_are_read_back_from_their_stored_form() {
    let mut records = Records::new();
    for body in ["a", "bc"] {
        let mut record = records.record();
        record.system(SystemProperty::ContentType, "text/plain");
        record.property("k", Some("v"));
        let _ = record.finish(body.as_bytes());
    }
    let bytes = records.as_bytes().to_vec();
    let again = Records::from_stored(bytes.clone()).expect("well formed");
    assert_eq!((again.count(), again.as_bytes()), (2, records.as_bytes()));
    for end in [1, 3, bytes.len() - 1] {
        assert!(Records::from_stored(bytes[..end].to_vec()).is_none(), "{end}");
    }
    assert!(Records::from_stored(Vec::new()).is_some_and(|none| none.is_empty()));
}
