//! A client for trying servers: sends three messages to an address and receives them, or whatever else is there, from it.
//!
//! ```sh
//! cargo run -p holdfast-amqp --example send -- 127.0.0.1:5672 queue [user password]
//! ```

#![allow(clippy::print_stdout)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use holdfast_amqp::connection::Outgoing;
use holdfast_amqp::message::Writer;
use holdfast_amqp::performatives::{Attach, DeliveryState, Open, SaslCode, SaslInit};
use holdfast_amqp::{Config, Connection, Event, LinkId, Message};

const MESSAGES: u64 = 3;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [server, address, credentials @ ..] = &arguments[..] else {
        return Err("usage: send HOST:PORT ADDRESS [USER PASSWORD]".into());
    };
    let (mechanism, response) = match credentials {
        [user, password] => ("PLAIN", format!("\0{user}\0{password}")),
        _ => ("ANONYMOUS", String::new()),
    };
    let mut socket = TcpStream::connect(server)?;
    let (mut input, mut out) = (Vec::new(), Vec::new());
    let mut client = Connection::client(Arc::new(Config::default()), true, 0, &mut out);
    let (mut sender, mut settled, mut received) = (None, 0, 0);
    let mut piece = [0; 65_536];
    while !client.is_closed() {
        socket.write_all(&out)?;
        out.clear();
        let len = socket.read(&mut piece)?;
        if len == 0 {
            return Err("the server closed the connection".into());
        }
        input.extend_from_slice(&piece[..len]);
        let mut rest = &input[..];
        while let Some(event) = client.next_event(&mut rest, 0, &mut out)? {
            println!("{event:?}");
            match event {
                Event::SaslMechanisms(_) => {
                    let init = SaslInit {
                        mechanism,
                        initial_response: Some(response.as_bytes()),
                        hostname: None,
                    };
                    client.sasl_init(&init, &mut out);
                }
                Event::SaslOutcome(SaslCode::Ok) => sender = Some(start(&mut client, address, &mut out)?),
                Event::Credit { link, .. } if sender == Some(link) => {
                    sender = None;
                    send(&mut client, link, &mut out)?;
                }
                Event::Outcome { .. } => settled += 1,
                Event::Transfer { link, delivery } => {
                    println!("  {:?}", Message::decode(&delivery.payload)?);
                    received += 1;
                    let accepted = DeliveryState::Accepted;
                    client.settle(link.session(), [delivery.id], &accepted, true, &mut out);
                }
                _ => {}
            }
            if settled == MESSAGES && received >= MESSAGES {
                client.close(None, &mut out);
            }
        }
        let used = input.len() - rest.len();
        input.drain(..used);
    }
    println!("{settled} sent, {received} received");
    Ok(())
}

fn start(
    client: &mut Connection,
    address: &str,
    out: &mut Vec<u8>,
) -> Result<LinkId, holdfast_amqp::OpenError> {
    let open = Open {
        container_id: "send",
        ..Open::default()
    };
    client.open(&open, out);
    let session = client.begin(out)?;
    client.attach(session, &Attach::receiver("receiver", address), 10, out)?;
    client.attach(session, &Attach::sender("sender", address), 0, out)
}

fn send(client: &mut Connection, link: LinkId, out: &mut Vec<u8>) -> Result<(), holdfast_amqp::SendError> {
    for number in 0..MESSAGES {
        let outgoing = Outgoing {
            tag: &number.to_be_bytes(),
            token: number,
            ..Outgoing::default()
        };
        // The last one is too large for a frame.
        let body = format!(
            "message {number}{}",
            "!".repeat(if number + 1 == MESSAGES { 200_000 } else { 0 })
        );
        client.send_with(
            link,
            &outgoing,
            |out| {
                Writer::new(out).data(body.as_bytes());
            },
            out,
        )?;
    }
    Ok(())
}
