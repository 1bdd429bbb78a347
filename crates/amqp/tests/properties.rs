//! Reading undoes writing, for anything that can be written; a stream means the same however it is cut; a part of a value
//! is never a value.

use std::sync::Arc;

use holdfast_amqp::frame::{self, FrameType, Protocol};
use holdfast_amqp::message::{Body, Header, MessageId, MessageIdBuf, Properties, Writer};
use holdfast_amqp::performatives::{
    Attach, Begin, Close, DeliveryState, Detach, Disposition, End, Error, Flow, Open, Performative,
    ReceiverSettleMode, Role, SenderSettleMode, Source, Target, Transfer,
};
use holdfast_amqp::types::{ArrayBuf, DescribedBuf, ListBuf, MapBuf, Symbols, encode_value};
use holdfast_amqp::{Config, Connection, Event, Message, Value};
use proptest::option;
use proptest::prelude::*;

/// A value as a tree, from which views are made.
#[derive(Debug, Clone)]
enum Tree {
    Leaf(Value<'static>),
    Binary(Vec<u8>),
    String(String),
    Symbol(String),
    List(Vec<Tree>),
    Map(Vec<(Tree, Tree)>),
    Strings(Vec<String>),
    Described(Box<(Tree, Tree)>),
}

impl Tree {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Leaf(value) => encode_value(out, value),
            Self::Binary(bytes) => encode_value(out, &Value::Binary(bytes)),
            Self::String(text) => encode_value(out, &Value::String(text)),
            Self::Symbol(text) => encode_value(out, &Value::Symbol(text)),
            Self::List(items) => {
                let mut list = ListBuf::new();
                for item in items {
                    item.with(|value| list.push(value));
                }
                encode_value(out, &Value::List(list.as_list()));
            }
            Self::Map(entries) => encode_value(out, &Value::Map(map_of(entries).as_map())),
            Self::Strings(texts) => {
                let array = ArrayBuf::strings(texts.iter().map(String::as_str));
                encode_value(out, &Value::Array(array.as_array()));
            }
            Self::Described(pair) => pair.0.with(|descriptor| {
                pair.1.with(|value| {
                    let described = DescribedBuf::new(descriptor, value);
                    encode_value(out, &Value::Described(described.as_described()));
                });
            }),
        }
    }

    /// Calls `then` with the value.
    fn with(&self, then: impl FnOnce(&Value<'_>)) {
        let mut bytes = Vec::new();
        self.encode(&mut bytes);
        then(&Value::decode(&bytes).expect("written values are read"));
    }

    /// Whether the value is this tree.
    fn is(&self, value: &Value<'_>) -> bool {
        match (self, value) {
            (Self::Leaf(leaf), value) => leaf == value,
            (Self::Binary(bytes), Value::Binary(other)) => bytes == other,
            (Self::String(text), Value::String(other)) => text == other,
            (Self::Symbol(text), Value::Symbol(other)) => text == other,
            (Self::List(items), Value::List(list)) => {
                items.len() == list.len()
                    && items.iter().zip(list.iter()).all(|(tree, value)| tree.is(&value))
            }
            (Self::Map(entries), Value::Map(map)) => {
                entries.len() == map.len()
                    && entries
                        .iter()
                        .zip(map.iter())
                        .all(|(entry, (key, value))| entry.0.is(&key) && entry.1.is(&value))
            }
            (Self::Strings(texts), Value::Array(array)) => {
                texts.len() == array.len()
                    && texts
                        .iter()
                        .zip(array.iter())
                        .all(|(text, value)| value == Value::String(text))
            }
            (Self::Described(pair), Value::Described(described)) => {
                pair.0.is(&described.descriptor()) && pair.1.is(&described.value())
            }
            _ => false,
        }
    }
}

fn map_of(entries: &[(Tree, Tree)]) -> MapBuf {
    let mut map = MapBuf::new();
    for (key, value) in entries {
        key.with(|key| value.with(|value| map.push(key, value)));
    }
    map
}

