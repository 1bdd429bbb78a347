//! Decoding allocates nothing, whatever is announced; messages that come and go in one frame neither; and what an idle
//! connection holds is small.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use holdfast_amqp::connection::Outgoing;
use holdfast_amqp::frame;
use holdfast_amqp::message::{Properties, Writer};
use holdfast_amqp::performatives::{Attach, DeliveryState, Open, Performative};
use holdfast_amqp::{Config, Connection, Event, LinkId, Message, Value};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    static LIVE: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on to the system allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        LIVE.set(LIVE.get() + layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.set(LIVE.get() - layout.size() as isize);
        // SAFETY: the pointer came from `alloc` above, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

fn message() -> Vec<u8> {
    let mut bytes = Vec::new();
    Writer::new(&mut bytes)
        .properties(&Properties {
            content_type: Some("application/json"),
            ..Properties::default()
        })
        .application_properties(|map| {
            map.string("level", &Value::String("storm"));
        })
        .data(&[b'x'; 256]);
    bytes
}

#[test]
fn decoding_a_message_allocates_nothing() {
    let bytes = message();
    let count = allocations(|| {
        let message = Message::decode(&bytes).expect("valid");
        let map = message.application_properties.expect("properties");
        assert_eq!(map.get("level").and_then(|value| value.as_str()), Some("storm"));
        assert_eq!(message.body.as_bytes().map(<[u8]>::len), Some(256));
    });
    assert_eq!(count, 0);
}

#[test]
fn announced_sizes_allocate_nothing() {
    let count = allocations(|| {
        assert!(frame::decode(b"\xff\xff\xff\xff\x02\x00\x00\x00", 65_536).is_err());
        assert_eq!(
            frame::decode(b"\x00\x01\x00\x00\x02\x00\x00\x00", 65_536),
            Ok(None)
        );
        for value in [
            &b"\xd0\xff\xff\xff\xff\xff\xff\xff\xff"[..],
            b"\xd0\x00\x00\x00\x04\xff\xff\xff\xff",
            b"\xf0\x00\x00\x00\x05\xff\xff\xff\xff\x40",
            b"\xb1\xff\xff\xff\xff",
        ] {
            assert!(Value::decode(value).is_err());
        }
        assert!(Performative::decode(b"\x00\x53\x14\xd0\x00\x00\x00\x04\xff\xff\xff\xff").is_err());
    });
    assert_eq!(count, 0);
}

/// Client and server with one link, `window` messages of credit.
fn joined(window: u32) -> (Connection, Connection, LinkId) {
    let config = Arc::new(Config::default());
    let (mut up, mut down) = (Vec::new(), Vec::new());
    let mut client = Connection::client(config.clone(), false, 0, &mut up);
    let mut server = Connection::server(config, 0);
    client.open(&Open::default(), &mut up);
    let session = client.begin(&mut up).expect("begun");
    let link = client
        .attach(session, &Attach::sender("a", "to"), 0, &mut up)
        .expect("attached");
    let mut rest = &up[..];
    while let Some(event) = server.next_event(&mut rest, 0, &mut down).expect("valid") {
        match event {
            Event::Open(_) => server.open(&Open::default(), &mut down),
            Event::Attach { link, attach } => server.accept_link(link, &attach.agree(), window, &mut down),
            _ => {}
        }
    }
    up.clear();
    let mut rest = &down[..];
    while client.next_event(&mut rest, 0, &mut up).expect("valid").is_some() {}
    (client, server, link)
}

#[test]
fn messages_in_steady_state_allocate_nothing() {
    let (mut client, mut server, link) = joined(64);
    let payload = message();
    let (mut up, mut down) = (Vec::with_capacity(65_536), Vec::with_capacity(65_536));
    let mut round = || {
        for token in 0..20u64 {
            let outgoing = Outgoing {
                tag: &token.to_be_bytes(),
                token,
                ..Outgoing::default()
            };
            client.send(link, &outgoing, &payload, &mut up).expect("credit");
        }
        let mut rest = &up[..];
        while let Some(event) = server.next_event(&mut rest, 0, &mut down).expect("valid") {
            if let Event::Transfer { link, delivery } = event {
                server.settle(
                    link.session(),
                    [delivery.id],
                    &DeliveryState::Accepted,
                    true,
                    &mut down,
                );
            }
        }
        up.clear();
        let mut rest = &down[..];
        let mut settled = 0;
        while let Some(event) = client.next_event(&mut rest, 0, &mut up).expect("valid") {
            settled += usize::from(matches!(event, Event::Outcome { .. }));
        }
        down.clear();
        assert_eq!(settled, 20);
    };
    round();
    let count = allocations(|| (0..100).for_each(|_| round()));
    assert_eq!(count, 0);
}

/// A device with telemetry, commands, methods and twin, in the two sessions that .NET makes, after some traffic.
#[test]
fn an_idle_device_is_small() {
    let config = Arc::new(Config::default());
    let mut up = Vec::new();
    let mut client = Connection::client(config.clone(), false, 0, &mut up);
    client.open(&Open::default(), &mut up);
    let cbs = client.begin(&mut up).expect("begun");
    let device = client.begin(&mut up).expect("begun");
    let mut attach = |session, attach| client.attach(session, &attach, 50, &mut up).expect("attached");
    attach(cbs, Attach::sender("cbs:sender", "$cbs"));
    attach(cbs, Attach::receiver("cbs:receiver", "$cbs"));
    attach(device, Attach::sender("TelemetrySenderLink", "messages"));
    attach(device, Attach::receiver("TelemetryReceiverLink", "messages"));
    attach(device, Attach::sender("MethodsSenderLink", "methods"));
    attach(device, Attach::receiver("MethodsReceiverLink", "methods"));
    attach(device, Attach::sender("TwinSenderLink", "twin"));
    attach(device, Attach::receiver("TwinReceiverLink", "twin"));
    let mut down = Vec::new();
    let before = LIVE.get();
    let mut server = Connection::server(config, 0);
    let mut rest = &up[..];
    while let Some(event) = server.next_event(&mut rest, 0, &mut down).expect("valid") {
        match event {
            Event::Open(_) => server.open(&Open::default(), &mut down),
            Event::Attach { link, attach } => server.accept_link(link, &attach.agree(), 50, &mut down),
            _ => {}
        }
    }
    let held = LIVE.get() - before - down.capacity() as isize + size_of::<Connection>() as isize;
    eprintln!("{held} bytes");
    assert!(held < 2_048, "{held} bytes");
}
