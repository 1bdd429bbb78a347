//! Who is let in: devices by token or certificate (languages.md 6.1, 6.4, 6.5), services by policy token. What a TPM
//! proves is judged in [`crate::tpm`].
//!
//! An individual enrollment of the registration id decides alone, whatever else would match. Otherwise groups are tried:
//! for a token every group with keys, for a certificate the group whose authority is nearest to the leaf. An entry that
//! is disabled matches like any other; the device is told when it registers.

use bytes::Bytes;
use holdfast_model::credential::SasToken;
use holdfast_model::provisioning::{
    Attestation, Enrollment, EnrollmentGroup, GROUPS_MAX, ProvisioningRights, RegistrationId,
};
use holdfast_model::{Error, ErrorCode};
use holdfast_observe::Event as _;
use holdfast_ports::gateway::Credential;
use holdfast_ports::provisioning::{EntryId, Proof, Registrant, RegistrationAccess};
use holdfast_ports::settings::CertificateAuthority;

use crate::Provisioning;
use crate::certificate::{self, ChainError};
use crate::events::{AccessRefused, shown};
use crate::failure::unauthorized;

/// Why access was not given: a word for the log, and what the client is told.
pub(crate) struct Denied {
    pub(crate) reason: &'static str,
    pub(crate) error: Error,
}

pub(crate) fn denied(reason: &'static str) -> Denied {
    Denied {
        reason,
        error: unauthorized(),
    }
}

impl From<Error> for Denied {
    fn from(error: Error) -> Self {
        Denied {
            reason: "unavailable",
            error,
        }
    }
}

pub(crate) fn unknown(reason: &'static str, text: &str) -> Denied {
    Denied {
        reason,
        error: Error::new(ErrorCode::EnrollmentNotFound, text),
    }
}

impl Provisioning {
    pub(crate) async fn check_access(&self, access: RegistrationAccess<'_>) -> Result<Registrant, Error> {
        let checked = self.check(access).await;
        checked.map_err(|denied| self.refused(access.registration_id, denied))
    }

    /// Logs and counts a refusal; returns what the client is told.
    pub(crate) fn refused(&self, registration_id: &str, denied: Denied) -> Error {
        AccessRefused {
            registration_id: shown(registration_id),
            reason: denied.reason,
            second: self.drivers.clock.monotonic_millis() / 1_000,
        }
        .emit(&self.metrics);
        denied.error
    }

    /// Checks the scope and the form of the id.
    pub(crate) fn check_name(&self, id_scope: &str, registration_id: &str) -> Result<RegistrationId, Denied> {
        if id_scope != self.config.id_scope {
            return Err(unknown("foreign_scope", "there is no such id scope"));
        }
        RegistrationId::parse(registration_id).map_err(|error| Denied {
            reason: "malformed_id",
            error,
        })
    }

    async fn check(&self, access: RegistrationAccess<'_>) -> Result<Registrant, Denied> {
        let id = self.check_name(access.id_scope, access.registration_id)?;
        let (entry, proof) = match access.credential {
            Credential::Sas(token) => self.check_token(token, &id).await?,
            Credential::Certificates(chain @ [_, ..]) => self.check_certificates(chain, &id).await?,
            _ => return Err(denied("no_credential")),
        };
        Ok(Registrant {
            registration_id: id,
            entry,
            proof,
        })
    }

