//! Tokens of devices, modules and policies at login (rest.md 2.1, mqtt.md 2.2).

use std::time::Duration;

use holdfast_hub::events::Refusal;
use holdfast_hub::{AuthenticationSpec, IdentitySpec, PolicyKeys};
use holdfast_model::ErrorCode;
use holdfast_model::credential::{SymmetricKey, sign_sas};
use holdfast_model::event::AuthMethod;
use holdfast_model::policy::Rights;
use holdfast_model::registry::Status;
use holdfast_ports::gateway::{Credential, DeviceGateway as _};

use crate::harness::*;

#[tokio::test]
async fn either_key_opens_a_session() {
    let test = TestHub::new().await;
    let (primary, secondary) = keys(&test.create("d1").await);
    for key in [primary, secondary] {
        let token = test.sign(&resource("d1"), &key, None);
        let connected = test
            .connect_with("d1", Credential::Sas(&token))
            .await
            .expect("the key is good");
        assert_eq!(connected.session.identity().as_str(), "d1");
        assert_eq!(connected.session.origin.auth, AuthMethod::IdentityKey);
        assert_eq!(
            connected.session.expires_at(),
            test.now().plus(Duration::from_secs(3_600))
        );
    }
}

#[tokio::test]
async fn modules_need_their_own_key() {
    let test = TestHub::new().await;
    test.create("d1").await;
    test.create("d1/m1").await;
    test.connect("d1/m1").await;
    let device_key = test.primary_key("d1").await;
    for sr in [resource("d1"), resource("d1/m1")] {
        let token = test.sign(&sr, &device_key, None);
        refused(test.connect_with("d1/m1", Credential::Sas(&token)).await);
    }
    // Nor does a module's token open its device's session.
    let token = test.token("d1/m1").await;
    assert_eq!(
        refused(test.connect_with("d1", Credential::Sas(&token)).await),
        ErrorCode::IotHubUnauthorized
    );
}

#[tokio::test]
async fn every_spelling_of_the_host_is_known_and_no_other() {
    let test = TestHub::new().await;
    let (key, _) = keys(&test.create("d1").await);
    for good in [
        "hub.test/devices/d1",
        "HUB.TEST/devices/D1",
        "gateway.test/devices/d1",
    ] {
        let token = test.sign(good, &key, None);
        assert!(
            test.connect_with("d1", Credential::Sas(&token)).await.is_ok(),
            "{good}"
        );
    }
    for bad in [
        "other.test/devices/d1",
        "hub.test/devices/d2",
        "hub.test/devices",
        "hub.test",
        "hub.test/devices/d1/modules/m1",
        "devices/d1",
        "",
    ] {
        let token = test.sign(bad, &key, None);
        assert_eq!(
            refused(test.connect_with("d1", Credential::Sas(&token)).await),
            ErrorCode::IotHubUnauthorized,
            "{bad}"
        );
    }
    assert_eq!(test.metrics.refusals.of(Refusal::WrongResource).get(), 7);
}

#[tokio::test]
async fn expiry_has_five_minutes_of_skew() {
    let test = TestHub::new().await;
    let (key, _) = keys(&test.create("d1").await);
    let sign = |expiry| sign_sas(&resource("d1"), &key, expiry, None);
    let skewed = sign(test.now().minus(Duration::from_secs(299)));
    assert!(test.connect_with("d1", Credential::Sas(&skewed)).await.is_ok());
    let expired = sign(test.now().minus(Duration::from_secs(301)));
    assert_eq!(
        refused(test.connect_with("d1", Credential::Sas(&expired)).await),
        ErrorCode::IotHubUnauthorized
    );
    assert_eq!(test.metrics.refusals.of(Refusal::TokenExpired).get(), 1);
}

#[tokio::test]
async fn wrong_keys_unknown_and_disabled_devices_look_alike() {
    let test = TestHub::new().await;
    let (key, _) = keys(&test.create("d1").await);
    let wrong = test.sign(&resource("d1"), &SymmetricKey::generate(), None);
    let unknown = test.sign(&resource("nobody"), &key, None);
    let mut errors = vec![
        test.connect_with("d1", Credential::Sas(&wrong))
            .await
            .expect_err("wrong"),
        test.connect_with("nobody", Credential::Sas(&unknown))
            .await
            .expect_err("unknown"),
        test.connect_with("d1", Credential::None)
            .await
            .expect_err("nothing"),
    ];
    test.hub
        .update_identity(
            &OWNER,
            &identity("d1"),
            &IdentitySpec {
                status: Status::Disabled,
                ..IdentitySpec::default()
            },
            holdfast_hub::IfMatch::Any,
        )
        .await
        .expect("disabled");
    let good = test.sign(&resource("d1"), &key, None);
    errors.push(
        test.connect_with("d1", Credential::Sas(&good))
            .await
            .expect_err("disabled"),
    );
    for error in &errors {
        assert_eq!(error, &errors[0]);
        assert_eq!(error.code, ErrorCode::IotHubUnauthorizedAccess);
    }
    for reason in [
        Refusal::WrongKey,
        Refusal::UnknownIdentity,
        Refusal::NoCredential,
        Refusal::Disabled,
    ] {
        assert_eq!(test.metrics.refusals.of(reason).get(), 1, "{reason:?}");
    }
}

