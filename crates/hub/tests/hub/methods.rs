//! Direct methods (rest.md section 7). Time-outs run on tokio's paused clock: no test waits for real.

use std::sync::Arc;
use std::time::Duration;

use holdfast_hub::HubConfig;
use holdfast_hub::events::MethodOutcome;
use holdfast_model::method::{MethodCall, MethodRequest, MethodResponse};
use holdfast_model::subscription::Channel;
use holdfast_model::{Error, ErrorCode};
use holdfast_ports::gateway::{DeviceGateway as _, Disconnect};
use holdfast_ports::session::{Downlink, SessionHandle};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::harness::*;

fn call(name: &str, connect: u64, response: u64) -> MethodCall {
    MethodCall {
        name: name.to_owned(),
        payload: bytes("{\"delay\":5}"),
        connect_timeout: Duration::from_secs(connect),
        response_timeout: Duration::from_secs(response),
    }
}

fn invoke(test: &TestHub, id: &str, call: MethodCall) -> JoinHandle<Result<MethodResponse, Error>> {
    let (hub, identity) = (Arc::clone(&test.hub), identity(id));
    tokio::spawn(async move { hub.invoke_method(&identity, call).await })
}

/// The next method request, waited for.
async fn request(session: &SessionHandle) -> MethodRequest {
    match std::future::poll_fn(|context| session.poll_next(context)).await {
        Ok(Downlink::Method(request)) => request,
        other => panic!("no method call but {other:?}"),
    }
}

fn answer(status: i64, payload: &str) -> MethodResponse {
    MethodResponse {
        status,
        payload: bytes(payload),
    }
}

async fn code(call: JoinHandle<Result<MethodResponse, Error>>) -> ErrorCode {
    call.await.expect("no panic").expect_err("must fail").code
}

async fn with_device() -> TestHub {
    let test = TestHub::new().await;
    test.create("d1").await;
    test
}

#[tokio::test(start_paused = true)]
async fn the_answer_comes_back_whatever_its_status() {
    let test = with_device().await;
    let session = test.online("d1", &[Channel::Methods]).await;
    for (status, payload) in [(200, "{\"ok\":true}"), (500, "\"text\""), (-1, ""), (404, "null")] {
        let calling = invoke(&test, "d1", call("reboot", 0, 30));
        let request = request(&session).await;
        assert_eq!(
            (request.name.as_str(), &request.payload[..]),
            ("reboot", &b"{\"delay\":5}"[..])
        );
        test.hub
            .complete_method(&session, request.request_id, answer(status, payload));
        assert_eq!(calling.await.expect("no panic"), Ok(answer(status, payload)));
    }
    assert_eq!(test.metrics.methods.of(MethodOutcome::Answered).get(), 4);
}

#[tokio::test(start_paused = true)]
async fn answers_find_their_calls() {
    let test = with_device().await;
    let session = test.online("d1", &[Channel::Methods]).await;
    let first = invoke(&test, "d1", call("first", 0, 30));
    let first_request = request(&session).await;
    let second = invoke(&test, "d1", call("second", 0, 30));
    let second_request = request(&session).await;
    assert_ne!(first_request.request_id, second_request.request_id);
    test.hub
        .complete_method(&session, second_request.request_id, answer(2, ""));
    test.hub
        .complete_method(&session, first_request.request_id, answer(1, ""));
    // Twice, unknown, late: dropped.
    test.hub
        .complete_method(&session, first_request.request_id, answer(9, ""));
    test.hub.complete_method(&session, 999, answer(9, ""));
    assert_eq!(first.await.expect("no panic").map(|answer| answer.status), Ok(1));
    assert_eq!(second.await.expect("no panic").map(|answer| answer.status), Ok(2));
}

#[tokio::test(start_paused = true)]
async fn another_session_cannot_answer() {
    let test = with_device().await;
    test.create("d2").await;
    let session = test.online("d1", &[Channel::Methods]).await;
    let other = test.online("d2", &[Channel::Methods]).await;
    let calling = invoke(&test, "d1", call("reboot", 0, 5));
    let request = request(&session).await;
    test.hub
        .complete_method(&other, request.request_id, answer(200, ""));
    assert_eq!(code(calling).await, ErrorCode::GatewayTimeout);
}

