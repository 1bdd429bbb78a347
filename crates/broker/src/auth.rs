//! Who is let in (edge.md section 8): from the scope that is kept here, so online and offline alike.
//!
//! Order of checks for a token: form, expiry, resource, existence, signature, status. Only who holds the right key learns that
//! a device is disabled; to everybody else a wrong key, an unknown device and a device with certificates look the same.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_model::audience;
use holdfast_model::credential::{KeyFingerprint, SasToken, SymmetricKey, Thumbprint};
use holdfast_model::event::AuthMethod;
use holdfast_model::limits::CLOCK_SKEW_SECONDS;
use holdfast_model::{Error, ErrorCode, Identity, Timestamp};
use holdfast_observe::{Repeats, tracing};
use holdfast_ports::gateway::{AccessRequest, Credential};
use holdfast_ports::service::{Grant, Holder};
use holdfast_trust::{ChainFault, check_dates};
use holdfast_upstream::port::{ScopeAuthentication, ScopeIdentity};

use crate::Broker;
use crate::metrics::Family;
use crate::scope::{CHAIN_MAX, ScopeChange};

/// By identity and reason; whoever knocks under ever new names does not fill the log.
static REFUSED: Repeats = Repeats::new();

/// Somebody who proved who they are.
pub(crate) struct Verified {
    pub(crate) entry: Arc<ScopeIdentity>,
    pub(crate) auth: AuthMethod,
    /// [`Timestamp::MAX`] for certificates.
    pub(crate) expires_at: Timestamp,
    pub(crate) proof: Proof,
}

/// What a session rests on, to be looked at again when the scope changes. No credential is kept.
#[derive(Clone, Debug)]
pub(crate) enum Proof {
    /// A key of `of`: the identity, its device, or the module `$edgeHub` of an edge device that acts for it.
    Key {
        of: Identity,
        fingerprint: KeyFingerprint,
        /// The chain by which `of` acts for the identity.
        chain: Option<Arc<[String]>>,
    },
    /// A certificate, by its thumbprint.
    Thumbprint(Bytes),
    /// A certificate of a trusted authority.
    Issued(Arc<[Bytes]>),
    /// Proven on the same connection before, for `of`.
    Granted {
        of: Identity,
        chain: Option<Arc<[String]>>,
    },
}

/// Why somebody is not let in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    NoCredential,
    MalformedIdentity,
    MalformedToken,
    TokenExpired,
    WrongResource,
    UnknownIdentity,
    WrongKey,
    OtherCredentialKind,
    Disabled,
    Certificate(ChainFault),
    WrongThumbprint,
    BadAuthChain,
    TooManyClients,
}

impl Refusal {
    /// Its name in metrics and log lines.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Refusal::NoCredential => "no_credential",
            Refusal::MalformedIdentity => "malformed_identity",
            Refusal::MalformedToken => "malformed_token",
            Refusal::TokenExpired => "token_expired",
            Refusal::WrongResource => "wrong_resource",
            Refusal::UnknownIdentity => "unknown_identity",
            Refusal::WrongKey => "wrong_key",
            Refusal::OtherCredentialKind => "other_credential_kind",
            Refusal::Disabled => "disabled",
            Refusal::Certificate(_) => "certificate",
            Refusal::WrongThumbprint => "wrong_thumbprint",
            Refusal::BadAuthChain => "bad_auth_chain",
            Refusal::TooManyClients => "too_many_clients",
        }
    }

    /// Whether the hub above may know better: an identity made, or changed, since it was last asked.
    const fn may_be_outdated(self) -> bool {
        matches!(
            self,
            Refusal::UnknownIdentity
                | Refusal::WrongKey
                | Refusal::OtherCredentialKind
                | Refusal::Disabled
                | Refusal::WrongThumbprint
                | Refusal::BadAuthChain
        )
    }

    pub(crate) fn into_error(self) -> Error {
        let (code, text) = match self {
            Refusal::TokenExpired => (
                ErrorCode::IotHubUnauthorized,
                "the token has expired; make a new one and check the clock",
            ),
            Refusal::MalformedToken => (ErrorCode::IotHubUnauthorized, "the token is malformed"),
            Refusal::WrongResource => (
                ErrorCode::IotHubUnauthorized,
                "the token is for another host or resource",
            ),
            Refusal::TooManyClients => (
                ErrorCode::ServiceUnavailable,
                "the edge hub has as many clients as it may; raise MaxConnectedClients",
            ),
            _ => (ErrorCode::IotHubUnauthorizedAccess, "Unauthorized"),
        };
        Error::new(code, text)
    }
}

