//! Client certificates of devices: the same rules for a hub and an edge hub. No I/O; the time is an argument.
//!
//! Chains are checked by webpki: any depth, intermediates from what the client presented, roots from what the operator
//! trusts (a trusted intermediate is a root too). It takes version 3 certificates only, so a leaf made by
//! `openssl x509 -req` without `-extfile` is refused; it must not be a CA certificate itself, and if it has an extended
//! key usage, client authentication must be in it. Thumbprint certificates are only compared, never parsed for trust, so
//! any version and self-signed ones will do.

use std::time::Duration;

use bytes::Bytes;
use holdfast_model::Timestamp;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Why a chain does not prove a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChainFault {
    /// There is no certificate.
    #[error("there is no certificate")]
    Empty,
    /// It cannot be read.
    #[error("the certificate is malformed")]
    Malformed,
    /// It is somebody else's.
    #[error("the common name is another one")]
    CommonName,
    /// Its time, or that of an issuer, has not come or is over.
    #[error("the certificate is not valid now")]
    NotValidNow,
    /// No known authority issued it.
    #[error("no known authority issued the certificate")]
    Untrusted,
}

/// Authorities that are trusted, ready for use.
#[derive(Debug, Default)]
pub struct Authorities {
    authorities: Vec<Authority>,
}

#[derive(Debug)]
struct Authority {
    anchor: TrustAnchor<'static>,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl Authorities {
    /// Takes certificates in DER. One that does not parse trusts nobody.
    pub fn new<'a>(certificates: impl IntoIterator<Item = &'a [u8]>) -> Self {
        Authorities {
            authorities: certificates.into_iter().filter_map(Authority::new).collect(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.authorities.is_empty()
    }

    /// Whether `chain` (leaf first, DER) was issued under one of these for `name`, its common name, and is valid `now`.
    /// Subject first: that is cheap, and it names a mix-up of certificates as what it is.
    ///
    /// # Errors
    /// [`ChainFault`].
    pub fn check(&self, chain: &[Bytes], name: &str, now: Timestamp) -> Result<(), ChainFault> {
        let leaf = chain.first().ok_or(ChainFault::Empty)?;
        let certificate = parse(leaf).ok_or(ChainFault::Malformed)?;
        if common_name(&certificate) != Some(name) {
            return Err(ChainFault::CommonName);
        }
        check_path(chain, &self.anchors(now), now).map(drop)
    }

    /// The authorities whose own time is now; webpki does not check that of a trust anchor.
    fn anchors(&self, now: Timestamp) -> Vec<TrustAnchor<'static>> {
        self.authorities
            .iter()
            .filter(|authority| (authority.not_before..=authority.not_after).contains(&now))
            .map(|authority| authority.anchor.clone())
            .collect()
    }
}

impl Authority {
    fn new(der: &[u8]) -> Option<Self> {
        let (not_before, not_after) = validity(&parse(der)?);
        let der = CertificateDer::from(der);
        let anchor = webpki::anchor_from_trusted_cert(&der).ok()?.to_owned();
        Some(Authority {
            anchor,
            not_before,
            not_after,
        })
    }
}

/// Checks that `chain` (leaf first, DER) leads to one of the anchors, is valid `now` and may stand for a client; returns how
/// many certificates lie between leaf and anchor. Whose it is, and the time of the anchors, is the caller's to check.
///
/// # Errors
/// [`ChainFault`], all but `CommonName`.
pub fn check_path(chain: &[Bytes], anchors: &[TrustAnchor<'_>], now: Timestamp) -> Result<usize, ChainFault> {
    let [leaf, intermediates @ ..] = chain else {
        return Err(ChainFault::Empty);
    };
    let leaf = CertificateDer::from(&leaf[..]);
    let leaf = EndEntityCert::try_from(&leaf).map_err(|_| ChainFault::Malformed)?;
    let intermediates: Vec<CertificateDer<'_>> = intermediates
        .iter()
        .map(|der| CertificateDer::from(&der[..]))
        .collect();
    let seconds = u64::try_from(now.as_seconds()).unwrap_or(0);
    let verified = leaf.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        anchors,
        &intermediates,
        UnixTime::since_unix_epoch(Duration::from_secs(seconds)),
        KeyUsage::client_auth(),
        None,
        None,
    );
    match verified {
        Ok(path) => Ok(path.intermediate_certificates().count()),
        Err(webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. }) => {
            Err(ChainFault::NotValidNow)
        }
        Err(_) => Err(ChainFault::Untrusted),
    }
}

/// Reads a certificate in DER, without anything behind it.
#[must_use]
pub fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Some(certificate),
        _ => None,
    }
}

/// First and last moment of a certificate's life.
#[must_use]
pub fn validity(certificate: &X509Certificate<'_>) -> (Timestamp, Timestamp) {
    let validity = certificate.validity();
    (
        Timestamp::from_seconds(validity.not_before.timestamp()),
        Timestamp::from_seconds(validity.not_after.timestamp()),
    )
}

/// Whether a certificate in DER is valid `now`, by its own dates only.
///
/// # Errors
/// [`ChainFault::Malformed`], [`ChainFault::NotValidNow`].
pub fn check_dates(der: &[u8], now: Timestamp) -> Result<(), ChainFault> {
    let (not_before, not_after) = validity(&parse(der).ok_or(ChainFault::Malformed)?);
    if (not_before..=not_after).contains(&now) {
        Ok(())
    } else {
        Err(ChainFault::NotValidNow)
    }
}

/// The subject's common name, if there is exactly one: with several it is unclear who is meant.
#[must_use]
pub fn common_name<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a str> {
    let mut names = certificate.subject().iter_common_name();
    match (names.next(), names.next()) {
        (Some(name), None) => name.as_str().ok(),
        _ => None,
    }
}
