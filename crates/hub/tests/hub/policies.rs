//! Shared access policies (rest.md 2.2).

use holdfast_hub::{KeyChoice, PolicyKeys};
use holdfast_model::ErrorCode;
use holdfast_model::credential::SymmetricKey;
use holdfast_model::policy::Rights;
use holdfast_ports::gateway::Credential;
use holdfast_ports::session::CloseReason;
use holdfast_ports::settings::SettingsStore as _;

use crate::harness::*;

#[tokio::test]
async fn a_new_hub_has_the_default_policies_and_keeps_them() {
    let test = TestHub::new().await;
    let names: Vec<_> = test
        .hub
        .policies()
        .into_iter()
        .map(|policy| policy.name)
        .collect();
    assert_eq!(
        names,
        [
            "device",
            "iothubowner",
            "registryRead",
            "registryReadWrite",
            "service"
        ]
    );
    let owner = test.hub.policy("iothubowner").expect("it exists");
    assert_eq!(
        owner.rights.names(),
        "RegistryRead, RegistryWrite, ServiceConnect, DeviceConnect"
    );
    test.hub.delete_policy("device").await.expect("deleted");
    test.hub.ensure_policies().await.expect("nothing to do");
    assert_eq!(test.hub.policies().len(), 4, "what was deleted stays deleted");
    let again = test.hub.policy("iothubowner").expect("it exists");
    assert_eq!(again.primary_key, owner.primary_key);
    assert_eq!(test.store.policies().await.expect("a store").len(), 4);
}

#[tokio::test]
async fn policies_change_at_once() {
    let test = TestHub::new().await;
    test.create("d1").await;
    let given = SymmetricKey::generate();
    let put = test
        .hub
        .put_policy(
            "back-end",
            Rights::SERVICE_CONNECT,
            PolicyKeys {
                primary_key: Some(given.clone()),
                secondary_key: None,
            },
        )
        .await
        .expect("saved");
    assert_eq!(put.primary_key, given);
    let token = test.policy_token(HOST, "back-end");
    let check = |token: &str| {
        test.hub
            .authorize_service(Some(token), "twins/d1", Rights::SERVICE_CONNECT)
    };
    assert!(check(&token).is_ok());
    let rolled = test
        .hub
        .regenerate_policy_keys("back-end", KeyChoice::Primary)
        .await
        .expect("rolled");
    assert_eq!(rolled.secondary_key, put.secondary_key);
    assert!(check(&token).is_err());
    let secondary = test.sign(HOST, &rolled.secondary_key, Some("back-end"));
    assert!(check(&secondary).is_ok());
    test.hub.delete_policy("back-end").await.expect("deleted");
    assert!(check(&secondary).is_err());
    assert_eq!(
        test.hub.delete_policy("back-end").await.expect_err("gone").code,
        ErrorCode::ResourceNotFound
    );
    assert!(
        test.hub
            .regenerate_policy_keys("back-end", KeyChoice::Both)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn sessions_that_came_by_a_policy_end_with_it() {
    let test = TestHub::new().await;
    test.create("d1").await;
    test.create("d2").await;
    let token = test.policy_token(HOST, "device");
    let by_policy = test
        .connect_with("d1", Credential::Sas(&token))
        .await
        .expect("good")
        .session;
    let by_key = test.connect("d2").await.session;
    test.hub.delete_policy("device").await.expect("deleted");
    assert_eq!(closed(&by_policy), Some(CloseReason::IdentityChanged));
    assert!(!by_key.is_ended());
}

#[tokio::test]
async fn bad_policies_are_refused() {
    let test = TestHub::new().await;
    for (name, rights) in [
        ("", Rights::SERVICE_CONNECT),
        ("a b", Rights::SERVICE_CONNECT),
        (&"x".repeat(65), Rights::SERVICE_CONNECT),
        ("good", Rights::NONE),
    ] {
        let refused = test.hub.put_policy(name, rights, PolicyKeys::default()).await;
        assert_eq!(refused.expect_err("bad").code, ErrorCode::ArgumentInvalid);
    }
}
