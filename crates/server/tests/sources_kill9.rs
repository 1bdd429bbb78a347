//! Goal: no twin change lacks its event, whenever the process dies.
//!
//! Method: devices change their reported properties over MQTT, each as fast as answers come, while a route takes twin
//! changes; at a random instant, also while the hub is still starting, the process is killed with SIGKILL. At the end
//! the hub is started once more and ended in order when its outbox is empty. Oracle: the events of a device tell of
//! every version of its reported properties from the first to the one that the twin has now, for the first time in
//! that order; what was acknowledged is among them. An event may come twice.
//!
//! `HOLDFAST_KILL9_CUTS` sets the number of cuts (40), `HOLDFAST_KILL9_SEED` repeats a run's random instants.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use holdfast_model::Timestamp;
use holdfast_model::credential::{SymmetricKey, sign_sas};
use holdfast_model::event::{EventField, EventSource, EventView};
use holdfast_mqtt::client::{Event, Message};
use holdfast_mqtt::codec::{Connect, ConnectCode};
use holdfast_mqtt::{ClientSession, QoS, decode};
use holdfast_observe::Registry;
use holdfast_ports::event_log::EventLog as _;
use holdfast_ports::outbox::OutboxStore as _;
use holdfast_store::log::{EmbeddedLog, LogConfig};
use holdfast_store::sqlite::{Metrics, SqliteStore};
use serde_json::Value;
use support::{Hub, PATIENCE};

const DEVICES: usize = 5;

struct Random(u64);

