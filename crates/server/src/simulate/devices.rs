//! What simulated devices do: send, answer, report, and come back.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use holdfast_mqtt::client::{Event, Message};
use holdfast_mqtt::{QoS, SendError};
use serde_json::Value;

use super::template::{Random, Template};
use crate::bench::devices::Device;
use crate::bench::fleet::{Account, Driver, Endpoint, Link, Lost};
use crate::bench::histogram::Histogram;

/// Messages that wait for a connection or for room in the window, per device; older ones are given up.
const BACKLOG_MAX: usize = 1_000;

/// First wait before a device connects again, doubled for each further attempt.
const BACKOFF_MIN: Duration = Duration::from_millis(500);

/// Longest wait.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// Life of the tokens that devices log in with. Their end closes the connection, as it would a real device's.
const TOKEN_LIFE: Duration = Duration::from_secs(24 * 3_600);

const KEEP_ALIVE_SECONDS: u16 = 60;

/// Tells monitors that the body is JSON (mqtt.md 3.1); left out for other bodies.
const JSON_BAG: &str = "%24.ct=application%2Fjson&%24.ce=utf-8";

/// What happened so far.
#[derive(Clone, Default, Debug, PartialEq)]
pub(super) struct Totals {
    pub(super) sent: u64,
    pub(super) acked: u64,
    /// Given up: they waited behind too many others, or were not acknowledged at the end.
    pub(super) failed: u64,
    pub(super) methods: u64,
    pub(super) desired: u64,
    pub(super) cloud_to_device: u64,
    pub(super) connects: u64,
    pub(super) reconnects: u64,
    /// The newest reason for which a connection ended.
    pub(super) last_fault: Option<String>,
    /// From when a message was due to its acknowledgement, in nanoseconds.
    pub(super) latency: Histogram,
}

/// All devices of a run.
pub(super) struct Devices<'a> {
    host: &'a str,
    template: &'a Template,
    json: bool,
    states: Vec<State<'a>>,
    clock: Instant,
    /// When devices without a connection try again.
    retries: BinaryHeap<Reverse<(u64, usize)>>,
    pub(super) totals: Totals,
    random: Random,
    topic: String,
    body: String,
}

struct State<'a> {
    device: &'a Device,
    sequence: u64,
    /// When messages that wait were due.
    backlog: VecDeque<u64>,
    /// Attempts to connect since the last success.
    attempts: u32,
    connected_before: bool,
}

impl<'a> Devices<'a> {
    pub(super) fn new(host: &'a str, devices: &'a [Device], template: &'a Template, clock: Instant) -> Self {
        let mut random = Random::new();
        let mut sample = String::new();
        template.render("device", 0, &mut random, &mut sample);
        let state = |device| State {
            device,
            sequence: 0,
            backlog: VecDeque::new(),
            attempts: 0,
            connected_before: false,
        };
        Devices {
            host,
            template,
            json: serde_json::from_str::<serde::de::IgnoredAny>(&sample).is_ok(),
            states: devices.iter().map(state).collect(),
            clock,
            retries: BinaryHeap::new(),
            totals: Totals::default(),
            random,
            topic: String::new(),
            body: String::new(),
        }
    }

    /// The next device whose time to connect again has come.
    pub(super) fn take_retry(&mut self, now_ns: u64) -> Option<usize> {
        let Reverse((due, index)) = *self.retries.peek()?;
        (due <= now_ns).then(|| {
            self.retries.pop();
            index
        })
    }

    /// A message of a device is due.
    pub(super) fn enqueue(&mut self, index: usize, due_ns: u64) {
        let backlog = &mut self.states[index].backlog;
        if backlog.len() == BACKLOG_MAX {
            backlog.pop_front();
            self.totals.failed += 1;
        }
        backlog.push_back(due_ns);
    }

    /// Messages that are due and not sent.
    pub(super) fn waiting(&self) -> u64 {
        self.states.iter().map(|state| state.backlog.len() as u64).sum()
    }

    /// Sends what the window takes. The token of a message is when it was due.
    pub(super) fn send(&mut self, link: &mut Link<'_>) {
        let state = &mut self.states[link.index];
        while let Some(due) = state.backlog.front().copied() {
            self.topic.clear();
            self.topic
                .extend(["devices/", &state.device.id, "/messages/events/"]);
            if self.json {
                self.topic.push_str(JSON_BAG);
            }
            self.body.clear();
            self.template
                .render(&state.device.id, state.sequence, &mut self.random, &mut self.body);
            let message = Message {
                topic: &self.topic,
                payload: self.body.as_bytes(),
                qos: QoS::AtLeastOnce,
                retain: false,
                token: due,
            };
            match link.session.publish(&message, link.now_ms(), link.out) {
                Ok(_) => {
                    state.backlog.pop_front();
                    state.sequence += 1;
                    self.totals.sent += 1;
                }
                Err(SendError::WindowFull | SendError::NotConnected) => return,
                Err(_) => {
                    // It would not fit the next time either.
                    state.backlog.pop_front();
                    self.totals.failed += 1;
                }
            }
        }
    }

