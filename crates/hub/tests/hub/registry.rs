//! The identity registry (rest.md 5.1 to 5.3).

use holdfast_hub::{AuthenticationSpec, IdentitySpec, IfMatch, KeyChoice, ServiceCaller};
use holdfast_model::credential::{SymmetricKey, Thumbprint};
use holdfast_model::policy::Rights;
use holdfast_model::registry::{Authentication, RegistryStatistics, Status};
use holdfast_model::{ErrorCode, Result};

use crate::harness::*;

fn code<T: std::fmt::Debug>(result: Result<T>) -> ErrorCode {
    result.expect_err("must be refused").code
}

fn service() -> ServiceCaller {
    ServiceCaller::Policy {
        name: "iothubowner".to_owned(),
        rights: Rights::REGISTRY_WRITE,
    }
}

fn edge() -> IdentitySpec {
    IdentitySpec {
        iot_edge: true,
        ..IdentitySpec::default()
    }
}

#[tokio::test]
async fn create_read_update_delete() {
    let test = TestHub::new().await;
    let d1 = identity("d1");
    let created = test.create("d1").await;
    assert_eq!(created.version, 1);
    assert_eq!(created.generation_id.to_string().len(), 18);
    let (primary, secondary) = keys(&created);
    assert_ne!(primary, secondary);
    assert_eq!(test.record("d1").await, created);
    assert_eq!(
        code(
            test.hub
                .create_identity(&service(), &d1, &IdentitySpec::default())
                .await
        ),
        ErrorCode::DeviceAlreadyExists
    );

    let disabled = IdentitySpec {
        status: Status::Disabled,
        status_reason: Some("in repair".to_owned()),
        ..IdentitySpec::default()
    };
    for stale in [IfMatch::Version(7), IfMatch::Never] {
        assert_eq!(
            code(test.hub.put_identity(&service(), &d1, &disabled, stale).await),
            ErrorCode::PreconditionFailed
        );
    }
    let updated = test
        .hub
        .put_identity(&service(), &d1, &disabled, IfMatch::Version(1))
        .await
        .expect("the version matches");
    assert_eq!((updated.version, updated.status), (2, Status::Disabled));
    assert_eq!(keys(&updated).0, primary, "an update without keys keeps them");
    assert_eq!(updated.generation_id, created.generation_id);

    assert_eq!(
        code(test.hub.delete_identity(&d1, IfMatch::Version(1)).await),
        ErrorCode::PreconditionFailed
    );
    test.hub
        .delete_identity(&d1, IfMatch::Version(2))
        .await
        .expect("the version matches");
    for result in [
        test.hub.identity(&d1).await.map(drop),
        test.hub.delete_identity(&d1, IfMatch::Any).await,
        test.hub.delete_identity(&d1, IfMatch::Never).await,
        test.hub
            .put_identity(&service(), &d1, &disabled, IfMatch::Any)
            .await
            .map(drop),
        test.hub.list_modules(&d1).await.map(drop),
        test.hub.twin(&d1).await.map(drop),
    ] {
        assert_eq!(code(result), ErrorCode::DeviceNotFound);
    }
    let again = test.create("d1").await;
    assert!(again.generation_id > created.generation_id);
}

#[tokio::test]
async fn modules_belong_to_devices() {
    let test = TestHub::new().await;
    let m1 = identity("d1/m1");
    let spec = IdentitySpec {
        managed_by: Some("IotEdge".to_owned()),
        ..IdentitySpec::default()
    };
    assert_eq!(
        code(test.hub.create_identity(&service(), &m1, &spec).await),
        ErrorCode::DeviceNotFound
    );
    test.create("d1").await;
    let module = test.create_with("d1/m1", &spec).await;
    assert_eq!(module.managed_by.as_deref(), Some("IotEdge"));
    assert_eq!(
        code(test.hub.create_identity(&service(), &m1, &spec).await),
        ErrorCode::ModuleAlreadyExistsOnDevice
    );
    for index in 2..=50 {
        test.create(&format!("d1/m{index}")).await;
    }
    assert_eq!(
        code(
            test.hub
                .create_identity(&service(), &identity("d1/m51"), &spec)
                .await
        ),
        ErrorCode::TooManyModulesOnDevice
    );
    assert_eq!(
        test.hub
            .list_modules(&identity("d1"))
            .await
            .expect("a list")
            .len(),
        50
    );
    test.hub
        .delete_identity(&m1, IfMatch::Any)
        .await
        .expect("deleted");
    assert_eq!(code(test.hub.identity(&m1).await), ErrorCode::ModuleNotFound);
    assert_eq!(
        code(
            test.hub
                .create_identity(&service(), &identity("d1/$own"), &spec)
                .await
        ),
        ErrorCode::ArgumentInvalid
    );
}

