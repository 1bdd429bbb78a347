//! Certificates of devices: known by thumbprint, or issued under a verified authority.

use bytes::Bytes;
use holdfast_model::Identity;
use holdfast_model::Timestamp;
use holdfast_model::event::AuthMethod;
use holdfast_model::registry::Authentication;
use holdfast_ports::settings::CertificateAuthority;
use holdfast_trust::{Authorities, ChainFault, check_dates};

pub(crate) use holdfast_trust::{common_name, parse, validity};

use crate::Hub;
use crate::auth::{Denied, Verified};
use crate::events::Refusal;

/// The verified authorities, ready for use.
#[derive(Debug, Default)]
pub(crate) struct AuthoritySet(Authorities);

impl AuthoritySet {
    /// Takes the verified ones. One that does not parse was refused at upload; a damaged one trusts nobody.
    pub(crate) fn new(authorities: &[CertificateAuthority]) -> Self {
        let verified = authorities.iter().filter(|authority| authority.verified);
        AuthoritySet(Authorities::new(
            verified.map(|authority| &authority.certificate[..]),
        ))
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
                check_dates(leaf, self.now()).map_err(refusal)?;
                AuthMethod::Thumbprint
            }
            Authentication::CertificateAuthority => {
                let authorities = self.authorities.load();
                authorities
                    .0
                    .check(chain, identity.as_str(), self.now())
                    .map_err(refusal)?;
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
}

fn refusal(fault: ChainFault) -> Refusal {
    match fault {
        ChainFault::Empty => Refusal::NoCredential,
        ChainFault::Malformed => Refusal::MalformedCertificate,
        ChainFault::CommonName => Refusal::WrongCommonName,
        ChainFault::NotValidNow => Refusal::CertificateNotValidNow,
        ChainFault::Untrusted => Refusal::UntrustedChain,
    }
}
