//! Gateways on behalf of their modules and children (mqtt.md 2.3).

use holdfast_hub::events::Refusal;
use holdfast_hub::{IdentitySpec, IfMatch};
use holdfast_model::ErrorCode;
use holdfast_model::registry::Status;
use holdfast_ports::gateway::Credential;

use crate::harness::*;

/// Edge `e1`, its child edge `e2`, leaf `leaf` of `e2`, leaf `direct` of `e1`, module `e1/m1`, and a stranger `e9`.
async fn nested() -> TestHub {
    let test = TestHub::new().await;
    let edge = |parents: Vec<String>| IdentitySpec {
        iot_edge: true,
        parent_scopes: parents,
        ..IdentitySpec::default()
    };
    let leaf = |scope: &str| IdentitySpec {
        device_scope: Some(scope.to_owned()),
        ..IdentitySpec::default()
    };
    let e1 = test
        .create_with("e1", &edge(vec![]))
        .await
        .device_scope
        .expect("edge");
    let e2 = test
        .create_with("e2", &edge(vec![e1.clone()]))
        .await
        .device_scope
        .expect("edge");
    test.create_with("leaf", &leaf(&e2)).await;
    test.create_with("direct", &leaf(&e1)).await;
    test.create("e1/m1").await;
    test.create_with("e9", &edge(vec![])).await;
    test
}

#[tokio::test]
async fn registered_chains_are_let_in() {
    let test = nested().await;
    let token = test.token("e1/$edgeHub").await;
    for (target, chain) in [
        ("e1/m1", "e1/m1;e1"),
        ("direct", "direct;e1"),
        ("leaf", "leaf;e2;e1"),
        ("e2", "e2;e1"),
        ("e2/$edgeAgent", "e2/$edgeAgent;e2;e1"),
    ] {
        let connected = test
            .connect_chain(target, Credential::Sas(&token), Some(chain))
            .await;
        let session = connected
            .unwrap_or_else(|error| panic!("{chain}: {error}"))
            .session;
        assert_eq!(
            session.identity().as_str(),
            target,
            "the connection counts as the target's"
        );
    }
}

#[tokio::test]
async fn broken_chains_are_refused() {
    let test = nested().await;
    let token = test.token("e1/$edgeHub").await;
    for (target, chain) in [
        // The first element is not the target.
        ("leaf", "direct;e1"),
        ("e1/m1", "e1;e1"),
        // Links that are not registered.
        ("leaf", "leaf;e1"),
        ("direct", "direct;e2;e1"),
        ("e9", "e9;e1"),
        ("direct", "direct;direct;e1"),
        ("e2/m", "e2/m;e1"),
        // An element that is no device, or does not exist.
        ("leaf", "leaf;e2;no such device;e1"),
        ("leaf", "leaf;ghost;e1"),
        // Too long to be anything.
        ("leaf", "leaf;e2;e2;e2;e2;e2;e2;e1"),
    ] {
        refused(
            test.connect_chain(target, Credential::Sas(&token), Some(chain))
                .await,
        );
    }
}

#[tokio::test]
async fn the_token_must_be_the_actors() {
    let test = nested().await;
    for wrong in ["e2/$edgeHub", "e9/$edgeHub", "e1", "e1/$edgeAgent", "direct"] {
        let token = test.token(wrong).await;
        refused(
            test.connect_chain("direct", Credential::Sas(&token), Some("direct;e1"))
                .await,
        );
    }
    // Right name, wrong key.
    let forged = test.sign(
        &resource("e1/$edgeHub"),
        &test.primary_key("e9/$edgeHub").await,
        None,
    );
    refused(
        test.connect_chain("direct", Credential::Sas(&forged), Some("direct;e1"))
            .await,
    );
    let policy = test.policy_token(HOST, "iothubowner");
    refused(
        test.connect_chain("direct", Credential::Sas(&policy), Some("direct;e1"))
            .await,
    );
    refused(
        test.connect_chain(
            "direct",
            Credential::Certificates(&[bytes("x")]),
            Some("direct;e1"),
        )
        .await,
    );
    assert_eq!(
        refused(
            test.connect_chain("direct", Credential::None, Some("direct;e1"))
                .await
        ),
        ErrorCode::IotHubUnauthorizedAccess
    );
}

#[tokio::test]
async fn one_element_is_an_ordinary_login() {
    let test = nested().await;
    let own = test.token("direct").await;
    for chain in ["direct", "", ";"] {
        assert!(
            test.connect_chain("direct", Credential::Sas(&own), Some(chain))
                .await
                .is_ok(),
            "{chain:?}"
        );
    }
    let gateway = test.token("e1/$edgeHub").await;
    refused(
        test.connect_chain("direct", Credential::Sas(&gateway), Some("direct"))
            .await,
    );
}

#[tokio::test]
async fn everybody_in_the_chain_must_be_enabled() {
    for disabled in ["leaf", "e2", "e1"] {
        let test = nested().await;
        let token = test.token("e1/$edgeHub").await;
        let record = test.record(disabled).await;
        let spec = IdentitySpec {
            status: Status::Disabled,
            iot_edge: record.iot_edge,
            device_scope: record.device_scope,
            parent_scopes: record.parent_scopes,
            ..IdentitySpec::default()
        };
        test.hub
            .update_identity(&OWNER, &identity(disabled), &spec, IfMatch::Any)
            .await
            .expect("disabled");
        refused(
            test.connect_chain("leaf", Credential::Sas(&token), Some("leaf;e2;e1"))
                .await,
        );
        assert_eq!(test.metrics.refusals.of(Refusal::Disabled).get(), 1, "{disabled}");
    }
}
