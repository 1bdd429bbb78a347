//! Dispatchers on doubles of log, store and endpoint, in paused time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::event::{AuthMethod, EndpointSet, EventSource, Origin, Records};
use holdfast_model::routing::Enrichment;
use holdfast_model::{Identity, Timestamp};
use holdfast_ports::BoxFuture;
use holdfast_ports::clock::{Clock, ManualClock};
use holdfast_ports::dead_letters::DeadLetterStore as _;
use holdfast_ports::endpoint::{BatchLimits, DeliveryError, Endpoint, Outbound};
use holdfast_ports::event_log::EventLog as _;
use holdfast_ports::memory::MemoryStore;
use holdfast_ports::memory::event_log::MemoryLog;
use holdfast_ports::settings::CheckpointStore as _;
use holdfast_routing::dispatcher::reader_name;
use holdfast_routing::enrich::Enricher;
use holdfast_routing::health::{Health, Status};
use holdfast_routing::{DeliveryPolicy, Dispatcher, DispatcherParts};
use parking_lot::Mutex;
use tokio::sync::watch;

const MINE: u8 = 3;

/// Takes what it is told to take, and remembers it.
struct FakeEndpoint {
    limits: BatchLimits,
    answers: Mutex<VecDeque<Result<(), DeliveryError>>>,
    taken: watch::Sender<Vec<(u16, u64, String)>>,
    calls: Mutex<Vec<usize>>,
    hangs: Mutex<bool>,
    rests: watch::Sender<u32>,
}

impl Endpoint for FakeEndpoint {
    fn limits(&self) -> BatchLimits {
        self.limits
    }

    fn deliver<'a>(&'a self, batch: &'a [Outbound<'a>]) -> BoxFuture<'a, Result<(), DeliveryError>> {
        Box::pin(async move {
            self.calls.lock().push(batch.len());
            if *self.hangs.lock() {
                std::future::pending::<()>().await;
            }
            let answer = self.answers.lock().pop_front().unwrap_or(Ok(()));
            let accepted = answer
                .as_ref()
                .map_or_else(|error| error.accepted, |()| batch.len());
            let new = batch[..accepted].iter().map(|outbound| {
                let added: String = outbound
                    .enrichments
                    .iter()
                    .map(|(key, value)| format!(" {key}={value}"))
                    .collect();
                let event = &outbound.event;
                let text = format!("{}{added}", String::from_utf8_lossy(event.body));
                (event.partition, event.sequence_number, text)
            });
            let new: Vec<_> = new.collect();
            self.taken.send_modify(|taken| taken.extend(new));
            answer
        })
    }

    fn idle(&self) -> BoxFuture<'_, ()> {
        self.rests.send_modify(|rests| *rests += 1);
        Box::pin(std::future::ready(()))
    }
}

struct Bench {
    log: Arc<MemoryLog>,
    store: MemoryStore,
    clock: Arc<ManualClock>,
    endpoint: Arc<FakeEndpoint>,
    health: watch::Sender<Health>,
    enrichments: Vec<Enrichment>,
}

impl Bench {
    fn new(events_max: usize) -> Self {
        Bench {
            log: Arc::new(MemoryLog::new(2)),
            store: MemoryStore::new(),
            clock: Arc::new(ManualClock::at(Timestamp::from_seconds(1_000_000))),
            endpoint: Arc::new(FakeEndpoint {
                limits: BatchLimits {
                    events_max,
                    bytes_max: 1 << 20,
                    wait_max: Duration::ZERO,
                },
                answers: Mutex::default(),
                taken: watch::Sender::new(Vec::new()),
                calls: Mutex::default(),
                hangs: Mutex::default(),
                rests: watch::Sender::new(0),
            }),
            health: watch::Sender::new(Health::default()),
            enrichments: Vec::new(),
        }
    }