impl Random {
    /// splitmix64
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

fn device_id(device: usize) -> String {
    format!("press-{device}")
}

/// Changes the twin again and again until the connection breaks or `stop` is set. Returns the versions that the hub
/// answered with.
fn report(address: &str, device: usize, key: &SymmetricKey, stop: &AtomicBool) -> Vec<u64> {
    let mut acknowledged = Vec::new();
    let Ok(mut socket) = TcpStream::connect(address) else {
        return acknowledged;
    };
    let id = device_id(device);
    let expiry = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 3_600;
    let expiry = Timestamp::from_seconds(i64::try_from(expiry).unwrap());
    let token = sign_sas(&format!("localhost/devices/{id}"), key, expiry, None);
    let username = format!("localhost/{id}/?api-version=2021-04-12");
    let mut session = ClientSession::new(8);
    let (mut out, mut input, mut buffer) = (Vec::new(), Vec::new(), vec![0; 16 * 1024]);
    let connect = Connect {
        client_id: &id,
        clean_session: true,
        keep_alive: 60,
        username: Some(&username),
        password: Some(token.as_bytes()),
        ..Connect::default()
    };
    session.connect(&connect, 0, &mut out).unwrap();
    let mut number = 0;
    loop {
        if stop.load(Ordering::Relaxed) || socket.write_all(&out).is_err() {
            return acknowledged;
        }
        out.clear();
        match socket.read(&mut buffer) {
            Ok(0) | Err(_) => return acknowledged,
            Ok(length) => input.extend_from_slice(&buffer[..length]),
        }
        let mut taken = 0;
        while let Some((packet, length)) = decode(&input[taken..], 1 << 20).unwrap() {
            taken += length;
            let (mut subscribe, mut next) = (false, false);
            match session.handle(packet, 0, &mut out).unwrap() {
                Event::ConnAck(connack) => {
                    assert_eq!(connack.code, ConnectCode::Accepted, "{id}");
                    subscribe = true;
                }
                Event::SubAck(_) => next = true,
                Event::Publish(publish) => {
                    let version = publish
                        .topic
                        .strip_prefix("$iothub/twin/res/204/")
                        .unwrap_or_else(|| panic!("{id}: {}", publish.topic));
                    let (_, version) = version.split_once("$version=").unwrap();
                    acknowledged.push(version.parse().unwrap());
                    next = true;
                }
                _ => {}
            }
            if subscribe {
                let filters = [("$iothub/twin/res/#", QoS::AtMostOnce)];
                session.subscribe(&filters, 0, &mut out).unwrap();
            }
            if next {
                number += 1;
                let topic = format!("$iothub/twin/PATCH/properties/reported/?$rid={number}");
                let patch = format!(r#"{{"n":{number},"gone":null}}"#);
                let message = Message {
                    topic: &topic,
                    payload: patch.as_bytes(),
                    ..Message::default()
                };
                session.publish(&message, 0, &mut out).unwrap();
            }
        }
        input.drain(..taken);
    }
}

/// What `look` makes of each event in the log of a hub that has ended, partition by partition.
fn look_at_log(data_dir: &Path, mut look: impl FnMut(&EventView<'_>)) {
    let log = EmbeddedLog::open(LogConfig {
        dir: data_dir.join("events"),
        ..LogConfig::default()
    })
    .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for partition in 0..log.partitions() {
        let (mut position, next) = (0, log.info(partition).unwrap().next);
        while position < next {
            for block in runtime.block_on(log.read(partition, position, 4 << 20)).unwrap() {
                position = block.end_sequence_number();
                block.events().for_each(|event| look(&event.unwrap()));
            }
        }
    }
    log.close().unwrap();
}

/// The versions of reported properties that twin change events tell of, by device, in the order of the log.
fn versions_told(data_dir: &Path) -> Vec<Vec<u64>> {
    let mut told = vec![Vec::new(); DEVICES];
    look_at_log(data_dir, |event| {
        assert_eq!(event.source, EventSource::TwinChange);
        assert!(event.endpoints.has_events());
        let device: usize = event.device_id().strip_prefix("press-").unwrap().parse().unwrap();
        let is_update = |field| field == EventField::Application("opType", Some("updateTwin"));
        assert!(event.fields().any(is_update));
        let body: Value = serde_json::from_slice(event.body).unwrap();
        told[device].push(body["properties"]["reported"]["$version"].as_u64().unwrap());
    });
    told
}

fn number_of(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .map_or(default, |text| text.parse().unwrap())
}

/// Each once, where it stands first.
fn first_places(versions: &[u64]) -> Vec<u64> {
    let mut seen = std::collections::HashSet::new();
    versions
        .iter()
        .copied()
        .filter(|version| seen.insert(*version))
        .collect()
}

/// Whether the outbox of a hub that has ended is empty.
fn outbox_is_empty(data_dir: &Path) -> bool {
    let metrics = Metrics::register(&mut Registry::new());
    let store = SqliteStore::open(&data_dir.join("hub.db"), metrics).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(store.outbox(1, 1)).unwrap().is_empty()
}

#[test]
fn no_twin_change_lacks_its_event() {
    let cuts = number_of("HOLDFAST_KILL9_CUTS", 40);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = number_of("HOLDFAST_KILL9_SEED", u64::from(now.subsec_nanos()));
    println!("{cuts} cuts; repeat the instants with HOLDFAST_KILL9_SEED={seed}");
    let mut random = Random(seed);
    let parent = tempfile::tempdir().unwrap();
    let data = parent.path().join("data");
    let flags = ["--mqtt-plain", "127.0.0.1:0", "--listen", "127.0.0.1"];
    let key = SymmetricKey::generate();
    let hub = Hub::start(&data, &flags);
    for device in 0..DEVICES {
        let (id, key) = (device_id(device), key.reveal());
        hub.json(&[
            "device",
            "create",
            &id,
            "--primary-key",
            key,
            "--secondary-key",
            key,
        ]);
    }
    let route = ["route", "create", "twins", "--endpoint", "events"];
    hub.json(&[&route[..], &["--source", "TwinChangeEvents"]].concat());
    hub.kill();

    let mut acknowledged: Vec<Vec<u64>> = vec![Vec::new(); DEVICES];
    for cut in 0..cuts {
        if random.below(10) == 0 {
            let mut child = Hub::spawn(&data, &flags);
            std::thread::sleep(Duration::from_micros(random.below(80_000)));
            child.kill().unwrap();
            child.wait().unwrap();
            continue;
        }
        let hub = Hub::try_start(&data, &flags).unwrap_or_else(|log| panic!("start after cut {cut}: {log}"));
        let stop = Arc::new(AtomicBool::new(false));
        let address = hub.plain();
        let reporters: Vec<_> = (0..DEVICES)
            .map(|device| {
                let (address, key, stop) = (address.clone(), key.clone(), Arc::clone(&stop));
                std::thread::spawn(move || report(&address, device, &key, &stop))
            })
            .collect();
        std::thread::sleep(Duration::from_micros(random.below(200_000)));
        hub.kill();
        stop.store(true, Ordering::Relaxed);
        for (known, reporter) in acknowledged.iter_mut().zip(reporters) {
            known.extend(reporter.join().unwrap());
        }
    }

    // What waits in the outbox comes with the next start, or with the one after it.
    let deadline = Instant::now() + PATIENCE;
    let current = loop {
        let hub = Hub::start(&data, &flags);
        let current: Vec<u64> = (0..DEVICES)
            .map(|device| {
                let twin = hub.json(&["twin", "show", &device_id(device)]);
                twin["properties"]["reported"]["$version"].as_u64().unwrap()
            })
            .collect();
        let (status, log) = hub.stop();
        assert!(status.success(), "{log}");
        if outbox_is_empty(&data) {
            break current;
        }
        assert!(Instant::now() < deadline, "the outbox does not become empty");
    };
    let mut repeated = 0;
    for (device, told) in versions_told(&data).iter().enumerate() {
        let first = first_places(told);
        repeated += told.len() - first.len();
        let all: Vec<u64> = (2..=current[device]).collect();
        assert_eq!(first, all, "{}", device_id(device));
        let last = acknowledged[device].last().copied().unwrap_or(0);
        assert!(last <= current[device], "an acknowledged change is lost");
    }
    let count: usize = acknowledged.iter().map(Vec::len).sum();
    println!(
        "{count} acknowledged, {} stored, {repeated} events twice",
        current.iter().sum::<u64>() - DEVICES as u64
    );
    assert!(count as u64 > cuts, "the load did not get through");
}

/// A session that dies with the process is told to have ended by the next one, with a number between its own begin and
/// whatever comes later.
#[test]
fn sessions_that_a_crash_ends_are_told_of() {
    let parent = tempfile::tempdir().unwrap();
    let data = parent.path().join("data");
    let flags = ["--mqtt-plain", "127.0.0.1:0", "--listen", "127.0.0.1"];
    let key = SymmetricKey::generate();
    let keys = ["--primary-key", key.reveal(), "--secondary-key", key.reveal()];
    let stop = Arc::new(AtomicBool::new(false));
    for process in 0..2 {
        let hub = Hub::start(&data, &flags);
        if process == 0 {
            hub.json(&[&["device", "create", &device_id(0)][..], &keys].concat());
            let route = ["route", "create", "all", "--endpoint", "events"];
            hub.json(&[&route[..], &["--source", "DeviceConnectionStateEvents"]].concat());
        }
        let reporter = std::thread::spawn({
            let (address, key, stop) = (hub.plain(), key.clone(), Arc::clone(&stop));
            move || report(&address, 0, &key, &stop)
        });
        // As it is stored, which is what the next process goes by.
        let connected = "SELECT deviceId FROM devices WHERE connectionState = 'Connected'";
        let deadline = Instant::now() + PATIENCE;
        while hub.json(&["query", connected]).as_array().unwrap().is_empty() {
            assert!(Instant::now() < deadline, "the connection is not stored");
        }
        match process {
            0 => hub.kill(),
            _ => drop(hub.stop()),
        }
        reporter.join().unwrap();
    }
    let mut told = Vec::new();
    look_at_log(&data, |event| {
        let is_end = |field| field == EventField::Application("opType", Some("deviceDisconnected"));
        let body: Value = serde_json::from_slice(event.body).unwrap();
        let number = body["sequenceNumber"].as_str().unwrap().to_owned();
        told.push((number, event.fields().any(is_end)));
    });
    told.sort();
    let ends: Vec<bool> = told.iter().map(|(_, is_end)| *is_end).collect();
    assert_eq!(ends, [false, true, false, true], "{told:?}");
}
