//! Identities as JSON: what the edge hub keeps, and the file of local identities of `holdfast-edge broker`.
//!
//! ```json
//! {"identities":[
//!   {"id":"edge/filter","keys":["<base64>","<base64>"]},
//!   {"id":"thermometer","thumbprints":["<hex>"],"parentScopes":["ms-azure-iot-edge://edge-1"]},
//!   {"id":"scale","authority":true,"enabled":false}]}
//! ```

use std::borrow::Cow;

use holdfast_model::Identity;
use holdfast_model::credential::SymmetricKey;
use holdfast_upstream::port::{ScopeAuthentication, ScopeIdentity};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document<'a> {
    #[serde(borrow)]
    identities: Vec<Entry<'a>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry<'a> {
    id: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    generation_id: Cow<'a, str>,
    #[serde(default = "enabled", skip_serializing_if = "Clone::clone")]
    enabled: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    keys: Vec<SymmetricKey>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    thumbprints: Vec<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    authority: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    iot_edge: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device_scope: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    parent_scopes: Vec<Cow<'a, str>>,
}

fn enabled() -> bool {
    true
}

pub(crate) fn encode<'a>(identities: impl Iterator<Item = &'a ScopeIdentity>) -> Vec<u8> {
    let document = Document {
        identities: identities.map(Entry::of).collect(),
    };
    serde_json::to_vec(&document).unwrap_or_default()
}

/// Reads a document of identities.
///
/// # Errors
/// What is wrong with it, and where.
pub fn decode(json: &[u8]) -> Result<Vec<ScopeIdentity>, String> {
    let document: Document<'_> = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    document
        .identities
        .into_iter()
        .map(Entry::into_identity)
        .collect()
}

impl<'a> Entry<'a> {
    fn of(identity: &'a ScopeIdentity) -> Self {
        let (mut keys, mut thumbprints, mut authority) = (Vec::new(), Vec::new(), false);
        match &identity.authentication {
            ScopeAuthentication::Keys { primary, secondary } => {
                keys = vec![primary.clone(), secondary.clone()]
            }
            ScopeAuthentication::Thumbprints { primary, secondary } => {
                thumbprints = vec![primary.as_str().into(), secondary.as_str().into()];
            }
            ScopeAuthentication::Authority => authority = true,
            ScopeAuthentication::None => {}
        }
        Entry {
            id: identity.identity.as_str().into(),
            generation_id: identity.generation_id.as_str().into(),
            enabled: identity.enabled,
            keys,
            thumbprints,
            authority,
            iot_edge: identity.iot_edge,
            device_scope: identity.device_scope.as_deref().map(Cow::Borrowed),
            parent_scopes: identity
                .parent_scopes
                .iter()
                .map(|scope| scope.as_str().into())
                .collect(),
        }
    }

    fn into_identity(self) -> Result<ScopeIdentity, String> {
        let identity = Identity::parse(&self.id).map_err(|error| format!("{:?}: {error}", self.id))?;
        let authentication = match (&self.keys[..], &self.thumbprints[..], self.authority) {
            ([], [], false) => ScopeAuthentication::None,
            ([], [], true) => ScopeAuthentication::Authority,
            ([primary, more @ ..], [], false) if more.len() <= 1 => ScopeAuthentication::Keys {
                primary: primary.clone(),
                secondary: more.first().unwrap_or(primary).clone(),
            },
            ([], [primary, more @ ..], false) if more.len() <= 1 => ScopeAuthentication::Thumbprints {
                primary: primary.clone().into_owned(),
                secondary: more.first().unwrap_or(primary).clone().into_owned(),
            },
            _ => {
                let id = &self.id;
                return Err(format!(
                    "{id:?} needs one kind of credential, and at most two of it"
                ));
            }
        };
        Ok(ScopeIdentity {
            identity,
            generation_id: self.generation_id.into_owned(),
            enabled: self.enabled,
            authentication,
            iot_edge: self.iot_edge,
            device_scope: self.device_scope.map(Cow::into_owned),
            parent_scopes: self.parent_scopes.into_iter().map(Cow::into_owned).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_refuses_nonsense() {
        let key = SymmetricKey::generate();
        let text = format!(
            r#"{{"identities":[{{"id":"e/m","keys":["{0}","{0}"],"generationId":"7"}},{{"id":"d","thumbprints":["AB"],"enabled":false}},
               {{"id":"c","authority":true,"iotEdge":true,"deviceScope":"s","parentScopes":["p"]}},{{"id":"n"}}]}}"#,
            key.reveal()
        );
        let identities = decode(text.as_bytes()).unwrap();
        assert_eq!(identities.len(), 4);
        assert!(identities[0].enabled && !identities[1].enabled && identities[2].iot_edge);
        assert_eq!(decode(&encode(identities.iter())).unwrap(), identities);
        for bad in [
            "",
            "[]",
            r#"{"identities":[{"id":"a b"}]}"#,
            r#"{"identities":[{"id":"a","keys":["x"]}]}"#,
            r#"{"identities":[{"id":"a","authority":true,"thumbprints":["AB"]}]}"#,
            r#"{"identities":[{"id":"a","kyes":[]}]}"#,
        ] {
            assert!(decode(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
