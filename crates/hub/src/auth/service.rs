//! Services: tokens of shared access policies.

use holdfast_model::credential::{SasToken, SymmetricKey};
use holdfast_model::policy::{Policy, Rights};
use holdfast_model::{Error, Identity};
use holdfast_ports::gateway::{AccessRequest, Protocol};

use crate::Hub;
use crate::auth::Denied;
use crate::events::Refusal;

/// On whose behalf a service-side operation runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServiceCaller {
    /// The holder of a shared access policy.
    Policy {
        /// Its name.
        name: String,
        /// Everything it may do.
        rights: Rights,
    },
    /// A device that manages its own modules (identityd, rest.md 14.2).
    Device(Identity),
    /// This program itself: first start, local administration.
    Local,
}

impl ServiceCaller {
    /// Whether the reserved modules `$edgeAgent` and `$edgeHub` may be changed: only their own device may.
    pub(crate) fn may_change_system_modules(&self) -> bool {
        !matches!(self, ServiceCaller::Policy { .. })
    }
}

impl Hub {
    /// Checks the token of a service request for `needed` rights.
    ///
    /// `path` is the request's path without leading slash and query, segments decoded (`twins/d1`); the token's resource
    /// must be a segment-wise prefix of `{host}/{path}` (rest.md 2.1). `token` is the whole value of the header
    /// `Authorization`; `None` when there is none.
    ///
    /// # Errors
    /// `IotHubUnauthorized` when the token cannot be used (malformed, expired, other host); `IotHubUnauthorizedAccess`
    /// when there is none, its signature is wrong, its policy unknown or lacking a right.
    pub fn authorize_service(
        &self,
        token: Option<&str>,
        path: &str,
        needed: Rights,
    ) -> Result<ServiceCaller, Error> {
        self.check_service(token, path, needed)
            .map_err(|refusal| self.denied(Denied::Refused(refusal), path, None, Protocol::Https))
    }

    fn check_service(
        &self,
        token: Option<&str>,
        path: &str,
        needed: Rights,
    ) -> Result<ServiceCaller, Refusal> {
        let token =
            SasToken::parse(token.ok_or(Refusal::NoCredential)?).map_err(|_| Refusal::MalformedToken)?;
        self.check_time(&token)?;
        let (name, rights) = self.find_policy(&token, path)?;
        if rights.allows(needed) {
            Ok(ServiceCaller::Policy { name, rights })
        } else {
            Err(Refusal::MissingRight)
        }
    }

    /// Checks the credential of a device that reads or changes its own modules: `request` names the device, no module.
    /// Its own token or certificate is good, and so is a policy token with the right DeviceConnect (rest.md 14.2).
    ///
    /// # Errors
    /// As [`holdfast_ports::gateway::DeviceGateway::admit`].
    pub async fn authorize_own_modules(&self, request: AccessRequest<'_>) -> Result<ServiceCaller, Error> {
        let verified = self.verify_access(&request).await?;
        Ok(ServiceCaller::Device(verified.record.identity))
    }

    /// A policy token on the device side.
    pub(crate) fn check_policy_token(&self, token: &SasToken<'_>, path: &str) -> Result<(), Refusal> {
        let (_, rights) = self.find_policy(token, path)?;
        if rights.allows(Rights::DEVICE_CONNECT) {
            Ok(())
        } else {
            Err(Refusal::MissingRight)
        }
    }

    /// The policy that signed the token for `path`.
    fn find_policy(&self, token: &SasToken<'_>, path: &str) -> Result<(String, Rights), Refusal> {
        if !token.covers(&self.host_names, path) {
            return Err(Refusal::WrongResource);
        }
        let (policy, _) = self.signing_policy(token)?;
        Ok((policy.name, policy.rights))
    }

    /// The policy whose key signed the token, whatever the token is for, and that key.
    pub(crate) fn signing_policy(&self, token: &SasToken<'_>) -> Result<(Policy, SymmetricKey), Refusal> {
        let name = token.policy().ok_or(Refusal::UnknownPolicy)?;
        let policies = self.policies.load();
        let policy = policies.get(name).ok_or(Refusal::UnknownPolicy)?;
        let keys = [&policy.primary_key, &policy.secondary_key];
        let signed = |key: &&&SymmetricKey| token.verify(key) || token.verify_as_text(key);
        match keys.iter().find(signed) {
            Some(key) => Ok((policy.clone(), (*key).clone())),
            None => Err(Refusal::WrongKey),
        }
    }
}
