//! An enrollment group of our own, and what its devices prove themselves with.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use holdfast_model::Timestamp;
use holdfast_model::credential::{SymmetricKey, sign_sas};
use holdfast_program::failure::{Failure, Kind};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};

use crate::bench::fleet::{Account, Trust, client_config_with};
use crate::cli::client::{Client, segment};
use crate::cli::profile::{self, Login, Wanted};

/// Life of tokens and certificates.
const LIFE_SECONDS: i64 = 24 * 3_600;

/// Longest keep-alive whose one and a half fold the service still grants.
const KEEP_ALIVE_SECONDS: u16 = 1_170;

/// How devices prove themselves to provisioning.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Attestation {
    /// By a key derived from the group's
    SymmetricKey,
    /// By a certificate that the group's authority issued
    X509,
}

/// The provisioning service under test.
pub(crate) struct Service {
    /// Its REST API, with the policy of the provisioning service.
    pub(crate) client: Client,
    /// Id scope that devices name.
    pub(crate) id_scope: String,
}

/// A group.
pub(crate) struct Group {
    id: String,
    id_scope: String,
    secret: Secret,
}

enum Secret {
    Key(SymmetricKey),
    Authority(Box<Authority>),
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// One key for all devices: whose it is makes no difference to a server, and making keys is not what is measured.
    device_key: KeyPair,
    signer: Arc<dyn rustls::sign::SigningKey>,
}

/// What a device proves itself with, here and at its hub.
#[derive(Clone, Debug)]
pub(crate) enum Proof {
    /// A key.
    Key(SymmetricKey),
    /// A certificate with its key.
    Certificate(Arc<CertifiedKey>),
}

impl Service {
    /// The service that goes with the hub the command line names, and the login to it.
    pub(crate) fn find(wanted: &Wanted) -> anyhow::Result<(Service, Login)> {
        let login = Login::find_provisioning(wanted)?;
        let id_scope = profile::id_scope(wanted)?.ok_or_else(|| {
            Failure::usage("the id scope of the provisioning service is not known here").hint(
                "name the data directory of the hub with --data-dir, or set HOLDFAST_ID_SCOPE, which `holdfast serve` prints into connection.env",
            )
        })?;
        let client = Client::new(login.clone())?;
        Ok((Service { client, id_scope }, login))
    }
}

impl Group {
    /// Enrolls a group of this name, or replaces the one that is there.
    pub(crate) fn create(service: &Service, id: &str, attestation: Attestation) -> anyhow::Result<Group> {
        let path = format!("/enrollmentGroups/{}", segment(id));
        let (secret, body) = match attestation {
            Attestation::SymmetricKey => {
                let key = SymmetricKey::generate();
                let body = json!({ "type": "symmetricKey", "symmetricKey":
                    { "primaryKey": key.reveal(), "secondaryKey": SymmetricKey::generate().reveal() } });
                (Secret::Key(key), body)
            }
            Attestation::X509 => {
                let (authority, pem) = Authority::make(id)?;
                let body = json!({ "type": "x509", "x509": { "signingCertificates":
                    { "primary": { "certificate": pem } } } });
                (Secret::Authority(Box::new(authority)), body)
            }
        };
        let body = json!({ "enrollmentGroupId": id, "attestation": body });
        service
            .client
            .put(path)
            .json(body)
            .send()
            .context("the enrollment group was not taken")?;
        Ok(Group {
            id: id.to_owned(),
            id_scope: service.id_scope.clone(),
            secret,
        })
    }

    /// A group that is there already, with keys.
    pub(crate) fn existing(service: &Service, id: &str) -> anyhow::Result<Group> {
        let path = format!("/enrollmentGroups/{}/attestationmechanism", segment(id));
        let mechanism = service.client.post(path).send()?;
        let key = mechanism
            .pointer("/symmetricKey/primaryKey")
            .and_then(Value::as_str);
        let key = key.ok_or_else(|| {
            Failure::new(
                Kind::Failed,
                format!("the group {id} uses certificates, whose authority's key is not known here"),
            )
            .hint("leave --group out, and a group with an authority of its own is made")
        })?;
        Ok(Group {
            id: id.to_owned(),
            id_scope: service.id_scope.clone(),
            secret: Secret::Key(SymmetricKey::parse(key)?),
        })
    }

    /// Deletes the group with its registrations.
    pub(crate) fn delete(&self, service: &Service) -> anyhow::Result<()> {
        let path = format!("/enrollmentGroups/{}", segment(&self.id));
        service.client.delete(path).send().map(drop)
    }

    /// What a device of the group proves itself with.
    pub(crate) fn proof(&self, registration_id: &str) -> anyhow::Result<Proof> {
        match &self.secret {
            Secret::Key(key) => Ok(Proof::Key(key.derive(registration_id))),
            Secret::Authority(authority) => authority.issue(registration_id).map(Proof::Certificate),
        }
    }

    /// Path of a device below the service, without leading slash.
    pub(crate) fn resource(&self, registration_id: &str) -> String {
        format!("{}/registrations/{registration_id}", self.id_scope)
    }

    /// The token of a device; `None` for one with a certificate.
    pub(crate) fn token(&self, registration_id: &str, proof: &Proof) -> Option<String> {
        let Proof::Key(key) = proof else { return None };
        let expiry = Timestamp::from_seconds(now_seconds().saturating_add(LIFE_SECONDS));
        Some(sign_sas(
            &self.resource(registration_id),
            key,
            expiry,
            Some("registration"),
        ))
    }

    /// What a device says in CONNECT.
    pub(crate) fn account(&self, registration_id: &str, proof: &Proof) -> Account {
        let client = concat!("holdfast/", env!("CARGO_PKG_VERSION"));
        let name = holdfast_wire::provisioning::format_user_name(&self.id_scope, registration_id, client);
        Account {
            client_id: registration_id.to_owned(),
            username: Some(name),
            password: self.token(registration_id, proof),
            keep_alive: KEEP_ALIVE_SECONDS,
            clean_session: true,
        }
    }
}

impl Proof {
    /// The TLS configuration of a device with a certificate; `None` for one with a key. Sessions are not resumed, since a
    /// resumed one would be another device's.
    pub(crate) fn tls(&self, trust: Trust<'_>) -> anyhow::Result<Option<Arc<rustls::ClientConfig>>> {
        match self {
            Proof::Key(_) => Ok(None),
            Proof::Certificate(certified) => {
                client_config_with(trust, false, Some(Arc::clone(certified))).map(Some)
            }
        }
    }
}

impl Authority {
    fn make(name: &str) -> anyhow::Result<(Authority, String)> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        let device_key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(device_key.serialize_der()));
        let signer = rustls::crypto::ring::sign::any_supported_type(&der)?;
        let pem = certificate.pem();
        let authority = Authority {
            issuer: Issuer::new(params, key),
            device_key,
            signer,
        };
        Ok((authority, pem))
    }

    fn issue(&self, registration_id: &str) -> anyhow::Result<Arc<CertifiedKey>> {
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(registration_id);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params
            .signed_by(&self.device_key, &self.issuer)
            .context("a device certificate cannot be issued")?;
        let chain = vec![CertificateDer::from(certificate.der().to_vec())];
        Ok(Arc::new(CertifiedKey::new(chain, Arc::clone(&self.signer))))
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn now_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