#[tokio::test(start_paused = true)]
async fn who_is_not_online_is_said_at_once() {
    let test = with_device().await;
    test.create("d1/m1").await;
    let started = Instant::now();
    assert_eq!(
        code(invoke(&test, "d1", call("x", 0, 30))).await,
        ErrorCode::DeviceNotOnline
    );
    assert_eq!(
        code(invoke(&test, "ghost", call("x", 60, 30))).await,
        ErrorCode::DeviceNotFound
    );
    assert_eq!(
        code(invoke(&test, "d1/m2", call("x", 60, 30))).await,
        ErrorCode::ModuleNotFound
    );
    // Connected without the subscription is not online either.
    test.online("d1", &[Channel::DesiredProperties]).await;
    assert_eq!(
        code(invoke(&test, "d1", call("x", 0, 30))).await,
        ErrorCode::DeviceNotOnline
    );
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn the_connect_timeout_waits_for_a_subscription() {
    let test = with_device().await;
    let started = Instant::now();
    assert_eq!(
        code(invoke(&test, "d1", call("x", 10, 30))).await,
        ErrorCode::DeviceNotOnline
    );
    let waited = started.elapsed();
    assert!((9_800..10_000).contains(&waited.as_millis()), "{waited:?}");

    let calling = invoke(&test, "d1", call("x", 300, 5));
    tokio::time::sleep(Duration::from_secs(100)).await;
    let session = test.connect("d1").await.session;
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(!calling.is_finished(), "not subscribed yet");
    test.subscribe(&session, &[Channel::Methods]).await;
    let asked = request(&session).await;
    test.hub
        .complete_method(&session, asked.request_id, answer(200, ""));
    assert!(calling.await.expect("no panic").is_ok());

    // A login that restores the subscription wakes callers as well.
    test.hub.disconnect(&session, Disconnect::Lost);
    let calling = invoke(&test, "d1", call("x", 300, 5));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let session = test.connect("d1").await.session;
    let asked = request(&session).await;
    test.hub
        .complete_method(&session, asked.request_id, answer(200, ""));
    assert!(calling.await.expect("no panic").is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_silent_device_times_out() {
    let test = with_device().await;
    let session = test.online("d1", &[Channel::Methods]).await;
    let started = Instant::now();
    let calling = invoke(&test, "d1", call("x", 0, 5));
    let request = request(&session).await;
    assert_eq!(code(calling).await, ErrorCode::GatewayTimeout);
    let waited = started.elapsed();
    assert!((4_800..5_000).contains(&waited.as_millis()), "{waited:?}");
    test.hub
        .complete_method(&session, request.request_id, answer(200, ""));
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_connection_ends_the_call() {
    let test = with_device().await;
    let started = Instant::now();
    for ending in 0..3 {
        let session = test.online("d1", &[Channel::Methods]).await;
        let calling = invoke(&test, "d1", call("x", 0, 300));
        request(&session).await;
        match ending {
            0 => test.hub.disconnect(&session, Disconnect::Lost),
            1 => drop(test.connect("d1").await),
            _ => test
                .hub
                .delete_identity(&identity("d1"), holdfast_hub::IfMatch::Any)
                .await
                .expect("deleted"),
        }
        assert_eq!(code(calling).await, ErrorCode::DeviceConnectionClosedRemotely);
    }
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn bad_answers_are_a_bad_gateway() {
    let test = with_device().await;
    let session = test.online("d1", &[Channel::Methods]).await;
    let full = format!("\"{}\"", "x".repeat(128 * 1024 - 2));
    for (payload, good) in [
        (full.clone(), true),
        (format!("{full} "), false),
        ("not json".to_owned(), false),
        ("{\"a\":1".to_owned(), false),
        ("1 2".to_owned(), false),
    ] {
        let calling = invoke(&test, "d1", call("x", 0, 30));
        let request = request(&session).await;
        test.hub
            .complete_method(&session, request.request_id, answer(200, &payload));
        match (calling.await.expect("no panic"), good) {
            (Ok(_), true) => {}
            (Err(error), false) => assert_eq!(error.code, ErrorCode::GenericBadGateway),
            (other, _) => panic!("{other:?}"),
        }
    }
    let calling = invoke(&test, "d1", call("x", 0, 30));
    let request = request(&session).await;
    let payload = bytes::Bytes::from_static(b"\"\xff\"");
    test.hub.complete_method(
        &session,
        request.request_id,
        MethodResponse { status: 200, payload },
    );
    assert_eq!(code(calling).await, ErrorCode::GenericBadGateway);
}

#[tokio::test(start_paused = true)]
async fn bad_calls_are_refused() {
    let test = with_device().await;
    let with_payload = |payload: &str| MethodCall {
        payload: bytes(payload),
        ..call("x", 0, 30)
    };
    for bad in [
        call("", 0, 30),
        call("a b", 0, 30),
        call(&"x".repeat(101), 0, 30),
        call("x", 0, 4),
        call("x", 0, 301),
        call("x", 301, 30),
        with_payload("{"),
        with_payload(&format!("\"{}\"", "x".repeat(128 * 1024))),
    ] {
        let error = invoke(&test, "d1", bad)
            .await
            .expect("no panic")
            .expect_err("bad");
        assert_eq!(error.code, ErrorCode::ArgumentInvalid);
    }
    let error = invoke(&test, "d1", call("x", 0, 4)).await.expect("no panic");
    assert_eq!(
        error.expect_err("bad").message,
        "responseTimeoutInSeconds must be within [5; 300]."
    );
}

#[tokio::test(start_paused = true)]
async fn calls_under_way_are_bounded() {
    let test = TestHub::with(HubConfig {
        methods_pending_max: 3,
        ..HubConfig::default()
    })
    .await;
    test.create("d1").await;
    let waiting: Vec<_> = (0..3).map(|_| invoke(&test, "d1", call("x", 60, 30))).collect();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(
        code(invoke(&test, "d1", call("x", 60, 30))).await,
        ErrorCode::ThrottlingException
    );
    // A caller that goes away gives its place back.
    waiting[0].abort();
    tokio::time::sleep(Duration::from_millis(1)).await;
    let session = test.online("d1", &[Channel::Methods]).await;
    let calling = invoke(&test, "d1", call("x", 0, 30));
    for _ in 0..3 {
        let request = request(&session).await;
        test.hub
            .complete_method(&session, request.request_id, answer(200, ""));
    }
    assert!(calling.await.expect("no panic").is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_device_that_does_not_read_is_not_flooded() {
    let test = with_device().await;
    let _session = test.online("d1", &[Channel::Methods]).await;
    let calls: Vec<_> = (0..65).map(|_| invoke(&test, "d1", call("x", 0, 5))).collect();
    let mut codes = Vec::new();
    for calling in calls {
        codes.push(code(calling).await);
    }
    assert_eq!(
        codes
            .iter()
            .filter(|code| **code == ErrorCode::ThrottlingException)
            .count(),
        1
    );
    assert_eq!(
        codes
            .iter()
            .filter(|code| **code == ErrorCode::GatewayTimeout)
            .count(),
        64
    );
}
