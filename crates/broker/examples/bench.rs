//! Measures the edge hub on a real disk: `cargo run --release -p holdfast-broker --example bench [DIRECTORY]`.
//!
//! 1. The queues alone: durable messages a second.
//! 2. Module to module through the engine: durable at the queue, fetched, settled; as fast as it goes, four senders.
//! 3. The same at 5,000 a second: time from sending to having it at the other module, and to the acknowledgement.

use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use holdfast_broker::queue::{
    AppendError, Entry, Listener, Loss, QueueConfig, QueueId, QueueKey, QueueStore,
};
use holdfast_broker::{Broker, BrokerConfig, SealingKey};
use holdfast_model::Identity;
use holdfast_model::c2d::Settlement;
use holdfast_model::credential::{SymmetricKey, sign_sas};
use holdfast_model::event::{AuthMethod, EndpointSet, EventSource, Origin, Records};
use holdfast_model::subscription::{Channel, Subscriptions};
use holdfast_ports::clock::{Clock, SystemClock};
use holdfast_ports::gateway::{
    AccessRequest, ConnectRequest, Credential, DeviceGateway, Persistence, Protocol,
};
use holdfast_ports::session::SessionHandle;
use holdfast_store::log::disk::RealDisk;
use holdfast_upstream::port::{ScopeAuthentication, ScopeIdentity};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BODY: usize = 256;
const SENDERS: usize = 4;
const RUN: u32 = 32;
const WINDOW_RUNS: u32 = 8;

struct Quiet;

impl Listener for Quiet {
    fn readable(&self, _: &[QueueId]) {}
    fn lost(&self, _: &QueueKey, _: u64, _: Loss) {}
    fn set_aside(&self) {}
    fn stalled(&self, _: Option<&str>) {}
}

fn main() -> anyhow::Result<()> {
    let base = std::env::args()
        .nth(1)
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(base)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(store(&dir.path().join("store")))?;
    runtime.block_on(module_to_module(&dir.path().join("engine")))?;
    Ok(())
}

fn records(count: u32, stamp: u64) -> Records {
    let mut body = [b'x'; BODY];
    body[..8].copy_from_slice(&stamp.to_le_bytes());
    let mut records = Records::new();
    for _ in 0..count {
        let _ = records.record().finish(&body);
    }
    records
}

#[allow(clippy::print_stdout, reason = "a measurement")]
async fn store(dir: &Path) -> anyhow::Result<()> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let store = QueueStore::open(
        QueueConfig::new(dir.to_owned()),
        Arc::new(RealDisk),
        clock,
        Arc::new(Quiet),
    )?;
    let queue = store.queue(&QueueKey {
        name: "bench".to_owned(),
        priority: 0,
    });
    let mut origin = Vec::new();
    Origin {
        source: EventSource::Telemetry,
        identity: Identity::module("edge", "a").map_err(anyhow::Error::msg)?,
        generation_id: 1,
        auth: AuthMethod::IdentityKey,
    }
    .encode(EndpointSet::EVENTS, &mut origin);
    let records = records(RUN, 0);
    let (begun, mut count, mut last) = (Instant::now(), 0_u64, 0);
    while begun.elapsed() < Duration::from_secs(3) {
        let entry = Entry {
            queue,
            expires: None,
            origin: &origin,
            records: records.as_bytes(),
            count: RUN,
        };
        match store.append(&[entry]) {
            Ok(accepted) => (count, last) = (count + u64::from(RUN), accepted),
            Err(AppendError::Busy(accepted)) => {
                poll_fn(|context| store.poll_durable(accepted, context))
                    .await
                    .map_err(anyhow::Error::msg)?;
                store.consumed(queue, store.info(queue).durable);
            }
            Err(error) => return Err(error.into()),
        }
    }
    poll_fn(|context| store.poll_durable(last, context))
        .await
        .map_err(anyhow::Error::msg)?;
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    println!("queues alone: {rate:.0} durable messages/s of {BODY} bytes");
    store.consumed(queue, count);
    let begun = Instant::now();
    while store.bytes() > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!(
        "queues alone: empty {} ms after the last was consumed",
        begun.elapsed().as_millis()
    );
    Ok(())
}

