//! Enrichments.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use holdfast_model::Error;
use holdfast_model::routing::{Enrichment, RoutingDefinition};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{check_new, invalid, knows_endpoint, not_found, tag};
use crate::Api;
use crate::extract::{body, creates_only, identity_match};
use crate::reply::{Reply, json_tagged, json_with, no_content};

/// An application property that is added to what goes to some endpoints.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct EnrichmentDto {
    /// Name of the property: letters, digits, `-`, `_`, `.`. In a request for one enrichment that of the path counts.
    #[serde(default)]
    pub(super) key: String,
    /// A fixed text, `$iothubname`, or a path such as `$twin.tags.site`.
    pub(super) value: String,
    /// Where it is added; at least one, which may be the built-in one, `events`.
    pub(super) endpoint_names: Vec<String>,
}

impl From<&Enrichment> for EnrichmentDto {
    fn from(enrichment: &Enrichment) -> Self {
        EnrichmentDto {
            key: enrichment.key.clone(),
            value: enrichment.value.clone(),
            endpoint_names: enrichment.endpoint_names.clone(),
        }
    }
}

impl EnrichmentDto {
    /// The enrichment, checked but for the existence of its endpoints.
    pub(super) fn enrichment(self) -> Result<Enrichment, Error> {
        let enrichment = Enrichment {
            key: self.key,
            value: self.value,
            endpoint_names: self.endpoint_names,
        };
        holdfast_routing::enrich::check(&enrichment).map_err(|fault| invalid(fault.to_string()))?;
        Ok(enrichment)
    }
}

/// Every endpoint of an enrichment must exist.
pub(super) fn check_endpoints(definition: &RoutingDefinition, enrichment: &Enrichment) -> Result<(), Error> {
    for name in &enrichment.endpoint_names {
        if !knows_endpoint(definition, name) {
            return Err(invalid(format!(
                "the enrichment {:?} names the endpoint {name:?}, which does not exist; create it first",
                enrichment.key
            )));
        }
    }
    Ok(())
}

/// Lists enrichments. Right: RegistryRead.
#[utoipa::path(get, path = "/holdfast/v1/routing/enrichments", tag = "Routing",
    responses((status = 200, body = Vec<EnrichmentDto>)))]
pub(crate) async fn list(State(api): State<Api>) -> Reply {
    let definition = api.hub.routing().borrow().clone();
    let enrichments: Vec<_> = definition.enrichments.iter().map(EnrichmentDto::from).collect();
    json_tagged(&enrichments, &tag(definition.version))
}

/// Creates or replaces an enrichment. Right: RegistryWrite.
#[utoipa::path(put, path = "/holdfast/v1/routing/enrichments/{name}", tag = "Routing", request_body = EnrichmentDto,
    responses((status = 200, body = EnrichmentDto), (status = 201, body = EnrichmentDto),
        (status = 412, description = "If-Match does not match, or If-None-Match: * and it exists")))]
pub(crate) async fn put(
    State(api): State<Api>,
    Path(key): Path<String>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Reply {
    let mut wanted: EnrichmentDto = body(&bytes)?;
    if !wanted.key.is_empty() && wanted.key != key {
        let text = format!("the body names the key {:?}, the path {key:?}", wanted.key);
        return Err(invalid(text).into());
    }
    wanted.key = key;
    let enrichment = wanted.enrichment()?;
    let answer = EnrichmentDto::from(&enrichment);
    let only_new = creates_only(&headers);
    let change = move |definition: &mut RoutingDefinition| {
        let mut enrichments = definition.enrichments.iter();
        let exists = enrichments.any(|known| known.key == enrichment.key);
        check_new(only_new, exists, &format!("an enrichment {:?}", enrichment.key))?;
        check_endpoints(definition, &enrichment)?;
        let known = definition
            .enrichments
            .iter_mut()
            .find(|known| known.key == enrichment.key);
        Ok(match known {
            Some(known) => {
                *known = enrichment;
                StatusCode::OK
            }
            None => {
                definition.enrichments.push(enrichment);
                StatusCode::CREATED
            }
        })
    };
    let changed = api.hub.change_routing_if(identity_match(&headers), change);
    let (status, version) = changed.await?;
    json_with(status, &answer, Some(&tag(version)))
}

/// Deletes an enrichment. Right: RegistryWrite.
#[utoipa::path(delete, path = "/holdfast/v1/routing/enrichments/{name}", tag = "Routing",
    responses((status = 204, description = "deleted"), (status = 404, description = "no such enrichment"),
        (status = 412, description = "If-Match does not match")))]
pub(crate) async fn delete(State(api): State<Api>, Path(key): Path<String>, headers: HeaderMap) -> Reply {
    let change = move |definition: &mut RoutingDefinition| {
        let before = definition.enrichments.len();
        definition.enrichments.retain(|enrichment| enrichment.key != key);
        if definition.enrichments.len() == before {
            return Err(not_found("enrichment", &key));
        }
        Ok(())
    };
    api.hub
        .change_routing_if(identity_match(&headers), change)
        .await?;
    no_content()
}
