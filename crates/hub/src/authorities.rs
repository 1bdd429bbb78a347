//! Certificate authorities whose devices may connect (rest.md section 18).
//!
//! An authority counts once it is verified: the operator vouches for it at upload, or proves to hold its key by a
//! certificate whose common name is a code that the hub made up.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_model::event::AuthMethod;
use holdfast_model::{Error, ErrorCode};
use holdfast_ports::StoreError;
use holdfast_ports::settings::CertificateAuthority;
use x509_parser::pem::Pem;

use crate::Hub;
use crate::auth::{AuthoritySet, certificate};
use crate::failure::invalid;
use crate::if_match::IfMatch;

/// Longest name of an authority, characters.
const NAME_LEN_MAX: usize = 64;

impl Hub {
    /// All certificate authorities by name.
    ///
    /// # Errors
    /// `ServiceUnavailable`.
    pub async fn authorities(&self) -> Result<Vec<CertificateAuthority>, Error> {
        let mut authorities = self
            .stores
            .settings
            .authorities()
            .await
            .map_err(|error| self.store_error("read certificate authorities", error))?;
        authorities.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(authorities)
    }

    /// One certificate authority.
    ///
    /// # Errors
    /// `ResourceNotFound`.
    pub async fn authority(&self, name: &str) -> Result<CertificateAuthority, Error> {
        self.find_authority(name).await?.ok_or_else(|| no_authority(name))
    }

    /// Uploads a CA certificate (PEM or DER), or replaces one. With `verified` the operator vouches for it; otherwise it
    /// trusts nobody until [`Hub::verify_authority`].
    ///
    /// # Errors
    /// `ArgumentInvalid` for a bad name or something that is not a CA certificate; `PreconditionFailed`.
    pub async fn put_authority(
        &self,
        name: &str,
        certificate: &[u8],
        verified: bool,
        if_match: IfMatch,
    ) -> Result<CertificateAuthority, Error> {
        let name_fits = !name.is_empty()
            && name.len() <= NAME_LEN_MAX
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'));
        if !name_fits {
            return Err(invalid(format!(
                "a certificate's name must have 1 to {NAME_LEN_MAX} of the characters A-Z a-z 0-9 . _ -"
            )));
        }
        let certificate = ca_certificate(certificate)?;
        let _changing = self.settings_changes.lock().await;
        let present = self.find_authority(name).await?;
        let replaces = present.is_some();
        let now = self.now();
        let authority = match present {
            Some(present) => {
                if_match.check(present.version)?;
                CertificateAuthority {
                    certificate,
                    verified,
                    verification_code: None,
                    updated_at: now,
                    version: present.version + 1,
                    ..present
                }
            }
            None if matches!(if_match, IfMatch::Absent) => CertificateAuthority {
                name: name.to_owned(),
                certificate,
                verified,
                verification_code: None,
                created_at: now,
                updated_at: now,
                version: 1,
            },
            None => return Err(no_authority(name)),
        };
        let saved = self.save_authority(authority).await?;
        if replaces {
            self.end_trusted_sessions(AuthMethod::CertificateAuthority);
        }
        Ok(saved)
    }

    /// Makes up the code that the proof certificate must carry as its common name; an earlier code is void.
    ///
    /// # Errors
    /// `ResourceNotFound`; `PreconditionFailed`.
    pub async fn generate_verification_code(
        &self,
        name: &str,
        if_match: IfMatch,
    ) -> Result<CertificateAuthority, Error> {
        let _changing = self.settings_changes.lock().await;
        let mut authority = self.authority(name).await?;
        if_match.check(authority.version)?;
        authority.verification_code = Some(random_code()?);
        authority.updated_at = self.now();
        authority.version += 1;
        self.save_authority(authority).await
    }

    /// Verifies an authority by a certificate (PEM or DER) that it issued for the verification code.
    ///
    /// # Errors
    /// `ArgumentInvalid` with what is wrong with the proof; `ResourceNotFound`; `PreconditionFailed`.
    pub async fn verify_authority(
        &self,
        name: &str,
        proof: &[u8],
        if_match: IfMatch,
    ) -> Result<CertificateAuthority, Error> {
        let _changing = self.settings_changes.lock().await;
        let mut authority = self.authority(name).await?;
        if_match.check(authority.version)?;
        let code = authority.verification_code.as_deref().ok_or_else(|| {
            Error::new(
                ErrorCode::InvalidOperation,
                "generate a verification code first, then issue a certificate for it",
            )
        })?;
        self.check_proof(&authority.certificate, &to_der(proof)?, code)?;
        authority.verified = true;
        authority.verification_code = None;
        authority.updated_at = self.now();
        authority.version += 1;
        self.save_authority(authority).await
    }

