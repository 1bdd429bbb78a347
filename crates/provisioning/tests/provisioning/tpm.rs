//! Attestation by TPM: challenges, their tokens, hub keys, and everything that is refused.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use holdfast_model::credential::SymmetricKey;
use holdfast_model::provisioning::{Attestation, RegistrationStatus as Status};
use holdfast_model::{Error, ErrorCode};
use holdfast_ports::enrollment::{Expected, HubCredential};
use holdfast_ports::gateway::Credential;
use holdfast_ports::provisioning::{ProvisioningGateway as _, Registrant, TpmAccess, TpmKeys};
use holdfast_provisioning::{AttestationSpec, ProvisioningConfig};

use crate::harness::{Rig, SCOPE, by_key, unavailable};
use crate::soft_tpm::{EK_ATTRIBUTES, Pair, SRK_ATTRIBUTES, SoftTpm, public};

fn attestation(keys: &TpmKeys) -> AttestationSpec {
    AttestationSpec::Tpm {
        endorsement_key: STANDARD.encode(&keys.endorsement_key),
        storage_root_key: None,
    }
}

async fn put(rig: &Rig, id: &str, attestation: AttestationSpec) -> Result<Attestation, Error> {
    let mut spec = holdfast_provisioning::IndividualSpec {
        device_id: None,
        device_information: None,
        enrollment: by_key(),
    };
    spec.enrollment.attestation = attestation;
    let made = rig.engine.put_enrollment(id, spec, Expected::Whatever).await?;
    Ok(made.enrollment.attestation)
}

async fn enroll(rig: &Rig, id: &str, tpm: &SoftTpm) {
    put(rig, id, attestation(&tpm.keys()))
        .await
        .expect("an enrollment");
}

async fn challenge(rig: &Rig, id: &str, keys: &TpmKeys) -> Result<Bytes, ErrorCode> {
    let access = TpmAccess {
        id_scope: SCOPE,
        registration_id: id,
        keys,
    };
    rig.engine.challenge(access).await.map_err(|error| error.code)
}

/// A token signed with what the TPM has activated.
fn token(rig: &Rig, id: &str, tpm: &SoftTpm) -> String {
    let key = SymmetricKey::parse(&STANDARD.encode(&tpm.identity)).expect("a key");
    rig.token(id, &key)
}

async fn prove(rig: &Rig, id: &str, tpm: &SoftTpm) -> Result<Registrant, ErrorCode> {
    let token = token(rig, id, tpm);
    let proven = rig.prove(id, Credential::Sas(&token)).await;
    proven.map_err(|error| error.code)
}

/// Challenge, activation, token.
async fn attest(rig: &Rig, id: &str, tpm: &mut SoftTpm) -> Registrant {
    let blob = challenge(rig, id, &tpm.keys()).await.expect("a challenge");
    tpm.activate(&blob).expect("a blob for this TPM");
    prove(rig, id, tpm).await.expect("proven")
}

fn hub_key(rig: &Rig, device: &str) -> Vec<u8> {
    let device = rig.own().devices.lock()[device].clone();
    match device.credential {
        HubCredential::Keys { primary, .. } => STANDARD.decode(primary.reveal()).expect("base64"),
        other => panic!("no keys: {other:?}"),
    }
}

#[tokio::test]
async fn a_tpm_registers_and_gets_a_hub_key_that_only_it_can_read() {
    let rig = Rig::start().await;
    let (mut tpm, mut other) = (SoftTpm::number(0), SoftTpm::number(1));
    enroll(&rig, "Press-1", &tpm).await;
    let registrant = attest(&rig, "press-1", &mut tpm).await;
    let session_key = tpm.identity.clone();
    let done = rig.engine.register(&registrant, None).await.expect("assigned");
    assert_eq!(
        (done.status, done.device_id.as_deref()),
        (Status::Assigned, Some("press-1"))
    );
    let sealed = STANDARD
        .decode(done.authentication_key.expect("a key"))
        .expect("base64");
    assert_eq!(other.activate(&sealed), Err("the seed is not for this key"));
    tpm.activate(&sealed).expect("for this TPM");
    assert_eq!(tpm.identity, hub_key(&rig, "press-1"));
    assert_ne!(
        tpm.identity, session_key,
        "the hub's key is not that of the session"
    );
    // Every look at the result has the key, and no two look alike.
    let asked = rig
        .engine
        .operation(&registrant, &done.operation_id)
        .await
        .expect("found");
    let again = STANDARD
        .decode(asked.authentication_key.expect("a key"))
        .expect("base64");
    assert_ne!(again, sealed);
    tpm.activate(&again).expect("for this TPM");
    assert_eq!(tpm.identity, hub_key(&rig, "press-1"));
    let last = rig.engine.last_registration(&registrant).await.expect("found");
    assert!(last.authentication_key.is_some());
    // Operators see none, and nothing of it is stored.
    let listed = rig.engine.registration("press-1").await.expect("found");
    assert_eq!(listed.authentication_key, None);
    assert_eq!(
        rig.stored("press-1").await.expect("stored").authentication_key,
        None
    );
}

