//! The client's end of one AMQP connection under test: it opens, puts a token, and attaches the links it was told to.
//!
//! As the Node.js SDK does it: no SASL, one session, `$cbs` in it (AMQP contract, sections 1.4, 2 and 3.3). What may be
//! said without waiting for an answer goes out at once: open, begin and the `$cbs` links; then the token; then all links.

use std::sync::Arc;

use holdfast_amqp::connection::Outgoing;
use holdfast_amqp::message::{MessageId, Properties, Writer};
use holdfast_amqp::performatives::{Attach, Error, Open, Role, SenderSettleMode, Source, Target};
use holdfast_amqp::types::{MapBuf, Value};
use holdfast_amqp::{
    Config, Connection, ConnectionError, Event, LinkId, Message, OpenError, SendError, SessionId,
};

/// The node for tokens.
const CBS: &str = "$cbs";

/// Who connects, and for what.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    /// Host name of the open.
    pub(crate) host: String,
    /// What the token is for; `name` of put-token.
    pub(crate) audience: String,
    /// Kind of the token; `type` of put-token.
    pub(crate) token_type: &'static str,
    pub(crate) token: String,
    /// Links to attach, in this order.
    pub(crate) links: Vec<WantedLink>,
}

/// A link to attach.
#[derive(Clone, Debug)]
pub(crate) struct WantedLink {
    /// Ours.
    pub(crate) role: Role,
    pub(crate) address: String,
    pub(crate) settle: SenderSettleMode,
    /// Credit that a receiver keeps out, counting what is not settled.
    pub(crate) window: u32,
    /// Pairs two links of one feature.
    pub(crate) correlation: Option<String>,
}

impl WantedLink {
    /// A link for messages of ours.
    pub(crate) fn sender(address: String) -> Self {
        WantedLink {
            role: Role::Sender,
            address,
            settle: SenderSettleMode::Mixed,
            window: 0,
            correlation: None,
        }
    }

    /// A link for messages to us.
    pub(crate) fn receiver(address: String, window: u32) -> Self {
        WantedLink {
            role: Role::Receiver,
            window,
            ..WantedLink::sender(address)
        }
    }

    /// With the property that pairs it with another.
    pub(crate) fn correlated(mut self, with: &str) -> Self {
        self.correlation = Some(with.to_owned());
        self
    }
}