    fn append(&self, partition: u16, endpoints: EndpointSet, bodies: &[&str]) {
        let mut records = Records::new();
        for body in bodies {
            let _ = records.record().finish(body.as_bytes());
        }
        let origin = Origin {
            source: EventSource::Telemetry,
            identity: Identity::parse("d1").expect("an identity"),
            generation_id: 1,
            auth: AuthMethod::IdentityKey,
        };
        self.log
            .append_runs(partition, &origin, &[records.run(endpoints)], self.clock.now())
            .expect("room");
    }

    fn mine(&self, partition: u16, bodies: &[&str]) {
        self.append(partition, EndpointSet::of(MINE), bodies);
    }

    /// Starts a dispatcher; it stops when the sender is dropped.
    async fn start(&self) -> (watch::Sender<bool>, tokio::task::JoinHandle<()>) {
        let parts = DispatcherParts {
            name: "Target".to_owned(),
            number: MINE,
            endpoint: self.endpoint.clone(),
            log: self.log.clone(),
            checkpoints: Arc::new(self.store.clone()),
            dead_letters: Arc::new(self.store.clone()),
            clock: self.clock.clone(),
            policy: DeliveryPolicy::default(),
            health: self.health.clone(),
        };
        let twins = Arc::new(self.store.clone());
        let enricher = Enricher::new(&self.enrichments, "target", "hub-1", twins);
        let dispatcher = Dispatcher::start(parts, enricher).await.expect("started");
        let (stop, stopped) = watch::channel(false);
        (stop, tokio::spawn(dispatcher.run(stopped)))
    }

    /// Waits until `count` events were taken.
    async fn taken(&self, count: usize) -> Vec<(u16, u64, String)> {
        let mut taken = self.endpoint.taken.subscribe();
        let enough = taken.wait_for(|taken| taken.len() >= count);
        let within = tokio::time::timeout(Duration::from_secs(86_400), enough).await;
        within.expect("in time").expect("there").clone()
    }

    async fn bodies(&self, count: usize) -> Vec<String> {
        self.taken(count)
            .await
            .into_iter()
            .map(|(_, _, body)| body)
            .collect()
    }

    async fn checkpoint(&self, partition: u16) -> Option<u64> {
        self.store
            .checkpoint(&reader_name("Target"), partition)
            .await
            .expect("read")
    }
}

