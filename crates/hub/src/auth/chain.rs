//! Gateways that act for their modules and children (mqtt.md 2.3).

use holdfast_model::Identity;
use holdfast_model::credential::SasToken;
use holdfast_model::event::AuthMethod;
use holdfast_model::registry::{IdentityRecord, Status};

use crate::Hub;
use crate::auth::{Denied, Verified, check_identity_key, sas};
use crate::events::Refusal;

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
        let elements: Vec<&str> = chain.split(';').filter(|element| !element.is_empty()).collect();
        let [first, parents @ ..] = elements.as_slice() else {
            return Err(Refusal::BadAuthChain.into());
        };
        if *first != target.as_str() || elements.len() > CHAIN_MAX {
            return Err(Refusal::BadAuthChain.into());
        }
        let actor_id = parents.last().ok_or(Refusal::BadAuthChain)?;
        let actor = Identity::module(actor_id, "$edgeHub").map_err(|_| Refusal::BadAuthChain)?;

        // The actor first: who has no valid token learns nothing about links.
        let token = SasToken::parse(token).map_err(|_| Refusal::MalformedToken)?;
        self.check_time(&token)?;
        if token.policy().is_some() || !sas::names(&token, &self.host_names, &actor) {
            return Err(Refusal::WrongResource.into());
        }
        check_identity_key(&token, &self.record_of(&actor).await?)?;

        let record = self.record_of(target).await?;
        self.check_enabled(&record).await?;
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
        Ok(Verified {
            record,
            auth: AuthMethod::IdentityKey,
            expires_at: token.expiry(),
        })
    }
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
