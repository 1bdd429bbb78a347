//! Registrations over MQTT: a connection per device, as every SDK does it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use holdfast_mqtt::QoS;
use holdfast_mqtt::client::{Event, Message};
use holdfast_program::failure::{Failure, Kind};
use holdfast_wire::provisioning::FILTER;
use serde_json::{Value, json};

use super::group::{Group, Proof};
use crate::bench::fleet::{Account, Driver, Endpoint, Fleet, Link, Lost, TlsClient, Trust};

/// Attempts of one device before the run is given up.
const ATTEMPTS_MAX: u32 = 8;

/// First wait before a device tries again, doubled for each further attempt.
const BACKOFF: Duration = Duration::from_millis(250);

/// A device to register.
pub(crate) struct Job {
    /// Its number; comes back with the result.
    pub(crate) number: usize,
    pub(crate) registration_id: String,
    pub(crate) proof: Proof,
}

/// Where a device belongs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Assigned {
    pub(crate) hub: String,
    pub(crate) device_id: String,
}

/// A registration that ended.
pub(crate) struct Done {
    pub(crate) job: Job,
    pub(crate) assigned: Assigned,
    /// From beginning to connect to the result.
    pub(crate) nanoseconds: u64,
}

/// Reads the answer to a registration or to a look at one.
///
/// # Errors
/// When the service said that it failed; `Ok(None)` while it is under way.
pub(crate) fn read_answer(registration_id: &str, body: &[u8]) -> anyhow::Result<Option<Assigned>> {
    let answer: Value = serde_json::from_slice(body).context("the answer is not JSON")?;
    let state = |name: &str| {
        let value = answer.pointer(&format!("/registrationState/{name}"));
        value.and_then(Value::as_str).map(str::to_owned)
    };
    match answer.get("status").and_then(Value::as_str) {
        Some("assigned") => Ok(Some(Assigned {
            hub: state("assignedHub").context("the answer names no hub")?,
            device_id: state("deviceId").context("the answer names no device")?,
        })),
        Some("assigning") => Ok(None),
        _ => Err(Failure::new(
            Kind::Failed,
            format!("the service did not take {registration_id}: {answer}"),
        )
        .into()),
    }
}

struct Slot {
    job: Job,
    attempts: u32,
    begun_ns: u64,
    operation: Option<String>,
}

/// Registers devices, a bounded number at once.
pub(crate) struct Registering<'a> {
    group: &'a Group,
    trust: Trust<'a>,
    endpoint: Endpoint,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    /// When slots connect again, or ask for their operation.
    due: BinaryHeap<Reverse<(u64, usize)>>,
    done: VecDeque<Done>,
    fault: Option<anyhow::Error>,
    clock: Instant,
}

impl<'a> Registering<'a> {
    /// `at_once` devices at a time, over connections to `endpoint`; those with certificates trust `trust`.
    pub(crate) fn new(
        group: &'a Group,
        endpoint: &Endpoint,
        trust: Trust<'a>,
        at_once: usize,
        clock: Instant,
    ) -> Self {
        Registering {
            group,
            trust,
            endpoint: endpoint.clone(),
            slots: (0..at_once).map(|_| None).collect(),
            free: (0..at_once).collect(),
            due: BinaryHeap::new(),
            done: VecDeque::new(),
            fault: None,
            clock,
        }
    }

    /// Whether another device can begin.
    pub(crate) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Whether nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Begins a registration; there must be room.
    pub(crate) fn begin(&mut self, fleet: &mut Fleet, job: Job) -> anyhow::Result<()> {
        let index = self.free.pop().context("no room for another registration")?;
        self.slots[index] = Some(Slot {
            job,
            attempts: 0,
            begun_ns: fleet.now_ns(),
            operation: None,
        });
        fleet.begin(self, index)
    }

    /// Handles what comes within `wait`, and what is due.
    ///
    /// # Errors
    /// When a device was refused, or failed too often.
    pub(crate) fn turn(&mut self, fleet: &mut Fleet, wait: Duration) -> anyhow::Result<()> {
        let now = fleet.now_ns();
        while let Some(Reverse((due, index))) = self.due.peek().copied()
            && due <= now
        {
            self.due.pop();
            match fleet.is_open(index) {
                true => fleet.act(self, index, Self::ask)?,
                false => fleet.begin(self, index)?,
            }
        }
        let next = self
            .due
            .peek()
            .map(|Reverse((due, _))| Duration::from_nanos(due - now));
        fleet.turn(self, next.map_or(wait, |next| next.min(wait)))?;
        match self.fault.take() {
            None => Ok(()),
            Some(fault) => Err(fault),
        }
    }

    /// The next result.
    pub(crate) fn take(&mut self) -> Option<Done> {
        self.done.pop_front()
    }

    fn ask(&mut self, link: &mut Link<'_>) {
        let operation = self.slots[link.index]
            .as_ref()
            .and_then(|slot| slot.operation.as_deref());
        if let Some(operation) = operation {
            let topic =
                format!("$dps/registrations/GET/iotdps-get-operationstatus/?$rid=2&operationId={operation}");
            say(link, &topic, b" ");
        }
    }