#[tokio::test]
async fn the_hub_key_stays_when_the_device_registers_again_after_a_restart() {
    let mut rig = Rig::start().await;
    let mut tpm = SoftTpm::number(0);
    enroll(&rig, "d", &tpm).await;
    let registrant = attest(&rig, "d", &mut tpm).await;
    rig.engine.register(&registrant, None).await.expect("assigned");
    let first = hub_key(&rig, "d");
    rig.restart().await;
    assert_eq!(
        prove(&rig, "d", &tpm)
            .await
            .expect_err("the challenge is forgotten"),
        ErrorCode::IotHubUnauthorizedAccess
    );
    let registrant = attest(&rig, "d", &mut tpm).await;
    rig.engine.register(&registrant, None).await.expect("assigned");
    assert_eq!(hub_key(&rig, "d"), first);
}

#[tokio::test]
async fn a_challenge_is_good_for_one_registration_and_not_for_long() {
    let rig = Rig::start().await;
    let mut tpm = SoftTpm::number(0);
    enroll(&rig, "d", &tpm).await;
    let registrant = attest(&rig, "d", &mut tpm).await;
    // What did not begin may be repeated.
    *rig.own().failure.lock() = Some(unavailable());
    let failed = rig
        .engine
        .register(&registrant, None)
        .await
        .expect_err("switched off");
    assert_eq!(failed.code, ErrorCode::ServiceUnavailable);
    *rig.own().failure.lock() = None;
    let done = rig.engine.register(&registrant, None).await.expect("assigned");
    // The same token again: for following the registration, not for another one.
    let replayed = prove(&rig, "d", &tpm).await.expect("still good");
    let refused = rig.engine.register(&replayed, None).await.expect_err("replayed");
    assert_eq!(refused.code, ErrorCode::IotHubUnauthorizedAccess);
    assert!(rig.engine.operation(&replayed, &done.operation_id).await.is_ok());
    // The same blob again gives the same key, so nothing new.
    rig.clock.advance(ProvisioningConfig::default().challenge_life);
    assert_eq!(
        prove(&rig, "d", &tpm).await.expect_err("expired"),
        ErrorCode::IotHubUnauthorizedAccess
    );
    attest(&rig, "d", &mut tpm).await;
}

#[tokio::test]
async fn two_registrations_with_one_token_at_once_are_one() {
    let rig = Rig::start().await;
    let mut tpm = SoftTpm::number(0);
    enroll(&rig, "d", &tpm).await;
    let registrant = attest(&rig, "d", &mut tpm).await;
    let (left, right) = tokio::join!(
        rig.engine.register(&registrant, None),
        rig.engine.register(&registrant, None)
    );
    assert_eq!(u8::from(left.is_ok()) + u8::from(right.is_ok()), 1);
}

#[tokio::test]
async fn challenges_of_others_do_not_harm() {
    let rig = Rig::start().await;
    let mut tpm = SoftTpm::number(0);
    enroll(&rig, "d", &tpm).await;
    let mine = challenge(&rig, "d", &tpm.keys()).await.expect("a challenge");
    // Somebody who knows the endorsement key asks, too; of the many the oldest are forgotten.
    for _ in 0..7 {
        challenge(&rig, "d", &tpm.keys()).await.expect("a challenge");
    }
    tpm.activate(&mine).expect("for this TPM");
    assert!(prove(&rig, "d", &tpm).await.is_ok());
    challenge(&rig, "d", &tpm.keys()).await.expect("a challenge");
    assert!(prove(&rig, "d", &tpm).await.is_err(), "the ninth takes its place");
}