    async fn check_token(&self, text: &str, id: &RegistrationId) -> Result<(EntryId, Proof), Denied> {
        let token = SasToken::parse(text).map_err(|_| denied("malformed_token"))?;
        if token.expiry() < self.now().minus(self.config.clock_skew) {
            return Err(denied("token_expired"));
        }
        // The whole path, not only a part in front: a token for the scope would be one for every device.
        let resource = token.resource().trim_matches('/');
        let wanted = format!("{}/registrations/{}", self.config.id_scope, id.as_str());
        if !resource.eq_ignore_ascii_case(&wanted) {
            return Err(denied("wrong_resource"));
        }
        let key = id.key();
        if let Some(individual) = self.find_enrollment(&key).await? {
            if let Attestation::Tpm { endorsement_key, .. } = &individual.enrollment.attestation {
                let proof = self.check_tpm_token(&token, id, endorsement_key)?;
                return Ok((EntryId::Individual, proof));
            }
            let Attestation::SymmetricKey {
                primary_key,
                secondary_key,
            } = &individual.enrollment.attestation
            else {
                return Err(denied("other_attestation"));
            };
            if !token.verify(primary_key) && !token.verify(secondary_key) {
                return Err(denied("wrong_key"));
            }
            let proof = Proof::Key {
                id: id.as_str().to_owned(),
            };
            return Ok((EntryId::Individual, proof));
        }
        let mut any = false;
        for group in self.groups().await? {
            let Attestation::SymmetricKey {
                primary_key,
                secondary_key,
            } = &group.enrollment.attestation
            else {
                continue;
            };
            any = true;
            // As typed first; the documentation advises lower case, and some tools derive from that.
            for form in [id.as_str(), key.as_str()] {
                for group_key in [primary_key, secondary_key] {
                    if token.verify(&group_key.derive(form)) {
                        let proof = Proof::Key { id: form.to_owned() };
                        return Ok((EntryId::Group(group.group_id), proof));
                    }
                }
            }
        }
        match any {
            true => Err(denied("wrong_key")),
            false => Err(unknown(
                "unknown_enrollment",
                "there is no enrollment for this device",
            )),
        }
    }

    async fn check_certificates(
        &self,
        chain: &[Bytes],
        id: &RegistrationId,
    ) -> Result<(EntryId, Proof), Denied> {
        let leaf = chain.first().ok_or_else(|| denied("no_credential"))?;
        let name = certificate::common_name(leaf).ok_or_else(|| invalid_certificate("no_common_name"))?;
        if !name.eq_ignore_ascii_case(id.as_str()) {
            return Err(invalid_certificate("wrong_common_name"));
        }
        let proof = Proof::Certificate(leaf.clone());
        if let Some(individual) = self.find_enrollment(&id.key()).await? {
            self.check_individual(&individual.enrollment, chain).await?;
            return Ok((EntryId::Individual, proof));
        }
        let authorities = self.authorities().await?;
        let mut nearest: Option<(usize, EnrollmentGroup)> = None;
        let (mut any, mut expired) = (false, false);
        for group in self.groups().await? {
            let roots = roots_of(&group.enrollment, &authorities);
            any |= !roots.is_empty();
            for root in roots {
                match certificate::check_chain(chain, &root, self.now()) {
                    Ok(distance) if nearest.as_ref().is_none_or(|(best, _)| distance < *best) => {
                        nearest = Some((distance, group.clone()));
                    }
                    Ok(_) | Err(ChainError::Untrusted) => {}
                    Err(ChainError::NotValidNow) => expired = true,
                }
            }
        }
        match nearest {
            Some((_, group)) => Ok((EntryId::Group(group.group_id), proof)),
            None if expired => Err(invalid_certificate("certificate_not_valid_now")),
            None if any => Err(invalid_certificate("untrusted_chain")),
            None => Err(unknown(
                "unknown_enrollment",
                "there is no enrollment for this device",
            )),
        }
    }

