//! Messages, outcomes, settlement.

use super::*;

#[test]
fn message_too_large() {
    let (mut bench, _) = Bench::open();
    let link = bench.attached(sender(0, "a"), 5);
    let whole = amqp(0, Performative::Transfer(transfer(0, 0)), &[0; 1_001]);
    assert_eq!(
        bench.feed(&whole),
        [Seen::LinkFailed(link, LinkError::MessageSize)]
    );
    assert_eq!(bench.told_0(), ["detach amqp:link:message-size-exceeded"]);
    let link = bench.attached(sender(1, "b"), 5);
    let part = |id| Transfer {
        more: true,
        ..transfer(1, id)
    };
    assert_eq!(
        bench.feed(&amqp(0, Performative::Transfer(part(1)), &[0; 600])),
        []
    );
    let events = bench.feed(&amqp(0, Performative::Transfer(part(1)), &[0; 600]));
    assert_eq!(events, [Seen::LinkFailed(link, LinkError::MessageSize)]);
    assert_eq!(bench.connection.reassembling, 0);
}

#[test]
fn unfinished_messages_are_bounded_together() {
    let config = Config {
        max_reassembly: 1_500,
        ..Config::default()
    };
    let (mut bench, _) = Bench::open_with(config, Open::default());
    let part = |handle, id| {
        let transfer = Transfer {
            more: true,
            ..transfer(handle, id)
        };
        amqp(0, Performative::Transfer(transfer), &[0; 900])
    };
    bench.attached(sender(0, "a"), 5);
    let second = bench.attached(sender(1, "b"), 5);
    assert_eq!(bench.feed(&part(0, 0)), []);
    assert_eq!(
        bench.feed(&part(1, 1)),
        [Seen::LinkFailed(second, LinkError::Reassembly)]
    );
    assert_eq!(bench.told_0(), ["detach amqp:resource-limit-exceeded"]);
    assert_eq!(bench.connection.reassembling, 900);
    bench.send(Performative::End(End::default()));
    assert_eq!(bench.connection.reassembling, 0);
    assert_eq!(bench.connection.links, 0);
}

/// AMQP 2.6.14: parts are put together; `aborted` throws them away.
#[test]
fn message_in_parts() {
    let (mut bench, session) = Bench::open();
    let link = bench.attached(sender(0, "a"), 5);
    let part = |id: Option<u32>, more, aborted| {
        let transfer = Transfer {
            delivery_id: id,
            more,
            aborted,
            ..transfer(0, 0)
        };
        Performative::Transfer(transfer)
    };
    assert_eq!(bench.feed(&amqp(0, part(Some(0), true, false), b"he")), []);
    assert_eq!(bench.feed(&amqp(0, part(None, true, false), b"ll")), []);
    assert_eq!(
        bench.feed(&amqp(0, part(Some(0), false, false), b"o")),
        [Seen::Transfer(link, 0, b"hello".to_vec())]
    );
    assert_eq!(bench.feed(&amqp(0, part(Some(1), true, false), b"bye")), []);
    assert_eq!(bench.feed(&amqp(0, part(None, false, true), b"")), []);
    assert_eq!(bench.connection.unsettled(session), 1);
    assert_eq!(
        bench.feed(&amqp(0, part(Some(2), false, false), b"x")),
        [Seen::Transfer(link, 2, b"x".to_vec())]
    );
    let (error, _) = bench.broken(&amqp(0, part(Some(2), false, false), b"x"));
    assert_eq!(error, ConnectionError::DeliveryId, "numbers rise");
}

#[test]
fn settled_ranges() {
    let (mut bench, session) = Bench::open();
    bench.attached(sender(0, "a"), 1_000);
    for id in 0..10 {
        bench.send(Performative::Transfer(transfer(0, id)));
    }
    let told = bench.connection.settle(
        session,
        [0, 1, 2, 5, 7, 8],
        &DeliveryState::Released,
        true,
        &mut bench.out,
    );
    assert_eq!(told, 6);
    assert_eq!(
        bench.told_0(),
        [
            "Receiver 0..Some(2) settled=true Some(Released)",
            "Receiver 5..Some(5) settled=true Some(Released)",
            "Receiver 7..Some(8) settled=true Some(Released)"
        ]
    );
    assert_eq!(bench.connection.unsettled(session), 4);
    let again = bench
        .connection
        .settle(session, [0, 5], &DeliveryState::Accepted, true, &mut bench.out);
    assert_eq!((again, bench.out.len()), (0, 0));
}

