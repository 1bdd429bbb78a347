//! Jobs: schedules, bounds, interruptions, history.

use std::time::Duration;

use holdfast_fleet::jobs::{JobRequest, JobsConfig};
use holdfast_model::job::{DeviceJobStatus, Job, JobStatus, JobWork};
use holdfast_model::routing::{Route, RouteSource};
use holdfast_model::{ErrorCode, Timestamp};
use holdfast_ports::clock::{Clock as _, SystemClock};
use holdfast_ports::job::{JobFilter, JobStore as _};
use holdfast_ports::outbox::{OutboxStore as _, Waiting};
use serde_json::json;

use crate::harness::{World, id, object, until};

fn update(condition: &str) -> JobRequest {
    JobRequest {
        work: JobWork::UpdateTwin {
            tags: Some(object(json!({"wave": 2}))),
            desired: None,
        },
        condition: condition.to_owned(),
        start_at: None,
        max_execution: None,
    }
}

fn call(condition: &str, connect_timeout: u64) -> JobRequest {
    JobRequest {
        work: JobWork::Method {
            name: "reboot".into(),
            payload: String::new(),
            response_timeout: 30,
            connect_timeout,
        },
        ..update(condition)
    }
}

async fn ended(world: &World, name: &str) -> Job {
    until("the end of the job", async || {
        let job = world.jobs.get(name).await.expect("it is there");
        job.status.is_final() && job.counts.unfinished() == 0
    })
    .await;
    world.jobs.get(name).await.expect("it is there")
}

