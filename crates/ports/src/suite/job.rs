//! What every [`crate::job::JobStore`] does.
#![allow(missing_docs, clippy::missing_panics_doc, reason = "the names say it")]

use std::sync::Arc;

use holdfast_model::Identity;
use holdfast_model::job::{
    DeviceJobResult, DeviceJobStatus, Job, JobCounts, JobError, JobKind, JobSpec, JobStatus, JobWork,
    MethodOutcome,
};
use serde_json::json;

use super::StateStore;
use super::fixtures::{at, id};
use crate::assert_fails;
use crate::job::{JobFilter, NewJob, Remainder, Targets};

/// A job of a method.
#[must_use]
pub fn method_job(id: &str) -> NewJob {
    NewJob {
        id: id.into(),
        spec: JobSpec {
            work: JobWork::Method {
                name: "reboot".into(),
                payload: "{\"delay\": 1.50}".into(),
                response_timeout: 30,
                connect_timeout: 0,
            },
            condition: "*".into(),
            max_execution_seconds: 60,
        },
        created_at: at(1),
        start_at: at(2),
        status: JobStatus::Queued,
    }
}

/// A job of a twin update.
#[must_use]
pub fn twin_job(id: &str) -> NewJob {
    let desired = json!({"a": {"b": null, "x": 1.5}}).as_object().cloned();
    NewJob {
        spec: JobSpec {
            work: JobWork::UpdateTwin { tags: None, desired },
            condition: "tags.site = 'ä'".into(),
            max_execution_seconds: 3_600,
        },
        ..method_job(id)
    }
}

fn targets(found: &[&str], complete: bool) -> Targets {
    let found: Vec<Identity> = found.iter().map(|name| id(name)).collect();
    Targets {
        cursor: found.last().map(|last| format!("after {last}")),
        found,
        complete,
        at: at(3),
    }
}

fn result(name: &str, status: DeviceJobStatus) -> DeviceJobResult {
    DeviceJobResult {
        identity: id(name),
        status,
        started_at: at(4),
        ended_at: at(5),
        outcome: (status == DeviceJobStatus::Completed).then(|| MethodOutcome {
            status: 200,
            payload: json!({"ok": ["ä", null]}),
        }),
        error: (status == DeviceJobStatus::Failed).then(|| JobError {
            code: "DeviceNotOnline".into(),
            description: "it is off".into(),
        }),
    }
}

fn counts(pending: u64, running: u64, succeeded: u64, failed: u64, canceled: u64) -> JobCounts {
    JobCounts {
        pending,
        running,
        succeeded,
        failed,
        canceled,
    }
}

async fn add<S: StateStore>(store: &S, job: NewJob) -> Job {
    store.create_job(job, 100).await.expect("new")
}

pub async fn jobs_are_kept_whole<S: StateStore>(store: Arc<S>) {
    let wanted = twin_job("one");
    let made = add(&*store, wanted.clone()).await;
    assert_eq!((made.id.as_str(), &made.spec), ("one", &wanted.spec));
    assert_eq!(
        (made.status, made.started_at, made.ended_at),
        (JobStatus::Queued, None, None)
    );
    assert_eq!((made.created_at, made.start_at), (at(1), at(2)));
    assert_eq!(store.job("one").await.expect("readable"), Some(made));
    assert_eq!(store.job("two").await.expect("readable"), None);
    assert_fails!(store.create_job(method_job("one"), 100).await, Exists);
    assert_fails!(store.create_job(method_job("two"), 1).await, Full);
    let two = add(&*store, method_job("two")).await;
    assert_eq!(two.spec, method_job("two").spec);
}

pub async fn jobs_are_listed_newest_first<S: StateStore>(store: Arc<S>) {
    for job in [twin_job("a"), method_job("b"), twin_job("c")] {
        add(&*store, job).await;
    }
    store
        .set_job_status("a", JobStatus::Running, None, at(3))
        .await
        .expect("it is there");
    let ids = |jobs: Vec<Job>| jobs.into_iter().map(|job| job.id).collect::<Vec<_>>();
    let list = |filter, before, limit| store.jobs(filter, before, limit);
    let everything = JobFilter::default();
    let first = list(everything, None, 2).await.expect("readable");
    let last = first.last().map(|job| job.number);
    assert_eq!(ids(first), ["c", "b"]);
    assert_eq!(ids(list(everything, last, 2).await.expect("readable")), ["a"]);
    let twins = JobFilter {
        kind: Some(JobKind::UpdateTwin),
        status: None,
    };
    assert_eq!(ids(list(twins, None, 9).await.expect("readable")), ["c", "a"]);
    let running = JobFilter {
        kind: None,
        status: Some(JobStatus::Running),
    };
    assert_eq!(ids(list(running, None, 9).await.expect("readable")), ["a"]);
    assert_eq!(
        ids(store.unfinished_jobs().await.expect("readable")),
        ["a", "b", "c"]
    );
}

