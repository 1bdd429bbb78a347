//! A server for trying clients: it agrees to everything, answers `$cbs` and `$management`, takes what is sent and has five
//! messages for every receiver. Prints what it sees, and with `--bytes` all bytes too, as `tests/wire` writes them.
//!
//! ```sh
//! cargo run -p holdfast-amqp --example listen -- 127.0.0.1:5672 --bytes
//! ```

#![allow(clippy::print_stdout)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use holdfast_amqp::connection::{Delivery, Outgoing};
use holdfast_amqp::message::{Properties, Writer};
use holdfast_amqp::performatives::{Attach, DeliveryState, Open, Role, SaslCode};
use holdfast_amqp::types::{ArrayBuf, MapBuf};
use holdfast_amqp::{Config, Connection, ConnectionError, Event, LinkId, Message, Value};

fn main() -> std::io::Result<()> {
    let mut address = "127.0.0.1:5672".to_owned();
    let mut show_bytes = false;
    for argument in std::env::args().skip(1) {
        if argument == "--bytes" {
            show_bytes = true;
        } else {
            address = argument;
        }
    }
    let listener = TcpListener::bind(&address)?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (socket, peer) = listener.accept()?;
        println!("-- {peer}");
        std::thread::spawn(move || {
            let ended = Client::new().serve(socket, show_bytes);
            println!("-- {peer} {ended:?}");
        });
    }
}

struct Client {
    connection: Connection,
    out: Vec<u8>,
    start: Instant,
    /// Links on which we send, with what was sent there.
    senders: Vec<(LinkId, u64)>,
    /// Where requests to `$cbs` and `$management` come from, and where their answers go.
    requests: Vec<(LinkId, String)>,
    answers: Vec<(String, LinkId)>,
}

impl Client {
    fn new() -> Self {
        Self {
            connection: Connection::server(Arc::new(Config::default()), 0),
            out: Vec::new(),
            start: Instant::now(),
            senders: Vec::new(),
            requests: Vec::new(),
            answers: Vec::new(),
        }
    }

    fn serve(mut self, mut socket: TcpStream, show_bytes: bool) -> std::io::Result<()> {
        let mut input = Vec::new();
        let mut piece = [0; 65_536];
        while !self.connection.is_closed() {
            let len = socket.read(&mut piece)?;
            if len == 0 {
                break;
            }
            if show_bytes {
                println!("> {}", show(&piece[..len]));
            }
            input.extend_from_slice(&piece[..len]);
            let mut rest = &input[..];
            if let Err(error) = self.handle(&mut rest) {
                println!("{error}: {:?}", std::error::Error::source(&error));
            }
            let used = input.len() - rest.len();
            input.drain(..used);
            if show_bytes && !self.out.is_empty() {
                println!("< {}", show(&self.out));
            }
            socket.write_all(&self.out)?;
            self.out.clear();
        }
        Ok(())
    }

    fn handle(&mut self, rest: &mut &[u8]) -> Result<(), ConnectionError> {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        while let Some(event) = self.connection.next_event(rest, now, &mut self.out)? {
            println!("{event:?}");
            self.on(event);
        }
        Ok(())
    }

    fn on(&mut self, event: Event<'_>) {
        let (connection, out) = (&mut self.connection, &mut self.out);
        match event {
            Event::SaslInit(_) | Event::SaslResponse(_) => connection.sasl_outcome(SaslCode::Ok, out),
            Event::Open(_) => {
                let mut properties = MapBuf::new();
                properties.symbol("product", &Value::String("holdfast"));
                let open = Open {
                    container_id: "listen",
                    properties: Some(properties.as_map()),
                    ..Open::default()
                };
                connection.open(&open, out);
            }
            Event::Attach { link, attach } => self.on_attach(link, &attach),
            Event::Credit { link, .. } => self.on_credit(link),
            Event::Transfer { link, delivery } => self.on_message(link, &delivery),
            _ => {}
        }
    }