#[tokio::test]
async fn a_disabled_device_disables_its_modules() {
    let test = TestHub::new().await;
    test.create("d1").await;
    test.create("d1/m1").await;
    let token = test.token("d1/m1").await;
    let disabled = IdentitySpec {
        status: Status::Disabled,
        ..IdentitySpec::default()
    };
    test.hub
        .update_identity(&OWNER, &identity("d1"), &disabled, holdfast_hub::IfMatch::Any)
        .await
        .expect("disabled");
    refused(test.connect_with("d1/m1", Credential::Sas(&token)).await);
    assert_eq!(test.metrics.refusals.of(Refusal::Disabled).get(), 1);
}

#[tokio::test]
async fn malformed_requests_are_refused() {
    let test = TestHub::new().await;
    test.create("d1").await;
    for token in [
        "",
        "Bearer x",
        "SharedAccessSignature sr=x",
        "SharedAccessSignature sr=a&sig=%zz&se=1",
    ] {
        assert_eq!(
            refused(test.connect_with("d1", Credential::Sas(token)).await),
            ErrorCode::IotHubUnauthorized,
            "{token}"
        );
    }
    let token = test.token("d1").await;
    for id in ["", "a b", "d1/", "d1/a/b"] {
        refused(test.connect_with(id, Credential::Sas(&token)).await);
    }
    assert_eq!(test.metrics.refusals.of(Refusal::MalformedIdentity).get(), 4);
    refused(test.connect_with("d1", Credential::Certificates(&[])).await);
}

#[tokio::test]
async fn policy_tokens_need_device_connect_and_a_covering_resource() {
    let test = TestHub::new().await;
    test.create("d1").await;
    test.create("d1/m1").await;
    for policy in ["iothubowner", "device"] {
        for sr in ["hub.test", "hub.test/devices", "hub.test/devices/d1"] {
            let token = test.policy_token(sr, policy);
            for id in ["d1", "d1/m1"] {
                let connected = test
                    .connect_with(id, Credential::Sas(&token))
                    .await
                    .expect("the policy may connect");
                assert_eq!(connected.session.origin.auth, AuthMethod::PolicyKey);
            }
        }
    }
    for policy in ["service", "registryReadWrite"] {
        let token = test.policy_token("hub.test/devices/d1", policy);
        refused(test.connect_with("d1", Credential::Sas(&token)).await);
    }
    assert_eq!(test.metrics.refusals.of(Refusal::MissingRight).get(), 2);
    let other_device = test.policy_token("hub.test/devices/d2", "device");
    refused(test.connect_with("d1", Credential::Sas(&other_device)).await);
    let key = SymmetricKey::generate();
    let unknown = test.sign("hub.test", &key, Some("nobody"));
    refused(test.connect_with("d1", Credential::Sas(&unknown)).await);
    let wrong = test.sign("hub.test", &key, Some("device"));
    refused(test.connect_with("d1", Credential::Sas(&wrong)).await);
    // A policy's secondary key works too; a policy token for a device that does not exist does not.
    let secondary = test.hub.policy("device").expect("it exists").secondary_key;
    let token = test.sign("hub.test", &secondary, Some("device"));
    assert!(test.connect_with("d1", Credential::Sas(&token)).await.is_ok());
    refused(test.connect_with("ghost", Credential::Sas(&token)).await);
}

#[tokio::test]
async fn a_device_without_keys_takes_no_token() {
    let test = TestHub::new().await;
    let spec = IdentitySpec {
        authentication: AuthenticationSpec::None,
        ..IdentitySpec::default()
    };
    test.create_with("d1", &spec).await;
    let token = test.sign(&resource("d1"), &SymmetricKey::generate(), None);
    refused(test.connect_with("d1", Credential::Sas(&token)).await);
    assert_eq!(test.metrics.refusals.of(Refusal::OtherCredentialKind).get(), 1);
}