fn identity(id: &str, key: &SymmetricKey) -> anyhow::Result<ScopeIdentity> {
    Ok(ScopeIdentity {
        identity: Identity::parse(id).map_err(anyhow::Error::msg)?,
        generation_id: "1".to_owned(),
        enabled: true,
        authentication: ScopeAuthentication::Keys {
            primary: key.clone(),
            secondary: key.clone(),
        },
        iot_edge: false,
        device_scope: None,
        parent_scopes: Vec::new(),
    })
}

async fn connect(
    broker: &Broker,
    clock: &dyn Clock,
    module: &str,
    key: &SymmetricKey,
) -> anyhow::Result<Arc<SessionHandle>> {
    let resource = format!("hub.test/devices/edge/modules/{module}");
    let token = sign_sas(&resource, key, clock.now().plus(Duration::from_secs(3_600)), None);
    let connected = broker
        .connect(ConnectRequest {
            access: AccessRequest {
                device_id: "edge",
                module_id: Some(module),
                credential: Credential::Sas(&token),
                auth_chain: None,
                protocol: Protocol::Mqtt,
            },
            persistence: Persistence::Forgotten,
            model_id: None,
            client_type: None,
        })
        .await
        .map_err(anyhow::Error::msg)?;
    Ok(connected.session)
}

