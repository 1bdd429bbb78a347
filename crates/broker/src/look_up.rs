//! Asking the hub above for identities that clients name and the scope does not have, or has otherwise.

use std::time::Duration;

use holdfast_model::Identity;
use holdfast_model::credential::SasToken;
use holdfast_observe::tracing;
use holdfast_ports::gateway::Credential;
use holdfast_ports::service::Holder;
use holdfast_upstream::port::Reach;

use crate::Broker;
use crate::scope::CHAIN_MAX;

/// How long a client waits while the hub above is asked for it.
const ASK_TIMEOUT: Duration = Duration::from_secs(20);

impl Broker {
    /// Asks the hub above for an identity, not too often. True when the scope may be another one since.
    pub(crate) async fn look_up(&self, identity: &Identity) -> bool {
        self.look_up_by(identity, None).await
    }

    /// Asks for a client for which the edge hub of a child acts, and for the edge devices between that are not known: by
    /// the chain that the child names, of which the hub above is the judge. True when the scope may be another one since.
    pub(crate) async fn look_up_below(&self, credential: Credential<'_>, chain: &str) -> bool {
        let elements: Vec<&str> = chain.split(';').filter(|element| !element.is_empty()).collect();
        let [_, .., actor] = elements.as_slice() else {
            return false;
        };
        let Ok(actor) = Identity::module(actor, "$edgeHub") else {
            return false;
        };
        if elements.len() > CHAIN_MAX {
            return false;
        }
        let mut changed = self.scope.get(&actor).is_none() && self.look_up(&actor).await;
        // Whoever is not that child could otherwise use up the one look-up in a while with a chain that is wrong.
        if !self.is_proven(&actor, credential) {
            return changed;
        }
        for at in (0..elements.len() - 1).rev() {
            let Ok(identity) = Identity::parse(elements[at]) else {
                return changed;
            };
            if at == 0 || self.scope.get(&identity).is_none() {
                let given = elements[at..].join(";");
                changed |= self.look_up_by(&identity, Some(&given)).await;
            }
        }
        changed
    }

    fn is_proven(&self, actor: &Identity, credential: Credential<'_>) -> bool {
        match credential {
            Credential::Sas(token) => {
                SasToken::parse(token).is_ok_and(|token| self.check_signature(&token, actor).is_ok())
            }
            Credential::Granted(grant) => grant.holder == Holder::Identity(actor.clone()),
            Credential::Certificates(_) | Credential::None => false,
        }
    }

    async fn look_up_by(&self, identity: &Identity, chain: Option<&str>) -> bool {
        let online = !matches!(self.reach(), Reach::Offline { .. });
        if !self.scope.has_registry() || !online {
            return false;
        }
        let now = self.clock.monotonic_millis();
        let every = self.config.scope_identity_every;
        if !self.scope.may_ask(identity, now, every) {
            // Somebody else, such as another link of the same client, may be about to know.
            return self.scope.asked(identity).await;
        }
        let _asking = self.scope.asking(identity);
        match tokio::time::timeout(ASK_TIMEOUT, self.scope.refresh_one(identity, chain)).await {
            Ok(Ok(change)) => {
                self.scope_changed(&change);
                !change.is_empty()
            }
            Ok(Err(error)) => {
                tracing::warn!(identity = identity.as_str(), %error, "the hub above cannot be asked for an identity");
                false
            }
            Err(_) => false,
        }
    }
}