impl Broker {
    /// Checks a credential; asks the hub above when it may know better. A refusal is counted and logged here.
    pub(crate) async fn authenticate(&self, request: &AccessRequest<'_>) -> Result<Verified, Error> {
        let identity = Identity::new(request.device_id, request.module_id)
            .map_err(|_| self.refused("malformed", Refusal::MalformedIdentity))?;
        let seen = self.scope.revision();
        let mut outcome = self.verify(&identity, request);
        if outcome.as_ref().is_err_and(|refusal| refusal.may_be_outdated()) {
            match request.auth_chain {
                Some(chain) if chain.contains(';') => self.look_up_below(request.credential, chain).await,
                _ => self.look_up(&identity).await,
            }
            // Whoever learned it: the scope may be read by others at the same time.
            if self.scope.revision() != seen {
                outcome = self.verify(&identity, request);
            }
        }
        outcome.map_err(|refusal| self.refused(identity.as_str(), refusal))
    }

    pub(crate) fn refused(&self, identity: &str, refusal: Refusal) -> Error {
        // Names of clients that are not known are not a label: anybody can make them up.
        let known = Identity::parse(identity).is_ok_and(|identity| self.scope.get(&identity).is_some());
        let label = if known { identity } else { "unknown" };
        self.metrics
            .count(Family::ConnectFailed, &[label, refusal.as_str()], 1);
        let reason = refusal.as_str();
        if let Some(times) = REFUSED.happened(&format!("{identity} {reason}")) {
            tracing::info!(identity, reason, times, "edge hub refused a client");
        }
        refusal.into_error()
    }

    fn verify(&self, identity: &Identity, request: &AccessRequest<'_>) -> Result<Verified, Refusal> {
        let chain = match request.auth_chain {
            Some(chain) if chain.contains(';') => Some(self.check_chain(identity, chain)?),
            _ => None,
        };
        match request.credential {
            Credential::Sas(token) => self.verify_token_for(identity, token, chain),
            // A gateway proves itself by its token, never by certificate.
            Credential::Certificates([_, ..]) if chain.is_some() => Err(Refusal::BadAuthChain),
            Credential::Certificates(certificates @ [_, ..]) => {
                self.verify_certificates(identity, certificates)
            }
            Credential::Granted(grant) => self.verify_grant(identity, grant, chain),
            Credential::Certificates([]) | Credential::None => Err(Refusal::NoCredential),
        }
    }

    /// `chain` is `{target};{edge};…;{actor}`: the target's way up to the actor, as the scope has it.
    fn check_chain(&self, identity: &Identity, chain: &str) -> Result<Arc<[String]>, Refusal> {
        let given: Vec<&str> = chain.split(';').filter(|element| !element.is_empty()).collect();
        if given.len() < 2 || given.len() > CHAIN_MAX || given[0] != identity.as_str() {
            return Err(Refusal::BadAuthChain);
        }
        self.entry(identity)?;
        let own = self.scope.chain(identity).ok_or(Refusal::BadAuthChain)?;
        let is_way_up = own.len() >= given.len() && own.iter().zip(&given).all(|(own, given)| own == given);
        // The actor stands below this device; who is disabled on the way lets nobody through.
        let enabled = own.iter().zip(&given).skip(1).all(|(id, _)| {
            Identity::device(id)
                .ok()
                .and_then(|id| self.scope.get(&id))
                .is_some_and(|entry| entry.enabled)
        });
        if !is_way_up || !enabled {
            return Err(Refusal::BadAuthChain);
        }
        Ok(own.into_iter().take(given.len()).collect())
    }

    fn entry(&self, identity: &Identity) -> Result<Arc<ScopeIdentity>, Refusal> {
        self.scope.get(identity).ok_or(Refusal::UnknownIdentity)
    }

    fn check_time(&self, expires_at: Timestamp) -> Result<(), Refusal> {
        let skew = Duration::from_secs(CLOCK_SKEW_SECONDS);
        if expires_at.plus(skew) < self.clock.now() {
            Err(Refusal::TokenExpired)
        } else {
            Ok(())
        }
    }

