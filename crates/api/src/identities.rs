//! `/devices/…`: the identity registry (REST contract, section 5).

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use holdfast_hub::{
    AuthenticationSpec, BulkEntry, IdentitySpec, ImportMode as EngineMode, KeyChoice, ServiceCaller,
};
use holdfast_model::registry::{Authentication, IdentityRecord};
use holdfast_model::twin::TwinChange;
use holdfast_model::{Error, ErrorCode, Identity, limits};
use holdfast_wire::dto::{
    AuthenticationChange, BulkRegistryErrorDto, BulkRegistryOperationResult, DeviceChanges, DeviceDto,
    DevicePut, ExportImportDevice, ImportMode, KeyRegenerationErrorDto, KeyRegenerationRequestDto,
    KeyRegenerationResultDto, ModuleChanges, ModuleDto, ModulePut, PolicyKeyDto, RotatedKeyDto,
};
use holdfast_wire::etag;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::Api;
use crate::extract::{Caller, body, engine_match, identity, identity_match, list_body};
use crate::reply::{Failure, Reply, json, json_tagged, json_with, no_content};

/// How many devices to list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub(crate) struct ListQuery {
    /// 1 to 1000; anything else means 1000.
    top: Option<String>,
    /// Holdfast: only devices whose id comes after this one, for walking through a large registry.
    after: Option<String>,
}

/// Lists devices. Right: RegistryRead.
#[utoipa::path(get, path = "/devices", tag = "Identities", params(ListQuery),
    responses((status = 200, body = Vec<DeviceDto>)))]
pub(crate) async fn list(State(api): State<Api>, Query(query): Query<ListQuery>) -> Reply {
    let top = query
        .top
        .and_then(|top| top.parse().ok())
        .unwrap_or(limits::DEVICES_PER_LIST_MAX);
    let records = api.hub.list_devices(query.after.as_deref(), top).await?;
    let mut devices = Vec::with_capacity(records.len());
    for record in &records {
        devices.push(device_dto(&api, record).await?);
    }
    json(&devices)
}

/// Reads a device, with its keys. Right: RegistryRead.
#[utoipa::path(get, path = "/devices/{id}", tag = "Identities", responses((status = 200, body = DeviceDto),
    (status = 404, description = "no such device")))]
pub(crate) async fn get_device(State(api): State<Api>, Path(device_id): Path<String>) -> Reply {
    let record = api.hub.identity(&identity(&device_id, None)?).await?;
    answer_device(&api, &record).await
}

/// Creates a device, or replaces its writable members when If-Match is given. Right: RegistryWrite.
#[utoipa::path(put, path = "/devices/{id}", tag = "Identities", request_body = DevicePut,
    responses((status = 200, body = DeviceDto), (status = 409, description = "exists, and no If-Match was given"),
    (status = 412, description = "If-Match does not match")))]
pub(crate) async fn put_device(
    State(api): State<Api>,
    Caller(caller): Caller,
    Path(device_id): Path<String>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Reply {
    let device = identity(&device_id, None)?;
    let changes = body::<DevicePut>(&bytes)?.changes(&device_id)?;
    let spec = device_spec(changes);
    let record = api
        .hub
        .put_identity(&caller, &device, &spec, identity_match(&headers))
        .await?;
    answer_device(&api, &record).await
}

/// Deletes a device with its modules, twins and queues. Right: RegistryWrite.
#[utoipa::path(delete, path = "/devices/{id}", tag = "Identities",
    responses((status = 204, description = "deleted"), (status = 412, description = "If-Match does not match")))]
pub(crate) async fn delete_device(
    State(api): State<Api>,
    Path(device_id): Path<String>,
    headers: HeaderMap,
) -> Reply {
    api.hub
        .delete_identity(&identity(&device_id, None)?, identity_match(&headers))
        .await?;
    no_content()
}

/// Lists the modules of a device. Right: RegistryRead, or the device itself.
#[utoipa::path(get, path = "/devices/{id}/modules", tag = "Identities",
    responses((status = 200, body = Vec<ModuleDto>)))]
pub(crate) async fn list_modules(State(api): State<Api>, Path(device_id): Path<String>) -> Reply {
    let records = api.hub.list_modules(&identity(&device_id, None)?).await?;
    json(&records.iter().map(ModuleDto::from_record).collect::<Vec<_>>())
}

/// Reads a module, with its keys. Right: RegistryRead, or the device itself.
#[utoipa::path(get, path = "/devices/{id}/modules/{mid}", tag = "Identities",
    responses((status = 200, body = ModuleDto)))]
pub(crate) async fn get_module(
    State(api): State<Api>,
    Path((device_id, module_id)): Path<(String, String)>,
) -> Reply {
    answer_module(&api.hub.identity(&identity(&device_id, Some(&module_id))?).await?)
}

