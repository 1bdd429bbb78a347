//! Goal: nothing that was acknowledged is lost, whenever the process dies.
//!
//! Method: devices publish numbered messages with QoS 1 over several connections; at a random instant, also while the
//! hub is still starting, the process is killed with SIGKILL. The event log is then opened and read as the next start
//! does. Oracle: of each device, exactly the messages that were acknowledged must be there as they were sent, in order,
//! and possibly more of those that were sent; nothing twice, since nothing is sent twice; and what an earlier cycle
//! had read must not change. At the end everything is read again from the first event.
//!
//! `HOLDFAST_KILL9_CUTS` sets the number of cuts (200), `HOLDFAST_KILL9_SEED` repeats a run's random instants.

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
use holdfast_model::event::EventSource;
use holdfast_mqtt::client::{Event, Message};
use holdfast_mqtt::codec::{Connect, ConnectCode};
use holdfast_mqtt::{ClientSession, QoS, SendError, decode};
use holdfast_ports::event_log::EventLog as _;
use holdfast_store::log::{EmbeddedLog, LogConfig};
use support::Hub;

const DEVICES: usize = 6;
const WINDOW: u16 = 32;
/// Small, so that segments change under fire as well.
const SEGMENT: &str = "1 MiB";

/// What is known of one device's messages. Message `n` has a content that follows from device and `n`.
#[derive(Default, Clone)]
struct Ledger {
    /// Messages handed to the socket, in this and all earlier cycles: 0 to `sent - 1`.
    sent: u64,
    /// Those acknowledged.
    acknowledged: Vec<u64>,
}

/// What the log was seen to hold of one device.
#[derive(Default, Clone)]
struct Seen {
    numbers: Vec<u64>,
}

struct Random(u64);

