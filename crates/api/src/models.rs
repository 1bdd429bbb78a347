//! `/holdfast/v1/models…`: models of plug and play devices, and twins checked against them (languages.md section 7).

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use holdfast_dtdl::twin::check_twin;
use holdfast_dtdl::{Dtmi, Fault};
use holdfast_fleet::models::{ModelFailure, ModelFolder};
use holdfast_model::{Error, ErrorCode, Identity};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Api;
use crate::extract::identity;
use crate::reply::{Reply, json, json_with, no_content};

/// A model in a list.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ModelDto {
    /// DTMI.
    id: String,
    /// Name for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    display_name: Option<String>,
}

/// A broken rule.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct FaultDto {
    /// Which element of the model, or which value of the twin.
    place: String,
    /// Which rule, and what was found instead.
    rule: String,
}

impl From<&Fault> for FaultDto {
    fn from(fault: &Fault) -> Self {
        FaultDto {
            place: fault.place.clone(),
            rule: fault.rule.clone(),
        }
    }
}

/// What a check has found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CheckResultDto {
    /// Whether nothing was found.
    valid: bool,
    /// The model: the one that the document is about, or the one that the device announced.
    #[serde(skip_serializing_if = "Option::is_none")]
    model_id: Option<String>,
    /// Broken rules, at most 100.
    faults: Vec<FaultDto>,
}

impl CheckResultDto {
    fn new(model_id: Option<String>, faults: &[Fault]) -> Self {
        CheckResultDto {
            valid: faults.is_empty(),
            model_id,
            faults: faults.iter().map(FaultDto::from).collect(),
        }
    }
}

/// Lists the models. Right: RegistryRead.
#[utoipa::path(get, path = "/holdfast/v1/models", tag = "Models", responses((status = 200, body = Vec<ModelDto>)))]
pub(crate) async fn list(State(api): State<Api>) -> Reply {
    let models = on_folder(&api, |folder| folder.list()).await??;
    let models: Vec<ModelDto> = models
        .into_iter()
        .map(|model| ModelDto {
            id: model.id.to_string(),
            display_name: model.display_name,
        })
        .collect();
    json(&models)
}

/// Reads a model. Right: RegistryRead.
#[utoipa::path(get, path = "/holdfast/v1/models/{id}", tag = "Models",
    responses((status = 200, description = "the model as it was written"), (status = 404, description = "no such model")))]
pub(crate) async fn get(State(api): State<Api>, Path(id): Path<String>) -> Reply {
    let id = dtmi(&id)?;
    let text = on_folder(&api, move |folder| folder.text(&id)).await??;
    let document: Box<serde_json::value::RawValue> = serde_json::from_str(&text).map_err(|error| {
        Error::new(
            ErrorCode::InvalidOperation,
            format!("the file of the model is not JSON: {error}"),
        )
    })?;
    json(&document)
}

/// Keeps a model, in place of one of the same id. What it refers to must be there already, or in the same document. Right:
/// RegistryWrite.
#[utoipa::path(put, path = "/holdfast/v1/models/{id}", tag = "Models", responses((status = 200, body = CheckResultDto),
    (status = 400, body = CheckResultDto, description = "the model breaks rules; nothing was changed")))]
pub(crate) async fn put(State(api): State<Api>, Path(id): Path<String>, body: Bytes) -> Reply {
    let id = dtmi(&id)?;
    let text = text(&body)?;
    let kept = on_folder(&api, move |folder| {
        let (found, _) = folder.check(&text)?;
        if found != id {
            return Err(ModelFailure::Error(Error::new(
                ErrorCode::ArgumentInvalid,
                format!("the document is about {found}, the path names {id}"),
            )));
        }
        folder.put(&text)
    })
    .await?;
    match kept {
        Ok(id) => json(&CheckResultDto::new(Some(id.to_string()), &[])),
        Err(ModelFailure::Error(error)) => Err(error.into()),
        Err(ModelFailure::Faults(faults)) => {
            json_with(StatusCode::BAD_REQUEST, &CheckResultDto::new(None, &faults), None)
        }
    }
}