/// Creates a module, or replaces its writable members when If-Match is given. Right: RegistryWrite, or the device
/// itself.
#[utoipa::path(put, path = "/devices/{id}/modules/{mid}", tag = "Identities", request_body = ModulePut,
    responses((status = 200, body = ModuleDto)))]
pub(crate) async fn put_module(
    State(api): State<Api>,
    Caller(caller): Caller,
    Path((device_id, module_id)): Path<(String, String)>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Reply {
    let module = identity(&device_id, Some(&module_id))?;
    let changes = body::<ModulePut>(&bytes)?.changes(&device_id, &module_id)?;
    let spec = module_spec(changes);
    let record = api
        .hub
        .put_identity(&caller, &module, &spec, identity_match(&headers))
        .await?;
    answer_module(&record)
}

/// Deletes a module. Right: RegistryWrite, or the device itself.
#[utoipa::path(delete, path = "/devices/{id}/modules/{mid}", tag = "Identities",
    responses((status = 204, description = "deleted")))]
pub(crate) async fn delete_module(
    State(api): State<Api>,
    Path((device_id, module_id)): Path<(String, String)>,
    headers: HeaderMap,
) -> Reply {
    api.hub
        .delete_identity(&identity(&device_id, Some(&module_id))?, identity_match(&headers))
        .await?;
    no_content()
}

/// Creates, updates and deletes up to 100 identities. Right: RegistryWrite.
///
/// Entries that fail are listed with status 200: some SDKs read no body of another status.
#[utoipa::path(post, path = "/devices", tag = "Identities", request_body = Vec<ExportImportDevice>,
    responses((status = 200, body = BulkRegistryOperationResult)))]
pub(crate) async fn bulk(State(api): State<Api>, Caller(caller): Caller, bytes: Bytes) -> Reply {
    let entries: Vec<ExportImportDevice> = list_body(&bytes, limits::BULK_REGISTRY_MAX)?;
    let mut errors = Vec::new();
    let mut accepted = Vec::with_capacity(entries.len());
    for entry in &entries {
        match bulk_entry(entry) {
            Ok(entry) => accepted.push(entry),
            Err(error) => errors.push(BulkRegistryErrorDto::new(entry, &error)),
        }
    }
    for failure in api.hub.bulk(&caller, accepted).await? {
        let of_failure = |entry: &&ExportImportDevice| {
            entry.id == failure.device_id && entry.module_id == failure.module_id
        };
        if let Some(entry) = entries.iter().find(of_failure) {
            errors.push(BulkRegistryErrorDto::new(entry, &failure.error));
        }
    }
    json(&BulkRegistryOperationResult::new(errors, Vec::new()))
}

/// Makes new keys for up to 100 identities. Right: RegistryWrite.
#[utoipa::path(post, path = "/devices/keys/regenerate", tag = "Identities",
    request_body = KeyRegenerationRequestDto, responses((status = 200, body = KeyRegenerationResultDto),
    (status = 207, body = KeyRegenerationResultDto), (status = 400, body = KeyRegenerationResultDto)))]
pub(crate) async fn regenerate_keys(State(api): State<Api>, Caller(caller): Caller, bytes: Bytes) -> Reply {
    let request: KeyRegenerationRequestDto = body(&bytes)?;
    if request.devices.len() > limits::BULK_REGISTRY_MAX {
        let text = format!("at most {} identities in one request", limits::BULK_REGISTRY_MAX);
        return Err(Error::new(ErrorCode::ArgumentInvalid, text).into());
    }
    let choice = match request.policy_key {
        PolicyKeyDto::PrimaryKey => KeyChoice::Primary,
        PolicyKeyDto::SecondaryKey => KeyChoice::Secondary,
        PolicyKeyDto::Both => KeyChoice::Both,
    };
    let mut result = KeyRegenerationResultDto {
        policy_key: request.policy_key,
        rotated_keys: Vec::new(),
        errors: Vec::new(),
    };
    for entry in request.devices {
        match rotate(&api, &caller, &entry.id, entry.module_id.as_deref(), choice).await {
            Ok((primary_key, secondary_key)) => result.rotated_keys.push(RotatedKeyDto {
                id: entry.id,
                module_id: entry.module_id,
                primary_key,
                secondary_key,
            }),
            Err(error) => result.errors.push(KeyRegenerationErrorDto {
                id: entry.id,
                module_id: entry.module_id,
                error_code: error.code.into(),
                error_status: error.message,
            }),
        }
    }
    json_with(
        StatusCode::from_u16(result.http_status()).unwrap_or(StatusCode::OK),
        &result,
        None,
    )
}

