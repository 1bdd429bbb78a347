//! Decoding must not allocate: not for good packets, not for bad ones, and never for a length that was only announced.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use holdfast_mqtt::codec::{Connect, Publish, QoS, encode_connect, encode_publish, encode_subscribe};
use holdfast_mqtt::{DecodeError, PacketId, decode, v5};

/// The system's allocator with a counter per thread, so that other tests' threads do not disturb.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on unchanged to the system's allocator, which keeps the contract; the counter is a
// thread-local `Cell` of a type without destructor, whose use neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are those of this method.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `alloc` above, that is from the system's allocator, with the same layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.with(Cell::get);
    work();
    ALLOCATIONS.with(Cell::get) - before
}

#[test]
fn decoding_allocates_nothing() {
    let id = PacketId::MIN;
    let mut stream = Vec::new();
    let connect = Connect {
        client_id: "d1",
        username: Some("u"),
        password: Some(b"p"),
        ..Connect::default()
    };
    encode_connect(&mut stream, &connect).expect("fits");
    let payload = [7; 256];
    let publish = Publish {
        topic: "devices/d1/messages/events/",
        payload: &payload,
        qos: QoS::AtLeastOnce,
        packet_id: Some(id),
        ..Publish::default()
    };
    encode_publish(&mut stream, &publish).expect("fits");
    encode_subscribe(
        &mut stream,
        id,
        &[("a", QoS::AtMostOnce), ("b", QoS::AtLeastOnce)],
    )
    .expect("fits");
    let count = allocations(|| {
        let mut rest = &stream[..];
        while let Some((_, used)) = decode(rest, 1024).expect("valid") {
            rest = &rest[used..];
        }
        assert!(rest.is_empty());
    });
    assert_eq!(count, 0);
}

#[test]
fn announced_length_allocates_nothing() {
    let count = allocations(|| {
        let huge = b"\x30\xff\xff\xff\x7f";
        assert_eq!(decode(huge, usize::MAX), Ok(None));
        assert!(matches!(decode(huge, 262_144), Err(DecodeError::TooLarge { .. })));
        assert!(matches!(
            v5::decode(huge, 262_144),
            Err(DecodeError::TooLarge { .. })
        ));
        assert_eq!(decode(b"\x30\x03\xff\xff\x00", 1024), Err(DecodeError::Truncated));
    });
    assert_eq!(count, 0);
}
