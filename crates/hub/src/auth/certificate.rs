//! Certificates of devices: known by thumbprint, or issued under a verified authority.
//!
//! Chains are checked by webpki: any depth, intermediates from what the client presented, roots from what the operator
//! uploaded (an uploaded intermediate is a root too). It takes version 3 certificates only, so a leaf made by
//! `openssl x509 -req` without `-extfile` is refused; it must not be a CA certificate itself, and if it has an extended
//! key usage, client authentication must be in it. Thumbprint certificates are only compared, never parsed for trust, so
//! any version and self-signed ones will do.

use std::time::Duration;

use bytes::Bytes;
use holdfast_model::event::AuthMethod;
use holdfast_model::registry::Authentication;
use holdfast_model::{Identity, Timestamp};
use holdfast_ports::settings::CertificateAuthority;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::Hub;
use crate::auth::{Denied, Verified};
use crate::events::Refusal;

/// The verified authorities, ready for use.
#[derive(Debug, Default)]
pub(crate) struct AuthoritySet {
    authorities: Vec<Authority>,
}

#[derive(Debug)]
struct Authority {
    anchor: TrustAnchor<'static>,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl AuthoritySet {
    /// Takes the verified ones. One that does not parse was refused at upload; a damaged one trusts nobody.
    pub(crate) fn new(authorities: &[CertificateAuthority]) -> Self {
        let usable = authorities
            .iter()
            .filter(|authority| authority.verified)
            .filter_map(|authority| Authority::new(&authority.certificate))
            .collect();
        AuthoritySet { authorities: usable }
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

impl Hub {
    pub(crate) async fn check_certificates(
        &self,
        chain: &[Bytes],
        identity: &Identity,
    ) -> Result<Verified, Denied> {
        let leaf = chain.first().ok_or(Refusal::NoCredential)?;
        let record = self.record_of(identity).await?;
        let auth = match &record.authentication {
            Authentication::SelfSigned {
                primary_thumbprint,
                secondary_thumbprint,
            } => {
                let known = [primary_thumbprint, secondary_thumbprint]
                    .into_iter()
                    .flatten()
                    .any(|thumbprint| thumbprint.matches(leaf));
                if !known {
                    return Err(Refusal::WrongThumbprint.into());
                }
                let certificate = parse(leaf).ok_or(Refusal::MalformedCertificate)?;
                let (not_before, not_after) = validity(&certificate);
                if !(not_before..=not_after).contains(&self.now()) {
                    return Err(Refusal::CertificateNotValidNow.into());
                }
                AuthMethod::Thumbprint
            }
            Authentication::CertificateAuthority => {
                self.check_issued(chain, identity)?;
                AuthMethod::CertificateAuthority
            }
            Authentication::Sas { .. } | Authentication::None => {
                return Err(Refusal::OtherCredentialKind.into());
            }
        };
        self.check_enabled(&record).await?;
        Ok(Verified {
            record,
            auth,
            expires_at: Timestamp::MAX,
        })
    }

    /// Subject first: that is cheap, and it names a mix-up of certificates as what it is.
    fn check_issued(&self, chain: &[Bytes], identity: &Identity) -> Result<(), Refusal> {
        let [leaf, intermediates @ ..] = chain else {
            return Err(Refusal::NoCredential);
        };
        let certificate = parse(leaf).ok_or(Refusal::MalformedCertificate)?;
        if common_name(&certificate) != Some(identity.as_str()) {
            return Err(Refusal::WrongCommonName);
        }
        let now = self.now();
        let seconds = u64::try_from(now.as_seconds()).unwrap_or(0);
        let leaf = CertificateDer::from(&leaf[..]);
        let leaf = EndEntityCert::try_from(&leaf).map_err(|_| Refusal::MalformedCertificate)?;
        let intermediates: Vec<CertificateDer<'_>> = intermediates
            .iter()
            .map(|der| CertificateDer::from(&der[..]))
            .collect();
        let anchors = self.authorities.load().anchors(now);
        let verified = leaf.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &intermediates,
            UnixTime::since_unix_epoch(Duration::from_secs(seconds)),
            KeyUsage::client_auth(),
            None,
            None,
        );
        match verified {
            Ok(_) => Ok(()),
            Err(webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. }) => {
                Err(Refusal::CertificateNotValidNow)
            }
            Err(_) => Err(Refusal::UntrustedChain),
        }
    }
}

pub(crate) fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Some(certificate),
        _ => None,
    }
}

/// First and last moment of a certificate's life.
pub(crate) fn validity(certificate: &X509Certificate<'_>) -> (Timestamp, Timestamp) {
    let validity = certificate.validity();
    (
        Timestamp::from_seconds(validity.not_before.timestamp()),
        Timestamp::from_seconds(validity.not_after.timestamp()),
    )
}

/// The subject's common name, if there is exactly one: with several it is unclear who is meant.
pub(crate) fn common_name<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a str> {
    let mut names = certificate.subject().iter_common_name();
    match (names.next(), names.next()) {
        (Some(name), None) => name.as_str().ok(),
        _ => None,
    }
}