#[tokio::test]
async fn who_is_not_challenged() {
    let rig = Rig::start().await;
    let (mut tpm, mut other) = (SoftTpm::number(0), SoftTpm::number(1));
    enroll(&rig, "d", &tpm).await;
    rig.enroll("by-key", |_| {}).await;
    let refused = |answer: Result<Bytes, ErrorCode>| answer.expect_err("refused");
    let unauthorized = ErrorCode::IotHubUnauthorizedAccess;
    assert_eq!(refused(challenge(&rig, "d", &other.keys()).await), unauthorized);
    assert_eq!(
        refused(challenge(&rig, "by-key", &tpm.keys()).await),
        unauthorized
    );
    assert_eq!(
        refused(challenge(&rig, "nobody", &tpm.keys()).await),
        ErrorCode::EnrollmentNotFound
    );
    assert_eq!(
        refused(challenge(&rig, "d/x", &tpm.keys()).await),
        ErrorCode::InvalidRegistrationId
    );
    let keys = tpm.keys();
    let foreign = TpmAccess {
        id_scope: "0neOTHER",
        registration_id: "d",
        keys: &keys,
    };
    let foreign = rig.engine.challenge(foreign).await.expect_err("a foreign scope");
    assert_eq!(foreign.code, ErrorCode::EnrollmentNotFound);
    for storage_root_key in [
        Vec::new(),
        vec![0; 3],
        vec![0xff; 2_000],
        keys.endorsement_key[..90].to_vec(),
    ] {
        let odd = TpmKeys {
            endorsement_key: keys.endorsement_key.clone(),
            storage_root_key: storage_root_key.into(),
        };
        assert_eq!(
            refused(challenge(&rig, "d", &odd).await),
            ErrorCode::ArgumentInvalid
        );
    }
    // Another device's TPM cannot read the challenge; a mixed pair of keys is of no use to it either.
    let blob = challenge(&rig, "d", &keys).await.expect("a challenge");
    assert!(other.activate(&blob).is_err());
    let mixed = TpmKeys {
        endorsement_key: keys.endorsement_key.clone(),
        storage_root_key: other.keys().storage_root_key,
    };
    let blob = challenge(&rig, "d", &mixed)
        .await
        .expect("storage root keys may change");
    assert!(other.activate(&blob).is_err() && tpm.activate(&blob).is_err());
    // A token of one's own invention.
    other.identity = vec![1; 32];
    assert_eq!(prove(&rig, "d", &other).await.expect_err("refused"), unauthorized);
}

#[tokio::test]
async fn every_bit_of_a_blob_counts() {
    let rig = Rig::start().await;
    let mut tpm = SoftTpm::number(0);
    enroll(&rig, "d", &tpm).await;
    let blob = challenge(&rig, "d", &tpm.keys()).await.expect("a challenge");
    let end = blob.len() - 2;
    for at in (0..end).step_by(37) {
        let mut changed = blob.to_vec();
        changed[at] ^= 1;
        assert!(tpm.activate(&changed).is_err(), "byte {at} of {}", blob.len());
    }
    assert!((700..1_000).contains(&blob.len()), "{} bytes", blob.len());
}

#[tokio::test]
async fn a_changed_enrollment_counts_at_once() {
    let rig = Rig::start().await;
    let (mut tpm, other) = (SoftTpm::number(0), SoftTpm::number(1));
    let first = put(&rig, "d", attestation(&tpm.keys()))
        .await
        .expect("an enrollment");
    let registrant = attest(&rig, "d", &mut tpm).await;
    rig.engine.register(&registrant, None).await.expect("assigned");
    // The same TPM: the same hub keys. Another one: others.
    assert_eq!(
        put(&rig, "d", attestation(&tpm.keys())).await.expect("changed"),
        first
    );
    let second = put(&rig, "d", attestation(&other.keys())).await.expect("changed");
    let keys = |attestation: &Attestation| match attestation {
        Attestation::Tpm { primary_key, .. } => primary_key.clone(),
        other => panic!("no TPM: {other:?}"),
    };
    assert_ne!(keys(&first), keys(&second));
    assert!(prove(&rig, "d", &tpm).await.is_err());
    let late = rig
        .engine
        .last_registration(&registrant)
        .await
        .expect_err("another TPM");
    assert_eq!(late.code, ErrorCode::IotHubUnauthorizedAccess);
}

