//! Attach and detach, credit, windows.

use super::*;

/// AMQP 2.6.7: a message without credit costs the link, not the connection.
#[test]
fn transfer_without_credit() {
    let (mut bench, _) = Bench::open();
    let greedy = bench.attached(sender(0, "a"), 1);
    let other = bench.attached(sender(1, "b"), 1);
    let events = bench.send(Performative::Transfer(transfer(0, 0)));
    assert_eq!(events, [Seen::Transfer(greedy, 0, vec![])]);
    let events = bench.send(Performative::Transfer(transfer(0, 1)));
    assert_eq!(events, [Seen::LinkFailed(greedy, LinkError::TransferLimit)]);
    assert_eq!(bench.told_0(), ["detach amqp:link:transfer-limit-exceeded"]);
    let events = bench.send(Performative::Transfer(transfer(0, 2)));
    assert_eq!(events, [], "what was under way is discarded");
    let events = bench.send(Performative::Transfer(transfer(1, 3)));
    assert_eq!(events, [Seen::Transfer(other, 3, vec![])]);
    let detach = Detach {
        handle: 0,
        closed: true,
        error: None,
    };
    assert_eq!(bench.send(Performative::Detach(detach)), []);
    assert_eq!(bench.told_0(), Vec::<String>::new(), "its detach was the answer");
}

/// AMQP 2.5.6: the session window is given again as transfers come, and must not be exceeded.
#[test]
fn session_window() {
    let config = Config {
        incoming_window: 4,
        ..Config::default()
    };
    let (mut bench, _) = Bench::open_with(config, Open::default());
    bench.attached(sender(0, "a"), 1_000);
    for id in 0..2 {
        bench.send(Performative::Transfer(Transfer {
            settled: Some(true),
            ..transfer(0, id)
        }));
    }
    assert_eq!(bench.told_0(), ["flow None count=None credit=None drain=false"]);
    bench.connection.session(0).expect("a session").incoming_window = 0;
    let (error, told) = bench.broken(&amqp(0, Performative::Transfer(transfer(0, 2)), b""));
    assert_eq!(error, ConnectionError::WindowViolation);
    assert_eq!(told, "close amqp:session:window-violation");
}

/// Credit follows settlement: who does not settle gives none.
#[test]
fn credit_follows_settlement() {
    let (mut bench, session) = Bench::open();
    let link = bench.attached(sender(0, "a"), 4);
    for id in 0..4 {
        bench.send(Performative::Transfer(transfer(0, id)));
    }
    assert_eq!(bench.connection.credit(link), 0);
    assert_eq!(bench.told_0(), Vec::<String>::new());
    let told = bench
        .connection
        .settle(session, [0], &DeliveryState::Accepted, true, &mut bench.out);
    assert_eq!(told, 1);
    assert_eq!(
        bench.told_0(),
        ["Receiver 0..Some(0) settled=true Some(Accepted)"]
    );
    bench
        .connection
        .settle(session, [1, 7], &DeliveryState::Accepted, true, &mut bench.out);
    assert_eq!(
        bench.told_0(),
        [
            "flow Some(0) count=Some(4) credit=Some(2) drain=false",
            "Receiver 1..Some(1) settled=true Some(Accepted)"
        ]
    );
}

/// AMQP 2.6.8.
#[test]
fn drain_as_sender() {
    let (mut bench, _) = Bench::open();
    let link = bench.attached(receiver(0, "a"), 0);
    let drain = Flow {
        drain: true,
        ..credit(0, 0, 5)
    };
    assert_eq!(
        bench.send(Performative::Flow(drain)),
        [Seen::Credit(link, 5, true)]
    );
    bench
        .connection
        .send(link, &outgoing(b"t", 0), b"", &mut bench.out)
        .expect("sent");
    bench.out.clear();
    bench.connection.drained(link, &mut bench.out);
    assert_eq!(
        bench.told_0(),
        ["flow Some(0) count=Some(5) credit=Some(0) drain=true"]
    );
    bench.connection.drained(link, &mut bench.out);
    assert_eq!(bench.out, b"", "once only");
}

#[test]
fn drain_as_receiver() {
    let (mut bench, _) = Bench::open();
    let link = bench.attached(sender(0, "a"), 0);
    bench.connection.drain(link, 5, &mut bench.out);
    assert_eq!(
        bench.told_0(),
        ["flow Some(0) count=Some(0) credit=Some(5) drain=true"]
    );
    bench.send(Performative::Transfer(transfer(0, 0)));
    let answer = Flow {
        drain: true,
        ..credit(0, 5, 0)
    };
    assert_eq!(bench.send(Performative::Flow(answer)), [Seen::Drained(link)]);
    assert_eq!(bench.connection.credit(link), 0);
}

/// AMQP 2.7.4: echo asks for our flow state, of the session or the link.
#[test]
fn echo() {
    let (mut bench, _) = Bench::open();
    bench.attached(receiver(0, "a"), 0);
    let flow = Flow {
        echo: true,
        ..credit(0, 0, 3)
    };
    bench.send(Performative::Flow(flow));
    let session = Flow {
        handle: None,
        delivery_count: None,
        link_credit: None,
        ..flow
    };
    bench.send(Performative::Flow(session));
    assert_eq!(
        bench.told_0(),
        [
            "flow Some(0) count=Some(0) credit=Some(3) drain=false",
            "flow None count=None credit=None drain=false"
        ]
    );
}

