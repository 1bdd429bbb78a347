//! What a client shows at a login, whatever the protocol.

use std::time::Duration;

use holdfast_model::Identity;
use percent_encoding::utf8_percent_encode;

use crate::Core;
use crate::port::{Account, ClientCertificate, CloudError, Proof};
use crate::token::{self, STRICT};

/// Of the hub's device side.
pub(crate) const API_VERSION: &str = "2021-04-12";
/// Part of a token's life after which it is renewed.
const RENEW_AFTER: f64 = 0.85;

/// A token with the time after which to renew it.
pub(crate) struct Pass {
    pub(crate) token: String,
    pub(crate) renew_after: Duration,
}

impl Account {
    /// The certificate, for an account that proves itself by one.
    pub(crate) fn certificate(&self) -> Option<&ClientCertificate> {
        match &self.proof {
            Proof::Certificate(certificate) => Some(certificate),
            Proof::Key(_) | Proof::OnBehalf { .. } => None,
        }
    }

    /// Whose token speaks for it.
    pub(crate) fn signer_identity(&self) -> &Identity {
        match &self.proof {
            Proof::OnBehalf { actor, .. } => actor,
            Proof::Key(_) | Proof::Certificate(_) => &self.identity,
        }
    }

    /// A new token; `None` for an account with a certificate.
    pub(crate) async fn pass(&self, core: &Core) -> Result<Option<Pass>, CloudError> {
        let signer = match &self.proof {
            Proof::Key(signer) | Proof::OnBehalf { signer, .. } => signer,
            Proof::Certificate(_) => return Ok(None),
        };
        let life = core.config.tuning.token_life;
        let audience = token::audience(&core.config.hub_host, self.signer_identity());
        let expiry = core.clock.now().plus(life);
        Ok(Some(Pass {
            token: token::sign(signer.as_ref(), &audience, expiry, None).await?,
            renew_after: life.mul_f64(RENEW_AFTER),
        }))
    }

    /// MQTT's user name (mqtt.md 2.1).
    pub(crate) fn user_name(&self, hub_host: &str) -> String {
        let mut name = format!("{hub_host}/{}/?api-version={API_VERSION}", self.identity.as_str());
        let chain = match &self.proof {
            Proof::OnBehalf { chain, .. } => Some(chain.as_str()),
            Proof::Key(_) | Proof::Certificate(_) => None,
        };
        let product = Some(self.product_info.as_str()).filter(|text| !text.is_empty());
        for (key, value) in [
            ("DeviceClientType", product),
            ("model-id", self.model_id.as_deref()),
            ("auth-chain", chain),
        ] {
            if let Some(value) = value {
                name.push('&');
                name.push_str(key);
                name.push('=');
                name.extend(utf8_percent_encode(value, STRICT));
            }
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use holdfast_model::credential::SymmetricKey;

    use super::*;
    use crate::token::KeySigner;

    #[test]
    fn the_user_name_is_what_the_hub_reads() {
        let account = Account {
            identity: Identity::device("leaf").expect("an id"),
            proof: Proof::OnBehalf {
                actor: Identity::module("e1", "$edgeHub").expect("ids"),
                signer: Arc::new(KeySigner::new(SymmetricKey::generate())),
                chain: "leaf;e2;e1".to_owned(),
            },
            product_info: "EdgeHub/1 (x=y;)".to_owned(),
            model_id: Some("dtmi:a:b;1".to_owned()),
        };
        let text = account.user_name("hub.test");
        let name = holdfast_wire::username::parse(&text).expect("a user name");
        assert_eq!(
            (name.host, name.device_id, name.module_id),
            ("hub.test", "leaf", None)
        );
        assert_eq!(name.auth_chain.as_deref(), Some("leaf;e2;e1"));
        assert_eq!(name.client_type.as_deref(), Some("EdgeHub/1 (x=y;)"));
        assert_eq!(name.model_id.as_deref(), Some("dtmi:a:b;1"));
    }
}
