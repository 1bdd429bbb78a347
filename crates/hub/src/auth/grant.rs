//! Credentials that are checked once and used by many links of one connection (AMQP).

use holdfast_model::credential::{SasToken, SymmetricKey};
use holdfast_model::event::AuthMethod;
use holdfast_model::{Error, Identity, Timestamp};
use holdfast_ports::gateway::Protocol;
use holdfast_ports::service::{Grant, Holder};

use super::{Denied, Verified, check_identity_key, sas};
use crate::Hub;
use crate::events::Refusal;

impl Hub {
    /// See `ServiceGateway::verify_token`.
    pub(crate) async fn grant_of_token(&self, text: &str) -> Result<Grant, Error> {
        let resource = SasToken::parse(text).map_or(String::new(), |token| token.resource().to_owned());
        self.check_put_token(text)
            .await
            .map_err(|denied| self.denied(denied, &resource, None, Protocol::Amqp))
    }

    async fn check_put_token(&self, text: &str) -> Result<Grant, Denied> {
        let token = SasToken::parse(text).map_err(|_| Refusal::MalformedToken)?;
        self.check_time(&token)?;
        let expires_at = token.expiry();
        let Some(path) = sas::path_on(&token, &self.host_names) else {
            return Err(Refusal::WrongResource.into());
        };
        if token.policy().is_some() {
            let (policy, key) = self.signing_policy(&token)?;
            let holder = Holder::Policy {
                name: policy.name,
                rights: policy.rights,
                scope: path.to_lowercase(),
            };
            return Ok(Grant {
                holder,
                expires_at,
                key: Some(key.fingerprint()),
            });
        }
        let identity = sas::identity_of(path).ok_or(Refusal::WrongResource)?;
        let record = self.record_of(&identity).await?;
        check_identity_key(&token, &record)?;
        self.check_enabled(&record).await?;
        Ok(Grant {
            holder: Holder::Identity(record.identity),
            expires_at,
            key: None,
        })
    }

    /// See `ServiceGateway::verify_policy_key`.
    pub(crate) fn grant_of_policy_key(&self, name: &str, key: &str) -> Result<Grant, Error> {
        let grant = || {
            let key = SymmetricKey::parse(key).map_err(|_| Refusal::WrongKey)?;
            let policies = self.policies.load();
            let policy = policies.get(name).ok_or(Refusal::UnknownPolicy)?;
            if policy.primary_key != key && policy.secondary_key != key {
                return Err(Refusal::WrongKey);
            }
            Ok(Grant {
                holder: Holder::Policy {
                    name: policy.name.clone(),
                    rights: policy.rights,
                    scope: String::new(),
                },
                expires_at: Timestamp::MAX,
                key: Some(key.fingerprint()),
            })
        };
        grant().map_err(|refusal| self.denied(Denied::Refused(refusal), name, None, Protocol::Amqp))
    }

    /// See `ServiceGateway::is_current`.
    pub(crate) fn grant_is_current(&self, grant: &Grant) -> bool {
        match &grant.holder {
            Holder::Identity(_) => true,
            Holder::Policy { name, rights, .. } => self.policies.load().get(name).is_some_and(|policy| {
                let keys = [&policy.primary_key, &policy.secondary_key];
                policy.rights == *rights && keys.iter().any(|key| Some(key.fingerprint()) == grant.key)
            }),
        }
    }

    /// Opens a session by a grant: whether it covers the identity, whether it has ended, and whether the identity is
    /// (still) there and enabled.
    pub(super) async fn check_grant(&self, grant: &Grant, identity: Identity) -> Result<Verified, Denied> {
        if grant.expires_at.plus(self.config.clock_skew) < self.now() {
            return Err(Refusal::TokenExpired.into());
        }
        if !grant.allows_identity(&identity) || !self.grant_is_current(grant) {
            return Err(Refusal::WrongResource.into());
        }
        let record = self.record_of(&identity).await?;
        self.check_enabled(&record).await?;
        let auth = match grant.holder {
            Holder::Identity(_) => AuthMethod::IdentityKey,
            Holder::Policy { .. } => AuthMethod::PolicyKey,
        };
        Ok(Verified {
            record,
            auth,
            expires_at: grant.expires_at,
        })
    }
}