#[tokio::test]
async fn credentials_follow_the_spec() {
    let test = TestHub::new().await;
    let (first, second) = (SymmetricKey::generate(), SymmetricKey::generate());
    let with = |authentication| IdentitySpec {
        authentication,
        ..IdentitySpec::default()
    };
    let sas = |primary_key, secondary_key| {
        with(AuthenticationSpec::Sas {
            primary_key,
            secondary_key,
        })
    };
    let own = test
        .create_with("own", &sas(Some(first.clone()), Some(second.clone())))
        .await;
    assert_eq!(keys(&own), (first.clone(), second));
    for half in [sas(Some(first.clone()), None), sas(None, Some(first))] {
        assert_eq!(
            code(
                test.hub
                    .create_identity(&service(), &identity("half"), &half)
                    .await
            ),
            ErrorCode::ArgumentInvalid
        );
    }
    let thumbprint = Thumbprint::parse(&"ab".repeat(20));
    let certificate = |primary_thumbprint, secondary_thumbprint| {
        with(AuthenticationSpec::SelfSigned {
            primary_thumbprint,
            secondary_thumbprint,
        })
    };
    test.create_with("cert", &certificate(None, thumbprint.clone()))
        .await;
    assert_eq!(
        code(
            test.hub
                .create_identity(&service(), &identity("none"), &certificate(None, None))
                .await
        ),
        ErrorCode::ArgumentInvalid
    );
    assert_eq!(
        code(
            test.hub
                .regenerate_keys(&service(), &identity("cert"), KeyChoice::Both)
                .await
        ),
        ErrorCode::InvalidOperation
    );
    // From certificates back to keys: there are none to keep, so the hub makes them.
    let back = test
        .hub
        .update_identity(
            &service(),
            &identity("cert"),
            &IdentitySpec::default(),
            IfMatch::Any,
        )
        .await
        .expect("updated");
    let (before_primary, before_secondary) = keys(&back);
    let rolled = test
        .hub
        .regenerate_keys(&service(), &identity("cert"), KeyChoice::Primary)
        .await
        .expect("rolled");
    assert!(keys(&rolled).0 != before_primary && keys(&rolled).1 == before_secondary);
    for long in [
        IdentitySpec {
            status_reason: Some("x".repeat(129)),
            ..IdentitySpec::default()
        },
        IdentitySpec {
            managed_by: Some("x".repeat(129)),
            ..IdentitySpec::default()
        },
    ] {
        assert_eq!(
            code(
                test.hub
                    .create_identity(&service(), &identity("long"), &long)
                    .await
            ),
            ErrorCode::ArgumentInvalid
        );
    }
}

#[tokio::test]
async fn edge_devices_have_a_scope_and_system_modules() {
    let test = TestHub::new().await;
    let created = test.create_with("e1", &edge()).await;
    let scope = created.device_scope.clone().expect("a scope");
    assert_eq!(scope, format!("ms-azure-iot-edge://e1-{}", created.generation_id));
    assert!(created.parent_scopes.is_empty());
    let modules = test.hub.list_modules(&identity("e1")).await.expect("a list");
    let ids: Vec<_> = modules
        .iter()
        .filter_map(|module| module.identity.module_id())
        .collect();
    assert_eq!(ids, ["$edgeAgent", "$edgeHub"]);
    assert!(
        modules
            .iter()
            .all(|module| matches!(module.authentication, Authentication::Sas { .. }))
    );
    // The scope stays, whatever a PUT says.
    let other = IdentitySpec {
        device_scope: Some("ms-azure-iot-edge://x-1".to_owned()),
        ..edge()
    };
    let updated = test
        .hub
        .update_identity(&service(), &identity("e1"), &other, IfMatch::Any)
        .await
        .expect("updated");
    assert_eq!(updated.device_scope, Some(scope));

    // A leaf becomes an edge device and gets what one needs.
    test.create("d1").await;
    let promoted = test
        .hub
        .update_identity(&service(), &identity("d1"), &edge(), IfMatch::Any)
        .await
        .expect("updated");
    assert!(promoted.device_scope.is_some());
    assert_eq!(
        test.hub
            .list_modules(&identity("d1"))
            .await
            .expect("a list")
            .len(),
        2
    );
}

#[tokio::test]
async fn services_may_not_touch_system_modules_and_their_device_may() {
    let test = TestHub::new().await;
    test.create_with("e1", &edge()).await;
    test.create_with("e2", &edge()).await;
    let agent = identity("e1/$edgeAgent");
    let spec = IdentitySpec::default();
    for result in [
        test.hub
            .update_identity(&service(), &agent, &spec, IfMatch::Any)
            .await
            .map(drop),
        test.hub.delete_identity(&agent, IfMatch::Any).await,
        test.hub
            .regenerate_keys(&service(), &agent, KeyChoice::Both)
            .await
            .map(drop),
    ] {
        assert_eq!(code(result), ErrorCode::SystemModuleModifyUnauthorizedAccess);
    }
    // identityd: PUT, PUT with keys, GET, DELETE of its own modules with the device's credential (rest.md 14.2).
    let device = ServiceCaller::Device(identity("e1"));
    let keyed = IdentitySpec {
        authentication: AuthenticationSpec::Sas {
            primary_key: Some(SymmetricKey::generate()),
            secondary_key: Some(SymmetricKey::generate()),
        },
        ..IdentitySpec::default()
    };
    test.hub
        .update_identity(&device, &agent, &keyed, IfMatch::Any)
        .await
        .expect("its own module");
    test.hub
        .create_identity(&device, &identity("e1/m1"), &spec)
        .await
        .expect("its own module");
    for foreign in ["e2/m1", "e1", "e3"] {
        assert_eq!(
            code(test.hub.create_identity(&device, &identity(foreign), &spec).await),
            ErrorCode::IotHubUnauthorizedAccess,
            "{foreign}"
        );
    }
}

