//! Upload, proof and deletion of certificate authorities (rest.md section 18).

use holdfast_hub::IfMatch;
use holdfast_model::ErrorCode;

use crate::certificates::Ca;
use crate::harness::*;

#[tokio::test]
async fn a_proof_of_possession_verifies() {
    let test = TestHub::new().await;
    let (root, foreign) = (Ca::root("root"), Ca::root("root"));
    let uploaded = test
        .hub
        .put_authority("plant", &root.der, false, IfMatch::Absent)
        .await
        .expect("a CA certificate");
    assert!(!uploaded.verified && uploaded.verification_code.is_none());

    let early = test
        .hub
        .verify_authority("plant", &root.leaf("x"), IfMatch::Any)
        .await;
    assert_eq!(early.expect_err("no code yet").code, ErrorCode::InvalidOperation);
    let pending = test
        .hub
        .generate_verification_code("plant", IfMatch::Version(uploaded.version))
        .await
        .expect("a code");
    let code = pending.verification_code.expect("a code");
    assert_eq!(code.len(), 48);

    for wrong in [root.leaf("another code"), foreign.leaf(&code), bytes("nonsense")] {
        let refused = test.hub.verify_authority("plant", &wrong, IfMatch::Any).await;
        assert_eq!(refused.expect_err("a bad proof").code, ErrorCode::ArgumentInvalid);
    }
    let stale = test
        .hub
        .verify_authority("plant", &root.leaf(&code), IfMatch::Version(uploaded.version))
        .await;
    assert_eq!(stale.expect_err("stale").code, ErrorCode::PreconditionFailed);
    let verified = test
        .hub
        .verify_authority("plant", &root.leaf(&code), IfMatch::Version(pending.version))
        .await
        .expect("a good proof");
    assert!(verified.verified && verified.verification_code.is_none());
    assert_eq!(verified.version, 3);
}

#[tokio::test]
async fn only_ca_certificates_are_taken() {
    let test = TestHub::new().await;
    let root = Ca::root("root");
    for wrong in [root.leaf("leaf"), bytes("-----BEGIN nothing"), bytes("")] {
        let refused = test
            .hub
            .put_authority("plant", &wrong, true, IfMatch::Absent)
            .await;
        assert_eq!(refused.expect_err("no CA").code, ErrorCode::ArgumentInvalid);
    }
    let bad_name = test
        .hub
        .put_authority("a b", &root.der, true, IfMatch::Absent)
        .await;
    assert_eq!(bad_name.expect_err("a bad name").code, ErrorCode::ArgumentInvalid);
    let missing = test
        .hub
        .put_authority("plant", &root.der, true, IfMatch::Any)
        .await;
    assert_eq!(missing.expect_err("not there").code, ErrorCode::ResourceNotFound);
    assert!(test.hub.authorities().await.expect("a list").is_empty());
    for result in [
        test.hub.authority("plant").await.map(drop),
        test.hub.delete_authority("plant", IfMatch::Absent).await,
        test.hub
            .generate_verification_code("plant", IfMatch::Any)
            .await
            .map(drop),
    ] {
        assert_eq!(result.expect_err("not there").code, ErrorCode::ResourceNotFound);
    }
}

#[tokio::test]
async fn pem_and_der_are_the_same() {
    let test = TestHub::new().await;
    let root = Ca::root("root");
    let pem = format!(
        "comment\n-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        base64(&root.der)
    );
    let from_pem = test
        .hub
        .put_authority("pem", &pem.as_bytes()[8..], true, IfMatch::Absent)
        .await
        .expect("PEM");
    assert_eq!(from_pem.certificate, root.der);
}

/// Base64 in lines of 64 characters.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for (index, group) in bytes.chunks(3).enumerate() {
        if index % 16 == 0 && index > 0 {
            text.push('\n');
        }
        let word =
            group.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for digit in 0..4 {
            text.push(if digit <= group.len() {
                char::from(DIGITS[(word >> (18 - 6 * digit)) as usize & 63])
            } else {
                '='
            });
        }
    }
    text
}