#[tokio::test(start_paused = true)]
async fn it_takes_what_is_marked_for_it_from_its_start_on() {
    let bench = Bench::new(100);
    bench.mine(0, &["before it was there"]);
    let (stop, task) = bench.start().await;
    bench.append(0, EndpointSet::EVENTS, &["other", "other"]);
    bench.mine(0, &["a", "b"]);
    bench.append(0, EndpointSet::EVENTS.union(EndpointSet::of(MINE)), &["c"]);
    assert_eq!(
        bench.taken(3).await,
        [
            (0, 3, "a".to_owned()),
            (0, 4, "b".to_owned()),
            (0, 5, "c".to_owned())
        ]
    );
    bench.append(0, EndpointSet::EVENTS, &["other"]);
    bench.mine(1, &["d"]);
    bench.taken(4).await;
    drop(stop);
    task.await.expect("no panic");
    assert_eq!(
        (bench.checkpoint(0).await, bench.checkpoint(1).await),
        (Some(7), Some(1))
    );
    assert_eq!(bench.health.borrow().status, Status::Healthy);
    assert_eq!(
        (bench.health.borrow().delivered, bench.health.borrow().lag),
        (4, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn it_goes_on_where_it_stopped() {
    let bench = Bench::new(1);
    let (stop, task) = bench.start().await;
    bench.mine(0, &["a", "b"]);
    bench.taken(2).await;
    drop(stop);
    task.await.expect("no panic");
    bench.mine(0, &["c"]);
    let (_stop, _task) = bench.start().await;
    assert_eq!(bench.bodies(3).await, ["a", "b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn batches_keep_their_bounds() {
    let bench = Bench::new(4);
    let (stop, task) = bench.start().await;
    drop(stop);
    task.await.expect("no panic");
    bench.mine(0, &["1", "2", "3", "4", "5", "6", "7", "8", "9"]);
    let (_stop, _task) = bench.start().await;
    assert_eq!(
        bench.bodies(9).await,
        ["1", "2", "3", "4", "5", "6", "7", "8", "9"]
    );
    assert_eq!(*bench.endpoint.calls.lock(), [4, 4, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_without_room_for_the_next_event_does_not_wait() {
    let mut bench = Bench::new(100);
    let endpoint = Arc::get_mut(&mut bench.endpoint).expect("nobody else has it");
    endpoint.limits.bytes_max = 100;
    endpoint.limits.wait_max = Duration::from_secs(3_600);
    let (_stop, _task) = bench.start().await;
    let begin = tokio::time::Instant::now();
    let body = "x".repeat(60);
    bench.mine(0, &[&body, &body, &body]);
    bench.taken(2).await;
    assert!(
        begin.elapsed() < Duration::from_secs(60),
        "the first two are full batches"
    );
    bench.taken(3).await;
    assert!(
        begin.elapsed() >= Duration::from_secs(3_600),
        "the last one waits for more"
    );
    assert_eq!(*bench.endpoint.calls.lock(), [1, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn failures_are_tried_again_in_order() {
    let bench = Bench::new(10);
    *bench.endpoint.answers.lock() = [
        Err(DeliveryError::retry("down")),
        Err(DeliveryError::retry("half").after(2)),
        Err(DeliveryError::retry("down")),
    ]
    .into();
    let (_stop, _task) = bench.start().await;
    bench.mine(0, &["a", "b", "c", "d"]);
    assert_eq!(bench.bodies(4).await, ["a", "b", "c", "d"]);
    assert_eq!(*bench.endpoint.calls.lock(), [4, 4, 2, 2]);
    let health = bench.health.borrow().clone();
    assert_eq!(
        (health.status, health.last_known_error.as_deref()),
        (Status::Healthy, Some("down"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_refused_event_goes_to_the_dead_letters_and_the_next_is_tried() {
    let bench = Bench::new(10);
    *bench.endpoint.answers.lock() = [Err(DeliveryError::refused("too large").after(1))].into();
    let (_stop, _task) = bench.start().await;
    bench.mine(1, &["a", "bad", "c"]);
    assert_eq!(bench.bodies(2).await, ["a", "c"]);
    let letters = bench.store.dead_letters("Target", 10).await.expect("listed");
    let [letter] = &letters[..] else {
        panic!("{letters:?}");
    };
    assert_eq!((letter.partition, letter.sequence_number), (1, 1));
    assert_eq!(
        (letter.identity.as_str(), letter.reason.as_str()),
        ("d1", "too large")
    );
    assert_eq!(bench.health.borrow().dead_lettered, 1);
}

#[tokio::test(start_paused = true)]
async fn a_dead_endpoint_loses_what_is_too_old_and_comes_back() {
    let bench = Bench::new(10);
    let down = || Err(DeliveryError::retry("down"));
    *bench.endpoint.answers.lock() = [down(), down()].into();
    let (_stop, _task) = bench.start().await;
    bench.mine(0, &["old"]);
    let mut health = bench.health.subscribe();
    let mut reached = async |status| {
        let wait = health.wait_for(|health| health.status == status);
        let within = tokio::time::timeout(Duration::from_secs(600), wait).await;
        drop(within.expect("in time").expect("there"));
    };
    reached(Status::Unhealthy).await;
    bench.clock.advance(Duration::from_secs(86_401));
    reached(Status::Dead).await;
    bench.mine(0, &["new"]);
    assert_eq!(bench.bodies(1).await, ["new"]);
    assert_eq!(
        bench.store.count_dead_letters("Target").await.expect("counted"),
        1
    );
    reached(Status::Healthy).await;
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_hangs_is_given_up_in_time() {
    let bench = Bench::new(10);
    *bench.endpoint.hangs.lock() = true;
    let (_stop, _task) = bench.start().await;
    bench.mine(0, &["a"]);
    let mut health = bench.health.subscribe();
    let failed = health.wait_for(|health| health.status == Status::Unhealthy);
    let failed = tokio::time::timeout(Duration::from_secs(31), failed).await;
    assert!(
        failed
            .expect("in time")
            .expect("there")
            .last_known_error
            .as_deref()
            .is_some_and(|error| error.contains("no answer"))
    );
    *bench.endpoint.hangs.lock() = false;
    assert_eq!(bench.bodies(1).await, ["a"]);
}

#[tokio::test(start_paused = true)]
async fn the_lag_grows_while_an_endpoint_hangs_or_rests() {
    let bench = Bench::new(10);
    *bench.endpoint.hangs.lock() = true;
    let (_stop, _task) = bench.start().await;
    bench.mine(0, &["a"]);
    let mut health = bench.health.subscribe();
    let mut lag = async |lag: u64| {
        let told = health.wait_for(|health| health.lag == lag);
        let told = tokio::time::timeout(Duration::from_secs(2), told).await;
        told.expect("within two seconds").expect("there").delivered
    };
    assert_eq!(lag(1).await, 0);
    bench.mine(0, &["b", "c"]);
    assert_eq!(lag(3).await, 0, "while it hangs");
    *bench.endpoint.hangs.lock() = false;
    let long = DeliveryError {
        retry_after: Some(Duration::from_secs(50)),
        ..DeliveryError::retry("not now")
    };
    bench.endpoint.answers.lock().push_back(Err(long));
    let mut asked = bench.health.subscribe();
    let asked = asked.wait_for(|health| health.last_known_error.as_deref() == Some("not now"));
    asked.await.expect("there");
    bench.mine(1, &["d"]);
    assert_eq!(lag(4).await, 0, "while it asks for a rest");
    assert_eq!(bench.bodies(4).await.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn burials_that_cannot_be_stored_lose_nothing() {
    let bench = Bench::new(10);
    let refused = || Err(DeliveryError::refused("no"));
    *bench.endpoint.answers.lock() = [refused(), refused()].into();
    let (_stop, _task) = bench.start().await;
    bench.store.set_unavailable(true);
    bench.mine(0, &["bad", "good"]);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(bench.endpoint.taken.borrow().is_empty());
    bench.store.set_unavailable(false);
    assert_eq!(bench.bodies(1).await, ["good"]);
    assert_eq!(
        bench.store.count_dead_letters("Target").await.expect("counted"),
        1
    );
}

#[tokio::test(start_paused = true)]
async fn an_idle_endpoint_may_rest() {
    let bench = Bench::new(10);
    let (_stop, _task) = bench.start().await;
    bench.mine(0, &["a"]);
    bench.taken(1).await;
    let mut rests = bench.endpoint.rests.subscribe();
    let rested = tokio::time::timeout(Duration::from_secs(62), rests.wait_for(|rests| *rests == 1)).await;
    drop(rested.expect("in time").expect("there"));
    bench.mine(0, &["b"]);
    assert_eq!(bench.bodies(2).await, ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn enrichments_are_added() {
    let mut bench = Bench::new(10);
    let enrichment = |key: &str, value: &str| Enrichment {
        key: key.to_owned(),
        value: value.to_owned(),
        endpoint_names: vec!["Target".to_owned()],
    };
    bench.enrichments = vec![
        enrichment("site", "north"),
        enrichment("hub", "$iotHubName"),
        enrichment("missing", "$twin.tags.none"),
    ];
    let (_stop, _task) = bench.start().await;
    bench.mine(0, &["a"]);
    assert_eq!(
        bench.bodies(1).await,
        ["a site=north hub=hub-1 missing=$twin.tags.none"]
    );
}
