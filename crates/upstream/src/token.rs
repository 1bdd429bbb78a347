//! Shared access signatures made with a key that is not here.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_model::credential::SymmetricKey;
use holdfast_model::{Identity, Timestamp};
use holdfast_ports::BoxFuture;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::port::{CloudError, TokenSigner};

/// What RFC 3986 leaves as it is, like the SDKs.
pub(crate) const STRICT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// A key in memory as a signer: for connection strings, and for tests.
pub struct KeySigner(SymmetricKey);

impl KeySigner {
    /// Signs with `key`.
    #[must_use]
    pub fn new(key: SymmetricKey) -> Self {
        KeySigner(key)
    }
}

impl TokenSigner for KeySigner {
    fn sign<'a>(&'a self, text: &'a [u8]) -> BoxFuture<'a, Result<[u8; 32], CloudError>> {
        Box::pin(std::future::ready(Ok(self.0.sign(&[text]))))
    }
}

/// What a token of `identity` is for: `{hub}/devices/{d}[/modules/{m}]`.
pub(crate) fn audience(hub_host: &str, identity: &Identity) -> String {
    match identity.module_id() {
        None => format!("{hub_host}/devices/{}", identity.device_id()),
        Some(module_id) => format!("{hub_host}/devices/{}/modules/{module_id}", identity.device_id()),
    }
}

/// Makes a token for `resource` (not encoded) that ends at `expiry`.
pub(crate) async fn sign(
    signer: &dyn TokenSigner,
    resource: &str,
    expiry: Timestamp,
    policy: Option<&str>,
) -> Result<String, CloudError> {
    let resource = utf8_percent_encode(resource, STRICT).to_string();
    let text = format!("{resource}\n{}", expiry.as_seconds());
    let signature = STANDARD.encode(signer.sign(text.as_bytes()).await?);
    let signature = utf8_percent_encode(&signature, STRICT);
    let expiry = expiry.as_seconds();
    let mut token = format!("SharedAccessSignature sr={resource}&sig={signature}&se={expiry}");
    if let Some(policy) = policy {
        token.push_str("&skn=");
        token.push_str(policy);
    }
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_model::credential::SasToken;

    #[tokio::test]
    async fn tokens_are_what_the_hub_checks() {
        let key = SymmetricKey::generate();
        let module = Identity::module("edge 1+".replace(' ', "-").as_str(), "$edgeHub").expect("ids");
        let audience = audience("hub.test", &module);
        assert_eq!(audience, "hub.test/devices/edge-1+/modules/$edgeHub");
        let signer = KeySigner::new(key.clone());
        let expiry = Timestamp::from_seconds(2_000_000_000);
        let text = sign(&signer, &audience, expiry, None).await.expect("signed");
        let token = SasToken::parse(&text).expect("a token");
        assert!(token.verify(&key));
        assert_eq!(token.resource(), audience);
        assert_eq!(token.expiry(), expiry);
    }
}
