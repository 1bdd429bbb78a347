//! Changes that take away a right end live sessions at once.

use std::sync::Arc;

use holdfast_hub::{AuthenticationSpec, IdentitySpec, IfMatch, KeyChoice};
use holdfast_model::credential::SymmetricKey;
use holdfast_model::registry::Status;
use holdfast_ports::gateway::Credential;
use holdfast_ports::session::{CloseReason, SessionHandle};

use crate::harness::*;

async fn device_with_modules() -> (TestHub, Vec<Arc<SessionHandle>>) {
    let test = TestHub::new().await;
    let mut sessions = Vec::new();
    for id in ["d1", "d1/m1", "d1/m2", "d2"] {
        test.create(id).await;
        sessions.push(test.connect(id).await.session);
    }
    (test, sessions)
}

fn ended(sessions: &[Arc<SessionHandle>]) -> Vec<bool> {
    sessions
        .iter()
        .map(|session| closed(session) == Some(CloseReason::IdentityChanged))
        .collect()
}

#[tokio::test]
async fn disabling_a_device_ends_its_sessions_and_its_modules() {
    let (test, sessions) = device_with_modules().await;
    let disabled = IdentitySpec {
        status: Status::Disabled,
        status_reason: Some("stolen".to_owned()),
        ..IdentitySpec::default()
    };
    let record = test
        .hub
        .update_identity(&OWNER, &identity("d1"), &disabled, IfMatch::Any)
        .await
        .expect("disabled");
    assert_eq!(ended(&sessions), [true, true, true, false]);
    assert_eq!(record.status_updated_at, test.now());
    assert!(!record.connected);
}

#[tokio::test]
async fn deleting_ends_sessions() {
    let (test, sessions) = device_with_modules().await;
    test.hub
        .delete_identity(&identity("d1/m1"), IfMatch::Any)
        .await
        .expect("deleted");
    assert_eq!(ended(&sessions), [false, true, false, false]);
    test.hub
        .delete_identity(&identity("d1"), IfMatch::Absent)
        .await
        .expect("deleted");
    assert_eq!(ended(&sessions), [true, true, true, false]);
    assert_eq!(test.hub.connected_sessions(), 1);
}

#[tokio::test]
async fn new_credentials_end_the_session() {
    let (test, sessions) = device_with_modules().await;
    test.hub
        .regenerate_keys(&OWNER, &identity("d1/m1"), KeyChoice::Secondary)
        .await
        .expect("new key");
    assert_eq!(ended(&sessions), [false, true, false, false]);
    let keys = IdentitySpec {
        authentication: AuthenticationSpec::Sas {
            primary_key: Some(SymmetricKey::generate()),
            secondary_key: Some(SymmetricKey::generate()),
        },
        ..IdentitySpec::default()
    };
    test.hub
        .update_identity(&OWNER, &identity("d1"), &keys, IfMatch::Any)
        .await
        .expect("new keys");
    assert_eq!(
        ended(&sessions),
        [true, true, false, false],
        "modules have keys of their own"
    );
}

#[tokio::test]
async fn other_changes_leave_sessions_alone() {
    let (test, sessions) = device_with_modules().await;
    let reworded = IdentitySpec {
        status_reason: Some("checked".to_owned()),
        iot_edge: true,
        ..IdentitySpec::default()
    };
    test.hub
        .update_identity(&OWNER, &identity("d1"), &reworded, IfMatch::Any)
        .await
        .expect("changed");
    assert_eq!(ended(&sessions), [false; 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_under_way_does_not_slip_past_a_disable() {
    for _ in 0..200 {
        let test = Arc::new(TestHub::new().await);
        test.create("d1").await;
        let token = test.token("d1").await;
        let login = {
            let test = Arc::clone(&test);
            tokio::spawn(async move { test.connect_with("d1", Credential::Sas(&token)).await })
        };
        let disabled = IdentitySpec {
            status: Status::Disabled,
            ..IdentitySpec::default()
        };
        test.hub
            .update_identity(&OWNER, &identity("d1"), &disabled, IfMatch::Any)
            .await
            .expect("disabled");
        let outcome = login.await.expect("no panic");
        assert_eq!(test.hub.connected_sessions(), 0);
        assert!(outcome.is_err() || outcome.is_ok_and(|connected| connected.session.is_ended()));
    }
}