#[tokio::test]
async fn parents_are_known_edge_devices_without_circles() {
    let test = TestHub::new().await;
    let e1 = test.create_with("e1", &edge()).await.device_scope.expect("edge");
    let leaf = |scope: &str| IdentitySpec {
        device_scope: Some(scope.to_owned()),
        ..IdentitySpec::default()
    };
    let below = |scope: &str| IdentitySpec {
        parent_scopes: vec![scope.to_owned()],
        ..edge()
    };
    let child = test.create_with("leaf", &leaf(&e1)).await;
    assert_eq!(child.device_scope.as_ref(), Some(&e1));
    assert_eq!(child.parent_scopes, std::slice::from_ref(&e1));
    let cleared = test
        .hub
        .update_identity(&service(), &identity("leaf"), &leaf(""), IfMatch::Any)
        .await
        .expect("cleared");
    assert!(cleared.device_scope.is_none() && cleared.parent_scopes.is_empty());

    let unknown = "ms-azure-iot-edge://e1-1";
    let two = IdentitySpec {
        parent_scopes: vec![e1.clone(), e1.clone()],
        ..edge()
    };
    for bad in [leaf(unknown), below(unknown), two] {
        assert_eq!(
            code(test.hub.create_identity(&service(), &identity("x"), &bad).await),
            ErrorCode::InvalidDeviceScope
        );
    }
    // Five levels fit, a sixth does not, and nobody is their own ancestor.
    let mut scope = e1.clone();
    for level in 2..=5 {
        scope = test
            .create_with(&format!("e{level}"), &below(&scope))
            .await
            .device_scope
            .expect("edge");
    }
    assert_eq!(
        code(
            test.hub
                .create_identity(&service(), &identity("e6"), &below(&scope))
                .await
        ),
        ErrorCode::InvalidDeviceScope
    );
    for circle in [&e1, &scope] {
        assert_eq!(
            code(
                test.hub
                    .update_identity(&service(), &identity("e1"), &below(circle), IfMatch::Any)
                    .await
            ),
            ErrorCode::InvalidDeviceScope
        );
    }
}

#[tokio::test]
async fn lists_and_counts() {
    let test = TestHub::new().await;
    for id in ["b", "a", "c"] {
        test.create(id).await;
    }
    test.create("a/m").await;
    let disabled = IdentitySpec {
        status: Status::Disabled,
        ..IdentitySpec::default()
    };
    test.create_with("d", &disabled).await;
    test.connect("b").await;
    let ids = |records: Vec<holdfast_model::registry::IdentityRecord>| -> Vec<String> {
        records
            .iter()
            .map(|record| format!("{}{}", record.identity, if record.connected { "!" } else { "" }))
            .collect()
    };
    for (after, limit, expected) in [
        (None, 0, vec!["a", "b!", "c", "d"]),
        (None, 5_000, vec!["a", "b!", "c", "d"]),
        (None, 2, vec!["a", "b!"]),
        (Some("b"), 2, vec!["c", "d"]),
    ] {
        let listed = test.hub.list_devices(after, limit).await.expect("a list");
        assert_eq!(ids(listed), expected);
    }
    assert_eq!(
        test.hub.registry_statistics().await,
        Ok(RegistryStatistics {
            total: 4,
            enabled: 3,
            disabled: 1
        })
    );
}

#[tokio::test]
async fn consumer_groups_are_kept() {
    let test = TestHub::new().await;
    test.hub.create_consumer_group("line-4").await.expect("new");
    assert_eq!(
        test.hub.consumer_groups().await,
        Ok(vec!["$Default".to_owned(), "line-4".to_owned()])
    );
    assert_eq!(
        code(test.hub.create_consumer_group("line-4").await),
        ErrorCode::ResourceConflict
    );
    for bad in ["", "$x", "a/b", &"x".repeat(51)] {
        assert_eq!(
            code(test.hub.create_consumer_group(bad).await),
            ErrorCode::ArgumentInvalid
        );
    }
    test.hub.delete_consumer_group("line-4").await.expect("deleted");
    for missing in ["line-4", "$Default"] {
        assert_eq!(
            code(test.hub.delete_consumer_group(missing).await),
            ErrorCode::ResourceNotFound
        );
    }
    for index in 1..20 {
        test.hub
            .create_consumer_group(&format!("g{index}"))
            .await
            .expect("room");
    }
    assert_eq!(
        code(test.hub.create_consumer_group("g20").await),
        ErrorCode::IotHubQuotaExceeded
    );
}
