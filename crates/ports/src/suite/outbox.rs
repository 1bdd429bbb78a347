//! What every outbox does: it holds what was told of a change, exactly if the change was made.

use std::collections::HashMap;
use std::sync::Arc;

use holdfast_model::event::{EventSource, Records};
use holdfast_model::job::JobStatus;
use holdfast_model::message::SystemProperty;
use holdfast_model::twin::Twin;
use holdfast_model::{Error, ErrorCode};

use super::fixtures::{at, create, id, record};
use super::job::method_job;
use crate::assert_fails;
use crate::job::{JobStore, JobTelling};
use crate::outbox::{OUTBOX_EVENTS_MAX, OutboxEvent, OutboxStore};
use crate::registry::{LifecycleTelling, RegistryStore};
use crate::twin::{TwinMutation, TwinStore, TwinTelling};
use crate::{StoreError, StoreResult};

fn event(source: EventSource, identity: &str, body: &str) -> OutboxEvent {
    let mut records = Records::new();
    let mut writer = records.record();
    writer.system(SystemProperty::ContentType, "application/json");
    writer.property("opType", Some("x"));
    let _ = writer.finish(body.as_bytes());
    OutboxEvent {
        source,
        identity: id(identity),
        records,
        twin: body.starts_with('{').then(|| body.to_owned()),
    }
}

/// Tells one event whose body is the identity.
fn telling() -> LifecycleTelling {
    Arc::new(|record, twin| {
        assert_eq!(twin.version, 1);
        let identity = record.identity.as_str();
        vec![event(EventSource::DeviceLifecycle, identity, identity)]
    })
}

/// Tells the version before and after.
fn versions(identity: &'static str) -> TwinTelling {
    Arc::new(move |before, after| {
        let body = format!("{}-{}", before.version, after.version);
        vec![event(EventSource::TwinChange, identity, &body)]
    })
}

fn raise() -> TwinMutation {
    Arc::new(|twin: &mut Twin| {
        twin.version += 1;
        Ok(())
    })
}

/// Who, and the end of the record, which is the body.
async fn told(store: &impl OutboxStore) -> Vec<(String, String)> {
    let waiting = store.outbox(1_000, usize::MAX).await.expect("listed");
    assert!(waiting.is_sorted_by(|a, b| a.number < b.number));
    let shown = waiting.into_iter().map(|waiting| {
        let bytes = waiting.event.records.as_bytes();
        let end = bytes.iter().rposition(|byte| *byte == 0).unwrap_or(0);
        let body = String::from_utf8_lossy(&bytes[end + 1..]).into_owned();
        (waiting.event.identity.as_str().to_owned(), body)
    });
    shown.collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(who, body): &(&str, &str)| ((*who).to_owned(), (*body).to_owned());
    expected.iter().map(owned).collect()
}

/// Events come back as they were added, oldest first, until they are removed.
pub async fn events_are_kept_whole_and_in_order(store: Arc<impl OutboxStore>) {
    assert!(store.outbox(10, usize::MAX).await.expect("listed").is_empty());
    let events = [
        event(EventSource::TwinChange, "d1", "{}"),
        event(EventSource::DeviceLifecycle, "d1/m1", "b"),
        event(EventSource::JobLifecycle, "j1", "c"),
    ];
    store.add_to_outbox(events[..2].to_vec()).await.expect("added");
    store.add_to_outbox(events[2..].to_vec()).await.expect("added");
    let waiting = store.outbox(10, usize::MAX).await.expect("listed");
    assert_eq!(waiting.len(), 3);
    for (waiting, event) in waiting.iter().zip(&events) {
        assert_eq!(waiting.event.source, event.source);
        assert_eq!(waiting.event.identity, event.identity);
        assert_eq!(waiting.event.records.as_bytes(), event.records.as_bytes());
        assert_eq!(waiting.event.records.count(), 1);
        assert_eq!(waiting.event.twin, event.twin);
    }
    assert_eq!(
        store.outbox(2, usize::MAX).await.expect("listed")[1].number,
        waiting[1].number
    );
    store
        .remove_from_outbox(waiting[1].number)
        .await
        .expect("removed");
    assert_eq!(told(&*store).await, pairs(&[("j1", "c")]));
    store
        .remove_from_outbox(waiting[2].number)
        .await
        .expect("removed");
    assert!(told(&*store).await.is_empty());
    store.add_to_outbox(events[..1].to_vec()).await.expect("added");
    assert_eq!(told(&*store).await, pairs(&[("d1", "{}")]));
}

