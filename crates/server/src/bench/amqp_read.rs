//! Events out of the Event Hubs-compatible endpoint: one connection that reads every partition, as azure-eventhub does.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use holdfast_amqp::connection::Outgoing;
use holdfast_amqp::message::{Body, MessageId, Properties, Writer};
use holdfast_amqp::performatives::SenderSettleMode;
use holdfast_amqp::types::Value;
use holdfast_amqp::{Config, ConnectionError, Event, Message};
use holdfast_model::Timestamp;
use holdfast_model::credential::sign_sas;
use holdfast_wire::links::EVENT_HUB_NAME;

use super::amqp_client::{Account, Refused, WantedLink};
use super::amqp_fleet::{AmqpFleet, Driver, Link};
use super::mqtt_load::PATIENCE;
use super::target::Target;
use crate::cli::profile::Login;

/// Transfers that may be under way to us, over all links.
const SESSION_WINDOW: u32 = 65_536;

/// Life of the token.
const TOKEN_SECONDS: i64 = 3_600;

/// What was read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Read {
    pub(crate) events: u64,
    /// Of the messages, sections and all.
    pub(crate) bytes: u64,
}

/// Asks the hub how many partitions there are.
pub(crate) fn partitions(target: &Target) -> anyhow::Result<u16> {
    let mut fleet = AmqpFleet::new(&target.endpoint, Config::default(), 1, 0, Instant::now())?;
    let mut question = Question {
        login: target.rest()?.login(),
        answer: None,
    };
    let asked = Instant::now();
    fleet.open_all(&mut question, 1, PATIENCE, |_| {})?;
    while question.answer.is_none() {
        anyhow::ensure!(asked.elapsed() < PATIENCE, "the hub does not tell its partitions");
        fleet.turn(&mut question, Duration::from_millis(100))?;
    }
    question
        .answer
        .filter(|count| *count > 0)
        .context("the hub tells no partitions")
}

/// Reads all partitions from their start, with `prefetch` events ahead in each, until `wanted` events came.
pub(crate) fn read(target: &Target, partitions: u16, prefetch: u32, wanted: u64) -> anyhow::Result<Read> {
    let config = Config {
        incoming_window: SESSION_WINDOW,
        ..Config::default()
    };
    let mut fleet = AmqpFleet::new(&target.endpoint, config, 1, 0, Instant::now())?;
    let mut reader = Reader {
        login: target.rest()?.login(),
        partitions,
        prefetch,
        read: Read::default(),
    };
    fleet.open_all(&mut reader, 1, PATIENCE, |_| {})?;
    let (mut seen, mut since) = (0, Instant::now());
    while reader.read.events < wanted {
        fleet.turn(&mut reader, Duration::from_millis(100))?;
        if reader.read.events > seen {
            (seen, since) = (reader.read.events, Instant::now());
        }
        anyhow::ensure!(
            since.elapsed() < PATIENCE,
            "no event came for {} seconds after {seen} of {wanted}",
            PATIENCE.as_secs()
        );
    }
    Ok(reader.read)
}

/// Who reads: the policy of the login, with a token for the whole event hub.
fn account(login: &Login, links: Vec<WantedLink>) -> Account {
    let audience = format!("sb://{}/{EVENT_HUB_NAME}", login.host);
    let expiry = Timestamp::from_seconds(super::devices::now_seconds() + TOKEN_SECONDS);
    Account {
        host: login.host.clone(),
        token: sign_sas(&audience, &login.key, expiry, Some(&login.policy)),
        audience,
        token_type: "servicebus.windows.net:sastoken",
        links,
    }
}

/// Asks for the properties of the event hub (AMQP contract, section 5.3).
struct Question<'a> {
    login: &'a Login,
    answer: Option<u16>,
}

impl Driver for Question<'_> {
    fn account(&mut self, _index: usize) -> Account {
        let node = || "$management".to_owned();
        let links = vec![WantedLink::sender(node()), WantedLink::receiver(node(), 1)];
        account(self.login, links)
    }

    fn opened(&mut self, link: &mut Link<'_>) {
        let mut request = Vec::new();
        Writer::new(&mut request)
            .properties(&Properties {
                message_id: Some(MessageId::String("partitions")),
                ..Properties::default()
            })
            .application_properties(|map| {
                map.string("operation", &Value::String("READ"));
                map.string("type", &Value::String("com.microsoft:eventhub"));
                map.string("name", &Value::String(EVENT_HUB_NAME));
            })
            .value(&Value::Null);
        let outgoing = Outgoing {
            tag: b"1",
            settled: true,
            ..Outgoing::default()
        };
        // A link that was just opened has credit.
        let _ = link.machine.send(link.links[0], &outgoing, &request, link.out);
    }

    fn event(&mut self, _link: &mut Link<'_>, event: &Event<'_>) -> Result<(), Refused> {
        if let Event::Transfer { delivery, .. } = event {
            let answer = Message::decode(&delivery.payload).map_err(ConnectionError::from)?;
            let count = match answer.body {
                Body::Value(Value::Map(entity)) => entity.get("partition_count"),
                _ => None,
            };
            let count = count.and_then(|count| count.as_i64());
            self.answer = Some(count.and_then(|count| u16::try_from(count).ok()).unwrap_or(0));
        }
        Ok(())
    }
}

/// Reads and counts.
struct Reader<'a> {
    login: &'a Login,
    partitions: u16,
    prefetch: u32,
    read: Read,
}

impl Driver for Reader<'_> {
    fn account(&mut self, _index: usize) -> Account {
        let links = (0..self.partitions).map(|partition| WantedLink {
            settle: SenderSettleMode::Settled,
            ..WantedLink::receiver(
                format!("{EVENT_HUB_NAME}/ConsumerGroups/$Default/Partitions/{partition}"),
                self.prefetch,
            )
        });
        account(self.login, links.collect())
    }

    fn opened(&mut self, _link: &mut Link<'_>) {}

    #[inline]
    fn event(&mut self, _link: &mut Link<'_>, event: &Event<'_>) -> Result<(), Refused> {
        if let Event::Transfer { delivery, .. } = event {
            self.read.events += 1;
            self.read.bytes += delivery.payload.len() as u64;
        }
        Ok(())
    }
}