fn leaf() -> impl Strategy<Value = Tree> {
    let number = prop_oneof![
        any::<u8>().prop_map(Value::Ubyte),
        any::<u16>().prop_map(Value::Ushort),
        prop_oneof![0..300u32, any::<u32>()].prop_map(Value::Uint),
        prop_oneof![0..300u64, any::<u64>()].prop_map(Value::Ulong),
        any::<i8>().prop_map(Value::Byte),
        any::<i16>().prop_map(Value::Short),
        prop_oneof![-300..300i32, any::<i32>()].prop_map(Value::Int),
        prop_oneof![-300..300i64, any::<i64>()].prop_map(Value::Long),
        (-1e9f32..1e9).prop_map(Value::Float),
        (-1e90f64..1e90).prop_map(Value::Double),
    ];
    let other = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<[u8; 4]>().prop_map(Value::Decimal32),
        any::<[u8; 8]>().prop_map(Value::Decimal64),
        any::<[u8; 16]>().prop_map(Value::Decimal128),
        any::<char>().prop_map(Value::Char),
        any::<i64>().prop_map(Value::Timestamp),
        any::<[u8; 16]>().prop_map(Value::Uuid),
    ];
    let length = || prop_oneof![4 => 0..20usize, 1 => 250..260usize];
    prop_oneof![
        number.prop_map(Tree::Leaf),
        other.prop_map(Tree::Leaf),
        length()
            .prop_flat_map(|len| prop::collection::vec(any::<u8>(), len))
            .prop_map(Tree::Binary),
        length().prop_map(|len| Tree::String("ü".repeat(len))),
        "[a-z:.-]{0,12}".prop_map(Tree::Symbol),
    ]
}

fn tree() -> impl Strategy<Value = Tree> {
    leaf().prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Tree::List),
            prop::collection::vec((leaf(), inner.clone()), 0..5).prop_map(Tree::Map),
            prop::collection::vec(".{0,8}", 0..5).prop_map(Tree::Strings),
            (leaf(), inner).prop_map(|pair| Tree::Described(Box::new(pair))),
        ]
    })
}

fn symbol_map() -> impl Strategy<Value = MapBuf> {
    prop::collection::vec(("[a-z:.-]{1,20}".prop_map(Tree::Symbol), leaf()), 0..4)
        .prop_map(|entries| map_of(&entries))
}

/// What performatives are made of; their texts and maps are lent from here.
#[derive(Debug, Clone)]
struct Parts {
    texts: Vec<Option<String>>,
    maps: Vec<Option<MapBuf>>,
    numbers: Vec<Option<u32>>,
    flags: Vec<bool>,
    symbols: Vec<String>,
    tag: Vec<u8>,
}

fn parts() -> impl Strategy<Value = Parts> {
    (
        prop::collection::vec(option::of(".{0,30}"), 6),
        prop::collection::vec(option::of(symbol_map()), 4),
        prop::collection::vec(option::of(prop_oneof![0..300u32, any::<u32>()]), 10),
        prop::collection::vec(any::<bool>(), 6),
        prop::collection::vec("[a-z]{0,6}", 0..4),
        prop::collection::vec(any::<u8>(), 0..33),
    )
        .prop_map(|(texts, maps, numbers, flags, symbols, tag)| Parts {
            texts,
            maps,
            numbers,
            flags,
            symbols,
            tag,
        })
}

impl Parts {
    fn text(&self, at: usize) -> Option<&str> {
        self.texts[at].as_deref()
    }

    fn number(&self, at: usize) -> u32 {
        self.numbers[at].unwrap_or(7)
    }