async fn rotate(
    api: &Api,
    caller: &ServiceCaller,
    device_id: &str,
    module_id: Option<&str>,
    choice: KeyChoice,
) -> Result<(String, String), Error> {
    let identity = Identity::new(device_id, module_id)?;
    let record = api.hub.regenerate_keys(caller, &identity, choice).await?;
    match record.authentication {
        Authentication::Sas {
            primary_key,
            secondary_key,
        } => Ok((primary_key.reveal().to_owned(), secondary_key.reveal().to_owned())),
        _ => Err(Error::new(
            ErrorCode::InvalidOperation,
            "the identity does not use keys",
        )),
    }
}

pub(crate) async fn device_dto(api: &Api, record: &IdentityRecord) -> Result<DeviceDto, Failure> {
    Ok(DeviceDto::from_record(
        record,
        api.hub.c2d_depth(&record.identity).await?,
    ))
}

async fn answer_device(api: &Api, record: &IdentityRecord) -> Reply {
    json_tagged(
        &device_dto(api, record).await?,
        &etag::of_identity(record.version),
    )
}

pub(crate) fn answer_module(record: &IdentityRecord) -> Reply {
    json_tagged(
        &ModuleDto::from_record(record),
        &etag::of_identity(record.version),
    )
}

fn device_spec(changes: DeviceChanges) -> IdentitySpec {
    IdentitySpec {
        status: changes.status,
        status_reason: changes.status_reason,
        authentication: authentication_spec(changes.authentication),
        iot_edge: changes.iot_edge,
        parent_scopes: changes.parent_scope.into_iter().collect(),
        ..IdentitySpec::default()
    }
}

pub(crate) fn module_spec(changes: ModuleChanges) -> IdentitySpec {
    IdentitySpec {
        authentication: authentication_spec(changes.authentication),
        managed_by: changes.managed_by,
        ..IdentitySpec::default()
    }
}

fn authentication_spec(change: AuthenticationChange) -> AuthenticationSpec {
    match change {
        AuthenticationChange::GenerateKeys => AuthenticationSpec::default(),
        AuthenticationChange::Set(Authentication::Sas {
            primary_key,
            secondary_key,
        }) => AuthenticationSpec::Sas {
            primary_key: Some(primary_key),
            secondary_key: Some(secondary_key),
        },
        AuthenticationChange::Set(Authentication::SelfSigned {
            primary_thumbprint,
            secondary_thumbprint,
        }) => AuthenticationSpec::SelfSigned {
            primary_thumbprint,
            secondary_thumbprint,
        },
        AuthenticationChange::Set(Authentication::CertificateAuthority) => {
            AuthenticationSpec::CertificateAuthority
        }
        AuthenticationChange::Set(Authentication::None) => AuthenticationSpec::None,
    }
}

pub(crate) fn bulk_entry(entry: &ExportImportDevice) -> Result<BulkEntry, Error> {
    let spec = match (&entry.module_id, entry.import_mode) {
        // What these modes do not use need not be right.
        (_, ImportMode::Delete | ImportMode::DeleteIfMatchETag) => IdentitySpec::default(),
        (_, ImportMode::UpdateTwin | ImportMode::UpdateTwinIfMatchETag) => IdentitySpec::default(),
        (None, _) => device_spec(entry.device_changes()?),
        (Some(_), _) => module_spec(entry.module_changes()?),
    };
    Ok(BulkEntry {
        device_id: entry.id.clone(),
        module_id: entry.module_id.clone(),
        mode: engine_mode(entry.import_mode),
        if_match: engine_match(&etag::IfMatch::identity(entry.etag.as_deref())),
        twin_if_match: engine_match(&etag::IfMatch::twin(entry.twin_etag.as_deref())),
        spec,
        twin: TwinChange {
            tags: entry.tags.as_ref().map(without_reserved),
            desired: entry
                .properties
                .as_ref()
                .and_then(|properties| properties.desired.as_ref())
                .map(without_reserved),
        },
    })
}

/// Drops the `$…` members that an exported twin carries.
fn without_reserved(section: &Map<String, Value>) -> Map<String, Value> {
    section
        .iter()
        .filter(|(key, _)| !key.starts_with('$'))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

const fn engine_mode(mode: ImportMode) -> EngineMode {
    match mode {
        ImportMode::CreateOrUpdate => EngineMode::CreateOrUpdate,
        ImportMode::Create => EngineMode::Create,
        ImportMode::Update => EngineMode::Update,
        ImportMode::UpdateIfMatchETag => EngineMode::UpdateIfMatchETag,
        ImportMode::CreateOrUpdateIfMatchETag => EngineMode::CreateOrUpdateIfMatchETag,
        ImportMode::Delete => EngineMode::Delete,
        ImportMode::DeleteIfMatchETag => EngineMode::DeleteIfMatchETag,
        ImportMode::UpdateTwin => EngineMode::UpdateTwin,
        ImportMode::UpdateTwinIfMatchETag => EngineMode::UpdateTwinIfMatchETag,
    }
}
