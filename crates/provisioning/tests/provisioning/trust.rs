//! Who is let in.

use std::time::Duration;

use bytes::Bytes;
use holdfast_model::credential::{SymmetricKey, sign_sas};
use holdfast_model::provisioning::{OWNER_POLICY, ProvisioningRights as Rights, RegistrationStatus};
use holdfast_model::{ErrorCode, Timestamp};
use holdfast_ports::clock::Clock as _;
use holdfast_ports::enrollment::{Expected, HubCredential};
use holdfast_ports::gateway::{Credential, Protocol};
use holdfast_ports::provisioning::{EntryId, ProvisioningGateway as _, RegistrationAccess};
use holdfast_ports::settings::{CertificateAuthority, SettingsStore as _};
use holdfast_provisioning::{AttestationSpec, CertificateSpec};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::harness::{HOST, Rig, SCOPE, START, by_key};

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn params(name: &str, days: i64) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.distinguished_name.push(DnType::CommonName, name);
    let at = |seconds: i64| {
        let since = Duration::from_secs(u64::try_from(seconds).expect("after 1970"));
        (std::time::UNIX_EPOCH + since).into()
    };
    params.not_before = at(START - 86_400);
    params.not_after = at(START + days * 86_400);
    params
}

fn ca(name: &str, parent: Option<&Issuer>) -> Issuer {
    let mut params = params(name, 100);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    match parent {
        None => CertifiedIssuer::self_signed(params, key).expect("a certificate"),
        Some(parent) => CertifiedIssuer::signed_by(params, key, parent).expect("a certificate"),
    }
}

fn leaf(name: &str, days: i64, issuer: &Issuer) -> Bytes {
    let key = KeyPair::generate().expect("a key");
    let made = params(name, days).signed_by(&key, issuer).expect("a certificate");
    Bytes::copy_from_slice(made.der())
}

fn der(issuer: &Issuer) -> Bytes {
    Bytes::copy_from_slice(issuer.der())
}

fn signed_under(issuer: &Issuer) -> AttestationSpec {
    AttestationSpec::SigningCertificates {
        primary: Some(CertificateSpec::Text(issuer.pem())),
        secondary: None,
    }
}

async fn refused(rig: &Rig, id: &str, chain: &[Bytes]) -> ErrorCode {
    let outcome = rig.prove(id, Credential::Certificates(chain)).await;
    outcome.expect_err("it is refused").code
}

#[tokio::test]
async fn tokens_are_checked() {
    let rig = Rig::start().await;
    let key = rig.enroll("d", |_| {}).await;
    let resource = format!("{SCOPE}/registrations/d");
    let later = rig.clock.now().plus(Duration::from_secs(60));
    let sign = |resource: &str, key: &SymmetricKey, expiry: Timestamp| sign_sas(resource, key, expiry, None);
    rig.prove("d", Credential::Sas(&sign(&resource.to_lowercase(), &key, later)))
        .await
        .expect("a lower-cased resource is fine");
    let ended = rig.clock.now().minus(Duration::from_secs(3_600));
    for (what, token) in [
        ("another key", sign(&resource, &SymmetricKey::generate(), later)),
        ("expired", sign(&resource, &key, ended)),
        (
            "another device",
            sign(&format!("{SCOPE}/registrations/e"), &key, later),
        ),
        ("the whole scope", sign(SCOPE, &key, later)),
        ("another scope", sign("x/registrations/d", &key, later)),
        ("no token", "garbage".to_owned()),
    ] {
        let error = rig.prove("d", Credential::Sas(&token)).await.expect_err(what);
        assert_eq!(error.code, ErrorCode::IotHubUnauthorizedAccess, "{what}");
        assert!(!error.message.contains(key.reveal()));
    }
    let error = rig.prove("d", Credential::None).await.expect_err("nothing");
    assert_eq!(error.code, ErrorCode::IotHubUnauthorizedAccess);
    let token = sign(&format!("{SCOPE}/registrations/e"), &key, later);
    let error = rig
        .prove("e", Credential::Sas(&token))
        .await
        .expect_err("unknown");
    assert_eq!(error.code, ErrorCode::EnrollmentNotFound);
    let access = RegistrationAccess {
        id_scope: "0neOTHER",
        registration_id: "d",
        credential: Credential::Sas(&token),
        protocol: Protocol::Mqtt,
    };
    let error = rig.engine.authenticate(access).await.expect_err("foreign");
    assert_eq!(error.code, ErrorCode::EnrollmentNotFound);
}

