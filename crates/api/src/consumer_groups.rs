//! `/holdfast/v1/consumerGroups`: consumer groups of the event log, and how far their readers have come.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use holdfast_model::{Error, ErrorCode};
use holdfast_ports::StoreError;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Api;
use crate::extract::list_body;
use crate::reply::{Failure, Reply, json, json_with, no_content};

/// A consumer group.
#[derive(Serialize, ToSchema)]
pub(crate) struct ConsumerGroup {
    /// Name; `$Default` always exists.
    name: String,
}

/// Where a consumer group goes on in a partition.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CheckpointDto {
    /// Partition.
    partition: u16,
    /// Sequence number of the next event to read.
    next: u64,
}

/// Lists consumer groups. Right: ServiceConnect.
#[utoipa::path(get, path = "/holdfast/v1/consumerGroups", tag = "Events",
    responses((status = 200, body = Vec<ConsumerGroup>)))]
pub(crate) async fn list(State(api): State<Api>) -> Reply {
    let names = api.hub.consumer_groups().await?;
    json(
        &names
            .into_iter()
            .map(|name| ConsumerGroup { name })
            .collect::<Vec<_>>(),
    )
}

/// Creates a consumer group. Right: ServiceConnect.
#[utoipa::path(put, path = "/holdfast/v1/consumerGroups/{name}", tag = "Events",
    responses((status = 201, body = ConsumerGroup), (status = 409, description = "exists")))]
pub(crate) async fn create(State(api): State<Api>, Path(name): Path<String>) -> Reply {
    api.hub.create_consumer_group(&name).await?;
    json_with(StatusCode::CREATED, &ConsumerGroup { name }, None)
}

/// Deletes a consumer group with its checkpoints. Right: ServiceConnect.
#[utoipa::path(delete, path = "/holdfast/v1/consumerGroups/{name}", tag = "Events",
    responses((status = 204, description = "deleted")))]
pub(crate) async fn delete(State(api): State<Api>, Path(name): Path<String>) -> Reply {
    api.hub.delete_consumer_group(&name).await?;
    no_content()
}

/// Reads where a consumer group goes on. Partitions without a checkpoint are left out. Right: ServiceConnect.
#[utoipa::path(get, path = "/holdfast/v1/consumerGroups/{name}/checkpoints", tag = "Events",
    responses((status = 200, body = Vec<CheckpointDto>)))]
pub(crate) async fn checkpoints(State(api): State<Api>, Path(name): Path<String>) -> Reply {
    check_group(&api, &name).await?;
    let mut saved = Vec::new();
    for partition in 0..api.log.partitions() {
        let checkpoint = api.checkpoints.checkpoint(&name, partition).await;
        if let Some(next) = checkpoint.map_err(|error| unavailable(&error))? {
            saved.push(CheckpointDto { partition, next });
        }
    }
    json(&saved)
}

/// Saves where a consumer group goes on, once its reader has dealt with everything before. Right: ServiceConnect.
#[utoipa::path(put, path = "/holdfast/v1/consumerGroups/{name}/checkpoints", tag = "Events",
    request_body = Vec<CheckpointDto>, responses((status = 204, description = "saved")))]
pub(crate) async fn save_checkpoints(
    State(api): State<Api>,
    Path(name): Path<String>,
    bytes: Bytes,
) -> Reply {
    check_group(&api, &name).await?;
    for checkpoint in list_body::<CheckpointDto>(&bytes, usize::from(api.log.partitions()))? {
        let info = api.log.info(checkpoint.partition);
        let info = info.map_err(|error| Error::new(ErrorCode::ArgumentInvalid, error.to_string()))?;
        if checkpoint.next > info.next {
            let text = format!("partition {} ends at {}", checkpoint.partition, info.next);
            return Err(Error::new(ErrorCode::ArgumentInvalid, text).into());
        }
        let saved = api
            .checkpoints
            .save_checkpoint(&name, checkpoint.partition, checkpoint.next)
            .await;
        saved.map_err(|error| unavailable(&error))?;
    }
    no_content()
}

/// # Errors
/// `ResourceNotFound` when there is no such group.
pub(crate) async fn check_group(api: &Api, name: &str) -> Result<(), Failure> {
    if api.hub.consumer_groups().await?.iter().any(|group| group == name) {
        return Ok(());
    }
    let text =
        format!("there is no consumer group {name:?}; create it with `holdfast consumer-group create`");
    Err(Error::new(ErrorCode::ResourceNotFound, text).into())
}

/// A store that does not answer; the cause goes to the log.
pub(crate) fn unavailable(error: &StoreError) -> Failure {
    tracing::error!(%error, "checkpoints cannot be read or saved");
    Error::new(
        ErrorCode::ServiceUnavailable,
        "the store is unavailable; see the hub's log",
    )
    .into()
}