async fn devices(world: &World, count: usize) {
    for number in 0..count {
        world.create(&format!("d{number:04}"), false).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_target_is_done_once() {
    let mut world = World::with(JobsConfig {
        twin_updates_at_once: 7,
        ..JobsConfig::default()
    })
    .await;
    devices(&world, 2_500).await;
    world.run();
    world.jobs.create("j", update("*")).await.expect("a new job");
    let job = ended(&world, "j").await;
    assert_eq!(
        (job.status, job.counts.succeeded, job.counts.total()),
        (JobStatus::Completed, 2_500, 2_500)
    );
    for name in ["d0000", "d1234", "d2499"] {
        let twin = world.twin(name).await;
        assert_eq!(
            (twin.tags["wave"].as_u64(), twin.version),
            (Some(2), 2),
            "{name} was changed once"
        );
    }
}

/// Routes events of jobs to the built-in endpoint.
async fn route_jobs(world: &World) {
    let route = Route {
        name: "jobs".to_owned(),
        source: RouteSource::DeviceJobLifecycleEvents,
        condition: "true".to_owned(),
        endpoint_names: vec!["events".to_owned()],
        is_enabled: true,
    };
    let defined = world.hub.change_routing(move |definition| {
        definition.routes = vec![route];
        Ok(())
    });
    defined.await.expect("a good route");
}

/// The events in the outbox, as text.
async fn told(world: &World) -> Vec<String> {
    let waiting = world.store.outbox(99, usize::MAX).await.expect("listed");
    assert!(
        waiting
            .iter()
            .all(|waiting| waiting.event.identity.as_str() == "j-1")
    );
    let text = |waiting: &Waiting| String::from_utf8_lossy(waiting.event.records.as_bytes()).into_owned();
    waiting.iter().map(text).collect()
}

/// What a route of jobs is told: each step once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_told_of() {
    let mut world = World::new().await;
    devices(&world, 3).await;
    route_jobs(&world).await;
    world.run();
    world.jobs.create("j~1", update("*")).await.expect("a new job");
    ended(&world, "j~1").await;
    let texts = told(&world).await;
    assert_eq!(texts.len(), 3, "{texts:?}");
    for (text, (operation, status)) in texts.iter().zip([
        ("createJob", "queued"),
        ("updateJob", "running"),
        ("updateJob", "completed"),
    ]) {
        assert!(
            text.contains(operation) && text.contains(r#""jobId":"j~1""#),
            "{text}"
        );
        assert!(text.contains(&format!(r#""status":"{status}""#)), "{text}");
    }
}

/// A job that is cancelled before it has begun is told of, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_job_that_never_began_is_told() {
    let world = World::new().await;
    route_jobs(&world).await;
    let request = JobRequest {
        start_at: Some(SystemClock::new().now().plus(Duration::from_secs(3_600))),
        ..update("*")
    };
    world.jobs.create("j~1", request).await.expect("a new job");
    world.jobs.cancel("j~1").await.expect("it waits");
    let texts = told(&world).await;
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(texts[1].contains(r#""status":"cancelled""#), "{texts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_job_goes_on_where_it_was() {
    let world = World::new().await;
    devices(&world, 3_000).await;
    let store = world.store.clone();
    world.jobs.create("j", update("*")).await.expect("a new job");
    let mut rounds = 0;
    loop {
        rounds += 1;
        let config = JobsConfig {
            twin_updates_at_once: 20,
            ..JobsConfig::default()
        };
        let mut world = World::on(store.clone(), config).await;
        world.run();
        let before = world.jobs.get("j").await.expect("it is there").counts.succeeded;
        until("some progress", async || {
            let job = world.jobs.get("j").await.expect("it is there");
            job.counts.succeeded > before || job.status.is_final()
        })
        .await;
        world.kill().await;
        let job = world.jobs.get("j").await.expect("it is there");
        if job.status.is_final() {
            assert_eq!(
                (job.status, job.counts.succeeded, job.counts.total()),
                (JobStatus::Completed, 3_000, 3_000)
            );
            break;
        }
        assert!(rounds < 3_000, "it makes progress");
    }
    assert!(rounds > 1, "it was interrupted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_was_under_way_is_not_repeated() {
    let mut world = World::new().await;
    devices(&world, 2).await;
    world.run();
    // Nobody is connected, so the calls wait.
    world.jobs.create("j", call("*", 300)).await.expect("a new job");
    until("the calls to be under way", async || {
        world.jobs.get("j").await.expect("it is there").counts.running == 2
    })
    .await;
    world.kill().await;
    let mut second = World::on(world.store.clone(), JobsConfig::default()).await;
    second.run();
    let job = ended(&second, "j").await;
    assert_eq!((job.status, job.counts.failed), (JobStatus::Completed, 2));
    let results = world
        .store
        .device_jobs(Some("j"), None, 9)
        .await
        .expect("readable");
    let codes: Vec<_> = results.iter().filter_map(|one| one.error.as_ref()).collect();
    assert!(codes.len() == 2 && codes.iter().all(|error| error.code == "Interrupted"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_job_leaves_the_rest_alone() {
    let mut world = World::with(JobsConfig {
        methods_at_once: 1,
        ..JobsConfig::default()
    })
    .await;
    devices(&world, 3).await;
    world.run();
    world.jobs.create("j", call("*", 300)).await.expect("a new job");
    until("the first call", async || {
        world.jobs.get("j").await.expect("it is there").counts.running == 1
    })
    .await;
    let cancelled = world.jobs.cancel("j").await.expect("it is running");
    assert_eq!(cancelled.status, JobStatus::Cancelled);
    let job = ended(&world, "j").await;
    assert_eq!((job.status, job.counts.canceled), (JobStatus::Cancelled, 3));
    assert_eq!(
        world.jobs.cancel("j").await.expect("again").status,
        JobStatus::Cancelled
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_ends_when_its_time_is_over() {
    let mut world = World::with(JobsConfig {
        methods_at_once: 1,
        ..JobsConfig::default()
    })
    .await;
    devices(&world, 2).await;
    world.run();
    let request = JobRequest {
        max_execution: Some(Duration::from_secs(1)),
        ..call("*", 300)
    };
    world.jobs.create("j", request).await.expect("a new job");
    let job = ended(&world, "j").await;
    assert_eq!((job.status, job.counts.failed), (JobStatus::Failed, 2));
    assert!(
        job.failure
            .is_some_and(|why| why.contains("maxExecutionTimeInSeconds"))
    );
    let results = world
        .store
        .device_jobs(Some("j"), None, 9)
        .await
        .expect("readable");
    assert!(
        results
            .iter()
            .all(|one| one.status == DeviceJobStatus::Failed && one.error.is_some())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reserved_modules_are_refused_target_by_target() {
    let mut world = World::new().await;
    world.create("e1", true).await;
    world.create("e1/m", false).await;
    world.run();
    let condition = "FROM devices.modules WHERE deviceId = 'e1'";
    world
        .jobs
        .create("j", update(condition))
        .await
        .expect("a new job");
    let job = ended(&world, "j").await;
    assert_eq!(
        (job.status, job.counts.succeeded, job.counts.failed),
        (JobStatus::Completed, 1, 2)
    );
    let results = world
        .store
        .device_jobs(Some("j"), None, 9)
        .await
        .expect("readable");
    let agent = results.iter().find(|one| one.identity == id("e1/$edgeAgent"));
    let error = agent.and_then(|one| one.error.clone()).expect("it was refused");
    assert_eq!(error.code, "SystemModuleModifyUnauthorizedAccess");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_so_many_jobs_run_and_wait() {
    let mut world = World::with(JobsConfig {
        concurrent: 2,
        unfinished_max: 3,
        ..JobsConfig::default()
    })
    .await;
    devices(&world, 1).await;
    world.run();
    for name in ["a", "b", "c"] {
        world.jobs.create(name, call("*", 300)).await.expect("a new job");
    }
    let refused = world
        .jobs
        .create("d", call("*", 0))
        .await
        .expect_err("the fourth");
    assert_eq!(refused.code, ErrorCode::ThrottlingMaxActiveJobCountExceeded);
    let refused = world
        .jobs
        .create("a", call("*", 0))
        .await
        .expect_err("the same id");
    assert_eq!(refused.code, ErrorCode::JobAlreadyExists);
    until("two jobs to run", async || {
        let running = JobFilter {
            kind: None,
            status: Some(JobStatus::Running),
        };
        world.jobs.list(running, None, 9).await.expect("readable").len() == 2
    })
    .await;
    assert_eq!(
        world.jobs.get("c").await.expect("it is there").status,
        JobStatus::Queued
    );
    world.jobs.cancel("a").await.expect("it is running");
    until("the third to take its place", async || {
        world.jobs.get("c").await.expect("it is there").status == JobStatus::Running
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduled_job_waits_for_its_time() {
    let mut world = World::new().await;
    devices(&world, 1).await;
    world.run();
    let now: Timestamp = SystemClock::new().now();
    let request = JobRequest {
        start_at: Some(now.plus(Duration::from_millis(300))),
        ..update("*")
    };
    let made = world.jobs.create("j", request).await.expect("a new job");
    assert_eq!(made.status, JobStatus::Scheduled);
    let job = ended(&world, "j").await;
    assert!(
        job.started_at.is_some_and(|at| at >= made.start_at),
        "not before its time"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_is_bounded() {
    let mut world = World::with(JobsConfig {
        history_jobs_max: 2,
        retention_interval: Duration::from_millis(10),
        ..JobsConfig::default()
    })
    .await;
    devices(&world, 3).await;
    world.run();
    for name in ["a", "b", "c"] {
        world.jobs.create(name, update("*")).await.expect("a new job");
        until("the end of the job", async || match world.jobs.get(name).await {
            Ok(job) => job.status.is_final(),
            Err(error) => panic!("{name}: {error}"),
        })
        .await;
    }
    until("the oldest to go", async || {
        world
            .jobs
            .get("a")
            .await
            .is_err_and(|error| error.code == ErrorCode::JobNotFound)
    })
    .await;
    assert!(
        world
            .store
            .device_jobs(Some("a"), None, 9)
            .await
            .expect("readable")
            .is_empty()
    );
    assert!(world.jobs.get("b").await.is_ok() && world.jobs.get("c").await.is_ok());
}