#[tokio::test]
async fn requests_without_session_are_admitted_likewise() {
    let test = TestHub::new().await;
    test.create("d1").await;
    let token = test.token("d1").await;
    let admitted = test
        .hub
        .admit(access("d1", Credential::Sas(&token)))
        .await
        .expect("good");
    assert_eq!(admitted.origin.identity.as_str(), "d1");
    assert_eq!(admitted.partition, holdfast_hub::partition_of("d1", 4));
    assert_eq!(test.hub.connected_sessions(), 0);
    assert!(test.hub.admit(access("d1", Credential::None)).await.is_err());
}

#[tokio::test]
async fn services_need_the_right_and_the_scope() {
    let test = TestHub::new().await;
    let check = |token: &str, path: &str, needed| {
        test.hub
            .authorize_service(Some(token), path, needed)
            .map(drop)
            .map_err(|error| error.code)
    };
    let owner = test.policy_token(HOST, "iothubowner");
    for needed in [
        Rights::REGISTRY_READ,
        Rights::REGISTRY_WRITE,
        Rights::SERVICE_CONNECT,
    ] {
        assert_eq!(check(&owner, "twins/d1", needed), Ok(()));
    }
    let reader = test.policy_token(HOST, "registryRead");
    assert_eq!(check(&reader, "devices/d1", Rights::REGISTRY_READ), Ok(()));
    let writer = test.policy_token(HOST, "registryReadWrite");
    assert_eq!(check(&writer, "devices/d1", Rights::REGISTRY_READ), Ok(()));
    for (token, needed) in [
        (&reader, Rights::REGISTRY_WRITE),
        (&writer, Rights::SERVICE_CONNECT),
        (&test.policy_token(HOST, "device"), Rights::REGISTRY_READ),
    ] {
        assert_eq!(
            check(token, "devices/d1", needed),
            Err(ErrorCode::IotHubUnauthorizedAccess)
        );
    }
    let narrow = test.policy_token("hub.test/twins", "service");
    assert_eq!(check(&narrow, "twins/d1", Rights::SERVICE_CONNECT), Ok(()));
    assert_eq!(
        check(&narrow, "devices/d1", Rights::SERVICE_CONNECT),
        Err(ErrorCode::IotHubUnauthorized)
    );
    let foreign = test.policy_token("other.test", "iothubowner");
    assert_eq!(
        check(&foreign, "devices", Rights::REGISTRY_READ),
        Err(ErrorCode::IotHubUnauthorized)
    );
    assert!(
        test.hub
            .authorize_service(None, "devices", Rights::REGISTRY_READ)
            .is_err()
    );
    test.clock.advance(Duration::from_secs(3_600 + 301));
    assert_eq!(
        check(&owner, "devices", Rights::REGISTRY_READ),
        Err(ErrorCode::IotHubUnauthorized)
    );
}

#[tokio::test]
async fn a_device_token_is_not_a_service_token_but_opens_its_own_modules() {
    let test = TestHub::new().await;
    test.create("d1").await;
    test.create("d1/m1").await;
    let token = test.token("d1").await;
    assert!(
        test.hub
            .authorize_service(Some(&token), "devices/d1", Rights::REGISTRY_READ)
            .is_err()
    );
    let own = |id: &'static str, token: String| {
        let hub = test.hub.clone();
        async move {
            hub.authorize_own_modules(access(id, Credential::Sas(&token)))
                .await
        }
    };
    assert_eq!(
        own("d1", token.clone()).await,
        Ok(holdfast_hub::ServiceCaller::Device(identity("d1")))
    );
    assert!(own("d2", token).await.is_err());
    assert!(own("d1", test.token("d1/m1").await).await.is_err());
}

#[tokio::test]
async fn a_policy_of_ones_own_lets_in_until_its_key_changes() {
    let test = TestHub::new().await;
    test.create("d1").await;
    test.hub
        .put_policy("line-4", Rights::DEVICE_CONNECT, PolicyKeys::default())
        .await
        .expect("saved");
    let token = test.policy_token(HOST, "line-4");
    let session = test
        .connect_with("d1", Credential::Sas(&token))
        .await
        .expect("good")
        .session;
    test.hub
        .regenerate_policy_keys("line-4", holdfast_hub::KeyChoice::Both)
        .await
        .expect("saved");
    assert!(session.is_ended());
    refused(test.connect_with("d1", Credential::Sas(&token)).await);
}