    fn verify_token_for(
        &self,
        identity: &Identity,
        token: &str,
        chain: Option<Arc<[String]>>,
    ) -> Result<Verified, Refusal> {
        let token = SasToken::parse(token).map_err(|_| Refusal::MalformedToken)?;
        self.check_time(token.expiry())?;
        let signer = match &chain {
            None => identity.clone(),
            Some(chain) => actor_of(chain)?,
        };
        // Policies are the hub's; none is known here.
        if token.policy().is_some() || !audience::names(&token, &self.host_names, &signer) {
            return Err(Refusal::WrongResource);
        }
        let (of, fingerprint) = self.check_signature(&token, &signer)?;
        let entry = self.entry(identity)?;
        if !self.scope.is_enabled(&entry) {
            return Err(Refusal::Disabled);
        }
        Ok(Verified {
            entry,
            auth: AuthMethod::IdentityKey,
            expires_at: token.expiry(),
            proof: Proof::Key {
                of,
                fingerprint,
                chain,
            },
        })
    }

    /// Either key of the identity, or, for a module, of its device.
    pub(crate) fn check_signature(
        &self,
        token: &SasToken<'_>,
        signer: &Identity,
    ) -> Result<(Identity, KeyFingerprint), Refusal> {
        let entry = self.entry(signer)?;
        let mut of = vec![entry];
        if signer.is_module() {
            of.extend(self.scope.get(&signer.owner()));
        }
        let mut has_keys = false;
        for entry in of {
            for key in keys_of(&entry) {
                has_keys = true;
                if token.verify(key) {
                    return Ok((entry.identity.clone(), key.fingerprint()));
                }
            }
        }
        Err(if has_keys {
            Refusal::WrongKey
        } else {
            Refusal::OtherCredentialKind
        })
    }

    fn verify_certificates(&self, identity: &Identity, chain: &[Bytes]) -> Result<Verified, Refusal> {
        let entry = self.entry(identity)?;
        let leaf = chain.first().ok_or(Refusal::NoCredential)?;
        let now = self.clock.now();
        let (auth, proof) = match &entry.authentication {
            ScopeAuthentication::Thumbprints { primary, secondary } if !identity.is_module() => {
                if !has_thumbprint(leaf, primary, secondary) {
                    return Err(Refusal::WrongThumbprint);
                }
                check_dates(leaf, now).map_err(Refusal::Certificate)?;
                (AuthMethod::Thumbprint, Proof::Thumbprint(leaf.clone()))
            }
            ScopeAuthentication::Authority if !identity.is_module() => {
                let trust = self.trust.load();
                trust
                    .check(chain, identity.as_str(), now)
                    .map_err(Refusal::Certificate)?;
                (AuthMethod::CertificateAuthority, Proof::Issued(chain.into()))
            }
            _ => return Err(Refusal::OtherCredentialKind),
        };
        if !self.scope.is_enabled(&entry) {
            return Err(Refusal::Disabled);
        }
        Ok(Verified {
            entry,
            auth,
            expires_at: Timestamp::MAX,
            proof,
        })
    }

    fn verify_grant(
        &self,
        identity: &Identity,
        grant: &Grant,
        chain: Option<Arc<[String]>>,
    ) -> Result<Verified, Refusal> {
        self.check_time(grant.expires_at)?;
        let Holder::Identity(holder) = &grant.holder else {
            return Err(Refusal::WrongResource);
        };
        let allowed = match &chain {
            None => holder == identity,
            Some(chain) => *holder == actor_of(chain)?,
        };
        if !allowed {
            return Err(Refusal::WrongResource);
        }
        let entry = self.entry(identity)?;
        if !self.scope.is_enabled(&entry) {
            return Err(Refusal::Disabled);
        }
        let proof = match (grant.key, self.signer_of(holder, grant.key)) {
            (Some(fingerprint), Some(of)) => Proof::Key {
                of,
                fingerprint,
                chain,
            },
            // The key that proved it is gone.
            (Some(_), None) => return Err(Refusal::WrongKey),
            (None, _) => Proof::Granted {
                of: holder.clone(),
                chain,
            },
        };
        Ok(Verified {
            entry,
            auth: AuthMethod::IdentityKey,
            expires_at: grant.expires_at,
            proof,
        })
    }