    fn receive(&mut self, link: &mut Link<'_>, topic: &str, payload: &[u8]) -> anyhow::Result<()> {
        let rest = topic.strip_prefix("$dps/registrations/res/").unwrap_or_default();
        let status: u16 = rest.get(..3).and_then(|text| text.parse().ok()).unwrap_or(0);
        let after = rest.rsplit_once("retry-after=");
        let after = after.and_then(|(_, seconds)| seconds.parse().ok()).unwrap_or(1);
        let Some(slot) = self.slots[link.index].as_mut() else {
            return Ok(());
        };
        let again = Reverse((link.now_ns + after * 1_000_000_000, link.index));
        match status {
            200 | 202 => match read_answer(&slot.job.registration_id, payload)? {
                Some(assigned) => {
                    let nanoseconds = link.now_ns.saturating_sub(slot.begun_ns);
                    link.close();
                    if let Some(slot) = self.slots[link.index].take() {
                        self.done.push_back(Done {
                            job: slot.job,
                            assigned,
                            nanoseconds,
                        });
                    }
                    self.free.push(link.index);
                }
                None => {
                    let answer: Value = serde_json::from_slice(payload)?;
                    let operation = answer.get("operationId").and_then(Value::as_str);
                    slot.operation = operation.map(str::to_owned);
                    self.due.push(again);
                }
            },
            429 | 500..=599 => {
                link.close();
                self.due.push(again);
            }
            _ => anyhow::bail!(Failure::new(
                Kind::Failed,
                format!(
                    "the service refused {} (status {status}): {}",
                    slot.job.registration_id,
                    String::from_utf8_lossy(payload)
                ),
            )),
        }
        Ok(())
    }
}

fn say(link: &mut Link<'_>, topic: &str, payload: &[u8]) {
    let message = Message {
        topic,
        payload,
        qos: QoS::AtLeastOnce,
        ..Message::default()
    };
    if link.session.publish(&message, link.now_ms(), link.out).is_err() {
        link.close();
    }
}

impl Driver for Registering<'_> {
    fn endpoint(&mut self, index: usize) -> anyhow::Result<Option<Endpoint>> {
        let (Some(slot), Some(tls)) = (&self.slots[index], &self.endpoint.tls) else {
            return Ok(None);
        };
        let config = slot.job.proof.tls(self.trust)?;
        Ok(config.map(|config| Endpoint {
            address: self.endpoint.address,
            tls: Some(TlsClient {
                config,
                name: tls.name.clone(),
            }),
        }))
    }

    fn account(&mut self, index: usize) -> Account {
        let slot = self.slots[index].as_ref();
        slot.map_or_else(Account::default, |slot| {
            self.group.account(&slot.job.registration_id, &slot.job.proof)
        })
    }

    fn filters(&self, _index: usize) -> Vec<String> {
        vec![FILTER.to_owned()]
    }

    fn opened(&mut self, link: &mut Link<'_>) {
        let Some(slot) = &self.slots[link.index] else {
            return link.close();
        };
        if slot.operation.is_some() {
            return self.ask(link);
        }
        let body = json!({ "registrationId": slot.job.registration_id }).to_string();
        say(
            link,
            "$dps/registrations/PUT/iotdps-register/?$rid=1",
            body.as_bytes(),
        );
    }

    fn event(&mut self, link: &mut Link<'_>, event: Event<'_>) {
        if let Event::Publish(publish) = event
            && let Err(error) = self.receive(link, publish.topic, publish.payload)
        {
            link.close();
            self.fault.get_or_insert(error);
        }
    }

    fn lost(&mut self, index: usize, why: Lost) -> anyhow::Result<()> {
        let Some(slot) = self.slots[index].as_mut() else {
            return Ok(());
        };
        slot.attempts += 1;
        let refused = matches!(&why, Lost::Refused(code) if *code != holdfast_mqtt::codec::ConnectCode::ServerUnavailable);
        if refused || slot.attempts >= ATTEMPTS_MAX {
            let id = &slot.job.registration_id;
            return Err(why).with_context(|| format!("{id} cannot be registered"));
        }
        let wait = BACKOFF.saturating_mul(1 << slot.attempts.min(6));
        let due = u64::try_from((self.clock.elapsed() + wait).as_nanos()).unwrap_or(u64::MAX);
        self.due.push(Reverse((due, index)));
        Ok(())
    }
}

/// Registers the devices that `next` gives, until it gives none, and hands every result to `done`.
///
/// # Errors
/// Those of [`Registering::turn`].
pub(crate) fn register_all(
    registering: &mut Registering<'_>,
    fleet: &mut Fleet,
    mut next: impl FnMut() -> anyhow::Result<Option<Job>>,
    mut done: impl FnMut(Done),
) -> anyhow::Result<()> {
    let mut more = true;
    while more || !registering.is_idle() {
        while more && registering.has_room() {
            match next()? {
                Some(job) => registering.begin(fleet, job)?,
                None => more = false,
            }
        }
        registering.turn(fleet, Duration::from_millis(100))?;
        while let Some(one) = registering.take() {
            done(one);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let assigned = br#"{"status":"assigned","registrationState":{"assignedHub":"h","deviceId":"d"}}"#;
        assert_eq!(
            read_answer("d", assigned).unwrap(),
            Some(Assigned {
                hub: "h".to_owned(),
                device_id: "d".to_owned()
            })
        );
        assert_eq!(read_answer("d", br#"{"status":"assigning"}"#).unwrap(), None);
        let failed = read_answer(
            "d",
            br#"{"status":"failed","registrationState":{"errorCode":400207}}"#,
        );
        assert!(failed.unwrap_err().to_string().contains("400207"));
        assert!(read_answer("d", b"nonsense").is_err());
    }
}