    fn map(&self, at: usize) -> Option<holdfast_amqp::types::Map<'_>> {
        self.maps[at].as_ref().map(MapBuf::as_map)
    }

    fn role(&self) -> Role {
        if self.flags[0] {
            Role::Sender
        } else {
            Role::Receiver
        }
    }

    fn error(&self) -> Option<Error<'_>> {
        self.text(0).map(|condition| Error {
            condition,
            description: self.text(1),
            info: self.map(0),
        })
    }

    fn state(&self) -> Option<DeliveryState<'_>> {
        Some(match self.number(0) % 6 {
            0 => DeliveryState::Accepted,
            1 => DeliveryState::Released,
            2 => DeliveryState::Rejected(self.error()),
            3 => DeliveryState::Modified {
                delivery_failed: self.flags[1],
                undeliverable_here: self.flags[2],
                message_annotations: self.map(1),
            },
            4 => DeliveryState::Received {
                section_number: self.number(1),
                section_offset: self.number(2).into(),
            },
            _ => return None,
        })
    }

    fn attach<'a>(&'a self, symbols: Symbols<'a>) -> Attach<'a> {
        Attach {
            handle: self.number(0),
            snd_settle_mode: if self.flags[1] {
                SenderSettleMode::Settled
            } else {
                SenderSettleMode::Mixed
            },
            rcv_settle_mode: if self.flags[2] {
                ReceiverSettleMode::Second
            } else {
                ReceiverSettleMode::First
            },
            source: self.flags[3].then_some(Source {
                address: self.text(1),
                timeout: self.number(1),
                dynamic: self.flags[4],
                filter: self.map(0),
                default_outcome: self.state(),
                outcomes: symbols,
                ..Source::default()
            }),
            target: self.flags[5].then_some(Target {
                address: self.text(2),
                dynamic_node_properties: self.map(1),
                capabilities: symbols,
                ..Target::default()
            }),
            unsettled: self.map(2),
            incomplete_unsettled: self.flags[4],
            initial_delivery_count: self.numbers[2],
            max_message_size: self.numbers[3].map(u64::from),
            offered_capabilities: symbols,
            properties: self.map(3),
            ..Attach::new(self.text(0).unwrap_or("name"), self.role())
        }
    }

    fn performatives<'a>(&'a self, slice: &'a [&'a str]) -> Vec<Performative<'a>> {
        let symbols = Symbols::Slice(slice);
        let open = Open {
            container_id: self.text(0).unwrap_or("c"),
            hostname: self.text(1),
            max_frame_size: self.number(0),
            channel_max: self.number(1) as u16,
            idle_time_out: self.numbers[2],
            outgoing_locales: symbols,
            desired_capabilities: symbols,
            properties: self.map(0),
            ..Open::default()
        };
        let begin = Begin {
            remote_channel: self.numbers[0].map(|number| number as u16),
            next_outgoing_id: self.number(1),
            incoming_window: self.number(2),
            outgoing_window: self.number(3),
            handle_max: self.number(4),
            offered_capabilities: symbols,
            properties: self.map(1),
            ..Begin::default()
        };
        let flow = Flow {
            next_incoming_id: self.numbers[0],
            incoming_window: self.number(1),
            next_outgoing_id: self.number(2),
            outgoing_window: self.number(3),
            handle: self.numbers[4],
            delivery_count: self.numbers[5],
            link_credit: self.numbers[6],
            available: self.numbers[7],
            drain: self.flags[0],
            echo: self.flags[1],
            properties: self.map(2),
        };
        let transfer = Transfer {
            handle: self.number(0),
            delivery_id: self.numbers[1],
            delivery_tag: self.flags[0].then_some(&self.tag[..]),
            message_format: self.numbers[2],
            settled: self.flags[1].then_some(self.flags[2]),
            more: self.flags[3],
            rcv_settle_mode: self.flags[4].then_some(ReceiverSettleMode::Second),
            state: self.state(),
            resume: self.flags[4],
            aborted: self.flags[5],
            batchable: self.flags[0],
        };
        let disposition = Disposition {
            role: self.role(),
            first: self.number(1),
            last: self.numbers[2],
            settled: self.flags[1],
            state: self.state(),
            batchable: self.flags[2],
        };
        let detach = Detach {
            handle: self.number(3),
            closed: self.flags[1],
            error: self.error(),
        };
        let error = self.error();
        vec![
            Performative::Open(Box::new(open)),
            Performative::Begin(begin),
            Performative::Attach(Box::new(self.attach(symbols))),
            Performative::Flow(flow),
            Performative::Transfer(transfer),
            Performative::Disposition(disposition),
            Performative::Detach(detach),
            Performative::End(End { error }),
            Performative::Close(Close { error }),
        ]
    }
}