    /// Deletes an authority. Sessions of certificates that chain to an authority end; those of another one come back.
    ///
    /// # Errors
    /// `ResourceNotFound`; `PreconditionFailed`.
    pub async fn delete_authority(&self, name: &str, if_match: IfMatch) -> Result<(), Error> {
        let _changing = self.settings_changes.lock().await;
        if_match.check(self.authority(name).await?.version)?;
        self.stores
            .settings
            .delete_authority(name)
            .await
            .map_err(|error| match error {
                StoreError::Missing => no_authority(name),
                other => self.store_error("delete certificate authority", other),
            })?;
        self.reload_authorities().await?;
        self.end_trusted_sessions(AuthMethod::CertificateAuthority);
        Ok(())
    }

    /// The proof may be of any version and purpose: what counts is who signed it, for which name, and that its time is
    /// now.
    fn check_proof(&self, authority: &[u8], proof: &[u8], code: &str) -> Result<(), Error> {
        let damaged = || invalid("the certificate is malformed");
        let authority = certificate::parse(authority).ok_or_else(damaged)?;
        let proof = certificate::parse(proof).ok_or_else(damaged)?;
        if certificate::common_name(&proof) != Some(code) {
            return Err(invalid(
                "the proof certificate's common name is not the verification code",
            ));
        }
        let (not_before, not_after) = certificate::validity(&proof);
        if !(not_before..=not_after).contains(&self.now()) {
            return Err(invalid("the proof certificate is not valid now"));
        }
        if proof.issuer() != authority.subject()
            || proof.verify_signature(Some(authority.public_key())).is_err()
        {
            return Err(invalid(
                "the proof certificate was not issued by this certificate authority",
            ));
        }
        Ok(())
    }

    async fn find_authority(&self, name: &str) -> Result<Option<CertificateAuthority>, Error> {
        Ok(self
            .authorities()
            .await?
            .into_iter()
            .find(|authority| authority.name == name))
    }

    async fn save_authority(&self, authority: CertificateAuthority) -> Result<CertificateAuthority, Error> {
        self.stores
            .settings
            .put_authority(authority.clone())
            .await
            .map_err(|error| self.store_error("save certificate authority", error))?;
        self.reload_authorities().await?;
        Ok(authority)
    }

    async fn reload_authorities(&self) -> Result<(), Error> {
        let authorities = AuthoritySet::new(&self.authorities().await?);
        self.authorities.store(Arc::new(authorities));
        Ok(())
    }
}

/// A CA certificate that can be trusted as a root, as DER.
fn ca_certificate(text: &[u8]) -> Result<Bytes, Error> {
    let der = to_der(text)?;
    let parsed = certificate::parse(&der).ok_or_else(|| invalid("the certificate is malformed"))?;
    if !parsed.is_ca() {
        return Err(invalid(
            "the certificate is not a CA certificate: its basic constraints do not say so",
        ));
    }
    webpki::anchor_from_trusted_cert(&(&der[..]).into())
        .map_err(|error| invalid(format!("the certificate cannot be used as an authority: {error}")))?;
    Ok(der)
}

/// The first certificate of a PEM text, or the bytes themselves.
fn to_der(text: &[u8]) -> Result<Bytes, Error> {
    if !text.trim_ascii_start().starts_with(b"-----BEGIN") {
        return Ok(Bytes::copy_from_slice(text));
    }
    Pem::iter_from_buffer(text)
        .filter_map(Result::ok)
        .find(|pem| pem.label == "CERTIFICATE")
        .map(|pem| pem.contents.into())
        .ok_or_else(|| invalid("the PEM text has no certificate"))
}

/// 48 hex digits; unguessable, so that no certificate with it can have been issued before.
fn random_code() -> Result<String, Error> {
    let mut bytes = [0u8; 24];
    getrandom::fill(&mut bytes)
        .map_err(|_| Error::new(ErrorCode::ServerError, "the system's random source does not work"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02X}")).collect())
}

fn no_authority(name: &str) -> Error {
    Error::new(
        ErrorCode::ResourceNotFound,
        format!("there is no certificate authority {name:?}"),
    )
}
