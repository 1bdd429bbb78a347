//! Asking the hub above for identities that clients name and the scope does not have, or has otherwise.

use std::sync::Arc;
use std::time::Duration;

use holdfast_model::Identity;
use holdfast_model::credential::SasToken;
use holdfast_observe::{Repeats, tracing};
use holdfast_ports::gateway::Credential;
use holdfast_ports::service::Holder;
use holdfast_upstream::port::Reach;

use crate::Broker;
use crate::scope::CHAIN_MAX;
use crate::scope::questions::{Outcome, Question, Turn};

/// How long a client waits while the hub above is asked for it.
const ASK_TIMEOUT: Duration = Duration::from_secs(20);
/// Questions under way at once; others wait in line.
pub(crate) const ASKING_MAX: usize = 8;

static NOT_ASKED: Repeats = Repeats::new();

/// A question under way. It ends when this is dropped, also without an answer.
struct Asking {
    broker: Arc<Broker>,
    question: Question,
    era: u64,
    outcome: Outcome,
}

impl Drop for Asking {
    fn drop(&mut self) {
        let now = self.broker.clock.monotonic_millis();
        let every = self.broker.config.scope_identity_every;
        let questions = &self.broker.scope.questions;
        questions.end(&self.question, self.era, self.outcome, now, every);
    }
}

impl Broker {
    /// Asks the hub above for an identity, not too often, and waits for the answer.
    pub(crate) async fn look_up(&self, identity: &Identity) {
        self.look_up_by(identity, None).await;
    }

    /// Asks for a client for which the edge hub of a child acts, and for the edge devices between that are not known: by
    /// the chain that the child names, of which the hub above is the judge.
    pub(crate) async fn look_up_below(&self, credential: Credential<'_>, chain: &str) {
        let elements: Vec<&str> = chain.split(';').filter(|element| !element.is_empty()).collect();
        let [_, .., actor] = elements.as_slice() else {
            return;
        };
        let Ok(actor) = Identity::module(actor, "$edgeHub") else {
            return;
        };
        if elements.len() > CHAIN_MAX {
            return;
        }
        if self.scope.get(&actor).is_none() {
            self.look_up(&actor).await;
        }
        // Whoever is not that child could otherwise use up the one look-up in a while with a chain that is wrong.
        if !self.is_proven(&actor, credential) {
            return;
        }
        for at in (0..elements.len() - 1).rev() {
            let Ok(identity) = Identity::parse(elements[at]) else {
                return;
            };
            if at == 0 || self.scope.get(&identity).is_none() {
                let given = elements[at..].join(";");
                self.look_up_by(&identity, Some(&given)).await;
            }
        }
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

    async fn look_up_by(&self, identity: &Identity, chain: Option<&str>) {
        let online = !matches!(self.reach(), Reach::Offline { .. });
        if !self.scope.has_registry() || !online {
            return;
        }
        let question = Question {
            identity: identity.clone(),
            chain: chain.map(Into::into),
        };
        let now = self.clock.monotonic_millis();
        match self.scope.questions.begin(&question, now) {
            Turn::No => return,
            // Somebody else, such as another link of the same client, is about to know.
            Turn::Wait => {}
            Turn::Ask(era) => {
                let Some(broker) = self.me.upgrade() else { return };
                let asking = Asking {
                    broker,
                    question: question.clone(),
                    era,
                    outcome: Outcome::Unanswered,
                };
                // Not by the client's own task: one that hangs up would take the answer from the others.
                tokio::spawn(asking.run());
            }
        }
        let _ = tokio::time::timeout(ASK_TIMEOUT, self.scope.questions.ended(&question)).await;
    }
}

impl Asking {
    async fn run(mut self) {
        let broker = &self.broker;
        let Ok(_turn) = broker.asking.acquire().await else {
            return;
        };
        let identity = &self.question.identity;
        let asked = broker.scope.refresh_one(identity, self.question.chain.as_deref());
        match tokio::time::timeout(ASK_TIMEOUT, asked).await {
            Ok(Ok(applied)) => {
                broker.scope_changed(&applied.change);
                if let Some(more) = NOT_ASKED.over(broker.scope.device_id()) {
                    tracing::info!(more, "the hub above can be asked for identities again");
                }
                self.outcome = match applied.overtaken {
                    true => Outcome::Overtaken,
                    false => Outcome::Answered,
                };
            }
            Ok(Err(error)) => {
                if let Some(times) = NOT_ASKED.happened(broker.scope.device_id()) {
                    tracing::warn!(identity = identity.as_str(), %error, times, "the hub above cannot be asked for an identity");
                }
            }
            Err(_) => {
                if let Some(times) = NOT_ASKED.happened(broker.scope.device_id()) {
                    let (identity, seconds) = (identity.as_str(), ASK_TIMEOUT.as_secs());
                    tracing::warn!(
                        identity,
                        seconds,
                        times,
                        "the hub above did not answer in time about an identity"
                    );
                }
            }
        }
    }
}