fn id() -> impl Strategy<Value = MessageIdBuf> {
    prop_oneof![
        any::<u64>().prop_map(MessageIdBuf::Ulong),
        any::<[u8; 16]>().prop_map(MessageIdBuf::Uuid),
        prop::collection::vec(any::<u8>(), 0..9).prop_map(|bytes| MessageIdBuf::Binary(bytes.into())),
        ".{0,9}".prop_map(|text| MessageIdBuf::String(text.into())),
    ]
}

proptest! {
    #[test]
    fn values(tree in tree(), cut in any::<prop::sample::Index>()) {
        let mut bytes = Vec::new();
        tree.encode(&mut bytes);
        let value = Value::decode(&bytes).expect("written values are read");
        prop_assert!(tree.is(&value), "{:?} is not {:?}", value, tree);
        let mut again = Vec::new();
        encode_value(&mut again, &value);
        prop_assert_eq!(&again, &bytes);
        let part = &bytes[..cut.index(bytes.len())];
        prop_assert!(Value::decode(part).is_err());
    }

    #[test]
    fn performatives(parts in parts(), payload in prop::collection::vec(any::<u8>(), 0..9)) {
        let symbols: Vec<&str> = parts.symbols.iter().map(String::as_str).collect();
        for performative in parts.performatives(&symbols) {
            let mut bytes = Vec::new();
            performative.encode(&mut bytes);
            let end = bytes.len();
            bytes.extend(&payload);
            let decoded = Performative::decode(&bytes);
            prop_assert_eq!(decoded, Ok((performative, &payload[..])));
            for cut in 0..end {
                prop_assert!(Performative::decode(&bytes[..cut]).is_err());
            }
        }
    }

    #[test]
    fn messages(
        header in option::of((any::<bool>(), any::<u8>(), option::of(any::<u32>()), any::<u32>())),
        ids in (option::of(id()), option::of(id())),
        texts in prop::collection::vec(option::of(".{0,20}"), 6),
        times in (option::of(any::<i64>()), option::of(any::<i64>())),
        sequence in option::of(any::<u32>()),
        maps in prop::collection::vec(option::of(symbol_map()), 4),
        body in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..4),
        value in option::of(tree()),
    ) {
        let text = |at: usize| texts[at].as_deref();
        let properties = Properties {
            message_id: ids.0.as_ref().map(MessageIdBuf::as_id),
            user_id: text(0).map(str::as_bytes),
            to: text(1),
            reply_to: text(2),
            correlation_id: ids.1.as_ref().map(MessageIdBuf::as_id),
            content_type: text(3),
            content_encoding: text(4),
            absolute_expiry_time: times.0,
            creation_time: times.1,
            group_sequence: sequence,
            reply_to_group_id: text(5),
            ..Properties::default()
        };
        let header = header.map(|(durable, priority, ttl, delivery_count)| Header {
            durable, priority, ttl, delivery_count, ..Header::default()
        });
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes);
        if let Some(header) = &header {
            writer.header(header);
        }
        if let Some(map) = &maps[0] {
            writer.delivery_annotations(|entries| { entries.entries(map.as_map()); });
        }
        if let Some(map) = &maps[1] {
            writer.message_annotations(|entries| { entries.entries(map.as_map()); });
        }
        if properties != Properties::default() {
            writer.properties(&properties);
        }
        if let Some(map) = &maps[2] {
            writer.application_properties(|entries| { entries.entries(map.as_map()); });
        }
        match &value {
            Some(value) => value.with(|value| { writer.value(value); }),
            None => for data in &body { writer.data(data); },
        }
        if let Some(map) = &maps[3] {
            writer.footer(|entries| { entries.entries(map.as_map()); });
        }
        let message = Message::decode(&bytes).expect("written messages are read");
        prop_assert_eq!(message.header, header);
        prop_assert_eq!(message.properties, properties);
        prop_assert_eq!(message.message_annotations, maps[1].as_ref().map(MapBuf::as_map));
        prop_assert_eq!(message.application_properties, maps[2].as_ref().map(MapBuf::as_map));
        match (&message.body, &value) {
            (Body::Value(value), Some(tree)) => prop_assert!(tree.is(value)),
            (Body::Data(data), None) => {
                prop_assert_eq!(data.iter().collect::<Vec<_>>(), body.iter().map(Vec::as_slice).collect::<Vec<_>>());
            }
            (Body::Empty, None) => prop_assert!(body.is_empty()),
            other => prop_assert!(false, "{:?}", other),
        }
        let mut again = Vec::new();
        message.encode(&mut again);
        prop_assert_eq!(again, bytes);
    }

    /// However a stream is cut, it leads to the same events and answers.
    #[test]
    fn cuts_do_not_matter(cuts in prop::collection::vec(1..80usize, 1..60)) {
        let stream = client_stream();
        let whole = events(&[&stream]);
        let mut pieces = Vec::new();
        let mut rest = &stream[..];
        for cut in cuts {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        pieces.push(rest);
        prop_assert_eq!(events(&pieces), whole);
    }

    #[test]
    fn ids_are_kept(id in id()) {
        let view: MessageId<'_> = id.as_id();
        prop_assert_eq!(view.to_buf(), id);
    }
}