/// A change that is to be told of waits for room; others go on.
pub async fn a_full_outbox_holds_up_changes<S: OutboxStore + TwinStore + RegistryStore>(store: Arc<S>) {
    create(&*store, &["d1"]).await;
    let many = vec![event(EventSource::TwinChange, "d1", "x"); OUTBOX_EVENTS_MAX as usize];
    store.add_to_outbox(many).await.expect("room");
    let throttled = |refused: StoreResult<()>| {
        let Err(StoreError::Refused(error)) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(error.code, ErrorCode::ThrottlingException);
    };
    let d1 = id("d1");
    let change = async || {
        store
            .mutate_twin_telling(&d1, raise(), Some(versions("d1")))
            .await
    };
    throttled(change().await.map(drop));
    throttled(
        store
            .create_telling(vec![(record(&id("d2")), Twin::new(at(0)))], Some(telling()))
            .await,
    );
    throttled(store.delete_telling(&d1, None, Some(telling())).await.map(drop));
    assert_eq!(store.twin(&d1).await.expect("read").expect("there").version, 1);
    assert!(store.get(&id("d2")).await.expect("read").is_none());
    assert!(store.get(&d1).await.expect("read").is_some());
    store.mutate_twin(&d1, raise()).await.expect("not told of");
    let batch = store.outbox(10, 1).await.expect("listed");
    assert_eq!(batch.len(), 1, "the first one, however long");
    store.remove_from_outbox(batch[0].number).await.expect("removed");
    change().await.expect("room again");
    throttled(change().await.map(drop));
}

/// A refused change tells nothing; one without telling neither.
pub async fn a_twin_change_and_its_events_are_one<S: OutboxStore + TwinStore + RegistryStore>(store: Arc<S>) {
    create(&*store, &["d1"]).await;
    let d1 = id("d1");
    let mutate = async |mutation, telling| store.mutate_twin_telling(&d1, mutation, telling).await;
    mutate(raise(), Some(versions("d1"))).await.expect("changed");
    mutate(raise(), None).await.expect("changed");
    let refusing: TwinMutation = Arc::new(|twin: &mut Twin| {
        twin.version = 99;
        Err(Error::new(ErrorCode::ArgumentInvalid, "no"))
    });
    let refused = mutate(refusing, Some(versions("d1"))).await;
    assert!(matches!(refused, Err(StoreError::Refused(_))));
    mutate(raise(), Some(versions("d1"))).await.expect("changed");
    let missing = store
        .mutate_twin_telling(&id("d2"), raise(), Some(versions("d2")))
        .await;
    assert!(matches!(missing, Err(StoreError::Missing)));
    assert_eq!(told(&*store).await, pairs(&[("d1", "1-2"), ("d1", "3-4")]));
}

/// Of a group that is refused nothing is told.
pub async fn creations_are_told_all_or_none<S: OutboxStore + RegistryStore>(store: Arc<S>) {
    let entry = |key: &str| (record(&id(key)), Twin::new(at(0)));
    let group = ["d1", "d1/$edgeAgent", "d1/$edgeHub"].map(entry).to_vec();
    store
        .create_telling(group, Some(telling()))
        .await
        .expect("created");
    let refused = store.create_telling(vec![entry("d2"), entry("d1")], Some(telling()));
    assert!(matches!(refused.await, Err(StoreError::Exists)));
    create(&*store, &["d3"]).await;
    assert_eq!(
        told(&*store).await,
        pairs(&[
            ("d1", "d1"),
            ("d1/$edgeAgent", "d1/$edgeAgent"),
            ("d1/$edgeHub", "d1/$edgeHub"),
        ])
    );
}