    fn receive(&mut self, link: &mut Link<'_>, topic: &str, payload: &[u8]) {
        if let Some((_, request)) = topic
            .strip_prefix("$iothub/methods/POST/")
            .and_then(|rest| rest.split_once("/?$rid="))
        {
            self.totals.methods += 1;
            let payload = if payload.is_empty() { b"null" } else { payload };
            say(link, &format!("$iothub/methods/res/200/?$rid={request}"), payload);
        } else if topic.starts_with("$iothub/twin/PATCH/properties/desired/") {
            self.totals.desired += 1;
            report(link, serde_json::from_slice(payload).ok());
        } else if topic.starts_with("$iothub/twin/res/200/?$rid=all") {
            // The whole twin, asked for after connecting: changes made meanwhile were not pushed.
            let twin: Option<Value> = serde_json::from_slice(payload).ok();
            report(
                link,
                twin.and_then(|mut twin| twin.get_mut("desired").map(Value::take)),
            );
        } else if !topic.starts_with("$iothub/") {
            self.totals.cloud_to_device += 1;
        }
    }

    fn backoff(&mut self, index: usize) -> Duration {
        let state = &mut self.states[index];
        let longest = BACKOFF_MIN
            .saturating_mul(1 << state.attempts.min(10))
            .min(BACKOFF_MAX);
        state.attempts += 1;
        // Half fixed, half random: devices cut off together do not come back together.
        longest.mul_f64(0.5 + 0.5 * self.random.fraction())
    }
}

/// Publishes at QoS 0, for answers whose loss the other side notices by itself.
fn say(link: &mut Link<'_>, topic: &str, payload: &[u8]) {
    let message = Message {
        topic,
        payload,
        ..Message::default()
    };
    if link.session.publish(&message, link.now_ms(), link.out).is_err() {
        link.close();
    }
}

/// Reports desired properties as they are.
fn report(link: &mut Link<'_>, desired: Option<Value>) {
    let Some(Value::Object(mut properties)) = desired else {
        return;
    };
    properties.retain(|name, _| !name.starts_with('$'));
    if !properties.is_empty() {
        let body = Value::Object(properties).to_string();
        say(
            link,
            "$iothub/twin/PATCH/properties/reported/?$rid=report",
            body.as_bytes(),
        );
    }
}

