//! Dispatchers follow the definition.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::event::{AuthMethod, EndpointSet, EventSource, Origin, Records};
use holdfast_model::routing::{EndpointDefinition, RoutingDefinition};
use holdfast_model::{Identity, Timestamp};
use holdfast_ports::BoxFuture;
use holdfast_ports::clock::ManualClock;
use holdfast_ports::dead_letters::{DeadLetter, DeadLetterStore as _};
use holdfast_ports::endpoint::{BatchLimits, DeliveryError, Endpoint, Outbound};
use holdfast_ports::event_log::EventLog as _;
use holdfast_ports::memory::MemoryStore;
use holdfast_ports::memory::event_log::MemoryLog;
use holdfast_ports::settings::CheckpointStore as _;
use holdfast_routing::DeliveryPolicy;
use holdfast_routing::dispatcher::reader_name;
use holdfast_routing::dispatchers::{DispatchersParts, EndpointFactory, HealthBoard, run};
use serde_json::{Value, json};
use tokio::sync::watch;

type Taken = watch::Sender<BTreeMap<String, Vec<String>>>;

/// Notes what it takes under the text of its setting `as`.
struct Note {
    name: String,
    taken: Taken,
}

impl Endpoint for Note {
    fn limits(&self) -> BatchLimits {
        BatchLimits {
            events_max: 10,
            bytes_max: 1_000,
            wait_max: Duration::ZERO,
        }
    }

    fn deliver<'a>(&'a self, batch: &'a [Outbound<'a>]) -> BoxFuture<'a, Result<(), DeliveryError>> {
        let bodies = batch
            .iter()
            .map(|outbound| String::from_utf8_lossy(outbound.event.body).into_owned());
        self.taken
            .send_modify(|taken| taken.entry(self.name.clone()).or_default().extend(bodies));
        Box::pin(std::future::ready(Ok(())))
    }
}

struct Notes(Taken);

impl EndpointFactory for Notes {
    fn check(&self, _: &str, settings: &Value) -> Result<Value, String> {
        Ok(settings.clone())
    }

    fn make(&self, definition: &EndpointDefinition) -> Result<Arc<dyn Endpoint>, String> {
        let name = definition.settings["as"]
            .as_str()
            .ok_or("the setting as is missing")?;
        Ok(Arc::new(Note {
            name: name.to_owned(),
            taken: self.0.clone(),
        }))
    }
}

fn endpoint(name: &str, number: u8, settings: Value) -> EndpointDefinition {
    EndpointDefinition {
        name: name.to_owned(),
        number,
        created_at: Timestamp::from_seconds(1),
        kind: "note".to_owned(),
        settings,
    }
}

fn definition(endpoints: Vec<EndpointDefinition>) -> Arc<RoutingDefinition> {
    Arc::new(RoutingDefinition {
        endpoints,
        ..RoutingDefinition::default()
    })
}

#[tokio::test(start_paused = true)]
async fn endpoints_come_change_and_go() {
    let taken: Taken = watch::Sender::new(BTreeMap::new());
    let log = Arc::new(MemoryLog::new(1));
    let store = MemoryStore::new();
    let board = HealthBoard::default();
    let parts = DispatchersParts {
        factory: Arc::new(Notes(taken.clone())),
        log: log.clone(),
        checkpoints: Arc::new(store.clone()),
        dead_letters: Arc::new(store.clone()),
        twins: Arc::new(store.clone()),
        clock: Arc::new(ManualClock::at(Timestamp::from_seconds(5))),
        hub_name: "hub".to_owned(),
        policy: DeliveryPolicy::default(),
    };
    let first = definition(vec![
        endpoint("a", 1, json!({"as": "a1"})),
        endpoint("wrong", 2, json!({})),
    ]);
    let (define, defined) = watch::channel(first);
    let (stop, stopped) = watch::channel(false);
    let task = tokio::spawn(run(parts, board.clone(), defined, stopped));

    let settle = || tokio::time::sleep(Duration::from_millis(1));
    settle().await;
    let send = |number: u8, body: &str| {
        let mut records = Records::new();
        let _ = records.record().finish(body.as_bytes());
        let origin = Origin {
            source: EventSource::Telemetry,
            identity: Identity::parse("d1").expect("an identity"),
            generation_id: 1,
            auth: AuthMethod::IdentityKey,
        };
        let runs = [records.run(EndpointSet::of(number))];
        log.append_runs(0, &origin, &runs, Timestamp::from_seconds(5))
            .expect("room");
    };
    let has = async |name: &str, bodies: &[&str]| {
        let mut taken = taken.subscribe();
        let there = taken.wait_for(|taken| taken.get(name).is_some_and(|found| found == bodies));
        let within = tokio::time::timeout(Duration::from_secs(60), there).await;
        drop(
            within
                .unwrap_or_else(|_| panic!("{name} has not got {bodies:?}"))
                .expect("there"),
        );
    };
    send(1, "one");
    has("a1", &["one"]).await;
    let wrong = board.get("wrong").expect("known");
    assert!(
        wrong
            .last_known_error
            .is_some_and(|error| error.contains("missing"))
    );

    // Changed settings: the new endpoint goes on where the old one was.
    define.send_replace(definition(vec![
        endpoint("a", 1, json!({"as": "a2"})),
        endpoint("b", 2, json!({"as": "b"})),
    ]));
    settle().await;
    send(1, "two");
    send(2, "three");
    has("a2", &["two"]).await;
    has("b", &["three"]).await;
    has("a1", &["one"]).await;

    let letter = DeadLetter {
        endpoint: "a".to_owned(),
        partition: 0,
        sequence_number: 0,
        identity: "d1".to_owned(),
        at: Timestamp::from_seconds(5),
        reason: "refused".to_owned(),
    };
    store.bury(vec![letter]).await.expect("stored");
    let checkpoint = async |name: &str| store.checkpoint(&reader_name(name), 0).await.expect("read");
    assert!(checkpoint("a").await.is_some());
    define.send_replace(definition(vec![endpoint("b", 2, json!({"as": "b"}))]));
    settle().await;
    assert_eq!(checkpoint("a").await, None, "it goes with its endpoint");
    assert!(checkpoint("b").await.is_some());
    assert!(store.dead_letters("a", 9).await.expect("read").is_empty());
    send(1, "nobody's");
    send(2, "four");
    has("b", &["three", "four"]).await;
    has("a2", &["two"]).await;
    assert_eq!(board.all().len(), 1);
    stop.send_replace(true);
    task.await.expect("no panic");
}
