//! `/registrations`: where devices stand.

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use holdfast_wire::dto::provisioning::DeviceRegistrationStateDto;
use holdfast_wire::etag;

use super::expected;
use super::query::Page;
use crate::Api;
use crate::reply::{Reply, json_tagged, no_content};

/// Reads the registration of a device. Right: RegistrationStatusRead.
#[utoipa::path(get, path = "/registrations/{id}", tag = "Provisioning",
    responses((status = 200, body = DeviceRegistrationStateDto)))]
pub(crate) async fn get(State(api): State<Api>, Path(id): Path<String>) -> Reply {
    let registration = api.provisioning.registration(&id).await?;
    let dto = DeviceRegistrationStateDto::from(&registration);
    json_tagged(&dto, &etag::of_identity(registration.version))
}

/// Deletes the registration of a device, so that its next one is its first. Right: RegistrationStatusWrite.
#[utoipa::path(delete, path = "/registrations/{id}", tag = "Provisioning",
    responses((status = 204, description = "deleted")))]
pub(crate) async fn delete(State(api): State<Api>, Path(id): Path<String>, headers: HeaderMap) -> Reply {
    api.provisioning
        .delete_registration(&id, expected(&headers))
        .await?;
    no_content()
}

/// Lists the registrations of a group in pages. Right: RegistrationStatusRead.
#[utoipa::path(post, path = "/registrations/{id}/query", tag = "Provisioning",
    responses((status = 200, body = Vec<DeviceRegistrationStateDto>)))]
pub(crate) async fn list(State(api): State<Api>, Path(id): Path<String>, headers: HeaderMap) -> Reply {
    let page = Page::of(&headers)?;
    let items = api
        .provisioning
        .list_registrations(&id, page.after.as_deref(), page.wanted())
        .await?;
    page.answer(
        items,
        "deviceRegistration",
        |item| item.registration_id.key(),
        |item| DeviceRegistrationStateDto::from(item),
    )
}