/// AMQP 2.7.4: asking is a session flow with echo; any flow of a session after that is the answer.
#[test]
fn ask() {
    let (mut bench, session) = Bench::open();
    bench.attached(receiver(0, "a"), 0);
    let flow = Flow {
        handle: None,
        delivery_count: None,
        link_credit: None,
        ..credit(0, 0, 3)
    };
    bench.send(Performative::Flow(flow));
    assert!(!bench.connection.answers(), "nothing was asked");
    assert!(bench.connection.ask(session, &mut bench.out));
    let (frame, _) = frame::decode(&bench.out, u32::MAX)
        .expect("a frame")
        .expect("whole");
    let (asked, _) = Performative::decode(frame.body).expect("a performative");
    assert!(
        matches!(asked, Performative::Flow(Flow { echo: true, .. })),
        "{asked:?}"
    );
    assert_eq!(bench.told_0(), ["flow None count=None credit=None drain=false"]);
    bench.send(Performative::Flow(credit(0, 0, 3)));
    assert!(!bench.connection.answers(), "that was of a link");
    bench.send(Performative::Flow(flow));
    assert!(bench.connection.answers());
    let other = SessionId {
        channel: session.channel + 1,
        ..session
    };
    assert!(!bench.connection.ask(other, &mut bench.out));
}

/// What was sent and not settled is reported before the end of its link or session.
#[test]
fn detach_and_end_report_what_is_lost() {
    let (mut bench, session) = Bench::open();
    let first = bench.attached(receiver(0, "a"), 0);
    let second = bench.attached(receiver(1, "b"), 0);
    bench.send(Performative::Flow(credit(0, 0, 5)));
    bench.send(Performative::Flow(credit(1, 0, 5)));
    for (link, token) in [(first, 1), (second, 2), (first, 3)] {
        bench
            .connection
            .send(link, &outgoing(b"t", token), b"", &mut bench.out)
            .expect("sent");
    }
    let on_first: Vec<_> = bench.connection.in_flight_on(first).collect();
    assert_eq!(on_first, [(0, 1), (2, 3)]);
    bench.out.clear();
    let detach = Detach {
        handle: 0,
        closed: true,
        error: Some(Error::new(condition::DETACH_FORCED, "x")),
    };
    assert_eq!(
        bench.send(Performative::Detach(detach)),
        [
            Seen::Outcome(1, None, true),
            Seen::Outcome(3, None, true),
            Seen::Detach(first, Some(condition::DETACH_FORCED.to_owned()))
        ]
    );
    assert_eq!(bench.told_0(), ["detach in order"]);
    assert_eq!(
        bench.send(Performative::End(End::default())),
        [Seen::Outcome(2, None, true), Seen::End(session)]
    );
    assert_eq!(bench.told_0(), ["end in order"]);
    assert_eq!(
        bench.connection.sessions.capacity(),
        0,
        "no memory for no sessions"
    );
}

/// AMQP 2.6.1: one link per name and direction in a session, the newest; other sessions have names of their own.
#[test]
fn names() {
    let (mut bench, _) = Bench::open();
    let old = bench.attached(receiver(0, "a"), 0);
    bench.send(Performative::Flow(credit(0, 0, 5)));
    bench
        .connection
        .send(old, &outgoing(b"t", 9), b"", &mut bench.out)
        .expect("sent");
    bench.attached(sender(1, "a"), 5);
    bench.feed(&amqp(1, begin(), b""));
    assert!(matches!(
        bench.feed(&amqp(1, receiver(0, "a"), b""))[..],
        [Seen::Attach(_)]
    ));
    bench.out.clear();
    let events = bench.send(receiver(2, "a"));
    let [
        Seen::Outcome(9, None, true),
        Seen::LinkFailed(stolen, LinkError::Stolen),
        Seen::Attach(new),
    ] = events[..]
    else {
        panic!("{events:?}")
    };
    assert_eq!(stolen, old);
    assert_ne!(new, old);
    assert_eq!(bench.told_0(), ["detach amqp:link:stolen"]);
}

#[test]
fn refusal() {
    let (mut bench, _) = Bench::open();
    let events = bench.send(sender(0, "a"));
    let [Seen::Attach(link)] = events[..] else {
        panic!("{events:?}")
    };
    let error = Error::new(condition::UNAUTHORIZED_ACCESS, "no");
    bench.connection.refuse_link(link, &error, &mut bench.out);
    assert_eq!(
        bench.told_0(),
        ["attach a Receiver refused", "detach amqp:unauthorized-access"]
    );
    bench
        .connection
        .accept_link(link, &Attach::new("a", Role::Receiver), 5, &mut bench.out);
    assert_eq!(bench.out, b"", "too late");
}

/// A client that detaches without waiting for the answer to its attach gets both.
#[test]
fn detach_before_the_answer() {
    let (mut bench, _) = Bench::open();
    bench.send(receiver(0, "a"));
    let detach = Detach {
        handle: 0,
        closed: true,
        error: None,
    };
    assert_eq!(bench.send(Performative::Detach(detach)).len(), 1);
    assert_eq!(bench.told_0(), ["attach a Sender refused", "detach in order"]);
}

/// A number of a link or session that is gone does not reach its successor.
#[test]
fn old_numbers_mean_nothing() {
    let (mut bench, session) = Bench::open();
    let old = bench.attached(sender(0, "a"), 5);
    bench.send(Performative::Detach(Detach {
        handle: 0,
        closed: true,
        error: None,
    }));
    let new = bench.attached(sender(0, "a"), 5);
    assert_eq!((old.channel, old.handle), (new.channel, new.handle));
    bench.out.clear();
    bench.connection.detach(old, None, &mut bench.out);
    bench.connection.set_window(old, 50, &mut bench.out);
    assert_eq!(bench.out, b"");
    bench.send(Performative::End(End::default()));
    bench.send(begin());
    bench.out.clear();
    bench.connection.end(session, None, &mut bench.out);
    assert_eq!(bench.out, b"");
}
