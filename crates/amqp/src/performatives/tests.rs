//! Shapes that clients depend on; that reading and writing agree is shown in `tests/properties.rs`.

use super::*;
use crate::error::DecodeError;
use crate::types::{MapBuf, Reader, Symbols, Value};

fn encoded(performative: &Performative<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    performative.encode(&mut out);
    let (again, rest) = Performative::decode(&out).expect("readable");
    assert_eq!(&again, performative);
    assert_eq!(rest, b"");
    out
}

/// azure-eventhub for Python reads fields by position and fails on lists that are short; the third byte is the code.
#[test]
fn all_fields_are_written() {
    let begin = Begin::default();
    let performatives = [
        (Performative::Open(Box::default()), 0x10, 10),
        (Performative::Begin(begin), 0x11, 8),
        (Performative::Attach(Box::new(Attach::sender("a", "b"))), 0x12, 14),
        (Performative::Flow(Flow::default()), 0x13, 11),
        (Performative::Transfer(Transfer::default()), 0x14, 11),
        (Performative::Disposition(accepted(Some(3))), 0x15, 6),
        (Performative::Detach(Detach::default()), 0x16, 3),
        (Performative::End(End::default()), 0x17, 1),
        (Performative::Close(Close::default()), 0x18, 1),
    ];
    for (performative, code, fields) in performatives {
        let bytes = encoded(&performative);
        assert_eq!(bytes[..3], [0x00, 0x53, code]);
        let count = match bytes[3] {
            0xc0 => bytes[5].into(),
            0xd0 => u32::from_be_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]),
            other => panic!("{performative:?} is written as {other:#x}"),
        };
        assert_eq!(count, fields, "{performative:?}");
    }
}

fn accepted(last: Option<u32>) -> Disposition<'static> {
    Disposition {
        role: Role::Receiver,
        first: 1,
        last,
        settled: true,
        state: Some(DeliveryState::Accepted),
        batchable: false,
    }
}

#[test]
fn fields_that_are_absent_have_their_defaults() {
    let (performative, rest) =
        Performative::decode(&[0, 0x53, 0x10, 0xc0, 4, 1, 0xa1, 1, b'c']).expect("an open");
    let Performative::Open(open) = performative else {
        panic!("{performative:?}")
    };
    assert_eq!(rest, b"");
    assert_eq!(
        *open,
        Open {
            container_id: "c",
            ..Open::default()
        }
    );
    assert_eq!(open.max_frame_size, u32::MAX);
    let (transfer, payload) =
        Performative::decode(&[0, 0x53, 0x14, 0xc0, 2, 1, 0x43, 1, 2]).expect("a transfer");
    assert_eq!(transfer, Performative::Transfer(Transfer::default()));
    assert_eq!(payload, [1, 2]);
}

#[test]
fn other_descriptors_are_read() {
    let close = Performative::Close(Close::default());
    for bytes in [
        &b"\x00\x53\x18\x45"[..],
        b"\x00\x80\x00\x00\x00\x00\x00\x00\x00\x18\x45",
        b"\x00\xa3\x0famqp:close:list\x45",
        b"\x00\x53\x18\xd0\x00\x00\x00\x04\x00\x00\x00\x00",
    ] {
        assert_eq!(Performative::decode(bytes), Ok((close.clone(), &[][..])));
    }
}

#[test]
fn malformed_performatives() {
    let refused = |bytes: &[u8], error| assert_eq!(Performative::decode(bytes), Err(error));
    refused(b"\x00\x53\x18", DecodeError::Truncated);
    refused(b"\x40", DecodeError::NotComposite);
    refused(b"\x00\x40\x18\x45", DecodeError::NotComposite);
    refused(b"\x00\x53\x18\xc1\x01\x00", DecodeError::NotComposite);
    refused(b"\x00\x53\x99\x45", DecodeError::Descriptor(0x99));
    refused(b"\x00\xa3\x03foo\x45", DecodeError::Descriptor(0));
    refused(
        b"\x00\x53\x10\x45",
        DecodeError::FieldMissing { of: "open", field: 0 },
    );
    refused(
        b"\x00\x53\x14\xc0\x02\x01\x41",
        DecodeError::FieldType {
            of: "transfer",
            field: 0,
        },
    );
    // snd-settle-mode 7
    refused(
        b"\x00\x53\x12\xc0\x08\x04\xa1\x01a\x43\x41\x50\x07",
        DecodeError::FieldValue {
            of: "attach",
            field: 3,
        },
    );
}

/// A list longer than 254 bytes takes its long form: what was written moves.
#[test]
fn long_performatives() {
    let name = "n".repeat(300);
    let mut properties = MapBuf::new();
    properties.symbol("com.microsoft:client-version", &Value::String(&name));
    let attach = Attach {
        properties: Some(properties.as_map()),
        ..Attach::receiver(&name, "a")
    };
    let bytes = encoded(&Performative::Attach(Box::new(attach)));
    assert_eq!(bytes[3], 0xd0);
}

