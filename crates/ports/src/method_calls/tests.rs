use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use holdfast_model::Timestamp;
use holdfast_model::event::{AuthMethod, EventSource, Origin};
use holdfast_model::subscription::Subscriptions;

use super::*;

fn identity() -> Identity {
    Identity::device("d1").unwrap()
}

fn session(epoch: u64) -> Arc<SessionHandle> {
    let origin = Origin {
        source: EventSource::Telemetry,
        identity: identity(),
        generation_id: 1,
        auth: AuthMethod::IdentityKey,
    };
    let subscriptions = Subscriptions::NONE;
    Arc::new(SessionHandle::new(
        origin,
        0,
        epoch,
        Timestamp::MAX,
        true,
        subscriptions,
    ))
}

fn call() -> MethodCall {
    MethodCall {
        name: "restart".to_owned(),
        payload: Bytes::from_static(b"{}"),
        connect_timeout: Duration::from_secs(10),
        response_timeout: Duration::from_secs(30),
    }
}

fn later() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn answer(payload: &'static [u8]) -> MethodResponse {
    MethodResponse {
        status: 200,
        payload: Bytes::from_static(payload),
    }
}

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// What the session was asked.
fn asked(session: &SessionHandle) -> u64 {
    match session.poll_next(&mut context()) {
        Poll::Ready(Ok(Downlink::Method(request))) => request.request_id,
        other => panic!("no method: {other:?}"),
    }
}

fn is_empty(calls: &MethodCalls) -> bool {
    calls.answers.iter().all(|shard| shard.lock().is_empty()) && calls.connects.lock().is_empty()
}

#[tokio::test]
async fn an_answer_reaches_the_caller_it_belongs_to() {
    let (calls, session, call) = (MethodCalls::default(), session(3), call());
    let mut first = pin!(calls.ask(&session, &call, later()));
    let mut second = pin!(calls.ask(&session, &call, later()));
    assert!(first.as_mut().poll(&mut context()).is_pending());
    assert!(second.as_mut().poll(&mut context()).is_pending());
    let (one, two) = (asked(&session), asked(&session));
    calls.complete(3, two, answer(b"2"));
    // Of another session, and one that nobody waits for.
    calls.complete(4, one, answer(b"4"));
    calls.complete(3, two, answer(b"5"));
    assert!(first.as_mut().poll(&mut context()).is_pending());
    assert_eq!(second.await.unwrap().unwrap(), answer(b"2"));
    calls.complete(3, one, answer(b"no json"));
    let error = first.await.unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::GenericBadGateway);
    assert!(is_empty(&calls));
}

#[tokio::test]
async fn the_end_of_the_session_ends_the_call() {
    let (calls, session, call) = (MethodCalls::default(), session(3), call());
    let mut asking = pin!(calls.ask(&session, &call, later()));
    assert!(asking.as_mut().poll(&mut context()).is_pending());
    session.retire();
    calls.drop_session(3);
    let error = asking.await.unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::DeviceConnectionClosedRemotely);
    // And to one that had ended nothing is sent.
    assert!(calls.ask(&session, &call, later()).await.is_none());
    assert!(is_empty(&calls));
}

#[tokio::test]
async fn who_does_not_answer_in_time_is_told_of() {
    let (calls, session, call) = (MethodCalls::default(), session(3), call());
    let error = calls
        .ask(&session, &call, Instant::now())
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::GatewayTimeout);
    assert!(is_empty(&calls));
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_nothing_behind() {
    let (calls, session, call) = (MethodCalls::default(), session(3), call());
    {
        let mut asking = pin!(calls.ask(&session, &call, later()));
        assert!(asking.as_mut().poll(&mut context()).is_pending());
        let (who, nobody) = (identity(), || None);
        let mut waiting = pin!(calls.session(&who, later(), nobody));
        assert!(waiting.as_mut().poll(&mut context()).is_pending());
        assert!(!is_empty(&calls));
    }
    assert!(is_empty(&calls));
    assert_eq!(calls.connects_waiting.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_caller_is_woken_by_the_session_it_waits_for() {
    let (calls, who) = (MethodCalls::default(), identity());
    let online = Mutex::new(None);
    let mut waiting = pin!(calls.session(&who, later(), || online.lock().clone()));
    assert!(waiting.as_mut().poll(&mut context()).is_pending());
    // Another one's, and a hint without a session.
    calls.wake_callers(&Identity::device("d2").unwrap());
    calls.wake_callers(&who);
    assert!(waiting.as_mut().poll(&mut context()).is_pending());
    *online.lock() = Some(session(7));
    calls.wake_callers(&who);
    assert_eq!(waiting.await.unwrap().epoch, 7);
    let past = Instant::now();
    assert!(calls.session(&who, past, || None).await.is_none());
}

#[test]
fn calls_under_way_are_bounded() {
    let calls = MethodCalls::default();
    let first = calls.begin(1).unwrap();
    let error = calls.begin(1).err().unwrap();
    assert_eq!(error.code, ErrorCode::ThrottlingException);
    drop(first);
    assert!(calls.begin(1).is_ok());
}
