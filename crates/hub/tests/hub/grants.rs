//! Credentials that are put on a connection once and used by many links (AMQP contract, sections 1.5 and 2.4).

use std::time::Duration;

use holdfast_hub::{IdentitySpec, IfMatch, KeyChoice, PolicyKeys, ServiceCaller};
use holdfast_model::ErrorCode;
use holdfast_model::credential::SymmetricKey;
use holdfast_model::policy::Rights;
use holdfast_model::registry::Status;
use holdfast_ports::gateway::{Credential, DeviceGateway as _};
use holdfast_ports::service::{Holder, ServiceGateway as _};

use crate::harness::*;

#[tokio::test]
async fn a_token_of_an_identity_grants_that_identity() {
    let test = TestHub::new().await;
    for id in ["d1", "d1/m1", "d2"] {
        test.create(id).await;
    }
    let (key, _) = keys(&test.record("d1").await);
    for resource in [
        "hub.test/devices/d1",
        "amqps://hub.test:5671/devices/d1/",
        "sb://HUB.TEST/Devices/d1",
    ] {
        let grant = test
            .hub
            .verify_token(&test.sign(resource, &key, None))
            .await
            .expect("a good token");
        assert!(grant.allows_identity(&identity("d1")), "{resource}");
        assert!(!grant.allows_identity(&identity("d2")) && !grant.allows_identity(&identity("d1/m1")));
        assert!(!grant.allows_service(Rights::NONE, "messages/devicebound"));
        test.connect_with("d1", Credential::Granted(&grant))
            .await
            .expect("the grant is good");
        refused(test.connect_with("d2", Credential::Granted(&grant)).await);
    }
    for resource in [
        "hub.test/devices/d2",
        "other.test/devices/d1",
        "hub.test",
        "hub.test/devices/d1/modules/m1",
    ] {
        let refusal = test.hub.verify_token(&test.sign(resource, &key, None)).await;
        refusal.expect_err(resource);
    }
}

#[tokio::test]
async fn a_policy_token_grants_what_the_policy_allows_below_its_resource() {
    let test = TestHub::new().await;
    test.create("d1").await;
    let key = SymmetricKey::generate();
    let keys = PolicyKeys {
        primary_key: Some(key.clone()),
        secondary_key: None,
    };
    let rights = Rights::SERVICE_CONNECT;
    test.hub
        .put_policy("reader", rights, keys)
        .await
        .expect("a policy");
    let grant = test
        .hub
        .verify_token(&test.sign("sb://hub.test/events", &key, Some("reader")))
        .await
        .expect("good");
    assert!(grant.allows_service(rights, "events/ConsumerGroups/$Default/Partitions/0"));
    assert!(
        !grant.allows_service(rights, "messages/devicebound"),
        "outside its resource"
    );
    assert!(!grant.allows_identity(&identity("d1")), "without DeviceConnect");
    assert!(test.hub.is_current(&grant));

    let raw = test
        .hub
        .verify_policy_key("reader", key.reveal())
        .expect("the key itself");
    assert!(raw.allows_service(rights, "events"));
    test.hub
        .verify_policy_key("reader", SymmetricKey::generate().reveal())
        .expect_err("a wrong key");
    test.hub
        .verify_policy_key("nobody", key.reveal())
        .expect_err("an unknown policy");

    // It ends with the key that proved it, not with the other one.
    test.hub
        .regenerate_policy_keys("reader", KeyChoice::Secondary)
        .await
        .expect("a new key");
    assert!(test.hub.is_current(&grant) && test.hub.is_current(&raw));
    test.hub
        .regenerate_policy_keys("reader", KeyChoice::Primary)
        .await
        .expect("a new key");
    assert!(!test.hub.is_current(&grant) && !test.hub.is_current(&raw));

    let policy = test.hub.policy("reader").expect("a policy");
    let token = test.sign("sb://hub.test/events", &policy.primary_key, Some("reader"));
    let grant = test.hub.verify_token(&token).await.expect("good");
    assert!(test.hub.is_current(&grant));
    test.hub.delete_policy("reader").await.expect("deleted");
    assert!(!test.hub.is_current(&grant));
}

#[tokio::test]
async fn a_grant_does_not_outlive_its_token_or_its_identity() {
    let test = TestHub::new().await;
    let (key, _) = keys(&test.create("d1").await);
    let grant = test
        .hub
        .verify_token(&test.sign("hub.test/devices/d1", &key, None))
        .await
        .expect("good");
    assert!(matches!(&grant.holder, Holder::Identity(own) if own.as_str() == "d1"));
    let connected = test
        .connect_with("d1", Credential::Granted(&grant))
        .await
        .expect("good");
    assert_eq!(connected.session.expires_at(), grant.expires_at);

    let later = grant.expires_at.plus(Duration::from_secs(3_600));
    test.hub.renew(&connected.session, later);
    assert_eq!(connected.session.expires_at(), later);

    let spec = IdentitySpec {
        status: Status::Disabled,
        ..IdentitySpec::default()
    };
    let caller = ServiceCaller::Local;
    test.hub
        .update_identity(&caller, &identity("d1"), &spec, IfMatch::Any)
        .await
        .expect("disabled");
    assert!(connected.session.is_ended());
    assert_eq!(
        refused(test.connect_with("d1", Credential::Granted(&grant)).await),
        ErrorCode::IotHubUnauthorizedAccess
    );
    test.create("d2").await;
    let token = test.token("d2").await;
    let grant = test.hub.verify_token(&token).await.expect("good");
    test.clock.advance(Duration::from_secs(2 * 3_600));
    refused(test.connect_with("d2", Credential::Granted(&grant)).await);
}
