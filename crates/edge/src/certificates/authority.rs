//! The edge CA and what stands above it.

use std::path::Path;

use holdfast_program::failure::Failure;
use holdfast_program::files::{self, PRIVATE, PUBLIC};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use time::{Date, Duration, Month, OffsetDateTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use super::pem;
use crate::config::{CertificateFiles, EdgeCa};

/// Certificates start a day in the past, for clients whose clock is behind.
pub(super) const BACKDATED_SECONDS: i64 = 86_400;

/// An authority that signs.
pub struct Authority {
    /// The edge CA and what signed it, as it is sent along with leaves.
    pub chain: Vec<CertificateDer<'static>>,
    /// First second of its life, Unix.
    pub not_before: i64,
    /// Last second of its life.
    pub not_after: i64,
    pub(super) issuer: Issuer<'static, KeyPair>,
    key: Zeroizing<Vec<u8>>,
}

impl Authority {
    /// Whether a renewal is due, or the clock says that it is not (yet, or any more) valid.
    #[must_use]
    pub fn is_due(&self, now: i64, renew_at_percent: u8) -> bool {
        let life = self.not_after - self.not_before;
        now < self.not_before || now - self.not_before >= life / 100 * i64::from(renew_at_percent)
    }

    /// Whether the clock says that it is valid.
    #[must_use]
    pub fn is_in_force(&self, now: i64) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }

    /// Parses chain and key.
    fn new(identity: pem::Identity) -> anyhow::Result<Self> {
        let leaf = identity
            .chain
            .first()
            .ok_or_else(|| anyhow::anyhow!("there is no certificate"))?;
        let (_, parsed) = X509Certificate::from_der(leaf)?;
        anyhow::ensure!(parsed.is_ca(), "it is not an authority's (CA:TRUE is missing)");
        let (not_before, not_after) = (
            parsed.validity().not_before.timestamp(),
            parsed.validity().not_after.timestamp(),
        );
        let key = KeyPair::try_from(&PrivatePkcs8KeyDer::from(identity.key.as_slice()))?;
        anyhow::ensure!(
            parsed.public_key().raw == key_info(&key).as_slice(),
            "the private key does not belong to it"
        );
        let issuer = Issuer::from_ca_cert_der(leaf, key)?;
        Ok(Authority {
            not_before,
            not_after,
            issuer,
            chain: identity.chain,
            key: identity.key,
        })
    }
}

/// SubjectPublicKeyInfo of a key.
fn key_info(key: &KeyPair) -> Vec<u8> {
    use rcgen::PublicKeyData as _;
    key.subject_public_key_info()
}

/// Reads the edge CA; makes or renews it when that is ours to do and due.
pub(super) fn open(folder: &Path, source: &EdgeCa, device_id: &str, now: i64) -> Result<Authority, Failure> {
    let plan = match source {
        EdgeCa::Files(given) => return read_given(given),
        EdgeCa::SelfSigned {
            common_name,
            life,
            renew_at_percent,
            rotate_key,
            ..
        }
        | EdgeCa::LocalCa {
            common_name,
            life,
            renew_at_percent,
            rotate_key,
            ..
        } => Plan {
            common_name: common_name
                .clone()
                .unwrap_or_else(|| shortened(&format!("aziot-edge CA {device_id}"))),
            life: i64::try_from(life.as_secs()).unwrap_or(i64::MAX),
            renew_at_percent: *renew_at_percent,
            rotate_key: *rotate_key,
        },
    };
    let above = match source {
        EdgeCa::LocalCa { authority, .. } => read_given(authority)?,
        _ => root(folder, device_id)?,
    };
    edge_ca(folder, &plan, &above, now)
}

struct Plan {
    common_name: String,
    life: i64,
    renew_at_percent: u8,
    rotate_key: bool,
}

fn read_given(given: &CertificateFiles) -> Result<Authority, Failure> {
    Authority::new(pem::read(given)?).map_err(|error| {
        Failure::usage(format!(
            "cannot sign with {} and {}: {error:#}",
            given.certificate.display(),
            given.private_key.display()
        ))
        .hint("give the PEM certificate of an authority and its own unencrypted key")
    })
}

fn unwritable(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::storage(format!("cannot use {}: {error}", path.display()))
        .hint("the daemon needs to read and write the folder `identity` of its home")
}

/// The device root; made when there is none, never replaced, since downstream devices trust it.
fn root(folder: &Path, device_id: &str) -> Result<Authority, Failure> {
    let (certificate, private_key) = (folder.join("ca.pem"), folder.join("ca.key"));
    if !certificate.exists() {
        let made = make_root(device_id).map_err(|error| unwritable(&certificate, &error))?;
        let key = files::write(&private_key, made.1.serialize_pem().as_bytes(), PRIVATE);
        key.map_err(|error| unwritable(&private_key, &error))?;
        // The certificate comes last: where it stands, its key is there.
        files::write(&certificate, made.0.pem().as_bytes(), PUBLIC)
            .map_err(|error| unwritable(&certificate, &error))?;
        tracing::info!(file = %certificate.display(), "made the device's own authority; downstream devices are to trust it");
    }
    read_given(&CertificateFiles {
        certificate,
        private_key,
    })
}