#[allow(clippy::print_stdout, reason = "a measurement")]
async fn module_to_module(dir: &Path) -> anyhow::Result<()> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let key = SymmetricKey::generate();
    let mut config = BrokerConfig::new("edge", "hub.test", dir.to_owned(), SealingKey::new([1; 32]));
    for module in ["a0", "a1", "a2", "a3", "b"] {
        config
            .local_identities
            .push(identity(&format!("edge/{module}"), &key)?);
    }
    let broker = Broker::open(config, Arc::new(RealDisk), Arc::clone(&clock), None)?;
    broker.start();
    let desired = serde_json::json!({"schemaVersion": "1.1", "routes": {
        "r": "FROM /messages/* INTO BrokeredEndpoint(\"/modules/b/inputs/in\")"}});
    let desired = desired.as_object().ok_or_else(|| anyhow::anyhow!("an object"))?;
    broker.apply_desired(desired).map_err(anyhow::Error::msg)?;
    let epoch = Instant::now();
    let receiver = connect(&broker, &*clock, "b", &key).await?;
    let mut subscriptions = Subscriptions::NONE;
    subscriptions.insert(Channel::Inputs, true);
    broker
        .subscribe(&receiver, subscriptions)
        .await
        .map_err(anyhow::Error::msg)?;
    let received = Arc::new(AtomicU64::new(0));
    let latencies = Arc::new(parking_lot::Mutex::new(Vec::<u64>::new()));
    let consumer = tokio::spawn(consume(
        Arc::clone(&broker),
        receiver,
        Arc::clone(&received),
        Arc::clone(&latencies),
        epoch,
    ));

    let mut senders = Vec::new();
    for number in 0..SENDERS {
        let session = connect(&broker, &*clock, &format!("a{number}"), &key).await?;
        senders.push(session);
    }
    let (begun, cpu_before) = (Instant::now(), cpu_seconds());
    let until = begun + Duration::from_secs(5);
    let tasks: Vec<_> = senders
        .iter()
        .map(|session| tokio::spawn(flood(Arc::clone(&broker), Arc::clone(session), until, epoch)))
        .collect();
    let mut sent = 0;
    for task in tasks {
        sent += task.await??;
    }
    while received.load(Ordering::Relaxed) < sent {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let rate = sent as f64 / begun.elapsed().as_secs_f64();
    let cpu = (cpu_seconds() - cpu_before) * 1e6 / sent as f64;
    println!(
        "module to module, {SENDERS} senders: {rate:.0} durable messages/s, sent, fetched and settled; {cpu:.1} µs of CPU each"
    );

    latencies.lock().clear();
    let mut acknowledged = Vec::new();
    let mut tick = tokio::time::interval(Duration::from_micros(1_000));
    for _ in 0..5_000 {
        tick.tick().await;
        let stamp = epoch.elapsed().as_micros() as u64;
        let records = records(5, stamp);
        let ticket = broker.send(&senders[0], &records)?;
        poll_fn(|context| broker.poll_durable(ticket, context)).await?;
        acknowledged.push(epoch.elapsed().as_micros() as u64 - stamp);
        sent += 5;
    }
    while received.load(Ordering::Relaxed) < sent {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    acknowledged.sort_unstable();
    let mut fetched = std::mem::take(&mut *latencies.lock());
    fetched.sort_unstable();
    for (what, sorted) in [("acknowledged", &acknowledged), ("at the other module", &fetched)] {
        let at = |quantile: f64| sorted[((sorted.len() - 1) as f64 * quantile) as usize] as f64 / 1e3;
        println!(
            "5,000/s, {what}: p50 {:.2} ms, p99 {:.2} ms, most {:.2} ms",
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
    consumer.abort();
    let begun = Instant::now();
    while broker.queue_bytes() > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!(
        "store empty after {} ms; {}",
        begun.elapsed().as_millis(),
        memory()
    );
    broker.stop().await;
    Ok(())
}

/// User and system time of this process.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(") ").next().unwrap_or_default();
    let ticks: f64 = fields
        .split(' ')
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum();
    ticks / 100.0
}

fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    line.unwrap_or("no VmRSS")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

async fn flood(
    broker: Arc<Broker>,
    session: Arc<SessionHandle>,
    until: Instant,
    epoch: Instant,
) -> anyhow::Result<u64> {
    let mut sent = 0;
    while Instant::now() < until {
        let records = records(RUN, epoch.elapsed().as_micros() as u64);
        match broker.send(&session, &records) {
            Ok(ticket) => {
                sent += u64::from(RUN);
                // A window, as clients have that do not wait for each acknowledgement.
                if sent % u64::from(RUN * WINDOW_RUNS) == 0 {
                    poll_fn(|context| broker.poll_durable(ticket, context)).await?;
                }
            }
            Err(error) => {
                anyhow::ensure!(
                    matches!(error, holdfast_ports::gateway::IngestError::Busy(_)),
                    "{error}"
                );
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
    Ok(sent)
}

async fn consume(
    broker: Arc<Broker>,
    session: Arc<SessionHandle>,
    received: Arc<AtomicU64>,
    latencies: Arc<parking_lot::Mutex<Vec<u64>>>,
    epoch: Instant,
) {
    loop {
        let Ok(deliveries) = broker.receive_c2d(session.identity(), Some(&session), 64).await else {
            return;
        };
        if deliveries.is_empty() {
            let hint = poll_fn(|context| match session.poll_next(context) {
                Poll::Ready(outcome) => Poll::Ready(outcome),
                Poll::Pending => Poll::Pending,
            });
            if hint.await.is_err() {
                return;
            }
            continue;
        }
        let now = epoch.elapsed().as_micros() as u64;
        for delivery in &deliveries {
            let mut stamp = [0; 8];
            stamp.copy_from_slice(&delivery.message.message.body[..8]);
            latencies
                .lock()
                .push(now.saturating_sub(u64::from_le_bytes(stamp)));
            let _ = broker
                .settle_c2d(session.identity(), delivery.lock, Settlement::Complete)
                .await;
        }
        received.fetch_add(deliveries.len() as u64, Ordering::Relaxed);
    }
}