    fn on_attach(&mut self, link: LinkId, attach: &Attach<'_>) {
        let answer = Attach {
            max_message_size: Some(1 << 20),
            ..attach.agree()
        };
        self.connection.accept_link(link, &answer, 100, &mut self.out);
        let source = attach.source.and_then(|source| source.address);
        let target = attach.target.and_then(|target| target.address);
        match (answer.role, source, target) {
            (Role::Sender, Some(source), _) if source.starts_with('$') => {
                self.answers.push((source.into(), link))
            }
            (Role::Sender, ..) => self.senders.push((link, 0)),
            (Role::Receiver, _, Some(target)) if target.starts_with('$') => {
                self.requests.push((link, target.into()))
            }
            (Role::Receiver, ..) => {}
        }
    }

    fn on_credit(&mut self, link: LinkId) {
        let Some((_, sent)) = self.senders.iter_mut().find(|(other, _)| *other == link) else {
            return;
        };
        while *sent < 5 && self.connection.can_send(link) > 0 {
            *sent += 1;
            let number = *sent;
            let outgoing = Outgoing {
                tag: &number.to_be_bytes(),
                token: number,
                ..Outgoing::default()
            };
            let write = |out: &mut Vec<u8>| {
                let mut writer = Writer::new(out);
                writer.message_annotations(|map| {
                    map.symbol("x-opt-sequence-number", &Value::Long(number.cast_signed()))
                        .symbol("x-opt-offset", &Value::String(&number.to_string()))
                        .symbol("x-opt-enqueued-time", &Value::Timestamp(1_700_000_000_000));
                });
                writer.data(format!("event {number}").as_bytes());
            };
            if let Err(error) = self.connection.send_with(link, &outgoing, write, &mut self.out) {
                println!("{error}");
            }
        }
    }

    fn on_message(&mut self, link: LinkId, delivery: &Delivery<'_>) {
        let message = Message::decode(&delivery.payload);
        println!("  {message:?}");
        if !delivery.settled {
            let accepted = DeliveryState::Accepted;
            self.connection
                .settle(link.session(), [delivery.id], &accepted, true, &mut self.out);
        }
        let request = self.requests.iter().find(|(other, _)| *other == link);
        if let (Ok(message), Some((_, node))) = (message, request) {
            let node = node.clone();
            self.answer(&node, delivery.id, &message);
        }
    }

    fn answer(&mut self, node: &str, number: u32, request: &Message<'_>) {
        let Some((_, link)) = self.answers.iter().find(|(other, _)| other == node) else {
            return;
        };
        let outgoing = Outgoing {
            tag: &number.to_be_bytes(),
            ..Outgoing::default()
        };
        let write = |out: &mut Vec<u8>| {
            let mut writer = Writer::new(out);
            writer.properties(&Properties {
                correlation_id: request.properties.message_id,
                ..Properties::default()
            });
            writer.application_properties(|map| {
                map.string("status-code", &Value::Int(200))
                    .string("status-description", &Value::String("OK"));
            });
            if node == "$management" {
                let partitions = ArrayBuf::strings(["0"]);
                let mut hub = MapBuf::new();
                hub.string("name", &Value::String("hub"));
                hub.string("type", &Value::String("com.microsoft:eventhub"));
                hub.string("created_at", &Value::Timestamp(0));
                hub.string("partition_count", &Value::Int(1));
                hub.string("partition_ids", &Value::Array(partitions.as_array()));
                writer.value(&Value::Map(hub.as_map()));
            }
        };
        if let Err(error) = self.connection.send_with(*link, &outgoing, write, &mut self.out) {
            println!("{error}");
        }
    }
}

/// Hex pairs and `'text'`.
fn show(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let plain = rest
            .iter()
            .take_while(|byte| byte.is_ascii_graphic() && **byte != b'\'' || **byte == b' ')
            .count();
        if !text.is_empty() {
            text.push(' ');
        }
        if plain >= 4 {
            text.push_str(&format!("'{}'", String::from_utf8_lossy(&rest[..plain])));
            rest = &rest[plain..];
        } else {
            text.push_str(&format!("{:02x}", rest[0]));
            rest = &rest[1..];
        }
    }
    text
}