#[tokio::test]
async fn an_enrolled_certificate_is_just_that_one() {
    let rig = Rig::start().await;
    let root = ca("root", None);
    let (own, twin, old) = (
        leaf("dev", 10, &root),
        leaf("dev", 10, &root),
        leaf("old", -1, &root),
    );
    let enroll = |certificate: &Bytes| {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(certificate);
        move |spec: &mut holdfast_provisioning::IndividualSpec| {
            spec.enrollment.attestation = AttestationSpec::ClientCertificates {
                primary: Some(CertificateSpec::Text(text)),
                secondary: None,
            };
        }
    };
    for (id, certificate) in [("DEV", &own), ("old", &old)] {
        let mut spec = holdfast_provisioning::IndividualSpec {
            device_id: None,
            device_information: None,
            enrollment: by_key(),
        };
        enroll(certificate)(&mut spec);
        rig.engine
            .put_enrollment(id, spec, Expected::Absent)
            .await
            .expect("an enrollment");
    }
    let registrant = rig
        .prove("dev", Credential::Certificates(std::slice::from_ref(&own)))
        .await;
    let registrant = registrant.expect("it is the enrolled one");
    let done = rig.engine.register(&registrant, None).await.expect("assigned");
    assert_eq!(done.status, RegistrationStatus::Assigned);
    assert_eq!(done.certificate.expect("described").subject_name, "CN=dev");
    let device = rig.own().devices.lock()["dev"].clone();
    assert!(matches!(device.credential, HubCredential::Thumbprints { primary, .. } if primary.matches(&own)));
    let denied = ErrorCode::IotHubUnauthorizedAccess;
    assert_eq!(refused(&rig, "dev", &[twin]).await, denied);
    assert_eq!(refused(&rig, "old", std::slice::from_ref(&old)).await, denied);
    assert_eq!(refused(&rig, "dev", &[old]).await, denied, "another name");
}

#[tokio::test]
async fn the_nearest_authority_decides() {
    let rig = Rig::start().await;
    let root = ca("root", None);
    let line = ca("line", Some(&root));
    let cell = ca("cell", Some(&line));
    rig.engine
        .put_group("plant", by_key_with(signed_under(&root)), Expected::Absent)
        .await
        .expect("a group");
    rig.engine
        .put_group("line", by_key_with(signed_under(&line)), Expected::Absent)
        .await
        .expect("a group");
    let chain = [leaf("D-1", 10, &cell), der(&cell), der(&line), der(&root)];
    let registrant = rig
        .prove("d-1", Credential::Certificates(&chain))
        .await
        .expect("in");
    assert!(matches!(&registrant.entry, EntryId::Group(group) if group.as_str() == "line"));
    rig.engine.register(&registrant, None).await.expect("assigned");
    // The intermediate is missing, a stranger's chain, an expired leaf, another name.
    let denied = ErrorCode::IotHubUnauthorizedAccess;
    assert_eq!(refused(&rig, "D-1", &chain[..1]).await, denied);
    let stranger = ca("root", None);
    assert_eq!(
        refused(&rig, "x", &[leaf("x", 10, &stranger), der(&stranger)]).await,
        denied
    );
    assert_eq!(refused(&rig, "x", &[leaf("x", -1, &line)]).await, denied);
    assert_eq!(refused(&rig, "y", &[leaf("x", 10, &line)]).await, denied);
    // A CA certificate is no device, and a loop is no chain.
    assert_eq!(refused(&rig, "cell", &[der(&cell), der(&line)]).await, denied);
    assert_eq!(
        refused(
            &rig,
            "x",
            &[leaf("x", 10, &stranger), der(&stranger), der(&stranger)]
        )
        .await,
        denied
    );
}

fn by_key_with(attestation: AttestationSpec) -> holdfast_provisioning::EnrollmentSpec {
    holdfast_provisioning::EnrollmentSpec {
        attestation,
        ..by_key()
    }
}

#[tokio::test]
async fn references_need_a_verified_authority() {
    let rig = Rig::start().await;
    let root = ca("root", None);
    let authority = |verified| CertificateAuthority {
        name: "plant".into(),
        certificate: der(&root),
        verified,
        verification_code: None,
        created_at: Timestamp::NEVER,
        updated_at: Timestamp::NEVER,
        version: 1,
    };
    let spec = by_key_with(AttestationSpec::AuthorityReferences {
        primary: Some("plant".into()),
        secondary: None,
    });
    rig.engine
        .put_group("crew", spec, Expected::Absent)
        .await
        .expect("a group");
    let chain = [leaf("d", 10, &root)];
    assert_eq!(refused(&rig, "d", &chain).await, ErrorCode::EnrollmentNotFound);
    rig.store.put_authority(authority(false)).await.expect("stored");
    assert_eq!(refused(&rig, "d", &chain).await, ErrorCode::EnrollmentNotFound);
    rig.store.put_authority(authority(true)).await.expect("stored");
    rig.prove("d", Credential::Certificates(&chain))
        .await
        .expect("in");
}

#[tokio::test]
async fn services_need_a_policy_with_the_right() {
    let rig = Rig::start().await;
    let engine = &rig.engine;
    let owner = engine.policy(OWNER_POLICY).expect("made at the first start");
    let later = rig.clock.now().plus(Duration::from_secs(60));
    let token = sign_sas(HOST, &owner.primary_key, later, Some(OWNER_POLICY));
    let granted = engine.authorize_service(Some(&token), "enrollments/d", Rights::ALL);
    assert_eq!(granted.as_deref(), Ok(OWNER_POLICY));
    let reader = engine
        .put_policy("reader", Rights::ENROLLMENT_READ, None, None)
        .await
        .expect("a policy");
    let token = sign_sas(HOST, &reader.secondary_key, later, Some("reader"));
    engine
        .authorize_service(Some(&token), "enrollments/d", Rights::ENROLLMENT_READ)
        .expect("it may read");
    engine
        .authorize_service(Some(&token), "enrollments/d", Rights::ENROLLMENT_WRITE)
        .expect_err("it may not write");
    engine.delete_policy("reader").await.expect("there");
    engine
        .authorize_service(Some(&token), "enrollments/d", Rights::ENROLLMENT_READ)
        .expect_err("it is gone");
}
