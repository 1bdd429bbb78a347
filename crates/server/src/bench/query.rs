//! `bench query`: questions over a large fleet, asked of the store itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use holdfast_model::registry::{Authentication, IdentityRecord, Status};
use holdfast_model::twin::Twin;
use holdfast_model::{Identity, Timestamp};
use holdfast_ports::clock::{Clock as _, SystemClock};
use holdfast_ports::query::{Item, Page, PageRequest, QueryStore as _};
use holdfast_ports::registry::RegistryStore as _;
use holdfast_ports::twin::TwinStore as _;
use holdfast_query::twin::parse;
use holdfast_store::sqlite::{Metrics, SqliteStore};
use serde_json::{Map, Value, json};

use super::Stage;
use super::histogram::Histogram;
use super::report::{Report, Subject, Unit};
use super::spawn::WorkDir;
use crate::cli::output::{self, Format};

/// Time of queries over many twins: the first page of a condition on a tag, and a count by group.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Each is asked before any index exists, while the index is made, and afterwards. The first page has 100 twins; the\nconditions ask for tags that one in 50 and one in 10,000 devices have.\n\nExamples:\n  holdfast bench query\n  holdfast bench query --devices 1000000"
)]
pub(crate) struct QueryArgs {
    /// Devices in the store
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    devices: u32,
    /// How often each query is asked
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Directory for the data [default: the temporary one]
    #[arg(long, value_name = "DIR")]
    work_dir: Option<std::path::PathBuf>,
}

/// Devices added in one transaction.
const BATCH: u32 = 1_000;

/// Values of `tags.location.region`.
const REGIONS: u32 = 50;

/// Values of `tags.location.plant`.
const PLANTS: u32 = 10_000;

/// Neighbours differ.
fn spread(n: u32) -> u32 {
    n.wrapping_mul(2_654_435_761)
}

/// A fleet of twins as a plant might have them, about a kilobyte each.
pub(crate) async fn fill(store: &SqliteStore, devices: u32, mut done: impl FnMut(u64)) -> anyhow::Result<()> {
    let now = SystemClock::new().now();
    for start in (0..devices).step_by(BATCH as usize) {
        let end = devices.min(start + BATCH);
        let entries: anyhow::Result<Vec<(IdentityRecord, Twin)>> =
            (start..end).map(|n| entry(n, now)).collect();
        store
            .create(entries?)
            .await
            .context("the fleet cannot be stored")?;
        done(u64::from(end - start));
    }
    Ok(())
}

