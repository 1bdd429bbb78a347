//! Gateways that act for their modules and children (mqtt.md 2.3).

use holdfast_model::credential::SasToken;
use holdfast_model::event::AuthMethod;
use holdfast_model::registry::{IdentityRecord, Status};
use holdfast_model::{Error, Identity, Timestamp};
use holdfast_ports::gateway::Protocol;
use holdfast_ports::service::{Grant, Holder};

use crate::Hub;
use crate::auth::{Denied, ServiceCaller, Verified, check_identity_key, sas};
use crate::events::Refusal;

/// The module that acts for its edge device's children.
const EDGE_HUB: &str = "$edgeHub";

/// The target, the edge levels above it (IoT Edge nests five), and one to spare for a module's own device.
const CHAIN_MAX: usize = 7;

impl Hub {
    /// `chain` is `{target};{edge1};…;{actor}`, nearest parent first. The token is that of the actor's module
    /// `$edgeHub`; every adjacent pair is a registered link from child to parent; all of them exist and are enabled.
    pub(crate) async fn check_on_behalf(
        &self,
        token: &str,
        target: &Identity,
        chain: &str,
    ) -> Result<Verified, Denied> {
        let (parents, actor) = parents_and_actor(target, chain)?;
        // The actor first: who has no valid token learns nothing about links.
        let expires_at = self.check_edge_hub(token, &actor).await?;
        self.verified_below(target, &parents, expires_at).await
    }

    /// As [`check_on_behalf`](Self::check_on_behalf), by a token that was checked before (AMQP).
    pub(super) async fn check_granted_on_behalf(
        &self,
        grant: &Grant,
        target: &Identity,
        chain: &str,
    ) -> Result<Verified, Denied> {
        let (parents, actor) = parents_and_actor(target, chain)?;
        if grant.expires_at.plus(self.config.clock_skew) < self.now() {
            return Err(Refusal::TokenExpired.into());
        }
        if grant.holder != Holder::Identity(actor) {
            return Err(Refusal::WrongResource.into());
        }
        self.verified_below(target, &parents, grant.expires_at).await
    }

    async fn verified_below(
        &self,
        target: &Identity,
        parents: &[&str],
        expires_at: Timestamp,
    ) -> Result<Verified, Denied> {
        let record = self.record_of(target).await?;
        self.check_enabled(&record).await?;
        self.check_links(&record, parents).await?;
        Ok(Verified {
            record,
            auth: AuthMethod::IdentityKey,
            expires_at,
        })
    }

    /// The token of an edge hub, by its own key; returns when it ends.
    async fn check_edge_hub(&self, token: &str, actor: &Identity) -> Result<Timestamp, Denied> {
        let token = SasToken::parse(token).map_err(|_| Refusal::MalformedToken)?;
        self.check_time(&token)?;
        if token.policy().is_some() || !sas::names(&token, &self.host_names, actor) {
            return Err(Refusal::WrongResource.into());
        }
        check_identity_key(&token, &self.record_of(actor).await?)?;
        Ok(token.expiry())
    }

    /// Whether each of `parents`, nearest first, is enabled and the registered parent of the one before it.
    async fn check_links(&self, record: &IdentityRecord, parents: &[&str]) -> Result<(), Denied> {
        let mut child = record.clone();
        for parent_id in parents {
            let parent = Identity::device(parent_id).map_err(|_| Refusal::BadAuthChain)?;
            let parent = self.record_of(&parent).await?;
            if parent.status == Status::Disabled {
                return Err(Refusal::Disabled.into());
            }
            if !is_link(&child, &parent) {
                return Err(Refusal::BadAuthChain.into());
            }
            child = parent;
        }
        Ok(())
    }

    /// Checks the token of the module `$edgeHub` of `device_id`, which asks for what is below its edge device or does
    /// something there (edge.md sections 8 and 9). Nothing but its own key is good: what it gets holds keys.
    ///
    /// # Errors
    /// `IotHubUnauthorized` when the token cannot be used, `IotHubUnauthorizedAccess` else.
    pub async fn authorize_edge_hub(
        &self,
        token: Option<&str>,
        device_id: &str,
        module_id: &str,
    ) -> Result<ServiceCaller, Error> {
        let check = async {
            let token = token.ok_or(Refusal::NoCredential)?;
            let actor = Identity::module(device_id, module_id).map_err(|_| Refusal::MalformedIdentity)?;
            if module_id != EDGE_HUB {
                return Err(Refusal::MissingRight.into());
            }
            self.check_edge_hub(token, &actor).await?;
            let device = self.record_of(&actor.owner()).await?;
            self.check_enabled(&device).await?;
            Ok(ServiceCaller::Device(device.identity))
        };
        let checked: Result<ServiceCaller, Denied> = check.await;
        checked.map_err(|denied| self.denied(denied, device_id, Some(module_id), Protocol::Https))
    }

    /// The device that `chain` leads to: `{target};{parent};…;{actor}`, where the target is the actor itself or an edge
    /// device below it.
    ///
    /// # Errors
    /// `IotHubUnauthorizedAccess` when the chain is not one of registered and enabled links that ends at `actor`.
    pub async fn edge_in_chain(&self, actor: &Identity, chain: &str) -> Result<IdentityRecord, Error> {
        let check = async {
            let elements: Vec<&str> = chain.split(';').filter(|element| !element.is_empty()).collect();
            let [first, parents @ ..] = elements.as_slice() else {
                return Err(Refusal::BadAuthChain.into());
            };
            // A child may name its edge hub where its device is meant.
            let target = first.split('/').next().unwrap_or_default();
            if elements.len() > CHAIN_MAX || parents.last().copied().unwrap_or(target) != actor.as_str() {
                return Err(Refusal::BadAuthChain.into());
            }
            let target = Identity::device(target).map_err(|_| Refusal::BadAuthChain)?;
            let record = self.record_of(&target).await?;
            // What is no edge device does nothing here; whether it may connect is for the answer to say.
            if record.iot_edge {
                self.check_enabled(&record).await?;
            }
            let own = [target.as_str()];
            let parents = parents.strip_prefix(&own).unwrap_or(parents);
            self.check_links(&record, parents).await?;
            Ok(record)
        };
        let checked: Result<IdentityRecord, Denied> = check.await;
        checked.map_err(|denied| self.denied(denied, actor.as_str(), Some(EDGE_HUB), Protocol::Https))
    }
}

/// The elements of a chain behind its target, and the edge hub of the last one.
fn parents_and_actor<'a>(target: &Identity, chain: &'a str) -> Result<(Vec<&'a str>, Identity), Refusal> {
    let mut elements = chain.split(';').filter(|element| !element.is_empty());
    let first = elements.next();
    let parents: Vec<&str> = elements.collect();
    if first != Some(target.as_str()) || parents.len() >= CHAIN_MAX {
        return Err(Refusal::BadAuthChain);
    }
    let actor_id = parents.last().ok_or(Refusal::BadAuthChain)?;
    let actor = Identity::module(actor_id, EDGE_HUB).map_err(|_| Refusal::BadAuthChain)?;
    Ok((parents, actor))
}

/// A module is a child of its device; a device is a child of the edge devices whose scopes it names.
fn is_link(child: &IdentityRecord, parent: &IdentityRecord) -> bool {
    if child.identity.is_module() {
        return child.identity.device_id() == parent.identity.device_id();
    }
    let Some(scope) = parent.device_scope.as_ref().filter(|_| parent.iot_edge) else {
        return false;
    };
    child.identity != parent.identity && child.parent_scopes.contains(scope)
}