pub async fn a_final_status_stays<S: StateStore>(store: Arc<S>) {
    add(&*store, twin_job("a")).await;
    let set = |status, second| store.set_job_status("a", status, Some("why".into()), at(second));
    let running = set(JobStatus::Running, 3).await.expect("it has not ended");
    assert_eq!((running.started_at, running.ended_at), (Some(at(3)), None));
    set(JobStatus::Running, 4).await.expect("it has not ended");
    let failed = set(JobStatus::Failed, 5).await.expect("it has not ended");
    assert_eq!((failed.started_at, failed.ended_at), (Some(at(3)), Some(at(5))));
    assert_eq!(failed.failure.as_deref(), Some("why"));
    assert_fails!(set(JobStatus::Completed, 6).await, Conflict);
    assert_fails!(store.add_targets("a", targets(&["d1"], true)).await, Conflict);
    assert_fails!(
        store.set_job_status("b", JobStatus::Failed, None, at(1)).await,
        Missing
    );
    assert!(store.unfinished_jobs().await.expect("readable").is_empty());
}

pub async fn targets_are_added_once_and_worked_off_in_order<S: StateStore>(store: Arc<S>) {
    add(&*store, method_job("a")).await;
    let job = store
        .add_targets("a", targets(&["d1", "d2"], false))
        .await
        .expect("added");
    assert_eq!((job.cursor, job.expanded), (Some("after d2".to_owned()), false));
    let again = targets(&["d2", "d2/m1", "d2-x"], true);
    let job = store.add_targets("a", again).await.expect("added");
    assert!(job.expanded);
    assert_eq!(job.counts, counts(4, 0, 0, 0, 0));
    let pending = |after: Option<Identity>| {
        let store = Arc::clone(&store);
        async move {
            let found = store
                .job_targets("a", DeviceJobStatus::Pending, after.as_ref(), 3)
                .await;
            found
                .expect("readable")
                .into_iter()
                .map(|found| found.to_string())
                .collect::<Vec<_>>()
        }
    };
    assert_eq!(pending(None).await, ["d1", "d2", "d2/m1"]);
    assert_eq!(pending(Some(id("d2/m1"))).await, ["d2-x"]);

    let begun = store
        .begin_targets("a", vec![id("d1"), id("d2"), id("nobody")], at(4))
        .await
        .expect("noted");
    assert_eq!(begun, [id("d1"), id("d2")]);
    let begun = store
        .begin_targets("a", vec![id("d1")], at(4))
        .await
        .expect("noted");
    assert!(begun.is_empty(), "it is running already");
    assert_eq!(pending(None).await, ["d2/m1", "d2-x"]);
    assert_eq!(
        store
            .job("a")
            .await
            .expect("readable")
            .expect("it is there")
            .counts,
        counts(2, 2, 0, 0, 0)
    );
}

pub async fn results_are_recorded_once<S: StateStore>(store: Arc<S>) {
    use DeviceJobStatus::{Completed, Failed};
    add(&*store, method_job("a")).await;
    store
        .add_targets("a", targets(&["d1", "d2", "d3"], true))
        .await
        .expect("added");
    store
        .begin_targets("a", vec![id("d1")], at(4))
        .await
        .expect("noted");
    let results = vec![
        result("d1", Completed),
        result("d2", Failed),
        result("nobody", Failed),
    ];
    let after = store.record_targets("a", results).await.expect("recorded");
    assert_eq!(after, counts(1, 0, 1, 1, 0));
    let after = store
        .record_targets("a", vec![result("d1", Failed)])
        .await
        .expect("recorded");
    assert_eq!(after, counts(1, 0, 1, 1, 0), "the first result stays");
    let found = store.device_jobs(Some("a"), None, 9).await.expect("readable");
    assert_eq!(found.len(), 3);
    let first = &found[0];
    assert_eq!(
        (first.job_id.as_str(), first.kind, first.status),
        ("a", JobKind::Method, Completed)
    );
    assert_eq!(
        (first.created_at, first.started_at, first.ended_at),
        (at(3), Some(at(4)), Some(at(5)))
    );
    assert_eq!(first.outcome, result("d1", Completed).outcome);
    assert_eq!(found[1].error, result("d2", Failed).error);
    assert_eq!(found[2].status, DeviceJobStatus::Pending);
}

