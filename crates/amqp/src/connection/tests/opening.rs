//! Headers, SASL, open and close, sessions, time.

use super::*;

/// AMQP 2.2: a header that is not known is answered with one that is.
#[test]
fn header_of_another_protocol() {
    for first in [
        &Protocol::Tls.header()[..],
        b"AMQP\x00\x00\x09\x01",
        b"GET / HTTP/1.1",
        b"\x16\x03",
    ] {
        let mut bench = Bench::server(Config::default());
        let (events, error) = bench.feed_all(first);
        assert_eq!(events, []);
        assert_eq!(error, Some(ConnectionError::Header));
        assert_eq!(bench.out, Protocol::Amqp.header());
        assert!(bench.connection.is_closed());
    }
}

/// Without mechanisms there is no SASL layer.
#[test]
fn sasl_header_without_mechanisms() {
    let config = Config {
        mechanisms: &[],
        ..Config::default()
    };
    let mut bench = Bench::server(config);
    let (_, error) = bench.feed_all(&Protocol::Sasl.header());
    assert_eq!(error, Some(ConnectionError::Header));
}

#[test]
fn sasl_with_a_challenge() {
    let mut bench = Bench::server(Config::default());
    assert_eq!(bench.feed(&Protocol::Sasl.header()), []);
    assert_eq!(bench.out[..8], Protocol::Sasl.header());
    let init = SaslInit {
        mechanism: "PLAIN",
        initial_response: Some(b"\0u\0p"),
        hostname: Some("hub"),
    };
    let mut stream = sasl(&Sasl::Init(init));
    stream.extend(Protocol::Amqp.header());
    let mut rest = &stream[..];
    let event = bench.connection.next_event(&mut rest, 0, &mut bench.out);
    assert_eq!(event, Ok(Some(Event::SaslInit(init))));
    let event = bench.connection.next_event(&mut rest, 0, &mut bench.out);
    assert_eq!(
        (event, rest.len()),
        (Ok(None), 8),
        "what follows waits for the verdict"
    );
    bench.connection.sasl_challenge(b"?", &mut bench.out);
    let events = bench.feed(&sasl(&Sasl::Response(b"!")));
    assert_eq!(events, [Seen::Sasl("SaslResponse([33])".to_owned())]);
    bench.connection.sasl_outcome(SaslCode::Ok, &mut bench.out);
    bench.out.clear();
    assert_eq!(bench.feed(rest), []);
    assert_eq!(bench.out, Protocol::Amqp.header());
}

#[test]
fn refused_sasl_is_the_end() {
    let mut bench = Bench::server(Config::default());
    bench.feed(&Protocol::Sasl.header());
    bench.feed(&sasl(&Sasl::Init(SaslInit {
        mechanism: "PLAIN",
        initial_response: None,
        hostname: None,
    })));
    bench.out.clear();
    bench.connection.sasl_outcome(SaslCode::Auth, &mut bench.out);
    assert_eq!(bench.out, sasl(&Sasl::Outcome(SaslCode::Auth, None)));
    assert_eq!(bench.feed(&Protocol::Amqp.header()), []);
    assert!(bench.connection.is_closed());
}

/// AMQP 5.3: frames of one layer do not belong into the other.
#[test]
fn frames_of_the_wrong_layer() {
    let mut bench = Bench::server(Config::default());
    bench.feed(&Protocol::Sasl.header());
    let (_, error) = bench.feed_all(&amqp(0, Performative::Open(Box::default()), b""));
    assert_eq!(error, Some(ConnectionError::Layer));
    let (mut bench, _) = Bench::open();
    let (error, told) = bench.broken(&sasl(&Sasl::Response(b"x")));
    assert_eq!(error, ConnectionError::Layer);
    assert_eq!(told, "close amqp:connection:framing-error");
}