#[tokio::test]
async fn keys_that_cannot_be_enrolled() {
    let rig = Rig::start().await;
    let modulus = Pair::shared(0).modulus.to_be_bytes().as_ref().to_vec();
    let good = public(&modulus, EK_ATTRIBUTES, &[7; 32]);
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        STANDARD.encode(bytes)
    };
    let mut even = modulus.clone();
    even[255] &= 0xfe;
    let mut short = modulus.clone();
    short[0] = 0x7f;
    let cases = [
        ("empty", String::new()),
        ("not base64", "%".to_owned()),
        ("a size alone", STANDARD.encode([0, 0])),
        ("truncated", with(&|bytes| bytes.truncate(200))),
        ("trailing", with(&|bytes| bytes.push(0))),
        ("without its size", STANDARD.encode(&good[2..])),
        ("elliptic", with(&|bytes| bytes[3] = 0x23)),
        ("SHA-1", with(&|bytes| bytes[5] = 0x04)),
        ("a signing key", with(&|bytes| bytes[7] |= 0x04)),
        ("not restricted", with(&|bytes| bytes[7] &= !1)),
        ("may leave its TPM", with(&|bytes| bytes[9] &= !2)),
        ("AES-256", with(&|bytes| bytes[46..48].copy_from_slice(&[1, 0]))),
        ("even", STANDARD.encode(public(&even, EK_ATTRIBUTES, &[7; 32]))),
        (
            "2047 bits",
            STANDARD.encode(public(&short, EK_ATTRIBUTES, &[7; 32])),
        ),
        (
            "1024 bits",
            STANDARD.encode(public(&modulus[..128], EK_ATTRIBUTES, &[7; 32])),
        ),
        ("oversized", STANDARD.encode(vec![0x55; 100_000])),
    ];
    for (what, endorsement_key) in cases {
        let spec = AttestationSpec::Tpm {
            endorsement_key,
            storage_root_key: None,
        };
        let refused = put(&rig, "d", spec).await.expect_err(what);
        assert_eq!(refused.code, ErrorCode::ArgumentInvalid, "{what}");
        assert!(
            refused.message.starts_with("attestation.tpm.endorsementKey: "),
            "{}",
            refused.message
        );
    }
    let tpm = |storage: String| AttestationSpec::Tpm {
        endorsement_key: STANDARD.encode(&good),
        storage_root_key: Some(storage),
    };
    assert!(put(&rig, "d", tpm("AAAA".into())).await.is_err());
    assert!(put(&rig, "d", tpm(String::new())).await.is_ok());
    let storage = STANDARD.encode(public(&modulus, SRK_ATTRIBUTES, &[]));
    assert!(put(&rig, "d", tpm(storage)).await.is_ok());
    let mut group = by_key();
    group.attestation = tpm(String::new());
    let refused = rig.engine.put_group("crew", group, Expected::Whatever).await;
    assert_eq!(
        refused.expect_err("not for groups").code,
        ErrorCode::ArgumentInvalid
    );
}

#[tokio::test]
async fn a_disabled_device_is_told_without_using_its_challenge() {
    let rig = Rig::start().await;
    let mut tpm = SoftTpm::number(0);
    let disable = |disabled: bool| {
        let mut spec = holdfast_provisioning::IndividualSpec {
            device_id: None,
            device_information: None,
            enrollment: by_key(),
        };
        spec.enrollment.attestation = attestation(&SoftTpm::number(0).keys());
        spec.enrollment.enabled = !disabled;
        rig.engine.put_enrollment("d", spec, Expected::Whatever)
    };
    disable(true).await.expect("an enrollment");
    let registrant = attest(&rig, "d", &mut tpm).await;
    let told = rig.engine.register(&registrant, None).await.expect("an answer");
    assert_eq!((told.status, told.authentication_key), (Status::Disabled, None));
    disable(false).await.expect("enabled");
    let done = rig.engine.register(&registrant, None).await.expect("assigned");
    assert_eq!(done.status, Status::Assigned);
}