/// As above, for many groups in one step.
pub async fn groups_are_told_apart_from_each_other<S: OutboxStore + RegistryStore>(store: Arc<S>) {
    let entry = |key: &str| (record(&id(key)), Twin::new(at(0)));
    let groups = vec![
        vec![entry("d1")],
        vec![entry("d1")],
        vec![entry("d2"), entry("d2/m1"), entry("d1")],
        vec![entry("d3"), entry("d3/m1")],
    ];
    let outcomes = store
        .create_many_telling(groups, Some(telling()))
        .await
        .expect("tried");
    let added: Vec<bool> = outcomes.iter().map(Result::is_ok).collect();
    assert_eq!(added, [true, false, false, true]);
    assert_eq!(
        told(&*store).await,
        pairs(&[("d1", "d1"), ("d3", "d3"), ("d3/m1", "d3/m1")])
    );
}

/// A device's modules are told of after it; a deletion that is refused tells nothing.
pub async fn deletions_tell_of_all_who_went<S: OutboxStore + RegistryStore>(store: Arc<S>) {
    create(&*store, &["d1", "d1/m1", "d1/m2", "d2"]).await;
    let refused = store.delete_telling(&id("d1"), Some(9), Some(telling())).await;
    assert!(matches!(refused, Err(StoreError::Conflict)));
    let deleted = store.delete_telling(&id("d1"), Some(1), Some(telling())).await;
    assert_eq!(deleted.expect("deleted").len(), 3);
    store.delete(&id("d2"), None).await.expect("deleted");
    let missing = store.delete_telling(&id("d2"), None, Some(telling())).await;
    assert!(matches!(missing, Err(StoreError::Missing)));
    assert_eq!(
        told(&*store).await,
        pairs(&[("d1", "d1"), ("d1/m1", "d1/m1"), ("d1/m2", "d1/m2")])
    );
}

/// Changes at once: for each twin the events stand in the order of its versions, without gaps.
pub async fn events_of_one_twin_follow_its_versions<S: OutboxStore + TwinStore + RegistryStore>(
    store: Arc<S>,
) {
    const NAMES: [&str; 3] = ["d1", "d2", "d3"];
    create(&*store, &NAMES).await;
    let tasks: Vec<_> = (0..90)
        .map(|number| {
            let store = Arc::clone(&store);
            let name = NAMES[number % 3];
            tokio::spawn(async move {
                store
                    .mutate_twin_telling(&id(name), raise(), Some(versions(name)))
                    .await
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic").expect("changed");
    }
    let mut seen: HashMap<String, u64> = HashMap::new();
    let all = told(&*store).await;
    assert_eq!(all.len(), 90);
    for (who, body) in all {
        let version = seen.entry(who).or_insert(1);
        assert_eq!(body, format!("{version}-{}", *version + 1));
        *version += 1;
    }
}

/// What is told of a job is there exactly if the job was made or has changed.
pub async fn a_job_and_its_events_are_one(store: Arc<impl OutboxStore + JobStore>) {
    let telling = || -> Option<JobTelling> {
        Some(Arc::new(|job| {
            vec![event(EventSource::JobLifecycle, &job.id, job.status.as_str())]
        }))
    };
    let create = |max| store.create_job_telling(method_job("j1"), max, telling());
    assert_fails!(create(0).await, Full);
    create(9).await.expect("new");
    assert_fails!(create(9).await, Exists);
    let set = |status| store.set_job_status_telling("j1", status, None, at(3), telling());
    set(JobStatus::Running).await.expect("it is there");
    set(JobStatus::Completed).await.expect("it is there");
    assert_fails!(set(JobStatus::Cancelled).await, Conflict);
    let expected = [("j1", "queued"), ("j1", "running"), ("j1", "completed")];
    assert_eq!(told(&*store).await, pairs(&expected));
    // Refused for want of room: the job is as it was.
    let filled = vec![event(EventSource::TwinChange, "d1", ""); OUTBOX_EVENTS_MAX as usize - 3];
    store.add_to_outbox(filled).await.expect("room");
    let refused = store.create_job_telling(method_job("j2"), 9, telling()).await;
    assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    assert_eq!(store.job("j2").await.expect("readable"), None);
    let silent = store.create_job(method_job("j2"), 9).await;
    assert_eq!(silent.expect("told to nobody").status, JobStatus::Queued);
    let refused = store.set_job_status_telling("j2", JobStatus::Running, None, at(3), telling());
    assert!(matches!(refused.await, Err(StoreError::Refused(_))));
    let kept = store.job("j2").await.expect("readable").expect("there");
    assert_eq!((kept.status, kept.started_at), (JobStatus::Queued, None));
}
