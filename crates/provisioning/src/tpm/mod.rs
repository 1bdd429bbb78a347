//! Attestation by TPM 2.0 (languages.md 6.6).
//!
//! ```text
//! device                                     here
//! endorsement and storage root key ────────► is it the enrolled endorsement key? make a key, remember it
//! activation blob with the key     ◄──────── for this endorsement key and storage root key alone
//! token signed inside the TPM      ────────► one of the keys remembered: `Proof::Tpm`, good for one registration
//! activation blob, hub key         ◄──────── with every answer that says `assigned`
//! ```
//!
//! [`public`] reads keys, [`activation`] makes blobs with the mathematics of [`cipher`], [`challenges`] holds what waits
//! for its token. Challenges live in the process that made them: a device whose token reaches another process is refused
//! and begins anew, as after a restart.
//!
//! Keys are those of the one template that the SDKs use (TCG EK Credential Profile, template L-1): RSA 2048, SHA-256,
//! AES-128 in CFB mode.

pub(crate) mod activation;
pub(crate) mod challenges;
mod cipher;
pub(crate) mod public;

use bytes::Bytes;
use holdfast_model::provisioning::{Attestation, Registration, RegistrationId, RegistrationStatus};
use holdfast_model::{Error, ErrorCode};
use holdfast_ports::provisioning::{Proof, Registrant, TpmAccess, TpmKeys};

use self::public::StorageKey;
use crate::Provisioning;
use crate::auth::{Denied, denied, unknown};
use crate::failure::unauthorized;

impl Provisioning {
    /// A challenge for a device that is who its endorsement key says.
    pub(crate) async fn check_challenge(&self, access: TpmAccess<'_>) -> Result<Bytes, Denied> {
        let id = self.check_name(access.id_scope, access.registration_id)?;
        let key = id.key();
        let Some(found) = self.find_enrollment(&key).await? else {
            return Err(unknown(
                "unknown_enrollment",
                "there is no enrollment for this device",
            ));
        };
        let Attestation::Tpm { endorsement_key, .. } = &found.enrollment.attestation else {
            return Err(denied("other_attestation"));
        };
        if public::decode(endorsement_key) != Some(access.keys.endorsement_key.to_vec()) {
            return Err(denied("wrong_endorsement_key"));
        }
        let (endorsement, storage) = parse(access.keys)?;
        let token_key = holdfast_model::credential::SymmetricKey::generate();
        let blob = activation::blob(&endorsement, &storage, &token_key).map_err(Denied::from)?;
        let now = self.drivers.clock.monotonic_millis();
        self.challenges
            .open(key, token_key, access.keys.clone(), now)
            .map_err(|error| Denied {
                reason: "too_many_challenges",
                error,
            })?;
        self.metrics.challenges.inc();
        Ok(blob.into())
    }

    /// The challenge that a token answers.
    pub(crate) fn check_tpm_token(
        &self,
        token: &holdfast_model::credential::SasToken<'_>,
        id: &RegistrationId,
        enrolled: &str,
    ) -> Result<Proof, Denied> {
        let now = self.drivers.clock.monotonic_millis();
        let (challenge, keys) = self
            .challenges
            .answered(&id.key(), now, |key| token.verify(key))
            .ok_or_else(|| denied("no_such_challenge"))?;
        // The operator may have changed the enrollment meanwhile.
        match public::decode(enrolled) == Some(keys.endorsement_key.to_vec()) {
            true => Ok(Proof::Tpm { keys, challenge }),
            false => Err(denied("wrong_endorsement_key")),
        }
    }

    /// A challenge is good for one registration.
    pub(crate) fn spend_challenge(&self, registrant: &Registrant) -> Result<(), Error> {
        let Proof::Tpm { challenge, .. } = registrant.proof else {
            return Ok(());
        };
        match self
            .challenges
            .spend(&registrant.registration_id.key(), challenge)
        {
            true => Ok(()),
            false => Err(self.refused(registrant.registration_id.as_str(), denied("challenge_used"))),
        }
    }

    /// The registration did not begin.
    pub(crate) fn give_back_challenge(&self, registrant: &Registrant) {
        if let Proof::Tpm { challenge, .. } = registrant.proof {
            self.challenges
                .give_back(&registrant.registration_id.key(), challenge);
        }
    }

    /// Adds what only the device's TPM can read: its key on the hub that it was assigned to.
    pub(crate) async fn seal(
        &self,
        registrant: &Registrant,
        registration: Registration,
    ) -> Result<Registration, Error> {
        let Proof::Tpm { keys, .. } = &registrant.proof else {
            return Ok(registration);
        };
        if registration.status != RegistrationStatus::Assigned {
            return Ok(registration);
        }
        let found = self.find_enrollment(&registrant.registration_id.key()).await?;
        let found = found.ok_or_else(unauthorized)?;
        let Attestation::Tpm {
            endorsement_key,
            primary_key,
            ..
        } = &found.enrollment.attestation
        else {
            return Err(unauthorized());
        };
        if public::decode(endorsement_key) != Some(keys.endorsement_key.to_vec()) {
            return Err(unauthorized());
        }
        let (endorsement, storage) = parse(keys).map_err(|denied| denied.error)?;
        let blob = activation::blob(&endorsement, &storage, primary_key)?;
        Ok(Registration {
            authentication_key: Some(public::encode(&blob)),
            ..registration
        })
    }
}

fn parse(keys: &TpmKeys) -> Result<(StorageKey, StorageKey), Denied> {
    let malformed = |name: &str, error: public::KeyError| Denied {
        reason: "malformed_tpm_key",
        error: Error::new(ErrorCode::ArgumentInvalid, format!("{name}: {error}")),
    };
    let endorsement = StorageKey::endorsement(&keys.endorsement_key)
        .map_err(|error| malformed("tpm.endorsementKey", error))?;
    let storage =
        StorageKey::parse(&keys.storage_root_key).map_err(|error| malformed("tpm.storageRootKey", error))?;
    Ok((endorsement, storage))
}