fn make_root(device_id: &str) -> anyhow::Result<(rcgen::Certificate, KeyPair)> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(Vec::new())?;
    // Fixed, so that a clock that is wrong by years at the first start does not matter; not beyond 2049, since
    // certificates write later years in another way, which small clients do not read (RFC 5280, 4.1.2.5).
    params.not_before = Date::from_calendar_date(2020, Month::January, 1)?
        .midnight()
        .assume_utc();
    params.not_after = Date::from_calendar_date(2049, Month::December, 31)?
        .midnight()
        .assume_utc();
    params.serial_number = Some(random_serial()?);
    // A name of its own for each device and each first start: clients look authorities up by name.
    let serial = params
        .serial_number
        .as_ref()
        .map(SerialNumber::to_bytes)
        .unwrap_or_default();
    let mark: String = serial
        .iter()
        .skip(1)
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let name = format!("{} {mark}", shortened(&format!("aziot-edge root {device_id}")));
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok((params.self_signed(&key)?, key))
}

/// The edge CA below an authority.
fn edge_ca(folder: &Path, plan: &Plan, above: &Authority, now: i64) -> Result<Authority, Failure> {
    let (certificate, private_key) = (folder.join("edge-ca.pem"), folder.join("edge-ca.key"));
    let files_of_it = CertificateFiles {
        certificate: certificate.clone(),
        private_key: private_key.clone(),
    };
    let kept = (certificate.exists() && private_key.exists()).then(|| {
        pem::read(&files_of_it)
            .map_err(anyhow::Error::from)
            .and_then(Authority::new)
    });
    let kept = match kept {
        Some(Ok(kept)) => {
            let same_issuer = kept.chain.get(1..) == Some(above.chain.as_slice());
            if same_issuer && !kept.is_due(now, plan.renew_at_percent) {
                return Ok(kept);
            }
            Some(kept)
        }
        Some(Err(error)) => {
            tracing::warn!(file = %certificate.display(), error = format!("{error:#}"), "the edge CA cannot be used and is made anew");
            None
        }
        None => None,
    };
    let renewed = make_edge_ca(plan, above, kept.filter(|_| !plan.rotate_key), now)
        .map_err(|error| unwritable(&certificate, &format!("{error:#}")))?;
    let key = files::write(&private_key, renewed.1.serialize_pem().as_bytes(), PRIVATE);
    key.map_err(|error| unwritable(&private_key, &error))?;
    let mut chain = vec![renewed.0.der().clone()];
    chain.extend(above.chain.iter().cloned());
    files::write(&certificate, pem::encode_chain(&chain).as_bytes(), PUBLIC)
        .map_err(|error| unwritable(&certificate, &error))?;
    tracing::info!(file = %certificate.display(), "edge CA issued");
    let authority = pem::read(&files_of_it)
        .map_err(anyhow::Error::from)
        .and_then(Authority::new);
    authority.map_err(|error| unwritable(&certificate, &format!("{error:#}")))
}

fn make_edge_ca(
    plan: &Plan,
    above: &Authority,
    same_key: Option<Authority>,
    now: i64,
) -> anyhow::Result<(rcgen::Certificate, KeyPair)> {
    let key = match same_key {
        Some(kept) => KeyPair::try_from(&PrivatePkcs8KeyDer::from(kept.key.as_slice()))?,
        None => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?,
    };
    let mut params = CertificateParams::new(Vec::new())?;
    params.not_before = OffsetDateTime::from_unix_timestamp(now.saturating_sub(BACKDATED_SECONDS))?;
    let end = now.saturating_add(plan.life).min(above.not_after);
    anyhow::ensure!(end > now, "the authority above it has ended");
    params.not_after = OffsetDateTime::from_unix_timestamp(end)?;
    params.serial_number = Some(random_serial()?);
    params
        .distinguished_name
        .push(DnType::CommonName, plan.common_name.as_str());
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
    Ok((params.signed_by(&key, &above.issuer)?, key))
}

/// At most 64 bytes, which is all that a common name may have.
pub(super) fn shortened(name: &str) -> String {
    let mut end = name.len().min(55);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name[..end].to_owned()
}

pub(super) fn random_serial() -> anyhow::Result<SerialNumber> {
    let mut bytes = ring::rand::generate::<[u8; 16]>(&ring::rand::SystemRandom::new())
        .map_err(|_| anyhow::anyhow!("the operating system's random source does not work"))?
        .expose();
    // Positive and of full length.
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Seconds of a number of days.
pub(super) const fn days(days: i64) -> i64 {
    Duration::days(days).whole_seconds()
}