    async fn check_individual(&self, enrollment: &Enrollment, chain: &[Bytes]) -> Result<(), Denied> {
        match &enrollment.attestation {
            Attestation::ClientCertificates { primary, secondary } => {
                let known = [primary, secondary]
                    .into_iter()
                    .flatten()
                    .any(|enrolled| certificate::der_of(enrolled) == chain[0]);
                if !known {
                    return Err(invalid_certificate("unknown_certificate"));
                }
                if !certificate::is_valid_at(&chain[0], self.now()) {
                    return Err(invalid_certificate("certificate_not_valid_now"));
                }
                Ok(())
            }
            Attestation::AuthorityReferences { .. } | Attestation::SigningCertificates { .. } => {
                let roots = roots_of(enrollment, &self.authorities().await?);
                let mut result = Err(ChainError::Untrusted);
                for root in roots {
                    result = certificate::check_chain(chain, &root, self.now());
                    if result.is_ok() {
                        break;
                    }
                }
                match result {
                    Ok(_) => Ok(()),
                    Err(ChainError::NotValidNow) => Err(invalid_certificate("certificate_not_valid_now")),
                    Err(ChainError::Untrusted) => Err(invalid_certificate("untrusted_chain")),
                }
            }
            Attestation::SymmetricKey { .. } | Attestation::Tpm { .. } => Err(denied("other_attestation")),
        }
    }

    async fn authorities(&self) -> Result<Vec<CertificateAuthority>, Error> {
        let read = self.drivers.settings.authorities().await;
        read.map_err(|error| self.store_error("read certificate authorities", error))
    }

    async fn groups(&self) -> Result<Vec<EnrollmentGroup>, Error> {
        let read = self.drivers.store.list_groups(None, GROUPS_MAX).await;
        read.map_err(|error| self.store_error("read enrollment groups", error))
    }

    /// Checks the token of a service request for `needed` rights; `path` is the request's path without leading slash,
    /// decoded. Returns the name of the policy.
    ///
    /// # Errors
    /// `IotHubUnauthorizedAccess`.
    pub fn authorize_service(
        &self,
        token: Option<&str>,
        path: &str,
        needed: ProvisioningRights,
    ) -> Result<String, Error> {
        self.check_service(token, path, needed).map_err(|reason| {
            AccessRefused {
                registration_id: path,
                reason,
                second: self.drivers.clock.monotonic_millis() / 1_000,
            }
            .emit(&self.metrics);
            unauthorized()
        })
    }

    fn check_service(
        &self,
        token: Option<&str>,
        path: &str,
        needed: ProvisioningRights,
    ) -> Result<String, &'static str> {
        let token = SasToken::parse(token.ok_or("no_credential")?).map_err(|_| "malformed_token")?;
        if token.expiry() < self.now().minus(self.config.clock_skew) {
            return Err("token_expired");
        }
        if !token.covers(&self.config.host_names, path) {
            return Err("wrong_resource");
        }
        let name = token.policy().ok_or("unknown_policy")?;
        let policies = self.policies.load();
        let policy = policies
            .iter()
            .find(|policy| policy.name == name)
            .ok_or("unknown_policy")?;
        if !token.verify(&policy.primary_key) && !token.verify(&policy.secondary_key) {
            return Err("wrong_key");
        }
        match policy.rights.allows(needed) {
            true => Ok(policy.name.clone()),
            false => Err("missing_right"),
        }
    }
}

fn invalid_certificate(reason: &'static str) -> Denied {
    Denied {
        reason,
        error: Error::new(ErrorCode::IotHubUnauthorizedAccess, "Invalid certificate"),
    }
}

/// DER of the certificates that a chain may end in.
fn roots_of(enrollment: &Enrollment, authorities: &[CertificateAuthority]) -> Vec<Vec<u8>> {
    match &enrollment.attestation {
        Attestation::SigningCertificates { primary, secondary } => [primary, secondary]
            .into_iter()
            .flatten()
            .map(certificate::der_of)
            .collect(),
        Attestation::AuthorityReferences { primary, secondary } => {
            let named = |authority: &&CertificateAuthority| {
                [primary, secondary]
                    .into_iter()
                    .flatten()
                    .any(|name| *name == authority.name)
            };
            authorities
                .iter()
                .filter(|authority| authority.verified)
                .filter(named)
                .map(|authority| authority.certificate.to_vec())
                .collect()
        }
        _ => Vec::new(),
    }
}
