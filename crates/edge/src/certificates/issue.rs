//! Leaf certificates: of the edge hub, and for modules.

use std::net::IpAddr;

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use super::authority::{Authority, BACKDATED_SECONDS, days, random_serial};
use super::pem;

/// Life of a leaf; never beyond that of the edge CA (edge.md section 20).
const LEAF_SECONDS: i64 = days(30);
/// Longest common name.
const COMMON_NAME_MAX: usize = 64;

/// What a certificate is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Usage {
    /// TLS server.
    Server,
    /// TLS client.
    Client,
}

/// A certificate that is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Common name; left out when longer than a common name may be.
    pub common_name: &'a str,
    /// Host names and IP addresses.
    pub names: &'a [String],
    /// Usage.
    pub usage: Usage,
}

/// A certificate with its key.
pub struct Issued {
    /// Leaf, edge CA and what is above it but for the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS#8.
    pub key: Zeroizing<Vec<u8>>,
    /// First second, Unix.
    pub not_before: i64,
    /// Last second.
    pub not_after: i64,
}

impl Issued {
    /// The chain as PEM text.
    #[must_use]
    pub fn chain_pem(&self) -> String {
        pem::encode_chain(&self.chain)
    }

    /// The key as PEM text.
    #[must_use]
    pub fn key_pem(&self) -> Zeroizing<String> {
        pem::encode("PRIVATE KEY", &self.key)
    }

    /// Whether it is to be renewed: after 80 % of its life, or when the clock says that it is not valid.
    #[must_use]
    pub fn is_due(&self, now: i64) -> bool {
        now < self.not_before || now - self.not_before >= (self.not_after - self.not_before) / 5 * 4
    }
}

/// Signs a certificate with a new P-256 key.
pub(super) fn issue(authority: &Authority, request: &Request<'_>, now: i64) -> anyhow::Result<Issued> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.subject_alt_names = request
        .names
        .iter()
        .map(|name| subject_name(name))
        .collect::<Result<_, _>>()?;
    let not_before = now.saturating_sub(BACKDATED_SECONDS).max(authority.not_before);
    let not_after = now.saturating_add(LEAF_SECONDS).min(authority.not_after);
    params.not_before = OffsetDateTime::from_unix_timestamp(not_before)?;
    params.not_after = OffsetDateTime::from_unix_timestamp(not_after)?;
    params.serial_number = Some(random_serial()?);
    params.distinguished_name = rcgen::DistinguishedName::new();
    if request.common_name.len() <= COMMON_NAME_MAX {
        params
            .distinguished_name
            .push(DnType::CommonName, request.common_name);
    }
    params.is_ca = IsCa::NoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![match request.usage {
        Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
        Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
    }];
    let certificate = params.signed_by(&key, &authority.issuer)?;
    let mut chain = vec![certificate.der().clone()];
    for (index, above) in authority.chain.iter().enumerate() {
        // Whoever trusts a root has it; only the edge CA is always sent, as the original does.
        if index == 0 || !is_root(above) {
            chain.push(above.clone());
        }
    }
    Ok(Issued {
        chain,
        key: Zeroizing::new(key.serialize_der()),
        not_before,
        not_after,
    })
}

fn is_root(certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, parsed)| parsed.subject() == parsed.issuer())
}

fn subject_name(name: &str) -> anyhow::Result<SanType> {
    Ok(match name.parse::<IpAddr>() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) => SanType::DnsName(name.try_into()?),
    })
}