/// Two steps as .NET clients want them, seen from the receiving end: state first, the sender settles.
#[test]
fn sender_settles_after_an_unsettled_answer() {
    let (mut bench, session) = Bench::open();
    bench.attached(sender(0, "a"), 10);
    for id in 0..3 {
        bench.send(Performative::Transfer(transfer(0, id)));
    }
    bench
        .connection
        .settle(session, 0..3, &DeliveryState::Accepted, false, &mut bench.out);
    assert_eq!(
        bench.told_0(),
        ["Receiver 0..Some(2) settled=false Some(Accepted)"]
    );
    let disposition = Disposition {
        role: Role::Sender,
        first: 0,
        last: Some(1),
        settled: true,
        state: Some(DeliveryState::Accepted),
        batchable: false,
    };
    let events = bench.send(Performative::Disposition(disposition));
    assert_eq!(events, [Seen::Settled(0), Seen::Settled(1)]);
    assert_eq!(bench.connection.unsettled(session), 1);
}

/// The hub settles a delivery the receiver answered unsettled, with a state of its own choice.
#[test]
fn outcome_then_settlement_by_the_sender() {
    let (mut bench, _) = Bench::open();
    let link = bench.attached(receiver(0, "a"), 0);
    assert_eq!(
        bench.send(Performative::Flow(credit(0, 0, 5))),
        [Seen::Credit(link, 5, false)]
    );
    for token in [70, 71, 72] {
        bench
            .connection
            .send(link, &outgoing(&[token as u8; 16], token), b"m", &mut bench.out)
            .expect("sent");
    }
    bench.out.clear();
    let mut disposition = Disposition {
        role: Role::Receiver,
        first: 0,
        last: Some(1),
        settled: false,
        state: Some(DeliveryState::Released),
        batchable: true,
    };
    let released = || Some("Released".to_owned());
    assert_eq!(
        bench.send(Performative::Disposition(disposition)),
        [
            Seen::Outcome(70, released(), false),
            Seen::Outcome(71, released(), false)
        ]
    );
    bench
        .connection
        .settle_sent(link, 0, Some(&DeliveryState::Accepted), &mut bench.out);
    bench
        .connection
        .settle_sent(link, 0, Some(&DeliveryState::Accepted), &mut bench.out);
    assert_eq!(
        bench.told_0(),
        ["Sender 0..Some(0) settled=true Some(Accepted)"],
        "once only"
    );
    (disposition.first, disposition.last, disposition.settled) = (0, Some(u32::MAX / 2), true);
    assert_eq!(
        bench.send(Performative::Disposition(disposition)),
        [
            Seen::Outcome(71, released(), true),
            Seen::Outcome(72, released(), true)
        ]
    );
    assert_eq!(bench.connection.in_flight().count(), 0);
    assert_eq!(
        bench.send(Performative::Disposition(disposition)),
        [],
        "nothing is left"
    );
}

#[test]
fn sending_needs_credit_window_and_room() {
    let (mut bench, _) = Bench::open();
    let link = bench.attached(receiver(0, "a"), 0);
    let send = |bench: &mut Bench, size: usize| {
        let payload = vec![0; size];
        let mut out = std::mem::take(&mut bench.out);
        let before = out.len();
        let sent = bench
            .connection
            .send(link, &outgoing(b"t", 1), &payload, &mut out);
        assert!(
            sent.is_ok() || out.len() == before,
            "an error leaves nothing behind"
        );
        bench.out = out;
        sent
    };
    assert_eq!(send(&mut bench, 1), Err(SendError::NoCredit));
    bench.send(Performative::Flow(Flow {
        incoming_window: 2,
        ..credit(0, 0, 10)
    }));
    assert_eq!(send(&mut bench, 1), Ok(0));
    assert_eq!(send(&mut bench, 1), Ok(1));
    assert_eq!(send(&mut bench, 1), Err(SendError::WindowFull));
    bench.out.clear();
    let events = bench.send(Performative::Flow(Flow {
        next_incoming_id: Some(2),
        incoming_window: 100,
        handle: None,
        delivery_count: None,
        link_credit: None,
        ..Flow::default()
    }));
    assert_eq!(events, [Seen::WindowOpen]);
    assert_eq!(send(&mut bench, 1), Ok(2));
    bench.connection.detach(
        link,
        Some(&Error::new(condition::DETACH_FORCED, "")),
        &mut bench.out,
    );
    assert_eq!(send(&mut bench, 1), Err(SendError::NotAttached));
    assert_eq!(bench.connection.in_flight().count(), 0);
}