/// AMQP 2.4.1: open comes first; the answer to a mistake is an open and a close.
#[test]
fn begin_before_open() {
    let mut bench = Bench::server(Config::default());
    bench.feed(&Protocol::Amqp.header());
    bench.out.clear();
    let (_, error) = bench.feed_all(&amqp(0, begin(), b""));
    assert_eq!(error, Some(ConnectionError::OutOfOrder(0x11)));
    assert_eq!(bench.told_0(), ["open", "close amqp:not-allowed"]);
}

#[test]
fn second_open() {
    let (mut bench, _) = Bench::open();
    let (error, told) = bench.broken(&amqp(0, Performative::Open(Box::default()), b""));
    assert_eq!(error, ConnectionError::OutOfOrder(0x10));
    assert_eq!(told, "close amqp:not-allowed");
}

/// AMQP 2.7.1: nobody may want frames below 512 bytes.
#[test]
fn tiny_frames() {
    let mut bench = Bench::server(Config::default());
    bench.feed(&Protocol::Amqp.header());
    let open = Open {
        max_frame_size: 511,
        ..Open::default()
    };
    let (_, error) = bench.feed_all(&amqp(0, Performative::Open(Box::new(open)), b""));
    assert_eq!(error, Some(ConnectionError::FrameSizeTooSmall(511)));
}

