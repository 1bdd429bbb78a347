//! Logins while the scope is read: who the hub has when a login begins is let in, and who it has not is not, whatever is read
//! at the same time and whatever arrives late.

use std::sync::Arc;
use std::time::Duration;

use holdfast_model::method::MethodRequest;
use holdfast_model::{Error, Identity};
use holdfast_ports::clock::ManualClock;
use holdfast_ports::gateway::{Connected, Credential, DeviceGateway as _, Persistence};
use holdfast_ports::session::CloseReason;
use holdfast_store::log::sim::SimDisk;
use holdfast_upstream::port::{CloudEvent, ScopeAuthentication};
use tokio::task::JoinHandle;

use crate::cloud::FakeCloud;
use crate::edge::{EDGE_SCOPE, Edge, above, entry, key_of, manual, scope, settings, until};

/// An edge hub below a hub that has read its scope, with the clock of its rates.
async fn edge() -> (Arc<FakeCloud>, Arc<Edge>, Arc<ManualClock>) {
    let cloud = FakeCloud::new(true);
    cloud.state.lock().scope = scope();
    let clock = manual();
    let edge = Edge::open(
        settings(),
        Arc::new(SimDisk::new()),
        Arc::clone(&clock),
        Some(above(&cloud)),
    );
    edge.until("the scope", || cloud.state.lock().scope_reads >= 3)
        .await;
    edge.broker.refresh_scope().await.expect("online");
    (cloud, Arc::new(edge), clock)
}

fn id(identity: &str) -> Identity {
    Identity::parse(identity).expect("an id")
}

fn log_in(edge: &Arc<Edge>, identity: &'static str) -> JoinHandle<Result<Connected, Error>> {
    let edge = Arc::clone(edge);
    tokio::spawn(async move { edge.try_connect(identity, &key_of(identity)).await })
}

fn refresh(edge: &Arc<Edge>) -> JoinHandle<Result<(), String>> {
    let edge = Arc::clone(edge);
    tokio::spawn(async move { edge.broker.refresh_scope().await })
}

