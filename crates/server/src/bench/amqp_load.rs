//! Telemetry over AMQP, the counterpart of `mqtt_load`: the same options, the same stages, the same figures. What is
//! counted is messages that the hub accepted by a disposition.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use holdfast_amqp::connection::Outgoing;
use holdfast_amqp::message::Writer;
use holdfast_amqp::performatives::DeliveryState;
use holdfast_amqp::{Config, Event};

use super::amqp_client::{Account, Refused, WantedLink};
use super::amqp_fleet::{AmqpFleet, Driver, Link};
use super::devices::Accounts;
use super::histogram::Histogram;
use super::mqtt_load::{LoadOptions, OPENING_AT_ONCE, PATIENCE};
use super::pacing::Pace;
use super::stages::{self, LOOK, Outcome, Plan, Shared};
use super::target::Target;

/// Opens the connections, sends, and measures. `note` hears what is going on.
pub(crate) fn run(
    target: &Target,
    accounts: &Accounts,
    options: &LoadOptions,
    note: &dyn Fn(&str),
) -> anyhow::Result<Outcome> {
    let connections = options.connections as usize;
    let threads = usize::from(options.threads).min(connections);
    let clock = Instant::now();
    let plan = Plan {
        threads,
        warm_up: options.warm_up.0,
        duration: options.duration.0,
    };
    let worker = |thread: usize, shared: &Shared| {
        let first = connections * thread / threads;
        let end = connections * (thread + 1) / threads;
        let mut fleet = AmqpFleet::new(&target.endpoint, Config::default(), end - first, first, clock)?;
        let mut load = Telemetry::new(accounts, options, first, end - first);
        fleet.open_all(&mut load, OPENING_AT_ONCE, PATIENCE, |_| {})?;
        shared.ready();
        while !shared.begun() {
            fleet.turn(&mut load, LOOK)?;
        }
        load.sending = true;
        match options.rate {
            None => load.saturate(&mut fleet, shared)?,
            Some(rate) => load.pace(&mut fleet, shared, f64::from(rate) / threads as f64)?,
        }
        Ok(load.latency)
    };
    stages::run(target, plan, &worker, note)
}

/// Sends telemetry and counts what is accepted.
struct Telemetry<'a> {
    accounts: &'a Accounts,
    /// Number of the first connection among those of all threads.
    first: usize,
    /// A whole message, encoded.
    message: Vec<u8>,
    window: u32,
    /// Messages under way, by connection.
    in_flight: Vec<u32>,
    /// Names of deliveries.
    next_tag: u64,
    /// When messages that wait for room in the window were due, by connection.
    backlog: Vec<VecDeque<u64>>,
    paced: bool,
    sending: bool,
    measuring: bool,
    acked: u64,
    latency: Histogram,
}

impl<'a> Telemetry<'a> {
    fn new(accounts: &'a Accounts, options: &LoadOptions, first: usize, size: usize) -> Self {
        let payload: Vec<u8> = (0..options.payload)
            .map(|byte| b'a' + (byte % 26) as u8)
            .collect();
        let mut message = Vec::new();
        Writer::new(&mut message).data(&payload);
        Telemetry {
            accounts,
            first,
            message,
            window: u32::from(options.window),
            in_flight: vec![0; size],
            next_tag: 0,
            backlog: vec![VecDeque::new(); size],
            paced: options.rate.is_some(),
            sending: false,
            measuring: false,
            acked: 0,
            latency: Histogram::default(),
        }
    }

    fn saturate(&mut self, fleet: &mut AmqpFleet, shared: &Shared) -> anyhow::Result<()> {
        for index in 0..self.in_flight.len() {
            fleet.act(self, index, Telemetry::fill)?;
        }
        while self.follow(shared) {
            fleet.turn(self, Duration::from_millis(100))?;
        }
        Ok(())
    }

    fn pace(&mut self, fleet: &mut AmqpFleet, shared: &Shared, rate: f64) -> anyhow::Result<()> {
        let mut pace = Pace::new(fleet.now_ns(), rate);
        let mut touched = Vec::new();
        while self.follow(shared) {
            pace.hand_out(fleet.now_ns(), &mut self.backlog, &mut touched);
            for index in touched.drain(..) {
                fleet.act(self, index, Telemetry::fill)?;
            }
            fleet.turn(self, pace.wait(fleet.now_ns()).min(Duration::from_millis(100)))?;
        }
        Ok(())
    }

    /// Sends what window and credit take. The token of a message is the time its latency counts from.
    fn fill(&mut self, link: &mut Link<'_>) {
        let index = link.index;
        while self.in_flight[index] < self.window {
            let token = match (self.paced, self.backlog[index].front()) {
                (false, _) => link.now_ns,
                (true, Some(due)) => *due,
                (true, None) => return,
            };
            self.next_tag += 1;
            let tag = self.next_tag.to_be_bytes();
            let outgoing = Outgoing {
                tag: &tag,
                token,
                ..Outgoing::default()
            };
            let sent = link
                .machine
                .send(link.links[0], &outgoing, &self.message, link.out);
            if sent.is_err() {
                // No credit or window: what the hub says next opens it again.
                return;
            }
            self.in_flight[index] += 1;
            self.backlog[index].pop_front();
        }
    }

    /// Tells the number of acknowledgements and takes over the stage; false at the end.
    fn follow(&mut self, shared: &Shared) -> bool {
        shared.add(std::mem::take(&mut self.acked));
        self.measuring = shared.measuring();
        !shared.stopped()
    }
}

impl Driver for Telemetry<'_> {
    fn account(&mut self, index: usize) -> Account {
        let device = self.accounts.device_id(self.first + index);
        let links = vec![WantedLink::sender(format!("/devices/{device}/messages/events"))];
        self.accounts.amqp_account(self.first + index, links)
    }

    fn opened(&mut self, _link: &mut Link<'_>) {}

    #[inline]
    fn event(&mut self, link: &mut Link<'_>, event: &Event<'_>) -> Result<(), Refused> {
        if let Event::Outcome { token, state, .. } = event {
            if *state != Some(DeliveryState::Accepted) {
                return Err(Refused::Rejected);
            }
            self.in_flight[link.index] -= 1;
            self.acked += 1;
            if self.measuring {
                self.latency.record(link.now_ns.saturating_sub(*token));
            }
        }
        Ok(())
    }

    #[inline]
    fn batch(&mut self, link: &mut Link<'_>) {
        if self.sending {
            self.fill(link);
        }
    }
}