pub async fn device_jobs_are_listed_in_pages<S: StateStore>(store: Arc<S>) {
    for name in ["a", "b"] {
        add(&*store, twin_job(name)).await;
        store
            .add_targets(name, targets(&["d1", "d1/m1", "d1-x"], true))
            .await
            .expect("added");
    }
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = store.device_jobs(None, after, 2).await.expect("readable");
        let Some(last) = page.last() else { break };
        after = Some((last.number, last.identity.clone()));
        all.extend(
            page.into_iter()
                .map(|job| format!("{} {}", job.job_id, job.identity)),
        );
    }
    assert_eq!(all, ["a d1", "a d1/m1", "a d1-x", "b d1", "b d1/m1", "b d1-x"]);
    assert!(
        store
            .device_jobs(Some("c"), None, 9)
            .await
            .expect("readable")
            .is_empty()
    );
    let of_b = store.device_jobs(Some("b"), None, 9).await.expect("readable");
    assert_eq!(of_b.len(), 3);
}

pub async fn what_is_left_is_finished_in_steps<S: StateStore>(store: Arc<S>) {
    add(&*store, method_job("a")).await;
    store
        .add_targets("a", targets(&["d1", "d2", "d3"], true))
        .await
        .expect("added");
    store
        .begin_targets("a", vec![id("d1")], at(4))
        .await
        .expect("noted");
    store
        .set_job_status("a", JobStatus::Cancelled, None, at(5))
        .await
        .expect("it has not ended");
    let left = store.unfinished_jobs().await.expect("readable");
    assert_eq!(left.len(), 1, "an ended job with pending targets has work left");
    let remainder = Remainder {
        status: DeviceJobStatus::Canceled,
        error: None,
        at: at(6),
    };
    let finish = |status, limit| store.finish_targets("a", status, remainder.clone(), limit);
    assert_eq!(finish(DeviceJobStatus::Pending, 1).await.expect("done"), 1);
    assert_eq!(finish(DeviceJobStatus::Pending, 9).await.expect("done"), 1);
    assert_eq!(finish(DeviceJobStatus::Pending, 9).await.expect("done"), 0);
    assert_eq!(finish(DeviceJobStatus::Running, 9).await.expect("done"), 1);
    let job = store.job("a").await.expect("readable").expect("it is there");
    assert_eq!(job.counts, counts(0, 0, 0, 0, 3));
    assert!(store.unfinished_jobs().await.expect("readable").is_empty());
}

pub async fn history_goes_oldest_first<S: StateStore>(store: Arc<S>) {
    for (name, second) in [("late", 20), ("early", 10), ("open", 0)] {
        add(&*store, twin_job(name)).await;
        store
            .add_targets(name, targets(&["d1", "d2"], true))
            .await
            .expect("added");
        if second > 0 {
            store
                .set_job_status(name, JobStatus::Completed, None, at(second))
                .await
                .expect("it has not ended");
        }
    }
    let history = store.history(at(15), 9).await.expect("readable");
    assert_eq!(
        (history.expired, history.ended, history.device_jobs),
        (vec!["early".to_owned()], 2, 6)
    );
    let history = store.history(at(30), 9).await.expect("readable");
    assert_eq!(history.expired, ["early", "late"]);
    assert_eq!(store.delete_history("open", 9).await.expect("looked at"), 0);
    assert!(
        store.job("open").await.expect("readable").is_some(),
        "it has not ended"
    );
    assert_eq!(store.delete_history("early", 1).await.expect("deleted"), 1);
    assert_eq!(store.delete_history("early", 9).await.expect("deleted"), 1);
    assert_eq!(store.delete_history("early", 9).await.expect("deleted"), 0);
    assert_eq!(store.job("early").await.expect("readable"), None);
}
