//! Who is let in: devices and modules by token or certificate, services by policy token.
//!
//! Order of checks for a token (rest.md 2.1): form, expiry, resource, existence of the identity, signature, status.
//! Only who holds the right key learns that a device is disabled; to everybody else a wrong key, an unknown device and
//! a device with certificates look the same.

pub(crate) mod certificate;
mod chain;
mod grant;
mod sas;
mod service;

use holdfast_model::credential::SasToken;
use holdfast_model::event::AuthMethod;
use holdfast_model::registry::{Authentication, IdentityRecord, Status};
use holdfast_model::{Error, ErrorCode, Identity, Timestamp};
use holdfast_observe::Event as _;
use holdfast_ports::gateway::{AccessRequest, Credential, Protocol};

use crate::Hub;
use crate::events::{AccessRefused, Refusal};

pub(crate) use certificate::AuthoritySet;
pub use service::ServiceCaller;

/// Somebody who proved who they are.
#[derive(Debug)]
pub(crate) struct Verified {
    pub(crate) record: IdentityRecord,
    pub(crate) auth: AuthMethod,
    /// When the proof ends; [`Timestamp::MAX`] for certificates.
    pub(crate) expires_at: Timestamp,
}

/// Why access was not given.
#[derive(Debug)]
pub(crate) enum Denied {
    /// The proof is not good.
    Refused(Refusal),
    /// The hub could not tell.
    Failed(Error),
}

impl From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Self {
        Denied::Refused(refusal)
    }
}

impl Hub {
    /// Checks a credential. A refusal is logged and counted here.
    pub(crate) async fn verify_access(&self, request: &AccessRequest<'_>) -> Result<Verified, Error> {
        self.check_access(request)
            .await
            .map_err(|denied| self.denied(denied, request.device_id, request.module_id, request.protocol))
    }

    async fn check_access(&self, request: &AccessRequest<'_>) -> Result<Verified, Denied> {
        let identity =
            Identity::new(request.device_id, request.module_id).map_err(|_| Refusal::MalformedIdentity)?;
        let chain = request
            .auth_chain
            .filter(|chain| chain.split(';').filter(|element| !element.is_empty()).count() >= 2);
        match (request.credential, chain) {
            (Credential::Sas(token), None) => self.check_token(token, identity).await,
            (Credential::Sas(token), Some(chain)) => self.check_on_behalf(token, &identity, chain).await,
            // A gateway proves itself by the token of its module `$edgeHub` (mqtt.md 2.3), never by certificate.
            (Credential::Certificates([_, ..]), Some(_)) => Err(Refusal::BadAuthChain.into()),
            (Credential::Certificates(chain @ [_, ..]), None) => {
                self.check_certificates(chain, &identity).await
            }
            (Credential::Granted(grant), None) => self.check_grant(grant, identity).await,
            (Credential::Granted(grant), Some(chain)) => {
                self.check_granted_on_behalf(grant, &identity, chain).await
            }
            (Credential::Certificates([]) | Credential::None, _) => Err(Refusal::NoCredential.into()),
        }
    }

    async fn check_token(&self, text: &str, identity: Identity) -> Result<Verified, Denied> {
        let token = SasToken::parse(text).map_err(|_| Refusal::MalformedToken)?;
        self.check_time(&token)?;
        if token.policy().is_some() {
            self.check_policy_token(&token, &sas::path_of(&identity))?;
            let record = self.record_of(&identity).await?;
            self.check_enabled(&record).await?;
            return Ok(Verified {
                record,
                auth: AuthMethod::PolicyKey,
                expires_at: token.expiry(),
            });
        }
        if !sas::names(&token, &self.host_names, &identity) {
            return Err(Refusal::WrongResource.into());
        }
        let record = self.record_of(&identity).await?;
        check_identity_key(&token, &record)?;
        self.check_enabled(&record).await?;
        Ok(Verified {
            record,
            auth: AuthMethod::IdentityKey,
            expires_at: token.expiry(),
        })
    }

    /// The clocks of hub and client may differ by the configured skew.
    pub(crate) fn check_time(&self, token: &SasToken<'_>) -> Result<(), Refusal> {
        if token.expiry().plus(self.config.clock_skew) < self.now() {
            Err(Refusal::TokenExpired)
        } else {
            Ok(())
        }
    }

    pub(crate) async fn record_of(&self, identity: &Identity) -> Result<IdentityRecord, Denied> {
        self.stores
            .registry
            .get(identity)
            .await
            .map_err(|error| Denied::Failed(self.store_error("read identity", error)))?
            .ok_or(Denied::Refused(Refusal::UnknownIdentity))
    }

    /// A module is enabled when its device is.
    pub(crate) async fn check_enabled(&self, record: &IdentityRecord) -> Result<(), Denied> {
        let enabled = if record.identity.is_module() {
            self.record_of(&record.identity.owner()).await?.status == Status::Enabled
        } else {
            record.status == Status::Enabled
        };
        if enabled {
            Ok(())
        } else {
            Err(Refusal::Disabled.into())
        }
    }

    /// Logs and counts a refusal and makes the client's error of it.
    pub(crate) fn denied(
        &self,
        denied: Denied,
        device_id: &str,
        module_id: Option<&str>,
        protocol: Protocol,
    ) -> Error {
        let reason = match denied {
            Denied::Failed(error) => return error,
            Denied::Refused(reason) => reason,
        };
        let second = self.stores.clock.monotonic_millis() / 1_000;
        let line = self.refusal_lines.take(second);
        // The joined text is only needed for a line that is written.
        let joined = module_id
            .filter(|_| line.is_some())
            .map(|module_id| format!("{device_id}/{module_id}"));
        AccessRefused {
            identity: joined.as_deref().unwrap_or(device_id),
            protocol,
            reason,
            line,
        }
        .emit(&self.metrics);
        refusal_error(reason)
    }
}

/// Either key of the identity.
pub(crate) fn check_identity_key(token: &SasToken<'_>, record: &IdentityRecord) -> Result<(), Refusal> {
    match &record.authentication {
        Authentication::Sas {
            primary_key,
            secondary_key,
        } if token.verify(primary_key) || token.verify(secondary_key) => Ok(()),
        Authentication::Sas { .. } => Err(Refusal::WrongKey),
        _ => Err(Refusal::OtherCredentialKind),
    }
}

/// What the client is told: whether its token can be used at all, or that it may not come in.
fn refusal_error(reason: Refusal) -> Error {
    let (code, text) = match reason {
        Refusal::TokenExpired => (
            ErrorCode::IotHubUnauthorized,
            "the token has expired; make a new one and check the clock",
        ),
        Refusal::MalformedToken => (ErrorCode::IotHubUnauthorized, "the token is malformed"),
        Refusal::WrongResource => (
            ErrorCode::IotHubUnauthorized,
            "the token is for another host or resource",
        ),
        _ => (ErrorCode::IotHubUnauthorizedAccess, "Unauthorized"),
    };
    Error::new(code, text)
}
