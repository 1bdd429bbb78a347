//! Idle devices over AMQP, with all links of the Node.js SDK: what their memory is measured with.

use std::time::{Duration, Instant};

use holdfast_amqp::connection::Outgoing;
use holdfast_amqp::message::{MessageId, Properties, Writer};
use holdfast_amqp::performatives::SenderSettleMode;
use holdfast_amqp::types::Value;
use holdfast_amqp::{Config, Event};

use super::amqp_client::{Account, Refused, WantedLink};
use super::amqp_fleet::{AmqpFleet, Driver, Link};
use super::devices::Accounts;
use super::fleet::Endpoint;

/// Links of a connection, those for the token included.
pub(crate) const LINKS: usize = 8;

/// Credit of the SDK's receivers.
const CREDIT: u32 = 1_000;

/// Place of the twin requests among the links.
const TWIN_REQUESTS: usize = 4;

/// Connections that are opened and keep quiet.
pub(crate) struct AmqpIdle<'a> {
    fleet: AmqpFleet,
    idle: Idle<'a>,
}

impl<'a> AmqpIdle<'a> {
    /// `count` connections, none of them begun.
    pub(crate) fn new(endpoint: &Endpoint, accounts: &'a Accounts, count: usize) -> anyhow::Result<Self> {
        Ok(AmqpIdle {
            fleet: AmqpFleet::new(endpoint, Config::default(), count, 0, Instant::now())?,
            idle: Idle { accounts, answers: 0 },
        })
    }

    /// Opens them, and waits for the answers to their twin requests.
    pub(crate) fn open_all(
        &mut self,
        at_once: usize,
        patience: Duration,
        progress: impl FnMut(usize),
    ) -> anyhow::Result<()> {
        self.fleet.open_all(&mut self.idle, at_once, patience, progress)?;
        let asked = Instant::now();
        while self.idle.answers < self.fleet.open_count() {
            self.turn(Duration::from_millis(100))?;
            anyhow::ensure!(
                asked.elapsed() < patience,
                "only {} of {} twin requests were answered",
                self.idle.answers,
                self.fleet.open_count()
            );
        }
        Ok(())
    }

    /// See [`AmqpFleet::turn`].
    pub(crate) fn turn(&mut self, timeout: Duration) -> anyhow::Result<()> {
        self.fleet.turn(&mut self.idle, timeout)
    }

    /// Connections that are open.
    pub(crate) const fn open_count(&self) -> usize {
        self.fleet.open_count()
    }
}

struct Idle<'a> {
    accounts: &'a Accounts,
    /// Requests for changes of desired properties that were answered.
    answers: usize,
}

impl Driver for Idle<'_> {
    fn account(&mut self, index: usize) -> Account {
        let device = format!("/devices/{}", self.accounts.device_id(index));
        let correlation = |feature: &str| format!("{feature}:00000000-0000-4000-8000-{index:012x}");
        let (methods, twin) = (correlation("methods"), correlation("twin"));
        let links = vec![
            WantedLink::sender(format!("{device}/messages/events")),
            WantedLink::receiver(format!("{device}/messages/devicebound"), CREDIT),
            WantedLink::sender(format!("{device}/methods/devicebound")).correlated(&methods),
            WantedLink::receiver(format!("{device}/methods/devicebound"), CREDIT).correlated(&methods),
            WantedLink::sender(format!("{device}/twin")).correlated(&twin),
            WantedLink {
                settle: SenderSettleMode::Settled,
                ..WantedLink::receiver(format!("{device}/twin"), CREDIT).correlated(&twin)
            },
        ];
        self.accounts.amqp_account(index, links)
    }

    /// Asks for changes of desired properties.
    fn opened(&mut self, link: &mut Link<'_>) {
        let mut request = Vec::new();
        Writer::new(&mut request)
            .message_annotations(|map| {
                map.symbol("operation", &Value::String("PUT"));
                let resource = "/notifications/twin/properties/desired";
                map.symbol("resource", &Value::String(resource));
            })
            .properties(&Properties {
                correlation_id: Some(MessageId::String("desired")),
                ..Properties::default()
            })
            .data(b" ");
        let outgoing = Outgoing {
            tag: b"1",
            ..Outgoing::default()
        };
        // A link that was just opened has credit.
        let _ = link
            .machine
            .send(link.links[TWIN_REQUESTS], &outgoing, &request, link.out);
    }

    fn event(&mut self, _link: &mut Link<'_>, event: &Event<'_>) -> Result<(), Refused> {
        if matches!(event, Event::Transfer { .. }) {
            self.answers += 1;
        }
        Ok(())
    }
}