/// Why a connection cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("the server broke the protocol")]
    Protocol(#[from] ConnectionError),
    #[error("a link cannot be attached")]
    Attach(#[from] OpenError),
    #[error("the token cannot be put")]
    Send(#[from] SendError),
    #[error("the server refused the token with status {status}: {text}")]
    Token { status: i64, text: String },
    #[error("the server detached a link: {0}")]
    Detached(String),
    #[error("the server ended the session: {0}")]
    Ended(String),
    #[error("the server closed the connection: {0}")]
    Closed(String),
    #[error("the server rejected a message")]
    Rejected,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// Waits for credit to put the token.
    Opening,
    /// Waits for the answer to the token.
    Token,
    /// Waits for links, so many of them.
    Links(usize),
    Open,
}

/// See the module documentation.
pub(crate) struct Client {
    pub(crate) machine: Connection,
    /// Those of the account, in its order.
    pub(crate) links: Vec<LinkId>,
    session: SessionId,
    token_link: LinkId,
    /// Not needed any more once the connection is open.
    account: Option<Box<Account>>,
    step: Step,
}

impl Client {
    /// Begins: appends everything up to the links for the token.
    pub(crate) fn begin(
        config: &Arc<Config>,
        account: Account,
        number: usize,
        now_ms: u64,
        out: &mut Vec<u8>,
    ) -> Result<Client, Refused> {
        let mut machine = Connection::client(Arc::clone(config), false, now_ms, out);
        let container = format!("bench-{number}");
        let open = Open {
            container_id: &container,
            hostname: Some(&account.host),
            ..Open::default()
        };
        machine.open(&open, out);
        let session = machine.begin(out)?;
        Ok(Client {
            token_link: attach_cbs(&mut machine, session, number, out)?,
            machine,
            links: Vec::new(),
            session,
            account: Some(Box::new(account)),
            step: Step::Opening,
        })
    }

    /// Whether all links are attached.
    pub(crate) fn is_open(&self) -> bool {
        self.step == Step::Open
    }

    /// Takes an event; until the connection is open it goes on with setting up. False: the event is for the driver.
    pub(crate) fn take(
        &mut self,
        event: &Event<'_>,
        number: usize,
        out: &mut Vec<u8>,
    ) -> Result<bool, Refused> {
        match (self.step, event) {
            (_, Event::Detach { error, .. }) => return Err(Refused::Detached(text_of(error.as_ref()))),
            (_, Event::LinkFailed { error, .. }) => return Err(Refused::Detached(error.to_string())),
            (_, Event::End { error, .. }) => return Err(Refused::Ended(text_of(error.as_ref()))),
            (_, Event::Close { error }) => return Err(Refused::Closed(text_of(error.as_ref()))),
            (Step::Open, _) => return Ok(false),
            (Step::Opening, Event::Credit { link, .. }) if *link == self.token_link => {
                self.put_token(out)?;
                self.step = Step::Token;
            }
            (Step::Token, Event::Transfer { delivery, .. }) => {
                check_token_answer(&delivery.payload)?;
                self.attach_links(number, out)?;
            }
            // A sender can be used when it has credit; a receiver when it is attached.
            (Step::Links(left), Event::Credit { .. }) => self.step = next(left),
            (Step::Links(left), Event::Attached { attach, .. }) if attach.role == Role::Sender => {
                self.step = next(left);
            }
            _ => {}
        }
        Ok(true)
    }

    fn put_token(&mut self, out: &mut Vec<u8>) -> Result<(), Refused> {
        let Some(account) = self.account.take() else {
            return Ok(());
        };
        let mut message = Vec::with_capacity(512);
        Writer::new(&mut message)
            .properties(&Properties {
                message_id: Some(MessageId::String("token")),
                to: Some(CBS),
                reply_to: Some("cbs"),
                ..Properties::default()
            })
            .application_properties(|map| {
                map.string("operation", &Value::String("put-token"));
                map.string("type", &Value::String(account.token_type));
                map.string("name", &Value::String(&account.audience));
            })
            .value(&Value::String(&account.token));
        let outgoing = Outgoing {
            tag: b"token",
            settled: true,
            ..Outgoing::default()
        };
        self.machine.send(self.token_link, &outgoing, &message, out)?;
        self.account = Some(account);
        Ok(())
    }

    fn attach_links(&mut self, number: usize, out: &mut Vec<u8>) -> Result<(), Refused> {
        let Some(account) = self.account.take() else {
            return Ok(());
        };
        self.links = Vec::with_capacity(account.links.len());
        for (place, wanted) in account.links.iter().enumerate() {
            let name = link_name(number, place + 2);
            let link = attach(&mut self.machine, self.session, &name, wanted, out)?;
            self.links.push(link);
        }
        self.step = next(account.links.len() + 1);
        Ok(())
    }
}

/// After one of so many links.
const fn next(left: usize) -> Step {
    match left {
        0 | 1 => Step::Open,
        left => Step::Links(left - 1),
    }
}

/// As long as the UUIDs by which SDKs name their links.
fn link_name(number: usize, place: usize) -> String {
    format!("{place:08x}-0000-4000-8000-{number:012x}")
}

fn attach_cbs(
    machine: &mut Connection,
    session: SessionId,
    number: usize,
    out: &mut Vec<u8>,
) -> Result<LinkId, OpenError> {
    // This one first: its credit is out before the token, so the answer need not wait for it.
    let answers = WantedLink::receiver(CBS.to_owned(), 10);
    attach(machine, session, &link_name(number, 0), &answers, out)?;
    let requests = WantedLink::sender(CBS.to_owned());
    attach(machine, session, &link_name(number, 1), &requests, out)
}

fn attach(
    machine: &mut Connection,
    session: SessionId,
    name: &str,
    wanted: &WantedLink,
    out: &mut Vec<u8>,
) -> Result<LinkId, OpenError> {
    let mut properties = MapBuf::new();
    if let Some(correlation) = &wanted.correlation {
        properties.symbol("com.microsoft:api-version", &Value::String("2021-04-12"));
        properties.symbol(
            "com.microsoft:channel-correlation-id",
            &Value::String(correlation),
        );
    }
    properties.symbol("com.microsoft:client-version", &Value::String("holdfast-bench"));
    let attach = Attach {
        snd_settle_mode: wanted.settle,
        source: Some(match wanted.role {
            Role::Receiver => Source::new(&wanted.address),
            Role::Sender => Source::default(),
        }),
        target: Some(match wanted.role {
            Role::Sender => Target::new(&wanted.address),
            Role::Receiver => Target::default(),
        }),
        properties: Some(properties.as_map()),
        ..Attach::new(name, wanted.role)
    };
    machine.attach(session, &attach, wanted.window, out)
}

fn check_token_answer(payload: &[u8]) -> Result<(), Refused> {
    let answer = Message::decode(payload).map_err(ConnectionError::from)?;
    let of = |key: &str| answer.application_properties.and_then(|map| map.get(key));
    let status = of("status-code").and_then(|value| value.as_i64()).unwrap_or(0);
    if (200..300).contains(&status) {
        return Ok(());
    }
    let text = of("status-description").and_then(|value| value.as_str().map(str::to_owned));
    Err(Refused::Token {
        status,
        text: text.unwrap_or_default(),
    })
}

fn text_of(error: Option<&Error<'_>>) -> String {
    match error {
        None => "without a reason".to_owned(),
        Some(error) => {
            let description = error.description.unwrap_or_default();
            format!("{}: {description}", error.condition)
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_amqp::performatives::DeliveryState;

    use super::*;

    /// Carries bytes between a client and a server that gives every link and token, or a token's refusal.
    fn open(status: i32, links: Vec<WantedLink>) -> Result<(Client, Vec<String>), Refused> {
        let config = Arc::new(Config::default());
        let account = Account {
            host: "hub.test".to_owned(),
            audience: "hub.test/devices/d".to_owned(),
            token_type: "servicebus.windows.net:sastoken",
            token: "a token".to_owned(),
            links,
        };
        let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
        let mut server = Connection::server(Arc::clone(&config), 0);
        let mut client = Client::begin(&config, account, 7, 0, &mut to_server)?;
        let (mut answers, mut attached) = (None, Vec::new());
        while !to_server.is_empty() || !to_client.is_empty() {
            let bytes = std::mem::take(&mut to_server);
            let mut input = &bytes[..];
            while let Some(event) = server.next_event(&mut input, 0, &mut to_client)? {
                match event {
                    Event::Open(_) => server.open(&Open::default(), &mut to_client),
                    Event::Attach { link, attach } => {
                        server.accept_link(link, &attach.agree(), 10, &mut to_client);
                        attached.push(attach.name.to_owned());
                        if attach.role == Role::Receiver && answers.is_none() {
                            answers = Some(link);
                        }
                    }
                    Event::Transfer { link, delivery } => {
                        server.settle(
                            link.session(),
                            [delivery.id],
                            &DeliveryState::Accepted,
                            true,
                            &mut to_client,
                        );
                        let mut message = Vec::new();
                        Writer::new(&mut message).application_properties(|map| {
                            map.string("status-code", &Value::Int(status));
                            map.string("status-description", &Value::String("so it is"));
                        });
                        let outgoing = Outgoing {
                            tag: b"a",
                            settled: true,
                            ..Outgoing::default()
                        };
                        server.send(answers.unwrap(), &outgoing, &message, &mut to_client)?;
                    }
                    _ => {}
                }
            }
            let bytes = std::mem::take(&mut to_client);
            let mut input = &bytes[..];
            while let Some(event) = client.machine.next_event(&mut input, 0, &mut to_server)? {
                client.take(&event, 7, &mut to_server)?;
            }
        }
        Ok((client, attached))
    }

    #[test]
    fn all_links_are_attached_when_the_connection_is_open() {
        let wanted = vec![
            WantedLink::sender("/devices/d/messages/events".to_owned()),
            WantedLink::receiver("/devices/d/messages/devicebound".to_owned(), 10),
            WantedLink::sender("/devices/d/twin".to_owned()).correlated("twin:1"),
        ];
        let (client, attached) = open(200, wanted).unwrap();
        assert!(client.is_open());
        assert_eq!((client.links.len(), attached.len()), (3, 5));
        assert_eq!(client.machine.credit(client.links[0]), 10);
        assert!(attached.iter().all(|name| name.len() == 36), "{attached:?}");
    }

    #[test]
    fn a_refused_token_is_told_with_its_reason() {
        let error = open(401, Vec::new()).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("401: so it is"), "{error}");
        assert!(open(200, Vec::new()).unwrap().0.is_open());
    }
}
