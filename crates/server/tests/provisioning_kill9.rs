//! Goal: a device that was told its hub is on that hub and on no other, whenever the provisioning service dies.
//!
//! Method: thousands of devices of one group register at once over MQTT; two hubs are linked, the service's own and
//! another process. When a third and when two thirds of the devices have their answer, the service is killed with
//! SIGKILL and started again at the same addresses; devices whose connection broke register again, as the SDKs do.
//! Oracle: every device is on one of the hubs and on one only, namely on the one it was told, and with its own key;
//! its registration says the same; there is nobody else.
//!
//! 2,000 devices; `HOLDFAST_PROVISION_DEVICES=10000` for more.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use holdfast_model::credential::SymmetricKey;
use holdfast_program::failure::{Failure, Kind};
use holdfast_server::cli::client::Client;
use serde_json::Value;
use support::Hub;
use support::dps::{Dps, connection_string, login, register_over_mqtt};

/// The address of the other hub; every hub calls itself `localhost` too.
const OTHER: &str = "127.0.0.2";

/// Devices that register at the same time.
const THREADS: usize = 24;

/// For all devices together.
const PATIENCE: Duration = Duration::from_secs(300);

fn start(dir: &Path, plain: &str) -> Hub {
    let flags = ["--listen", "127.0.0.1", "--mqtt-plain", plain];
    Hub::start(&dir.join("service"), &flags)
}

fn id(number: usize) -> String {
    format!("press-{number:05}")
}

struct Fleet {
    address: String,
    scope: String,
    key: SymmetricKey,
    next: AtomicUsize,
    /// Hub by device.
    told: Mutex<BTreeMap<String, String>>,
    broken: AtomicUsize,
}

impl Fleet {
    /// Registers devices, each until it has its answer.
    fn work(&self, count: usize) {
        let begun = Instant::now();
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return;
            }
            let id = id(number);
            let key = self.key.derive(&id);
            let body = loop {
                match register_over_mqtt(&self.address, &self.scope, &id, &key) {
                    Ok(body) => break body,
                    Err(error) => {
                        assert!(begun.elapsed() < PATIENCE, "{id}: {error}");
                        self.broken.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(20));
                    }
                }
            };
            assert_eq!(body["status"], "assigned", "{body}");
            let hub = body["registrationState"]["assignedHub"].as_str().unwrap();
            self.told.lock().unwrap().insert(id, hub.to_owned());
        }
    }

    fn answered(&self) -> usize {
        self.told.lock().unwrap().len()
    }
}

/// The devices of a hub with their keys: those of the test, which the hub says are all.
fn devices(hub: &Hub, count: usize) -> BTreeMap<String, String> {
    let client = Client::new(login(hub)).unwrap();
    let mut found = BTreeMap::new();
    for id in (0..count).map(id) {
        let device = match client.get(format!("/devices/{id}")).send() {
            Ok(device) => device,
            Err(error) => {
                let failure = error.downcast_ref::<Failure>();
                assert_eq!(
                    failure.map(|failure| failure.kind),
                    Some(Kind::NotFound),
                    "{error}"
                );
                continue;
            }
        };
        let key = device.pointer("/authentication/symmetricKey/primaryKey");
        found.insert(id, key.and_then(Value::as_str).unwrap_or_default().to_owned());
    }
    assert_eq!(
        hub.json(&["statistics"])["totalDeviceCount"],
        found.len(),
        "somebody is there who should not be"
    );
    found
}

#[test]
fn no_device_is_lost_and_none_is_on_two_hubs() {
    let count: usize =
        std::env::var("HOLDFAST_PROVISION_DEVICES").map_or(2_000, |text| text.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let other = Hub::start(&dir.path().join("other"), &["--listen", OTHER, "--host", OTHER]);
    let service = start(dir.path(), "127.0.0.1:0");
    let address = service.plain();
    let ca = other.data_dir.join("ca.pem");
    service.json(&[
        "dps",
        "linked-hub",
        "set",
        OTHER,
        "--connection-string",
        &connection_string(&other),
        "--hub-ca",
        ca.to_str().unwrap(),
    ]);
    let key = SymmetricKey::generate();
    service.json(&["dps", "group", "create", "line-4", "--primary-key", key.reveal()]);
    let fleet = Fleet {
        address: address.clone(),
        scope: Dps::of(&service).id_scope,
        key: key.clone(),
        next: AtomicUsize::new(0),
        told: Mutex::default(),
        broken: AtomicUsize::new(0),
    };
    let begun = Instant::now();
    let mut running = Some(service);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| fleet.work(count));
        }
        for cut in [count / 3, count * 2 / 3] {
            while fleet.answered() < cut {
                assert!(begun.elapsed() < PATIENCE, "{} answered", fleet.answered());
                std::thread::sleep(Duration::from_millis(1));
            }
            running.take().unwrap().kill();
            running = Some(start(dir.path(), &address));
        }
    });
    let service = running.unwrap();
    let broken = fleet.broken.load(Ordering::Relaxed);
    println!(
        "{count} devices in {:?}, {broken} broken connections",
        begun.elapsed()
    );
    assert!(broken > 0, "the cuts hit nobody");

    let told = fleet.told.into_inner().unwrap();
    assert_eq!(told.len(), count, "everybody has an answer");
    let (here, there) = (devices(&service, count), devices(&other, count));
    let both: Vec<&String> = here.keys().filter(|id| there.contains_key(*id)).collect();
    assert!(both.is_empty(), "on two hubs: {both:?}");
    assert!(
        here.len() > count / 4 && there.len() > count / 4,
        "both took part"
    );
    let wanted: BTreeSet<String> = (0..count).map(id).collect();
    let found: BTreeSet<String> = here.keys().chain(there.keys()).cloned().collect();
    assert_eq!(found, wanted, "nobody is lost, nobody is there who should not be");
    for (id, hub) in &told {
        let (name, devices) = match hub.as_str() {
            OTHER => (OTHER, &there),
            _ => ("localhost", &here),
        };
        let stored = devices.get(id).unwrap_or_else(|| panic!("{id} is not on {name}"));
        assert_eq!(stored, key.derive(id).reveal(), "{id} has another key");
    }
    let registrations = service.json(&["dps", "registration", "list", "--group", "line-4"]);
    let registrations = registrations.as_array().unwrap();
    assert_eq!(registrations.len(), count);
    for registration in registrations {
        let id = registration["registrationId"].as_str().unwrap();
        assert_eq!(registration["status"], "assigned", "{registration}");
        assert_eq!(registration["assignedHub"], *told[id], "{registration}");
    }
}