/// Has the edge hub read one identity, as an operator does.
async fn refresh_one(cloud: &FakeCloud, identity: &str) {
    let reads = cloud.reads_of(identity);
    let answers = cloud.state.lock().answers.len();
    let asked = cloud.push(
        "edge/$edgeHub",
        CloudEvent::Method(MethodRequest {
            request_id: 1,
            name: "RefreshDeviceScopeIdentityCache".to_owned(),
            payload: serde_json::json!({ "deviceIds": [identity] }).to_string().into(),
        }),
    );
    assert!(asked);
    until("the answer", || cloud.state.lock().answers.len() > answers).await;
    assert_eq!(cloud.state.lock().answers.last().expect("one").1.status, 200);
    assert_eq!(cloud.reads_of(identity), reads + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_learn_while_a_login_asks_lets_it_in() {
    let (cloud, edge, _) = edge().await;
    cloud.identities.hold();
    // A new identity, and a new key of one that is known.
    {
        let mut state = cloud.state.lock();
        state.scope.push(entry("new"));
        let known = state
            .scope
            .iter_mut()
            .find(|entry| entry.identity.as_str() == "edge/a");
        known.expect("there").authentication = ScopeAuthentication::Keys {
            primary: key_of("other"),
            secondary: key_of("another"),
        };
    }
    let login = log_in(&edge, "new");
    let with_new_key = {
        let edge = Arc::clone(&edge);
        tokio::spawn(async move { edge.try_connect("edge/a", &key_of("other")).await })
    };
    until("the questions", || cloud.identities.waiting() == 2).await;
    // The whole scope is read, and has both: the answers to the questions are no news when they come.
    edge.broker.refresh_scope().await.expect("online");
    cloud.identities.release();
    login.await.expect("no panic").expect("let in");
    with_new_key.await.expect("no panic").expect("let in");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_comes_as_another_is_answered_is_let_in() {
    let (cloud, edge, _) = edge().await;
    cloud.identities.hold();
    cloud.state.lock().scope.push(entry("new"));
    let logins: Vec<_> = (0..8).map(|_| log_in(&edge, "new")).collect();
    until("the question", || cloud.identities.waiting() == 1).await;
    cloud.identities.release();
    let mut refused = Vec::new();
    for login in logins {
        // Each takes over from the one before, which is no refusal.
        if let Err(error) = login.await.expect("no panic") {
            refused.push(error);
        }
    }
    refused.retain(|error| !error.message.contains("took over"));
    assert!(refused.is_empty(), "{refused:?}");
    assert_eq!(cloud.reads_of("new"), 1, "one question for all");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reading_that_is_older_takes_nothing_away() {
    let (cloud, edge, _) = edge().await;
    cloud.scopes.hold();
    let reading = refresh(&edge);
    until("the reading", || cloud.scopes.waiting() == 1).await;
    // Made after the scope was read and before that arrived.
    cloud.state.lock().scope.push(entry("new"));
    let new = edge.client("new").await;
    cloud.scopes.release();
    reading.await.expect("no panic").expect("online");
    assert!(!new.session.is_ended());
    // Known also without a network, and after a start.
    cloud.set_online(false);
    edge.client("new").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reading_that_is_older_brings_nobody_back() {
    let (cloud, edge, _) = edge().await;
    let (leaf, other) = (edge.client("leaf").await, edge.client("leaf2").await);
    cloud.scopes.hold();
    let reading = refresh(&edge);
    until("the reading", || cloud.scopes.waiting() == 1).await;
    {
        let mut state = cloud.state.lock();
        state.scope.retain(|entry| entry.identity.as_str() != "leaf");
        let other = state
            .scope
            .iter_mut()
            .find(|entry| entry.identity.as_str() == "leaf2");
        other.expect("there").enabled = false;
    }
    refresh_one(&cloud, "leaf").await;
    refresh_one(&cloud, "leaf2").await;
    for session in [&leaf.session, &other.session] {
        assert_eq!(session.close_reason(), Some(CloseReason::IdentityChanged));
    }
    cloud.scopes.release();
    reading.await.expect("no panic").expect("online");
    cloud.set_online(false);
    for identity in ["leaf", "leaf2"] {
        assert!(
            edge.try_connect(identity, &key_of(identity)).await.is_err(),
            "{identity}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_older_than_a_reading_undoes_nothing() {
    let (cloud, edge, _) = edge().await;
    let leaf = edge.client("leaf").await;
    cloud.identities.hold();
    // Asked for with a wrong key; the answer has the old one.
    let stranger = {
        let edge = Arc::clone(&edge);
        tokio::spawn(async move { edge.try_connect("leaf", &key_of("stranger")).await })
    };
    until("the question", || cloud.identities.waiting() == 1).await;
    cloud
        .state
        .lock()
        .scope
        .retain(|entry| entry.identity.as_str() != "leaf");
    edge.broker.refresh_scope().await.expect("online");
    assert!(leaf.session.is_ended());
    cloud.identities.release();
    assert!(stranger.await.expect("no panic").is_err());
    cloud.set_online(false);
    assert!(edge.try_connect("leaf", &key_of("leaf")).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_without_an_answer_may_be_asked_again() {
    let (cloud, edge, clock) = edge().await;
    {
        let mut state = cloud.state.lock();
        state.scope.push(entry("new"));
        state.registry_fails = true;
    }
    assert!(edge.try_connect("new", &key_of("new")).await.is_err());
    cloud.state.lock().registry_fails = false;
    assert!(
        edge.try_connect("new", &key_of("new")).await.is_err(),
        "not at once"
    );
    clock.advance(Duration::from_secs(5));
    edge.client("new").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_while_the_hub_is_away_does_not_count() {
    let (cloud, edge, _) = edge().await;
    cloud.state.lock().scope.push(entry("new"));
    cloud.set_online(false);
    assert!(edge.try_connect("new", &key_of("new")).await.is_err());
    // The reading of the whole scope is slow.
    cloud.scopes.hold();
    cloud.set_online(true);
    edge.client("new").await;
    assert_eq!(cloud.reads_of("new"), 1);
    cloud.scopes.release();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_may_be_asked_again_when_the_hub_is_back() {
    let (cloud, edge, _) = edge().await;
    assert!(edge.try_connect("new", &key_of("new")).await.is_err());
    assert_eq!(cloud.reads_of("new"), 1);
    cloud.state.lock().scope.push(entry("new"));
    assert!(edge.try_connect("new", &key_of("new")).await.is_err(), "too soon");
    cloud.scopes.hold();
    cloud.set_online(false);
    cloud.set_online(true);
    // The edge hub has noticed when it reads the scope; that does not arrive.
    until("the reading", || cloud.scopes.waiting() == 1).await;
    edge.client("new").await;
    assert_eq!(cloud.reads_of("new"), 2);
    cloud.scopes.release();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reading_that_hangs_holds_up_nothing() {
    let cloud = FakeCloud::new(false);
    cloud.state.lock().scope = scope();
    let mut config = settings();
    config.local_identities = vec![entry("edge/a")];
    cloud.scopes.hold();
    let edge = Edge::open(config, Arc::new(SimDisk::new()), manual(), Some(above(&cloud)));
    until("the reading", || cloud.scopes.waiting() == 1).await;
    let module = edge.client("edge/a").await;
    let reported = edge
        .broker
        .patch_reported(module.session.identity(), br#"{"state":"on"}"#, None)
        .await;
    reported.expect("kept");
    // That reading will never have an answer; another one is begun, and what waits for the hub does not wait for it.
    cloud.set_online(true);
    until("another reading", || cloud.state.lock().scope_reads >= 4).await;
    until("the report", || cloud.reported("edge/a")["state"] == "on").await;
    assert_eq!(cloud.scopes.waiting(), 1);
    cloud.scopes.release();
    edge.until("the scope", || edge.broker.auth_chain(&id("leaf")).is_some())
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_hangs_up_leaves_the_answer_to_others() {
    let (cloud, edge, _) = edge().await;
    cloud.state.lock().scope.push(entry("new"));
    cloud.identities.hold();
    let login = log_in(&edge, "new");
    until("the question", || cloud.identities.waiting() == 1).await;
    login.abort();
    assert!(login.await.is_err_and(|error| error.is_cancelled()));
    let again = log_in(&edge, "new");
    cloud.identities.release();
    again.await.expect("no panic").expect("let in");
    assert_eq!(cloud.reads_of("new"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_under_the_name_of_a_childs_device_does_not_keep_it_out() {
    let (cloud, edge, _) = edge().await;
    let mut child = entry("child");
    child.iot_edge = true;
    child.device_scope = Some("ms-azure-iot-edge://child-1".to_owned());
    child.parent_scopes = vec![EDGE_SCOPE.to_owned()];
    let mut below = entry("below");
    below.parent_scopes = vec!["ms-azure-iot-edge://child-1".to_owned()];
    {
        let mut state = cloud.state.lock();
        state.scope.extend([child, entry("child/$edgeHub")]);
        state
            .ways
            .insert("below".to_owned(), "below;child;edge".to_owned());
    }
    edge.broker.refresh_scope().await.expect("online");
    cloud.state.lock().scope.push(below);
    assert!(edge.try_connect("below", &key_of("stranger")).await.is_err());
    let actor = edge.token("child/$edgeHub", &key_of("child/$edgeHub"));
    let connected = edge
        .connect_with(
            "below",
            Credential::Sas(&actor),
            Persistence::Untouched,
            Some("below;child"),
        )
        .await;
    connected.expect("let in");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_given_rights_is_let_in_within_seconds() {
    let (cloud, edge, clock) = edge().await;
    // Refused for an hour.
    for _ in 0..360 {
        assert!(edge.try_connect("new", &key_of("new")).await.is_err());
        clock.advance(Duration::from_secs(10));
    }
    cloud.state.lock().scope.push(entry("new"));
    edge.client("new").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn look_ups_of_strangers_are_bounded() {
    let cloud = FakeCloud::new(true);
    cloud.state.lock().scope = scope();
    let edge = Edge::below(&cloud, Arc::new(SimDisk::new())).await;
    for _ in 0..50 {
        assert!(edge.try_connect("stranger", &key_of("stranger")).await.is_err());
        assert!(edge.try_connect("leaf", &key_of("stranger")).await.is_err());
    }
    let reads = cloud.state.lock().identity_reads.clone();
    assert_eq!(
        reads.iter().filter(|id| *id == "stranger").count(),
        1,
        "{reads:?}"
    );
    assert_eq!(reads.iter().filter(|id| *id == "leaf").count(), 1, "{reads:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_never_comes_to_an_end_changes_nothing() {
    let (cloud, edge, _) = edge().await;
    cloud.state.lock().scope_is_endless = true;
    let failed = edge.broker.refresh_scope().await;
    assert!(failed.is_err(), "{failed:?}");
    assert!(log_in(&edge, "edge/a").await.expect("a task").is_ok());
    cloud.state.lock().scope_is_endless = false;
    edge.broker.refresh_scope().await.expect("an end");
}

/// An edge hub that reads the scope often while it is in use, and hardly ever otherwise.
async fn edge_that_looks_again() -> (Arc<FakeCloud>, Edge) {
    let cloud = FakeCloud::new(true);
    cloud.state.lock().scope = scope();
    let mut config = settings();
    config.scope_in_use_every = Some(Duration::from_millis(20));
    let edge = Edge::open(config, Arc::new(SimDisk::new()), manual(), Some(above(&cloud)));
    edge.until("the scope", || cloud.state.lock().scope_reads >= 4)
        .await;
    edge.broker.refresh_scope().await.expect("online");
    (cloud, edge)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_that_were_removed_disabled_or_moved_are_put_out_though_they_do_nothing() {
    let (cloud, edge) = edge_that_looks_again().await;
    let changes: [fn(&mut crate::cloud::State); 3] = [
        |state| {
            state.scope.retain(|entry| entry.identity.as_str() != "leaf");
        },
        |state| {
            let mut entries = state.scope.iter_mut();
            let leaf = entries.find(|entry| entry.identity.as_str() == "leaf");
            leaf.expect("there").enabled = false;
        },
        |state| {
            let mut entries = state.scope.iter_mut();
            let leaf = entries.find(|entry| entry.identity.as_str() == "leaf");
            let leaf = leaf.expect("there");
            leaf.device_scope = Some("ms-azure-iot-edge://another-1".to_owned());
            leaf.parent_scopes = vec!["ms-azure-iot-edge://another-1".to_owned()];
        },
    ];
    for change in changes {
        cloud.state.lock().scope = scope();
        edge.broker.refresh_scope().await.expect("online");
        let (leaf, neighbour) = (edge.client("leaf").await, edge.client("leaf2").await);
        change(&mut cloud.state.lock());
        edge.until("the end of the session", || leaf.session.is_ended())
            .await;
        assert_eq!(leaf.session.close_reason(), Some(CloseReason::IdentityChanged));
        assert!(!neighbour.session.is_ended());
        // Nobody asked for anybody.
        assert!(cloud.state.lock().identity_reads.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scope_of_which_no_device_is_connected_is_not_read_again() {
    let (cloud, edge) = edge_that_looks_again().await;
    let reads = || cloud.state.lock().scope_reads;
    // A module of the edge device itself is the agent's to end.
    let module = edge.client("edge/a").await;
    let settled = reads();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(reads(), settled);
    let leaf = edge.client("leaf").await;
    edge.until("two more readings", || reads() >= settled + 8).await;
    // Who is connected stays while the hub is away.
    cloud.set_online(false);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!leaf.session.is_ended() && !module.session.is_ended());
    cloud.set_online(true);
    let back = reads();
    edge.until("readings again", || reads() >= back + 8).await;
}
