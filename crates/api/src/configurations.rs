//! `/configurations` and `applyConfigurationContent`: configurations and edge deployments (REST contract, section 12).

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use holdfast_fleet::configurations::{
    ConfigurationSpec, ConfigurationTest, ConfigurationView, Metric, MetricValue,
};
use holdfast_hub::IfMatch;
use holdfast_model::{Error, ErrorCode};
use holdfast_wire::dto::{
    ConfigurationContentDto, ConfigurationDto, ConfigurationMetricsDto, ConfigurationPut,
    ConfigurationQueriesTestInput, ConfigurationQueriesTestResponse,
};
use holdfast_wire::etag;
use serde::Deserialize;
use serde_json::Number;

use crate::Api;
use crate::extract::{body, identity, identity_match};
use crate::reply::{Reply, json, json_tagged, no_content};

/// Query parameters of the list.
#[derive(Deserialize)]
pub(crate) struct Top {
    top: Option<usize>,
}

/// Lists configurations and deployments with the results of their metrics. Right: RegistryRead.
#[utoipa::path(get, path = "/configurations", tag = "Configurations",
    params(("top" = Option<u32>, Query, description = "Most items; all if absent")),
    responses((status = 200, body = Vec<ConfigurationDto>)))]
pub(crate) async fn list(State(api): State<Api>, Query(query): Query<Top>) -> Reply {
    let top = query.top.filter(|top| *top > 0).unwrap_or(usize::MAX);
    let views = api.configurations.list(top).await?;
    json(&views.iter().map(dto).collect::<Vec<_>>())
}

/// Reads a configuration or deployment with the results of its metrics. Right: RegistryRead.
#[utoipa::path(get, path = "/configurations/{id}", tag = "Configurations",
    responses((status = 200, body = ConfigurationDto), (status = 404, description = "ConfigurationNotFound")))]
pub(crate) async fn get(State(api): State<Api>, Path(id): Path<String>) -> Reply {
    answer(&api.configurations.get(&id).await?)
}

/// Creates (without If-Match) or updates a configuration or deployment. The content cannot change. Right:
/// RegistryWrite.
#[utoipa::path(put, path = "/configurations/{id}", tag = "Configurations", request_body = ConfigurationPut,
    responses((status = 200, body = ConfigurationDto), (status = 409, description = "ConfigurationAlreadyExists"),
    (status = 412, description = "If-Match does not match")))]
pub(crate) async fn put(
    State(api): State<Api>,
    Path(id): Path<String>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Reply {
    let wanted: ConfigurationPut = body(&bytes)?;
    wanted.check_id(&id)?;
    let priority = wanted.checked_priority()?;
    let content = wanted
        .content
        .map(ConfigurationContentDto::into_model)
        .transpose()?;
    let spec = ConfigurationSpec {
        schema_version: wanted.schema_version,
        labels: wanted.labels,
        content: content.flatten(),
        target_condition: wanted.target_condition,
        priority,
        metrics: wanted.metrics.map(|metrics| metrics.queries),
    };
    answer(
        &api.configurations
            .put(&id, spec, identity_match(&headers))
            .await?,
    )
}

/// Deletes a configuration or deployment. Right: RegistryWrite.
#[utoipa::path(delete, path = "/configurations/{id}", tag = "Configurations",
    responses((status = 204, description = "deleted"), (status = 404, description = "ConfigurationNotFound")))]
pub(crate) async fn delete(State(api): State<Api>, Path(id): Path<String>, headers: HeaderMap) -> Reply {
    let if_match: IfMatch = identity_match(&headers);
    api.configurations.delete(&id, if_match).await?;
    no_content()
}

/// Tries a target condition and queries of metrics. Right: RegistryWrite.
#[utoipa::path(post, path = "/configurations/testQueries", tag = "Configurations",
    request_body = ConfigurationQueriesTestInput,
    responses((status = 200, body = ConfigurationQueriesTestResponse)))]
pub(crate) async fn test_queries(bytes: Bytes) -> Reply {
    let given: ConfigurationQueriesTestInput = body(&bytes)?;
    let result = ConfigurationTest {
        target_condition: given.target_condition,
        metrics: given.custom_metric_queries,
    }
    .run();
    json(&ConfigurationQueriesTestResponse {
        target_condition_error: result.target_condition,
        custom_metric_query_errors: result.metrics,
    })
}

/// Applies content to one device: `modulesContent` to an edge device, `deviceContent` to any. Right: RegistryWrite.
#[utoipa::path(post, path = "/devices/{id}/applyConfigurationContent", tag = "Configurations",
    request_body = ConfigurationContentDto,
    responses((status = 204, description = "applied"), (status = 400, description = "InvalidConfigurationContent")))]
pub(crate) async fn apply_content(
    State(api): State<Api>,
    Path(device_id): Path<String>,
    bytes: Bytes,
) -> Reply {
    let content: ConfigurationContentDto = body(&bytes)?;
    let content = content.into_model()?.ok_or_else(|| {
        Error::new(
            ErrorCode::InvalidConfigurationContent,
            "the content is empty; give modulesContent or deviceContent",
        )
    })?;
    let device = identity(&device_id, None)?;
    api.configurations.apply_content(&device, &content).await?;
    no_content()
}

fn answer(view: &ConfigurationView) -> Reply {
    json_tagged(&dto(view), &etag::of_identity(view.configuration.version))
}

fn dto(view: &ConfigurationView) -> ConfigurationDto {
    ConfigurationDto {
        system_metrics: metrics(&view.system),
        metrics: metrics(&view.custom),
        ..ConfigurationDto::new(&view.configuration)
    }
}

fn metrics(all: &[Metric]) -> ConfigurationMetricsDto {
    let result = |metric: &Metric| {
        let number = match metric.result {
            MetricValue::Count(count) => Number::from(count),
            MetricValue::Number(number) => Number::from_f64(number)?,
            MetricValue::Unknown => return None,
        };
        Some((metric.name.clone(), number))
    };
    ConfigurationMetricsDto {
        results: all.iter().filter_map(result).collect(),
        queries: all
            .iter()
            .map(|metric| (metric.name.clone(), metric.query.clone()))
            .collect(),
    }
}
