//! X.509: thumbprints and authorities (rest.md 2.4).

use bytes::Bytes;
use holdfast_hub::events::Refusal;
use holdfast_hub::{AuthenticationSpec, IdentitySpec, IfMatch};
use holdfast_model::credential::Thumbprint;
use holdfast_model::event::AuthMethod;
use holdfast_model::{ErrorCode, Timestamp};
use holdfast_ports::gateway::Credential;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

use crate::harness::*;

/// A CA with its key.
pub(crate) struct Ca {
    params: CertificateParams,
    key: KeyPair,
    pub(crate) der: Bytes,
}

fn params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = date_time_ymd(2026, 1, 1);
    params.not_after = date_time_ymd(2027, 1, 1);
    params
}

fn ca_params(common_name: &str) -> CertificateParams {
    let mut params = params(common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

impl Ca {
    pub(crate) fn root(common_name: &str) -> Self {
        let params = ca_params(common_name);
        let key = KeyPair::generate().expect("a key");
        let der = Bytes::copy_from_slice(params.self_signed(&key).expect("signed").der());
        Ca { params, key, der }
    }

    pub(crate) fn intermediate(&self, common_name: &str) -> Self {
        let params = ca_params(common_name);
        let key = KeyPair::generate().expect("a key");
        let der = self.issue(&params, &key);
        Ca { params, key, der }
    }

    pub(crate) fn leaf(&self, common_name: &str) -> Bytes {
        self.leaf_with(params(common_name))
    }

    fn leaf_with(&self, params: CertificateParams) -> Bytes {
        self.issue(&params, &KeyPair::generate().expect("a key"))
    }

    fn issue(&self, params: &CertificateParams, key: &KeyPair) -> Bytes {
        let issuer = Issuer::from_params(&self.params, &self.key);
        Bytes::copy_from_slice(params.signed_by(key, &issuer).expect("signed").der())
    }
}

fn self_signed(common_name: &str) -> Bytes {
    let key = KeyPair::generate().expect("a key");
    Bytes::copy_from_slice(params(common_name).self_signed(&key).expect("signed").der())
}

fn thumbprint(der: &[u8], algorithm: &'static ring::digest::Algorithm) -> Thumbprint {
    let digest = ring::digest::digest(algorithm, der);
    let hex: Vec<String> = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Thumbprint::parse(&hex.join("")).expect("hex")
}

async fn with_ca_device(id: &str, authority: &Ca) -> TestHub {
    let test = TestHub::new().await;
    let spec = IdentitySpec {
        authentication: AuthenticationSpec::CertificateAuthority,
        ..IdentitySpec::default()
    };
    test.create_with(id, &spec).await;
    test.hub
        .put_authority("plant", &authority.der, true, IfMatch::Absent)
        .await
        .expect("a CA certificate");
    test
}

#[tokio::test]
async fn either_thumbprint_lets_in_with_either_algorithm() {
    let test = TestHub::new().await;
    let (first, second, other) = (self_signed("d1"), self_signed("x"), self_signed("d1"));
    let spec = IdentitySpec {
        authentication: AuthenticationSpec::SelfSigned {
            primary_thumbprint: Some(thumbprint(&first, &ring::digest::SHA1_FOR_LEGACY_USE_ONLY)),
            secondary_thumbprint: Some(thumbprint(&second, &ring::digest::SHA256)),
        },
        ..IdentitySpec::default()
    };
    test.create_with("d1", &spec).await;
    for leaf in [&first, &second] {
        let connected = test
            .connect_with("d1", Credential::Certificates(std::slice::from_ref(leaf)))
            .await
            .expect("known");
        assert_eq!(connected.session.origin.auth, AuthMethod::Thumbprint);
        assert_eq!(connected.session.expires_at(), Timestamp::MAX);
    }
    refused(test.connect_with("d1", Credential::Certificates(&[other])).await);
    assert_eq!(test.metrics.refusals.of(Refusal::WrongThumbprint).get(), 1);
    // The right certificate after a wrong one in the chain proves nothing: only the leaf's key was shown.
    refused(
        test.connect_with("d1", Credential::Certificates(&[self_signed("d1"), first]))
            .await,
    );
}

#[tokio::test]
async fn a_thumbprint_certificate_has_its_time() {
    let test = TestHub::new().await;
    let leaf = self_signed("d1");
    let spec = IdentitySpec {
        authentication: AuthenticationSpec::SelfSigned {
            primary_thumbprint: None,
            secondary_thumbprint: Some(thumbprint(&leaf, &ring::digest::SHA256)),
        },
        ..IdentitySpec::default()
    };
    test.create_with("d1", &spec).await;
    test.clock
        .advance(std::time::Duration::from_secs(365 * 24 * 3_600));
    refused(test.connect_with("d1", Credential::Certificates(&[leaf])).await);
    assert_eq!(test.metrics.refusals.of(Refusal::CertificateNotValidNow).get(), 1);
}

#[tokio::test]
async fn chains_of_any_depth_reach_a_verified_authority() {
    let root = Ca::root("root");
    let test = with_ca_device("d1", &root).await;
    let one = root.intermediate("one");
    let two = one.intermediate("two");
    for chain in [
        vec![root.leaf("d1")],
        vec![one.leaf("d1"), one.der.clone()],
        vec![two.leaf("d1"), two.der.clone(), one.der.clone()],
        // With the root, and in any order, as some clients send it.
        vec![two.leaf("d1"), root.der.clone(), one.der.clone(), two.der.clone()],
    ] {
        let connected = test
            .connect_with("d1", Credential::Certificates(&chain))
            .await
            .expect("the chain is good");
        assert_eq!(connected.session.origin.auth, AuthMethod::CertificateAuthority);
    }
    // A link is missing.
    refused(
        test.connect_with("d1", Credential::Certificates(&[two.leaf("d1"), two.der.clone()]))
            .await,
    );
    assert_eq!(test.metrics.refusals.of(Refusal::UntrustedChain).get(), 1);
}

#[tokio::test]
async fn an_uploaded_intermediate_is_an_authority_too() {
    let root = Ca::root("root");
    let line = root.intermediate("line");
    let test = with_ca_device("d1", &line).await;
    let chain = [line.leaf("d1")];
    assert!(
        test.connect_with("d1", Credential::Certificates(&chain))
            .await
            .is_ok()
    );
    refused(
        test.connect_with("d1", Credential::Certificates(&[root.leaf("d1")]))
            .await,
    );
}

#[tokio::test]
async fn the_common_name_is_the_identity() {
    let root = Ca::root("root");
    let test = with_ca_device("d1", &root).await;
    for wrong in ["d2", "D1", "d1 ", "d1/m1", ""] {
        refused(
            test.connect_with("d1", Credential::Certificates(&[root.leaf(wrong)]))
                .await,
        );
    }
    let mut nameless = params("d1");
    nameless.distinguished_name = rcgen::DistinguishedName::new();
    refused(
        test.connect_with("d1", Credential::Certificates(&[root.leaf_with(nameless)]))
            .await,
    );
    assert_eq!(test.metrics.refusals.of(Refusal::WrongCommonName).get(), 6);

    let spec = IdentitySpec {
        authentication: AuthenticationSpec::CertificateAuthority,
        ..IdentitySpec::default()
    };
    test.create_with("d1/m1", &spec).await;
    let module = [root.leaf("d1/m1")];
    assert!(
        test.connect_with("d1/m1", Credential::Certificates(&module))
            .await
            .is_ok()
    );
    refused(
        test.connect_with("d1/m1", Credential::Certificates(&[root.leaf("d1")]))
            .await,
    );
}

#[tokio::test]
async fn certificates_have_their_time_and_purpose() {
    let root = Ca::root("root");
    let test = with_ca_device("d1", &root).await;
    let mut expired = params("d1");
    expired.not_after = date_time_ymd(2026, 2, 1);
    let mut early = params("d1");
    early.not_before = date_time_ymd(2026, 12, 1);
    for params in [expired, early] {
        refused(
            test.connect_with("d1", Credential::Certificates(&[root.leaf_with(params)]))
                .await,
        );
    }
    assert_eq!(test.metrics.refusals.of(Refusal::CertificateNotValidNow).get(), 2);

    let mut client = params("d1");
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let client = [root.leaf_with(client)];
    assert!(
        test.connect_with("d1", Credential::Certificates(&client))
            .await
            .is_ok()
    );
    let mut server = params("d1");
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    refused(
        test.connect_with("d1", Credential::Certificates(&[root.leaf_with(server)]))
            .await,
    );
    // A CA certificate is not a device's.
    refused(
        test.connect_with("d1", Credential::Certificates(&[root.leaf_with(ca_params("d1"))]))
            .await,
    );
    refused(
        test.connect_with("d1", Credential::Certificates(&[bytes("no certificate")]))
            .await,
    );
    // The authority's own time counts as well.
    test.clock
        .advance(std::time::Duration::from_secs(365 * 24 * 3_600));
    let mut long = params("d1");
    long.not_after = date_time_ymd(2030, 1, 1);
    refused(
        test.connect_with("d1", Credential::Certificates(&[root.leaf_with(long)]))
            .await,
    );
}

#[tokio::test]
async fn an_unverified_or_foreign_authority_lets_nobody_in() {
    let root = Ca::root("root");
    let test = with_ca_device("d1", &root).await;
    let foreign = Ca::root("root");
    refused(
        test.connect_with("d1", Credential::Certificates(&[foreign.leaf("d1")]))
            .await,
    );
    test.hub
        .put_authority("plant-2", &foreign.der, false, IfMatch::Absent)
        .await
        .expect("uploaded");
    refused(
        test.connect_with("d1", Credential::Certificates(&[foreign.leaf("d1")]))
            .await,
    );
    let chain = [root.leaf("d1")];
    let session = test
        .connect_with("d1", Credential::Certificates(&chain))
        .await
        .expect("good")
        .session;
    test.hub
        .delete_authority("plant", IfMatch::Any)
        .await
        .expect("deleted");
    assert!(session.is_ended());
    refused(
        test.connect_with("d1", Credential::Certificates(&[root.leaf("d1")]))
            .await,
    );
    assert_eq!(test.metrics.refusals.of(Refusal::UntrustedChain).get(), 3);
}

#[tokio::test]
async fn each_identity_takes_its_own_kind_of_proof() {
    let root = Ca::root("root");
    let test = with_ca_device("d1", &root).await;
    test.create("keyed").await;
    refused(
        test.connect_with("keyed", Credential::Certificates(&[root.leaf("keyed")]))
            .await,
    );
    let token = test.sign(&resource("d1"), &test.primary_key("keyed").await, None);
    assert_eq!(
        refused(test.connect_with("d1", Credential::Sas(&token)).await),
        ErrorCode::IotHubUnauthorizedAccess
    );
    assert_eq!(test.metrics.refusals.of(Refusal::OtherCredentialKind).get(), 2);
}