/// A client that opens, attaches and sends, without waiting.
fn client_stream() -> Vec<u8> {
    let mut stream = Protocol::Amqp.header().to_vec();
    let mut put = |performative: Performative<'_>, payload: &[u8]| {
        frame::encode(&mut stream, FrameType::Amqp, 0, |out| {
            performative.encode(out);
            out.extend_from_slice(payload);
        });
    };
    put(
        Performative::Open(Box::new(Open {
            container_id: "c",
            ..Open::default()
        })),
        b"",
    );
    put(
        Performative::Begin(Begin {
            incoming_window: 10,
            ..Begin::default()
        }),
        b"",
    );
    put(Performative::Attach(Box::new(Attach::sender("s", "a"))), b"");
    for (id, more, payload) in [
        (0, false, "one"),
        (1, true, "tw"),
        (1, false, "o"),
        (2, false, ""),
    ] {
        let transfer = Transfer {
            delivery_id: Some(id),
            delivery_tag: Some(b"t"),
            more,
            ..Transfer::default()
        };
        put(Performative::Transfer(transfer), payload.as_bytes());
    }
    put(Performative::Close(Close::default()), b"");
    stream
}

fn events(pieces: &[&[u8]]) -> (Vec<String>, Vec<u8>) {
    let mut connection = Connection::server(Arc::new(Config::default()), 0);
    let (mut input, mut out, mut events) = (Vec::new(), Vec::new(), Vec::new());
    for piece in pieces {
        input.extend_from_slice(piece);
        let mut rest = &input[..];
        while let Some(event) = connection.next_event(&mut rest, 0, &mut out).expect("valid") {
            // The payload is borrowed or owned by how the client cut it, not by how the stream is cut.
            events.push(format!("{event:?}"));
            match event {
                Event::Open(_) => connection.open(&Open::default(), &mut out),
                Event::Attach { link, attach } => connection.accept_link(link, &attach.agree(), 10, &mut out),
                Event::Transfer { link, delivery } => {
                    connection.settle(
                        link.session(),
                        [delivery.id],
                        &DeliveryState::Accepted,
                        true,
                        &mut out,
                    );
                }
                _ => {}
            }
        }
        let used = input.len() - rest.len();
        input.drain(..used);
    }
    assert!(connection.is_closed() && input.is_empty());
    (events, out)
}