/// amqp.md 5.4: the filter comes with a symbol or a number as its descriptor.
#[test]
fn selectors() {
    let expression = "amqp.annotation.x-opt-offset > '-1'";
    let map = selector_filter(expression);
    let source = Source {
        filter: Some(map.as_map()),
        ..Source::new("a")
    };
    assert_eq!(source.selector(), Some(expression));
    let described =
        crate::types::DescribedBuf::new(&Value::Ulong(0x0000_468c_0000_0004), &Value::String("x"));
    let mut map = MapBuf::new();
    map.symbol(SELECTOR_FILTER, &Value::Described(described.as_described()));
    let source = Source {
        filter: Some(map.as_map()),
        ..Source::new("a")
    };
    assert_eq!(source.selector(), Some("x"));
    assert_eq!(Source::new("a").selector(), None);
}

#[test]
fn coordinator() {
    let attach = Attach {
        target: Some(Target {
            coordinator: true,
            capabilities: Symbols::Slice(&["amqp:local-transactions"]),
            ..Target::default()
        }),
        ..Attach::sender("tx", "")
    };
    encoded(&Performative::Attach(Box::new(attach)));
}

#[test]
fn states() {
    let mut info = MapBuf::new();
    info.symbol("retry-after", &Value::Int(3));
    let error = Error {
        info: Some(info.as_map()),
        ..Error::new(condition::NOT_FOUND, "no such device")
    };
    for state in [
        DeliveryState::Accepted,
        DeliveryState::Released,
        DeliveryState::Rejected(None),
        DeliveryState::Rejected(Some(error)),
        DeliveryState::Modified {
            delivery_failed: true,
            undeliverable_here: false,
            message_annotations: None,
        },
        DeliveryState::Received {
            section_number: 1,
            section_offset: 300,
        },
    ] {
        let mut out = Vec::new();
        state.encode(&mut out);
        assert_eq!(DeliveryState::decode(&out), Ok(state));
        assert_eq!(
            state.is_outcome(),
            !matches!(state, DeliveryState::Received { .. })
        );
        encoded(&Performative::Disposition(Disposition {
            state: Some(state),
            ..accepted(None)
        }));
    }
}

/// azure-iot-sdk-c reads the mechanisms as an array only, even a single one.
#[test]
fn sasl_bodies() {
    let offer = Sasl::Mechanisms(SaslMechanisms {
        mechanisms: Symbols::Slice(&["ANONYMOUS"]),
    });
    let mut out = Vec::new();
    offer.encode(&mut out);
    assert_eq!(out[6], 0xf0);
    let init = SaslInit {
        mechanism: "MSSBCBS",
        initial_response: None,
        hostname: Some("h"),
    };
    for body in [
        offer,
        Sasl::Init(init),
        Sasl::Challenge(b"1"),
        Sasl::Response(b""),
        Sasl::Outcome(SaslCode::SysTemp, Some(b"x")),
    ] {
        out.clear();
        body.encode(&mut out);
        assert_eq!(Sasl::decode(&out), Ok(body));
    }
    out.push(0);
    assert_eq!(Sasl::decode(&out), Err(DecodeError::Size));
    assert_eq!(
        Sasl::decode(b"\x00\x53\x44\xc0\x03\x01\x50\x09"),
        Err(DecodeError::FieldValue {
            of: "sasl frame",
            field: 0
        })
    );
}

/// The machine's short way of reading a transfer finds the same, and refuses the same.
#[test]
fn a_transfer_is_read_the_same_both_ways() {
    let states = [
        None,
        Some(DeliveryState::Accepted),
        Some(DeliveryState::Rejected(None)),
    ];
    let mut compared = 0;
    for bits in 0..64u32 {
        let bit = |n: u32| bits & (1 << n) != 0;
        let transfer = Transfer {
            handle: bits * 100,
            delivery_id: bit(0).then_some(bits),
            delivery_tag: bit(1).then_some(b"tag"),
            message_format: bit(2).then_some(7),
            settled: bit(3).then_some(bit(0)),
            more: bit(4),
            rcv_settle_mode: bit(5).then_some(ReceiverSettleMode::Second),
            state: states[bits as usize % 3],
            resume: bit(2),
            aborted: bit(3),
            batchable: bit(1),
        };
        let mut bytes = Vec::new();
        transfer.encode(&mut bytes);
        // Whole, and with each byte damaged in turn.
        for at in 0..=bytes.len() {
            let mut damaged = bytes.clone();
            if let Some(byte) = damaged.get_mut(at) {
                *byte ^= 0x11;
            }
            let read =
                |bytes| -> Result<(u8, Fields<'_>), DecodeError> { composite(&mut Reader::new(bytes)) };
            let Ok((code, fields)) = read(&damaged[..]) else {
                continue;
            };
            if code != descriptor::TRANSFER {
                continue;
            }
            let short = Arriving::read(fields).map(|short| {
                (
                    short.handle,
                    short.delivery_id,
                    short.delivery_tag,
                    short.message_format,
                    short.settled,
                    short.more,
                    short.aborted,
                )
            });
            let long = Transfer::read(fields).map(|long| {
                (
                    long.handle,
                    long.delivery_id,
                    long.delivery_tag,
                    long.message_format,
                    long.settled,
                    long.more,
                    long.aborted,
                )
            });
            assert_eq!(short, long, "{transfer:?}, byte {at}");
            compared += 1;
        }
    }
    assert!(compared > 500, "{compared}");
}