impl Random {
    /// splitmix64
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

fn device_id(device: usize) -> String {
    format!("press-{device}")
}

/// 40 to 439 bytes, all of them depending on device and number.
fn content(device: usize, number: u64) -> Vec<u8> {
    let mut random = Random(number ^ (device as u64) << 48);
    let mut bytes = format!("{device}:{number}:").into_bytes();
    let length = 40 + random.below(400) as usize;
    while bytes.len() < length {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Publishes as fast as acknowledgements come until the connection breaks or `stop` is set; a started hub that refuses
/// the device fails the test.
fn publish(
    address: &str,
    device: usize,
    key: &SymmetricKey,
    mut ledger: Ledger,
    stop: &AtomicBool,
) -> Ledger {
    let Ok(mut socket) = TcpStream::connect(address) else {
        return ledger;
    };
    let id = device_id(device);
    let expiry = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 3_600;
    let token = sign_sas(
        &format!("localhost/devices/{id}"),
        key,
        Timestamp::from_seconds(i64::try_from(expiry).unwrap()),
        None,
    );
    let username = format!("localhost/{id}/?api-version=2021-04-12");
    let topic = format!("devices/{id}/messages/events/");
    let mut session = ClientSession::new(WINDOW);
    let mut out = Vec::new();
    let connect = Connect {
        client_id: &id,
        clean_session: true,
        keep_alive: 60,
        username: Some(&username),
        password: Some(token.as_bytes()),
        ..Connect::default()
    };
    session.connect(&connect, 0, &mut out).unwrap();
    let mut input = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        if stop.load(Ordering::Relaxed) || socket.write_all(&out).is_err() {
            return ledger;
        }
        out.clear();
        match socket.read(&mut buffer) {
            Ok(0) | Err(_) => return ledger,
            Ok(length) => input.extend_from_slice(&buffer[..length]),
        }
        let mut taken = 0;
        while let Some((packet, length)) = decode(&input[taken..], 1 << 20).unwrap() {
            taken += length;
            match session.handle(packet, 0, &mut out).unwrap() {
                Event::ConnAck(connack) => assert_eq!(connack.code, ConnectCode::Accepted, "{id}"),
                Event::PubAck { token } => ledger.acknowledged.push(token),
                _ => {}
            }
        }
        input.drain(..taken);
        while session.is_open() {
            let payload = content(device, ledger.sent);
            let message = Message {
                topic: &topic,
                payload: &payload,
                qos: QoS::AtLeastOnce,
                token: ledger.sent,
                ..Message::default()
            };
            match session.publish(&message, 0, &mut out) {
                // Counted before it is written: whether a byte of it left is not known after the cut.
                Ok(_) => ledger.sent += 1,
                Err(SendError::WindowFull) => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Reads the log from `positions` on and adds to what was seen; checks content and order of what is new.
fn read_log(data_dir: &Path, positions: &mut Vec<u64>, seen: &mut [Seen]) {
    let log = EmbeddedLog::open(LogConfig {
        dir: data_dir.join("events"),
        segment_bytes: 1 << 20,
        ..LogConfig::default()
    })
    .unwrap();
    positions.resize(usize::from(log.partitions()), 0);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for (partition, position) in positions.iter_mut().enumerate() {
        let partition = u16::try_from(partition).unwrap();
        let info = log.info(partition).unwrap();
        assert_eq!(info.first, 0, "nothing was old enough to be deleted");
        assert!(
            info.next >= *position,
            "partition {partition} has lost events that were read before"
        );
        while *position < info.next {
            let blocks = runtime.block_on(log.read(partition, *position, 4 << 20)).unwrap();
            assert!(
                !blocks.is_empty(),
                "partition {partition} ends at {position} instead of {}",
                info.next
            );
            for block in blocks {
                for event in block.events() {
                    let event = event.unwrap();
                    if event.sequence_number < *position {
                        continue;
                    }
                    assert_eq!(event.sequence_number, *position, "a gap in partition {partition}");
                    *position += 1;
                    if event.source == EventSource::Telemetry {
                        check(event.device_id(), event.body, seen);
                    }
                }
            }
        }
    }
    log.close().unwrap();
}

fn check(id: &str, body: &[u8], seen: &mut [Seen]) {
    let device: usize = id.strip_prefix("press-").unwrap().parse().unwrap();
    let mut parts = body.splitn(3, |byte| *byte == b':');
    assert_eq!(
        parts.next(),
        Some(device.to_string().as_bytes()),
        "an event under another device's name"
    );
    let number: u64 = std::str::from_utf8(parts.next().unwrap())
        .unwrap()
        .parse()
        .unwrap();
    assert!(
        body == content(device, number),
        "message {number} of {id} is not as it was sent"
    );
    if let Some(last) = seen[device].numbers.last() {
        assert!(number > *last, "{id}: message {number} stands after {last}");
    }
    seen[device].numbers.push(number);
}

/// Every acknowledged message is there, and none that was never sent.
fn judge(ledgers: &[Ledger], seen: &[Seen], from: &[usize]) {
    for (device, (ledger, seen)) in ledgers.iter().zip(seen).enumerate() {
        if let Some(last) = seen.numbers.last() {
            assert!(
                *last < ledger.sent,
                "device {device}: message {last} was never sent"
            );
        }
        for number in &ledger.acknowledged[from[device]..] {
            assert!(
                seen.numbers.binary_search(number).is_ok(),
                "device {device}: message {number} was acknowledged and is lost"
            );
        }
    }
}

fn number_of(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .map_or(default, |text| text.parse().unwrap())
}

fn clock_seed() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() & 0xffff_ffff).unwrap()
}

#[test]
fn nothing_acknowledged_is_lost() {
    let cuts = number_of("HOLDFAST_KILL9_CUTS", 200);
    let seed = number_of("HOLDFAST_KILL9_SEED", clock_seed());
    println!("{cuts} cuts; repeat the instants with HOLDFAST_KILL9_SEED={seed}");
    let mut random = Random(seed);
    let parent = tempfile::tempdir().unwrap();
    let data = parent.path().join("data");
    let config = parent.path().join("hub.toml");
    std::fs::write(&config, format!("[log]\nsegment_size = \"{SEGMENT}\"\n")).unwrap();
    let flags = [
        "--mqtt-plain",
        "127.0.0.1:0",
        "--listen",
        "127.0.0.1",
        "--config",
        config.to_str().unwrap(),
    ];

    let key = SymmetricKey::generate();
    let hub = Hub::start(&data, &flags);
    for device in 0..DEVICES {
        hub.json(&[
            "device",
            "create",
            &device_id(device),
            "--primary-key",
            key.reveal(),
            "--secondary-key",
            key.reveal(),
        ]);
    }
    hub.kill();

    let mut ledgers = vec![Ledger::default(); DEVICES];
    let mut seen = vec![Seen::default(); DEVICES];
    let mut positions = Vec::new();
    let started = Instant::now();
    for cut in 0..cuts {
        let judged: Vec<usize> = ledgers.iter().map(|ledger| ledger.acknowledged.len()).collect();
        if random.below(10) == 0 {
            // In the middle of a start, which is also in the middle of a recovery.
            let mut child = Hub::spawn(&data, &flags);
            std::thread::sleep(Duration::from_micros(random.below(80_000)));
            child.kill().unwrap();
            child.wait().unwrap();
        } else {
            let hub =
                Hub::try_start(&data, &flags).unwrap_or_else(|log| panic!("start after cut {cut}: {log}"));
            let alive = Duration::from_micros(random.below(150_000));
            let stop = Arc::new(AtomicBool::new(false));
            let address = hub.plain();
            let publishers: Vec<_> = ledgers
                .drain(..)
                .enumerate()
                .map(|(device, ledger)| {
                    let (address, key, stop) = (address.clone(), key.clone(), Arc::clone(&stop));
                    std::thread::spawn(move || publish(&address, device, &key, ledger, &stop))
                })
                .collect();
            std::thread::sleep(alive);
            hub.kill();
            stop.store(true, Ordering::Relaxed);
            ledgers.extend(publishers.into_iter().map(|publisher| publisher.join().unwrap()));
        }
        read_log(&data, &mut positions, &mut seen);
        judge(&ledgers, &seen, &judged);
    }

    let mut again = vec![Seen::default(); DEVICES];
    read_log(&data, &mut Vec::new(), &mut again);
    judge(&ledgers, &again, &[0; DEVICES]);
    let acknowledged: usize = ledgers.iter().map(|ledger| ledger.acknowledged.len()).sum();
    let sent: u64 = ledgers.iter().map(|ledger| ledger.sent).sum();
    let stored: usize = again.iter().map(|seen| seen.numbers.len()).sum();
    println!(
        "{cuts} cuts in {:?}: {sent} sent, {acknowledged} acknowledged, {stored} stored",
        started.elapsed()
    );
    assert!(acknowledged as u64 > cuts, "the load did not get through");
}

/// The oracle itself: a loss must not go unnoticed.
#[test]
#[should_panic(expected = "message 3 was acknowledged and is lost")]
fn a_lost_message_is_noticed() {
    let ledger = Ledger {
        sent: 5,
        acknowledged: vec![0, 1, 3],
    };
    let seen = Seen {
        numbers: vec![0, 1, 2, 4],
    };
    judge(&[ledger], &[seen], &[0]);
}