impl Driver for Devices<'_> {
    fn endpoint(&mut self, index: usize) -> anyhow::Result<Option<Endpoint>> {
        let place = self.states[index].device.place.as_ref();
        Ok(place.map(|place| place.endpoint.clone()))
    }

    fn account(&mut self, index: usize) -> Account {
        let device = self.states[index].device;
        let host = device.place.as_ref().map_or(self.host, |place| &place.host);
        Account {
            keep_alive: KEEP_ALIVE_SECONDS,
            clean_session: false,
            ..device.account(host, TOKEN_LIFE)
        }
    }

    fn filters(&self, index: usize) -> Vec<String> {
        self.states[index].device.filters()
    }

    fn opened(&mut self, link: &mut Link<'_>) {
        let state = &mut self.states[link.index];
        state.attempts = 0;
        self.totals.connects += 1;
        self.totals.reconnects += u64::from(std::mem::replace(&mut state.connected_before, true));
        say(link, "$iothub/twin/GET/?$rid=all", b"");
        self.send(link);
    }

    fn event(&mut self, link: &mut Link<'_>, event: Event<'_>) {
        match event {
            Event::PubAck { token } => {
                self.totals.acked += 1;
                self.totals.latency.record(link.now_ns.saturating_sub(token));
            }
            Event::Publish(publish) => self.receive(link, publish.topic, publish.payload),
            _ => {}
        }
    }

    fn batch(&mut self, link: &mut Link<'_>) {
        self.send(link);
    }

    fn lost(&mut self, index: usize, why: Lost) -> anyhow::Result<()> {
        let wait = self.backoff(index);
        let due = self.clock.elapsed() + wait;
        self.retries.push(Reverse((
            u64::try_from(due.as_nanos()).unwrap_or(u64::MAX),
            index,
        )));
        let error = anyhow::Error::from(why);
        self.totals.last_fault = Some(format!("{}: {error:#}", self.states[index].device.id));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_model::credential::SymmetricKey;
    use holdfast_mqtt::ClientSession;
    use holdfast_mqtt::codec::{ConnAck, Connect, ConnectCode, Packet};
    use holdfast_mqtt::decode;

    fn device() -> [Device; 1] {
        [Device {
            id: "d".to_owned(),
            key: Some(SymmetricKey::generate()),
            place: None,
        }]
    }

    /// What the devices of `action` write to an open connection.
    fn written(action: impl FnOnce(&mut Link<'_>)) -> Vec<u8> {
        let mut session = ClientSession::new(4);
        let mut out = Vec::new();
        session.connect(&Connect::default(), 0, &mut out).unwrap();
        let connack = ConnAck {
            session_present: false,
            code: ConnectCode::Accepted,
        };
        session.handle(Packet::ConnAck(connack), 0, &mut out).unwrap();
        out.clear();
        action(&mut Link::for_tests(&mut session, &mut out));
        out
    }

    fn publishes(bytes: &[u8]) -> Vec<(String, String)> {
        let (mut rest, mut found) = (bytes, Vec::new());
        while let Some((packet, length)) = decode(rest, 1 << 20).unwrap() {
            if let Packet::Publish(publish) = packet {
                let payload = String::from_utf8_lossy(publish.payload).into_owned();
                found.push((publish.topic.to_owned(), payload));
            }
            rest = &rest[length..];
        }
        found
    }

    #[test]
    fn methods_are_echoed_and_desired_properties_reported() {
        let (devices, template) = (device(), "x".parse().unwrap());
        let mut all = Devices::new("hub.test", &devices, &template, Instant::now());
        let bytes = written(|link| {
            all.receive(link, "$iothub/methods/POST/reboot/?$rid=1a", br#"{"in":3}"#);
            all.receive(link, "$iothub/methods/POST/reboot/?$rid=2", b"");
            all.receive(
                link,
                "$iothub/twin/PATCH/properties/desired/?$version=3",
                br#"{"a":1,"$version":3}"#,
            );
            all.receive(
                link,
                "$iothub/twin/res/200/?$rid=all",
                br#"{"desired":{"b":2,"$version":4},"reported":{}}"#,
            );
            all.receive(link, "$iothub/twin/res/204/?$rid=report&$version=2", b"");
            all.receive(link, "devices/d/messages/devicebound/%24.mid=1", b"hello");
        });
        let expected = [
            ("$iothub/methods/res/200/?$rid=1a", r#"{"in":3}"#),
            ("$iothub/methods/res/200/?$rid=2", "null"),
            (
                "$iothub/twin/PATCH/properties/reported/?$rid=report",
                r#"{"a":1}"#,
            ),
            (
                "$iothub/twin/PATCH/properties/reported/?$rid=report",
                r#"{"b":2}"#,
            ),
        ];
        let expected: Vec<_> = expected
            .map(|(topic, body)| (topic.to_owned(), body.to_owned()))
            .into();
        assert_eq!(publishes(&bytes), expected);
        assert_eq!(
            (all.totals.methods, all.totals.desired, all.totals.cloud_to_device),
            (2, 1, 1)
        );
    }

    #[test]
    fn telemetry_waits_for_the_window_and_is_bounded() {
        let (devices, template) = (device(), r#"{"n":{{sequence}}}"#.parse().unwrap());
        let mut all = Devices::new("hub.test", &devices, &template, Instant::now());
        for due in 0..BACKLOG_MAX as u64 + 5 {
            all.enqueue(0, due);
        }
        assert_eq!((all.waiting(), all.totals.failed), (BACKLOG_MAX as u64, 5));
        let sent = publishes(&written(|link| all.send(link)));
        assert_eq!(sent.len(), 4, "the window");
        assert_eq!(
            sent[3],
            (
                format!("devices/d/messages/events/{JSON_BAG}"),
                r#"{"n":3}"#.to_owned()
            )
        );
        assert_eq!((all.totals.sent, all.waiting()), (4, BACKLOG_MAX as u64 - 4));
    }

    #[test]
    fn devices_come_back_later_and_later() {
        let (devices, template) = (device(), "x".parse().unwrap());
        let mut all = Devices::new("hub.test", &devices, &template, Instant::now());
        for attempt in 0..20u32 {
            let longest = BACKOFF_MIN.saturating_mul(1 << attempt.min(10)).min(BACKOFF_MAX);
            let wait = all.backoff(0);
            assert!(wait <= longest && wait >= longest / 2, "{attempt}: {wait:?}");
        }
        all.lost(0, Lost::Closed("in use")).unwrap();
        assert_eq!(all.take_retry(0), None);
        assert_eq!(all.take_retry(u64::MAX), Some(0));
        assert_eq!(all.take_retry(u64::MAX), None);
        assert!(all.totals.last_fault.unwrap().starts_with("d: the server closed"));
    }
}