fn entry(n: u32, now: Timestamp) -> anyhow::Result<(IdentityRecord, Twin)> {
    let record = IdentityRecord {
        identity: Identity::device(&format!("bench-{n:07}"))?,
        generation_id: u64::from(n) + 1,
        version: 1,
        status: if n.is_multiple_of(97) {
            Status::Disabled
        } else {
            Status::Enabled
        },
        status_reason: None,
        status_updated_at: now,
        authentication: Authentication::CertificateAuthority,
        iot_edge: false,
        device_scope: None,
        parent_scopes: Vec::new(),
        managed_by: None,
        connected: n.is_multiple_of(2),
        connection_updated_at: now,
        last_activity_at: now,
    };
    let mut twin = Twin::new(now);
    let spread = spread(n);
    twin.tags = object(json!({
        "location": {"region": format!("region-{}", spread % REGIONS), "plant": format!("plant-{}", spread % PLANTS)},
        "line": spread % 40,
        "owner": "assembly",
    }));
    twin.desired.properties =
        object(json!({"telemetryConfig": {"sendFrequencyInSecs": 60, "mode": "batch"}}));
    let status = ["success", "pending", "failed", "unknown"][(spread / 7 % 4) as usize];
    twin.reported.properties = object(json!({
        "telemetryConfig": {"status": status, "sendFrequencyInSecs": spread % 300},
        "firmware": {"version": format!("2.{}.{}", spread % 5, spread % 11), "installed": "2026-05-01T10:00:00Z"},
        "connectivity": if n.is_multiple_of(3) { "wired" } else { "wifi" },
    }));
    Ok((record, twin))
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

impl QueryArgs {
    pub(crate) fn run(self, format: Format) -> anyhow::Result<()> {
        let stage = Stage::new("query");
        let dir = WorkDir::new(self.work_dir.as_deref())?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let path = dir.path().join("state.db");
        let metrics = Metrics::register(&mut holdfast_observe::Registry::new());
        let store = SqliteStore::open(&path, metrics).context("the store cannot be opened")?;
        let mut subject = Subject::new("holdfast", format!("holdfast {}", env!("CARGO_PKG_VERSION")));
        runtime.block_on(self.measure(&store, &stage, &mut subject))?;
        let size = std::fs::metadata(&path)?.len();
        subject.add(
            "databaseMib",
            "database",
            Unit::Mebibytes,
            size as f64 / f64::from(1 << 20),
        );
        let mut report = Report::new("query", json!({"devices": self.devices, "runs": self.runs}));
        report.subjects.push(subject);
        drop((stage, store, dir));
        report.print(format)
    }

    async fn measure(&self, store: &SqliteStore, stage: &Stage, subject: &mut Subject) -> anyhow::Result<()> {
        let bar = output::progress(u64::from(self.devices), "devices");
        let started = Instant::now();
        fill(store, self.devices, |done| bar.inc(done)).await?;
        bar.finish_and_clear();
        let seconds = started.elapsed().as_secs_f64();
        subject.add(
            "storedPerSecond",
            "devices stored per second",
            Unit::Count,
            f64::from(self.devices) / seconds,
        );
        stage.say("without an index");
        for question in QUESTIONS {
            let took = ask(store, &(question.text)(0)).await?;
            subject.add(question.cold.0, question.cold.1, Unit::Milliseconds, millis(took));
        }
        stage.say("making indexes");
        let (took, slowest) = self.index(store).await?;
        subject.add("indexMs", "indexes made in", Unit::Milliseconds, millis(took));
        subject.add(
            "writeDuringIndexMaxMs",
            "slowest change of a twin meanwhile",
            Unit::Milliseconds,
            millis(slowest),
        );
        stage.say("with indexes");
        for question in QUESTIONS {
            let mut latency = Histogram::default();
            for run in 0..u32::from(self.runs) {
                let took = ask(store, &(question.text)(run * 7)).await?;
                latency.record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
            }
            let ms = |ns: u64| ns as f64 / 1e6;
            subject.add(
                question.p50.0,
                question.p50.1,
                Unit::Milliseconds,
                ms(latency.percentile(50.0)),
            );
            subject.add(
                question.max.0,
                question.max.1,
                Unit::Milliseconds,
                ms(latency.max()),
            );
        }
        Ok(())
    }

    /// Asks until there is an index for every place asked for; how long that took, and the longest that a change of a
    /// twin took meanwhile.
    async fn index(&self, store: &SqliteStore) -> anyhow::Result<(Duration, Duration)> {
        let clock = SystemClock::new();
        // A small fleet is scanned too quickly to deserve indexes.
        store.want_indexes(true);
        let finished = Arc::new(AtomicBool::new(false));
        let writer = tokio::spawn(change_twins(store.clone(), Arc::clone(&finished)));
        let started = Instant::now();
        let indexed = async {
            for _ in 0..100 {
                for question in QUESTIONS {
                    ask(store, &(question.text)(1)).await?;
                }
                while store.maintain_indexes(clock.now()).await? {}
                if store.indexed_places().await?.len() >= INDEXED {
                    return Ok(started.elapsed());
                }
            }
            anyhow::bail!("the indexes were not made")
        };
        let took = indexed.await;
        finished.store(true, Ordering::Relaxed);
        let slowest = writer.await??;
        Ok((took?, slowest))
    }
}

async fn change_twins(store: SqliteStore, finished: Arc<AtomicBool>) -> anyhow::Result<Duration> {
    let identity = Identity::device("bench-0000000")?;
    let mut slowest = Duration::ZERO;
    while !finished.load(Ordering::Relaxed) {
        let started = Instant::now();
        let count_up: holdfast_ports::twin::TwinMutation = Arc::new(|twin| {
            twin.reported.version += 1;
            Ok(())
        });
        store.mutate_twin(&identity, count_up).await?;
        slowest = slowest.max(started.elapsed());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(slowest)
}

struct Question {
    text: fn(u32) -> String,
    cold: (&'static str, &'static str),
    p50: (&'static str, &'static str),
    max: (&'static str, &'static str),
}

/// Places that the questions name.
const INDEXED: usize = 3;

const QUESTIONS: &[Question] = &[
    Question {
        text: |n| {
            format!(
                "SELECT * FROM devices WHERE tags.location.region = 'region-{}'",
                spread(n) % REGIONS
            )
        },
        cold: ("tagColdMs", "first page by tag (1 in 50), no index"),
        p50: ("tagP50Ms", "first page by tag (1 in 50), p50"),
        max: ("tagMaxMs", "first page by tag (1 in 50), max"),
    },
    Question {
        text: |n| {
            format!(
                "SELECT * FROM devices WHERE tags.location.plant = 'plant-{}'",
                spread(n) % PLANTS
            )
        },
        cold: ("rareTagColdMs", "first page by tag (1 in 10,000), no index"),
        p50: ("rareTagP50Ms", "first page by tag (1 in 10,000), p50"),
        max: ("rareTagMaxMs", "first page by tag (1 in 10,000), max"),
    },
    Question {
        text: |_| {
            "SELECT properties.reported.telemetryConfig.status AS status, COUNT() AS devices FROM devices \
             GROUP BY properties.reported.telemetryConfig.status"
                .to_owned()
        },
        cold: ("groupColdMs", "count by group, no index"),
        p50: ("groupP50Ms", "count by group, p50"),
        max: ("groupMaxMs", "count by group, max"),
    },
];

/// The time until the first page with rows is there.
async fn ask(store: &SqliteStore, text: &str) -> anyhow::Result<Duration> {
    let select = parse(text)?;
    let started = Instant::now();
    let mut cursor = None;
    loop {
        let request = PageRequest { cursor, limit: 100 };
        let Page { items, next } = store.query(&select, request).await?;
        if !items.is_empty() {
            let twins = items.iter().filter(|item| matches!(item, Item::Twin(_))).count();
            anyhow::ensure!(twins == 0 || twins == items.len(), "{text}: rows of two kinds");
            return Ok(started.elapsed());
        }
        cursor = next;
        anyhow::ensure!(cursor.is_some(), "{text}: no rows");
    }
}

fn millis(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}