#[test]
fn unsettled_deliveries_are_bounded() {
    let config = Config {
        max_unsettled: 2,
        ..Config::default()
    };
    let (mut bench, _) = Bench::open_with(config, Open::default());
    let link = bench.attached(receiver(0, "a"), 0);
    bench.send(Performative::Flow(credit(0, 0, 10)));
    let connection = &mut bench.connection;
    for token in 0..2 {
        assert!(
            connection
                .send(link, &outgoing(b"t", token), b"", &mut bench.out)
                .is_ok()
        );
    }
    assert_eq!(
        connection.send(link, &outgoing(b"t", 2), b"", &mut bench.out),
        Err(SendError::TooManyUnsettled)
    );
    let settled = Outgoing {
        settled: true,
        ..outgoing(b"t", 2)
    };
    assert!(connection.send(link, &settled, b"", &mut bench.out).is_ok());
}

/// AMQP 2.7.3: the receiver's limit holds for what we send, and frames never exceed the peer's size.
#[test]
fn large_messages_are_cut() {
    let open = Open {
        max_frame_size: 512,
        ..Open::default()
    };
    let (mut bench, _) = Bench::open_with(Config::default(), open);
    let attach = Performative::Attach(Box::new(Attach {
        max_message_size: Some(2_000),
        ..Attach::receiver("a", "from")
    }));
    let link = bench.attached(attach, 0);
    bench.send(Performative::Flow(Flow {
        incoming_window: 3,
        ..credit(0, 0, 10)
    }));
    let send = |size: usize, bench: &mut Bench| {
        bench
            .connection
            .send(link, &outgoing(&[7; 32], 1), &vec![1; size], &mut bench.out)
    };
    assert_eq!(
        send(2_001, &mut bench),
        Err(SendError::TooLarge {
            size: 2_001,
            limit: 2_000
        })
    );
    assert_eq!(send(2_000, &mut bench), Ok(0));
    assert_eq!(
        send(1, &mut bench),
        Err(SendError::WindowFull),
        "a rest is waiting"
    );
    let first = std::mem::take(&mut bench.out);
    let mut rest = &first[..];
    let mut received = 0;
    while let Some((frame, used)) = frame::decode(rest, 512).expect("no frame above 512") {
        rest = &rest[used..];
        received += Performative::decode(frame.body).expect("a transfer").1.len();
    }
    let flow = Flow {
        next_incoming_id: Some(3),
        ..credit(0, 1, 9)
    };
    let events = bench.send(Performative::Flow(flow));
    assert_eq!(events, [Seen::WindowOpen, Seen::Credit(link, 9, false)]);
    let told = bench.told_0();
    let last = told.last().expect("the rest");
    assert!(last.starts_with("transfer 0 id=None more=false"), "{last}");
    for line in told {
        received += line
            .rsplit(' ')
            .next()
            .and_then(|len| len.parse::<usize>().ok())
            .expect("a length");
    }
    assert_eq!(received, 2_000);
    assert_eq!(send(1, &mut bench), Ok(1));
}

#[test]
fn received_deliveries_are_bounded_by_the_window() {
    let config = Config {
        max_received: 4,
        ..Config::default()
    };
    let (mut bench, session) = Bench::open_with(config, Open::default());
    for handle in 0..3 {
        bench.attached(sender(handle, &handle.to_string()), 10);
    }
    for id in 0..4 {
        bench.send(Performative::Transfer(transfer(id % 3, id)));
    }
    assert_eq!(bench.told_0(), [""; 0], "no window for more");
    // What is settled makes room, told of in steps.
    let settle = |bench: &mut Bench, ids: std::ops::Range<u32>| {
        let accepted = &DeliveryState::Accepted;
        bench
            .connection
            .settle(session, ids, accepted, true, &mut bench.out);
        bench
            .told_0()
            .iter()
            .filter(|told| told.starts_with("flow"))
            .count()
    };
    assert_eq!(settle(&mut bench, 0..1), 0);
    assert_eq!(settle(&mut bench, 1..2), 1);
    for id in 4..6 {
        bench.send(Performative::Transfer(transfer(0, id)));
    }
    assert_eq!(bench.connection.unsettled(session), 4);
    // So does a link that takes its deliveries along.
    bench.told();
    bench.send(Performative::Detach(Detach {
        handle: 0,
        closed: true,
        error: None,
    }));
    assert!(
        bench
            .told_0()
            .last()
            .is_some_and(|told| told.starts_with("flow None"))
    );
    let left = 4 - u32::try_from(bench.connection.unsettled(session)).expect("few");
    for id in 6..6 + left {
        bench.send(Performative::Transfer(transfer(1, id)));
    }
    let (error, told) = bench.broken(&amqp(0, Performative::Transfer(transfer(1, 6 + left)), b""));
    assert_eq!(error, ConnectionError::WindowViolation);
    assert_eq!(told, "close amqp:session:window-violation");
}