    /// Whose key it is: the holder's own or its device's.
    pub(crate) fn signer_of(
        &self,
        holder: &Identity,
        fingerprint: Option<KeyFingerprint>,
    ) -> Option<Identity> {
        let has = |identity: &Identity| {
            self.scope.get(identity).is_some_and(|entry| {
                keys_of(&entry)
                    .into_iter()
                    .any(|key| Some(key.fingerprint()) == fingerprint)
            })
        };
        [holder.clone(), holder.owner()].into_iter().find(has)
    }

    /// See `ServiceGateway::verify_token`.
    pub(crate) async fn grant_of_token(&self, text: &str) -> Result<Grant, Error> {
        let token = SasToken::parse(text).map_err(|_| self.refused("unknown", Refusal::MalformedToken))?;
        let identity = audience::path_on(&token, &self.host_names)
            .and_then(audience::identity_of)
            .filter(|_| token.policy().is_none())
            .ok_or_else(|| self.refused("unknown", Refusal::WrongResource))?;
        let check = || -> Result<Grant, Refusal> {
            self.check_time(token.expiry())?;
            let (_, fingerprint) = self.check_signature(&token, &identity)?;
            let entry = self.entry(&identity)?;
            if !self.scope.is_enabled(&entry) {
                return Err(Refusal::Disabled);
            }
            Ok(Grant {
                holder: Holder::Identity(identity.clone()),
                expires_at: token.expiry(),
                key: Some(fingerprint),
            })
        };
        let seen = self.scope.revision();
        let mut outcome = check();
        if outcome.as_ref().is_err_and(|refusal| refusal.may_be_outdated()) {
            self.look_up(&identity).await;
            if self.scope.revision() != seen {
                outcome = check();
            }
        }
        outcome.map_err(|refusal| self.refused(identity.as_str(), refusal))
    }

    /// Whether a session may go on, by what the scope says now.
    pub(crate) fn still_proven(&self, identity: &Identity, proof: &Proof) -> bool {
        let Some(entry) = self.scope.get(identity) else {
            return false;
        };
        let holds = |chain: &Option<Arc<[String]>>| {
            chain
                .as_ref()
                .is_none_or(|chain| self.check_chain(identity, &chain.join(";")).is_ok())
        };
        let proven = match proof {
            Proof::Key {
                of,
                fingerprint,
                chain,
            } => {
                holds(chain)
                    && self.scope.get(of).is_some_and(|of| {
                        keys_of(&of)
                            .into_iter()
                            .any(|key| key.fingerprint() == *fingerprint)
                    })
            }
            Proof::Granted { of, chain } => holds(chain) && self.scope.get(of).is_some(),
            Proof::Thumbprint(leaf) => match &entry.authentication {
                ScopeAuthentication::Thumbprints { primary, secondary } => {
                    has_thumbprint(leaf, primary, secondary) && check_dates(leaf, self.clock.now()).is_ok()
                }
                _ => false,
            },
            Proof::Issued(chain) => {
                entry.authentication == ScopeAuthentication::Authority
                    && self
                        .trust
                        .load()
                        .check(chain, identity.as_str(), self.clock.now())
                        .is_ok()
            }
        };
        proven && self.scope.is_enabled(&entry)
    }

    /// Ends the sessions that the scope does not bear any more, and tells of what came and went.
    pub(crate) fn scope_changed(&self, change: &ScopeChange) {
        if change.is_empty() {
            return;
        }
        tracing::info!(
            added = change.added.len(),
            removed = change.removed.len(),
            changed = change.changed.len(),
            "the scope of the edge hub has changed"
        );
        self.recheck_sessions();
        self.tell_lifecycle(change);
    }
}

/// The module `$edgeHub` of the last device of a chain.
fn actor_of(chain: &[String]) -> Result<Identity, Refusal> {
    chain
        .last()
        .and_then(|actor| Identity::module(actor, "$edgeHub").ok())
        .ok_or(Refusal::BadAuthChain)
}

fn keys_of(entry: &ScopeIdentity) -> Vec<&SymmetricKey> {
    match &entry.authentication {
        ScopeAuthentication::Keys { primary, secondary } => vec![primary, secondary],
        _ => Vec::new(),
    }
}

fn has_thumbprint(leaf: &[u8], primary: &str, secondary: &str) -> bool {
    [primary, secondary]
        .into_iter()
        .filter_map(Thumbprint::parse)
        .any(|thumbprint| thumbprint.matches(leaf))
}