/// Clients send header, open, begin and attach before they read anything.
#[test]
fn pipelined_start() {
    let mut bench = Bench::server(Config::default());
    let mut stream = Protocol::Amqp.header().to_vec();
    stream.extend(amqp(0, Performative::Open(Box::default()), b""));
    stream.extend(amqp(0, begin(), b""));
    stream.extend(amqp(0, receiver(0, "a"), b""));
    stream.extend(amqp(0, sender(1, "b"), b""));
    stream.extend(amqp(0, Performative::Flow(credit(0, 0, 7)), b""));
    let mut rest = &stream[..];
    let mut links = Vec::new();
    let connection = &mut bench.connection;
    while let Some(event) = connection
        .next_event(&mut rest, 0, &mut bench.out)
        .expect("valid")
    {
        match event {
            Event::Open(_) => {
                assert_eq!(connection.next_event(&mut rest, 0, &mut bench.out), Ok(None));
                connection.open(&Open::default(), &mut bench.out);
            }
            Event::Attach { link, attach } => links.push((link, attach)),
            Event::Begin { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(rest, b"");
    let (receiving, attach) = &links[0];
    assert_eq!(connection.credit(*receiving), 0, "not attached yet");
    connection.accept_link(*receiving, &attach.agree(), 0, &mut bench.out);
    assert_eq!(
        connection.credit(*receiving),
        7,
        "credit that came before the answer counts"
    );
    assert_eq!(connection.can_send(*receiving), 7);
}

#[test]
fn channels() {
    let (mut bench, _) = Bench::open();
    let (error, _) = bench.broken(&amqp(0, begin(), b""));
    assert_eq!(error, ConnectionError::Begin(0), "a second begin on a channel");
    let config = Config {
        channel_max: 1,
        ..Config::default()
    };
    let (mut bench, _) = Bench::open_with(config.clone(), Open::default());
    assert_eq!(bench.feed(&amqp(1, begin(), b"")).len(), 1);
    assert_eq!(bench.told(), [(1, "begin Some(1)".to_owned())]);
    let (error, told) = bench.broken(&amqp(2, begin(), b""));
    assert_eq!(error, ConnectionError::ChannelMax(2));
    assert_eq!(told, "close amqp:connection:framing-error");
    let (mut bench, _) = Bench::open();
    let (error, _) = bench.broken(&amqp(9, sender(0, "a"), b""));
    assert_eq!(error, ConnectionError::NoSession(9));
}

#[test]
fn handles() {
    let (mut bench, _) = Bench::open();
    bench.attached(sender(4, "a"), 10);
    let (error, told) = bench.broken(&amqp(0, sender(4, "b"), b""));
    assert_eq!(error, ConnectionError::HandleInUse(4));
    assert_eq!(told, "close amqp:session:handle-in-use");
    let (mut bench, _) = Bench::open();
    let (error, _) = bench.broken(&amqp(0, sender(8_192, "b"), b""));
    assert_eq!(error, ConnectionError::HandleMax(8_192));
    let (mut bench, _) = Bench::open();
    let (error, told) = bench.broken(&amqp(0, Performative::Transfer(transfer(3, 0)), b""));
    assert_eq!(error, ConnectionError::UnattachedHandle(3));
    assert_eq!(told, "close amqp:session:unattached-handle");
    let config = Config {
        max_links: 1,
        ..Config::default()
    };
    let (mut bench, _) = Bench::open_with(config, Open::default());
    bench.attached(sender(0, "a"), 10);
    let (error, told) = bench.broken(&amqp(0, sender(1, "b"), b""));
    assert_eq!(error, ConnectionError::TooManyLinks);
    assert_eq!(told, "close amqp:resource-limit-exceeded");
}

#[test]
fn unknown_performative() {
    let (mut bench, _) = Bench::open();
    let mut bytes = Vec::new();
    frame::encode(&mut bytes, FrameType::Amqp, 0, |out| {
        out.extend_from_slice(&[0, 0x53, 0x19, 0x45]);
    });
    let (error, told) = bench.broken(&bytes);
    assert!(matches!(error, ConnectionError::Decode(_)));
    assert_eq!(told, "close amqp:decode-error");
}

/// AMQP 2.5.4, 2.4.6: after our end or close, only the peer's counts.
#[test]
fn end_and_close_by_us() {
    let (mut bench, session) = Bench::open();
    bench.attached(sender(0, "a"), 5);
    let error = Error::new(condition::INTERNAL_ERROR, "x");
    bench.connection.end(session, Some(&error), &mut bench.out);
    assert_eq!(bench.told_0(), ["end amqp:internal-error"]);
    assert_eq!(bench.send(Performative::Transfer(transfer(0, 0))), []);
    assert_eq!(bench.send(sender(1, "b")), []);
    assert_eq!(bench.send(Performative::End(End::default())), []);
    assert_eq!(bench.connection.links, 0);
    bench.connection.close(Some(&error), &mut bench.out);
    assert_eq!(bench.told_0(), ["close amqp:internal-error"]);
    assert_eq!(bench.send(begin()), []);
    assert_eq!(
        bench.send(Performative::Close(Close::default())),
        [Seen::Close(None)]
    );
    assert_eq!(bench.out, b"");
    assert!(bench.connection.is_closed());
}

#[test]
fn close_by_the_peer() {
    let (mut bench, _) = Bench::open();
    let error = Some(Error::new(condition::CONNECTION_FORCED, "bye"));
    let events = bench.send(Performative::Close(Close { error }));
    assert_eq!(
        events,
        [Seen::Close(Some(condition::CONNECTION_FORCED.to_owned()))]
    );
    assert_eq!(bench.told_0(), ["close in order"]);
    assert_eq!(bench.connection.next_tick(), None);
}

/// AMQP 2.4.5: the peer hears from us at least every half of its idle-time-out, and we give up a silent peer.
#[test]
fn heartbeats() {
    let open = Open {
        idle_time_out: Some(60_000),
        ..Open::default()
    };
    let (mut bench, _) = Bench::open_with(Config::default(), open);
    let mut last = 0;
    for now in (0..240_000).step_by(1_000) {
        if bench.connection.next_tick().expect("a time") <= now {
            bench.connection.tick(now, &mut bench.out).expect("alive");
        }
        if !bench.told().is_empty() {
            last = now;
        }
        assert!(now - last <= 30_000, "silent from {last} to {now}");
    }
    assert_eq!(
        bench.connection.tick(240_000, &mut bench.out),
        Err(ConnectionError::IdleTimeout)
    );
    let told = bench.told_0();
    assert_eq!(
        told.last().map(String::as_str),
        Some("close amqp:connection:forced")
    );
}

#[test]
fn heartbeats_keep_the_peer_alive() {
    let (mut bench, _) = Bench::open();
    for _ in 0..10 {
        bench.now += 200_000;
        assert_eq!(bench.feed(&[0, 0, 0, 8, 2, 0, 0, 0]), []);
        bench.connection.tick(bench.now, &mut bench.out).expect("alive");
    }
    assert_eq!(bench.out, b"", "it asked for no heartbeats");
}

#[test]
fn open_in_time() {
    let mut bench = Bench::server(Config::default());
    assert_eq!(bench.connection.next_tick(), Some(60_000));
    bench.feed(&Protocol::Amqp.header());
    bench.now = 50_000;
    bench.feed(&[0, 0, 0, 8, 2, 0, 0, 0]);
    assert_eq!(bench.connection.tick(59_999, &mut bench.out), Ok(()));
    assert_eq!(
        bench.connection.tick(60_000, &mut bench.out),
        Err(ConnectionError::OpenTimeout)
    );
}

#[test]
fn close_in_time() {
    let (mut bench, _) = Bench::open();
    bench.connection.close(None, &mut bench.out);
    assert_eq!(bench.connection.next_tick(), Some(0));
    assert_eq!(bench.connection.tick(1_000_000, &mut bench.out), Ok(()));
    assert_eq!(bench.connection.next_tick(), Some(1_060_000));
    assert!(bench.connection.tick(1_060_000, &mut bench.out).is_err());
}

#[test]
fn client_opens_begins_and_attaches_without_waiting() {
    let mut out = Vec::new();
    let mut client = Connection::client(Arc::new(Config::default()), false, 0, &mut out);
    assert_eq!(client.begin(&mut out), Err(OpenError::NotOpen));
    client.open(&Open::default(), &mut out);
    let session = client.begin(&mut out).expect("begun");
    let link = client
        .attach(session, &Attach::sender("a", "to"), 0, &mut out)
        .expect("attached");
    assert_eq!(
        client.attach(session, &Attach::sender("a", "to"), 0, &mut out),
        Err(OpenError::NameInUse)
    );
    assert_eq!(
        client.send(link, &outgoing(b"t", 0), b"", &mut out),
        Err(SendError::NotAttached)
    );
    // Given up before the answers come: they are let pass.
    client.detach(link, None, &mut out);
    let mut bench = Bench {
        connection: client,
        out,
        now: 0,
    };
    bench.feed(&Protocol::Amqp.header());
    bench.feed(&amqp(0, Performative::Open(Box::default()), b""));
    let reply = Begin {
        remote_channel: Some(0),
        incoming_window: 10,
        ..Begin::default()
    };
    assert_eq!(
        bench.feed(&amqp(5, Performative::Begin(reply), b"")),
        [Seen::Begin(session)]
    );
    assert_eq!(bench.feed(&amqp(5, receiver(0, "a"), b"")), []);
    let detach = Detach {
        handle: 0,
        closed: true,
        error: None,
    };
    assert_eq!(bench.feed(&amqp(5, Performative::Detach(detach), b"")), []);
    assert_eq!(bench.connection.links, 0);
}

/// 12 KiB with TLS is the budget of an idle device: the machine is to take a small part of it.
#[test]
fn sizes() {
    assert!(size_of::<Connection>() <= 160, "{}", size_of::<Connection>());
    assert!(
        size_of::<super::super::session::Session>() <= 224,
        "{}",
        size_of::<super::super::session::Session>()
    );
    assert!(
        size_of::<super::super::session::Link>() <= 88,
        "{}",
        size_of::<super::super::session::Link>()
    );
    assert!(size_of::<Event<'_>>() <= 160, "{}", size_of::<Event<'_>>());
}