/// Removes a model. Right: RegistryWrite.
#[utoipa::path(delete, path = "/holdfast/v1/models/{id}", tag = "Models",
    responses((status = 204, description = "removed"), (status = 404, description = "no such model")))]
pub(crate) async fn delete(State(api): State<Api>, Path(id): Path<String>) -> Reply {
    let id = dtmi(&id)?;
    on_folder(&api, move |folder| folder.delete(&id)).await??;
    no_content()
}

/// Checks a model, with what it refers to among the models kept, and keeps nothing. Right: RegistryRead.
#[utoipa::path(post, path = "/holdfast/v1/models/validate", tag = "Models",
    responses((status = 200, body = CheckResultDto)))]
pub(crate) async fn validate(State(api): State<Api>, body: Bytes) -> Reply {
    let text = text(&body)?;
    let checked = on_folder(&api, move |folder| folder.check(&text)).await?;
    match checked {
        Ok((id, _)) => json(&CheckResultDto::new(Some(id.to_string()), &[])),
        Err(ModelFailure::Faults(faults)) => json(&CheckResultDto::new(None, &faults)),
        Err(ModelFailure::Error(error)) => Err(error.into()),
    }
}

/// Checks the twin of a device against the model that the device announced. Right: ServiceConnect.
#[utoipa::path(get, path = "/holdfast/v1/devices/{id}/modelCheck", tag = "Models",
    responses((status = 200, body = CheckResultDto),
    (status = 404, description = "no such device, or its model is not among those kept")))]
pub(crate) async fn check_device(State(api): State<Api>, Path(device_id): Path<String>) -> Reply {
    check(&api, identity(&device_id, None)?).await
}

/// Checks the twin of a module against the model that the module announced. Right: ServiceConnect.
#[utoipa::path(get, path = "/holdfast/v1/devices/{id}/modules/{mid}/modelCheck", tag = "Models",
    responses((status = 200, body = CheckResultDto)))]
pub(crate) async fn check_module(
    State(api): State<Api>,
    Path((device_id, module_id)): Path<(String, String)>,
) -> Reply {
    check(&api, identity(&device_id, Some(&module_id))?).await
}

async fn check(api: &Api, identity: Identity) -> Reply {
    let twin = api.hub.twin(&identity).await?;
    let Some(model_id) = twin.model_id.clone().filter(|id| !id.is_empty()) else {
        return Err(Error::new(
            ErrorCode::InvalidOperation,
            format!("{identity} has not announced a model"),
        )
        .into());
    };
    let id = dtmi(&model_id)?;
    let found = on_folder(api, move |folder| {
        let set = folder.load(&id)?;
        let (desired, reported) = (&twin.desired.properties, &twin.reported.properties);
        Ok(check_twin(&set, &id, desired, reported))
    })
    .await?;
    match found {
        Ok(faults) => json(&CheckResultDto::new(Some(model_id), &faults)),
        Err(ModelFailure::Error(error)) => Err(error.into()),
        Err(ModelFailure::Faults(faults)) => {
            let first = faults.first().map(ToString::to_string).unwrap_or_default();
            Err(Error::new(
                ErrorCode::InvalidOperation,
                format!("the model {model_id} itself breaks rules: {first}"),
            )
            .into())
        }
    }
}

fn dtmi(text: &str) -> Result<Dtmi, Error> {
    Dtmi::parse(text).map_err(|error| Error::new(ErrorCode::ArgumentInvalid, error.to_string()))
}

fn text(body: &Bytes) -> Result<String, Error> {
    String::from_utf8(body.to_vec())
        .map_err(|_| Error::new(ErrorCode::DeserializationError, "the model is not UTF-8"))
}

/// Runs a piece of work on the folder of models on a thread that may wait.
async fn on_folder<T: Send + 'static>(
    api: &Api,
    work: impl FnOnce(&ModelFolder) -> T + Send + 'static,
) -> Result<T, Error> {
    let folder = Arc::clone(&api.models);
    tokio::task::spawn_blocking(move || work(&folder))
        .await
        .map_err(|_| Error::new(ErrorCode::ServerError, "the work on the models was cut off"))
}
